"""Consistency sampling: Song et al. 2023, "Consistency models", arXiv:2303.01469, and Heek et al.
2024, "Multistep consistency models", arXiv:2403.06807."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from unraze.denoiser import Denoiser
from unraze.process import destroy_at, like
from unraze.samplers.step import Noise, Step
from unraze.schedule import Schedule

__all__ = ["consistency"]


def consistency(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Noise,
    borders: Sequence[float] = (0.0,),
) -> Iterator[Step]:
    """x_e = J(x_t, e) = ᾱ_e x̂_0 + β̄_e ε̂, then x_s = (ᾱ_s/ᾱ_e) x_e + √(1-(ᾱ_s/ᾱ_e)²) z.

    For a network that was taught to jump from t to the highest border e below it
    (`unraze.consistency`); s = t-1 of the schedule. Where s is e itself no noise is drawn; else the
    forward process takes x_e up again, and the next call mends what the jump got wrong. With 0 for
    the only border a call ends in a picture, e = 0 and x_s = ᾱ_s x̂_0 + β̄_s z: Song et al.'s
    algorithm 1. Raises `ValueError` where the schedule passes over a border.
    """
    times = schedule.times.tolist()
    for t in range(schedule.steps, 0, -1):
        e = max(border for border in borders if border < times[t])
        if e > times[t - 1]:
            raise ValueError(f"borders: the schedule passes over {e:g}; keep that time too")
        prediction = denoise(x, schedule.times[t])
        signal, spread = schedule.at(schedule.times.new_tensor(e))
        x = destroy_at(signal, spread, prediction.x0, prediction.eps)
        if times[t - 1] > e:
            left = schedule.alpha_bar[t - 1] / signal
            x = like(left, x) * x + like(((1 - left) * (1 + left)).sqrt(), x) * noise(t)
        yield Step(times[t - 1], x, prediction)
