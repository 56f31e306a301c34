"""Theorem 16 against depth: the harmonic mean of sqrt(r_stb) of nets of L = 2 .. 50 t-layers.

    python scripts/depth_study.py [FOLDER]

Trains each depth on MNIST 3 vs 7 and writes FOLDER.md (default docs/reproduction/depth.md) with
FOLDER/records.json, table.csv and depth.png. Depths with a record of these settings are not
trained again.

Nets without residuals and biases lose the signal with depth. They start "looks linear" (Balduzzi
et al. 2017): mirrored orthogonal faces, W = [[A, -A], [-A, A]], through which ReLU is the
identity on pairs, so that the net is linear and every layer keeps the size of its input.
"""

import csv
import io
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.drawing import BLUE, GREEN, GREY, ORANGE
from tnn_robust.base.files import write_bytes, write_json
from tnn_robust.base.losses import is_separable, log_risk_and_weights
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.spec import DataSpec
from tnn_robust.models.network import TNN, Architecture, layer_norms, new_model, weight_norm
from tnn_robust.reporting.figures import save_figure
from tnn_robust.theory.implicit_bias import Teacher, rhs_16, sharper_16, teacher_free_16
from tnn_robust.training.full_batch import perturbed_sample, weighted_gradient
from tnn_robust.training.objectives import Perturb
from tnn_robust.training.tracker import Tracker


@dataclass(frozen=True)
class Study:
    """eps: of l2-FGM; teacher: width of the J = 2 net g, trained like the others; start: mean
    |f| at the initial weights; margin: q_min is held there once reached; share: L + 1 times the
    first step over ||W||; path: the sum of those shares over a training."""

    dataset: str = "mnist"
    classes: tuple[str, str] = ("3", "7")
    examples: int = 200
    depths: tuple[int, ...] = (2, 3, 5, 10, 20, 50)
    width: int = 28
    teacher: int = 2
    eps: float = 1.0
    start: float = 0.01
    margin: float = 100.0
    share: float = 0.2
    path: float = 2.0
    least_steps: int = 500
    seed: int = 0
    loss: str = "logistic"

    def steps(self, layers: int) -> int:
        """The step falls linearly to 0, so that they sum to `path`, or to more where L is small."""
        return max(self.least_steps, math.ceil(2 * self.path * (layers + 1) / self.share))


