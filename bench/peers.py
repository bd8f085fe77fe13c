"""The peers that Unraze is measured against: their networks, losses and samplers, in one loop.

Each has the network, the loss and the samplers of its own documents, among them the sampler of its
examples; how it is trained is the same for all: AdamW with torch's β (0.9, 0.999), a warm-up of 100
steps and a cosine down to zero at the end of the time, gradients clipped at 1, the moving average
of the weights that is then sampled from, float32 or bfloat16 (autocast), whichever makes its steps
faster here. The time is that of training alone.

diffusers  `UNet2DModel` of (32, 64, 128) channels with attention at the lowest resolution, noise
           prediction on its `DDPMScheduler` (1,000 linear steps); all its samplers clip x̂_0
lucidrains denoising-diffusion-pytorch's `Unet` of (32, 64, 128) channels in its `GaussianDiffusion`
           (1,000 sigmoid steps, v prediction with its weights), drawn by its DDIM, η 0 or 1
azula      `UNet` of (32, 64, 128) channels, two blocks each, as `KarrasDenoiser` on its
           `VPSchedule`, times uniform, with its own loss
"""

import importlib.util
import io
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from peer_networks import WIDTHS, diffusers_unet, lucidrains_diffusion
from torch import Tensor, nn

from unraze import ema, rng
from unraze.data import to_float, to_uint8
from unraze.files import write_whole

__all__ = ["INSTALLED_BY", "PEERS", "Peer", "is_installed", "train"]

Array = np.ndarray[Any, Any]
Draw = Callable[[int, int, int], Array]
"""(number, calls, seed) -> uint8 (number, C, H, W)."""

INSTALLED_BY = "pip install --no-deps azula==0.11.1 denoising-diffusion-pytorch==2.3.4 einops"
"""Those that are no development tools; without what they depend on, as they ask for torchvision."""

WARMUP, DECAY, CLIP = 100, 0.995, 1.0
EVERY = 60.0
"""Seconds between two savings of a training."""
DRAWN_AT_ONCE = 250


@dataclass(frozen=True)
class Peer:
    """A network, the loss of a batch x_0 (B, C, H, W), and samplers: (x_T, calls) -> x_0."""

    network: nn.Module
    loss: Callable[[Tensor], Tensor]
    samplers: dict[str, Callable[[Tensor, int], Tensor]]


def diffusers(shape: tuple[int, int, int]) -> Peer:
    """As diffusers' unconditional training example has it, with the annotated tutorial's size."""
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
    )

    network = diffusers_unet(shape)
    training = DDPMScheduler(1000)
    schedulers = {
        "DDPM": DDPMScheduler(1000, timestep_spacing="trailing"),
        "DDIM": DDIMScheduler(1000, timestep_spacing="trailing"),
        "DPM++ 2M SDE Karras": DPMSolverMultistepScheduler(
            1000, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True, thresholding=True
        ),
        "UniPC": UniPCMultistepScheduler(1000, timestep_spacing="trailing", thresholding=True),
    }

    def loss(x0: Tensor) -> Tensor:
        eps = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),))
        said = network(training.add_noise(x0, eps, t), t).sample
        return (said - eps).square().mean()

    def sample(drawing: Any, x: Tensor, calls: int) -> Tensor:
        drawing.set_timesteps(calls)
        if hasattr(drawing, "set_begin_index"):  # else it is looked up among rounded times
            drawing.set_begin_index(0)
        for t in drawing.timesteps:
            x = drawing.step(network(x, t).sample, int(t), x).prev_sample
        return x

    return Peer(network, loss, {name: partial(sample, one) for name, one in schedulers.items()})


def lucidrains(shape: tuple[int, int, int]) -> Peer:
    """denoising-diffusion-pytorch, whose images are from 0 to 1 outside."""
    diffusion = lucidrains_diffusion(shape)

    def loss(x0: Tensor) -> Tensor:
        out: Tensor = diffusion((x0 + 1) / 2)
        return out

    def sample(eta: float, x: Tensor, calls: int) -> Tensor:
        diffusion.sampling_timesteps, diffusion.ddim_sampling_eta = calls, eta
        with patch("torch.randn", lambda *_, **__: x):  # what it begins with
            drawn: Tensor = diffusion.ddim_sample(tuple(x.shape))
        return 2 * drawn - 1

    return Peer(diffusion, loss, {f"DDIM, η = {eta:g}": partial(sample, eta) for eta in (0.0, 1.0)})


