"""The U-Net of the package denoising-diffusion-pytorch (Phil Wang, "lucidrains"), release 2.

    init_conv 7x7 -> [block, skip, block, attention, skip, half the size] a level
                  -> mid_block1, mid_attn, mid_block2
                  -> [block(h, skip), block(h, skip), attention, twice the size] a level
                  -> final_res_block(h, init_conv's output), final_conv 1x1

The last level down, and the last up, keep their size and change the channels by a 3x3 convolution.
It differs from `unraze.nn.unet` in the norms (root mean square, behind the convolutions), in where
the two skips of a level are taken, in the attention, which also looks at learned keys and values,
and in the head. Parameters are named as that package names them, so its state dict fits.

Its time is 0 … T-1 for our 1 … T: the network is told t - 1. It is told of no class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unraze.config import LucidrainsConfig
from unraze.errors import InputError
from unraze.nn.layers import Dropout, channels_last, require_divisible, sinusoidal

__all__ = ["LucidrainsUNet", "require_size"]


def require_size(config: LucidrainsConfig, size: tuple[int, int]) -> None:
    """Raises `InputError`, naming the nearest that fit, unless 2^(levels-1) divides both sides."""
    halvings = len(config.multipliers) - 1
    require_divisible(size, 2**halvings, because=f"it halves them ({halvings} x)")


class _Norm(nn.Module):
    """√C g x/‖x‖ over the channels: the root mean square becomes g (Zhang & Sennrich 2019,
    arXiv:1910.07467)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        gain: Tensor = self.g * x.shape[1] ** 0.5
        return F.normalize(x, dim=1) * gain


