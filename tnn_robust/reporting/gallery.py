"""A gallery of adversarial examples: clean, what was added, and what came out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_robust.base.drawing import BLUE, ORANGE
from tnn_robust.base.errors import DataError
from tnn_robust.data.dataset import Dataset
from tnn_robust.evaluation.report import Evaluated
from tnn_robust.evaluation.rows import Points
from tnn_robust.evaluation.saved_points import read_points
from tnn_robust.reporting.figures import save_figure
from tnn_robust.reporting.pictures import Picture

SHOWN = 6
_CHOSEN = 3  # bands named


class Pair(NamedTuple):
    """A test example and the point that breaks it, (d, c) on the CPU, with names of classes."""

    number: int
    clean: Tensor
    adversarial: Tensor
    label: str
    prediction: str


def pairs_of(dataset: Dataset, points: Points, count: int = SHOWN) -> list[Pair]:
    """The broken test examples that an attack moved, one a class in turn, at most `count`."""
    clean = dataset.test.rows(points.indices).x
    moved = (points.x_adv - clean).abs().amax((1, 2)) > 0
    places = (points.success & moved).nonzero()[:, 0].tolist()
    labels, seen = points.y.tolist(), dict[int, int]()
    order = []
    for place in places:
        seen[labels[place]] = seen.get(labels[place], 0) + 1
        order.append((seen[labels[place]], place))
    return [
        Pair(
            int(points.indices[place]),
            clean[place],
            points.x_adv[place],
            dataset.classes[labels[place]],
            dataset.classes[int(points.predictions[place])],
        )
        for _, place in sorted(order)[:count]
    ]


def gallery_of(dataset: Dataset, points: Points) -> Picture | None:
    """The gallery as a picture; None where nothing was broken."""
    pairs = pairs_of(dataset, points)
    if not pairs:
        return None
    lines = as_lines(dataset)
    width = (7.2, 1.9) if lines else (7.2, 2.1)
    return Picture(
        "gallery",
        "Adversarial examples",
        f"{len(pairs)} test examples that the attacks broke. " + (_LINES if lines else _IMAGES),
        (width[0], 0.4 + width[1] * len(pairs)),
        lambda figure: _draw(figure, pairs, dataset, lines),
    )


_IMAGES = "From left to right: the example, what was added to it, and their sum."
_LINES = "Left: the example (orange) and the adversarial one (blue); right: what was added."


def write_gallery(path: Path, dataset: Dataset, found: Evaluated) -> str:
    """Write the gallery of an evaluation that kept its points; a sentence on what was done."""
    picture = gallery_of(dataset, found.points[-1]["test"])
    if picture is None:
        return f"There is no gallery {path}: no attack moved a test example to another class."
    save_figure(path, picture.inches, picture.draw)
    return f"Gallery in {path}: {picture.words}"


def saved_gallery(path: Path, data_dir: str | None = None) -> Picture | None:
    """The gallery of a file of adversarial examples, beside the clean ones found anew.

    Raises CheckpointError for another file, DataError for data that are not there or differ.
    """
    recorded = read_points(path)
    dataset = recorded.load_data(data_dir)
    if dataset.digest != recorded.data_digest:
        raise DataError(f"{dataset.name} differs from the data that {path} was made on")
    return gallery_of(dataset, recorded.points[-1]["test"])


def as_lines(dataset: Dataset) -> bool:
    """Series over time, spectra over bands, rows of tables: lines say more than an image."""
    layout = dataset.layout
    return layout.startswith(("steps", "columns", "one feature")) or "bands" in layout


def line_axis(dataset: Dataset) -> str:
    """What the points of a line are."""
    if dataset.layout.startswith("steps"):
        return "step"
    return "band" if "bands" in dataset.layout else "column"


def along_features(dataset: Dataset) -> bool:
    """Whether lines run along the features, else along the channels."""
    return dataset.layout.startswith(("steps", "columns"))


def _draw(figure: Any, pairs: Sequence[Pair], dataset: Dataset, lines: bool) -> None:
    for row, pair in zip(figure.subfigures(len(pairs), 1, squeeze=False)[:, 0], pairs, strict=True):
        size = float((pair.adversarial - pair.clean).abs().max())
        row.suptitle(
            f"test example {pair.number}: {pair.label}, taken for {pair.prediction}; no value "
            f"changes by more than {size:.3g}",
            x=0.01,
            ha="left",
            fontsize=9.5,
        )
        (_draw_lines if lines else _draw_images)(row, pair, dataset)


def _draw_images(figure: Any, pair: Pair, dataset: Dataset) -> None:
    added = pair.adversarial - pair.clean
    reach = float(added.abs().max()) or 1.0
    left, middle, right = figure.subplots(1, 3)
    for axes, values, name in ((left, pair.clean, pair.label), (right, pair.adversarial, None)):
        image = image_of(values, dataset).clip(0, 1)
        axes.imshow(image, vmin=0.0, vmax=1.0, cmap="gray", interpolation="nearest")
        axes.set_title(name or pair.prediction, loc="center", fontsize=9)
    change = image_of(added, dataset)
    if change.ndim == 3:
        change = change.mean(-1)
    middle.imshow(change, vmin=-reach, vmax=reach, cmap="RdBu_r", interpolation="nearest")
    middle.set_title(f"added, red up and blue down to {reach:.3g}", loc="center", fontsize=9)
    for axes in (left, middle, right):
        axes.set_axis_off()


def image_of(values: Tensor, dataset: Dataset) -> Any:
    """(h, w) or (h, w, 3) of an example (d, c); of more planes their mean."""
    planes, height, width = dataset.image_shape
    if planes == 1:
        return values.reshape(height, width).numpy()
    image = values.reshape(height, width, planes)
    return (image if planes == 3 else image.mean(-1)).numpy()


def _draw_lines(figure: Any, pair: Pair, dataset: Dataset) -> None:
    """Series: a line a channel over features; spectra: the mean of the pixels over bands."""
    along = along_features(dataset)
    clean, adversarial = (curves_of(x, along) for x in (pair.clean, pair.adversarial))
    left, right = figure.subplots(1, 2)
    x = range(1, len(clean) + 1)
    left.plot(x, clean.numpy(), color=ORANGE, linewidth=1.2)
    left.plot(x, adversarial.numpy(), color=BLUE, linewidth=1.2)
    right.plot(x, (adversarial - clean).numpy(), color=BLUE, linewidth=1.2)
    for axes in (left, right):
        axes.set_xlabel(line_axis(dataset))
    left.set_title("the example and the adversarial one", fontsize=9)
    right.set_title(f"added{_most_changed(adversarial - clean)}", fontsize=9)


def _most_changed(added: Tensor) -> str:
    """Where along a single line the attack chose to change most, counted from 1, in words."""
    if added.shape[1] != 1 or len(added) < 2 * _CHOSEN:
        return ""
    places = added[:, 0].abs().topk(_CHOSEN).indices.sort().values + 1
    return f", most at {', '.join(map(str, places.tolist()))}"


def curves_of(values: Tensor, over_time: bool) -> Tensor:
    """(points, lines): of (d, c), at most six channels; or the mean over d of each band."""
    return values[:, :6] if over_time else torch.mean(values, 0)[:, None]
