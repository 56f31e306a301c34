"""The eleven ways in which the authors' public demo differs from the paper's text.

Free of torch: the command line lists them.
"""

from collections.abc import Iterable

from tnn_robust.base.errors import unknown_choice

DEPARTURES = {
    "non-orthogonal-dct": "the transform is T M, M a DCT with row norms^2 2, c/2, c/2, ...",
    "reciprocal-erank": "sigma_max(transformed) / ||W||_F(original) in place of the stable rank",
    "clean-plus-adversarial-gradient": "A.1 steps on the sum of both gradients",
    "mean-of-batch-sums": "risk = sum of batch means / examples; batches of 50 or 30, by rank",
    "moving-train-risk": "training risk is the mean over the last epoch, of the moving model",
    "head-bias": "the head has a bias: f is not homogeneous",
    "float32-sigmoid-bce": "cross-entropy of a float32 sigmoid, which underflows",
    "attached-graph": "attack inputs stay attached to the graph (costs time, changes no number)",
    "fan-in-dc": "Kaiming-uniform initialisation that counts d c inputs",
    "first-n-no-seeds": "every run trains on the first N examples, no random subsets",
    "no-test-evaluation": "A.2 and A.3 look at the training part alone",
}
# Those that change the network or a step of it: they need the published variant.
IN_TRAINING = {
    "non-orthogonal-dct",
    "clean-plus-adversarial-gradient",
    "head-bias",
    "float32-sigmoid-bce",
    "attached-graph",
    "fan-in-dc",
}


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The named departures in the order of the list; InputError for an unknown one."""
    names = set(names)
    for name in sorted(names):
        if name not in DEPARTURES:
            raise unknown_choice("departure", name, DEPARTURES)
    return tuple(name for name in DEPARTURES if name in names)
