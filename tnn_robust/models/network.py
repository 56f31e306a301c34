"""The tensor neural network of arXiv 2303.00196, Eq. (4) and (5)."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tnn_robust.algebra.transforms import Transform, make_transform, transform_from_matrix
from tnn_robust.base.errors import CheckpointError, InputError
from tnn_robust.base.reading import Room
from tnn_robust.models.activations import activation_of
from tnn_robust.models.architecture import Architecture as Architecture
from tnn_robust.models.architecture import layer_widths as layer_widths
from tnn_robust.models.architecture import ranks_of_layers as ranks_of_layers
from tnn_robust.models.functional import t_network
from tnn_robust.models.layers import (
    LowRankTProductLinear,
    OrthogonalTProductLinear,
    TLayer,
    TProductLinear,
    layer_flops,
)


class TNN(nn.Module):
    """f(x) = head vec(f_L), f_l = ReLU(W_l *_M f_{l-1}): no biases, so that
    f(x; a W) = a^(L+1) f(x; W) for a > 0. With biases or another activation, which are not in
    the paper, f(x) = head vec(f_L) + b, f_l = phi(W_l *_M f_{l-1} + B_l).

    Maps (n, d, c) to scores (n, s): s = 1 for two classes (score > 0 is class
    1), else one score a class. Device and dtype are those of the weights.

    head: (s, d_L, c), the weights on vec(f_L), row by row like a flattened example. A head
    (S, s, d_L, c) makes it S networks side by side (see models/stacked.py).
    activation: of `choices.ACTIVATIONS`; biases: (1, d_l, c) of each layer and (1, s) of the
    head, of S networks (S, ., .), None for none.
    """

    transform_matrix: Tensor

    def __init__(
        self,
        transform: Transform,
        layers: Sequence[TLayer] = (),
        head: Tensor | None = None,
        *,
        activation: str = "relu",
        biases: Sequence[Tensor] | None = None,
    ):
        if not isinstance(transform, Transform) or head is None:
            raise InputError(
                "a TNN is made of a transform, its layers and its head, got "
                f"{type(transform).__name__} {transform!r}: TNN.for_data(data) makes a fresh one, "
                "TNN.random one of an Architecture"
            )
        super().__init__()
        self.transform_name = transform.name
        self.register_buffer("transform_matrix", transform.matrix)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Parameter(head)
        self.activation = activation_of(activation)
        # Whether it reads nothing back to the host: see `graphs`.
        self.recordable = not any(isinstance(layer, OrthogonalTProductLinear) for layer in layers)
        self.biases = nn.ParameterList() if biases is None else nn.ParameterList(biases)
        _check_chain(transform, layers, head)
        _check_biases(layers, head, list(self.biases))

    @classmethod
    def random(cls, architecture: Architecture, transform: Transform, seed: int) -> "TNN":
        """A network with scale-aware random weights (see the layers), on the CPU."""
        a = architecture
        generator = torch.Generator().manual_seed(seed)
        layers: list[TLayer] = []
        for d_in, d_out, rank in zip((a.features, *a.widths), a.widths, a.ranks, strict=False):
            if a.orthogonal:
                layers.append(OrthogonalTProductLinear.random(transform, d_in, d_out, generator))
            elif rank is None:
                layers.append(TProductLinear.random(transform, d_in, d_out, generator))
            else:
                layers.append(LowRankTProductLinear.random(transform, d_in, d_out, rank, generator))
        shape, fan_in = (a.scores, a.widths[-1], a.channels), a.channels * a.widths[-1]
        head = torch.randn(shape, generator=generator, dtype=transform.multiplicity.dtype)
        biases = None
        if a.bias:
            shapes = (*((1, width, a.channels) for width in a.widths), (1, a.scores))
            biases = [head.new_zeros(shape) for shape in shapes]
        return cls(transform, layers, head / fan_in**0.5, activation=a.activation, biases=biases)

    @classmethod
    def for_data(
        cls,
        data: Any,
        *,
        layers: int = 3,
        width: int | Sequence[int] = 32,
        rank: int | Sequence[int] | None = None,
        transform: str = "dct",
        activation: str = "relu",
        bias: bool = False,
        orthogonal: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> "TNN":
        """A fresh network for a data set, on the CPU.

        Parameters
        ----------
        data: a `Dataset`, whose d, c and classes it fits: one score for two classes, else one
            a class; the `data` transform is made of its training part.
        layers: L; width, rank: one for all layers, or one a layer; rank None: dense layers.
        transform: a name such as dct, dft, haar, identity, random:SEED, data.
        activation: relu, leaky-relu (or leaky-relu:SLOPE), maxmin, abs, softplus; bias: of every
            layer and the head, 0 at first; orthogonal: keep every layer 1-Lipschitz in l2.
        seed: of the weights (see the layers for their scale).

        Raises InputError for sizes that do not fit and an unknown transform.
        """
        for size, name in ((layers, "layers"), (width, "width"), (rank, "rank")):
            numbers = size if isinstance(size, list | tuple) else [size]
            if size is not None and not all(isinstance(one, int) and one >= 1 for one in numbers):
                raise InputError(f"{name} needs whole numbers from 1, got {size!r}", field=name)
        if not all(hasattr(data, name) for name in ("d", "c", "n_classes", "train")):
            raise InputError(f"a TNN is made for a Dataset, got a {type(data).__name__}")
        widths = layer_widths([width] if isinstance(width, int) else width, layers)
        asked = [rank] if isinstance(rank, int) else rank
        architecture = Architecture(
            features=data.d,
            channels=data.c,
            widths=widths,
            ranks=ranks_of_layers(asked, layers),
            scores=1 if data.n_classes == 2 else data.n_classes,
            transform=transform,
            activation=activation,
            bias=bias,
            orthogonal=orthogonal,
        )
        return new_model(architecture, seed, data=data.train.x, dtype=dtype)

    def extra_repr(self) -> str:
        a = self.architecture
        ranks = "dense" if not any(a.ranks) else f"ranks {', '.join(map(str, a.ranks))}"
        return (
            f"({a.features}, {a.channels}) -> {a.scores} scores, "
            f"widths {', '.join(map(str, a.widths))}, {ranks}, "
            f"{''.join(f'{one}, ' for one in a.departures)}{a.transform}, "
            f"{self.parameter_count} parameters"
        )

    @property
    def transform(self) -> Transform:
        return Transform(self.transform_name, self.transform_matrix)

    @property
    def t_layers(self) -> Iterator[TLayer]:
        return (cast(TLayer, layer) for layer in self.layers)

    @property
    def count(self) -> int:
        """S, how many networks stand side by side; 1 for a plain one."""
        return self.head.shape[0] if self.head.ndim == 4 else 1

    @property
    def architecture(self) -> Architecture:
        """The shape of the network, of each of them where several are stacked."""
        layers = list(self.t_layers)
        return Architecture(
            features=layers[0].d_in,
            channels=self.head.shape[-1],
            widths=tuple(layer.d_out for layer in layers),
            ranks=tuple(layer.rank for layer in layers),
            scores=self.head.shape[-3],
            transform=self.transform_name,
            activation=self.activation.name,
            bias=len(self.biases) > 0,
            orthogonal=all(isinstance(layer, OrthogonalTProductLinear) for layer in layers),
        )

    def with_layers(self, layers: Sequence[TLayer], head: Tensor | None = None) -> "TNN":
        """The same network with other weights in its layers, and perhaps in its head: copies."""
        biases = [bias.detach().clone() for bias in self.biases] or None
        head = self.head.detach().clone() if head is None else head
        return TNN(self.transform, layers, head, activation=self.activation.name, biases=biases)

    def activated(self, layer: int, z: Tensor) -> Tensor:
        """What follows the product of a layer, counted from 0: its bias, then the activation.

        z: (c, n, d_l), of one network.
        """
        if len(self.biases):
            z = z + self.biases[layer].permute(2, 0, 1)
        return self.activation.apply(z)

    def forward(self, x: Tensor) -> Tensor:
        c, d = self.head.shape[-1], next(self.t_layers).d_in
        if x.ndim != 3 or x.shape[1:] != (d, c):
            raise InputError(f"this t-NN needs (n, {d}, {c}), got {tuple(x.shape)}")
        n = x.shape[0]  # of a tensor len() takes ten times as long
        if n % self.count:
            raise InputError(f"{self.count} stacked networks need as many rows each, got {n}")
        layers = [layer.stacks_for(n // self.count) for layer in self.t_layers]
        biases = list(self.biases) or None
        return t_network(
            x,
            self.transform,
            layers,
            self.head,
            activation=self.activation.name,
            biases=biases,
        )

    @property
    def parameter_count(self) -> int:
        """Real numbers kept, the padding of multi-ranks left out; complex ones count as two."""
        numbers = sum(layer.numbers for layer in self.t_layers)
        others = self.head.numel() + sum(bias.numel() for bias in self.biases)
        return numbers * (2 if self.transform.is_complex else 1) + others

    @property
    def flops(self) -> int:
        """Floating-point operations of one example's scores (see `layer_flops`)."""
        transform = self.transform
        return sum(layer_flops(layer, transform) for layer in self.t_layers) + 2 * self.head.numel()


