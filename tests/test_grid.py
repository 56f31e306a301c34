"""A sweep's spec: what is swept, what a cell is called, and what is refused."""

from itertools import islice, product
from pathlib import Path

import click
import pytest
from cli_checks import refused
from conftest import run_cli
from tnn_robust_cli import attack, train

from tnn_robust.attacks.registry import attacks_of
from tnn_robust.experiments.grid import (
    EVALUATED,
    MOST_CELLS,
    SETTINGS,
    TRAINED,
    make_grid,
)
from tnn_robust.experiments.grid_cell import Place, check_grid, requests_of
from tnn_robust.experiments.grid_run import cell_path, finished_cells


def test_lists_and_ranges_are_swept_and_the_rest_is_fixed() -> None:
    grid = make_grid(
        {
            "rank": ["none", 2, "4,4,2"],
            "eps": ["0:0.2:0.1", "8/255"],
            "seed": "0:6:2",
            "evaluate": {"eps": "0.1,0.2", "restarts": [1, 5]},
        }
    )
    ranks, sizes = [None, [2], [4, 4, 2]], ["0", "0.1", "0.2", "8/255"]
    wanted = set(map(str, product(ranks, sizes, [1, 5], [0, 2, 4])))
    names = ("rank", "eps", "evaluate.restarts", "seed")
    found = [tuple(cell.settings[name] for name in names) for cell in grid.cells()]
    assert len(found) == grid.count == 72 and set(map(str, found)) == wanted
    assert tuple(grid.swept) == names and grid.main_axis == "eps"
    assert all(cell.settings["evaluate.eps"] == ["0.1", "0.2"] for cell in grid.cells())


def test_a_cell_is_named_by_what_is_set_not_by_how() -> None:
    def digests(**spec) -> list[str]:
        return [cell.digest for cell in make_grid(spec).cells()]

    (plain,) = digests(width=8)
    assert digests(width="8", epochs=20, evaluate={"restarts": 1}) == [plain]
    assert digests(seed=[0], width=8) == [plain]
    assert plain in digests(seed="0:5", width=[8, 16])
    others = [
        digests(width=8, **{name: value})[0] for name, value in {"lr": 0.1, "rank": 2}.items()
    ]
    others += digests(width=8, evaluate={"n": 5})
    assert len({plain, *others}) == 4


def test_the_defaults_are_those_of_the_commands() -> None:
    """But for the checks, which are off in a sweep: they take longer than a small cell."""

    def parsed(command: click.Command, *arguments: str) -> dict:
        with command.make_context(command.name, list(arguments)) as context:
            return context.params

    given = parsed(train.main, "--out", "run")
    given |= {"width": list(given["width"]), "eps": given["eps"].text}
    assert {n: setting.default for n, setting in TRAINED.items()} == {n: given[n] for n in TRAINED}
    given = parsed(attack.main, "run")
    given |= {"attack": given["attacks"] or None, "seed": given["seeds"][0], "checks": False}
    assert {n: s.default for n, s in EVALUATED.items()} == {n: given[n] for n in EVALUATED}


def test_a_grid_beyond_any_memory_gives_its_first_cells() -> None:
    grid = make_grid(dict.fromkeys(("seed", "split_seed", "n_train"), "0:100000"))
    assert grid.count == 10**15
    assert [cell.settings["seed"] for cell in islice(grid.cells(), 3)] == [0, 1, 2]


def test_only_pgd_gets_the_steps() -> None:
    grid = make_grid({"attack": ["none", "fgsm", "pgd"], "steps": 7, "eps": 0.2})
    found = [requests_of(cell.settings, Path(), Place()) for cell in grid.cells()]
    assert [t.attack and t.attack.steps for t, *_ in found] == [None, 1, 7]
    # Of a network trained on clean examples the cell's own eps.
    assert [attacks_of(choice, t.attack)[0].threat.eps for t, choice, _ in found] == [0.2, 0.2, 0.2]


