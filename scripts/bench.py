"""What an attack and a training step cost, against their matrix products alone and the peak.

Adam's rows are its share of a training step, and torch's fused form against its foreach form.

The tracker's rows are its time a training step, at one record per 100 steps, against a step's.

Prints a table and writes bench.json. Both sides run in turn in one process, so
that a machine that slows down slows both; times are medians. The peak is that of
one large product, measured beside every case. Last come the start-up times.

    python scripts/bench.py [--quick | --smoke | --memory] [--cpu-time]

--smoke takes tiny networks, to see that the script runs; --cpu-time counts the
process's CPU time instead of the clock's: for one thread on a machine that
others load; --memory measures the memory of attacking 1000 of 200 000 examples,
against that of attacking 1000 of 1000, and nothing else.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.models.layers import TLayer
from tnn_robust.models.network import TNN, Architecture, new_model
from tnn_robust.models.stacked import stack_models
from tnn_robust.training.objectives import Perturb
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.settings import TrainSettings
from tnn_robust.training.step import train_step
from tnn_robust.training.tracker import Tracker
from tnn_robust.training.trajectory import tracked_examples

CASES = (
    (28, 28, 28, 80),
    (28, 28, 28, 2048),
    (28, 28, 128, 80),
    (28, 28, 128, 1024),
    (28, 28, 256, 80),
    (204, 25, 64, 256),
)
A1, SEEDS = (28, 28, 28, 30), 20  # the paper's A.1: batches of 30, rank 4, 20 seeds
A2 = (28, 28, 128, 80)
EVERY, N_TRAIN = 100, 12_396  # steps from one record of the tracker to the next; 3 against 7
TARGETS = {"gradient": 1.25, "low rank": 1.3, "step": 1.35, "stacked": 0.2, "tracker": 0.1}
TARGETS |= {"Adam": 0.16, "Adam, fused": 0.6}
LAYERS, PEAK_SIZE = 3, 1024
SECONDS = 4.0  # a case, both sides together
OUTPUT = Path("bench.json")
SMOKE = "--smoke" in sys.argv[1:]
if SMOKE:
    CASES, A1, SEEDS, SECONDS = ((4, 3, 5, 16), (5, 4, 4, 8)), (4, 4, 4, 6), 3, 0.02
    A2, N_TRAIN = A1, 200
    PEAK_SIZE, OUTPUT = 64, Path("bench-smoke.json")
elif "--quick" in sys.argv[1:]:
    SECONDS = 0.3
HELP_TARGET, FIRST_BATCH_TARGET = 0.3, 1.5  # seconds, the second beyond torch's own import
_FIRST_BATCH = """
import time, torch; imported = time.perf_counter()
from pathlib import Path; from tempfile import mkdtemp
from tnn_robust.data.spec import DataSpec
from tnn_robust.training.run import TrainRequest, open_run, train_steps
from tnn_robust.training.settings import TrainSettings
request = TrainRequest(
    DataSpec("digits"), Path(mkdtemp()) / "run", (16, 16), None, "dct",
    TrainSettings(batch_size=16), None,
)
next(train_steps(open_run(request)))
print(time.perf_counter() - imported)
"""


def input_gradient(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """What an attack does in each step."""
    with torch.no_grad():
        ones = torch.ones_like(model(x))

    def run() -> Tensor:
        z = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(z), z, ones)
        return gradient

    return run


def product_calls(model: TNN, n: int, *, training: bool = False) -> list[tuple]:
    """The same matrix products, into buffers allocated beforehand: forward and input
    gradient, or of a whole FGSM training step, with weight gradients in its second backward."""
    calls: list[tuple] = []
    for weights in (False, True)[: 1 + training]:
        for number, layer in enumerate(model.t_layers):
            calls += _layer_calls(model.transform_matrix, layer, n, number, weights)
    return calls


def done(calls: list[tuple]) -> Callable[[], None]:
    """Products one after the other, as one function."""

    def run() -> None:
        for product, left, right, out in calls:
            product(left, right, out=out)

    return run


def operations(calls: list[tuple]) -> int:
    """Floating-point operations of products, a multiply-add being two."""
    return sum(2 * out.numel() * left.shape[-1] for _, left, _, out in calls)


def peak() -> float:
    """Operations a second of one large product, now: the machine's limit as measured."""
    left, right = torch.rand(2, PEAK_SIZE, PEAK_SIZE)
    out = torch.empty_like(left)
    times, _ = interleaved(lambda: torch.mm(left, right, out=out), lambda: None, SECONDS / 10)
    return operations([(None, left, right, out)]) / statistics.median(times)


