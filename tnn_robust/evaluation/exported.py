"""A network and questions about its examples, written for other verifiers."""

import contextlib
from pathlib import Path

from tnn_robust.base.claims import claimed_results
from tnn_robust.base.files import write_lines
from tnn_robust.base.threat import Threat
from tnn_robust.certification.export import export_onnx, export_property, require_box
from tnn_robust.data.dataset import Dataset
from tnn_robust.evaluation.certificates import selected
from tnn_robust.evaluation.subject import Subject

_FIRST = 10
_LIMIT = 120  # seconds an instance, as the verification competition gives


def export(
    subject: Subject,
    dataset: Dataset,
    onnx_file: Path,
    folder: Path | None,
    threat: Threat,
    *,
    part: str = "test",
    n: int | None = None,
    first: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> list[Path]:
    """Write the network as ONNX, and into a folder a VNN-LIB property of each example chosen.

    part, n, first, seed: as for `certificates`; the first ten by default. A file instances.csv
    lists network, property and time limit. Returns the properties' files; raises InputError
    before anything is written for files that are there, unless they may be overwritten, and for
    those that another process is writing.
    """
    if n is None and first is None:
        first = _FIRST
    held, indices = selected(subject, dataset, part, n, first, seed)
    if folder is not None:
        require_box(threat)
    name = threat.text.replace("/", "-")
    files = [folder / f"{part}_{i}_{name}.vnnlib" for i in indices.tolist()] if folder else []
    listed = [folder / "instances.csv"] if folder else []
    with contextlib.ExitStack() as held_files:

        def claim(*paths: Path) -> None:
            wanted = [(path, ()) for path in paths]
            held_files.enter_context(claimed_results(wanted, overwrite=overwrite))

        claim(onnx_file)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            claim(*files, *listed)
        export_onnx(subject.model, onnx_file, held.x[:1])
        for path, x, y in zip(files, held.x, held.y.tolist(), strict=False):
            export_property(path, x, y, threat, subject.scores)
        for path in listed:
            write_lines(path, (f"{onnx_file.name},{one.name},{_LIMIT}\n" for one in files))
    return files
