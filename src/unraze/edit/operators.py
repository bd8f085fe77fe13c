"""How a picture was spoilt: y = A(x_0) + σ n, and the operators A that one meets most.

An operator is a function of images (B, C, H, W), differentiable by torch; it need not be linear.
One's own is as good as those below.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unraze.errors import InputError

__all__ = [
    "Observed",
    "Operator",
    "blurred",
    "downsampled",
    "grey",
    "identity",
    "only",
    "shape_seen",
]

Operator = Callable[[Tensor], Tensor]
"""A: images (B, C, H, W) to what is seen of them, (B, …)."""

LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in grey: ITU-R BT.601, as Pillow and `unraze.data` have it."""


@dataclass(frozen=True)
class Observed:
    """y = A(x_0) + σ n, n standard normal: what is seen (B, …), how, and σ ≥ 0.

    σ is in units of [-1, 1], a byte is 2/255 of it. Raises `ValueError` for a σ that is negative or
    not finite.
    """

    y: Tensor
    operator: Operator
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"sigma = {self.sigma:g}: give a number from 0")


def shape_seen(operator: Operator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what is seen of an image (C, H, W), found by trying it on two.

    Raises `ValueError` where they are refused, where what comes is not of each image one, or where
    torch cannot differentiate it.
    """
    with torch.enable_grad():
        try:
            y = operator(torch.zeros(2, *shape, requires_grad=True))
        except InputError:  # says which operator it is
            raise
        except Exception as error:  # of one's own function anything may go wrong
            raise ValueError(f"does not take the run's images: {error}") from error
    if not isinstance(y, Tensor) or y.ndim < 1 or len(y) != 2:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"gives {got} of two images (2, …): give a tensor with one row for each")
    if not y.requires_grad:
        raise ValueError("cannot be differentiated: compute what is seen from the images by torch")
    return tuple(y.shape[1:])


def identity(x: Tensor) -> Tensor:
    """A x = x: what is seen is the picture with noise."""
    return x


def downsampled(factor: int) -> Operator:
    """The means of squares of factor × factor pixels.

    The operator raises `ValueError` for images that such squares do not tile.
    """
    if factor < 1:
        raise ValueError(f"factor = {factor}: give a whole number from 1")

    def apply(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(f"factor = {factor}: does not divide {height} x {width} pixels")
        return functional.avg_pool2d(x, factor)

    return apply


def blurred(sigma: float) -> Operator:
    """Convolution with a Gaussian of standard deviation `sigma` pixels, cut off at 3 sigma.

    Beyond the edge the picture goes on as its mirror image does.
    """
    if not 0 < 3 * sigma < math.inf:
        raise ValueError(f"sigma = {sigma:g}: give a number above 0")
    reach = max(1, math.ceil(3 * sigma))

    def apply(x: Tensor) -> Tensor:
        if min(x.shape[-2:]) <= reach:
            height, width = x.shape[-2:]
            raise ValueError(f"sigma = {sigma:g}: too wide a blur for {height} x {width} pixels")
        channels = x.shape[1]
        places = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = (-0.5 * (places / sigma) ** 2).exp()
        one = (kernel / kernel.sum()).to(x).expand(channels, 1, -1)
        padded = functional.pad(x, (reach, reach, reach, reach), mode="reflect")
        across = functional.conv2d(padded, one[:, :, None, :], groups=channels)
        return functional.conv2d(across, one[:, :, :, None], groups=channels)

    return apply


def grey(x: Tensor) -> Tensor:
    """Colour (B, 3, H, W) to grey (B, 1, H, W), 0.299 R + 0.587 G + 0.114 B."""
    if x.shape[1] != len(LUMA):
        raise ValueError(f"grey: needs images of 3 channels, these have {x.shape[1]}")
    weights = torch.tensor(LUMA, dtype=x.dtype, device=x.device).reshape(1, -1, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def only(seen: Tensor) -> Operator:
    """The pixels where `seen`, bool, of the images' shape or spread over it, is true; 0 elsewhere.

    What is seen is laid out as the picture is, so that it can be looked at.
    """
    return lambda x: x * seen.to(x)
