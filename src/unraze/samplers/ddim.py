"""DDIM: Song et al. 2021, "Denoising diffusion implicit models", arXiv:2010.02502."""

from collections.abc import Iterator

from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.process import like
from unraze.samplers.solver import check_eta
from unraze.samplers.step import Noise, Step
from unraze.schedule import Schedule

__all__ = ["ddim"]


def ddim(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
) -> Iterator[Step]:
    """x_s = ᾱ_s x̂_0 + √(β̄_s² - σ²) ε̂ + σ z,   σ = η β̃_t,   s = t-1 of the schedule.

    η = 0 draws no noise and follows the probability flow; η = 1 is the ancestral sampler with
    σ = β̃. Source: eqs. 12 and 16. Raises `ValueError` for η outside [0, 1], or η > 0 without noise.
    """
    check_eta(eta, noise)
    previous = None
    for t in range(schedule.steps, 0, -1):
        prediction = denoise(x, schedule.times[t], previous=previous)
        sigma = eta * schedule.beta_tilde[t]
        left = schedule.beta_bar[t - 1] - sigma  # rounded, it may fall below zero where η = 1
        kept = (left.clamp(min=0) * (schedule.beta_bar[t - 1] + sigma)).sqrt()
        x = like(schedule.alpha_bar[t - 1], x) * prediction.x0 + like(kept, x) * prediction.eps
        if noise is not None and sigma > 0:
            x = x + like(sigma, x) * noise(t)
        previous = prediction.x0
        yield Step(float(schedule.times[t - 1]), x, prediction)
