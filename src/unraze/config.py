"""What a run is made of, checked once: every option has its name, its bounds and its default here.

A configuration is a tree of small frozen models, read from TOML (a preset, a run's `config.toml`),
and written back in full. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from unraze.errors import InputError
from unraze.untrusted import one_line, toml_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "ACTS_WITH",
    "DISTILLED",
    "MOST_CLASSES",
    "MOST_STEPS",
    "NOISE_SHARES",
    "NOT_DISTILLED",
    "OF_A_SAMPLER",
    "ORDERS",
    "WRITTEN",
    "BegunConfig",
    "Config",
    "DataConfig",
    "DistilledConfig",
    "LeanConfig",
    "LossConfig",
    "LucidrainsConfig",
    "NetworkConfig",
    "SampleConfig",
    "SamplerName",
    "ScheduleConfig",
    "TrainConfig",
    "UNetConfig",
    "explained",
    "from_dict",
    "from_toml",
    "idle",
    "preset",
    "preset_names",
    "preset_text",
    "remedy",
    "replaced",
    "require_given",
    "to_toml",
    "updated",
]

MOST_CHANNELS, MOST_LEVELS, MOST_CLASSES, MOST_STEPS = 2**16, 16, 10**6, 100_000
"""A network's channels, levels and classes, and a schedule's steps, at most. A configuration may be
a stranger's: whatever it says, a network's shapes can be found out, a schedule be computed."""
MOST_OF_RESTART = 1000
"""Calls of the restart sampler: how many of them are steps is searched from there down."""
LONGEST_VALUE = 200
"""The most letters of a wrong value that are shown."""

Parametrisation = Literal["eps_step", "eps", "x0", "v", "edm"]
SamplerName = Literal[
    "greedy",
    "random",
    "ddim",
    "heun",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "unipc",
    "ipndm",
    "deis",
    "adams",
    "restart",
    "consistency",
]
Positive = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Few = Annotated[int, Field(ge=1, le=256)]
Blocks = Annotated[int, Field(ge=1, le=64)]
Level = Annotated[int, Field(ge=0, lt=MOST_LEVELS)]
Batch = Annotated[int, Field(ge=1, le=10**9)]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Times = Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], Field(max_length=MOST_STEPS + 1)]

ORDERS: dict[SamplerName, int] = {"unipc": 3, "ipndm": 4, "deis": 4, "adams": 3, "restart": 2}
"""The samplers that have an order, and the highest."""
NOISE_SHARES: dict[SamplerName, float] = {"ddim": 0.0, "dpmpp_2m_sde": 1.0, "dpmpp_3m_sde": 1.0}
"""The samplers that have an η, and the η that each has where none is given."""
ACTS_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "loss.huber_delta": ("loss.distance", ("huber",)),
    "loss.min_snr_gamma": ("loss.weighting", ("min-snr",)),
    "loss.p2_k": ("loss.weighting", ("p2",)),
    "loss.p2_gamma": ("loss.weighting", ("p2",)),
    "loss.times_mean": ("loss.times", ("logit-normal", "log-normal")),
    "loss.times_std": ("loss.times", ("logit-normal", "log-normal")),
    "loss.variance_weight": ("loss.variance", ("learned",)),
    "train.muon_scale": ("train.optimizer", ("muon",)),
}
"""Numbers that are of one choice among several: the key of the choice, and which it is of."""
OF_A_SAMPLER: dict[str, tuple[SamplerName, ...]] = {
    "eta": tuple(NOISE_SHARES),
    "order": tuple(ORDERS),
    "sigma_share": ("random",),
    "restart_interval": ("restart",),
    "restart_repeats": ("restart",),
}
"""The keys of `sample` that some samplers have, and which; absent, they are the sampler's own."""

NOT_DISTILLED = (
    "sampler = consistency: jumps as far as only a distilled network was taught to; distil the "
    "run first, with `unraze distill RUN`, or take another sampler"
)
DISTILLED = (
    "a distilled network jumps along the flow and does not say the mean of x₀, which other "
    'samplers go by; take "consistency", or draw from the run that it was distilled from'
)
"""What to say where network and sampler do not fit each other; the second of a sampler."""

