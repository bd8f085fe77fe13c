"""Variations and blends: destroyed to some t, and reconstructed from there."""

import torch
from torch import Tensor

from unraze.process import destroy_at
from unraze.schedule import Schedule

__all__ = ["below", "slerp", "varied_from"]


def below(schedule: Schedule, t: float) -> Schedule:
    """The part of the schedule from 0 to the training time t, which becomes its end.

    Raises `ValueError` for a time outside (0, T].
    """
    last = float(schedule.times[-1])
    if not 0 < t <= last:
        raise ValueError(f"t = {t:g}: give a time above 0, at most {last:g}")
    kept = schedule.times[schedule.times < t]
    return schedule.keep(torch.cat([kept, torch.tensor([t], dtype=torch.float64)]))


def varied_from(schedule: Schedule, x0: Tensor, t: float, eps: Tensor) -> Tensor:
    """SDEdit's start: x_t = ᾱ_t x_0 + β̄_t ε at a training time, from which any sampler goes on over
    `below(schedule, t)`.

    Source: Meng et al. 2022, arXiv:2108.01073, algorithm 1.
    """
    alpha_bar, beta_bar = schedule.at(torch.tensor(t, dtype=torch.float64))
    return destroy_at(alpha_bar, beta_bar, x0, eps)


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Spherical interpolation from `start` (share = 0) to `end` (1), (B, …), each image its own.

    (sin((1-s) ω) a + sin(s ω) b)/sin ω, ω the angle between a and b: what lies between two samples
    of normal noise has their length, as samples have, which straight lines do not keep. Straight
    where they are parallel. Source: Shoemake 1985, "Animating rotation with quaternion curves",
    section 3.3.
    """
    a, b = (x.flatten(1).cpu().double() for x in (start, end))  # some devices have no float64
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-300)
    omega = cosine.clamp(-1, 1).acos()
    straight = omega.sin() < 1e-6
    sine = torch.where(straight, 1.0, omega.sin())
    of_a = torch.where(straight, 1 - share, ((1 - share) * omega).sin() / sine)
    of_b = torch.where(straight, share, (share * omega).sin() / sine)
    blend = of_a[:, None] * a + of_b[:, None] * b
    return blend.reshape(start.shape).to(start)
