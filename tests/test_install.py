"""What `pip install .` leaves: built, installed elsewhere and run from an empty folder."""

import configparser
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import tnn_robust
from tnn_robust.base.errors import MissingPackage
from tnn_robust.experiments.cluster import require_dask

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_DATA = ("tnn_robust/py.typed", "tnn_robust/reporting/page.html.j2")


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def names_of(lines: str) -> set[str]:
    """The packages of requirements, in lower case with dashes."""
    found = (re.match(r"[\w.-]+", line) for line in lines.split("\n") if line and line[0] != "#")
    return {one.group().lower().replace("_", "-") for one in found if one}


def test_version_changelog_and_citation_agree():
    version = tnn_robust.__version__
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert newest is not None and newest.group(1).rstrip(",") == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"{{{version}}}" in (ROOT / "README.md").read_text()  # of the BibTeX entry


def test_every_extra_is_said_in_the_documents_and_pinned():
    extras = dict(setup_cfg()["options.extras_require"])
    page = (ROOT / "docs" / "install.md").read_text()
    assert [name for name in extras if f"`{name}`" not in page] == []
    pins = names_of((ROOT / "constraints.txt").read_text())
    free = {"triton", "foolbox", "adversarial-robustness-toolbox"}
    needed = {one for name in extras for one in names_of(extras[name])}
    assert needed - pins - free == set()


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch):
    """Every error about a missing package holds a line of pip, and of an extra that there is."""
    extras = set(setup_cfg()["options.extras_require"])
    named = set()
    for path in (ROOT / "tnn_robust").rglob("*.py"):
        named |= set(re.findall(r"tnn-robust\[([a-z]+)\]", path.read_text()))
    assert {"onnx", "sweep"} <= named <= extras
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackage, match=r"pip install 'tnn-robust\[sweep\]'"):
        require_dask()


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and sdist, built from a copy of what git knows."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    archive = out / "tree.tar"
    listed = run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT).split("\0")
    with tarfile.open(archive, "w") as tar:
        for name in filter(None, listed):
            if (ROOT / name).is_file() and not name.startswith("docs/"):
                tar.add(ROOT / name, name)
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    backend = (
        "import sys; from setuptools import build_meta as b; "
        "print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"
    )
    made = {
        kind: out / run(sys.executable, "-c", backend, kind, out, cwd=source).split()[-1]
        for kind in ("sdist", "wheel")
    }
    return made["wheel"], made["sdist"]


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_packages_and_their_data(built):
    wheel, sdist = built
    assert tnn_robust.__version__ in wheel.name and tnn_robust.__version__ in sdist.name
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert set(PACKAGE_DATA) <= inside
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tnn_robust").rglob("*.py")}
    commands = {f"tnn_robust_cli/{path.name}" for path in (ROOT / "cli").glob("*.py")}
    assert {name for name in inside if name.endswith(".py")} == ours | commands
    with tarfile.open(sdist) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert {*PACKAGE_DATA, "README.md", "LICENSE", "setup.cfg", "pyproject.toml"} <= held
    assert ours <= held


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(built, tmp_path):
    place, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", built[0], cwd=empty)
    # The packages it needs are those of this environment, by plain paths: no editable install
    # of theirs is followed.
    here = [path for path in sys.path if path.endswith("site-packages")]
    site = run(python, "-c", "import sysconfig as s; print(s.get_path('purelib'))", cwd=empty)
    (Path(site.strip()) / "others.pth").write_text("\n".join(here))
    assert sysconfig.get_path("purelib") != site.strip()
    where = run(python, "-c", "import tnn_robust as tr; print(tr.__file__)", cwd=empty)
    assert str(place) in where
    code = (
        "import tnn_robust as tr, tnn_robust_cli; data = tr.load_data('digits'); "
        "model = tr.TNN.for_data(data, layers=1, width=8); "
        "print(tr.evaluate(model, data, tr.attacks.FGSM('linf', 0.1), n=9, checks=False))"
    )
    assert "AGP" in run(python, "-c", code, cwd=empty)
    scripts = setup_cfg()["options.entry_points"]["console_scripts"]
    commands = [line.split("=")[0].strip() for line in scripts.split("\n") if line]
    assert len(commands) >= 10
    for command in commands:
        assert "Usage" in run(place / "bin" / command, "--help", cwd=empty), command
    options = ("--epochs", 1, "--width", 8, "--layers", 1, "--attack", "none", "--out", "run")
    run(place / "bin" / "tnn-train", *options, cwd=empty)
    short = ("--attack", "fgsm", "--eps", 0.05, "--n", 9, "--no-checks", "--json", "r.json")
    run(place / "bin" / "tnn-attack", "run", *short, cwd=empty)
    run(place / "bin" / "tnn-report", "r.json", "--html", "r.html", cwd=empty)
    assert "<html" in (empty / "r.html").read_text()