WRITTEN = {"distilled": "`unraze distill {}`", "begun": "`unraze train --from {}`"}
"""The sections that nobody gives, and by what they are written: they name weights that are in the
run's own folder, and without these it would be another training."""
BUDGET = ("minutes", "steps", "epochs")
"""The keys of `train` of which one says for how long."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class DataConfig(_Section):
    """Where the images come from and how they are brought to one shape."""

    source: str = Field(
        "", description="a folder, zip, tar, .npy/.npz, IDX or CIFAR file, a name, or hf:NAME"
    )
    size: tuple[Positive, Positive] | None = Field(
        None, description="height and width; absent: the images' own size, if they share one"
    )
    fit: Literal["crop", "pad", "stretch"] = Field(
        "crop", description="how an image of another aspect is brought to the size"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 RGB; absent: the images'")
    background: str = Field("white", description="the colour that transparency is flattened onto")
    flip: bool = Field(
        False,
        description="mirror half of the images, and so of the samples: for mirror-symmetric data",
    )
    augment: Literal["auto"] | Unit = Field(
        0.0,
        description="chance of each of six changes of a training image (mirrored, upside down, "
        "scaled, turned, stretched, shifted); the network is told, so samples show none; 0: none; "
        "auto: 0.12 where fewer than 10,000 images are trained on, else 0",
    )
    skip_bad: bool = Field(False, description="leave unreadable files out instead of stopping")
    # 0, not the presets' 0.1: what was trained before there was this key was trained on all images
    held_out: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        0.0,
        description="share of the images never trained on, where the source has no test part",
    )


class ScheduleConfig(_Section):
    """ᾱ_t, the signal amplitude after t steps (`unraze.schedule`)."""

    kind: Literal["linear", "quadratic", "sigmoid", "cosine", "angle", "given"] = "angle"
    steps: Annotated[int, Field(ge=2, le=MOST_STEPS)] = Field(
        1000, description="T, the number of steps"
    )
    rescaled: bool = Field(
        True,
        description="stretch the 1,000-step curve over T steps and down to ᾱ_T = 0.01; "
        "false: the formula at T points, as the tutorial does",
    )
    zero_terminal: bool = Field(False, description="rescale so that ᾱ_T = 0 (Lin et al. 2023)")
    allow_signal: bool = Field(False, description="accept ᾱ_T > 0.01: samples start off-course")
    alpha_bar: Annotated[tuple[Unit, ...], Field(max_length=MOST_STEPS + 1)] | None = Field(
        None, description="of given: ᾱ_0 … ᾱ_T, as `unraze import` finds them"
    )

    @model_validator(mode="after")
    def _given_is_all_there_is(self) -> ScheduleConfig:
        if self.kind != "given":
            if self.alpha_bar is not None:
                raise ValueError(
                    f'alpha_bar: kind = "{self.kind}" has its own; leave it out, or set kind = '
                    '"given"'
                )
            return self
        if self.alpha_bar is None:
            raise ValueError('alpha_bar is missing: kind = "given" needs ᾱ_0 … ᾱ_T')
        if len(self.alpha_bar) != self.steps + 1:
            raise ValueError(
                f"alpha_bar: {len(self.alpha_bar)} numbers, where steps = {self.steps} needs "
                f"ᾱ_0 … ᾱ_T, {self.steps + 1}"
            )
        if self.alpha_bar[0] != 1 or not _rises(self.alpha_bar[::-1]):
            raise ValueError("alpha_bar: give numbers that fall from 1, each below the one before")
        for key in ("rescaled", "zero_terminal"):
            if getattr(self, key):
                raise ValueError(
                    f'{key} = true: kind = "given" is taken as it is; set {key} = false'
                )
        return self


class LeanConfig(_Section):
    """The fast default network: pixels folded into channels, few and wide blocks (`nn/lean.py`)."""

    kind: Literal["lean"] = "lean"
    fold: Few | None = Field(
        None, description="fold squares of this side into channels first; absent: by the size"
    )
    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=MOST_LEVELS)] | None = (
        Field(None, description="channels per level; absent: by the size")
    )
    finish: Annotated[int, Field(ge=0, le=MOST_CHANNELS)] | None = Field(
        None,
        description="channels of a last look at the picture, in squares of half the side, 0 none; "
        "absent: none where both fold and widths are given, else by the fold",
    )
    blocks: Blocks = Field(1, description="ResNet blocks per level on each side")
    heads: Width = Field(4, description="attention heads, at the lowest resolution")
    groups: Width = Field(4, description="groups of the group normalisation")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class UNetConfig(_Section):
    """The annotated U-Net, and with other numbers the network of Ho et al. (`nn/unet.py`)."""

    kind: Literal["unet"] = "unet"
    dim: Width = Field(28, description="channels of the first level")
    multipliers: tuple[Few, ...] = Field((1, 2, 4), min_length=1, max_length=MOST_LEVELS)
    block: Literal["resnet", "convnext"] = "resnet"
    blocks: Blocks = Field(2, description="blocks per level on each side")
    attention: tuple[Level, ...] = Field(
        (),
        max_length=MOST_LEVELS,
        description="levels with full attention, 0 the finest; the middle always has it",
    )
    linear_attention: bool = Field(True, description="linear attention at the other levels")
    heads: Width = 4
    head_dim: Width | None = Field(
        None, description="channels per attention head; absent: a level's channels over its heads"
    )
    groups: Width = Field(4, description="groups of the group normalisation")
    scale_shift: bool = Field(True, description="time scales and shifts; false: it only shifts")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


DownBlock = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]


class UNet2DConfig(_Section):
    """diffusers' UNet2DModel, by the keys of its config.json (`nn/unet2d.py`)."""

    kind: Literal["unet2d"] = "unet2d"
    block_out_channels: tuple[Width, ...] = Field(
        (224, 448, 672, 896), min_length=1, max_length=MOST_LEVELS
    )
    layers_per_block: Blocks = 2
    down_block_types: tuple[DownBlock, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: Literal["UNetMidBlock2D", "none"] = "UNetMidBlock2D"
    up_block_types: tuple[UpBlock, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    add_attention: bool = Field(True, description="in the middle")
    mid_block_scale_factor: Annotated[float, Field(gt=0.0)] = 1.0
    attention_head_dim: Width | None = Field(
        None, description="channels per attention head; absent: one head of all"
    )
    norm_num_groups: Width = 32
    attn_norm_num_groups: Width | None = Field(
        None,
        description="of the middle's attention; absent: norm_num_groups, or with scale_shift none",
    )
    norm_eps: Annotated[float, Field(gt=0.0)] = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    time_embedding_dim: Annotated[int, Field(ge=1, le=4 * MOST_CHANNELS)] | None = None
    freq_shift: Annotated[int, Field(ge=0, le=MOST_CHANNELS)] = 0
    flip_sin_to_cos: bool = True
    center_input_sample: bool = False
    num_class_embeds: Annotated[int, Field(ge=1, le=MOST_CLASSES + 1)] | None = Field(
        None, description="rows of the table of classes; absent: one for each, and one for none"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _as_many_levels_everywhere(self) -> UNet2DConfig:
        levels = len(self.block_out_channels)
        for key in ("down_block_types", "up_block_types"):
            if len(getattr(self, key)) != levels:
                raise ValueError(
                    f"{key}: names {len(getattr(self, key))} levels, block_out_channels {levels}; "
                    "give one for each"
                )
        if self.block_out_channels[0] // 2 <= self.freq_shift:
            raise ValueError(
                f"freq_shift = {self.freq_shift}: is no less than half of the first of the "
                f"block_out_channels, {self.block_out_channels[0]}"
            )
        return self


class LucidrainsConfig(_Section):
    """The U-Net of denoising-diffusion-pytorch, for weights from there (`nn/lucidrains.py`)."""

    kind: Literal["lucidrains"] = "lucidrains"
    dim: Width = Field(64, description="channels that the multipliers are of; even")
    init_dim: Width | None = Field(None, description="of the first convolution; absent: dim")
    multipliers: tuple[Few, ...] = Field((1, 2, 4, 8), min_length=1, max_length=MOST_LEVELS)
    attention: tuple[Level, ...] = Field(
        (3,),
        max_length=MOST_LEVELS,
        description="levels with full attention, 0 the finest; the others have linear one",
    )
    heads: tuple[Width, ...] = Field(
        (4,), max_length=MOST_LEVELS, description="per level, or one number for all"
    )
    head_dim: tuple[Width, ...] = Field(
        (32,), max_length=MOST_LEVELS, description="per level, or one number for all"
    )
    memory: Annotated[int, Field(ge=0, le=MOST_CHANNELS)] = Field(
        4, description="learned keys and values"
    )
    max_period: Annotated[float, Field(gt=0.0)] = Field(10000.0, description="of the time's sines")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


NetworkConfig = Annotated[
    LeanConfig | UNetConfig | UNet2DConfig | LucidrainsConfig, Field(discriminator="kind")
]
NETWORKS: dict[str, type[_Section]] = {
    "lean": LeanConfig,
    "unet": UNetConfig,
    "unet2d": UNet2DConfig,
    "lucidrains": LucidrainsConfig,
}
"""By `network.kind`."""


class LossConfig(_Section):
    """What training minimises (`unraze.loss`)."""

    parametrisation: Parametrisation = Field("v", description="what the network's output means")
    objective: Literal["weighted", "reduced", "four-variable", "consistency"] = Field(
        "weighted",
        description="weighted: w(log-SNR) ‖x₀−x̂₀‖²; reduced and four-variable: the text's, for "
        "eps_step; consistency: that of `unraze distill`",
    )
    weighting: Literal["eps", "x0", "v", "min-snr", "p2", "edm"] | None = Field(
        None, description="w(log-SNR); absent: the plain distance in the target space"
    )
    target: Parametrisation | None = Field(
        None, description="the space of the distance; absent: that of the parametrisation"
    )
    distance: Literal["l2", "l1", "huber"] = "l2"
    huber_delta: Annotated[float, Field(gt=0.0)] = 1.0
    min_snr_gamma: Annotated[float, Field(gt=0.0)] = 5.0
    p2_k: Annotated[float, Field(gt=0.0)] = 1.0
    p2_gamma: Annotated[float, Field(ge=0.0)] = 1.0
    times: Literal["uniform", "logit-normal", "log-normal"] = "logit-normal"
    times_mean: float = Field(0.0, description="of the normal: logit θ, or ln σ (EDM: -1.2)")
    times_std: Annotated[float, Field(gt=0.0)] = 1.2
    continuous: bool = Field(True, description="times between the integers too")
    stratified: bool = Field(True, description="one time from each B-th part, over the batch")
    self_conditioning: bool = Field(False, description="the network also sees its last x̂₀")
    sigma_data: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="root mean square of the pixels; absent: measured and stored"
    )
    variance: Literal["fixed", "learned"] = Field(
        "fixed", description="learned: the network also says where σ lies between β and β̃"
    )
    variance_weight: Annotated[float, Field(gt=0.0)] = Field(
        1e-3, description="of the variational bound that it is learned by, in bits a dimension"
    )
    borders: Times | None = Field(
        None, description="of consistency: times from 0 to T; a call goes down to the next of them"
    )
    teacher_steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        6, description="of consistency: steps, even in θ, of the teacher from border to border"
    )
    teacher_guidance: Annotated[float, Field(ge=0.0)] = Field(
        1.0, description="of consistency: the guidance that is learned with the rest; 1: none"
    )
    teacher_interval: tuple[Unit, Unit] = Field(
        (0.0, 1.0), description="of consistency: the part of the time t/T in which it acts"
    )

    @model_validator(mode="after")
    def _consistency_is_a_jump(self) -> LossConfig:
        if self.objective != "consistency":
            if self.borders is not None:
                raise ValueError(
                    f'borders: objective = "{self.objective}" has none; leave them out, '
                    "`unraze distill` sets them"
                )
            return self
        low, high = self.teacher_interval
        if low > high:
            raise ValueError(f"teacher_interval = {low:g}, {high:g}: give the lower end first")
        if self.parametrisation not in ("v", "edm"):
            raise ValueError(
                'objective = "consistency" needs parametrisation = "v" or "edm", whose jumps are '
                f'as sure from T as near 0 (it is "{self.parametrisation}")'
            )
        if self.borders is None or self.borders[:1] != (0.0,) or not _rises(self.borders):
            raise ValueError('borders: objective = "consistency" needs times that rise from 0 to T')
        given = [k for k in ("weighting", "target") if getattr(self, k) is not None]
        if given or self.distance != "l2":
            raise ValueError(
                'objective = "consistency" has its own weights, target and distance: leave out '
                f"{' and '.join(given or ['distance'])}"
            )
        return self

    @model_validator(mode="after")
    def _objectives_of_the_text(self) -> LossConfig:
        if self.objective in ("reduced", "four-variable"):
            if self.parametrisation != "eps_step":
                raise ValueError(
                    f'objective = "{self.objective}" is a loss of the step noise: '
                    f'set parametrisation = "eps_step" (it is "{self.parametrisation}")'
                )
            if self.continuous:
                raise ValueError(
                    f'objective = "{self.objective}" needs whole steps: set continuous = false'
                )
            given = [k for k in ("weighting", "target") if getattr(self, k) is not None]
            if given:
                raise ValueError(
                    f'objective = "{self.objective}" has its own weights and target: '
                    f"leave out {' and '.join(given)}"
                )
            if self.distance != "l2":
                raise ValueError(
                    f'objective = "{self.objective}" is a squared norm: set distance = "l2"'
                )
            if self.variance == "learned":
                raise ValueError(
                    f'objective = "{self.objective}" knows no variance: set variance = "fixed", or '
                    'objective = "weighted" to learn one'
                )
        return self


class TrainConfig(_Section):
    """The loop: budget, batch, optimiser, averages, what is saved and when."""

    minutes: Annotated[float, Field(gt=0.0)] | None = None
    steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    batch: Batch = Field(128, description="images per optimiser step (the global batch)")
    accumulate: Batch = Field(1, description="parts that the batch is computed in")
    recompute: bool = Field(
        False,
        description="compute what is inside the blocks again in the backward pass in place of "
        "keeping it (activation checkpointing): less memory, about a third more time",
    )
    compile: bool = Field(
        False,
        description="compile the network (torch.compile): minutes before the first step, faster "
        "ones on a GPU; needs a C++ compiler",
    )
    shard: bool = Field(
        False,
        description="divide weights, gradients, moments and average over the ranks of torchrun "
        "(FSDP2), in memory and in checkpoints; false: each rank has all of them (DDP)",
    )
    optimizer: Literal["adamw", "adam", "muon"] = Field(
        "adamw", description="muon: of the hidden weights, and adamw of the others"
    )
    lr: Annotated[float, Field(gt=0.0)] = 2e-3
    muon_scale: Annotated[float, Field(gt=0.0)] = Field(
        5.0, description="the rate of muon's weights over lr"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.99,
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    warmup: Annotated[int, Field(ge=0, lt=2**53)] = Field(
        50, description="steps of rising learning rate"
    )
    decay: Unit = Field(0.7, description="last part of the budget in which lr falls to zero")
    clip: Annotated[float, Field(ge=0.0)] = Field(1.0, description="gradient norm bound; 0: none")
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.995
    ema_warmup: bool = Field(True, description="a shorter average while training is young")
    classes: bool = Field(False, description="condition on the class labels")
    clusters: Annotated[int, Field(ge=0, le=65_536)] = Field(
        0,
        description="condition on so many clusters of alike images, at most one for each 100 "
        "images; 0: on none",
    )
    label_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="share of labels or clusters hidden, for guidance"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="absent: all cores"
    )
    preview_every: Positive | None = Field(None, description="steps; absent: eight in the budget")
    checkpoint_every: Positive | None = Field(None, description="steps; absent: each minute or so")
    eval_every: Positive | None = Field(
        None, description="steps from one small evaluation to the next; absent: none"
    )
    keep: Annotated[int, Field(ge=2, lt=2**53)] = Field(2, description="newest checkpoints kept")

    @model_validator(mode="after")
    def _one_of_each(self) -> TrainConfig:
        if self.classes and self.clusters:
            raise ValueError(
                f"classes = true and clusters = {self.clusters}: a network is told one of them; "
                "set clusters = 0, or leave the classes out"
            )
        given = [k for k in BUDGET if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"the budget is given twice ({' and '.join(given)}): give one")
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch = {self.batch} cannot be computed in {self.accumulate} equal parts: "
                "make accumulate a divisor of batch"
            )
        return self


