"""One attack on one part: its blocks shared out, written down as they are done, put together."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.points import Perturb, frozen
from tnn_robust.attacks.settings import AttackSettings
from tnn_robust.base.losses import LOSSES
from tnn_robust.base.team import Team
from tnn_robust.data.dataset import Part
from tnn_robust.evaluation.agp import NO_WORK, Work
from tnn_robust.evaluation.journal import Entry, Journal, Key
from tnn_robust.evaluation.risk import (
    OUTCOME_DTYPES,
    Counted,
    Outcomes,
    attack_part,
    carry_on,
    join,
)
from tnn_robust.evaluation.rows import Result, make_check
from tnn_robust.evaluation.subject import Subject


@dataclass(frozen=True)
class AttackProgress:
    """Examples done of one attack on one part, of those that fall to this process."""

    attack: str
    part: str
    done: int
    total: int


class Target(NamedTuple):
    """A part under attack; so_far: what earlier attacks of a suite have left."""

    name: str
    examples: Part
    indices: Tensor
    seed: int
    so_far: Result | None = None


@dataclass
class Job:
    """What the attacks of one report share.

    block: examples of a block of the grid; batch_size: examples between two records of
    progress. together: the fewest examples that were computed at a time, below `block`
    where the device's memory ran out. perturb_of: from an attack's settings to what runs it.
    """

    subject: Subject
    block: int
    batch_size: int
    keep_points: bool
    journal: Journal | None
    team: Team
    together: int
    perturb_of: Callable[[AttackSettings], Perturb]

    def known(self, number: int, part: str) -> dict[int, Entry]:
        """Blocks of attack `number` that an earlier run has done."""
        return {} if self.journal is None else self.journal.of(number, part)


class _Done(NamedTuple):
    """Blocks done, and their points if they are kept, by first row."""

    entries: dict[int, Entry]
    points: dict[int, Tensor]


def attack_target(
    job: Job, settings: AttackSettings, number: int, target: Target
) -> Generator[AttackProgress, None, Result]:
    """Attack a whole part, or in a suite the examples that still stand.

    number: of the attack, in the journal of finished blocks if there is one. Every
    process of the team gets the whole result, the same bit for bit.
    """
    so_far, n = target.so_far, len(target.indices)
    rows = torch.arange(n) if so_far is None else so_far.outcomes.correct.nonzero()[:, 0]
    if so_far is not None and not len(rows):
        return so_far._replace(work=NO_WORK)
    known, team = job.known(number, target.name), job.team
    starts = range(0, len(rows), job.block)
    todo = [start for start in starts if start not in known]
    with team.agreeing():
        own = todo[team.number :: team.size]
        done = yield from _attack_blocks(job, settings, number, target, rows, own)
    done = _of_all(job, done, todo, target.examples.x[:0].cpu(), len(rows))
    entries = [{**known, **done.entries}[start] for start in starts]
    job.together = min([job.together, *(entry.together for entry in entries)])
    found = join([entry.outcomes for entry in entries])
    points = torch.cat([done.points[start] for start in starts]) if job.keep_points else None
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


def _attack_blocks(
    job: Job,
    settings: AttackSettings,
    number: int,
    target: Target,
    rows: Tensor,
    starts: Sequence[int],
) -> Generator[AttackProgress, None, _Done]:
    """Attack the blocks of these first rows, and put each on record."""
    where, transform = rows.to(target.indices.device), job.subject.transform
    counted = Counted(job.subject.model)
    total = sum(min(job.block, len(rows) - start) for start in starts)
    done, examples, before = _Done({}, {}), 0, (0, 0)
    unwritten: list[tuple[Key, Entry]] = []
    with frozen(job.subject.model):
        for block in attack_part(
            counted,
            target.examples.x[where],
            target.examples.y[where],
            target.indices[where],
            perturb=job.perturb_of(settings),
            check=make_check(settings, transform),
            loss=LOSSES[job.subject.loss],
            seed=target.seed,
            block=job.block,
            starts=starts,
        ):
            passes = (counted.forwards - before[0], counted.backwards - before[1])
            before = (counted.forwards, counted.backwards)
            entry = Entry(block.outcomes, *passes, block.together)
            done.entries[block.start] = entry
            if job.keep_points:
                done.points[block.start] = block.x_adv
            unwritten.append(((number, target.name, block.start), entry))
            examples += len(block.x_adv)
            if len(unwritten) * job.block < job.batch_size and examples < total:
                continue
            if job.journal is not None:
                job.journal.add(unwritten)
            unwritten = []
            yield AttackProgress(settings.name, target.name, examples, total)
    return done


def _of_all(job: Job, own: _Done, todo: Sequence[int], like: Tensor, n: int) -> _Done:
    """The blocks `todo` that the processes have done between them; like (0, d, c): their points."""
    if job.team.size == 1:
        return own
    columns = Outcomes(**{name: torch.zeros(n, dtype=d) for name, d in OUTCOME_DTYPES.items()})
    points = like.new_zeros((n if job.keep_points else 0, *like.shape[1:]))
    work = torch.zeros(len(todo), len(Entry._fields) - 1, dtype=torch.int64)
    for start, entry in own.entries.items():
        rows = slice(start, start + len(entry.outcomes.loss))
        for column, part in zip(columns, entry.outcomes, strict=True):
            column[rows] = part
        if job.keep_points:
            points[rows] = own.points[start]
        work[todo.index(start)] = torch.tensor(entry[1:])
    job.team.fill([*columns, points, work])
    found = _Done({}, {})
    for start, passes in zip(todo, work.tolist(), strict=True):
        rows = slice(start, start + job.block)
        found.entries[start] = Entry(Outcomes(*(column[rows] for column in columns)), *passes)
        found.points[start] = points[rows]
    return found
