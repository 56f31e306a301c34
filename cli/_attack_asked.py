"""What tnn-attack was asked, typed: networks, attacks, examples, and where results go."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tnn_robust.attacks.choice import AttackChoice
from tnn_robust.base.choices import EPS_UNITS, EXAMPLES, FIGURE, FIGURES
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.data.spec import DataSpec

if TYPE_CHECKING:
    from tnn_robust.attacks.attack import Attack
    from tnn_robust.data.dataset import Dataset
    from tnn_robust.evaluation.subject import Subject


class Network(NamedTuple):
    """A network to attack; see `load_subject`."""

    run: Path | None = None
    model: str | None = None
    model_input: str = "auto"
    data: DataSpec | None = None


@dataclass(frozen=True)
class Asked:
    """All that was typed. ranged: whether eps were given as a range START:STOP:STEP."""

    networks: tuple[Network, ...]
    choice: AttackChoice
    ranged: bool
    suite: str | None
    seeds: tuple[int, ...]
    n: int | None
    batch_size: int
    checks: bool
    device: str
    data_dir: str | None
    download: bool
    certify: bool | None = None
    resume: bool = False
    overwrite: bool = False
    compare: bool = False
    curve: bool = False
    minimal: bool = False
    stacked: bool = False
    verify: Path | None = None
    json_file: Path | None = None
    save_adv: Path | None = None
    examples: Path | None = None
    figure: Path | None = None
    gallery: Path | None = None
    fail_under: float | None = None
    fail_on_warn: bool = False
    eps_unit: str = "range"

    @property
    def mode(self) -> str:
        """Which of the command's five reports is asked for."""
        for name in ("verify", "compare", "minimal", "curve"):
            if getattr(self, name):
                return name
        return "curve" if self.ranged else "report"

    @property
    def files(self) -> list[tuple[Path, tuple[str, ...]]]:
        """All that is to be written, and which of this command's results each may replace."""
        kinds = (
            (_JSON[self.mode], *_JSON.values()),
            ("adversarial-examples",),
            (EXAMPLES,),
            (FIGURE,),
            (FIGURE,),
        )
        files = (self.json_file, self.save_adv, self.examples, self.figure, self.gallery)
        return [(file, kind) for file, kind in zip(files, kinds, strict=True) if file is not None]

    def load(self, network: Network | None = None) -> "tuple[Subject, Dataset]":
        """The network, by default the only one, with its data."""
        from tnn_robust.evaluation.subject import load_subject

        one = network or self.networks[0]
        return load_subject(
            one.run,
            model=one.model,
            model_input=one.model_input,
            data=one.data,
            device=self.device,
            data_dir=self.data_dir,
            download=self.download,
        )

    def loads(self) -> "list[Callable[[], tuple[Subject, Dataset]]]":
        """The same for each network in turn."""
        return [partial(self.load, one) for one in self.networks]

    def suite_for(self, subject: "Subject") -> str | None:
        """The suite asked for, or the default one where nothing was."""
        from tnn_robust.evaluation.report import default_suite

        by_default = self.mode in ("report", "compare") and not self.stacked
        if self.suite is not None or not by_default:
            return self.suite
        return default_suite(self.choice, subject.trained)

    def attacks_on(self, subject: "Subject") -> "tuple[Attack, ...]":
        """The attacks asked for, as this network takes them."""
        from tnn_robust.evaluation.report import chosen_attacks

        found = chosen_attacks(
            self.choice,
            self.suite_for(subject),
            trained=subject.trained,
            scores=subject.scores,
            entries=subject.entries,
        )
        return self.in_range(found, subject)

    def in_range(self, attacks: "tuple[Attack, ...]", subject: "Subject") -> "tuple[Attack, ...]":
        """The attacks with the eps that were typed in units of the data's range."""
        if self.eps_unit == "range" or not self.choice.eps:
            return attacks
        assert subject.scaling is not None
        return tuple(one.of_raw(subject.scaling.low, subject.scaling.high) for one in attacks)


_JSON = {
    "report": "attack-report",
    "verify": "attack-report",
    "compare": "comparison-report",
    "curve": "eps-curve",
    "minimal": "minimal-report",
}
# Options that are of some of the reports alone.
_OF = {
    "save_adv": ("report",),
    "resume": ("report", "curve"),
    "examples": ("report", "minimal"),
    "stacked": ("compare",),
    "figure": ("curve",),
    "gallery": ("report",),
    "suite": ("report", "compare"),
    "certify": ("report", "compare", "curve", "minimal"),
    "fail_under": ("report",),
    "fail_on_warn": ("report",),
}
_EXCLUSIVE = ("verify", "compare", "minimal", "curve")


def check(asked: Asked) -> None:
    """Raise InputError for options that do not go together, before anything is loaded."""
    modes = [f"--{name}" for name in _EXCLUSIVE if getattr(asked, name)]
    if len(modes) > 1:
        raise InputError(f"give one of {' and '.join(modes)}, got both")
    if asked.eps_unit not in EPS_UNITS:
        raise unknown_choice("unit of eps", asked.eps_unit, EPS_UNITS, field="eps_unit")
    mode = asked.mode
    for name, allowed in _OF.items():
        if getattr(asked, name) and mode not in (*allowed, "verify"):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is of {_described(allowed)}, got {_described((mode,))}")
    if asked.fail_on_warn and not asked.checks:
        raise InputError("--fail-on-warn needs the masking checks: leave out --no-checks")
    if mode in ("curve", "minimal") and len(asked.seeds) > 1:
        raise InputError(f"--{mode} takes one --seed, got {len(asked.seeds)}")
    if mode == "compare" and asked.ranged:
        raise InputError("--compare takes no eps range: for rows give a list")
    if mode == "curve" and len(asked.choice.names) > 1:
        raise InputError("an eps range is one sweep of one --attack: for rows give a list")
    if asked.examples is not None and asked.examples.suffix not in (".csv", ".jsonl"):
        raise InputError(f"--examples is a .csv or .jsonl file, got {asked.examples}")
    for name in ("figure", "gallery"):
        file = getattr(asked, name)
        if file is not None and file.suffix not in FIGURES:
            raise InputError(f"--{name} is a .png, .svg or .pdf file, got {file}")


def _described(modes: tuple[str, ...]) -> str:
    names = {"report": "the report", "curve": "--curve or an eps range"}
    return " and ".join(names.get(mode, f"--{mode}") for mode in modes)
