"""Networks that are not ours: any torch module with the face of a t-NN, (n, d, c) -> (n, s).

The one place that imports code of a user, and only the module or file the user named.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tnn_robust.base.errors import InputError, TnnError
from tnn_robust.base.randomness import seeded
from tnn_robust.models.images import to_images
from tnn_robust.models.onnx_module import is_onnx, load_onnx

Shape = tuple[int, ...]
Form = Callable[[Tensor, Shape], Tensor]

# What a network may want: the matrix as it is, an image (channels, h, w), or the matrix row by row.
FORMS: dict[str, Form] = {
    "tvector": lambda x, _: x,
    "image": to_images,
    "flat": lambda x, _: x.flatten(1),
}
_MOST = 60  # letters of one of several errors in a line


class Foreign(nn.Module):
    """A user's module as a map from (n, d, c) to scores (n, s), as float as x at least.

    form: one of FORMS; image: (channels, h, w) of an example as an image; scores: s, checked
    at every pass. Errors of the module become an InputError that names it. A module may
    change its input in place.
    """

    def __init__(self, module: nn.Module, name: str, form: str, *, image: Shape, scores: int):
        super().__init__()
        self.module = module
        self.name, self.form, self.image, self.scores = name, form, image, scores

    def put(self, x: Tensor) -> Tensor:
        """The examples in the form and the dtype that the module takes, as a copy."""
        floats = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        return FORMS[self.form](x, self.image).to(next(floats, x.dtype)).clone()

    def shape(self, x: Tensor) -> str:
        """The form's name and the shape that examples like x have in it."""
        return f"{self.form} (n, {', '.join(str(size) for size in self.put(x[:1]).shape[1:])})"

    def forward(self, x: Tensor) -> Tensor:
        try:
            scores = self.module(self.put(x))
        except TnnError:
            raise
        except Exception as error:  # whatever a user's code raises
            raise InputError(f"{self.name} fails on {self.form} input: {_line(error)}") from error
        wanted = (len(x), self.scores)
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            raise InputError(f"{self.name} needs to return a tensor of scores, got {_what(scores)}")
        # (n,) is one score an example; a squeeze() in the module eats a batch of one.
        if scores.shape == wanted[:1] or (len(x) == 1 and scores.numel() == self.scores):
            scores = scores.reshape(len(x), -1)
        if scores.shape != wanted:
            raise InputError(f"{self.name} needs scores {wanted}, got {tuple(scores.shape)}")
        return scores.to(torch.promote_types(scores.dtype, x.dtype))


