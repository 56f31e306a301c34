"""tnn-attack --verify: forged files of a whole suite, every figure in them, and what is said."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_checks import refused, succeeded
from conftest import run_cli
from torch import Tensor

from tnn_robust.attacks import suite
from tnn_robust.base.files import read_tensors, write_tensors
from tnn_robust.evaluation.saved_points import KIND

Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


@pytest.fixture(scope="module")
def saved(binary_run, tmp_path_factory) -> Iterator[Path]:
    """Points, and figures of each example, of a quick suite of few steps on 20 examples a part."""
    place, members = tmp_path_factory.mktemp("saved"), suite._members
    files = ("--save-adv", place / "adv.safetensors", "--examples", place / "e.csv")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(suite, "_members", lambda *of: members(*of[:2], of[2] / 10))
        succeeded(run_cli("attack", binary_run, "--eps", "0.1", "--n", 20, *files))
        yield place / "adv.safetensors"


def forged(saved: Path, place: Path, change: Change) -> Path:
    """A file with a valid digest whose content was changed all the same."""
    tensors, header, _ = read_tensors(saved, kind=KIND)
    change(tensors, header)
    write_tensors(place / "forged", tensors, kind=KIND, header=header)
    return place / "forged"


def test_a_sound_file_says_what_was_checked_and_what_cannot_be(saved) -> None:
    printed = " ".join(succeeded(run_cli("attack", "--verify", saved)).split())
    for said in (
        "Verified: every point",
        "Examples, each once and with the data's labels: train: 20 of 271, drawn by seed 0",
        "The attacks are those of suite quick.",
        "predictions, counts, risks, gaps and intervals, figures per example are the report's.",
        "Not checked: seconds, passes, vanished gradients, masking checks, notes and versions",
        "nor whether the attacks named found these points",
        "not who wrote it: it has no secret",
        "not that stronger ones do not",
    ):
        assert said in printed, printed


def row(header: dict[str, Any], number: int = 2) -> dict[str, Any]:
    return header["report"]["attacks"][number]


def twice(tensors, _) -> None:
    for name in tensors:
        if ".test." in name:
            tensors[name][1] = tensors[name][0]


def of_another(tensors, _) -> None:
    labels = tensors["0.test.y"]
    other = int((labels[1:] == labels[0]).nonzero()[0]) + 1
    for number in range(3):
        indices = tensors[f"{number}.test.indices"]
        indices[[0, other]] = indices[[other, 0]]


def darker(tensors, _) -> None:
    points = tensors["0.train.x_adv"]
    points[points == 0] = -0.01


def elsewhere(tensors, _) -> None:
    for number in range(3):
        tensors[f"{number}.train.indices"][3] = 271


def edited(part: str | None, **figures: float | list[float]) -> Change:
    def change(_, header) -> None:
        place = row(header) if part is None else row(header)[part]
        for name, value in figures.items():
            assert name in place
            place[name] = value

    return change


# Refused: what the file claims to be it is not.
REFUSED: dict[str, tuple[Change, str]] = {
    "an example twice": (twice, "2 times"),
    "another label": (lambda t, _: t["1.test.y"].neg_().add_(1), "labels"),
    "a point beyond eps": (lambda t, _: t["2.test.x_adv"][5].add_(0.3).clamp_(0, 1), "ball"),
    "a point out of the box": (darker, "box"),
    "an example there is not": (elsewhere, "examples outside its 271"),
    "an example below 0": (lambda t, _: t["0.test.indices"].neg_(), "examples outside its 91"),
    "an example not drawn": (of_another, "other test examples"),
    "settings of a row": (lambda _, h: row(h)["settings"].update(steps=9999), "other settings"),
    "an eps of a row": (lambda _, h: row(h).update(eps_value=0.2), "other settings"),
    "more correct than others": (lambda _, h: row(h)["test"].update(correct=21), "correct"),
    "more than n": (lambda _, h: row(h)["test"].update(broken=21), "broken"),
    "a row more": (lambda _, h: h["report"]["attacks"].append(row(h)), "rows"),
    "tensors more": (lambda t, _: t.update({"9.test.y": t["0.test.y"].clone()}), "not name"),
    "nan": (lambda t, _: t["0.test.x_adv"][0].fill_(float("nan")), ""),
    "a gap of its own": (edited("agp", risk=0.0), "an AGP in risk of"),
    "a risk of its own": (edited("test", risk=0.001), "an AGP in risk of"),
    "another seed": (lambda _, h: h["report"].update(seed=1), "other train examples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_forged_file_is_refused(name, saved, tmp_path) -> None:
    change, said = REFUSED[name]
    refused(run_cli("attack", "--verify", forged(saved, tmp_path, change)), said)


def more_settings(_, header) -> None:
    """The same in both places: 9999 steps, that nobody took."""
    header["attacks"][0]["steps"] = row(header, 0)["settings"]["steps"] = 9999


def safer(_, header) -> None:
    """A lower risk, and the gap that goes with it."""
    parts = row(header)
    parts["agp"]["risk"] += 0.001 - parts["test"]["risk"]
    parts["test"]["risk"] = 0.001


# Read, and told from what the points say.
TOLD: dict[str, tuple[Change, str]] = {
    "attacked": (edited("test", attacked=20), "square, test, attacked: recorded 20, found"),
    "broken": (edited("train", attacked=20, broken=3), "square, train, broken: recorded 3"),
    "vanished": (edited("test", vanished=9), "vanished: recorded 9"),
    "risk": (safer, "square, test, risk: recorded 0.001"),
    "its interval": (edited("test", risk_ci=[0.1, 0.2]), "square, test, risk_ci"),
    "that of accuracy": (edited("test", accuracy_ci=[0.9, 1.0]), "square, test, accuracy_ci"),
    "its own interval": (edited("agp", risk_ci=[-0.1, 0.1]), "square, gap, risk_ci"),
    "its error": (edited("agp", test_error=0.0), "square, gap, test_error"),
    "large": (edited("agp", large=99), "square, gap, large"),
    "behind": (edited(None, behind=0.5), "square, both parts, behind"),
    "its": (edited(None, behind_ci=[-1.0, -0.5]), "square, both parts, behind_ci"),
    "largest": (edited(None, max_perturbation=0.01), "square, both parts, max_perturbation"),
    "settings": (more_settings, "not those of suite quick"),
    "suite": (lambda _, h: h["report"].update(suite="standard"), "not those of suite standard"),
    "seeds": (lambda _, h: h["report"].update(seeds=[0, 1, 2]), "seeds: recorded [0, 1, 2]"),
    "data": (lambda _, h: h["report"]["dataset"].update(name="mnist"), "data, name: recorded"),
    "network": (lambda _, h: h["report"]["model"].update(parameters=9), "network, parameters"),
    "training": (
        lambda _, h: h["report"]["model"]["training"].update(epochs=1000),
        "network, training.epochs: recorded 1000",
    ),
    "prediction": (lambda t, _: t["2.test.predictions"].neg_().add_(1), "recorded predictions"),
    "success": (lambda t, _: t["2.test.success"].logical_not_(), "recorded success"),
    "example": (
        lambda _, h: h["report"]["examples"][7].update(margin=9.0),
        "figures per example: those of 1 are others",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_forged_figure_is_told(name, saved, tmp_path) -> None:
    change, said = TOLD[name]
    result = run_cli("attack", "--verify", forged(saved, tmp_path, change))
    assert result.exit_code == 1 and "Verified" not in result.stdout, result.output
    assert said in " ".join(line for line in result.stdout.split("WARNING: ")[1:])
