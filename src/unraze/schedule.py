r"""The schedule: how much of the picture is left after t steps.

    x_t = α_t x_{t-1} + β_t ε_t,   α_t² + β_t² = 1                      one step
    x_t = ᾱ_t x_0 + β̄_t ε̄_t,      ᾱ_t = α_t ⋯ α_1,  ᾱ_t² + β̄_t² = 1    t steps at once

Everything is an amplitude. In Ho et al. 2020 (arXiv:2006.11239), where variances are named, their
β_t is our β_t², their α_t our α_t², their \bar α_t our ᾱ_t².

A schedule is data: the array ᾱ_0 … ᾱ_T. Each function below returns one; all else is derived from
it, here and once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unraze.config import MOST_STEPS, ScheduleConfig
from unraze.errors import InputError

__all__ = [
    "MAX_TERMINAL_SIGNAL",
    "SCHEDULES",
    "Schedule",
    "angle",
    "check_terminal_signal",
    "cosine",
    "from_alphas_cumprod",
    "from_config",
    "from_variances",
    "linear",
    "quadratic",
    "sigmoid",
    "zero_terminal",
]

MAX_TERMINAL_SIGNAL = 0.01
"""The most of the picture, ᾱ_T, that may be left where sampling starts from pure noise."""

MAX_STEPS = MOST_STEPS
"""The most steps of a schedule: past them β_t is lost in rounding, and patience too."""

REFERENCE_STEPS = 1000
"""The number of steps of the published curves."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """ᾱ at T+1 times, and the training times that they stand at.

    Arguments:
        alpha_bar: float64 (T+1,), ᾱ_0 = 1, strictly decreasing, within [0, 1].
        times: float64 (T+1,), from 0, strictly increasing: the time that a network trained on
            the full schedule is told. 0, 1, …, T where absent; a sub-schedule keeps some of them.

    Raises `ValueError` where either is not so.
    """

    alpha_bar: Tensor
    times: Tensor

    def __init__(
        self, alpha_bar: Tensor | Sequence[float], times: Tensor | Sequence[float] | None = None
    ) -> None:
        a = torch.as_tensor(alpha_bar, dtype=torch.float64).detach().clone()
        t = torch.arange(a.numel()) if times is None else torch.as_tensor(times)
        object.__setattr__(self, "alpha_bar", a)
        object.__setattr__(self, "times", t.detach().to(torch.float64).clone())
        _check(self.alpha_bar, self.times)

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return self.alpha_bar.numel() - 1

    @cached_property
    def beta_bar(self) -> Tensor:
        """β̄_t = √(1-ᾱ_t²) = √((1-ᾱ_t)(1+ᾱ_t)), the noise amplitude after t steps (T+1,)."""
        return _other_leg(self.alpha_bar)

    @cached_property
    def alpha(self) -> Tensor:
        """α_t = ᾱ_t/ᾱ_{t-1}, the signal amplitude of step t (T+1,); α_0 = 1 stands for no step."""
        return torch.cat(
            [torch.ones(1, dtype=torch.float64), self.alpha_bar[1:] / self.alpha_bar[:-1]]
        )

    @cached_property
    def beta(self) -> Tensor:
        """β_t = √(1-α_t²), the noise amplitude of step t (T+1,); β_0 = 0 stands for no step.

        Computed as √((ᾱ_{t-1}-ᾱ_t)(ᾱ_{t-1}+ᾱ_t))/ᾱ_{t-1}, which keeps its digits where α_t ≈ 1.
        """
        before, after = self.alpha_bar[:-1], self.alpha_bar[1:]
        step = ((before - after) * (before + after)).sqrt() / before
        return torch.cat([torch.zeros(1, dtype=torch.float64), step])

    @cached_property
    def beta_tilde(self) -> Tensor:
        """β̃_t = β_t β̄_{t-1}/β̄_t, the standard deviation of q(x_{t-1}|x_t,x_0) (T+1,); β̃_1 = 0.

        The square root of Ho et al. 2020, eq. 7.
        """
        step = self.beta[1:] * self.beta_bar[:-1] / self.beta_bar[1:]
        return torch.cat([torch.zeros(1, dtype=torch.float64), step])

    @cached_property
    def log_snr(self) -> Tensor:
        """λ_t = 2 ln(ᾱ_t/β̄_t) (T+1,); λ_0 = ∞, and -∞ where ᾱ_T = 0."""
        return 2 * (self.alpha_bar.log() - self.beta_bar.log())

    @cached_property
    def theta(self) -> Tensor:
        """θ_t = arctan(β̄_t/ᾱ_t) (T+1,): ᾱ_t = cos θ_t, β̄_t = sin θ_t; from 0 to at most π/2."""
        return torch.atan2(self.beta_bar, self.alpha_bar)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(ᾱ, β̄) at training times t, float64 of t's shape.

        At the schedule's own times these are its own numbers; between them θ is linear in t.
        Raises `ValueError` for a time outside [0, T].
        """
        left, weight = self._locate(t)
        right = (left + 1).clamp(max=self.steps)
        theta = torch.lerp(self.theta[left], self.theta[right], weight)
        between = weight > 0
        alpha_bar = torch.where(between, theta.cos(), self.alpha_bar[left])
        return alpha_bar, torch.where(between, theta.sin(), self.beta_bar[left])

    def step_ratio(self, t: Tensor) -> Tensor:
        """β_t/β̄_t at training times t: E[ε_t|x_t] = (β_t/β̄_t) E[ε̄_t|x_t].

        It is the bridge between the step noise and the whole noise; 1 at t = 1 and before it,
        linear in t between whole steps.
        """
        left, weight = self._locate(t)
        ratio = torch.cat([torch.ones(1, dtype=torch.float64), self.beta[1:] / self.beta_bar[1:]])
        return torch.lerp(ratio[left], ratio[(left + 1).clamp(max=self.steps)], weight)

    def time_at(self, theta: Tensor) -> Tensor:
        """The training time at which arctan(β̄/ᾱ) = θ, the inverse of `at`; clamped to [0, T]."""
        theta = theta.to(torch.float64).clamp(0.0, float(self.theta[-1]))
        right = torch.searchsorted(self.theta, theta).clamp(1, self.steps)
        lower, upper = self.theta[right - 1], self.theta[right]
        weight = (theta - lower) / (upper - lower)
        return torch.lerp(self.times[right - 1], self.times[right], weight)

    def keep(self, times: Tensor | Sequence[float]) -> "Schedule":
        """The sub-schedule at these training times, which must rise from 0 and stay within [0, T].

        Its α_t and β_t are those of the longer steps; `times` tells the network where it stands.
        """
        t = torch.as_tensor(times, dtype=torch.float64)
        return Schedule(self.at(t)[0], t)

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.detach().to(device="cpu", dtype=torch.float64).contiguous()
        # of which a not-a-number among them makes both one
        low, high = map(float, t.aminmax()) if t.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= self._last):
            raise ValueError(f"t = {low:g} … {high:g}: training times lie in [0, {self._last:g}]")
        left = torch.searchsorted(self.times, t, right=True) - 1
        return left, (t - self.times[left]) / self._widths[left]

    @cached_property
    def _last(self) -> float:
        return float(self.times[-1])

    @cached_property
    def _widths(self) -> Tensor:
        """From each time to the next (T+1,); 1 after the last one, where nothing is divided."""
        return torch.cat([self.times.diff(), torch.ones(1, dtype=torch.float64)])


