"""Pieces of work for the engines' tests, by name so that other processes find them."""

import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from tnn_robust.base.errors import InputError
from tnn_robust.base.progress import Progress, Steps


class Order(NamedTuple):
    """What to do, and the folder to note it in: a file KEY.PID.TURN a start."""

    kind: str
    key: str
    folder: Path


def starts(folder: Path, key: str) -> int:
    return len(list(folder.glob(f"{key}.*")))


def obey(order: Order) -> Steps[str]:
    turn = starts(order.folder, order.key)
    (order.folder / f"{order.key}.{os.getpid()}.{turn}").touch()
    yield Progress(order.key, turn, 1)
    if order.kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if order.kind == "wait" and turn == 0:  # to be killed, on its first try
        time.sleep(60)
    if order.kind == "refuse":
        raise InputError("this cannot be done")
    if order.kind == "bug":
        raise ZeroDivisionError("a bug")
    return order.key


def echo(value: Any) -> Steps[Any]:
    yield from ()
    return value