def _layer_calls(matrix: Tensor, layer: TLayer, n: int, number: int, weights: bool) -> list[tuple]:
    c, k = matrix.shape[0], len(layer.stacks[0])
    rows = n * k // c  # of all networks of a stack

    def mix(width: int, matrix: Tensor) -> tuple:
        return torch.mm, matrix, torch.rand(c, rows * width), torch.empty(c, rows * width)

    def faces(width: int) -> Tensor:
        return torch.rand(k, n, width)

    calls = [mix(layer.d_in, matrix), mix(layer.d_out, matrix.T)]  # and their adjoints
    calls += [] if weights and not number else [mix(layer.d_in, matrix.T)]
    calls.append(mix(layer.d_out, matrix))
    for i, stack in enumerate(layer.stacks):
        weight, (_, d_out, d_in) = stack.detach(), stack.shape
        calls.append((torch.bmm, faces(d_in), weight.mT, faces(d_out)))
        if not weights or number or i:
            calls.append((torch.bmm, faces(d_out), weight, faces(d_in)))
        if weights:
            calls.append((torch.bmm, faces(d_out).mT, faces(d_in), torch.empty_like(weight)))
    return calls


def training_step(model: TNN, x: Tensor) -> Callable[[], None]:
    """One FGSM step of Adam on all of x, as `fit` does it."""
    settings = TrainSettings(batch_size=len(x), loss="logistic", epochs=1)
    perturb, optimizer = fgsm(), make_optimizer(model, settings)
    y, streams = torch.arange(len(x)) % 2, Streams(0, torch.arange(len(x)))

    def run() -> None:
        train_step(model, x, y, streams, settings, perturb, optimizer)

    return run


def adam_step(case: tuple, rank: int | None, **form: bool) -> Callable[[], None]:
    """Adam alone, in one of torch's forms: its own choice is for each weight in turn."""
    model, _ = network(case, rank)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.Adam(parameters, lr=1e-3, **form).step


def fgsm() -> Perturb:
    return make_perturb(named_attack("fgsm", Eps("0.1", 0.1), loss="logistic"), keep_best=False)


def tracking(case: tuple, rank: int | None) -> tuple[Callable, Callable]:
    """A record of the tracker as `tnn-train --track` makes it, and a training step."""
    model, x = network(case, rank)
    n = tracked_examples(N_TRAIN, EVERY, len(x))
    _, looked_at = network((*case[:3], n), rank)
    y = torch.arange(n) % 2
    tracker = Tracker(model, looked_at, y, perturb=fgsm(), seed=0, loss="logistic", n_train=N_TRAIN)
    return lambda: tracker.record(0), training_step(model, x)


def interleaved(a: Callable, b: Callable, seconds: float) -> tuple[list[float], list[float]]:
    """Times of both in turn, after a warm-up."""
    clock = time.process_time if "--cpu-time" in sys.argv[1:] else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    for run in (a, b) * 3:
        run()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(times[0]) < 5:
        for run, found in zip((a, b), times, strict=True):
            begin = clock()
            run()
            found.append(clock() - begin)
    return times


def measure(name: str, case: tuple, ours: Callable, calls: list[tuple], target: float) -> dict:
    """One row: medians in milliseconds, quartiles, the ratio, and the products' share of peak."""
    row = compared(name, case, (ours, done(calls)), target)
    limit = peak()
    rate = operations(calls) / row["against_ms"] * 1e3
    return {**row, "peak_gflops": limit / 1e9, "share_of_peak": rate / row["ratio"] / limit}


def compared(
    name: str, case: tuple, sides: tuple[Callable, Callable], target: float, per: float = 1.0
) -> dict:
    """A row of two sides; `per` divides the first."""
    ours, against = interleaved(*sides, SECONDS)
    ratio = statistics.median(ours) / per / statistics.median(against)
    return {
        "what": name,
        "case": dict(zip(("c", "d", "D", "n"), case, strict=True)),
        "ms": 1e3 * statistics.median(ours) / per,
        "ms_quartiles": [1e3 * q / per for q in statistics.quantiles(ours, n=4)[::2]],
        "against_ms": 1e3 * statistics.median(against),
        "runs": len(ours),
        "ratio": ratio,
        "target": target,
        "reached": ratio <= target,
    }


def network(case: tuple, rank: int | None = None, seed: int = 0) -> tuple[TNN, Tensor]:
    c, d, width, n = case
    model = new_model(Architecture(d, c, (width,) * LAYERS, (rank,) * LAYERS, 1, "dct"), seed)
    return model, torch.rand(n, d, c, generator=torch.Generator().manual_seed(seed))


def rows() -> Iterator[dict]:
    """Every case in turn."""
    for rank, target in ((None, TARGETS["gradient"]), (2 if SMOKE else 4, TARGETS["low rank"])):
        for case in CASES:
            model, x = network(case, rank)
            name = "gradient" if rank is None else f"gradient, rank {rank}"
            with frozen(model):
                gradient, calls = input_gradient(model, x), product_calls(model, len(x))
                yield measure(name, case, gradient, calls, target)
    for rank in (None, 2 if SMOKE else 4):
        for case in CASES:
            model, x = network(case, rank)
            name = "FGSM step" if rank is None else f"FGSM step, rank {rank}"
            calls = product_calls(model, len(x), training=True)
            yield measure(name, case, training_step(model, x), calls, TARGETS["step"])
    low = 2 if SMOKE else 4
    for case, rank in ((A1, low), (A1, None), (A2, None)):
        name = "tracker" if rank is None else f"tracker, rank {rank}"
        yield compared(name, case, tracking(case, rank), TARGETS["tracker"], per=EVERY)
    for case, rank in ((A1, low), (A2, None)):
        fused, step = adam_step(case, rank, fused=True), training_step(*network(case, rank))
        yield compared("Adam / step", case, (fused, step), TARGETS["Adam"])
        several = adam_step(case, rank, foreach=True)
        yield compared("Adam, fused / foreach", case, (fused, several), TARGETS["Adam, fused"])
    model, x = network(A1, low)
    stack = stack_models([network(A1, low, seed)[0] for seed in range(SEEDS)])
    sides = training_step(stack, x.repeat(SEEDS, 1, 1)), training_step(model, x)
    row = compared(f"{SEEDS} seeds / 1", A1, sides, TARGETS["stacked"], per=SEEDS)
    yield row
    for name, ms, most in (("one", row["against_ms"], 4.0), ("stacked", row["ms"], 1.2)):
        print(f"A.1 step, {name}: {ms:.2f} ms a model, target {most}: {verdict(ms <= most)}")


