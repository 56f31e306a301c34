"""A description of data as tables, sentences and the picture of one example."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tnn_robust.base.drawing import BLUE
from tnn_robust.base.errors import InputError
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.description import DataDescription
from tnn_robust.reporting.gallery import along_features, as_lines, curves_of, image_of, line_axis
from tnn_robust.reporting.pictures import Picture
from tnn_robust.reporting.tables import Table

_SHOWN = 12  # classes and channels, the first and the last of many
_EPS = 8 / 255


def data_tables(found: DataDescription) -> list[Table]:
    """Shape and axes, classes with their examples, and the range of each channel."""
    facts = [
        ("examples", f"{found.n_train} train, {found.n_test} test"),
        ("an example", f"{_of(found.d, 'feature')} x {_of(found.c, 'channel')}"),
        ("axes", found.layout),
        ("image", "no" if found.image is None else " x ".join(map(str, found.image))),
        ("scaling", _scaling(found)),
    ]
    classes = [(one.name, f"{one.train}", f"{one.test}") for one in found.classes]
    tables = [
        Table(found.name, ("what", "this data"), facts),
        Table("Classes", ("class", "train", "test"), _cut(classes)),
    ]
    if len(found.low) > 1:
        both = zip(found.low, found.high, strict=True)
        rows = [
            (str(i), f"{low:.6g}", f"{high:.6g}", f"{(high - low) * _EPS:.3g}")
            for i, (low, high) in enumerate(both)
        ]
        columns = ("channel", "becomes 0", "becomes 1", "eps 8/255 is")
        tables.append(Table("Range of each channel, in its own unit", columns, _cut(rows)))
    return tables


def _cut(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    if len(rows) <= _SHOWN:
        return list(rows)
    hidden = (f"... {len(rows) - _SHOWN} more", *[""] * (len(rows[0]) - 1))
    return [*rows[: _SHOWN // 2], hidden, *rows[-_SHOWN // 2 :]]


def _of(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _scaling(found: DataDescription) -> str:
    if len(found.low) > 1:
        return "each channel by its training range"
    low, high = found.low[0], found.high[0]
    return f"{low:g}..{high:g} becomes 0..1"


def data_notes(found: DataDescription) -> list[str]:
    """How it came to be, what an eps means in the unit of the file, and the warnings."""
    return [
        f"Values in training, as in the file: {min(found.least):.6g} to {max(found.most):.6g}.",
        *(_sentence(note) for note in found.notes),
        _of_eps(found),
        *(f"WARNING: {text}." for text in found.warnings),
    ]


def _sentence(note: str) -> str:
    """A note with a full stop; a capital unless it begins with the name of a file."""
    first = note.split(maxsplit=1)[0]
    head = note[0] if "." in first else note[0].upper()
    return f"{head}{note[1:].rstrip('.')}."


def _of_eps(found: DataDescription) -> str:
    spans = found.spans or (0.0,)
    least, most = min(spans) * _EPS, max(spans) * _EPS
    if most <= least * (1 + 1e-6):
        same = "as it is" if abs(most - _EPS) < 1e-12 else f"{most:.4g} in the unit of the file"
        typed = "" if same == "as it is" else f"; --eps-unit raw takes it as {most:.4g}"
        return f"An eps is a share of the range 0..1: 8/255 is {same}{typed}."
    return (
        f"An eps is a share of each channel's own range: 8/255 is {least:.3g} in the narrowest "
        f"channel and {most:.3g} in the widest. One size in the unit of the file needs one range "
        "for all: limits LOW,HIGH."
    )


def data_picture(dataset: Dataset, number: int = 0) -> Picture:
    """One test example as a network sees it: an image, or lines over steps or bands.

    Raises InputError for a number that the test part has not.
    """
    n = len(dataset.test.y)
    if not 0 <= number < n:
        raise InputError(f"example needs a number from 0 to {n - 1}, got {number}", field="example")
    x, y = dataset.test.rows(slice(number, number + 1))
    title = (
        f"{dataset.name.rpartition('/')[2]}, test example {number}: {dataset.classes[int(y[0])]}"
    )

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.set_title(title)
        if as_lines(dataset):
            _draw_lines(axes, x[0], dataset)
            return
        axes.imshow(
            image_of(x[0], dataset), vmin=0.0, vmax=1.0, cmap="gray", interpolation="nearest"
        )
        axes.grid(visible=False)
        whole = dataset.image is not None
        axes.set_xlabel("columns" if whole else "channels (c)")
        axes.set_ylabel("rows" if whole else "features (d)")

    words = "One example as the network sees it, its values scaled to 0..1."
    return Picture("example", title, words, (6.4, 4.4), draw)


def _draw_lines(axes: Any, x: Tensor, dataset: Dataset) -> None:
    lines = curves_of(x, along_features(dataset)).numpy().T
    for line in lines:
        axes.plot(line, "-", linewidth=1.2, color=BLUE if len(lines) == 1 else None)
    axes.set_xlabel(f"{line_axis(dataset)}, counted from 0")
    axes.set_ylabel("value, scaled to 0..1")