class _Convolution(nn.Module):
    """dropout(SiLU(norm(conv(x)) (1 + s) + b)), (s, b) each (B, C, 1, 1), or none of them."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = _Norm(outputs)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        h = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            h = torch.addcmul(shift, h, 1 + scale)
        out: Tensor = self.dropout(F.silu(h))
        return out


class _ResNetBlock(nn.Module):
    """skip(x) + block2(block1(x, (s, b))), (s, b) = linear(SiLU(emb)); skip 1x1 where C changes."""

    def __init__(self, inputs: int, outputs: int, emb_width: int, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(emb_width, 2 * outputs))
        self.block1 = _Convolution(inputs, outputs, dropout)
        self.block2 = _Convolution(outputs, outputs)
        self.res_conv = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.mlp(emb)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = self.block2(self.block1(x, (scale, shift))) + self.res_conv(x)
        return out


class _Attention(nn.Module):
    """x + W_o softmax(qᵀk/√d) v of norm(x), k and v with `memory` learned ones before them."""

    def __init__(self, channels: int, *, heads: int, head_dim: int, memory: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.norm = _Norm(channels)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, memory, head_dim))
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        _, heads, memory, head_dim = self.mem_kv.shape
        learned = self.mem_kv[:, None].expand(2, b, heads, memory, head_dim)
        rows = self.to_qkv(self.norm(x)).permute(0, 2, 3, 1)
        rows = rows.reshape(b, height * width, 3, heads, head_dim)
        q, k, v = rows.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, HW, d)
        k, v = torch.cat((learned[0], k), dim=2), torch.cat((learned[1], v), dim=2)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        seen = seen.reshape(b, height, width, heads * head_dim).permute(0, 3, 1, 2)
        out: Tensor = x + self.to_out(seen)
        return out


class _LinearAttention(nn.Module):
    """x + norm(W_o [softmax_features(q)/√d · (softmax_positions(k)ᵀ v)]) of norm(x), k and v with
    `memory` learned positions before them (Shen et al. 2018, arXiv:1812.01243)."""

    def __init__(self, channels: int, *, heads: int, head_dim: int, memory: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.norm = _Norm(channels)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, head_dim, memory))
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(inner, channels, 1), _Norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        _, heads, head_dim, memory = self.mem_kv.shape
        learned = self.mem_kv[:, None].expand(2, b, heads, head_dim, memory)
        qkv = self.to_qkv(self.norm(x)).reshape(b, 3, heads, head_dim, height * width)
        q, k, v = qkv.unbind(1)  # (B, heads, d, HW)
        k, v = torch.cat((learned[0], k), dim=3), torch.cat((learned[1], v), dim=3)
        context = k.softmax(dim=3) @ v.transpose(2, 3)  # (B, heads, d of k, d of v)
        read = context.transpose(2, 3) @ (q.softmax(dim=2) * head_dim**-0.5)
        out: Tensor = x + self.to_out(read.reshape(b, heads * head_dim, height, width))
        return out


class LucidrainsUNet(nn.Module):
    """network(x (B, C, H, W), t (B,)) -> (B, C, H, W), the raw output.

    With `learned_variance` that is (B, 2C, H, W), the second half for the variance.

    t is the training time, 1 … T. `previous` (B, C, H, W) is the last x̂_0 of a self-conditioned
    network (None: zeros), which stands before x. Raises `ValueError` for it where the network was
    built without, and `InputError` where 2^(levels-1) does not divide H and W, where a level of
    attention does not exist, where heads are not of one or of every level, for an odd `dim`, and
    for classes or changes of the pictures, which this network has no place for.
    """

    def __init__(
        self,
        config: LucidrainsConfig,
        *,
        channels: int,
        num_classes: int = 0,
        self_conditioning: bool = False,
        learned_variance: bool = False,
        augment_values: int = 0,
    ) -> None:
        super().__init__()
        _require_possible(config, num_classes, augment_values)
        self.config = config
        self.self_conditioning = self_conditioning
        levels = len(config.multipliers)
        first = config.dim if config.init_dim is None else config.init_dim
        widths = [first, *(config.dim * m for m in config.multipliers)]
        emb_width = 4 * config.dim

        def block(inputs: int, outputs: int) -> nn.Module:
            return _ResNetBlock(inputs, outputs, emb_width, config.dropout)

        def attention(level: int, width: int, *, full: bool) -> nn.Module:
            heads, head_dim = (
                own[level if len(own) > 1 else 0] for own in (config.heads, config.head_dim)
            )
            kind = _Attention if full else _LinearAttention
            return kind(width, heads=heads, head_dim=head_dim, memory=config.memory)

        self.init_conv = nn.Conv2d(channels * (2 if self_conditioning else 1), first, 7, padding=3)
        self.time_mlp = nn.Sequential(
            nn.Identity(),  # the sines' place in the package, where the numbers 1 and 3 come from
            nn.Linear(config.dim, emb_width),
            nn.GELU(),
            nn.Linear(emb_width, emb_width),
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            width, below = widths[level], widths[level + 1]
            resized: nn.Module = nn.Conv2d(width, below, 3, padding=1)
            if level < levels - 1:
                resized = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, below, 1))
            seen = attention(level, width, full=level in config.attention)
            stage = [block(width, width), block(width, width), seen, resized]
            self.downs.append(nn.ModuleList(stage))

        self.mid_block1 = block(widths[-1], widths[-1])
        self.mid_attn = attention(levels - 1, widths[-1], full=True)
        self.mid_block2 = block(widths[-1], widths[-1])

        for level in reversed(range(levels)):
            width, above = widths[level + 1], widths[level]
            resized = nn.Conv2d(width, above, 3, padding=1)
            if level > 0:
                resized = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), resized)
            seen = attention(level, width, full=level in config.attention)
            stage = [block(width + above, width), block(width + above, width), seen, resized]
            self.ups.append(nn.ModuleList(stage))

        self.final_res_block = block(2 * first, first)
        self.final_conv = nn.Conv2d(first, channels * (2 if learned_variance else 1), 1)
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
        if classes is not None or augmentation is not None:
            raise ValueError("classes= or augmentation= given to a network that is told of neither")
        if self.self_conditioning:
            x = torch.cat((torch.zeros_like(x) if previous is None else previous, x), dim=1)
        elif previous is not None:
            raise ValueError("previous= given to a network built without self_conditioning")
        waves = sinusoidal(t - 1, self.config.dim, max_period=self.config.max_period)
        emb = self.time_mlp(waves.to(self.final_conv.weight.dtype))
        h = first = self.init_conv(x.to(memory_format=torch.channels_last))
        skips = []
        for stage in self.downs.children():
            block1, block2, attention, smaller = stage.children()
            h = block1(h, emb)
            skips.append(h)
            h = attention(block2(h, emb))
            skips.append(h)
            h = smaller(h)
        h = self.mid_block2(self.mid_attn(self.mid_block1(h, emb)), emb)
        for stage in self.ups.children():
            block1, block2, attention, larger = stage.children()
            h = block1(torch.cat((h, skips.pop()), dim=1), emb)
            h = block2(torch.cat((h, skips.pop()), dim=1), emb)
            h = larger(attention(h))
        out: Tensor = self.final_conv(self.final_res_block(torch.cat((h, first), dim=1), emb))
        return out


def _require_possible(config: LucidrainsConfig, num_classes: int, augment_values: int) -> None:
    levels = len(config.multipliers)
    if num_classes or augment_values:
        what = "classes" if num_classes else "augmentation"
        raise InputError(
            f'network.kind = "lucidrains": has no place for {what}; train without (--clusters 0, '
            'no --classes, --augment 0), or take "lean" or "unet"'
        )
    if config.dim % 2:
        raise InputError(f"network.dim = {config.dim}: give an even number, for sines and cosines")
    for level in config.attention:
        if level >= levels:
            raise InputError(
                f"network.attention = {list(config.attention)}: there is no level {level}; "
                f"the {levels} multipliers make levels 0 to {levels - 1}"
            )
    for name in ("heads", "head_dim"):
        own = getattr(config, name)
        if len(own) not in (1, levels):
            raise InputError(
                f"network.{name} = {list(own)}: give one number, or one for each of the {levels} "
                "levels"
            )
