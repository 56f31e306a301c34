"""What is known of torchattacks' classes, free of torch and of torchattacks itself."""

from typing import NamedTuple

from tnn_robust.base.errors import InputError, unknown_choice


class ZooEntry(NamedTuple):
    """How to call one of its classes.

    norms: what it is bounded in, the first by default; arguments: which of our
    settings it takes; fewest_scores: below this many classes it cannot run;
    tiles_in_l2: it lays tiles over the image, of which it assumes the shape.
    """

    norms: tuple[str, ...]
    arguments: tuple[str, ...]
    fewest_scores: int = 1
    tiles_in_l2: bool = False


_ITERATED = ("steps", "alpha")
_AUTO = ("norm", "seed")
# Attacks bounded by eps that accept 1 x d x c images; minimal-norm ones have no ball to report on.
ZOO: dict[str, ZooEntry] = {
    "FGSM": ZooEntry(("linf",), ()),
    "BIM": ZooEntry(("linf",), _ITERATED),
    "PGD": ZooEntry(("linf",), (*_ITERATED, "random_start")),
    "EOTPGD": ZooEntry(("linf",), (*_ITERATED, "random_start")),
    "MIFGSM": ZooEntry(("linf",), _ITERATED),
    "NIFGSM": ZooEntry(("linf",), _ITERATED),
    "VMIFGSM": ZooEntry(("linf",), _ITERATED),
    "Jitter": ZooEntry(("linf",), (*_ITERATED, "random_start")),
    "PGDL2": ZooEntry(("l2",), (*_ITERATED, "random_start")),
    "APGD": ZooEntry(("linf", "l2"), (*_AUTO, "steps", "n_restarts")),
    "Square": ZooEntry(("linf", "l2"), (*_AUTO, "n_restarts"), tiles_in_l2=True),
    # Their DLR losses read the third and fourth largest score.
    "APGDT": ZooEntry(("linf", "l2"), (*_AUTO, "steps", "n_restarts", "n_classes"), 4),
    "AutoAttack": ZooEntry(("linf", "l2"), (*_AUTO, "n_classes"), 4, tiles_in_l2=True),
}


def zoo_entry(name: str) -> ZooEntry:
    if name not in ZOO:
        raise unknown_choice("torchattacks attack", name, ZOO)
    return ZOO[name]


def zoo_norm(name: str, norm: str | None) -> str:
    """The norm a torchattacks attack is bounded in; InputError where it cannot be `norm`."""
    norms = zoo_entry(name).norms
    if norm is not None and norm not in norms:
        raise InputError(f"torchattacks:{name} is bounded in {' or '.join(norms)}, got {norm}")
    return norm or norms[0]


def check_scores(name: str, scores: int) -> None:
    """Refuse up front the attacks that read more scores than there are."""
    fewest = zoo_entry(name).fewest_scores
    classes = max(scores, 2)
    if classes < fewest:
        raise InputError(
            f"torchattacks:{name} needs at least {fewest} classes (its DLR loss reads the "
            f"{fewest} largest scores), got {classes}: use pgd"
        )


def check_shape(name: str, norm: str, d: int, c: int) -> None:
    """Refuse up front the images that Square's tiles, d // 5 wide, do not fit: it would crash."""
    if norm != "l2" or not zoo_entry(name).tiles_in_l2:
        return
    tile = d // 5
    if d != c or tile == 0 or (tile > 1 and (d - 5 * tile) // 2 + d // tile * tile > d):
        raise InputError(
            f"torchattacks:{name} in l2 needs square images that its tiles fit, such as 28 x 28, "
            f"got {d} x {c}: use pgd"
        )
