"""Both sides of a report: certificates never contradict attacks, and never change a verdict."""

import csv
import dataclasses
import functools
import json

import pytest
import torch
from attack_cases import box_points
from cli_checks import load_json, refused, succeeded
from conftest import run_cli
from foreign_models import ConvNet
from torch import nn

import tnn_robust as tr
from tnn_robust.attacks.apgd import APGD, APGDT, apgd_targeted
from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.fab import FAB
from tnn_robust.attacks.points import frozen
from tnn_robust.attacks.square import Square
from tnn_robust.attacks.suite import suite_attacks
from tnn_robust.base.codec import require_interval
from tnn_robust.base.errors import CertificateError, InputError
from tnn_robust.base.losses import LOSSES, margin
from tnn_robust.base.progress import drain
from tnn_robust.base.randomness import Streams
from tnn_robust.certification.certify import chain_of
from tnn_robust.certification.chain import from_sequential
from tnn_robust.certification.lipschitz import worst_margins
from tnn_robust.certification.margins import MarginBounder, certified
from tnn_robust.evaluation import minimal as minimal_module
from tnn_robust.evaluation.certified import affordable, largest_losses, threats_of
from tnn_robust.evaluation.report import evaluate_steps
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.evaluation.subject import live_subject
from tnn_robust.models.network import Architecture, new_model

PARTS = ("train", "test")
THREAT = tr.Threat("linf", 0.1)


def network(scores=4, *, shape=(4, 3), dtype=torch.float32, seed=0):
    architecture = Architecture(*shape, (5, 5), (None, None), scores, "dct")
    return new_model(architecture, seed, dtype=dtype)


def labels(model, x):
    with torch.no_grad():
        scores = model(x)
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)


def labelled(model, n=16, shape=(4, 3)):
    """Two parts that the model has mostly right; scores (n, s) of (n, d, c)."""
    x = box_points(2 * n, shape, dtype=torch.float32)
    y = labels(model, x)
    classes = max(2, model.architecture.scores)
    for part in (y[:n], y[n:]):  # every class is there, some examples are wrong
        part[:classes] = torch.arange(classes)
    return tr.Dataset.from_arrays(x[:n], y[:n], x[n:], y[n:])


def bounder(model):
    chain = chain_of(model, (4, 3))
    return MarginBounder.of(chain, model, getattr(model, "transform", None))


