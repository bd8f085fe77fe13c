"""DEIS: Zhang & Chen 2022, "Fast sampling of diffusion models with exponential integrator",
arXiv:2204.13902."""

from collections.abc import Iterator

from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.samplers.solver import check_order, combined, first_order, noise_weights, usable
from unraze.samplers.step import Step
from unraze.schedule import Schedule

__all__ = ["deis"]


def deis(denoise: Denoiser, x: Tensor, schedule: Schedule, *, order: int = 4) -> Iterator[Step]:
    """x_s = (ᾱ_s/ᾱ_t) x_t + Σ_j C_j ε̂_j,   C_j = ᾱ_s ∫ ℓ_j(θ) d(β̄/ᾱ) from t to s = t-1.

    tAB-DEIS: ℓ_j are Lagrange's polynomials through the last `order` times (the paper's r is one
    less), and time is the angle θ here, in which ε̂ is smooth up to both ends; so the last step
    needs no lower order. The first steps take the predictions there are: the very first has order
    1, and its error, of h², stays. Source: eqs. 14 and 15. Raises `ValueError` for an order that is
    not from 1 to 4.
    """
    check_order(order, 4)
    nodes: list[int] = []
    known: list[Tensor] = []
    previous = None
    for t in range(schedule.steps, 0, -1):
        prediction = denoise(x, schedule.times[t], previous=previous)
        nodes, known = [t, *nodes[: order - 1]], [prediction.eps, *known[: order - 1]]
        used = usable(order, len(known))
        x = first_order(schedule, t, prediction)
        if used > 1:
            weights = noise_weights(schedule, t, nodes)
            x = x + combined(weights, [eps - prediction.eps for eps in known[1:]])
        previous = prediction.x0
        yield Step(float(schedule.times[t - 1]), x, prediction)