def load_module(spec: str) -> nn.Module:
    """The module that a spec names: an ONNX file, or what a callable without arguments makes.

    spec: `package.module:callable`, `path/to/file.py:callable`, or `path/to/net.onnx`, which
    runs no code (see `load_onnx`). A module itself is taken as it is. The current directory is
    where to look first, as for `python -m`; for a file its own folder, as for a script.
    Torch's random numbers are the same at every call, so that a network that was never trained
    is one network. InputError for all that goes wrong.
    """
    if is_onnx(spec):
        return load_onnx(spec)
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute or (place.startswith(".") and not place.endswith(".py")):
        needed = "package.module:callable, file.py:callable or a file.onnx"
        raise InputError(f"a model is named {needed}, got {spec!r}", field="model")
    try:
        with seeded(0, torch.device("cpu")):
            found: Any = _imported(place)
            for name in attribute.split("."):
                found = getattr(found, name)
            module = found if isinstance(found, nn.Module) else found()
    except TnnError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        raise InputError(f"model {spec} cannot be made: {_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"model {spec} needs to give a torch.nn.Module, got {_what(module)}")
    return module


def _imported(place: str) -> ModuleType:
    """A package's module, or the module of a file, under a name that no import can mean."""
    if not place.endswith(".py"):
        with _looking_in(Path.cwd()):
            return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise InputError(f"no file {path} to make a model of", field="model")
    name = f"model file {path.resolve()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look there for their own module
    with _looking_in(path.resolve().parent):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _looking_in(folder: Path) -> Iterator[None]:
    here = str(folder)
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def gives_gradients(model: nn.Module) -> bool:
    """Whether gradients go through it: False where a part says `black_box = True`, as ONNX does."""
    return not any(getattr(part, "black_box", False) for part in model.modules())


def require_gradients(model: nn.Module, what: str) -> None:
    """InputError for a black box, where `what` climbs gradients."""
    if not gives_gradients(model):
        raise InputError(
            f"{what} climbs gradients, and a black box such as an ONNX network gives none: attack "
            "it by square, which asks for scores alone, or certify it by randomised smoothing"
        )


def adapt(
    module: nn.Module, name: str, x: Tensor, *, form: str, classes: int, image: Shape
) -> Foreign:
    """The module behind the input form it takes, found on a block x (n, d, c) of examples.

    form: one of FORMS, or auto, which takes the one form that works, or the first of
    several that give the same scores. classes: of the data; two may have one score.

    Raises InputError that names what was tried, for scores of another number of
    classes, of no gradient or not finite, and where forms give different scores.
    """
    fitting: dict[str, tuple[Foreign, Tensor]] = {}
    failures: list[str] = []
    for key in FORMS if form == "auto" else (form,):
        model = Foreign(module, name, key, image=image, scores=1)
        try:
            model.scores = _count(module(model.put(x)), len(x), classes)
            with seeded(0, x.device):  # a random network must not look like two
                fitting[key] = (model, model(x))
        except _WrongClasses as error:
            raise InputError(f"{name} gives {error}") from error
        except Exception as error:  # whatever a user's code raises
            failures.append(f"{model.shape(x)} gives {_line(error)}")
    if not fitting:
        raise InputError(f"{name} does not fit the data: {'; '.join(failures)}")
    (chosen, scores), *others = fitting.values()
    for other, different in others:
        same = different.shape == scores.shape
        if not same or not torch.allclose(different, scores, 1e-3, 1e-5, equal_nan=True):
            raise InputError(
                f"{name} takes {chosen.form} and {other.form} input and gives different scores: "
                "say which is meant"
            )
    _require_usable(chosen, x)
    return chosen


class _WrongClasses(InputError):
    """The module takes the input and has scores, of another number of classes."""


def _count(scores: Any, n: int, classes: int) -> int:
    """How many scores an example has; InputError where they do not fit the classes."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise InputError(f"{_what(scores)}, no tensor of scores")
    if scores.shape != (n,) and (scores.ndim != 2 or len(scores) != n):
        raise InputError(f"{tuple(scores.shape)} for {n} examples")
    count = 1 if scores.ndim == 1 else scores.shape[1]
    if max(count, 2) != classes:
        raise _WrongClasses(f"{count} score{'s' * (count > 1)}, the data have {classes} classes")
    return count


def _require_usable(model: Foreign, x: Tensor) -> None:
    """Scores that are finite and can be climbed."""
    scores = model(x.detach().requires_grad_())
    if not bool(torch.isfinite(scores).all()):
        raise InputError(f"{model.name} gives scores that are not finite")
    if not scores.requires_grad and gives_gradients(model):
        raise InputError(f"{model.name} gives scores without a gradient: is there a no_grad in it?")


def module_digest(module: nn.Module, spec: str) -> str:
    """sha256 hex over the spec text and names, dtypes, shapes and bytes of all tensors held."""
    state = hashlib.sha256(spec.encode())
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            held = value.detach().cpu().contiguous()
            state.update(f"\n{name} {held.dtype} {tuple(held.shape)};".encode())
            state.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _line(error: BaseException) -> str:
    """An error as one line of bounded length."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _MOST else text[: _MOST - 3] + "..."
    return text if isinstance(error, TnnError) else f"{type(error).__name__}: {text}"


def _what(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else f"a {type(value).__name__}"
