"""The masking checks of a report: the attacks it rests on against what else could break it."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.attack import LP, Attack
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.points import Model, Perturb, Perturbed, feasible, frozen, verify
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.attacks.square import Square
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.agp import Attacked
from tnn_robust.evaluation.masking import Attacks, Known, Noise, masking_checks, trace_of
from tnn_robust.evaluation.results import Check
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.network import Architecture, new_model
from tnn_robust.models.reshaped import OneChannel
from tnn_robust.training.loop import fit
from tnn_robust.training.optimizers import make_optimizer
from tnn_robust.training.settings import TrainSettings

SAMPLE = 100  # test points: a hundredth is then one point
_STEPS = 40  # of PGD where the report has no iterated attack, and of each restart
_RESTARTS = 10
_QUERIES = 1000
_SURROGATE_EXAMPLES, _SURROGATE_WIDTH = 2000, 64
_SURROGATE = TrainSettings(epochs=5, batch_size=100, lr=3e-3)


def report_checks(
    subject: Subject,
    dataset: Dataset,
    held: tuple[Part, Tensor],
    attacks: Sequence[Attack],
    found: Sequence[Attacked],
    seed: int,
    twin: nn.Module | None = None,
) -> list[Check]:
    """Check the figures that `attacks` gave on test examples `held` (and their indices).

    found: what each of the attacks did to these. In question are those in the norm and at the
    eps of the last of them, the worst case of all that follow gradients; the rivals are new
    ones, and Square where it has run already. twin: the dense
    network that this one was compressed from, whose adversarial points are tried on it;
    without one, those of a plain network freshly trained. None where eps is 0: there is
    nothing to check.
    """
    like = attacks[-1]
    if like.threat.eps == 0:
        return []
    examples, indices = held
    counts = dataset.test.y.bincount()

    def surrogate() -> nn.Module:
        return _surrogate(subject, dataset, seed) if twin is None else twin

    with frozen(subject.model):
        return masking_checks(
            subject.model,
            examples.x,
            examples.y,
            indices,
            attacks=_adversaries(like, attacks, subject.transform),
            known=_known(like.threat, attacks, found, indices.device),
            seed=seed,
            chance=float(counts.max() / counts.sum()),
            surrogate=surrogate,
            surrogate_name="a plain network" if twin is None else "its dense twin",
            weight_norm=subject.weight_norm,
            sample=SAMPLE,
        )


def _known(
    threat: Threat, attacks: Sequence[Attack], found: Sequence[Attacked], device: torch.device
) -> Known:
    """What the report says of this ball: attacks run once are not run again to be checked."""
    same = [(a, one.test) for a, one in zip(attacks, found, strict=True) if a.threat == threat]
    white = [outcomes for a, outcomes in same if a.name != Square.name]
    black = [out for a, out in same if a.name == Square.name and (a.steps or 0) >= _QUERIES]
    known = Known()
    if white:
        known = known._replace(
            standing=torch.stack([one.correct for one in white]).all(0).to(device),
            vanished=torch.stack([one.vanished for one in white]).all(0).to(device),
        )
    if black:
        known = known._replace(fell=torch.stack([~one.correct for one in black]).any(0).to(device))
    return known


def _adversaries(like: Attack, attacks: Sequence[Attack], transform: Transform | None) -> Attacks:
    make, threat = partial(make_perturb, transform=transform), like.threat
    ball, eps = like.ball(transform), threat.eps
    iterated = [a.steps for a in attacks if a.threat == threat and a.name in {"pgd", "apgd"}]
    pgd = PGD(threat, steps=max([_STEPS, *iterated]), random_start=False)
    # Rivals are asked for a verdict, and meet the points that stand alone.
    stopping = pgd.but(stop_broken=True)
    restarts = PGD(threat, steps=_STEPS, restarts=_RESTARTS, stop_broken=True)

    def noise(x: Tensor, streams: Streams, draw: int) -> Tensor:
        return feasible(x, ball.sample(x, eps, streams, draw), ball, eps)

    def inside(x: Tensor, x_adv: Tensor, where: Tensor) -> Tensor:
        name = "an attack of the masking checks"
        return verify(x, x_adv, ball=ball, eps=eps, name=name, indices=where)

    return Attacks(
        fgsm=make(pgd.but(steps=1, step_size=eps)),
        pgd=make(pgd),
        pgd_long=make(stopping.but(steps=10 * pgd.steps)),
        pgd_restarts=make(restarts),
        black_box=_black_box(threat, noise),
        noise=noise,
        verify=inside,
        huge=_huge(stopping),
        trace=trace_of(make(pgd, keep_best=False)),
    )


def _black_box(threat: Threat, noise: Noise) -> Perturb:
    """Square where it is made for the ball, else the worst of random points."""
    if threat.norm in LP and not threat.confined:
        return make_perturb(Square(threat, steps=_QUERIES))

    def search(model: Model, x: Tensor, y: Tensor, streams: Streams) -> Perturbed:
        best, lowest = x, margin(model(x), y)
        for draw in range(_QUERIES // 10):
            tried = noise(x, streams, draw)
            value = margin(model(tried), y)
            best = torch.where((value < lowest)[:, None, None], tried, best)
            lowest = torch.minimum(lowest, value)
        return Perturbed(best, torch.zeros(len(x), dtype=torch.bool, device=x.device))

    return search


def _huge(pgd: PGD) -> Perturb:
    """PGD in the smallest l_inf ball that covers the box, whatever the ball of the report."""
    box = Threat("linf", 1.0, text="1")
    return make_perturb(pgd.but(threat=box, step_size=box.step_size(pgd.steps)))


def _surrogate(subject: Subject, dataset: Dataset, seed: int) -> nn.Module:
    """A plain network (a t-NN of one channel), freshly trained on clean training examples."""
    plain = Architecture(
        features=subject.features * subject.channels,
        channels=1,
        widths=(_SURROGATE_WIDTH, _SURROGATE_WIDTH),
        ranks=(None, None),
        scores=subject.scores,
        transform="identity",
    )
    device = subject.device
    # An attacker may train on any examples: without a training part on those of the test part.
    part = dataset.train if len(dataset.train.y) else dataset.test
    order = torch.randperm(len(part.y), generator=torch.Generator().manual_seed(seed))
    x, y = (column.to(device) for column in part.rows(order[:_SURROGATE_EXAMPLES]))
    x = x.flatten(1).unsqueeze(2)
    twin = new_model(plain, seed, dtype=x.dtype).to(device)
    optimizer = make_optimizer(twin, _SURROGATE)
    for _ in fit(
        twin,
        x,
        y,
        monitor=(x, y),
        settings=_SURROGATE,
        perturb=None,
        optimizer=optimizer,
        seed=seed,
    ):
        pass
    return OneChannel(twin).eval().requires_grad_(False)
