"""Certificates of a network on a part of its data: several threats, resumable, as one report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tnn_robust.attacks.attack import Attack
from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.attacks.registry import attacks_of
from tnn_robust.attacks.structured import ball_for
from tnn_robust.base.choices import CERTIFY_METHODS, DECISIONS
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.base.files import write_tensors
from tnn_robust.base.locks import released_on_error
from tnn_robust.base.progress import Progress, Steps, Tell, drain, retold, timed
from tnn_robust.base.threat import Threat
from tnn_robust.certification.certify import certify_steps, chain_of, require_time
from tnn_robust.certification.results import Certification, Decided
from tnn_robust.data.dataset import Dataset, describe_data, subset
from tnn_robust.data.parts import Part
from tnn_robust.evaluation.certificate_results import (
    CertificationReport,
    CertificationRow,
    CertifiedExample,
)
from tnn_robust.evaluation.decided_journal import Batch, DecidedJournal
from tnn_robust.evaluation.examples import judged
from tnn_robust.evaluation.intervals import accuracy_interval
from tnn_robust.evaluation.journal import record_of
from tnn_robust.evaluation.report import PARTS
from tnn_robust.evaluation.size_notes import size_notes
from tnn_robust.evaluation.subject import Subject, live_subject
from tnn_robust.models.checkpoint import versions

KIND = "certification-points"


class Certificates(NamedTuple):
    """A report and what is behind it: found, a row each; indices (n,) of the examples in their
    part; journal: the record on disk, if any."""

    report: CertificationReport
    found: tuple[Certification, ...]
    indices: Tensor
    journal: DecidedJournal | None = None

    def finish(self) -> None:
        """Remove the record: the report is where it was wanted."""
        if self.journal is not None:
            self.journal.finish()


@dataclass(frozen=True)
class _Job:
    """What the rows share. labels, predictions, correct: (n,)."""

    subject: Subject
    name: str
    part: Part
    indices: Tensor
    predictions: Tensor
    correct: Tensor
    settings: dict[str, Any]
    journal: DecidedJournal | None


def certificates(
    model: nn.Module,
    data: Dataset,
    threats: Threat | Sequence[Threat],
    *,
    part: str = "test",
    method: str = "alpha-crown",
    time_limit: float = 60.0,
    attack: bool = True,
    n: int | None = None,
    first: int | None = None,
    seed: int = 0,
    progress: Tell | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    examples: bool = False,
) -> CertificationReport:
    """Certified accuracy on a part of a data set, as tnn-certify reports it.

    Parameters
    ----------
    model, method, time_limit, attack: as for `certify`.
    threats: one or several; a row of the report each.
    part: train or test; n: at most so many of its examples, drawn by seed; first: its first
        so many instead.
    progress: is called with every Progress; out: a directory for a record of what is decided,
        from which `resume` goes on.
    examples: put the decision on each example into the report.

    Raises InputError for what does not fit, CertificateError where an attack breaks what is
    certified.
    """
    subject = live_subject(model, data, None)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        subject = subject.kept_in(Path(out))
    steps = certified_steps(
        subject,
        data,
        (threats,) if isinstance(threats, Threat) else tuple(threats),
        part=part,
        method=method,
        time_limit=time_limit,
        attack=attack,
        n=n,
        first=first,
        seed=seed,
        journal=out is not None,
        resume=resume,
        examples=examples,
    )
    found = drain(steps, progress)
    found.finish()
    return found.report


def certified_steps(
    subject: Subject,
    dataset: Dataset,
    threats: Sequence[Threat],
    *,
    part: str = "test",
    method: str = "alpha-crown",
    time_limit: float = 60.0,
    attack: bool = True,
    n: int | None = None,
    first: int | None = None,
    seed: int = 0,
    journal: bool = False,
    resume: bool = False,
    examples: bool = False,
) -> Steps[Certificates]:
    """The same of a subject, step by step; journal: keep a record of what is decided in the
    subject's folder, removed by the result's `finish`."""
    _check(subject, threats, part, method, time_limit)
    held, indices = selected(subject, dataset, part, n, first, seed)
    chain_of(subject.model, held.x.shape[1:])
    info = describe_data(dataset)
    settings = {"method": method, "time_limit": time_limit, "attack": attack, "seed": seed}
    asked = {"part": part, "n": n, "first": first, "threats": [_plain(one) for one in threats]}
    predictions, margins = judged(subject, *held)
    kept = record_of(
        DecidedJournal, subject, info, {**asked, **settings}, journal=journal, resume=resume
    )
    job = _Job(subject, part, held, indices, predictions, margins > 0, settings, kept)
    with released_on_error(kept):
        found, rows, each = [], [], []
        for number, threat in enumerate(threats):
            certification, seconds = yield from _row(job, number, threat)
            found.append(certification)
            rows.append(_row_of(job, certification, seconds))
            each += _examples(job, certification) if examples else []
    report = CertificationReport(
        model=_with_notes(subject, threats),
        dataset=info,
        part=part,
        seed=seed,
        versions=versions(),
        method=method,
        time_limit=time_limit if method == "complete" else None,
        attacked=attack,
        rows=tuple(rows),
        examples=tuple(each),
    )
    return Certificates(report, tuple(found), indices.cpu(), kept)


def chosen_threats(choice: AttackChoice, trained: Attack | None) -> tuple[Threat, ...]:
    """The threats of a choice of norm, eps, channels and faces, with the defaults of attacks."""
    return tuple(one.threat for one in attacks_of(replace(choice, names=("pgd",)), trained))


def _check(
    subject: Subject, threats: Sequence[Threat], part: str, method: str, time_limit: float
) -> None:
    """Refuse before any work what would fail after it."""
    if part not in PARTS:
        raise unknown_choice("part", part, PARTS, field="part")
    if method not in CERTIFY_METHODS:
        raise unknown_choice("method", method, CERTIFY_METHODS, field="method")
    require_time(time_limit)
    if not threats:
        raise InputError("certificates need at least one threat, got none")
    for threat in threats:
        ball_for(threat, subject.transform)


def selected(
    subject: Subject, dataset: Dataset, part: str, n: int | None, first: int | None, seed: int
) -> tuple[Part, Tensor]:
    """The examples asked for, on the model's device, and their places in the part."""
    held: Part = getattr(dataset, part)
    if first is None:
        return subset(held, n, seed, subject.device, subject.dtype)
    if n is not None or first < 1:
        raise InputError(
            f"first needs a number of at least 1 and no n beside it, got {first} and {n}",
            field="first",
        )
    return subset(held.rows(slice(0, first)), None, seed, subject.device, subject.dtype)


