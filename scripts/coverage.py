"""How often the report's 95 % intervals hold the truth, for losses of heavy tails.

python scripts/coverage.py [REPLICATES]: a table in Markdown; a few minutes for 2000.

Laws of a loss: gamma of shape 1/2, lognormal of sigma 1, and rare events: 19 in 20 examples of
almost no loss, one of about 6. The gap is of two parts of one law (its truth is 0), and of a
test part whose losses are twice as large.
"""

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tnn_robust.evaluation.intervals import FEW, large_values, resample

SIZES = (50, 200, 1000)
BATCH = 100  # replicates that share their draws
Generator = np.random.Generator


def gamma(generator: Generator, shape: tuple[int, int]) -> NDArray:
    return generator.gamma(0.5, 1.0, shape)


def lognormal(generator: Generator, shape: tuple[int, int]) -> NDArray:
    return generator.lognormal(0.0, 1.0, shape)


def rare(generator: Generator, shape: tuple[int, int]) -> NDArray:
    small, large = 0.01 * generator.exponential(1.0, shape), 1 + generator.exponential(5.0, shape)
    return np.where(generator.random(shape) < 0.05, large, small)


LAWS: dict[str, tuple[Callable[[Generator, tuple[int, int]], NDArray], float]] = {
    "gamma": (gamma, 0.5),
    "lognormal": (lognormal, np.exp(0.5)),
    "rare events": (rare, 0.05 * 6 + 0.95 * 0.01),
}


def covered(law: str, n: int, factor: float, replicates: int) -> list[float]:
    """Shares of replicates: gap held, gap's percentiles held, and the note on few large losses."""
    draw, mean = LAWS[law]
    generator = np.random.default_rng([n, int(factor), list(LAWS).index(law)])
    held, truth = np.zeros(3), (factor - 1) * mean
    for batch in range(replicates // BATCH):
        rows = [draw(generator, (BATCH, n)), factor * draw(generator, (BATCH, n))]
        train, test = (resample(part, (batch, side)) for side, part in enumerate(rows))
        ends = np.quantile(test.means - train.means, [0.025, 0.975], axis=0)
        for i in range(BATCH):
            low, high = test.difference(train, i)
            noted = min(large_values(part[i]) for part in rows) < FEW
            held += low <= truth <= high, ends[0, i] <= truth <= ends[1, i], noted
    return list(held / (replicates // BATCH * BATCH))


def main() -> None:
    replicates = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print("| losses | test part | n of each | covered, % | percentiles, % | noted, % | |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for law in LAWS:
        for factor, text in ((1.0, "same law"), (2.0, "twice as large")):
            for n in SIZES:
                share, plain, noted = (100 * one for one in covered(law, n, factor, replicates))
                verdict = "" if 93.5 <= share <= 96.5 else "MISSED"
                cells = (law, text, n, f"{share:.1f}", f"{plain:.1f}", f"{noted:.0f}", verdict)
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