class SampleConfig(_Section):
    """How images are drawn from what was learned (`unraze.samplers`)."""

    sampler: SamplerName = "ddim"
    steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = Field(
        50,
        description="network calls, at most T; 0: by the size of the images, 10 up to 48 pixels a "
        "side and 15 above, settled as training begins",
    )
    spacing: Literal["time", "angle", "log_snr", "karras"] | Times = Field(
        "time",
        description="kept steps are even in t, in θ = arctan(β̄/ᾱ), in ln(ᾱ/β̄), as Karras et al. "
        "have them, or are these times, from 0 to T, as `unraze tune` searches them",
    )
    sigma: Literal["beta", "beta_tilde", "learned"] = Field(
        "beta", description="σ_t of the random sampler; learned: as the network says"
    )
    sigma_share: Unit | None = Field(
        None,
        description="share of σ_t that the random sampler adds, 0 is greedy; absent: all of it",
    )
    eta: Unit | None = Field(
        None, description="share of new noise; absent: 0 of ddim, 1 of the sde samplers"
    )
    order: Annotated[int, Field(ge=1, le=4)] | None = Field(
        None, description="of unipc, ipndm, deis, adams and restart; absent: the sampler's own"
    )
    restart_interval: tuple[Unit, Unit] | None = Field(
        None, description="of restart: the part of t/T that it goes through again"
    )
    restart_repeats: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="of restart: how often"
    )
    clip: Literal["none", "clip", "x0-only", "dynamic"] = Field(
        "clip",
        description="of x̂₀ to [-1, 1]; x0-only: the noise ε̄ stays as it was said, as in diffusers'"
        " DDIM, in place of what is left of x_t",
    )
    dynamic_quantile: Annotated[float, Field(gt=0.0, le=1.0)] = 0.995
    final_noise: bool = Field(False, description="add noise in the last step too (literal rule)")
    guidance: Annotated[float, Field(ge=0.0)] = Field(1.0, description="1: none")
    guidance_interval: tuple[Unit, Unit] = Field(
        (0.0, 1.0), description="part of the time t/T in which guidance acts"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the network; auto: as trained, but bfloat16 only in hardware"
    )

    @model_validator(mode="after")
    def _interval_rises(self) -> SampleConfig:
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval = {low:g}, {high:g}: give the lower end first")
        return self

    @model_validator(mode="after")
    def _keys_are_the_sampler_s(self) -> SampleConfig:
        for key, samplers in OF_A_SAMPLER.items():
            value = getattr(self, key)
            # η = 0 is what a run of before the other samplers says, whatever its sampler
            if value is None or self.sampler in samplers or (key == "eta" and value == 0):
                continue
            raise ValueError(
                f'{key} = {value}: sampler = "{self.sampler}" has none; leave it out, or take '
                f"{' or '.join(samplers)}"
            )
        most = ORDERS.get(self.sampler, 1)
        if self.order is not None and self.order > most:
            raise ValueError(f'order = {self.order}: "{self.sampler}" has order 1 to {most}')
        if self.restart_interval is not None:
            low, high = self.restart_interval
            if low >= high:
                raise ValueError(f"restart_interval = {low:g}, {high:g}: must rise")
        if self.sampler == "restart" and 0 < self.steps < 3:
            raise ValueError(f"steps = {self.steps}: restart needs 3 or more")
        if self.sampler == "restart" and self.steps > MOST_OF_RESTART:
            raise ValueError(f"steps = {self.steps}: restart takes {MOST_OF_RESTART:,} at most")
        return self

    @model_validator(mode="after")
    def _times_are_as_many_as_the_steps(self) -> SampleConfig:
        if isinstance(self.spacing, str):
            return self
        if self.sampler in ("heun", "restart"):
            raise ValueError(
                f"spacing: times of your own are not for {self.sampler}, whose steps take several "
                "calls"
            )
        if self.steps == 0:
            raise ValueError("spacing: with times of your own give steps too, one fewer")
        if len(self.spacing) != self.steps + 1 or self.spacing[0] != 0 or not _rises(self.spacing):
            raise ValueError(
                f"spacing: give steps + 1 = {self.steps + 1} times that rise from 0 to T"
            )
        return self


