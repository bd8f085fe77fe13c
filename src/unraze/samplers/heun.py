"""Heun's method on the probability flow, in the angle θ = arctan(β̄/ᾱ)."""

import math
from collections.abc import Iterator

from torch import Tensor

from unraze.denoiser import Denoiser, Prediction
from unraze.process import like
from unraze.samplers.solver import first_order
from unraze.samplers.step import Step
from unraze.schedule import Schedule

__all__ = ["heun", "heun_step"]


def heun(denoise: Denoiser, x: Tensor, schedule: Schedule) -> Iterator[Step]:
    """x_s = x_t - tan(δ/2) (v_t + v_s),   v = ᾱ ε̂ - β̄ x̂_0,   δ = θ_t - θ_s,   s = t-1.

    v_s is what the denoiser says at DDIM's x_s: two calls a step, order 2. The last step is DDIM's
    alone, so the denoiser is never asked at t = 0: 2T-1 calls in all. Heun's method for dx/dθ = v
    has δ/2 in place of tan(δ/2), which makes it exact for a single point (there v is a sine of θ).
    Karras et al. 2022 (arXiv:2206.00364, algorithm 1) take Heun's method in σ = β̄/ᾱ instead, which
    is infinite where ᾱ_T = 0; v is finite at both ends.
    """
    previous = None
    for t in range(schedule.steps, 0, -1):
        x, prediction = heun_step(denoise, x, schedule, t, previous)
        previous = prediction.x0
        yield Step(float(schedule.times[t - 1]), x, prediction)


def heun_step(
    denoise: Denoiser, x: Tensor, schedule: Schedule, t: int, previous: Tensor | None
) -> tuple[Tensor, Prediction]:
    """x_s and the newest prediction: one step of `heun`, of one call where s is 0, else of two."""
    here = denoise(x, schedule.times[t], previous=previous)
    guess = first_order(schedule, t, here)
    if t == 1:
        return guess, here
    there = denoise(guess, schedule.times[t - 1], previous=here.x0)
    half = math.tan(float(schedule.theta[t] - schedule.theta[t - 1]) / 2)
    slopes = _velocity(schedule, t, here) + _velocity(schedule, t - 1, there)
    return x - half * slopes, there


def _velocity(schedule: Schedule, t: int, prediction: Prediction) -> Tensor:
    """v = dx/dθ = ᾱ ε̂ - β̄ x̂_0 at step t."""
    a, b = like(schedule.alpha_bar[t], prediction.x0), like(schedule.beta_bar[t], prediction.x0)
    return a * prediction.eps - b * prediction.x0
