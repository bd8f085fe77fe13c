"""diffusers' pipelines of UNet2DModel: read into what a run is made of, and written from a run.

    FOLDER/model_index.json                          which pipeline, which parts
    FOLDER/unet/config.json, diffusion_pytorch_model.safetensors
    FOLDER/scheduler/scheduler_config.json           the schedule, and how it draws

Old pipelines have all of it in one folder, the scheduler's as scheduler_config.json; a model alone
has no scheduler. What is read is checked: a setting that Unraze cannot follow is an error, never
left out. Their t is ours less 1; their β_t our β_t², so that ᾱ_t = √((1-β_1) ⋯ (1-β_t)).
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from unraze import schedule as schedules
from unraze.checkpoint import require_fit
from unraze.config import Config, UNet2DConfig, explained, updated
from unraze.errors import CheckpointError, InputError
from unraze.nn.unet2d import UNet2D
from unraze.schedule import Schedule

__all__ = ["NO_BOUND", "PREDICTIONS", "SCHEDULERS", "WEIGHTS", "Found", "betas_of", "read"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLE = "diffusion_pytorch_model.bin"
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the parts of attention in models from before diffusers 0.15, and what they are called now."""

NO_BOUND = 1e9
"""A bound of dynamic thresholding that is none: Unraze's has none."""
IMAGES = (1, 3)
"""Channels of pictures; others are those of latents, which an autoencoder is needed for."""


@dataclass(frozen=True)
class Found:
    """What a folder holds: a configuration and the weights of its network.

    `shape` is (C, H, W), `num_classes` 0 for a network without; `notes` are what a reader should
    know of how it was understood.
    """

    config: Config
    weights: dict[str, Tensor]
    shape: tuple[int, int, int]
    num_classes: int
    notes: tuple[str, ...]


def read(
    folder: Path,
    *,
    scheduler: bool = True,
    size: tuple[int, int] | None = None,
    prediction: str | None = None,
) -> Found:
    """The model in a folder of diffusers: a pipeline, an old one in a single folder, or a model.

    Without `scheduler` its way of drawing is left aside: its betas and what is predicted hold, and
    it is drawn from by DDIM in 50 steps. A model alone is taken as `DDPMScheduler` would have it,
    `prediction` being what it emits where that is not ε. `size` is for one that does not say its
    own. Raises `CheckpointError` for what is not there, damaged, or does not fit, `InputError` for
    a setting that cannot be followed; both name file and key.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; give that of a diffusers model")
    index = folder / "model_index.json"
    _require_known_parts(index)
    at = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    network, values = _network(at / "config.json")
    shape = _shape(values, size, at / "config.json")
    classes = network.num_class_embeds or 0
    notes = []
    learned = int(values.get("out_channels", 3)) == 2 * shape[0]
    file = next(
        (
            place
            for place in (folder / "scheduler", folder)
            if (place / "scheduler_config.json").is_file()
        ),
        None,
    )
    said: dict[str, Any] = {"_class_name": "DDPMScheduler"}
    where = folder / "scheduler" / "scheduler_config.json"
    if file is not None:
        where = file / "scheduler_config.json"
        said = _json(where)
    elif index.is_file():
        raise CheckpointError(f"{where}: is missing, and the schedule with it")
    else:
        notes.append(
            "there is no scheduler beside it: taken as of DDPMScheduler's defaults (linear betas, "
            "1,000 steps"
            f"{'' if prediction else ', predicting ε; say --prediction where it predicts another'})"
        )
    if prediction is not None:
        said["prediction_type"] = prediction
    drawing, more = _drawing(said, where, learned=learned, own=scheduler)
    weights = _weights(at, network, shape, classes, learned=learned)
    config = updated(
        Config(),
        {
            "preset": "diffusers",
            "about": f"read from {folder.name}, a model of diffusers",
            "network.kind": network.kind,
            **{f"network.{key}": value for key, value in network.model_dump().items()},
            "data.source": folder.resolve().name,
            "data.size": shape[1:],
            "data.channels": shape[0],
            "loss.continuous": False,
            "loss.stratified": False,
            "loss.times": "uniform",
            "loss.sigma_data": 1.0,
            "loss.variance": "learned" if learned else "fixed",
            "train.classes": bool(classes),
            "train.label_dropout": 0.0,
            "train.dtype": "float32",
            **drawing,
        },
    )
    return Found(config, weights, shape, classes, (*notes, *more))


# ---------------------------------------------------------------------------------- the network


def _require_known_parts(index: Path) -> None:
    """Raises where a pipeline has other parts than a UNet2DModel and a scheduler."""
    if not index.is_file():
        return
    parts = {k: v for k, v in _json(index).items() if not k.startswith("_")}
    for name, value in parts.items():
        kind = value[1] if isinstance(value, list) and len(value) == 2 else value
        if name == "scheduler" or (name == "unet" and kind == "UNet2DModel"):
            continue
        raise InputError(
            f"{index}: {name} = {kind}: Unraze reads pipelines of a UNet2DModel (as unet) and a "
            "scheduler; those of text or latents have parts that it has no place for"
        )
    if "unet" not in parts:
        raise CheckpointError(f"{index}: names no unet; is it the index of a pipeline?")


FIXED = {"time_embedding_type": "positional", "class_embed_type": None}
"""Keys of the network's file that have one value here."""
ABSENT = {"attention_head_dim": 8, "mid_block_type": "UNetMidBlock2D"}
"""What is absent in their file and in a run's means something else."""
ELSEWHERE = ("sample_size", "in_channels", "out_channels", "num_train_timesteps")
"""Keys that say nothing of the layers."""


