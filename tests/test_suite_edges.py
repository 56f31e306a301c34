"""Suites at the edges: few scores, one example, nothing to break, balls of no or all size."""

import pytest
import torch
from torch import Tensor, nn

import tnn_robust as tr
from tnn_robust.reporting.tables import attack_notes, attack_tables


class Sums(nn.Module):
    """k scores: `scale` times the first k entries of an example; one score for k = 1."""

    def __init__(self, k: int, scale: float = 9.0):
        super().__init__()
        self.k, self.scale = k, nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.scale * (flat[:, :1] - flat[:, 1:2] if self.k == 1 else flat[:, : self.k])


def data_of(k: int, n: int = 12, wrong: bool = False) -> tr.Dataset:
    """Examples (n, 3, 3) whose largest of the first k entries is the label, or the one after."""
    classes = max(k, 2)
    y = torch.arange(n) % classes
    x = torch.full((n, 9), 0.2)
    x[torch.arange(n), y] = 0.8
    if k == 1:  # label 1 is where the score is positive
        y = 1 - y
    shown = (y + 1) % classes if wrong else y
    x = x.reshape(n, 3, 3)
    return tr.Dataset.from_arrays(x, shown, x.clone(), shown, limits=(0, 1))


def text(report) -> str:
    return "\n".join(attack_notes(report))


@pytest.mark.parametrize("k", (1, 2, 3, 5))
def test_a_suite_on_any_number_of_scores(k):
    for eps, left in ((0.2, 12), (0.4, 0)):
        threat = tr.Threat("linf", eps)
        report = tr.evaluate(Sums(k), data_of(k), threat=threat, checks=False, n=12)
        assert report.worst_case.test.correct == left
        assert report.worst_case.test.clean_correct == 12
        # Members that nothing was left for are still rows, with no work.
        assert len(report.attacks) == (3 if k == 1 else 4 if k == 2 else 5)
        assert attack_tables(report) and text(report)


def test_one_example_and_all_wrong_when_clean():
    one = tr.evaluate(Sums(3), data_of(3), n=1, threat=tr.Threat("linf", 0.4))
    assert one.worst_case.test.n == 1 and one.worst_case.test.correct == 0
    assert attack_tables(one) and "examples of a part have a loss above its mean" in text(one)
    wrong = tr.evaluate(Sums(3), data_of(3, wrong=True), threat=tr.Threat("linf", 0.1))
    worst = wrong.worst_case.test
    assert (worst.clean_correct, worst.correct, worst.broken) == (0, 0, 0)
    assert "no example of the test part is classified correctly" in text(wrong)


def test_a_ball_of_no_size_and_one_of_the_wrong_unit():
    data, note = data_of(3), "reaches any point of the data's range"
    nothing = tr.evaluate(Sums(3), data, threat=tr.Threat("linf", 0.0))
    assert nothing.worst_case.test.correct == 12 and "eps 0 leaves" in text(nothing)
    for norm, size, noted in (
        ("linf", 8.0, True), ("linf", 1.0, False), ("l2", 3.1, True), ("l2", 2.9, False),
        ("l1", 9.5, True), ("l1", 8.0, False),
    ):  # fmt: skip
        threat = tr.Threat(norm, size)
        report = tr.evaluate(Sums(3), data, threat=threat, checks=False)
        assert (note in text(report)) is noted, (norm, size)
    pixels = tr.evaluate(Sums(3), data, threat=tr.Threat("linf", 8, text="8"), checks=False)
    assert "an eps in pixels of 0 to 255 is 8/255 here" in text(pixels)


@pytest.mark.slow
def test_a_curve_and_a_fast_report_say_what_their_figures_are_worth():
    data, model = data_of(3), Sums(3)
    for top, noted in ((1.0, False), (8.0, True)):
        curve = tr.curve(model, data, eps=[0, top])
        lines = [one for one in curve.model.get("notes", ()) if "reaches any point" in one]
        assert len(lines) == noted and not any("eps 0" in one for one in lines)
    for attack in (tr.attacks.FGSM("linf", 0.1), tr.attacks.FGM("l2", 0.1)):
        fast = tr.evaluate(model, data, attack, checks=False)
        assert "This is one attack, an optimistic figure: --suite standard settles it" in text(fast)
    suite = tr.evaluate(model, data, suite="standard", threat=tr.Threat("linf", 0.2), checks=False)
    assert "optimistic" not in text(suite)


def test_a_part_without_a_class_is_refused_in_one_line():
    data = data_of(3)
    keep = data.test.y != 2
    with pytest.raises(tr.DataError, match="test") as refusal:
        tr.Dataset.from_arrays(
            data.train.x, data.train.y, data.test.x[keep], data.test.y[keep], limits=(0, 1)
        )
    assert "\n" not in str(refusal.value)


def test_a_drawn_part_without_a_class_is_attacked():
    report = tr.evaluate(Sums(3), data_of(3), n=2, threat=tr.Threat("linf", 0.4), checks=False)
    assert report.worst_case.test.n == 2 and report.worst_case.test.correct == 0