def around(x, threat, count=300):
    """Points (count, n, d, c) of a whole linf ball or l2 ball, and box."""
    step = torch.rand(count, *x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    step = (
        step.sign()
        if threat.norm == "linf"
        else step / step.flatten(2).norm(dim=2)[..., None, None]
    )
    return (x + threat.eps * step).clamp(0, 1)


@pytest.fixture(scope="module")
def both():
    """The quick suite on a small network, alone and with certificates."""
    model = network(seed=4)
    data = labelled(model)
    attacks = (*suite_attacks("quick", THREAT, scores=4, entries=12)[:3], FAB(THREAT, steps=5))
    attacks = (*attacks, Square(THREAT, steps=60))  # less of what takes long
    found = []
    for certify in (False, True):
        steps = evaluate_steps(
            live_subject(model, data, None),
            data,
            attacks,
            suite="quick",
            checks=False,
            examples=True,
            certify=certify,
        )
        found.append(drain(steps).report)
    return model, data, *found


# --- The report ------------------------------------------------------------------------------


def test_certificates_change_no_verdict_and_spare_the_suite(both):
    _, _, alone, sided = both
    assert alone.certified is None and alone.uncertified == ""
    assert sided.standing == alone.standing
    for one, other in zip(alone.examples, sided.examples, strict=True):
        assert (one.broken_by is None) == (other.broken_by is None)
    names = [row.name for row in sided.attacks]
    assert names == ["apgd", "apgd", "apgd-t", "fab", "square"]
    for part in PARTS:
        worst, sure = getattr(sided.worst_case, part), getattr(sided.certified, part)
        assert worst.correct == getattr(alone.worst_case, part).correct
        assert 0 < sure.certified == sure.examples_left_out <= worst.correct
        assert sure.broken == worst.n - worst.correct
        assert sure.unknown == worst.correct - sure.certified
        rows = [getattr(row, part) for row in sided.attacks]
        before = [getattr(row, part) for row in alone.attacks]
        # The attacks that measure the risk met the same examples, the others fewer.
        assert [row.attacked for row in rows[:2]] == [row.attacked for row in before[:2]]
        assert rows[1].risk == before[1].risk
        for row, was in zip(rows[2:], before[2:], strict=True):
            assert row.attacked == was.attacked - sure.certified
    assert sided.certified.test.unknown + sided.certified.train.unknown > 0
    assert sided.certified.test.classes_left_out + sided.certified.train.classes_left_out > 0


def test_the_sandwich_holds_the_gap_and_the_risk(both):
    _, _, _, sided = both
    sure, worst = sided.certified, sided.worst_case
    for part in PARTS:
        assert getattr(worst, part).risk <= getattr(sure, part).risk
        assert getattr(sure, part).accuracy <= getattr(worst, part).accuracy
    assert sure.agp_accuracy[0] == sure.train.accuracy - worst.test.accuracy
    assert sure.agp_accuracy[1] == worst.train.accuracy - sure.test.accuracy
    for low, value, high in (
        (sure.agp_accuracy[0], worst.agp.accuracy, sure.agp_accuracy[1]),
        (sure.agp_risk[0], worst.agp.risk, sure.agp_risk[1]),
    ):
        assert low <= value <= high and low < high
    assert sure.agp_risk[0] == worst.test.risk - sure.train.risk
    assert sure.agp_risk[1] == sure.test.risk - worst.train.risk


def test_each_example_has_its_decision(both):
    _, _, alone, sided = both
    counts = dict.fromkeys(("broken", "certified", "unknown"), 0)
    for one in sided.examples:
        counts[one.decision] += one.part == "test"
        assert (one.decision == "broken") == (one.broken_by is not None)
        assert (one.decision == "certified") == (one.certified_margin > 0)
        assert one.certified_margin <= one.margin + 1e-6
    sure = sided.certified.test
    assert counts == {"broken": sure.broken, "certified": sure.certified, "unknown": sure.unknown}
    assert {one.decision for one in alone.examples} == {None}


def test_reports_of_before_stay_readable_and_ranges_are_checked(both):
    _, _, alone, sided = both
    for report in (alone, sided):
        assert AttackReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    old = alone.to_json()
    del old["certified"], old["uncertified"]
    for one in old["examples"]:
        del one["decision"], one["certified_margin"], one["certified_eps"]
    assert AttackReport.from_json(old) == alone
    sure = sided.certified
    for change in ({"certified": sure.test.n}, {"broken": sure.test.broken + 1}):
        with pytest.raises(ValueError, match="needs"):
            test = dataclasses.replace(sure.test, **change)
            dataclasses.replace(sided, certified=dataclasses.replace(sure, test=test))
    assert "certified (crown): train" in str(sided)


def test_attacks_that_are_no_suite_run_on_all_and_are_certified_too(both):
    model, data, *_ = both
    attacks = [tr.attacks.FGSM("linf", 0.01), tr.attacks.PGD("linf", 0.02, steps=3)]
    found = tr.evaluate(model, data, attacks, checks=False, certify=True, seed=[0, 1])
    assert found.certified.threats == ("linf eps 0.02",)
    assert found.certified.test.examples_left_out == 0
    assert {row.test.attacked for row in found.attacks} == {found.worst_case.test.n}
    several = threats_of([*attacks, tr.attacks.PGD("l2", 0.1), tr.attacks.PGD("linf", 0.02)])
    assert [str(one) for one in several] == ["linf eps 0.02", "l2 eps 0.1"]


def test_stacked_networks_are_certified_each(both):
    model, data, *_ = both
    other = network(seed=1)
    pgd = tr.attacks.PGD("linf", 0.02, steps=3)
    reports = [tr.evaluate(m, data, pgd, checks=False, certify=True) for m in (model, other)]
    rows = tr.compare(reports, ["one", "other"]).rows
    assert [row.report.certified.test.certified for row in rows] == [
        report.certified.test.certified for report in reports
    ]


# --- An attack that breaks a certificate -----------------------------------------------------


def test_a_broken_certificate_is_an_error_of_the_run(both, monkeypatch):
    model, data, *_ = both

    def unsound(self, x, y, threat, method, radii=None):
        return torch.full((len(x), 4), 0.25, dtype=torch.float64)

    monkeypatch.setattr(MarginBounder, "lower", unsound)
    with pytest.raises(CertificateError, match=r"apgd did to train example \d+ .* at least 0.25"):
        tr.evaluate(model, data, threat=THREAT, checks=False, certify=True)


def test_a_class_said_to_be_out_of_reach_is_watched_too(both, monkeypatch):
    model, data, *_ = both
    whole = MarginBounder.lower

    def unsound(self, x, y, threat, method, radii=None):
        found = whole(self, x, y, threat, method, radii)
        return torch.where(certified(found)[:, None], found, found.abs() + 0.1) - 0.2 * (
            torch.arange(4) == 3
        )

    monkeypatch.setattr(MarginBounder, "lower", unsound)
    pgd = tr.attacks.PGD("linf", 0.3, steps=5)
    with pytest.raises(CertificateError, match="bug"):
        tr.evaluate(model, data, pgd, checks=False, certify=True)


def test_nothing_is_written_of_a_run_that_contradicts_itself(digits_run, tmp_path, monkeypatch):
    def unsound(self, x, y, threat, method, radii=None):
        return torch.full((len(x), 10), 0.25, dtype=torch.float64)

    monkeypatch.setattr(MarginBounder, "lower", unsound)
    file = tmp_path / "r.json"
    options = ("--attack", "fgsm", "--n", 20, "--certify", "--json", file)
    refused(run_cli("attack", digits_run, *options), "fgsm did to train example", "bug")
    assert not file.exists()


# --- Bounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scores", [1, 4])
def test_no_point_of_the_ball_is_beyond_the_bounds(norm, scores):
    model = network(scores)
    x = box_points(12, (4, 3), dtype=torch.float32)
    y, threat = labels(model, x), tr.Threat(norm, {"linf": 0.05, "l2": 0.2}[norm])
    lower = bounder(model).lower(x, y, threat, "crown")
    points = around(x, threat)
    with torch.no_grad():
        out = model(points.flatten(0, 1)).double()
    again = y.repeat(len(points))
    assert bool((margin(out, again).reshape(-1, 12) >= lower.amin(1)).all())
    for name, loss in LOSSES.items():
        most = largest_losses(lower, y, name)
        assert bool((loss(out, again).reshape(-1, 12) <= most).all())
        assert bool(most.isfinite().all())
    if scores > 1:
        gaps = out.gather(1, again[:, None]) - out
        own = torch.zeros_like(gaps, dtype=torch.bool).scatter(1, again[:, None], True)
        assert bool(((gaps >= lower.repeat(len(points), 1)) | own).all())
    radii = torch.linspace(0.01, threat.eps, 12, dtype=torch.float64)
    each = bounder(model).lower(x, y, threat, "crown", radii)
    for i in (0, 7, 11):
        one = tr.Threat(norm, float(radii[i]))
        alone = bounder(model).lower(x[i : i + 1], y[i : i + 1], one, "crown")[0]
        assert torch.allclose(each[i], alone, atol=1e-6)


@pytest.mark.parametrize("scores", [1, 4])
def test_lipschitz_bounds_hold_and_are_taken_where_they_are_better(scores):
    model = network(scores)
    x = box_points(12, (4, 3), dtype=torch.float32)
    y, threat = labels(model, x), tr.Threat("l2", 0.2)
    lower = worst_margins(model, x, y, torch.full((12,), 0.2, dtype=torch.float64))
    points = around(x, threat)
    with torch.no_grad():
        out = model(points.flatten(0, 1)).double()
    assert bool((margin(out, y.repeat(300)).reshape(-1, 12) >= lower.amin(1)).all())
    far = tr.Threat("l2", 3.0)
    at = torch.full((12,), 3.0 * (1 + 1e-5), dtype=torch.float64)
    both = bounder(model).lower(x, y, far, "ibp")
    assert bool((both >= worst_margins(model, x, y, at)).all())
    alone = bounder(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))  # of which none are known
    assert alone.model is None


