"""What counts as a number where a file or a caller may give anything."""

import math


def is_number(value: object) -> bool:
    """Whether it is finite and a number. True and False are ints to Python, not to a reader."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)
