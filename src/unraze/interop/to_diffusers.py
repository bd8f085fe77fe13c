"""A run, written as a pipeline folder that diffusers loads.

    FOLDER/model_index.json
    FOLDER/unet/config.json, diffusion_pytorch_model.safetensors
    FOLDER/scheduler/scheduler_config.json

Where diffusers' UNet2DModel is the run's network, weight for weight, it is a stock pipeline. For
the other networks, and for classes, which no stock pipeline of pixels asks for, the folder carries
their code besides (`unraze.interop.carried`), which diffusers runs where it is told to trust it:

    FOLDER/pipeline.py, FOLDER/unet/unraze_unet.py

Nothing is written under the final name before all of it is there.
"""

import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor
from typing_extensions import assert_never

from unraze import augment, files, schedule as schedules
from unraze.config import SampleConfig, UNet2DConfig, UNetConfig
from unraze.denoiser import edm_input_scale
from unraze.errors import InputError
from unraze.generate import Model, can_be_guided, plan_of, settings_of
from unraze.interop import card as cards
from unraze.interop.diffusers_schedulers import (
    NO_BOUND,
    PREDICTIONS,
    betas,
    spacing_of,
    times_of_levels,
)
from unraze.interop.folder import require_free, whole_folder
from unraze.interop.from_diffusers import WEIGHTS
from unraze.schedule import Schedule

__all__ = ["Written", "stock_network", "write"]

FORMAT = "0.30.0"
"""The version of diffusers whose files these are."""
FALLBACK_STEPS = 50


@dataclass(frozen=True)
class Written:
    """A folder that was written: `stock` says that it needs no code but diffusers' own, `pipeline`
    the class that loads it, `notes` what draws otherwise there than here."""

    folder: Path
    stock: bool
    pipeline: str
    steps: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Scheduler:
    """A scheduler's class and file, the steps of a call, the stock pipeline that it is of, and what
    it does otherwise than the run's sampler."""

    name: str
    values: dict[str, Any]
    steps: int
    pipeline: str
    notes: tuple[str, ...]


def write(
    model: Model,
    out: Path,
    *,
    licence: str | None = None,
    title: str | None = None,
    with_card: bool = True,
    preview: Path | None = None,
    follow: cards.Follow = iter,
) -> Written:
    """Writes a pipeline folder of the model's weights, schedule and, where there is one like it,
    sampler; `with_card`, the model card of its run too, with this licence and title, and with fresh
    samples, whose drawing `follow` may show, or `preview` for a picture.

    Raises `InputError` where `out` exists, or for a model that diffusers has no way to draw from;
    `UnrazeError` where it cannot be written. Nothing is left then.
    """
    require_free(out)
    if model.config.distilled is not None:
        raise InputError(
            f"{model.run}: a distilled network jumps along the flow, which no scheduler of "
            f"diffusers does; export the run that it was made of: {model.config.distilled.run}"
        )
    settings = settings_of(model)
    guided = settings.guidance != 1 and can_be_guided(model)
    found = None if model.num_classes else stock_network(model)
    scheduler = _scheduler(model, settings, stock=found is not None)
    parts: dict[str, bytes] = {"scheduler/scheduler_config.json": _json_bytes(scheduler.values)}
    if found is not None:
        network, weights = found
        pipeline = scheduler.pipeline
        index: dict[str, Any] = {
            "_class_name": pipeline,
            "unet": ["diffusers", "UNet2DModel"],
        }
        unet = {"_class_name": "UNet2DModel", **_unet2d_values(network, model)}
    else:
        weights = {f"network.{k}": v for k, v in model.network.state_dict().items()}
        pipeline = "UnrazePipeline"
        index = {
            "_class_name": ["pipeline", pipeline],
            "unet": ["unraze_unet", "UnrazeUNet"],
            "steps": scheduler.steps,
            "guidance": settings.guidance if guided else 1.0,
            "guidance_from": settings.guidance_interval[0],
            "guidance_to": settings.guidance_interval[1],
            "keeps_noise": settings.clip == "x0-only",
            "shares": None if model.clusters is None else model.clusters.shares.tolist(),
        }
        unet = {"_class_name": "UnrazeUNet", **_own_values(model)}
        carried = resources.files("unraze.interop.carried")
        parts["pipeline.py"] = (carried / "pipeline.py").read_bytes()
        parts["unet/unraze_unet.py"] = _code(model).encode()
    index |= {"scheduler": ["diffusers", scheduler.name], "_diffusers_version": FORMAT}
    parts["model_index.json"] = _json_bytes(index)
    parts["unet/config.json"] = _json_bytes(unet | {"_diffusers_version": FORMAT})
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    parts[f"unet/{WEIGHTS}"] = safetensors.torch.save(plain, metadata={"format": "pt"})
    stock = found is not None
    with whole_folder(out) as folder:
        for name, data in parts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            files.write_and_flush(folder / name, data)
        if with_card:
            cards.write_card(
                folder,
                model,
                title=title,
                licence=licence,
                library_name="diffusers",
                usage=_usage(out.name, scheduler, stock=stock),
                preview=preview,
                follow=follow,
            )
    return Written(out, stock, pipeline, scheduler.steps, scheduler.notes)


