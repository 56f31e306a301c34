"""What complete certification decides, against its targets; each line says reached or missed.

    python scripts/certify_targets.py [--m10 runs/m10] [--m37 runs/m37] [--mnist-fc DIR]
        [--data-dir DATA] [--threads 2] [--time-limit 60] [--later-limit SECONDS]

--m10: the ten-class network of `make validate-suite`, on the first 40 MNIST test points at
l_inf 0.01 and 0.02; --m37: MNIST 3 vs 7, on 100 points at l_inf 5/255, by
    tnn-train --dataset mnist --classes 3,7 --attack pgd --steps 7 --eps 0.1 --out runs/m37
--mnist-fc: a folder with mnist-net_256x2.onnx.gz, vnnlib/ and instances.csv of VNN-COMP 2022.
--time-limit: seconds a point of m10 at 0.02 and of m37; --later-limit: of the points after the
first eight, where another limit is wanted for them. Give one of the three, or more. Times are
by the clock, so that whatever else the machine does counts. Exits with 1 where one is missed.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

import tnn_robust as tr
from tnn_robust.base.losses import margin
from tnn_robust.certification.decide import decide
from tnn_robust.certification.onnx_network import read_onnx
from tnn_robust.certification.results import CERTIFIED, UNKNOWN, Certification
from tnn_robust.certification.vnnlib import read_vnnlib

FIRST = 8  # of which alpha-beta-CROWN decides THEIRS at 0.02 within 60 s a point
THEIRS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--m10", type=Path)
    parser.add_argument("--m37", type=Path)
    parser.add_argument("--mnist-fc", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--later-limit", type=float)
    asked = parser.parse_args()
    if asked.m10 is None and asked.m37 is None and asked.mnist_fc is None:
        parser.error("give --m10, --m37 or --mnist-fc")
    torch.set_num_threads(asked.threads)
    met: list[bool] = []
    if asked.m10 is not None:
        met += ten_classes(asked)
    if asked.m37 is not None:
        met += three_or_seven(asked)
    if asked.mnist_fc is not None:
        met += mnist_fc(asked.mnist_fc)
    sys.exit(not all(met))


def said(text: str, target: str, reached: bool) -> bool:
    print(f"{text} (target: {target}; {'reached' if reached else 'MISSED'})", flush=True)
    return reached


def certified(
    model: tr.TNN, x: Tensor, y: Tensor, eps: str, method: str, limit: float
) -> tuple[Certification, float]:
    """What is found, and its seconds."""
    started = time.perf_counter()
    attack = method == "complete"
    found = tr.certify(
        model, (x, y), tr.Threat("linf", eps), method=method, time_limit=limit, attack=attack
    )
    return found, time.perf_counter() - started


def ten_classes(asked: argparse.Namespace) -> list[bool]:
    model = tr.load_model(asked.m10)
    data = tr.load_data("mnist", data_dir=asked.data_dir)
    x, y = data.test.x[:40], data.test.y[:40]
    correct = margin(model(x), y) > 0
    crown, _ = certified(model, x, y, "0.01", "crown", 60)
    alpha, seconds = certified(model, x, y, "0.01", "alpha-crown", 60)
    all_of = int((alpha.verdicts[correct] == CERTIFIED).sum()) == int(correct.sum())
    met = [
        said(str(crown), "30 certified", crown.certified >= 30),
        said(
            f"{alpha}, of {int(correct.sum())} judged right; {seconds / 40:.2f} s a point",
            "all that are judged right, in at most 1 s a point",
            all_of and seconds <= 40,
        ),
    ]
    decided, later = [], asked.later_limit or asked.time_limit
    for rows, limit in ((slice(0, FIRST), asked.time_limit), (slice(FIRST, 40), later)):
        found, seconds = certified(model, x[rows], y[rows], "0.02", "complete", limit)
        decided += (found.verdicts != UNKNOWN).tolist()
        text = f"points {rows.start} to {rows.stop - 1}, {found}; at most {limit:g} s a point, "
        print(f"{text}{seconds:.0f} s in all", flush=True)
    first, whole = sum(decided[:FIRST]), sum(decided)
    met += [
        said(f"0.02, the first {FIRST}: {first} decided", f"more than {THEIRS}", first > THEIRS),
        said(f"0.02: {whole} of 40 decided", "20", whole >= 20),
    ]
    return met


def three_or_seven(asked: argparse.Namespace) -> list[bool]:
    model = tr.load_model(asked.m37)
    data = tr.load_data("mnist", classes=(3, 7), data_dir=asked.data_dir)
    x, y = data.test.x[:100], data.test.y[:100]
    found, seconds = certified(model, x, y, "5/255", "complete", asked.time_limit)
    count = found.certified + found.broken
    return [said(f"3 vs 7, {found}; {seconds:.0f} s in all", "90 decided", count >= 90)]


def mnist_fc(folder: Path) -> list[bool]:
    net = read_onnx(folder / "mnist-net_256x2.onnx.gz")
    met = []
    for eps in ("0.03", "0.05"):
        results, seconds = [], []
        for path in sorted((folder / "vnnlib").glob(f"prop_*_{eps}.vnnlib.gz")):
            wanted, started = read_vnnlib(path), time.perf_counter()
            results.append(decide(net.chain, wanted, run=net.run, time_limit=120).result)
            seconds.append(time.perf_counter() - started)
        counts = Counter(results)
        told = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        met.append(
            said(
                f"mnist_fc 256x2 at {eps}: {told}; median {statistics.median(seconds):.2f} s, "
                f"slowest {max(seconds):.2f} s",
                "15 decided, each within 120 s, most within 15 s",
                counts["sat"] + counts["unsat"] == 15 and statistics.median(seconds) <= 15,
            )
        )
    return met


if __name__ == "__main__":
    main()
