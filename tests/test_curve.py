"""An eps curve is monotone by construction, no weaker than single attacks, and exact if known."""

import json

import pytest
import torch
from test_attacks_minimal import exact, examples, linear

from tnn_robust.attacks.minimal import minimal, warm_pgd
from tnn_robust.attacks.points import Perturbed
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import AttackError, CertificateError, CheckpointError, InputError
from tnn_robust.base.losses import LOSSES, margin
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.certification.lipschitz import certified_radii
from tnn_robust.evaluation.attack_part import attack_part
from tnn_robust.evaluation.curve_results import EpsCurve
from tnn_robust.evaluation.eps_sweep import curve_of, curve_part, join_sweep
from tnn_robust.evaluation.risk import join
from tnn_robust.evaluation.rows import make_check
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint

SIZES = (0.0, 0.02, 0.05, 0.1, 0.2)


def pgd(eps, norm="linf", steps=8):
    return named_attack("pgd", Eps(f"{eps:g}", eps), norm=norm, steps=steps)


def sweep(model, x, y, sizes=SIZES, *, norm="linf", block=256, indices=None, **options):
    """Outcomes at each eps, and the last points."""
    options = {"attack_at": lambda eps: warm_pgd(pgd(eps, norm)), **options}
    blocks = list(
        curve_part(
            model,
            x,
            y,
            torch.arange(len(x)) if indices is None else indices,
            sizes=sizes,
            check_at=lambda eps: make_check(pgd(eps, norm)),
            loss=LOSSES["cross-entropy"],
            seed=0,
            block=block,
            **options,
        )
    )
    assert [one.start for one in blocks] == list(range(0, len(x), block))
    return join_sweep([one.outcomes for one in blocks]), torch.cat([one.x_adv for one in blocks])


def drawn(sizes, train, test, y_test, norm="linf", **options):
    options = {"settings": {"steps": 8}, "seed": 0, "risk_complete": False, **options}
    return curve_of(sizes, train, test, norm=norm, y_test=y_test, **options)


def at(radii, sizes):
    """(k, n) bool: what radii (n,) certify at each size."""
    return torch.stack([radii > size for size in sizes])


@pytest.fixture(scope="module", params=("digits_run", "binary_run"))
def trained(request):
    """A trained network and test examples of it."""
    checkpoint = load_checkpoint(request.getfixturevalue(request.param), torch.device("cpu"))
    part = load_run_data(checkpoint).test
    return checkpoint.model, part.x[:200], part.y[:200]


def test_accuracy_never_rises_and_risk_never_falls(trained):
    model, x, y = trained
    found, points = sweep(model, x, y)
    for before, after in zip(found, found[1:], strict=False):
        assert not bool((after.correct & ~before.correct).any()), "broken stays broken"
        assert bool((after.loss >= before.loss).all())
    standing = [int(one.correct.sum()) for one in found]
    assert standing[0] > standing[1] > standing[2] > standing[3]
    # The points are those that broke the examples; their radii are of the eps they fell at.
    assert bool((margin(model(points), y) <= 0)[~found[-1].correct].all())
    assert bool((margin(model(points), y) > 0)[found[-1].correct].all())
    radius = (points.double() - x.double()).abs().amax((1, 2))
    assert torch.allclose(radius, found[-1].radius)
    fell = sum(one.correct.long() for one in found)
    for i, size in enumerate(SIZES):
        assert bool((radius[fell == i] <= size * (1 + 1e-5) + 1e-7).all())


def test_eps_0_gives_the_clean_values(trained):
    model, x, y = trained
    (clean, *_), _ = sweep(model, x, y, (0.0, 0.1))
    (alone,), points = sweep(model, x, y, (0.0,))
    assert torch.equal(points, x)
    for one in (clean, alone):
        assert torch.equal(one.correct, margin(model(x), y) > 0)
        assert torch.equal(one.loss, one.clean_loss) and torch.equal(one.correct, one.clean_correct)
        assert not one.radius.any() and not one.vanished.any()


