"""Which steps of the training schedule a sampler keeps."""

import torch
from torch import Tensor

from unraze.errors import InputError
from unraze.schedule import Schedule

__all__ = ["even_angles", "even_log_snr", "even_times", "karras"]

SIGMA_RANGE = (0.002, 80.0)
"""σ = β̄/ᾱ of Karras et al. 2022 (arXiv:2206.00364, table 1): pictures with no noise that an eye or
a byte could tell, and noise with next to no picture."""


def even_times(schedule: Schedule, steps: int, *, whole: bool = True) -> Schedule:
    """`steps` steps, even in t from 0 to T: t_i = i T/steps, rounded to whole steps where `whole`.

    Both ends are kept, so sampling starts where the noise is pure ("trailing" in Lin et al. 2023,
    arXiv:2305.08891, table 2). Raises `InputError` for fewer than 1 or more than T.
    """
    _check(schedule, steps)
    times = torch.arange(steps + 1, dtype=torch.float64) * (float(schedule.times[-1]) / steps)
    times[-1] = schedule.times[-1]
    return schedule.keep(times.round() if whole else times)


def even_angles(schedule: Schedule, steps: int, *, whole: bool = False) -> Schedule:
    """`steps` steps, even in θ = arctan(β̄/ᾱ) from 0 to θ_T; times between the integers.

    Where `whole`, at the nearest whole times that rise strictly, as a network needs that was
    trained at these alone. Raises `InputError` for fewer than 1 or more than T.
    """
    _check(schedule, steps)
    theta = torch.arange(steps + 1, dtype=torch.float64) / steps * float(schedule.theta[-1])
    return _kept(schedule, theta, whole)


def even_log_snr(schedule: Schedule, steps: int, *, whole: bool = False) -> Schedule:
    """`steps` steps, even in ln(ᾱ/β̄) between σ = β̄/ᾱ of min(0.002, σ_T/2) and of min(σ_T, 80).

    The noisiest level is T itself, the last time 0, as in `karras`. The spacing of DPM-Solver (Lu
    et al. 2022, arXiv:2206.00927, section 3.4). `whole` and errors as in `even_angles`.
    """
    _check(schedule, steps)
    lowest, highest = _range(schedule).log().tolist()
    levels = torch.linspace(lowest, highest, steps, dtype=torch.float64).exp()
    return _from_levels(schedule, levels, whole)


def karras(schedule: Schedule, steps: int, *, rho: float = 7.0, whole: bool = False) -> Schedule:
    """`steps` steps, even in σ^{1/ρ} between σ = β̄/ᾱ of min(0.002, σ_T/2) and of min(σ_T, 80).

    The noisiest level is T itself, since that is where sampling begins, and the last time is 0.
    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5. `whole` and errors as in `even_angles`.
    """
    _check(schedule, steps)
    lowest, highest = (_range(schedule) ** (1 / rho)).tolist()
    levels = torch.linspace(lowest, highest, steps, dtype=torch.float64) ** rho
    return _from_levels(schedule, levels, whole)


def _range(schedule: Schedule) -> Tensor:
    lowest, highest = SIGMA_RANGE
    last = schedule.theta[-1].tan().clamp(0, highest)
    first = torch.tensor(lowest).double().minimum(last / 2)  # the latter of a chain that ends there
    return torch.stack([first, last])


def _from_levels(schedule: Schedule, levels: Tensor, whole: bool) -> Schedule:
    """From σ of the steps, rising: their times, with T for the last and 0 before the first."""
    zero = torch.zeros(1, dtype=torch.float64)
    theta = torch.cat([zero, levels.atan()])
    theta[-1] = schedule.theta[-1]
    return _kept(schedule, theta, whole)


def _kept(schedule: Schedule, theta: Tensor, whole: bool) -> Schedule:
    times = schedule.time_at(theta)
    times[0], times[-1] = 0.0, schedule.times[-1]
    return schedule.keep(_whole(times) if whole else times)


def _whole(times: Tensor) -> Tensor:
    """The nearest whole times that still rise strictly from the first to the last, both kept.

    t_i - i must not fall: a running maximum makes it so, and its bound by the end leaves room.
    """
    place = torch.arange(len(times), dtype=torch.float64)
    room = (times.round() - place).clamp(0.0, float(times[-1]) - float(place[-1]))
    return room.cummax(0).values + place


def _check(schedule: Schedule, steps: int) -> None:
    if not 1 <= steps <= schedule.steps:
        raise InputError(
            f"steps = {steps}: the schedule has {schedule.steps} steps; "
            f"give a number from 1 to {schedule.steps}"
        )
