"""diffusers' schedulers in our terms: their betas, and how they draw.

A scheduler's file is read as what it must be, key by key: a value that it may not have is an error
that names it, and so is one that Unraze cannot follow. Their β_t is our β_t², so that
ᾱ_t = √((1-β_1) ⋯ (1-β_t)), and their t is ours less 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from typing_extensions import assert_never

from unraze import schedule as schedules
from unraze.config import explained
from unraze.errors import InputError
from unraze.schedule import Schedule

__all__ = [
    "NO_BOUND",
    "PREDICTIONS",
    "SCHEDULERS",
    "Drawing",
    "betas",
    "drawing",
    "spacing_of",
    "times_of_levels",
]

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
Spacing = Literal["leading", "trailing", "linspace"]
NO_BOUND = 1e9
"""A bound of dynamic thresholding that is none: Unraze's has none."""
OTHERWISE = "give --own-sampler to take the betas alone and draw by DDIM"

_Beta = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Said(BaseModel):
    """What every scheduler's file says."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    num_train_timesteps: Annotated[int, Field(ge=2, le=schedules.MAX_STEPS)] = 1000
    beta_start: _Beta = 1e-4
    beta_end: _Beta = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: list[Annotated[float, Field(gt=0.0, le=1.0)]] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"


class _Draws(_Said):
    """What one that is followed says besides."""

    model_config = ConfigDict(extra="forbid")

    thresholding: bool = False
    dynamic_thresholding_ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.995
    sample_max_value: Annotated[float, Field(gt=0.0)] = 1.0
    steps_offset: Annotated[int, Field(ge=0)] = 0


class _Ddpm(_Draws):
    timestep_spacing: Spacing = "leading"
    clip_sample: bool = True
    clip_sample_range: Annotated[float, Field(ge=1.0, le=1.0)] = 1.0
    variance_type: Literal[
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"
    ] = "fixed_small"


class _Ddim(_Draws):
    timestep_spacing: Spacing = "leading"
    clip_sample: bool = True
    clip_sample_range: Annotated[float, Field(ge=1.0, le=1.0)] = 1.0
    set_alpha_to_one: Literal[True] = True


class _Multistep(_Draws):
    timestep_spacing: Spacing = "linspace"
    lower_order_final: Literal[True] = True
    use_exponential_sigmas: Literal[False] | None = False
    use_beta_sigmas: Literal[False] | None = False
    use_karras_sigmas: Literal[False] | None = False
    use_flow_sigmas: Literal[False] | None = False
    flow_shift: float | None = 1.0  # of the former alone
    use_dynamic_shifting: Literal[False] | None = False
    time_shift_type: str = "exponential"  # of the former alone
    final_sigmas_type: Literal["zero"] = "zero"


class _DpmSolver(_Multistep):
    solver_order: Literal[1, 2] = 2
    algorithm_type: Literal["dpmsolver++", "sde-dpmsolver++"] = "dpmsolver++"
    solver_type: Literal["midpoint"] = "midpoint"
    euler_at_final: Literal[False] = False
    use_lu_lambdas: Literal[False] | None = False
    lambda_min_clipped: float = -math.inf
    variance_type: str | None = None  # which only a learned one has a say in


class _UniPc(_Multistep):
    solver_order: Literal[1, 2, 3] = 2
    predict_x0: Literal[True] = True
    solver_type: Literal["bh2"] = "bh2"
    disable_corrector: list[int] = Field([], max_length=0)
    solver_p: None = None
    sigma_min: None = None
    sigma_max: None = None
    shift_terminal: None = None


SCHEDULERS: dict[str, type[_Draws]] = {
    "DDPMScheduler": _Ddpm,
    "DDIMScheduler": _Ddim,
    "DPMSolverMultistepScheduler": _DpmSolver,
    "UniPCMultistepScheduler": _UniPc,
}
"""Those that are followed."""


@dataclass(frozen=True)
class Drawing:
    """What a scheduler's file says, as keys of a configuration: the schedule's, the sampler's, and
    what is predicted. `notes` are what there is to tell of it."""

    schedule: dict[str, Any]
    parametrisation: str
    sample: dict[str, Any]
    notes: tuple[str, ...]


def drawing(said: Mapping[str, Any], where: Path, *, learned: bool, own: bool) -> Drawing:
    """A scheduler's file in our terms; `learned` says that its network emits a variance.

    Without `own` its betas and its prediction alone are taken. Raises `InputError` for what it may
    not say, or what cannot be followed.
    """
    kind = said.get("_class_name", "DDPMScheduler")
    if own and (not isinstance(kind, str) or kind not in SCHEDULERS):
        raise InputError(
            f"{where}: _class_name = {kind}: Unraze follows {', '.join(SCHEDULERS)}; {OTHERWISE}"
        )
    file = _read(said, SCHEDULERS[kind] if own else _Said, where)
    schedule = _schedule(file, where)
    last = float(schedule.alpha_bar[-1])
    if last == 0 and file.prediction_type == "epsilon":
        raise InputError(
            f"{where}: prediction_type = epsilon with ᾱ_T = 0: the last x_t is all noise, from "
            "which no picture follows; give --prediction where it predicts another"
        )
    if isinstance(file, _Draws):
        times, sample = _way(file, schedule.steps, where)
        if sample.get("sigma") == "learned" and not learned:
            raise InputError(
                f"{where}: variance_type = learned_range: the network emits no variance"
            )
        sample["steps"] = len(times) - 1
        if times != list(range(schedule.steps + 1)):
            sample["spacing"] = tuple(map(float, times))
        last = float(schedule.alpha_bar[times[-1]])
    else:
        sample = {"sampler": "ddim", "steps": min(50, schedule.steps), "clip": "clip"}
    keys, notes = _named(schedule), []
    if last > schedules.MAX_TERMINAL_SIGNAL:
        keys["allow_signal"] = True
        notes.append(
            f"sampling begins where ᾱ = {last:.3g} of a picture is left (more than "
            f"{schedules.MAX_TERMINAL_SIGNAL}), as in diffusers: expect pale pictures"
        )
    return Drawing(keys, PREDICTIONS[file.prediction_type], sample, tuple(notes))


def betas(kind: BetaSchedule, steps: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Their β_1 … β_T, our β_t², float64 (T,), by their formula of that name."""
    match kind:
        case "linear":
            return torch.linspace(first, last, steps, dtype=torch.float64)
        case "scaled_linear":
            return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
        case "squaredcos_cap_v2":
            t = torch.arange(steps + 1, dtype=torch.float64) / steps
            f = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
            return (1 - f[1:] / f[:-1]).clamp(max=0.999)
        case "sigmoid":
            curve = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
            return curve * (last - first) + first
        case _:
            assert_never(kind)


