"""A mutation check: every unsound change that is planted makes a check of soundness fail."""

from functools import partial

import certification_soundness as sound
import pytest

import tnn_robust as tr

NORMS = tuple(sound.DUALS)
COMPLETE, GRIDS, T_NETWORKS = sound.complete_on_grids, sound.on_grids, sound.on_t_networks
SPLITS = sound.complete_by_splits


def exact(norm):
    return partial(sound.linear_is_exact, norm)


# What is planted: the module, its text and what it becomes, and the check that must see it.
MUTANTS = {
    "half a chord's offset": (
        "relaxation",
        "offset = torch.where(open_, offset, 0.0)",
        "offset = torch.where(open_, 0.5 * offset, 0.0)",
        GRIDS,
    ),
    "a lower slope above 1": (
        "relaxation",
        "steep = torch.where(high > -low, 1.0,",
        "steep = torch.where(high > -low, 1.3,",
        GRIDS,
    ),
    "unstable neurons taken for active": (
        "relaxation",
        "return (self.lower < 0) & (self.upper > 0)",
        "return (self.lower < -0.3) & (self.upper > 0)",
        GRIDS,
    ),
    "a bias left out of the scores": (
        "bounds",
        "value = value + dot(a, stage.bias)",
        "pass",
        GRIDS,
    ),
    "a bias left out of inner neurons": (
        "bounds",
        "value = value + sign * stage.bias.reshape(-1)[neurons]",
        "pass",
        GRIDS,
    ),
    "sizes left out of interval arithmetic": (
        "bounds",
        "torch.bmm(reach, stage_rows.abs().mT)",
        "torch.bmm(reach, stage_rows.mT).abs()",
        GRIDS,
    ),
    "upper bounds that are not negated back": (
        "lower_bounds",
        "value = sign * _raised(here, seeds, steps)",
        "value = _raised(here, seeds, steps).abs() * sign",
        GRIDS,
    ),
    "the last class dropped": (
        "claims",
        "(unit[y][:, None] - unit)[others]",
        "(unit[y][:, None] - unit[torch.arange(scores).clamp_max(scores - 2)])[others]",
        GRIDS,
    ),
    "bounds of another point": (
        "region",
        "return t[:, who]",
        "return t[:, who * 0]",
        GRIDS,
    ),
    "known inner bounds of another point": (
        "claims",
        "known = [Bounds(*(t[:, examples] for t in one)) for one in self.known]",
        "known = [Bounds(*(t[:, examples * 0] for t in one)) for one in self.known]",
        GRIDS,
    ),
    "no allowance for rounding": (
        "rounding",
        "return torch.where(safe, error, torch.inf)",
        "return torch.zeros_like(error)",
        sound.under_rounding,
    ),
    "the dft's adjoint without conjugates": (
        "operators",
        "return torch.bmm(t, self.stack.conj())",
        "return torch.bmm(t, self.stack)",
        T_NETWORKS,
    ),
    "a transform that is not undone": (
        "chain",
        "there, back = (Mix(matrix.double()),), (Mix(matrix.double().T),)",
        "there, back = (Mix(matrix.double()),), (Mix(matrix.double()),)",
        T_NETWORKS,
    ),
    "l_inf with its own norm for its dual": (
        "region",
        "value = dot(rise, of_rows(self.low, who)) + dot(fall, of_rows(self.high, who))",
        "value = dot(a, of_rows(self.x, who)) - self.eps * a.abs().amax((0, 2))",
        exact("linf"),
    ),
    "l2 with the largest entry": (
        "region",
        "size = a.square().sum((0, 2), keepdim=True).sqrt()",
        "return Least(-eps * a.abs().amax((0, 2)), torch.zeros_like(a))",
        exact("l2"),
    ),
    "l1 with the mean entry": (
        "region",
        "value = -level[:, 0] * eps - ((size - level).clamp_min(0) * room).sum(1)",
        "value = -size.mean(1) * eps",
        exact("l1"),
    ),
    "nuclear with the last singular value": (
        "region",
        "return s[:, 0] * (1 + svd_error(*a.shape[::2])), (u",
        "return s[:, -1] * (1 + svd_error(*a.shape[::2])), (u",
        exact("nuclear"),
    ),
    "spectral with the F-norm": (
        "region",
        "return s.sum(1) + error, (u @ vh)",
        "return s.square().sum(1).sqrt() + error, (u @ vh)",
        exact("spectral"),
    ),
    "tubal nuclear with the mean face": (
        "region",
        "return size * (1 + svd_error(*a.shape[::2])), wide.inverse",
        "return norms.mean(0) * (1 + svd_error(*a.shape[::2])), wide.inverse",
        exact("tubal-nuclear"),
    ),
    "splits with the wrong sign": (
        "nodes",
        "tuple(t.double() for t in signs)",
        "tuple(-t.double() for t in signs)",
        SPLITS,
    ),
    "multipliers of splits below 0": (
        "ascent",
        "self.value = moved.clamp_(min=0)",
        "self.value = moved.clamp_(max=0)",
        COMPLETE,
    ),
    "the second half of a split dropped": (
        "nodes",
        "new[k, mine, i], new[k, mine + m, i] = 1, -1",
        "new[k, mine, i], new[k, mine + m, i] = 1, 1",
        COMPLETE,
    ),
    "open nodes not counted": (
        "search",
        "done = (search.open == 0) & ~search.stuck & search.opened",
        "done = ~search.stuck & search.opened",
        COMPLETE,
    ),
    "what is assumed with the wrong sign": (
        "bounds",
        "weight = rows.who, chosen.weight",
        "weight = rows.who, -chosen.weight",
        COMPLETE,
    ),
    "bounds that nearly contradict one another taken for empty": (
        "assumed",
        "if bool((new.lower > new.upper).any()):",
        "if bool((new.lower > new.upper - 0.5).any()):",
        COMPLETE,
    ),
    "a node on the bounds of another": (
        "nodes",
        "bounds = [Bounds(*(t[:, place] for t in one)) for one in root.bounds]",
        "bounds = [Bounds(*(t[:, place * 0] for t in one)) for one in root.bounds]",
        COMPLETE,
    ),
    "an undecided leaf taken for proved": (
        "leaf",
        "lower[i] = max(float(lower[i]), value)",
        "lower[i] = max(float(lower[i]), value, 1e-300)",
        COMPLETE,
    ),
}
CHECKS = {
    "grids": GRIDS,
    "complete": COMPLETE,
    "complete by splits": SPLITS,
    "rounding": sound.under_rounding,
    **{f"exact, {norm}": exact(norm) for norm in NORMS},
    **{f"points, {norm}": partial(T_NETWORKS, norm) for norm in NORMS},
}
CHEAP = [name for name in CHECKS if name.startswith("exact") or name == "rounding"]


@pytest.mark.parametrize("check", CHEAP)
def test_the_certificates_pass_the_cheap_checks(check):
    CHECKS[check]()


@pytest.mark.slow
@pytest.mark.parametrize("check", [name for name in CHECKS if name not in CHEAP])
def test_the_certificates_pass_the_other_checks(check):
    CHECKS[check]()


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_an_unsound_change_is_caught(mutant):
    name, old, new, check = MUTANTS[mutant]
    with sound.planted(name, old, new), pytest.raises((AssertionError, tr.CertificateError)) as met:
        check()
    assert "has no single" not in str(met.value)
