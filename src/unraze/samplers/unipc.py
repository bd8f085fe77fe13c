"""UniPC: Zhao et al. 2023, "UniPC: a unified predictor-corrector framework", arXiv:2302.04867."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.samplers.solver import check_order, combined, half_log_snr, usable
from unraze.samplers.step import Step
from unraze.schedule import Schedule

__all__ = ["unipc"]

Known = Sequence[tuple[int, Tensor]]
"""(step, x̂_0 there), newest first."""


def unipc(denoise: Denoiser, x: Tensor, schedule: Schedule, *, order: int = 3) -> Iterator[Step]:
    """x_s = (β̄_s/β̄_t) x_t + ᾱ_s (1-e^{-h}) (x̂_0 + Σ ρ_m (x̂_0,m - x̂_0)/r_m),   r_m = (λ_m - λ_t)/h.

    UniP predicts x_s from the last `order` predictions; UniC corrects it with that at the predicted
    x_s, which is also the next step's, so a step costs one call and has order `order` + 1. ρ solves
    Σ ρ_m r_m^{k-1} = k! z φ_{k+1}(z)/(e^z - 1) with z = -h (B2), and is ½ where it is one.
    Predicts x̂_0; λ = ln(ᾱ/β̄), h = λ_s - λ_t. The first steps and the last are of lower order; a
    prediction at λ = -∞ (ᾱ_T = 0) stands on no polynomial in λ and is left out of it. Source:
    algorithms 7 and 8. Raises `ValueError` for an order that is not 1, 2 or 3.
    """
    check_order(order, 3)
    known: list[tuple[int, Tensor]] = []
    used, before = 0, x
    for t in range(schedule.steps, 0, -1):
        prediction = denoise(x, schedule.times[t], previous=known[0][1] if known else None)
        if known:
            x = _step(schedule, before, known[:used], prediction.x0)
        known = [(t, prediction.x0), *known[: order - 1]]
        used, before = usable(order, len(known), t), x
        x = _step(schedule, before, known[:used])
        yield Step(float(schedule.times[t - 1]), x, prediction)


def _step(schedule: Schedule, x: Tensor, known: Known, there: Tensor | None = None) -> Tensor:
    """UniP from the newest known step t to t-1; UniC where the prediction there is given."""
    t, newest = known[0]
    start, end = half_log_snr(schedule, t), half_log_snr(schedule, t - 1)
    ratios, slopes = [], []
    for n, picture in known[1:]:
        at = half_log_snr(schedule, n)
        if at > -math.inf:
            ratios.append((at - start) / (end - start))
            slopes.append((picture - newest) / ratios[-1])
    if there is not None:
        ratios.append(1.0)
        slopes.append(there - newest)
    kept = float(schedule.beta_bar[t - 1] / schedule.beta_bar[t])
    taken = float(schedule.alpha_bar[t - 1]) - kept * float(schedule.alpha_bar[t])
    pictures = combined([1.0, *_shares(end - start, ratios)], [newest, *slopes])
    return kept * x + taken * pictures


def _shares(h: float, ratios: Sequence[float]) -> list[float]:
    """ρ of B2: Σ_m ρ_m r_m^{k-1} = k! (-h) φ_{k+1}(-h)/(e^{-h}-1), k = 1 …; ½ where it is one."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    whole = math.expm1(-h)
    right, phi = [], whole / -h - 1  # phi is (-h) φ_{k+1}(-h)
    for k in range(1, len(ratios) + 1):
        right.append(math.factorial(k) * phi / whole)
        phi = phi / -h - 1 / math.factorial(k + 1)
    powers = np.vander(np.array(ratios), increasing=True).T
    return [float(rho) for rho in np.linalg.solve(powers, np.array(right))]
