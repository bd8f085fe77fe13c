"""The fast default: a U-Net that folds pixels into channels first.

    fold -> conv
         -> block x blocks, down, …                skips from every block
         -> attention
         -> block(merge(h, skip)) x blocks, up, …  one block for each skip
         -> norm, SiLU, conv -> unfold
         -> finish, where squares are larger than 2 x 2

Squares of `fold` x `fold` pixels become channels (pixel unshuffle, Shi et al. 2016,
arXiv:1609.05158), so that no layer works at full resolution, where layers are long in memory and
short in channels. Then few and wide ResNet blocks, attention at the lowest resolution alone, steps
between resolutions that cost little, and channels-last memory throughout, which the convolutions of
a CPU want: they are most of a training step there. A skip is merged by a 1x1 convolution of both to
the width of one, so that no 3x3 convolution has two to read, and groups are of 16 channels, as a
vector of bfloat16 is: those of 8 cost ten times as much there.

A picture may have any size: to the right and below it is filled up with zeros to the next multiple
of fold 2^(levels-1), and the output is cut to the picture's size again.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unraze.config import LeanConfig
from unraze.errors import InputError
from unraze.nn.layers import (
    Attention,
    Conditioning,
    PreNormResidual,
    ResNetBlock,
    SubPixelUpsample,
    channels_last,
    group_norm,
    head_width,
    with_previous,
    zero_conv,
)

__all__ = ["FINEST", "LeanUNet", "fitted", "require_size"]

FINEST = 24
"""How long the folded side of a picture may be without folding more, or another level."""
MOST_FILLED = 8
"""How many times its pixels a picture may have when its sides are filled up."""
SMALL = 32
"""Sides up to which it may have any number."""


def fitted(config: LeanConfig, size: tuple[int, int]) -> LeanConfig:
    """The configuration with `fold`, `widths` and `finish`, where they are absent, as suits the
    longer side.

        side       1 … 24      … 48        … 96         … 192        more
        fold          1          2           4            8             8
        widths     64, 128    64, 128    128, 192     128, 192     a level of 192 more
                                                                   for each doubling
        finish     48 where the fold is more than 2, else none

    Where both fold and widths are given it is left as it is, for so are those of runs from before
    there was a finish.

    Up to 192 pixels the finest level has at most 24 x 24 places, so that a step on larger images
    costs a few times one of 28 x 28, not hundreds of times. Wider where more pixels are folded:
    there is more to tell of each place.
    """
    if config.fold is not None and config.widths is not None:
        return config
    side = max(size)
    fold = config.fold or next((f for f in (1, 2, 4) if side <= f * FINEST), 8)
    widths = config.widths
    if widths is None:
        levels = 2
        while side > fold * FINEST * 2 ** (levels - 2):
            levels += 1
        first, last = (64, 128) if fold <= 2 else (128, 192)
        widths = (first, *[last] * (levels - 1))
    finish = config.finish
    if finish is None:
        finish = 48 if fold > 2 else 0
    return config.model_copy(update={"fold": fold, "widths": widths, "finish": finish})


def require_size(config: LeanConfig, size: tuple[int, int]) -> None:
    """Raises `InputError` where filling the sides up makes far more of a picture than it is."""
    assert config.fold is not None
    assert config.widths is not None
    halvings = len(config.widths) - 1
    multiple = config.fold * 2**halvings
    filled = [side + -side % multiple for side in size]
    if max(filled) > SMALL and math.prod(filled) > MOST_FILLED * math.prod(size):
        raise InputError(
            f"size {size[0]}x{size[1]} (height x width) does not suit the network: squares of "
            f"{config.fold}x{config.fold} pixels and {halvings} halvings of the sides make "
            f"{filled[0]}x{filled[1]} of it; give a smaller network.fold or fewer network.widths"
        )


class Finish(nn.Module):
    """h + conv(SiLU((1 + s) conv([h, x]) + b)), (s, b) = linear(emb).

    What is told through few channels of large squares cannot follow each pixel of the noise, and
    leaves a grain; here the picture x (B, inputs, H, W) itself is seen once more, beside what is
    said of it, h (B, outputs, H, W), both in smaller squares. The last filter starts at zero.
    """

    def __init__(self, width: int, *, inputs: int, outputs: int, emb_width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(outputs + inputs, width, 3, padding=1)
        self.time = nn.Linear(emb_width, 2 * width)
        self.outer = zero_conv(width, outputs)

    def forward(self, h: Tensor, x: Tensor, emb: Tensor) -> Tensor:
        both = torch.cat((h, x.to(h.dtype)), dim=1).to(memory_format=torch.channels_last)
        scale, shift = self.time(emb)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = h + self.outer(F.silu(torch.addcmul(shift, self.inner(both), 1 + scale)))
        return out


class LeanUNet(nn.Module):
    """network(x (B, C, H, W), t (B,)) -> (B, C, H, W), the raw output, zero before training, of any
    H and W.

    With `learned_variance` that is (B, 2C, H, W), the second half for the variance.

    t is the training time, 0 … T, fractional where wanted. `classes` (B,) int64, with
    `num_classes` for "no class" (None: all of them); `previous` (B, C, H, W) the last x̂_0 of a
    self-conditioned network (None: zeros); `augmentation` (B, augment_values) how the pictures were
    changed (None: zeros, not at all). Raises `ValueError` for any of them where the network was
    built without it, and `InputError` where groups or heads do not divide a width.
    """

    def __init__(
        self,
        config: LeanConfig,
        *,
        channels: int,
        num_classes: int = 0,
        self_conditioning: bool = False,
        learned_variance: bool = False,
        augment_values: int = 0,
    ) -> None:
        super().__init__()
        assert config.fold is not None
        assert config.widths is not None
        self.config, self.fold = config, config.fold
        self.self_conditioning = self_conditioning
        first, last = config.widths[0], config.widths[-1]
        emb_width = 2 * first
        folded = channels * self.fold**2
        self.conditioning = Conditioning(
            first, emb_width, num_classes, augment_values=augment_values
        )
        self.stem = nn.Conv2d(folded * (2 if self_conditioning else 1), first, 3, padding=1)

        def block(inputs: int, outputs: int) -> ResNetBlock:
            return ResNetBlock(
                inputs,
                outputs,
                emb_width,
                groups=config.groups,
                scale_shift=True,
                dropout=config.dropout,
            )

        steps = list(zip(config.widths[:-1], config.widths[1:], strict=True))
        self.down_levels, self.downs = nn.ModuleList(), nn.ModuleList()
        for width in config.widths:
            self.down_levels.append(
                nn.ModuleList(block(width, width) for _ in range(config.blocks))
            )
        for width, below in steps:
            self.downs.append(nn.Conv2d(width, below, 3, stride=2, padding=1))

        inner = Attention(last, heads=config.heads, head_dim=head_width(last, config.heads, None))
        self.attention = PreNormResidual(last, config.groups, inner)
        self.up_levels, self.ups = nn.ModuleList(), nn.ModuleList()
        self.merges = nn.ModuleList()
        for width in reversed(config.widths):
            self.merges.append(
                nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in range(config.blocks))
            )
            self.up_levels.append(nn.ModuleList(block(width, width) for _ in range(config.blocks)))
        for width, below in reversed(steps):
            self.ups.append(SubPixelUpsample(below, width))

        self.norm = group_norm(config.groups, first)
        outputs = channels * (2 if learned_variance else 1)
        self.out = zero_conv(first, outputs * self.fold**2)
        self.finish = nn.ModuleList()  # of one, in half the squares; or none
        self.squares = 1
        if config.finish:
            self.squares = self.fold // 2 if self.fold % 2 == 0 else 1
            sides = {"inputs": channels * self.squares**2, "outputs": outputs * self.squares**2}
            self.finish.append(Finish(config.finish, **sides, emb_width=emb_width))
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
        height, width = x.shape[2:]
        multiple = self.fold * 2 ** len(self.downs)
        below, right = -height % multiple, -width % multiple
        emb = self.conditioning(t, classes, augmentation)
        seen = with_previous(x, previous, self_conditioning=self.self_conditioning)
        if below or right:
            x, seen = (F.pad(each, (0, right, 0, below)) for each in (x, seen))
        seen = F.pixel_unshuffle(seen, self.fold)
        h = self.stem(seen.to(memory_format=torch.channels_last))
        skips = []
        for level, stages in enumerate(self.down_levels):
            for stage in stages.children():
                h = stage(h, emb)
                skips.append(h)
            if level < len(self.downs):
                h = self.downs[level](h)
        h = self.attention(h)
        for level, stages in enumerate(self.up_levels):
            merges = self.merges[level].children()
            for merge, stage in zip(merges, stages.children(), strict=True):
                h = stage(merge(torch.cat((h, skips.pop()), dim=1)), emb)
            if level < len(self.ups):
                h = self.ups[level](h)
        h = F.pixel_shuffle(self.out(F.silu(self.norm(h))), self.fold // self.squares)
        for finish in self.finish.children():
            h = finish(h, F.pixel_unshuffle(x, self.squares), emb)
        h = F.pixel_shuffle(h, self.squares) if self.squares > 1 else h
        return h[:, :, :height, :width] if below or right else h
