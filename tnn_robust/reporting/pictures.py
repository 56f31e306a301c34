"""The pictures of a report by name: each can stand in a page or alone in a file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tnn_robust.base.codec import Interval
from tnn_robust.base.drawing import BLUE, GREY, ORANGE
from tnn_robust.base.errors import CheckpointError, InputError, unknown_choice
from tnn_robust.compression.rank_sweep_results import SweepReport
from tnn_robust.evaluation.certificate_results import CertificationReport
from tnn_robust.evaluation.comparison_results import ComparisonReport
from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.evaluation.results import AttackReport, AttackRow
from tnn_robust.reporting.certificates import draw_certificates
from tnn_robust.reporting.figures import draw_curve, figure_bytes, save_figure
from tnn_robust.reporting.rank_sweep import SWEEP_INCHES, draw_sweep


class Picture(NamedTuple):
    """A drawing on a matplotlib figure. name: to ask for it by; words: what it shows."""

    name: str
    title: str
    words: str
    inches: tuple[float, float]
    draw: Callable[[Any], None]

    def svg(self) -> str:
        """The picture as an SVG element, to stand in a page."""
        text = figure_bytes("svg", self.inches, self.draw).decode()
        return text[text.index("<svg") :]

    def save(self, path: Path) -> None:
        """Write it as .png, .svg or .pdf, whole or not at all."""
        save_figure(path, self.inches, self.draw)


def attacked(report: AttackReport) -> list[Picture]:
    """Of an attack report: accuracies, and spectra where the network is still there."""
    return [_rows_picture(report), *_spectra(report.model)]


def swept(curve: EpsCurve) -> list[Picture]:
    """Of an eps curve: the curve."""
    return [
        Picture(
            "curve",
            "Robustness against eps",
            "Accuracy under attack against the size of the ball; bands are 95 % intervals.",
            (9.5, 5.2),
            lambda figure: draw_curve(figure, curve),
        )
    ]


def of_sizes(report: SweepReport) -> list[Picture]:
    """Of a sweep over ranks or sizes: robustness and gap against parameters."""
    return [
        Picture(
            "sweep",
            "Robustness against size",
            "Robust test accuracy and the gap of each network against its parameters.",
            SWEEP_INCHES,
            lambda figure: draw_sweep(figure, report),
        )
    ]


def proved(report: CertificationReport) -> list[Picture]:
    """Of certificates at several eps: certified, unknown and broken against eps."""
    if len(report.rows) < 2 or len({row.norm for row in report.rows}) > 1:
        return []
    return [
        Picture(
            "certified",
            "Certified, unknown and broken against eps",
            "Certified: no perturbation of that size changes the decision. Broken: one does.",
            (6.4, 4.2),
            lambda figure: draw_certificates(figure, report),
        )
    ]


def chosen_picture(pictures: Sequence[Picture], name: str | None) -> Picture:
    """The picture of a name, by default the first; InputError where there is none."""
    if not pictures:
        raise InputError("this report has no picture: it is tables alone")
    found = {one.name: one for one in pictures}
    if name is not None and name not in found:
        raise unknown_choice("picture", name, tuple(found))
    return pictures[0] if name is None else found[name]


_Bar = tuple[str, float, Interval | None]


def _intervals(axes: Any, rows: Sequence[_Bar], colour: str, offset: float, label: str) -> None:
    """A dot a row with its interval, the first row on top."""
    for place, (_, value, interval) in enumerate(rows):
        low, high = interval or (value, value)
        axes.plot([100 * low, 100 * high], [place + offset] * 2, color=colour, linewidth=2.2)
    values = [100 * value for _, value, _ in rows]
    places = [place + offset for place in range(len(rows))]
    axes.plot(values, places, "o", color=colour, label=label)


def _draw_accuracies(figure: Any, train: Sequence[_Bar], test: Sequence[_Bar], title: str) -> None:
    axes = figure.add_subplot()
    n = len(test)
    _intervals(axes, test, BLUE, -0.12 if train else 0.0, "test")
    if train:
        _intervals(axes, train, ORANGE, 0.12, "training")
    axes.set_yticks(range(n), [name for name, _, _ in test])
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("accuracy (%), lines: 95 % intervals")
    axes.set_title(title)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=2)


def _rows_picture(report: AttackReport) -> Picture:
    worst = report.worst_case
    rows = (*report.attacks, worst)
    parts: dict[str, list[_Bar]] = {"train": []}
    for part, of_worst in worst.parts.items():
        clean: list[_Bar] = [("clean", of_worst.clean_accuracy, None)]
        found = [(_label(report, row), row.parts[part]) for row in rows]
        parts[part] = clean + [(name, one.accuracy, one.accuracy_ci) for name, one in found]
        if report.certified is not None and part in report.certified.parts:
            sure = report.certified.parts[part]
            parts[part].append(("certified", sure.accuracy, sure.accuracy_ci))
    title = f"{report.dataset['name']}, {worst.norm} eps {worst.eps}"
    train = worst.train
    orange = "" if train is None else f", orange the training part ({train.n})"
    return Picture(
        "accuracy",
        "Accuracy, clean and under each attack",
        f"Blue is the test part ({worst.test.n} examples){orange}. In a suite every row holds "
        "what the rows above it left standing.",
        (7.2, 1.5 + 0.42 * len(parts["test"])),
        lambda figure: _draw_accuracies(figure, parts["train"], parts["test"], title),
    )


def _label(report: AttackReport, row: AttackRow) -> str:
    """An attack's name, with its loss where another has the same name."""
    same = sum(row.name == one.name for one in report.attacks)
    return f"{row.name} ({row.settings['loss']})" if same > 1 else row.name


