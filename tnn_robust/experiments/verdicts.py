"""A verdict per claim of the paper, computed from the records by stated rules."""

from collections.abc import Callable, Sequence

from tnn_robust.experiments.gap_verdicts import claim_1, claim_2, claim_6
from tnn_robust.experiments.results import CellRecord, Verdict
from tnn_robust.experiments.trajectory_verdicts import claim_3, claim_4, claim_5


def verdicts(records: Sequence[CellRecord]) -> list[Verdict]:
    """Those claims the records speak of: 1, 2 and 6 of A.1, 3 and 4 of A.2, 5 of A.3."""
    by_name = {name: [r for r in records if r.cell["experiment"] == name] for name in _CLAIMS}
    return [claim(found) for name, found in by_name.items() if found for claim in _CLAIMS[name]]


_CLAIMS: dict[str, tuple[Callable[[Sequence[CellRecord]], Verdict], ...]] = {
    "a1": (claim_1, claim_2, claim_6),
    "a2": (claim_3, claim_4),
    "flow": (claim_3, claim_4),
    "a3": (claim_5,),
}
