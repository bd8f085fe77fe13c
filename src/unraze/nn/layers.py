"""The parts that the networks are made of.

Shapes: x (B, C, H, W) a feature map, t (B,) training times, emb (B, E) what the network knows about
time and class. Every residual branch ends in a convolution that starts at zero, so that a network
starts as a chain of identities (Ho et al. 2020, arXiv:2006.11239, and their code).
"""

import math
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unraze.errors import InputError

__all__ = [
    "Attention",
    "Conditioning",
    "ConvNeXtBlock",
    "Downsample",
    "Dropout",
    "LinearAttention",
    "PreNormResidual",
    "ResNetBlock",
    "SubPixelUpsample",
    "Upsample",
    "blocks_of",
    "channels_last",
    "draw_outside_of_graphs",
    "group_norm",
    "head_width",
    "recompute",
    "require_divisible",
    "sinusoidal",
    "split_mix",
    "with_previous",
    "zero_conv",
]


def sinusoidal(t: Tensor, dim: int, *, max_period: float = 10000.0) -> Tensor:
    """Sines and cosines of time: (B,) -> (B, dim), in float32 (float64 where t is).

        ω_i = max_period^(-i/(d/2 - 1)),   i = 0 … d/2 - 1,   e = (sin ω_i t …, cos ω_i t …)

    t may be fractional. Raises `ValueError` for an odd dim. Source: Vaswani et al. 2017,
    arXiv:1706.03762, section 3.5, in the form of Ho et al. 2020 (d/2 - 1, sines before cosines).
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim = {dim}: a sinusoidal embedding has an even number of values")
    t = t if t.dtype == torch.float64 else t.float()
    half = dim // 2
    i = torch.arange(half, device=t.device, dtype=t.dtype)
    omega = torch.exp(-math.log(max_period) / max(half - 1, 1) * i)
    angle = t[:, None] * omega
    return torch.cat((angle.sin(), angle.cos()), dim=1)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts that a network is a list of, level by level: most of its weights, and of what it
    keeps for its gradient."""
    lists = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
    return [block for part in lists for block in part if not isinstance(block, nn.ModuleList)]


def recompute(network: nn.Module) -> None:
    """What is inside its blocks is computed again in the backward pass in place of being kept.

    Source: Chen et al. 2016, arXiv:1604.06174. Dropout's draws are the same both times, where it
    has seeds.
    """
    for block in blocks_of(network):
        block.forward = MethodType(_recomputed, block)


def _recomputed(block: nn.Module, *args: Any) -> Any:
    return checkpoint(type(block).forward, block, *args, use_reentrant=False)


