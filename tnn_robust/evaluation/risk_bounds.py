"""Non-vacuous bounds of a network's error and robust error, beside the paper's of its gap."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.attack import Attack
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import margin
from tnn_robust.base.progress import Steps
from tnn_robust.certification.certify import certify_steps
from tnn_robust.certification.lipschitz import worst_margins
from tnn_robust.certification.work import bound_products, merged_entries, pass_products
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.attack_part import Target
from tnn_robust.evaluation.certified import METHOD, MOST_ENTRIES, chain_or_why
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.network import TNN, new_model
from tnn_robust.models.quantised import quantised
from tnn_robust.theory.results import RiskBound
from tnn_robust.theory.risk_bounds import (
    gaussian_divergence,
    held_out,
    occam,
    pac_bayes,
    sampled_share,
)

LIPSCHITZ = "the Lipschitz constant"
_ENERGIES, _WIDTHS = (0.9, 0.97, 0.99, 1.0), (2, 3, 4, 6)
_SIGMAS = (0.003, 0.01, 0.03, 0.1, 0.3)
_DRAWS = 20
_HOPELESS = 1.4  # nats an example: a bound of 0.75 were no example wrong
_BLOCK = 1024
_LEAST_CERTIFIED = 100  # test examples, where there are so many


class HeldOut(NamedTuple):
    """n held-out examples, how many are not certified, and by what."""

    n: int
    uncertified: int
    method: str


class Judged(NamedTuple):
    """What the bounds are of: the network, both parts as it takes them, the ball in l2."""

    model: TNN
    train: Part
    test: Part
    radius: float
    delta: float


def risk_bounds(
    asked: Judged, held: HeldOut | None, prior: TNN | None, *, fixed: bool
) -> tuple[RiskBound, ...]:
    """HeldOut-out, Occam and PAC-Bayes bounds of the clean and of the robust error.

    They hold together with probability 1 - delta. held: certificates of test examples, None
    for those of the Lipschitz constant; prior: the initial weights, None for zeros; fixed:
    whether the transform was chosen before the training data were seen.
    """
    each = asked._replace(delta=asked.delta / 6)
    makers: tuple[Callable[..., RiskBound], ...] = (_held_out, _occam, _pac_bayes)
    given: tuple[Any, ...] = (held, (_candidates(asked), fixed), (prior, fixed))
    return tuple(
        make(each, more, robust=robust)
        for make, more in zip(makers, given, strict=True)
        for robust in (False, True)
    )


@torch.no_grad()
def wrong(model: TNN, part: Part, radius: float) -> Tensor:
    """(n,) bool: examples that are met wrongly, or that no margin certifies in l2 up to radius.

    A tie is wrong, as is what is not finite. Without a radius by the network's own scores.
    """
    blocks = zip(part.x.split(_BLOCK), part.y.split(_BLOCK), strict=True)
    found = []
    for x, y in blocks:
        if radius == 0:
            found.append(~(margin(model(x), y) > 0))
            continue
        reach = torch.full((len(y),), radius, dtype=torch.float64, device=x.device)
        found.append(~(worst_margins(model, x, y, reach) > 0).all(1))
    return torch.cat(found)


def _wrong(asked: Judged, model: TNN, part: Part, *, robust: bool) -> int:
    return int(wrong(model, part, asked.radius if robust else 0.0).sum())


def _held_out(asked: Judged, held: HeldOut | None, *, robust: bool) -> RiskBound:
    n, method = len(asked.test.y), LIPSCHITZ if robust else ""
    if robust and held is not None:
        n, bad, method = held
    else:
        bad = _wrong(asked, asked.model, asked.test, robust=robust)
    return RiskBound(
        name="held-out, Clopper-Pearson",
        of="this network",
        robust=robust,
        method=method,
        n=n,
        wrong=float(bad),
        nats=0.0,
        value=held_out(bad, n, asked.delta),
        holds=None,
        premise="no choice looked at the test part",
    )


def certified_test(subject: Subject, test: Target, attack: Attack) -> Steps[HeldOut | None]:
    """By CROWN, as many examples as cost about what their attack did, and 100 at least; None
    where it does not go through the network, or would take too much memory."""
    chain, _ = chain_or_why(subject, None)
    if chain is None or merged_entries(chain) > MOST_ENTRIES:
        return None
    attacked = attack.passes(chain.scores) * pass_products(chain) * len(test.indices)
    count = max(_LEAST_CERTIFIED, attacked // bound_products(chain, METHOD))
    x, y = test.examples
    generator = torch.Generator().manual_seed(test.seed)
    rows = torch.randperm(len(y), generator=generator)[:count].to(x.device)
    found = yield from certify_steps(
        subject.model, (x[rows], y[rows]), attack.threat, method=METHOD, attack=False
    )
    return HeldOut(found.n, found.n - found.certified, "CROWN")


class _Written(NamedTuple):
    """A network near the one asked for, and the bits of its code; None where these are so many
    that the bound is hopeless however well it does."""

    bits: float
    model: TNN | None
    words: str


def _candidates(asked: Judged) -> list[_Written]:
    choices = [(energy, width) for energy in _ENERGIES for width in _WIDTHS]
    found = []
    for energy, width in choices:
        made = quantised(asked.model, energy, width)
        bits = made.bits + math.log2(len(choices))
        hopeless = bits * math.log(2) / len(asked.train.y) > _HOPELESS
        words = f"its truncation to {100 * energy:g} % of the energy in {width} bits an entry"
        found.append(_Written(bits, None if hopeless else made.model, words))
    return found


def _occam(asked: Judged, given: tuple[list[_Written], bool], *, robust: bool) -> RiskBound:
    candidates, fixed = given
    n, found = len(asked.train.y), []
    for bits, model, words in candidates:
        bad = n if model is None else _wrong(asked, model, asked.train, robust=robust)
        found.append((occam(bad, n, bits, asked.delta), bits, bad, words))
    value, bits, bad, words = min(found)
    return RiskBound(
        name="Occam, kl",
        of=words,
        robust=robust,
        method=LIPSCHITZ if robust else "",
        n=n,
        wrong=float(bad),
        nats=bits * math.log(2),
        value=value,
        holds=fixed,
        premise="architecture and transform fixed before the training part was drawn",
    )


def _pac_bayes(asked: Judged, given: tuple[TNN | None, bool], *, robust: bool) -> RiskBound:
    prior, fixed = given
    n, delta = len(asked.train.y), asked.delta / 2 / len(_SIGMAS)
    pairs = list(zip(asked.model.parameters(), _of(prior, asked.model), strict=True))
    distance = sum(float((p.detach() - q).abs().double().square().sum()) for p, q in pairs)
    best = None
    for sigma in _SIGMAS:
        divergence = gaussian_divergence(distance, sigma)
        share = 1.0
        if divergence / n <= _HOPELESS:
            share = _mean_share(asked, sigma, robust=robust)
            share = sampled_share(share, _DRAWS, delta)
        found = (pac_bayes(share, n, divergence, delta), divergence, share, sigma)
        best = found if best is None or found < best else best
    assert best is not None
    value, divergence, share, sigma = best
    start = "its initial weights" if prior is not None else "zero weights"
    return RiskBound(
        name="PAC-Bayes, kl",
        of=f"the network with Gaussian noise of {sigma:g} on every weight, drawn anew each time",
        robust=robust,
        method=LIPSCHITZ if robust else "",
        n=n,
        wrong=share * n,
        nats=divergence,
        value=value,
        holds=fixed,
        premise=f"prior around {start}, fixed before the training part was drawn",
    )


def _of(prior: TNN | None, model: TNN) -> list[Tensor]:
    if prior is None:
        return [torch.zeros_like(p) for p in model.parameters()]
    return [p.detach().to(q.device) for p, q in zip(prior.parameters(), model.parameters(),
                                                    strict=True)]  # fmt: skip


@torch.no_grad()
def _mean_share(asked: Judged, sigma: float, *, robust: bool) -> float:
    """The mean share wrong over draws of the noise."""
    kept = [p.detach().clone() for p in asked.model.parameters()]
    generator = torch.Generator().manual_seed(0)
    total = 0
    for _ in range(_DRAWS):
        for p, centre in zip(asked.model.parameters(), kept, strict=True):
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
            p.copy_(centre + sigma * noise)
        total += _wrong(asked, asked.model, asked.train, robust=robust)
    for p, centre in zip(asked.model.parameters(), kept, strict=True):
        p.copy_(centre)
    return total / (_DRAWS * len(asked.train.y))


def initial_weights(model: TNN, training: dict[str, Any] | None, x: Tensor) -> TNN | None:
    """The network as its training began, None where that is not on record.

    Any weights fixed beforehand are a prior: a training that began elsewhere has a larger
    bound, not a wrong one.
    """
    seed = (training or {}).get("seed")
    if not isinstance(seed, int) or any(p.is_complex() for p in model.parameters()):
        return None
    try:
        found = new_model(model.architecture, seed, data=x, dtype=model.head.dtype)
    except InputError:
        return None
    shapes = [p.shape for p in found.parameters()] == [p.shape for p in model.parameters()]
    return found if shapes else None