def _usage(name: str, scheduler: _Scheduler, *, stock: bool) -> str:
    """How it is loaded, in Markdown."""
    trust = "" if stock else ", trust_remote_code=True"
    said = f"""```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({name!r}{trust})  # the path of this folder
pipe(batch_size=4, num_inference_steps={scheduler.steps}).images[0].save("one.png")
```
"""
    if not stock:
        said += (
            "\ndiffusers has no network or pipeline like this one, so their code is in this "
            "folder, `pipeline.py` and `unet/unraze_unet.py`. It is run only with "
            "`trust_remote_code=True`: read it first. It needs torch and diffusers, not Unraze.\n"
        )
    for note in scheduler.notes:
        said += f"\nNote: {note}.\n"
    return said


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


# ---------------------------------------------------------------------------------- the network


def stock_network(model: Model) -> tuple[UNet2DConfig, dict[str, Tensor]] | None:
    """The UNet2DModel that a model's network is, and its weights by their names; None of others."""
    config = model.config.network
    plain = not model.config.loss.self_conditioning and not model.config.data.augment
    if not plain or model.config.loss.parametrisation not in PREDICTIONS.values():
        return None
    match config:
        case UNet2DConfig():
            return config, model.network.state_dict()
        case UNetConfig():
            head_dim = _head_dim(config)
            fits = config.block == "resnet" and config.dim % 2 == 0 and config.dim > 2
            levels = set(range(len(config.multipliers)))
            if (
                not fits
                or head_dim is None
                or (config.linear_attention and levels - set(config.attention))
            ):
                return None
            return _as_unet2d(config, head_dim, model.network.state_dict())
        case _:
            return None


