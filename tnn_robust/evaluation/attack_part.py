"""One attack on one part: in blocks, each verified, measured, shared out and put on record."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.apgd import APGD, Unreachable
from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.points import Model, Perturb, frozen
from tnn_robust.base.errors import InputError
from tnn_robust.base.losses import LOSSES, Loss
from tnn_robust.base.precision import FULL, matmul_precision
from tnn_robust.base.progress import Progress, Steps
from tnn_robust.base.randomness import Streams
from tnn_robust.base.team import Team
from tnn_robust.certification.margins import certified
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.agp import NO_WORK, Work
from tnn_robust.evaluation.journal import FinishedBlock, Journal, Key
from tnn_robust.evaluation.risk import (
    OUTCOME_DTYPES,
    Check,
    Counted,
    Outcomes,
    carry_on,
    fresh_rows,
    join,
    measure,
    require_scores,
)
from tnn_robust.evaluation.rows import Result, make_check
from tnn_robust.evaluation.subject import Subject

PerturbOf = Callable[[Attack, Unreachable | None], Perturb]


class Block(NamedTuple):
    """A stretch of examples done: its first row, outcomes and points x_adv on the CPU.

    together: how many examples were computed at a time, fewer than asked where the
    device's memory ran out.
    """

    start: int
    outcomes: Outcomes
    x_adv: Tensor
    together: int


class Target(NamedTuple):
    """A part under attack; so_far: what earlier attacks of a suite have left; margins: lower
    bounds (n, s) on the CPU, by which a suite leaves out what is certified."""

    name: str
    examples: Part
    indices: Tensor
    seed: int
    so_far: Result | None = None
    margins: Tensor | None = None

    def rows_for(self, attack: Attack) -> Tensor:
        """Rows (m,) of the examples that this attack is to run on."""
        if self.so_far is None:
            return torch.arange(len(self.indices))
        standing = self.so_far.outcomes.correct
        if self.margins is not None and leaves_out(attack):
            standing = standing & ~certified(self.margins)
        return standing.nonzero()[:, 0]

    @property
    def ruled_out(self) -> Tensor | None:
        """(n, classes) bool: the classes out of reach, where a suite leaves them out."""
        return None if self.so_far is None or self.margins is None else self.margins > 0


def leaves_out(attack: Attack) -> bool:
    """Whether a suite spares it what is certified: all but the attacks that climb one loss over
    all classes, which are cheap and by which the risk of those examples is measured too."""
    return attack.name != APGD.name


@dataclass
class Job:
    """What the attacks of one report share.

    block: examples of a block of the grid; batch_size: examples between two records of
    progress. together: the fewest examples that were computed at a time, below `block`
    where the device's memory ran out. perturb_of: from an attack, and the classes it may
    leave out, to what runs it.
    """

    subject: Subject
    block: int
    batch_size: int
    keep_points: bool
    journal: Journal | None
    team: Team
    together: int
    perturb_of: PerturbOf


def attack_part(
    model: Model,
    x: Tensor,
    y: Tensor,
    indices: Tensor,
    *,
    perturb: Perturb,
    check: Check,
    loss: Loss,
    seed: int,
    block: int,
    starts: Sequence[int] | None = None,
) -> Iterator[Block]:
    """Attack examples block by block, verify every returned point, and measure.

    x (n, d, c), y (n,) and indices (n,), the examples' places in the data set,
    lie on the model's device, which is frozen. Memory grows with the block. starts: first
    rows of the blocks to do, multiples of `block`; None does all.

    block: examples computed together. It changes the last digits, since matrix
    products of other shapes round in another way, and nothing else. Where the device
    has no memory for so many, they are halved from there on.

    Raises AttackError for a point outside its ball and for scores that are not
    finite, InputError for scores that do not fit the labels and for no memory for one.
    """
    size = block
    for start in range(0, len(x), block) if starts is None else starts:
        columns = fresh_rows(start, min(start + block, len(x)), x, y, indices)
        pieces: list[tuple[Outcomes, Tensor]] = []
        while not pieces:
            try:
                if start == 0:  # inside an attack the same mistakes would fail less clearly
                    require_scores(model, columns[0][:1], y)
                for row in range(0, len(columns[0]), size):
                    clean, labels, where = fresh_rows(row, row + size, *columns)
                    with matmul_precision(FULL):
                        found = perturb(model, clean, labels, Streams(seed, where))
                        radius = check(clean, found.x, where)
                        done = measure(
                            model, clean, found.x, labels, radius, found.vanished, loss=loss
                        )
                    pieces.append((done, found.x.cpu()))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise InputError(f"no memory for one example on {x.device}") from None
                size, pieces = -(-min(size, len(columns[0])) // 2), []
        outcomes, points = zip(*pieces, strict=True)
        yield Block(start, join(outcomes), torch.cat(points), size)


def attack_target(job: Job, attack: Attack, number: int, target: Target) -> Steps[Result]:
    """Attack a whole part, or in a suite the examples that still stand.

    number: of the attack, in the journal of finished blocks if there is one. Every
    process of the team gets the whole result, the same bit for bit.
    """
    so_far, rows = target.so_far, target.rows_for(attack)
    if so_far is not None and not len(rows):
        return so_far._replace(work=NO_WORK)
    starts = range(0, len(rows), job.block)
    known = {}
    if job.journal is not None:
        labels, eps = target.examples.y[rows.to(target.indices.device)], attack.threat.eps
        known = job.journal.of(number, target.name, labels=labels, block=job.block, eps=eps)
    todo = [start for start in starts if start not in known]
    own = todo[job.team.number :: job.team.size]
    total = sum(min(job.block, len(rows) - start) for start in own)
    keeper = _Keeper(job, number, target.name)
    where = rows.to(target.indices.device)
    with job.team.agreeing(), frozen(job.subject.model):
        for block in attack_part(
            keeper.counted,
            target.examples.x[where],
            target.examples.y[where],
            target.indices[where],
            perturb=job.perturb_of(attack, _unreachable(target)),
            check=make_check(attack, job.subject.transform),
            loss=LOSSES[job.subject.loss],
            seed=target.seed,
            block=job.block,
            starts=own,
        ):
            if keeper.keep(block, last=block.start == own[-1]):
                yield Progress(f"{attack.name}, {target.name}", keeper.examples, total)
    keeper.fill_from_all(todo, target.examples.x[:0].cpu(), len(rows))
    entries = [{**known, **keeper.entries}[start] for start in starts]
    job.together = min([job.together, *(entry.together for entry in entries)])
    points = torch.cat([keeper.points[start] for start in starts]) if job.keep_points else None
    return _result(rows, entries, points, so_far)


def _unreachable(target: Target) -> Unreachable | None:
    """What a certificate rules out, of examples named by their places in the part."""
    ruled_out = target.ruled_out
    if ruled_out is None:
        return None
    rows = torch.zeros(int(target.indices.max()) + 1, dtype=torch.int64)
    rows[target.indices.cpu()] = torch.arange(len(target.indices))

    def unreachable(indices: Tensor, table: Tensor = ruled_out) -> Tensor:
        return table[rows[indices.cpu()]].to(indices.device)

    return unreachable


def _result(
    rows: Tensor, entries: Sequence[FinishedBlock], points: Tensor | None, so_far: Result | None
) -> Result:
    """The blocks of one attack on `rows`, put together and into what came before."""
    found = join([entry.outcomes for entry in entries])
    work = Work(
        attacked=len(rows),
        broken=int((found.clean_correct & ~found.correct).sum()),
        forwards=sum(entry.forwards for entry in entries),
        backwards=sum(entry.backwards for entry in entries),
    )
    if so_far is None:
        return Result(found, points, work)
    outcomes, taken = carry_on(so_far.outcomes, rows, found)
    if so_far.x_adv is not None and points is not None:
        points = so_far.x_adv.index_copy(0, rows[taken], points[taken])
    return Result(outcomes, points, work)


class _Keeper:
    """Finished blocks by their first row, with the passes they took; written down in batches."""

    def __init__(self, job: Job, number: int, part: str):
        self._job, self._place = job, (number, part)
        self.counted = Counted(job.subject.model)
        self.entries: dict[int, FinishedBlock] = {}
        self.points: dict[int, Tensor] = {}
        self.examples = 0
        self._before = (0, 0)
        self._unwritten: list[tuple[Key, FinishedBlock]] = []

    def keep(self, block: Block, *, last: bool) -> bool:
        """Take a block; whether that was the moment to write those so far on record."""
        now = (self.counted.forwards, self.counted.backwards)
        passes = (now[0] - self._before[0], now[1] - self._before[1])
        self._before = now
        entry = FinishedBlock(block.outcomes, *passes, block.together)
        self.entries[block.start] = entry
        if self._job.keep_points:
            self.points[block.start] = block.x_adv
        self._unwritten.append(((*self._place, block.start), entry))
        self.examples += len(block.x_adv)
        if len(self._unwritten) * self._job.block < self._job.batch_size and not last:
            return False
        if self._job.journal is not None:
            self._job.journal.add(self._unwritten)
        self._unwritten = []
        return True

    def fill_from_all(self, todo: Sequence[int], like: Tensor, n: int) -> None:
        """Take over the blocks `todo` that the other processes have done; like (0, d, c)."""
        job = self._job
        if job.team.size == 1:
            return
        columns = Outcomes(**{name: torch.zeros(n, dtype=d) for name, d in OUTCOME_DTYPES.items()})
        points = like.new_zeros((n if job.keep_points else 0, *like.shape[1:]))
        work = torch.zeros(len(todo), len(FinishedBlock._fields) - 1, dtype=torch.int64)
        for start, entry in self.entries.items():
            rows = slice(start, start + len(entry.outcomes.loss))
            for column, part in zip(columns, entry.outcomes, strict=True):
                column[rows] = part
            if job.keep_points:
                points[rows] = self.points[start]
            work[todo.index(start)] = torch.tensor(entry[1:])
        job.team.fill([*columns, points, work])
        for start, passes in zip(todo, work.tolist(), strict=True):
            rows = slice(start, start + job.block)
            self.entries[start] = FinishedBlock(
                Outcomes(*(column[rows] for column in columns)), *passes
            )
            self.points[start] = points[rows]
