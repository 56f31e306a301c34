"""tnn-load: weights that were trained elsewhere, as a run directory."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results
from tnn_robust_cli._train_options import NETWORK

from tnn_robust.base.errors import InputError

_WEIGHTS = shared.heading(
    "Weights",
    click.option(
        "--layout",
        default="faces",
        help="Read layers of the file as faces (k, d_out, d_in) in the transform's domain, or "
        "as tubes (d_out, d_in, c) in the data's own.",
    ),
    click.option(
        "--map",
        "names",
        multiple=True,
        metavar="OURS=THEIRS",
        help="Say which tensor of the file becomes which: layers.0.weight=w1; repeatable. "
        "By default names are the same, or the order of a .pt says it.",
    ),
)
_LIKE = click.option(
    "--like", metavar="RUN", type=shared.OUT, help="Take the shape, and the data, of this run."
)
_OUTPUT = shared.heading(
    "Output",
    click.option("--out", type=shared.RESULT, required=True, help="Write the run directory there."),
    click.option("--overwrite", is_flag=True, help="Replace what is in it."),
)


@shared.command(
    "tnn-load",
    main=("like", "dataset", "out"),
    examples=(
        "tnn-load weights.pt --like runs/mnist --layout tubes --out runs/mine",
        "tnn-load weights.safetensors --dataset mnist --width 28 --out runs/mine",
    ),
)
@click.argument("weights", metavar="WEIGHTS", type=shared.OUT)
@shared.options(
    _WEIGHTS,
    shared.heading("Network", _LIKE, NETWORK),
    shared.heading("Data", shared.data_set, shared.data_place),
    _OUTPUT,
)
def main(
    weights: Path,
    like: Path | None,
    names: tuple[str, ...],
    layout: str,
    out: Path,
    overwrite: bool,
    **given: Any,
) -> None:
    """Make a run of a t-NN that was trained elsewhere.

    WEIGHTS is a torch state dict: a .pt or .pth file, of which tensors alone are
    read, or a .safetensors file. The network has the shape of --like RUN, or of
    --dataset and --layers, --width, --rank, --transform. What has no place, is
    missing or does not fit is named, and then nothing is written.
    """
    from tnn_robust_cli import _render

    from tnn_robust.models.checkpoint import FILE_NAME
    from tnn_robust.models.info import checkpoint_info
    from tnn_robust.reporting.info import info_lines, info_tables
    from tnn_robust.training.imported import import_run

    spec = shared.data_spec(given)
    network = {name: given[name] for name in given if name not in spec.__dataclass_fields__}
    if like is not None and (typed := shared.typed(*network, *spec.__dataclass_fields__)):
        raise InputError(f"{', '.join(typed)}: not with --like, which says all of that")
    found = import_run(
        weights,
        out,
        like=like,
        data=spec if like is None else None,
        network=network,
        names=_pairs(names),
        layout=layout,
        overwrite=overwrite,
    )
    described = checkpoint_info(found)
    _render.show_lines([*info_lines(described), ""])
    _render.show_tables(info_tables(described))
    _render.show_lines([_results.saved(out, FILE_NAME)])


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise InputError(f"--map needs OURS=THEIRS, got {text!r}")
        found[ours] = theirs
    return found


if __name__ == "__main__":
    main()
