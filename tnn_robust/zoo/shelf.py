"""The networks of the package: an index, and files that are what the index says."""

import builtins
from dataclasses import dataclass
from pathlib import Path

import torch

from tnn_robust.base.codec import Record, decoded, require, require_at_least
from tnn_robust.base.errors import CheckpointError, unknown_choice
from tnn_robust.base.reading import parsed_json, read_bytes, reading
from tnn_robust.evaluation.results import AttackReport
from tnn_robust.models.checkpoint import load_checkpoint
from tnn_robust.models.network import TNN
from tnn_robust.reporting.saved import load_report

FILES = Path(__file__).parent / "files"
INDEX = "index.json"


@dataclass(frozen=True)
class ZooNetwork(Record):
    """A line of the index.

    about: what it is, in a sentence; data, threat: in words; command: that trains it anew;
    digest: of its checkpoint; parameters: real numbers; clean, attacked, certified: accuracies
    on n test examples under the threat, of which the true robust one lies between the last two.
    """

    name: str
    about: str
    data: str
    threat: str
    command: str
    digest: str
    parameters: int
    clean: float
    attacked: float
    certified: float
    n: int

    def __post_init__(self) -> None:
        require_at_least(1, parameters=self.parameters, n=self.n)
        order = 0 <= self.certified <= self.attacked <= self.clean <= 1
        require(order, "0 <= certified <= attacked <= clean <= 1", self.name)


def list() -> tuple[ZooNetwork, ...]:
    """Every network of the package, in the order of the index."""
    file = FILES / INDEX
    with reading(file, "the index of the zoo", CheckpointError):
        value = parsed_json(read_bytes(file))
        return decoded(tuple[ZooNetwork, ...], value, "zoo")


def entry(name: str) -> ZooNetwork:
    """The line of a network; InputError for a name that the zoo has not."""
    found = {one.name: one for one in list()}
    if name not in found:
        raise unknown_choice("network of the zoo", name, builtins.list(found))
    return found[name]


def path(name: str) -> Path:
    """The checkpoint of a network, a file that every command takes.

    Raises InputError for an unknown name, CheckpointError for a file that was altered or
    replaced since the package was made.
    """
    _checked(name)
    return _file(name, "safetensors")


def load(name: str, device: str | torch.device = "cpu") -> TNN:
    """The network on a device, after its digest was checked; errors as of `path`."""
    return _checked(name).to(device)


def report(name: str) -> AttackReport:
    """What was measured of it when it was made: attacked and certified, on both parts."""
    entry(name)
    found = load_report(_file(name, "json"))
    if not isinstance(found, AttackReport):
        raise CheckpointError(f"the zoo's report of {name} is a {type(found).__name__}")
    return found


def card(name: str) -> str:
    """Its model card, in Markdown."""
    entry(name)
    file = _file(name, "md")
    with reading(file, "a model card", CheckpointError):
        return read_bytes(file).decode()


def _checked(name: str) -> TNN:
    wanted, checkpoint = entry(name), load_checkpoint(_file(name, "safetensors"))
    if checkpoint.digest != wanted.digest:
        raise CheckpointError(
            f"{checkpoint.path} is not the network {name} of the zoo: its digest is "
            f"{checkpoint.digest[:12]}, the index says {wanted.digest[:12]}"
        )
    return checkpoint.model


def _file(name: str, kind: str) -> Path:
    return FILES / f"{name}.{kind}"
