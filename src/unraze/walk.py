"""From the settings of a run to a sampler on its way: which steps, how many calls, which function.

`steps` of the settings are network calls, of every sampler: where a step takes several, fewer steps
are made.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import assert_never

from unraze.config import NOISE_SHARES, ORDERS, SampleConfig
from unraze.denoiser import Denoiser
from unraze.errors import InputError
from unraze.samplers import (
    Noise,
    Step,
    adams,
    consistency,
    ddim,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    even_angles,
    even_log_snr,
    even_times,
    greedy,
    heun,
    ipndm,
    karras,
    random,
    restart,
    restart_ends,
    unipc,
)
from unraze.samplers.restart import INTERVAL, REPEATS
from unraze.schedule import MAX_TERMINAL_SIGNAL, Schedule, check_terminal_signal

__all__ = ["Plan", "check_start", "order_of", "plan", "steps_for", "walk"]


@dataclass(frozen=True)
class Plan:
    """The sub-schedule that a sampler walks, the states that it yields there, and the calls of the
    denoiser that it makes an image."""

    chain: Schedule
    states: int
    calls: int


def plan(
    schedule: Schedule,
    settings: SampleConfig,
    *,
    whole: bool,
    borders: Sequence[float] | None = None,
) -> Plan:
    """As many steps as `settings.steps` calls allow; at whole times alone where `whole`.

    With `borders`, the times that a distilled network jumps to, all of them are kept. Raises
    `InputError` for more calls than the schedule has steps or fewer than there are jumps, or times
    that are not of this schedule.
    """
    if not 1 <= settings.steps <= schedule.steps:
        raise InputError(
            f"steps = {settings.steps}: the schedule has {schedule.steps} steps; "
            f"give a number from 1 to {schedule.steps}"
        )
    match settings.sampler:
        case "heun":  # two calls a step, one in the last
            count = (settings.steps + 1) // 2
            return Plan(_spaced(schedule, settings, count, whole), count, 2 * count - 1)
        case "restart":
            return _restarting(schedule, settings, whole)
        case "consistency" if borders is not None:
            chain = _between(schedule, settings, borders, whole)
            return Plan(chain, settings.steps, settings.steps)
        case _:
            chain = _spaced(schedule, settings, settings.steps, whole)
            return Plan(chain, settings.steps, settings.steps)


def steps_for(size: tuple[int, int]) -> int:
    """The steps that images of (H, W) are drawn in where nothing else is said: on more pixels ten
    of `fast` are too few (docs/speed.md)."""
    return 10 if max(size) <= 48 else 15


def check_start(schedule: Schedule, chain: Schedule) -> None:
    """Raises `InputError` where a chain of the schedule begins with some of the picture left."""
    first, last = float(chain.times[-1]), float(schedule.times[-1])
    left = float(chain.alpha_bar[-1])
    if first < last and left > MAX_TERMINAL_SIGNAL:
        raise InputError(
            f"spacing = … {first:g}: ᾱ = {left:.3g} of the picture is left there, while sampling "
            f"begins with noise alone; let the last time be T = {last:g}"
        )
    check_terminal_signal(chain)


def walk(
    denoise: Denoiser,
    x: Tensor,
    chain: Schedule,
    settings: SampleConfig,
    noise: Noise,
    *,
    borders: Sequence[float] = (0.0,),
) -> Iterator[Step]:
    """The sampler of the settings, from x at the top of the chain down to a picture.

    `borders` are the times that a distilled network jumps to.
    """
    eta = NOISE_SHARES.get(settings.sampler, 0.0) if settings.eta is None else settings.eta
    order = order_of(settings)
    match settings.sampler:
        case "greedy":
            return greedy(denoise, x, chain)
        case "random":
            share = 1.0 if settings.sigma_share is None else settings.sigma_share
            how: dict[str, Any] = {"sigma": settings.sigma, "final_noise": settings.final_noise}
            return random(denoise, x, chain, noise=noise, share=share, **how)
        case "ddim":
            return ddim(denoise, x, chain, noise=noise, eta=eta)
        case "heun":
            return heun(denoise, x, chain)
        case "dpmpp_2m":
            return dpmpp_2m(denoise, x, chain)
        case "dpmpp_3m":
            return dpmpp_3m(denoise, x, chain)
        case "dpmpp_2m_sde":
            return dpmpp_2m_sde(denoise, x, chain, noise=noise, eta=eta)
        case "dpmpp_3m_sde":
            return dpmpp_3m_sde(denoise, x, chain, noise=noise, eta=eta)
        case "unipc":
            return unipc(denoise, x, chain, order=order)
        case "ipndm":
            return ipndm(denoise, x, chain, order=order)
        case "deis":
            return deis(denoise, x, chain, order=order)
        case "adams":
            return adams(denoise, x, chain, order=order)
        case "restart":
            interval, repeats = _restart(settings)
            return restart(
                denoise, x, chain, noise=noise, interval=interval, repeats=repeats, order=order
            )
        case "consistency":
            return consistency(denoise, x, chain, noise=noise, borders=borders)
        case _:
            assert_never(settings.sampler)


def _spaced(schedule: Schedule, settings: SampleConfig, count: int, whole: bool) -> Schedule:
    """`count` of the schedule's steps."""
    match settings.spacing:
        case "time":
            return even_times(schedule, count, whole=whole)
        case "angle":
            return even_angles(schedule, count, whole=whole)
        case "log_snr":
            return even_log_snr(schedule, count, whole=whole)
        case "karras":
            return karras(schedule, count, whole=whole)
        case tuple():
            return _given(schedule, settings.spacing, whole)
        case _:
            assert_never(settings.spacing)


