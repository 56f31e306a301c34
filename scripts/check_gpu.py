"""Whether a GPU says what the CPU says: one small network, the core of every command.

    python scripts/check_gpu.py [--smoke] [training attacks reports curves rest]

Prints a line a check and exits with 1 where one fails. Training, attacks in every norm, suites,
curve, minimal perturbations, compression, bounds, radii and certificates of digits, which need
no download; named parts are run alone. --smoke compares the CPU with itself, to see that the
script runs.
"""

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import tnn_robust as tr
from tnn_robust.attacks.registry import ATTACKS
from tnn_robust.base.choices import NORMS
from tnn_robust.base.errors import InputError
from tnn_robust.certification.lipschitz import l2_certified_radii

SMOKE = "--smoke" in sys.argv[1:]
DEVICE = "cpu" if SMOKE else "cuda"
N, EPS = (16 if SMOKE else 200), {"linf": 0.08, "l2": 0.5, "l1": 2.0}
OTHER_EPS = 0.5  # of the norms of a matrix
STEPS = 5 if SMOKE else 20
# Rounding differs, so a point at the edge may fall on one device alone.
MAY_DIFFER = 1 + N // 100

Check = tuple[str, bool, str]


def on(model: tr.TNN) -> tr.TNN:
    return copy.deepcopy(model).to(DEVICE)


def same(name: str, one: Tensor, other: Tensor, tolerance: float) -> Check:
    one, other = one.double().cpu(), other.double().cpu()
    error = float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
    return name, error <= tolerance, f"relative error {error:.2g}, at most {tolerance:g}"


def same_count(name: str, one: int, other: int) -> Check:
    return name, abs(one - other) <= MAY_DIFFER, f"{one} on the CPU, {other} on {DEVICE}, of {N}"


def training(data: tr.Dataset) -> Iterator[Check]:
    fgsm = tr.attacks.FGSM("linf", 0.08)
    for name, attack in (("clean", None), ("fgsm", fgsm)):
        found = []
        for device in ("cpu", DEVICE):
            model = tr.TNN.for_data(data, layers=2, width=16, seed=0).to(device)
            tr.train(model, data, attack=attack, epochs=1, batch_size=64, seed=0)
            found.append(model.head.detach())
        yield same(f"training, {name}: head after an epoch", *found, tolerance=1e-3)


def attacks(model: tr.TNN, x: Tensor, y: Tensor) -> Iterator[Check]:
    theirs = on(model)
    for name, kind in ATTACKS.items():
        for norm in kind.norms or NORMS:
            given = {"steps": STEPS} if "steps" in kind.takes else {}
            try:
                attack = kind(norm, EPS.get(norm, OTHER_EPS), **given)
                right = attack(model, x, y, seed=0)
            except InputError:  # not made for this norm, or for this network
                continue
            began = time.perf_counter()
            left = attack(theirs, x.to(DEVICE), y.to(DEVICE), seed=0)
            seconds = time.perf_counter() - began
            counts = [_correct(model, one.cpu(), y) for one in (right, left)]
            label, fits, text = same_count(f"{name}, {norm}", *counts)
            yield label, fits, f"{text}; {seconds:.2f} s"


def _correct(model: tr.TNN, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((model(x).argmax(1) == y).sum())


def reports(model: tr.TNN, data: tr.Dataset) -> Iterator[Check]:
    theirs = on(model)
    for suite in ("quick",) if SMOKE else ("quick", "standard"):
        for norm, eps in EPS.items():
            found = []
            for one in (model, theirs):
                began = time.perf_counter()
                threat = tr.Threat(norm, eps)
                report = tr.evaluate(one, data, suite=suite, threat=threat, n=N, checks=not SMOKE)
                found.append((report, time.perf_counter() - began))
            (right, slow), (left, fast) = found
            for part in ("train", "test"):
                counts = [getattr(r.worst_case, part).correct for r in (right, left)]
                name, fits, text = same_count(f"{suite} suite, {norm}, {part}", *counts)
                yield name, fits, f"{text}; {slow:.1f} s and {fast:.1f} s"
            verdicts = [{check.name: check.verdict for check in r.checks} for r in (right, left)]
            differ = [name for name in verdicts[0] if verdicts[0][name] != verdicts[1][name]]
            yield f"{suite} suite, {norm}, checks", not differ, f"differ: {differ or 'none'}"


def curves(model: tr.TNN, data: tr.Dataset) -> Iterator[Check]:
    theirs, sizes = on(model), [0, 0.04, 0.08]
    found = [
        tr.curve(one, data, eps=sizes, n=N, attack=tr.attacks.PGD("linf", 0.1, steps=STEPS))
        for one in (model, theirs)
    ]
    for point, other in zip(found[0].points, found[1].points, strict=True):
        yield same_count(f"curve, eps {point.eps:g}", point.test.correct, other.test.correct)
    smallest = [tr.minimal(one, data, norm="l2", n=N) for one in (model, theirs)]
    medians = [torch.tensor([part.median for part in one]) for one in smallest]
    yield same("minimal perturbations, l2, medians", *medians, tolerance=0.02)


def rest(model: tr.TNN, data: tr.Dataset, x: Tensor, y: Tensor) -> Iterator[Check]:
    theirs, there = on(model), (x.to(DEVICE), y.to(DEVICE))
    small = [tr.compress(one, rank=2).model for one in (model, theirs)]
    with torch.no_grad():
        yield same("compressed, scores", small[0](x), small[1](there[0]), tolerance=1e-4)
    bounds = [tr.bound(one, data, n=N) for one in (model, theirs)]
    values = [
        torch.tensor([row.paper.log_value for row in found.rows if row.paper.log_value is not None])
        for found in bounds
    ]
    yield same("bounds", *values, tolerance=1e-4)
    radii = l2_certified_radii(model, x, y), l2_certified_radii(theirs, *there)
    yield same("Lipschitz radii", *radii, tolerance=1e-4)
    for norm, eps in EPS.items():
        threat = tr.Threat(norm, eps / 8)
        one, other = (
            tr.certify(m, part, threat, method="alpha-crown")
            for m, part in ((model, (x, y)), (theirs, there))
        )
        yield same_count(f"certified, {norm}", one.certified, other.certified)


def main() -> int:
    warnings.simplefilter("ignore")
    data = tr.load_data("digits")
    model = tr.TNN.for_data(data, layers=2, width=16, seed=0)
    tr.train(model, data, attack=tr.attacks.FGSM("linf", 0.08), epochs=2 if SMOKE else 10, seed=0)
    x, y = data.test.x[:N], data.test.y[:N]
    parts: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("training", lambda: training(data)),
        ("attacks", lambda: attacks(model, x, y)),
        ("reports", lambda: reports(model, data)),
        ("curves", lambda: curves(model, data)),
        ("rest", lambda: rest(model, data, x, y)),
    ]
    where = "cpu" if SMOKE else torch.cuda.get_device_name()
    print(f"{where}, torch {torch.__version__}")
    failed, wanted = 0, [word for word in sys.argv[1:] if not word.startswith("-")]
    for title, checks in parts:
        if wanted and title not in wanted:
            continue
        try:
            for name, fits, text in checks():
                failed += not fits
                print(f"{'same' if fits else 'DIFFERS':8}{name}: {text}", flush=True)
        except Exception as error:  # the other parts are looked at all the same
            failed += 1
            print(f"FAILED  {title}: {type(error).__name__}: {error}", flush=True)
    print(f"{failed} checks failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
