"""The numbers that compression is to reach, each as reached or missed.

    python scripts/compression_bench.py RUN [RUN ...] [--n 500] [--steps 10] [--epochs 0]
        [--lc-steps 3] [--output compression_bench.json]

RUNs are dense networks that differ in their seed, as made (here for MNIST 3 vs 7) by

    tnn-train --dataset mnist --classes 3,7 --n-train 6000 --layers 3 --width 128 \\
        --transform dct --attack pgd --norm linf --steps 7 --eps 20/255 --epochs 15 \\
        --batch-size 100 --lr 1e-3 --seed S --out RUN

The rule before repair is compared over all of them, the rest is measured on the first. Robust
accuracy is the sweep's verdict, the worse of PGD on the small network and of the original's
points. lc trains: its L-steps are an epoch each, a fifth of the original's by default.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from tnn_robust.algebra import tsvd
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.progress import drain
from tnn_robust.compression.layer_svd import layer_svds
from tnn_robust.compression.original import CompressRequest
from tnn_robust.compression.rank_sweep import rank_sweep
from tnn_robust.compression.rank_sweep_results import SweepReport, SweepRow
from tnn_robust.compression.repair import RepairSettings
from tnn_robust.compression.rules import choose_ranks, make_rule
from tnn_robust.compression.source import settings_of
from tnn_robust.compression.truncate import smallest_form, truncated
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.training.learning_compression import LCSchedule

SHARE = 0.1  # of the parameters
MU = (1e-2, 1.0)  # the first and the last pull of lc
lines: list[dict[str, object]] = []


def say(name: str, reached: bool, text: str) -> None:
    """Print a number beside its target, and keep it."""
    print(f"{'reached' if reached else 'MISSED ':8} {name}: {text}", flush=True)
    lines.append({"name": name, "reached": reached, "text": text})


def swept(run: Path, rules: dict[str, dict], asked: argparse.Namespace, epochs: int) -> SweepReport:
    """A sweep in which every rule is a size."""
    with tempfile.TemporaryDirectory() as folder:
        base = CompressRequest(
            run=run,
            out=Path(folder) / "sweep",
            rule=None,
            repair=RepairSettings(
                epochs=epochs, distill=1.0 if epochs else 0.0, lc=lc_schedule(asked.lc_steps)
            ),
            choice=AttackChoice(names=("pgd",), steps=asked.steps),
            n=asked.n,
        )
        sizes = {name: make_rule(**rule) for name, rule in rules.items()}
        return drain(rank_sweep(base, sizes))


def lc_schedule(steps: int) -> LCSchedule:
    """From a weak to a dominant pull in so few epochs."""
    return LCSchedule(steps=steps, mu0=MU[0], growth=(MU[1] / MU[0]) ** (1 / max(1, steps - 1)))


def ten_times_fewer(run: Path, asked: argparse.Namespace) -> SweepReport:
    report = swept(run, {"whitened": {"params": SHARE, "whiten": True}}, asked, asked.epochs)
    first, small = report.rows
    lost = 100 * (first.accuracy - small.accuracy)
    ratio = small.summary.parameters / first.summary.parameters
    most = settings_of(load_checkpoint(run)).epochs / 5
    say(
        "10x fewer parameters, at most 1 point lost, at most a fifth of the epochs",
        ratio <= SHARE and lost <= 1 and asked.epochs <= most,
        f"{ratio:.4f} of the parameters, {100 * first.accuracy:.2f} -> "
        f"{100 * small.accuracy:.2f} %, {asked.epochs} of {most:g} epochs of repair",
    )
    return report


def latency_follows_flops(row: SweepRow, first: SweepRow) -> None:
    flops, time_ = first.summary.flops / row.summary.flops, 1 / row.ratio_256
    share = row.summary.transform_flops / row.summary.flops
    say(
        "latency at batch 256 falls by at least 0.7 of the factor of the FLOPs",
        time_ >= 0.7 * flops,
        f"FLOPs {flops:.2f}x fewer ({100 * share:.0f} % of the rest are transforms), latency "
        f"{time_:.2f}x less, {time_ / flops:.2f} of the factor",
    )


def bytes_are_the_factors(row: SweepRow, channels: int) -> None:
    needed = 4 * row.summary.parameters
    excess, matrix = row.summary.bytes / needed - 1, 4 * channels**2 / needed
    say(
        "bytes on disk within 3 % of what the kept factors need",
        abs(excess) <= 0.03,
        f"{row.summary.bytes} for {needed}, {100 * excess:+.2f} % (M: {100 * matrix:.2f} %)",
    )


def rules_before_repair(runs: list[Path], asked: argparse.Namespace) -> None:
    """Per-layer energy meets a number of parameters only in steps: the others get its number."""
    found: dict[str, list[float]] = {}
    for run in runs:
        energy, count = nearest_energy(run)
        rules = {
            "energy": {"energy": energy},
            "sensitivity": {"method": "sensitivity", "params": float(count)},
            "lc": {"method": "lc", "params": float(count)},
            "whitened energy": {"params": float(count), "whiten": True},
        }
        for name, rule in rules.items():  # one metric a sweep
            row = swept(run, {name: rule}, asked, 0).rows[1]
            found.setdefault(name, []).append(100 * row.accuracy)
            print(
                f"         {run.name} {name}: {found[name][-1]:.2f} %, "
                f"{row.summary.parameters} parameters"
            )
    better = {
        name: [a - b for a, b in zip(found[name], found["energy"], strict=True)]
        for name in ("sensitivity", "lc")
    }
    each = "; ".join(f"{k} {', '.join(f'{one:+.2f}' for one in v)}" for k, v in better.items())
    say(
        f"sensitivity or lc beats per-layer energy at equal parameters, {len(runs)} seed(s)",
        any(min(points) > 0 for points in better.values()),
        f"points by seed: {each}; "
        f"means {', '.join(f'{k} {statistics.mean(v):.2f}' for k, v in found.items())}",
    )


def nearest_energy(run: Path) -> tuple[float, int]:
    """The energy whose network is nearest the share of the parameters, and its parameters."""
    model = load_checkpoint(run).model
    spectra, wanted = layer_svds(model), SHARE * model.parameter_count

    def count(energy: float) -> int:
        ranks = choose_ranks(spectra, make_rule(energy=energy))
        return smallest_form(truncated(model, spectra, ranks)).parameter_count

    low, high = 0.0, 1.0  # the last within the share and the first above it, by bisection
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= wanted else (low, middle)
    best = min((low, high), key=lambda energy: abs(count(energy) - wanted)) if low else high
    return best, count(best)


def one_svd() -> None:
    """28 x 256 x 256 against the batched SVD in it, in turn."""
    faces = torch.randn(28, 256, 256, generator=torch.Generator().manual_seed(0))
    ours, plain = in_turn(
        lambda: tsvd.face_svd(faces), lambda: torch.linalg.svd(faces, full_matrices=False)
    )
    ratio = ours / plain
    say("t-SVD of 28 x 256 x 256 within 1.2x of one batched SVD", ratio <= 1.2, f"{ratio:.2f}x")


def in_turn(*calls: Callable[[], object], repeats: int = 5) -> list[float]:
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    return [min(times) for times in seconds]


def twenty_sizes(run: Path) -> None:
    """The t-SVDs of the weights in a sweep of 20 sizes, counted."""
    calls = []
    rules = {f"{i}": {"energy": i / 20} for i in range(1, 21)}
    few = argparse.Namespace(steps=1, n=10, lc_steps=1)

    def counted(faces: torch.Tensor, **given: bool) -> tsvd.FaceSVD:
        calls.append(1)
        return tsvd.face_svd(faces, **given)

    with mock.patch("tnn_robust.compression.layer_svd.face_svd", counted):
        swept(run, rules, few, 0)
    layers = len(list(load_checkpoint(run).model.t_layers))
    text = f"{len(calls)} batched SVDs for {layers} layers"
    say("20 sizes cost one t-SVD", len(calls) == layers, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--lc-steps", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("compression_bench.json"))
    asked = parser.parse_args()
    report = ten_times_fewer(asked.runs[0], asked)
    latency_follows_flops(report.rows[1], report.rows[0])
    bytes_are_the_factors(report.rows[1], load_checkpoint(asked.runs[0]).model.transform.channels)
    one_svd()
    twenty_sizes(asked.runs[0])
    rules_before_repair(asked.runs, asked)
    asked.output.write_text(json.dumps(lines, indent=2) + "\n")
    return 0 if all(line["reached"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