def test_layers_that_only_look_like_torchs_own_are_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked = nn.Sequential(nn.Linear(4, 3))
    hooked[0].register_forward_hook(lambda *_: None)
    for model, name in ((nn.Sequential(Doubled(4, 3)), "Doubled"), (hooked, "hooks on layer 0")):
        with pytest.raises(InputError, match=name):
            from_sequential(model, (4,))
    assert from_sequential(nn.Sequential(nn.Linear(4, 3)), (4,)).scores == 3


# --- What a certificate rules out is left out of the targeted attack -------------------------


class Counting(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x):
        self.rows += len(x)
        return self.model(x)


def test_targets_out_of_reach_are_not_tried_and_nothing_else_changes():
    model = network(dtype=torch.float64)
    x = box_points(10, (4, 3))
    y = labels(model, x)
    others = torch.arange(4) != y[:, None]

    def attacked(unreachable):
        counted = Counting(model)
        with frozen(model):
            found = apgd_targeted(
                counted, x, y, ball=BALLS["linf"], norm="linf", eps=0.1, steps=10,
                streams=Streams(0, torch.arange(10)), unreachable=unreachable,
            )  # fmt: skip
        return found, counted.rows

    whole, rows = attacked(None)
    same, again = attacked(torch.zeros(10, 4, dtype=torch.bool))
    assert torch.equal(whole.x, same.x) and again == rows == 10 + 3 * 10 * 11
    none, few = attacked(torch.ones(10, 4, dtype=torch.bool))
    assert torch.equal(none.x, x) and few == 10 and not bool(none.vanished.any())
    # Example by example but one class is left: the best over the classes is the whole.
    margins = []
    for left in range(3):
        only = others & (others.cumsum(1) - 1 == left)
        found, count = attacked(~only)
        assert count == 10 + 10 * 11
        with torch.no_grad():
            margins.append(margin(model(found.x), y))
    with torch.no_grad():
        assert torch.allclose(torch.stack(margins).amin(0), margin(model(whole.x), y))


