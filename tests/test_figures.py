"""The curve as a figure file (whole or absent), as text of 80 columns and as a table."""

import dataclasses
import itertools
from xml.etree import ElementTree

import pytest
import torch
from test_cli_output import part, row
from test_evaluation import planted

from tnn_robust.base.errors import InputError
from tnn_robust.compression.rank_sweep_results import SweepReport, SweepRow, WeightFacts
from tnn_robust.compression.results import ModelSummary
from tnn_robust.evaluation.eps_sweep import curve_of
from tnn_robust.reporting.figures import curve_figure, curve_lines, curve_table
from tnn_robust.reporting.rank_sweep import draw_sweep, sweep_figure

PNG = b"\x89PNG\r\n\x1a\n"


def falling(shares, certified=True, n=40):
    """A curve whose test accuracies are `shares`; training ones lie 10 points above."""

    def part(share):
        right = round(share * n)
        return planted([2.0 - share] * n, [True] * right + [False] * (n - right))

    sizes = [0.02 * i for i in range(len(shares))]
    train, test = [part(min(s + 0.1, 1.0)) for s in shares], [part(s) for s in shares]
    radii = torch.linspace(0.05, 0.0, n, dtype=torch.float64).clamp(max=0.01)
    found = curve_of(
        sizes,
        train,
        test,
        norm="linf",
        settings={},
        seed=0,
        y_test=torch.arange(n) % 4,
        risk_complete=True,
        model={"path": "runs/tiny/model.safetensors"},
        dataset={"name": "digits"},
    )
    if not certified:
        return found
    counts = [n // 2 if size == 0 else int((radii > size).sum()) for size in sizes]
    points = [
        dataclasses.replace(point, certified_train=count, certified_test=count)
        for point, count in zip(found.points, counts, strict=True)
    ]
    return dataclasses.replace(found, points=tuple(points))


SHARES = (0.9, 0.7, 0.45, 0.2, 0.0)


@pytest.mark.parametrize("certified", (True, False))
def test_a_figure_is_a_whole_png_or_svg_and_the_same_every_time(tmp_path, certified):
    found = falling(SHARES, certified)
    for kind in ("png", "svg"):
        paths = [tmp_path / f"{name}.{kind}" for name in ("a", "b")]
        for path in paths:
            curve_figure(found, path)
        first, second = (path.read_bytes() for path in paths)
        assert first == second and len(first) > 5000
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    text = (tmp_path / "a.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    for wanted in ("digits, model tiny, eps curve in linf", "test, attacked (n = 40)"):
        assert f">{wanted}</text>" in text
    assert ("certified" in text) == certified
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]


@pytest.mark.parametrize("shares", ((0.9,), tuple(1 - i / 60 for i in range(60))))
def test_curves_of_one_and_of_many_points_are_drawn(tmp_path, shares):
    found = falling(shares)
    curve_figure(found, tmp_path / "a.png")
    assert len(curve_lines(found)) == len(shares) + 3


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    found = falling(SHARES)
    (tmp_path / "file").write_text("")
    for name in ("a.jpg", "a", "file/a.png"):
        with pytest.raises(InputError, match=r"\.svg or \.pdf|cannot write"):
            curve_figure(found, tmp_path / name)
    old = tmp_path / "old.png"
    old.write_bytes(b"before")

    def fail(*arguments, **options):
        raise RuntimeError("planted")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="planted"):
        curve_figure(found, old)
    assert old.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old.png"]


def test_a_figure_leaves_the_settings_of_matplotlib_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    curve_figure(falling(SHARES), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("width", (40, 60, 80, 120))
@pytest.mark.parametrize("ascii_only", (True, False))
def test_the_chart_keeps_to_its_width(width, ascii_only):
    found = falling((1.0, 1.0, *SHARES))
    lines = curve_lines(found, width, ascii_only=ascii_only)
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) >= width - 2, "and uses it"
    assert all(line.isprintable() for line in lines)
    assert "\n".join(lines).isascii() == ascii_only


