"""Risks and gaps equal their definitions, whatever the batching; nothing unverified is reported."""

import pytest
import reference_networks as slow
import torch
from attack_runs import attack_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import AttackError, InputError
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation import report as run
from tnn_robust.evaluation.agp import Attacked, attack_rows, measure_parts, worst_case
from tnn_robust.evaluation.attack_part import attack_part
from tnn_robust.evaluation.risk import Outcomes, join, measure, worst_of
from tnn_robust.evaluation.rows import make_check
from tnn_robust.models.network import Architecture, new_model, to_dense

LAW = settings(derandomize=True, deadline=None, max_examples=40, database=None)


def planted(losses, correct, clean_losses=None, clean_correct=None):
    """Outcomes with these losses and verdicts."""
    n = len(losses)
    return Outcomes(
        clean_loss=torch.tensor(clean_losses or [0.0] * n, dtype=torch.float64),
        clean_correct=torch.tensor(clean_correct or [True] * n),
        loss=torch.tensor(losses, dtype=torch.float64),
        correct=torch.tensor(correct),
        predictions=torch.arange(n),
        radius=torch.tensor(losses, dtype=torch.float64) / 10,
        vanished=torch.tensor([loss > 2 for loss in losses]),
    )


def attacked(train, test, name="pgd", norm="linf", eps="0.1", eps_value=0.1):
    return Attacked(name, norm, eps, eps_value, {"steps": 3}, train, test, 2.0)


# --- Definitions ---------------------------------------------------------------------------


def test_gap_is_test_minus_train_of_the_mean_loss():
    train = planted([1.0, 2.0, 3.0, 6.0], [True, True, True, False])
    test = planted([4.0, 6.0], [False, True])
    found = measure_parts([(train, test)], seed=0)[0].agp
    assert found.risk == 5.0 - 3.0
    # The 0-1 loss is 1/4 on training and 1/2 on test examples.
    assert found.accuracy == pytest.approx(1 / 2 - 1 / 4)
    assert found.risk_ci[0] < 2.0 < found.risk_ci[1]
    assert found.accuracy_ci[0] < 0.25 < found.accuracy_ci[1]
    turned = measure_parts([(test, train)], seed=0)[0].agp
    assert (turned.risk, turned.accuracy) == (-2.0, -0.25)


def test_part_result_counts():
    outcomes = planted([1.0, 2.0, 6.0], [True, False, False], [0.5, 0.5, 2.0], [True, True, False])
    found = measure_parts([(outcomes, outcomes)], 0)[0].train
    assert (found.n, found.clean_correct, found.correct, found.vanished) == (3, 2, 1, 1)
    assert (found.clean_risk, found.risk) == (1.0, 3.0)
    assert (found.clean_accuracy, found.accuracy) == pytest.approx((2 / 3, 1 / 3))
    assert found.accuracy_ci[0] < 1 / 3 < found.accuracy_ci[1]


def test_row_takes_the_largest_radius_and_the_drop_on_test_examples():
    train = planted([5.0, 1.0], [True, True])
    test = planted([1.0, 3.0, 1.0, 1.0], [True, False, True, False])
    (row,) = attack_rows([attacked(train, test)], seed=0)
    assert row.max_perturbation == 0.5
    assert row.robustness_drop == 0.5
    assert (row.name, row.norm, row.eps, row.eps_value, row.seconds) == (
        "pgd", "linf", "0.1", 0.1, 2.0,
    )  # fmt: skip


@st.composite
def several_attacks(draw):
    """Up to four attacks on the same clean losses and verdicts."""
    n = draw(st.integers(1, 6))
    numbers = st.lists(st.sampled_from((0.0, 0.5, 1.0, 3.0)), min_size=n, max_size=n)
    verdicts = st.lists(st.booleans(), min_size=n, max_size=n)
    clean, clean_correct = draw(numbers), draw(verdicts)
    count = draw(st.integers(1, 4))
    return [(clean, clean_correct, draw(numbers), draw(verdicts)) for _ in range(count)]


