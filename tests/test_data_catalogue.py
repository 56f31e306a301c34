"""The one loading function: options, class selection, subsets, scaling, validation."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import savemat

from tnn_robust.choices import DATASETS
from tnn_robust.data.catalogue import LOADERS, load_dataset
from tnn_robust.data.dataset import Scaling
from tnn_robust.data.prepare import fit_scaling, scale
from tnn_robust.data.spec import DataSpec
from tnn_robust.errors import DataError, InputError


@pytest.fixture(autouse=True)
def _nowhere_else(tmp_path, monkeypatch):
    monkeypatch.delenv("TNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path):
    """A writer of small npz sets: 12 training and 6 test examples of the classes 3, 5, 8."""

    def write(**changes):
        rng = np.random.default_rng(0)
        content = {
            "x_train": rng.random((12, 4, 2)),
            "y_train": np.tile([3, 5, 8], 4),
            "x_test": rng.random((6, 4, 2)),
            "y_test": np.tile([3, 5, 8], 2),
        } | changes
        np.savez(tmp_path / "toy.npz", **content)
        return f"npz:{tmp_path / 'toy.npz'}"

    return write


def write_ts(path, x, labels):
    """x (n, steps, sensors) as a .ts file."""
    lines = [
        ":".join([*(",".join(map(repr, s.tolist())) for s in sample.T), label])
        for sample, label in zip(x, labels, strict=True)
    ]
    path.write_text("\n".join(["@data", *lines]))


@pytest.fixture
def toy_ts(tmp_path):
    """A set whose scaling is fitted: sensor 0 in 0..10, sensor 1 constant in training."""
    train = np.zeros((4, 3, 2))
    train[:, :, 0] = np.arange(12).reshape(4, 3) * 10 / 11
    train[:, :, 1] = 7
    test = np.zeros((2, 3, 2))
    test[0, :, 0] = [-5, 5, 20]
    test[:, :, 1] = [[7, 7, 7], [7, 8, 1e6]]
    write_ts(tmp_path / "a.ts", train, ["u", "v", "u", "v"])
    write_ts(tmp_path / "b.ts", test, ["u", "v"])
    return f"ts:{tmp_path / 'a.ts'},{tmp_path / 'b.ts'}"


# --- names and options


def test_registry_matches_what_can_be_typed():
    assert list(LOADERS) == [name.partition(":")[0] for name in DATASETS]


@pytest.mark.parametrize("name", ["minst", "digits:x", "mat", "", "npz", "MNIST"])
def test_unknown_set_lists_the_choices(name):
    with pytest.raises(InputError, match="unknown data set .*choose from digits, mnist"):
        load_dataset(DataSpec(name))


@pytest.mark.parametrize("name", ["mat:a.mat", "ts:a,b,c", "ts:a,", "npz:"])
def test_wrong_number_of_files(name):
    with pytest.raises(InputError, match="not of the form"):
        load_dataset(DataSpec(name))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DataSpec("mnist", patch=3), "patch is only for salinas-a, mat:CUBE.mat,GT.mat, not"),
        (DataSpec("mnist", resample=9), "resample is only for ts:TRAIN.ts,TEST.ts, not for mnist"),
        (DataSpec("digits", split="random"), "split is only for salinas-a"),
        (
            DataSpec("salinas-a", download=True),
            "download is only for mnist, fashion-mnist, cifar10",
        ),
        (DataSpec("digits", split="blokced"), "unknown split 'blokced': choose from blocked"),
        (DataSpec("salinas-a", patch=2), "patch must be an odd number from 1, got 2"),
        (DataSpec("salinas-a", patch=-1), "patch must be an odd number"),
        (DataSpec("ts:a,b", resample=1), "resample must be 2"),
        (DataSpec("digits", split_seed=-1), "split_seed must be 0 or more, got -1"),
    ],
)
def test_options_that_do_not_fit(spec, message):
    with pytest.raises(InputError, match=message):
        load_dataset(spec)


# --- classes


def test_labels_follow_the_order_given():
    full = load_dataset(DataSpec("digits"))
    for classes in (("3", "7"), ("7", "3"), ("9", "0", "4")):
        part = load_dataset(DataSpec("digits", classes=classes))
        assert part.classes == classes and part.n_classes == len(classes)
        for label, name in enumerate(classes):
            expected = full.train.x[full.train.y == int(name)]
            assert torch.equal(part.train.x[part.train.y == label], expected)
            expected = full.test.x[full.test.y == int(name)]
            assert torch.equal(part.test.x[part.test.y == label], expected)


def test_unknown_class_lists_the_classes(toy):
    with pytest.raises(InputError, match="unknown class '4': choose from 3, 5, 8"):
        load_dataset(DataSpec(toy(), classes=("3", "4")))


@pytest.mark.parametrize("classes", [("3",), ()])
def test_one_class_only_is_refused(toy, classes):
    with pytest.raises(InputError, match="labels of one class only"):
        load_dataset(DataSpec(toy(), classes=classes))


def test_repeated_classes_are_refused(toy):
    with pytest.raises(InputError, match="classes are repeated: 3"):
        load_dataset(DataSpec(toy(), classes=("3", "5", "3")))


def test_data_of_one_class_are_refused(toy):
    name = toy(y_train=np.full(12, 3), y_test=np.full(6, 3))
    with pytest.raises(DataError, match=r"labels of one class only \(3\)"):
        load_dataset(DataSpec(name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": np.tile([3, 5], 6)}, "no training example of class 8"),
        ({"y_test": np.tile([3, 8], 3)}, "no test example of class 5"),
    ],
)
def test_class_absent_from_a_part_is_named(toy, changes, message):
    with pytest.raises(DataError, match=message):
        load_dataset(DataSpec(toy(**changes)))
    present = ("3", "5") if "8" in message else ("3", "8")
    assert load_dataset(DataSpec(toy(**changes), classes=present)).classes == present


# --- n_train


def test_subsets_are_nested_and_random():
    full = load_dataset(DataSpec("digits", classes=("1", "4")))
    small, large = (
        load_dataset(DataSpec("digits", classes=("1", "4"), n_train=n)) for n in (20, 50)
    )
    assert torch.equal(small.train.x, large.train.x[:20])
    assert torch.equal(small.train.y, large.train.y[:20])
    assert torch.equal(small.test.x, full.test.x)
    assert not torch.equal(small.train.x, full.train.x[:20])
    rows = {tuple(x.flatten().tolist()) for x in full.train.x}
    assert all(tuple(x.flatten().tolist()) in rows for x in large.train.x)
    assert len({tuple(x.flatten().tolist()) for x in large.train.x}) == 50


def test_subset_follows_the_seed(toy):
    def names(seed):
        return load_dataset(DataSpec(toy(), n_train=8, split_seed=seed)).digest

    assert names(0) == names(0)
    assert len({names(seed) for seed in (0, 1, 2)}) > 1


@pytest.mark.parametrize("n", [0, -3, 13])
def test_n_train_outside_the_part(toy, n):
    with pytest.raises(InputError, match=f"1 to 12, the training part, got {n}"):
        load_dataset(DataSpec(toy(), n_train=n))


def test_n_train_is_counted_after_class_selection(toy):
    load_dataset(DataSpec(toy(), n_train=8, classes=("3", "8")))
    with pytest.raises(InputError, match="1 to 8, the training part, got 9"):
        load_dataset(DataSpec(toy(), n_train=9, classes=("3", "8")))


def test_n_train_that_loses_a_class(toy):
    with pytest.raises(DataError, match="no training example of class .*larger n_train"):
        load_dataset(DataSpec(toy(), n_train=2))


# --- values


def test_npz_values_pass_unchanged(toy, tmp_path):
    data = load_dataset(DataSpec(toy()))
    with np.load(tmp_path / "toy.npz") as file:
        assert np.array_equal(data.train.x, file["x_train"].astype(np.float32))
    assert data.train.y.tolist() == [0, 1, 2] * 4 and data.classes == ("3", "5", "8")
    assert data.scaling == Scaling((0.0,), (1.0,)) and data.clipped == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.full((12, 4, 2), 1.5)}, r"training part has 1.5 to 1.5"),
        ({"x_test": np.linspace(-0.25, 1, 48).reshape(6, 4, 2)}, r"test part has -0.25 to 1.0"),
        ({"x_train": np.full((12, 4, 2), 255, np.uint8)}, r"must lie in \[0, 1\]"),
        ({"x_test": np.zeros((6, 4, 3))}, r"\(4, 2\) but test examples \(4, 3\)"),
        ({"x_test": np.zeros((5, 4, 2))}, "test part has 5 examples but 6 labels"),
        ({"x_train": np.zeros((12, 0, 2))}, "training part is empty"),
        ({"x_test": np.zeros((0, 4, 2)), "y_test": np.zeros(0, int)}, "test part is empty"),
        ({"x_train": np.zeros((12, 4, 2), complex)}, "complex128, needed real"),
        ({"x_train": np.full((12, 4, 2), "a")}, "needed real numbers"),
    ],
)
def test_unfit_values(toy, changes, message):
    with pytest.raises(DataError, match=message):
        load_dataset(DataSpec(toy(**changes)))


def test_nan_and_infinity_are_counted_by_part(toy):
    x_train, x_test = np.zeros((12, 4, 2)), np.zeros((6, 4, 2))
    x_train[3, 1] = np.nan
    with pytest.raises(DataError, match="infinite: 2 in the training part$"):
        load_dataset(DataSpec(toy(x_train=x_train)))
    x_test[0, 0, 0] = -np.inf
    with pytest.raises(DataError, match="infinite: 2 in the training part and 1 in the test part"):
        load_dataset(DataSpec(toy(x_train=x_train, x_test=x_test)))


def test_nan_in_a_time_series(tmp_path, toy_ts):
    path = tmp_path / "b.ts"
    path.write_text(path.read_text().replace("20.0", "nan"))
    with pytest.raises(DataError, match="infinite: 1 in the test part"):
        load_dataset(DataSpec(toy_ts))


# --- scaling


def test_scaling_is_fitted_on_training_only(toy_ts):
    data = load_dataset(DataSpec(toy_ts))
    assert data.scaling == Scaling((0.0, 7.0), (10.0, 7.0))
    assert torch.allclose(data.train.x[..., 0].flatten(), torch.arange(12) / 11)
    assert data.test.x[0, :, 0].tolist() == [0, 0.5, 1]
    assert data.clipped == pytest.approx(4 / 12)  # -5, 20, and two off the constant 7


def test_constant_channel_maps_to_zero(toy_ts):
    data = load_dataset(DataSpec(toy_ts))
    assert not data.train.x[..., 1].any() and not data.test.x[..., 1].any()
    assert any("1 of 2 channels are constant" in note for note in data.notes)


def test_scaling_is_fitted_after_the_subset(toy_ts):
    """A subset without the extremes has a narrower range, and more is clipped."""
    ranges = set()
    for seed in range(6):
        try:
            data = load_dataset(DataSpec(toy_ts, n_train=2, split_seed=seed))
        except DataError:  # this draw has one class only
            continue
        ranges.add(data.scaling.high[0] - data.scaling.low[0])
        assert data.train.x[..., 0].min() == 0 and data.train.x[..., 0].max() == 1
    assert ranges and max(ranges) <= 10 and min(ranges) < 10


def test_scaling_is_fitted_after_class_selection(tmp_path):
    x = np.zeros((3, 2, 1))
    x[:, :, 0] = [[0, 1], [2, 3], [100, 200]]
    for name in ("a.ts", "b.ts"):
        write_ts(tmp_path / name, x, ["u", "v", "w"])
    name = f"ts:{tmp_path / 'a.ts'},{tmp_path / 'b.ts'}"
    assert load_dataset(DataSpec(name, classes=("v", "u"))).scaling == Scaling((0.0,), (3.0,))


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        st.sampled_from([np.uint8, np.int16, np.int32, np.float32, np.float64]),
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
        elements=st.integers(0, 100),
    )
)
def test_fitted_scaling_law(x):
    """Training data fill [0, 1] channel by channel, and scaling back gives them again."""
    scaling = fit_scaling(x, None)
    scaled = scale(x, scaling)
    assert scaled.dtype == np.float32 and scaled.flags.c_contiguous
    low, high = np.array(scaling.low), np.array(scaling.high)
    assert np.allclose(scaled * (high - low) + low, x, atol=1e-4)
    assert np.array_equal(scaled.min((0, 1)), np.zeros(x.shape[2]))
    assert np.array_equal(scaled.max((0, 1)), (high > low).astype(float))


def test_channel_too_wide_to_scale():
    x = np.array([[[-1.7e308], [1.7e308]]])
    with pytest.raises(DataError, match="too wide"):
        scale(x, fit_scaling(x, None))


# --- the result


def test_result_types_and_layout():
    data = load_dataset(DataSpec("digits"))
    for part in (data.train, data.test):
        assert part.x.dtype == torch.float32 and part.y.dtype == torch.int64
        assert part.x.is_contiguous() and part.x.shape == (len(part.y), 8, 8)
        assert part.x.min() == 0 and part.x.max() == 1
    assert (data.name, data.d, data.c, data.n_classes) == ("digits", 8, 8, 10)
    assert data.layout == "rows = features, columns = channels"
    assert data.scaling == Scaling((0.0,), (16.0,))
    assert len(data.train.y) + len(data.test.y) == 1797
    assert data.train.y.bincount().tolist() == [134, 136, 133, 137, 136, 136, 136, 134, 130, 135]


def test_digits_are_the_real_images_row_by_row():
    from sklearn.datasets import load_digits

    real = {image.tobytes() for image in (load_digits().images / 16).astype(np.float32)}
    data = load_dataset(DataSpec("digits"))
    assert all(x.numpy().tobytes() in real for x in torch.cat([data.train.x, data.test.x]))


def test_split_seed_drives_the_digits_split():
    first, again, other = (load_dataset(DataSpec("digits", split_seed=s)) for s in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.train.y.bincount().tolist() == other.train.y.bincount().tolist()


def test_digest_is_a_sha256_of_everything(toy):
    base = load_dataset(DataSpec(toy())).digest
    assert len(base) == len(hashlib.sha256().hexdigest()) and int(base, 16) >= 0
    y = np.tile([3, 5, 8], 2)
    y[[0, 1]] = y[[1, 0]]
    x = np.random.default_rng(1).random((6, 4, 2))
    digests = {base}
    for changes in ({"y_test": y}, {"x_test": x}):
        digests.add(load_dataset(DataSpec(toy(**changes))).digest)
    digests.add(load_dataset(DataSpec(toy(), classes=("5", "3", "8"))).digest)
    assert len(digests) == 4


def test_digest_knows_the_shape(toy):
    x_train, x_test = np.zeros((12, 4, 2)), np.zeros((6, 4, 2))
    digests = {
        load_dataset(
            DataSpec(toy(x_train=x_train.reshape(12, *s), x_test=x_test.reshape(6, *s)))
        ).digest
        for s in ((4, 2), (2, 4), (8,))
    }
    assert len(digests) == 3


def test_digest_does_not_depend_on_the_stored_type(toy):
    y = np.tile([3, 5, 8], 4)
    assert (
        load_dataset(DataSpec(toy(y_train=y.astype(np.uint8)))).digest
        == load_dataset(DataSpec(toy(y_train=y))).digest
    )


# --- cubes


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
