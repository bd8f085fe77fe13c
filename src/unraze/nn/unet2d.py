"""diffusers' UNet2DModel, weight for weight: what models that were made there are read into.

    stem -> [ResNet block, attention] x layers, down, …      skips from stem, every block and down
         -> block, attention, block
         -> [block(h, skip), attention] x (layers + 1), up, …
         -> norm, activation, conv

It is the U-Net of Ho et al. 2020 (arXiv:2006.11239, appendix B) once more, with every switch that
diffusers has: the configuration is its config.json, the names of the parameters are its names, and
the output is its output within the rounding of float32. For a network of one's own `nn/unet.py` is
the one to read.

Its t is ours less 1, of which it takes (in float32, in this order of operations)

    e = (sin ω_i t …, cos ω_i t …),   ω_i = 10000^(-i/(d/2 - freq_shift)),   i = 0 … d/2 - 1

or the cosines first, where `flip_sin_to_cos`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unraze.config import UNet2DConfig
from unraze.errors import InputError
from unraze.nn.layers import Dropout, channels_last, require_divisible

__all__ = ["UNet2D", "require_size"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


def require_size(config: UNet2DConfig, size: tuple[int, int]) -> None:
    """Raises `InputError`, naming the nearest that fit, unless 2^(levels-1) divides both sides."""
    halvings = len(config.block_out_channels) - 1
    require_divisible(size, 2**halvings, because=f"it halves them ({halvings} x)")


class UNet2D(nn.Module):
    """network(x (B, C, H, W), t (B,)) -> (B, C, H, W), or (B, 2C, H, W) with `learned_variance`.

    t is the training time, 1 … T. `classes` (B,) int64; the table of classes has
    `config.num_class_embeds` rows, or `num_classes` + 1 where that is absent, the last of them for
    "no class". Raises `InputError` for `classes=None` where the table has no row for it, for groups
    and heads that do not divide a width, and where 2^(levels-1) does not divide H and W;
    `ValueError` for classes given to a network without.
    """

    def __init__(
        self,
        config: UNet2DConfig,
        *,
        channels: int,
        num_classes: int = 0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        widths = config.block_out_channels
        width = config.time_embedding_dim or 4 * widths[0]
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.time_embedding = nn.ModuleDict(
            {"linear_1": nn.Linear(widths[0], width), "linear_2": nn.Linear(width, width)}
        )
        rows = config.num_class_embeds or num_classes + 1
        self.class_embedding = nn.Embedding(rows, width) if num_classes else None
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.02)

        skips, now = [widths[0]], widths[0]
        self.down_blocks = nn.ModuleList()
        for level, (kind, outputs) in enumerate(zip(config.down_block_types, widths, strict=True)):
            inputs = [now] + [outputs] * (config.layers_per_block - 1)
            last = level == len(widths) - 1
            self.down_blocks.append(
                _Level(config, kind, inputs, outputs, width, None if last else "down")
            )
            skips += [outputs] * (config.layers_per_block + (not last))
            now = outputs

        self.mid_block = _Middle(config, now, width) if config.mid_block_type != "none" else None

        self.up_blocks = nn.ModuleList()
        for level, outputs in enumerate(reversed(widths)):
            inputs = []
            for _ in range(config.layers_per_block + 1):
                inputs.append(now + skips.pop())
                now = outputs
            last = level == len(widths) - 1
            self.up_blocks.append(
                _Level(
                    config,
                    config.up_block_types[level],
                    inputs,
                    outputs,
                    width,
                    None if last else "up",
                )
            )

        self.conv_norm_out = _norm(config.norm_num_groups, now, config.norm_eps)
        self.conv_out = nn.Conv2d(now, channels * (2 if learned_variance else 1), 3, padding=1)
        channels_last(self)

    def forward(self, x: Tensor, t: Tensor, *, classes: Tensor | None = None) -> Tensor:
        require_size(self.config, (x.shape[2], x.shape[3]))
        emb = self._embedding(t, classes)
        if self.config.center_input_sample:
            x = 2 * x - 1
        h = self.conv_in(x.to(memory_format=torch.channels_last))
        skips = [h]
        for level in self.down_blocks:
            h = level(h, emb, skips)
        if self.mid_block is not None:
            h = self.mid_block(h, emb)
        for level in self.up_blocks:
            h = level(h, emb, skips)
        # that it is not the configuration's activation here is the format's
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(h)))
        return out

    def _embedding(self, t: Tensor, classes: Tensor | None) -> Tensor:
        waves = _waves(t - 1, self.conv_in.out_channels, self.config).to(self.conv_in.weight.dtype)
        inner, outer = self.time_embedding["linear_1"], self.time_embedding["linear_2"]
        emb: Tensor = outer(F.silu(inner(waves)))
        if self.class_embedding is None:
            if classes is not None:
                raise ValueError("classes= given to a network built without classes")
            return emb
        if classes is None:
            if self.class_embedding.num_embeddings == self.num_classes:
                raise InputError("this network knows no images without a class; give one")
            classes = torch.full(t.shape, self.num_classes, device=t.device, dtype=torch.long)
        emb = emb + self.class_embedding(classes)
        return emb


class _Level(nn.Module):
    """The blocks at one resolution, on the way down or up, and the way to the next.

    On the way down every result is put on top of the skips, on the way up each block takes one.
    """

    def __init__(
        self,
        config: UNet2DConfig,
        kind: str,
        inputs: list[int],
        outputs: int,
        emb_width: int,
        then: str | None,
    ) -> None:
        super().__init__()
        self.takes = "Up" in kind
        self.resnets = nn.ModuleList(_ResNet(config, n, outputs, emb_width) for n in inputs)
        attends = kind.startswith("Attn")
        groups = config.norm_num_groups
        self.attentions = (
            nn.ModuleList(_Attention(config, outputs, groups) for _ in inputs) if attends else None
        )
        by_block = kind.startswith("Resnet")
        if attends and then:
            by_block = (
                config.downsample_type if then == "down" else config.upsample_type
            ) == "resnet"
        if by_block and then:
            moved: nn.Module = _ResNet(config, outputs, outputs, emb_width, then=then)
        else:
            moved = _Resampled(config, outputs, then) if then else nn.Identity()
        self.downsamplers = nn.ModuleList([moved]) if then == "down" else None
        self.upsamplers = nn.ModuleList([moved]) if then == "up" else None

    def forward(self, h: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        for number, block in enumerate(self.resnets):
            if self.takes:
                h = torch.cat((h, skips.pop()), dim=1)
            h = block(h, emb)
            if self.attentions is not None:
                h = self.attentions[number](h)
            if not self.takes:
                skips.append(h)
        for moved in self.downsamplers or self.upsamplers or ():
            h = moved(h, emb)
            if not self.takes:
                skips.append(h)
        return h


class _Middle(nn.Module):
    """Block, attention where it is wanted, block; each divided by the scale of the middle."""

    def __init__(self, config: UNet2DConfig, width: int, emb_width: int) -> None:
        super().__init__()
        scale = config.mid_block_scale_factor
        self.resnets = nn.ModuleList(
            _ResNet(config, width, width, emb_width, scale=scale) for _ in range(2)
        )
        groups = config.attn_norm_num_groups
        if groups is None and config.resnet_time_scale_shift == "default":
            groups = config.norm_num_groups
        self.attentions = nn.ModuleList()
        if config.add_attention:
            self.attentions.append(_Attention(config, width, groups, scale=scale))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        h = self.resnets[0](h, emb)
        for attention in self.attentions:
            h = attention(h)
        out: Tensor = self.resnets[1](h, emb)
        return out


class _ResNet(nn.Module):
    """out = (skip(x) + conv(dropout(a(h))))/scale, h from conv(a(norm(x))) and the time.

    `then` moves both x and a(norm(x)) to the next resolution first, by means or copies of pixels.
    """

    def __init__(
        self,
        config: UNet2DConfig,
        inputs: int,
        outputs: int,
        emb_width: int,
        *,
        scale: float = 1.0,
        then: str | None = None,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.act_fn]
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.scale, self.then = scale, then
        groups, eps = config.norm_num_groups, config.norm_eps
        self.norm1 = _norm(groups, inputs, eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_width, outputs * (2 if self.scale_shift else 1))
        self.norm2 = _norm(groups, outputs, eps)
        self.dropout = Dropout(config.dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.activation(self.norm1(x))
        match self.then:
            case "down":
                x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
            case "up":
                x, h = _twice(x), _twice(h)
        h = self.conv1(h)
        time = self.time_emb_proj(self.activation(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(self.activation(h)))
        skip = x if self.conv_shortcut is None else self.conv_shortcut(x)
        out: Tensor = (skip + h) / self.scale
        return out


class _Attention(nn.Module):
    """out = (x + W_o softmax(qᵀk/√d) v)/scale, q, k, v of norm(x), d of the configuration."""

    def __init__(
        self, config: UNet2DConfig, channels: int, groups: int | None, *, scale: float = 1.0
    ) -> None:
        super().__init__()
        head_dim = config.attention_head_dim or channels
        if channels < head_dim:
            raise InputError(
                f"network.attention_head_dim = {head_dim}: is more than the {channels} channels "
                "that attention acts on"
            )
        self.heads, self.scale = channels // head_dim, scale
        inner = self.heads * head_dim
        self.group_norm = None
        if groups is not None:
            of_the_middle = groups == config.attn_norm_num_groups != config.norm_num_groups
            key = "attn_norm_num_groups" if of_the_middle else "norm_num_groups"
            self.group_norm = _norm(groups, channels, config.norm_eps, key=key)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        rows = (x if self.group_norm is None else self.group_norm(x)).flatten(2).transpose(1, 2)
        q, k, v = (
            part(rows).reshape(b, height * width, self.heads, -1).transpose(1, 2)
            for part in (self.to_q, self.to_k, self.to_v)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        seen = self.to_out[0](seen).transpose(1, 2).reshape(x.shape)
        out: Tensor = (x + seen) / self.scale
        return out


class _Resampled(nn.Module):
    """(B, C, H, W) -> half or twice H and W, by a 3x3 convolution."""

    def __init__(self, config: UNet2DConfig, channels: int, then: str) -> None:
        super().__init__()
        self.then, self.padding = then, config.downsample_padding if then == "down" else 1
        stride = 2 if then == "down" else 1
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=self.padding)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        if self.then == "up":
            h = _twice(h)
        elif self.padding == 0:  # a row and a column on the far side alone
            h = F.pad(h, (0, 1, 0, 1))
        out: Tensor = self.conv(h)
        return out


def _twice(h: Tensor) -> Tensor:
    return F.interpolate(h, scale_factor=2.0, mode="nearest")


def _norm(groups: int, channels: int, eps: float, *, key: str = "norm_num_groups") -> nn.GroupNorm:
    if channels % groups:
        raise InputError(
            f"network.{key} = {groups} does not divide a width of {channels} channels: "
            f"take a divisor of every width, such as {math.gcd(groups, channels)}"
        )
    return nn.GroupNorm(groups, channels, eps=eps)


def _waves(t: Tensor, dim: int, config: UNet2DConfig) -> Tensor:
    """Their embedding of their time t (B,): float32 (B, dim)."""
    half = dim // 2
    exponent = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device)
    omega = torch.exp(exponent / (half - config.freq_shift))
    angle = t.float()[:, None] * omega
    parts = (angle.cos(), angle.sin()) if config.flip_sin_to_cos else (angle.sin(), angle.cos())
    return F.pad(torch.cat(parts, dim=1), (0, dim % 2))
