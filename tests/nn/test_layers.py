"""The parts of the networks against their formulas, written out in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy import stats
from torch import Tensor, nn

from unraze.errors import InputError
from unraze.nn.layers import (
    Attention,
    Conditioning,
    ConvNeXtBlock,
    Downsample,
    LinearAttention,
    PreNormResidual,
    ResNetBlock,
    SubPixelUpsample,
    Upsample,
    group_norm,
    head_width,
    require_divisible,
    sinusoidal,
    split_mix,
)


def _shaken(module: nn.Module) -> nn.Module:
    """The module with every weight drawn at random, so that no zero hides a part of it."""
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return module.double()


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _conv1x1(conv: nn.Conv2d, x: np.ndarray) -> np.ndarray:
    weight, bias = conv.weight.detach().numpy()[:, :, 0, 0], conv.bias.detach().numpy()
    return np.einsum("oi,ip->op", weight, x) + bias[:, None]


@given(half=st.integers(1, 40), t=st.floats(0, 1000), period=st.sampled_from([100.0, 10000.0]))
def test_sinusoidal_is_the_formula(half: int, t: float, period: float) -> None:
    omega = [period ** (-i / (half - 1)) if half > 1 else 1.0 for i in range(half)]
    want = [np.sin(w * t) for w in omega] + [np.cos(w * t) for w in omega]
    got = sinusoidal(torch.tensor([t], dtype=torch.float64), 2 * half, max_period=period)
    np.testing.assert_allclose(got[0].numpy(), want, atol=1e-9)


@pytest.mark.parametrize("dim", [0, 1, 7])
def test_sinusoidal_refuses_an_odd_dim(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim = {dim}"):
        sinusoidal(torch.zeros(1), dim)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_attention_is_the_explicit_softmax(memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    heads, d = 2, 3
    attention = _shaken(Attention(5, heads=heads, head_dim=d))
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64).contiguous(memory_format=memory)
    got = attention(x).detach().flatten(2).numpy()
    for sample, flat in enumerate(x.flatten(2).numpy()):
        q, k, v = _conv1x1(attention.qkv, flat).reshape(3, heads, d, -1)
        seen = [v[h] @ _softmax(q[h].T @ k[h] / np.sqrt(d), axis=1).T for h in range(heads)]
        want = _conv1x1(attention.out, np.concatenate(seen))
        np.testing.assert_allclose(got[sample], want, atol=1e-10)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_linear_attention_is_the_sum_over_positions(memory: torch.memory_format) -> None:
    torch.manual_seed(1)
    heads, d = 2, 3
    attention = _shaken(LinearAttention(5, heads=heads, head_dim=d))
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64).contiguous(memory_format=memory)
    got = attention(x).detach().flatten(2).numpy()
    for sample, flat in enumerate(x.flatten(2).numpy()):
        q, k, v = _conv1x1(attention.qkv, flat).reshape(3, heads, d, -1)
        q, k = _softmax(q, axis=1) / np.sqrt(d), _softmax(k, axis=2)
        seen = np.zeros_like(q)
        for h in range(heads):
            for here in range(24):
                for there in range(24):
                    weight = sum(q[h, f, here] * k[h, f, there] for f in range(d))
                    seen[h, :, here] += weight * v[h, :, there]
        want = _conv1x1(attention.out, seen.reshape(heads * d, -1))
        np.testing.assert_allclose(got[sample], want, atol=1e-10)


@pytest.mark.parametrize(("channels", "heads", "d"), [(5, 2, 3), (3, 1, 8), (12, 4, 2)])
def test_linear_attention_and_its_gradients_are_those_of_the_written_formula(
    channels: int, heads: int, d: int
) -> None:
    """Its order of multiplication changes neither the output nor a derivative."""
    torch.manual_seed(7)
    attention = _shaken(LinearAttention(channels, heads=heads, head_dim=d))
    x = torch.randn(3, channels, 4, 7, dtype=torch.float64, requires_grad=True)
    toward = torch.randn_like(x)

    def written() -> Tensor:
        q, k, v = attention.qkv(x).reshape(3, 3, heads, d, 28).transpose(-1, -2).unbind(1)
        seen = q.softmax(dim=-1) / math.sqrt(d) @ (k.softmax(dim=-2).transpose(-1, -2) @ v)
        return attention.out(seen.transpose(-1, -2).reshape(3, heads * d, 4, 7))

    inputs = {"x": x, **dict(attention.named_parameters())}
    want, got = written(), attention(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    wants, gots = (torch.autograd.grad(y, list(inputs.values()), toward) for y in (want, got))
    for name, a, b in zip(inputs, gots, wants, strict=True):
        scale = float(b.abs().max())
        assert scale > 1e-3, name
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * scale, msg=name)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_resnet_block_is_its_formula(scale_shift: bool) -> None:
    torch.manual_seed(2)
    block = _shaken(ResNetBlock(4, 6, 5, groups=2, scale_shift=scale_shift, dropout=0.0))
    x, emb = torch.randn(3, 4, 5, 7).double(), torch.randn(3, 5).double()

    def silu(h: Tensor) -> Tensor:
        return h / (1 + torch.exp(-h))

    def norm(gn: nn.GroupNorm, h: Tensor) -> Tensor:
        grouped = h.reshape(3, 2, -1)
        grouped = (grouped - grouped.mean(2, keepdim=True)) / (
            grouped.var(2, keepdim=True, unbiased=False) + 1e-6
        ).sqrt()
        flat = grouped.reshape(h.shape)
        return flat * gn.weight[:, None, None] + gn.bias[:, None, None]

    h = block.conv1(silu(norm(block.norm1, x)))
    time = block.time(emb)[:, :, None, None]
    if scale_shift:
        h = norm(block.norm2, h) * (1 + time[:, :6]) + time[:, 6:]
    else:
        h = norm(block.norm2, h + time)
    want = block.skip(x) + block.conv2(silu(h))
    torch.testing.assert_close(block(x, emb), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_residual_branches_start_as_the_identity(scale_shift: bool) -> None:
    x, emb = torch.randn(2, 4, 6, 8), torch.randn(2, 5)
    resnet = ResNetBlock(4, 4, 5, groups=2, scale_shift=scale_shift, dropout=0.0)
    convnext = ConvNeXtBlock(4, 4, 5, scale_shift=scale_shift, dropout=0.0)
    full = PreNormResidual(4, 2, Attention(4, heads=2, head_dim=3))
    linear = PreNormResidual(4, 2, LinearAttention(4, heads=2, head_dim=3))
    for out in (resnet(x, emb), convnext(x, emb), full(x), linear(x)):
        assert torch.equal(out, x)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_time_reaches_the_output_of_a_convnext_block(scale_shift: bool) -> None:
    torch.manual_seed(3)
    block = _shaken(ConvNeXtBlock(4, 6, 5, scale_shift=scale_shift, dropout=0.0))
    x = torch.randn(1, 4, 6, 8).double()
    early, late = (block(x, torch.full((1, 5), value).double()) for value in (0.0, 1.0))
    assert early.shape == (1, 6, 6, 8)
    assert (early - late).abs().max() > 1e-3


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(4)
    x, emb = torch.randn(1, 4, 8, 8).double(), torch.randn(1, 5).double()
    blocks = (
        ResNetBlock(4, 4, 5, groups=2, scale_shift=True, dropout=0.5),
        ConvNeXtBlock(4, 4, 5, scale_shift=True, dropout=0.5),
    )
    for block in blocks:
        _shaken(block)
        assert not torch.equal(block(x, emb), block(x, emb))
        block.eval()
        assert torch.equal(block(x, emb), block(x, emb))


def test_split_mix_has_the_numbers_of_its_authors() -> None:
    """Of the seed 1234567, as the reference program prints them; 24 of their 64 bits."""
    published = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    published += (4593380528125082431, 16408922859458223821)
    found = split_mix(torch.tensor([1234567]), 5)
    assert found.tolist() == [[(value >> 40) / 2**24 for value in published]]


def test_split_mix_is_uniform_and_each_row_of_its_seed_alone() -> None:
    drawn = split_mix(torch.tensor([2**63 - 1, 0, 1, 2]), 20_000)
    assert torch.equal(drawn[2:], split_mix(torch.tensor([1, 2]), 20_000))
    assert ((drawn >= 0) & (drawn < 1)).all()
    for row in drawn:
        assert stats.kstest(row.numpy(), "uniform").pvalue > 1e-3
    apart = torch.corrcoef(drawn) - torch.eye(4)
    assert apart.abs().max() < 5 / 20_000**0.5


def test_resolution_steps() -> None:
    x = torch.randn(2, 3, 6, 10)
    assert Downsample(3, 5)(x).shape == (2, 5, 3, 5)
    assert Upsample(3, 5)(x).shape == (2, 5, 12, 20)
    fine = SubPixelUpsample(3, 5)(x)
    assert fine.shape == (2, 5, 12, 20)
    # it starts as nearest-neighbour upsampling: the four sub-pixels are the same
    squares = fine.reshape(2, 5, 6, 2, 10, 2)
    assert torch.equal(squares, squares[:, :, :, :1, :, :1].expand_as(squares))


def test_conditioning_without_a_class_is_the_null_class() -> None:
    conditioning = Conditioning(7, 12, num_classes=3)
    t = torch.tensor([0.0, 0.5, 999.25])
    assert torch.equal(conditioning(t, None), conditioning(t, torch.full((3,), 3)))
    assert not torch.equal(conditioning(t, None), conditioning(t, torch.tensor([0, 1, 2])))
    with pytest.raises(ValueError, match="classes"):
        Conditioning(7, 12, num_classes=0)(t, torch.zeros(3, dtype=torch.int64))


def test_widths_that_do_not_divide_are_named() -> None:
    with pytest.raises(InputError, match=r"groups = 4 .* 10 channels.* such as 2"):
        group_norm(4, 10)
    with pytest.raises(InputError, match=r"heads = 3 .* 10 channels"):
        head_width(10, 3, None)
    assert head_width(10, 3, 16) == 16
    assert head_width(12, 3, None) == 4


@given(height=st.integers(1, 99), width=st.integers(1, 99), multiple=st.integers(1, 16))
def test_a_size_is_refused_exactly_where_it_does_not_divide(
    height: int, width: int, multiple: int
) -> None:
    if height % multiple == 0 and width % multiple == 0:
        require_divisible((height, width), multiple, because="it must")
        return
    with pytest.raises(InputError, match=f"size {height}x{width}") as caught:
        require_divisible((height, width), multiple, because="it must")
    named = str(caught.value).rpartition("nearest that fit: ")[2].split(" and ")
    for text in named:
        h, w = (int(side) for side in text.split("x"))
        require_divisible((h, w), multiple, because="it must")
        assert abs(h - height) < multiple
        assert abs(w - width) < multiple