def test_the_attack_asks_by_the_places_of_the_examples():
    model = network()
    x = box_points(6, (4, 3), dtype=torch.float32)
    asked = []

    def unreachable(indices):
        asked.append(indices.tolist())
        return torch.ones(len(indices), 4, dtype=torch.bool)

    perturb = APGDT("linf", 0.1, steps=3).perturbation(BALLS["linf"], unreachable=unreachable)
    found = perturb(model, x, labels(model, x), Streams(0, torch.tensor([5, 3, 8, 1, 0, 2])))
    assert asked == [[5, 3, 8, 1, 0, 2]] and torch.equal(found.x, x)


# --- When there is a certificate -------------------------------------------------------------


def test_by_default_a_certificate_is_had_where_it_is_cheap():
    small, large = (chain_of(network(shape=(d, 8)), (d, 8)) for d in (8, 64))
    standard = [APGD(THREAT), APGD(THREAT, loss="cross-entropy"), APGDT(THREAT)]
    standard += [tr.attacks.FAB("linf", 0.02), tr.attacks.Square("linf", 0.02, steps=5000)]
    assert affordable(small, standard, [(100, 90)] * 2).method == "crown"
    weak = [tr.attacks.FGSM("linf", 0.02)]
    assert affordable(small, weak, [(100, 90)] * 2).method is None
    assert "times the multiplications of the attacks" in affordable(large, weak, [(9, 9)]).why
    # The fewer stand, the less work the attacks are, and the more balls, the more certificates.
    order = (None, "crown-ibp", "crown")
    for left, balls in ((90, 1), (50, 1), (0, 1), (90, 20)):
        choice = affordable(small, standard, [(100, left)], balls=balls).method
        assert order.index(choice) <= 2
    assert affordable(small, standard, [(100, 0)], balls=20).method != "crown"


def test_a_module_that_certificates_do_not_go_through_says_so_in_a_line():
    x = torch.rand(40, 1, 8, 8)
    data = tr.Dataset.from_arrays(x, torch.arange(40) % 10, x.flip(0), torch.arange(40) % 10)
    pgd = tr.attacks.PGD("linf", 0.01, steps=2)
    found = tr.evaluate(ConvNet(), data, pgd, checks=False)
    assert found.certified is None and "got a ConvNet" in found.uncertified
    with pytest.raises(InputError, match="ConvNet"):
        tr.evaluate(ConvNet(), data, pgd, checks=False, certify=True)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    for image in (x, x[:, 0]):  # on images and on matrices
        y = plain(image).argmax(1).index_copy(0, torch.arange(10), torch.arange(10))
        mine = tr.Dataset.from_arrays(image, y, image, y)
        sure = tr.evaluate(plain, mine, pgd, checks=False, certify=True).certified
        assert sure.test.certified > 0 and sure.method == "crown"


# --- Curves and smallest perturbations -------------------------------------------------------