def linear(steps: int = REFERENCE_STEPS, *, rescaled: bool = True) -> Schedule:
    """β_t² linear in t from 1e-4 to 0.02 (Ho et al. 2020, section 4): ᾱ_T = 0.0064."""
    return _from_curve(
        lambda n: torch.linspace(1e-4, 0.02, n, dtype=torch.float64), steps, rescaled
    )


def quadratic(steps: int = REFERENCE_STEPS, *, rescaled: bool = True) -> Schedule:
    """β_t linear in t from 1e-2 to √0.02, so that β_t² is quadratic ("The annotated diffusion
    model"). The curve leaves ᾱ_T = 0.027: rescaled, its log ᾱ is stretched to end at 0.01."""
    return _from_curve(
        lambda n: torch.linspace(1e-2, math.sqrt(0.02), n, dtype=torch.float64) ** 2,
        steps,
        rescaled,
    )


def sigmoid(steps: int = REFERENCE_STEPS, *, rescaled: bool = True) -> Schedule:
    """β_t² a logistic curve over [-6, 6] from 1e-4 to 0.02 ("The annotated diffusion model")."""
    return _from_curve(
        lambda n: torch.linspace(-6, 6, n, dtype=torch.float64).sigmoid() * (0.02 - 1e-4) + 1e-4,
        steps,
        rescaled,
    )


