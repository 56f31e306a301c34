"""Hyperspectral scenes through the one loading function: splits, patches, labels."""

import numpy as np
import pytest
import torch
from scipy.io import savemat

from tnn_robust.base.errors import DataError, InputError
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.spec import DataSpec


@pytest.fixture
def scene(tmp_path):
    """Two fields, labels 4 and 9, whose pixels carry their own coordinates as bands."""
    rows, columns = np.mgrid[:24, :20]
    bands = np.stack([rows, columns, np.full_like(rows, 5)], axis=2).astype(np.int16)
    labels = np.where(columns < 10, 9, 4)
    labels[0] = 0
    savemat(tmp_path / "c.mat", {"c": bands})
    savemat(tmp_path / "g.mat", {"g": labels})
    return f"mat:{tmp_path / 'c.mat'},{tmp_path / 'g.mat'}"


@pytest.mark.parametrize("split", ["blocked", "random"])
def test_scene_keeps_every_pixel_with_patch_1(scene, split):
    data = load_dataset(DataSpec(scene, split=split))
    assert data.classes == ("4", "9") and (data.d, data.c) == (1, 3)
    assert len(data.train.y) + len(data.test.y) == 23 * 20
    assert not any("dropped" in note for note in data.notes)


def pixels(part, scaling):
    """Original coordinates of every pixel of every patch, as sets."""
    low, high = torch.tensor(scaling.low[:2]), torch.tensor(scaling.high[:2])
    places = (part.x[..., :2] * (high - low) + low).round().int()
    return [{tuple(p) for p in patch.tolist()} for patch in places]


def test_blocked_parts_share_no_pixel_and_random_parts_do(scene):
    for split, shared in (("blocked", False), ("random", True)):
        data = load_dataset(DataSpec(scene, split=split, patch=3))
        assert data.clipped == 0 or split == "blocked"
        train = set().union(*pixels(data.train, data.scaling))
        # Clipping would move a test pixel onto the border of the training range.
        inner = [
            p
            for p in pixels(data.test, data.scaling)
            if all(
                scale_low < value < scale_high
                for place in p
                for value, scale_low, scale_high in zip(
                    place, data.scaling.low, data.scaling.high, strict=False
                )
            )
        ]
        assert inner and (not train.isdisjoint(set().union(*inner))) == shared
        assert any("dropped" in note for note in data.notes)


def test_scene_labels_belong_to_the_centre_pixel(scene):
    data = load_dataset(DataSpec(scene, split="random", patch=3))
    for part in (data.train, data.test):
        column = part.x[:, 4, 1] * (data.scaling.high[1] - data.scaling.low[1])
        assert torch.equal(part.y, (column.round() < 10).long())


def test_patch_larger_than_the_scene(scene):
    with pytest.raises(InputError, match=r"patch 21 is larger than the scene, \(24, 20\)"):
        load_dataset(DataSpec(scene, patch=21))


def test_class_that_cannot_be_in_both_parts_is_named(tmp_path, scene):
    labels = np.ones((24, 20), int)
    labels[12, 12], labels[:, :8] = 7, 2
    savemat(tmp_path / "g.mat", {"g": labels})
    with pytest.raises(DataError, match="example of class 7 among"):
        load_dataset(DataSpec(scene))
    assert load_dataset(DataSpec(scene, classes=("2", "1"))).classes == ("2", "1")


def test_scene_without_labels(tmp_path, scene):
    savemat(tmp_path / "g.mat", {"g": np.zeros((24, 20))})
    with pytest.raises(DataError, match="training part is empty"):
        load_dataset(DataSpec(scene))


def test_foreign_cube_is_not_taken_for_salinas_a(tmp_path, scene):
    (tmp_path / "c.mat").rename(tmp_path / "SalinasA_corrected.mat")
    (tmp_path / "g.mat").rename(tmp_path / "SalinasA_gt.mat")
    with pytest.raises(DataError, match=r"is not Salinas-A: its shape is \(24, 20, 3\)"):
        load_dataset(DataSpec("salinas-a", data_dir=str(tmp_path)))
