"""Values that are unfit, and the scaling to [0, 1] that is fitted on the training part."""

import numpy as np
import pytest
import torch
from data_files import write_ts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tnn_robust.base.errors import DataError
from tnn_robust.data.catalogue import load_dataset
from tnn_robust.data.parts import Scaling
from tnn_robust.data.prepare import fit_scaling, scale
from tnn_robust.data.spec import DataSpec


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
        ({"x_test": np.zeros((5, 4, 2))}, "x_test of .* has 5 examples but 6 labels"),
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
    with pytest.raises(DataError, match=r"b\.ts, line \d+: a value is missing"):
        load_dataset(DataSpec(toy_ts))


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
