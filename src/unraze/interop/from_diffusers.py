"""diffusers' pipelines of UNet2DModel, read into what a run is made of.

    FOLDER/model_index.json                          which pipeline, which parts
    FOLDER/unet/config.json, diffusion_pytorch_model.safetensors
    FOLDER/scheduler/scheduler_config.json           the schedule, and how it draws

Old pipelines have all of it in one folder; a model alone has no scheduler. What is read is checked:
a setting that Unraze cannot follow is an error, never left out.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from unraze import nn as networks, untrusted, weights
from unraze.checkpoint import require_fit
from unraze.config import Config, UNet2DConfig, explained, updated
from unraze.errors import CheckpointError, InputError
from unraze.interop.diffusers_schedulers import drawing

__all__ = ["WEIGHTS", "Found", "read"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLE = "diffusion_pytorch_model.bin"
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the parts of attention in models from before diffusers 0.15, and what they are called now."""

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
    shape, learned = _pictures(values, size, at / "config.json")
    classes = network.num_class_embeds or 0
    notes = []
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
    drawn = drawing(said, where, learned=learned, own=scheduler)
    tensors = _weights(at, network, shape, classes, learned=learned)
    name = os.fsencode(folder.resolve().name).decode(errors="replace")
    config = updated(
        Config(),
        {
            "preset": "diffusers",
            "about": f"read from {name}, a model of diffusers",
            "network.kind": network.kind,
            **{f"network.{key}": value for key, value in network.model_dump().items()},
            "data.source": name,
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
            "loss.parametrisation": drawn.parametrisation,
            **{f"schedule.{key}": value for key, value in drawn.schedule.items()},
            **{f"sample.{key}": value for key, value in drawn.sample.items()},
        },
    )
    return Found(config, tensors, shape, classes, (*notes, *drawn.notes))


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
        network = UNet2DConfig.model_validate(layers)
    except ValidationError as error:
        raise InputError(f"{file}: {explained(error)}") from error
    return network, values


_Side = Annotated[int, Field(ge=1)]


class _Pictures(BaseModel):
    """What the network's file says of its pictures."""

    model_config = ConfigDict(strict=True, extra="ignore")

    in_channels: Annotated[int, Field(ge=1)] = 3
    out_channels: Annotated[int, Field(ge=1)] = 3
    sample_size: _Side | tuple[_Side, _Side] | None = None

    @field_validator("sample_size", mode="before")
    @classmethod
    def _a_list_is_a_pair(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


def _pictures(
    values: Mapping[str, Any], size: tuple[int, int] | None, file: Path
) -> tuple[tuple[int, int, int], bool]:
    """(C, H, W), and whether the network emits a variance."""
    try:
        said = _Pictures.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{file}: {explained(error)}") from error
    channels, out = said.in_channels, said.out_channels
    if channels not in IMAGES:
        raise InputError(
            f"{file}: in_channels = {channels}: a model of latents, not of grey or colour pictures"
        )
    if out not in (channels, 2 * channels):
        raise InputError(
            f"{file}: out_channels = {out}: is neither in_channels, {channels}, nor twice that"
        )
    side = said.sample_size
    theirs = (side, side) if isinstance(side, int) else side
    if size is not None and theirs not in (None, size):
        raise InputError(
            f"--size {size[0]}x{size[1]}: {file} says sample_size = {side}; leave it out"
        )
    found = size or theirs
    if found is None:
        raise InputError(f"{file}: does not say its sample_size; give --size")
    if found[0] * found[1] > untrusted.MAX_PIXELS:
        most = untrusted.MAX_PIXELS // 1_000_000
        raise InputError(f"{file}: sample_size = {side}: is more than {most} million pixels")
    return (channels, *found), out == 2 * channels


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
        tensors = weights.parsed(weights.read(file))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: is not a safetensors file ({error})") from error
    if len(tensors) < network.layers_per_block * len(network.block_out_channels):
        raise CheckpointError(
            f"{file}: holds {len(tensors)} tensors, too few for layers_per_block = "
            f"{network.layers_per_block}; is config.json beside it its own?"
        )
    try:
        wanted = _shapes(network, shape, classes, learned=learned)
    except InputError as error:
        raise InputError(f"{at / 'config.json'}: {error}") from error
    renamed = {_today(name): value for name, value in tensors.items()}
    for name, value in renamed.items():
        # attention's were 1 x 1 convolutions once
        if name in wanted and value.dim() == 4 and len(wanted[name]) == 2:
            renamed[name] = value.flatten(1)
    require_fit(wanted, renamed, file, remedy="is config.json beside it its own?")
    for name, value in renamed.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{file}: {name} holds values that are not finite; it is damaged")
    return {name: value.to(torch.float32) for name, value in renamed.items()}


def _shapes(
    network: UNet2DConfig, shape: tuple[int, int, int], classes: int, *, learned: bool
) -> dict[str, torch.Size]:
    # of a size that it divides, whatever is said of the pictures: that is asked for later
    divided = 2 ** (len(network.block_out_channels) - 1)
    return networks.shapes(
        network,
        channels=shape[0],
        size=(divided, divided),
        num_classes=classes,
        learned_variance=learned,
    )


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


def _json(file: Path) -> dict[str, Any]:
    """An object from a JSON file; raises `CheckpointError`."""
    try:
        values = untrusted.json_of(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: is missing; is {file.parent} a diffusers model?") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds no object of keys and values")
    return values
