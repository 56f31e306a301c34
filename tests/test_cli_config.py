"""Use in CI: options in a file, the report on standard output, a gate with an exit code."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_checks import refused, succeeded
from conftest import run_cli
from tnn_robust_cli._gate import gate

from tnn_robust.evaluation.results import Check

ATTACK = ("--attack", "fgsm", "--eps", "0.1", "--n", 20)


def test_options_of_a_file_are_those_typed_and_typed_ones_win(digits_run, tmp_path) -> None:
    file = tmp_path / "run.toml"
    typed = succeeded(run_cli("attack", digits_run, *ATTACK, "--save-config", file))
    assert 'eps = "0.1"' in file.read_text() and "[tnn-attack]" in file.read_text()
    assert timeless(succeeded(run_cli("attack", "--config", file))) == timeless(typed)
    fewer = succeeded(run_cli("attack", "--config", file, "--n", 10))
    assert "n = 10 train, 10 test" in fewer
    succeeded(run_cli("attack", digits_run, *ATTACK, "--save-config", file))  # its own: replaced


def timeless(printed: str) -> list[str]:
    """Without the last column, which is seconds in the table of gaps."""
    return [line.rpartition(" ")[0] for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tnn-attack]\nepss = 1", "'epss', did you mean eps?"),
        ("[tnn-train]\nepochs = 1", "needs a table [tnn-attack]"),
        ("[tnn-attack\n", "TOML"),
        ("[tnn-attack]\nresume = 1", "resume needs true or false"),
        ("[tnn-attack]\neps = {a = 1}", "eps needs text or a number"),
        ("[tnn-attack]\neps = 'x'", "--eps"),
    ],
)
def test_a_file_of_options_that_is_none(digits_run, tmp_path, text, says) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    refused(run_cli("attack", digits_run, "--config", file), says)


def test_a_file_of_somebody_is_not_overwritten_by_options(digits_run, tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("a = 1\n")
    refused(run_cli("attack", digits_run, *ATTACK, "--save-config", file), "holds no options")
    assert file.read_text() == "a = 1\n"


def test_the_report_alone_is_on_standard_output(digits_run) -> None:
    result = run_cli("attack", digits_run, *ATTACK, "--json", "-")
    assert result.exit_code == 0 and json.loads(result.stdout)["kind"] == "attack-report"
    assert "Adversarial generalization gap" in result.stderr and not Path("-").exists()


def test_a_gate_fails_and_passes(digits_run, tmp_path) -> None:
    report = tmp_path / "r.json"
    assert run_cli("attack", digits_run, *ATTACK, "--fail-under", 0).exit_code == 0
    result = run_cli("attack", digits_run, *ATTACK, "--fail-under", 100, "--json", report)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "robust test accuracy is" in result.stderr and report.is_file()
    refused(run_cli("attack", digits_run, *ATTACK, "--fail-under", 101), "--fail-under")
    refused(run_cli("attack", digits_run, "--curve", "--fail-on-warn"), "is of the report")
    refused(run_cli("attack", digits_run, "--fail-on-warn"), "leave out --no-checks")


def test_a_gate_names_the_checks_that_warn(capsys) -> None:
    checks = (Check("noise", 0.5, 0.1, "x"), Check("batch", 0.0, 0.1, "x"))
    worst = SimpleNamespace(test=SimpleNamespace(accuracy=0.5))
    report = SimpleNamespace(checks=checks, worst_case=worst)
    gate(report, 50.0, fail_on_warn=False)
    with pytest.raises(SystemExit) as stopped:
        gate(report, None, fail_on_warn=True)
    assert stopped.value.code == 1 and "noise warns" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["model = 'os:getcwd'", "insecure-cluster = true"])
def test_no_file_names_code_to_run(line, tmp_path) -> None:
    command = "attack" if line.startswith("model") else "sweep"
    (tmp_path / "c.toml").write_text(f"[tnn-{command}]\n{line}\n")
    result = run_cli(command, "--config", tmp_path / "c.toml", "x")
    assert result.exit_code == 2 and "it is typed, never read from a file" in result.stderr


def test_a_saved_report_says_when_how_and_on_what_it_was_made(digits_run, tmp_path) -> None:
    file, page = tmp_path / "r.json", tmp_path / "r.html"
    succeeded(run_cli("attack", digits_run, *ATTACK, "--json", file))
    origin = json.loads(file.read_text())["origin"]
    assert origin["command"].startswith(f"tnn-attack {digits_run} --attack fgsm --eps 0.1")
    assert origin["seconds"] > 0 and origin["device"] in ("cpu", "cuda")
    assert abs(datetime.fromisoformat(origin["date"]) - datetime.now(UTC)).total_seconds() < 600
    succeeded(run_cli("report", file, "--html", page))
    assert origin["date"] in page.read_text() and "--attack fgsm --eps 0.1" in page.read_text()