@torch.no_grad()
def looks_linear(model: TNN, generator: torch.Generator) -> None:
    """Orthogonal faces in mirrored pairs, and a head that sees the difference of each pair."""
    for place, layer in enumerate(model.t_layers):
        faces = layer.faces()
        k, rows, columns = faces.shape
        half = torch.randn(k, rows // 2, columns // (2 if place else 1), generator=generator)
        left, _, right = torch.linalg.svd(half.to(faces), full_matrices=False)
        upper = torch.cat((left @ right, -left @ right), 2) if place else left @ right
        faces.copy_(torch.cat((upper, -upper), 1))
    half = model.head[:, : model.head.shape[1] // 2]
    model.head.copy_(torch.cat((half, -half), 1))


def new_net(study: Study, widths: tuple[int, ...], x: Tensor) -> TNN:
    """A net that looks linear, all weights scaled so that mean |f(x)| is `study.start`."""
    shape = Architecture(x.shape[1], x.shape[2], widths, (None,) * len(widths), 1, "dct")
    model = new_model(shape, study.seed, dtype=torch.float64)
    looks_linear(model, torch.Generator().manual_seed(study.seed))
    with torch.no_grad():
        _scale(model, study.start / float(model(x).abs().mean()))
    return model


def _scale(model: TNN, factor: float) -> None:
    """Multiply f by this: every weight by its (L + 1)-th root."""
    parameters = list(model.parameters())
    with torch.no_grad():
        for p in parameters:
            p.mul_(factor ** (1 / len(parameters)))


def descend(
    study: Study, model: TNN, x: Tensor, y: Tensor, perturb: Perturb
) -> Iterator[tuple[int, float, float]]:
    """Steps along -grad log L, the perturbations held fixed in it; yields step, log L, q_min.

    A step's length is a share of ||W||, which falls to 0: the risk of deep nets changes too
    fast for any step in the flow's own time. Once q_min has reached `margin` all weights are
    scaled back to it after every step, which changes no direction: what falls from then on is
    ||W|| at a given margin, as in problem (15).
    """
    streams, layers = Streams(study.seed, torch.arange(len(y))), len(model.layers)
    parameters, steps = list(model.parameters()), study.steps(layers)
    for step in range(steps + 1):
        sample = perturbed_sample(model, x, y, perturb, streams)
        least = float(sample.q.min())
        log_risk, weights = log_risk_and_weights(sample.q, study.loss)
        yield step, log_risk, least
        gradient = weighted_gradient(model, sample.x, y, weights)
        length = math.sqrt(sum(float(g.square().sum()) for g in gradient))
        share = study.share / (layers + 1) * (1 - step / steps)
        with torch.no_grad():
            for p, g in zip(parameters, gradient, strict=True):
                p.sub_(g, alpha=share * float(weight_norm(model)) / length)
        if least > study.margin:
            _scale(model, study.margin / least)


def teacher_norm(study: Study, x: Tensor, y: Tensor, perturb: Perturb) -> float | None:
    """B of a trained net g of J = 2: equal norms, margin 1 on its own perturbed examples, data
    divided by a norm that one of them cannot exceed. None where it does not separate them."""
    model = new_net(study, (study.teacher,) * 2, x)
    *_, (_, _, least) = descend(study, model, x, y, perturb)
    if least <= 0:
        return None
    unit = float(x.flatten(1).norm(dim=1).min()) + study.eps
    norms = layer_norms(model).detach().log().sum()
    return math.exp(
        (float(norms) + math.log(unit) - math.log(least)) / len(list(model.parameters()))
    )


def train(study: Study, layers: int, x: Tensor, y: Tensor, perturb: Perturb) -> dict:
    """One depth: what the tracker says of the first and the last weights."""
    began, model = time.monotonic(), new_net(study, (study.width,) * layers, x)
    tracker = Tracker(
        model, x, y, perturb=perturb, seed=study.seed, loss=study.loss, n_train=len(y)
    )
    first, separated, step = tracker.record(0), None, 0
    for step, log_risk, _ in descend(study, model, x, y, perturb):
        if separated is None and is_separable(log_risk, len(y), study.loss):
            separated = step
        if step % 50 == 0:
            sys.stderr.write(f"L = {layers}: step {step}, log-risk {log_risk:.4g}\n")
    last = tracker.record(step)
    return {
        "layers": layers,
        "steps": step,
        "separated_at": separated,
        "seconds": round(time.monotonic() - began),
        "first": first.to_json(),
        "last": last.to_json(),
    }


def right_side(study: Study, row: dict, norm: float | None) -> float | None:
    """Of (16) for the trained teacher; None where it is infinite, or there is no teacher."""
    if norm is None:
        return None
    channels = len(row["last"]["face_stable_ranks"][0])  # dct: a face each
    teacher = Teacher(2, study.teacher, norm)
    value = rhs_16(layers=row["layers"], channels=channels, teacher=teacher)
    return value if math.isfinite(value) else None


def sharper(study: Study, row: dict, norm: float | None) -> float | None:
    """The same without its slack."""
    if norm is None:
        return None
    channels = len(row["last"]["face_stable_ranks"][0])
    return sharper_16(
        layers=row["layers"], channels=channels, teacher=Teacher(2, study.teacher, norm)
    )


def teacher_free(row: dict, reach: float) -> float | None:
    """What the mean cannot exceed at these weights, by the example of least margin, whose norm is
    at most `reach`; None where it is not separated."""
    last = row["last"]
    return teacher_free_16(last["layer_norms"], last["head_norm"], [reach], [last["q_min"]])


def _verdict(row: dict, right: float | None) -> str:
    last = row["last"]
    if not last["separable"]:
        return "failed to separate"
    if right is None or right >= last["largest_harmonic_mean"]:
        return "(16) says nothing"
    side = "below" if last["harmonic_mean"] <= right else "ABOVE"
    return side if all(last["premises"].values()) else f"{side}, a premise fails"


HEAD = (
    "L",
    "separated at step",
    "steps",
    "log-risk",
    "mean at first",
    "mean at the end",
    "least, greatest sqrt(r_stb)",
    "right side of (16)",
    "without its slack",
    "teacher-free, at most",
    "largest possible",
    "premises that fail",
    "1 - cos(W, -grad L)",
    "stationarity",
    "",
)


def table(
    study: Study, found: list[dict], norm: float | None, reach: float
) -> list[tuple[str, ...]]:
    rows = []
    for row in found:
        first, last = row["first"], row["last"]
        right = right_side(study, row, norm)
        roots = [math.sqrt(r) for r in last["stable_ranks"]]
        failed = [name for name, met in last["premises"].items() if not met]
        rest = last["kkt"]["stationarity"]
        rows.append(
            (
                str(row["layers"]),
                "never" if row["separated_at"] is None else str(row["separated_at"]),
                str(row["steps"]),
                f"{last['log_risk']:.4g}",
                f"{first['harmonic_mean']:.2f}",
                f"{last['harmonic_mean']:.2f}",
                f"{min(roots):.2f}, {max(roots):.2f}",
                "infinite" if right is None else f"{right:.4g}",
                _number(sharper(study, row, norm)),
                _number(teacher_free(row, reach)),
                f"{last['largest_harmonic_mean']:.2f}",
                ", ".join(failed) or "none",
                f"{last['kkt']['alignment']:.2f}",
                "-" if rest is None else f"{rest:.2f}",
                _verdict(row, right),
            )
        )
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def draw(figure, study: Study, found: list[dict], norm: float | None, reach: float) -> None:
    axes, depths = figure.subplots(), [r["layers"] for r in found]
    for name, style, colour, label in (
        ("first", ":", GREY, "at the initial weights"),
        ("last", "o-", BLUE, "after training"),
    ):
        axes.plot(
            depths, [r[name]["harmonic_mean"] for r in found], style, color=colour, label=label
        )
    failed = [r for r in found if not r["last"]["separable"]]
    if failed:
        at = [r["layers"] for r in failed], [r["last"]["harmonic_mean"] for r in failed]
        axes.plot(*at, "x", color=ORANGE, markersize=11, label="failed to separate")
    most = found[-1]["last"]["largest_harmonic_mean"]
    rights = [(r["layers"], right_side(study, r, norm)) for r in found]
    # That of shallow nets is infinite or far above what is possible.
    known = [(layers, right) for layers, right in rights if right is not None and right < most]
    label = f"right side of (16){', above the largest for other L' * (len(known) < len(rights))}"
    if known:
        axes.plot(*zip(*known, strict=True), "^-.", color=GREEN, label=label)
    free = [(r["layers"], teacher_free(r, reach)) for r in found]
    free = [(layers, value) for layers, value in free if value is not None]
    axes.plot(*zip(*free, strict=True), "v--", color=ORANGE, label="teacher-free bound, at most")
    axes.axhline(1.0, color=GREY, linewidth=0.8)
    axes.axhline(most, color=GREY, linewidth=1.0, label="largest possible")
    axes.set_ylim(0, 1.5 * most)
    axes.set_xscale("log")
    axes.set_xticks(depths, [str(d) for d in depths])
    axes.minorticks_off()
    axes.set_xlabel("t-product layers L")
    axes.set_title("Harmonic mean of sqrt(stable rank) against depth")
    axes.legend()


def page(study: Study, found: list[dict], norm: float | None, reach: float) -> str:
    """The Markdown page: the command, the scale, the table and the figure."""
    rows = [HEAD, ("---",) * len(HEAD), *table(study, found, norm, reach)]
    failed = [str(r["layers"]) for r in found if not r["last"]["separable"]]
    fate = f"Depths that failed to separate: {', '.join(failed)}." if failed else (
        "Every depth separated all perturbed examples (Assumption 14 is met)."
    )  # fmt: skip
    if missing := sorted({*study.depths, *Study.depths} - {r["layers"] for r in found}):
        fate += f" Not run yet: L = {', '.join(map(str, missing))}."
    teacher = "No teacher of these sizes separated them, so (16) has no right side." if (
        norm is None
    ) else f"It gets margin 1 on its own perturbed examples with B = {norm:.3f}."  # fmt: skip
    seconds = sum(r["seconds"] for r in found)
    return f"""# Theorem 16 against depth

Written by `python scripts/depth_study.py`, together with [the table](depth/table.csv) and
[the records](depth/records.json); {seconds} s of training in float64.

- Data: {study.dataset} {study.classes[0]} vs {study.classes[1]}, {study.examples} training
  examples, 28 features x 28 channels, dct; l2-FGM of eps {study.eps:g}; {study.loss} loss; seed
  {study.seed}.
- Nets: L dense t-layers of width {study.width}, no residuals, no biases. At first each face is
  orthogonal in mirrored pairs, through which ReLU is the identity, all weights scaled so that
  mean |f| is {study.start:g}.
- Schedule: full-batch steps along -grad log L, each {study.share:g} / (L + 1) of ||W|| at first
  and falling linearly to 0; at least {study.least_steps} of them, more for deep nets. From a least
  margin of {study.margin:g} on the weights are scaled back to it after every step: what falls from
  then on is ||W|| at that margin, as in problem (15).
- Teacher of the theorem: J = 2, m_J = {study.teacher}, trained in the same way. {teacher}

{fate}

![Harmonic mean against depth](depth/depth.png)

{chr(10).join("| " + " | ".join(row) + " |" for row in rows)}

The mean is the harmonic mean of sqrt(r_stb) over the layers, the left side of (16). "Below" is
said only where the right side is less than any weights of these shapes could reach, and "a premise
fails" where one that can be checked does: L >> J and d_l >> m_J are read as ten times. Nobody can
check that weights are a global optimum of (15). How far they are from a KKT point of it is in
the last two numbers: the angle to the gradient of the risk, and the distance of W from the cone
of the gradients of the margins; both are 0 at one.

"Without its slack" is [B^(J+1) (c m_J)^((L-J)/2)]^(1/L), which the same premises give;
"teacher-free" is (||x + delta|| ||w|| prod ||W_l||_F / q)^(1/L) at the example of least margin,
which holds at any weights ([theory-notes.md](../theory-notes.md)).
"""


def main(folder: Path, study: Study = Study()) -> None:  # noqa: B008
    part = load_dataset(
        DataSpec(dataset=study.dataset, classes=study.classes, n_train=study.examples)
    ).train
    x, y = part.x.double(), part.y
    attack = named_attack("fgm", Eps(f"{study.eps:g}", study.eps), loss="margin")
    perturb = make_perturb(attack, keep_best=False)
    kept = folder / "records.json"
    settings = json.loads(json.dumps({**asdict(study), "depths": None}))
    held = json.loads(kept.read_text()) if kept.is_file() else {}
    if held.get("settings") != settings:
        held = {"settings": settings, "teacher": teacher_norm(study, x, y, perturb), "depths": []}
    folder.mkdir(parents=True, exist_ok=True)
    for layers in study.depths:
        if layers not in [row["layers"] for row in held["depths"]]:
            held["depths"].append(train(study, layers, x, y, perturb))
            write_json(kept, held)
    found, norm = sorted(held["depths"], key=lambda row: row["layers"]), held["teacher"]
    text = io.StringIO()
    # l2-FGM moves a point by eps at most.
    reach = float(x.flatten(1).norm(dim=1).max()) + study.eps
    csv.writer(text).writerows([HEAD, *table(study, found, norm, reach)])
    write_bytes(folder / "table.csv", text.getvalue().encode())
    save_figure(folder / "depth.png", (7.0, 4.4), lambda one: draw(one, study, found, norm, reach))
    write_bytes(folder.with_suffix(".md"), page(study, found, norm, reach).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reproduction/depth"))
