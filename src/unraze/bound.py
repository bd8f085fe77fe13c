r"""The variational bound of a Gaussian chain, term by term, in nats an image.

    -ln p(x_0) ≤ KL(q(x_T|x_0) ‖ N(0, 1))                                  prior
               + Σ_{t=2}^T E KL(q(x_{t-1}|x_t,x_0) ‖ N(μ(x_t, x̂_0), σ_t²))   steps
               - E ln p(x_0|x_1)                                           decoder

Ho et al. 2020 (arXiv:2006.11239), eq. 5; μ is the posterior's mean with x̂_0 for x_0, so that a step
costs, with ρ = ln(σ_t²/β̃_t²) and our amplitudes,

    ½ Σ [ρ + e^{-ρ} - 1 + (ᾱ_{t-1} β_t/(β̄_t β̄_{t-1}))² (x_0 - x̂_0)² e^{-ρ}]

The expectations are over x_t = ᾱ_t x_0 + β̄_t ε̄: each function takes one such x_t's x̂_0 and is
unbiased for its term. Any schedule will do, so the bound of a sampler that keeps few steps is that
of its sub-schedule; ᾱ_T = 0 too. A step's σ comes as ln σ², see `unraze.process.log_variance`.
"""

import math

import torch
from torch import Tensor

from unraze.process import check_steps, like
from unraze.schedule import Schedule

__all__ = ["bits", "continuous_decoder", "decoder", "prior", "step", "unit_step"]

HALF_BIN = 1 / 255
"""Half the distance of two grey levels in [-1, 1]."""


def prior(schedule: Schedule, x0: Tensor) -> Tensor:
    """KL(N(ᾱ_T x_0, β̄_T²) ‖ N(0, 1)) = ½ Σ [ᾱ_T² (x_0² - 1) - ln(1-ᾱ_T²)] (B,) float64.

    Exact, no noise is drawn; 0 where ᾱ_T = 0. x_0 is (B, …).
    """
    left = schedule.alpha_bar[-1] ** 2
    x = x0.double()
    return 0.5 * _summed(like(left, x) * (x.square() - 1) - like((-left).log1p(), x))


def step(
    schedule: Schedule, x0: Tensor, t: Tensor | int, x0_hat: Tensor, log_var: Tensor
) -> Tensor:
    """KL(q(x_{t-1}|x_t,x_0) ‖ N(μ(x_t, x̂_0), σ_t²)) (B,) float64, t from 2 to T.

    x_t itself cancels. x_0 and x̂_0 are (B, …), `log_var` is ln σ_t², broadcast to them. Raises
    `ValueError` for another step: that of t = 1 is a decoder's.
    """
    check_steps(schedule, t, first=2)
    x = x0.double()
    ratio = schedule.alpha_bar[t - 1] * schedule.beta[t]
    gain = ratio / (schedule.beta_bar[t] * schedule.beta_bar[t - 1])
    excess = log_var.double() - like(2 * schedule.beta_tilde[t].log(), x)
    return _summed(_divergence(x - x0_hat.double(), like(gain, x), excess))


