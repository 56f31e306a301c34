"""The standard suite against pyautoattack (standard): the same points, one by one, and time.

    python scripts/validate_suite.py RUN [--norm l2] [--eps 1.0] [--n 250] [--cpu-time]

RUN is a run of tnn-train on four classes or more. The test points are attacked block by block,
by each of the two in turn, so that whatever else the machine does meets both. The peer sees the
network through a 4-D adapter; its points are judged by the same rule as ours (a tie is an
error). Exits with 1 where the peer breaks a point that the suite leaves.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.suite import suite_attacks
from tnn_robust.base.losses import margin, predict
from tnn_robust.base.progress import drain
from tnn_robust.base.threat import Threat
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.agp import Attacked
from tnn_robust.evaluation.attack_part import Target
from tnn_robust.evaluation.checks import report_checks
from tnn_robust.evaluation.report import evaluate_steps, targets_of
from tnn_robust.evaluation.risk import join
from tnn_robust.evaluation.subject import Subject, load_run_data, subject_of
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import TNN

TIME_SHARE = 0.5  # of the peer's time
CHECKS_SHARE = 0.25  # of the attacks' time
THEIR_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
Clock = Callable[[], float]


class Images(nn.Module):
    """The network for examples (n, 1, d, c)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images[:, 0])


class Bout(NamedTuple):
    """One block attacked by both: points (n, d, c), seconds, and what each attack of ours did."""

    ours: Tensor
    theirs: Tensor
    seconds: tuple[float, float]
    found: tuple[Attacked, ...]


def ours(
    subject: Subject, dataset: Dataset, block: Part, attacks: tuple[Attack, ...], seed: int
) -> tuple[Tensor, tuple[Attacked, ...]]:
    """Points of the suite, as `tnn-attack --suite standard` finds them, and its outcomes."""
    # The peer attacks test examples only: the training part is one that has fallen already.
    one = dataset.train.x[:1].to(subject.device)
    with frozen(subject.model):
        wrong = (predict(subject.model(one)) + 1) % subject.scores
    data = replace(dataset, train=Part(one, wrong), test=block)
    found = drain(
        evaluate_steps(
            subject, data, attacks, suite="standard", seeds=(seed,), checks=False, keep_points=True
        )
    )
    return found.points[-1]["test"].x_adv, found.found


def theirs(model: TNN, block: Part, norm: str, eps: float, seed: int) -> Tensor:
    """Points of the peer (n, d, c)."""
    peer = AutoAttack(
        Images(model).eval(),
        norm=THEIR_NAMES[norm],
        eps=eps,
        version="standard",
        device=str(model.head.device),
        seed=seed,
    )
    peer.verbose = False
    with frozen(model):
        x_adv = peer.run_standard_evaluation(block.x[:, None], block.y, batch_size=len(block.y))[0]
    return x_adv[:, 0].detach()


def fought(
    subject: Subject,
    dataset: Dataset,
    block: Part,
    attacks: tuple[Attack, ...],
    options: argparse.Namespace,
    first: int,
) -> Bout:
    """One block by both; first: who begins."""
    clock, found = clock_of(options), {}
    for who in (first, 1 - first):
        began = clock()
        if who == 0:
            points, outcomes = ours(subject, dataset, block, attacks, options.seed)
        else:
            points = theirs(subject.model, block, options.norm, options.eps, options.seed)
        found[who] = points, clock() - began
    return Bout(found[0][0], found[1][0], (found[0][1], found[1][1]), outcomes)


def clock_of(options: argparse.Namespace) -> Clock:
    return time.process_time if options.cpu_time else time.perf_counter


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--norm", choices=THEIR_NAMES, default="linf")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--n", type=int, default=250, help="test points")
    parser.add_argument("--block", type=int, default=125, help="points between two turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, not the clock's")
    parser.add_argument("--data-dir")
    return parser.parse_args()


def compare(clean: Tensor, ours: Tensor, theirs: Tensor) -> bool:
    """Print the points one by one, all (n,) bool; whether no point was lost."""
    table = {
        "misclassified when clean": ~clean,
        "broken by both": clean & ours & theirs,
        "by ours only": clean & ours & ~theirs,
        "by theirs only": clean & ~ours & theirs,
        "by neither": clean & ~ours & ~theirs,
    }
    for name, rows in table.items():
        print(f"{name:<26}{int(rows.sum()):5d}")
    lost = int(table["by theirs only"].sum())
    print(f"points lost: {lost}, none wanted: {verdict(lost == 0)}")
    return lost == 0


def verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


def compare_times(bouts: list[Bout]) -> None:
    shares = [bout.seconds[0] / bout.seconds[1] for bout in bouts]
    total = [sum(bout.seconds[who] for bout in bouts) for who in (0, 1)]
    share = total[0] / total[1]
    print(
        f"seconds: ours {total[0]:.1f}, pyautoattack {total[1]:.1f}: {share:.2f} of it, block by "
        f"block {min(shares):.2f} to {max(shares):.2f}, median {statistics.median(shares):.2f}, "
        f"target {TIME_SHARE}: {verdict(share <= TIME_SHARE)}"
    )


def joined(bouts: list[Bout]) -> list[Attacked]:
    """What each attack did to all the test points, with the seconds of all blocks."""
    return [
        same[0]._replace(
            test=join([one.test for one in same]), seconds=sum(one.seconds for one in same)
        )
        for same in zip(*(bout.found for bout in bouts), strict=True)
    ]


def print_parts(
    subject: Subject,
    dataset: Dataset,
    target: Target,
    attacks: tuple[Attack, ...],
    bouts: list[Bout],
    options: argparse.Namespace,
) -> None:
    """Where the seconds of the wall clock go, attack by attack and check by check, and what the
    checks took of the suite's time by the clock that was asked for."""
    found, clock = joined(bouts), clock_of(options)
    for one in found:
        loss = one.settings.get("loss", "")
        what = f"{one.name} {loss}" if one.name == "apgd" else one.name
        print(f"  {what:<24}{one.seconds:7.2f} s")
    held, began = (target.examples, target.indices), clock()
    checks = report_checks(subject, dataset, held, attacks, found, options.seed)
    taken, spent = clock() - began, sum(bout.seconds[0] for bout in bouts)
    for check in checks:
        print(f"  {check.verdict} {check.name:<19}{check.seconds:7.2f} s  {check.message}")
    share = taken / spent
    print(
        f"masking checks {taken:.1f} s, {share:.2f} of the suite's {spent:.1f} s, target "
        f"{CHECKS_SHARE}: {verdict(share <= CHECKS_SHARE)}"
    )


def main() -> int:
    options = arguments()
    norm, eps = options.norm, options.eps
    checkpoint = load_checkpoint(options.run, torch.device("cpu"))
    model = checkpoint.model
    if model.architecture.scores < 4:
        raise SystemExit("pyautoattack's standard version needs a network of 4 scores or more")
    dataset = load_run_data(checkpoint, data_dir=options.data_dir)
    subject, threat = subject_of(checkpoint), Threat(norm, eps)
    attacks = suite_attacks("standard", threat, scores=subject.scores, entries=subject.entries)
    target = targets_of(subject, dataset, options.n, options.seed)["test"]
    x, y = target.examples
    with frozen(model):
        clean = margin(model(x), y) > 0
    print(
        f"{options.run.name}, {norm}, eps {eps:g}, {len(y)} test points in blocks of "
        f"{options.block}, seed {options.seed}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"clean{100 * float(clean.double().mean()):27.1f} %")

    bouts = []
    for number, start in enumerate(range(0, len(y), options.block)):
        rows = slice(start, start + options.block)
        block = Part(x[rows].clone(), y[rows].clone())
        bouts.append(fought(subject, dataset, block, attacks, options, number % 2))
    broken = []
    for name, points in (
        ("standard suite", torch.cat([bout.ours for bout in bouts])),
        ("pyautoattack", torch.cat([bout.theirs for bout in bouts])),
    ):
        with frozen(model):
            broken.append(margin(model(points), y) <= 0)
        robust = 100 * float((~broken[-1]).double().mean())
        size = float(BALLS[norm].radius((points - x).double()).max()) / eps
        print(f"robust, {name:<17}{robust:7.1f} %  (largest perturbation {size:.6f} eps)")
    sound = compare(clean, *broken)
    compare_times(bouts)
    print_parts(subject, dataset, target, attacks, bouts, options)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
