"""From noise to pictures: one algorithm, one function, all of the same shape.

A sampler is a generator over the steps of a schedule, from x_T down to x_0. It takes a denoiser,
the starting state, the (sub-)schedule and its noise, and yields every step, so that progress bars,
films and early stopping need nothing else: `for step in greedy(denoise, x, schedule): …`.
"""

from unraze.samplers.ancestral import greedy, random
from unraze.samplers.ddim import ddim
from unraze.samplers.step import Noise, Step, last
from unraze.samplers.times import even_angles, even_times

__all__ = ["Noise", "Step", "ddim", "even_angles", "even_times", "greedy", "last", "random"]
