"""Inpainting: part of the picture is known, the rest is drawn to go with it."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from unraze.denoiser import Denoiser, Prediction, from_x0
from unraze.process import destroy, destroy_step, like, posterior
from unraze.samplers import Noise, Step
from unraze.schedule import Schedule

__all__ = ["repaint", "repaint_calls", "repaint_steps", "replaced"]


def replaced(denoise: Denoiser, schedule: Schedule, known: Tensor, mask: Tensor) -> Denoiser:
    """x̂_0 with what is known put in its place; ε̄ follows, x_t = ᾱ_t x̂_0 + β̄_t ε̄.

    `known` (B, C, H, W), `mask` bool, true where it is known, of known's shape or spread over it.
    The simplest way, and the least harmonious: what is drawn does not make known pixels more
    likely. Samplers end with the known pixels as they are given, where their last step is x̂_0.
    Source: Song et al. 2021, arXiv:2011.13456, appendix I.2, in the estimate in place of the state.
    """

    def denoised(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        prior = denoise(x_t, t, previous=previous)
        moved = from_x0(schedule, x_t, t, torch.where(mask, known, prior.x0))
        return Prediction(moved.x0, moved.eps, prior.share)

    return denoised


def repaint(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    known: Tensor,
    mask: Tensor,
    noise: Noise,
    repeats: int = 10,
    jump: int = 1,
) -> Iterator[Step]:
    """RePaint: each step made, what is known destroyed to there and put in, and gone up again.

    unknown: x_s = μ(x_t) + β̃_t z;  known: x_s = ᾱ_s y + β̄_s z;  then `jump` steps are destroyed
    again, x_t = α_t x_s + β_t z, and made anew, `repeats` times in all, so that both sides come to
    agree. Walks from x at the top of the schedule; the last step is made once, all others `repeats`
    times (`repaint_calls`), each one call and one `Step`. `known` and `mask` as in `replaced`; the
    known pixels are the given ones to the bit. `noise` is asked for the numbers 1, 2, 3, … . Raises
    `ValueError` for fewer than one repeat or jump. Source: Lugmayr et al. 2022, arXiv:2201.09865,
    algorithm 1 and appendix B (their r is `repeats`, their j `jump`).
    """
    if repeats < 1 or jump < 1:
        raise ValueError(f"repeats = {repeats}, jump = {jump}: give at least 1")
    numbers, previous = itertools.count(1), None
    for t, is_down in _way(schedule.steps, repeats, jump):
        if not is_down:
            x = destroy_step(schedule, x, t, noise(next(numbers)))
            continue
        prediction = denoise(x, schedule.times[t], previous=previous)
        x, _ = posterior(schedule, x, t, prediction.x0)
        seen = known
        if t > 1:
            x = x + like(schedule.beta_tilde[t], x) * noise(next(numbers))
            seen = destroy(schedule, known, t - 1, noise(next(numbers)))
        x = torch.where(mask, seen, x)
        previous = prediction.x0
        yield Step(float(schedule.times[t - 1]), x, prediction)


def repaint_calls(steps: int, *, repeats: int = 10, jump: int = 1) -> int:
    """The calls of `repaint`: repeats·(T - 1) + 1."""
    return sum(is_down for _, is_down in _way(steps, repeats, jump))


def repaint_steps(calls: int, *, repeats: int) -> int:
    """The most steps that `repaint` makes in so many calls, at least 1."""
    return (calls - 1) // repeats + 1


def _way(steps: int, repeats: int, jump: int) -> Iterator[tuple[int, bool]]:
    """(t, True) for a step from t down to t-1, (t, False) for one from t-1 up to t."""
    for top in range(steps, 1, -jump):
        bottom = max(1, top - jump)
        down = [(t, True) for t in range(top, bottom, -1)]
        up = [(t, False) for t in range(bottom + 1, top + 1)]
        yield from down
        for _ in range(repeats - 1):
            yield from up
            yield from down
    yield 1, True
