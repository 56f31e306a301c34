"""Bounds of linear functionals by going backwards through the stages (CROWN), and intervals.

A functional a of the values h that enter a stage becomes one of the values that enter the
stage before: each entry takes the line above or below the activation that its sign asks for,
then the adjoint of the linear maps. At the input the region gives its least value. Rows of
functionals are (c, m, d), m rows; `who` (m,) names the example of each, None for one example.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.certification.chain import Chain, Stage, merged
from tnn_robust.certification.region import Least, Region, dot, of_rows
from tnn_robust.certification.relaxation import Bounds, Lines, lines_of
from tnn_robust.certification.rounding import layer_error


class Rows(NamedTuple):
    """Functionals <a, h> + value of the values h that enter stage `level`; who: see the module."""

    level: int
    a: Tensor
    value: Tensor
    who: Tensor | None

    def take(self, rows: Tensor) -> "Rows":
        """Some of the rows."""
        who = None if self.who is None else self.who[rows]
        return Rows(self.level, self.a[:, rows], self.value[rows], who)

    def to(self, dtype: torch.dtype) -> "Rows":
        """In another dtype: for steps that prove nothing."""
        return self._replace(a=self.a.to(dtype), value=self.value.to(dtype))


class Multipliers(NamedTuple):
    """What a bound may choose freely, for each activation below the rows: slopes in
    [floor, 1] (c, m, d), and multipliers >= 0 of the splits (c, m, d), None without splits;
    weight: those (m,) of what is assumed, None where nothing is. With a weight the activations
    are all that are below what is assumed."""

    slopes: list[Tensor]
    splits: list[Tensor] | None = None
    weight: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Multipliers":
        """In another dtype."""
        splits = None if self.splits is None else [t.to(dtype) for t in self.splits]
        weight = None if self.weight is None else self.weight.to(dtype)
        return Multipliers([t.to(dtype) for t in self.slopes], splits, weight)

    def take(self, rows: Tensor) -> "Multipliers":
        """Those of some of the rows."""
        splits = None if self.splits is None else [t[:, rows] for t in self.splits]
        weight = None if self.weight is None else self.weight[rows]
        return Multipliers([t[:, rows] for t in self.slopes], splits, weight)


@dataclass(frozen=True, eq=False)
class Ground:
    """All that a backward pass meets: a chain, a region, and by stage what is known of it.

    errors: (c, n, d) of every stage met; lines, bounds: of every activation met; signs: of
    the splits, (c, n, d) of 1 for z >= 0, -1 for z <= 0 and 0, None without; assumed: one
    functional an example that is at most 0 wherever bounds are asked, if any.
    """

    chain: Chain
    region: Region
    errors: tuple[Tensor, ...] = ()
    lines: tuple[Lines, ...] = ()
    bounds: tuple[Bounds, ...] = ()
    signs: tuple[Tensor, ...] | None = None
    assumed: Rows | None = None

    def take(self, rows: Tensor) -> "Ground":
        """The same of some of the examples."""
        return replace(
            self,
            region=self.region.take(rows),
            errors=tuple(t[:, rows] for t in self.errors),
            lines=tuple(one.take(rows) for one in self.lines),
            bounds=tuple(Bounds(*(t[:, rows] for t in one)) for one in self.bounds),
            signs=None if self.signs is None else tuple(t[:, rows] for t in self.signs),
            assumed=None if self.assumed is None else self.assumed.take(rows),
        )

    def to(self, dtype: torch.dtype) -> "Ground":
        """In another dtype: for steps that prove nothing."""
        return replace(
            self,
            chain=self.chain.single if dtype == torch.float32 else self.chain.to(dtype),
            region=self.region.to(dtype),
            errors=tuple(t.to(dtype) for t in self.errors),
            lines=tuple(one.to(dtype) for one in self.lines),
            signs=None if self.signs is None else tuple(t.to(dtype) for t in self.signs),
            assumed=None if self.assumed is None else self.assumed.to(dtype),
        )

    def with_error(self, stage_error: Tensor) -> "Ground":
        """With the rounding of the next stage known, and nothing else."""
        return replace(self, errors=(*self.errors, stage_error))

    def above(self, stage_error: Tensor, bounds: Bounds) -> "Ground":
        """With the next stage and its activation known."""
        lines = lines_of(self.chain.stages[len(self.lines)], bounds)
        return replace(
            self,
            errors=(*self.errors, stage_error),
            lines=(*self.lines, lines),
            bounds=(*self.bounds, bounds),
        )


def side_by_side(grounds: Sequence[Ground]) -> Ground:
    """The grounds of several examples, or of one more than once, as one."""
    first = grounds[0]
    regions = [one.region for one in grounds]
    x, low, high = (
        torch.cat(t, 1) for t in zip(*((r.x, r.low, r.high) for r in regions), strict=True)
    )

    def cat(of: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [torch.cat(list(t), 1) for t in zip(*of, strict=True)]

    stages = range(len(first.lines))
    return replace(
        first,
        region=replace(first.region, x=x, low=low, high=high),
        errors=tuple(cat([one.errors for one in grounds])),
        lines=tuple(Lines(*cat([one.lines[i] for one in grounds])) for i in stages),
        bounds=tuple(Bounds(*cat([one.bounds[i] for one in grounds])) for i in stages),
    )


def functionals(ground: Ground, level: int, a: Tensor, who: Tensor | None) -> Rows:
    """Rows of functionals a (c, m, d) of the output z of a stage, as rows of what enters it."""
    stage, error = ground.chain.stages[level], of_rows(ground.errors[level], who)
    value = -dot(a.abs(), error)
    if stage.bias is not None:
        value = value + dot(a, stage.bias)
    return Rows(level, stage.adjoint(a), value, who)


def lower_bounds(ground: Ground, rows: Rows, chosen: Multipliers | None = None) -> Tensor:
    """Lower bounds (m,) of the functionals; NaN counts as -inf. CROWN where nothing is chosen."""
    passed = backward(ground, rows, chosen)
    value = passed.value + ground.region.lower(passed.a, rows.who)
    return torch.where(value == value, value, -torch.inf)


def least(ground: Ground, rows: Rows, chosen: Multipliers | None = None) -> Least:
    """The same, and the point (c, m, d) of the region at which the bound is taken, nearly."""
    passed = backward(ground, rows, chosen)
    found = ground.region.least(passed.a, rows.who)
    value = passed.value + found.value
    return Least(torch.where(value == value, value, -torch.inf), found.place)


class Passed(NamedTuple):
    """The functionals a (c, m, d) of the input that rows are bounded by, and their constants
    value (m,); afters, rises: by level what they were after each activation, and of that the
    part above 0."""

    a: Tensor
    value: Tensor
    afters: list[Tensor]
    rises: list[Tensor]


def backward(ground: Ground, rows: Rows, chosen: Multipliers | None = None) -> Passed:
    """Rows, and what is assumed by its weight, down to the input.

    The passes over the functionals take most of the time: a `where`, or a mask of bool, would
    take twenty times as long as one of these.
    """
    top, a, value = _start(ground, rows, chosen)
    who, afters, rises = rows.who, [], []
    for level in reversed(range(top)):
        lines = ground.lines[level]
        afters.append(a)
        rise, fall = a.clamp_min(0), a.clamp_max(0)
        value = value + dot(fall, of_rows(lines.offset, who))
        below = of_rows(lines.lower, who) if chosen is None else chosen.slopes[level]
        upper = of_rows(lines.upper, who)
        if a.requires_grad:  # in training, where what a gradient needs is not overwritten
            a = rise * below + fall * upper
        else:
            a = fall.mul_(upper).addcmul_(rise, below)
        rises.append(rise)
        if chosen is not None and chosen.splits is not None and ground.signs is not None:
            a.addcmul_(chosen.splits[level], of_rows(ground.signs[level], who), value=-1)
        _, a, more, _ = functionals(ground, level, a, who)
        value = value + more
        if level == rows.level and level < top:
            a, value = a + rows.a, value + rows.value
    return Passed(a, value, afters[::-1], rises[::-1])


def _start(ground: Ground, rows: Rows, chosen: Multipliers | None) -> tuple[int, Tensor, Tensor]:
    """The level, functionals and constants that a backward pass starts from."""
    assumed = ground.assumed
    if chosen is None or chosen.weight is None or assumed is None:
        return rows.level, rows.a, rows.value
    who, weight = rows.who, chosen.weight
    a = weight[None, :, None] * of_rows(assumed.a, who)
    value = weight * (assumed.value if who is None else assumed.value[who])
    if rows.level == assumed.level:
        a, value = a + rows.a, value + rows.value
    return assumed.level, a, value


def interval(ground: Ground, stage_rows: Tensor, error: Tensor) -> Bounds:
    """Interval arithmetic of the next stage, by the sizes |W| of its merged matrix.

    stage_rows: `merged` of the stage, (c_in, N, d_in).
    """
    stage = ground.chain.stages[len(ground.lines)]
    return interval_of(stage, stage_rows.abs(), entering(ground), error)


def interval_of(stage: Stage, sizes: Tensor, between: Bounds, error: Tensor | float) -> Bounds:
    """The same of a stage whose inputs lie `between`; sizes: |W|, (c_in, N, d_in)."""
    low, high = between
    middle, reach = (low + high) / 2, (high - low) / 2
    # One product over all inputs: a sum over the channels of many would move more memory.
    flat = reach.permute(1, 0, 2).flatten(1)
    spread = flat @ sizes.permute(1, 0, 2).flatten(1).T  # (n, N)
    c, d = stage.shape
    spread = spread.reshape(-1, c, d).permute(1, 0, 2) + error
    z = stage.forward(middle)
    return Bounds(z - spread, z + spread)


def entering(ground: Ground) -> Bounds:
    """Bounds of what enters the next stage."""
    if not ground.bounds:
        return Bounds(ground.region.low, ground.region.high)
    stage, bounds = ground.chain.stages[len(ground.bounds) - 1], ground.bounds[-1]
    return Bounds(*stage.activated_between(*bounds))


def error_of_next(ground: Ground) -> Tensor:
    """The rounding error (c, n, d) of the next stage in the user's forward pass."""
    stage = ground.chain.stages[len(ground.lines)]
    return layer_error(ground.chain, stage, *entering(ground))


