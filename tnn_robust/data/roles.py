"""Which array of a file is what: by the keys asked for, by its name, by its shape.

Roles are x_train, y_train, x_test and y_test of a set with parts, x and y of one that is to be
split, cube and map of a scene.
"""

from collections.abc import Sequence
from itertools import permutations

from tnn_robust.base.errors import DataError, InputError, unknown_choice
from tnn_robust.data.entries import Entries, Entry, listed

PARTED = ("x_train", "y_train", "x_test", "y_test")
WHOLE = ("x", "y")
SCENE = ("cube", "map")
ROLES = (*PARTED, *WHOLE, *SCENE)
# Names that people give, without case, underscores and dashes.
_X = ("x", "data", "images", "features", "spectra", "samples", "inputs", "pixels")
_Y = ("y", "labels", "label", "targets", "target", "classes", "groundtruth", "gt")
_SHORT = {"train": ("train", "tr", "training"), "test": ("test", "te", "testing")}

Roles = dict[str, Entry]


def roles_of(entries: Entries, keys: Sequence[str] | None, where: str) -> Roles:
    """The arrays of x_train, y_train, x_test and y_test (or the test ones alone), of x and y,
    or of cube and map.

    Raises InputError for keys that name no role or array, DataError where nothing tells.
    """
    asked = _asked(entries, keys, where)
    for find in (_of_parts, _of_names, _of_scene, _of_shapes):
        if found := find(entries, asked):
            return found
    wanted = _group(asked) if asked else PARTED if _parts_begun(entries) else ()
    if wanted:
        lacks = ", ".join(role for role in wanted if role not in _named(entries, asked, wanted))
        raise DataError(
            f"{where} lacks {lacks}; it has {listed(entries)}: name them by keys, as in "
            f"{wanted[0]}=NAME,{wanted[1]}=NAME",
            field="keys",
        )
    raise DataError(
        f"{where} has {listed(entries)}: neither names nor shapes tell x from y, or a cube from "
        "its map of as many rows and columns: give keys, as in x=NAME,y=NAME",
        field="keys",
    )


def _asked(entries: Entries, keys: Sequence[str] | None, where: str) -> Roles:
    found: Roles = {}
    for key in keys or ():
        role, equals, name = (word.strip() for word in key.partition("="))
        if role not in ROLES:
            raise unknown_choice("role", role, ROLES, field="keys")
        if not equals or not name:
            raise InputError(f"keys need ROLE=NAME, as in x=spectra, got {key!r}", field="keys")
        if name not in entries:
            raise InputError(
                f"{where} has no array {name!r}; it has {listed(entries)}", field="keys"
            )
        found[role] = entries[name]
    return found


def _group(roles: Roles) -> tuple[str, ...]:
    """The roles that belong with those asked for."""
    return next(group for group in (PARTED, WHOLE, SCENE) if set(group) & set(roles))


def _parts_begun(entries: Entries) -> bool:
    """Whether some array is called as one of a part."""
    return bool(_named(entries, {}, PARTED))


def _named(entries: Entries, asked: Roles, group: Sequence[str]) -> Roles:
    """The arrays whose names say their role."""
    plain = {_plain(name): entry for name, entry in entries.items()}
    found = {role: asked[role] for role in group if role in asked}
    for role in group:
        for name in _names(role):
            if role not in found and name in plain:
                found[role] = plain[name]
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _names(role: str) -> tuple[str, ...]:
    stem, _, part = role.partition("_")
    names = _X if stem == "x" else _Y if stem == "y" else (stem,)
    if not part:
        return names
    pairs = [(name, short) for name in names for short in _SHORT[part]]
    return tuple(one for name, short in pairs for one in (name + short, short + name))


def _of_parts(entries: Entries, asked: Roles) -> Roles | None:
    if asked and not set(asked) & set(PARTED):
        return None
    found = _named(entries, asked, PARTED)
    if set(found) in (set(PARTED), set(PARTED[2:])):
        return {role: found[role] for role in PARTED if role in found}
    return None


def _of_names(entries: Entries, asked: Roles) -> Roles | None:
    """x and y by their names, where they do not look like a scene."""
    if (asked and not set(asked) & set(WHOLE)) or (not asked and _parts_begun(entries)):
        return None
    found = _named(entries, asked, WHOLE)
    if set(found) != set(WHOLE):
        return None
    sure = asked or {"x", "y"} <= set(map(_plain, entries))
    return found if sure or not scene_order(found["x"].shape, found["y"].shape) else None


def _of_shapes(entries: Entries, asked: Roles) -> Roles | None:
    """x and y as the one table and the one vector of as many entries as an axis of it."""
    if (asked and not set(asked) & set(WHOLE)) or (not asked and _parts_begun(entries)):
        return None
    free = [one for one in entries.values() if one not in asked.values()]
    vectors = [one for one in free if one.is_vector]
    tables = [one for one in free if one.numeric and not one.is_vector and len(one.shape) > 1]
    y = asked.get("y") or (vectors[0] if len(vectors) == 1 else None)
    x = asked.get("x") or (tables[0] if len(tables) == 1 else None)
    if x is None or y is None or (not asked and max(y.shape) not in x.shape):
        return None
    return {"x": x, "y": y}


def scene_order(cube: tuple[int, ...], labels: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of a cube that are the map's rows and columns, then its bands; None for none."""
    if len(cube) != 3 or len(labels) != 2:
        return None
    orders = (order for order in permutations(range(3)) if order[0] < order[1])
    return next((o for o in orders if labels == (cube[o[0]], cube[o[1]])), None)


def is_unrolled(cube: tuple[int, ...], labels: tuple[int, ...]) -> bool:
    """Whether an array is a matrix of pixels x bands, or bands x pixels, of a map."""
    return len(cube) == len(labels) == 2 and labels[0] * labels[1] in cube and 1 not in labels


def _of_scene(entries: Entries, asked: Roles) -> Roles | None:
    if asked and not set(asked) & set(SCENE):
        return None
    if set(asked) == set(SCENE):
        return asked
    numbers = [one for one in entries.values() if one.numeric]
    for fits in (scene_order, is_unrolled):  # scalars and vectors are 2-D to MATLAB too
        pairs = [
            (cube, labels)
            for cube in ([asked["cube"]] if "cube" in asked else numbers)
            for labels in ([asked["map"]] if "map" in asked else numbers)
            if fits(cube.shape, labels.shape)
        ]
        if pairs:
            return {"cube": pairs[0][0], "map": pairs[0][1]} if len(pairs) == 1 else None
    return None
