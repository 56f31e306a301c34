"""What a training step costs that ends in certificates, against a plain step.

    python scripts/bench_family.py [--smoke]

CPU time of one thread, the least of several steps of each, forward and backward, so that other
work on the machine counts little. Prints a table; docs/certified-training.md has one.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tnn_robust.base.losses import LOSSES
from tnn_robust.certification.chain import from_tnn
from tnn_robust.models.network import TNN, Architecture, new_model
from tnn_robust.training.certified import certified_losses, merged_all
from tnn_robust.training.certified_settings import CertifiedSettings

SMOKE = "--smoke" in sys.argv[1:]
C, WIDTH, N = (4, 6, 8) if SMOKE else (28, 28, 100)
REPEATS = 2 if SMOKE else 15


def network(activation: str = "relu", **family: bool) -> TNN:
    """Three layers of examples (C, C)."""
    shape = Architecture(C, C, (WIDTH,) * 3, (None,) * 3, 10, "dct", activation, **family)
    return new_model(shape, 0)


def cost(model: TNN, loss: Callable[[], Tensor]) -> float:
    """Milliseconds of a step."""
    best = float("inf")
    for _ in range(REPEATS):
        model.zero_grad()
        started = time.process_time()
        loss().backward()
        best = min(best, time.process_time() - started)
    return 1000 * best


def bounds(model: TNN, x: Tensor, y: Tensor, method: str) -> Callable[[], Tensor]:
    """The loss of a method while its eps rises, regularisers included."""
    norm = "l2" if method == "lipschitz" else "linf"
    settings = CertifiedSettings(method, norm=norm, ramp=2)

    def loss() -> Tensor:
        losses, more = certified_losses(
            model,
            x,
            y,
            settings=settings,
            loss="cross-entropy",
            at=1.0,
            adversarial=lambda: x,
            noise=lambda: x,
        )
        return losses.mean() + more

    return loss


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    x = torch.rand(N, C, C, generator=torch.Generator().manual_seed(0))
    y = torch.arange(N) % 10

    def plain(model: TNN) -> float:
        return cost(model, lambda: LOSSES["cross-entropy"](model(x), y).mean())

    paper, biased = network(), network(bias=True)
    pairs, orthogonal = network("maxmin"), network("maxmin", orthogonal=True)
    base = plain(paper)
    rows = [("ReLU, the paper's", base), ("ReLU, biases", plain(biased))]
    free = plain(pairs)
    rows += [("MaxMin", free), ("MaxMin, orthogonal", plain(orthogonal))]
    rows.append(("lipschitz", cost(orthogonal, bounds(orthogonal, x, y, "lipschitz"))))
    intervals = cost(biased, bounds(biased, x, y, "ibp"))
    rows += [("ibp", intervals), ("crown-ibp", cost(biased, bounds(biased, x, y, "crown-ibp")))]
    print(f"batch {N}, 3 layers of {WIDTH} features, {C} channels, dct, one thread")
    for name, ms in rows:
        print(f"  {name:20} {ms:8.2f} ms  x {ms / base:5.2f}")
    merging = cost(
        biased,
        lambda: torch.stack([one.sum() for one in merged_all(from_tnn(biased, live=True))]).sum(),
    )
    print(f"  merged matrices, once a step: {merging:.2f} ms, {merging / intervals:.0%} of ibp's")
    print(f"  orthogonal against the same with free weights: x {rows[3][1] / free:.2f}")


if __name__ == "__main__":
    main()
