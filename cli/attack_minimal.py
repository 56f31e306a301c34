"""tnn-attack --minimal: the smallest eps that breaks each example."""

from tnn_robust_cli import _render
from tnn_robust_cli._attack_asked import Asked

from tnn_robust.base.errors import InputError
from tnn_robust.base.progress import drain
from tnn_robust.data.dataset import describe_data
from tnn_robust.evaluation.minimal import minimal_steps
from tnn_robust.reporting.certified import radius_notes
from tnn_robust.reporting.examples import write_examples
from tnn_robust.reporting.tables import data_notes, minimal_tables


def minimal(asked: Asked) -> None:
    """Search, write what was asked for, and print."""
    _check(asked)
    subject, dataset = asked.load()
    norm = asked.choice.norm or (subject.trained.threat.norm if subject.trained else "linf")
    with _render.progress_bar() as bar:
        steps = minimal_steps(
            subject, dataset, norm, n=asked.n, seed=asked.seeds[0], certify=bool(asked.certify)
        )
        parts, data = drain(steps, bar.tell), describe_data(dataset)
    if asked.examples is not None:
        write_examples(asked.examples, [one for part in parts for one in part.examples])
    _render.deliver(
        {"kind": "minimal-report", "dataset": data, "parts": [part.to_json() for part in parts]},
        asked.json_file,
        minimal_tables(parts),
        [
            *data_notes(data),
            "An eps found is an upper bound of the smallest one.",
            *radius_notes(parts),
        ],
    )


def _check(asked: Asked) -> None:
    choice = asked.choice
    if choice.channels or choice.faces:
        raise InputError("--minimal is of the whole ball: it takes no --channels and --faces")
    if choice.names or choice.eps:
        raise InputError("--minimal finds eps itself: it takes no --attack and --eps")
    if choice.stop_broken:
        raise InputError("--minimal goes on from broken points: it takes no --stop-broken")
