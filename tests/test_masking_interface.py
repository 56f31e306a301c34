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
from tnn_robust.base.threat import Eps
from tnn_robust.evaluation.masking import trace_of
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
            run_checks(model, (x, y), make_attacks(**{name: far(0.2)}))
    with pytest.raises(AttackError, match="left the ball"):
        run_checks(model, (x, y), make_attacks(noise=lambda x, streams, draw: x + 0.2))
    with pytest.raises(AttackError, match="covers the box"):
        run_checks(model, (x, y), make_attacks(huge=far(0.2)))


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
