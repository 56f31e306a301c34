"""Masked networks under a whole suite: the report's own outcomes are what the checks compare."""

import pytest
import torch
from torch import nn
from torch.autograd import Function

import tnn_robust as tr
from tnn_robust.evaluation.subject import load_run_data
from tnn_robust.models.checkpoint import load_checkpoint


class _Replaced(Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx, z, change):
        ctx.change = change
        return z.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


class Masked(nn.Module):
    """A network whose inputs or scores are masked: before(z) and after(scores)."""

    def __init__(self, model, before=lambda z: z, after=lambda scores: scores):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, z):
        return self.after(self.model(self.before(z)))


def with_gradient(change):
    return lambda z: _Replaced.apply(z, change)


def noisy_gradient(gradient):
    return torch.randn_like(gradient) * gradient.abs().mean()


def tiny_waves(z):
    """A saw that hides the slope: its own is three hundred times as steep, its height nothing."""
    return z + 1e-3 * torch.sin(3e5 * z)


def rounded(scores):
    return torch.round(2 * scores) / 2


def far_away(scores):
    return scores + 1e5


def centred(scores):
    return scores - scores.mean(0)


MASKS = {
    "inputs of three levels": {"before": lambda z: torch.round(2 * z) / 2},
    "inputs of five levels": {"before": lambda z: torch.round(4 * z) / 4},
    "the gradient turned": {"before": with_gradient(torch.neg)},
    "no gradient": {"before": with_gradient(torch.zeros_like)},
    "a gradient of other pixels": {"before": with_gradient(lambda g: g.flip(1, 2))},
    "a gradient of NaN": {"before": with_gradient(lambda g: g * torch.nan)},
    "a random gradient": {"before": with_gradient(noisy_gradient)},
    "tiny waves": {"before": tiny_waves},
    "random inputs": {"before": lambda z: z + 0.2 * torch.randn_like(z)},
    "scores rounded": {"after": rounded},
    "scores far away": {"after": far_away},
    "scores times 1e5": {"after": lambda scores: 1e5 * scores},
    "scores of the batch": {"after": centred},
}


def checked(run, mask, threat, suite, n=40):
    checkpoint = load_checkpoint(run, torch.device("cpu"))
    model = Masked(checkpoint.model, **mask)
    report = tr.evaluate(model, load_run_data(checkpoint), suite=suite, threat=threat, n=n)
    assert all(one.seconds >= 0 for one in report.checks)
    return {one.name for one in report.checks if not one.passed}


THREATS = {"digits_run": tr.Threat("linf", 0.05), "binary_run": tr.Threat("l2", 0.5)}


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("run", THREATS)
def test_a_masked_network_is_caught_by_a_suites_checks(run, mask, request):
    if (run, mask) == ("binary_run", "scores of the batch"):
        pytest.skip("one score less its mean is the sound network's with another threshold")
    warned = checked(request.getfixturevalue(run), MASKS[mask], THREATS[run], "quick")
    assert warned


@pytest.mark.slow
@pytest.mark.parametrize("suite", ("quick", "standard"))
@pytest.mark.parametrize("run", THREATS)
def test_a_sound_network_is_not(run, suite, request):
    assert checked(request.getfixturevalue(run), {}, THREATS[run], suite) == set()
