"""What the tests of the samplers of few calls share."""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from oracle import flow, gaussian, generic_covariance, normals
from unraze.denoiser import Denoiser, Prediction
from unraze.samplers import (
    Step,
    adams,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    even_angles,
    heun,
    ipndm,
    last,
    restart,
    unipc,
)
from unraze.schedule import Schedule

MEAN = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(5, [0.25, 0.6, 2.0])
POINTS = torch.tensor(
    [[1.0, 1.0, 0.3], [-1.0, 0.5, -0.6], [0.2, -0.9, 0.9], [-0.5, 0.1, 0.1]], dtype=torch.float64
)
COUNTS = (16, 32, 64, 128, 256)

Sampler = Callable[[Denoiser, Tensor, Schedule], Iterator[Step]]

ODE: dict[str, Sampler] = {
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    **{f"unipc {p}": lambda d, x, s, p=p: unipc(d, x, s, order=p) for p in (1, 2, 3)},
    **{f"ipndm {p}": lambda d, x, s, p=p: ipndm(d, x, s, order=p) for p in (1, 2, 3, 4)},
    **{f"deis {p}": lambda d, x, s, p=p: deis(d, x, s, order=p) for p in (1, 2, 3, 4)},
    **{f"adams {p}": lambda d, x, s, p=p: adams(d, x, s, order=p) for p in (1, 2, 3)},
}
"""The samplers of the probability flow."""


def drawn(seed: int, *shape: int) -> Callable[[int], Tensor]:
    """Noise of a step as a function of its number."""
    return lambda t: normals(1000 * seed + t, *shape)


def noisy(x: Tensor, noise: Callable[[int], Tensor] | None = None) -> dict[str, Sampler]:
    """The samplers with noise, of x's shape; drawn where none is given."""
    noise = drawn(7, *x.shape) if noise is None else noise
    return {
        "dpmpp_2m_sde": lambda d, x, s: dpmpp_2m_sde(d, x, s, noise=noise),
        "dpmpp_3m_sde": lambda d, x, s: dpmpp_3m_sde(d, x, s, noise=noise),
        "dpmpp_3m_sde half": lambda d, x, s: dpmpp_3m_sde(d, x, s, noise=noise, eta=0.5),
        "restart 1": lambda d, x, s: restart(d, x, s, noise=noise, order=1),
        "restart 2": lambda d, x, s: restart(d, x, s, noise=noise, repeats=3),
    }


@cache
def errors(sampler: Sampler, schedule: Schedule) -> list[float]:
    """Root mean square distance from the probability flow's end, over 16 … 256 even angles."""
    x = normals(1, 64, 3)
    exact = flow(x, MEAN, COVARIANCE, float(schedule.alpha_bar[-1]), 1.0)
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    ends = [last(sampler(denoise, x, even_angles(schedule, n))) for n in COUNTS]
    return [float((end - exact).square().mean().sqrt()) for end in ends]


def slope(errors: list[float]) -> float:
    """The order that these errors show, over 16 … 256 steps."""
    return -float(np.polyfit(np.log(COUNTS[: len(errors)]), np.log(errors), 1)[0])


def counted(denoise: Denoiser) -> tuple[Denoiser, list[float]]:
    """A denoiser that writes down the times it is asked at."""
    asked: list[float] = []

    def watching(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        asked.append(float(t))
        return denoise(x_t, t, previous=previous)

    return watching, asked
