"""diffusers' network as it is measured everywhere here; imports nothing of Unraze."""

from typing import Any

__all__ = ["diffusers_unet"]

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
