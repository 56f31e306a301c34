"""What a user asked of a compression: a checked `Rule`, and the ranks it stands for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from tnn_robust.base import choices
from tnn_robust.base.errors import InputError, unknown_choice
from tnn_robust.compression.costs import Costs
from tnn_robust.compression.layer_svd import LayerSVD
from tnn_robust.compression.rank_selection import (
    MultiRanks,
    budget_ranks,
    energy_ranks,
    given_ranks,
    global_energy_ranks,
    tolerance_ranks,
)

# What each method needs, one of each row; of each the least.
NEEDS = {
    "rank": ("rank",),
    "energy": ("energy",),
    "tolerance": ("tolerance",),
    "global-energy": ("energy",),
    "budget": ("params", "flops", "bytes"),
    "sensitivity": ("params", "flops", "bytes"),
    "lc": ("params", "flops", "alpha"),
    "dynamic": ("rank", "params", "flops"),
    "plateau": (),
}
_SIZES = ("rank", "energy", "tolerance", "params", "flops", "bytes", "alpha")
TRAINED = ("lc", "dynamic", "plateau")  # the methods that train
BUDGETS = ("params", "flops", "bytes")


@dataclass(frozen=True)
class Rule:
    """How ranks are chosen; make one with `make_rule`.

    Exactly one of the sizes is set. rank: tubal ranks, one for all layers or one
    a layer; energy: the share of the squared F-norm (of the gain) to keep;
    tolerance: the F-norm to lose at most, a layer (Def. 17); params, flops,
    bytes: a budget, a share of the original up to 1, a count above; alpha: the
    loss a parameter is worth, of lc. plateau has no size.
    """

    method: str
    rank: tuple[int, ...] | None = None
    energy: float | None = None
    tolerance: float | None = None
    params: float | None = None
    flops: float | None = None
    bytes: float | None = None
    alpha: float | None = None
    granularity: str = "layer"
    whiten: bool = False
    second_order: bool = False

    @property
    def size(self) -> tuple[str, tuple[int, ...] | float]:
        """The name and the value of the size that is set."""
        none: tuple[str, float] = ("", 0.0)
        return next(((n, v) for n in _SIZES if (v := getattr(self, n)) is not None), none)

    def describe(self) -> str:
        """As in "ranks 3,7", "energy 0.9" or "sensitivity, params 0.25, face, second order"."""
        name, value = self.size
        if isinstance(value, tuple):
            text = f"ranks {','.join(map(str, value))}"
        else:
            text = f"{name} {value:.12g}"
        if not name:
            return self.method
        named = self.method in (name, "budget")
        words = [] if named else [self.method]
        words.append(text)
        if self.granularity != default_granularity(self.method, name):
            words.append(f"by {self.granularity}")
        words += ["whitened"] * self.whiten + ["second order"] * self.second_order
        return ", ".join(words)


def default_granularity(method: str, size: str = "") -> str:
    """Tubal ranks where a rank or a share a layer is given or faces cost alike, else what
    keeps most."""
    return "layer" if method in ("rank", "energy", "tolerance") or size == "flops" else "face"


def make_rule(method: str | None = None, **given: object) -> Rule:
    """Check what was asked; the method is inferred from the size where that decides it.

    Takes the fields of `Rule`, None standing for not given. Raises InputError
    where the method's size is missing, or another is there, or out of range.
    """
    sizes = [name for name in _SIZES if given.get(name) is not None]
    if method is None:
        if len(sizes) != 1:
            named = ", ".join(_SIZES)
            raise InputError(f"compression needs exactly one of {named}, got {_named(sizes)}")
        method = "budget" if sizes[0] in BUDGETS else sizes[0]
    if method not in NEEDS:
        raise unknown_choice("method", method, choices.COMPRESSIONS, field="method")
    fits = len(sizes) == 1 and sizes[0] in NEEDS[method] if NEEDS[method] else not sizes
    if not fits:
        needed = " or ".join(NEEDS[method]) or "no size"
        raise InputError(f"method {method} needs {needed}, got {_named(sizes)}", field="method")
    known = {field.name for field in fields(Rule)}
    assert known >= given.keys(), given
    values = {name: value for name, value in given.items() if value is not None}
    rule = Rule(method, **{"granularity": default_granularity(method, *sizes), **values})  # type: ignore[arg-type]
    _check(rule)
    return rule


def _named(sizes: Sequence[str]) -> str:
    return " and ".join(sizes) or "none"


def _check(rule: Rule) -> None:
    name, value = rule.size
    if rule.granularity not in choices.GRANULARITIES:
        raise unknown_choice(
            "granularity", rule.granularity, choices.GRANULARITIES, field="granularity"
        )
    if name == "energy" and not 0 < rule.energy <= 1:  # type: ignore[operator]
        raise InputError(f"energy needs a share above 0 and at most 1, got {value}", field=name)
    if name == "tolerance" and not 0 <= rule.tolerance < float("inf"):  # type: ignore[operator]
        raise InputError(f"tolerance needs a number of at least 0, got {value}", field=name)
    if name == "alpha" and not 0 < value < float("inf"):  # type: ignore[operator]
        raise InputError(f"alpha needs a number above 0, got {value}", field=name)
    if rule.method in TRAINED and (rule.whiten or rule.second_order):
        raise InputError(f"method {rule.method} trains: it takes neither whiten nor second_order")
    if name in BUDGETS and not 0 < value < float("inf"):  # type: ignore[operator]
        raise InputError(f"{name} needs a share or a number above 0, got {value}", field=name)
    if rule.method == "rank" and rule.granularity == "face":
        raise InputError("granularity face needs a method that chooses, rank gives tubal ranks")
    if name == "flops" and rule.granularity == "face":
        raise InputError(
            "flops count products at the tubal rank, so they need granularity layer, got face"
        )
    if rule.whiten and rule.method == "tolerance":
        raise InputError("tolerance is an F-norm of weights and whiten measures outputs: drop one")
    if rule.second_order and rule.method != "sensitivity":
        raise InputError(f"second_order is of method sensitivity, got {rule.method}")


def budget_of(rule: Rule, whole: float) -> int:
    """The budget of a rule as a count; whole: what a share of up to 1 is of."""
    _, value = rule.size
    assert not isinstance(value, tuple)
    return int(value * whole) if value <= 1 else int(value)


def choose_ranks(
    svds: Sequence[LayerSVD], rule: Rule, costs: Costs | None = None, budget: int = 0
) -> MultiRanks:
    """The multi-ranks of a rule, for svds in its metric.

    costs, budget: for the methods with a budget, in the unit of the rule's size.
    Raises InputError as the rules of `select` do.
    """
    if rule.size[0] in BUDGETS:
        assert costs is not None
        unit = {"params": "parameters", "flops": "FLOPs", "bytes": "bytes"}[rule.size[0]]
        return budget_ranks(svds, costs, budget, rule.granularity, unit=unit)
    if rule.rank is not None:
        return given_ranks(svds, rule.rank)
    share_rules: dict[str, Callable[[Sequence[LayerSVD], float, str], MultiRanks]] = {
        "energy": energy_ranks,
        "global-energy": global_energy_ranks,
        "tolerance": tolerance_ranks,
    }
    _, value = rule.size
    assert not isinstance(value, tuple)
    return share_rules[rule.method](svds, value, rule.granularity)
