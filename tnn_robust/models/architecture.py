"""The shape of a t-NN, as a value."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.models.activations import require_widths

MOST_LAYERS = 1000
_PAPERS: dict[str, Any] = {"activation": "relu", "bias": False, "orthogonal": False}


@dataclass(frozen=True)
class Architecture:
    """The shape of a t-NN: all that is needed to allocate one.

    scores: 1 (its sign classifies) or the number of classes; ranks: tubal rank
    of each layer's factors, None for a dense layer. Not in the paper: activation, of
    `choices.ACTIVATIONS`; bias, of each layer and of the head; orthogonal: whether layers are
    kept 1-Lipschitz by the Cayley transform of their faces.
    """

    features: int
    channels: int
    widths: tuple[int, ...]
    ranks: tuple[int | None, ...]
    scores: int
    transform: str
    activation: str = "relu"
    bias: bool = False
    orthogonal: bool = False

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.ranks):
            raise InputError(
                f"a t-NN needs one width and one rank a layer, got {self.widths} and {self.ranks}"
            )
        if len(self.widths) > MOST_LAYERS:
            raise InputError(f"a t-NN takes up to {MOST_LAYERS} layers, got {len(self.widths)}")
        if min(self.features, self.channels, self.scores, *self.widths) < 1:
            raise InputError(f"a t-NN needs sizes of at least 1, got {self}")
        require_widths(self.activation, self.widths)
        if self.orthogonal and any(self.ranks):
            raise InputError(f"an orthogonal layer has full rank, got ranks {self.ranks}")

    @property
    def is_papers(self) -> bool:
        """Whether it is of Eq. (4) and (5): ReLU, no biases, free weights."""
        return self == replace(self, **_PAPERS)

    @property
    def departures(self) -> tuple[str, ...]:
        """What is not of Eq. (4) and (5), in words."""
        found = (
            "" if self.activation == "relu" else f"activation {self.activation}",
            "biases" * self.bias,
            "orthogonal layers" * self.orthogonal,
        )
        return tuple(text for text in found if text)

    def require_papers(self, what: str, why: str) -> None:
        """InputError for what holds of the paper's networks alone, and why that is."""
        if not self.is_papers:
            raise InputError(
                f"{what} is of ReLU networks without biases and with free weights ({why}), "
                f"got {', '.join(self.departures)}"
            )

    @property
    def numbers(self) -> int:
        """Entries of the weights in the data's own domain, whatever their dtype."""
        before = (self.features, *self.widths)
        each = (
            a * b if rank is None else rank * (a + b)
            for a, b, rank in zip(before, self.widths, self.ranks, strict=False)
        )
        biases = self.bias * (sum(self.widths) + self.scores)
        return self.channels * (sum(each) + self.scores * self.widths[-1] + self.channels + biases)

    def to_json(self) -> dict[str, Any]:
        """Without what the paper's networks have not, so that earlier releases read theirs."""
        found = {**asdict(self), "widths": list(self.widths), "ranks": list(self.ranks)}
        return {k: v for k, v in found.items() if _PAPERS.get(k, ...) != v}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Architecture":
        try:
            if not isinstance(value["transform"], str):
                raise TypeError
            lists = {"widths": tuple(value["widths"]), "ranks": tuple(value["ranks"])}
            sizes = (value["features"], value["channels"], value["scores"], *lists["widths"])
            flags = (value.get("bias", False), value.get("orthogonal", False))
            if not (all(type(flag) is bool for flag in flags)):
                raise TypeError
            if not isinstance(value.get("activation", "relu"), str):
                raise TypeError
            ranks = (rank for rank in lists["ranks"] if rank is not None)
            if not all(type(size) is int for size in (*sizes, *ranks)):
                raise TypeError
            return cls(**{**value, **lists})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"not an architecture: {value}") from error


def _require_layers(layers: int) -> None:
    if not 1 <= layers <= MOST_LAYERS:
        raise InputError(f"a t-NN takes 1 to {MOST_LAYERS} layers, got {layers}", field="layers")


def layer_widths(widths: Sequence[int], layers: int) -> tuple[int, ...]:
    """d_1 .. d_L from one width for all layers, or one a layer."""
    _require_layers(layers)
    if len(widths) not in (1, layers):
        needed = f"1 value or {layers}, one a layer"
        raise InputError(f"width needs {needed}, got {len(widths)}", field="width")
    return tuple(widths) * layers if len(widths) == 1 else tuple(widths)


def ranks_of_layers(ranks: Sequence[int] | None, layers: int) -> tuple[int | None, ...]:
    """Tubal ranks of L layers from None for dense ones, one for all, or one a layer."""
    _require_layers(layers)
    if ranks is None:
        return (None,) * layers
    if len(ranks) not in (1, layers):
        needed = f"1 value or {layers}, one a layer"
        raise InputError(f"rank needs {needed}, got {len(ranks)}", field="rank")
    return tuple(ranks) * layers if len(ranks) == 1 else tuple(ranks)
