"""The .ts text format of the UEA archive (Bagnall et al., arXiv:1811.00075).

`#` starts a comment, `@` a header line; after `@data` one sample a line: channels separated
by `:`, steps by `,`, the label last.
"""

from pathlib import Path

import numpy as np

from tnn_robust.base.errors import DataError
from tnn_robust.base.reading import Room, read_text, reading, said
from tnn_robust.data.entries import naming_the_format
from tnn_robust.data.labels import require_classes
from tnn_robust.data.missing import FIX, filled
from tnn_robust.data.raw import Arrays

Sample = list[np.ndarray]


def read_time_series(
    train_path: Path, test_path: Path, *, resample: int | None, missing: str = "refuse"
) -> tuple[Arrays, tuple[str, ...], int]:
    """Two .ts files: x float64 (n, steps, sensors), y int64, the class names, and how many
    values were missing.

    resample: linearly resample every series to so many steps; without it all series must
    have one length. missing: "interpolate" puts values that are missing on straight lines
    between their neighbours. Classes are in the order of the header's `@classLabel`, others
    sorted behind. Raises DataError for malformed files, regression files, missing values that
    are to be refused and unequal series.
    """
    parts, n_missing = [], 0
    for path in (train_path, test_path):
        with naming_the_format(path, "ts"):
            samples, labels, header = read_ts(path, missing=missing)
        n_missing += sum(int(np.isnan(series).sum()) for sample in samples for series in sample)
        samples = [[filled(series, path) for series in sample] for sample in samples]
        parts.append((samples, labels, header))
    _require_no_regression(parts, train_path)
    names = _class_order(parts)
    arrays = []
    for path, (samples, labels, _) in zip((train_path, test_path), parts, strict=True):
        arrays.append(stack(samples, source=path, resample=resample))
        arrays.append(np.array([names.index(label) for label in labels], np.int64))
    steps = (arrays[0].shape[1], arrays[2].shape[1])
    if steps[0] != steps[1]:
        raise DataError(
            f"the series have {steps[0]} steps in {train_path} and {steps[1]} in {test_path}: "
            "resample them to one length",
            field="resample",
        )
    return Arrays(*arrays), names, n_missing


def _require_no_regression(
    parts: list[tuple[list[Sample], list[str], list[str]]], path: Path
) -> None:
    """DataError for labels that are numbers with fractions, or that hardly repeat."""
    labels = [label for _, some, _ in parts for label in some]
    if any(header for _, _, header in parts):
        return
    try:
        fraction = next((one for one in labels if float(one) != round(float(one))), None)
    except (ValueError, OverflowError):
        fraction = None
    if fraction is not None:
        raise DataError(
            f"{path} has labels such as {fraction}, the numbers of a regression: classes are needed"
        )
    require_classes(len(set(labels)), len(labels), str(path))


def read_ts(path: Path, *, missing: str = "refuse") -> tuple[list[Sample], list[str], list[str]]:
    """Samples (one array of steps a channel), their labels, and the header's class names.

    missing: other than "refuse" makes values that are missing NaN.
    """
    with reading(path, "text"):
        lines = read_text(path, encoding="utf-8-sig").splitlines()
    kept = [(i, line.strip()) for i, line in enumerate(lines, 1)]
    kept = [(i, line) for i, line in kept if line and not line.startswith("#")]
    n_header = next((k for k, (_, line) in enumerate(kept) if line.lower() == "@data"), None)
    if n_header is None:
        raise DataError(f"{path} is not a .ts file: it has no @data line")
    classes = _header_classes(path, [line for _, line in kept[:n_header]])
    samples: list[Sample] = []
    labels: list[str] = []
    for i, line in kept[n_header + 1 :]:
        sample, label = _parse_sample(line, where=f"{path}, line {i}", missing=missing)
        if samples and len(sample) != len(samples[0]):
            raise DataError(
                f"{path}, line {i}: {len(sample)} channels, the first has {len(samples[0])}"
            )
        samples.append(sample)
        labels.append(label)
    if not samples:
        raise DataError(f"{path} has no samples after @data")
    return samples, labels, classes


def _header_classes(path: Path, header: list[str]) -> list[str]:
    classes: list[str] = []
    for line in header:
        words = line.split()
        if not line.startswith("@"):
            raise DataError(f"{path} is not a .ts file: {line[:40]!r} stands before @data")
        if words[0].lower() == "@classlabel":
            if words[1:2] != ["true"]:
                raise DataError(f"{path} has no class labels")
            classes = words[2:]
        if words[0].lower() == "@targetlabel" and words[1:2] == ["true"]:
            raise DataError(f"{path} is of a regression (@targetLabel true): classes are needed")
        if words[0].lower() == "@timestamps" and words[1:2] == ["true"]:
            raise DataError(f"{path} has time stamps, needed values only")
    return classes


def _parse_sample(line: str, *, where: str, missing: str) -> tuple[Sample, str]:
    *channels, label = (field.strip() for field in line.split(":"))
    if not channels or not label:
        raise DataError(f"{where}: needed channels and a label separated by ':'")
    sample = []
    for channel in channels:
        tokens = [token.strip() for token in channel.split(",")]
        tokens = ["nan" if token == "?" else token for token in tokens]
        try:
            sample.append(np.array([float(token) for token in tokens]))
        except ValueError as e:
            raise DataError(f"{where}: {said(e)}") from e
        if missing == "refuse" and np.isnan(sample[-1]).any():
            raise DataError(f"{where}: a value is missing ('?' or NaN): {FIX}", field="missing")
    return sample, label


def _class_order(parts: list[tuple[list[Sample], list[str], list[str]]]) -> tuple[str, ...]:
    present = {label for _, labels, _ in parts for label in labels}
    listed = dict.fromkeys(name for _, _, header in parts for name in header)
    return (*(name for name in listed if name in present), *sorted(present - set(listed)))


def stack(samples: list[Sample], *, source: Path, resample: int | None) -> np.ndarray:
    """float64 (n, steps, sensors). Raises DataError for unequal lengths without `resample`."""
    if resample is not None:
        room = Room()
        room.take(8 * resample * sum(map(len, samples)), f"{source} resampled to {resample} steps")
        samples = [[resample_series(series, resample) for series in s] for s in samples]
    lengths = {len(series) for sample in samples for series in sample}
    if len(lengths) > 1:
        raise DataError(
            f"the series of {source} have unequal lengths, {min(lengths)} to {max(lengths)} "
            "steps: resample them to one length",
            field="resample",
        )
    return np.stack([np.stack(sample, axis=1) for sample in samples])


def resample_series(series: np.ndarray, steps: int) -> np.ndarray:
    """Linear interpolation of a series at `steps` even places from first to last value."""
    old = np.arange(len(series))
    return np.interp(np.linspace(0, len(series) - 1, steps), old, series)
