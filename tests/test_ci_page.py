"""What CI reads: the page of the schema is current, the example workflow has real commands."""

import importlib.util
import re
import shlex
from pathlib import Path

import click
from tnn_robust_cli import attack, report, train

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {"tnn-train": train.main, "tnn-attack": attack.main, "tnn-report": report.main}


def test_the_page_of_the_schema_is_that_of_the_types() -> None:
    script = ROOT / "scripts" / "schema_page.py"
    spec = importlib.util.spec_from_file_location("schema_page", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == module.PAGE.read_text(), "run: python scripts/schema_page.py"
    for name in ("AttackReport", "BoundReport", "Origin", "EpochRecord", "AttackRow"):
        assert f"### {name}\n" in module.page()


def test_the_commands_of_the_example_workflow_are_ones() -> None:
    text = (ROOT / "docs" / "examples" / "robustness.yml").read_text()
    found = re.findall(r"run: (?:>-\n\s+)?(tnn-.*(?:\n {10}--.*)*)", text)
    assert len(found) == 3 and any("--fail-under" in one for one in found)
    for one in found:
        name, *arguments = shlex.split(one.replace("\n", " "))
        with click.Context(COMMANDS[name], info_name=name) as context:
            click.Command.parse_args(COMMANDS[name], context, arguments)
