"""Figures of the certificates: faces against merged matrices, methods, memory, benchmarks.

    python scripts/bench_certify.py [--threads 2] [--run runs/m10 --data-dir DATA]
        [--auto-lirpa CHECKOUT --skip-faces]

Times of faces and merged matrices are medians of paired repeats. --run: a run of tnn-train on
ten-class MNIST (the first of `make validate-suite`). --auto-lirpa: a checkout of auto_LiRPA's
source (github.com/Verified-Intelligence/auto_LiRPA, read for 0.7.1; it imports appdirs and
graphviz), the judge of CROWN's bounds on --run's first test points and of alpha-CROWN's time.
What the complete method decides is in certify_targets.py.
"""

import argparse
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import tnn_robust as tr
from tnn_robust.certification.bounds import Ground, lower_bounds, neuron_rows
from tnn_robust.certification.certify import TOGETHER
from tnn_robust.certification.chain import Chain, Stage, from_tnn, make_chain, merged
from tnn_robust.certification.claims import Claims
from tnn_robust.certification.lower_bounds import EFFORTS, Certifier
from tnn_robust.certification.norms import WIDE
from tnn_robust.certification.operators import Joined
from tnn_robust.certification.region import make_region
from tnn_robust.models.network import TNN, Architecture, new_model, to_dense

CHANNELS, REPEATS = 28, 5
STEPS = 20  # of alpha-CROWN, for the judge
TARGETS = {28: 1.5, 64: 3.0, 128: 8.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--skip-faces", action="store_true")
    parser.add_argument("--auto-lirpa", type=Path)
    parser.add_argument("--eps", type=float, default=0.01, help="l_inf, for the judge")
    parser.add_argument("--points", type=int, default=20, help="for the judge")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not asked.skip_faces:
        for width, target in TARGETS.items():
            faces_against_merged(width, target)
        for width in TARGETS:
            rank_against_dense(width, 4)
    if asked.run is not None and asked.auto_lirpa is not None:
        judged(asked.run, asked.data_dir, asked.auto_lirpa, asked.eps, asked.points)
    elif asked.run is not None:
        ten_classes(asked.run, asked.data_dir)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"largest memory of the process: {peak:.0f} MB")


def network(width: int, rank: int | None = None) -> tr.TNN:
    architecture = Architecture(28, CHANNELS, (width,) * 3, (rank,) * 3, 10, "dct")
    return new_model(architecture, seed=0)


def plain(chain: Chain) -> Chain:
    """The same network with its merged matrices, on vectors of c d entries."""
    widths = [chain.shape, *(stage.shape for stage in chain.stages)]
    stages = []
    for stage, (c, d) in zip(chain.stages, widths, strict=False):
        k, i = stage.shape
        rows = merged(stage, (c, d)).permute(1, 0, 2).reshape(1, k * i, c * d).contiguous()
        slope = None if stage.slope is None else stage.slope.reshape(1, 1, -1)
        stages.append(Stage((Joined(rows),), None, slope, (1, k * i)))
    return make_chain(stages, (1, widths[0][0] * widths[0][1]), torch.float32)


def backward(chain: Chain, x: Tensor) -> tuple[Ground, Certifier, Tensor]:
    """The ground below the third stage around one example, and its rows."""
    certifier = Certifier(chain)
    ground = certifier.ground(make_region(tr.Threat("linf", 0.01), x), EFFORTS["crown-ibp"])
    cut = Ground(chain, ground.region, ground.errors[:2], ground.lines[:2], ground.bounds[:2])
    return cut, certifier, ground.errors[2]


def merged_alike(
    fast: tuple[Ground, Certifier, Tensor], x: Tensor
) -> tuple[Ground, Certifier, Tensor]:
    """The same bounds below, for the merged network on vectors."""
    ground, certifier, error = fast
    chain = plain(certifier.chain)

    def flat(t: Tensor) -> Tensor:
        return t.permute(1, 0, 2).reshape(1, t.shape[1], -1)

    return (
        Ground(
            chain,
            make_region(tr.Threat("linf", 0.01), x.permute(0, 2, 1).reshape(1, -1, 1)),
            tuple(map(flat, ground.errors)),
            tuple(type(one)(*map(flat, one)) for one in ground.lines),
        ),
        Certifier(chain),
        flat(error),
    )


