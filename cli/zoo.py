"""tnn-zoo: the networks that ship with the package."""

from pathlib import Path

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results

from tnn_robust.base.errors import InputError


@shared.command(
    "tnn-zoo",
    main=("out",),
    examples=("tnn-zoo", "tnn-zoo mnist-linf-0.1 --out runs/zoo"),
)
@click.argument("name", required=False)
@shared.heading(
    "Output",
    click.option("--out", type=shared.RESULT, help="Copy the network's checkpoint to this folder."),
)
@shared.overwriting
def main(name: str | None, out: Path | None, overwrite: bool) -> None:
    """List the trained networks of the package, or show the model card of one.

    Each is small, was attacked and certified, and says the command that trains it.
    With --out its checkpoint is copied to a folder that every command takes.
    """
    if name is None and out is not None:
        raise InputError("--out copies one network: name it, as tnn zoo lists them")
    from tnn_robust_cli import _render

    from tnn_robust import zoo
    from tnn_robust.models.checkpoint import FILE_NAME
    from tnn_robust.zoo.table import zoo_table

    if name is None:
        _render.show_tables([zoo_table(zoo.list())])
        return
    if out is None:
        _render.show_lines(zoo.card(name).splitlines())
        return
    from tnn_robust.base.files import write_bytes
    from tnn_robust.base.locks import claim_directory

    content = zoo.path(name).read_bytes()
    with claim_directory(out, "copy", overwrite=overwrite):
        write_bytes(out / FILE_NAME, content)
    _render.show_lines([_results.saved(out, FILE_NAME)])


if __name__ == "__main__":
    main()
