"""Destroy and Reconstruct: the forward process, its posterior, and the text's μ.

Notation and schedule: `unraze.schedule`. Noise is always an argument. `t` indexes the schedule: an
int, or an int64 tensor (B,), of steps from 1 to T; x is (B, C, H, W), or any (B, …). A step outside
raises `ValueError`.
"""

import torch
from torch import Tensor

from unraze.schedule import Schedule

__all__ = [
    "check_steps",
    "destroy",
    "destroy_at",
    "destroy_step",
    "like",
    "log_variance",
    "mu",
    "posterior",
]


def destroy_step(schedule: Schedule, x_before: Tensor, t: Tensor | int, eps_step: Tensor) -> Tensor:
    """One step of destruction, x_t = α_t x_{t-1} + β_t ε_t.

    Source: Su 2022, "Destroy"; Ho et al. 2020, eq. 2.
    """
    t = check_steps(schedule, t)
    alpha, beta = like(schedule.alpha[t], x_before), like(schedule.beta[t], x_before)
    return alpha * x_before + beta * eps_step


def destroy(schedule: Schedule, x0: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
    """t steps of destruction at once, x_t = ᾱ_t x_0 + β̄_t ε̄; t = 0 gives x_0 back.

    Source: Su 2022, "Destroy"; Ho et al. 2020, eq. 4.
    """
    t = check_steps(schedule, t, first=0)
    return destroy_at(schedule.alpha_bar[t], schedule.beta_bar[t], x0, eps)


def destroy_at(alpha_bar: Tensor, beta_bar: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """x = ᾱ x_0 + β̄ ε̄ for amplitudes (B,) of one's own, `Schedule.at` of a fractional time say."""
    return like(alpha_bar, x0) * x0 + like(beta_bar, x0) * eps


def mu(schedule: Schedule, x_t: Tensor, t: Tensor | int, eps_step: Tensor) -> Tensor:
    """The reconstruction of x_{t-1} from x_t, μ(x_t) = (x_t - β_t ε_t)/α_t, ε_t the step noise.

    From the whole noise: ε_t = (β_t/β̄_t) ε̄. Where x_t = ᾱ_t x_0 + β̄_t ε̄ this is the mean of
    `posterior`. Raises `ValueError` where α_t = 0.
    Source: Su 2022, "Reconstruct"; Ho et al. 2020, eq. 11.
    """
    t = check_steps(schedule, t)
    alpha, beta = schedule.alpha[t], schedule.beta[t]
    if bool((alpha == 0).any()):
        raise ValueError("α_t = 0 at the last step: x_T holds nothing to divide by; use posterior")
    return (x_t - like(beta, x_t) * eps_step) / like(alpha, x_t)


def posterior(
    schedule: Schedule, x_t: Tensor, t: Tensor | int, x0: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (B, …) and variance (B, 1, …) of q(x_{t-1} | x_t, x_0).

    mean = (ᾱ_{t-1} β_t² x_0 + α_t β̄_{t-1}² x_t)/β̄_t²,   variance = β̃_t² = (β_t β̄_{t-1}/β̄_t)²

    Finite at every step, ᾱ_T = 0 included. Source: Ho et al. 2020, eqs. 6 and 7.
    """
    t = check_steps(schedule, t)
    alpha, beta = schedule.alpha[t], schedule.beta[t]
    beta_bar, beta_bar_before = schedule.beta_bar[t], schedule.beta_bar[t - 1]
    of_x0 = schedule.alpha_bar[t - 1] * (beta / beta_bar) ** 2
    of_x_t = alpha * (beta_bar_before / beta_bar) ** 2
    mean = like(of_x0, x_t) * x0 + like(of_x_t, x_t) * x_t
    return mean, like(schedule.beta_tilde[t] ** 2, x_t)


def log_variance(schedule: Schedule, t: Tensor | int, share: Tensor) -> Tensor:
    """ln σ_t² = v ln β_t² + (1-v) ln β̃_t² (B, …), for the share v (B, …) that a network learned.

    β̃_1 = 0 has no logarithm: β̃_2 stands for it (β_1 in a schedule of one step). v = 1 is σ = β,
    v = 0 is σ = β̃; v may lie outside. Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15.
    """
    t = check_steps(schedule, t)
    lowest = schedule.beta_tilde.clone()
    lowest[1] = lowest[2] if schedule.steps > 1 else schedule.beta[1]
    upper, lower = 2 * schedule.beta[t].log(), 2 * lowest[t].log()
    return torch.lerp(like(lower, share), like(upper, share), share)


def like(values: Tensor, x: Tensor) -> Tensor:
    """values (B,) or () as (B, 1, …) of x's dtype and device, to be multiplied with x (B, …)."""
    values = values.to(device=x.device, dtype=x.dtype)
    return values if values.ndim == 0 else values.reshape(-1, *[1] * (x.ndim - 1))


def check_steps(schedule: Schedule, t: Tensor | int, *, first: int = 1) -> Tensor | int:
    """t itself, where it lies in first … T; an index below 0 would read the schedule's other end.

    Raises `ValueError` that names the step.
    """
    least, most = (t, t) if isinstance(t, int) else (int(v) for v in torch.aminmax(t))
    if least < first or most > schedule.steps:
        raise ValueError(
            f"t = {least if least < first else most}: steps go from {first} to {schedule.steps}"
        )
    return t