def test_every_seed_may_have_its_own_training_subset() -> None:
    grid = make_grid({"split_seed": "seed", "seed": [3, 5], "n_train": 50})
    found = [requests_of(cell.settings, Path(), Place())[0] for cell in grid.cells()]
    assert [(t.seed, t.data.split_seed) for t in found] == [(3, 3), (5, 5)]


REFUSED = {
    "unknown key": ("widht = 3", "unknown key widht", "width"),
    "unknown key below": ("[evaluate]\nepochs = 3", "unknown key evaluate.epochs"),
    "a table": ("[train]\nepochs = 3", "unknown key train"),
    "nothing": ("", "empty grid"),
    "no values": ("rank = []", "empty grid", "rank"),
    "empty range": ('seed = "5:5"', "seed", "5:5"),
    "negative seed": ("seed = -1", "seed", "-1"),
    "twice": ("eps = [0.1, 0.2, 0.1]", "eps", "twice"),
    "twice by range": ('seed = [1, "0:3"]', "seed", "twice"),
    "type": ("epochs = true", "epochs", "True"),
    "text": ('lr = "fast"', "lr", "fast"),
    "infinite": ("lr = inf", "lr", "inf"),
    "nested": ("seed = [[1, 2]]", "seed"),
    "date": ("n_train = 2026-01-01", "n_train"),
    "TOML": ("seed = [1", "not TOML"),
    "none": ('epochs = "none"', "epochs", "none"),
    "eps": ("eps = -0.1", "eps", "-0.1"),
    "too many": ('seed = "0:2000"\nsplit_seed = "0:2000"', str(2000**2), "--yes"),
    "attack": ('attack = "apgd"', "training attack", "apgd"),
    "norm": ('attack = ["pgd", "fgsm"]\nnorm = "l2"', "fgsm", "l2"),
    "steps": ('attack = "fgsm"\nsteps = 3', "steps", "fgsm"),
    "steps swept": ('attack = ["fgsm", "pgd"]\nsteps = [3, 5]', "steps", "fgsm"),
    "optimizer": ('optimizer = "lion"', "optimizer", "lion"),
    "epochs": ("epochs = [3, 0]", "epochs", "0"),
    "widths": ('width = "8,8"', "width needs 1 value or 3"),
    "rank": ("width = 8\nrank = [2, 9]", "rank", "9"),
    "transform": ('transform = ["dct", "fourier"]', "transform", "fourier"),
    "data set": ('dataset = ["digits", "imagenet"]', "data set", "imagenet"),
    "missing file": ('dataset = "npz:/nowhere/x.npz"', "/nowhere/x.npz"),
    "examples": ("n_train = [50, 100000]", "100000"),
    "class": ('classes = "3,x"', "x"),
    "evaluated attack": ('[evaluate]\nattack = "cw"', "attack", "cw"),
    "suite": ('[evaluate]\nsuite = "best"', "suite", "best"),
    "suite and attack": (
        '[evaluate]\nsuite = "quick"\nattack = "pgd"',
        "a suite takes no other attack",
    ),
    "evaluated norm": ('eps = 0.1\n[evaluate]\nnorm = "l2"', "give an eps"),
    "device": ("--device", "cuda:77"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_spec_is_one_line_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    text, *needed = REFUSED[case]
    options = [text, *needed] if text.startswith("--") else []
    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    spec.write_text("seed = 0" if options else text)
    result = run_cli("sweep", spec, "--out", out, *options)
    # What is wrong with the text is said with the name of its file.
    refused(result, *needed)
    assert not out.exists()


def test_other_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    refused(run_cli("sweep", spec, "--out", out), "cannot read", str(spec))
    spec.write_bytes(b"\xff\xfe")
    refused(run_cli("sweep", spec, "--out", out), "not TOML", str(spec))
    spec.write_text("seed = 0")
    refused(run_cli("sweep", spec, "--out", out, "--resume"), "nothing to resume")
    refused(run_cli("sweep", spec, "--out", out, "--workers", 0), "--workers")
    both = ("--workers", 2, "--scheduler", "tls://127.0.0.1:1")
    refused(run_cli("sweep", spec, "--out", out, *both), "--scheduler")
    refused(run_cli("sweep", spec, "--out", spec), "is a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    refused(run_cli("sweep", spec, "--out", tmp_path / "full"), "exists", "--resume")
    refused(run_cli("sweep", spec, "--out", tmp_path / "full", "--resume"), "nothing to resume")
    (tmp_path / "full" / "sweep.json").write_text("{}")
    refused(run_cli("sweep", spec, "--out", tmp_path / "full", "--resume"), "not of tnn-sweep")
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    refused(run_cli("sweep", spec, "--out", out), "Dask", "pip install")
    dask = ("--engine", "dask", "--dataset", "digits", "--out", out)
    refused(run_cli("reproduce", "a1", *dask), "Dask", "pip install")
    assert not out.exists()


def test_yes_lets_a_large_grid_pass(tmp_path: Path) -> None:
    """As far as the next thing that is wrong."""
    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    spec.write_text('seed = "0:2000"\nsplit_seed = "0:2000"\noptimizer = "lion"')
    refused(run_cli("sweep", spec, "--out", out), str(2000**2), f"more than {MOST_CELLS}", "--yes")
    refused(run_cli("sweep", spec, "--out", out, "--yes"), "lion")


def test_scanning_finds_what_is_finished_and_nothing_else(tmp_path: Path) -> None:
    cells = list(make_grid({"seed": "0:600"}).cells())
    for cell in cells[::3]:
        path = cell_path(tmp_path, cell.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        (path.parent / f".{path.name}.77.tmp").touch()  # of a writer that was killed
    found = [digest.decode() for digest in finished_cells(tmp_path)]
    assert found == sorted(cell.digest for cell in cells[::3])
    assert max(len(list(p.iterdir())) for p in (tmp_path / "cells").iterdir()) < 20


def test_every_setting_reaches_the_requests() -> None:
    """A key that is read and then dropped would sweep nothing."""
    first = make_grid({"attack": "pgd", "norm_bound": 5.0, "evaluate": {"attack": "pgd"}})
    changed = {
        "dataset": "mnist", "classes": ["3", "7"], "split": "random", "patch": 3, "resample": 9,
        "keys": ["x=a", "y=b"], "axes": "ncd", "shape": "7,7", "label": "kind",
        "missing": "interpolate", "limits": "0,9",
        "n_train": 9, "layers": 2, "width": [7], "rank": [2], "transform": "haar",
        "attack": "fgsm", "norm": "l2", "eps": "0.3", "steps": 3, "step_size": 0.1, "epochs": 3,
        "batch_size": 7, "lr": 0.3, "optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.1,
        "loss": "exponential", "norm_bound": 3.0, "norm_penalty": 0.1, "nuclear": 0.1,
        "matmul_precision": "high", "objective": "trades", "awp": 0.01, "label_smoothing": 0.1,
        "schedule": "cosine", "warmup": 1.0, "ema": 0.9, "validate": 0.1,
        "split_seed": 4, "seed": 4, "evaluate.attack": ["fw"], "evaluate.suite": "quick",
        "evaluate.norm": "l2", "evaluate.eps": ["0.3"], "evaluate.steps": 3,
        "evaluate.step_size": 0.2, "evaluate.restarts": 3, "evaluate.random_start": False,
        "evaluate.loss": "logistic", "evaluate.channels": "0:2", "evaluate.faces": "0:2",
        "evaluate.stop_broken": True, "evaluate.n": 7, "evaluate.checks": True,
        "evaluate.seed": 3,
    }  # fmt: skip
    assert changed.keys() == SETTINGS.keys()
    (cell,) = first.cells()
    before = requests_of(cell.settings, Path(), Place())
    for name, value in changed.items():
        assert requests_of({**cell.settings, name: value}, Path(), Place()) != before, name


def test_checking_looks_at_both_ends_of_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from tnn_robust.experiments import grid_cell as module

    loaded = []
    load = module.load_dataset
    monkeypatch.setattr(module, "load_dataset", lambda s: loaded.append(s.n_train) or load(s))
    check_grid(make_grid({"n_train": ["none", "50:100:5"], "seed": "0:1000"}), Place())
    assert loaded == [None, 50, 95]