class _Modulated(nn.Module):
    """azula's UNet with its sinusoidal encoding of the time, as its tutorials put them together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        from azula.nn.layers import SineEncoding
        from azula.nn.unet import UNet

        self.unet = UNet(
            channels, channels, hid_channels=WIDTHS, hid_blocks=(2, 2, 2), mod_features=128
        )
        self.time = nn.Sequential(
            SineEncoding(128), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.unet(x, self.time(t.expand(len(x))))
        return out


def azula(shape: tuple[int, int, int]) -> Peer:
    """azula's denoiser and its loss; it brings no trainer, so the loop is the one below."""
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler, DDPMSampler, xEABSampler

    denoise = KarrasDenoiser(_Modulated(shape[0]), VPSchedule())

    def loss(x0: Tensor) -> Tensor:
        out: Tensor = denoise.loss(x0, torch.rand(len(x0)))
        return out

    def sample(kind: type, x: Tensor, calls: int) -> Tensor:
        out: Tensor = kind(denoise, steps=calls, silent=True)(x)
        return out

    kinds = (DDIMSampler, DDPMSampler, xEABSampler)
    return Peer(denoise, loss, {kind.__name__: partial(sample, kind) for kind in kinds})


PEERS: dict[str, Callable[[tuple[int, int, int]], Peer]] = {
    "diffusers": diffusers,
    "lucidrains": lucidrains,
    "azula": azula,
}


def is_installed(name: str) -> bool:
    """Whether the package of a peer is there."""
    package = "denoising_diffusion_pytorch" if name == "lucidrains" else name
    return importlib.util.find_spec(package) is not None


def train(
    name: str,
    pixels: Array,
    *,
    seconds: float,
    lr: float,
    batch: int,
    seed: int,
    file: Path,
    every: float = EVERY,
) -> tuple[dict[str, Draw], int, float, str]:
    """Trains a peer for so long on uint8 (N, C, H, W); ways to draw, its steps, the seconds that
    it took with all that came before its first step, and its dtype.

    What is there of it is written to `file` every so many seconds, which do not count, and gone on
    with from there. Which images are of which step is as if it had never stopped.
    """
    called = time.perf_counter()
    torch.manual_seed(seed)
    peer = PEERS[name](pixels.shape[1:])
    network = peer.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, fused=True)
    average = ema.start(network)
    random = np.random.default_rng(seed)
    step, spent, order = 0, 0.0, np.empty(0, dtype=np.int64)
    if file.is_file():
        there = torch.load(file, weights_only=True)
        network.load_state_dict(there["network"])
        optimizer.load_state_dict(there["optimizer"])
        average, dtype, step, spent = (there[k] for k in ("average", "dtype", "step", "spent"))
        order, random.bit_generator.state = there["order"].numpy(), there["random"]
        torch.set_rng_state(there["torch"])
        print(f"{file.stem}: going on after {spent / 60:.1f} minutes", flush=True)
    else:
        dtype = _faster(peer, to_float(pixels[:batch]))
    before = time.perf_counter() - called
    began, saved = time.perf_counter() - spent, spent
    while (spent := time.perf_counter() - began) < seconds:
        if spent - saved >= every:
            there = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "dtype": dtype,
                "step": step,
                "spent": spent,
                "order": torch.from_numpy(order),
                "random": random.bit_generator.state,
                "torch": torch.get_rng_state(),
            }
            buffer = io.BytesIO()
            torch.save(there, buffer)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, buffer.getvalue())
            saved, began = spent, time.perf_counter() - spent
        if len(order) < batch:
            order = random.permutation(len(pixels))
        chosen, order = order[:batch], order[batch:]
        past = spent / seconds
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = peer.loss(to_float(pixels[chosen]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * past)) / 2
        optimizer.step()
        ema.update(average, network, ema.decay_at(step, DECAY, warmup=True))
        step += 1
    network.load_state_dict(average)
    network.eval()
    draws = {name: partial(_draw, way, pixels.shape[1:]) for name, way in peer.samplers.items()}
    return draws, step, before + spent, dtype


def _faster(peer: Peer, x0: Tensor) -> str:
    """The dtype whose step takes less time: the median of five."""
    medians = {}
    for dtype in ("float32", "bfloat16"):
        times = []
        for _ in range(6):
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = peer.loss(x0)
            torch.autograd.backward(loss)
            times.append(time.perf_counter() - began)
        medians[dtype] = statistics.median(times[1:])
    return min(medians, key=lambda dtype: medians[dtype])


@torch.no_grad()
def _draw(
    way: Callable[[Tensor, int], Tensor],
    shape: tuple[int, int, int],
    count: int,
    calls: int,
    seed: int,
) -> Array:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(rng.torch_seed(seed, "a peer's own noise"))  # never that it begins with
    parts = []
    for first in range(0, count, DRAWN_AT_ONCE):
        x = torch.randn(min(DRAWN_AT_ONCE, count - first), *shape, generator=generator)
        parts.append(to_uint8(way(x, calls)))
    return np.concatenate(parts)