def decoder(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-Σ ln P(x_0) (B,) float64 for bytes: N(mean, σ²) integrated over x_0 ± 1/255.

    The bins of the lowest and the highest grey level are open. x_0 (B, …) holds bytes as
    p/127.5 - 1; at t = 1 the mean is x̂_0. Source: Ho et al. 2020, eq. 13. Exact far into the tails,
    where peers cut the probability off at 1e-12.
    """
    x, sigma = x0.double(), (0.5 * log_var.double()).exp()
    distance = x - mean.double()
    below, above = (distance - HALF_BIN) / sigma, (distance + HALF_BIN) / sigma
    # Φ(b) - Φ(a) = Φ(-a) - Φ(-b): on the side of the nearer tail nothing cancels
    flip = distance > 0
    low, high = torch.where(flip, -above, below), torch.where(flip, -below, above)
    inside = _log_difference(low, high)
    at_least = torch.special.log_ndtr(-below)
    at_most = torch.special.log_ndtr(above)
    first, last = x < -1 + HALF_BIN, x > 1 - HALF_BIN
    return -_summed(torch.where(first, at_most, torch.where(last, at_least, inside)))


def continuous_decoder(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-Σ ln N(x_0; mean, σ²) (B,) float64, for data that are real numbers."""
    log_var = log_var.double()
    square = (x0.double() - mean.double()).square()
    return 0.5 * _summed(square * (-log_var).exp() + log_var + math.log(2 * math.pi))


def unit_step(schedule: Schedule, x0: Tensor, t: Tensor, x0_hat: Tensor, share: Tensor) -> Tensor:
    """The bound's term (B,) of the step that ends at training time t, for a learned share v.

    ln σ² = v ln β² + (1-v) ln β̃² (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15), as in
    `unraze.process.log_variance`. At whole t it is `step`, and `decoder` at t = 1. Between them the
    step begins at t - 1, but not before 1; one that ends at t ≤ 1 is the decoder of σ between β̄_t
    and β̄_t β̃_2/β_1. t (B,) in (0, T]; in x_0's dtype but for the decoder.
    """
    out = torch.empty(len(x0), dtype=torch.float64, device=x0.device)
    is_last = (t <= 1).to(x0.device)
    if bool((~is_last).any()):
        inner = t[t > 1].double()
        after, before = schedule.at(inner), schedule.at((inner - 1).clamp(min=1))
        log_ratio = 2 * (after[1].log() - before[1].log())  # ln β²/β̃², for β̃ = β β̄_{t-1}/β̄_t
        # ᾱ_{t-1} β_t = √(ᾱ_{t-1}² - ᾱ_t²)
        leg = ((before[0] - after[0]) * (before[0] + after[0])).sqrt()
        v = share[~is_last]
        gain = like(leg / (after[1] * before[1]), v)
        error = (x0 - x0_hat)[~is_last]
        out[~is_last] = _summed(_divergence(error, gain, v * like(log_ratio, v))).double()
    if bool(is_last.any()):
        end = t[t <= 1].double()
        v = share[is_last].double()
        upper = 2 * schedule.at(end)[1].log()
        lowest = _first_ratio(schedule)
        log_var = like(upper, v) + (1 - v) * lowest
        out[is_last] = decoder(x0[is_last], x0_hat[is_last], log_var)
    return out


def bits(nats: Tensor, values: int) -> Tensor:
    """Nats an image as bits a dimension, an image being of so many values."""
    return nats / (values * math.log(2))


def _divergence(error: Tensor, gain: Tensor, excess: Tensor) -> Tensor:
    """KL of two normal laws whose means differ by gain · error · β̃, where ρ = ln(σ²/β̃²)."""
    return 0.5 * (excess + (-excess).expm1() + (gain * error).square() * (-excess).exp())


def _log_difference(low: Tensor, high: Tensor) -> Tensor:
    """ln(Φ(high) - Φ(low)) for low < high, low + high ≤ 0."""
    top = torch.special.log_ndtr(high)
    fall = torch.special.log_ndtr(low) - top
    # ln(1 - e^fall) two ways: the first keeps its digits near fall = 0, the second far below it
    near = fall > -math.log(2)
    shallow = (-torch.where(near, fall, -1.0).expm1()).log()
    deep = (-torch.where(near, -1.0, fall).exp()).log1p()
    nats: Tensor = top + torch.where(near, shallow, deep)
    return nats


def _first_ratio(schedule: Schedule) -> float:
    """ln(β̃_2²/β_1²), what v ranges over where β̃_1 = 0; 0 for a schedule of one step."""
    if schedule.steps < 2:
        return 0.0
    return float(2 * (schedule.beta_tilde[2].log() - schedule.beta[1].log()))


def _summed(values: Tensor) -> Tensor:
    summed: Tensor = values.flatten(1).sum(1)
    return summed
