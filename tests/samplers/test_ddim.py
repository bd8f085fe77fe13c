"""DDIM against the probability flow of a Gaussian, and against the ancestral sampler."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings, strategies as st
from torch import Tensor

from oracle import finite_set, flow, gaussian, generic_covariance, normals
from unraze.denoiser import clipped
from unraze.samplers import ddim, even_angles, even_times, last, random
from unraze.schedule import Schedule, angle, cosine, linear, zero_terminal

MEAN = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(5, [0.04, 0.3, 2.0])


@pytest.mark.parametrize("schedule", [angle(), cosine()], ids=["angle", "cosine"])
def test_ddim_tends_to_the_probability_flow_with_order_one(schedule: Schedule) -> None:
    x = normals(1, 64, 3)
    exact = flow(x, MEAN, COVARIANCE, float(schedule.alpha_bar[-1]), 1.0)
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    counts = [16, 32, 64, 128, 256, 512]
    errors = [
        float((last(ddim(denoise, x, even_angles(schedule, n))) - exact).square().mean().sqrt())
        for n in counts
    ]
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -1.1 <= slope <= -0.9, (slope, errors)


def test_ddim_is_a_rotation_for_each_prediction() -> None:
    # with ᾱ = cos θ: x_s = cos(δ) x_t + sin(δ) v-part; a point's own noise is carried along exactly
    schedule = even_angles(angle(), 9)
    point = torch.tensor([[0.4, -0.2, 0.9]], dtype=torch.float64)
    eps = normals(3, 8, 3)
    for step in ddim(finite_set(schedule, point), eps, schedule):
        theta = step.t / 1000 * math.pi / 2
        torch.testing.assert_close(
            step.x, math.cos(theta) * point + math.sin(theta) * eps, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("limit", [None, 0.6])
@pytest.mark.parametrize(
    "schedule",
    [
        linear(60),
        even_times(linear(), 25),
        even_angles(cosine(), 20),
        angle(30),
        zero_terminal(linear(40)),
    ],
    ids=["full", "whole steps", "angles", "angle", "zero terminal"],
)
def test_ddim_with_eta_one_is_random_with_beta_tilde_path_by_path(
    schedule: Schedule, limit: float | None
) -> None:
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    if limit is not None:
        denoise = clipped(denoise, schedule, limit=limit)
    x = normals(4, 16, 3)

    def noise(t: int) -> Tensor:
        return normals(100 + t, 16, 3)

    ours = ddim(denoise, x, schedule, noise=noise, eta=1.0)
    theirs = random(denoise, x, schedule, noise=noise, sigma="beta_tilde")
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-9, atol=1e-11)
        assert a.t == b.t


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [linear(30), angle(25), even_angles(cosine(), 10)])
def test_one_point_is_recovered_exactly(schedule: Schedule, eta: float) -> None:
    point = torch.tensor([[0.25, -1.0, 0.7]], dtype=torch.float64)
    steps = ddim(
        finite_set(schedule, point),
        normals(6, 8, 3),
        schedule,
        noise=lambda t: normals(t, 8, 3),
        eta=eta,
    )
    torch.testing.assert_close(last(steps), point.expand(8, 3), rtol=0, atol=1e-15)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_one_point_keeps_its_marginals_whatever_eta(eta: float) -> None:
    # q_σ(x_s|x_0) = N(ᾱ_s x_0, β̄_s²) for every σ (Song et al. 2021, lemma 1): x_s is affine in
    # (x_T, z_T, …), and for one point the squares of its coefficients must add up to β̄_s²
    schedule = even_times(linear(), 12)
    denoise = finite_set(schedule, torch.zeros(1, 1).double())
    rows = torch.eye(13, dtype=torch.float64)  # row 0 is x_T, row t the noise of step t
    start = schedule.beta_bar[-1] * rows[:, :1]
    steps = ddim(denoise, start, schedule, noise=lambda t: rows[:, t : t + 1], eta=eta)
    for t, step in zip(range(11, -1, -1), steps, strict=True):
        variance = step.x.square().sum()
        torch.testing.assert_close(variance, schedule.beta_bar[t] ** 2, rtol=1e-12, atol=1e-14)


def test_points_are_drawn_with_their_shares() -> None:
    points = torch.tensor([[1.0, 1.0], [-1.0, 0.5], [0.2, -0.9]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    schedule = even_angles(angle(), 200)
    n = 4000
    samples = last(ddim(finite_set(schedule, points, weights), normals(9, n, 2), schedule))
    distance, nearest = torch.cdist(samples, points).min(1)
    assert distance.max() < 1e-6
    shares = torch.bincount(nearest, minlength=3) / n
    error = (weights * (1 - weights) / n).sqrt()
    assert ((shares - weights).abs() <= 5 * error).all(), shares


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
def test_gaussian_data_come_out_with_their_own_spread(spread: float) -> None:
    # a starting noise of the wrong scale would show here
    schedule = even_angles(linear(), 500)
    covariance = spread**2 * torch.eye(2).double()
    samples = last(
        ddim(
            gaussian(schedule, torch.zeros(2).double(), covariance), normals(2, 20_000, 2), schedule
        )
    )
    n = samples.numel()
    discrete = math.pi / 1000 / 2 * (spread + 1 / spread) * 2  # of order one in the step's angle
    assert abs(float(samples.std()) / spread - 1) <= 5 / math.sqrt(2 * n) + discrete


@settings(deadline=None)
@given(
    late=st.floats(0.001, 1000.0),
    early=st.floats(1e-9, 1.0),
    eta=st.floats(0.0, 1.0),
    name=st.sampled_from(["linear", "angle"]),
)
def test_no_step_however_long_or_short_is_not_a_number(
    late: float, early: float, eta: float, name: str
) -> None:
    schedule = {"linear": linear(), "angle": angle()}[name]
    times = [0.0, early * late, late, 1000.0] if late < 1000 else [0.0, early * late, 1000.0]
    try:
        sub = schedule.keep(times)
    except ValueError:  # two times so near that ᾱ is the same number
        reject()
    denoise = finite_set(sub, torch.tensor([[1.0], [-0.5]], dtype=torch.float64))
    steps = ddim(denoise, normals(0, 4, 1), sub, noise=lambda t: normals(t, 4, 1), eta=eta)
    assert torch.isfinite(last(steps)).all()


@pytest.mark.parametrize(
    ("early", "late"),
    [
        (2.3504618166764387e-05, 892.0),
        (2.05893601514301e-05, 978.0),
        (2.3313311921168983e-05, 963.0),
        (7.19469374553963e-05, 909.0),
    ],
)
def test_rounding_in_a_very_short_first_step_is_not_a_number_either(
    early: float, late: float
) -> None:
    # here β̃_t exceeds β̄_{t-1} by a rounding error, so that β̄² - β̃² comes out below zero
    sub = linear().keep([0.0, early, late])
    denoise = finite_set(sub, torch.zeros(1, 1).double())
    x = last(ddim(denoise, normals(0, 2, 1), sub, noise=lambda t: normals(t, 2, 1), eta=1.0))
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_an_eta_outside_its_bounds_is_refused(eta: float) -> None:
    schedule = linear(10)
    steps = ddim(
        gaussian(schedule, MEAN, COVARIANCE),
        normals(0, 1, 3),
        schedule,
        noise=lambda t: normals(t, 1, 3),
        eta=eta,
    )
    with pytest.raises(ValueError, match="eta"):
        last(steps)


def test_eta_needs_noise_and_none_is_drawn_without_it() -> None:
    schedule = linear(10)
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    with pytest.raises(ValueError, match="noise"):
        last(ddim(denoise, normals(0, 1, 3), schedule, eta=0.5))

    def never(t: int) -> Tensor:
        raise AssertionError("noise was drawn")

    x = last(ddim(denoise, normals(0, 1, 3), schedule, noise=never))
    assert torch.equal(x, last(ddim(denoise, normals(0, 1, 3), schedule)))


def test_the_last_estimate_is_passed_on() -> None:
    schedule = even_times(linear(), 5)
    exact = gaussian(schedule, MEAN, COVARIANCE)
    seen = []

    def watching(x_t, t, *, previous=None):
        seen.append(previous)
        return exact(x_t, t)

    steps = list(ddim(watching, normals(0, 2, 3), schedule))
    assert seen[0] is None
    assert all(p is s.prediction.x0 for p, s in zip(seen[1:], steps, strict=False))
    assert len(seen) == 5