def test_the_certified_curve_stays_under_the_attacked_one(both, monkeypatch):
    model, data, *_ = both
    sizes = [0, 0.01, 0.03, 0.1]
    pgd = tr.attacks.PGD("linf", 0.1, steps=5)
    found = tr.curve(model, data, eps=sizes, attack=pgd, certify=True)
    counts = [point.certified_test for point in found.points]
    assert counts == sorted(counts, reverse=True) and found.certified_by == "crown"
    assert counts[0] == found.points[0].test.correct > counts[2] > 0
    for point in found.points:
        assert point.certified_test <= point.test.correct
        assert point.certified_train <= point.train.correct
    without = tr.curve(model, data, eps=sizes, attack=pgd, certify=False)
    assert {point.certified_test for point in without.points} == {None}
    for one, other in zip(found.points, without.points, strict=True):
        assert one.test == other.test
    old = without.to_json()
    del old["certified_by"], old["uncertified"]
    assert type(without).from_json(old) == without

    def unsound(self, x, y, threat, method, radii=None):
        return torch.full((len(x), 4), 0.25, dtype=torch.float64)

    monkeypatch.setattr(MarginBounder, "lower", unsound)
    with pytest.raises(CertificateError, match="certificate of training example"):
        tr.curve(model, data, eps=sizes, attack=pgd, certify=True)


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_the_smallest_eps_of_an_example_is_bracketed(norm, monkeypatch):
    # What is searched how well is a matter of other tests.
    quick = functools.partial(
        minimal_module.find_minimal, steps=10, fab_steps=5, bisections=2, bisection_steps=3
    )
    monkeypatch.setattr(minimal_module, "find_minimal", quick)
    model = network(2)
    data = labelled(model, 6)
    reports = tr.minimal(model, data, norm=norm, certify=True)
    assert reports == tuple(type(one).from_json(one.to_json()) for one in reports)
    for report, part in zip(reports, (data.train, data.test), strict=True):
        assert 0 < report.certified_median <= report.median
        for one in report.examples:
            assert one.certified_eps <= one.eps
            assert (one.certified_eps == 0) == (one.eps == 0)
            if one.certified_eps and one.index < 4:
                x, y = part.x[one.index][None], part.y[one.index][None]
                threat = tr.Threat(norm, one.certified_eps)
                assert tr.certify(model, (x, y), threat, method="crown").certified == 1
        require_interval("bracket", (report.certified_quantiles[95], report.quantiles[95]))
    assert tr.minimal(model, data, norm=norm)[0].certified_by is None

    def unsound(self, x, y, threat, method, radii=None):
        return torch.full((len(x), 2), 0.25, dtype=torch.float64)

    monkeypatch.setattr(MarginBounder, "lower", unsound)
    with pytest.raises(CertificateError, match=r"train example \d+ is certified at"):
        tr.minimal(model, data, norm=norm, certify=True)


# --- The command line ------------------------------------------------------------------------


def test_the_command_prints_both_sides_in_80_columns(digits_run, tmp_path):
    files = tmp_path / "r.json", tmp_path / "e.csv"
    options = ("--attack", "pgd", "--steps", 3, "--eps", "0.01", "--n", 20, "--certify")
    printed = succeeded(
        run_cli("attack", digits_run, *options, "--json", files[0], "--examples", files[1])
    )
    assert "Both sides: certified, broken, and the risk between" in printed
    assert max(map(len, printed.splitlines())) <= 80
    sure = load_json(files[0])["certified"]
    row = next(line for line in printed.split("Both sides")[1].splitlines() if "test" in line)
    assert row.split()[3:6] == [str(sure["test"][k]) for k in ("certified", "unknown", "broken")]
    with files[1].open() as file:
        decisions = [one["decision"] for one in csv.DictReader(file) if one["part"] == "test"]
    assert decisions.count("certified") == sure["test"]["certified"] > 0
    assert decisions.count("broken") == sure["test"]["broken"]
    none = succeeded(run_cli("attack", digits_run, *options[:-1], "--no-certify"))
    assert "ertifi" not in none


def test_saved_points_of_a_suite_that_spared_the_certified_are_verified(digits_run, tmp_path):
    adv = tmp_path / "adv"
    options = ("--suite", "quick", "--eps", "0.01", "--n", 12, "--certify", "--save-adv", adv)
    succeeded(run_cli("attack", digits_run, *options, "--examples", tmp_path / "e.csv"))
    assert "all figures agree" in succeeded(run_cli("attack", "--verify", adv))
