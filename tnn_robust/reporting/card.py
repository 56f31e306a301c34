"""A model card in Markdown: what a network is for, how it was made, how robust it is."""

from collections.abc import Sequence
from pathlib import Path

from tnn_robust import __version__
from tnn_robust.base.choices import CARD
from tnn_robust.base.files import write_bytes
from tnn_robust.reporting.html import Section
from tnn_robust.reporting.tables import markdown


def model_card(path: Path, sections: Sequence[Section]) -> None:
    """Write the card of the network that the reports are of, whole or not at all."""
    write_bytes(path, card_text(sections).encode())


def card_text(sections: Sequence[Section]) -> str:
    """The card: summary, figures, origin and what they do not say, a part a report."""
    lines = [f"<!-- tnn-robust {__version__} {CARD} -->", f"# Model card: {sections[0].title}"]
    for one in sections:
        lines += ["", f"## {one.title}", "", *one.summary, ""]
        for name, value in one.facts:
            lines.append(f"- {name}: {value}")
        for table in one.tables:
            lines += ["", markdown(table)]
        if one.checks:
            lines += ["", "### Checks for gradient masking", ""]
            lines += [
                f"- {check.name}: {check.verdict}. {' '.join(words)}" for check, words in one.checks
            ]
        if one.notes:
            lines += ["", "### How to read it", "", *(f"- {note}" for note in one.notes)]
    return "\n".join(lines) + "\n"