class DistilledConfig(_Section):
    """Whose weights a distilled run began with; they are in its folder, below `teacher`."""

    run: str = Field(description="the run that it was distilled from")
    checkpoint: str = Field(description="the SHA-256 of the weights that were its teacher")


class BegunConfig(_Section):
    """Whose weights a run of `unraze train --from` began with; they are in its folder, below
    `start`."""

    run: str = Field(description="the run whose weights they were")
    checkpoint: str = Field(description="the SHA-256 of these weights")
    unseen: bool = Field(
        False,
        description="whether the weights are known never to have seen what this run holds out",
    )


class Config(_Section):
    """A whole run: `preset` is where it began, the rest is what holds."""

    preset: str = "fast"
    about: str = ""
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    network: NetworkConfig = LeanConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    distilled: DistilledConfig | None = Field(
        None, description="written by `unraze distill`; absent: not distilled"
    )
    begun: BegunConfig | None = Field(
        None, description="written by `unraze train --from`; absent: from its beginning"
    )

    @model_validator(mode="after")
    def _jumps_are_for_the_distilled(self) -> Config:
        if (self.loss.objective == "consistency") != (self.distilled is not None):
            raise ValueError(
                'loss.objective = "consistency" is what `unraze distill RUN` trains by, and that '
                "alone: it needs the run that is the teacher"
            )
        if self.loss.borders is not None and self.loss.borders[-1] != self.schedule.steps:
            raise ValueError(
                f"loss.borders: the last is to be T = {self.schedule.steps}, where sampling begins "
                f"(it is {self.loss.borders[-1]:g})"
            )
        if (self.sample.sampler == "consistency") != (self.distilled is not None):
            raise ValueError(NOT_DISTILLED if self.distilled is None else f"sampler: {DISTILLED}")
        return self

    @model_validator(mode="after")
    def _a_learned_sigma_was_learned(self) -> Config:
        if self.sample.sigma == "learned" and self.loss.variance == "fixed":
            raise ValueError(
                'sample.sigma = "learned" where loss.variance = "fixed": this network learns no '
                'variance; take "beta" or "beta_tilde", or train one with loss.variance = "learned"'
            )
        return self


