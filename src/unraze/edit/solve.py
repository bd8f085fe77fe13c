"""Linear equations that are known by what they do to a vector, each image's its own."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["conjugate_gradients"]


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """x (B, …) with M x ≈ b, M symmetric and positive, one for each row of b; x = 0 to begin with.

    A row ends where its residual is lost in rounding, or where a direction p shows M not to be
    positive, p·Mp ≤ 0, as an imperfect network's Jacobian may not be: then x stays as good as it
    was. Source: Hestenes & Stiefel 1952, section 3.
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).reshape(len(u), -1).sum(1).reshape(-1, *[1] * (b.ndim - 1))

    x, residual, direction = torch.zeros_like(b), b, b
    size = dot(b, b)
    enough = size * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        if bool((size <= enough).all()):
            break
        image = apply(direction)
        curvature = dot(direction, image)
        goes_on = (size > enough) & (curvature > 0)
        length = torch.where(goes_on, size / torch.where(goes_on, curvature, 1.0), 0.0)
        x = x + length * direction
        residual = residual - length * image
        next_size = torch.where(goes_on, dot(residual, residual), 0.0)
        direction = (
            residual + torch.where(goes_on, next_size / size.clamp(min=1e-38), 0.0) * direction
        )
        size = next_size
    return x
