"""Robust training objectives against PGD training at equal epochs, paired over test points.

Trains networks of several seeds side by side by each method, attacks the same test points of
each with the quick suite, and prints a table in Markdown with, for each method, the
difference in attacked accuracy to PGD training and its 95 % interval: examples are drawn with
replacement, the same for both and for all seeds (10 000 times). beta and gamma are the
published defaults: nothing was chosen by test points.

    python scripts/compare_training.py [OUT] [--smoke]

OUT (default compare-training.json) keeps every network's verdicts as they come, so that an
interrupted comparison goes on where it was. --smoke: tiny, to see that it runs.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

import tnn_robust as tr
from tnn_robust.attacks.suite import suite_attacks
from tnn_robust.base.progress import drain
from tnn_robust.data.spec import DataSpec
from tnn_robust.training.run import TrainRequest
from tnn_robust.training.schedules import Schedule
from tnn_robust.training.seeds import open_seeds, train_seeds
from tnn_robust.training.settings import TrainSettings

EPS, N_TEST, DRAWS = 0.1, 1000, 10_000
SEEDS = (0, 1, 2)
SETTINGS = {"epochs": 8, "batch_size": 100, "lr": 3e-3, "schedule": Schedule("cosine")}
METHODS = {
    "PGD": {},
    "TRADES, beta 6": {"objective": tr.training.TRADES(6.0)},
    "AWP, gamma 0.005": {"awp": 0.005},
}
DATA = {"dataset": "mnist", "n_train": 10_000}
if "--smoke" in sys.argv[1:]:
    DATA, N_TEST, SEEDS = {"dataset": "digits", "n_train": 100}, 20, (0, 1)
    SETTINGS["epochs"] = 1


def trained(name: str, folder: Path) -> float:
    """Train the networks of a method into FOLDER/seed-I; seconds."""
    began = time.perf_counter()
    request = TrainRequest(
        data=DataSpec(**DATA),
        out=folder,
        widths=(28, 28),
        ranks=None,
        transform="dct",
        settings=TrainSettings(**SETTINGS, **METHODS[name]),
        attack=tr.attacks.PGD("linf", EPS, steps=5, loss="cross-entropy"),
        device="cpu",
        resume=(folder / f"seed-{SEEDS[0]}").exists(),
    )
    drain(train_seeds(folder, open_seeds(request, SEEDS)))
    return time.perf_counter() - began


def verdicts(run: Path, data: tr.Dataset) -> dict[str, list[int]]:
    """Of each test point 1 where it is right clean, and where it stands the quick suite."""
    model, threat = tr.load_model(run), tr.Threat("linf", EPS)
    x, y = data.test.x[:N_TEST], data.test.y[:N_TEST]
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    standing = clean.clone()
    for attack in suite_attacks("quick", threat, scores=data.n_classes, entries=data.d * data.c):
        rows = standing.nonzero()[:, 0]
        if len(rows):
            with torch.no_grad():
                found = model(attack(model, x[rows], y[rows], seed=0)).argmax(1)
            standing[rows] = found == y[rows]
    return {"clean": clean.int().tolist(), "attacked": standing.int().tolist()}


def difference(own: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds and points of own - other, (seeds, points), and its interval over points."""
    each = (own - other).mean(0)
    draws = np.random.default_rng(0).integers(0, len(each), (DRAWS, len(each)))
    low, high = np.quantile(each[draws].mean(1), (0.025, 0.975))
    return float(each.mean()), float(low), float(high)


def table(found: dict) -> str:
    """The comparison in Markdown; accuracies in per cent."""
    lines = [
        "| method | clean | attacked | minus PGD, 95 % over points | each seed | s a network |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    points = {
        name: {k: np.array([v[k] for v in one["verdicts"].values()]) for k in ("clean", "attacked")}
        for name, one in found.items()
    }
    for name, own in points.items():
        clean, attacked = (100 * own[k].mean() for k in ("clean", "attacked"))
        line = f"| {name} | {clean:.1f} | {attacked:.1f} |"
        if name == "PGD":
            line += " | |"
        else:
            other = points["PGD"]["attacked"]
            mean, low, high = (100 * v for v in difference(own["attacked"], other))
            each = 100 * (own["attacked"] - other).mean(1)
            shown = ", ".join(f"{value:+.1f}" for value in each)
            line += f" {mean:+.2f} ({low:+.2f} to {high:+.2f}) | {shown} |"
        lines.append(f"{line} {found[name]['seconds'] / len(SEEDS):.0f} |")
    return "\n".join(lines)


def main() -> None:
    out = Path(next((a for a in sys.argv[1:] if not a.startswith("-")), "compare-training.json"))
    found = json.loads(out.read_text()) if out.exists() else {}
    data = tr.load_data(DATA["dataset"], n_train=DATA["n_train"])
    for name in METHODS:
        own = found.setdefault(name, {"seconds": 0.0, "verdicts": {}})
        folder = out.with_suffix("") / name.replace(" ", "-").replace(",", "")
        if len(own["verdicts"]) < len(SEEDS):
            own["seconds"] += trained(name, folder)
        for seed in SEEDS:
            if str(seed) not in own["verdicts"]:
                own["verdicts"][str(seed)] = verdicts(folder / f"seed-{seed}", data)
                out.write_text(json.dumps(found))
        print(f"{name}: done", file=sys.stderr, flush=True)
    settings = {**SETTINGS, "schedule": str(SETTINGS["schedule"])}
    print(f"{DATA}, l_inf {EPS}, {settings}, {len(SEEDS)} seeds, {N_TEST} test points\n")
    print(table(found))


if __name__ == "__main__":
    main()
