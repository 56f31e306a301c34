"""Forward + input gradient of a 3-layer t-NN against its matrix products alone.

Prints a table and writes bench.json. Both sides run in turn in one process, so
that a machine that slows down slows both; times are medians.

    python scripts/bench.py [--quick]
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import frozen
from tnn_robust.models.network import TNN, Architecture, new_model

CASES = ((28, 28, 28, 80), (28, 28, 128, 80), (28, 28, 128, 1024), (28, 28, 256, 80))
LAYERS = 3
TARGET = 1.8
SECONDS = 4.0  # a case, both sides together
OUTPUT = Path("bench.json")


def input_gradient(model: TNN, x: Tensor) -> Callable[[], Tensor]:
    """What an attack does in each step."""
    ones = torch.ones(len(x), model.head.shape[0])

    def run() -> Tensor:
        z = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(z), z, ones)
        return gradient

    return run


def products_alone(model: TNN, n: int) -> Callable[[], None]:
    """The same matrix products, forward and backward, into buffers allocated beforehand."""
    matrix, calls = model.transform_matrix, []
    c = matrix.shape[0]
    for layer in model.t_layers:
        (stack,) = layer.stacks
        weight = stack.detach()
        for side, width, other in (
            (weight.mT, layer.d_in, layer.d_out),
            (weight, layer.d_out, layer.d_in),
        ):
            tubes, mixed = torch.rand(c, n * width), torch.empty(c, n * width)
            faces, out = torch.empty(c, n, other), torch.empty(c, n * other)
            calls.append((torch.mm, matrix, tubes, mixed))
            calls.append((torch.bmm, mixed.view(c, n, width), side, faces))
            calls.append((torch.mm, matrix.T, faces.view(c, -1), out))

    def run() -> None:
        for product, left, right, out in calls:
            product(left, right, out=out)

    return run


def interleaved(a: Callable, b: Callable, seconds: float) -> tuple[list[float], list[float]]:
    """Times of both in turn, after a warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in (a, b) * 3:
        run()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(times[0]) < 5:
        for run, found in zip((a, b), times, strict=True):
            begin = time.perf_counter()
            run()
            found.append(time.perf_counter() - begin)
    return times


def measure(case: tuple[int, int, int, int], seconds: float) -> dict:
    """One row: medians in milliseconds, their quartiles, and the ratio."""
    c, d, width, n = case
    model = new_model(Architecture(d, c, (width,) * LAYERS, (None,) * LAYERS, 1, "dct"), seed=0)
    x = torch.rand(n, d, c, generator=torch.Generator().manual_seed(0))
    with frozen(model), torch.no_grad():
        products = products_alone(model, n)
        with torch.enable_grad():
            network = input_gradient(model, x)
            ours, alone = interleaved(network, products, seconds)
    ratio = statistics.median(ours) / statistics.median(alone)
    return {
        "case": {"c": c, "d": d, "D": width, "n": n},
        "ms": 1e3 * statistics.median(ours),
        "ms_quartiles": [1e3 * q for q in statistics.quantiles(ours, n=4)[::2]],
        "products_ms": 1e3 * statistics.median(alone),
        "runs": len(ours),
        "ratio": ratio,
        "target": TARGET,
        "reached": ratio <= TARGET,
    }


def main() -> None:
    seconds = 0.3 if "--quick" in sys.argv[1:] else SECONDS
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {LAYERS} layers, dct")
    print(f"{'(c, d, D, n)':>20} {'ms':>9} {'quartiles':>15} {'products':>9} {'ratio':>6}")
    rows = []
    for case in CASES:
        row = measure(case, seconds)
        low, high = row["ms_quartiles"]
        verdict = "reached" if row["reached"] else "missed"
        print(
            f"{case!s:>20} {row['ms']:9.3f} {low:7.3f}-{high:7.3f} {row['products_ms']:9.3f} "
            f"{row['ratio']:6.2f}  target {TARGET}: {verdict}",
            flush=True,
        )
        rows.append(row)
    OUTPUT.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