@LAW
@given(several_attacks())
def test_worst_case_is_per_example_over_attacks_and_the_clean_point(attacks):
    outcomes = [planted(loss, right, clean, was) for clean, was, loss, right in attacks]
    found = worst_of(outcomes)
    losses, correct = slow.worst_case(attacks)
    assert found.loss.tolist() == losses and found.correct.tolist() == correct
    for one in outcomes:
        assert not bool((found.correct & ~one.correct).any())
        assert bool((found.loss >= one.loss).all())
    assert bool((found.loss >= found.clean_loss).all())
    assert not bool((found.correct & ~found.clean_correct).any())
    largest = torch.stack([one.loss for one in outcomes]).amax(0)
    assert torch.equal(found.radius, largest / 10)


def test_worst_case_names_the_union_of_the_threat_models():
    train, test = planted([1.0], [True]), planted([2.0], [False])
    small, large = attacked(train, test), attacked(train, test, "fgsm", "linf", "8/255", 0.3)
    both = worst_case([small, large])
    assert (both.norm, both.eps, both.eps_value) == ("linf", "8/255", 0.3)
    assert both.settings == {"attacks": ["pgd", "fgsm"]} and both.seconds == 4.0
    mixed = worst_case([small, attacked(train, test, "fgm", "l2", "1", 1.0)])
    assert (mixed.norm, mixed.eps) == ("linf+l2", "linf 0.1, l2 1")


