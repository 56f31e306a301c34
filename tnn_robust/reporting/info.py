"""What a checkpoint is, as a table and lines. Free of torch."""

from collections.abc import Mapping
from typing import Any

from tnn_robust.models.info import CheckpointInfo
from tnn_robust.reporting.tables import Table

_SHAPE = ("features", "channels", "widths", "ranks", "scores", "transform")


def info_lines(found: CheckpointInfo) -> list[str]:
    """Above the table: the network, its data, training and origin, a line each."""
    a = found.architecture
    scores = f"{a['scores']} score{'s' * (a['scores'] > 1)}"
    # What not every network has: of newer versions too.
    rest = {k: v for k, v in a.items() if k not in _SHAPE and v not in (None, False)}
    lines = [
        f"{found.path}: {found.bytes} bytes, {found.dtype}",
        f"Network: ({a['features']}, {a['channels']}) -> {scores}, {len(found.layers)} t-layers "
        f"under {a['transform']}, {found.parameters} parameters, {found.flops} FLOPs an example"
        + (f"; {_said(rest)}" if rest else ""),
        f"Data: {_data(found.data)}",
        f"Training: {_training(found.training, found.seed)}",
    ]
    if found.compression is not None:
        parent = str(found.compression.get("parent_digest", ""))[:12]
        rule = _said(found.compression.get("rule"))
        lines.append(f"Compressed: {rule}; parent of digest {parent}")
    written = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return [*lines, f"Digest: {found.digest}", f"Written by: {written}"]


def info_tables(found: CheckpointInfo) -> list[Table]:
    """The layers, a row each."""
    rows = [
        (
            f"{one.layer + 1}",
            one.form,
            f"{one.d_in} -> {one.d_out}",
            _ranks(one.multi_rank),
            f"{one.stable_rank:.1f}",
            f"{one.spectral_norm:.3g}",
            f"{one.parameters}",
        )
        for one in found.layers
    ]
    heads = ("layer", "held as", "size", "face ranks", "stable rank", "norm", "parameters")
    return [Table("Layers", heads, rows)]


def _ranks(ranks: tuple[int, ...]) -> str:
    low, high = min(ranks), max(ranks)
    return f"{high}" if low == high else f"{low} to {high}"


def _data(data: Mapping[str, Any]) -> str:
    if not data:
        return "none in the file: evaluate takes the data"
    classes = ", ".join(map(str, data.get("classes", ())))
    return (
        f"{data.get('name')}, {data.get('n_train')} training and {data.get('n_test')} test "
        f"examples, classes {classes}; digest {str(data.get('digest'))[:12]}"
    )


def _training(training: Mapping[str, Any], seed: int) -> str:
    if not training:
        return "none in the file"
    attack = training.get("attack")
    against = "clean examples"
    if isinstance(attack, dict):
        steps = attack.get("steps")
        against = (
            f"{attack.get('name')}, {attack.get('norm')} eps {attack.get('eps')}, "
            f"{steps} step{'s' * (steps != 1)}"
        )
    left = {"attack", "data", "widths", "ranks", "transform", "seed"}
    rest = {k: v for k, v in training.items() if k not in left and v not in (None, 0, False)}
    return "; ".join([against, *([_said(rest)] if rest else []), f"seed {seed}"])


def _said(value: Any) -> str:
    """Settings of a header in words: name and value."""
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{str(k).replace('_', ' ')} {_said(v)}" for k, v in value.items())
