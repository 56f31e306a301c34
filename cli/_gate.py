"""A gate for CI: exit code 1, with one line why, where a verdict fails what was asked for."""

import click

from tnn_robust.evaluation.results import AttackReport

FAILED = 1


def gate(report: AttackReport, fail_under: float | None, fail_on_warn: bool) -> None:
    """SystemExit 1 for a robust test accuracy below `fail_under` percent, or a failed check."""
    robust = 100 * report.worst_case.test.accuracy
    warned = [check.name for check in report.checks if not check.passed]
    why = []
    if fail_under is not None and robust < fail_under:
        why.append(f"robust test accuracy is {robust:.2f} %, --fail-under asks for {fail_under:g}")
    if fail_on_warn and warned:
        verb = "warns" if len(warned) == 1 else "warn"
        why.append(f"--fail-on-warn: {', '.join(warned)} {verb}")
    if why:
        click.echo(f"Failed: {'; '.join(why)}.", err=True)
        raise SystemExit(FAILED)