def startup() -> Iterator[dict]:
    """Seconds until --help is there, and until the first batches beyond torch's own import."""
    for point in sorted(entry_points(group="console_scripts"), key=lambda point: point.name):
        if point.value.startswith("tnn_robust_cli."):
            run = [sys.executable, "-m", point.module, "--help"]
            yield _startup(f"help of {point.name}", run, HELP_TARGET)
    yield _startup("first batches", [sys.executable, "-c", _FIRST_BATCH], FIRST_BATCH_TARGET)


def _startup(name: str, run: list[str], target: float) -> dict:
    times = []
    for _ in range(1 if SMOKE else 5):
        began = time.perf_counter()
        ran = subprocess.run(run, capture_output=True, check=True, text=True)
        own = None if "--help" in run else float(ran.stdout)
        times.append(time.perf_counter() - began if own is None else own)
    seconds = statistics.median(times)
    print(f"{name}: {seconds:.2f} s, target {target}: {verdict(seconds <= target)}", flush=True)
    return {"what": name, "seconds": seconds, "target": target, "reached": seconds <= target}


MEMORY_TARGET = 1.1  # the peak of attacking 1000 of many examples to that of 1000 of 1000
_PEAK = """
import re, sys; import tnn_robust as tr
data = tr.load_data(sys.argv[1])
model = tr.TNN.for_data(data, layers=1, width=4, seed=0)
report = tr.evaluate(model, data, tr.attacks.FGSM("linf", 0.1), n=1000, checks=False)
assert report.worst_case.test.n == 1000
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def memory() -> Iterator[dict]:
    """The peak of a process that attacks 1000 examples of 28 x 28, out of many and of as many.

    By Linux's VmHWM: ru_maxrss would count what this process holds when it starts the other.
    """
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for dtype, save in (
            ("uint8", np.savez),
            ("float32", np.savez),
            ("float32", np.savez_compressed),
        ):
            peaks = {}
            for n in (1000, 200_000):
                x = generator.integers(0, 256, (n, 28, 28), np.uint8)
                x = x if dtype == "uint8" else x / np.float32(255)
                y, path = np.arange(n) % 10, f"{folder}/{n}.npz"
                save(path, x_train=x[:1000], y_train=y[:1000], x_test=x, y_test=y)
                ran = [sys.executable, "-c", _PEAK, f"npz:{path}"]
                done = subprocess.run(ran, capture_output=True, check=True, text=True)
                peaks[n] = int(done.stdout) / 1024
            what = f"memory, {dtype}{', compressed' * (save is not np.savez)}"
            ratio = peaks[200_000] / peaks[1000]
            reached = ratio <= MEMORY_TARGET
            print(
                f"{what}: {peaks[1000]:.0f} MiB for 1000 of 1000, {peaks[200_000]:.0f} for 1000 of "
                f"200 000 ({x.nbytes / 2**20:.0f} MiB), target {MEMORY_TARGET}: {verdict(reached)}",
                flush=True,
            )
            yield {"what": what, "ratio": ratio, "target": MEMORY_TARGET, "reached": reached}


def verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


def main() -> None:
    if "--memory" in sys.argv[1:]:
        for _ in memory():
            pass
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {LAYERS} layers, dct")
    print("  what, (c, d, D, n): ms [quartiles], ms of its products alone, ratio, share of peak")
    found = []
    for row in rows():
        low, high = row["ms_quartiles"]
        case = tuple(row["case"].values())
        share = f"{row['share_of_peak']:4.0%}" if "share_of_peak" in row else "    "
        print(
            f"{row['what']:>17} {case!s:>19} {row['ms']:9.3f} {low:8.3f}-{high:8.3f} "
            f"{row['against_ms']:9.3f} {row['ratio']:6.2f} {share} "
            f"target {row['target']}: {verdict(row['reached'])}",
            flush=True,
        )
        found.append(row)
    found += startup()
    peaks = [row["peak_gflops"] for row in found if "peak_gflops" in row]
    print(f"peak: {min(peaks):.0f} to {max(peaks):.0f} Gflop/s, one product of {PEAK_SIZE}^3")
    OUTPUT.write_text(json.dumps({"torch": torch.__version__, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
