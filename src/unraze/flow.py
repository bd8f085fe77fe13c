"""The exact density of the probability flow, by integrating it from data to noise.

    x = cos θ x_0 + sin θ ε̄,   dx/dθ = -sin θ x̂_0 + cos θ ε̂,   θ = arctan(β̄/ᾱ)
    ln p(x(θ_0)) = ln N(x(θ_T); 0, 1) + ∫ Σ_i ∂(dx_i/dθ)/∂x_i dθ

The flow of Song et al. 2021 (arXiv:2011.13456, eqs. 13 and 39) in the angle, in which it is the
network's v and needs no division. The divergence is estimated by zᵀ (∂v/∂x) z with z = ±1
(Hutchinson; Grathwohl et al. 2019, arXiv:1810.01367, section 3.1). Steps are even in
u = ln tan(θ/2), dθ = sin θ du: near data the divergence grows like 1/θ, and in u it is bounded.

The ends: θ_0 > 0 is the caller's, and what is given is taken for a state of that angle; at θ_T of
the schedule the law is taken to be N(0, 1), which is where sampling begins.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.schedule import Schedule

__all__ = ["FlowStep", "log_density", "log_normal", "velocity", "walk"]


@dataclass(frozen=True)
class FlowStep:
    """One step made: the angle reached, the state x (B, …) there, the divergence's integral so far.

    `log_det` is float64 (B,); in the last step θ = θ_T.
    """

    theta: float
    x: Tensor
    log_det: Tensor


def velocity(
    denoise: Denoiser, schedule: Schedule, x: Tensor, theta: float, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """dx/dθ = -sin θ x̂_0 + cos θ ε̂ (B, …), and probeᵀ (∂(dx/dθ)/∂x) probe (B,) float64."""
    t = schedule.time_at(torch.tensor(theta, dtype=torch.float64))
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        prediction = denoise(x, t)
        v = -math.sin(theta) * prediction.x0 + math.cos(theta) * prediction.eps
        (product,) = torch.autograd.grad(v, x, probe)
    return v.detach(), (product * probe).double().flatten(1).sum(1)


def walk(
    denoise: Denoiser,
    schedule: Schedule,
    x: Tensor,
    probe: Tensor,
    *,
    theta: float,
    steps: int,
) -> Iterator[FlowStep]:
    """From x (B, …) at θ to θ_T in so many steps of Runge and Kutta's method of order 4.

    `probe` holds z = ±1 of x's shape, one for the whole way, so that the sum is smooth in θ. Each
    step calls the denoiser 4 times, with its gradient. Raises `ValueError` for a θ outside
    (0, θ_T) or fewer than 1 step.
    """
    end = float(schedule.theta[-1])
    if not 0 < theta < end or steps < 1:
        raise ValueError(
            f"theta = {theta:g}, steps = {steps}: the angle lies between 0 and {end:g}, "
            "there is at least 1 step"
        )
    first, last = math.log(math.tan(theta / 2)), math.log(math.tan(end / 2))
    h = (last - first) / steps
    log_det = torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def slope(state: Tensor, u: float) -> tuple[Tensor, Tensor]:
        at = 2 * math.atan(math.exp(u))
        v, divergence = velocity(denoise, schedule, state, at, probe)
        return math.sin(at) * v, math.sin(at) * divergence

    for i in range(steps):
        u = first + i * h
        k1, d1 = slope(x, u)
        k2, d2 = slope(x + h / 2 * k1, u + h / 2)
        k3, d3 = slope(x + h / 2 * k2, u + h / 2)
        k4, d4 = slope(x + h * k3, u + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        log_det = log_det + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        yield FlowStep(2 * math.atan(math.exp(u + h)), x, log_det)


def log_density(
    denoise: Denoiser,
    schedule: Schedule,
    x: Tensor,
    probe: Tensor,
    *,
    theta: float,
    steps: int,
) -> Tensor:
    """ln p(x) (B,) float64 in nats, for x (B, …) at angle θ: see `walk`."""
    for step in walk(denoise, schedule, x, probe, theta=theta, steps=steps):
        reached = step
    return log_normal(reached.x) + reached.log_det


def log_normal(x: Tensor) -> Tensor:
    """Σ ln N(x_i; 0, 1) (B,) float64."""
    return -0.5 * (x.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)
