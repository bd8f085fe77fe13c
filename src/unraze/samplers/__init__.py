"""From noise to pictures: one algorithm, one function, all of the same shape.

A sampler is a generator over the steps of a schedule, from x_T down to x_0. It takes a denoiser,
the starting state, the (sub-)schedule and its noise, and yields every step, so that progress bars,
films and early stopping need nothing else: `for step in greedy(denoise, x, schedule): …`.
"""

from unraze.samplers.adams import adams
from unraze.samplers.ancestral import greedy, random
from unraze.samplers.consistency import consistency
from unraze.samplers.ddim import ddim
from unraze.samplers.deis import deis
from unraze.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from unraze.samplers.gits import cheapest, jump_errors
from unraze.samplers.heun import heun
from unraze.samplers.ipndm import ipndm
from unraze.samplers.restart import restart, restart_ends
from unraze.samplers.step import Noise, Step, last
from unraze.samplers.times import even_angles, even_log_snr, even_times, karras
from unraze.samplers.unipc import unipc

__all__ = [
    "Noise",
    "Step",
    "adams",
    "cheapest",
    "consistency",
    "ddim",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "even_angles",
    "even_log_snr",
    "even_times",
    "greedy",
    "heun",
    "ipndm",
    "jump_errors",
    "karras",
    "last",
    "random",
    "restart",
    "restart_ends",
    "unipc",
]
