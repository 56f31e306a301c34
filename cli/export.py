"""tnn-export: a network as ONNX and its robustness as VNN-LIB, for other verifiers."""

from pathlib import Path
from typing import Any

import click
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _subjects

from tnn_robust.base.errors import InputError


@shared.command(
    "tnn-export",
    main=("onnx_file", "folder", "eps"),
    examples=(
        "tnn-export runs/first --onnx first.onnx",
        "tnn-export runs/first --onnx first.onnx --vnnlib properties --eps 1/255",
    ),
)
@_subjects.subjects
@shared.options(
    shared.threat,
    shared.eps_unit,
    _subjects.examples,
    shared.heading(
        "Output",
        click.option(
            "--onnx",
            "onnx_file",
            type=shared.OUT,
            required=True,
            help="Write the network there, a .onnx file.",
        ),
        click.option(
            "--vnnlib", "folder", type=shared.OUT, help="Write the properties to this folder."
        ),
        shared.overwriting,
    ),
)
def main(onnx_file: Path, folder: Path | None, overwrite: bool, **given: Any) -> None:
    """Write a network as ONNX and its robustness as VNN-LIB.

    Other verifiers decide these properties.

    The layers become dense matrices, with a bias each. A property asks for a
    perturbation of one example (the first ten unless you say more) that changes
    its decision; instances.csv lists them as the verification competition does.
    """
    from tnn_robust_cli import _render

    from tnn_robust.evaluation.exported import export

    chosen = _subjects.chosen(given)
    subject, dataset = _subjects.load(given)
    threat, *more = _subjects.threats(given, subject)
    if more:
        raise InputError(f"properties are of one eps, got {1 + len(more)}", field="eps")
    files = export(subject, dataset, onnx_file, folder, threat, overwrite=overwrite, **chosen)
    lines = [f"The network is in {onnx_file}."]
    if folder is not None:
        lines.append(f"Properties of {len(files)} examples under {threat} are in {folder}.")
        lines.append(f"Decide them by: tnn-certify {onnx_file} --vnnlib {folder}")
    _render.show_lines(lines)


if __name__ == "__main__":
    main()
