"""The quick suite against the standard one: robust accuracy and time, on freshly trained networks.

TNN_DATA=FOLDER python scripts/quick_suite.py [N [DATA ...]]: a table in Markdown, row by row; N
test examples of each network (200 by default); of these data sets alone, where some are named.

Targets: quick leaves at most TARGET points (or one example) more than standard, and takes at
most a quarter of its time. Seconds are of the processor, of the attacks on the test examples alone.
"""

import sys
import time
from dataclasses import replace

import torch

import tnn_robust as tr
from tnn_robust.attacks.suite import suite_attacks
from tnn_robust.base.progress import drain
from tnn_robust.base.threat import Threat
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.report import evaluate_steps
from tnn_robust.evaluation.subject import live_subject

TARGET, SHARE = 0.2, 0.25
ROUNDS = 2  # in turn; times are their sums
Case = tuple[str, tuple[str, ...] | None, Threat, bool]
# Data, classes, threat of the suites, whether trained against it.
CASES: tuple[Case, ...] = (
    ("digits", None, Threat("linf", 0.1), False),
    ("digits", None, Threat("l2", 0.5), True),
    ("mnist", ("3", "7"), Threat("linf", 20 / 255), False),
    ("mnist", ("3", "7"), Threat("l2", 1.5), True),
    ("mnist", None, Threat("linf", 0.05), True),
    ("mnist", None, Threat("l1", 3.0), False),
    ("fashion-mnist", None, Threat("linf", 8 / 255), True),
    ("fashion-mnist", None, Threat("l2", 0.5), False),
    ("cifar10", None, Threat("linf", 4 / 255), True),
    ("salinas-a", None, Threat("linf", 0.05), False),
    ("salinas-a", None, Threat("l1", 1.0), True),
)


def trained(data: Dataset, threat: Threat, robustly: bool) -> torch.nn.Module:
    """Three layers of width 28, against one step or three of PGD where robustly."""
    model = tr.TNN.for_data(data, layers=3, width=28, transform="dct", seed=0)
    steps = tr.attacks.PGD(threat.norm, threat.eps, steps=3, loss="cross-entropy")
    tr.train(model, data, attack=steps if robustly else None, epochs=8, batch_size=40, seed=0)
    return model


def attacked(model: torch.nn.Module, data: Dataset, suite: str, threat: Threat, n: int):
    """Test examples that stand, of how many, and the seconds that took."""
    # The training part is not compared: of it one example is enough.
    small = replace(data, train=Part(data.train.x[:1], data.train.y[:1]))
    subject = live_subject(model, data, None)
    attacks = suite_attacks(suite, threat, scores=subject.scores, entries=subject.entries)
    started = time.process_time()
    found = drain(evaluate_steps(subject, small, attacks, suite=suite, n=n, checks=False))
    return int(found.standing.sum()), len(found.standing), time.process_time() - started


def main() -> None:
    n, named = int(sys.argv[1]) if len(sys.argv) > 1 else 200, sys.argv[2:]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {n} test examples\n")
    print("| data | trained | attacked | quick | standard | quick, s | standard, s | share | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, classes, threat, robustly in CASES:
        if named and name not in named:
            continue
        data = tr.load_data(name, classes=classes, n_train=None if name == "digits" else 1500)
        model = trained(data, threat, robustly)
        attacked(model, data, "quick", threat, 2)  # what is loaded once is of neither
        (quick, count, fast), (standard, _, slow) = (
            attacked(model, data, suite, threat, n) for suite in ("quick", "standard")
        )
        for _ in range(ROUNDS - 1):
            fast += attacked(model, data, "quick", threat, n)[2]
            slow += attacked(model, data, "standard", threat, n)[2]
        left = quick - standard
        missed = ["accuracy"] * (left > 1 and 100 * left / count > TARGET)
        missed += ["time"] * (fast > SHARE * slow)
        what = name if classes is None else f"{name} {' vs '.join(classes)}"
        figures = (f"{100 * one / count:.1f} %" for one in (quick, standard))
        cells = (what, "robustly" if robustly else "plainly", f"{threat.norm} {threat.text}")
        cells += (*figures, f"{fast:.1f}", f"{slow:.1f}", f"{fast / slow:.2f}")
        print(f"| {' | '.join(cells)} | {'MISSED: ' + ', '.join(missed) if missed else ''} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