def _network(file: Path) -> tuple[UNet2DConfig, dict[str, Any]]:
    """The network's configuration, and all that its file says."""
    values = _json(file)
    kind = values.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise InputError(f"{file}: _class_name = {kind}: Unraze reads UNet2DModel alone")
    for key, needed in FIXED.items():
        if values.get(key, needed) != needed:
            raise InputError(
                f"{file}: {key} = {values[key]}: Unraze's has {needed or 'none'} alone"
            )
    layers = ABSENT | {
        key: value
        for key, value in values.items()
        if not key.startswith("_") and key not in (*FIXED, *ELSEWHERE)
    }
    if layers["mid_block_type"] is None:
        layers["mid_block_type"] = "none"
    try:
        return UNet2DConfig.model_validate(layers), values
    except ValidationError as error:
        raise InputError(f"{file}: {explained(error)}") from error


def _shape(
    values: Mapping[str, Any], size: tuple[int, int] | None, file: Path
) -> tuple[int, int, int]:
    channels, said = int(values.get("in_channels", 3)), values.get("sample_size")
    if channels not in IMAGES:
        raise InputError(
            f"{file}: in_channels = {channels}: a model of latents, not of grey or colour pictures"
        )
    out = int(values.get("out_channels", 3))
    if out not in (channels, 2 * channels):
        raise InputError(
            f"{file}: out_channels = {out}: is neither in_channels, {channels}, nor twice that"
        )
    if size is None and said is None:
        raise InputError(f"{file}: does not say its sample_size; give --size")
    theirs = (said, said) if isinstance(said, int) else said and tuple(said)
    if size is not None and theirs not in (None, size):
        raise InputError(
            f"--size {size[0]}x{size[1]}: {file} says sample_size = {said}; leave it out"
        )
    found = size or theirs
    assert found is not None
    height, width = found
    return channels, int(height), int(width)


