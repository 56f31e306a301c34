"""The layering of the design page, read from the source: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tnn_robust.base import choices

ROOT = Path(__file__).resolve().parent.parent
LIBRARY, CLI = ROOT / "tnn_robust", ROOT / "cli"

# The rooms in the order in which data walks: each may import those before it, and no other.
ROOMS = (
    "base",
    "algebra",
    "data",
    "models",
    "attacks",
    "certification",
    "theory",
    "training",
    "evaluation",
    "compression",
    "experiments",
    "reporting",
    "zoo",
)
# Neighbours that do not know each other all the same.
STRANGERS = {
    ("models", "data"),
    ("attacks", "data"),
    ("theory", "data"),
    ("theory", "attacks"),
}
# Files at the top of the library: its face.
FACE = {"__init__"}
HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "sklearn",
    "matplotlib",
    "torchattacks",
    "safetensors",
    "rich",
    "dask",
    "distributed",
)


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names a source file imports, relative ones resolved."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    relative = path.relative_to(LIBRARY)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


SOURCES = sorted(LIBRARY.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_module_imports_only_the_rooms_it_may(path: Path) -> None:
    room = room_of(path)
    if room in FACE:
        return
    assert room in ROOMS, f"{room} is a new room: give it a place in the order"
    allowed = {*ROOMS[: ROOMS.index(room) + 1], "__version__"}
    allowed -= {other for one, other in STRANGERS if one == room}
    used = {name.split(".")[1] for name in imports(path) if name.startswith("tnn_robust.")}
    assert used <= allowed, f"{path.name} imports {sorted(used - allowed)}"


def test_no_module_imports_itself_in_a_circle() -> None:
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    uses = {
        name: {one for used in imports(path) if (one := _module_of(used, known)) and one != name}
        for name, path in known.items()
    }
    done: set[str] = set()
    while found := {name for name in uses if name not in done and uses[name] <= done}:
        done |= found
    assert done == set(uses), f"import circle among {sorted(set(uses) - done)}"


def _module_of(name: str, known: dict[str, Path]) -> str | None:
    """The module of this library that an imported name is of."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        if ".".join(parts[:length]) in known:
            return ".".join(parts[:length])
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_neither_prints_nor_knows_the_command_line(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)}
    assert not used & {"click", "rich", "tnn_robust_cli", "cli"}
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert not names & {"print", "eval", "exec", "input", "__import__"}


def test_pickle_is_met_nowhere() -> None:
    """Its opcodes are read by `pickletools` alone, which builds nothing."""
    assert [path.name for path in SOURCES if "pickletools" in imports(path)] == ["pickled.py"]
    assert not any("pickle" in imports(path) for path in SOURCES)
    loads = [
        call
        for path in SOURCES
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load"
    ]
    assert [ast.unparse(call).count("weights_only=True") for call in loads] == [1]


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_the_command_line_imports_nothing_heavy_at_its_top(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    heavy = tops & set(HEAVY)
    assert heavy <= ({"rich"} if path.name == "_render.py" else set())


def test_dask_is_imported_only_when_it_is_asked_for() -> None:
    users = {path.name for path in SOURCES if {"dask", "distributed"} & imports(path)}
    assert users <= {"cluster.py"}
    tops = [imports(path, top_level_only=True) for path in SOURCES]
    assert not any(name.split(".")[0] in ("dask", "distributed") for top in tops for name in top)


def test_code_of_a_user_is_imported_in_one_place() -> None:
    users = {path.name for path in SOURCES if "importlib" in imports(path)}
    assert users == {"foreign.py"}


def test_only_render_knows_rich() -> None:
    users = {
        path.name
        for path in CLI.glob("*.py")
        if any(name.split(".")[0] == "rich" for name in imports(path))
    }
    assert users == {"_render.py"}


@pytest.mark.parametrize("command", ["train", "attack", "compress", "bound", "reproduce", "sweep"])
def test_importing_a_command_loads_nothing_heavy(command: str) -> None:
    code = (
        f"import sys, tnn_robust_cli.{command}; "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_choices_are_the_registries() -> None:
    from tnn_robust.algebra.transforms import TRANSFORMS
    from tnn_robust.attacks.balls import BALLS
    from tnn_robust.attacks.registry import ATTACKS
    from tnn_robust.attacks.structured import TUBAL_NUCLEAR
    from tnn_robust.base.losses import LOSSES
    from tnn_robust.compression.rules import NEEDS
    from tnn_robust.data.catalogue import LOADERS
    from tnn_robust.models.activations import activation_of
    from tnn_robust.models.foreign import FORMS
    from tnn_robust.models.storage import HALF
    from tnn_robust.training.optimizers import OPTIMIZERS
    from tnn_robust.training.registry import OBJECTIVES
    from tnn_robust.training.schedules import SHAPES

    def kinds(names: tuple[str, ...]) -> list[str]:
        return [name.partition(":")[0] for name in names]

    assert kinds(choices.TRANSFORMS) == list(TRANSFORMS)
    assert kinds(choices.DATASETS) == list(LOADERS)
    assert list(choices.NORMS) == [*BALLS, TUBAL_NUCLEAR]
    assert list(choices.ATTACKS) == list(ATTACKS)
    assert list(choices.MODEL_INPUTS) == ["auto", *FORMS]
    assert list(choices.LOSSES) == list(LOSSES)
    assert [activation_of(name).name for name in choices.ACTIVATIONS] == list(choices.ACTIVATIONS)
    assert list(choices.OPTIMIZERS) == list(OPTIMIZERS)
    assert list(choices.OBJECTIVES) == list(OBJECTIVES)
    assert list(choices.SCHEDULES) == list(SHAPES)
    assert list(choices.COMPRESSIONS) == list(NEEDS)
    assert list(choices.STORAGE) == [*HALF, "fp32"]


def test_every_package_of_the_library_is_installed() -> None:
    config = (ROOT / "setup.cfg").read_text()
    listed = {line.strip() for line in config.splitlines() if line.strip().startswith("tnn_robust")}
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in LIBRARY.rglob("__init__.py")}
    assert found <= listed


def test_no_name_is_two_things() -> None:
    places: dict[str, list[str]] = {}
    for path in (*LIBRARY.rglob("*.py"), *CLI.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
