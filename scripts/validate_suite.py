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

from tnn_robust.attacks.ascent import frozen
from tnn_robust.attacks.settings import Eps
from tnn_robust.attacks.suite import suite_attacks
from tnn_robust.attacks.threat import BALLS
from tnn_robust.data.dataset import Dataset, Part
from tnn_robust.losses import margin
from tnn_robust.models.checkpoint import Checkpoint, load_checkpoint
from tnn_robust.records import AttackReport
from tnn_robust.runs.attack import (
    AttackFinished,
    AttackRequest,
    Target,
    attack_checkpoint,
    targets_of,
)
from tnn_robust.runs.common import load_run_data

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


def ours(
    checkpoint: Checkpoint, dataset: Dataset, norm: str, eps: float, request: AttackRequest
) -> tuple[Tensor, AttackReport]:
    """Points of the suite (n, d, c), as `tnn-attack --suite standard` finds them."""
    a = checkpoint.model.architecture
    attacks = suite_attacks(
        "standard",
        Eps(f"{eps:g}", eps),
        norm=norm,
        scores=a.scores,
        entries=a.features * a.channels,
    )
    # The peer attacks test examples only: of the training part one is enough.
    data = replace(dataset, train=Part(dataset.train.x[:1], dataset.train.y[:1]))
    for record in attack_checkpoint(checkpoint, data, {"digest": data.digest}, attacks, request):
        if isinstance(record, AttackFinished):
            return record.points[-1]["test"].x_adv, record.report
    raise SystemExit("the suite gave no report")


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--norm", choices=THEIR_NAMES, default="linf")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir")
    options = parser.parse_args()

    checkpoint = load_checkpoint(options.run, torch.device("cpu"))
    if checkpoint.model.architecture.scores < 4:
        raise SystemExit("pyautoattack's standard version needs a network of 4 scores or more")
    dataset, _ = load_run_data(checkpoint, data_dir=options.data_dir)
    request = AttackRequest(
        run=options.run,
        seed=options.seed,
        n=options.n,
        batch_size=BATCH,
        keep_points=True,
        suite="standard",
        checks=False,
    )
    target = targets_of(checkpoint, dataset, request)["test"]
    x, y = target.examples

    started = time.perf_counter()
    found, report = ours(checkpoint, dataset, options.norm, options.eps, request)
    between = time.perf_counter()
    peer = theirs(checkpoint, target, options.norm, options.eps, options.seed)
    seconds = (between - started, time.perf_counter() - between)

    broken = []
    with frozen(checkpoint.model):
        clean = margin(checkpoint.model(x), y) > 0
        for points in (found, peer):
            broken.append(margin(checkpoint.model(points), y) <= 0)
    radii = [float(BALLS[options.norm].radius((p - x).double()).max()) for p in (found, peer)]
    mine, other = broken
    n, counts = len(y), [int((~b).sum()) for b in broken]
    print(
        f"{options.run}, {options.norm}, eps {options.eps:g}, {n} test points, seed {options.seed}"
    )
    print(f"clean accuracy            {100 * int(clean.sum()) / n:6.1f} %")
    for name, count, radius, spent in zip(
        ("standard suite", "pyautoattack"), counts, radii, seconds, strict=True
    ):
        print(
            f"robust, {name:<17} {100 * count / n:6.1f} %  "
            f"(largest radius {radius / options.eps:.6f} eps, {spent:.0f} s)"
        )
    table = {
        "misclassified when clean": ~clean,
        "broken by both": clean & mine & other,
        "by ours only": clean & mine & ~other,
        "by theirs only": clean & ~mine & other,
        "by neither": clean & ~mine & ~other,
    }
    for name, rows in table.items():
        print(f"{name:<26}{int(rows.sum()):6d}")
    for row in report.attacks:
        print(f"  {row.name} {row.settings.get('loss', '')}: {row.test.broken} broken first")
    excess = 100 * (counts[0] - counts[1]) / n
    reached = excess <= TARGET + 1e-9
    print(f"{excess:+.1f} points, at most +{TARGET} wanted: {'reached' if reached else 'missed'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