def _weights(
    at: Path,
    network: UNet2DConfig,
    shape: tuple[int, int, int],
    classes: int,
    *,
    learned: bool,
) -> dict[str, Tensor]:
    """The tensors, named as today, in float32; raises `CheckpointError` for what does not fit."""
    file = at / WEIGHTS
    if not file.is_file():
        raise CheckpointError(_why_no_weights(at))
    try:
        tensors = safetensors.torch.load(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{file}: is not a safetensors file ({error})") from error
    wanted = _shapes(network, shape, classes, learned=learned)
    renamed = {_today(name): value for name, value in tensors.items()}
    for name, value in renamed.items():
        # attention's were 1 x 1 convolutions once
        if name in wanted and value.dim() == 4 and len(wanted[name]) == 2:
            renamed[name] = value.flatten(1)
    require_fit(wanted, renamed, file, remedy="is config.json beside it its own?")
    return {name: value.to(torch.float32) for name, value in renamed.items()}


def _shapes(
    network: UNet2DConfig, shape: tuple[int, int, int], classes: int, *, learned: bool
) -> dict[str, torch.Size]:
    with torch.device("meta"):
        made = UNet2D(network, channels=shape[0], num_classes=classes, learned_variance=learned)
    return {name: value.shape for name, value in made.state_dict().items()}


def _today(name: str) -> str:
    """A tensor's name in today's models."""
    found = re.fullmatch(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(\w+)", name)
    return f"{found[1]}.{OLD_NAMES[found[2]]}.{found[3]}" if found else name


def _why_no_weights(at: Path) -> str:
    sharded = at / f"{WEIGHTS}.index.json"
    if sharded.is_file():
        return (
            f"{sharded}: weights in several files are not read; save the model as one, with "
            "save_pretrained(…, max_shard_size='100GB')"
        )
    if (at / PICKLE).is_file():
        return (
            f"{at / PICKLE}: a pickle can run code when it is opened, so it is not read; where you "
            "trust it, diffusers makes it safetensors: "
            f"UNet2DModel.from_pretrained('{at}').save_pretrained('{at}')"
        )
    others = sorted(p.name for p in at.glob("*.safetensors"))
    there = f"; there is {', '.join(others)}: rename the one you mean" if others else ""
    return f"{at / WEIGHTS}: is missing{there}"


# --------------------------------------------------------------------- the schedule and the sampler


def betas_of(said: Mapping[str, Any], where: Path) -> Tensor:
    """Their β_1 … β_T, our β_t², float64, by the scheduler's own formula."""
    steps = said.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 2 <= steps <= schedules.MAX_STEPS:
        raise InputError(
            f"{where}: num_train_timesteps = {steps}: give 2 to {schedules.MAX_STEPS:,}"
        )
    if said.get("trained_betas") is not None:
        return torch.tensor(said["trained_betas"], dtype=torch.float64)
    first, last = float(said.get("beta_start", 1e-4)), float(said.get("beta_end", 0.02))
    kind = said.get("beta_schedule", "linear")
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
            raise InputError(
                f"{where}: beta_schedule = {kind}: Unraze knows linear, scaled_linear, "
                "squaredcos_cap_v2, sigmoid and trained_betas"
            )


def _schedule(said: Mapping[str, Any], where: Path) -> Schedule:
    try:
        schedule = schedules.from_variances(betas_of(said, where))
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: is no schedule: {error}") from error
    rescaled = said.get("rescale_betas_zero_snr", False)
    return schedules.zero_terminal(schedule) if rescaled else schedule


def _named(schedule: Schedule) -> dict[str, Any]:
    """The keys of `schedule` that give this one: by name where there is one, else its numbers."""
    for kind in ("linear", "cosine", "quadratic", "sigmoid"):
        named = schedules.SCHEDULES[kind](schedule.steps, rescaled=False)
        if torch.allclose(named.alpha_bar, schedule.alpha_bar, rtol=1e-12, atol=0):
            return {"kind": kind, "steps": schedule.steps, "rescaled": False}
    return {
        "kind": "given",
        "steps": schedule.steps,
        "rescaled": False,
        "alpha_bar": tuple(schedule.alpha_bar.tolist()),
    }


@dataclass(frozen=True)
class _Way:
    """How a scheduler draws, in our terms: `sample`'s keys, the number of steps of its pipeline by
    default, and the keys of its file that must have the value given here."""

    sample: dict[str, Any]
    steps: int
    times: Callable[[int, int, Mapping[str, Any], Path], list[int]]
    fixed: dict[str, Any]


def _drawing(
    said: dict[str, Any], where: Path, *, learned: bool, own: bool
) -> tuple[dict[str, Any], list[str]]:
    """The keys of a configuration that a scheduler's file says, and what there is to tell of it."""
    kind = said.get("_class_name", "DDPMScheduler")
    schedule = _schedule(said, where)
    prediction = said.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise InputError(
            f"{where}: prediction_type = {prediction}: Unraze knows {', '.join(PREDICTIONS)}"
        )
    ends_in_noise = float(schedule.alpha_bar[-1]) == 0
    if ends_in_noise and prediction == "epsilon":
        raise InputError(
            f"{where}: prediction_type = epsilon with ᾱ_T = 0: the last x_t is all noise, from "
            "which no picture follows; give --prediction where it predicts another"
        )
    keys: dict[str, Any] = {f"schedule.{k}": v for k, v in _named(schedule).items()}
    keys["loss.parametrisation"] = PREDICTIONS[prediction]
    notes: list[str] = []
    if not own:
        sample: dict[str, Any] = {
            "sampler": "ddim",
            "steps": min(50, schedule.steps),
            "clip": "clip",
        }
        lowest = schedule.alpha_bar[-1]
    else:
        if kind not in SCHEDULERS:
            raise InputError(
                f"{where}: _class_name = {kind}: Unraze follows {', '.join(SCHEDULERS)}; give "
                "--own-sampler to take its betas alone and draw by DDIM"
            )
        way = SCHEDULERS[kind](said, where)
        _require_fixed(said, way.fixed, where)
        _require_images(said, where)
        steps = min(way.steps, schedule.steps)
        times = way.times(schedule.steps, steps, said, where)
        sample = way.sample | _clip(said, way.sample.get("clip", "clip"), where)
        sample["steps"] = len(times) - 1
        if times != list(range(schedule.steps + 1)):
            sample["spacing"] = tuple(map(float, times))
        if way.sample["sampler"] == "random":
            # they add noise in every step that does not begin at their t = 0
            sample["final_noise"] = times[1] > 1
        if sample.get("sigma") == "learned" and not learned:
            raise InputError(
                f"{where}: variance_type = learned_range: the network emits no variance"
            )
        lowest = schedule.alpha_bar[times[-1]]
    if float(lowest) > schedules.MAX_TERMINAL_SIGNAL:
        keys["schedule.allow_signal"] = True
        notes.append(
            f"sampling begins where ᾱ = {float(lowest):.3g} of a picture is left (more than "
            f"{schedules.MAX_TERMINAL_SIGNAL}), as in diffusers: expect pale pictures"
        )
    keys |= {f"sample.{key}": value for key, value in sample.items()}
    return keys, notes


def _require_fixed(said: Mapping[str, Any], fixed: Mapping[str, Any], where: Path) -> None:
    for key, needed in fixed.items():
        value = said.get(key, needed)
        if value is not None and value != needed:
            raise InputError(
                f"{where}: {key} = {value}: Unraze's is as with {needed}, so it would draw other "
                "pictures; give --own-sampler to take the betas alone and draw by DDIM"
            )


def _require_images(said: Mapping[str, Any], where: Path) -> None:
    limit = said.get("clip_sample_range", 1.0)
    if said.get("clip_sample", True) and limit != 1.0:
        raise InputError(
            f"{where}: clip_sample_range = {limit}: Unraze clips to [-1, 1]; give --own-sampler"
        )


def _clip(said: Mapping[str, Any], clips: str, where: Path) -> dict[str, Any]:
    """`sample.clip` of a scheduler that clips, or would, as `clips`."""
    if said.get("thresholding", False):
        most = said.get("sample_max_value", 1.0)
        if most >= NO_BOUND:
            quantile = said.get("dynamic_thresholding_ratio", 0.995)
            return {"clip": "dynamic", "dynamic_quantile": quantile}
        if most == 1.0:  # the bound of x_0 is at least 1, and with this at most 1
            return {"clip": "clip" if clips == "none" else clips}
        raise InputError(
            f"{where}: sample_max_value = {most}: Unraze's dynamic thresholding has no upper "
            "bound; give --own-sampler, and --clip dynamic when sampling"
        )
    return {"clip": clips if said.get("clip_sample", True) else "none"}


def _ancestral(said: Mapping[str, Any], where: Path) -> _Way:
    variance = said.get("variance_type", "fixed_small")
    sigmas = {
        "fixed_small": "beta_tilde",
        "fixed_small_log": "beta_tilde",
        "fixed_large": "beta",
        # theirs is the root of a logarithm, not a number: what the name says is β
        "fixed_large_log": "beta",
        "learned_range": "learned",
    }
    if variance not in sigmas:
        raise InputError(f"{where}: variance_type = {variance}: Unraze knows {', '.join(sigmas)}")
    sample = {"sampler": "random", "sigma": sigmas[variance]}
    return _Way(sample, 1000, _times_of_a_chain, {})


def _deterministic(said: Mapping[str, Any], where: Path) -> _Way:
    del where
    # its ε̄ is that of before the clipping
    return _Way(
        {"sampler": "ddim", "clip": "x0-only"}, 50, _times_of_a_chain, {"set_alpha_to_one": True}
    )


MULTISTEP = {
    "lower_order_final": True,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_karras_sigmas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "final_sigmas_type": "zero",
}


def _dpm_solver(said: Mapping[str, Any], where: Path) -> _Way:
    order, algorithm = said.get("solver_order", 2), said.get("algorithm_type", "dpmsolver++")
    names = {
        (1, "dpmsolver++"): "ddim",
        (2, "dpmsolver++"): "dpmpp_2m",
        (2, "sde-dpmsolver++"): "dpmpp_2m_sde",
    }
    if (order, algorithm) not in names:
        raise InputError(
            f"{where}: solver_order = {order}, algorithm_type = {algorithm}: Unraze follows "
            "dpmsolver++ of order 1 and 2 and sde-dpmsolver++ of order 2 (of order 3 the two "
            "differ); give --own-sampler"
        )
    fixed = {"solver_type": "midpoint", "euler_at_final": False, "use_lu_lambdas": False}
    fixed |= {"variance_type": None, "lambda_min_clipped": -math.inf}
    return _Way(
        {"sampler": names[order, algorithm], "clip": "none"},
        25,
        _times_of_levels,
        MULTISTEP | fixed,
    )


def _unipc(said: Mapping[str, Any], where: Path) -> _Way:
    del where
    order = said.get("solver_order", 2)
    fixed = {"solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None}
    fixed |= {"sigma_min": None, "sigma_max": None, "shift_terminal": None}
    return _Way(
        {"sampler": "unipc", "order": order, "clip": "none"},
        25,
        _times_of_levels,
        MULTISTEP | fixed,
    )


SCHEDULERS: dict[str, Callable[[Mapping[str, Any], Path], _Way]] = {
    "DDPMScheduler": _ancestral,
    "DDIMScheduler": _deterministic,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "UniPCMultistepScheduler": _unipc,
}
"""How each of their schedulers that Unraze follows draws."""


def _times_of_a_chain(total: int, steps: int, said: Mapping[str, Any], where: Path) -> list[int]:
    """0 and our times of the steps of DDPM and DDIM, rising; their next t is t - ⌊T/steps⌋."""
    if steps == total:
        _require_no_offset(said, where)
        return list(range(total + 1))
    ratio, spacing = total // steps, said.get("timestep_spacing", "leading")
    match spacing:
        case "leading":
            first = 1 + int(said.get("steps_offset", 0))
            times = [first + k * ratio for k in range(steps)]
        case "trailing" if total % steps == 0:
            times = [(k + 1) * ratio for k in range(steps)]
        case _:
            raise InputError(
                f"{where}: timestep_spacing = {spacing}: with {steps} of {total} steps theirs goes "
                "to times that are not the next it stands at; give --own-sampler"
            )
    return _within([0, *times], total, where)


def _times_of_levels(total: int, steps: int, said: Mapping[str, Any], where: Path) -> list[int]:
    """0 and our times of the steps of the multistep schedulers, rising."""
    spacing = said.get("timestep_spacing", "linspace")
    match spacing:
        case "linspace":
            theirs = np.linspace(0, total - 1, steps + 1).round()[1:].tolist()
        case "leading":
            offset = int(said.get("steps_offset", 0))
            theirs = [k * (total // (steps + 1)) + offset for k in range(1, steps + 1)]
        case "trailing":
            theirs = (np.arange(total, 0, -total / steps).round()[::-1] - 1).tolist()
        case _:
            raise InputError(f"{where}: timestep_spacing = {spacing}: is none that Unraze knows")
    return _within([0, *(int(t) + 1 for t in theirs)], total, where)


def _require_no_offset(said: Mapping[str, Any], where: Path) -> None:
    if said.get("steps_offset", 0):
        raise InputError(
            f"{where}: steps_offset = {said['steps_offset']}: leaves no room for all steps"
        )


def _within(times: list[int], total: int, where: Path) -> list[int]:
    if times[-1] > total or sorted(set(times)) != times:
        raise InputError(
            f"{where}: steps_offset: the steps would begin at t = {times[-1]} of {total}; give "
            "--own-sampler"
        )
    return times


def _json(file: Path) -> dict[str, Any]:
    """An object from a JSON file; raises `CheckpointError`."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: is missing; is {file.parent} a diffusers model?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds no object of keys and values")
    return values
