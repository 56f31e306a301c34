"""tnn-attack --verify FILE: the report of saved adversarial examples, computed anew."""

from tnn_robust_cli import _render
from tnn_robust_cli._attack_asked import Asked
from tnn_robust_cli._origin import with_origin

from tnn_robust.base.files import write_json
from tnn_robust.evaluation.verify import verify_file
from tnn_robust.reporting.tables import attack_tables


def verify(asked: Asked) -> None:
    """Check every point of the file; exit code 1 where a figure differs from the recorded one."""
    assert asked.verify is not None
    network = asked.networks[0]
    found = verify_file(
        asked.verify,
        network.run,
        model=network.model,
        model_input=network.model_input,
        device=asked.device,
        data_dir=asked.data_dir,
        download=asked.download,
    )
    if asked.json_file is not None:
        write_json(asked.json_file, with_origin(found.report.to_json()))
    _render.show_tables(attack_tables(found.report))
    if found.differences:
        _render.show_lines(f"WARNING: {line}" for line in found.differences)
        raise SystemExit(1)
    sure = f"Verified: every point of {asked.verify} lies in its ball; all figures agree."
    _render.show_lines([sure, *found.checked])
