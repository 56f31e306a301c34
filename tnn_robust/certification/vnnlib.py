"""Properties in the VNN-LIB format: boxes of inputs, and linear constraints on X and Y.

A property says when a network is unsafe: some input X and its output Y meet all assertions.
It is read into cases, one of which must hold: a box, and linear constraints.
"""

import gzip
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tnn_robust.base.errors import DataError

_TOKEN = re.compile(r"[()]|[^\s()]+")
_VARIABLE = re.compile(r"([XY])_(\d+)$")
_MOST_CASES = 100_000
Tree = list  # of texts and trees
Linear = dict[str, float]  # coefficients by variable, "" for the constant


class Case(NamedTuple):
    """low, high: (n,) the box; on_x (k, n), on_y (k, s), limit (k,): on_x x + on_y y <= limit."""

    low: np.ndarray
    high: np.ndarray
    on_x: np.ndarray
    on_y: np.ndarray
    limit: np.ndarray

    def holds(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Whether the point x (n,) with output y (s,) meets all constraints but the box."""
        return bool((self.on_x @ x + self.on_y @ y <= self.limit).all())


class Property(NamedTuple):
    """inputs, outputs: how many; cases: unsafe is a point that meets one of them."""

    inputs: int
    outputs: int
    cases: tuple[Case, ...]

    def unsafe(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Whether a point x (n,) with output y (s,) is one that the property excludes.

        The box is met up to the rounding of its sides to float32.
        """
        return any(_in_box(case, x) and case.holds(x, y) for case in self.cases)


def _in_box(case: Case, x: np.ndarray) -> bool:
    low, high = (t.astype(np.float32).astype(np.float64) for t in (case.low, case.high))
    return bool(((x >= np.minimum(low, case.low)) & (x <= np.maximum(high, case.high))).all())


def read_vnnlib(path: Path | str) -> Property:
    """A property of a file, packed by gzip or not. DataError for what cannot be used."""
    try:
        raw = Path(path).read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    try:
        return parse_vnnlib(text)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def parse_vnnlib(text: str) -> Property:
    """A property of VNN-LIB text. DataError for constraints that are not linear, inputs
    without a box, and whatever else is no such property."""
    sizes, found = {"X": 0, "Y": 0}, [[]]  # type: ignore[var-annotated]
    for one in _trees(re.sub(r";[^\n]*", "", text)):
        if one[:1] == ["declare-const"] and len(one) == 3:
            kind, number = _variable(str(one[1]))
            sizes[kind] = max(sizes[kind], number + 1)
        elif one[:1] == ["assert"] and len(one) == 2:
            found = _both(found, _cases(one[1]))
        elif one[:1] not in (["set-logic"], ["check-sat"], ["set-info"]):
            raise DataError(f"a property has declare-const and assert, got {_said(one)}")
    if not sizes["X"] or not sizes["Y"]:
        raise DataError("a property needs variables X_0, ... and Y_0, ..., got none")
    cases = tuple(_case(one, sizes["X"], sizes["Y"]) for one in found)
    return Property(sizes["X"], sizes["Y"], cases)


def _trees(text: str) -> list[Tree]:
    """The parenthesised expressions of a text."""
    top: Tree = []
    stack = [top]
    for token in _TOKEN.findall(text):
        if token == "(":
            stack[-1].append([])
            stack.append(stack[-1][-1])
        elif token == ")":
            stack.pop()
            if not stack:
                raise DataError("a closing parenthesis is one too many")
        else:
            stack[-1].append(token)
    if len(stack) > 1:
        raise DataError("a closing parenthesis is missing")
    if any(isinstance(one, str) for one in top):
        raise DataError(f"a property needs expressions in parentheses, got {_said(top)}")
    return top


def _cases(tree: Tree | str) -> list[list[Linear]]:
    """A condition as alternatives of constraints `linear <= 0`."""
    if isinstance(tree, str) or not tree:
        raise DataError(f"an assertion needs a comparison, got {_said(tree)}")
    head, *rest = tree
    if head == "and":
        found: list[list[Linear]] = [[]]
        for one in rest:
            found = _both(found, _cases(one))
        return found
    if head == "or":
        return [case for one in rest for case in _cases(one)]
    if head in ("<=", ">=", "<", ">") and len(rest) == 2:
        left, right = (_linear(one) for one in rest)
        # An open half-space is taken with its edge: unsafe then includes what it should.
        difference = _sum(left, right, -1.0)
        return [[difference if head in ("<=", "<") else _sum({}, difference, -1.0)]]
    if head == "=" and len(rest) == 2:
        difference = _sum(_linear(rest[0]), _linear(rest[1]), -1.0)
        return [[difference, _sum({}, difference, -1.0)]]
    raise DataError(f"a condition is and, or, <= or >=, got {_said(tree)}")


def _both(a: list[list[Linear]], b: list[list[Linear]]) -> list[list[Linear]]:
    if len(a) * len(b) > _MOST_CASES:
        raise DataError(f"a property of more than {_MOST_CASES} cases is too large")
    if len(b) == 1:  # in place: files have thousands of these
        for one in a:
            one += b[0]
        return a
    return [[*one, *other] for one in a for other in b]


def _linear(tree: Tree | str) -> Linear:
    if isinstance(tree, str):
        if _VARIABLE.match(tree):
            return {tree: 1.0}
        try:
            value = float(tree)
        except ValueError as error:
            raise DataError(f"a number or a variable is needed, got {tree}") from error
        if not np.isfinite(value):
            raise DataError(f"finite numbers are needed, got {tree}")
        return {"": value}
    head, *rest = tree or [""]
    terms = [_linear(one) for one in rest]
    if head == "+" and terms:
        total: Linear = {}
        for one in terms:
            total = _sum(total, one, 1.0)
        return total
    if head == "-" and terms:
        first = terms[0] if len(terms) > 1 else {}
        for one in terms[1:] or terms:
            first = _sum(first, one, -1.0)
        return first
    if head == "*" and len(terms) == 2:
        for factor, other in (terms, terms[::-1]):
            if set(factor) <= {""}:
                return {name: factor.get("", 0.0) * value for name, value in other.items()}
    raise DataError(f"a linear constraint is needed, got {_said(tree)}")


def _sum(a: Linear, b: Linear, factor: float) -> Linear:
    total = dict(a)
    for name, value in b.items():
        total[name] = total.get(name, 0.0) + factor * value
    return total


def _variable(name: str) -> tuple[str, int]:
    match = _VARIABLE.match(name)
    if match is None or len(match[2]) > 8:
        raise DataError(f"variables are X_0, ... and Y_0, ..., got {name}")
    return match[1], int(match[2])


def _case(constraints: list[Linear], inputs: int, outputs: int) -> Case:
    low, high = np.full(inputs, -np.inf), np.full(inputs, np.inf)
    on_x: list[np.ndarray] = []
    on_y: list[np.ndarray] = []
    limit: list[float] = []
    for one in constraints:
        parts = [(_variable(name), value) for name, value in one.items() if name and value]
        if any(number >= (inputs if kind == "X" else outputs) for (kind, number), _ in parts):
            raise DataError(f"a constraint names a variable that is not declared: {one}")
        edge = -one.get("", 0.0)
        if len(parts) == 1 and parts[0][0][0] == "X":
            (_, number), factor = parts[0]
            if factor > 0:
                high[number] = min(high[number], edge / factor)
            else:
                low[number] = max(low[number], edge / factor)
            continue
        rows = {"X": np.zeros(inputs), "Y": np.zeros(outputs)}
        for (kind, number), value in parts:
            rows[kind][number] = value
        on_x.append(rows["X"])
        on_y.append(rows["Y"])
        limit.append(edge)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DataError("every X needs a lower and an upper limit")
    k = len(limit)
    shaped = np.array(on_x).reshape(k, inputs), np.array(on_y).reshape(k, outputs)
    return Case(low, high, *shaped, np.array(limit))


def _said(tree: object) -> str:
    text = str(tree).replace("'", "").replace(",", "")
    return text if len(text) <= 80 else text[:77] + "..."