def compared(report: ComparisonReport) -> list[Picture]:
    """Of a comparison: the robust accuracy of each network."""
    rows: list[_Bar] = []
    for row in report.rows:
        test = row.report.worst_case.test
        rows.append((row.name, test.accuracy, test.accuracy_ci))
    worst = report.rows[0].report.worst_case
    return [
        Picture(
            "accuracy",
            "Robust test accuracy of each network",
            "The worst case over all attacks, with its 95 % interval.",
            (7.2, 1.5 + 0.42 * len(rows)),
            lambda figure: _draw_accuracies(figure, [], rows, f"{worst.norm} eps {worst.eps}"),
        )
    ]


def _spectra(model: dict[str, Any]) -> list[Picture]:
    """Singular values of each layer, where the network is still where the report found it."""
    layers = layer_spectra(model)
    if not layers:
        return []
    return [
        Picture(
            "spectra",
            "Singular values of the layers",
            "Over the faces of each t-layer: the line is the median, the band the smallest to "
            "the largest. Where they fall to 0 early, the layer is of low tubal rank.",
            (7.2, 3.4),
            lambda figure: _draw_spectra(figure, layers),
        )
    ]


def layer_spectra(model: dict[str, Any]) -> list[Any]:
    """The singular values (faces, rank) of every layer, largest first; [] if it is not there."""
    from tnn_robust.models.checkpoint import load_checkpoint
    from tnn_robust.models.singular import layer_singular_values

    path = model.get("path")
    if path is None:
        return []
    try:
        checkpoint = load_checkpoint(Path(path).parent)
    except (CheckpointError, InputError, OSError):
        return []
    if checkpoint.digest != model.get("digest"):
        return []
    return [layer_singular_values(layer) for layer in checkpoint.model.t_layers]


def _draw_spectra(figure: Any, layers: Sequence[Any]) -> None:
    axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for number, (place, values) in enumerate(zip(axes, layers, strict=True), 1):
        index = range(1, values.shape[1] + 1)
        low, middle, high = values.amin(0), values.median(0).values, values.amax(0)
        place.fill_between(index, low, high, color=BLUE, alpha=0.18, linewidth=0)
        place.plot(index, middle, color=BLUE)
        place.axhline(0.0, color=GREY, linewidth=0.8)
        place.set_title(f"layer {number}")
        place.set_xlabel("index")
    axes[0].set_ylabel("singular value")
