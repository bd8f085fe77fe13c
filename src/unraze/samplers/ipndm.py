"""iPNDM: PNDM (Liu et al. 2022, arXiv:2202.09778) without its Runge-Kutta start, as improved in
Zhang & Chen 2022, arXiv:2204.13902, appendix H.1."""

import math
from collections.abc import Iterator

from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.samplers.solver import check_order, combined, first_order, usable
from unraze.samplers.step import Step
from unraze.schedule import Schedule

__all__ = ["ipndm"]

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""What Adams and Bashforth's methods of order 1 to 4 take of the last slopes, for even steps."""


def ipndm(denoise: Denoiser, x: Tensor, schedule: Schedule, *, order: int = 4) -> Iterator[Step]:
    """x_s = (ᾱ_s/ᾱ_t) x_t + (β̄_s - ᾱ_s β̄_t/ᾱ_t) ε',   ε' = Σ c_j ε̂_j,   s = t-1.

    DDIM's step with a mean of the last `order` noises, c those of Adams and Bashforth; the first
    steps take those there are. As ε' is right for even weights, not for those of the step, the
    method has order 2 whatever `order` is (PNDM's theorem 3.3). Computed as DDIM's step plus
    (β̄_s - ᾱ_s β̄_t/ᾱ_t)(ε' - ε̂), which the first step, where ᾱ_T may be 0, has no need of. Raises
    `ValueError` for an order that is not from 1 to 4.
    """
    check_order(order, 4)
    known: list[Tensor] = []
    previous = None
    for t in range(schedule.steps, 0, -1):
        prediction = denoise(x, schedule.times[t], previous=previous)
        known = [prediction.eps, *known[: order - 1]]
        used = usable(order, len(known))
        x = first_order(schedule, t, prediction)
        if used > 1:
            s_t, s_s = (math.tan(float(schedule.theta[n])) for n in (t, t - 1))
            share = float(schedule.alpha_bar[t - 1]) * (s_s - s_t)
            x = x + share * (combined(ADAMS_BASHFORTH[used - 1], known) - prediction.eps)
        previous = prediction.x0
        yield Step(float(schedule.times[t - 1]), x, prediction)