def _rises(times: Times) -> bool:
    return len(times) > 1 and all(a < b for a, b in itertools.pairwise(times))


def preset_names() -> tuple[str, ...]:
    """The names of the presets that come with the package, `fast` first."""
    files = (resources.files("unraze") / "presets").iterdir()
    names = sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))
    return tuple(sorted(names, key=lambda name: name != "fast"))


def preset_text(name: str) -> str:
    """The TOML text of a preset, comments and all; raises `InputError` for an unknown name."""
    if name not in preset_names():
        raise InputError(
            f"there is no preset '{one_line(name)}'{_nearest(name, preset_names())}; "
            f"the presets are {', '.join(preset_names())}"
        )
    return (resources.files("unraze") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def preset(name: str) -> Config:
    """The configuration of a preset; raises `InputError` for an unknown name."""
    return from_dict(tomllib.loads(preset_text(name)), where=f"preset {name}")


def from_toml(path: Path, *, complete: bool = False) -> Config:
    """Reads a configuration file: what it leaves out is as in the preset it names, or in `fast`.

    A `complete` one, as a run keeps, stands by itself; others may have no section of `WRITTEN`.
    Raises `InputError` that names the file and the key.
    """
    try:
        values = toml_of(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); give a TOML file such as "
            "`unraze config` prints"
        ) from error
    except ValueError as error:  # which that of TOML is, and of text, and of a number too long
        why = one_line(str(error))
        raise InputError(f"{path}: is not TOML ({why})") from error
    if not complete:
        require_given(values, str(path))
        name = values.get("preset", "fast")
        try:
            base = preset(name) if isinstance(name, str) else Config()
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        values = _laid_over(base, values)
    return from_dict(values, where=str(path))


