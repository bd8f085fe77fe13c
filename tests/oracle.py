"""Exact denoisers, and the exact law of what a sampler makes of them, in float64.

For x_t = ᾱ x_0 + β̄ ε̄ the best estimate of x_0 is E[x_0 | x_t]. It is known in closed form where
x_0 is Gaussian, or one of finitely many points; so is where a sampler takes Gaussian data.
Everything here is written from the text's formulas, not from the package's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unraze.denoiser import Denoiser, Prediction
from unraze.schedule import Schedule


def generic_covariance(seed: int, eigenvalues: Sequence[float]) -> Tensor:
    """A covariance (d, d) with these eigenvalues, its axes turned at random."""
    d = len(eigenvalues)
    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return axes @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ axes.T


def normals(seed: int, *shape: int) -> Tensor:
    """Standard normal float64 numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def probes(d: int, steps: int) -> tuple[Tensor, Callable[[int], Tensor]]:
    """x_T and z_1 … z_steps in which an affine chain shows all of itself, without sampling.

    One batch holds the origin, each unit vector as x_T, and each unit vector as each z_t.
    """
    rows = 1 + d * (1 + steps)
    x = torch.zeros(rows, d, dtype=torch.float64)
    x[1 : 1 + d] = torch.eye(d, dtype=torch.float64)

    def noise(t: int) -> Tensor:
        z = torch.zeros(rows, d, dtype=torch.float64)
        z[1 + d * t : 1 + d * (t + 1)] = torch.eye(d, dtype=torch.float64)
        return z

    return x, noise


def gaussian(schedule: Schedule, mean: Tensor, covariance: Tensor) -> Denoiser:
    """x_0 ~ N(m, C), m (d,), C (d, d): with K = (ᾱ² C + β̄² 1)⁻¹,

    E[x_0|x_t] = m + ᾱ C K (x_t - ᾱ m),   E[ε̄|x_t] = β̄ K (x_t - ᾱ m).
    """
    eigenvalues, axes = torch.linalg.eigh(covariance)

    def denoise(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        a, b = (v.reshape(-1, 1) for v in schedule.at(t))
        inner = ((x_t.flatten(1) - a * mean) @ axes) / (a**2 * eigenvalues + b**2)
        x0 = mean + a * ((inner * eigenvalues) @ axes.T)
        return Prediction(x0.reshape(x_t.shape), (b * (inner @ axes.T)).reshape(x_t.shape))

    return denoise


def finite_set(schedule: Schedule, points: Tensor, weights: Tensor | None = None) -> Denoiser:
    """x_0 is points[k] (K, …) with probability weights[k] (equal where absent):

    E[x_0|x_t] = Σ_k p_k points[k],   p = softmax(ln w_k - ‖x_t - ᾱ points[k]‖²/(2 β̄²)).
    """
    flat = points.flatten(1)
    log_weights = torch.zeros(len(flat), dtype=flat.dtype) if weights is None else weights.log()

    def denoise(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        a, b = (v.reshape(-1, 1) for v in schedule.at(t))
        x = x_t.flatten(1)
        # ‖x - ᾱp‖² less ‖x‖², which is the same for every k: no cancellation far from the points
        exponent = (a * (x @ flat.T) - a**2 * flat.square().sum(1) / 2) / b**2
        x0 = torch.softmax(log_weights + exponent, dim=1) @ flat
        return Prediction(x0.reshape(x_t.shape), ((x - a * x0) / b).reshape(x_t.shape))

    return denoise


def chain(
    schedule: Schedule,
    mean: Tensor,
    covariance: Tensor,
    *,
    sigma: Tensor | None = None,
    final_noise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of x_0 made by x_{t-1} = μ(x_t) + σ_t z from x_T ~ N(0, 1).

    With the exact ε_t = β_t K (x_t - ᾱ_t m), K = (ᾱ_t² C + β̄_t² 1)⁻¹, the text's
    μ = (x_t - β_t ε_t)/α_t is A x_t + b with A = (1 - β_t² K)/α_t and b = β_t² ᾱ_t K m/α_t, and so
    E ← A E + b, V ← A V Aᵀ + σ_t² 1. Where ᾱ_T = 0, x_T knows nothing: A = 0, b = ᾱ_{T-1} m.
    `sigma` (T+1,); greedy where absent. No noise in the last step unless `final_noise`.
    """
    one = torch.eye(len(mean), dtype=torch.float64)
    e, v = torch.zeros_like(mean), one
    a_bar = schedule.alpha_bar
    for t in range(schedule.steps, 0, -1):
        alpha = a_bar[t] / a_bar[t - 1]
        if alpha == 0:
            A, b = torch.zeros_like(one), a_bar[t - 1] * mean
        else:
            K = torch.linalg.inv(a_bar[t] ** 2 * covariance + (1 - a_bar[t] ** 2) * one)
            A = (one - (1 - alpha**2) * K) / alpha
            b = (1 - alpha**2) * a_bar[t] / alpha * (K @ mean)
        e, v = A @ e + b, A @ v @ A.T
        if sigma is not None and (t > 1 or final_noise):
            v = v + sigma[t] ** 2 * one
    return e, v


def flow(
    x: Tensor, mean: Tensor, covariance: Tensor, alpha_bar_from: float, alpha_bar_to: float
) -> Tensor:
    """The probability flow of Gaussian data takes x (B, d) at ᾱ_t to ᾱ_s by the monotone map

    x_s = ᾱ_s m + √(ᾱ_s² C + β̄_s²) √(ᾱ_t² C + β̄_t²)⁻¹ (x_t - ᾱ_t m), which keeps every marginal.
    """
    eigenvalues, axes = torch.linalg.eigh(covariance)
    before = (alpha_bar_from**2 * (eigenvalues - 1) + 1).sqrt()
    after = (alpha_bar_to**2 * (eigenvalues - 1) + 1).sqrt()
    return alpha_bar_to * mean + ((x - alpha_bar_from * mean) @ axes * (after / before)) @ axes.T


def assert_moments(samples: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Samples (N, d) of a Gaussian have this mean and covariance, to five standard errors."""
    n = len(samples)
    variances = covariance.diagonal()
    off = (samples.mean(0) - mean).abs()
    assert (off <= 5 * (variances / n).sqrt()).all(), f"mean off by {off.tolist()}"
    error = ((variances[:, None] * variances + covariance**2) / n).sqrt()
    off = (samples.T.cov() - covariance).abs()
    assert (off <= 5 * error).all(), f"covariance off by {(off / error).tolist()} standard errors"
