"""Consistency: teaching a network to go a long way along the probability flow in one call.

The flow dx/dθ = v, θ = arctan(β̄/ᾱ), takes x_t to one point x_s at every earlier time s. What a
network says at t stands for a jump there along a circle,

    J(x_t, s) = ᾱ_s x̂_0 + β̄_s ε̂ = cos(θ_t-θ_s) x_t - sin(θ_t-θ_s) v̂,     v̂ = ᾱ_t ε̂ - β̄_t x̂_0,

which is DDIM's step: right where s is near to t. A consistency model has borders 0 = e_0 < … < T
in time, and its jump from any t between two of them to the lower one, e, is to be where the flow
goes: J(x_t, e) = J(x_r, e) for every x_r on the way from x_t to x_e. With no border but 0 and T
that is a picture in one call, f(x_t) = J(x_t, 0) = x̂_0 (Song et al. 2023, arXiv:2303.01469,
section 3); with borders between, one call for each part (Heek et al. 2024, arXiv:2403.06807,
section 3). The boundary condition J(x_e, e) = x_e holds whatever a network of v or F says.
"""

import torch
from torch import Tensor

from unraze.config import LossConfig
from unraze.denoiser import Prediction
from unraze.process import destroy_at, like
from unraze.schedule import Schedule

__all__ = ["below", "consistency", "drawn", "jump", "ladder"]


def jump(schedule: Schedule, prediction: Prediction, s: Tensor) -> Tensor:
    """J = ᾱ_s x̂_0 + β̄_s ε̂, from where the prediction was made to the training times s (B,)."""
    return destroy_at(*schedule.at(s), prediction.x0, prediction.eps)


def ladder(schedule: Schedule, config: LossConfig) -> Tensor:
    """The times that a student is taught at, and goes between: 0, …, T, all borders among them.

    From border to border there are n = `config.teacher_steps` steps, even in θ, in which the flow
    is as smooth at T as at 0; where the network knows whole times alone, at these, and then fewer
    where a part is shorter. Every step is taught as often, so all parts are, however short, and T,
    where sampling begins, as much as any other.
    """
    assert config.borders is not None
    borders = torch.tensor(config.borders, dtype=torch.float64)
    theta = torch.atan2(*reversed(schedule.at(borders)))
    share = torch.arange(1, config.teacher_steps, dtype=torch.float64) / config.teacher_steps
    inner = schedule.time_at(theta[:-1, None] + share * theta.diff()[:, None])
    inner = inner if config.continuous else inner.round()
    steps: Tensor = torch.unique(torch.cat([borders, inner.flatten()]))
    return steps


def drawn(u: Tensor, schedule: Schedule, config: LossConfig) -> Tensor:
    """Training times (B,) for uniform numbers u (B,) in [0, 1): a step of the ladder each."""
    steps = ladder(schedule, config)
    return steps[1 + (u * (len(steps) - 1)).long()]


def below(schedule: Schedule, t: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """(r, e), each (B,), for times t (B,) in (0, T]: the ladder's next step down, and the border
    that the jump from t goes to."""
    assert config.borders is not None
    borders = torch.tensor(config.borders, dtype=torch.float64)
    return _next(ladder(schedule, config), t), _next(borders, t)


def _next(times: Tensor, t: Tensor) -> Tensor:
    """The highest of the rising times that is lower than t."""
    return times[torch.searchsorted(times, t.contiguous()) - 1]


def consistency(
    estimate: Tensor, target: Tensor, schedule: Schedule, t: Tensor, e: Tensor
) -> Tensor:
    """‖J(x_t, e) - target‖²/(d sin²(θ_t-θ_e)) (B,): the mean square of v̂ - v*.

    v* is the velocity whose jump from x_t is the target, so that all times weigh as in the loss of
    v. The target is J(x_r, e) of the network as it is, without gradient, where x_r is one
    step of the teacher from x_t. Source: Song et al. 2023, eq. 7, there with an averaged network.
    """
    signal_t, spread_t = schedule.at(t)
    signal_e, spread_e = schedule.at(e)
    sine = spread_t * signal_e - signal_t * spread_e
    return ((estimate - target) / like(sine, target)).square().flatten(1).mean(1)
