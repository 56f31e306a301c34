"""The climb of Auto-PGD in l1, by sparse steps: Croce & Hein 2021 (arXiv 2103.01208)."""

from typing import NamedTuple

import torch
from torch import Tensor

from tnn_robust.attacks.ascent import _unblocked
from tnn_robust.attacks.balls import Radius
from tnn_robust.attacks.climb import _MOMENTUM, Watch
from tnn_robust.attacks.points import BOX
from tnn_robust.attacks.projections import project_l1_box
from tnn_robust.base.losses import Loss

# Share of the entries moved at first, and by how much less each checkpoint than are in use;
# the radius of the first half of the steps. The paper starts at 0.2 and spends 0.3 of the steps at
# 3 eps and 0.3 at 2 eps: on t-NNs of digits that left up to 2 % more points standing than this.
_FIRST_SHARE, _SPARSER, _WIDER = 0.1, 1.5, 2.0
_L1_PERIOD, _L1_STEADY, _L1_SLOWEST = 0.04, 0.95, 0.1


class _Top(NamedTuple):
    """The highest point of one climb: its loss (n,), itself and its gradient (n, d, c)."""

    value: Tensor
    z: Tensor
    gradient: Tensor

    def raised(self, value: Tensor, z: Tensor, gradient: Tensor) -> "_Top":
        return _Top(*map(_pick, (value > self.value,) * 3, (value, z, gradient), self))


def _pick(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _nowhere(z: Tensor) -> _Top:
    return _Top(z.new_full(z.shape[:1], -torch.inf), z, torch.zeros_like(z))


def climb_l1(watch: Watch, z: Tensor, loss: Loss, eps: Radius, steps: int) -> None:
    """Half the steps in a wider ball, whose best point, projected, is where the rest start."""
    x, wide = watch.x, steps // 2
    watch.glance(x)
    scout = Watch(watch.model, x, watch.y)  # points out of the ball do not count
    z = _climb_sparsely(scout, z, loss, _WIDER * eps, wide)
    z = (x + project_l1_box(x, z - x, eps)).clamp(*BOX)
    _climb_sparsely(watch, z, loss, eps, steps - wide)


def _climb_sparsely(watch: Watch, z: Tensor, loss: Loss, eps: Radius, steps: int) -> Tensor:
    """Algorithm 1 of arXiv 2103.01208: sparser steps as the best point becomes sparser, and the
    exact projection onto ball and box. Where the best point grew sparser since the last
    checkpoint the step is eps again, from that point; elsewhere it shrinks, to eps / 10 at least.
    Gives the point of largest loss but the last.
    """
    x, entries = watch.x, z[0].numel()
    longest = torch.as_tensor(eps, dtype=z.dtype, device=z.device).expand(len(z))
    step, used = longest, z.new_full((len(z),), entries)
    count = z.new_full((len(z),), max(1.0, _FIRST_SHARE * entries))
    before, top, period = z, _nowhere(z), max(1, int(_L1_PERIOD * steps))
    for i in range(steps):
        value, gradient = watch.look(z, loss)
        top = top.raised(value, z, gradient)
        if i and i % period == 0:
            now = (top.z != x).flatten(1).sum(1).to(z.dtype)
            sparser = now < _L1_STEADY * used
            count, used = (now / _SPARSER).clamp_min(1.0), now
            step = torch.where(sparser, longest, (step / _SPARSER).maximum(_L1_SLOWEST * longest))
            z, gradient = map(_pick, (sparser,) * 2, top[1:], (z, gradient))
            before = _pick(sparser, z, before)
        direction = _sparse_sign(z, gradient, count)
        ahead = (x + project_l1_box(x, z + step[:, None, None] * direction - x, eps)).clamp(*BOX)
        share = _MOMENTUM if i else 1.0
        moved = z + share * (ahead - z) + (1 - share) * (z - before) - x
        z, before = (x + project_l1_box(x, moved, eps)).clamp(*BOX), z
    watch.glance(z)
    return top.z


def _sparse_sign(z: Tensor, gradient: Tensor, count: Tensor) -> Tensor:
    """The signs of the `count` (n,) steepest entries the box lets move, of l1 norm one."""
    flat = _unblocked(gradient, z).flatten(1)
    size = flat.abs()
    last = (count.long() - 1).clamp(0, size.shape[1] - 1)[:, None]
    cut = size.sort(1, descending=True).values.gather(1, last)
    sign = flat.sign() * (size >= cut)
    return (sign / sign.abs().sum(1, keepdim=True).clamp_min(1.0)).reshape(z.shape)
