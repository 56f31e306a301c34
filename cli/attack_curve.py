"""tnn-attack --curve: robustness against eps, in one upward sweep."""

from dataclasses import replace

from tnn_robust_cli import _options as shared
from tnn_robust_cli import _render
from tnn_robust_cli._attack_asked import Asked

from tnn_robust.attacks.registry import attacks_of
from tnn_robust.evaluation.curve import curve_steps
from tnn_robust.reporting.certified import curve_notes
from tnn_robust.reporting.figures import curve_figure, curve_lines, curve_table
from tnn_robust.reporting.tables import data_notes, network_notes


def curve(asked: Asked) -> None:
    """Sweep, write what was asked for, and print table and drawing."""
    subject, dataset = asked.load()
    choice = asked.choice
    if not choice.names:
        choice = replace(choice, names=("pgd",))
    attacks = asked.in_range(attacks_of(choice, subject.trained), subject)
    steps = curve_steps(
        subject,
        dataset,
        attacks,
        n=asked.n,
        seed=asked.seeds[0],
        journal=True,
        resume=asked.resume,
        certify=asked.certify,
    )
    with shared.going_on(subject.folder, "what is finished"):
        swept = _render.follow(steps)
    found = swept.curve
    try:
        if asked.figure is not None:
            curve_figure(found, asked.figure)
    finally:  # what cannot be written must not cost the rest
        _render.deliver(found.to_json(), asked.json_file, [curve_table(found)], [])
    _render.show_chart(curve_lines(found, ascii_only=not _render.encodable("█▒│")))
    notes = [*network_notes(found.model), *data_notes(found.dataset), *curve_notes(found)]
    _render.show_lines(["", *notes, f"The curve: {found.verdict}."])
    swept.finish()