def require_divisible(size: tuple[int, int], multiple: int, *, because: str) -> None:
    """Raises `InputError` unless `multiple` divides height and width, naming the nearest that fit.

    The sizes named are the given one with each side rounded down, and up, to a multiple.
    """
    if all(side >= 1 and side % multiple == 0 for side in size):
        return
    down = [max(side // multiple, 1) * multiple for side in size]
    up = [max(-(-side // multiple), 1) * multiple for side in size]
    fits = [f"{h}x{w}" for h, w in dict.fromkeys((tuple(down), tuple(up)))]
    raise InputError(
        f"size {size[0]}x{size[1]} (height x width) does not suit the network: both must be "
        f"multiples of {multiple} ({because}); nearest that fit: {' and '.join(fits)}"
    )


def head_width(channels: int, heads: int, head_dim: int | None) -> int:
    """Channels per attention head: head_dim, or channels/heads where it is None.

    Raises `InputError` where the heads do not divide the channels evenly.
    """
    if head_dim is not None:
        return head_dim
    if channels % heads:
        raise InputError(
            f"network.heads = {heads} does not divide the {channels} channels "
            "that attention acts on: take a divisor"
        )
    return channels // heads


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018, arXiv:1803.08494) with Ho et al.'s ε of 1e-6.

    Raises `InputError` where `groups` does not divide `channels`.
    """
    if channels % groups:
        raise InputError(
            f"network.groups = {groups} does not divide a width of {channels} channels: take a "
            f"divisor of every width, such as {math.gcd(groups, channels)}"
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


def zero_conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps height and width (odd kernel) and whose weights start at zero."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def channels_last(network: nn.Module) -> None:
    """Lays the filters of a network out as a CPU's convolutions want them: channels innermost.

    Values, names and shapes stay. For a network's own `__init__`: what is made like a weight later
    (gradient, average, the optimiser's moments) then lies like it.
    """
    for weight in network.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def with_previous(x: Tensor, previous: Tensor | None, *, self_conditioning: bool) -> Tensor:
    """(x, x̂_0) along the channels for a self-conditioned network, zeros for None; else x.

    Raises `ValueError` where `previous` is given to a network that was built without it.
    Source: Chen et al. 2022, arXiv:2208.04202, section 2.2.
    """
    if self_conditioning:
        return torch.cat((x, torch.zeros_like(x) if previous is None else previous), dim=1)
    if previous is not None:
        raise ValueError("previous= given to a network built without self_conditioning")
    return x


class Conditioning(nn.Module):
    """What a network knows beside the picture: emb = SiLU(MLP(e(t)) + c + W a) (B, width).

    e is `sinusoidal` of `dim` values (one more where dim is odd), the MLP Linear-SiLU-Linear, and c
    the row of a learned table for the class; the table's last row, `num_classes`, means "no class",
    as does `classes=None`. a (B, augment_values) says how the picture was changed for training
    (`unraze.augment`), and W starts at zero; `augmentation=None` means a = 0, where W has no say.
    Without classes (num_classes = 0) there is no table, without a (augment_values = 0) no W, and
    what is given all the same raises `ValueError`. Source: Ho et al. 2020, appendix B; classes
    added to the time embedding as Dhariwal & Nichol 2021, arXiv:2105.05233; the null class, Ho &
    Salimans 2022, arXiv:2207.12598; a, Karras et al. 2022, arXiv:2206.00364, appendix F.2.
    """

    def __init__(self, dim: int, width: int, num_classes: int, *, augment_values: int = 0) -> None:
        super().__init__()
        self.dim = dim + dim % 2
        self.num_classes = num_classes
        self.inner = nn.Linear(self.dim, width)
        self.outer = nn.Linear(width, width)
        self.table = nn.Embedding(num_classes + 1, width) if num_classes else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.02)
        # not a Linear, which would draw and so change the weights made after it
        self.augmentation = None
        if augment_values:
            self.augmentation = nn.Parameter(torch.zeros(width, augment_values))

    def forward(
        self, t: Tensor, classes: Tensor | None, augmentation: Tensor | None = None
    ) -> Tensor:
        waves = sinusoidal(t, self.dim).to(self.inner.weight.dtype)
        emb: Tensor = self.outer(F.silu(self.inner(waves)))
        if self.table is not None:
            if classes is None:
                classes = torch.full(t.shape, self.num_classes, device=t.device, dtype=torch.long)
            emb = emb + self.table(classes)
        elif classes is not None:
            raise ValueError("classes= given to a network built without classes (num_classes = 0)")
        if augmentation is not None:
            if self.augmentation is None:
                raise ValueError(
                    "augmentation= given to a network built without it (augment_values = 0)"
                )
            emb = emb + F.linear(augmentation.to(self.augmentation.dtype), self.augmentation)
        return F.silu(emb)


@torch.no_grad()
def place(table: nn.Embedding, points: Tensor) -> None:
    """Starts the rows of a table of classes, but for "no class", where points (K, d) of space lie.

    What is near each other is then told alike from the beginning, and what is learned of one is
    learned of the other. Each coordinate is divided by its deviation; the d of them (the first, if
    the rows have fewer values) are turned into a row by orthonormal directions of torch's
    generator, times 0.3, about what the time's part is.
    """
    width = table.embedding_dim
    points = points[:, :width].to(table.weight.dtype)
    spread = points.std(0, correction=0)
    points = (points - points.mean(0)) / torch.where(spread > 0, spread, 1.0)
    directions = torch.linalg.qr(torch.randn(width, width)).Q[: points.shape[1]]
    table.weight[:-1] = 0.3 * points @ directions


class Dropout(nn.Module):
    """x m/(1-p), in training alone: m is 0 with probability p, else 1, for each value of x.

    `seeds` holds one for each image of the batch, which its draws are a function of: so they do not
    depend on the images that it is computed with, and are the same each time, on one kind of
    device: on a GPU of CUDA they are `split_mix`'s, else those of torch's generators, which are
    faster there. Without seeds torch's own generator draws. Source: Srivastava et al. 2014.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.seeds: Sequence[int] | None = None
        self.draw = _drawn

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.seeds is None:
            return F.dropout(x, self.p)
        kept: Tensor = self.draw(x, self.seeds) >= self.p
        return x * kept.to(x.dtype).div_(1 - self.p)


def draw_outside_of_graphs(network: nn.Module) -> None:
    """Has a network's dropout drawn outside of what torch.compile makes of it, which has no
    generators, and would be made anew for other seeds; asked for only where it is compiled, for it
    takes a second to import."""
    for module in network.modules():
        if isinstance(module, Dropout):
            module.draw = torch.compiler.disable(module.draw)  # type: ignore[no-untyped-call]


def _drawn(x: Tensor, seeds: Sequence[int]) -> Tensor:
    """Uniform float32 numbers of x's shape, each row's of its seed."""
    if x.device.type == "cuda":
        return split_mix(torch.tensor(seeds).to(x.device), x[0].numel()).view(x.shape)
    drawn = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    generator = torch.Generator(x.device)
    for row, seed in zip(drawn, seeds, strict=True):
        row.uniform_(generator=generator.manual_seed(seed))
    return drawn


def split_mix(seeds: Tensor, count: int) -> Tensor:
    """The first `count` numbers in [0, 1), float32, of the stream of each seed (B,) int64, as
    (B, count).

    SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"): number
    k is a function of seed and k alone, so that a GPU draws all rows at once, where a generator set
    to each seed takes a launch a row. Its upper 24 bits are what a float32 holds.
    """
    golden, first, second = (
        value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
    )

    def shifted(z: Tensor, places: int) -> Tensor:
        return (z >> places).bitwise_and_(2 ** (64 - places) - 1)  # as of numbers without a sign

    k = torch.arange(1, count + 1, device=seeds.device)
    z = seeds[:, None] + golden * k  # modulo 2⁶⁴, as all that follows
    z ^= shifted(z, 30)
    z *= first
    z ^= shifted(z, 27)
    z *= second
    z ^= shifted(z, 31)
    return shifted(z, 40).to(torch.float32).mul_(2.0**-24)


class ResNetBlock(nn.Module):
    """x (B, C_in, H, W) -> (B, C_out, H, W), with the time in it.

        h = conv(SiLU(norm(x)))
        h = norm(h) (1 + s) + b                 scale and shift, (s, b) = linear(emb), or
        h = norm(h + b)                         shift only, b = linear(emb)
        out = skip(x) + conv(dropout(SiLU(h)))  skip: identity, or 1x1 where C_in ≠ C_out

    The last convolution starts at zero. Source: Ho et al. 2020, appendix B (shift only); scale and
    shift, Dhariwal & Nichol 2021, arXiv:2105.05233, eq. 3 (adaptive group normalisation).
    Raises `InputError` where `groups` does not divide C_in or C_out.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        emb_width: int,
        *,
        groups: int,
        scale_shift: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = group_norm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(emb_width, 2 * outputs if scale_shift else outputs)
        self.norm2 = group_norm(groups, outputs)
        self.dropout = Dropout(dropout)
        self.conv2 = zero_conv(outputs, outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        time = self.time(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(F.silu(h)))
        out: Tensor = self.skip(x) + h
        return out


class ConvNeXtBlock(nn.Module):
    """x (B, C_in, H, W) -> (B, C_out, H, W): few large filters, then a wide pair of small ones.

        h = depthwise 7x7 conv(x)
        h = h (1 + s) + b, or h + b             (s, b) = linear(emb)
        out = skip(x) + conv(dropout(norm(GELU(conv(norm(h))))))   3x3, `expansion` C_out between

    norm is group normalisation with one group; the last convolution starts at zero. Source: Liu et
    al. 2022, arXiv:2201.03545, as changed by Phil Wang and the tutorial "The annotated diffusion
    model" (Rogge & Rasul 2022), where the time only shifts.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        emb_width: int,
        *,
        scale_shift: bool,
        dropout: float,
        expansion: int = 2,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        wide = expansion * outputs
        self.depthwise = nn.Conv2d(inputs, inputs, 7, padding=3, groups=inputs)
        self.time = nn.Linear(emb_width, 2 * inputs if scale_shift else inputs)
        self.norm1 = group_norm(1, inputs)
        self.conv1 = nn.Conv2d(inputs, wide, 3, padding=1)
        self.norm2 = group_norm(1, wide)
        self.dropout = Dropout(dropout)
        self.conv2 = zero_conv(wide, outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.depthwise(x)
        time = self.time(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        else:
            h = h + time
        h = self.norm2(F.gelu(self.conv1(self.norm1(h))))
        out: Tensor = self.skip(x) + self.conv2(self.dropout(h))
        return out


SHORT = 256
"""Up to so many positions a CPU is quicker with the formula than with the fused kernel: 6 times
forward and backward in bfloat16, 1.5 times in float32 (128 images, 49 positions, 2 threads)."""


class Attention(nn.Module):
    """Every position looks at every other: softmax(qᵀk/√d) v per head, (B, C, H, W) -> the same.

    q, k, v and the output (which starts at zero) are 1x1 convolutions; each of the `heads` has
    `head_dim` channels. Cost O((HW)²). Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """

    def __init__(self, channels: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1)
        self.out = zero_conv(heads * head_dim, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        # positions before channels: a view where x is channels-last
        rows = self.qkv(x).permute(0, 2, 3, 1).reshape(b, height * width, 3, self.heads, -1)
        q, k, v = rows.permute(2, 0, 3, 1, 4).unbind(0)
        if x.device.type == "cpu" and height * width <= SHORT:
            seen = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
        else:
            seen = F.scaled_dot_product_attention(q, k, v)
        seen = seen.transpose(1, 2)
        out: Tensor = self.out(seen.reshape(b, height, width, -1).permute(0, 3, 1, 2))
        return out


class LinearAttention(nn.Module):
    """Attention whose cost is O(HW): (B, C, H, W) -> the same.

        out = W_o [softmax_features(q)/√d · (softmax_positions(k)ᵀ v)] + b_o    q, k, v (HW, d)

    per head, the heads side by side before W_o. The d x d sum over positions is formed once and
    read by every position. q, k, v and the output (which starts at zero) are 1x1 convolutions. As
    softmax_positions sums to one and v = x W_vᵀ + b_v,

        softmax_positions(k)ᵀ v = (softmax_positions(k)ᵀ x) W_vᵀ + b_v

    so W_v and W_o act on the small sum: neither v nor the bracket, both as long as the picture, is
    formed. Source: Shen et al. 2018, "Efficient attention", arXiv:1812.01243, with the 1/√d of the
    tutorial; its norm behind the output is left out, as it would undo the start at zero.
    """

    def __init__(self, channels: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1)
        self.out = zero_conv(heads * head_dim, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.qkv.bias is not None
        assert self.out.bias is not None
        b, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C), a view where x is channels-last
        w_q, w_k, w_v = self.qkv.weight.flatten(1).chunk(3)
        b_q, b_k, b_v = self.qkv.bias.chunk(3)
        q = F.linear(rows, w_q, b_q).reshape(b, height * width, self.heads, -1).softmax(dim=3)
        k = F.linear(rows, w_k, b_k).reshape(b, height * width, self.heads, -1).softmax(dim=1)
        w_v, b_v = w_v.reshape(self.heads, -1, channels), b_v.reshape(self.heads, 1, -1)
        w_o = self.out.weight.reshape(channels, self.heads, -1)
        # p position, h head, i feature of q and k, j feature of v, c channel
        sums = torch.einsum("bphi,bpc->bhic", k, rows)
        context = torch.einsum("bhic,hjc->bhij", sums, w_v) + b_v
        read = torch.einsum("bhij,chj->bhic", context * q.shape[3] ** -0.5, w_o)
        out = torch.baddbmm(self.out.bias, q.flatten(2), read.flatten(1, 2))
        return out.reshape(b, height, width, channels).permute(0, 3, 1, 2)


class PreNormResidual(nn.Module):
    """x + f(norm(x)), norm being group normalisation: the tutorial's PreNorm and Residual."""

    def __init__(self, channels: int, groups: int, inner: nn.Module) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(self.norm(x))
        return out


class Downsample(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, H/2, W/2) by a 3x3 convolution of stride 2.

    Padded with a row below and a column to the right, as Ho et al.'s code ("SAME" of TensorFlow).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, 2H, 2W): every value four times, then a 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class SubPixelUpsample(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, 2H, 2W): a 1x1 convolution to 4 C_out channels, then unfolded.

    A ninth of the multiplications of `Upsample`. The four sub-pixels
    start with the same weights, so that it starts as nearest-neighbour upsampling, without a
    checkerboard. Source: Shi et al. 2016, arXiv:1609.05158; the start, Aitken et al. 2017,
    arXiv:1707.02937.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4 * outputs, 1)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, dim=0))
            if self.conv.bias is not None:
                self.conv.bias.copy_(self.conv.bias[::4].repeat_interleave(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)
