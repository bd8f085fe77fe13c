"""GITS: Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling",
arXiv:2405.11326: which times to keep, by what leaving the others out costs."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.samplers.adams import adams
from unraze.samplers.solver import first_order
from unraze.schedule import Schedule

__all__ = ["cheapest", "jump_errors"]

Errors = NDArray[np.float64]
"""(T+1, T+1): entry (i, j), j < i, is the error of one step from i to j; elsewhere infinite."""


@torch.no_grad()
def jump_errors(denoise: Denoiser, x: Tensor, schedule: Schedule) -> Errors:
    """E_ij = mean ‖ᾱ_j x̂_0(x_i, i) + β̄_j ε̂(x_i, i) - x_j‖ over images x (B, …) that start at T.

    x_i are the states of the probability flow, here of `adams` over all of the schedule's steps:
    what DDIM's step from i straight to j is off, from a state without error (Euler's step in
    σ = β̄/ᾱ, as they have it, is the same).
    """
    states, steps = [x], []
    for step in adams(denoise, x, schedule, order=2):
        states.append(step.x)
        steps.append(step.prediction)
    count = schedule.steps
    errors = np.full((count + 1, count + 1), np.inf)
    for i in range(count, 0, -1):
        said = steps[count - i]
        for j in range(i):
            off = (first_order(schedule, j + 1, said) - states[count - j]).flatten(1)
            errors[i, j] = float(off.norm(dim=1).mean())
    return errors


def cheapest(errors: Errors, steps: int, gamma: float) -> list[int]:
    """The steps kept, 0 … T, of the way of `steps` jumps with the least Σ_k γ^{k-1} E of jump k.

    Found exactly, by dynamic programming; k counts from T down, so with γ < 1 the jumps near data
    count for less and are longer. Raises `ValueError` for steps that are not from 1 to T, or γ ≤ 0.
    """
    last = len(errors) - 1
    if not 1 <= steps <= last or gamma <= 0:
        raise ValueError(f"steps = {steps}, gamma = {gamma}: 1 to {last} steps, gamma above 0")
    cost = np.full(last + 1, np.inf)
    cost[0] = 0.0
    choices: list[NDArray[np.intp]] = []
    for _ in range(steps):
        through = errors + gamma * cost[None, :]
        choices.append(through.argmin(axis=1))
        cost = through.min(axis=1)
    kept = [last]
    for choice in reversed(choices):
        kept.append(int(choice[kept[-1]]))
    return kept[::-1]
