"""Theorem 16 against depth: the harmonic mean of sqrt(r_stb) of nets of L = 2 .. 50 t-layers.

Gradient flow on MNIST 3 vs 7. Deep nets without residuals start "looks linear": mirrored
orthogonal faces, W = [[A, -A], [-A, A]], through which ReLU is the identity on pairs.
"""

import json
import sys
from pathlib import Path

import torch

from tnn_robust.attacks.registry import make_perturb
from tnn_robust.attacks.settings import Eps, attack_settings
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.spec import DataSpec
from tnn_robust.files import write_json
from tnn_robust.models.network import TNN, Architecture, new_model
from tnn_robust.reporting.figures import BLUE, GREEN, ORANGE, save_figure
from tnn_robust.theory.implicit_bias import Teacher
from tnn_robust.theory.tracker import Tracker
from tnn_robust.training.gradient_flow import FlowSettings, gradient_flow

DEPTHS = (2, 3, 5, 10, 20, 50)
WIDTH = 8  # even: neurons come in pairs
EXAMPLES = 60
ATTACK = attack_settings("fgm", Eps("0.1", 0.1))
STEPS, UNTIL = 400, -100.0
DATA = DataSpec(dataset="mnist", classes=("3", "7"), n_train=EXAMPLES)
TEACHER = Teacher(2, 2, 1.0)  # the right side rises with all three
SEED = 0


@torch.no_grad()
def looks_linear(model: TNN) -> None:
    """Orthogonal faces in mirrored pairs: f is linear at first, its scale kept by every layer."""
    generator = torch.Generator().manual_seed(SEED)
    for layer in model.t_layers:
        faces = layer.faces()
        k, rows, columns = faces.shape
        first = layer is next(model.t_layers)
        half = torch.randn(k, rows // 2, columns if first else columns // 2, generator=generator)
        left, _, right = torch.linalg.svd(half.to(faces), full_matrices=False)
        half = left @ right
        upper = half if first else torch.cat((half, -half), 2)
        faces.copy_(torch.cat((upper, -upper), 1))
    half = model.head[:, : model.head.shape[1] // 2]
    model.head.copy_(torch.cat((half, -half), 1))


def train(depth: int, x: torch.Tensor, y: torch.Tensor) -> dict:
    """One depth: its last record, and whether it separated the perturbed examples."""
    shape = Architecture(x.shape[1], x.shape[2], (WIDTH,) * depth, (None,) * depth, 1, "dct")
    model = new_model(shape, SEED, dtype=torch.float64)
    looks_linear(model)
    perturb = make_perturb(ATTACK, keep_best=False)
    settings = FlowSettings(steps=STEPS, until_log_risk=UNTIL)
    step = 0
    for record in gradient_flow(model, x, y, settings=settings, perturb=perturb, seed=SEED):
        step = record.step
    tracker = Tracker(
        model,
        x,
        y,
        perturb=perturb,
        seed=SEED,
        loss=settings.loss,
        n_train=len(y),
        teacher=TEACHER,
        least_norm=float(x.flatten(1).norm(dim=1).min()),
    )
    return {"depth": depth, **tracker.record(step).to_json()}


def draw(figure, found: list[dict]) -> None:
    axes, depths = figure.subplots(), [r["depth"] for r in found]
    axes.plot(depths, [r["harmonic_mean"] for r in found], "o-", color=BLUE, label="measured")
    failed = [r for r in found if not r["separable"]]
    axes.plot(
        [r["depth"] for r in failed],
        [r["harmonic_mean"] for r in failed],
        "x",
        color=ORANGE,
        markersize=11,
        label="failed to separate",
    )
    bounds = [(r["depth"], r["rhs_16"]) for r in found if r["rhs_16"] is not None]
    axes.plot(*zip(*bounds, strict=True), "^-.", color=GREEN, label="right side of (16)")
    axes.set_xscale("log")
    axes.set_xlabel(f"t-layers L (width {WIDTH}, {EXAMPLES} examples, teacher J = m_J = 2, B = 1)")
    axes.set_title("Harmonic mean of sqrt(stable rank)")
    axes.legend()


def main(out: Path) -> None:
    part = load_dataset(DATA).train
    found = []
    for depth in DEPTHS:
        found.append(train(depth, part.x.double(), part.y))
        last = found[-1]
        state = "separated" if last["separable"] else "FAILED to separate"
        sys.stderr.write(
            f"L = {depth}: {state}, log-risk {last['log_risk']:.4g}, mean "
            f"{last['harmonic_mean']:.4g}, right side {last['rhs_16']}\n"
        )
        write_json(out / "depth.json", json.loads(json.dumps(found)))
    save_figure(out / "depth.svg", (6.5, 4.2), lambda figure: draw(figure, found))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reproduction/depth"))