def timed(ground: Ground, certifier: Certifier, error: Tensor, count: int) -> tuple[float, Tensor]:
    """Seconds of CROWN for `count` neurons of the third stage, in blocks; their bounds."""
    width = max(c * d for c, d in certifier.shapes())
    started, found = time.perf_counter(), []
    for part in torch.arange(count).split(max(1, certifier.block // width)):
        seeds = neuron_rows(ground, 2, certifier.rows[2], part, None, error, 1.0)
        found.append(lower_bounds(ground, seeds))
    return time.perf_counter() - started, torch.cat(found)


def faces_against_merged(width: int, target: float) -> None:
    x = torch.rand(1, 28, CHANNELS, generator=torch.Generator().manual_seed(0))
    chain = from_tnn(network(width))
    count = min(1024, CHANNELS * width)
    fast = backward(chain, x)
    both = [fast, merged_alike(fast, x)]
    ratios, seconds = [], []
    for _ in range(REPEATS):
        (fast, a), (slow, b) = (timed(*one, count) for one in both)
        ratios.append(slow / fast)
        seconds.append(fast)
    error = float(((a - b).abs() / (1 + b.abs())).max())
    ratio = statistics.median(ratios)
    said = "reached" if ratio >= target and error < 1e-5 else "missed"
    print(
        f"d = {width}, c = {CHANNELS}: {count} rows in {statistics.median(seconds):.3f} s "
        f"by faces, {ratio:.1f} times as fast as merged (target {target:g}, {said}), "
        f"equal to {error:.1e}"
    )


def rank_against_dense(width: int, rank: int) -> None:
    x = torch.rand(1, 28, CHANNELS, generator=torch.Generator().manual_seed(0))
    both = [backward(from_tnn(network(width, r)), x) for r in (rank, None)]
    ratios = []
    for _ in range(REPEATS):
        (low, _), (dense, _) = (timed(*one, min(1024, CHANNELS * width)) for one in both)
        ratios.append(dense / low)
    ratio = statistics.median(ratios)
    said = "reached" if ratio > 1 else "missed"
    print(f"rank {rank} at d = {width}: {ratio:.2f} times as fast as dense (target 1, {said})")


def ten_classes(run: Path, data_dir: Path | None) -> None:
    model = tr.load_model(run)
    data = tr.load_data("mnist", data_dir=data_dir)
    x, y = data.test.x[:40], data.test.y[:40]
    n = len(x)
    cases = [(method, 0.01) for method in ("ibp", "crown-ibp", "crown", "alpha-crown")]
    for method, eps in [*cases, ("crown", 0.02), ("alpha-crown", 0.02)]:
        before, started = fresh_peak(), time.perf_counter()
        found = tr.certify(model, (x, y), tr.Threat("linf", eps), method=method, attack=False)
        seconds, more = time.perf_counter() - started, peak() - before
        print(
            f"{found}; {seconds / n:.2f} s a point, {more:.0f} MB more than before, "
            f"{more / min(n, TOGETHER):.1f} MB a point bounded together"
        )


def fresh_peak() -> float:
    """Forget the largest memory so far; MB held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """The largest memory held since, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def judged(run: Path, data_dir: Path | None, checkout: Path, eps: float, n: int) -> None:
    """CROWN's bounds and alpha-CROWN's time beside auto_LiRPA's, on the same box.

    Times are the processor's, so that others on the machine change neither side's. Ours are
    compared without the allowance for float32, which auto_LiRPA does not make either.
    """
    model = tr.load_model(run).requires_grad_(False)
    data = tr.load_data("mnist", data_dir=data_dir)
    x, y = data.test.x[:n], data.test.y[:n]
    region, chain = make_region(tr.Threat("linf", eps), x), from_tnn(model)
    found, seconds = [], []
    for one in (replace(chain, unit=WIDE), chain):
        certifier, started = Certifier(one), time.process_time()
        claims = Claims.of(certifier, region, y)
        ground = claims.ground(torch.arange(n), "crown")
        found.append(certifier.margins(ground, claims.rows, claims.who, EFFORTS["crown"]))
        seconds.append(time.process_time() - started)
    other = AutoLirpa(checkout, model, claims)
    theirs, wide = other.bounds("CROWN", torch.float64)
    error = float(((found[0] - theirs).abs() / (1 + theirs.abs())).max())
    lost = float(((found[0] - found[1]) / (1 + theirs.abs())).max())
    said = "reached" if error < 1e-5 else "missed"
    print(
        f"CROWN at {eps:g}, {len(theirs)} claims: equal to auto_LiRPA's in float64 to {error:.1e} "
        f"(target 1e-5, {said}), float32's rounding then takes {lost:.1e}; {seconds[1]:.2f} s, "
        f"theirs {other.bounds('CROWN', torch.float32)[1]:.2f} s, in float64 {wide:.2f} s"
    )
    started = time.process_time()
    ours = tr.certify(model, (x, y), tr.Threat("linf", eps), method="alpha-crown")
    alpha = time.process_time() - started
    theirs, slow = other.bounds("CROWN-Optimized", torch.float32)
    worst = theirs.new_full((n,), torch.inf).scatter_reduce(0, claims.who, theirs, "amin")
    said = "reached" if alpha <= slow / 10 else "missed"
    print(
        f"alpha-CROWN at {eps:g}, {n} points: {ours.certified} certified in {alpha:.2f} s, "
        f"auto_LiRPA {int((worst > 0).sum())} in {slow:.2f} s, {slow / alpha:.1f} times as "
        f"long (target 10, {said})"
    )


class AutoLirpa:
    """The judge, on the merged network and the same box and claims."""

    def __init__(self, checkout: Path, model: TNN, claims: Claims):
        if not (checkout / "auto_LiRPA").is_dir():
            raise SystemExit(f"--auto-lirpa needs a checkout with a folder auto_LiRPA: {checkout}")
        sys.path.insert(0, str(checkout))
        self.model, self.claims = model, claims

    def bounds(self, method: str, dtype: torch.dtype) -> tuple[Tensor, float]:
        """Lower bounds of the claims, (m,) float64, and the seconds they took."""
        from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

        region = self.claims.region
        x, low, high = (
            t.permute(1, 2, 0).flatten(1).to(dtype) for t in (region.x, region.low, region.high)
        )
        n = len(x)
        dense = to_dense(self.model).to(dtype)[1:]  # without Flatten: x is flat
        targets = self.claims.rows.reshape(n, -1, self.claims.rows.shape[1]).to(dtype)
        bounded = BoundedModule(dense, x[:1])
        bounded.set_bound_opts({"optimize_bound_args": {"iteration": STEPS, "lr_alpha": 0.1}})
        box = PerturbationLpNorm(norm=torch.inf, x_L=low, x_U=high)
        started = time.process_time()
        found, _ = bounded.compute_bounds(
            x=(BoundedTensor(x, box),), C=targets, method=method, bound_upper=False
        )
        seconds = time.process_time() - started
        return found.detach().double().flatten(), seconds


if __name__ == "__main__":
    main()
