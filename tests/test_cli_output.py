"""What reaches the screen: golden text at 80 columns, plain where colours have no place.

`UPDATE_GOLDEN=1 pytest tests/test_cli_output.py` writes the files anew; read the diff.
"""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tnn_robust_cli import _render

from tnn_robust.compression.results import (
    CompressionReport,
    KeptDecisions,
    LayerRecord,
    ModelSummary,
)
from tnn_robust.evaluation.certified_results import Certified, CertifiedPart
from tnn_robust.evaluation.results import AttackReport, AttackRow, Gap, PartResult
from tnn_robust.reporting.bounds import bound_notes, bound_tables
from tnn_robust.reporting.compression import compression_notes, compression_tables
from tnn_robust.reporting.tables import attack_notes, attack_tables
from tnn_robust.theory.results import (
    BoundFacts,
    BoundForm,
    BoundReport,
    BoundRow,
    CutRecord,
    ImplicitRecord,
    MeasuredGap,
    Premise,
    RiskBound,
)

GOLDEN = Path(__file__).parent / "golden"
WIDTH = 80
HEAVY = {"torch", "numpy", "scipy", "sklearn", "rich", "matplotlib", "safetensors", "torchattacks"}
PGD = {"steps": 40, "step_size": 0.00490196, "restarts": 5, "random_start": True, "loss": "margin"}
FGSM = {"steps": 1, "step_size": 0.0784314, "restarts": 1, "random_start": False, "loss": "margin"}


def part(n: int, clean: int, correct: int, clean_risk: float, risk: float, vanished: int = 0):
    share = correct / n
    interval = (max(0.0, share - 0.0123), min(1.0, share + 0.0123))
    around = (0.9123 * risk, 1.0987 * risk)
    return PartResult(n, clean_risk, clean, risk, correct, interval, vanished, risk_ci=around)


def row(name: str, norm: str, eps: str, settings: dict, train: PartResult, test: PartResult):
    risk, accuracy = test.risk - train.risk, train.accuracy - test.accuracy
    gap = Gap(
        risk=risk,
        risk_ci=(risk - 0.0234, risk + 0.0345),
        accuracy=accuracy,
        accuracy_ci=(accuracy - 0.011, accuracy + 0.012),
        train_error=train.risk / 30,
        test_error=test.risk / 20,
    )
    return AttackRow(name, norm, eps, 0.0784314, settings, train, test, gap, 0.0784314, 12.345)


def report(*rows: AttackRow, **sides: Certified) -> AttackReport:
    return AttackReport({}, {}, 0, {}, rows[:-1], rows[-1], **sides)


def sure(n: int, count: int, broken: int, risk: float | None, left_out: int) -> CertifiedPart:
    share = count / n
    interval = (max(0.0, share - 0.0123), min(1.0, share + 0.0123))
    return CertifiedPart(n, count, broken, interval, risk, left_out, 7 * left_out)


TYPICAL = report(
    row("fgsm", "linf", "20/255", FGSM, part(2000, 1996, 1915, 0.0123, 0.1234),
        part(2038, 2010, 1901, 0.0345, 0.2015)),
    row("pgd", "linf", "20/255", PGD, part(2000, 1996, 1910, 0.0123, 0.1244),
        part(2038, 2010, 1894, 0.0345, 0.2044, vanished=7)),
    row("worst case", "linf", "20/255", {"attacks": ["fgsm", "pgd"]},
        part(2000, 1996, 1909, 0.0123, 0.1244), part(2038, 2010, 1893, 0.0345, 0.2045)),
    certified=Certified("crown", ("linf eps 20/255",), sure(2000, 1834, 91, 0.1812, 1834),
        sure(2038, 1789, 145, 0.2987, 1789), (-0.0118, 0.0767), (0.0233, 0.1743)),
)  # fmt: skip
# The longest of everything: names, norms, sizes, losses of a network that diverges.
EXTREME = report(
    row("pgd", "spectral", "128/255", PGD, part(60000, 60000, 60000, 1.234e-12, 1.234e-11),
        part(10000, 10000, 10000, 1.234e-12, 1.234e-10)),
    row("torchattacks:AutoAttack", "linf", "0.123457", {"norm": "Linf", "seed": 0},
        part(60000, 60000, 0, 12345.6, 1234567.8), part(10000, 10000, 0, 23456.7, 2345678.9)),
    row("torchattacks:VMIFGSM", "linf", "0.123457", {"steps": 10, "alpha": 0.0308642},
        part(60000, 60000, 0, 12345.6, 1234567.8), part(10000, 10000, 0, 23456.7, 2345678.9)),
    row("worst case", "spectral+linf", "spectral 128/255, linf 0.123457", {},
        part(60000, 60000, 0, 12345.6, 1234567.8), part(10000, 10000, 0, 23456.7, 2345678.9)),
    certified=Certified("alpha-crown", ("spectral eps 128/255", "linf eps 0.123457"),
        sure(60000, 0, 60000, 1.2345678e33, 0), sure(10000, 0, 10000, None, 0), (0.0, 0.0), None),
)  # fmt: skip


