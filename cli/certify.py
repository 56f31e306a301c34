"""tnn-certify: certified accuracy of a network, or the answer to properties of an ONNX network."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from tnn_robust_cli import _options as shared
from tnn_robust_cli import _results, _subjects

from tnn_robust.base import choices
from tnn_robust.base.errors import InputError

_METHOD = shared.heading(
    "Method",
    click.option(
        "--method",
        metavar="NAME",
        default="alpha-crown",
        help=f"Certify by {', '.join(choices.CERTIFY_METHODS)}, each at least as tight as the one "
        "before. "
        "The default gives CROWN the easy examples and optimises slopes for the others alone: "
        "nearly all that can be certified without a search, in a second or less an example. "
        "Or smooth: randomised smoothing, of any module in l2, for the smoothed classifier.",
    ),
    click.option(
        "--time-limit",
        type=float,
        default=60.0,
        help="Spend so many seconds on an example, or a property.",
    ),
    click.option(
        "--attack/--no-attack",
        default=True,
        help="Attack every example too: breaks what is not certified, and checks what is.",
    ),
    click.option(
        "--sigma",
        type=float,
        help="Smooth by noise of this standard deviation, such as 0.25; smooth needs it.",
    ),
    click.option(
        "--samples", type=int, default=100_000, help="Draw so often an example; of smooth."
    ),
    click.option(
        "--alpha", type=float, default=0.001, help="Err with at most this probability; of smooth."
    ),
)
_REPORT = shared.heading(
    "Output",
    shared.resuming("an interrupted certification"),
    click.option(
        "--examples", type=shared.RESULT, help="Write a line an example there: a .csv or .jsonl."
    ),
    click.option(
        "--figure", type=shared.RESULT, help="Draw shares against eps, of a list: a .png or .svg."
    ),
    click.option("--save-adv", type=shared.RESULT, help="Write the points that break examples."),
    shared.json_option,
    shared.overwriting,
)
_PROPERTY = shared.heading(
    "Properties",
    click.option(
        "--vnnlib",
        "properties",
        type=shared.OUT,
        multiple=True,
        help="Decide a property of RUN, an ONNX network: sat, with a point, or unsat; several "
        "give a table.",
    ),
)

_OF_PROPERTIES = ("runs", "properties", "time_limit", "seed", "json_file", "overwrite")


@shared.command(
    "tnn-certify",
    main=("eps", "method", "json_file"),
    examples=(
        "tnn-certify runs/first --eps 1/255,2/255 --n 200",
        "tnn-certify net.onnx --vnnlib property.vnnlib --time-limit 60",
    ),
)
@_subjects.subjects
@shared.options(shared.threat, shared.eps_unit, _METHOD, _subjects.examples, _REPORT, _PROPERTY)
def main(
    properties: tuple[Path, ...],
    json_file: Path | None,
    save_adv: Path | None,
    examples: Path | None,
    figure: Path | None,
    overwrite: bool,
    resume: bool,
    **given: Any,
) -> None:
    """Certify which decisions no perturbation changes.

    RUN is a run directory, or --model a torch Sequential.

    Prints how many examples are certified (no perturbation of the threat changes
    the decision), broken (one does) and unknown, with a 95 % interval of the
    certified accuracy. With --vnnlib decides properties of an ONNX network.
    """
    asked = (
        (json_file, ("certification-report", "property-report", "smoothed-report")),
        (save_adv, ("certification-points",)),
        (examples, (choices.EXAMPLES,)),
        (figure, (choices.FIGURE,)),
    )
    to = {"json_file": json_file, "save_adv": save_adv, "examples": examples, "figure": figure}
    files = [(path, kinds) for path, kinds in asked if path is not None]
    with _results.writing(files, overwrite=overwrite):
        _run(given, properties, resume, to)


def _run(
    given: dict[str, Any], properties: tuple[Path, ...], resume: bool, to: dict[str, Path | None]
) -> None:
    """The work of the method asked for. to: where its results go."""
    if properties:
        _properties(given, properties, to["json_file"])
        return
    _check_forms(to["examples"], to["figure"])
    settings = {name: given[name] for name in ("method", "time_limit", "attack")}
    settings |= {"resume": resume, "examples": to["examples"] is not None}
    if given["method"] == "smooth":
        _smooth(given, settings, to)
    elif given["sigma"] is not None:
        raise InputError(f"sigma is of --method smooth, got {given['method']}", field="sigma")
    else:
        _certify(given, settings, to)


def _check_forms(examples: Path | None, figure: Path | None) -> None:
    if examples is not None and examples.suffix not in (".csv", ".jsonl"):
        raise InputError(f"--examples is a .csv or .jsonl file, got {examples}")
    if figure is not None and figure.suffix not in (".png", ".svg"):
        raise InputError(f"--figure is a .png or .svg file, got {figure}")


def _certify(given: dict[str, Any], settings: dict[str, Any], to: dict[str, Path | None]) -> None:
    """Certify, write what was asked for, and print."""
    from tnn_robust_cli import _render

    from tnn_robust.evaluation.certificate_results import CertifiedExample
    from tnn_robust.evaluation.certificates import certified_steps, save_broken
    from tnn_robust.reporting.certificates import (
        certificate_figure,
        certificate_notes,
        certificate_tables,
        require_eps,
    )
    from tnn_robust.reporting.examples import write_examples

    chosen = _subjects.chosen(given)
    subject, dataset = _subjects.load(given)
    threats = _subjects.threats(given, subject)
    if to["figure"] is not None:
        require_eps(threats)
    steps = certified_steps(subject, dataset, threats, journal=True, **chosen, **settings)
    with shared.going_on(subject.folder, "what is decided"):
        found = _render.follow(steps)
    report = found.report
    try:
        if to["save_adv"] is not None:
            save_broken(to["save_adv"], found)
        if to["examples"] is not None:
            write_examples(to["examples"], report.examples, CertifiedExample)
        if to["figure"] is not None:
            certificate_figure(report, to["figure"])
    finally:  # what cannot be written must not cost the report too
        notes = certificate_notes(report)
        _render.deliver(report.to_json(), to["json_file"], certificate_tables(report), notes)
    found.finish()


def _smooth(given: dict[str, Any], settings: dict[str, Any], to: dict[str, Path | None]) -> None:
    """The same by randomised smoothing, for the smoothed classifier."""
    from tnn_robust_cli import _render

    from tnn_robust.evaluation.smoothed import smoothed_steps
    from tnn_robust.evaluation.smoothed_results import SmoothedExample
    from tnn_robust.reporting.examples import write_examples
    from tnn_robust.reporting.smoothed import smoothed_notes, smoothed_tables

    if given["sigma"] is None:
        raise InputError("randomised smoothing needs a sigma such as 0.25", field="sigma")
    if typed := shared.typed("time_limit", "attack", "save_adv", "figure"):
        raise InputError(f"{', '.join(typed)}: not with --method smooth")
    of_smooth = {name: given[name] for name in ("sigma", "samples", "alpha")}
    kept = {name: settings[name] for name in ("resume", "examples")}
    chosen = _subjects.chosen(given)
    subject, dataset = _subjects.load(given)
    threats = _subjects.threats({**given, "norm": given["norm"] or "l2"}, subject)
    steps = smoothed_steps(subject, dataset, threats, journal=True, **of_smooth, **chosen, **kept)
    with shared.going_on(subject.folder, "what is finished"):
        found = _render.follow(steps)
    report = found.report
    try:
        if to["examples"] is not None:
            write_examples(to["examples"], report.examples, SmoothedExample)
    finally:  # what cannot be written must not cost the report too
        notes = smoothed_notes(report)
        _render.deliver(report.to_json(), to["json_file"], smoothed_tables(report), notes)
    found.finish()


def _properties(
    given: dict[str, Any], properties: tuple[Path, ...], json_file: Path | None
) -> None:
    """Decide properties of an ONNX network and print the answer, or a table of several."""
    from tnn_robust_cli import _render

    from tnn_robust.certification.properties import property_steps
    from tnn_robust.reporting.certificates import competition_lines, property_notes, property_tables

    if len(given["runs"]) != 1:
        raise InputError("--vnnlib takes one ONNX network: tnn-certify net.onnx --vnnlib FILE")
    context = click.get_current_context()
    typed = [
        option.opts[0]
        for option in context.command.params
        if option.name not in _OF_PROPERTIES
        and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]
    if typed:
        raise InputError(f"{', '.join(typed)}: a property says all of that itself")
    steps = property_steps(
        given["runs"][0], properties, time_limit=given["time_limit"], seed=given["seed"]
    )
    report = _render.follow(steps)
    single = len(properties) == 1 and not properties[0].is_dir()
    tables = [] if single else property_tables(report)
    notes = [] if single else property_notes(report)
    _render.deliver(report.to_json(), json_file, tables, notes)
    _render.show_chart(competition_lines(report) if single else [])


if __name__ == "__main__":
    main()
