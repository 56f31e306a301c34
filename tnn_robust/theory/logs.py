"""Numbers held as natural logarithms: e^(B_f) of an unconstrained net is beyond any float."""

import math
from collections.abc import Iterable

_LARGEST = math.log(1.7e308)


def log(value: float) -> float:
    """log of a number >= 0; -inf of zero."""
    return math.log(value) if value > 0 else -math.inf


def exp(value: float) -> float:
    """e^value; infinite where a float would overflow."""
    return math.exp(value) if value < _LARGEST else math.inf


def log_sum(values: Iterable[float]) -> float:
    """log of a sum from the logs of its terms; -inf of none."""
    terms = list(values)
    largest = max(terms, default=-math.inf)
    if math.isinf(largest):
        return largest
    return largest + math.log(sum(math.exp(term - largest) for term in terms))
