"""Inversion: the noise that a picture would be made from."""

import math
from collections.abc import Iterator

from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.process import destroy, like, posterior
from unraze.samplers import Noise, Step
from unraze.schedule import Schedule

__all__ = ["edit_friendly", "invert"]


def invert(
    denoise: Denoiser, x0: Tensor, schedule: Schedule, *, iterations: int = 1
) -> Iterator[Step]:
    """DDIM backwards: from x_0 up to the x_T that DDIM with η = 0 takes to x_0.

    DDIM's step turns the state and its velocity v = ᾱ ε̂ - β̄ x̂_0 by δ = θ_t - θ_s,

        x_s = cos δ x_t - sin δ v(x_t, t),   so   x_t = (x_s + sin δ v(x_t, t))/cos δ,

    an equation for x_t that is iterated from x_t = x_s; once is the usual inversion (Song et al.
    2021, arXiv:2010.02502, section 4.3; Dhariwal & Nichol 2021, appendix F), oftener is exact in
    the limit (Pan et al. 2023, arXiv:2309.04907) for every step but the first: DDIM ends in x̂_0,
    which forgets what no picture has. What comes back differs by that, and falls with the steps.
    Yields the states at times 1 … T. T·iterations calls. Raises `ValueError` for fewer than one
    iteration, and where ᾱ_T = 0 is reached in one step.
    """
    if iterations < 1:
        raise ValueError(f"iterations = {iterations}: give at least 1")
    if schedule.steps == 1 and schedule.alpha_bar[-1] == 0:
        raise ValueError("one step to ᾱ_T = 0 leaves nothing of the picture to invert: give more")
    x, previous = x0, None
    for t in range(1, schedule.steps + 1):
        turn = float(schedule.theta[t] - schedule.theta[t - 1])
        start = x
        a, b = like(schedule.alpha_bar[t], x), like(schedule.beta_bar[t], x)
        for _ in range(iterations):
            prediction = denoise(x, schedule.times[t], previous=previous)
            velocity = a * prediction.eps - b * prediction.x0
            x = (start + math.sin(turn) * velocity) / math.cos(turn)
        previous = prediction.x0
        yield Step(float(schedule.times[t]), x, prediction)


def edit_friendly(
    denoise: Denoiser, x0: Tensor, schedule: Schedule, *, noise: Noise
) -> tuple[Tensor, Noise]:
    """x_T and z_1 … z_T with which random sampling, σ = β and noise in the last step too, ends in
    x_0, whatever the denoiser.

    The states are destroyed each by itself, x_t = ᾱ_t x_0 + β̄_t ε_t, and so

        z_t = (x_{t-1} - μ(x_t))/β_t

    holds more of the picture than a chain's own noise would: with another class or guidance it
    keeps the layout. `samplers.random(denoise, x_T, schedule, noise=z, final_noise=True)` walks it.
    Each z_t is found when it is asked for, by one call, and is not kept: from T down to 1, each
    once; another order raises `ValueError`. Source: Huberman-Spiegelglas et al. 2023,
    arXiv:2304.06140, algorithm 1.
    """
    top = destroy(schedule, x0, schedule.steps, noise(schedule.steps))

    def found() -> Iterator[tuple[int, Tensor]]:
        state, previous = top, None
        for t in range(schedule.steps, 0, -1):
            before = destroy(schedule, x0, t - 1, noise(t - 1)) if t > 1 else x0
            prediction = denoise(state, schedule.times[t], previous=previous)
            mean, _ = posterior(schedule, state, t, prediction.x0)
            z = (before - mean) / like(schedule.beta[t], x0)
            yield t, z
            previous = prediction.x0
            # as the sampler computes it, whose rounding would add up otherwise
            state = mean + like(schedule.beta[t], x0) * z

    coming = found()

    def own(t: int) -> Tensor:
        number, z = next(coming, (0, x0))
        if number != t:
            raise ValueError(f"z_{t} is asked for: each is found once, from T down to 1")
        return z

    return top, own
