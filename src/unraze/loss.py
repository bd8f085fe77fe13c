"""What training minimises.

The text's two losses, for a network ε_θ that predicts the step noise ε_t:

    ‖ε_t - ε_θ(ᾱ_t x_0 + α_t β̄_{t-1} ε̄_{t-1} + β_t ε_t, t)‖²      x_0, ε̄_{t-1}, ε_t, t
    ‖ε - (β̄_t/β_t) ε_θ(ᾱ_t x_0 + β̄_t ε, t)‖²                      x_0, ε, t

and the general one, w(λ) ‖x_0 - x̂_0‖² with λ = 2 ln(ᾱ/β̄), of which plain ε̄, x_0 and v losses,
min-SNR-γ, P2 and EDM are cases (Kingma & Gao 2023, arXiv:2303.00848). Every function returns one
number an image.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import assert_never

from unraze.config import LossConfig
from unraze.denoiser import Prediction, emission
from unraze.process import check_steps, destroy, like
from unraze.schedule import Schedule

__all__ = [
    "WEIGHTINGS",
    "StepNoise",
    "draw_times",
    "four_variable",
    "reduced",
    "stratify",
    "weighted",
    "weighting",
]

StepNoise = Callable[[Tensor, Tensor], Tensor]
"""ε_θ(x_t, t): the network as the text has it, an estimate of the step noise ε_t."""


def four_variable(
    eps_theta: StepNoise,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps_bar_before: Tensor,
    eps_step: Tensor,
) -> Tensor:
    """‖ε_t - ε_θ(ᾱ_t x_0 + α_t β̄_{t-1} ε̄_{t-1} + β_t ε_t, t)‖² (B,), summed over the values.

    `eps_bar_before` is ε̄_{t-1}, the noise in x_{t-1}; `eps_step` is ε_t, what step t adds; both
    standard normal of x_0's shape; t (B,) int64 from 1 to T. Source: Su 2022, "Reconstruct".
    """
    check_steps(schedule, t)
    x_t = (
        like(schedule.alpha_bar[t], x0) * x0
        + like(schedule.alpha[t] * schedule.beta_bar[t - 1], x0) * eps_bar_before
        + like(schedule.beta[t], x0) * eps_step
    )
    return (eps_step - eps_theta(x_t, t)).square().flatten(1).sum(1)


def reduced(eps_theta: StepNoise, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """‖ε - (β̄_t/β_t) ε_θ(ᾱ_t x_0 + β̄_t ε, t)‖² (B,), summed over the values.

    ε is standard normal of x_0's shape; t (B,) int64 from 1 to T. With
    β̄_t ε = α_t β̄_{t-1} ε̄_{t-1} + β_t ε_t and the direction ω orthogonal to it averaged out,
    E[four_variable] = (β_t/β̄_t)² E[reduced] + (α_t β̄_{t-1}/β̄_t)² d at fixed x_0, t and θ.
    Source: Su 2022, "Lowering the variance".
    """
    check_steps(schedule, t)
    x_t = destroy(schedule, x0, t, eps)
    ratio = like(schedule.beta_bar[t] / schedule.beta[t], x0)
    return (eps - ratio * eps_theta(x_t, t)).square().flatten(1).sum(1)


def weighted(
    prediction: Prediction,
    x0: Tensor,
    eps: Tensor,
    schedule: Schedule,
    t: Tensor,
    config: LossConfig,
    *,
    sigma_data: float = 1.0,
) -> Tensor:
    """w(λ_t) ‖x_0 - x̂_0‖²/d (B,), d the number of values; t (B,) training times in (0, T].

    The distance D (L2, L1, Huber) is taken in the space of `config.target` (absent: that of the
    parametrisation), where ‖target - its estimate‖² = s(λ) ‖x_0 - x̂_0‖². Returned is (w/s) times
    the mean of D(target - its estimate), which for L2 is w ‖x_0 - x̂_0‖²/d whatever the target;
    without a weighting w = s, the plain distance.
    """
    target = config.target or config.parametrisation
    error = emission(
        target, prediction.x0 - x0, prediction.eps - eps, schedule, t, sigma_data=sigma_data
    )
    per_image = _distance(error, config).flatten(1).mean(1)
    if config.weighting is None:
        return per_image
    alpha_bar, beta_bar = schedule.at(t)
    log_snr = 2 * (alpha_bar.log() - beta_bar.log())
    w = weighting(config.weighting, log_snr, config, sigma_data=sigma_data)
    s = _target_scale(target, log_snr, schedule, t, config, sigma_data)
    return like(w / s, per_image) * per_image


def weighting(name: str, log_snr: Tensor, config: LossConfig, *, sigma_data: float = 1.0) -> Tensor:
    """w(λ), what multiplies ‖x_0 - x̂_0‖²: the entry `name` of `WEIGHTINGS`; λ is kept to ±40."""
    return WEIGHTINGS[name](log_snr.clamp(-40.0, 40.0).exp(), config, sigma_data)


WEIGHTINGS: dict[str, Callable[[Tensor, LossConfig, float], Tensor]] = {
    # ‖ε̄ - ε̂‖² = (ᾱ/β̄)² ‖x_0 - x̂_0‖²: Ho et al. 2020, eq. 14
    "eps": lambda snr, config, sigma_data: snr,
    "x0": lambda snr, config, sigma_data: torch.ones_like(snr),
    # ‖v - v̂‖² = ‖x_0 - x̂_0‖²/β̄²: Salimans & Ho 2022, table 1 ("SNR+1")
    "v": lambda snr, config, sigma_data: snr + 1,
    # Hang et al. 2023, arXiv:2303.09556, section 3.4
    "min-snr": lambda snr, config, sigma_data: snr.clamp(max=config.min_snr_gamma),
    # Choi et al. 2022, arXiv:2204.00227, eq. 8, there on top of the ε̄ loss
    "p2": lambda snr, config, sigma_data: snr / (config.p2_k + snr) ** config.p2_gamma,
    # (σ² + σ_d²)/(σ σ_d)², σ = β̄/ᾱ: Karras et al. 2022, table 1
    "edm": lambda snr, config, sigma_data: snr + 1 / sigma_data**2,
}


def draw_times(u: Tensor, schedule: Schedule, config: LossConfig) -> Tensor:
    """Training times (B,) float64 in (0, T] for uniform numbers u (B,) in [0, 1).

    uniform       t = T (1-u)
    logit-normal  θ = (π/2) logistic(m + s Φ⁻¹(u))           Esser et al. 2024, arXiv:2403.03206
    log-normal    θ = arctan σ, ln σ = m + s Φ⁻¹(u)          Karras et al. 2022, table 1
    with θ = arctan(β̄/ᾱ), m and s `config.times_mean` and `times_std`. Where `config.continuous` is
    false, times are rounded up to whole steps, so that uniform gives each of 1 … T equal weight.
    """
    z = torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9))
    match config.times:
        case "uniform":
            t = schedule.times[-1] * (1 - u)
        case "logit-normal":
            share = torch.sigmoid(config.times_mean + config.times_std * z)
            t = schedule.time_at(share * torch.pi / 2)
        case "log-normal":
            t = schedule.time_at((config.times_mean + config.times_std * z).exp().atan())
        case _:
            assert_never(config.times)
    return (
        t.clamp(min=1e-6 * float(schedule.times[-1]))
        if config.continuous
        else t.ceil().clamp(min=1)
    )


def stratify(u: Tensor, order: Tensor) -> Tensor:
    """One number from each B-th part of [0, 1), in the given order (a permutation of 0 … B-1).

    Each is still uniform on its own; their mean has variance of order 1/B³ in place of 1/B.
    """
    return (order + u) / u.numel()


def _target_scale(
    target: str,
    log_snr: Tensor,
    schedule: Schedule,
    t: Tensor,
    config: LossConfig,
    sigma_data: float,
) -> Tensor:
    """s(λ) with ‖target - estimate‖² = s ‖x_0 - x̂_0‖²: what the weighting of that name is."""
    if target == "eps_step":
        eps = weighting("eps", log_snr, config, sigma_data=sigma_data)
        return eps * schedule.step_ratio(t) ** 2
    return weighting(target, log_snr, config, sigma_data=sigma_data)


def _distance(error: Tensor, config: LossConfig) -> Tensor:
    match config.distance:
        case "l2":
            return error.square()
        case "l1":
            return error.abs()
        case "huber":
            return F.huber_loss(
                error, torch.zeros_like(error), reduction="none", delta=config.huber_delta
            )
        case _:
            assert_never(config.distance)