def layer(number: int, form: str, rank: int, d_in: int, d_out: int, kept: float) -> LayerRecord:
    parameters = 28 * (d_in * d_out if form == "faces" else rank * (d_in + d_out))
    before = form == "faces"
    return LayerRecord(
        layer=number, d_in=d_in, d_out=d_out, form=form,
        multi_rank=(rank - 1, rank), stable_rank=0.7 * rank, kept_energy=kept,
        dropped_norm=0.0 if before else 0.0123 * rank, bound=0.0 if before else 123.4 * rank,
        parameters=parameters, bytes=4 * parameters,
        flops=2 * parameters + 28 * 28 * (d_in + d_out), transform_flops=28 * 28 * (d_in + d_out),
    )  # fmt: skip


def compression(width: int, rank: int, verdicts: AttackReport) -> CompressionReport:
    sides = {}
    for side, form, r in (("before", "faces", min(28, width)), ("after", "factors", rank)):
        widths = ((28, width), (width, width))
        share = 1.0 if side == "before" else 0.9123
        layers = tuple(
            layer(i + 1, form, r, *sizes, share) for i, sizes in enumerate(widths)
        )  # fmt: skip
        count = sum(one.parameters for one in layers)
        worst = verdicts.attacks[0] if side == "before" else verdicts.worst_case
        sides[f"layers_{side}"] = layers
        sides[side] = ModelSummary(
            count, 4 * count + 2696, 2 * count, count // 2, 0.123, 4.567, worst
        )
    decisions = KeptDecisions(28.0, 246.8 * rank, 1234, 2038)
    attacks = ("fgsm", "pgd of 40 steps x 5")
    return CompressionReport(
        {}, {}, f"ranks {rank}", 0, **sides, decisions=decisions, attacks=attacks
    )


def bounds(scale: float, width: int, covered: bool, measured: MeasuredGap | None) -> BoundReport:
    """A report whose logs grow with `scale`; None stands for what is not finite."""
    facts = BoundFacts(
        1000 * width, 2038, 1, 28, 28, (width, width), "linf", "20/255", 0.0784314,
        None if covered else "channels 10:28", 28.0, 14.543, False, 0 if covered else 3, 4.87,
        0.9444, (38.51, 39.02), (3.1, 2.9), 10 * scale, 13 * scale, 12 * scale, "cross-entropy",
        0.0, 13 * scale, 5 * scale, 5 * scale, 4 * scale, 3.689, 4.382,
        (28, 28), (784, 784), (165.31, 175.2),
    )  # fmt: skip
    paper = BoundForm(16 * scale, 3 * scale, 15 * scale, None, 12 * scale, covered)
    explicit = BoundForm(-2 * scale, -scale, -3 * scale, -4 * scale, None, covered)
    both = {"paper": paper, "explicit": explicit}
    rows = (
        BoundRow("Lemma 7", "(9)", "dense", False, dimension=None, **both),
        BoundRow("Theorem 9", "(10)", "dense", False, dimension=width**3, **both),
        BoundRow("Theorem 11", "(12)", "multi", True, dimension=width**3, **both),
        BoundRow(
            "Theorem 19",
            "(18)",
            "tubal",
            True,
            dimension=width,
            approximate=True,
            log_r_hat=scale,
            **both,
        ),
        BoundRow("Corollary 22", "(20)", "tubal", True, dimension=width, approximate=True, **both),
    )
    premises = (
        Premise("Assumption 5", True, "||x||_F <= 14.54 on all 4038 examples (the box allows 28)"),
        Premise("no bias", covered, "f is homogeneous"),
        Premise("a teacher g fits", None, "with B = 1 on the divided data, assumed", "Thm 16"),
    )
    cut = CutRecord(0.99, (22, 22), 3.409, (599, 593), 3.885, 8.37, 0.68, (28, 28))
    implicit = ImplicitRecord(13.24, 72.27 if covered else None, 28.0, 2, 2, 1.0, covered, 1.956)
    risks = (
        RiskBound("held-out, Clopper-Pearson", "this network", False, "", 2038, 41.0, 0.0, 0.0312,
                  None, "no choice looked at the test part"),
        RiskBound("held-out, Clopper-Pearson", "this network", True, "crown", 1000, 987.0, 0.0,
                  0.99123, None, "no choice looked at the test part"),
        RiskBound("PAC-Bayes, kl", "the network with Gaussian noise of 0.003 on every weight, "
                  "drawn anew each time", False, "", 2000, 2000.0, 1.234e7, 1.0, covered,
                  "prior around its initial weights, fixed before the training part was drawn"),
    )  # fmt: skip
    return BoundReport({}, {}, 0, 0.95, facts, premises, rows, cut, implicit, measured, risks)


