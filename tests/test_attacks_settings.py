"""What a user types becomes settings: exactly, with sane defaults, or with an error that helps."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.attacks.registry import attacks_of, named_attack
from tnn_robust.base.errors import InputError
from tnn_robust.base.threat import Eps, Threat, parse_eps

LAW = settings(derandomize=True, deadline=None, max_examples=100, database=None)
TENTH = Eps("0.1", 0.1)


def values(text):
    return [eps.value for eps in parse_eps(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8/255", [8 / 255]),
        ("0.03", [0.03]),
        ("1e-3", [0.001]),
        ("0", [0.0]),
        ("0,0.1, 8/255", [0.0, 0.1, 8 / 255]),
        # In floating point 0 + 6 * 0.05 is 0.30000000000000004, past the end.
        ("0:0.3:0.05", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
        ("0:8/255:2/255", [0.0, 2 / 255, 4 / 255, 6 / 255, 8 / 255]),
        ("0:1:0.4", [0.0, 0.4, 0.8]),
        ("0.5:0.5:1", [0.5]),
        ("0.01,0.1:0.3:0.1", [0.01, 0.1, 0.2, 0.3]),
    ],
)
def test_eps_are_read_exactly(text, wanted):
    assert values(text) == wanted


@LAW
@given(
    start=st.integers(0, 50),
    step=st.integers(1, 50),
    count=st.integers(1, 30),
    n=st.integers(1, 999),
)
def test_ranges_include_their_end(start, step, count, n):
    stop = start + (count - 1) * step
    wanted = [float(Fraction(start + i * step, n)) for i in range(count)]
    assert values(f"{start}/{n}:{stop}/{n}:{step}/{n}") == wanted


def test_eps_keep_the_text_typed():
    assert [eps.text for eps in parse_eps("8/255, 0.030")] == ["8/255", "0.030"]
    assert [eps.text for eps in parse_eps("0:0.3:0.1")] == ["0", "0.1", "0.2", "0.3"]


@pytest.mark.parametrize(
    "text",
    ["import os", "__import__('os').abort()", "2**3", "1e", "", " ", ",", "0.1,", "-1", "-1/255"]
    + ["nan", "inf", "-inf", "1/0", "1/2/3", "0x10", "eps", "1e400", "1e-999999999", "1e999999999"]
    + ["0:1", "0:1:0", "0:1:-0.1", "1:0:0.1", "0:1:1e-9", "0:1e300:1", "0:1:2:3", "::"],
)
def test_what_is_not_a_size_is_refused_and_never_evaluated(text):
    with pytest.raises(InputError, match="^(an )?eps "):
        parse_eps(text)


def test_defaults_of_the_attacks():
    fgsm, fgm, pgd = (named_attack(name, TENTH) for name in ("fgsm", "fgm", "pgd"))
    assert (fgsm.threat.norm, fgsm.steps, fgsm.step_size, fgsm.random_start) == (
        "linf",
        1,
        0.1,
        False,
    )
    assert (fgm.threat.norm, fgm.steps, fgm.step_size, fgm.random_start) == ("l2", 1, 0.1, False)
    assert (pgd.threat.norm, pgd.steps, pgd.restarts, pgd.random_start) == ("linf", 40, 1, True)
    assert {one.loss for one in (fgsm, fgm, pgd)} == {"margin"}
    assert (pgd.threat.text, pgd.threat.eps) == TENTH


@pytest.mark.parametrize("steps", (2, 10, 100))
def test_the_steps_of_an_iterated_attack_cover_the_ball(steps):
    assert named_attack("pgd", TENTH, steps=steps).step_size == pytest.approx(0.25 / steps)
    assert named_attack("pgd", TENTH, steps=1).step_size == 0.1
    assert named_attack("pgd", TENTH, steps=steps, step_size=0.7).step_size == 0.7
    assert named_attack("torchattacks:PGD", TENTH).step_size == pytest.approx(0.025)


def test_pgd_takes_every_norm():
    for norm in BALLS:
        assert named_attack("pgd", TENTH, norm=norm).threat.norm == norm


@pytest.mark.parametrize(
    ("name", "eps", "options", "message"),
    [
        ("pgd", -0.1, {}, "eps needs a number from 0 to 1e\\+06"),
        ("pgd", float("nan"), {}, "eps needs a number from 0 to 1e\\+06"),
        ("pgd", float("inf"), {}, "eps needs a number from 0 to 1e\\+06"),
        ("pgd", 0.1, {"steps": 0}, "at least 1 step, got 0"),
        ("fgsm", 0.1, {"steps": 0}, "at least 1 step, got 0"),
        ("pgd", 0.1, {"restarts": 0}, "at least 1 restart, got 0"),
        ("pgd", 0.1, {"step_size": 0.0}, "step size needs a number above 0"),
        ("pgd", 0.1, {"step_size": float("nan")}, "step size needs a number above 0"),
        (
            "pdg",
            0.1,
            {},
            "unknown attack 'pdg', did you mean pgd. choose from fgsm, fgm, pgd, apgd",
        ),
        ("pgd", 0.1, {"norm": "l3"}, "unknown norm 'l3'.* choose from linf, l2, l1, nuclear, spec"),
        ("pgd", 0.1, {"loss": "hinge"}, "unknown loss 'hinge': choose from margin, logistic, cro"),
        ("fgsm", 0.1, {"norm": "l2"}, "fgsm is an attack in linf, got norm l2: use pgd"),
        ("fgm", 0.1, {"norm": "linf"}, "fgm is an attack in l2, got norm linf: use pgd"),
        ("fgsm", 0.1, {"steps": 7}, "fgsm takes one step, got steps 7: use pgd"),
        ("torchattacks:CW", 0.1, {}, "unknown torchattacks attack 'CW': choose from FGSM, BIM"),
        ("torchattacks:", 0.1, {}, "unknown torchattacks attack ''"),
        ("torchattacks:PGD", 0.1, {"norm": "l2"}, "torchattacks:PGD is bounded in linf, got l2"),
        ("torchattacks:APGD", 0.1, {"norm": "l1"}, "bounded in linf or l2, got l1"),
    ],
)
def test_bad_settings_are_refused(name, eps, options, message):
    with pytest.raises(InputError, match=message):
        named_attack(name, Eps(str(eps), eps), **options)


TRAINED = named_attack("pgd", Eps("0.5", 0.5), norm="l2", steps=7)


def resolved(trained=TRAINED, **choice):
    found = attacks_of(AttackChoice(**choice), trained)
    return [(one.name, one.threat.norm, one.threat.eps) for one in found]


def test_a_runs_own_threat_is_the_default():
    assert resolved() == [("fgm", "l2", 0.5), ("pgd", "l2", 0.5)]
    assert resolved(None) == [("fgsm", "linf", 8 / 255), ("pgd", "linf", 8 / 255)]
    assert resolved(TRAINED.at(Threat("nuclear", 0.5))) == [("pgd", "nuclear", 0.5)]
    assert resolved(eps=(TENTH,)) == [("fgm", "l2", 0.1), ("pgd", "l2", 0.1)]
    # Evaluation does not inherit the weaker search of training.
    assert attacks_of(AttackChoice(), TRAINED)[1].steps == 40


def test_every_attack_meets_every_eps():
    found = resolved(names=("fgm", "pgd"), eps=parse_eps("0,1/2"))
    assert found == [("fgm", "l2", 0.0), ("pgd", "l2", 0.0), ("fgm", "l2", 0.5), ("pgd", "l2", 0.5)]


@pytest.mark.parametrize(
    "choice", [{"norm": "linf"}, {"names": ("fgsm",)}, {"names": ("pgd", "torchattacks:PGD")}]
)
def test_another_norm_than_the_runs_needs_its_own_eps(choice):
    with pytest.raises(InputError, match=r"is in linf and the run's eps 0.5 in l2: give an eps"):
        resolved(**choice)
    assert {norm for _, norm, eps in resolved(eps=(TENTH,), **choice) if eps == 0.1} >= {"linf"}


def test_the_norm_asked_for_is_everyones():
    with pytest.raises(InputError, match="fgsm is an attack in linf, got norm l2"):
        resolved(names=("pgd", "fgsm"), norm="l2", eps=(TENTH,))
    with pytest.raises(InputError, match="torchattacks:PGD is bounded in linf, got l2"):
        resolved(names=("torchattacks:PGD",), norm="l2", eps=(TENTH,))
    assert resolved(names=("torchattacks:APGD",), norm="l2") == [("torchattacks:APGD", "l2", 0.5)]


@pytest.mark.parametrize("option", ({"steps": 5}, {"step_size": 0.1}, {"random_start": False}))
def test_steps_are_of_the_iterated_attacks_alone(option):
    choice = {"eps": (TENTH,), "restarts": 3, "loss": "logistic", **option}
    fgsm, pgd = attacks_of(AttackChoice(names=("fgsm", "pgd"), **choice), None)
    assert fgsm == named_attack("fgsm", TENTH, restarts=3, loss="logistic")
    assert pgd == named_attack("pgd", TENTH, restarts=3, loss="logistic", **option)
    with pytest.raises(InputError, match="fgsm takes one step: steps are settings of pgd"):
        attacks_of(AttackChoice(names=("fgsm",), **choice), None)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("torchattacks:FGSM", {"steps": 5}),
        ("torchattacks:BIM", {"random_start": True}),
        ("torchattacks:PGD", {"restarts": 2}),
        ("torchattacks:PGD", {"loss": "logistic"}),
        ("torchattacks:Square", {"steps": 5}),
        ("apgd", {"step_size": 0.1}),
        ("apgd-t", {"loss": "cross-entropy"}),
        ("fab", {"random_start": True}),
        ("square", {"restarts": 2}),
    ],
)
def test_what_no_attack_takes_is_refused_and_not_dropped(name, option):
    said = f"{name} takes no {next(iter(option))}: use pgd"
    with pytest.raises(InputError, match=said):
        named_attack(name, TENTH, **option)
    with pytest.raises(InputError, match=said):
        resolved(names=(name,), eps=(TENTH,), **option)
    # With one that takes it, it is of that one, and the other's row does not claim it.
    found, pgd = attacks_of(AttackChoice((name, "pgd"), (TENTH,), **option), None)
    assert found == named_attack(name, TENTH) and pgd == named_attack("pgd", TENTH, **option)


def test_a_class_of_several_norms_follows_the_run():
    assert resolved(names=("torchattacks:APGD",)) == [("torchattacks:APGD", "l2", 0.5)]
    assert resolved(None, names=("torchattacks:APGD",)) == [("torchattacks:APGD", "linf", 8 / 255)]
    with pytest.raises(InputError, match="is in linf and the run's eps 0.5 in l1: give an eps"):
        resolved(TRAINED.at(Threat("l1", 0.5)), names=("torchattacks:APGD",))


def test_a_row_says_all_that_its_attack_depends_on():
    ours = named_attack("pgd", TENTH, steps=5, restarts=2).settings()
    assert ours == {
        "steps": 5,
        "step_size": pytest.approx(0.05),
        "restarts": 2,
        "random_start": True,
        "skip_blocked": True,
        "loss": "margin",
    }
    theirs = named_attack("torchattacks:PGD", TENTH, steps=5).settings()
    assert theirs == {"steps": 5, "alpha": pytest.approx(0.05), "random_start": True}
    assert named_attack("torchattacks:Square", TENTH, norm="l2").settings() == {
        "norm": "L2",
        "n_restarts": 1,
    }
