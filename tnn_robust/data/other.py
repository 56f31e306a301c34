"""Other data for a trained network: its test part, labelled and scaled as the network has it."""

from dataclasses import dataclass, replace

import numpy as np

from tnn_robust.base.errors import DataError, InputError
from tnn_robust.data.parts import Scaling
from tnn_robust.data.prepare import select_classes
from tnn_robust.data.raw import Raw
from tnn_robust.data.spec import DataSpec


@dataclass(frozen=True)
class TrainedOn:
    """The data a network was trained on, as far as other data must go with it.

    spec: the request they were loaded by, None for arrays in memory.
    """

    name: str
    digest: str
    classes: tuple[str, ...]
    scaling: Scaling
    spec: DataSpec | None = None


def require_unseen(spec: DataSpec, trained: TrainedOn) -> None:
    """InputError for a request that draws on a training part, or on examples trained on."""
    if spec.n_train is not None:
        raise InputError(
            "n_train is of a training part, and other data than the network's has none that counts",
            field="n_train",
        )
    was = trained.spec
    if was is None or was.dataset != spec.dataset:
        return
    # Labels of another column or array split the rows otherwise.
    for name in ("split_seed", "split", "patch", "label", "keys"):
        if getattr(spec, name) != getattr(was, name):
            needed = getattr(was, name)
            if name == "keys" and _of_parts(spec.keys) and _of_parts(needed):
                continue
            said = ",".join(needed) if isinstance(needed, tuple) else needed
            raise InputError(
                f"{spec.dataset} split in another way could hold examples that the network was "
                f"trained on: {name} needs to be {said}, as in training",
                field=name,
            )


def _of_parts(keys: tuple[str, ...] | None) -> bool:
    """Whether keys name arrays of parts, which nobody splits."""
    return keys is not None and all("_" in key.partition("=")[0] for key in keys)


def test_part(raw: Raw) -> Raw:
    """Without the training part, which is not the network's own."""
    x, y = raw.arrays.x_test, raw.arrays.y_test
    none = np.empty((0, *x.shape[1:]), np.float32)
    return replace(raw, arrays=raw.arrays._replace(x_train=none, y_train=y[:0]))


def matched(raw: Raw, spec: DataSpec, trained: TrainedOn) -> Raw:
    """The labels as the network has them: classes by name, or in the places of `spec.classes`.

    Raises InputError and DataError for classes that are not the network's.
    """
    known = ", ".join(trained.classes)
    if spec.classes is not None:
        raw = select_classes(raw, spec.classes)
        if len(raw.classes) != len(trained.classes):
            raise InputError(
                f"classes need one for each of the network's {len(trained.classes)} ({known}), "
                f"got {len(raw.classes)}",
                field="classes",
            )
        if raw.classes != trained.classes and set(raw.classes) == set(trained.classes):
            raise InputError(f"classes need the network's order, {known}", field="classes")
        places = list(range(len(raw.classes)))
    else:
        names = trained.classes
        if _counted(raw.classes, trained.classes):
            names = tuple(map(str, range(len(names))))
        foreign = [name for name in raw.classes if name not in names]
        if foreign:
            raise DataError(
                f"{spec.dataset} has the class {foreign[0]}, which the network was not trained on: "
                f"give as classes its names for {known}, in this order"
            )
        places = [names.index(name) for name in raw.classes]
    y = np.array(places, np.int64)[raw.arrays.y_test]
    return replace(raw, arrays=raw.arrays._replace(y_test=y), classes=trained.classes)


def _counted(names: tuple[str, ...], trained: tuple[str, ...]) -> bool:
    """Whether labels are places: whole numbers where the network's classes have words."""
    places = set(map(str, range(len(trained))))
    return set(names) <= places and not any(name.isdigit() for name in trained)


def scaling_for(raw: Raw, trained: TrainedOn) -> tuple[Scaling, str]:
    """What becomes 0 and 1, and a sentence on it: limits of the file's format, else the run's."""
    if raw.limits is not None:
        low, high = raw.limits
        said = "Its values are in [0, 1] as they are"
        if raw.limits != (0.0, 1.0):
            said = f"Its values of {low:g}..{high:g}, the range of their format, become 0..1"
        return Scaling((low,), (high,)), said
    scaling, c = trained.scaling, raw.arrays.x_test.shape[2]
    if len(scaling.low) not in (1, c):
        raise DataError(
            f"its examples have {c} channels, the network's were scaled in {len(scaling.low)}"
        )
    low, high = min(scaling.low), max(scaling.high)
    return scaling, f"Its values are scaled as in training, from {low:g}..{high:g} to 0..1"


def remarks(raw: Raw, trained: TrainedOn, scaled: str, outside: float) -> tuple[str, ...]:
    """What a reader of results must know of data that a network was not trained on."""
    counts = np.bincount(raw.arrays.y_test, minlength=len(trained.classes))
    absent = [name for name, n in zip(trained.classes, counts, strict=True) if n == 0]
    clipped = f"; {100 * outside:.3g} % of them lay outside and were clipped" if outside else ""
    return (
        f"{scaled}{clipped}.",
        *((f"It has no example of class {', '.join(absent)}.",) if absent else ()),
    )
