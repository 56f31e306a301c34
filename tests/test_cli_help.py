"""Help that teaches: headings, defaults, examples that parse, the nearest name of a wrong one."""

import importlib
import json
import re
import shlex

import click
import pytest
import torch
from cli_checks import refused, succeeded
from click.testing import CliRunner
from conftest import run_cli
from tnn_robust_cli import tnn

from tnn_robust.base import choices
from tnn_robust.base.errors import unknown_choice
from tnn_robust.training.results import EpochRecord, guess_note

COMMANDS = {name: importlib.import_module(f"tnn_robust_cli.{name}").main for name in tnn.COMMANDS}
FIRST, LAST = ("Main options", "Data", "Network", "Attack"), ("Run", "Output", "Examples")


def page(command: click.Command) -> list[str]:
    found = CliRunner().invoke(command, ["--help"], env={"COLUMNS": "80"})
    assert found.exit_code == 0
    return found.stdout.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_three_main_options_headings_and_two_examples(name: str) -> None:
    command = COMMANDS[name]
    lines = page(command)
    few = {"info": 1, "zoo": 1}  # that have hardly any options
    assert max(map(len, lines)) <= 80 and len(command.main_options) == few.get(name, 3)
    titles = [line[:-1] for line in lines if re.fullmatch(r"[A-Z][A-Za-z ]+:", line)]
    assert titles[0] == "Main options" and titles[-2:] in (
        ["Output", "Examples"],
        ["Run", "Examples"],
    )
    assert [t for t in titles if t in FIRST] == [t for t in FIRST if t in titles]
    assert [t for t in titles if t in LAST] == [t for t in LAST if t in titles]
    assert len(set(titles)) == len(titles) and len(command.examples) == 2
    for example in command.examples:
        called, *arguments = shlex.split(example.replace("\\\n", " "))
        assert called == command.name
        with click.Context(command, info_name=called) as context:
            click.Command.parse_args(command, context, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    """In a sentence that begins with a verb."""
    command = COMMANDS[name]
    for one in command.params:
        if not isinstance(one, click.Option):
            continue
        assert one.help and one.help[0].isupper(), one.name
        first = one.help.split()[0].rstrip(",.:")
        assert first not in {"Of", "The", "A", "At", "With", "In", "For", "What"}, one.help


def test_tnn_alone_says_what_to_do_next() -> None:
    found = CliRunner().invoke(tnn.main, [])
    assert found.exit_code == 0 and max(map(len, found.stdout.splitlines())) <= 80
    for line in (
        "Begin with: tnn train --out",
        "tnn attack runs/first",
        "tnn report r.json --html",
    ):
        assert line in found.stdout


NAMES = {
    "data set": ("MNIST", "mnist", choices.DATASETS),
    "data set misspelt": ("minst", "mnist", choices.DATASETS),
    "transform": ("DCT", "dct", choices.TRANSFORMS),
    "transform of others": ("FFT", "dft", choices.TRANSFORMS),
    "norm": ("Linf", "linf", choices.NORMS),
    "norm in short": ("inf", "linf", choices.NORMS),
    "attack": ("PGD", "pgd", choices.ATTACKS),
    "loss": ("CE", "cross-entropy", choices.LOSSES),
    "suite": ("AutoAttack", "standard", choices.SUITES),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_wrong_name_gets_the_nearest_one_in_any_case(case: str) -> None:
    typed, meant, names = NAMES[case]
    assert f"{typed!r}, did you mean {meant}?" in str(unknown_choice(case, typed, names))


@pytest.mark.parametrize("typed", ("autoattack", "AutoAttack"))
def test_autoattack_is_a_suite_here(typed: str, digits_run) -> None:
    refused(run_cli("attack", digits_run, "--attack", typed), "the suite standard", "same points")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--learning_rate", "--lr"),
        ("--learning-rate", "--lr"),
        ("--Epochs", "--epochs"),
        ("--epsilon", "--eps"),
        ("--batch_size", "--batch-size"),
        ("--transfrom", "--transform"),
    ],
)
def test_a_wrong_option_gets_the_nearest_one(typed: str, meant: str, tmp_path) -> None:
    result = run_cli("train", typed, 1, "--out", tmp_path / "run")
    refused(result, f"no option {typed}, did you mean {meant}?", "tnn-train --help")


def test_an_option_like_no_other_gets_none(tmp_path) -> None:
    result = run_cli("train", "--zzz", "--out", tmp_path / "run")
    refused(result, "no option --zzz", "tnn-train --help")
    assert "did you mean" not in result.stderr


