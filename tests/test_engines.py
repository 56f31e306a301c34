"""The engines: here, in processes, and on Dask with workers that are killed for real."""

import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_works import Order, echo, obey, starts

from tnn_robust.base.errors import InputError, TrainingError
from tnn_robust.base.parallel import (
    Event,
    Failed,
    Task,
    Work,
    run_here,
    run_in_processes,
)
from tnn_robust.experiments import cluster as cluster_module
from tnn_robust.experiments.cluster import Cluster, embedded, run_on_dask
from tnn_robust.experiments.tls import make_certificates


@pytest.fixture
def dask(scheduler: Cluster) -> Cluster:
    """Two workers, as a scheduler that somebody else runs."""
    return scheduler


def orders(folder: Path, **kinds: str) -> list[Task]:
    return [Task(key, Order(kind, key, folder)) for key, kind in kinds.items()]


def outcomes(events: list[Event]) -> dict[str, Any]:
    return {e.key: e.value for e in events if e.kind in ("finished", "failed")}


def pid_of(folder: Path, key: str) -> int:
    """The process in which a task was started, once it is."""
    for _ in range(600):
        if found := sorted(folder.glob(f"{key}.*")):
            return int(found[-1].name.split(".")[1])
        time.sleep(0.05)
    raise AssertionError(f"{key} was never started")


def test_the_engines_agree(tmp_path: Path, dask: Cluster) -> None:
    engines: dict[str, Callable[[Work, list[Task]], Generator[Event, None, None]]] = {
        "here": run_here,
        "processes": lambda work, tasks: run_in_processes(work, tasks, 2),
        "dask": lambda work, tasks: run_on_dask(work, tasks, dask),
    }
    for name, engine in engines.items():
        (tmp_path / name).mkdir()
        first, *events = engine(obey, orders(tmp_path / name, a="go", b="go", c="go"))
        assert first == Event("workers", "", 1 if name == "here" else 2)
        assert outcomes(events) == {key: key for key in "abc"}
        moved = {e.key for e in events if e.kind == "moved"}
        assert moved == set("abc") or (name != "here" and moved <= set("abc"))  # may come too late
        assert list(engine(obey, []))[1:] == []


def test_an_error_is_raised_by_the_engines_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be done"):
        list(run_here(obey, orders(tmp_path, a="refuse")))
    with pytest.raises(TrainingError, match="a process died"):
        list(run_in_processes(obey, orders(tmp_path, b="die"), 1))


def test_tasks_are_taken_only_as_there_is_room(dask: Cluster) -> None:
    """So a grid of any length takes no more memory than a short one."""
    taken = done = ahead = 0

    def endless() -> Iterator[Task]:
        nonlocal taken
        while True:
            taken += 1
            yield Task(str(taken), taken)

    run = run_on_dask(echo, endless(), dask)
    for event in run:
        if event.kind == "finished":
            done += 1
            ahead = max(ahead, taken - done)
            assert event.value == int(event.key)
        if done == 60:
            break
    run.close()
    assert 2 <= ahead <= 5


def test_a_killed_worker_loses_only_its_task_which_is_tried_again(
    tmp_path: Path, dask: Cluster
) -> None:
    tasks = orders(tmp_path, slow="wait", **{f"t{i}": "go" for i in range(8)})
    events = []
    for event in run_on_dask(obey, tasks, dask):
        events.append(event)
        if event.kind == "finished" and event.key == "t7":
            os.kill(pid_of(tmp_path, "slow"), signal.SIGKILL)
    found = outcomes(events)
    assert found == {task.key: task.key for task in tasks}
    assert {key: starts(tmp_path, key) for key in found} == {**dict.fromkeys(found, 1), "slow": 2}


@pytest.mark.slow
def test_a_task_that_fails_three_times_is_reported_and_the_rest_goes_on(
    tmp_path: Path, dask: Cluster
) -> None:
    """Deaths, errors that may pass, and one that will not."""
    # Deaths apart: with a worker go results not fetched yet, which Dask makes anew.
    found: dict[str, Any] = {}
    for kinds in ({"bad": "die", "a": "go"}, {"bug": "bug", "no": "refuse", "b": "go"}):
        found |= outcomes(list(run_on_dask(obey, orders(tmp_path, **kinds), dask)))
    assert {key for key, one in found.items() if isinstance(one, str)} == {"a", "b"}
    assert (found["bad"].tries, starts(tmp_path, "bad")) == (3, 3)
    assert "died 3 times" in found["bad"].why
    assert (found["bug"].tries, starts(tmp_path, "bug")) == (3, 3)
    assert found["bug"].why == "ZeroDivisionError: a bug"
    assert "engine_works.py" in found["bug"].traceback
    assert (found["no"].tries, starts(tmp_path, "no")) == (1, 1)
    assert found["no"] == Failed("no", "this cannot be done", 1)