def cosine(steps: int = REFERENCE_STEPS, *, rescaled: bool = True) -> Schedule:
    """ᾱ_t = cos((t/T + s)/(1 + s) · π/2)/cos(s/(1 + s) · π/2), s = 0.008, with β_t² ≤ 0.999
    (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17)."""

    def variances(n: int) -> Tensor:
        t = torch.arange(n + 1, dtype=torch.float64) / n
        f = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=0.999)

    return _from_curve(variances, steps, rescaled)


def angle(steps: int = REFERENCE_STEPS, *, rescaled: bool = True) -> Schedule:
    """ᾱ_t = cos θ, β̄_t = sin θ, θ = (π/2) t/T: ᾱ_T = 0, and θ is linear in t at every T.

    The continuous cosine schedule (Salimans & Ho 2022, arXiv:2202.00512). As ᾱ_T = 0, a network
    that predicts ε̄ can't be trained on it. `rescaled` changes nothing: it ends at 0 as it is.
    """
    del rescaled  # kept so that every curve has the same signature
    _check_steps(steps)
    theta = torch.arange(steps + 1, dtype=torch.float64) / steps * (math.pi / 2)
    alpha_bar = theta.cos()
    alpha_bar[-1] = 0.0
    return Schedule(alpha_bar)


SCHEDULES = {
    "linear": linear,
    "quadratic": quadratic,
    "sigmoid": sigmoid,
    "cosine": cosine,
    "angle": angle,
}


def from_variances(variances: Tensor | Sequence[float]) -> Schedule:
    """From Ho et al.'s β_1 … β_T, the variances β_t² of the steps, each within (0, 1]."""
    v = torch.as_tensor(variances, dtype=torch.float64)
    if v.ndim != 1 or not v.numel() or not bool(((v > 0) & (v <= 1)).all()):
        extent = f" in [{float(v.min()):g}, {float(v.max()):g}]" if v.numel() else ""
        raise ValueError(
            f"variances: one number in (0, 1] per step, got shape {tuple(v.shape)}{extent}"
        )
    return Schedule(_prepend_one((-v).log1p().cumsum(0).mul(0.5).exp()))


def from_alphas_cumprod(alphas_cumprod: Tensor | Sequence[float]) -> Schedule:
    r"""From Ho et al.'s \bar α_1 … \bar α_T (diffusers' `alphas_cumprod`), our ᾱ_t²."""
    a = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    if a.ndim != 1:
        raise ValueError(f"alphas_cumprod: one number per step, got shape {tuple(a.shape)}")
    return Schedule(_prepend_one(a.sqrt()))


def zero_terminal(schedule: Schedule) -> Schedule:
    """ᾱ'_t = ᾱ_1 (ᾱ_t - ᾱ_T)/(ᾱ_1 - ᾱ_T) for t ≥ 1: ends at 0, keeps ᾱ_1.

    Lin et al. 2023 (arXiv:2305.08891), algorithm 1.
    """
    a = schedule.alpha_bar[1:]
    return Schedule(_prepend_one(a[0] * (a - a[-1]) / (a[0] - a[-1])), schedule.times)


