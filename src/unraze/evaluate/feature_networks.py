"""The networks that features are taken from: two designs that share nothing but their task.

    Residual   (conv, two 3 x 3 convolutions + x, batch norm, ReLU) at 3 levels -> mean over places
    Depthwise  (conv, layer norm, 3 x 3 depthwise, MLP with GELU, + x) at 3 levels -> mean

after He et al. 2016 (arXiv:1512.03385) and Liu et al. 2022 (arXiv:2201.03545). They see images at
their working size: the longer side between 16 and 32 pixels. Larger images are averaged over areas
first, so details finer than that are not seen; of smaller ones every pixel is repeated.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unraze.data import to_float, to_uint8

__all__ = ["DIM", "Depthwise", "Net", "Residual", "at_working_size", "working_size"]

DIM = 64
"""Features an image, in both designs."""
SMALLEST, LARGEST = 16, 32
NARROWEST = 4
"""No side is shown to a network at fewer pixels."""
BLOCK = 256


def working_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (H, W) at which a network sees images of `size`: the longer side is 16 … 32 pixels.

    Small images are multiplied by a whole number, in both directions alike; then a side of fewer
    than 4 pixels by one of its own.
    """
    longest = max(size)
    if longest > LARGEST:
        height, width = (max(1, round(side * LARGEST / longest)) for side in size)
    else:
        times = -(-SMALLEST // longest)
        height, width = size[0] * times, size[1] * times
    return _at_least(height), _at_least(width)


def at_working_size(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """uint8 (N, C, H, W) as uint8 (N, C, h, w) at `working_size`: area means, rounded to bytes."""
    count, channels, height, width = pixels.shape
    h, w = working_size((height, width))
    if (h, w) == (height, width):
        return np.ascontiguousarray(pixels)
    out = np.empty((count, channels, h, w), dtype=np.uint8)
    for first in range(0, count, BLOCK):
        x = to_float(pixels[first : first + BLOCK])
        x = F.adaptive_avg_pool2d(x, (min(h, height), min(w, width)))
        out[first : first + BLOCK] = to_uint8(F.interpolate(x, size=(h, w), mode="nearest"))
    return out


def _at_least(side: int) -> int:
    return side if side >= NARROWEST else side * -(-NARROWEST // side)


class Residual(nn.Module):
    """x (B, C, h, w) in [-1, 1] -> features (B, 64), not negative: means over all places."""

    def __init__(self, channels: int, widths: tuple[int, int, int] = (32, 48, DIM)) -> None:
        super().__init__()
        first, second, third = widths
        self.layers = nn.Sequential(
            _conv(channels, first, stride=2, size=5),
            _ResidualBlock(first),
            _conv(first, second, stride=2),
            _ResidualBlock(second),
            _conv(second, third, stride=2),
            _ResidualBlock(third),
        )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x.contiguous(memory_format=torch.channels_last))
        return h.mean(dim=(2, 3))


class Depthwise(nn.Module):
    """x (B, C, h, w) in [-1, 1] -> features (B, 64).

    Without `flat_size` they are means over all places; with it, the (h, w) of the images, they are
    a linear map of what is at every place: a code from which an image can be made again.
    """

    def __init__(
        self,
        channels: int,
        *,
        flat_size: tuple[int, int] | None = None,
        widths: tuple[int, int, int] = (32, 64, 128),
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.layers = nn.Sequential(
            _halved(channels, first, size=5),
            _DepthwiseBlock(first),
            _halved(first, second),
            _DepthwiseBlock(second),
            _DepthwiseBlock(second),
            _halved(second, third),
            _DepthwiseBlock(third),
            _ChannelNorm(third),
        )
        self.out: nn.Module
        if flat_size is None:
            self.out = nn.Sequential(nn.Conv2d(third, DIM, 1), nn.GELU(), _Mean())
        else:
            narrow = 32
            places = math.prod(-(-side // 8) for side in flat_size)
            self.out = nn.Sequential(
                nn.Conv2d(third, narrow, 1), nn.GELU(), _Flat(), nn.Linear(narrow * places, DIM)
            )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x.contiguous(memory_format=torch.channels_last))
        features: Tensor = self.out(h)
        return features


class Net(nn.Module):
    """An encoder and what is trained on top of it: x (B, C, h, w) -> the head's output.

    Features are the encoder's output times `scale`, one number, which is set after training.
    """

    scale: Tensor

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.register_buffer("scale", torch.ones(()))

    def features(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) in [-1, 1] -> (B, 64)."""
        out: Tensor = self.encoder(x) * self.scale
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x))
        return out


def _conv(inputs: int, outputs: int, *, stride: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _halved(inputs: int, outputs: int, *, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=2, padding=size // 2),
        _ChannelNorm(outputs),
        nn.GELU(),
    )


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width, stride=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class _DepthwiseBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.mix(x).permute(0, 2, 3, 1))
        h = self.narrow(F.gelu(self.wide(h)))
        out: Tensor = x + h.permute(0, 3, 1, 2)
        return out


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class _Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous().flatten(1)
