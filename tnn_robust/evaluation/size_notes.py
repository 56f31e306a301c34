"""What a reader must know of the size of a ball: none at all, or all there is."""

import math
from collections.abc import Iterable

from tnn_robust.base.threat import Threat


def size_notes(threats: Iterable[Threat], entries: int) -> list[str]:
    """Balls that hold all of [0, 1]^entries, often an eps in units of pixels, and of nothing."""
    reach = {"linf": 1.0, "l2": math.sqrt(entries), "l1": float(entries)}
    notes = []
    for threat in dict.fromkeys(threats):
        if threat.eps > reach.get(threat.norm, math.inf):
            notes.append(
                f"WARNING: {threat.norm} eps {threat.text} reaches any point of the data's range "
                f"[0, 1], where {reach[threat.norm]:.4g} would do: an eps in pixels of 0 to 255 "
                f"is {threat.text}/255 here."
            )
        elif threat.eps == 0:
            notes.append(
                f"{threat.norm} eps 0 leaves the examples as they are: nothing is attacked."
            )
    return notes