def from_config(config: ScheduleConfig) -> Schedule:
    """The training schedule that a configuration describes.

    Raises `InputError` where it leaves more than ᾱ_T = 0.01 and `allow_signal` is not set.
    """
    if config.kind == "given":
        assert config.alpha_bar is not None
        schedule = Schedule(config.alpha_bar)
    else:
        schedule = SCHEDULES[config.kind](config.steps, rescaled=config.rescaled)
    schedule = zero_terminal(schedule) if config.zero_terminal else schedule
    if not config.allow_signal:
        check_terminal_signal(schedule)
    return schedule


def check_terminal_signal(schedule: Schedule) -> None:
    """Raises `InputError` where ᾱ_T > 0.01: then x_T still holds some of the picture, while
    sampling starts from noise that holds none."""
    left = float(schedule.alpha_bar[-1])
    if left > MAX_TERMINAL_SIGNAL * (1 + 1e-9):  # the rescaled curves end there, rounded
        raise InputError(
            f"the schedule leaves ᾱ_T = {left:.3g} of the picture at T = "
            f"{float(schedule.times[-1]):g}, more than {MAX_TERMINAL_SIGNAL}: give --set "
            "schedule.rescaled=true, or --set schedule.zero_terminal=true where the network "
            "predicts no ε (v, x0, edm), or accept it with --allow-signal"
        )


def _from_curve(variances: Callable[[int], Tensor], steps: int, rescaled: bool) -> Schedule:
    _check_steps(steps)
    if not rescaled:
        return from_variances(variances(steps))
    reference = from_variances(variances(REFERENCE_STEPS)).alpha_bar.log()
    bound = math.log(MAX_TERMINAL_SIGNAL)
    if reference[-1] > bound:
        reference = reference * (bound / reference[-1])
    position = torch.arange(steps + 1, dtype=torch.float64) * (REFERENCE_STEPS / steps)
    left = position.floor().long().clamp(max=REFERENCE_STEPS)
    right = (left + 1).clamp(max=REFERENCE_STEPS)
    return Schedule(torch.lerp(reference[left], reference[right], position - left).exp())


def _check_steps(steps: int) -> None:
    if not 2 <= steps <= MAX_STEPS:
        raise InputError(f"steps = {steps}: a schedule has from 2 to {MAX_STEPS:,}")


def _check(alpha_bar: Tensor, times: Tensor) -> None:
    a, t = alpha_bar, times
    if a.ndim != 1 or a.numel() < 2:
        raise ValueError(f"alpha_bar: needs shape (T+1,) with T ≥ 1, has {tuple(a.shape)}")
    if not bool(torch.isfinite(a).all()):
        raise ValueError(f"alpha_bar: not finite at t = {int((~torch.isfinite(a)).nonzero()[0])}")
    if a[0] != 1:
        raise ValueError(f"alpha_bar[0] = {float(a[0]):g}: must be 1, the picture untouched")
    if a[-1] < 0:
        raise ValueError(f"alpha_bar[{a.numel() - 1}] = {float(a[-1]):g}: must lie in [0, 1]")
    rises = (a.diff() >= 0).nonzero()
    if rises.numel():
        i = int(rises[0])
        raise ValueError(
            f"alpha_bar[{i}] = {float(a[i]):g}, alpha_bar[{i + 1}] = {float(a[i + 1]):g}: "
            "must decrease strictly"
        )
    if t.shape != a.shape:
        raise ValueError(f"times: needs shape {tuple(a.shape)}, has {tuple(t.shape)}")
    if not bool(torch.isfinite(t).all()) or t[0] != 0 or bool((t.diff() <= 0).any()):
        raise ValueError("times: must rise strictly from 0 and be finite")


def _other_leg(a: Tensor) -> Tensor:
    return ((1 - a) * (1 + a)).sqrt()


def _prepend_one(a: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), a])
