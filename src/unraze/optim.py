"""The optimiser of a run, its learning rate at each step, and its state as named tensors."""

import torch
from torch import Tensor, nn
from typing_extensions import assert_never

from unraze.config import TrainConfig

__all__ = ["build", "learning_rate", "read_state", "state_shapes", "write_state"]


def build(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019).

    Matrices and filters decay; norms, biases and every other vector do not.
    """
    decay = [p for p in network.parameters() if p.ndim > 1]
    keep = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": keep, "weight_decay": 0.0},
    ]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=True)
        case _:
            assert_never(config.optimizer)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The rate of step 1 … steps: a linear rise, a plateau, a linear fall to zero.

    It rises over `config.warmup` steps (at most a tenth of the budget) and falls over the last
    `config.decay` of the budget, so that step `steps` is made with almost nothing.
    """
    warmup = min(config.warmup, steps // 10)
    rise = min(1.0, step / (warmup + 1))
    fall = min(1.0, (steps - step + 1) / (config.decay * steps)) if config.decay > 0 else 1.0
    return config.lr * min(rise, fall)


def write_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as {"weight.name/exp_avg": tensor}: names, not positions."""
    names = {id(p): name for name, p in network.named_parameters()}
    return {
        f"{names[id(p)]}/{key}": value
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def state_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what `write_state` gives after the first step: Adam's of each weight."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, p in network.named_parameters():
        shapes |= {f"{name}/step": (), f"{name}/exp_avg": tuple(p.shape)}
        shapes[f"{name}/exp_avg_sq"] = tuple(p.shape)
    return shapes


def read_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Puts back what `write_state` gave: names and shapes are those of `state_shapes`."""
    parameters = dict(network.named_parameters())
    optimizer.state.clear()
    for name, value in tensors.items():
        weight, key = name.rsplit("/", 1)
        like = parameters[weight]
        # the fused kernels walk a weight and its moments alike, so they must lie alike in memory
        if key == "step":
            own = torch.empty_like(value, device=like.device)
        else:
            own = torch.empty_like(like)
        optimizer.state[like][key] = own.copy_(value)