def test_the_sweep_is_no_weaker_than_the_attack_alone_at_any_eps(trained):
    model, x, y = trained
    followed, _ = sweep(model, x, y, follow_broken=True)
    found, _ = sweep(model, x, y)
    for i, size in enumerate(SIZES):
        blocks = attack_part(
            model,
            x,
            y,
            torch.arange(len(x)),
            perturb=make_perturb(pgd(size)),
            check=make_check(pgd(size)),
            loss=LOSSES["cross-entropy"],
            seed=0,
            block=256,
        )
        alone = join([one.outcomes for one in blocks])
        # One in a hundred: smaller batches round differently.
        assert int((found[i].correct & ~alone.correct).sum()) <= 0.01 * len(x)
        # Following what is broken costs no verdict and makes the risks those of the attack.
        assert torch.equal(followed[i].correct, found[i].correct)
        assert bool((followed[i].loss >= found[i].loss - 1e-5).all())
        assert float(followed[i].loss.mean()) >= 0.995 * float(alone.loss.mean())
    assert float(found[-1].loss.mean()) < 0.9 * float(followed[-1].loss.mean())


def test_the_broken_are_left_alone_and_the_standing_go_on_from_their_best_point(trained):
    model, x, y = trained
    calls = []

    def attack_at(eps):
        def attack(model, x, y, streams, start):
            point = warm_pgd(pgd(eps))(model, x, y, streams, start).x
            calls.append((streams.indices, start, point))
            return Perturbed(point, torch.zeros(len(x), dtype=torch.bool))

        return attack

    found, _ = sweep(model, x, y, attack_at=attack_at)
    left = [int(one.correct.sum()) for one in found[:-1]]
    assert len(calls) == sum(count > 0 for count in left), "none at eps 0, nor where none stands"
    for before, (rows, _, _) in zip(found, calls, strict=False):
        assert torch.equal(rows, before.correct.nonzero()[:, 0])
    assert calls[0][1] is None
    for (rows, _, points), (later, start, _) in zip(calls, calls[1:], strict=False):
        assert torch.equal(start, points[torch.isin(rows, later)])


def test_an_attack_that_finds_less_later_takes_nothing_back(trained):
    model, x, y = trained

    def attack_at(eps):
        def attack(model, x, y, streams, start):
            if eps == SIZES[1]:
                return warm_pgd(pgd(eps))(model, x, y, streams, start)
            return Perturbed(x, torch.ones(len(x), dtype=torch.bool))

        return attack

    found, _ = sweep(model, x, y, attack_at=attack_at, follow_broken=True)
    for later in found[2:]:
        assert torch.equal(later.loss, found[1].loss)
        assert torch.equal(later.correct, found[1].correct)
        assert torch.equal(later.vanished, found[1].correct), "blind counts where it stands"


def test_a_point_outside_its_ball_is_refused(trained):
    model, x, y = trained

    def attack_at(eps):
        return lambda model, x, *rest: Perturbed((x + 0.2).clamp(0, 1), x.new_zeros(len(x)).bool())

    with pytest.raises(AttackError, match="left the ball"):
        sweep(model, x, y, attack_at=attack_at)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((0.0, 0.2, 0.1), "0.2 before 0.1"),
        ((0.1, 0.1), "0.1 before 0.1"),
        ((-0.1, 0.1), "at least 0, got -0.1"),
        ((0.0, float("nan")), "got nan"),
        ((), "got none"),
    ],
)
def test_eps_out_of_order_are_refused(sizes, said):
    model = linear(1)
    with pytest.raises(InputError, match=said):
        sweep(model, *examples(model), sizes)
    with pytest.raises(InputError, match=said):
        drawn(sizes, [], [], torch.tensor([0]))


@pytest.mark.parametrize("s", (1, 2, 3, 10))
def test_verdicts_do_not_depend_on_blocks_and_order(s):
    """Reports run on one grid of blocks; on another, ties of the last digit fall elsewhere."""
    model = linear(s)
    x, y = examples(model, 20)
    whole, _ = sweep(model, x, y)
    parts, _ = sweep(model, x, y, block=7)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    turned, _ = sweep(model, x[order], y[order], indices=order)
    for a, b, c in zip(whole, parts, turned, strict=True):
        assert torch.equal(a.correct, b.correct) and torch.equal(a.correct[order], c.correct)
        near = [torch.isclose(a.loss, b.loss), torch.isclose(a.loss[order], c.loss)]
        assert all(one.sum() >= 16 for one in near)


