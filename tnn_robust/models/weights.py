"""Weights from elsewhere in a t-NN of the same shapes: what becomes what, and what does not fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnn_robust.algebra.tproduct import to_faces
from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.errors import DataError, InputError, unknown_choice
from tnn_robust.base.files import read_plain_tensors
from tnn_robust.base.torch_files import read_torch
from tnn_robust.models.network import TNN

LAYOUTS = ("faces", "tubes")
_MATRIX = "transform_matrix"
_MOST_NAMED = 4  # tensors in an error
_SAME_MATRIX = 1e-3  # largest difference of entries: of float16 too
# What training wrappers put before every name, or around the weights.
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
_AROUND = ("state_dict", "model_state_dict", "model")


def load_state_dict(
    model: TNN,
    source: Mapping[str, Tensor] | str | Path,
    *,
    names: Mapping[str, str] | None = None,
    layout: str = "faces",
) -> TNN:
    """Fill a t-NN with the weights of a state dict; all of them, or none where one does not fit.

    Parameters
    ----------
    model: of the shapes of the weights; changed in place and returned. What it computes is
        y = <head, vec(h_L)>, h_l = act(W_l *_M h_{l-1}).
    source: a state dict, or its file: .pt and .pth of `torch.save(net.state_dict(), ...)`, read
        through weights_only=True, or .safetensors.
    names: of the model's tensors (`model.state_dict()`) to those of the source. Without it names
        are taken as they are, less a prefix such as "module."; where none is the model's, the
        tensors of a .pt or a dictionary are taken in their order (a .safetensors has none).
    layout: of the layers' weights: "faces" (k, d_out, d_in), in the transform's domain, as the
        model holds them; or "tubes" (d_out, d_in, c), in the data's own domain, which are
        transformed. The head is (s, d_L, c), or (s, d_L c) row by row like nn.Linear's.

    The transform is the model's: a `transform_matrix` in the source must be the same. The dft is
    unitary here; tubes of the unnormalised circular convolution are to be multiplied by sqrt(c)
    first. Raises InputError that names the tensor that has no place, is missing or does not
    fit, and DataError for a file that cannot be read.
    """
    if not isinstance(model, TNN):
        raise InputError(f"weights are loaded into a TNN, got a {type(model).__name__}")
    if layout not in LAYOUTS:
        raise unknown_choice("layout", layout, LAYOUTS, field="layout")
    own = model.state_dict()
    if any(name.endswith(".ranks") for name in own):
        raise InputError("a network of multi-ranks takes no weights from elsewhere")
    held, what, ordered = _tensors_of(source)
    _require_transform(held.pop(_MATRIX, None), model.transform, what)
    wanted = {name: value for name, value in own.items() if name != _MATRIX}
    pairs = _paired(wanted, held, dict(names or {}), what, ordered)
    filled = {
        name: _fitted(name, held[place], wanted[name], model.transform, layout, f"{what}: {place}")
        for name, place in pairs.items()
    }
    model.load_state_dict({**own, **filled})
    return model


def _tensors_of(source: Mapping[str, Tensor] | str | Path) -> tuple[dict[str, Tensor], str, bool]:
    """The tensors by name, what they are of, and whether their order says something."""
    if isinstance(source, Mapping):
        return _named(dict(source), "the state dict"), "the state dict", True
    path = Path(source)
    if path.suffix == ".safetensors":
        return _named(read_plain_tensors(path), str(path)), str(path), False
    if path.suffix not in (".pt", ".pth"):
        raise InputError(f"weights are a .pt, .pth or .safetensors file, got {path}")
    found = read_torch(path)
    for around in _AROUND:
        if isinstance(found, dict) and isinstance(found.get(around), dict):
            found = found[around]
    return _named(found, str(path)), str(path), True


def _named(found: Any, what: str) -> dict[str, Tensor]:
    """Tensors by name, without the prefix that all of them have."""
    if not isinstance(found, dict) or not found:
        raise DataError(f"{what} needs tensors by name, as a state dict has, got {_kind(found)}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise DataError(f"{what} needs tensors by name, got {_kind(value)} at {name!r}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _paired(
    wanted: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    names: dict[str, str],
    what: str,
    ordered: bool,
) -> dict[str, str]:
    """The model's names to the source's; InputError unless each has one of the other."""
    for name, place in names.items():
        if name not in wanted:
            raise unknown_choice("tensor of the network", name, wanted, field="names")
        if place not in held:
            raise unknown_choice(f"tensor of {what}", place, held, field="names")
    pairs = {**{name: name for name in wanted if name in held and name not in names}, **names}
    if not pairs and len(held) == len(wanted) and ordered:
        return dict(zip(wanted, held, strict=True))
    missing = [name for name in wanted if name not in pairs]
    left = [place for place in held if place not in pairs.values()]
    if not (missing or left):
        return pairs
    says = []
    if missing:
        says.append(f"has nothing for {_listed(missing, wanted)} of the network")
    if left:
        says.append(f"has {_listed(left, held)}, for which the network has no place")
    raise InputError(f"{what} {' and '.join(says)}: say by names which is which", field="names")


def _fitted(
    name: str, value: Tensor, like: Tensor, transform: Transform, layout: str, what: str
) -> Tensor:
    """One tensor as the model holds it, `like`; InputError that says why it does not fit.

    what: the source and the tensor's name in it.
    """
    stack = like.ndim == 3 and name.startswith("layers.")
    forms = {"faces": tuple(like.shape)}
    if stack:
        forms["tubes"] = (*like.shape[1:], transform.channels)
    form = layout if stack else "faces"
    if not stack and value.shape in _flat(like):
        value = value.reshape(like.shape)
    came = tuple(value.shape)
    if came != forms[form]:
        fits = [other for other, shape in forms.items() if shape == came]
        other = f"; as {fits[0]} it fits: say so by layout" if fits else ""
        needed = f"{form} {forms[form]}" if stack else str(forms[form])
        raise InputError(f"{what} is {came}, {name} needs {needed}{other}", field="layout")
    if value.is_complex() != (form == "faces" and like.is_complex()):
        kind = "real" if value.is_complex() else "complex"
        raise InputError(f"{what} is {value.dtype}, {name} needs {kind} numbers as {form}")
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"{what} holds NaN or infinite values")
    if form == "tubes":
        value = to_faces(value.to(transform.matrix.device, transform.real_dtype), transform)
    return value.to(like.device, like.dtype)


def _flat(like: Tensor) -> tuple[tuple[int, ...], ...]:
    """The shapes of a head that nn.Linear would have: (s, d_L c), and (d_L c,) for one score."""
    rows = (len(like), like[0].numel())
    return (rows, rows[1:]) if len(like) == 1 else (rows,)


def _require_transform(matrix: Tensor | None, transform: Transform, what: str) -> None:
    """InputError where the source was made with another transform than the model's."""
    if matrix is None:
        return
    own = transform.matrix
    same = matrix.shape == own.shape and matrix.is_complex() == own.is_complex()
    if not same or not torch.allclose(matrix.to(own), own, rtol=0.0, atol=_SAME_MATRIX):
        raise InputError(
            f"{what} has another transform_matrix {tuple(matrix.shape)} than {transform.name} of "
            f"{transform.channels} channels: choose the transform that it was trained with",
            field="transform",
        )


def _listed(names: list[str], tensors: Mapping[str, Tensor]) -> str:
    shown = [f"{name} {tuple(tensors[name].shape)}" for name in names[:_MOST_NAMED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "nothing"