MEASURED = MeasuredGap(
    "pgd", 1000, 1000, 0.35, 0.0361, (0.0011, 0.075), -0.00612, (-0.0086, 0.14), (-49.27, 49.46)
)


def shown(
    record: AttackReport | CompressionReport | BoundReport, capsys: pytest.CaptureFixture
) -> str:
    if isinstance(record, AttackReport):
        _render.show_tables(attack_tables(record), width=WIDTH)
        _render.show_lines(attack_notes(record), width=WIDTH)
    elif isinstance(record, BoundReport):
        _render.show_tables(bound_tables(record), width=WIDTH)
        _render.show_lines(bound_notes(record), width=WIDTH)
    else:
        _render.show_tables(compression_tables(record), width=WIDTH)
        _render.show_lines(compression_notes(record), width=WIDTH)
    return capsys.readouterr().out


RECORDS = {
    "attack": TYPICAL,
    "attack-extreme": EXTREME,
    "bound": bounds(1.0, 28, True, MEASURED),
    "bound-extreme": bounds(-987.6, 4096, False, None),
    "bound-huge": bounds(9876.5, 4096, True, MEASURED),
    "compression": compression(28, 4, TYPICAL),
    "compression-extreme": compression(4096, 1024, EXTREME),
}


@pytest.mark.parametrize("name", RECORDS)
def test_golden_text(name, capsys):
    lines = [line.rstrip() for line in shown(RECORDS[name], capsys).splitlines()]
    text, path = "\n".join(lines) + "\n", GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    assert max(len(line) for line in lines) <= WIDTH
    assert "…" not in text and "\x1b" not in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", (False, True))
def test_a_terminal_gets_bold_unless_no_color(no_color, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    _render.show_tables(attack_tables(TYPICAL), width=WIDTH)
    _render.show_lines(attack_notes(TYPICAL), width=WIDTH)
    text = screen.getvalue()
    assert "WARNING" in text and ("\x1b" in text) != no_color
    plain = [line.rstrip() for line in re.sub("\x1b\\[[0-9;]*m", "", text).splitlines()]
    assert plain == (GOLDEN / "attack.txt").read_text().splitlines()


@pytest.mark.parametrize(("columns", "width"), (("200", 120), ("100", 100), ("60", 60)))
def test_a_wide_terminal_is_not_filled(columns, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert _render.console().width == width
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert _render.console().width == WIDTH


def test_a_bar_keeps_its_times_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with _render.progress_bar() as bar:
        bar.update("epoch 3/20  loss 2.385  450 test: clean 63.1 %, under attack 43.6 %", 3, 20)
        assert bar._progress is not None
        bar._progress.refresh()
    lines = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").split("\n")
    drawn = [line.rstrip() for line in lines if line.startswith("epoch")][-1]
    assert len(drawn) <= 80 and "3/20" in drawn
    assert re.search(r" 0:00:00 (-:--:--|\d:\d\d:\d\d)$", drawn), drawn


@pytest.mark.parametrize("command", ("train", "attack", "compress", "bound"))
def test_help_answers_at_once(command):
    script = Path(sys.executable).parent / f"tnn-{command}"
    started = time.monotonic()
    environment = {**os.environ, "COLUMNS": "80"}
    found = subprocess.run(
        [sys.executable, "-X", "importtime", str(script), "--help"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert time.monotonic() - started < 2
    assert found.returncode == 0
    assert found.stdout.startswith(f"Usage: tnn-{command} [OPTIONS]")
    assert max(map(len, found.stdout.splitlines())) <= WIDTH and "\x1b" not in found.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in found.stderr.splitlines()}
    assert "tnn_robust_cli" in imported and not imported & HEAVY


def test_tnn_gathers_the_commands_and_says_where_to_begin():
    from tnn_robust_cli import tnn

    runner = CliRunner()
    alone = runner.invoke(tnn.main, [])
    assert alone.exit_code == 0 and "Begin with: tnn train" in alone.output
    for command in tnn.COMMANDS:
        assert f"  {command} " in alone.output
        assert runner.invoke(tnn.main, [command, "--help"]).exit_code == 0
    wrong = runner.invoke(tnn.main, ["atack"])
    assert wrong.exit_code == 2 and "did you mean attack?" in wrong.stderr
    missing = runner.invoke(tnn.main, ["attack", "nothing"])
    assert missing.exit_code == 2 and len(missing.stderr.splitlines()) == 1
