"""Properties of an ONNX network, file by file."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

from tnn_robust.base.errors import InputError
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.reading import sha256_of
from tnn_robust.certification.certify import require_time
from tnn_robust.certification.decide import decide
from tnn_robust.certification.onnx_network import read_onnx
from tnn_robust.certification.property_results import PropertyReport, PropertyRow
from tnn_robust.certification.vnnlib import read_vnnlib
from tnn_robust.models.checkpoint import versions

_PARTS = re.compile(r"(\d+)").split


def property_steps(
    network: Path, properties: Sequence[Path], *, time_limit: float = 60.0, seed: int = 0
) -> Steps[PropertyReport]:
    """Decide VNN-LIB properties of an ONNX network; see `decide`.

    properties: files, and folders, which stand for their *.vnnlib and *.vnnlib.gz;
    time_limit: seconds a property, from its reading on. Raises DataError for files that are no
    such network or property.
    """
    require_time(time_limit)
    if not properties:
        raise InputError("a network needs at least one property, got none")
    held = read_onnx(network)
    digest = sha256_of(network)
    files = [one for path in properties for one in _files(path)]
    wanted = [read_vnnlib(path) for path in files]
    rows: list[PropertyRow] = []
    for path, one in zip(files, wanted, strict=True):
        started = time.perf_counter()
        answer = decide(held.chain, one, run=held.run, time_limit=time_limit, seed=seed)
        point = (None if t is None else tuple(map(float, t)) for t in (answer.x, answer.y))
        rows.append(PropertyRow(str(path), answer.result, time.perf_counter() - started, *point))
        yield Progress(f"certify, {path.name}", len(rows), len(files), rows[-1])
    return PropertyReport(str(network), digest, time_limit, versions(), tuple(rows))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [one for one in path.iterdir() if one.name.endswith((".vnnlib", ".vnnlib.gz"))]
    if not found:
        raise InputError(f"{path} holds no .vnnlib file")
    # prop_2 before prop_10.
    return sorted(found, key=lambda one: [int(t) if t.isdigit() else t for t in _PARTS(one.name)])