def _given(schedule: Schedule, spacing: Sequence[float], whole: bool) -> Schedule:
    times, last = torch.tensor(spacing, dtype=torch.float64), float(schedule.times[-1])
    if float(times[-1]) > last:
        raise InputError(
            f"spacing = … {spacing[-1]:g}: the last time is at most T = {last:g} of the schedule"
        )
    if whole and bool((times != times.round()).any()):
        raise InputError(
            "spacing: this network was trained at whole times alone (loss.continuous = false); "
            "give whole numbers"
        )
    try:
        return schedule.keep(times)
    except ValueError as error:
        raise InputError(
            f"spacing: two of its times are too close to be told apart on this schedule ({error}); "
            "take them further apart"
        ) from error


def _between(
    schedule: Schedule, settings: SampleConfig, borders: Sequence[float], whole: bool
) -> Schedule:
    """The borders, and between two of them even angles; the upper parts have one more where the
    calls do not go round."""
    jumps = len(borders) - 1
    if settings.steps < jumps:
        raise InputError(
            f"steps = {settings.steps}: this run was distilled to {jumps} calls an image; give "
            f"{jumps} or more, or distil a run to fewer: unraze distill RUN --calls"
        )
    if not isinstance(settings.spacing, str):
        chain = _given(schedule, settings.spacing, whole)
        if missing := set(borders) - set(settings.spacing):
            raise InputError(
                f"spacing: keep the time {min(missing):g} too, which this run was distilled to "
                "jump to"
            )
        return chain
    if settings.spacing != "angle":
        raise InputError(
            f"spacing = {settings.spacing}: a distilled run keeps the times that it was taught to "
            "jump to, and even angles between them: take angle, or leave it out"
        )
    theta = torch.atan2(*reversed(schedule.at(torch.tensor(borders, dtype=torch.float64))))
    times = [0.0]
    for number, (low, high) in enumerate(itertools.pairwise(theta.tolist())):
        count = (settings.steps + number) // jumps
        between = low + (high - low) / count * torch.arange(1, count, dtype=torch.float64)
        inner = schedule.time_at(between)
        times += [*(inner.round() if whole else inner).tolist(), borders[number + 1]]
    if any(a >= b for a, b in itertools.pairwise(times)):
        raise InputError(
            f"steps = {settings.steps}: more than there are whole times between the jumps of this "
            "run; give fewer"
        )
    return schedule.keep(times)


def _restarting(schedule: Schedule, settings: SampleConfig, whole: bool) -> Plan:
    """The longest chain whose calls, with those of going through the interval again, suffice."""
    interval, repeats = _restart(settings)
    for count in range(settings.steps, 1, -1):
        chain = _spaced(schedule, settings, count, whole)
        low, high = restart_ends(chain, interval)
        states = count + repeats * (high - low)
        calls = states if order_of(settings) == 1 else 2 * states - 1
        if calls <= settings.steps:
            return Plan(chain, states, calls)
    raise InputError(
        f"steps = {settings.steps}: too few calls for restart to go {repeats} times through "
        f"{interval[0]:g} … {interval[1]:g}; give more, fewer restart_repeats, or order 1"
    )


def _restart(settings: SampleConfig) -> tuple[tuple[float, float], int]:
    return settings.restart_interval or INTERVAL, settings.restart_repeats or REPEATS


def order_of(settings: SampleConfig) -> int:
    """The order asked for, or the sampler's own: its highest."""
    return ORDERS.get(settings.sampler, 1) if settings.order is None else settings.order
