"""The masking checks of a report: the attacks it rests on against what else could break it."""

from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn

from tnn_robust.algebra.transforms import Transform
from tnn_robust.attacks.attack import LP, Attack
from tnn_robust.attacks.frank_wolfe import best_of
from tnn_robust.attacks.pgd import PGD
from tnn_robust.attacks.points import Model, Perturb, Perturbed, feasible, frozen, verify
from tnn_robust.attacks.registry import make_perturb
from tnn_robust.attacks.square import Square
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Threat
from tnn_robust.data.dataset import Dataset
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.masking import Attacks, Noise, masking_checks, trace_of
from tnn_robust.evaluation.results import Check
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.network import Architecture, new_model
from tnn_robust.models.reshaped import OneChannel
from tnn_robust.training.loop import TrainSettings, fit
from tnn_robust.training.optimizers import make_optimizer

SAMPLE = 100  # test points: a hundredth is then one point
_STEPS = 40  # of PGD where the report has no iterated attack
_RESTARTS = 10
_QUERIES = 1000
_SURROGATE_EXAMPLES, _SURROGATE_EPOCHS, _SURROGATE_WIDTH = 2000, 10, 64


def report_checks(
    subject: Subject,
    dataset: Dataset,
    held: tuple[Part, Tensor],
    attacks: Sequence[Attack],
    seed: int,
    twin: nn.Module | None = None,
) -> list[Check]:
    """Check the figures that `attacks` give on test examples `held` (and their indices).

    The white-box attack in question is the worst case of those attacks in the
    norm and at the eps of the last of them; the rivals are new ones. twin: the dense
    network that this one was compressed from, whose adversarial points are tried on it;
    without one, those of a plain network freshly trained. None where eps is 0: there is
    nothing to check.
    """
    like = attacks[-1]
    if like.threat.eps == 0:
        return []
    examples, indices = held
    counts = dataset.test.y.bincount()
    with frozen(subject.model):
        return masking_checks(
            subject.model,
            examples.x,
            examples.y,
            indices,
            attacks=_adversaries(like, attacks, subject.transform),
            seed=seed,
            chance=float(counts.max() / counts.sum()),
            surrogate=_surrogate(subject, dataset, seed) if twin is None else twin,
            surrogate_name="a plain network" if twin is None else "its dense twin",
            weight_norm=subject.weight_norm,
            sample=SAMPLE,
        )


def _adversaries(like: Attack, attacks: Sequence[Attack], transform: Transform | None) -> Attacks:
    make, threat = partial(make_perturb, transform=transform), like.threat
    ball, eps = like.ball(transform), threat.eps
    # They compare losses, which need the whole attack.
    same = [a.but(stop_broken=False) for a in attacks if a.threat == threat]
    white = [make(a) for a in same if a.name != "square"]
    steps = max([_STEPS, *(a.steps for a in same if a.name in {"pgd", "apgd"})])
    pgd = PGD(threat, steps=steps, random_start=False)
    long = pgd.but(steps=10 * steps)

    def noise(x: Tensor, streams: Streams, draw: int) -> Tensor:
        return feasible(x, ball.sample(x, eps, streams, draw), ball, eps)

    def inside(x: Tensor, x_adv: Tensor, where: Tensor) -> Tensor:
        name = "an attack of the masking checks"
        return verify(x, x_adv, ball=ball, eps=eps, name=name, indices=where)

    return Attacks(
        fgsm=make(pgd.but(steps=1, step_size=eps)),
        pgd=reduce(best_of, white) if white else make(pgd),
        pgd_long=make(long),
        pgd_restarts=make(pgd.but(random_start=True, restarts=_RESTARTS)),
        black_box=_black_box(threat, noise),
        noise=noise,
        verify=inside,
        huge=_huge(pgd),
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
    device, settings = subject.device, TrainSettings(epochs=_SURROGATE_EPOCHS)
    # An attacker may train on any examples: without a training part on those of the test part.
    part = dataset.train if len(dataset.train.y) else dataset.test
    order = torch.randperm(len(part.y), generator=torch.Generator().manual_seed(seed))
    x, y = (column.to(device) for column in part.rows(order[:_SURROGATE_EXAMPLES]))
    x = x.flatten(1).unsqueeze(2)
    twin = new_model(plain, seed, dtype=x.dtype).to(device)
    optimizer = make_optimizer(twin, settings)
    for _ in fit(
        twin,
        x,
        y,
        monitor=(x, y),
        settings=settings,
        perturb=None,
        optimizer=optimizer,
        seed=seed,
    ):
        pass
    return OneChannel(twin).eval().requires_grad_(False)
