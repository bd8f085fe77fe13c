"""The peers' networks as they are measured everywhere here; imports nothing of Unraze."""

import sys
from typing import Any
from unittest.mock import MagicMock, patch

__all__ = ["WIDTHS", "diffusers_unet", "lucidrains_diffusion"]

WIDTHS = (32, 64, 128)


def diffusers_unet(shape: tuple[int, int, int]) -> Any:
    """UNet2DModel for images (C, H, W): two blocks a level, attention at the lowest resolution.

    Its norms have 8 groups: the 32 that it has otherwise, where the first level has 32 channels,
    are norms of one channel each, which take the brightness of the whole picture away.
    """
    from diffusers import UNet2DModel

    channels, height, width = shape
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )


def lucidrains_diffusion(shape: tuple[int, int, int]) -> Any:
    """denoising-diffusion-pytorch's `GaussianDiffusion` of its `Unet`, with its defaults.

    What the package imports for its trainer alone, which is not used, has no part in it; nor has
    the bar that it shows while sampling.
    """
    of_its_trainer = ("torchvision", "accelerate", "ema_pytorch")
    with patch.dict(sys.modules, {name: MagicMock() for name in of_its_trainer}):
        from denoising_diffusion_pytorch import denoising_diffusion_pytorch as package

    package.tqdm = lambda steps, **_: steps
    channels, height, width = shape
    multipliers = tuple(each // WIDTHS[0] for each in WIDTHS)
    network = package.Unet(dim=WIDTHS[0], dim_mults=multipliers, channels=channels)
    return package.GaussianDiffusion(network, image_size=(height, width))