# --- With real attacks ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def case():
    """An untrained network of 3 classes and 23 examples labelled by it, a few of them wrongly."""
    model = new_model(Architecture(6, 4, (8, 8), (None, 3), 3, "dct"), 0)
    x = torch.rand(23, 6, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Blind to the mean activation, so that scores are about 0 and all classes occur.
        common = to_dense(model)[:-1](x).mean(0)
        share = model.head.flatten(1) @ common / common.square().sum()
        model.head.sub_(share[:, None, None] * common.view(8, 4)).mul_(5)
        y = model(x).argmax(1)
    assert len(y.unique()) == 3
    y[::5] = (y[::5] + 1) % 3
    return model, x, y


def outcomes_of(case, eps=0.05, *, block=23, name="pgd", perturb=None, seed=0, model=None, y=None):
    model, x, y = model or case[0], case[1], case[2] if y is None else y
    attack = named_attack(name, Eps(str(eps), eps), norm="linf")
    blocks = attack_part(
        model,
        x,
        y,
        torch.arange(len(x)),
        perturb=perturb or make_perturb(attack),
        check=make_check(attack),
        loss=LOSSES["cross-entropy"],
        seed=seed,
        block=block,
    )
    return join([one.outcomes for one in blocks])


def test_measure_is_the_loss_and_the_verdict_at_both_points(case):
    model, x, y = case
    x_adv = (x + 0.05).clamp(0, 1)
    none = torch.zeros(23)
    found = measure(model, x, x_adv, y, none, none.bool(), loss=LOSSES["cross-entropy"])
    with torch.no_grad():
        for i in range(23):
            for point, loss, right in (
                (x, found.clean_loss, found.clean_correct),
                (x_adv, found.loss, found.correct),
            ):
                scores = model(point[i : i + 1])[0].double()
                expected = torch.logsumexp(scores, 0) - scores[y[i]]
                assert float(loss[i]) == pytest.approx(float(expected), rel=1e-5)
                assert bool(right[i]) == (int(scores.argmax()) == int(y[i]))
    assert found.loss.dtype == torch.float64


def test_attacks_raise_the_risk_and_eps_0_changes_nothing(case):
    model, x, y = case
    found = [outcomes_of(case, eps) for eps in (0.0, 0.02, 0.1)]
    accuracies = [float(one.correct.double().mean()) for one in found]
    assert accuracies[0] > accuracies[1] > accuracies[2]
    for one in found:
        assert bool((worst_of([one]).loss >= one.clean_loss).all())
    same = found[0]
    assert torch.equal(same.loss, same.clean_loss) and torch.equal(same.correct, same.clean_correct)
    assert float(same.radius.max()) == 0.0
    (row,) = attack_rows([attacked(same, same)], 0)
    assert row.robustness_drop == 0.0 and row.train.risk == row.train.clean_risk
    assert row.agp.risk == 0.0 and row.agp.accuracy == 0.0


def test_results_do_not_depend_on_the_block(case):
    whole = outcomes_of(case)
    for block in (1, 7, 100):
        found = outcomes_of(case, block=block)
        assert torch.equal(found.correct, whole.correct)
        assert torch.equal(found.predictions, whole.predictions)
        torch.testing.assert_close(found.loss, whole.loss, rtol=1e-4, atol=1e-5)
    other = outcomes_of(case, seed=1)
    assert not torch.equal(other.loss, whole.loss)  # the start is random


def test_blocks_are_those_of_the_grid_that_were_asked_for(case):
    model, x, y = case
    attack = named_attack("fgsm", Eps("0.1", 0.1))
    found = [
        list(
            attack_part(
                model, x, y, torch.arange(23), perturb=make_perturb(attack),
                check=make_check(attack), loss=LOSSES["logistic"], seed=0, block=10, starts=starts,
            )
        )
        for starts in (None, [20, 0])
    ]  # fmt: skip
    places = [[(one.start, len(one.x_adv), one.together) for one in blocks] for blocks in found]
    assert places == [[(0, 10, 10), (10, 10, 10), (20, 3, 10)], [(20, 3, 10), (0, 10, 10)]]
    assert torch.equal(found[1][0].outcomes.loss, found[0][2].outcomes.loss)


def test_scaled_scores_keep_accuracies(case):
    model = case[0]
    for name in ("fgsm", "pgd"):
        found = outcomes_of(case, 0.02, name=name)
        scaled = outcomes_of(case, 0.02, name=name, model=lambda x: 10 * model(x))
        assert torch.equal(scaled.clean_correct, found.clean_correct)
        assert torch.equal(scaled.correct, found.correct)
        assert 0 < int(found.correct.sum()) < int(found.clean_correct.sum())


class Moved:
    """An attack that adds a constant and claims to have seen a gradient."""

    def __init__(self, by, box=True):
        self.by, self.box = by, box

    def __call__(self, model, x, y, streams):
        moved = x + self.by
        self.x = moved.clamp(0, 1) if self.box else moved
        self.vanished = torch.zeros(len(x), dtype=torch.bool)
        return self


@pytest.mark.parametrize(
    ("by", "box", "text"),
    [
        (0.06, True, "left the ball at example"),
        (0.04, False, "left the box at example"),
        (float("nan"), True, "pgd .*at example 0"),
    ],
)
def test_points_outside_are_an_error(case, by, box, text):
    with pytest.raises(AttackError, match=text):
        outcomes_of(case, perturb=Moved(by, box), block=5)
    assert len(outcomes_of(case, perturb=Moved(0.04)).loss) == 23


def test_a_run_whose_attack_leaves_its_ball_reports_nothing(digits_run, monkeypatch):
    monkeypatch.setattr(run, "make_perturb", lambda settings, **_: Moved(0.2))
    records = []
    with pytest.raises(AttackError, match="left the ball"):
        for record in attack_steps(digits_run, AttackChoice(("fgsm",)), n=20):
            records.append(record)
    assert records == []


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda s: s[:, 0], r"needs scores \(n, s\), got \(1,\) for 1"),
        (lambda s: s[:0], r"got \(0, 3\) for 1"),
        (lambda s: s[:, :0], r"got \(1, 0\) for 1"),
        (lambda s: s[:, :2], "a model of 2 scores needs labels from 0 to 1, got 2"),
        (lambda s: s[:, :1], "a model of 1 scores needs labels from 0 to 1, got 2"),
    ],
)
def test_wrong_scores_are_refused(case, wrong, text):
    model = case[0]
    assert int(case[2].max()) == 2
    with pytest.raises(InputError, match=text):
        outcomes_of(case, model=lambda x: wrong(model(x)))


@pytest.mark.parametrize("label", (-1, 3))
def test_wrong_labels_are_refused_wherever_they_are(case, label):
    y = case[2].clone()
    y[17] = label
    with pytest.raises(InputError, match=f"labels from 0 to 2, got {label}"):
        outcomes_of(case, y=y, block=4)


def test_scores_that_are_not_finite_are_refused(case):
    model = case[0]
    with pytest.raises(AttackError, match="not finite"):
        outcomes_of(case, model=lambda x: model(x) / 0.0)
