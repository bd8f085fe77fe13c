"""The optimiser of a run, its learning rate at each step, and its state as named tensors.

Muon, for a hidden weight W (rows, columns) with gradient G; of a filter the rows are its outputs:

    B ← μ B + G,   W ← (1 - η λ) W - η √max(1, rows/columns) O(G + μ B)

O(M) ≈ U Vᵀ of M = U S Vᵀ: a step that moves all directions by as much, where a plain one is ruled
by the few that the gradients share. Source: Jordan et al. 2024, "Muon: an optimizer for hidden
layers in neural networks"; √max(1, rows/columns) as in their code.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_never

from unraze.config import TrainConfig
from unraze.sharded import divided_as, whole

__all__ = [
    "Muon",
    "begun_state",
    "build",
    "hidden_weights",
    "learning_rate",
    "orthogonalised",
    "read_state",
    "state_shapes",
    "write_state",
]

MOMENTUM = 0.95
"""μ of Muon."""


def build(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), or Muon for the hidden weights and
    AdamW for all others.

    Matrices and filters decay; norms, biases and every other vector do not.
    """
    parameters = dict(network.named_parameters())
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(_groups(parameters.values(), config), **_adam(config))
        case "adam":
            return torch.optim.Adam(_groups(parameters.values(), config), **_adam(config))
        case "muon":
            hidden = [parameters.pop(name) for name in hidden_weights(network)]
            rest = torch.optim.AdamW(_groups(parameters.values(), config), **_adam(config))
            return Muon(hidden, rest, config)
        case _:
            assert_never(config.optimizer)


def hidden_weights(network: nn.Module) -> list[str]:
    """Names of the matrices and filters between features and features: what Muon is for.

    Neither the first and the last filter, which picture values go through, nor what makes the
    vector of time and class. Those of `nn.lean.Finish` are among them, as they learn faster by it.
    """
    outside = (
        *("stem.", "out.", "conditioning."),
        # the same in nn.lucidrains, whose gains and learned keys are no filters, and in nn.unet2d
        *("init_conv.", "final_conv.", "time_mlp."),
        *("conv_in.", "conv_out.", "time_embedding.", "class_embedding."),
    )
    return [
        name
        for name, p in network.named_parameters()
        if p.ndim > 1 and not name.startswith(outside) and not name.endswith((".g", ".mem_kv"))
    ]


class Muon(torch.optim.Optimizer):
    """Muon for `hidden` weights; `rest`, another optimiser, takes its step along with it.

    The hidden weights' rate is `muon_scale` times the group's "lr", so that both follow the same
    course.
    """

    def __init__(
        self, hidden: Sequence[Tensor], rest: torch.optim.Optimizer, config: TrainConfig
    ) -> None:
        super().__init__(hidden, {"lr": config.lr, "weight_decay": config.weight_decay})
        self.scale, self.rest = config.muon_scale, rest
        rest.state = self.state
        self.param_groups += rest.param_groups

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all weights."""
        group = self.param_groups[0]
        lr = group["lr"] * self.scale
        moved = [p for p in group["params"] if p.grad is not None]
        updates = []
        for p in moved:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p.grad)
            momentum = state["momentum"].mul_(MOMENTUM).add_(p.grad)
            update = p.grad.add(momentum, alpha=MOMENTUM)
            # what is divided over ranks is gathered: each of them orthogonalises the whole
            updates.append(_as_matrix(whole({"": update})[""]))
        for p, update in zip(moved, orthogonalised(updates), strict=True):
            scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            p.mul_(1 - lr * group["weight_decay"])
            p.add_(divided_as(_as_filter(update, p), p), alpha=-lr * scale)
        self.rest.step()


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """U S' Vᵀ of each matrix = U S Vᵀ (rows, columns), S' within about 0.7 … 1.2; 0 stays 0.

    X ← Q X with Q = a I + b G + c G², G = X Xᵀ, five times from X = M/‖M‖: Jordan et al.'s
    Newton-Schulz iteration of fifth degree, whose a is so large that small singular values rise
    fast. All Q are polynomials of the first G, of the shorter side: G ← Q G Q and their product
    follow without X, which is multiplied once. In float32 that leaves singular values below some
    3e-4 of ‖M‖ inexact; they end below 0.2. Matrices of one shorter side go at once, for small ones
    singly keep no second core busy.
    """
    scaled = [_wide(m) / m.norm().clamp(min=torch.finfo(m.dtype).tiny) for m in matrices]
    found: list[Tensor] = list(matrices)
    for side in sorted({len(x) for x in scaled}):
        places = [k for k, x in enumerate(scaled) if len(x) == side]
        products = _iterated(torch.stack([scaled[k] @ scaled[k].T for k in places]))
        for k, product in zip(places, products, strict=True):
            x = product @ scaled[k]
            found[k] = x if x.shape == matrices[k].shape else x.T
    return found


def _iterated(gram: Tensor) -> Tensor:
    """The product of the five Q of each G (B, n, n)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)

    def factor(gram: Tensor) -> Tensor:
        return torch.baddbmm(gram, gram, gram, beta=b, alpha=c).add_(one, alpha=a)

    product = q = factor(gram)
    for _ in range(4):
        gram = q @ gram @ q
        q = factor(gram)
        product = q @ product
    return product


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _as_matrix(p: Tensor) -> Tensor:
    """(outputs, …) as (outputs, columns), in the order in which a filter lies in memory.

    The order of the columns does not matter: O(M P) = O(M) P for a permutation P.
    """
    return p.permute(0, 2, 3, 1).reshape(len(p), -1) if p.ndim == 4 else p.reshape(len(p), -1)


def _as_filter(matrix: Tensor, p: Tensor) -> Tensor:
    """What `_as_matrix` made of a weight of p's shape, in that shape."""
    if p.ndim != 4:
        return matrix.reshape(p.shape)
    rows, columns, height, width = p.shape
    return matrix.reshape(rows, height, width, columns).permute(0, 3, 1, 2)


def _groups(parameters: Iterable[Tensor], config: TrainConfig) -> list[dict[str, Any]]:
    every = list(parameters)
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _adam(config: TrainConfig) -> dict[str, Any]:
    return {"lr": config.lr, "betas": config.betas, "fused": True}


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


def state_shapes(network: nn.Module, config: TrainConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what `write_state` gives after the first step: Adam's of each weight, but
    of those that are Muon's their momentum."""
    shapes: dict[str, tuple[int, ...]] = {}
    hidden = set(hidden_weights(network)) if config.optimizer == "muon" else set()
    for name, p in network.named_parameters():
        if name in hidden:
            shapes[f"{name}/momentum"] = tuple(p.shape)
            continue
        shapes |= {f"{name}/step": (), f"{name}/exp_avg": tuple(p.shape)}
        shapes[f"{name}/exp_avg_sq"] = tuple(p.shape)
    return shapes


def begun_state(network: nn.Module, config: TrainConfig) -> dict[str, Tensor]:
    """Tensors of the names of `state_shapes`, as large as each rank's part, to be filled."""
    parameters = dict(network.named_parameters())
    return {
        name: torch.zeros(())
        if not shape and name.endswith("/step")
        else torch.zeros_like(parameters[name.rsplit("/", 1)[0]], requires_grad=False)
        for name, shape in state_shapes(network, config).items()
    }


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
        optimizer.state[like][key] = own.copy_(divided_as(value, own))
