"""tnn-attack RUN: the adversarial gap report of one network."""

from tnn_robust_cli import _options as shared
from tnn_robust_cli import _render
from tnn_robust_cli._attack_asked import Asked
from tnn_robust_cli._gate import gate

from tnn_robust.base.team import joined
from tnn_robust.evaluation.report import evaluate_steps
from tnn_robust.evaluation.verify import save_points
from tnn_robust.models.foreign import require_gradients
from tnn_robust.reporting.examples import write_examples
from tnn_robust.reporting.gallery import write_gallery
from tnn_robust.reporting.tables import attack_notes, attack_tables


def run(asked: Asked) -> None:
    """Attack, write what was asked for, and print."""
    with joined() as team:
        with team.agreeing():
            subject, dataset = asked.load()
            attacks = asked.attacks_on(subject)
            if asked.fail_on_warn:
                require_gradients(subject.model, "--fail-on-warn: every masking check")
        steps = evaluate_steps(
            subject,
            dataset,
            attacks,
            suite=asked.suite_for(subject),
            seeds=asked.seeds,
            n=asked.n,
            batch_size=asked.batch_size,
            checks=asked.checks,
            certify=asked.certify,
            keep_points=asked.save_adv is not None or asked.gallery is not None,
            journal=True,
            resume=asked.resume,
            team=team,
            examples=asked.examples is not None,
        )
        with shared.going_on(subject.folder, "what is finished"):
            found = _render.follow(steps)
        report, note = found.report, None
        try:
            if asked.save_adv is not None and team.first:
                save_points(asked.save_adv, found)
            if asked.examples is not None and team.first:
                write_examples(asked.examples, report.examples)
            if asked.gallery is not None and team.first:
                note = write_gallery(asked.gallery, dataset, found)
            del subject, dataset
        finally:  # what cannot be written must not cost the report too
            file = asked.json_file if team.first else None
            lines = [*attack_notes(report), *([note] if note else [])]
            _render.deliver(report.to_json(), file, attack_tables(report), lines)
        found.finish()
    gate(report, asked.fail_under, asked.fail_on_warn)
