"""DPM-Solver++: Lu et al. 2022, arXiv:2211.01095; multistep, and with noise.

Everything in λ = ln(ᾱ/β̄), h = λ_s - λ_t, s = t-1, with e^{-h} = ᾱ_t β̄_s/(β̄_t ᾱ_s): it is 0 at a
start where ᾱ_T = 0 and at the end where β̄_0 = 0, and nothing need be clipped.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.samplers.solver import check_eta, half_log_snr, usable
from unraze.samplers.step import Noise, Step
from unraze.schedule import Schedule

__all__ = ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde"]


def dpmpp_2m(denoise: Denoiser, x: Tensor, schedule: Schedule) -> Iterator[Step]:
    """x_s = (β̄_s/β̄_t) x_t + ᾱ_s (1-e^{-h}) (x̂_0 + (x̂_0 - x̂_0')/(2r)),   r = h'/h.

    x̂_0' and h' are those of the step before. The first and the last step are of order 1. Source:
    algorithm 2. `dpmpp_2m_sde` without noise.
    """
    return dpmpp_2m_sde(denoise, x, schedule, eta=0.0)


def dpmpp_2m_sde(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
) -> Iterator[Step]:
    """x_s = (β̄_s/β̄_t) e^{-ηh} x_t + ᾱ_s (1-e^{-(1+η)h}) D + β̄_s √(1-e^{-2ηh}) z.

    D = x̂_0 + (x̂_0 - x̂_0')/(2r) as in `dpmpp_2m`, which η = 0 is. Source: η = 1 is SDE-DPM-Solver++
    (2M), appendix B; other η by the same variation of constants, dx's noise times √η (k-diffusion's
    midpoint form). Raises `ValueError` for η outside [0, 1], or η > 0 without noise.
    """
    check_eta(eta, noise)
    known: list[Tensor] = []
    for t in range(schedule.steps, 0, -1):
        prediction = denoise(x, schedule.times[t], previous=known[0] if known else None)
        known = [prediction.x0, *known[:1]]
        kept, taken, spread = _amounts(schedule, t, eta)
        x = kept * x + taken * _midpoint(schedule, t, known)
        if noise is not None and spread > 0:
            x = x + spread * noise(t)
        yield Step(float(schedule.times[t - 1]), x, prediction)


def dpmpp_3m(denoise: Denoiser, x: Tensor, schedule: Schedule) -> Iterator[Step]:
    """As `dpmpp_2m` with the parabola in λ through three predictions: see `dpmpp_3m_sde`, η = 0."""
    return dpmpp_3m_sde(denoise, x, schedule, eta=0.0)


def dpmpp_3m_sde(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
) -> Iterator[Step]:
    """x_s = … + ᾱ_s (1-e^{-k}) x̂_0 + ᾱ_s φ_2 D_1 - ᾱ_s φ_3 D_2 + …,   k = (1+η) h.

    φ_2 = (e^{-k}-1)/k + 1, φ_3 = φ_2/k - 1/2; D_1 and D_2 are h x̂_0' and h² x̂_0'' at λ_t of the
    parabola in λ through the last three x̂_0. The terms left out, the first two steps and the last
    two are those of `dpmpp_2m_sde`. Source: the third-order expansion of Lu et al. 2022
    (arXiv:2206.00927, appendix B) with x̂_0 for ε̂, and k-diffusion's with noise. The authors' code,
    k-diffusion and diffusers take half of this D_2, h² x̂_0''/2, with which the order is 2, not 3.
    Raises `ValueError` for η outside [0, 1], or η > 0 without noise.
    """
    check_eta(eta, noise)
    known: list[Tensor] = []
    for t in range(schedule.steps, 0, -1):
        prediction = denoise(x, schedule.times[t], previous=known[0] if known else None)
        known = [prediction.x0, *known[:2]]
        kept, taken, spread = _amounts(schedule, t, eta)
        if usable(3, len(known), t) < 3:
            x = kept * x + taken * _midpoint(schedule, t, known)
        else:
            slope, bend = _parabola(schedule, t, known)
            k = (1 + eta) * (half_log_snr(schedule, t - 1) - half_log_snr(schedule, t))
            phi_2 = math.expm1(-k) / k + 1
            phi_3 = phi_2 / k - 0.5
            more = float(schedule.alpha_bar[t - 1]) * (phi_2 * slope - phi_3 * bend)
            x = kept * x + taken * known[0] + more
        if noise is not None and spread > 0:
            x = x + spread * noise(t)
        yield Step(float(schedule.times[t - 1]), x, prediction)


def _amounts(schedule: Schedule, t: int, eta: float) -> tuple[float, float, float]:
    """(β̄_s/β̄_t) e^{-ηh}, ᾱ_s (1-e^{-(1+η)h}) and β̄_s √(1-e^{-2ηh})."""
    a_t, b_t = float(schedule.alpha_bar[t]), float(schedule.beta_bar[t])
    a_s, b_s = float(schedule.alpha_bar[t - 1]), float(schedule.beta_bar[t - 1])
    shrink = a_t * b_s / (b_t * a_s)
    kept, taken = b_s / b_t * shrink**eta, a_s * (1 - shrink ** (1 + eta))
    return kept, taken, b_s * math.sqrt(1 - shrink ** (2 * eta))


def _midpoint(schedule: Schedule, t: int, known: list[Tensor]) -> Tensor:
    """x̂_0 + (x̂_0 - x̂_0')/(2r), x̂_0 as a line in λ has it half-way; x̂_0 itself in the first and last
    step, and where the step before began at λ = -∞ (r = ∞)."""
    if usable(2, len(known), t) < 2:
        return known[0]
    ratio = _ratios(schedule, t, 1)[0]
    return known[0] + (known[0] - known[1]) / (2 * ratio)


def _parabola(schedule: Schedule, t: int, known: list[Tensor]) -> tuple[Tensor, Tensor]:
    """h x̂_0' and h² x̂_0'' at λ_t of the parabola in λ through the last three predictions."""
    r, q = _ratios(schedule, t, 2)
    near, far = (known[0] - known[1]) / r, (known[1] - known[2]) / q
    return near + r / (r + q) * (near - far), 2 * (near - far) / (r + q)


def _ratios(schedule: Schedule, t: int, count: int) -> list[float]:
    """The widths in λ of the last steps, newest first, over that of this one."""
    at = [half_log_snr(schedule, n) for n in range(t - 1, t + count + 1)]
    return [(at[n] - at[n + 1]) / (at[0] - at[1]) for n in range(1, count + 1)]
