"""Networks: functions (x_t, t) -> raw output, of x_t's shape; its meaning is the denoiser's.

One that learns its variance emits twice the channels.
"""

from collections.abc import Mapping

import torch
from torch import nn
from typing_extensions import assert_never

from unraze.config import (
    LeanConfig,
    LucidrainsConfig,
    NetworkConfig,
    UNet2DConfig,
    UNetConfig,
)
from unraze.errors import InputError
from unraze.hardware import memory
from unraze.nn import lean, lucidrains, unet, unet2d

__all__ = ["build", "parameters_in", "shapes"]


def build(
    config: NetworkConfig,
    *,
    channels: int,
    size: tuple[int, int],
    num_classes: int = 0,
    self_conditioning: bool = False,
    learned_variance: bool = False,
    augment_values: int = 0,
) -> nn.Module:
    """The network of a configuration, for images of `channels` x size[0] x size[1] (height, width).

    It is called as network(x (B, C, H, W), t (B,), classes=None, previous=None, augmentation=None)
    -> (B, C, H, W), t being the training time, 0 … T. `num_classes` > 0 makes it class-conditional,
    with the index num_classes for "no class"; `self_conditioning` lets it see its last x̂_0 as
    `previous`; `augment_values` > 0 lets it be told as `augmentation` (B, augment_values) how its
    pictures were changed. With `learned_variance` its output is (B, 2C, H, W), the second half for
    the variance. The weights are drawn from torch's generator: the same after the same
    `torch.manual_seed`, with `augment_values` or without.

    Raises `InputError` for a size that the network cannot divide (it names the nearest that fit),
    or, as the lean one takes any, would have to fill up with far more than there is; for groups or
    heads that do not divide a width, for what this kind of network is not told, and, before any
    weight is made, for more weights than this machine has memory for.
    """
    if torch.empty(0).device.type != "meta":
        _require_memory(
            shapes(
                config,
                channels=channels,
                size=size,
                num_classes=num_classes,
                self_conditioning=self_conditioning,
                learned_variance=learned_variance,
                augment_values=augment_values,
            )
        )
    if channels < 1 or num_classes < 0 or augment_values < 0:
        raise ValueError(
            f"channels = {channels}, num_classes = {num_classes}, augment_values = "
            f"{augment_values}: at least 1 channel, and no class or value or more"
        )
    match config:
        case LeanConfig():
            config = lean.fitted(config, size)
            lean.require_size(config, size)
            return lean.LeanUNet(
                config,
                channels=channels,
                num_classes=num_classes,
                self_conditioning=self_conditioning,
                learned_variance=learned_variance,
                augment_values=augment_values,
            )
        case UNetConfig():
            unet.require_size(config, size)
            return unet.UNet(
                config,
                channels=channels,
                num_classes=num_classes,
                self_conditioning=self_conditioning,
                learned_variance=learned_variance,
                augment_values=augment_values,
            )
        case UNet2DConfig():
            if self_conditioning or augment_values:
                key = "loss.self_conditioning" if self_conditioning else "data.augment"
                raise InputError(
                    f"{key}: diffusers' network (network.kind = 'unet2d') can't be told of it; "
                    "leave it out, or take another network"
                )
            unet2d.require_size(config, size)
            return unet2d.UNet2D(
                config,
                channels=channels,
                num_classes=num_classes,
                learned_variance=learned_variance,
            )
        case LucidrainsConfig():
            lucidrains.require_size(config, size)
            return lucidrains.LucidrainsUNet(
                config,
                channels=channels,
                num_classes=num_classes,
                self_conditioning=self_conditioning,
                learned_variance=learned_variance,
                augment_values=augment_values,
            )
        case _:
            assert_never(config)


def shapes(
    config: NetworkConfig,
    *,
    channels: int,
    size: tuple[int, int],
    num_classes: int = 0,
    self_conditioning: bool = False,
    learned_variance: bool = False,
    augment_values: int = 0,
) -> dict[str, torch.Size]:
    """The shapes of what `build` makes, by name; no number is allocated. Raises `InputError`."""
    with torch.device("meta"):
        made = build(
            config,
            channels=channels,
            size=size,
            num_classes=num_classes,
            self_conditioning=self_conditioning,
            learned_variance=learned_variance,
            augment_values=augment_values,
        )
    return {name: value.shape for name, value in made.state_dict().items()}


def _require_memory(wanted: Mapping[str, torch.Size]) -> None:
    """Raises `InputError` unless weights of these shapes, in float32, fit in memory."""
    weights = sum(shape.numel() for shape in wanted.values())
    if 4 * weights > memory():
        raise InputError(
            f"network: its {weights:,} weights need {4 * weights / 2**30:,.0f} GiB, this machine "
            f"has {memory() / 2**30:,.0f}; give smaller numbers under network"
        )


def parameters_in(network: nn.Module) -> int:
    """How many trained numbers a network holds."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
