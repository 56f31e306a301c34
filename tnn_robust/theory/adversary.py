"""C_{R_a} of Assumption 8: how long a perturbation of norm 1 can be."""

from tnn_robust.algebra.transforms import Transform
from tnn_robust.base.errors import unknown_choice
from tnn_robust.certification.lipschitz import TO_L2

# Per face of a t-vector an l2 norm: their sum is at least the F-norm, M orthogonal.
CONSTANTS = {**TO_L2, "tubal-nuclear": lambda d, c: 1.0}

Range = tuple[int, int]


def largest_f_norm(
    norm: str,
    features: int,
    transform: Transform,
    *,
    channels: Range | None = None,
    faces: Range | None = None,
) -> float:
    """C = sup ||delta||_F / R_a(delta) over perturbations (features, c).

    The paper's text has the ratio upside down. l2, l1, nuclear, tubal nuclear: 1; linf:
    sqrt(d c); spectral: sqrt(min(d, c)). channels, faces: [start, stop) the ball is
    confined to, which leaves m directions of the channel axis in place of c. Exact, save
    that linf and l1 on faces keep the constant of the whole ball, which is no smaller.
    Raises InputError for an unknown norm.
    """
    if norm not in CONSTANTS:
        raise unknown_choice("norm", norm, CONSTANTS)
    c = transform.channels
    if channels is not None:
        c = channels[1] - channels[0]
    elif faces is not None and norm == "spectral":
        c = round(float(transform.multiplicity[slice(*faces)].sum()))
    return CONSTANTS[norm](features, c)
