"""The targets on a GPU, in absolute times, with the share of the card's measured peak.

    python scripts/bench_gpu.py [--smoke] [--profile]

Without a GPU every target is printed as not measured; --smoke takes tiny networks on the
CPU, to see that the script runs; --profile adds the kernels of the suites that take longest.
Writes bench_gpu.json. The targets are for one H200; the suites have none of their own (theirs
is a tenth of pyautoattack's time, which `validate_suite.py` measures).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bench import operations, product_calls, verdict
from bench_a1 import FULL, TINY, seconds

import tnn_robust as tr
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.attack_part import attack_part
from tnn_robust.evaluation.rows import make_check
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.network import TNN, Architecture, new_model
from tnn_robust.training.loop import fit
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.settings import TrainSettings

SMOKE, PROFILE = ("--smoke" in sys.argv[1:]), ("--profile" in sys.argv[1:])
DEVICE = torch.device("cpu" if SMOKE else "cuda")
WIDTH, CHANNELS, N_ATTACKED = (4, 5, 20) if SMOKE else (256, 28, 10_000)
STEPS, RESTARTS, BATCHES, PEAK_SIZE = (3, 2, 60, 64) if SMOKE else (100, 10, 400, 8192)
SUITE, N_SUITE = ("quick", 4) if SMOKE else ("standard", 1000)  # points of each part
SUITES = {"linf": 0.02 if SMOKE else 0.1, "l2": 0.1 if SMOKE else 1.0}
BATCH = 80
TARGETS = {"A.2 training step": 0.3e-3, "PGD-100 x 10": 10.0, "A.1 in full": 120.0}  # seconds


def network(scores: int) -> TNN:
    shape = Architecture(CHANNELS, CHANNELS, (WIDTH,) * 3, (None,) * 3, scores, "dct")
    return new_model(shape, 0).to(DEVICE)


def images(n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, CHANNELS, CHANNELS, device=DEVICE)
    return x, torch.arange(n, device=DEVICE) % classes


def clock() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def training_step() -> tuple[float, float]:
    """Seconds a step of `fit` by FGSM, a step early in an epoch to one late in it, and its
    operations."""
    model = network(1)
    x, y = images(BATCH * BATCHES, 2)
    settings = TrainSettings(epochs=2, batch_size=BATCH, loss="logistic")
    fgsm = named_attack("fgsm", Eps("0.1", 0.1), loss="logistic")
    records = fit(
        model,
        x,
        y,
        monitor=(x[:BATCH], y[:BATCH]),
        settings=settings,
        perturb=make_perturb(fgsm, keep_best=False),
        optimizer=make_optimizer(model, settings),
        seed=0,
    )
    seen = [(r.done, clock()) for r in records if r.found is None and 1 < r.done < 2]
    (first, began), (last, ended) = seen[0], seen[-1]
    return (ended - began) / ((last - first) * BATCHES), operations(
        product_calls(network(1).cpu(), BATCH, training=True)
    )


def attack() -> tuple[float, float]:
    """Seconds of PGD over the images with verification and measuring, and its operations."""
    model = network(10)
    x, y = images(N_ATTACKED, 10)
    settings = named_attack("pgd", Eps("0.1", 0.1), steps=STEPS, restarts=RESTARTS)
    block = compute_block(model, DEVICE)
    began = clock()
    done = attack_part(
        model, x, y, torch.arange(len(x), device=DEVICE), perturb=make_perturb(settings),
        check=make_check(settings), loss=LOSSES["cross-entropy"], seed=0, block=block,
    )  # fmt: skip
    count = sum(len(block.x_adv) for block in done)
    took = clock() - began
    assert count == N_ATTACKED
    each = operations(product_calls(network(10).cpu(), 1)) * STEPS * RESTARTS
    return took, float(each * N_ATTACKED)


def a1_in_full() -> tuple[float, None]:
    found = seconds(*(TINY if SMOKE else FULL), "--device", DEVICE.type)
    if isinstance(found, str):
        raise SystemExit(f"A.1 in full: {found}")
    return found, None


def suite(norm: str) -> dict[str, float]:
    """Seconds of each attack on both parts of MNIST, in a smoke run of digits, and of the checks,
    for a network trained against PGD-3."""
    data = tr.load_data("digits") if SMOKE else tr.load_data("mnist", n_train=10_000)
    model = tr.TNN.for_data(data, layers=3, width=WIDTH if SMOKE else 28, seed=0).to(DEVICE)
    attack = tr.attacks.PGD(norm, SUITES[norm], steps=3, loss="cross-entropy")
    tr.train(model, data, attack=attack, epochs=1 if SMOKE else 6, batch_size=100, seed=0)
    threat = tr.Threat(norm, SUITES[norm])
    report = tr.evaluate(model, data, suite=SUITE, threat=threat, n=N_SUITE)
    if PROFILE:  # of fewer steps: the profiler keeps every kernel
        with torch.profiler.profile() as profile:
            tr.evaluate(model, data, suite="quick", threat=threat, n=N_SUITE // 4, checks=False)
        order = "self_cuda_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=15))
    found: dict[str, float] = {}
    for row in report.attacks:
        loss = f" {row.settings['loss']}" if row.name == "apgd" else ""
        found[row.name + loss] = row.seconds
    return found | {"masking checks": sum(check.seconds for check in report.checks)}


def suite_rows(there: bool, name: str) -> Iterator[dict]:
    for norm, eps in SUITES.items():
        what = f"{SUITE} suite, {norm} {eps:g}, {N_SUITE} + {N_SUITE} points"
        row = {"what": what, "target": None, "device": name, "seconds": None}
        if there:
            parts = suite(norm)
            row |= {"seconds": sum(parts.values()), "parts": parts}
            each = ", ".join(f"{part} {took:.2f}" for part, took in parts.items())
            print(f"{what}: {row['seconds']:.4g} s ({each})")
        else:
            print(f"{what}: not measured")
        yield row


def peak() -> float:
    """Operations a second of one large product in full float32."""
    left, right = torch.rand(2, PEAK_SIZE, PEAK_SIZE, device=DEVICE)
    out = left @ right
    began = clock()
    for _ in range(5):
        torch.mm(left, right, out=out)
    return 10 * PEAK_SIZE**3 / (clock() - began)


def main() -> None:
    there = SMOKE or torch.cuda.is_available()
    name = torch.cuda.get_device_name() if there and not SMOKE else "no GPU"
    print(f"torch {torch.__version__}, {name}")
    rows: list[dict] = []
    measures: dict[str, Callable[[], tuple[float, float | None]]] = {
        "A.2 training step": training_step,
        "PGD-100 x 10": attack,
        "A.1 in full": a1_in_full,
    }
    for what, target in TARGETS.items():
        row = {"what": what, "target": target, "device": name, "seconds": None}
        if there:
            limit = peak()
            took, count = measures[what]()
            row |= {"seconds": took, "reached": took <= target}
            found = "no verdict of a smoke run" if SMOKE else verdict(took <= target)
            share = ""
            if count is not None:
                row["share_of_peak"] = count / took / limit
                share = f", {row['share_of_peak']:.0%} of the peak"
            print(f"{what}: {took:.4g} s{share}, target {target}: {found}")
        else:
            print(f"{what}: not measured, target {target}")
        rows.append(row)
    rows += suite_rows(there, name)
    if not SMOKE:
        Path("bench_gpu.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
