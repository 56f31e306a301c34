"""Splits for sets that come without one."""

from collections.abc import Iterator

import numpy as np

# A layout is good when every class has this share of its pixels in either part.
WANTED_SHARE = 0.3
DRAWS_PER_SIDE = 16


def stratified_split(
    y: np.ndarray, *, train_share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a random split that keeps the class shares, each ascending.

    A class of two or more has an example in either part; a single example goes to train.
    """
    rng = np.random.default_rng([0, seed])
    in_train = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        n = min(max(round(train_share * len(members)), 1), max(len(members) - 1, 1))
        in_train[members[:n]] = True
    return np.flatnonzero(in_train), np.flatnonzero(~in_train)


def usable_pixels(labels: np.ndarray, patch: int) -> np.ndarray:
    """Mask of the labelled pixels (label > 0) whose patch x patch window is in the scene."""
    h = patch // 2
    usable = np.zeros(labels.shape, bool)
    inner = (slice(h, labels.shape[0] - h), slice(h, labels.shape[1] - h))
    usable[inner] = labels[inner] > 0
    return usable


def blocked_split(
    labels: np.ndarray, *, patch: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Masks (train, test) over a scene whose windows never overlap, and the block side.

    labels: (rows, columns), 0 = unlabelled. A third to a half of the square blocks of a
    grid at a random place are training ground. A pixel of the rest is dropped only if its
    window overlaps that of a training pixel. Of the grids tried, from coarse to fine, the
    first that leaves every class `WANTED_SHARE` of its pixels in both parts is taken, else
    the one that serves the most classes best; a class may then still be missing in a part.
    """
    usable = usable_pixels(labels, patch)
    _, classes = np.unique(labels[usable], return_inverse=True)
    rng = np.random.default_rng([0, seed])
    best, best_score = None, (-1, -1.0)
    for side in _block_sides(labels.shape, patch):
        for _ in range(DRAWS_PER_SIDE):
            ground = _random_blocks(labels.shape, side, rng)
            train = usable & ground
            test = usable & ~ground & ~_overlapping(train, patch)
            score = _score(classes, train[usable], test[usable])
            if score > best_score:
                best, best_score = (train, test, side), score
        if best is not None and best_score[1] >= WANTED_SHARE:
            break
    assert best is not None  # every layout scores above the start
    return best


def _block_sides(shape: tuple[int, ...], patch: int) -> Iterator[int]:
    side = max(min(shape) // 2, 1)
    # Finer than about two windows, the guard band eats the whole block.
    finest = min(side, 2 * patch)
    while side >= finest:
        yield side
        side = min(side * 3 // 4, side - 1)
        if side < 1:
            return


def _random_blocks(shape: tuple[int, ...], side: int, rng: np.random.Generator) -> np.ndarray:
    """Mask of a third to a half of the blocks of a grid with a random offset."""
    place = [(np.arange(n) + rng.integers(side)) // side for n in shape]
    grid = tuple(p[-1] + 1 for p in place)
    n_blocks = grid[0] * grid[1]
    # At most half, because the guard band is taken from the other blocks.
    n_chosen = max(round(n_blocks * rng.uniform(0.35, 0.5)), 1)
    chosen = (rng.permutation(n_blocks) < n_chosen).reshape(grid)
    return chosen[np.ix_(*place)]


def _overlapping(mask: np.ndarray, patch: int) -> np.ndarray:
    """Pixels whose window meets the window of a pixel in `mask`."""
    from scipy.ndimage import maximum_filter  # here: 0.2 s that other sets need not wait for

    # Windows of side k meet when their centres are at most k - 1 apart along both axes.
    reached = maximum_filter(mask.astype(np.uint8), size=2 * patch - 1, mode="constant")
    return reached.astype(bool)


def _score(classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[int, float]:
    """How many classes are in both parts, and the smallest share any of those has in one."""
    n = np.bincount(classes)
    smaller = np.minimum(
        np.bincount(classes[train], minlength=len(n)), np.bincount(classes[test], minlength=len(n))
    )
    served = smaller > 0
    if not served.all():
        return int(served.sum()), 0.0
    return len(n), float((smaller / n).min(initial=1.0))
