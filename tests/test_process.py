"""Destroy and Reconstruct: composition, conditioning, and Bayes on a grid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import Tensor

from oracle import normals
from unraze.process import destroy, destroy_at, destroy_step, mu, posterior
from unraze.schedule import SCHEDULES, Schedule, angle, from_variances, linear, zero_terminal

EVERY = {name: make(60) for name, make in SCHEDULES.items()} | {
    "zero terminal": zero_terminal(linear(60)),
    "sub": linear().keep([0, 1, 7, 200, 650, 1000]),
}


@pytest.mark.parametrize("name", EVERY)
def test_single_steps_compose_to_the_closed_form(name: str) -> None:
    # x_t is linear in (x_0, ε_1, …, ε_t): follow each unit vector
    schedule = EVERY[name]
    unit = torch.eye(schedule.steps + 1, dtype=torch.float64)
    x = unit[:, 0]
    for t in range(1, schedule.steps + 1):
        x = destroy_step(schedule, x, t, unit[:, t])
        a = float(schedule.alpha_bar[t])
        torch.testing.assert_close(float(x[0]), a, rtol=1e-12, atol=1e-16)
        of_noise = float(x[1:].square().sum())
        torch.testing.assert_close(of_noise, (1 - a) * (1 + a), rtol=1e-12, atol=0)


def test_single_steps_have_the_law_of_the_closed_form() -> None:
    schedule, x0 = linear(30), 0.7
    x = torch.full((20_000,), x0, dtype=torch.float64)
    for t in range(1, 18):
        x = destroy_step(schedule, x, t, normals(t, 20_000))
    a = float(schedule.alpha_bar[17])
    normal = stats.norm(a * x0, math.sqrt(1 - a**2))
    assert stats.kstest(x.numpy(), normal.cdf).pvalue > 1e-3
    assert abs(float(x.mean()) - normal.mean()) <= 5 * normal.std() / math.sqrt(20_000)
    assert abs(float(x.var()) / normal.var() - 1) <= 5 * math.sqrt(2 / 20_000)


def test_a_step_depends_on_where_it_starts() -> None:
    # the source drops x_{t-1} by a slip of the pen; its own expansion has it
    schedule = linear(30)
    ones, zeros = torch.ones(1, 2), torch.zeros(1, 2)
    torch.testing.assert_close(
        destroy_step(schedule, ones, 9, zeros), schedule.alpha[9].float() * ones
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_a_batch_of_times_is_one_time_each(times: list[int]) -> None:
    schedule = EVERY["cosine"]
    x0, eps = normals(1, len(times), 2, 3, 4), normals(2, len(times), 2, 3, 4)
    t = torch.tensor(times)
    together = destroy(schedule, x0, t, eps)
    for i, one in enumerate(times):
        a = math.cos(float(schedule.theta[one]))
        expected = a * x0[i] + math.sin(float(schedule.theta[one])) * eps[i]
        torch.testing.assert_close(together[i], expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(together[i], destroy(schedule, x0[i : i + 1], one, eps[i : i + 1])[0])


def test_time_0_gives_the_picture_back() -> None:
    x0 = normals(1, 2, 3)
    assert torch.equal(destroy(linear(10), x0, 0, normals(2, 2, 3)), x0)


def test_the_dtype_of_the_picture_is_kept() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.ones(2, 3, dtype=dtype)
        schedule, t = linear(10), torch.tensor([1, 9])
        assert destroy(schedule, x, t, x).dtype == dtype
        assert destroy_step(schedule, x, t, x).dtype == dtype
        assert destroy_at(*schedule.at(t + 0.5), x, x).dtype == dtype
        assert mu(schedule, x, t, x).dtype == dtype
        assert posterior(schedule, x, t, x)[0].dtype == dtype


@pytest.mark.parametrize("name", EVERY)
def test_the_posterior_is_gaussian_conditioning(name: str) -> None:
    # (x_{t-1}, x_t) given x_0 is Gaussian: condition the joint covariance, written from ᾱ alone
    schedule = EVERY[name]
    x0, x_t = normals(1, 6, 2), normals(2, 6, 2)
    for t in range(1, schedule.steps + 1):
        before, after = (float(a) for a in schedule.alpha_bar[t - 1 : t + 1])
        step = after / before
        v_before = (1 - before) * (1 + before)
        v_after = step**2 * v_before + (before - after) * (before + after) / before**2
        gain = step * v_before / v_after
        mean, variance = posterior(schedule, x_t, t, x0)
        expected = before * x0 + gain * (x_t - after * x0)
        torch.testing.assert_close(mean, expected, rtol=1e-7, atol=1e-12)
        expected_variance = v_before * (v_after - step**2 * v_before) / v_after
        assert float(variance) == pytest.approx(expected_variance, rel=1e-7, abs=1e-16)


@pytest.mark.parametrize(
    ("schedule", "t"),
    [(linear(20), 2), (linear(20), 11), (linear(20), 20), (angle(10), 10), (angle(10), 4)],
)
def test_the_posterior_is_bayes_on_a_grid(schedule: Schedule, t: int) -> None:
    x0, x_t = 0.6, -0.4
    grid = np.linspace(-12, 12, 400_001)
    before, after = (float(a) for a in schedule.alpha_bar[t - 1 : t + 1])
    step = after / before
    prior = stats.norm.logpdf(grid, before * x0, math.sqrt(1 - before**2))
    seen = stats.norm.logpdf(x_t, step * grid, math.sqrt(1 - step**2))
    density = np.exp(prior + seen - (prior + seen).max())
    density /= density.sum()
    expected = (density * grid).sum()
    picture = torch.full((1, 1), x0, dtype=torch.float64)
    mean, variance = posterior(schedule, torch.full_like(picture, x_t), torch.tensor([t]), picture)
    assert float(mean) == pytest.approx(expected, rel=1e-9)
    assert float(variance) == pytest.approx((density * (grid - expected) ** 2).sum(), rel=1e-8)


def test_the_posterior_of_the_first_step_is_the_picture() -> None:
    for schedule in EVERY.values():
        x0 = normals(1, 3, 2)
        mean, variance = posterior(schedule, normals(2, 3, 2), 1, x0)
        assert torch.equal(mean, x0)
        assert float(variance) == 0


@pytest.mark.parametrize("name", EVERY)
def test_mu_is_the_posterior_mean(name: str) -> None:
    schedule = EVERY[name]
    x0, eps = normals(1, 4, 2), normals(2, 4, 2)
    for t in range(1, schedule.steps + 1):
        if schedule.alpha_bar[t] == 0:
            continue
        x_t = destroy(schedule, x0, t, eps)
        step = schedule.beta[t] / schedule.beta_bar[t] * eps
        mean, _ = posterior(schedule, x_t, t, x0)
        # μ divides by α_t, and where that is small its rounding grows as much
        slack = 1e-9 / float(schedule.alpha[t])
        torch.testing.assert_close(mu(schedule, x_t, t, step), mean, rtol=slack, atol=slack)


def test_mu_undoes_a_step_whose_noise_is_known() -> None:
    schedule = linear(50)
    x, eps, t = normals(1, 5, 2), normals(2, 5, 2), torch.tensor([1, 2, 25, 49, 50])
    x_t = destroy_step(schedule, x, t, eps)
    torch.testing.assert_close(mu(schedule, x_t, t, eps), x, rtol=1e-12, atol=1e-12)


def test_mu_is_refused_where_nothing_is_left() -> None:
    x = normals(1, 2, 2)
    for schedule in (angle(10), from_variances([0.5, 1.0])):
        with pytest.raises(ValueError, match=r"α_t = 0.*posterior"):
            mu(schedule, x, schedule.steps, x)
        with pytest.raises(ValueError, match="α_t = 0"):
            mu(schedule, x, torch.tensor([1, schedule.steps]), x)
        assert torch.isfinite(mu(schedule, x, schedule.steps - 1, x)).all()
        mean, variance = posterior(schedule, x, schedule.steps, x)
        assert torch.isfinite(mean).all()
        assert torch.isfinite(variance).all()


@pytest.mark.parametrize("t", [0, -1, 11, torch.tensor([1, 0]), torch.tensor([-3, 4])])
def test_a_step_that_is_not_one_of_the_schedule_is_refused(t: Tensor | int) -> None:
    # t = 0 would read β̄_{-1} = β̄_T from the other end of the schedule
    schedule, x = linear(10), normals(1, 2, 2)
    for act in (destroy_step, mu, posterior):
        with pytest.raises(ValueError, match=r"t = .*from 1 to 10"):
            act(schedule, x, t, x)
    if not isinstance(t, int) or t != 0:
        bad = t if isinstance(t, int) else t - 1
        with pytest.raises(ValueError, match=r"t = .*from 0 to 10"):
            destroy(schedule, x, bad, x)
