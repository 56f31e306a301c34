"""Time to the same verdict as foolbox, torchattacks, ART and pyautoattack.

A 3-layer t-NN of width 128, trained on MNIST 3 vs 7 (kept in runs/bench-model), is
attacked by PGD-40 x 5 restarts with one step size for all. The tools run in turn in
one process, on the same blocks of examples; times are medians. Every tool's points
are checked by our own verification: its robust accuracy is what that finds.

    python scripts/bench_peers.py [--quick]
"""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.balls import ball_of
from tnn_robust.attacks.points import verify
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.blocks import compute_block
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import TNN

EPS, STEPS, RESTARTS, WIDTH, LAYERS = Eps("20/255", 20 / 255), 40, 5, 128, 3
STEP = 2.5 * EPS.value / STEPS
ROUNDS = 3
TARGET = 1 / 4
MODEL, OUTPUT = Path("runs/bench-model"), Path("bench_peers.json")

Find = Callable[[Tensor, Tensor], Tensor]


class TwoLogits(nn.Module):
    """(n, 1, d, c) images to the scores (0, f): peers fail on a single score."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        score = self.model(images[:, 0])
        return torch.cat([torch.zeros_like(score), score], 1)


def settings(**options) -> Attack:
    return named_attack("pgd", EPS, steps=STEPS, restarts=RESTARTS, **options)


def ours(model: TNN, chosen: Attack) -> Find:
    perturb = make_perturb(chosen, transform=model.transform)
    return lambda x, y: perturb(model, x, y, Streams(0, torch.arange(len(x)))).x


def foolbox(model: nn.Module) -> Attack:
    import foolbox as fb

    wrapped = fb.PyTorchModel(TwoLogits(model).eval(), bounds=(0, 1))
    pgd = fb.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS).repeat(RESTARTS)
    return lambda x, y: pgd(wrapped, x[:, None].contiguous(), y, epsilons=EPS.value)[1][:, 0]


def worst_of_restarts(model: nn.Module, attack: Attack) -> Attack:
    """A tool without restarts, run as often; a point that fools the model is kept."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        best = x
        for _ in range(RESTARTS):
            found = attack(x, y)
            with torch.no_grad():
                fooled = margin(model(best), y) <= 0
            best = torch.where(fooled[:, None, None], best, found)
        return best

    return run


def torchattacks(model: nn.Module) -> Attack:
    import torchattacks as ta

    pgd = ta.PGD(TwoLogits(model).eval(), eps=EPS.value, alpha=STEP, steps=STEPS)
    return worst_of_restarts(model, lambda x, y: pgd(x[:, None], y)[:, 0].detach())


def art(model: nn.Module) -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(
        TwoLogits(model).eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=2,
        clip_values=(0, 1),
        device_type="cpu",
    )
    pgd = ProjectedGradientDescentPyTorch(
        wrapped,
        eps=EPS.value,
        eps_step=STEP,
        max_iter=STEPS,
        num_random_init=RESTARTS,
        batch_size=4096,
        verbose=False,
    )
    return lambda x, y: torch.from_numpy(pgd.generate(x[:, None].numpy(), y.numpy()))[:, 0]


def pyautoattack(model: nn.Module) -> Attack:
    """Its APGD, which chooses its own steps: of as many, with as many restarts."""
    from pyautoattack import AutoAttack

    tool = AutoAttack(
        TwoLogits(model).eval(), norm="Linf", eps=EPS.value, version="custom", device="cpu"
    )
    tool.attacks_to_run, tool.verbose = ["apgd-ce"], False
    tool.apgd.n_iter, tool.apgd.n_restarts = STEPS, RESTARTS
    return lambda x, y: tool.run_standard_evaluation(x[:, None].contiguous(), y)[0][:, 0]


PEERS = {"foolbox": foolbox, "torchattacks": torchattacks, "art": art, "pyautoattack": pyautoattack}


