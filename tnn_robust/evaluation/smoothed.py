"""Randomised smoothing on a part of a data set: one run for all radii, resumable, as a report."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tnn_robust.base.errors import InputError
from tnn_robust.base.journal import WorkJournal
from tnn_robust.base.locks import released_on_error
from tnn_robust.base.progress import Steps
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
from tnn_robust.evaluation.journal import journal_folder
from tnn_robust.evaluation.smoothed_results import SmoothedExample, SmoothedReport, SmoothedRow
from tnn_robust.evaluation.subject import Subject
from tnn_robust.models.checkpoint import versions

PREFIX = "smooth-"


class SmoothedJournal(WorkJournal[int, Smoothed]):
    """The finished examples of one run; see `WorkJournal`."""

    def __init__(self, folder: Path, header: dict[str, Any], *, resume: bool):
        super().__init__(
            folder,
            PREFIX,
            header,
            encode=Smoothed.to_json,
            decode=Smoothed.from_json,
            key=lambda one: one.example,
            resume=resume,
        )


class SmoothedRun(NamedTuple):
    """A report and what is behind it; journal: the record on disk, if any."""

    report: SmoothedReport
    found: SmoothedCertification
    journal: SmoothedJournal | None = None

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
    alpha: float = 0.001,
    part: str = "test",
    n: int | None = None,
    first: int | None = None,
    seed: int = 0,
    journal: bool = False,
    resume: bool = False,
    examples: bool = False,
) -> Steps[SmoothedRun]:
    """Smooth a subject's network on examples chosen as for `certificates`; see `smooth`.

    threats: l2 balls, a row of the report each; journal: keep a record of finished examples
    in the subject's folder, removed by the result's `finish`.
    """
    if not threats:
        raise InputError("certificates need at least one threat, got none")
    for threat in threats:
        require_smoothable(threat)
    held, indices = selected(subject, dataset, part, n, first, seed)
    info = describe_data(dataset)
    settings: dict[str, Any] = {"sigma": sigma, "samples": samples, "alpha": alpha, "seed": seed}
    chosen = {"part": part, "n": n, "first": first, "device": str(subject.device)}
    header = {"checkpoint": subject.digest, "data": info["digest"], "versions": versions()}
    folder = journal_folder(subject, resume=resume) if journal or resume else None
    kept = None
    if folder is not None:
        kept = SmoothedJournal(folder, {**header, **settings, **chosen}, resume=resume)
    started = time.perf_counter()
    known = () if kept is None else tuple(kept.known.values())
    steps = smooth_steps(subject.model, (held.x, held.y), threats[0], **settings, decided=known)
    with released_on_error(kept):
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                found: SmoothedCertification = end.value
                break
            if progress.found and kept is not None:
                kept.add(progress.found)
            yield progress
    report = SmoothedReport(
        model=subject.info,
        dataset=info,
        part=part,
        seed=seed,
        versions=versions(),
        sigma=sigma,
        samples=samples,
        selection=found.selection,
        alpha=alpha,
        correct=found.correct,
        abstained=found.abstained,
        seconds=time.perf_counter() - started,
        rows=tuple(_row(found, threat) for threat in threats),
        examples=_examples(part, indices.tolist(), found) if examples else (),
    )
    return SmoothedRun(report, found, kept)


def _row(found: SmoothedCertification, threat: Threat) -> SmoothedRow:
    return SmoothedRow(
        eps=threat.text,
        eps_value=threat.eps,
        n=found.n,
        certified=found.certified_at(threat.eps),
        certified_ci=found.interval(threat.eps),
    )


def _examples(
    part: str, indices: list[int], found: SmoothedCertification
) -> tuple[SmoothedExample, ...]:
    columns = (indices, found.y.tolist(), found.predicted.tolist(), found.radii.tolist())
    return tuple(
        SmoothedExample(part, index, label, None if top == ABSTAINED else top, radius)
        for index, label, top, radius in zip(*columns, strict=True)
    )
