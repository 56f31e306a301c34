"""What goes into the masking checks and comes out of them, and what they refuse."""

import json

import pytest
import torch
from masking_cases import (
    ALL,
    EPS,
    make_attacks,
    run_checks,
)

from tnn_robust.attacks.points import Perturbed, frozen
from tnn_robust.attacks.registry import make_perturb, named_attack
from tnn_robust.base.errors import AttackError, CheckpointError, InputError
from tnn_robust.base.losses import margin
from tnn_robust.base.randomness import Streams
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.masking import Known, trace_of
from tnn_robust.evaluation.results import Check


def test_the_sample_is_drawn_by_seed_and_keeps_its_streams(binary):
    model, x, y = binary
    met = []

    def spy(perturb):
        def wrapped(model, x, y, streams):
            met.append((x, streams))
            return perturb(model, x, y, streams)

        return wrapped

    plain = make_attacks()
    run_checks(model, (x, y), plain._replace(pgd=spy(plain.pgd)), n=20, seed=5)
    run_checks(model, (x, y), plain._replace(pgd=spy(plain.pgd)), n=20, seed=6)
    run_checks(model, (x, y), plain._replace(pgd=spy(plain.pgd)), n=10**6, seed=5)
    (first, at), (_, other), (_, every) = met
    assert at.seed == 5 and torch.equal(x[at.indices], first) and len(first) == 20
    assert not torch.equal(at.indices, other.indices)
    assert torch.equal(every.indices, torch.arange(len(x)))


def test_one_point_of_a_small_sample_is_tolerated(digits):
    model, x, y = digits
    small, large = (run_checks(model, (x, y), n=n) for n in (20, 200))
    shares = {"one step": 0.01, "restarts": 0.02, "rising loss": 0.01, "noise": 0.01}
    for name, share in shares.items():
        assert (small[name].threshold, large[name].threshold) == (1 / 20, share)


def test_what_is_not_handed_in_is_left_out(binary):
    model, x, y = binary
    found = run_checks(model, (x, y), make_attacks(trace=None))
    assert set(ALL) - set(found) == {"rising loss", "transfer"}


def test_a_trace_holds_the_objective_of_every_iterate(digits):
    model, x, y = digits

    def climb(steps, **options):
        size = Eps(str(EPS), EPS)
        chosen = named_attack("pgd", size, steps=steps, step_size=0.04, random_start=False)
        return make_perturb(chosen, **options)

    traced, attacks = trace_of(climb(3, keep_best=False)), [climb(steps) for steps in (1, 2, 3)]
    with frozen(model):
        found = traced(model, x[:9], y[:9], None)
        best = [-margin(model(perturb(model, x[:9], y[:9], None).x), y[:9]) for perturb in attacks]
    assert found.shape == (4, 9)
    assert torch.allclose(found[0], -margin(model(x[:9]), y[:9]).double(), atol=1e-6)
    for steps, value in enumerate(best, start=1):
        assert torch.allclose(found[: steps + 1].amax(0).float(), value, atol=1e-6)


def test_points_outside_of_ball_or_box_are_refused(digits):
    model, x, y = digits

    def far(shift):
        return lambda model, x, y, streams: Perturbed(x + shift, torch.zeros(len(x)).bool())

    for name in ("fgsm", "pgd", "pgd_long", "pgd_restarts", "black_box"):
        with pytest.raises(AttackError, match="left the ball"):
            run_checks(model, (x, y), make_attacks(eps=0.01, **{name: far(0.2)}))
    with pytest.raises(AttackError, match="left the ball"):
        wide = make_attacks(eps=0.01, noise=lambda x, streams, draw: x + 0.2)
        run_checks(model, (x, y), wide)
    with pytest.raises(AttackError, match="covers the box"):
        run_checks(model, (x, y), make_attacks(huge=far(0.2)))


def test_what_is_known_is_not_attacked_again(digits):
    """The checks of points whose outcomes are known are those that find them out themselves."""
    model, x, y = digits
    attacks = make_attacks(eps=0.02)
    alone = run_checks(model, (x, y), attacks)
    pgd = attacks.pgd(model, x, y, Streams(0, torch.arange(len(x))))
    standing = margin(model(pgd.x), y) > 0
    refused = {"pgd": far_from_here, "black_box": far_from_here}
    fell = torch.zeros_like(standing)
    known = Known(standing, pgd.vanished, fell)
    found = run_checks(model, (x, y), attacks._replace(**refused), known=known)
    assert found.pop("black box").message.startswith(f"0 of {len(x)} points")
    assert found == {name: one for name, one in alone.items() if name != "black box"}
    fell[standing.nonzero()[:7, 0]] = True
    fell[(~standing).nonzero()[:7, 0]] = True  # these fell before: they prove nothing
    beaten = run_checks(model, (x, y), attacks._replace(**refused), known=known)["black box"]
    assert beaten.value == 7 / len(x) and not beaten.passed
    assert beaten.message.startswith(f"7 of {len(x)} points stand under PGD")
    sampled = run_checks(model, (x, y), attacks, known=Known(fell=fell))["black box"]
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:60]
    assert sampled.value == int((standing & fell)[rows].sum()) / 60


def far_from_here(model, x, y, streams):
    raise AssertionError("an attack whose outcome is known ran again")


def test_rivals_meet_the_points_that_stand_alone(digits):
    model, x, y = digits
    met, points = {}, {}

    def spy(name, perturb):
        def wrapped(model, x, y, streams):
            found = perturb(model, x, y, streams)
            met[name], points[name] = (x, y), found.x
            return found

        return wrapped

    names = ("pgd", "pgd_long", "pgd_restarts", "black_box")
    plain = make_attacks(eps=0.02)
    attacks = plain._replace(**{name: spy(name, getattr(plain, name)) for name in names})
    found = run_checks(model, (x, y), attacks)
    clean, labels = met["pgd"]
    standing = margin(model(points["pgd"]), labels) > 0
    assert 0 < int(standing.sum()) < len(standing) == 60
    for name in names[1:]:
        assert torch.equal(met[name][0], clean[standing])
    assert all(one.seconds > 0 for one in found.values())
    hopeless = run_checks(lambda z: 0 * model(z), (x, y), make_attacks(black_box=far_from_here))
    assert hopeless["black box"].message.startswith("0 of 60 points")


def test_bad_input_is_refused(digits):
    model, x, y = digits
    for data, options in (((x, y), {"n": 0}), ((x[:0], y[:0]), {}), ((x, y), {"chance": 0.0})):
        with pytest.raises(InputError, match="need points and a chance"):
            run_checks(model, data, make_attacks(), **{"chance": 0.1} | options)
    with pytest.raises(AttackError, match="not finite"):
        run_checks(lambda z: model(z) / 0.0, (x, y))
    active = trace_of(lambda model, x, y, streams: Perturbed(model(x[:3]), y > 0))
    with pytest.raises(InputError, match="a trace needs all 9 points"):
        active(model, x[:9], y[:9], None)


def test_a_check_survives_json_and_derives_its_verdict():
    check = Check("noise", 0.25, 0.01, "5 of 20 points fall")
    stored = json.loads(json.dumps(check.to_json()))
    assert stored["verdict"] == "WARN" and Check.from_json(stored) == check
    assert Check.from_json({**stored, "value": 0.01}).verdict == "PASS"
    with pytest.raises(CheckpointError, match="not a Check record"):
        Check.from_json({"name": "noise"})
