"""Restart: Xu et al. 2023, "Restart sampling for improving generative processes",
arXiv:2306.14878."""

from collections.abc import Iterator

from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.samplers.heun import heun_step
from unraze.samplers.solver import check_order, first_order
from unraze.samplers.step import Noise, Step
from unraze.schedule import Schedule

__all__ = ["restart", "restart_ends"]

INTERVAL = (0.05, 0.2)
REPEATS = 2


def restart(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise,
    interval: tuple[float, float] = INTERVAL,
    repeats: int = REPEATS,
    order: int = 2,
) -> Iterator[Step]:
    """Down to t_min; then K times up, x_max = α x_min + √(1-α²) z, α = ᾱ_max/ᾱ_min, and down again.

    Going up is the forward process, so its noise washes out errors of the way down; the steps down
    are those of DDIM (`order` 1, one call each) or `heun` (2). `interval` are t_min and t_max as
    parts of T: the kept steps nearest to them, at least one step apart (`restart_ends`). The k-th
    return asks for noise(T+k). Source: section 3.1, algorithm 1 (there σ = β̄/ᾱ). Raises
    `ValueError` for what will not do, and for a schedule of fewer than 2 steps.
    """
    check_order(order, 2)
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}: give at least 1")
    low, high = restart_ends(schedule, interval)
    top = schedule.steps
    legs = [range(top, low, -1), *[range(high, low, -1)] * repeats, range(low, 0, -1)]
    previous = None
    for number, leg in enumerate(legs):
        if 1 <= number <= repeats:
            left = float(schedule.alpha_bar[high] / schedule.alpha_bar[low])
            x = left * x + ((1 - left) * (1 + left)) ** 0.5 * noise(top + number)
        for t in leg:
            if order == 2:
                x, prediction = heun_step(denoise, x, schedule, t, previous)
            else:
                prediction = denoise(x, schedule.times[t], previous=previous)
                x = first_order(schedule, t, prediction)
            previous = prediction.x0
            yield Step(float(schedule.times[t - 1]), x, prediction)


def restart_ends(schedule: Schedule, interval: tuple[float, float]) -> tuple[int, int]:
    """The kept steps nearest to these parts of T, from 1 on and at least one step apart.

    Raises `ValueError` where the parts do not rise within [0, 1], or there are fewer than 2 steps.
    """
    if not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"interval = {interval}: two parts of T that rise within [0, 1]")
    if schedule.steps < 2:
        raise ValueError("restart: a schedule of 1 step has no interval; give 2 or more")
    share = schedule.times / schedule.times[-1]
    low, high = (int((share - part).abs().argmin()) for part in interval)
    low = min(max(low, 1), schedule.steps - 1)
    return low, max(high, low + 1)