def _head_dim(config: UNetConfig) -> int | Literal["all"] | None:
    """`attention_head_dim` where attention acts; None where no one value is right."""
    widths = {config.dim * config.multipliers[level] for level in (*config.attention, -1)}
    if config.head_dim is not None:
        fits = all(config.heads * config.head_dim == width for width in widths)
        return config.head_dim if fits else None
    if config.heads == 1:
        return "all"
    dims = {width // config.heads for width in widths}
    return dims.pop() if len(dims) == 1 else None


def _as_unet2d(
    config: UNetConfig, head_dim: int | Literal["all"], weights: Mapping[str, Tensor]
) -> tuple[UNet2DConfig, dict[str, Tensor]]:
    levels = len(config.multipliers)
    attends = [level in config.attention for level in range(levels)]
    network = UNet2DConfig(
        block_out_channels=tuple(config.dim * m for m in config.multipliers),
        layers_per_block=config.blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=None if head_dim == "all" else head_dim,
        norm_num_groups=config.groups,
        attn_norm_num_groups=config.groups,
        norm_eps=1e-6,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        downsample_padding=0,
        freq_shift=1,
        flip_sin_to_cos=False,
        dropout=config.dropout,
    )
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        out |= dict(_renamed(name, value, levels))
    inner = "time_embedding.linear_1.weight"
    out[inner] = _earlier(out[inner])
    return network, out


BLOCK = {"time": "time_emb_proj", "skip": "conv_shortcut"}
"""Parts of a ResNet block that are called otherwise there."""


def _renamed(name: str, value: Tensor, levels: int) -> list[tuple[str, Tensor]]:
    """A tensor of `unraze.nn.unet` as those of UNet2DModel."""
    first, _, rest = name.partition(".")
    match first:
        case "conditioning":
            part, _, kind = rest.partition(".")
            names = {"inner": "time_embedding.linear_1", "outer": "time_embedding.linear_2"}
            return [(f"{names.get(part, 'class_embedding')}.{kind}", value)]
        case "stem" | "norm" | "out":
            names = {"stem": "conv_in", "norm": "conv_norm_out", "out": "conv_out"}
            return [(f"{names[first]}.{rest}", value)]
        case "middle":
            return _of_stage(rest, "mid_block", 0, value)
        case "middle_last":
            return _of_stage(f"block.{rest}", "mid_block", 1, value)
        case "downs" | "ups":
            side = first.removesuffix("s")
            number, _, rest = rest.partition(".")
            return [(f"{side}_blocks.{number}.{side}samplers.0.{rest}", value)]
        case _:  # down_levels, up_levels
            side = first.removesuffix("_levels")
            level, number, rest = rest.split(".", 2)
            return _of_stage(rest, f"{side}_blocks.{level}", int(number), value)


def _of_stage(rest: str, level: str, number: int, value: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor of a block, or of the attention behind it."""
    what, part, *kind = rest.split(".")
    if what == "block":
        return [(f"{level}.resnets.{number}.{BLOCK.get(part, part)}.{kind[0]}", value)]
    at = f"{level}.attentions.{number}"
    if part == "norm":
        return [(f"{at}.group_norm.{kind[0]}", value)]
    inner, leaf = kind  # 1 x 1 convolutions here, matrices there
    value = value.flatten(1) if value.dim() == 4 else value
    if inner == "out":
        return [(f"{at}.to_out.0.{leaf}", value)]
    parts = zip(("to_q", "to_k", "to_v"), value.chunk(3), strict=True)
    return [(f"{at}.{name}.{leaf}", one) for name, one in parts]


def _earlier(weight: Tensor) -> Tensor:
    """The matrix (E, d) on waves of our t as one on waves of theirs, t - 1.

    sin ω(τ+1) = sin ωτ cos ω + cos ωτ sin ω, and cos ω(τ+1) = cos ωτ cos ω - sin ωτ sin ω.
    """
    sines, cosines = weight.double().chunk(2, dim=1)
    half = sines.shape[1]
    # as `unraze.nn.layers.sinusoidal` has them: in float32
    i = torch.arange(half, dtype=torch.float32)
    omega = torch.exp(-torch.tensor(10000.0).log() / (half - 1) * i).double()
    c, s = omega.cos(), omega.sin()
    return torch.cat((sines * c - cosines * s, sines * s + cosines * c), dim=1).to(weight.dtype)


def _unet2d_values(network: UNet2DConfig, model: Model) -> dict[str, Any]:
    values = network.model_dump(mode="json", exclude={"kind"})
    if network.mid_block_type == "none":
        values["mid_block_type"] = None
    return values | _images(model) | {"out_channels": _emitted(model)}


def _images(model: Model) -> dict[str, Any]:
    channels, height, width = model.shape
    size: Any = height if height == width else [height, width]
    return {"in_channels": channels, "sample_size": size}


def _emitted(model: Model) -> int:
    return model.shape[0] * (2 if model.config.loss.variance == "learned" else 1)


def _own_values(model: Model) -> dict[str, Any]:
    config = model.config
    return {
        "sample_size": list(model.shape[1:]),
        "in_channels": model.shape[0],
        "layers": config.network.model_dump(mode="json"),
        "num_classes": model.num_classes,
        "self_conditioning": config.loss.self_conditioning,
        "learned_variance": config.loss.variance == "learned",
        "augment_values": augment.VALUES if config.data.augment else 0,
        **_conversion(model),
    }


def _conversion(model: Model) -> dict[str, Any]:
    """What turns an output that no scheduler knows into one that they do, at each of its times.

    eps_step   ε̄ = (β̄_t/β_t) raw
    edm        v = (ᾱ β̄ (1 - σ_d²)/r²) x - (σ_d/r) F,   F being told x/r
    """
    schedule, times = model.schedule, model.schedule.times[1:]
    match model.config.loss.parametrisation:
        case "eps_step":
            return {"gain": (1 / schedule.step_ratio(times)).tolist()}
        case "edm":
            sigma = model.sigma_data
            scale = edm_input_scale(schedule, times, sigma)
            alpha_bar, beta_bar = schedule.at(times)
            skip = alpha_bar * beta_bar * (1 - sigma**2) * scale**2
            gain = -sigma * scale
            named = zip(("input_scale", "skip", "gain"), (scale, skip, gain), strict=True)
            return {name: values.tolist() for name, values in named}
        case "eps" | "x0" | "v":
            return {}
        case _:
            assert_never(model.config.loss.parametrisation)


# ---------------------------------------------------------------------------------- the scheduler

SAID = {
    "eps": "epsilon",
    "eps_step": "epsilon",
    "x0": "sample",
    "v": "v_prediction",
    "edm": "v_prediction",
}
"""What the exported network predicts, of each parametrisation."""


def _scheduler(model: Model, settings: SampleConfig, *, stock: bool) -> _Scheduler:
    """The one that draws as `settings` do, or else DDIM."""
    total, times = model.schedule.steps, plan_of(model, settings).chain.times.tolist()
    learned = model.config.loss.variance == "learned"
    notes: list[str] = []
    if settings.sampler == "random" or (stock and learned):
        variances = {"beta": "fixed_large", "beta_tilde": "fixed_small", "learned": "learned_range"}
        own = settings.sampler == "random"
        values: dict[str, Any] = {"timestep_spacing": "leading"}
        values["variance_type"] = variances[settings.sigma if own else "learned"]
        if not own:
            notes.append(
                "their DDIM does not know a network that learned its variance: it draws by DDPM "
                f"in all {total} steps, where the run draws by {settings.sampler} in "
                f"{settings.steps}"
            )
        elif settings.steps < total:
            notes.append(f"it draws in all {total} steps, the run in {settings.steps} of them")
        if own and settings.sigma_share not in (None, 1.0):
            notes.append(f"it adds all of σ_t, the run {settings.sigma_share:g} of it")
        if own and settings.final_noise:
            notes.append("it adds no noise in the last step, which the run does")
        return _made("DDPMScheduler", "DDPMPipeline", values, total, model, settings, notes)
    sde = settings.sampler == "dpmpp_2m_sde" and settings.eta in (None, 1.0)
    signal = float(model.schedule.alpha_bar[-1]) > 0  # their σ = β̄/ᾱ is a number then
    if (settings.sampler == "dpmpp_2m" or sde) and signal:
        for spacing in ("linspace", "leading", "trailing"):
            values = {"timestep_spacing": spacing, "steps_offset": 0}
            if times_of_levels(spacing, 0, settings.steps, total) == times:
                values["algorithm_type"] = "sde-dpmsolver++" if sde else "dpmsolver++"
                values["solver_order"] = 2
                name = "DPMSolverMultistepScheduler"
                steps = settings.steps
                return _made(name, "DDPMPipeline", values, steps, model, settings, notes)
    if settings.sampler != "ddim":
        notes.append(
            f"the run draws by {settings.sampler} in {settings.steps} steps, which their pipelines "
            "of pixels do not: this one draws by DDIM"
        )
    found = spacing_of(times, total) if settings.sampler == "ddim" else None
    steps = settings.steps
    if found is None:
        most = settings.steps if settings.sampler == "ddim" else FALLBACK_STEPS
        steps = _divisor(total, most)
        if settings.sampler == "ddim":
            notes.append(
                f"the run's {settings.steps} steps lie where theirs can't: it draws in {steps}"
            )
    spacing, offset = found or ("trailing", 0)
    values = {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": True}
    if stock and settings.clip in ("clip", "dynamic"):
        notes.append(
            "Unraze takes the noise from the clipped x̂₀: for the same pictures, call it with "
            "use_clipped_model_output=True"
        )
    if settings.sampler == "ddim" and settings.eta:
        notes.append(f"the run draws with η = {settings.eta:g}: call it with eta={settings.eta:g}")
    return _made("DDIMScheduler", "DDIMPipeline", values, steps, model, settings, notes)


def _made(
    name: str,
    pipeline: str,
    values: dict[str, Any],
    steps: int,
    model: Model,
    settings: SampleConfig,
    notes: Sequence[str],
) -> _Scheduler:
    """With what all of them say."""
    clips = settings.clip in ("clip", "x0-only")
    # those of several steps know only thresholds; with a bound of 1 they clip
    multistep = name == "DPMSolverMultistepScheduler"
    every: dict[str, Any] = {
        "_class_name": name,
        "_diffusers_version": FORMAT,
        "num_train_timesteps": model.schedule.steps,
        "prediction_type": SAID[model.config.loss.parametrisation],
        "thresholding": settings.clip == "dynamic" or (multistep and clips),
        "dynamic_thresholding_ratio": settings.dynamic_quantile,
        "sample_max_value": NO_BOUND if settings.clip == "dynamic" else 1.0,
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
        **_betas(model.schedule),
    }
    if not multistep:
        every |= {"clip_sample": clips, "clip_sample_range": 1.0}
    return _Scheduler(name, every | values, steps, pipeline, tuple(notes))


def _divisor(total: int, most: int) -> int:
    """The most steps, up to `most`, that theirs divide T into evenly; all where these are few."""
    found = max(n for n in range(1, min(most, total) + 1) if total % n == 0)
    return found if found >= min(most, total) / 3 else total


def _betas(schedule: Schedule) -> dict[str, Any]:
    """The keys that give this schedule: by a formula of theirs where one does, else its betas."""
    formulas: tuple[dict[str, Any], ...] = (
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2", "beta_start": 1e-4, "beta_end": 0.02},
    )
    for keys in formulas:
        theirs = schedules.from_variances(betas(keys["beta_schedule"], schedule.steps))
        if torch.allclose(theirs.alpha_bar, schedule.alpha_bar, rtol=1e-12, atol=0):
            return {**keys, "trained_betas": None}
    return {**formulas[0], "trained_betas": schedule.beta[1:].square().tolist()}


# ------------------------------------------------------------------------------------- the code

NETWORK_CODE = {"lean": "unraze.nn.lean", "unet": "unraze.nn.unet"}
TYPES_ALONE = ("unraze.config",)
"""Modules that the carried code names only as types of arguments."""


def _code(model: Model) -> str:
    """The model's network and its model of diffusers, which need no Unraze."""
    kind = model.config.network.kind
    if kind not in NETWORK_CODE:
        raise InputError(
            f"{model.run}: network.kind = {kind}: is not exported with classes, for no stock "
            "pipeline asks for them"
        )
    return inlined(NETWORK_CODE[kind], "unraze.interop.carried.unet")


def inlined(*names: str) -> str:
    """The sources of modules and of the package's modules they import from, in one file.

    The imports of other packages come first, once each; the package's own are left out, and so is
    what only they need (`__all__`).
    """
    imports: dict[str, None] = {}
    bodies: dict[str, str] = {}

    def visit(module: str) -> None:
        if module in bodies or module in TYPES_ALONE:
            return
        source = inspect.getsource(import_module(module))
        lines = source.splitlines()
        drop: set[int] = set()
        for node in ast.parse(source).body:
            span = range(node.lineno - 1, node.end_lineno or node.lineno)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unraze"):
                visit(node.module or "")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                imports[ast.unparse(node)] = None
            elif not _is_all(node):
                continue
            drop.update(span)
        kept = [line for number, line in enumerate(lines) if number not in drop]
        # what was the module's docstring stays as a string that says what follows
        bodies[module] = "\n".join(kept).strip()

    for name in names:
        visit(name)
    head = '"""The code of a network of Unraze (MIT licence), as diffusers loads it."""'
    future = "from __future__ import annotations"
    parts = ["\n".join((head, "", future, "", *imports)), *bodies.values()]
    return "\n\n\n".join(parts) + "\n"


def _is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
