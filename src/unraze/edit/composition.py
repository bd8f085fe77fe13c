"""Several conditions at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unraze.denoiser import Denoiser, Prediction
from unraze.process import like

__all__ = ["composed"]


def composed(
    conditional: Sequence[Denoiser],
    unconditional: Denoiser,
    scales: Sequence[float],
    *,
    interval: tuple[float, float] = (0.0, float("inf")),
) -> Denoiser:
    """ε̂ = ε̂_∅ + Σ_k w_k (ε̂_k - ε̂_∅), and the same for x̂_0: conditions that are to hold together.

    One condition alone is classifier-free guidance; a negative scale leads away from its condition.
    Where t is outside of `interval` (training time) no scale is above 1. One call for each
    condition and one without. Raises `ValueError` where there is none, or not one scale for each.
    Source: Liu et al. 2022, arXiv:2206.01714, eq. 11.
    """
    if not conditional or len(conditional) != len(scales):
        raise ValueError(
            f"{len(conditional)} conditions and {len(scales)} scales: give one scale for each, and "
            "at least one"
        )

    def denoise(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        nothing = unconditional(x_t, t, previous=previous)
        x0, eps = nothing.x0, nothing.eps
        acts = (interval[0] <= t) & (t <= interval[1])
        for one, scale in zip(conditional, scales, strict=True):
            found = one(x_t, t, previous=previous)
            there = torch.tensor(scale, dtype=torch.float64)
            w = like(torch.where(acts, there, there.clamp(max=1.0)), x_t)
            x0 = x0 + w * (found.x0 - nothing.x0)
            eps = eps + w * (found.eps - nothing.eps)
        return Prediction(x0, eps, nothing.share)

    return denoise
