"""What every network owes its callers, and the counts that its authors published."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from unraze import optim
from unraze.config import LeanConfig, TrainConfig, UNetConfig, preset, to_toml, updated
from unraze.data import Images
from unraze.errors import InputError
from unraze.nn import build, parameters_in
from unraze.nn.layers import LinearAttention
from unraze.nn.lean import FINEST, LeanUNet, fitted
from unraze.train import prepare

Network = LeanConfig | UNetConfig

SMALL: dict[str, Network] = {
    "lean": LeanConfig(fold=2, widths=(8, 16), blocks=1, heads=2, groups=4),
    "lean, three levels": LeanConfig(fold=1, widths=(8, 16, 8), blocks=2, groups=4, dropout=0.1),
    "lean, one level": LeanConfig(fold=4, widths=(8,), blocks=2, groups=4),
    "lean, finished": LeanConfig(fold=4, widths=(8, 8), groups=4, finish=6),
    "annotated": UNetConfig(dim=8, head_dim=4),
    "convnext": UNetConfig(dim=8, multipliers=(1, 2), block="convnext", head_dim=4),
    "shift only": UNetConfig(
        dim=8,
        multipliers=(1, 2),
        attention=(1,),
        linear_attention=False,
        heads=1,
        scale_shift=False,
        dropout=0.1,
    ),
    "convnext, shift only": UNetConfig(
        dim=6, multipliers=(2, 1), block="convnext", blocks=1, groups=2, heads=2, scale_shift=False
    ),
}
HO = UNetConfig(
    dim=128,
    multipliers=(1, 2, 2, 2),
    blocks=2,
    attention=(1,),
    linear_attention=False,
    heads=1,
    head_dim=None,
    groups=32,
    scale_shift=False,
    dropout=0.1,
)
every = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())


def _perturbed(config: Network, **options: int | bool) -> nn.Module:
    """A network for 3x8x16 whose zeros are replaced, so that every part has a say."""
    torch.manual_seed(0)
    network = build(config, channels=3, size=(8, 16), **options)
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
    return network


def _inputs(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 8, 16, generator=generator)
    return x, torch.rand(batch, generator=generator) * 1000


@every
def test_starts_at_zero_with_the_input_shape(config: Network) -> None:
    network = build(config, channels=3, size=(8, 16))
    x, t = _inputs(2)
    out = network(x, t)
    assert out.shape == x.shape
    assert not out.any()


@every
def test_a_learned_variance_doubles_the_output_and_nothing_else(config: Network) -> None:
    plain, learned = (build(config, channels=3, size=(8, 16), learned_variance=v) for v in (0, 1))
    x, t = _inputs(2)
    out = learned(x, t)
    assert out.shape == (2, 6, 8, 16)
    assert not out.any()
    shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in (plain, learned)]
    other = [k for k in shapes[0] if shapes[0][k] != shapes[1][k]]
    assert shapes[0].keys() == shapes[1].keys()
    is_finished = isinstance(config, LeanConfig) and config.finish
    seen = ["finish.0.inner.weight"] if is_finished else []
    emitted = ["finish.0.outer.weight", "finish.0.outer.bias"] if is_finished else []
    assert other == ["out.weight", "out.bias", *seen, *emitted]
    for k in ("out.weight", "out.bias", *emitted):
        assert shapes[1][k][0] == 2 * shapes[0][k][0]
    for k in seen:  # what is emitted, and the picture: 3 + 3 channels, then 6 + 3
        assert 2 * shapes[1][k][1] == 3 * shapes[0][k][1]


@every
def test_gradient_reaches_every_parameter(config: Network) -> None:
    network = _perturbed(config, num_classes=4, self_conditioning=True, augment_values=9)
    x, t = _inputs(4)
    given = {"classes": torch.tensor([0, 1, 3, 4]), "previous": x.flip(0)}
    network(x, t, **given, augmentation=torch.ones(4, 9)).square().mean().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@every
def test_a_sample_does_not_depend_on_the_others(config: Network) -> None:
    network = _perturbed(config).eval()
    x, t = _inputs(3)
    together = network(x, t)
    for k in range(3):
        alone = network(x[k : k + 1], t[k : k + 1])[0]
        torch.testing.assert_close(together[k], alone, rtol=0, atol=1e-5)


@every
def test_time_may_lie_between_the_integers(config: Network) -> None:
    network = _perturbed(config).eval()
    x, _ = _inputs(1)
    a, b, c = (network(x, torch.tensor([t])) for t in (3.0, 3.5, 4.0))
    assert (a - b).abs().max() > 1e-5
    assert (b - c).abs().max() > 1e-5


@every
def test_no_class_is_the_null_class(config: Network) -> None:
    network = _perturbed(config, num_classes=4).eval()
    x, t = _inputs(2)
    without = network(x, t)
    assert torch.equal(without, network(x, t, classes=torch.tensor([4, 4])))
    assert not torch.equal(without, network(x, t, classes=torch.tensor([0, 1])))


@every
def test_no_previous_is_a_previous_of_zeros(config: Network) -> None:
    network = _perturbed(config, self_conditioning=True).eval()
    x, t = _inputs(2)
    without = network(x, t)
    assert torch.equal(without, network(x, t, previous=torch.zeros_like(x)))
    assert not torch.equal(without, network(x, t, previous=torch.ones_like(x)))


@every
def test_no_augmentation_is_one_of_zeros_whatever_its_weights(config: Network) -> None:
    network = _perturbed(config, augment_values=9).eval()
    x, t = _inputs(2)
    without = network(x, t)
    assert torch.equal(without, network(x, t, augmentation=torch.zeros(2, 9)))
    assert not torch.equal(without, network(x, t, augmentation=torch.ones(2, 9)))
    nn.init.normal_(network.get_parameter("conditioning.augmentation"))
    assert torch.equal(without, network(x, t))


@every
def test_a_network_that_is_told_of_changes_has_one_weight_more_and_the_others_as_before(
    config: Network,
) -> None:
    states = []
    for values in (0, 9):
        torch.manual_seed(0)
        network = build(config, channels=3, size=(8, 16), num_classes=2, augment_values=values)
        states.append(network.state_dict())
    plain, told = states
    assert not told.pop("conditioning.augmentation").any()
    assert list(plain) == list(told)
    assert all(torch.equal(plain[name], told[name]) for name in plain)


@every
def test_nothing_given_is_ignored(config: Network) -> None:
    network = build(config, channels=3, size=(8, 16))
    x, t = _inputs(2)
    with pytest.raises(ValueError, match="classes"):
        network(x, t, classes=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="previous"):
        network(x, t, previous=x)
    with pytest.raises(ValueError, match="augmentation"):
        network(x, t, augmentation=torch.zeros(2, 9))


@every
def test_the_same_seed_gives_the_same_weights(config: Network) -> None:
    first, again = (_perturbed(config).state_dict() for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


@every
def test_another_size_than_the_one_built_for(config: Network) -> None:
    """Fully convolutional: any size that divides is accepted, any other is refused by the U-Net."""
    network = _perturbed(config)
    assert network(torch.zeros(1, 3, 16, 8), torch.zeros(1)).shape == (1, 3, 16, 8)
    other = torch.zeros(1, 3, 9, 15)
    if isinstance(config, LeanConfig):
        assert network(other, torch.zeros(1)).shape == other.shape
    else:
        with pytest.raises(InputError, match="size 9x15"):
            network(other, torch.zeros(1))


@settings(max_examples=30, deadline=None)
@given(
    config=st.sampled_from([c for c in SMALL.values() if isinstance(c, LeanConfig)]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    previous=st.booleans(),
)
def test_what_a_size_lacks_is_zeros_that_nothing_is_said_of(
    config: LeanConfig, height: int, width: int, previous: bool
) -> None:
    network = _perturbed(config, self_conditioning=previous).eval()
    assert config.fold is not None
    assert config.widths is not None
    multiple = config.fold * 2 ** (len(config.widths) - 1)
    x, last = torch.randn(2, 1, 3, height, width)
    t = torch.tensor([7.0])
    whole = torch.zeros(2, 1, 3, *(-(-side // multiple) * multiple for side in (height, width)))
    whole[:, :, :, :height, :width] = torch.stack((x, last))
    told = {"previous": last} if previous else {}
    told_whole = {"previous": whole[1]} if previous else {}
    got, want = network(x, t, **told), network(whole[0], t, **told_whole)
    assert torch.equal(got, want[:, :, :height, :width])


def test_no_picture_is_filled_up_to_many_times_its_size() -> None:
    """Which shapes alone would not tell: weights are few, and what is computed has no bound."""
    for widths in ((4,) * 7, (4,) * 16):
        config = LeanConfig(fold=2, widths=widths, heads=1, groups=1)
        with pytest.raises(
            InputError, match=rf"28x28 .* 2x2 pixels and {len(widths) - 1} halvings"
        ):
            build(config, channels=1, size=(28, 28))
    build(LeanConfig(), channels=1, size=(1, 40))


@settings(max_examples=30, deadline=None)
@given(
    config=st.sampled_from([c for c in SMALL.values() if isinstance(c, UNetConfig)]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_a_bad_size_is_answered_with_sizes_that_build(
    config: UNetConfig, height: int, width: int
) -> None:
    multiple = 2 ** (len(config.multipliers) - 1)
    if height % multiple == 0 and width % multiple == 0:
        build(config, channels=1, size=(height, width))
        return
    with pytest.raises(InputError) as caught:
        build(config, channels=1, size=(height, width))
    assert "\n" not in str(caught.value)
    for named in str(caught.value).rpartition("nearest that fit: ")[2].split(" and "):
        h, w = (int(side) for side in named.split("x"))
        out = build(config, channels=1, size=(h, w))(torch.zeros(1, 1, h, w), torch.zeros(1))
        assert out.shape == (1, 1, h, w)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (UNetConfig(attention=(3,)), "no level 3; the 3 multipliers make levels 0 to 2"),
        (UNetConfig(dim=30), "groups = 4 does not divide a width of 30"),
        (UNetConfig(dim=12, heads=5), "heads = 5 does not divide the 12 channels"),
        (LeanConfig(widths=(12,), groups=8), "groups = 8 does not divide a width of 12"),
        (LeanConfig(heads=3), "heads = 3 does not divide the 128 channels"),
    ],
)
def test_a_network_that_cannot_be_is_named(config: Network, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(config, channels=1, size=(32, 32))


def test_the_lean_default_has_about_2_4_million_weights() -> None:
    assert 1.0e6 < parameters_in(build(LeanConfig(), channels=1, size=(28, 28))) < 1.2e6


def _seen_by_the_layers(network: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """What every convolution and every linear attention (which calls none) is given."""
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0])

    for module in network.modules():
        if isinstance(module, nn.Conv2d | LinearAttention):
            module.register_forward_pre_hook(look)
    network(*inputs)
    assert len(seen) > 8
    return seen


@pytest.mark.parametrize("channels", [1, 3])
@every
def test_it_computes_channels_last(config: Network, channels: int) -> None:
    """Grey pictures too, whose one channel lies both ways at once."""
    network = build(config, channels=channels, size=(8, 16))
    x, t = _inputs(2)
    for h in _seen_by_the_layers(network, x[:, :channels].contiguous(), t):
        assert h.is_contiguous(memory_format=torch.channels_last)


@every
def test_no_layer_falls_back_to_single_precision(config: Network) -> None:
    network = build(config, channels=3, size=(8, 16))
    with torch.autocast("cpu", torch.bfloat16):
        first, *others = _seen_by_the_layers(network, *_inputs(2))
    assert first.dtype == torch.float32
    assert {h.dtype for h in others} == {torch.bfloat16}


@every
def test_a_restored_optimiser_goes_on_bit_for_bit(config: Network) -> None:
    """Weights lie channels-last, files row by row: what is read back must lie like the weights."""

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        torch.manual_seed(2)
        optimizer.zero_grad()
        network(x, t).sub(x).square().mean().backward()
        optimizer.step()

    x, t = _inputs(2)
    train = TrainConfig(optimizer="adamw", lr=1e-3)
    kept = _perturbed(config)
    going = optim.build(kept, train)
    for _ in range(2):
        step(kept, going)
    saved = {name: value.contiguous() for name, value in kept.state_dict().items()}
    moments = {n: v.contiguous() for n, v in optim.write_state(kept, going).items()}
    restored = build(config, channels=3, size=(8, 16))
    restored.load_state_dict(saved)
    anew = optim.build(restored, train)
    optim.read_state(restored, anew, {n: v.clone() for n, v in moments.items()})
    for name, value in optim.write_state(restored, anew).items():
        assert torch.equal(value, moments[name]), name
    step(kept, going)
    step(restored, anew)
    for (name, a), b in zip(kept.named_parameters(), restored.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.stride() == b.stride(), name


def _theirs(widths: tuple[int, ...], groups: int) -> UNet2DModel:
    """diffusers' network as the configuration of google/ddpm-cifar10-32 has it."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        norm_eps=1e-6,
        norm_num_groups=groups,
    )