def test_workers_of_other_code_are_refused(
    dask: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster_module, "code_digest", lambda: "0123")
    with pytest.raises(InputError, match=r"worker tls://\S+ has other code.* 0123"):
        list(run_on_dask(echo, [Task("a", 1)], dask))
    # One that came after the check of all.
    monkeypatch.setattr(cluster_module, "_require_fit", lambda client: None)
    with pytest.raises(InputError, match=r"worker tls://\S+ has other code.* 0123"):
        list(run_on_dask(echo, [Task("a", 1)], dask))


def test_workers_without_the_library_are_refused(
    dask: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They know nothing of the module in which the client asks."""
    module = types.ModuleType("known_to_the_client_alone")
    exec("def worker_facts(dask_worker): return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cluster_module, "worker_facts", module.worker_facts)
    with pytest.raises(InputError, match="has no tnn-robust .* like this one"):
        list(run_on_dask(echo, [Task("a", 1)], dask))


def test_workers_of_several_threads_are_refused() -> None:
    from distributed import LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 3, "processes": False}
    with (
        LocalCluster(**options, dashboard_address="127.0.0.1:0") as local,
        pytest.raises(InputError, match="has 3 threads.*--nthreads 1"),
    ):
        list(run_on_dask(echo, [Task("a", 1)], Cluster(local.scheduler_address, insecure=True)))


@pytest.mark.parametrize("address", ("tcp://127.0.0.1:1", "nowhere", "http://127.0.0.1:1"))
def test_a_scheduler_that_does_not_answer(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_CONNECT", 0.5)
    began = time.monotonic()
    with pytest.raises(InputError, match=f"no Dask scheduler answers at {address}"):
        list(run_on_dask(echo, [Task("a", 1)], Cluster(address, insecure=True)))
    assert time.monotonic() - began < 5


def test_nobody_reaches_a_cluster_without_its_key(dask: Cluster, tmp_path: Path) -> None:
    make_certificates(other := tmp_path / "other")
    assert all(path.stat().st_mode & 0o077 == 0 for path in (other, *other.iterdir()))
    with pytest.raises(InputError, match="no Dask scheduler answers .* with these certificates"):
        list(run_on_dask(echo, [Task("a", 1)], Cluster(dask.scheduler, tls=other)))
    plain = str(dask.scheduler).replace("tls://", "tcp://")
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        list(run_on_dask(echo, [Task("a", 1)], Cluster(plain, insecure=True)))
    with pytest.raises(InputError, match="can run code"):
        Cluster(plain)
    with pytest.raises(InputError, match=r"ca.pem, cert.pem, key.pem are needed"):
        list(run_on_dask(echo, [Task("a", 1)], Cluster(dask.scheduler, tls=tmp_path)))


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_one_line(tmp_path: Path) -> None:
    make_certificates(tls := tmp_path / "tls")
    with embedded(1, tls) as local:
        tasks = orders(tmp_path, a="wait")
        with pytest.raises(TrainingError, match="scheduler is lost|dropped a task"):
            for event in run_on_dask(obey, tasks, Cluster(local.scheduler_address, tls=tls)):
                if event.kind == "moved":
                    local.close()


@pytest.mark.slow
def test_processes_end_with_the_first_one(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from test_engines import orders; from engine_works import obey\n"
        "from tnn_robust.base.parallel import run_in_processes\n"
        f"if __name__ == '__main__': "
        f"list(run_in_processes(obey, orders(Path({str(tmp_path)!r}), a='wait'), 1))\n"
    )
    script = tmp_path / "first.py"
    script.write_text(code)
    there = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    first = subprocess.Popen([sys.executable, str(script)], env=there)
    worker = pid_of(tmp_path, "a")
    first.kill()
    first.wait()
    for _ in range(200):
        if not Path(f"/proc/{worker}/stat").exists():
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlived the process that started it")
