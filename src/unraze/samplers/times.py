"""Which steps of the training schedule a sampler keeps."""

import torch

from unraze.errors import InputError
from unraze.schedule import Schedule

__all__ = ["even_angles", "even_times"]


def even_times(schedule: Schedule, steps: int, *, whole: bool = True) -> Schedule:
    """`steps` steps, even in t from 0 to T: t_i = i T/steps, rounded to whole steps where `whole`.

    Both ends are kept, so sampling starts where the noise is pure ("trailing" in Lin et al. 2023,
    arXiv:2305.08891, table 2). Raises `InputError` for fewer than 1 or more than T.
    """
    _check(schedule, steps)
    times = torch.arange(steps + 1, dtype=torch.float64) * (float(schedule.times[-1]) / steps)
    times[-1] = schedule.times[-1]
    return schedule.keep(times.round() if whole else times)


def even_angles(schedule: Schedule, steps: int) -> Schedule:
    """`steps` steps, even in θ = arctan(β̄/ᾱ) from 0 to θ_T; times between the integers.

    Raises `InputError` for fewer than 1 or more than T.
    """
    _check(schedule, steps)
    theta = torch.arange(steps + 1, dtype=torch.float64) / steps * float(schedule.theta[-1])
    times = schedule.time_at(theta)
    times[0], times[-1] = 0.0, schedule.times[-1]
    return schedule.keep(times)


def _check(schedule: Schedule, steps: int) -> None:
    if not 1 <= steps <= schedule.steps:
        raise InputError(
            f"steps = {steps}: the schedule has {schedule.steps} steps; "
            f"give a number from 1 to {schedule.steps}"
        )