def require_given(values: Mapping[str, Any], where: str) -> None:
    """Raises `InputError` where a configuration's values have a section of `WRITTEN`."""
    for key in WRITTEN:
        if (section := values.get(key)) is None:
            continue
        run = section.get("run") if isinstance(section, Mapping) else None
        of = one_line(run) if isinstance(run, str) else "RUN"
        raise InputError(
            f"{where}: is of a run that began with the weights of another, as [{key}] says; make "
            f"one anew by {WRITTEN[key].format(of)}, and --set the rest"
        )


def _laid_over(base: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """The base's values with these in place of them; a budget or another network replaces its."""
    out = base.model_dump()
    for name, section in values.items():
        if not (isinstance(section, Mapping) and isinstance(out.get(name), dict)):
            out[name] = section
            continue
        out[name] = replaced(name, out[name], section) | dict(section)
    return out


def replaced(name: str, values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A section's values without what new ones that are given for it leave no place for.

    One of `train.minutes`, `train.steps`, `train.epochs` replaces the budget, classes replace
    clusters, another network takes its keys with it, another sampler those that are its own
    (`OF_A_SAMPLER`), and an objective with weights of its own leaves none to be set.
    """
    out = dict(values)

    def changes(key: str) -> bool:
        return bool(given.get(key, out.get(key)) != out.get(key))

    if name == "train" and any(key in given for key in BUDGET):
        out |= dict.fromkeys(BUDGET)
    if name == "train" and given.get("classes"):
        out["clusters"] = 0
    if name == "sample" and changes("sampler"):
        out |= {**dict.fromkeys(OF_A_SAMPLER), "final_noise": False}
    if name == "loss" and changes("objective") and given["objective"] != "weighted":
        out |= {"weighting": None, "target": None}
    if name == "network" and changes("kind") and isinstance(given["kind"], str):
        kind = NETWORKS.get(given["kind"])
        out = kind().model_dump() if kind else out
    return out


def from_dict(values: Mapping[str, Any], *, where: str = "config") -> Config:
    """Checks nested plain values; raises one `InputError` naming place, value and remedy."""
    try:
        return Config.model_validate(_tuples(values), strict=True)
    except ValidationError as error:
        raise InputError(f"{where}: {explained(error)}") from error


def idle(config: Config) -> dict[str, Any]:
    """The numbers that are not as they are by default, and of a choice that was not made
    (`ACTS_WITH`): their defaults, by dotted keys."""
    found = {}
    for name, (key, needed) in ACTS_WITH.items():
        section, own = name.split(".")
        values = getattr(config, section)
        default = type(values).model_fields[own].default
        if getattr(values, own) != default and getattr(values, key.split(".")[1]) not in needed:
            found[name] = default
    return found


def updated(config: Config, changes: Mapping[str, Any], *, where: str = "option") -> Config:
    """A copy with dotted keys changed, `{"train.lr": 1e-3}`, checked as a whole.

    What they replace goes with them (`replaced`).
    """
    values = config.model_dump()
    for section, now in values.items():
        if isinstance(now, dict):
            own = len(section) + 1
            given = {k[own:]: v for k, v in changes.items() if k.startswith(f"{section}.")}
            values[section] = replaced(section, now, given)
    for dotted, value in changes.items():
        *sections, name = dotted.split(".")
        place: Any = values
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or name not in place or isinstance(place[name], dict):
            known = tuple(_leaves(values))
            raise InputError(
                f"{where}: there is no key '{dotted}'{_nearest(dotted, known)}; "
                "`unraze config --full` shows them all"
            )
        place[name] = value
    return from_dict(values, where=where)


def to_toml(config: Config) -> str:
    """The whole configuration as TOML; what is absent (None) is left out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def absent_keys(config: Config) -> list[str]:
    """The keys that `to_toml` leaves out and that may be given, "train.steps" say."""
    values = config.model_dump(mode="json")
    there = set(_leaves(_without_none(values)))
    return [key for key in _leaves(values) if key not in there and key not in WRITTEN]


def _tuples(value: Any) -> Any:
    """Lists, all that TOML has, as the tuples that the sections hold; nothing else is converted."""
    match value:
        case dict():
            return {k: _tuples(v) for k, v in value.items()}
        case list() | tuple():
            return tuple(_tuples(v) for v in value)
        case _:
            return value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """The words ", did you mean …?" where something known is close to `name`, else nothing."""
    name = name.lower()
    tails = {k.rsplit(".", 1)[-1]: k for k in known}
    close = difflib.get_close_matches(name, known, n=1) or [
        tails[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails), n=1)
    ]
    return f", did you mean '{close[0]}'?" if close else ""


def explained(error: ValidationError) -> str:
    """The first thing wrong, in one sentence: the key, its value, what would do."""
    kinds = " or ".join(map(repr, NETWORKS))
    errors = error.errors()
    first = next(e for e in errors if not _is_of_a_word(e) or e is errors[-1])
    path = _path(first)
    place = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = (
            *Config.model_fields,
            *_leaves(Config().model_dump()),
            *(f"network.{key}" for kind in NETWORKS.values() for key in kind.model_fields),
        )
        return f"there is no key '{one_line(place)}'{_nearest(place, known)}"
    if first["type"] == "union_tag_not_found":
        return f"{place}.kind is missing: give {kinds}"
    if first["type"] == "union_tag_invalid":
        return f"{place}.kind = {_as_written(first['input'].get('kind'))}: give {kinds}"
    if first["type"] == "missing":  # one of the numbers of a list, whose place ends the path
        place = ".".join(path[:-1])
    # a value that may be one thing or another is wrong as each of them
    remedies = [remedy(e).removeprefix("give ") for e in errors if _path(e) == path]
    what = remedy(first) if len(remedies) == 1 else f"give {' or '.join(remedies)}"
    if isinstance(first["input"], dict):
        return f"{place}: {what}" if place else what
    return f"{place} = {_as_written(first['input'])}: {what}"


def _is_of_a_word(error: ErrorDetails) -> bool:
    """Whether a list was held against the words that may stand in its place."""
    return error["type"] == "literal_error" and isinstance(error["input"], tuple | list)


def _path(error: ErrorDetails) -> list[str]:
    """Where it is in the file: the branches of a union appear in pydantic's path, but not there."""
    branch = re.compile(rf"({'|'.join(NETWORKS)})$|(literal|tuple)\[|constrained-")
    return [str(p) for p in error["loc"] if not branch.match(str(p))]


def remedy(error: ErrorDetails) -> str:
    """What would do in place of a value that will not, in the words of a configuration."""
    known = error.get("ctx", {})
    match error["type"]:
        case "greater_than":
            return f"give more than {_figure(known['gt'])}"
        case "greater_than_equal":
            return f"give at least {_figure(known['ge'])}"
        case "less_than":
            return f"give less than {_figure(known['lt'])}"
        case "less_than_equal":
            return f"give at most {_figure(known['le'])}"
        case "finite_number":
            return "give a finite number"
        case "int_type" | "int_from_float" | "int_parsing":
            return "give a whole number"
        case "float_type" | "float_parsing":
            return "give a number"
        case "bool_type" | "bool_parsing":
            return "give true or false"
        case "string_type":
            return "give a text in quotes"
        case "literal_error":
            return f"give {known['expected']}"
        case "tuple_type":
            return "give a list of numbers, in brackets"
        case "model_type" | "model_attributes_type":
            return "give a section of keys"
        case "too_long":
            most = known["max_length"]
            return f"give {most} numbers" if most < 4 else f"give {most:,} numbers or fewer"
        case "too_short":
            return f"give {known['min_length']} number or more"
        case "missing":
            return "give one number more"
        case _:
            return error["msg"].removeprefix("Value error, ")


def _figure(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _as_written(value: object) -> str:
    """A value as TOML has it, where Python has it otherwise."""
    match value:
        case bool():
            written = str(value).lower()
        case int() if value.bit_length() > LONGEST_VALUE:
            return f"a whole number of {value.bit_length()} bits"
        case tuple():
            written = f"[{', '.join(map(_as_written, value[:LONGEST_VALUE]))}]"
        case str():
            written = repr(value[:LONGEST_VALUE])
        case dict():
            return "a section of keys"
        case _:
            written = repr(value)
    return written if len(written) <= LONGEST_VALUE else f"{written[:LONGEST_VALUE]} …"
