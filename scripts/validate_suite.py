"""The standard suite against pyautoattack (standard) on the same test points, one by one.

    python scripts/validate_suite.py RUN [--norm l2] [--eps 1.0] [--n 1000]

RUN is a run of tnn-train on four classes or more. The peer sees the network through a
4-D adapter; its points are judged by the same rule as ours (a tie is an error). Exits
with 1 where the suite's robust accuracy exceeds the peer's by more than TARGET.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.suite import suite_attacks
from tnn_robust.base.losses import margin
from tnn_robust.base.progress import drain
from tnn_robust.base.threat import Threat
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.attack_part import Target
from tnn_robust.evaluation.report import evaluate_steps, targets_of
from tnn_robust.evaluation.subject import Subject, load_run_data, subject_of
from tnn_robust.models.checkpoint import Checkpoint, load_checkpoint

TARGET = 0.2  # points of accuracy that the suite may leave more than the peer
BATCH = 250
THEIR_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Images(nn.Module):
    """The network for examples (n, 1, d, c)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images[:, 0])


def ours(subject: Subject, dataset: Dataset, threat: Threat, n: int, seed: int) -> Tensor:
    """Points of the suite (n, d, c), as `tnn-attack --suite standard` finds them."""
    attacks = suite_attacks("standard", threat, scores=subject.scores, entries=subject.entries)
    # The peer attacks test examples only: of the training part one is enough.
    data = replace(dataset, train=Part(dataset.train.x[:1], dataset.train.y[:1]))
    found = drain(
        evaluate_steps(
            subject,
            data,
            attacks,
            suite="standard",
            seeds=(seed,),
            n=n,
            batch_size=BATCH,
            checks=False,
            keep_points=True,
        )
    )
    return found.points[-1]["test"].x_adv


def theirs(checkpoint: Checkpoint, target: Target, norm: str, eps: float, seed: int) -> Tensor:
    """Points of the peer (n, d, c)."""
    peer = AutoAttack(
        Images(checkpoint.model).eval(),
        norm=THEIR_NAMES[norm],
        eps=eps,
        version="standard",
        device=str(checkpoint.model.head.device),
        seed=seed,
    )
    peer.verbose = False
    x, y = target.examples
    with frozen(checkpoint.model):
        return peer.run_standard_evaluation(x[:, None], y, batch_size=BATCH)[0][:, 0].detach()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--norm", choices=THEIR_NAMES, default="linf")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir")
    return parser.parse_args()


def print_line(name: str, standing: int, n: int, size: float, seconds: float) -> None:
    print(
        f"robust, {name:<17}{100 * standing / n:7.1f} %  "
        f"(largest perturbation {size:.6f} eps, {seconds:.0f} s)"
    )


def compare(clean: Tensor, ours: Tensor, theirs: Tensor) -> bool:
    """Print the points one by one, all (n,) bool; whether the target is reached."""
    table = {
        "misclassified when clean": ~clean,
        "broken by both": clean & ours & theirs,
        "by ours only": clean & ours & ~theirs,
        "by theirs only": clean & ~ours & theirs,
        "by neither": clean & ~ours & ~theirs,
    }
    for name, rows in table.items():
        print(f"{name:<26}{int(rows.sum()):5d}")
    excess = 100 * (int((~ours).sum()) - int((~theirs).sum())) / len(clean)
    reached = excess <= TARGET + 1e-9
    print(f"{excess:+.1f} points, at most +{TARGET} wanted: {'reached' if reached else 'missed'}")
    return reached


def main() -> int:
    options = arguments()
    norm, eps, seed = options.norm, options.eps, options.seed
    checkpoint = load_checkpoint(options.run, torch.device("cpu"))
    if checkpoint.model.architecture.scores < 4:
        raise SystemExit("pyautoattack's standard version needs a network of 4 scores or more")
    dataset = load_run_data(checkpoint, data_dir=options.data_dir)
    subject, threat = subject_of(checkpoint), Threat(norm, eps)
    target = targets_of(subject, dataset, options.n, seed)["test"]
    x, y = target.examples
    with frozen(checkpoint.model):
        clean = margin(checkpoint.model(x), y) > 0
    print(f"{options.run}, {norm}, eps {eps:g}, {len(y)} test points, seed {seed}")
    print(f"clean{100 * float(clean.double().mean()):27.1f} %")

    broken = []
    for name, find in (
        ("standard suite", lambda: ours(subject, dataset, threat, options.n, seed)),
        ("pyautoattack", lambda: theirs(checkpoint, target, norm, eps, seed)),
    ):
        started = time.perf_counter()
        points = find()
        seconds = time.perf_counter() - started
        with frozen(checkpoint.model):
            broken.append(margin(checkpoint.model(points), y) <= 0)
        size = float(BALLS[norm].radius((points - x).double()).max()) / eps
        print_line(name, int((~broken[-1]).sum()), len(y), size, seconds)
    return 0 if compare(clean, *broken) else 1


if __name__ == "__main__":
    sys.exit(main())
