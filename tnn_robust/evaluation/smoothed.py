"""Randomised smoothing of a network on a part of its data: resumable, as one report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.journal import WorkJournal
from tnn_robust.base.locks import released_on_error
from tnn_robust.base.progress import Steps, timed
from tnn_robust.base.threat import Threat
from tnn_robust.certification.smoothing import (
    ABSTAINED,
    Smoothed,
    SmoothedCertification,
    require_smoothable,
    smooth_steps,
)
from tnn_robust.data.dataset import Dataset, describe_data
from tnn_robust.evaluation.certificates import selected
from tnn_robust.evaluation.journal import record_of
from tnn_robust.evaluation.smoothed_results import SmoothedExample, SmoothedReport, SmoothedRow
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.checkpoint import versions

PREFIX = "smooth-"


class Drawn(NamedTuple):
    """A finished example and the seconds since the one before."""

    one: Smoothed
    seconds: float


class SmoothedJournal(WorkJournal[int, Drawn]):
    """The finished examples of one smoothing; see `WorkJournal`."""

    def __init__(self, folder: Path, header: dict[str, Any], *, resume: bool):
        super().__init__(
            folder, PREFIX, header, encode=_encode, decode=_decode, key=_key, resume=resume
        )


class SmoothedResult(NamedTuple):
    """A report, what it was made of, and the record on disk, if any."""

    report: SmoothedReport
    found: SmoothedCertification
    journal: SmoothedJournal | None

    def finish(self) -> None:
        """Remove the record: the report is where it was wanted."""
        if self.journal is not None:
            self.journal.finish()


def smoothed_steps(
    subject: Subject,
    dataset: Dataset,
    threats: Sequence[Threat],
    *,
    sigma: float,
    samples: int = 100_000,
    selection: int = 100,
    alpha: float = 0.001,
    part: str = "test",
    n: int | None = None,
    first: int | None = None,
    seed: int = 0,
    journal: bool = False,
    resume: bool = False,
    examples: bool = False,
) -> Steps[SmoothedResult]:
    """Certified accuracy of the smoothed classifier at each eps of some l2 threats.

    sigma, samples, selection, alpha, seed: as `smooth` takes them; the rest as for
    `certified_steps`. The draws belong to an example's place in its part, so that the examples
    of a smaller n have the radii that they have among all.
    """
    if not threats:
        raise InputError("smoothing needs at least one threat, got none")
    for threat in threats:
        require_smoothable(threat)
    held, indices = selected(subject, dataset, part, n, first, seed)
    info = describe_data(dataset)
    counts = {"sigma": sigma, "samples": samples, "selection": selection, "seed": seed}
    asked = {"part": part, "n": n, "first": first, **counts}
    kept = record_of(SmoothedJournal, subject, info, asked, journal=journal, resume=resume)
    known = [] if kept is None else list(kept.known.values())
    with released_on_error(kept):
        steps = smooth_steps(
            subject.model,
            (held.x, held.y),
            threats[0],
            **counts,  # type: ignore[arg-type]
            alpha=alpha,
            indices=indices,
            decided=[one.one for one in known],
        )

        def keep(found: tuple[Smoothed, ...], since: float) -> None:
            if kept is not None:
                kept.add([Drawn(one, since / len(found)) for one in found])

        found, seconds = yield from timed(steps, keep)
    report = SmoothedReport(
        model=subject.info,
        dataset=info,
        part=part,
        seed=seed,
        versions=versions(),
        sigma=sigma,
        samples=samples,
        selection=selection,
        alpha=alpha,
        n=found.n,
        correct=found.correct,
        abstained=found.abstained,
        rows=tuple(_row(found, threat) for threat in threats),
        seconds=seconds + sum(one.seconds for one in known),
        examples=_examples(found, part, indices) if examples else (),
    )
    return SmoothedResult(report, found, kept)


def _row(found: SmoothedCertification, threat: Threat) -> SmoothedRow:
    return SmoothedRow(
        eps=threat.text,
        eps_value=threat.eps,
        n=found.n,
        certified=found.certified_at(threat.eps),
        certified_ci=found.interval(threat.eps),
    )


def _examples(
    found: SmoothedCertification, part: str, indices: Tensor
) -> tuple[SmoothedExample, ...]:
    columns = (indices, found.y, found.predicted, found.hits, found.p_lower, found.radii)
    return tuple(
        SmoothedExample(
            part, index, label, None if decided == ABSTAINED else decided, hits, p_lower, radius
        )
        for index, label, decided, hits, p_lower, radius in zip(
            *(t.tolist() for t in columns), strict=True
        )
    )


def _key(one: Drawn) -> int:
    return one.one.example


def _encode(one: Drawn) -> dict[str, Any]:
    return {**one.one.to_json(), "seconds": one.seconds}


def _decode(value: dict[str, Any]) -> Drawn:
    one, seconds = Smoothed.from_json(value), value.get("seconds")
    if not isinstance(seconds, float) or seconds < 0:
        raise CheckpointError("a smoothed example needs its seconds")
    return Drawn(one, seconds)
