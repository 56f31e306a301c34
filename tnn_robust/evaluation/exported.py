"""A network and questions about its examples, written for other verifiers."""

from pathlib import Path

from tnn_robust.base.errors import InputError
from tnn_robust.base.files import require_writable, write_lines
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
    before anything is written for files that are there, unless they may be overwritten.
    """
    if n is None and first is None:
        first = _FIRST
    held, indices = selected(subject, dataset, part, n, first, seed)
    if folder is not None:
        require_box(threat)
    name = threat.text.replace("/", "-")
    files = [folder / f"{part}_{i}_{name}.vnnlib" for i in indices.tolist()] if folder else []
    listed = [folder / "instances.csv"] if folder else []
    for path in (onnx_file, *files, *listed):
        require_writable(path)
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists: choose another or overwrite it", field="overwrite")
    export_onnx(subject.model, onnx_file, held.x[:1])
    if folder is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for path, x, y in zip(files, held.x, held.y.tolist(), strict=True):
        export_property(path, x, y, threat, subject.scores)
    write_lines(listed[0], (f"{onnx_file.name},{path.name},{_LIMIT}\n" for path in files))
    return files