def test_bars_are_the_accuracies():
    found = falling(SHARES)
    lines = curve_lines(found, 80, ascii_only=True)[3:]
    assert [line.split()[0] for line in lines] == ["0", "0.02", "0.04", "0.06", "0.08"]
    room = 80 - 4 - 17
    for line, share in zip(lines, SHARES, strict=True):
        bar, numbers = line[5 : 5 + room + 1], line[5 + room + 1 :].split()
        assert bar.index("|") == round((share + 0.1) * room)
        assert abs(bar.count("#") + bar.count("=") - share * room) <= 1
        assert numbers == [f"{100 * share:.2f}", f"{100 * share + 10:.2f}"]
    assert lines[0].count("#") == round(0.5 * room) and "#" not in lines[1]
    plain = curve_lines(falling(SHARES, certified=False), 80, ascii_only=True)
    assert not any("=" in line for line in plain)


@pytest.mark.parametrize("certified", (True, False))
def test_the_table_has_a_row_an_eps_and_fits_80_columns(certified):
    table = curve_table(falling(SHARES, certified))
    assert [row[0] for row in table.rows] == ["0", "0.02", "0.04", "0.06", "0.08"]
    assert table.rows[1][:5] == ("0.02", "1.2", "1.3", "80.00", "70.00")
    assert table.rows[1][5:7] == ("+0.1", "+10.00")
    assert ("cert." in table.columns) == certified
    widths = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    assert sum(widths) + len(widths) <= 80


def test_a_figure_has_its_legend_outside_and_numbers_without_an_offset():
    from matplotlib.figure import Figure

    from tnn_robust.base.drawing import outside
    from tnn_robust.reporting.figures import figure_bytes

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label="a line")
    outside(axes)
    figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
    text = figure_bytes("svg", (4, 3), lambda one: one.subplots().plot([873.2, 873.26])).decode()
    assert ">873.26<" in text or ">873.25<" in text and "e2" not in text


def sweep_of(ranks=(1, 2, 4, 8, 12, 16)) -> SweepReport:
    """A sweep of ten classes whose smallest network guesses."""
    shares = dict(zip(ranks, (0.05, 0.4, 0.6, 0.72, 0.74, 0.75), strict=True))
    facts = WeightFacts(2.0, 3.0, 0.1, "linf", None, None)
    rows = []
    for kind, size in [("original", 16), *((k, r) for r in ranks for k in ("t-SVD", "matrix"))]:
        correct = round(100 * (shares[size] - 0.03 * (kind == "matrix")))
        worst = row(
            "worst case", "linf", "0.1", {}, part(100, 95, correct, 0.1, 0.5),
            part(100, 95, correct, 0.1, 0.6),
        )  # fmt: skip
        count = 400 * size + (1000 if kind == "original" else 0)
        summary = ModelSummary(count, 4 * count, 2 * count, count // 2, 0.1, 1.0, worst)
        rows.append(
            SweepRow(
                "" if kind == "original" else str(size),
                kind,
                ((size,),) * 2,
                summary,
                worst,
                None,
                0.1,
                1.0,
                facts,
                None,
                100,
            )  # fmt: skip
        )
    classes = {"name": "digits", "classes": [str(i) for i in range(10)]}
    return SweepReport({}, classes, "rank", 0, 0, {}, tuple(rows))


def test_a_sweep_names_ranks_on_ticks_that_do_not_collide_and_no_guesser_is_best(tmp_path):
    from matplotlib.figure import Figure

    report = sweep_of()
    best = [one.size for one, is_best in zip(report.rows, report.pareto, strict=True) if is_best]
    assert "1" not in best and {"2", "4", "8", "12", "16"} == set(best)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    draw_sweep(figure, report)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(sorted(boxes, key=lambda b: b.x0)))
        texts = [label.get_text() for label in axes.get_xticklabels()]
        assert "7.4k\nfull" in texts and "400\n1" in texts and "800\n2" in texts
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 >= max(one.get_window_extent().x1 for one in figure.axes)
    sweep_figure(report, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(PNG)
