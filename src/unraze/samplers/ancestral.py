"""Greedy and random sampling, x_{t-1} = μ(x_t) + σ_t z: the two of the text.

μ(x_t) = (x_t - β_t ε_θ(x_t,t))/α_t is, for the step noise ε_θ = (β_t/β̄_t) ε̄ and
x̂_0 = (x_t - β̄_t ε̄)/ᾱ_t, the mean of q(x_{t-1} | x_t, x̂_0). It is computed in that form, which
needs no division by α_t and so also stands where ᾱ_T = 0. Sources: Su 2022,
"Recursive generation"; Ho et al. 2020, algorithm 2.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from unraze.denoiser import Denoiser, Prediction
from unraze.process import like, log_variance, posterior
from unraze.samplers.step import Noise, Step
from unraze.schedule import Schedule

__all__ = ["Sigma", "greedy", "random"]

Sigma = str | Tensor | Sequence[float] | Callable[[Schedule], Tensor]
"""σ: "beta", "beta_tilde", "learned", an array (T+1,) of σ_t, or a function of the schedule."""


def greedy(denoise: Denoiser, x: Tensor, schedule: Schedule) -> Iterator[Step]:
    """x_{t-1} = μ(x_t), nothing else.

    It follows the posterior means, so its pictures are smooth and its spread shrinks: for standard
    normal data it ends at ᾱ_T x_T. It is not DDIM, which keeps the spread.
    """
    previous = None
    for t in range(schedule.steps, 0, -1):
        prediction = denoise(x, schedule.times[t], previous=previous)
        x, _ = posterior(schedule, x, t, prediction.x0)
        previous = prediction.x0
        yield Step(float(schedule.times[t - 1]), x, prediction)


def random(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise,
    sigma: Sigma = "beta",
    share: float = 1.0,
    final_noise: bool = False,
) -> Iterator[Step]:
    """x_{t-1} = μ(x_t) + σ_t z, z standard normal; usually σ_t = β_t.

    A `share` of it in place of all, from 0, which is greedy, to 1, is added: share·σ_t z.

    σ = β_t is right for standard normal data, σ = β̃_t for a single point (Ho et al. 2020, section
    3.2). "learned" is what the network says, ln σ² = v ln β² + (1-v) ln β̃² (Nichol & Dhariwal 2021,
    arXiv:2102.09672, eq. 15), of the step taken. In the last step (t = 1) no noise is added unless
    `final_noise`, the text's literal rule. Raises `ValueError` for a σ that is unknown, negative,
    not finite or of another length, or learned where the denoiser says none, and for a share
    outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share:g}: give a number from 0, greedy, to 1, all of σ_t")
    sigmas = None if _is_learned(sigma) else _sigmas(sigma, schedule)
    previous = None
    for t in range(schedule.steps, 0, -1):
        prediction = denoise(x, schedule.times[t], previous=previous)
        x, _ = posterior(schedule, x, t, prediction.x0)
        if share > 0 and (t > 1 or final_noise):
            if sigmas is None:
                x = x + share * _learned(schedule, t, prediction) * noise(t)
            elif sigmas[t] > 0:
                x = x + like(share * sigmas[t], x) * noise(t)
        previous = prediction.x0
        yield Step(float(schedule.times[t - 1]), x, prediction)


def _is_learned(sigma: Sigma) -> bool:
    return isinstance(sigma, str) and sigma == "learned"


def _learned(schedule: Schedule, t: int, prediction: Prediction) -> Tensor:
    """σ_t (B, …) as the network says it."""
    if prediction.share is None:
        raise ValueError(
            "sigma = 'learned': this denoiser learned no variance; take 'beta' or 'beta_tilde'"
        )
    return (0.5 * log_variance(schedule, t, prediction.share)).exp()


def _sigmas(sigma: Sigma, schedule: Schedule) -> Tensor:
    match sigma:
        case "beta":
            return schedule.beta
        case "beta_tilde":
            return schedule.beta_tilde
        case str():
            raise ValueError(
                f"sigma = {sigma!r}: 'beta', 'beta_tilde', 'learned', an array or a function"
            )
        case _:
            values = sigma(schedule) if callable(sigma) else sigma
            s = torch.as_tensor(values, dtype=torch.float64)
    if s.shape != schedule.alpha_bar.shape:
        raise ValueError(
            f"sigma: needs one value per time, shape {tuple(schedule.alpha_bar.shape)}, "
            f"has {tuple(s.shape)}"
        )
    if not bool((torch.isfinite(s) & (s >= 0)).all()):
        raise ValueError("sigma: every value must be finite and not negative")
    return s
