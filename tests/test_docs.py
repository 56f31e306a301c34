"""The README's commands are ones the command line accepts, and its facts are the code's."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_checks import succeeded
from conftest import run_cli
from tnn_robust_cli import tnn

from tnn_robust.base import choices
from tnn_robust.experiments.grid import read_spec
from tnn_robust.experiments.grid_cell import Place, check_grid
from tnn_robust.reporting.words import CHECKS

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    f"tnn-{name}": importlib.import_module(f"tnn_robust_cli.{name}").main for name in tnn.COMMANDS
}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands_of(path: Path) -> list[list[str]]:
    """Every tnn- command line in the code blocks of a document, continuation lines joined."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", path.read_text(), flags=re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [line.removeprefix("$ ").split(" #")[0] for line in lines]
    return [shlex.split(line) for line in found if line.startswith("tnn-")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_the_documents_parses(path: Path) -> None:
    for name, *arguments in commands_of(path):
        with click.Context(COMMANDS[name], info_name=name) as context:
            # The parser of the command itself, without running it.
            click.Command.parse_args(COMMANDS[name], context, arguments)


def test_the_page_of_commands_shows_each_and_names_every_choice() -> None:
    page, readme = ROOT / "docs" / "commands.md", ROOT / "README.md"
    assert {command[0] for command in commands_of(page)} == set(COMMANDS)
    assert [name for name in COMMANDS if f"`{name}`" not in readme.read_text()] == []
    assert len(readme.read_text().splitlines()) <= 200
    text = page.read_text()
    names = (*choices.TRANSFORMS, *choices.DATASETS, *choices.NORMS, *choices.ATTACKS)
    assert [name for name in names if f"`{name}`" not in text] == []


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.M)
    assert phony is not None
    documented = re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.M)
    assert sorted(documented) == sorted(phony.group(1).split())


def test_the_example_of_a_sweep_is_one() -> None:
    grid = read_spec(ROOT / "docs" / "examples" / "digits.toml")
    check_grid(grid, Place("cpu"))
    assert f"{grid.count} cells" in (ROOT / "docs" / "commands.md").read_text()


@pytest.mark.slow
def test_the_example_of_a_sweep_runs(tmp_path: Path) -> None:
    example = ROOT / "docs" / "examples" / "digits.toml"
    printed = succeeded(run_cli("sweep", example, "--workers", 2, "--out", tmp_path / "out"))
    assert "18 of 18 cells finished" in printed and max(map(len, printed.splitlines())) <= 80


def run_python_of(path: Path, folder: Path, **environment: str) -> str:
    """Run a document's Python, one script after the other in one process, as a reader would."""
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.S | re.M)
    assert blocks
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_readmes_python_runs_as_it_stands(tmp_path: Path) -> None:
    printed = run_python_of(ROOT / "README.md", tmp_path)
    assert "AGP (test minus train)" in printed and "masking checks" in printed
    assert "tubal ranks 4, 4, 4" in printed


# Pages whose blocks run in their order, and whether they need the real data. Those of the other
# pages run in a test of their own, take minutes to hours each, or stand for files of the
# reader's; their commands parse.
IN_ORDER = {
    "README": False,
    "docs/index": False,
    "docs/install": False,
    "docs/tutorial/images": False,
    "docs/tutorial/model": False,
    "docs/tutorial/cube": True,
    "docs/tutorial/series": True,
}
_BLOCK = re.compile(r"(?:`(\w+\.py)`:\n\n)?^```(python|sh|console)\n(.*?)^```", flags=re.S | re.M)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_ORDER)
def test_every_block_runs_in_its_order(
    name: str, tmp_path: Path, monkeypatch, real_data: Path | None
) -> None:
    if IN_ORDER[name]:
        if real_data is None:
            pytest.skip("the real data sets are not here")
        monkeypatch.setenv("TNN_DATA", str(real_data))
    if name.endswith("model"):
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "a reader's script"}
    for file, kind, text in _BLOCK.findall((ROOT / f"{name}.md").read_text()):
        if file:
            Path(file).write_text(text)
        if kind == "python":
            exec(compile(text, f"{name}.md", "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            typed = os.path.expandvars(line.removeprefix("$ ").split(" #")[0])
            if typed.startswith("tnn-"):
                command, *arguments = shlex.split(typed)
                succeeded(run_cli(command.removeprefix("tnn-"), *arguments))


LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.M)
    plain = (re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()) for head in heads)
    return {one.strip().replace(" ", "-") for one in plain}


PAGES = [
    *DOCUMENTS,
    *(ROOT / name for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for link in LINK.findall(text):
        if link.startswith(("https://", "http://")):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), f"{link} is not there"
        if anchor:
            assert anchor in anchors_of(target), f"{link}: no such heading"


def test_the_site_has_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"[\w/.-]+\.md", config.partition("\nnav:")[2])) == pages


def test_the_pages_name_every_masking_check_and_the_words_of_a_report() -> None:
    masking = (ROOT / "docs" / "masking.md").read_text()
    assert [name for name in CHECKS if f"| `{name}` |" not in masking] == []
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    words = "t-product tubal multi-rank face AGP drop certified vacuous kept broken unknown margin"
    assert [word for word in words.split() if f"**{word}" not in glossary] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    build = ("-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site"))
    done = subprocess.run(
        [sys.executable, *build],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    page = (tmp_path / "site" / "api.html").read_text()
    assert (
        "load_state_dict" in page
        and "What no attack can do" in (tmp_path / "site" / "python.html").read_text()
    )
    assert "What a verification proves" in (tmp_path / "site" / "security.html").read_text()


def test_the_page_of_formats_runs_as_it_stands(tmp_path: Path, monkeypatch) -> None:
    page = ROOT / "docs" / "formats.md"
    printed = run_python_of(page, tmp_path)
    assert "66 train and 24 test examples of 64 features x 3 channels" in printed
    monkeypatch.chdir(tmp_path)
    described, *rest = commands_of(page)[:2], *commands_of(page)[2:]
    for name, *arguments in described:
        assert "Classes" in succeeded(run_cli(name.removeprefix("tnn-"), *arguments))
    assert (tmp_path / "plant.png").is_file() and len(rest) == 4


@pytest.mark.slow
def test_the_commands_of_the_page_of_formats_run(tmp_path: Path, monkeypatch) -> None:
    page = ROOT / "docs" / "formats.md"
    run_python_of(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, *arguments in commands_of(page):
        succeeded(run_cli(name.removeprefix("tnn-"), *arguments))
    assert "50raw=0.0125" in (tmp_path / "runs" / "field" / "model.safetensors").read_text(
        "latin-1"
    )
    assert "100raw" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_commands_of_the_certification_page_run(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    for name, *arguments in commands_of(ROOT / "docs" / "certification.md"):
        succeeded(run_cli(name.removeprefix("tnn-"), *arguments))
    assert (tmp_path / "certified.svg").is_file()


@pytest.mark.slow
def test_the_training_page_runs_as_it_stands(tmp_path: Path) -> None:
    printed = run_python_of(ROOT / "docs" / "training.md", tmp_path)
    assert "held back: clean" in printed


@pytest.mark.slow
def test_the_python_page_runs_as_it_stands(tmp_path: Path, data_dir: Path) -> None:
    printed = run_python_of(ROOT / "docs" / "python.md", tmp_path, TNN_DATA=str(data_dir))
    assert "robust" in printed and (tmp_path / "runs" / "small" / "model.safetensors").is_file()
