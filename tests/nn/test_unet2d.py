"""The network that diffusers' models are read into, beside diffusers' own."""

import warnings
from typing import Any

import pytest
import torch

from unraze.config import UNet2DConfig
from unraze.errors import InputError
from unraze.nn import build

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import UNet2DModel

SMALL: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4}
PLAIN: dict[str, Any] = SMALL | {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ddpm": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "one head": {"attention_head_dim": None},
    "heads of four": {"attention_head_dim": 4},
    "heads that leave a rest": {"attention_head_dim": 3},
    "three layers": {"layers_per_block": 3},
    "one level": {
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "attention on one side": {"up_block_types": ("UpBlock2D", "UpBlock2D")},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift, groups in the middle": {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 2,
    },
    "groups in the middle": {"attn_norm_num_groups": 2},
    "no middle": {"mid_block_type": None},
    "no attention in the middle": {"add_attention": False},
    "scaled middle": {"mid_block_scale_factor": 1.5},
    "resampled by blocks": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "blocks that resample": {
        "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "attention where it is resampled": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "centred": {"center_input_sample": True},
    "odd width of time": {"block_out_channels": (12, 16), "time_embedding_dim": 20},
    "mish": {"act_fn": "mish"},
    "gelu": {"act_fn": "gelu"},
}


def both(changes: dict[str, Any], **more: Any) -> tuple[UNet2DModel, torch.nn.Module]:
    """Theirs with weights of a seed, and ours with the same."""
    torch.manual_seed(0)
    keys = {"attention_head_dim": 8} | PLAIN | changes
    theirs = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, **keys, **more).eval()
    classes = more.get("num_class_embeds")
    own = dict(keys)
    if "mid_block_type" in own:
        own["mid_block_type"] = "none"
    ours = build(
        UNet2DConfig.model_validate(own | more), channels=3, size=(8, 8), num_classes=classes or 0
    ).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # what begins at one or at zero must not hide a mistake
            weight.add_(0.1 * torch.randn(weight.shape))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@torch.no_grad()
@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_the_output_is_theirs(changes: dict[str, Any]) -> None:
    theirs, ours = both(changes)
    x = torch.randn(4, 3, 8, 8)
    for t in (torch.tensor([0, 1, 500, 999]), torch.tensor([999, 998, 37, 0])):
        expected = theirs(x, t).sample
        assert float(expected.std()) > 0.05
        torch.testing.assert_close(ours(x, t + 1), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(x, (t + 1).double()), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_their_classes_are_ours() -> None:
    theirs, ours = both({}, num_class_embeds=5)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0, 10, 999])
    classes = torch.tensor([4, 0, 2])
    expected = theirs(x, t, class_labels=classes).sample
    torch.testing.assert_close(ours(x, t + 1, classes=classes), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="no images without a class"):
        ours(x, t + 1)


def test_a_table_of_our_own_has_a_row_for_no_class() -> None:
    network = build(UNet2DConfig(**SMALL | PLAIN), channels=1, size=(8, 8), num_classes=5)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 2.0])
    none = torch.full((2,), 5)
    assert torch.equal(network(x, t), network(x, t, classes=none))
    assert not torch.equal(network(x, t), network(x, t, classes=torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"norm_num_groups": 3}, "norm_num_groups = 3 does not divide a width of 8"),
        ({"attn_norm_num_groups": 3}, "attn_norm_num_groups = 3 does not divide a width of 16"),
        ({"attention_head_dim": 32}, "attention_head_dim = 32: is more than the 16 channels"),
    ],
)
def test_widths_that_do_not_go_round(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(UNet2DConfig(**PLAIN | changes), channels=1, size=(8, 8))


def test_what_it_cannot_be_told(tmp_path: object) -> None:
    config = UNet2DConfig(**PLAIN)
    with pytest.raises(InputError, match="self_conditioning"):
        build(config, channels=1, size=(8, 8), self_conditioning=True)
    with pytest.raises(InputError, match=r"data\.augment"):
        build(config, channels=1, size=(8, 8), augment_values=9)
    with pytest.raises(InputError, match=r"nearest that fit: 8x8 and 8x10"):
        build(config, channels=1, size=(8, 9))
    with pytest.raises(ValueError, match="without classes"):
        build(config, channels=1, size=(8, 8))(
            torch.zeros(1, 1, 8, 8), torch.ones(1), classes=torch.zeros(1, dtype=torch.long)
        )