def trained() -> tuple[TNN, Part]:
    """The model, FGSM-trained in half a minute where it is not there yet, and its test part."""
    if not (MODEL / "model.safetensors").is_file():
        command = ["tnn-train", "--dataset", "mnist", "--classes", "3,7", "--layers", str(LAYERS)]
        command += ["--width", str(WIDTH), "--attack", "fgsm", "--eps", EPS.text]
        command += ["--epochs", "3", "--out", str(MODEL)]
        from tnn_robust_cli.train import main

        main(command[1:], standalone_mode=False)
    checkpoint = load_checkpoint(MODEL, torch.device("cpu"))
    dataset, _ = load_run_data(checkpoint)
    return checkpoint.model, dataset.test


def whole(attack: Attack, model: TNN, part: Part, name: str) -> tuple[float, float]:
    """Seconds, and the robust accuracy in percent of points verified by us."""
    block, seconds, standing = compute_block(model, torch.device("cpu")), 0.0, 0
    for first in range(0, len(part.y), block):
        x, y = part.x[first : first + block].clone(), part.y[first : first + block].clone()
        begin = time.perf_counter()
        found = attack(x, y)
        seconds += time.perf_counter() - begin
        # Peers project in float32 on eps rounded down and up: 1e-5 of it is theirs to keep.
        rows = torch.arange(first, first + len(y))
        verify(x, found, ball=ball_of("linf"), eps=EPS.value * (1 + 1e-5), name=name, indices=rows)
        with torch.no_grad():
            standing += int(((margin(model(found), y) > 0) & (margin(model(x), y) > 0)).sum())
    return seconds, 100 * standing / len(part.y)


def contestants(model: TNN) -> dict[str, Attack]:
    """Ours and the peers that are installed; says which are not."""
    found = {
        "ours": ours(model, settings(stop_broken=True)),
        "ours, risk too": ours(model, settings()),
        # Chooses its steps; from one start it must come to a verdict as low as five of PGD.
        "ours, apgd x 1": ours(model, named_attack("apgd", EPS, steps=STEPS)),
    }
    for name, make in PEERS.items():
        try:
            found[name] = make(model)
        except ImportError as error:
            print(f"{name} is not measured: {error} (make bench-peers installs the peers)")
    return found


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    model, part = trained()
    part = Part(part.x[:256], part.y[:256]) if quick else part
    tools = contestants(model)
    times: dict[str, list[float]] = {name: [] for name in tools}
    accuracy = dict.fromkeys(tools, 100.0)
    for _ in range(1 if quick else ROUNDS):
        for name, attack in tools.items():
            seconds, standing = whole(attack, model, part, name)
            times[name].append(seconds)
            accuracy[name] = min(accuracy[name], standing)
    report(times, accuracy, len(part.y))


def report(times: dict[str, list[float]], accuracy: dict[str, float], n: int) -> None:
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {n} points, "
        f"linf {EPS.text}, PGD-{STEPS} x {RESTARTS}, step {STEP:.4g}"
    )
    print(f"{'':>16} {'s':>8} {'spread':>17} {'robust %':>9} {'ours / it':>9}")
    for name, seconds in medians.items():
        spread = f"{min(times[name]):.2f}-{max(times[name]):.2f}"
        ratio = medians["ours"] / seconds
        print(f"{name:>16} {seconds:8.2f} {spread:>17} {accuracy[name]:9.2f} {ratio:9.2f}")
    peers = {name: medians[name] for name in PEERS if name in medians}
    row = {"seconds": times, "robust_percent": accuracy, "n": n, "target": TARGET}
    if peers:
        fastest = min(peers, key=lambda name: peers[name])
        lowest = min(accuracy[name] for name in peers)
        as_low = [name for name in medians if name not in peers and accuracy[name] <= lowest]
        print(f"fastest peer {fastest}; PGD against PGD: {medians['ours'] / peers[fastest]:.2f}")
        best = min(as_low, key=lambda name: medians[name], default=None)
        ratio = None if best is None else medians[best] / peers[fastest]
        reached = ratio is not None and ratio <= TARGET
        words = "none of ours" if ratio is None else f"{best}, ratio {ratio:.2f}"
        print(
            f"time to a verdict as low: {words}, target {TARGET:.2f}: "
            f"{'reached' if reached else 'missed'}"
        )
        row |= {"fastest": fastest, "best": best, "ratio": ratio, "reached": reached}
    OUTPUT.write_text(json.dumps(row, indent=2) + "\n")


if __name__ == "__main__":
    main()
