"""Which premises of the paper's theorems a network and its data meet."""

from collections.abc import Sequence

from tnn_robust.base.losses import LOG_SEPARABLE, is_separable
from tnn_robust.theory.approximate import Decay
from tnn_robust.theory.implicit_bias import MUCH_GREATER, Teacher
from tnn_robust.theory.logs import exp, log
from tnn_robust.theory.loss_constants import in_assumption_6
from tnn_robust.theory.results import BoundFacts, MeasuredGap, Premise

DECAYING = "Thm 21, Cor. 22, paper shape"
IMPLICIT = "Thm 16"


def general_premises(
    facts: BoundFacts, *, bias: bool, orthogonal: tuple[float, bool], activation: str = "relu"
) -> tuple[Premise, ...]:
    """Those of every bound. orthogonal: max |M M^H - I| and whether it is rounding."""
    relu = activation == "relu"
    many = facts.scores > 1
    confined = f" {facts.confined}" if facts.confined else ""
    fitting = in_assumption_6(facts.loss, facts.scores)
    return (
        _bounded(facts),
        Premise(
            "Assumption 6",
            fitting,
            f"{facts.loss} loss of {facts.scores} score{'s' * many}"
            + ("" if fitting else "; it needs the logistic or exponential loss of one score"),
        ),
        Premise("two classes", not many, f"scores: {facts.scores}"),
        Premise(
            "Assumption 8",
            True,
            f"{facts.norm}{confined} norm <= {facts.eps}, so ||delta||_F <= "
            f"{facts.eps_value * facts.constant:.4g}",
        ),
        Premise("no bias", not bias, "f is not homogeneous" if bias else "f is homogeneous"),
        *(() if relu else (Premise("ReLU", False, f"activation {activation}"),)),
        Premise("M orthogonal", orthogonal[1], f"max |M M^H - I| = {orthogonal[0]:.2g}"),
        Premise(
            "F fixed in advance",
            None,
            "norms and ranks are this network's own, found after training",
        ),
    )


def _bounded(facts: BoundFacts) -> Premise:
    """Assumption 5: only the box bounds the norm of an example that nobody has seen."""
    box = (facts.features * facts.channels) ** 0.5
    examples = f"{facts.n} training and {facts.n_test} test examples"
    limit = f"||x||_F <= {facts.input_norm:.4g}"
    if facts.beyond:
        detail = f"{limit}, but {facts.beyond} of the {examples} exceed it"
        return Premise("Assumption 5", False, f"{detail} (the box allows {box:.4g})")
    if facts.input_norm >= box * (1 - 1e-12):
        return Premise("Assumption 5", True, f"{limit}, which the box [0, 1] allows at most")
    origin = "as given" if facts.input_given else f"the largest of {facts.n} training examples"
    detail = f"{limit}, {origin}; no test example exceeds it (the box allows {box:.4g})"
    return Premise("Assumption 5", None, detail)


def compression_premises(decay: Decay) -> tuple[Premise, ...]:
    """Those of Theorems 19 and 21 and Corollary 22."""
    return (
        Premise(
            "Assumption 18",
            None,
            "phi from Dudley's integral over all parameters",
            "Thm 19, paper shape",
        ),
        Premise(
            "Assumption 20",
            decay.alpha > 0.5,
            f"sigma_j <= {decay.v0:.4g} j^-{decay.alpha:.4g} on every face, alpha > 1/2",
            DECAYING,
        ),
    )


def implicit_premises(
    facts: BoundFacts, teacher: Teacher, gap: MeasuredGap | None
) -> tuple[Premise, ...]:
    """Those of Theorem 16, with ">>" read as MUCH_GREATER times."""
    layers, narrowest = len(facts.widths), min(facts.widths)
    scale = facts.least_norm + facts.eps_value * facts.constant
    return (
        _separable(facts, gap),
        Premise(
            "an example of norm <= 1",
            scale > 0,
            "as it is" if 0 < scale <= 1 else f"after dividing the data by {scale:.4g}",
            IMPLICIT,
        ),
        Premise(
            "L >> J",
            layers >= MUCH_GREATER * teacher.layers,
            f"{layers} layers, J = {teacher.layers}; {MUCH_GREATER} times is asked",
            IMPLICIT,
        ),
        Premise(
            "d_l >> m_J",
            narrowest >= MUCH_GREATER * teacher.width,
            f"least width {narrowest}, m_J = {teacher.width}; {MUCH_GREATER} times is asked",
            IMPLICIT,
        ),
        Premise(
            "a teacher g fits",
            None,
            f"with B = {teacher.norm:.4g} on the divided data, assumed",
            IMPLICIT,
        ),
        Premise(
            "global optimum of (15)", None, "that the weights are one cannot be checked", IMPLICIT
        ),
    )


def _separable(facts: BoundFacts, gap: MeasuredGap | None) -> Premise:
    """Assumption 14 at these weights, for the attack's points.

    The sum over a subset can refute it, and cannot confirm it.
    """
    name = "Assumption 14"
    if not in_assumption_6(facts.loss, facts.scores):
        return Premise(name, False, "its loss is outside Assumption 6", IMPLICIT)
    if gap is None:
        return Premise(name, None, "needs the measured gap", IMPLICIT)
    total, limit = gap.n_train * gap.train_risk, exp(LOG_SEPARABLE[facts.loss])
    below = is_separable(log(gap.train_risk), gap.n_train, facts.loss)
    holds = None if below and gap.n_train < facts.n else below
    detail = f"losses of {gap.n_train} of {facts.n} sum to {total:.3g}, at most {limit:.3g}"
    return Premise(name, holds, detail, IMPLICIT)


def covered(premises: Sequence[Premise], *of: str) -> bool:
    """Whether no premise of these theorems is known to fail."""
    return all(premise.holds is not False for premise in premises if premise.of in of)
