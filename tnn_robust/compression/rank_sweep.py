"""The rank sweep of tnn-compress: one t-SVD, many sizes, one table of robustness against size."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from tnn_robust.base.choices import PARENTS
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.ledger import Ledger
from tnn_robust.base.locks import claim_directory
from tnn_robust.base.progress import Steps
from tnn_robust.base.threat import parse_eps
from tnn_robust.compression.original import (
    CompressRequest,
    Original,
    build,
    read_original,
    require_size,
)
from tnn_robust.compression.parents import Parents
from tnn_robust.compression.rank_sweep_results import SweepReport, SweepRow
from tnn_robust.compression.rank_sweep_row import Candidate, Judge
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
_Rows = Ledger[tuple[str, str], SweepRow]


def make_sizes(text: str, *, method: str | None = None, **asked: Any) -> dict[str, Rule]:
    """The sizes of `1,2,4` or `0.05:1:0.05`: tubal ranks, or shares for other methods.

    asked: the fields of `Rule` without a size; no method is `rank`. Raises InputError for
    what is no list of numbers, for a size given beside it and as `make_rule` does.
    """
    method = method or "rank"
    if method not in _SIZE and method == "plateau":
        raise InputError(
            "method plateau finds its own ranks: it takes no rank sweep", field="method"
        )
    name = _SIZE.get(method, "rank")
    given = [key for key in {*_SIZE.values(), "flops", "bytes", "alpha"} if asked.get(key)]
    if given:
        raise InputError(f"a rank sweep gives the sizes: it takes no {sorted(given)[0]} besides")
    sizes = {}
    for value in _values(text):
        if name == "rank" and value != int(value):
            raise InputError(f"method rank needs whole tubal ranks, got {value:g}", field="sweep")
        size = (int(value),) if name == "rank" else value
        sizes[f"{value:.6g}"] = make_rule(method, **{**asked, name: size})
    return sizes


def _values(text: str) -> list[float]:
    try:
        found = parse_eps(text)
    except InputError as error:
        raise InputError(
            f"sizes need 1,2,4 or START:STOP:STEP, got {text!r}", field="sweep"
        ) from error
    values = list(dict.fromkeys(one.value for one in found))
    if len(values) > _MOST:
        raise InputError(
            f"a rank sweep takes at most {_MOST} sizes, got {len(values)}", field="sweep"
        )
    return values


def rank_sweep(
    request: CompressRequest,
    sizes: dict[str, Rule],
    *,
    parents: Sequence[str] = (),
    resume: bool = False,
) -> Steps[SweepReport]:
    """Compress to every size under `request.out`; returns the report.

    request: what every size shares, its rule is not used; sizes: the rules by their text, as of
    `make_sizes`; parents: for each size also these, of `PARENTS`, of its number of parameters.
    Every finished row is on disk before the next begins. With `resume` those of an earlier
    run are taken over, and InputError names the setting that differs if there is one.
    """
    if not sizes:
        raise InputError("a rank sweep needs at least one size, got none")
    for kind in parents:
        if kind not in PARENTS:
            raise unknown_choice("parent", kind, PARENTS, field="parent")
    with claim_directory(
        request.out, "rank sweep", overwrite=request.overwrite, resume=resume, until=FILE_NAME
    ) as lock:
        again = resume and not lock.abandoned
        return (yield from _sweep(request, sizes, parents, resume=again))


def _sweep(
    request: CompressRequest, sizes: dict[str, Rule], parents: Sequence[str], *, resume: bool
) -> Steps[SweepReport]:
    rule = next(iter(sizes.values()))
    original = read_original(replace(request, rule=rule), retrains="trained" in parents)
    for text, one in sizes.items():  # what cannot be had is refused before the first row
        require_size(original, at_size(request, text, one))
    header = _header(original, request, sizes, parents)
    known = _Rows(
        request.out / FILE_NAME,
        header,
        encode=SweepRow.to_json,
        decode=SweepRow.from_json,
        key=lambda row: (row.size, row.kind),
        resume=resume,
    )
    known.rewrite()
    yield from _missing_rows(original, request, sizes, parents, known)
    wanted = [("", "original"), *_wanted(sizes, parents)]
    return _report(original, request, rule, [known.known[one] for one in wanted])


def at_size(request: CompressRequest, text: str, rule: Rule) -> CompressRequest:
    """The compression of one size, in its own folder."""
    out = request.out / f"size-{text}"
    return replace(request, rule=rule, out=out, overwrite=True)


def _wanted(sizes: Iterable[str], parents: Sequence[str]) -> list[tuple[str, str]]:
    return [(text, kind) for text in sizes for kind in ("t-SVD", *parents)]


def _missing_rows(
    original: Original,
    request: CompressRequest,
    sizes: dict[str, Rule],
    parents: Sequence[str],
    known: _Rows,
) -> Steps[None]:
    """Make the rows that are not known yet."""
    missing = [one for one in _wanted(sizes, parents) if one not in known.known]
    if not missing and ("", "original") in known.known:
        return
    judge, makers = Judge(original, request), Parents(original, request)
    # Also for a resumed sweep: the points of the original are in no file.
    size = original.checkpoint.path.stat().st_size
    whole = Candidate("", "original", original.subject, original.model, size)
    row = yield from judge.row(whole)
    if ("", "original") not in known.known:
        known.add([row])
    for text, kind in missing:
        if kind == "t-SVD":
            one = yield from _compressed(original, at_size(request, text, sizes[text]), text)
        else:
            like = known.known[text, "t-SVD"]
            one = yield from makers.make(kind, sizes[text], text, like)
        row = yield from judge.row(one)
        known.add([row])


def _compressed(original: Original, request: CompressRequest, text: str) -> Steps[Candidate]:
    target, cut = yield from build(original, request)
    size = target.path.stat().st_size
    return Candidate(text, "t-SVD", subject_of(target), target.model, size, note=cut.note)


def _report(
    original: Original, request: CompressRequest, rule: Rule, rows: Sequence[SweepRow]
) -> SweepReport:
    words = [rule.method, *["whitened"] * rule.whiten, *["second order"] * rule.second_order]
    return SweepReport(
        model=original.subject.info,
        dataset=original.data,
        method=", ".join(words),
        finetune_epochs=request.repair.epochs,
        seed=request.seed,
        versions=versions(),
        rows=tuple(rows),
    )


def _header(
    original: Original, request: CompressRequest, sizes: dict[str, Rule], parents: Sequence[str]
) -> dict[str, Any]:
    """All that the rows depend on."""
    return {
        "checkpoint": original.checkpoint.digest,
        "data": original.data["digest"],
        "sizes": [rule.describe() for rule in sizes.values()],
        "parents": list(parents),
        "repair": asdict(request.repair),
        "dtype": request.dtype,
        "densify": request.densify,
        "attacks": [attack.to_json() for attack in original.attacks],
        "n": request.n,
        "seed": request.seed,
        "batch_size": request.batch_size,
        "device": str(original.subject.device),
        "versions": versions(),
    }
