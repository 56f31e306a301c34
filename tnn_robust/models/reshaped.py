"""Networks for examples of another shape: one channel for several, several for one."""

from torch import Tensor, nn


class OneChannel(nn.Module):
    """A network of one channel on examples of several: (n, d, c) goes in as (n, d c, 1)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.reshape(len(x), -1, 1))


class Tubes(nn.Module):
    """A network of several channels on examples flattened to one: (n, d c, 1) goes in as
    (n, d, c)."""

    def __init__(self, model: nn.Module, channels: int):
        super().__init__()
        self.model, self.channels = model, channels

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.reshape(len(x), -1, self.channels))
