"""The pipeline of a model of Unraze for diffusers: classes or clusters, guided in an interval."""

import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class UnrazePipeline(DiffusionPipeline):
    """Draws as any pipeline of pixels does.

    Arguments:
        steps: of the scheduler, where a call does not say.
        guidance, guidance_from, guidance_to: how far towards the class, and in which part of t/T.
        keeps_noise: whether the noise stays as it was said where x_0 is clipped; else it is what is
            left of x_t beside the clipped x_0.
        shares: how often each cluster is drawn where a call names no classes; absent: classes in
            turn.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        steps: int = 50,
        guidance: float = 1.0,
        guidance_from: float = 0.0,
        guidance_to: float = 1.0,
        keeps_noise: bool = False,
        shares: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            steps=steps,
            guidance=guidance,
            guidance_from=guidance_from,
            guidance_to=guidance_to,
            keeps_noise=keeps_noise,
            shares=shares,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        class_labels: list[int] | Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """`batch_size` pictures; `class_labels` one number for each, from 0."""
        unet, scheduler, device = self.unet, self.scheduler, self._execution_device
        labels = self._labels(batch_size, class_labels, generator)
        shape = (batch_size, unet.config.in_channels, *unet.config.sample_size)
        x = randn_tensor(shape, generator=generator, device=device, dtype=unet.dtype)
        scheduler.set_timesteps(num_inference_steps or self.config.steps)
        scale = self.config.guidance if guidance_scale is None else guidance_scale
        takes = inspect.signature(scheduler.step).parameters
        own = {"eta": eta, "generator": generator}
        own["use_clipped_model_output"] = not self.config.keeps_noise
        own = {key: value for key, value in own.items() if key in takes}
        previous = None
        keeps = str(scheduler.config.get("variance_type")).startswith("learned")
        for t in self.progress_bar(scheduler.timesteps):
            said = self._said(x, t, labels, scale, previous)
            if not keeps:  # what a learned variance is told by
                said = said[:, : x.shape[1]]
            step = scheduler.step(said, t, x, **own)
            x = step.prev_sample
            if unet.config.self_conditioning:
                previous = step.pred_original_sample
        image = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.cpu().permute(0, 2, 3, 1).float().numpy()
            if output_type == "pil":
                image = self.numpy_to_pil(image)
        return ImagePipelineOutput(images=image) if return_dict else (image,)

    def _said(
        self, x: Tensor, t: Tensor, labels: Tensor | None, scale: float, previous: Tensor | None
    ) -> Tensor:
        said: Tensor = self.unet(x, t, labels, previous).sample
        part = (float(t) + 1) / self.scheduler.config.num_train_timesteps
        acts = self.config.guidance_from <= part <= self.config.guidance_to
        if scale == 1 or labels is None or not acts:
            return said
        none = torch.full_like(labels, self.unet.config.num_classes)
        return torch.lerp(self.unet(x, t, none, previous).sample, said, scale)

    def _labels(
        self, count: int, asked: list[int] | Tensor | None, generator: Any
    ) -> Tensor | None:
        known = self.unet.config.num_classes
        if not known:
            if asked is not None:
                raise ValueError("class_labels: this model knows no classes")
            return None
        if asked is not None:
            labels = torch.as_tensor(asked, dtype=torch.long)
            if labels.shape != (count,) or bool(((labels < 0) | (labels > known)).any()):
                raise ValueError(f"class_labels: give {count} numbers from 0 to {known}")
        elif self.config.shares is not None:
            # quantiles of n φ + u, modulo 1: of all clusters, in proportion
            first = generator[0] if isinstance(generator, list) else generator
            where = None if first is None else first.device
            u = torch.rand(1, generator=first, device=where, dtype=torch.float64).cpu()
            place = (u + 0.6180339887498949 * torch.arange(count, dtype=torch.float64)) % 1
            edges = torch.tensor(self.config.shares, dtype=torch.float64).cumsum(0)
            labels = torch.searchsorted(edges, place).clamp(max=known - 1)
        else:
            labels = torch.arange(count) % known
        return labels.to(self._execution_device)