@pytest.mark.parametrize("norm", ("linf", "l2"))
def test_the_curve_of_a_linear_model_is_its_closed_form(norm):
    model = linear(1)
    x, y = examples(model, 60)
    distances = exact(model, x, y, norm)
    sizes = [float(distances.quantile(q)) for q in (0.1, 0.3, 0.5, 0.7, 0.9)]
    found, _ = sweep(model, x, y, sizes, norm=norm)
    radii = certified_radii(model, x, y, norm)
    smallest = minimal(model, x, y, norm=norm, streams=Streams(0, torch.arange(60)))
    drawn_curve = drawn(sizes, found, found, y, norm, certified=(at(radii, sizes),) * 2)
    for size, outcomes, point in zip(sizes, found, drawn_curve.points, strict=True):
        near = (distances / size - 1).abs() < 0.01
        assert torch.equal((distances > size) | near, outcomes.correct | near)
        assert point.certified_test <= point.test.correct
        assert point.test.accuracy == pytest.approx(smallest.accuracy(size), abs=0.02)
    assert 0 < drawn_curve.points[0].certified_test < 60


# --- The record ------------------------------------------------------------------------------


def test_the_curve_of_a_trained_network_holds_its_parts_gap_and_certificate(trained):
    model, x, y = trained
    half = len(x) // 2
    parts = [(x[:half], y[:half]), (x[half:], y[half:])]
    (train, _), (test, _) = (sweep(model, *part) for part in parts)
    certified = tuple(at(certified_radii(model, *part, "linf"), SIZES) for part in parts)
    found = drawn(SIZES, train, test, parts[1][1], certified=certified)
    assert [point.eps for point in found.points] == list(SIZES)
    for i, point in enumerate(found.points):
        assert point.test.accuracy == float(test[i].correct.double().mean())
        assert point.agp.risk == pytest.approx(point.test.risk - point.train.risk)
        assert point.agp.accuracy == pytest.approx(point.train.accuracy - point.test.accuracy)
        assert point.certified_test <= point.test.correct
        assert point.certified_train <= point.train.correct
    assert found.points[0].certified_test == found.points[0].test.clean_correct > 0
    assert found.chance == float(torch.bincount(parts[1][1]).max()) / len(parts[1][1])
    assert found.reached_chance and found.points[-1].test.accuracy <= 0.02
    again = EpsCurve.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again == found
    with pytest.raises(CheckpointError, match="needs schema"):
        EpsCurve.from_json({**found.to_json(), "schema": "other"})


def test_the_verdict_says_why_a_curve_does_not_end_at_chance(trained):
    model, x, y = trained

    def verdict(sizes, y_test=y, **options):
        found, _ = sweep(model, x, y, sizes, **options)
        return drawn(sizes, found, found, y_test)

    cut = verdict((0.0, 0.01))
    standing = 100 * cut.points[-1].test.accuracy
    assert not cut.reached_chance
    assert f"the largest eps 0.01 leaves {standing:.3g} % standing" in cut.verdict
    assert "the curve is cut, not exhausted" in cut.verdict
    full = verdict((0.0, 0.6))
    assert full.reached_chance and full.verdict.startswith("exhausted")
    same = torch.zeros_like(y)
    assert verdict((0.0, 0.01), same).verdict.startswith("reached chance")
    blind = verdict(
        (0.0, 0.6),
        attack_at=lambda eps: lambda model, x, *rest: Perturbed(x, x.new_ones(len(x)).bool()),
    )
    assert "met no gradient" in blind.verdict and "masking" in blind.verdict


def test_a_certificate_that_an_attack_disproves_is_refused(trained):
    model, x, y = trained
    found, _ = sweep(model, x, y)
    wrong = torch.full((len(x),), 0.15, dtype=torch.float64)
    with pytest.raises(CertificateError, match="certificate of training example"):
        drawn(SIZES, found, found, y, certified=(at(wrong, SIZES),) * 2)