def _row(job: _Job, number: int, threat: Threat) -> Steps[tuple[Certification, float]]:
    """One threat, with what is on record taken over and what is decided put there."""
    held = {} if job.journal is None else job.journal.of(number, job.part.x)
    seconds = sum(batch.seconds for batch in held.values())
    steps = certify_steps(
        job.subject.model,
        (job.part.x, job.part.y),
        threat,
        **job.settings,
        decided=[one for batch in held.values() for one in batch.decided],
    )

    def keep(found: tuple[Decided, ...], since: float) -> None:
        if job.journal is not None:
            job.journal.add([Batch(number, found, since)])

    def tell(progress: Progress) -> Progress:
        text = f"{progress.text}, {threat}: {progress.done} of {progress.total}"
        return progress._replace(text=text, found=progress.found or None)

    found, more = yield from retold(timed(steps, keep), tell)
    return found, seconds + more


def _row_of(job: _Job, found: Certification, seconds: float) -> CertificationRow:
    threat = found.threat
    return CertificationRow(
        norm=threat.norm,
        eps=threat.text,
        eps_value=threat.eps,
        channels=threat.channels,
        faces=threat.faces,
        n=found.n,
        clean_correct=int(job.correct.sum()),
        certified=found.certified,
        broken=found.broken,
        unknown=found.unknown,
        certified_ci=accuracy_interval(found.certified, found.n),
        decisions="".join(DECISIONS[verdict][0] for verdict in found.verdicts.tolist()),
        seconds=seconds,
    )


def _examples(job: _Job, found: Certification) -> list[CertifiedExample]:
    columns = (
        job.indices.tolist(),
        job.part.y.tolist(),
        job.predictions.tolist(),
        found.verdicts.tolist(),
        found.lower.tolist(),
    )
    return [
        CertifiedExample(
            part=job.name,
            index=index,
            label=label,
            prediction=prediction,
            norm=found.threat.norm,
            eps=found.threat.text,
            decision=DECISIONS[verdict],
            lower=lower if math.isfinite(lower) else None,
        )
        for index, label, prediction, verdict, lower in zip(*columns, strict=True)
    ]


def _with_notes(subject: Subject, threats: Sequence[Threat]) -> dict[str, Any]:
    notes = [*subject.info.get("notes", ()), *size_notes(threats, subject.entries)]
    return {**subject.info, "notes": notes} if notes else subject.info


def _plain(threat: Threat) -> dict[str, Any]:
    return {
        "norm": threat.norm,
        "eps": threat.text,
        "eps_value": threat.eps,
        "channels": threat.channels,
        "faces": threat.faces,
    }


def save_broken(path: Path, certified: Certificates) -> str:
    """Write the points that break the broken examples, with the report; returns the digest.

    Tensors ROW.x (m, d, c) and ROW.indices (m,), ROW counting the threats from 0.
    """
    tensors: dict[str, Tensor] = {}
    for number, (found, row) in enumerate(zip(certified.found, certified.report.rows, strict=True)):
        broken = torch.tensor([letter == "b" for letter in row.decisions])
        tensors[f"{number}.x"] = found.points
        tensors[f"{number}.indices"] = certified.indices[broken]
    report = replace(certified.report, examples=()).to_json()
    return write_tensors(path, tensors, kind=KIND, header={"report": report})
