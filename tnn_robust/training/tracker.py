"""The tracker: what Sec. 4.2 of arXiv 2303.00196 says of weights, measured as they train."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tnn_robust.algebra.ranks import entropy_rank_of, singular_values, stable_rank_of
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOG_LOSSES, is_separable, log_risk_and_weights
from tnn_robust.base.randomness import Streams
from tnn_robust.models.network import TNN
from tnn_robust.theory.implicit_bias import (
    LEAST_TEACHER,
    MUCH_GREATER,
    Teacher,
    largest_harmonic_mean,
    rhs_16,
    sharper_16,
    teacher_free_16,
)
from tnn_robust.training.full_batch import PerturbedSample, perturbed_sample, weighted_gradient
from tnn_robust.training.kkt import CANDIDATES, margin_gram, residuals
from tnn_robust.training.objectives import Perturb
from tnn_robust.training.trajectory_results import Residuals, TrajectoryRecord

_SLACK = 64  # rounding errors of the weights' dtype that a margin may fall by


class Tracker:
    """Makes a record of a network in training, which it leaves as it is.

    x (n, d, c), y (n,): the training examples it looks at, n of n_train, on the model's
    device; perturb: the training perturbation (None: clean), made with the noise of `seed`.
    past: the records of the steps before, of a run that is resumed.

    Raises InputError for a network of several scores or a loss outside Assumption 6.
    """

    def __init__(
        self,
        model: TNN,
        x: Tensor,
        y: Tensor,
        *,
        perturb: Perturb | None,
        seed: int,
        loss: str,
        n_train: int,
        teacher: Teacher = LEAST_TEACHER,
        past: Sequence[TrajectoryRecord] = (),
    ):
        if model.head.shape[0] != 1:
            raise InputError(
                f"the tracker needs two classes (one score), got {model.head.shape[0]}: "
                "choose two of the classes"
            )
        if loss not in LOG_LOSSES:
            raise InputError(f"the tracker needs {', '.join(LOG_LOSSES)}, got loss {loss}")
        self._model, self._x, self._y = model, x, y
        self._perturb, self._loss, self._n_train = perturb, loss, n_train
        self._streams = Streams(seed, torch.arange(len(y), device=y.device))
        self._teacher = teacher
        self._first = past[0].balances if past else None
        self._began = past[0].weight_norm ** 2 if past else None
        self._previous = past[-1] if past else None

    def record(self, step: int) -> TrajectoryRecord:
        """The network as it is after `step` steps."""
        model = self._model
        sample = perturbed_sample(model, self._x, self._y, self._perturb, self._streams)
        log_risk, weights = log_risk_and_weights(sample.q, self._loss)
        squares = _squared_norms(model)
        balances = tuple(a - b for a, b in zip(squares, squares[1:], strict=False))
        self._first = self._first or balances
        # From the number that is written, so that a resumed run has the same.
        size = math.sqrt(sum(squares)) ** 2
        self._began = size if self._began is None else self._began
        spectra = _layer_spectra(model)
        counts = model.transform.multiplicity.double().cpu()
        norms = tuple(float((counts @ s.square()).sum().sqrt()) for s in spectra)
        found = TrajectoryRecord(
            step=step,
            loss=self._loss,
            n=len(self._y),
            n_train=self._n_train,
            degree=len(squares),
            log_risk=log_risk,
            q_min=float(sample.q.min()),
            correct=int((sample.q > 0).sum()),
            separable=is_separable(log_risk, len(self._y), self._loss),
            weight_norm=math.sqrt(sum(squares)),
            layer_norms=norms,
            head_norm=math.sqrt(squares[-1]),
            stable_ranks=tuple(float(stable_rank_of(s, counts)) for s in spectra),
            face_stable_ranks=tuple(_of_faces(s) for s in spectra),
            entropy_ranks=tuple(float(entropy_rank_of(s, counts)) for s in spectra),
            balances=balances,
            drift=max(abs(a - b) for a, b in zip(balances, self._first, strict=True)),
            margin_fell=False,
            smoothed_fell=False,
            kkt=self._kkt(sample, weights, squares),
            teacher=tuple(self._teacher),
            growth=size - self._began,
            teacher_free=teacher_free_16(
                norms,
                math.sqrt(squares[-1]),
                torch.linalg.vector_norm(sample.x.double().flatten(1), dim=1).tolist(),
                sample.q.tolist(),
            ),
            **self._theorem_16(int((sample.q > 0).sum())),
        )
        self._previous = self._compared(found)
        return self._previous

    def _compared(self, found: TrajectoryRecord) -> TrajectoryRecord:
        """With what fell since the record before flagged."""
        before = self._previous
        if before is None or not (before.separable and found.separable):
            return found
        slack = _SLACK * torch.finfo(self._model.head.dtype).eps
        fell = {
            "margin_fell": _fell(before.normalised_margin, found.normalised_margin, slack),
            "smoothed_fell": _fell(before.smoothed_margin, found.smoothed_margin, slack),
        }
        return TrajectoryRecord(**{**vars(found), **fell})

    def _kkt(self, sample: PerturbedSample, weights: Tensor, squares: list[float]) -> Residuals:
        model, norm = self._model, math.sqrt(sum(squares))
        gradient = weighted_gradient(model, sample.x, self._y, weights)
        # With orthonormal coordinates sqrt(count) face, a face's gradient is / sqrt(count).
        inner = -sum(
            float((p.detach().conj() * g).real.sum().double())
            for p, g in zip(model.parameters(), gradient, strict=True)
        )
        length = math.sqrt(sum(_squared(model, g, inverse=True) for g in gradient))
        alignment = 1.0 - inner / (norm * length) if norm * length > 0 else 1.0
        nearest = sample.q.argsort(stable=True)[:CANDIDATES]
        gram = margin_gram(model, sample.x[nearest], self._y[nearest]).cpu()
        margins = sample.q[nearest].cpu()
        return residuals(gram, margins, norm=norm, degree=len(squares), alignment=alignment)

    def _theorem_16(self, correct: int) -> dict:
        a, teacher = self._model.architecture, self._teacher
        layers = len(a.widths)
        right = rhs_16(layers=layers, channels=a.channels, teacher=teacher)
        shapes = list(zip(a.widths, (a.features, *a.widths), strict=False))
        return {
            "rhs_16": right if math.isfinite(right) else None,
            "sharper_16": sharper_16(layers=layers, channels=a.channels, teacher=teacher),
            "largest_harmonic_mean": largest_harmonic_mean(a.channels, shapes),
            "premises": {
                "L >> J": layers >= MUCH_GREATER * teacher.layers,
                "d_l >> m_J": min(a.widths) >= MUCH_GREATER * teacher.width,
                "perturbed examples separated": correct == len(self._y) == self._n_train,
            },
        }


def _fell(before: float, now: float, slack: float) -> bool:
    return now < before - slack * abs(before)


def _squared(model: TNN, weight: Tensor, *, inverse: bool = False) -> float:
    """||W||_F^2 over all c faces; inverse: of a gradient in the faces held."""
    squares = weight.detach().abs().double().square()
    if weight.shape == model.head.shape and not weight.is_complex():
        return float(squares.sum())
    counts = model.transform.multiplicity.double()
    return float((1 / counts if inverse else counts) @ squares.flatten(1).sum(1))


def _squared_norms(model: TNN) -> list[float]:
    """Of every weight held, in the order they are applied; the head last."""
    stacks = [stack for layer in model.t_layers for stack in layer.stacks]
    return [_squared(model, weight) for weight in (*stacks, model.head)]


def _layer_spectra(model: TNN) -> list[Tensor]:
    """Singular values (k, m) of each layer on the CPU, layers of one shape in one batch."""
    faces = [layer.faces().detach() for layer in model.t_layers]
    found: list[Tensor] = [torch.empty(0)] * len(faces)
    for shape in sorted({tuple(f.shape) for f in faces}):
        places = [i for i, f in enumerate(faces) if tuple(f.shape) == shape]
        values = singular_values(torch.cat([faces[i] for i in places])).cpu()
        for i, s in zip(places, values.split(shape[0]), strict=True):
            found[i] = s
    for i, s in enumerate(found):
        if not bool(s.any()):
            raise InputError(f"t-layer {i + 1} has norm 0: its stable rank is not defined")
    return found


def _of_faces(s: Tensor) -> tuple[float, ...]:
    """The stable rank of each face alone, 0 for a zero face."""
    largest = s[:, :1]
    shares = torch.where(largest > 0, s / largest.clamp_min(1e-300), 0.0)
    return tuple(shares.square().sum(1).tolist())
