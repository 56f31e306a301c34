"""Reports as one HTML page that needs nothing else: no network, no other file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tnn_robust import __version__
from tnn_robust.base.files import write_bytes
from tnn_robust.base.origin import origin_of
from tnn_robust.base.reading import sha256_of
from tnn_robust.evaluation.results import Check
from tnn_robust.reporting.pictures import Picture
from tnn_robust.reporting.saved import Report
from tnn_robust.reporting.tables import Table
from tnn_robust.reporting.views import view_of
from tnn_robust.reporting.words import check_words

_TEMPLATE = Path(__file__).with_name("page.html.j2")


class Section(NamedTuple):
    """One report on the page; facts: where it comes from, by name."""

    title: str
    summary: list[str]
    tables: list[Table]
    pictures: list[Picture]
    checks: list[tuple[Check, list[str]]]
    notes: list[str]
    facts: list[tuple[str, str]]


def section_of(report: Report, source: Path, pictures: Sequence[Picture] = ()) -> Section:
    """What the page says of a report read from `source`; pictures: beside its own."""
    view, checks = view_of(report), getattr(report, "checks", ())
    return Section(
        title=source.stem,
        summary=view.summary,
        tables=view.tables,
        pictures=[*view.pictures, *pictures],
        checks=[(check, check_words(check)) for check in checks],
        notes=view.notes,
        facts=facts_of(report, source),
    )


def page(sections: Sequence[Section], title: str) -> str:
    """The whole page as text. All that comes from a report is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections, version=__version__)


def write_page(path: Path, sections: Sequence[Section], title: str) -> None:
    """Write the page, whole or not at all."""
    write_bytes(path, page(sections, title).encode())


def facts_of(report: Report, source: Path) -> list[tuple[str, str]]:
    """Files, digests, seeds and versions behind a report, as far as it states them."""
    found = [("report", f"{source.name}, sha256 {sha256_of(source)}")]
    origin = origin_of(source) if source.suffix == ".json" else None
    if origin is not None:
        found.append(("made", f"{origin.date}, in {origin.seconds:.1f} s on {origin.device}"))
        found.append(("command", origin.command))
    model, dataset = getattr(report, "model", None), getattr(report, "dataset", None)
    if model:
        found.append(("network", _network(model)))
        found.append(("network's digest", str(model.get("digest", "unknown"))))
    if dataset:
        sizes = f"{dataset.get('n_train')} training and {dataset.get('n_test')} test examples"
        found.append(("data", f"{dataset.get('name')}: {sizes}"))
        found.append(("data's digest", str(dataset.get("digest", "unknown"))))
        found += [("about the data", str(note)) for note in dataset.get("notes", ())]
    seeds = getattr(report, "seeds", ()) or (getattr(report, "seed", None),)
    if seeds != (None,):
        found.append(("seed", ", ".join(map(str, seeds))))
    if versions := getattr(report, "versions", None):
        found.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return found


_FAMILY = (("bias", "biases"), ("orthogonal", "orthogonal layers"))


def _network(model: dict[str, Any]) -> str:
    shape = model.get("architecture") or {}
    words = [str(model.get("path") or model.get("spec") or "in memory")]
    if "widths" in shape:
        widths = ", ".join(map(str, shape["widths"]))
        words.append(f"t-layers of width {widths}, transform {shape.get('transform')}")
        words += [f"activation {shape['activation']}"] if "activation" in shape else []
        words += [said for name, said in _FAMILY if shape.get(name)]
    if "parameters" in model:
        words.append(f"{model['parameters']} parameters")
    return "; ".join(words)