def count_parameters(module: nn.Module) -> int:
    """Real numbers held by a module; a complex one counts as two."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in module.parameters())


def to_dense(model: TNN) -> nn.Sequential:
    """The same function as plain linear layers: each t-layer merged into one matrix.

    Layer l becomes Linear(d_{l-1} c, d_l c) on vec(x), x (n, d, c) flattened row by row, with
    a bias where the network has some. Certifiers need this form: bounds through the separate
    transforms are far looser. Weights are copies, on the model's device.
    """
    modules: list[nn.Module] = [nn.Flatten()]
    biases = [bias.detach().flatten() for bias in model.biases] or [None] * (len(model.layers) + 1)
    for layer, bias in zip(model.t_layers, biases, strict=False):
        merged = _merged(layer.faces().detach(), model.transform)
        modules += [_linear(merged, bias), model.activation.module()]
    return nn.Sequential(*modules, _linear(model.head.detach().flatten(1), biases[-1]))


def _merged(faces: Tensor, transform: Transform) -> Tensor:
    """(d_out c, d_in c) matrix of h -> W *_M h, entry ((i, a), (j, b)) at [i c + a, j c + b]."""
    c = transform.channels
    unit = torch.eye(c, dtype=transform.multiplicity.dtype, device=faces.device)
    mixed = torch.einsum("kij,kb->ijkb", faces, transform.forward(unit, dim=0).to(faces.dtype))
    blocks = transform.inverse(mixed, dim=2)  # (d_out, d_in, c, c)
    return blocks.permute(0, 2, 1, 3).reshape(faces.shape[1] * c, faces.shape[2] * c)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone())
    return linear


def _check_chain(transform: Transform, layers: Sequence[TLayer], head: Tensor) -> None:
    if not layers:
        raise InputError("a t-NN needs at least one t-layer, got none")
    count = head.shape[0] if head.ndim == 4 else 1
    for layer in layers:
        if len(layer.stacks[0]) != transform.n_faces * count:
            raise InputError(
                f"transform {transform.name} needs {transform.n_faces * count} faces a layer, "
                f"got {len(layer.stacks[0])}"
            )
    for before, after in zip(layers, layers[1:], strict=False):
        if before.d_out != after.d_in:
            raise InputError(f"a layer of width {after.d_in} cannot follow one of {before.d_out}")
    if head.ndim not in (3, 4) or head.shape[-2:] != (layers[-1].d_out, transform.channels):
        needed = f"(scores, {layers[-1].d_out}, {transform.channels})"
        raise InputError(f"the head needs {needed}, got {tuple(head.shape)}")


def _check_biases(layers: Sequence[TLayer], head: Tensor, biases: Sequence[Tensor]) -> None:
    if not biases:
        return
    count, scores, c = (head.shape[0] if head.ndim == 4 else 1), head.shape[-3], head.shape[-1]
    needed = [*((count, layer.d_out, c) for layer in layers), (count, scores)]
    if (came := [tuple(bias.shape) for bias in biases]) != needed:
        raise InputError(f"the biases need the shapes {needed}, got {came}")


def model_tensors(model: TNN) -> dict[str, Tensor]:
    """All that makes a model, by name; `storage` says how a file holds it."""
    return dict(model.state_dict())


def model_from_tensors(architecture: Architecture, tensors: dict[str, Tensor]) -> TNN:
    """Rebuild a model; raises CheckpointError where tensors and architecture disagree."""
    try:
        transform = transform_from_matrix(architecture.transform, tensors["transform_matrix"])
        for name, tensor in tensors.items():
            real = name == "head" or name.startswith("biases.")
            needed = transform.real_dtype if real else transform.matrix.dtype
            needed = torch.int64 if name.endswith(".ranks") else needed
            if tensor.dtype != needed:
                raise InputError(f"{name} needs {needed}, got {tensor.dtype}")
        layers: list[TLayer] = []
        for i, rank in enumerate(architecture.ranks):
            if architecture.orthogonal:
                layers.append(OrthogonalTProductLinear(tensors[f"layers.{i}.weight"]))
            elif rank is None:
                layers.append(TProductLinear(tensors[f"layers.{i}.weight"]))
            else:
                left, right = tensors[f"layers.{i}.left"], tensors[f"layers.{i}.right"]
                ranks = tensors.get(f"layers.{i}.ranks")
                layers.append(LowRankTProductLinear(left, right, ranks))
        biases = None
        if architecture.bias:
            biases = [tensors[f"biases.{i}"] for i in range(len(layers) + 1)]
        model = TNN(
            transform,
            layers,
            tensors["head"],
            activation=architecture.activation,
            biases=biases,
        )
    except (KeyError, InputError) as error:
        raise CheckpointError(f"the tensors do not make the network: {error}") from error
    if model.architecture != architecture:
        raise CheckpointError(
            f"the tensors are of {model.architecture}, the header says {architecture}"
        )
    if unknown := tensors.keys() - model_tensors(model).keys():
        raise CheckpointError(f"the tensors {', '.join(sorted(unknown))} are not of the network")
    return model


def require_room(architecture: Architecture, dtype: torch.dtype = torch.float32) -> None:
    """DataError for a network larger than what one reading may take."""
    Room().take(dtype.itemsize * architecture.numbers, f"a network of {architecture}")


def new_model(
    architecture: Architecture,
    seed: int,
    *,
    data: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> TNN:
    """A fresh network; `data` (n, d, c) is only read by the `data` transform."""
    require_room(architecture, dtype)
    transform = make_transform(
        architecture.transform, architecture.channels, data=data, dtype=dtype
    )
    try:
        return TNN.random(architecture, transform, seed)
    except RuntimeError as error:  # torch has no error of its own for memory on the CPU
        if "allocate" not in str(error) and "overflow" not in str(error):
            raise
        raise InputError(f"no memory for a network of {architecture}") from error


@torch.no_grad()
def weight_norm(model: TNN) -> Tensor:
    """||W|| of Eq. (6)'s weights together: sqrt(||w||^2 + sum ||W_l||_F^2), 0-dim."""
    if model.count != 1:
        raise InputError(f"weight_norm is of one network, got {model.count} stacked")
    return torch.linalg.vector_norm(layer_norms(model)[:, 0])


def layer_norms(model: TNN) -> Tensor:
    """(L + 1, S): ||W_l||_F of each layer, then ||w||, of each of the S networks.

    Real dtype of the weights, differentiable (subgradient 0 at 0). Infinite where squares
    of the entries are, NaN for such weights, of their own network alone.
    """
    count, multiplicity = model.count, model.transform.multiplicity.sqrt()[:, None]
    rows = []
    for layer in model.t_layers:
        # Face by face: a norm over the strided faces of one network takes five times as long.
        each = torch.linalg.vector_norm(layer.faces().flatten(1), dim=1)
        rows.append(torch.linalg.vector_norm(multiplicity * each.view(-1, count), dim=0))
    rows.append(torch.linalg.vector_norm(model.head.reshape(count, -1), dim=1))
    return torch.stack(rows)
