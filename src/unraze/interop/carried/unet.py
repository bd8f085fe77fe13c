"""A network of Unraze as a model of diffusers. The network's own code stands above, in the same
file: `unraze.interop.to_diffusers` puts the two together."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

NAMES = {"lean": "LeanUNet", "unet": "UNet"}


class UnrazeUNet(ModelMixin, ConfigMixin):
    """Called as a UNet2DModel is: (sample (B, C, H, W), timestep) -> .sample, what it predicts.

    `timestep` is Unraze's training time less 1. `class_labels` (B,) are classes or clusters,
    `num_classes` for none of them, as where they are left out; `previous` is the last estimate of
    x_0 of a network that was trained with it. Where a network emits what no scheduler knows, what
    it predicts here is skip(t) x + gain(t) raw, raw being its output for input_scale(t) x.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: list[int],
        in_channels: int,
        layers: dict[str, Any],
        num_classes: int = 0,
        self_conditioning: bool = False,
        learned_variance: bool = False,
        augment_values: int = 0,
        input_scale: list[float] | None = None,
        skip: list[float] | None = None,
        gain: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = globals()[NAMES[layers["kind"]]](
            SimpleNamespace(**layers),
            channels=in_channels,
            num_classes=num_classes,
            self_conditioning=self_conditioning,
            learned_variance=learned_variance,
            augment_values=augment_values,
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        previous: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        more = {"classes": class_labels, "previous": previous}
        given = {key: value for key, value in more.items() if value is not None}
        seen = self._scaled(sample, t, "input_scale")
        raw = self.network(seen, (t + 1).to(sample.dtype), **given)
        raw, *variance = raw.split(sample.shape[1], dim=1)
        said = self._scaled(raw, t, "gain")
        if self.config.skip is not None:
            said = said + self._scaled(sample, t, "skip")
        said = torch.cat((said, *variance), dim=1)
        return UNet2DOutput(sample=said) if return_dict else (said,)

    def _scaled(self, x: Tensor, t: Tensor, name: str) -> Tensor:
        """x times what the configuration has at the times t; x itself where it has nothing."""
        values = self.config[name]
        if values is None:
            return x
        return (
            x * torch.tensor(values, dtype=x.dtype, device=x.device)[t.long()][:, None, None, None]
        )
