"""What is known of one example under attack."""

from dataclasses import dataclass

from tnn_robust.base.codec import Record, require


@dataclass(frozen=True)
class Example(Record):
    """One example of a part ("train" or "test"), clean and at the worst point found.

    index: its place in the part; clean_prediction, clean_margin: without an attack, the margin
    being the score of the label minus the best other; prediction, margin: at the point of least
    margin over all attacks and the clean one, an example standing where it is above 0; broken_by:
    the first attack in the report's order that broke it, "clean" where none was needed; eps: the
    smallest found that breaks it, 0 where it is wrong when clean. None: not asked for, or, of
    broken_by and eps, not broken.

    Of the other side, None where nothing was certified: decision: broken, certified or unknown;
    certified_margin: no perturbation leaves a smaller margin; certified_eps: no smaller one breaks
    it.
    """

    LATER = ("decision", "certified_margin", "certified_eps")

    part: str
    index: int
    label: int
    clean_prediction: int
    clean_margin: float
    prediction: int | None = None
    margin: float | None = None
    broken_by: str | None = None
    eps: float | None = None
    decision: str | None = None
    certified_margin: float | None = None
    certified_eps: float | None = None

    def __post_init__(self) -> None:
        require(self.index >= 0, "an index of at least 0", self.index)
        require(self.eps is None or self.eps >= 0, "an eps of at least 0", self.eps)
        known = (None, "broken", "certified", "unknown")
        require(self.decision in known, "broken, certified or unknown", self.decision)
        fallen = self.broken_by is not None
        alike = self.decision is None or (self.decision == "broken") == fallen
        require(alike, "a decision that broken_by agrees with", self.decision)
        low = self.certified_eps
        require(low is None or low >= 0, "a certified eps of at least 0", low)
