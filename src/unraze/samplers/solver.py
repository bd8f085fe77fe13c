"""What the samplers of few calls share: orders, and integrals of polynomials.

Along the probability flow dx/dθ = v = ᾱ ε̂ - β̄ x̂_0, θ = arctan(β̄/ᾱ), both of these are exact:

    x_s/β̄_s = x_t/β̄_t + ∫ x̂_0 d(ᾱ/β̄)     in the picture: finite where ᾱ_T = 0
    x_s/ᾱ_s = x_t/ᾱ_t + ∫ ε̂ d(β̄/ᾱ)       in the noise: finite at t = 0

(Lu et al. 2022, arXiv:2211.01095, prop. 4.1; Zhang & Chen 2022, arXiv:2204.13902, eq. 13). A
multistep method puts a polynomial through the predictions it has in place of x̂_0 or ε̂. Schedules
are walked from step T down to 1; step t goes from time t to s = t-1.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unraze.denoiser import Prediction
from unraze.process import destroy_at
from unraze.samplers.step import Noise
from unraze.schedule import Schedule

__all__ = [
    "check_eta",
    "check_order",
    "combined",
    "first_order",
    "half_log_snr",
    "noise_weights",
    "picture_weights",
    "usable",
]

POINTS, SHARES = np.polynomial.legendre.leggauss(32)


def check_eta(eta: float, noise: Noise | None) -> None:
    """Raises `ValueError` for η outside [0, 1], or η > 0 without noise."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}: must lie in [0, 1]")
    if eta > 0 and noise is None:
        raise ValueError(f"eta = {eta} draws noise: give noise=")


def check_order(order: int, most: int) -> None:
    """Raises `ValueError` for an order that is not from 1 to `most`."""
    if order not in range(1, most + 1):
        raise ValueError(f"order = {order}: give 1 to {most}")


def usable(order: int, made: int, left: int | None = None) -> int:
    """The order of a step after `made` predictions, and with so many steps left where that bounds
    it: the last step of DPM-Solver++ and UniPC is of order 1, the one before it of order 2."""
    return min(order, made) if left is None else min(order, made, left)


def half_log_snr(schedule: Schedule, t: int) -> float:
    """λ_t = ln(ᾱ_t/β̄_t) as the papers have it, half of `Schedule.log_snr`; -∞ where ᾱ_T = 0."""
    return float(schedule.log_snr[t]) / 2


def first_order(schedule: Schedule, t: int, prediction: Prediction) -> Tensor:
    """x_s = ᾱ_s x̂_0 + β̄_s ε̂, the flow where the prediction stays as it is: DDIM's step."""
    a, b = schedule.alpha_bar[t - 1], schedule.beta_bar[t - 1]
    return destroy_at(a, b, prediction.x0, prediction.eps)


def combined(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Σ w_j x_j."""
    total = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = total + weight * tensor
    return total


def picture_weights(schedule: Schedule, t: int, nodes: Sequence[int]) -> list[float]:
    """w_j = β̄_s ∫ ℓ_j(ᾱ) d(ᾱ/β̄) from t to s = t-1, ℓ_j Lagrange's polynomials in ᾱ at the nodes.

    The nodes are steps of the schedule. x_s = (β̄_s/β̄_t) x_t + Σ w_j x̂_0,j; where s is 0, w_j is
    ℓ_j at ᾱ = 1.
    """
    at = [float(schedule.alpha_bar[n]) for n in nodes]
    kept = float(schedule.beta_bar[t - 1] / schedule.beta_bar[t])
    whole = float(schedule.alpha_bar[t - 1]) - kept * float(schedule.alpha_bar[t])  # Σ w_j
    if t == 1:
        where, share = np.ones(1), np.ones(1)
    else:
        angles, share = _quadrature(float(schedule.theta[t - 1]), float(schedule.theta[t]))
        where, share = np.cos(angles), float(schedule.beta_bar[t - 1]) * share
    others = [float(share @ _lagrange(at, j, where)) for j in range(1, len(at))]
    return [whole - sum(others), *others]


def noise_weights(schedule: Schedule, t: int, nodes: Sequence[int]) -> list[float]:
    """w_j = ᾱ_s ∫ ℓ_j(θ) d(β̄/ᾱ) from t to s = t-1, ℓ_j Lagrange's polynomials in θ at the nodes.

    For all nodes but the first, which is t itself: x_s = ᾱ_s x̂_0 + β̄_s ε̂ + Σ w_j (ε̂_j - ε̂), and so
    nothing is divided by ᾱ_t. Finite where ᾱ_t > 0.
    """
    at = [float(schedule.theta[n]) for n in nodes]
    start, end = float(schedule.theta[t]), float(schedule.theta[t - 1])
    # 1/cos² is 1/sin² of the angle that is left to π/2; the way down is the way back there
    angles, share = _quadrature(math.pi / 2 - start, math.pi / 2 - end)
    share = -float(schedule.alpha_bar[t - 1]) * share
    where = math.pi / 2 - angles
    return [float(share @ _lagrange(at, j, where)) for j in range(1, len(at))]


def _lagrange(at: Sequence[float], j: int, where: NDArray[np.float64]) -> NDArray[np.float64]:
    """ℓ_j, one at node j and zero at the others."""
    value = np.ones_like(where)
    for k, node in enumerate(at):
        if k != j:
            value = value * (where - node) / (at[j] - node)
    return value


def _quadrature(lower: float, upper: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """a_i and w_i with ∫ f(a)/sin² a da = Σ w_i f(a_i), 0 < lower < upper < π.

    Gauss and Legendre's in u = ln tan(a/2), da = sin a du: it leaves 1/sin a, which is smooth in u
    however near to 0 the lower end is.
    """
    low, high = math.log(math.tan(lower / 2)), math.log(math.tan(upper / 2))
    half = (high - low) / 2
    angles = 2 * np.arctan(np.exp((high + low) / 2 + half * POINTS))
    return angles, half * SHARES / np.sin(angles)
