"""Laws of the splits of sets without an official one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnn_robust.data.split import blocked_split, stratified_split, usable_pixels


def window(r, c, k):
    h = k // 2
    return {(i, j) for i in range(r - h, r + h + 1) for j in range(c - h, c + h + 1)}


def windows(mask, k):
    return {(r, c): window(r, c, k) for r, c in zip(*np.nonzero(mask), strict=True)}


scenes = st.builds(
    lambda rows, columns, classes, seed: np.random.default_rng(seed).integers(
        0, classes + 1, (rows, columns)
    ),
    st.integers(5, 18),
    st.integers(5, 18),
    st.integers(1, 4),
    st.integers(0, 999),
)


@settings(max_examples=40, deadline=None)
@given(scenes, st.sampled_from([1, 3, 5]), st.integers(0, 5))
def test_no_window_of_either_part_overlaps_brute_force(labels, k, seed):
    train, test, _ = blocked_split(labels, patch=k, seed=seed)
    in_train = set().union(*windows(train, k).values())
    for pixels in windows(test, k).values():
        assert in_train.isdisjoint(pixels)


@settings(max_examples=40, deadline=None)
@given(scenes, st.sampled_from([1, 3, 5]), st.integers(0, 5))
def test_nothing_is_dropped_without_need(labels, k, seed):
    """Every usable pixel that is in neither part has a window that meets a training window."""
    train, test, _ = blocked_split(labels, patch=k, seed=seed)
    usable = usable_pixels(labels, k)
    assert not (train & test).any() and not ((train | test) & ~usable).any()
    in_train = set().union(*windows(train, k).values())
    for pixels in windows(usable & ~train & ~test, k).values():
        assert not in_train.isdisjoint(pixels)
    if k == 1:
        assert np.array_equal(train | test, labels > 0)


def test_usable_pixels_have_their_whole_window_in_the_scene():
    labels = np.ones((6, 7), int)
    labels[3, 3] = 0
    for k in (1, 3, 5):
        usable = usable_pixels(labels, k)
        for r, c in np.ndindex(6, 7):
            inside = all(0 <= i < 6 and 0 <= j < 7 for i, j in window(r, c, k))
            assert usable[r, c] == (inside and labels[r, c] > 0)


def test_blocked_split_serves_every_field_of_a_big_scene():
    labels = np.repeat(np.repeat(np.arange(1, 7).reshape(2, 3), 30, 0), 30, 1)
    for seed in range(5):
        train, test, side = blocked_split(labels, patch=3, seed=seed)
        assert side >= 6  # blocks, not scattered pixels
        for label in range(1, 7):
            n = (labels == label).sum()
            assert (labels[train] == label).sum() >= 0.25 * n
            assert (labels[test] == label).sum() >= 0.25 * n


def test_blocked_split_leaves_a_lone_pixel_in_one_part():
    labels = np.ones((20, 20), int)
    labels[10, 10] = 2
    train, test, _ = blocked_split(labels, patch=1, seed=0)
    assert train[10, 10] != test[10, 10]
    assert (labels[train] == 1).any() and (labels[test] == 1).any()


def test_blocked_split_of_nothing_is_empty():
    train, test, _ = blocked_split(np.zeros((8, 8), int), patch=1, seed=0)
    assert not train.any() and not test.any()


def test_blocked_split_follows_its_seed():
    labels = np.ones((30, 30), int)
    first, again, other = (blocked_split(labels, patch=1, seed=s)[0] for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(("share", "counts"), [(0.75, (6, 30)), (0.5, (4, 20))])
def test_stratified_split_keeps_shares(share, counts):
    y = np.repeat([0, 1], [8, 40])
    train, test = stratified_split(y, train_share=share, seed=1)
    assert tuple(np.bincount(y[train])) == counts
    assert sorted([*train, *test]) == list(range(48))


def test_stratified_split_of_tiny_classes():
    y = np.array([0, 0, 1])
    train, test = stratified_split(y, train_share=0.99, seed=0)
    assert sorted(y[train]) == [0, 1] and y[test].tolist() == [0]


def test_stratified_split_follows_its_seed():
    y = np.zeros(50, int)
    first, again, other = (stratified_split(y, train_share=0.5, seed=s)[0] for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