def _read(said: Mapping[str, Any], kind: type[_Said], where: Path) -> _Said:
    """The file as it has to be. Keys of the other schedulers are left aside, as diffusers does."""
    every = {key for one in SCHEDULERS.values() for key in one.model_fields}
    keys = {
        key: value
        for key, value in said.items()
        if not key.startswith("_") and (key in kind.model_fields or key not in every)
    }
    try:
        file = kind.model_validate(keys)
    except ValidationError as error:
        remedy = f"; {OTHERWISE}" if kind is not _Said else ""
        raise InputError(f"{where}: {explained(error)}{remedy}") from error
    if isinstance(file, _DpmSolver):
        if file.variance_type is not None and file.variance_type.startswith("learned"):
            raise InputError(f"{where}: variance_type = {file.variance_type}: {OTHERWISE}")
        if file.lambda_min_clipped != -math.inf:
            raise InputError(
                f"{where}: lambda_min_clipped = {file.lambda_min_clipped}: {OTHERWISE}"
            )
    return file


def _schedule(file: _Said, where: Path) -> Schedule:
    variances = betas(file.beta_schedule, file.num_train_timesteps, file.beta_start, file.beta_end)
    if file.trained_betas is not None:
        if len(file.trained_betas) != file.num_train_timesteps:
            raise InputError(
                f"{where}: trained_betas: are {len(file.trained_betas)}, num_train_timesteps "
                f"{file.num_train_timesteps}"
            )
        variances = torch.tensor(file.trained_betas, dtype=torch.float64)
    try:
        schedule = schedules.from_variances(variances)
    except ValueError as error:
        raise InputError(f"{where}: its betas make no schedule: {error}") from error
    return schedules.zero_terminal(schedule) if file.rescale_betas_zero_snr else schedule


def _named(schedule: Schedule) -> dict[str, Any]:
    """The keys of `schedule` that give this one: by name where there is one, else its numbers."""
    for kind in ("linear", "cosine", "quadratic", "sigmoid"):
        named = schedules.SCHEDULES[kind](schedule.steps, rescaled=False)
        if torch.allclose(named.alpha_bar, schedule.alpha_bar, rtol=1e-12, atol=0):
            return {"kind": kind, "steps": schedule.steps, "rescaled": False}
    numbers = tuple(schedule.alpha_bar.tolist())
    return {"kind": "given", "steps": schedule.steps, "rescaled": False, "alpha_bar": numbers}


