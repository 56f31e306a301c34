"""What an attack returns is verified: planted violations are named, rounding is not one."""

import pytest
import reference as ref
import torch

from tnn_robust.attacks.balls import BALLS
from tnn_robust.attacks.points import feasible, verify
from tnn_robust.base.errors import AttackError

N, D, C = 4, 6, 5
DTYPES = (torch.float32, torch.float64)

each_norm = pytest.mark.parametrize("norm", BALLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def on_sphere(norm, eps, dtype):
    """Middle points, and points at distance eps from them, computed in the dtype."""
    delta = torch.tensor(ref.normal(N, D, C), dtype=dtype)
    scale = torch.tensor([eps / ref.norm_of(one, norm) for one in delta.numpy()], dtype=dtype)
    x = torch.full((N, D, C), 0.5, dtype=dtype)
    return x, x + delta * scale[:, None, None]


def check(x, x_adv, norm, eps):
    options = {"ball": BALLS[norm], "name": "planted", "indices": 100 + torch.arange(len(x))}
    return verify(x, x_adv, eps=eps, **options)


@each_dtype
@each_norm
def test_points_on_the_sphere_pass_and_their_radii_are_returned(norm, dtype):
    eps = 0.3
    x, x_adv = on_sphere(norm, eps, dtype)
    radii = check(x, x_adv, norm, eps)
    assert radii.dtype == torch.float64 and radii.shape == (N,)
    assert radii.tolist() == pytest.approx([eps] * N, rel=1e-5)


@each_dtype
@each_norm
def test_a_point_outside_the_ball_is_named(norm, dtype):
    eps = 0.3
    x, x_adv = on_sphere(norm, eps, dtype)
    x_adv[2] = x[2] + 1.01 * (x_adv[2] - x[2])
    with pytest.raises(AttackError) as caught:
        check(x, x_adv, norm, eps)
    message = str(caught.value)
    assert "planted left the ball at example 102: by 0.0030" in message.replace("0.003 ", "0.0030 ")
    # The radius may be each example's own.
    own = torch.full((N,), eps)
    own[2] *= 1.02
    check(x, x_adv, norm, own)
    own[1] *= 0.9
    with pytest.raises(AttackError, match="left the ball at example 101"):
        check(x, x_adv, norm, own)


@pytest.mark.parametrize("excess", (0.01, 1e-6))
@pytest.mark.parametrize("side", (0, 1))
@each_norm
def test_a_point_outside_the_box_is_named(norm, side, excess):
    x = torch.full((N, D, C), float(side))
    x_adv = x.clone()
    x_adv[1, 3, 2] += excess if side else -excess
    with pytest.raises(AttackError, match="planted left the box at example 101: by "):
        check(x, x_adv, norm, 9.0)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@each_norm
def test_a_point_that_is_not_finite_is_named(norm, bad):
    x, x_adv = on_sphere(norm, 0.3, torch.float32)
    x_adv[3, 0, 0] = bad
    with pytest.raises(AttackError, match="planted .* example 103"):
        check(x, x_adv, norm, 0.3)


@each_norm
def test_a_point_of_another_shape_is_refused(norm):
    x, x_adv = on_sphere(norm, 0.3, torch.float32)
    for wrong in (x_adv[:, None], x_adv[:-1], x_adv.transpose(1, 2)):
        with pytest.raises(AttackError, match=r"planted returned \(.*\) for \(4, 6, 5\)"):
            check(x, wrong, norm, 0.3)


@each_dtype
@each_norm
def test_excess_of_the_size_of_rounding_passes(norm, dtype):
    """Also where eps is small beside the last place of x; ten times that is too much."""
    last_place = torch.finfo(dtype).eps
    for eps in (0.3, 1e-3, 100 * last_place):
        x, x_adv = on_sphere(norm, eps, dtype)
        x = x + 0.19
        check(x, x + (x_adv - 0.5), norm, eps)
    x, _ = on_sphere(norm, 0.3, dtype)
    with pytest.raises(AttackError, match="left the ball"):
        check(x, x + 10 * last_place, norm, 0.0)


@each_dtype
@each_norm
def test_feasible_points_are_in_ball_and_box_at_once(norm, dtype):
    """Clipping to the box must not lead out of a ball, as it can for the matrix norms."""
    clipped, moved = 0, 0
    for seed in range(30):
        delta = torch.tensor(ref.normal(N, D, C, seed=seed), dtype=dtype)
        x = torch.tensor(ref.normal(N, D, C, seed=seed + 100), dtype=dtype).clamp(0, 1)
        for eps in (0.1, 1.0):
            found = feasible(x, delta, BALLS[norm], eps)
            check(x, found, norm, eps)
            moved += int((found != x).any(1).any(1).sum())
            clipped += int((x + BALLS[norm].project(delta, eps) < 0).sum())
    assert clipped > 100 and moved > 100


def test_clipping_alone_would_leave_the_spectral_ball():
    delta = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]]) / 2**0.5
    x = torch.tensor([[[0.2, 0.2], [0.2, 0.0]]])
    with pytest.raises(AttackError, match="left the ball"):
        check(x, (x + 0.5 * delta).clamp(0, 1), "spectral", 0.5)
    check(x, feasible(x, delta, BALLS["spectral"], 0.5), "spectral", 0.5)
