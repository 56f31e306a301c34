"""tnn-compress --sweep: one t-SVD, many sizes, one table of robustness against size."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tnn_robust.base.choices import PARENTS
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.files import claim_directory, write_bytes
from tnn_robust.base.ledger import checked_line, checked_lines, require_same
from tnn_robust.base.progress import Steps
from tnn_robust.base.threat import parse_eps
from tnn_robust.compression.original import (
    CompressRequest,
    Original,
    build,
    ranks_under,
    read_original,
)
from tnn_robust.compression.parents import Parents
from tnn_robust.compression.rank_sweep_results import SweepReport, SweepRow
from tnn_robust.compression.rank_sweep_row import Candidate, Judge
from tnn_robust.compression.repair import settings_of
from tnn_robust.compression.rules import Rule, make_rule
from tnn_robust.evaluation.subject import subject_of
from tnn_robust.models.checkpoint import versions

FILE_NAME = "sweep.jsonl"
# What the numbers of a sweep are, by method.
_SIZE = {
    "rank": "rank",
    "energy": "energy",
    "global-energy": "energy",
    "tolerance": "tolerance",
    "budget": "params",
    "sensitivity": "params",
    "lc": "params",
    "dynamic": "params",
}
_MOST = 1000  # rows of one sweep


@dataclass(frozen=True)
class Size:
    """One size of a sweep: its text and the rule it stands for."""

    text: str
    rule: Rule


@dataclass(frozen=True)
class SweepRequest:
    """All that `tnn-compress --sweep` was asked.

    base: what every size shares; its out is the folder of the sweep, its rule is not
    used. parents: for each size also these, of `PARENTS`, of its number of parameters.
    """

    base: CompressRequest
    sizes: tuple[Size, ...]
    parents: tuple[str, ...] = ()
    resume: bool = False

    def at(self, size: Size) -> CompressRequest:
        out = self.base.out / f"size-{size.text}"
        return replace(self.base, rule=size.rule, out=out, overwrite=True)


def make_sizes(text: str, **asked: Any) -> tuple[Size, ...]:
    """The sizes of `1,2,4` or `0.05:1:0.05`: tubal ranks, or shares for other methods.

    asked: the fields of `Rule` without a size; no method is `rank`. Raises InputError for
    what is no list of numbers, for a size given beside it and as `make_rule` does.
    """
    method = asked.pop("method", None) or "rank"
    if method not in _SIZE and method == "plateau":
        raise InputError("--method plateau finds its own ranks: it takes no --sweep")
    name = _SIZE.get(method, "rank")
    given = [key for key in {*_SIZE.values(), "flops", "bytes", "alpha"} if asked.get(key)]
    if given:
        raise InputError(f"--sweep gives the sizes: it takes no --{sorted(given)[0]}")
    try:
        found = parse_eps(text)
    except InputError as error:
        raise InputError(f"--sweep needs 1,2,4 or START:STOP:STEP, got {text!r}") from error
    values = list(dict.fromkeys(one.value for one in found))
    if len(values) > _MOST:
        raise InputError(f"--sweep takes at most {_MOST} sizes, got {len(values)}")
    sizes = []
    for value in values:
        if name == "rank" and value != int(value):
            raise InputError(f"--sweep needs whole tubal ranks for --method rank, got {value:g}")
        size = (int(value),) if name == "rank" else value
        sizes.append(Size(f"{value:.6g}", make_rule(method, **{**asked, name: size})))
    return tuple(sizes)


def sweep_run(request: SweepRequest) -> Steps[SweepReport]:
    """Compress to every size under `request.base.out`; the result is the report.

    Every finished row is on disk before the next begins. With `resume` those of an earlier
    run are taken over, and InputError names the setting that differs if there is one.
    """
    if not request.sizes:
        raise InputError("--sweep needs at least one size, got none")
    for kind in request.parents:
        if kind not in PARENTS:
            raise unknown_choice("parent", kind, PARENTS)
    base, path = request.base, request.base.out / FILE_NAME
    if not request.resume:
        claim_directory(base.out, overwrite=base.overwrite)
    original = read_original(replace(base, rule=request.sizes[0].rule))
    if "trained" in request.parents:
        settings_of(original.checkpoint)
    for size in request.sizes:  # what cannot be had is refused before the first row
        ranks_under(original, request.at(size))
    known = _Rows(path, _header(original, request), resume=request.resume)
    judge = Judge(original, base)
    source = original.checkpoint
    whole = Candidate("", "original", original.subject, source.model, source.path.stat().st_size)
    parents = Parents(original, base)
    kinds = ("t-SVD", *request.parents)
    wanted = [(size, kind) for size in request.sizes for kind in kinds]
    if ("", "original") not in known.rows or any((s.text, k) not in known.rows for s, k in wanted):
        # Also for a resumed sweep: the points of the original are in no file.
        row = yield from judge.row(whole)
        known.add(row)
    for size, kind in wanted:
        if (size.text, kind) in known.rows:
            continue
        if kind == "t-SVD":
            one = yield from _compressed(original, request, size)
        else:
            like = known.rows[size.text, "t-SVD"]
            one = yield from parents.make(kind, size.rule, size.text, like)
        row = yield from judge.row(one)
        known.add(row)
    rows = [known.rows["", "original"], *(known.rows[s.text, kind] for s, kind in wanted)]
    return _report(original, request, rows)


def _compressed(original: Original, request: SweepRequest, size: Size) -> Steps[Candidate]:
    built = yield from build(original, request.at(size))
    target = built.target
    size_on_disk = target.path.stat().st_size
    return Candidate(
        size.text, "t-SVD", subject_of(target), target.model, size_on_disk, note=built.note
    )


def _report(original: Original, request: SweepRequest, rows: Sequence[SweepRow]) -> SweepReport:
    rule = request.sizes[0].rule
    words = [rule.method, *["whitened"] * rule.whiten, *["second order"] * rule.second_order]
    return SweepReport(
        model=original.subject.info,
        dataset=original.data,
        method=", ".join(words),
        finetune_epochs=request.base.repair.epochs,
        seed=request.base.seed,
        versions=versions(),
        rows=tuple(rows),
    )


def _header(original: Original, request: SweepRequest) -> dict[str, Any]:
    """All that the rows depend on."""
    base = request.base
    return {
        "checkpoint": original.checkpoint.digest,
        "data": original.data["digest"],
        "sizes": [size.rule.describe() for size in request.sizes],
        "parents": list(request.parents),
        "repair": asdict(base.repair),
        "dtype": base.dtype,
        "densify": base.densify,
        "attacks": [attack.to_json() for attack in original.attacks],
        "n": base.n,
        "seed": base.seed,
        "batch_size": base.batch_size,
        "device": str(original.subject.device),
        "versions": versions(),
    }


class _Rows:
    """The finished rows of a sweep, on disk: a header, then a checked line a row."""

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool):
        self._path, self._header = path, header
        self.rows: dict[tuple[str, str], SweepRow] = {}
        lines = checked_lines(path) if resume else []
        if resume and not lines:
            raise InputError(f"nothing to resume at {path}: run it without --resume")
        if lines:
            require_same(path, lines[0], json.loads(json.dumps(header)))
        for line in lines[1:]:
            row = SweepRow.from_json(line)
            self.rows[row.size, row.kind] = row

    def add(self, row: SweepRow) -> None:
        """Write all rows so far, whole or not at all; one that is there is kept as it is."""
        self.rows.setdefault((row.size, row.kind), row)
        values = [self._header, *(one.to_json() for one in self.rows.values())]
        write_bytes(self._path, "".join(checked_line(value) for value in values).encode())
