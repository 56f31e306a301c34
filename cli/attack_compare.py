"""tnn-attack --compare: several networks under the same attacks, in one table."""

from tnn_robust_cli import _render
from tnn_robust_cli._attack_asked import Asked

from tnn_robust.base.progress import drain
from tnn_robust.base.team import joined
from tnn_robust.evaluation.compare import compare_steps
from tnn_robust.reporting.comparison import comparison_notes, comparison_table


def compare(asked: Asked) -> None:
    """Attack all networks, write the comparison where asked, and print it."""
    with joined() as team:
        steps = compare_steps(
            asked.loads(),
            asked.attacks_on,
            stacked=asked.stacked,
            suite=asked.suite_for,
            team=team,
            seeds=asked.seeds,
            n=asked.n,
            batch_size=asked.batch_size,
            checks=asked.checks,
            certify=asked.certify,
        )
        with _render.progress_bar() as bar:
            found = drain(steps, bar.tell)
        del steps
        _render.deliver(
            found.to_json(),
            asked.json_file if team.first else None,
            [comparison_table(found)],
            comparison_notes(found),
        )
