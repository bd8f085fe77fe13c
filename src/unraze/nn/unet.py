"""The U-Net of Ho et al. 2020 (arXiv:2006.11239, appendix B), which "The annotated diffusion model"
(Rogge & Rasul 2022) rebuilds with other blocks.

    stem -> [block, attention] x blocks, down, …         skips from the stem, every block and down
         -> block, attention, block
         -> [block(h, skip), attention] x (blocks + 1), up, …   one block for each skip
         -> norm, SiLU, conv

One definition gives both. Ho et al.'s CIFAR-10 network, 35.7 M weights, is

    UNetConfig(dim=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(1,), linear_attention=False,
               heads=1, head_dim=None, groups=32, scale_shift=False, dropout=0.1)

and the tutorial's is the default with head_dim=32: ResNet or ConvNeXt blocks, scale and shift,
linear attention on the levels. (The tutorial has no skip from the stem and the downs, and one block
less per level on the way up; here the skips are Ho et al.'s in both.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import assert_never

from unraze.config import UNetConfig
from unraze.errors import InputError
from unraze.nn.layers import (
    Attention,
    Conditioning,
    ConvNeXtBlock,
    Downsample,
    LinearAttention,
    PreNormResidual,
    ResNetBlock,
    Upsample,
    channels_last,
    group_norm,
    head_width,
    require_divisible,
    with_previous,
    zero_conv,
)

__all__ = ["UNet", "require_size"]


def require_size(config: UNetConfig, size: tuple[int, int]) -> None:
    """Raises `InputError`, naming the nearest that fit, unless 2^(levels-1) divides both sides."""
    halvings = len(config.multipliers) - 1
    require_divisible(size, 2**halvings, because=f"it halves them ({halvings} x)")


def _block(config: UNetConfig, inputs: int, outputs: int) -> nn.Module:
    width = 4 * config.dim
    match config.block:
        case "resnet":
            return ResNetBlock(
                inputs,
                outputs,
                width,
                groups=config.groups,
                scale_shift=config.scale_shift,
                dropout=config.dropout,
            )
        case "convnext":
            return ConvNeXtBlock(
                inputs,
                outputs,
                width,
                scale_shift=config.scale_shift,
                dropout=config.dropout,
            )
        case _:
            assert_never(config.block)


def _full(config: UNetConfig, channels: int) -> nn.Module:
    head_dim = head_width(channels, config.heads, config.head_dim)
    inner = Attention(channels, heads=config.heads, head_dim=head_dim)
    return PreNormResidual(channels, config.groups, inner)


def _attention(config: UNetConfig, level: int, channels: int) -> nn.Module:
    if level in config.attention:
        return _full(config, channels)
    if config.linear_attention:
        head_dim = head_width(channels, config.heads, config.head_dim)
        inner = LinearAttention(channels, heads=config.heads, head_dim=head_dim)
        return PreNormResidual(channels, config.groups, inner)
    return nn.Identity()


class _Stage(nn.Module):
    """A block and the attention behind it."""

    def __init__(self, block: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = self.attention(self.block(x, emb))
        return out


class UNet(nn.Module):
    """network(x (B, C, H, W), t (B,)) -> (B, C, H, W), the raw output, zero before training.

    With `learned_variance` that is (B, 2C, H, W), the second half for the variance.

    t is the training time, 0 … T, fractional where wanted. `classes` (B,) int64, with
    `num_classes` for "no class" (None: all of them); `previous` (B, C, H, W) the last x̂_0 of a
    self-conditioned network (None: zeros); `augmentation` (B, augment_values) how the pictures were
    changed (None: zeros, not at all). Raises `ValueError` for any of them where the network was
    built without it, and `InputError` where 2^(levels-1) does not divide H and W, where a level of
    attention does not exist, or where groups or heads do not divide a width.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        channels: int,
        num_classes: int = 0,
        self_conditioning: bool = False,
        learned_variance: bool = False,
        augment_values: int = 0,
    ) -> None:
        super().__init__()
        levels = len(config.multipliers)
        for level in config.attention:
            if level >= levels:
                raise InputError(
                    f"network.attention = {list(config.attention)}: there is no level {level}; "
                    f"the {levels} multipliers make levels 0 to {levels - 1}"
                )
        self.config = config
        self.self_conditioning = self_conditioning
        widths = [config.dim * m for m in config.multipliers]
        self.conditioning = Conditioning(
            config.dim, 4 * config.dim, num_classes, augment_values=augment_values
        )
        self.stem = nn.Conv2d(channels * (2 if self_conditioning else 1), config.dim, 3, padding=1)

        skips = [config.dim]
        now = config.dim
        self.down_levels, self.downs = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(config.blocks):
                stages.append(_Stage(_block(config, now, width), _attention(config, level, width)))
                now = width
                skips.append(now)
            self.down_levels.append(stages)
            if level < levels - 1:
                self.downs.append(Downsample(now, now))
                skips.append(now)

        self.middle = _Stage(_block(config, now, now), _full(config, now))
        self.middle_last = _block(config, now, now)

        self.up_levels, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            stages = nn.ModuleList()
            for _ in range(config.blocks + 1):
                block = _block(config, now + skips.pop(), width)
                stages.append(_Stage(block, _attention(config, level, width)))
                now = width
            self.up_levels.append(stages)
            if level > 0:
                self.ups.append(Upsample(now, now))

        self.norm = group_norm(config.groups, now)
        self.out = zero_conv(now, channels * (2 if learned_variance else 1))
        channels_last(self)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        classes: Tensor | None = None,
        previous: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        require_size(self.config, (x.shape[2], x.shape[3]))
        emb = self.conditioning(t, classes, augmentation)
        x = with_previous(x, previous, self_conditioning=self.self_conditioning)
        h = self.stem(x.to(memory_format=torch.channels_last))
        skips = [h]
        for level, stages in enumerate(self.down_levels):
            for stage in stages.children():
                h = stage(h, emb)
                skips.append(h)
            if level < len(self.downs):
                h = self.downs[level](h)
                skips.append(h)
        h = self.middle_last(self.middle(h, emb), emb)
        for level, stages in enumerate(self.up_levels):
            for stage in stages.children():
                h = stage(torch.cat((h, skips.pop()), dim=1), emb)
            if level < len(self.ups):
                h = self.ups[level](h)
        out: Tensor = self.out(F.silu(self.norm(h)))
        return out
