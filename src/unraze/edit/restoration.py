r"""Restoration: what was the picture, given y = A(x_0) + σ n? No training, no other network.

    E[x_0 | x_t, y] ≈ x̂_0 + C Aᵀ (σ² 1 + A C Aᵀ)⁻¹ (y - A x̂_0),   C ≈ Cov(x_0 | x_t)

is exact where x_0 given x_t is Gaussian. The methods differ in C, and in what of the gradient they
keep; each takes a denoiser and returns one, so that every sampler draws from the posterior. By
Tweedie's formula of second order C = (β̄²/ᾱ) J, J = ∂x̂_0/∂x_t (`mmps`); where C is taken for a
multiple of 1, J can stay outside (`pigdm`) or be left out (`diffpir`). `dps` follows the gradient
of ‖y - A x̂_0‖ alone.

Where ᾱ_T = 0, x_T says nothing of x_0, J is 0 and β̄²/ᾱ infinite: there they take C for the variance
of a pixel, as `variance` says it, times 1; ΠGDM's published weight is 0 there.

A is linearised at x̂_0 where it is not linear. The equations are solved by conjugate gradients, each
image its own. Clipping belongs outside these wrappers, for where x̂_0 is clipped J is 0. But what
`dps` and ΠGDM as published give moves the step as far as they say, is no estimate, and is not to be
clipped: `held` clips what they begin from.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from unraze.denoiser import Denoiser, Prediction, from_x0
from unraze.edit.operators import Observed
from unraze.edit.solve import conjugate_gradients
from unraze.process import like
from unraze.schedule import Schedule

__all__ = ["diffpir", "dps", "held", "mmps", "pigdm"]

Linear = Callable[[Tensor], Tensor]


def mmps(
    denoise: Denoiser,
    schedule: Schedule,
    seen: Observed,
    *,
    iterations: int = 3,
    variance: float = 1.0,
) -> Denoiser:
    """Moment matching: C = (β̄²/ᾱ) J, applied without ever being written down.

    Each of the `iterations` of the solver costs one pass back through the network. Exact for
    Gaussian data, with as many iterations as y has values. Source: Rozet et al. 2024,
    arXiv:2405.13712, eq. 16 and algorithm 3; the covariance: Boys et al. 2023, arXiv:2310.06721.
    """

    def restored(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        scale = _tweedie(schedule, t)
        if scale is None:
            return _blind(denoise, schedule, seen, x_t, t, previous, variance)
        prior, back = _with_jacobian(denoise, x_t, t, previous)
        gain = like(scale, x_t)
        pull = _pull(seen, prior.x0, lambda v: gain * back(v), iterations)
        return _corrected(schedule, prior, x_t, t, gain * back(pull))

    return restored


def pigdm(
    denoise: Denoiser,
    schedule: Schedule,
    seen: Observed,
    *,
    variance: float = 1.0,
    iterations: int = 50,
    chain: Schedule | None = None,
) -> Denoiser:
    """ΠGDM: x̂_0 + (β̄²/ᾱ) Jᵀ Aᵀ (σ² 1 + r² A Aᵀ)⁻¹ (y - A x̂_0),   r² = s β̄²/(β̄² + s ᾱ²).

    r² is what is left of a pixel's variance s once x_t is known; one pass back through the network.
    That is the gradient as it follows from eqs. 4 and 7 to 9; the published algorithm 1 gives it
    another weight, less of it early and more of it late. With `chain`, the schedule that the
    sampler walks, it is that one: x̂_0 moves by so much that the mean of the ancestral step moves by
    ᾱ_s ᾱ_t r² Jᵀ Aᵀ (σ² 1 + r² A Aᵀ)⁻¹ (y - A x̂_0), which restored real images better
    (bench/edit.py), and follows from nothing. Source: Song et al. 2023, "Pseudoinverse-guided
    diffusion models for inverse problems"; their r_t² for s = 1.
    """

    def restored(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        scale = _tweedie(schedule, t)
        if scale is None:
            if chain is not None:
                return denoise(x_t, t, previous=previous)
            return _blind(denoise, schedule, seen, x_t, t, previous, variance)
        prior, back = _with_jacobian(denoise, x_t, t, previous)
        left = _left(schedule, t, variance)
        pull = _pull(seen, prior.x0, lambda v: like(left, x_t) * v, iterations)
        if chain is not None:
            _, weight = _ancestral(chain, t)
            scale = schedule.at(t)[0] * left / weight
        return _corrected(schedule, prior, x_t, t, like(scale, x_t) * back(pull))

    return restored


def diffpir(
    denoise: Denoiser,
    schedule: Schedule,
    seen: Observed,
    *,
    strength: float = 1.0,
    variance: float = 1.0,
    iterations: int = 50,
) -> Denoiser:
    """argmin_x ‖y - A x‖²/σ² + ‖x - x̂_0‖²/(λ r²): C = λ r² 1, and nothing is differentiated.

    r² as in `pigdm`, λ is `strength`; no pass back, so a call costs as much as without it. For
    σ = 0 it is the picture nearest to x̂_0 with A x = y (DDNM; Wang et al. 2022, arXiv:2212.00490),
    whatever λ. Source: Zhu et al. 2023, arXiv:2305.08995, eq. 13; λ is the inverse of theirs,
    and their r is β̄/ᾱ, while ours leaves no more variance than there is.
    """

    def restored(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        prior = denoise(x_t, t, previous=previous)
        left = like(strength * _left(schedule, t, variance), x_t)
        pull = _pull(seen, prior.x0, lambda v: left * v, iterations)
        return _corrected(schedule, prior, x_t, t, left * pull)

    return restored


def dps(denoise: Denoiser, chain: Schedule, seen: Observed, *, step: float = 1.0) -> Denoiser:
    """DPS: the sampler's x_s is moved by -ζ ∇_{x_t} ‖y - A x̂_0(x_t)‖, ζ = `step`.

    `chain` is the schedule that the sampler walks: x̂_0 is moved by so much that the mean of its
    ancestral step, in which it has the weight ᾱ_s β_t²/β̄_t², moves as the paper says, and any other
    step alike. One pass back through the network. It knows of no σ, and its spread is what ζ makes
    it. The norm is each image's own. Source: Chung et al. 2022, arXiv:2209.14687, algorithm 1.
    """

    def restored(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        prior, back = _with_jacobian(denoise, x_t, t, previous)
        _, adjoint, residual = _linearised(seen, prior.x0)
        size = (
            residual.reshape(len(residual), -1).norm(dim=1).clamp(min=torch.finfo(x_t.dtype).tiny)
        )
        alpha_bar_s, weight = _ancestral(chain, t)
        scale = step / (alpha_bar_s * weight)
        moved = back(adjoint(residual / like(size, residual))) * like(scale, x_t)
        return _corrected(chain, prior, x_t, t, moved)

    return restored


def held(denoise: Denoiser, bound: Callable[[Denoiser], Denoiser]) -> Denoiser:
    """x̂_0 in the bounds of `bound`, `unraze.denoiser.clipped` say, with the derivative that it has
    without them, so that J is not 0 there."""

    def bounded(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        free = denoise(x_t, t, previous=previous)
        found = bound(lambda *_, **__: free)(x_t, t)
        return replace(found, x0=free.x0 + (found.x0 - free.x0).detach())

    return bounded


def _tweedie(schedule: Schedule, t: Tensor) -> Tensor | None:
    """β̄²/ᾱ at t, or None where ᾱ = 0."""
    alpha_bar, beta_bar = schedule.at(t)
    return None if bool((alpha_bar == 0).any()) else beta_bar**2 / alpha_bar


def _ancestral(chain: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """ᾱ_s and (β_t/β̄_t)² of the chain's step that begins at t: together x̂_0's weight in the mean of
    the ancestral step."""
    k = int(torch.searchsorted(chain.times, t.detach().double().reshape(-1)[0].cpu()))
    return chain.alpha_bar[k - 1], (chain.beta[k] / chain.beta_bar[k]) ** 2


def _left(schedule: Schedule, t: Tensor, variance: float) -> Tensor:
    """r² = s β̄²/(β̄² + s ᾱ²): of the variance s of a pixel, what is left where x_t is known."""
    alpha_bar, beta_bar = schedule.at(t)
    return variance * beta_bar**2 / (beta_bar**2 + variance * alpha_bar**2)


def _with_jacobian(
    denoise: Denoiser, x_t: Tensor, t: Tensor, previous: Tensor | None
) -> tuple[Prediction, Linear]:
    """The prediction, and v -> Jᵀ v."""
    with torch.enable_grad():
        start = x_t.detach().requires_grad_()
        found = denoise(start, t, previous=previous)
        x_0 = found.x0

    def back(v: Tensor) -> Tensor:
        return torch.autograd.grad(x_0, start, v, retain_graph=True)[0]

    share = None if found.share is None else found.share.detach()
    return Prediction(x_0.detach(), found.eps.detach(), share), back


def _linearised(seen: Observed, x_0: Tensor) -> tuple[Linear, Linear, Tensor]:
    """v -> A v and w -> Aᵀ w, where A is not linear its derivative at x̂_0, and y - A x̂_0.

    Aᵀ w is linear in w, and its derivative by w, again backwards, is A.
    """
    with torch.enable_grad():
        there = x_0.detach().requires_grad_()
        y_hat = seen.operator(there)
        any_w = torch.zeros_like(y_hat).requires_grad_()
        (turned,) = torch.autograd.grad(y_hat, there, any_w, create_graph=True)

    def apply(v: Tensor) -> Tensor:
        return torch.autograd.grad(turned, any_w, v, retain_graph=True)[0]

    def adjoint(w: Tensor) -> Tensor:
        return torch.autograd.grad(y_hat, there, w, retain_graph=True)[0]

    return apply, adjoint, (seen.y - y_hat).detach()


def _pull(seen: Observed, x_0: Tensor, covariance: Linear, iterations: int) -> Tensor:
    """Aᵀ (σ² 1 + A C Aᵀ)⁻¹ (y - A x̂_0), `covariance` being v -> C v."""
    apply, adjoint, residual = _linearised(seen, x_0)
    solved = conjugate_gradients(
        lambda v: seen.sigma**2 * v + apply(covariance(adjoint(v))), residual, iterations
    )
    return adjoint(solved)


def _blind(
    denoise: Denoiser,
    schedule: Schedule,
    seen: Observed,
    x_t: Tensor,
    t: Tensor,
    previous: Tensor | None,
    variance: float,
) -> Prediction:
    """Where x_t says nothing of x_0: y alone corrects it."""
    prior = denoise(x_t, t, previous=previous)
    pull = _pull(seen, prior.x0, lambda v: variance * v, 50)
    return _corrected(schedule, prior, x_t, t, variance * pull)


def _corrected(
    schedule: Schedule, prior: Prediction, x_t: Tensor, t: Tensor, by: Tensor
) -> Prediction:
    """x̂_0 moved, and ε̄ with it, so that x_t = ᾱ_t x̂_0 + β̄_t ε̄ still holds."""
    moved = from_x0(schedule, x_t, t, prior.x0 + by)
    return Prediction(moved.x0, moved.eps, prior.share)