def merged_rows(chain: Chain) -> list[Tensor]:
    """The merged matrix of each stage but the last, as rows; see `chain.merged`."""
    widths = [chain.shape, *(stage.shape for stage in chain.stages)]
    return [merged(stage, width) for stage, width in zip(chain.stages[:-1], widths, strict=False)]


def neuron_rows(
    ground: Ground,
    level: int,
    rows: Tensor,
    neurons: Tensor,
    who: Tensor | None,
    error: Tensor,
    sign: float,
) -> Rows:
    """Rows of a stage's neurons (m,), or of their negatives.

    rows: `merged` of the stage; error: (c, n, d) of it.
    """
    stage = ground.chain.stages[level]
    c, d = stage.shape
    flat = error.permute(1, 0, 2).reshape(-1, c * d)
    value = -(flat[0, neurons] if who is None else flat[who, neurons])
    if stage.bias is not None:
        value = value + sign * stage.bias.reshape(-1)[neurons]
    return Rows(level, sign * rows[:, neurons], value, who)


def chunks(who: Tensor, entries: int, block: int) -> Iterator[Tensor]:
    """Places of rows, sorted by example, in blocks whose functionals have at most `block`
    entries. The rows of a large network are one example's in each block, so that nothing is
    gathered."""
    count = max(1, block // entries)
    sizes = torch.bincount(who)
    if count >= 2 * int(sizes.max()):
        yield from torch.arange(len(who), device=who.device).split(count)
        return
    start = 0
    for size in sizes.tolist():
        for part in torch.arange(start, start + size, device=who.device).split(count):
            if len(part):
                yield part
        start += size


def narrowed(ground: Ground, who: Tensor) -> tuple[Ground, Tensor | None]:
    """The ground of the examples of some rows, and who they are there."""
    if bool((who == who[0]).all()):
        return ground.take(who[:1]), None
    return ground, who
