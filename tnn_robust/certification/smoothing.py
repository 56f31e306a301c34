"""Randomised smoothing (Cohen, Rosenfeld & Kolter 2019): l2 certificates for any module.

The smoothed classifier g of a network decides for the class that the network gives to most of
x + sigma N(0, I). Where that class has a probability of at least p > 1/2, g decides the same
for every x + delta with ||delta||_2 < sigma Phi^-1(p) (Theorem 1 with p_B = 1 - p). p is a
one-sided Clopper-Pearson limit of counted draws, so each certificate fails with a chance of
at most alpha, and it is a certificate of g: it says nothing of the network itself.

Noise is added without clipping: the network meets points outside [0, 1]. A draw whose scores
are not finite, or tied, counts for no class.

Towards safety: p and Phi^-1 are rounded down (`proportion.lower_limits`, and 1e-12 of the
radius). Not covered: the draws are pseudo-random numbers of 32 bits, cut at 6.7 sigma and
added in the dtype of x, where the theorem has a Gaussian of real numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnn_robust.attacks.live import Live, live_model
from tnn_robust.attacks.points import frozen
from tnn_robust.base.codec import Interval, Record, require
from tnn_robust.base.errors import InputError
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.base.progress import Progress, Steps, Tell, drain
from tnn_robust.base.proportion import accuracy_interval, lower_limits
from tnn_robust.base.randomness import Streams, gaussians
from tnn_robust.base.threat import Threat

ABSTAINED = -1


@dataclass(frozen=True)
class Smoothed(Record):
    """One finished example: its place, the class of most of the first draws (ABSTAINED where no
    draw had one), and how many of the later draws had that class."""

    example: int
    top: int
    hits: int

    def __post_init__(self) -> None:
        require(self.example >= 0, "an example from 0", self.example)
        require(self.top >= ABSTAINED, f"a class from {ABSTAINED}", self.top)
        require(self.hits >= 0, "hits of at least 0", self.hits)


@dataclass(frozen=True, eq=False)
class SmoothedCertification:
    """What randomised smoothing found of n examples: of the smoothed classifier only.

    y, predicted: (n,) int64, predicted ABSTAINED where no class has a probability above 1/2
    for sure; hits: (n,) int64 of `samples` draws; p_lower, radii: (n,) float64, the limit of
    the class's probability and the l2 radius within which the decision stays, 0 where
    abstained; threat: the one that `certified` is against; sigma, samples, selection, alpha,
    seed: as given to `smooth`.
    """

    y: Tensor
    predicted: Tensor
    hits: Tensor
    p_lower: Tensor
    radii: Tensor
    threat: Threat
    sigma: float
    samples: int
    selection: int
    alpha: float
    seed: int

    @property
    def n(self) -> int:
        """How many examples there are."""
        return len(self.y)

    @property
    def correct(self) -> int:
        """How many the smoothed classifier decides rightly, for sure."""
        return int((self.predicted == self.y).sum())

    @property
    def abstained(self) -> int:
        """How many it does not decide."""
        return int((self.predicted == ABSTAINED).sum())

    @property
    def certified(self) -> int:
        """How many it decides rightly whatever the threat does."""
        return self.certified_at(self.threat.eps)

    def certified_at(self, eps: float) -> int:
        """The same at another l2 radius: right, with a radius above eps."""
        return int(((self.predicted == self.y) & (self.radii > eps)).sum())

    def interval(self, eps: float | None = None) -> Interval:
        """95 % interval of the certified accuracy over examples (Clopper-Pearson)."""
        count = self.certified if eps is None else self.certified_at(eps)
        return accuracy_interval(count, self.n)

    def __str__(self) -> str:
        return (
            f"{self.threat}, smoothed with sigma {self.sigma:g}, {self.samples} draws: of {self.n} "
            f"examples {self.certified} certified, {self.abstained} abstained, each certificate "
            f"wrong with a chance of at most {self.alpha:g}"
        )


def smooth(
    model: nn.Module,
    part: tuple[Tensor, Tensor],
    threat: Threat,
    *,
    sigma: float,
    samples: int = 100_000,
    selection: int = 100,
    alpha: float = 0.001,
    batch: int = 1000,
    seed: int = 0,
    progress: Tell | None = None,
) -> SmoothedCertification:
    """Certify the smoothed classifier of any module, example by example.

    Parameters
    ----------
    model: a `TNN` or any other module that gives scores (n, s) of (n, d, c) or of images.
    part: a part of a data set, or x and y: (n, d, c) or images in [0, 1], (n,) int64.
    threat: l2, of all channels and faces; its eps is where `certified` counts.
    sigma: standard deviation of the noise, in units of the data scaled to [0, 1].
    samples, selection: draws an example that count a class, and that choose it (n and n0).
    alpha: the chance of a wrong certificate, for each example.
    batch: draws that go through the model together, which bounds the memory. The draws of
        an example depend on its place and the seed alone, never on batch or order.
    progress: is called with every Progress.

    Raises InputError for another threat and settings out of range. Source: see the module.
    """
    steps = smooth_steps(
        model,
        part,
        threat,
        sigma=sigma,
        samples=samples,
        selection=selection,
        alpha=alpha,
        batch=batch,
        seed=seed,
    )
    return drain(steps, progress)


def smooth_steps(
    model: nn.Module,
    part: tuple[Tensor, Tensor],
    threat: Threat,
    *,
    sigma: float,
    samples: int = 100_000,
    selection: int = 100,
    alpha: float = 0.001,
    batch: int = 1000,
    seed: int = 0,
    indices: Tensor | None = None,
    decided: Iterable[Smoothed] = (),
) -> Steps[SmoothedCertification]:
    """The same as steps. `found` of a Progress holds the examples just finished, a tuple of
    Smoothed, or is None; indices: (n,) int64, places in a data set that the draws belong to,
    those in x if None; decided: examples of an earlier call with the same arguments (another
    `batch` is the same), which are not drawn again."""
    require_smoothable(threat)
    _check(sigma, samples, selection, alpha, batch)
    x, y = part
    live = live_model(model, x, y, squashed=True)
    places = torch.arange(len(y), device=y.device) if indices is None else indices.to(y.device)
    job = _Job(model, live, places, sigma, samples, selection, batch, seed)
    known = {one.example: one for one in decided}
    if any(not (i < len(y) and one.hits <= samples) for i, one in known.items()):
        raise InputError(f"finished examples need to be among {len(y)}, of {samples} draws each")
    left = torch.tensor([i for i in range(len(y)) if i not in known], dtype=torch.int64)
    together = max(1, batch // (selection + samples))
    for rows in left.split(together) if len(left) else ():
        found = yield from _drawn(job, rows.to(y.device), len(known))
        known |= {one.example: one for one in found}
        yield Progress(f"{job.text}: {len(known)} of {len(y)}", len(known), len(y), found)
    ordered = [known[i] for i in range(len(y))]
    tops = torch.tensor([one.top for one in ordered], dtype=torch.int64)
    hits = torch.tensor([one.hits for one in ordered], dtype=torch.int64)
    p_lower = torch.from_numpy(lower_limits(hits.numpy(), samples, alpha))
    return SmoothedCertification(
        y=y.cpu(),
        predicted=torch.where(p_lower > 0.5, tops, ABSTAINED),
        hits=hits,
        p_lower=p_lower,
        radii=smoothed_radii(p_lower, sigma),
        threat=threat,
        sigma=sigma,
        samples=samples,
        selection=selection,
        alpha=alpha,
        seed=seed,
    )


def smoothed_radii(p_lower: Tensor, sigma: float) -> Tensor:
    """sigma Phi^-1(p_lower) (n,) float64, rounded down; 0 where p_lower is at most 1/2."""
    from scipy.special import ndtri

    found = sigma * torch.from_numpy(ndtri(p_lower.clamp_min(0.5).numpy())) * (1 - 1e-12)
    return torch.where(p_lower > 0.5, found, 0.0)


def smoothed_predictions(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float,
    samples: int = 1000,
    alpha: float = 0.001,
    batch: int = 1000,
    seed: int = 0,
) -> Tensor:
    """What the smoothed classifier decides, (n,) int64; ABSTAINED where the draws cannot tell.

    The class of most draws, unless as many draws split evenly between it and the next one
    with a chance above alpha (the two-sided binomial test; Cohen et al. 2019, PREDICT). A
    decision differs from the smoothed classifier's with a chance of at most alpha.
    x: (n, d, c) or images in [0, 1]; the rest as for `smooth`.
    """
    from scipy.special import bdtrc

    _check(sigma, samples, 1, alpha, batch)
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    live = live_model(model, x, labels, squashed=True)
    places = torch.arange(len(x), device=x.device)
    job = _Job(model, live, places, sigma, samples, 0, batch, seed)
    found = []
    for rows in places.split(max(1, batch // samples)):
        top = drain(_counted(job, rows, 0, samples, 0)).cpu().topk(2, dim=1)
        first, second = top.values.numpy().T
        chance = 2 * bdtrc(first - 1.0, first + second, 0.5)
        sure = torch.from_numpy((first > second) & (chance <= alpha))
        found.append(torch.where(sure, top.indices[:, 0], ABSTAINED))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def require_smoothable(threat: Threat) -> None:
    """InputError unless smoothing certifies the threat."""
    if threat.norm != "l2" or threat.confined:
        raise InputError(
            f"randomised smoothing certifies l2 balls of all channels and faces, got {threat}",
            field="norm",
        )


@dataclass(frozen=True)
class _Job:
    """What is asked, as the steps hand it on."""

    model: nn.Module
    live: Live
    places: Tensor
    sigma: float
    samples: int
    selection: int
    batch: int
    seed: int

    @property
    def text(self) -> str:
        return f"smooth, sigma {self.sigma:g}"


def _drawn(job: _Job, rows: Tensor, done: int) -> Steps[tuple[Smoothed, ...]]:
    """Choose a class for each example (n0 draws), then count it (n others)."""
    chosen = yield from _counted(job, rows, 0, job.selection, done)
    tops = torch.where(chosen.amax(1) > 0, chosen.argmax(1), ABSTAINED)
    counts = yield from _counted(job, rows, job.selection, job.samples, done)
    hits = counts.gather(1, tops.clamp_min(0)[:, None])[:, 0]
    hits = torch.where(tops >= 0, hits, 0)
    places: Sequence[list[int]] = [t.tolist() for t in (rows, tops, hits)]
    return tuple(Smoothed(*one) for one in zip(*places, strict=True))


def _counted(job: _Job, rows: Tensor, first: int, count: int, done: int) -> Steps[Tensor]:
    """How many of `count` draws of each example, from draw `first` on, each class has."""
    classes = max(2, _scores(job, rows[:1], rows.new_zeros(1)).shape[1])
    found = rows.new_zeros(len(rows) * classes)
    pairs = len(rows) * count
    for start in range(0, pairs, job.batch):
        pair = torch.arange(start, min(start + job.batch, pairs), device=rows.device)
        who = pair // count
        votes = _votes(_scores(job, rows[who], first + pair % count))
        voted = votes >= 0
        found += torch.bincount((who * classes + votes)[voted], minlength=len(found))
        share = len(rows) * (start + len(pair)) / pairs
        yield Progress(job.text, done + share * (first > 0), len(job.live.x))
    return found.reshape(len(rows), classes)


@torch.no_grad()
def _scores(job: _Job, examples: Tensor, draws: Tensor) -> Tensor:
    """Scores (p, s) of a noisy copy of each of the examples (p,), of the given draws (p,)."""
    x = job.live.x[examples]
    noise = gaussians(Streams(job.seed, job.places[examples]), draws, x[0].numel(), x.dtype)
    with frozen(job.model), matmul_precision(FULL):
        return job.live.scores(x + job.sigma * noise.reshape(x.shape))


def _votes(scores: Tensor) -> Tensor:
    """(p,) the class of each draw; -1 where scores are not finite or the first two are tied."""
    if scores.shape[1] == 1:
        scores = torch.cat([-scores, scores], 1)
    top = scores.topk(2, dim=1)
    clear = (top.values[:, 0] > top.values[:, 1]) & torch.isfinite(scores).all(1)
    return torch.where(clear, top.indices[:, 0], -1)


def _check(sigma: float, samples: int, selection: int, alpha: float, batch: int) -> None:
    if not 0 < sigma < float("inf"):
        raise InputError(f"sigma needs a number above 0, got {sigma}", field="sigma")
    for name, count in (("samples", samples), ("selection", selection), ("batch", batch)):
        if count < 1:
            raise InputError(f"{name} needs at least 1 draw, got {count}", field=name)
    if not 0 < alpha < 1:
        raise InputError(f"alpha needs a number between 0 and 1, got {alpha}", field="alpha")