AMBIGUOUS = {
    "loss in short": (("--loss", "ce"), "did you mean cross-entropy", "choose from logistic"),
    "a loss of attacks": (("--loss", "margin"), "unknown training loss 'margin'"),
    "momentum of adam": (("--momentum", 0.9), "adam takes no momentum", "--momentum"),
    "several seeds in one": (("--seed", "0,0"), "needs one whole number", "'0,0'"),
    "a seed twice": (("--seeds", "0,1,0"), "different seeds", "0 more than once"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_nothing_is_ignored_and_nothing_refused_is_offered(case: str, tmp_path) -> None:
    options, *said = AMBIGUOUS[case]
    refused(run_cli("train", *options, "--out", tmp_path / "run"), *said)
    assert not (tmp_path / "run").exists()


def test_training_that_learned_nothing_says_so(tmp_path) -> None:
    tiny = ("--layers", 1, "--width", 4, "--epochs", 1, "--attack", "fgsm", "--eps", 0.9)
    printed = " ".join(succeeded(run_cli("train", *tiny, "--out", tmp_path / "bad")).split())
    assert "WARNING: training ended at" in printed and "no better than guessing" in printed


@pytest.mark.parametrize(
    ("clean", "robust", "says"),
    [(0.5, None, "50.0 % clean"), (0.9, 0.5, "50.0 % robust"), (0.51, 0.51, None)],
)
def test_guessing_is_the_share_of_the_commonest_class(clean, robust, says) -> None:
    last = EpochRecord(1, 0.7, clean, robust, 40, 1.0, 1.0)
    note = guess_note(last, torch.tensor([0, 0, 1, 1]))
    assert (note is None) == (says is None) and (says or "") in (note or "")


def test_a_clean_training_says_nothing_of_attacks(tmp_path) -> None:
    tiny = ("--layers", 1, "--width", 8, "--epochs", 1, "--attack", "none")
    result = run_cli("train", *tiny, "--out", tmp_path / "run")
    printed = succeeded(result) + result.stderr
    assert "robust" not in printed and "under attack" not in printed
    assert '"robust_accuracy": null' in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "450 test examples, drawn by seed, clean\n" in printed


def test_a_rank_above_that_of_the_factors_is_refused(tmp_path) -> None:
    tiny = ("--layers", 1, "--width", 8, "--rank", 2, "--epochs", 1, "--attack", "none")
    succeeded(run_cli("train", *tiny, "--out", tmp_path / "run"))
    out = ("--out", tmp_path / "small", "--n", 20)
    wide = run_cli("compress", tmp_path / "run", "--rank", 4, *out)
    refused(wide, "layer 1 is stored at tubal rank 2", "got 4", "--rank")
    assert not (tmp_path / "small").exists()


def test_compression_names_its_attacks_and_what_was_lost(digits_run, tmp_path) -> None:
    options = ("--rank", 1, "--n", 60, "--steps", 3, "--out", tmp_path / "small")
    printed = " ".join(succeeded(run_cli("compress", digits_run, *options)).split())
    assert "robust: worst case of " in printed and "pgd of 3 steps at linf" in printed
    assert "n = 60 test examples" in printed and "WARNING: clean test accuracy fell" in printed
    sweep = ("--sweep", "1,2", "--suite", "quick", "--out", tmp_path / "many")
    refused(run_cli("compress", digits_run, *sweep), "--suite is of one size")


def test_quiet_prints_nothing_but_warnings_and_verbose_logs_with_the_time(tmp_path) -> None:
    tiny = ("--layers", 1, "--width", 8, "--epochs", 2, "--attack", "none", "--overwrite")
    out = ("--out", tmp_path / "run")
    quiet = run_cli("train", *tiny, *out, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    told = run_cli("train", *tiny, *out, "-v")
    lines = [line for line in told.stderr.splitlines() if re.match(r"\d\d:\d\d:\d\d epoch", line)]
    assert len(lines) == 2 and len(told.stderr.splitlines()) == 2
    refused(run_cli("train", *tiny, *out, "-q", "-v"), "exclude each other")


def test_tensorboard_gets_the_numbers_of_metrics_jsonl(tmp_path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tiny = ("--layers", 1, "--width", 8, "--epochs", 2, "--attack", "none")
    folder = tmp_path / "board"
    succeeded(run_cli("train", *tiny, "--out", tmp_path / "run", "--tensorboard", folder))
    board = reading.EventAccumulator(str(folder))
    board.Reload()
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {one.step: one.value for one in board.Scalars("clean_accuracy")}
    assert found == pytest.approx({x["epoch"]: x["clean_accuracy"] for x in lines})