def test_the_network_of_ho_et_al_has_its_35_7_million_weights() -> None:
    with torch.device("meta"):
        ours = build(HO, channels=3, size=(32, 32))
        theirs = _theirs((128, 256, 256, 256), 32)
    assert parameters_in(ours) == 35_746_307 == sum(p.numel() for p in theirs.parameters())


def _copy(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    for mine, other in names.items():
        source = theirs.get_submodule(other).state_dict()
        ours.get_submodule(mine).load_state_dict(
            {
                k: v.reshape(ours.get_submodule(mine).state_dict()[k].shape)
                for k, v in source.items()
            }
        )


def _copy_stage(ours: nn.Module, theirs: nn.Module, mine: str, other: str, number: int) -> None:
    block, resnet = ours.get_submodule(f"{mine}.block"), f"{other}.resnets.{number}"
    _copy_block(block, theirs.get_submodule(resnet))
    attentions = getattr(theirs.get_submodule(other), "attentions", None)
    if attentions is not None:
        attention, source = ours.get_submodule(f"{mine}.attention"), attentions[number]
        _copy(attention, source, {"norm": "group_norm", "inner.out": "to_out.0"})
        qkv = attention.get_submodule("inner.qkv")
        for name in ("weight", "bias"):
            rows = [getattr(m, name) for m in (source.to_q, source.to_k, source.to_v)]
            mine_now = getattr(qkv, name)
            mine_now.data = torch.cat(rows).reshape(mine_now.shape).detach().clone()


def _copy_block(ours: nn.Module, theirs: nn.Module) -> None:
    names = {n: n for n in ("norm1", "conv1", "norm2", "conv2")} | {"time": "time_emb_proj"}
    if not isinstance(ours.get_submodule("skip"), nn.Identity):
        names["skip"] = "conv_shortcut"
    _copy(ours, theirs, names)


def test_it_computes_what_diffusers_computes_with_the_same_weights() -> None:
    torch.manual_seed(5)
    theirs = _theirs((16, 32, 32, 32), 4).double().eval()
    ours = build(HO.model_copy(update={"dim": 16, "groups": 4}), channels=3, size=(16, 24))
    ours = ours.double().eval()
    simple = {
        "conditioning.inner": "time_embedding.linear_1",
        "conditioning.outer": "time_embedding.linear_2",
        "stem": "conv_in",
        "norm": "conv_norm_out",
        "out": "conv_out",
    }
    for level in range(3):
        simple[f"downs.{level}.conv"] = f"down_blocks.{level}.downsamplers.0.conv"
        simple[f"ups.{level}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    _copy(ours, theirs, simple)
    for level in range(4):
        for i in range(2):
            _copy_stage(ours, theirs, f"down_levels.{level}.{i}", f"down_blocks.{level}", i)
        for i in range(3):
            _copy_stage(ours, theirs, f"up_levels.{level}.{i}", f"up_blocks.{level}", i)
    _copy_stage(ours, theirs, "middle", "mid_block", 0)
    _copy_block(ours.get_submodule("middle_last"), theirs.mid_block.resnets[1])

    x, t = torch.randn(2, 3, 16, 24).double(), torch.tensor([3.0, 871.0]).double()
    with torch.no_grad():
        want = theirs(x, t.float()).sample
        got = ours(x, t)
    assert want.std() > 0.01
    # diffusers' sines are of single precision
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * float(want.std()))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 15, 20, 28, 32, 48, 50, 64, 96, 100, 128, 192, 225, 256])
def test_every_size_has_a_network_with_few_places_at_its_finest_level(
    side: int, channels: int
) -> None:
    config = fitted(LeanConfig(), (side, side))
    assert config.fold is not None
    assert config.widths is not None
    least = 2 ** (len(config.widths) - 1)
    finest = -(-side // (config.fold * least)) * least  # with what the side is filled up with
    assert finest <= FINEST or side > 8 * FINEST
    assert finest // 2 ** (len(config.widths) - 1) <= FINEST / 2  # where attention is
    with torch.device("meta"):
        network = build(LeanConfig(), channels=channels, size=(side, side))
        assert network(torch.empty(1, channels, side, side), torch.empty(1)).shape[2:] == (
            side,
            side,
        )


def test_what_is_given_is_not_fitted() -> None:
    given = LeanConfig(fold=1, widths=(16,))
    assert fitted(given, (256, 256)) == given
    assert fitted(LeanConfig(fold=1), (28, 28)).widths == (64, 128, 128)
    assert fitted(LeanConfig(), (28, 14)) == LeanConfig(fold=2, widths=(64, 128), finish=0)
    assert fitted(LeanConfig(finish=8), (28, 28)).finish == 8
    assert fitted(LeanConfig(finish=0), (64, 64)).finish == 0
    assert fitted(LeanConfig(), (64, 64)).finish == 48


def test_a_run_of_before_there_was_a_finish_has_none() -> None:
    changes = {"network.fold": 4, "network.widths": (8,), "train.steps": 1, "train.clusters": 0}
    images = Images.from_arrays(np.zeros((2, 3, 64, 64), dtype=np.uint8), source="black")
    of_then = prepare(updated(preset("fast"), changes | {"sample.guidance": 1.0}), images)
    assert "finish" not in to_toml(of_then)
    network = build(of_then.network, channels=3, size=(64, 64))
    assert not any(name.startswith("finish.") for name in network.state_dict())


@pytest.mark.parametrize("fold", [1, 2, 3, 4])
def test_the_finish_sees_each_pixel_of_the_picture(fold: int) -> None:
    """One pixel changed changes what is said of it, however narrow the folded part is."""
    torch.manual_seed(0)
    config = LeanConfig(fold=fold, widths=(4,), heads=1, groups=1, finish=16)
    network = build(config, channels=1, size=(12, 12))
    assert isinstance(network, LeanUNet)
    nn.init.normal_(network.get_parameter("finish.0.outer.weight"))
    x, t = torch.randn(1, 1, 12, 12), torch.rand(1)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, t).flatten(), x)
    itself = jacobian.reshape(144, 144).diagonal()
    assert (itself.abs() > 1e-4).all()