def _way(file: _Draws, total: int, where: Path) -> tuple[list[int], dict[str, Any]]:
    """0 and our times of its steps, rising, and the keys of `sample`."""
    match file:
        case _Ddpm():
            times = _times_of_a_chain(file, total, total, where)
            sigmas = {
                "fixed_small": "beta_tilde",
                "fixed_small_log": "beta_tilde",
                "fixed_large": "beta",
                # theirs is the root of a logarithm, not a number: what the name says is β
                "fixed_large_log": "beta",
                "learned_range": "learned",
            }
            sample: dict[str, Any] = {"sampler": "random", "sigma": sigmas[file.variance_type]}
            # of x̂_0 alone is all that it goes by
            return times, sample | _clip(file, "clip" if file.clip_sample else "none", where)
        case _Ddim():
            if file.thresholding and file.sample_max_value != 1:
                raise InputError(
                    f"{where}: thresholding = true: its ε̄ stays as it was said, Unraze's is what "
                    f"is left of x_t; {OTHERWISE}"
                )
            clip = _clip(file, "x0-only" if file.clip_sample else "none", where)
            if file.thresholding:
                clip = {"clip": "x0-only"}
            times = _times_of_a_chain(file, total, min(50, total), where)
            return times, {"sampler": "ddim"} | clip
        case _DpmSolver():
            names = {
                (1, "dpmsolver++"): "ddim",
                (2, "dpmsolver++"): "dpmpp_2m",
                (2, "sde-dpmsolver++"): "dpmpp_2m_sde",
            }
            name = names.get((file.solver_order, file.algorithm_type))
            if name is None:
                raise InputError(
                    f"{where}: solver_order = 1 with algorithm_type = sde-dpmsolver++: Unraze has "
                    f"that of order 2; {OTHERWISE}"
                )
            times = _times_of_levels(file, total, where)
            return times, {"sampler": name} | _clip(file, "none", where)
        case _UniPc():
            times = _times_of_levels(file, total, where)
            sample = {"sampler": "unipc", "order": file.solver_order}
            return times, sample | _clip(file, "none", where)
        case _:
            raise TypeError(file)


def _clip(file: _Draws, plain: str, where: Path) -> dict[str, Any]:
    """`sample.clip` of a scheduler that clips as `plain` says where it has no thresholds."""
    if not file.thresholding:
        return {"clip": plain}
    if file.sample_max_value == 1:  # the bound of x_0 is at least 1, and with this at most 1
        return {"clip": "clip"}
    if file.sample_max_value >= NO_BOUND:
        return {"clip": "dynamic", "dynamic_quantile": file.dynamic_thresholding_ratio}
    raise InputError(
        f"{where}: sample_max_value = {file.sample_max_value:g}: Unraze's dynamic thresholding has "
        f"no upper bound; {OTHERWISE}, and --clip dynamic when sampling"
    )


def _times_of_a_chain(file: _Ddpm | _Ddim, total: int, steps: int, where: Path) -> list[int]:
    """Of DDPM and DDIM, whose next t is t - ⌊T/steps⌋, and the picture where that is below 0."""
    ratio, spacing, offset = total // steps, file.timestep_spacing, file.steps_offset
    match spacing:
        case "leading" if offset >= ratio or 1 + offset + (steps - 1) * ratio > total:
            raise InputError(
                f"{where}: steps_offset = {offset}: with {steps} steps of {ratio} theirs would not "
                f"end at the picture, or begin beyond T = {total}; {OTHERWISE}"
            )
        case "leading":
            return [0, *(1 + offset + k * ratio for k in range(steps))]
        case "trailing" if total % steps == 0:
            return [k * ratio for k in range(steps + 1)]
        case "linspace" if steps == total:
            return list(range(total + 1))
        case _:
            raise InputError(
                f"{where}: timestep_spacing = {spacing}: with {steps} of {total} steps theirs goes "
                f"to times that are not the next it stands at; {OTHERWISE}"
            )


LEVELS = 25
"""The steps of a multistep scheduler, where its pipeline is not told otherwise."""


def times_of_levels(spacing: Spacing, offset: int, steps: int, total: int) -> list[int]:
    """0 and our times of the steps of the multistep schedulers, which go from each to the next."""
    match spacing:
        case "linspace":
            theirs = np.linspace(0, total - 1, steps + 1).round()[1:].tolist()
        case "leading":
            ratio = total // (steps + 1)
            theirs = [k * ratio + offset for k in range(1, steps + 1)]
        case "trailing":
            theirs = (np.arange(total, 0, -total / steps).round()[::-1] - 1).tolist()
        case _:
            assert_never(spacing)
    return [0, *(int(t) + 1 for t in theirs)]


def _times_of_levels(file: _Multistep, total: int, where: Path) -> list[int]:
    steps = min(LEVELS, total - 1)
    times = times_of_levels(file.timestep_spacing, file.steps_offset, steps, total)
    if times[-1] > total:
        raise InputError(
            f"{where}: steps_offset = {file.steps_offset}: the steps would begin at t = "
            f"{times[-1]} of {total}; {OTHERWISE}"
        )
    if sorted(set(times)) != times:
        raise InputError(
            f"{where}: num_train_timesteps = {total}: {steps} steps do not all lie at times of "
            f"their own; {OTHERWISE}"
        )
    return times


def spacing_of(times: Sequence[float], total: int) -> tuple[Spacing, int] | None:
    """Their spacing and offset that DDPM and DDIM take these times by, 0 among them; None where
    there is none."""
    steps = len(times) - 1
    ratio, offset = total // steps, int(times[1]) - 1
    if total % steps == 0 and list(times) == [k * ratio for k in range(steps + 1)]:
        return "trailing", 0
    leading = [0, *(1 + offset + k * ratio for k in range(steps))]
    return ("leading", offset) if list(times) == leading and offset < ratio else None
