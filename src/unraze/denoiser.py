"""What a network says, turned once into an estimate of picture and noise.

    x_t = ᾱ_t x_0 + β̄_t ε̄

A denoiser is a function (x_t, t, *, previous=None) -> Prediction: t is the training time, () or
(B,), 0 for data and T for noise; `previous` is the last estimate of x_0, for networks trained with
self-conditioning (Chen et al. 2022, arXiv:2208.04202). Class labels are bound by the closure.
Guidance and clipping take a denoiser and return one; an exact mathematical one takes a network's
place in every test.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from typing_extensions import assert_never

from unraze.config import Parametrisation
from unraze.process import like
from unraze.schedule import Schedule

__all__ = [
    "Denoiser",
    "Prediction",
    "clipped",
    "denoiser",
    "edm_input_scale",
    "emission",
    "from_x0",
    "guided",
    "predict",
    "raw_output",
]


@dataclass(frozen=True)
class Prediction:
    """Estimates of x_0 and of the whole noise ε̄, of x_t's shape, with x_t = ᾱ_t x_0 + β̄_t ε̄.

    `share` is where a network learned the variance of its step: v of x_t's shape in
    ln σ² = v ln β² + (1-v) ln β̃² (`unraze.process.log_variance`), else None. The share, not the
    variance: β and β̃ are those of the step that a sampler takes, which the network is not told.
    """

    x0: Tensor
    eps: Tensor
    share: Tensor | None = None


class Denoiser(Protocol):
    """(x_t (B, …), t () or (B,), previous x̂_0 or None) -> Prediction."""

    def __call__(self, x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction: ...


def predict(
    parametrisation: Parametrisation,
    raw: Tensor,
    x_t: Tensor,
    schedule: Schedule,
    t: Tensor,
    *,
    sigma_data: float = 1.0,
) -> Prediction:
    """The Prediction that a raw network output stands for, at training times t, () or (B,).

    `raw` is (B, C, …) as x_t, or (B, 2C, …) of a network that learned its variance: the second half
    o stands for the share v = (o+1)/2 (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1).

    eps_step  ε̄ = (β̄_t/β_t) raw                   the text's own; then as eps
    eps       x_0 = (x_t - β̄ ε̄)/ᾱ                  Ho et al. 2020, eq. 4 solved for x_0
    x0        ε̄ = (x_t - ᾱ x_0)/β̄
    v         x_0 = ᾱ x_t - β̄ v, ε̄ = β̄ x_t + ᾱ v   Salimans & Ho 2022, section 4
    edm       x_0 = σ_d² ᾱ x_t/r² + (β̄ σ_d/r) F,  ε̄ = β̄ x_t/r² - (ᾱ σ_d/r) F,  r² = β̄² + ᾱ² σ_d²
              (Karras et al. 2022, arXiv:2206.00364, eq. 7 with σ = β̄/ᾱ and their x = x_t/ᾱ)

    Raises `ValueError` for eps and eps_step where ᾱ_t = 0.
    """
    if raw.ndim > 1 and raw.shape[1] == 2 * x_t.shape[1]:
        raw, second = raw.chunk(2, dim=1)
        one = predict(parametrisation, raw, x_t, schedule, t, sigma_data=sigma_data)
        return replace(one, share=(second + 1) / 2)
    a64, b64 = schedule.at(t)
    a, b = like(a64, x_t), like(b64, x_t)
    match parametrisation:
        case "eps_step" | "eps":
            if bool((a64 == 0).any()):
                raise ValueError(
                    f"parametrisation '{parametrisation}' where ᾱ_t = 0: x_t is all noise "
                    "there, so x_0 does not follow from it; "
                    "use 'v', 'x0' or 'edm', or a schedule with ᾱ_T > 0"
                )
            step = parametrisation == "eps_step"
            eps = raw / like(schedule.step_ratio(t), raw) if step else raw
            return Prediction((x_t - b * eps) / a, eps)
        case "x0":
            return from_x0(schedule, x_t, t, raw)
        case "v":
            return Prediction(a * x_t - b * raw, b * x_t + a * raw)
        case "edm":
            r = like(_edm_norm(a64, b64, sigma_data), x_t)
            return Prediction(
                (sigma_data / r) ** 2 * a * x_t + sigma_data / r * b * raw,
                b / r**2 * x_t - sigma_data / r * a * raw,
            )
        case _:
            assert_never(parametrisation)


def emission(
    parametrisation: Parametrisation,
    x0: Tensor,
    eps: Tensor,
    schedule: Schedule,
    t: Tensor,
    *,
    sigma_data: float = 1.0,
) -> Tensor:
    """What a network of this parametrisation would emit for (x_0, ε̄): the inverse of `predict`.

    eps_step = (β_t/β̄_t) ε̄,   v = ᾱ ε̄ - β̄ x_0,   F = β̄ x_0/(r σ_d) - ᾱ σ_d ε̄/r

    Linear in (x_0, ε̄), so it also turns errors into errors.
    """
    a64, b64 = schedule.at(t)
    a, b = like(a64, x0), like(b64, x0)
    match parametrisation:
        case "eps_step":
            return like(schedule.step_ratio(t), eps) * eps
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            return a * eps - b * x0
        case "edm":
            r = like(_edm_norm(a64, b64, sigma_data), x0)
            return b / (r * sigma_data) * x0 - a * sigma_data / r * eps
        case _:
            assert_never(parametrisation)


def from_x0(schedule: Schedule, x_t: Tensor, t: Tensor, x0: Tensor) -> Prediction:
    """The Prediction with this x_0 and ε̄ = (x_t - ᾱ_t x_0)/β̄_t; t > 0."""
    alpha_bar, beta_bar = schedule.at(t)
    return Prediction(x0, (x_t - like(alpha_bar, x_t) * x0) / like(beta_bar, x_t))


def edm_input_scale(schedule: Schedule, t: Tensor, sigma_data: float) -> Tensor:
    """1/r, what x_t is multiplied with before a network of F sees it.

    c_in of Karras et al. 2022, table 1, for their x = x_t/ᾱ.
    """
    alpha_bar, beta_bar = schedule.at(t)
    return 1 / _edm_norm(alpha_bar, beta_bar, sigma_data)


def denoiser(
    network: nn.Module,
    schedule: Schedule,
    parametrisation: Parametrisation,
    *,
    sigma_data: float = 1.0,
    classes: Tensor | None = None,
    augmentation: Tensor | None = None,
    self_conditioning: bool = False,
) -> Denoiser:
    """A network with its training schedule and the meaning of its output, as a denoiser.

    The network is called as network(x (B, C, H, W), t (B,)), with `classes=` (B,) and
    `augmentation=` (B, 9) where they are given and `previous=` where it was trained with
    self-conditioning. Without self-conditioning, what a sampler offers as `previous` is not for
    this network and is left aside. Without `augmentation` it denoises images that nothing was done
    to (`unraze.augment`).
    """

    def denoise(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        t = t.expand(x_t.shape[0])
        raw = raw_output(
            network,
            schedule,
            parametrisation,
            x_t,
            t,
            sigma_data=sigma_data,
            classes=classes,
            augmentation=augmentation,
            previous=previous if self_conditioning else None,
        )
        return predict(parametrisation, raw, x_t, schedule, t, sigma_data=sigma_data)

    return denoise


def raw_output(
    network: nn.Module,
    schedule: Schedule,
    parametrisation: Parametrisation,
    x_t: Tensor,
    t: Tensor,
    *,
    sigma_data: float = 1.0,
    classes: Tensor | None = None,
    augmentation: Tensor | None = None,
    previous: Tensor | None = None,
) -> Tensor:
    """What the network emits for x_t (B, C, H, W) at training times t (B,), in x_t's dtype.

    (B, C, H, W), or (B, 2C, H, W) where it learned its variance.
    """
    extra = {"classes": classes, "augmentation": augmentation, "previous": previous}
    seen = x_t
    if parametrisation == "edm":
        seen = x_t * like(edm_input_scale(schedule, t, sigma_data), x_t)
    told = t.to(device=x_t.device, dtype=x_t.dtype)
    raw: Tensor = network(seen, told, **{k: v for k, v in extra.items() if v is not None})
    return raw.to(x_t.dtype)


def guided(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: float | Tensor,
    *,
    interval: tuple[float, float] = (0.0, float("inf")),
) -> Denoiser:
    """Classifier-free guidance, ε̂ = ε̂_∅ + w (ε̂_c - ε̂_∅), and the same for x̂_0.

    w = 1 is the conditional denoiser itself, w = 0 the unconditional one. It acts while
    interval[0] ≤ t ≤ interval[1] (training time); outside, the conditional one alone is called.
    Of a `scale` that is a tensor () no value is looked at: both are called, whatever it is.
    Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6 (their w is ours less 1); the interval:
    Kynkäänniemi et al. 2024, arXiv:2404.07724.
    """

    def denoise(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        with_class = conditional(x_t, t, previous=previous)
        acts = (interval[0] <= t) & (t <= interval[1])
        none = not isinstance(scale, Tensor) and scale == 1
        if none or not bool(acts.any()):
            return with_class
        without = unconditional(x_t, t, previous=previous)
        there = scale if isinstance(scale, Tensor) else torch.tensor(scale, dtype=torch.float64)
        w = like(torch.where(acts, there, 1.0), x_t)
        return Prediction(
            torch.lerp(without.x0, with_class.x0, w),
            torch.lerp(without.eps, with_class.eps, w),
            with_class.share,
        )

    return denoise


def clipped(
    denoise: Denoiser,
    schedule: Schedule,
    *,
    limit: float = 1.0,
    quantile: float | None = None,
    keep_eps: bool = False,
) -> Denoiser:
    """x̂_0 clipped to [-limit, limit], and ε̄ = (x_t - ᾱ_t x̂_0)/β̄_t derived from it anew.

    With `quantile`, dynamic thresholding: each image's bound s is that quantile of |x̂_0|, at least
    `limit`, and x̂_0 is clipped to [-s, s] and multiplied with limit/s (Saharia et al. 2022,
    arXiv:2205.11487, section 2.3). `keep_eps` leaves ε̄ as the network said it, as diffusers' DDIM
    does by default; then x_t = ᾱ_t x̂_0 + β̄_t ε̄ no longer holds.
    """

    def bounded(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        prediction = denoise(x_t, t, previous=previous)
        if quantile is None:
            x0 = prediction.x0.clamp(-limit, limit)
        else:
            size = torch.quantile(prediction.x0.abs().flatten(1), quantile, dim=1)
            bound = like(size.clamp(min=limit), x_t)
            x0 = prediction.x0.clamp(-bound, bound) * (limit / bound)
        eps = prediction.eps if keep_eps else from_x0(schedule, x_t, t, x0).eps
        return Prediction(x0, eps, prediction.share)

    return bounded


def _edm_norm(alpha_bar: Tensor, beta_bar: Tensor, sigma_data: float) -> Tensor:
    return (beta_bar**2 + (alpha_bar * sigma_data) ** 2).sqrt()
