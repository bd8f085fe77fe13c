"""The exponential moving average of the weights: what is sampled from.

    θ̄ ← d θ̄ + (1-d) θ,   d = min(decay, (1+n)/(10+n)) while young, n the updates so far

Only what is trained is averaged; buffers are constants and are copied. Source of averaging: Polyak
& Juditsky 1992; of the warm-up: TensorFlow's ExponentialMovingAverage.
"""

import torch
from torch import Tensor, nn

__all__ = ["decay_at", "start", "update"]


def start(network: nn.Module) -> dict[str, Tensor]:
    """The average before any update: a copy of the network's state."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def decay_at(updates: int, decay: float, *, warmup: bool) -> float:
    """d for the update after `updates` earlier ones."""
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


@torch.no_grad()
def update(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    """One update of `average`, in place."""
    for name, value in network.named_parameters():
        average[name].lerp_(value, 1 - decay)
    for name, buffer in network.named_buffers():
        if name in average:
            average[name].copy_(buffer)
