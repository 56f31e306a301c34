"""The library's way from a run directory to its report, for tests that need what is between."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.progress import Steps, drain
from tnn_robust.evaluation.journal import unfinished
from tnn_robust.evaluation.report import Evaluated, chosen_attacks, evaluate_steps
from tnn_robust.evaluation.subject import load_subject


def attack_steps(run: Path, choice: AttackChoice, **settings) -> Steps[Evaluated]:
    """The work of tnn-attack RUN, step by step."""
    subject, dataset = load_subject(run)
    attacks = chosen_attacks(
        choice,
        settings.get("suite"),
        trained=subject.trained,
        scores=subject.scores,
        entries=subject.entries,
    )
    return evaluate_steps(subject, dataset, attacks, **settings)


def attack_run(run: Path, choice: AttackChoice, **settings) -> Evaluated:
    """All of it."""
    found = drain(attack_steps(run, choice, **settings))
    found.finish()
    return found


def whole(steps: Steps) -> list:
    """Every Progress of a piece of work, and its result last."""
    seen: list = []
    seen.append(drain(steps, seen.append))
    return seen


def journal_of(run: Path) -> Path:
    """The record of the one interrupted evaluation of a run; a file that is not there for none."""
    (found,) = unfinished(run) or [run / "no.progress.jsonl"]
    return found


def lines_of(run: Path) -> int:
    """How many lines its record has, 0 without one."""
    path = journal_of(run)
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def own_copy(run: Path, folder: Path) -> Path:
    """A copy of a shared run that may be written to, without what other tests left unfinished."""
    return copytree(run, folder, ignore=ignore_patterns("*.progress.jsonl"))
