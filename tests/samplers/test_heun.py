"""Heun's method in θ against its closed form, and Restart's steps against it."""

import math

import torch

from few import COVARIANCE, MEAN
from oracle import gaussian, normals
from unraze.samplers import ddim, even_angles, heun, last, restart
from unraze.schedule import angle


def test_a_step_of_heun_is_the_trapezium_in_a_turning_frame() -> None:
    # data N(0, c): v = g(θ) x, g = (1-c) sin θ cos θ/(c cos² θ + sin² θ). DDIM's step multiplies x
    # with cos δ - g sin δ, so Heun's with 1 - tan(δ/2) (g_t + g_s (cos δ - g_t sin δ))
    c = 0.3
    schedule = even_angles(angle(), 6)
    denoise = gaussian(schedule, torch.zeros(1).double(), torch.tensor([[c]]).double())

    def rate(theta: float) -> float:
        a, b = math.cos(theta), math.sin(theta)
        return (1 - c) * a * b / (c * a * a + b * b)

    x = normals(1, 4, 1)
    delta = math.pi / 2 / 6
    for t, step in zip(range(6, 0, -1), heun(denoise, x, schedule), strict=True):
        here, there = rate(t * delta), rate((t - 1) * delta)
        guess = math.cos(delta) - here * math.sin(delta)
        factor = 1 - math.tan(delta / 2) * (here + there * guess) if t > 1 else guess
        torch.testing.assert_close(step.x, factor * x, rtol=1e-8, atol=1e-9)
        x = step.x


def test_restart_without_its_returns_is_the_sampler_below_it() -> None:
    # the way down to t_min, and what follows the last return, are plain steps
    schedule = even_angles(angle(), 10)
    denoise, x = gaussian(schedule, MEAN, COVARIANCE), normals(1, 4, 3)
    for order, plain in ((1, ddim), (2, heun)):
        steps = list(
            restart(
                denoise,
                x,
                schedule,
                noise=lambda k: normals(k, 4, 3),
                interval=(0.2, 0.5),
                order=order,
            )
        )
        for ours, theirs in zip(steps[:8], plain(denoise, x, schedule), strict=False):
            assert torch.equal(ours.x, theirs.x)
        assert [round(s.t) for s in steps[8:14]] == [400, 300, 200, 400, 300, 200]
        tail = schedule.keep(schedule.times[:3])
        torch.testing.assert_close(
            last(plain(denoise, steps[13].x, tail)), steps[-1].x, rtol=1e-12, atol=1e-12
        )
