"""Jumps along the probability flow, the loss that teaches them, and the sampler that makes them."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from few import COVARIANCE, MEAN, drawn as noise_of
from oracle import assert_moments, flow, gaussian, normals
from unraze.config import LossConfig
from unraze.consistency import below, consistency, drawn, jump, ladder
from unraze.denoiser import Denoiser, Prediction, clipped, predict
from unraze.process import destroy_at
from unraze.samplers import consistency as sampler, ddim, even_angles, even_times, last
from unraze.schedule import Schedule, angle, cosine, linear

SCHEDULES = {"angle": angle(), "cosine": cosine(), "linear": linear()}


def loss_config(borders: tuple[float, ...] = (0.0, 1000.0), **more: object) -> LossConfig:
    return LossConfig.model_validate({"objective": "consistency", "borders": borders, **more})


def exact(schedule: Schedule, borders: tuple[float, ...]) -> Denoiser:
    """A denoiser whose jump from x_t to the border below is where the flow of the Gaussian goes.

    ᾱ_e x̂_0 + β̄_e ε̂ is that point and ᾱ_t x̂_0 + β̄_t ε̂ is x_t: two equations for two unknowns.
    """

    def denoise(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        t = t.expand(len(x_t))
        _, e = below(schedule, t, loss_config(borders))
        (a, b), (a_e, b_e) = schedule.at(t), schedule.at(e)
        end = torch.empty_like(x_t)
        for at, to in set(zip(a.tolist(), a_e.tolist(), strict=True)):
            end[a == at] = flow(x_t[a == at], MEAN, COVARIANCE, at, to)
        a, b, a_e, b_e = (v.reshape(-1, 1) for v in (a, b, a_e, b_e))
        determinant = a_e * b - b_e * a
        x0, eps = (b * end - b_e * x_t) / determinant, (a_e * x_t - a * end) / determinant
        return Prediction(x0, eps)

    return denoise


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("parametrisation", ["v", "edm"])
def test_a_jump_of_no_length_stays_whatever_the_network_says(
    schedule: Schedule, parametrisation: str
) -> None:
    t = torch.tensor([0.0, 1e-3, 1.0, 250.5, 999.0, 1000.0], dtype=torch.float64)
    x, raw = normals(1, 6, 3), 10 * normals(2, 6, 3)
    said = predict(parametrisation, raw, x, schedule, t, sigma_data=0.5)  # type: ignore[arg-type]
    torch.testing.assert_close(jump(schedule, said, t), x, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(data=st.data())
def test_a_jump_is_a_rotation_of_state_and_velocity(data: st.DataObject) -> None:
    # J = cos δ x_t - sin δ v̂
    schedule = SCHEDULES[data.draw(st.sampled_from(sorted(SCHEDULES)))]
    s, t = sorted(data.draw(st.tuples(st.floats(0, 1000), st.floats(0, 1000))))
    times = torch.tensor([s, t], dtype=torch.float64)
    theta_s, theta_t = torch.atan2(*reversed(schedule.at(times))).tolist()
    x, v = normals(3, 4, 3), normals(4, 4, 3)
    said = predict("v", v, x, schedule, times[1:].expand(4))
    delta = theta_t - theta_s
    wanted = math.cos(delta) * x - math.sin(delta) * v
    torch.testing.assert_close(
        jump(schedule, said, times[:1].expand(4)), wanted, rtol=1e-9, atol=1e-9
    )


@settings(deadline=None)
@given(data=st.data())
def test_the_ladder_has_every_border_and_even_angles_between(data: st.DataObject) -> None:
    schedule = SCHEDULES[data.draw(st.sampled_from(sorted(SCHEDULES)))]
    inner = data.draw(st.sets(st.integers(1, 999), max_size=3))
    borders = (0.0, *map(float, sorted(inner)), 1000.0)
    n, whole = data.draw(st.integers(1, 50)), data.draw(st.booleans())
    config = loss_config(borders, teacher_steps=n, continuous=not whole)
    steps = ladder(schedule, config)
    assert set(borders) <= set(steps.tolist())
    assert bool((steps.diff() > 0).all())
    if whole:
        assert torch.equal(steps, steps.round())
    else:
        assert len(steps) == n * (len(borders) - 1) + 1
        theta = torch.atan2(*reversed(schedule.at(steps))).diff().reshape(-1, n)
        torch.testing.assert_close(theta, theta.mean(1, keepdim=True).expand(-1, n))
    # one number in the middle of each even part draws each step once
    count = len(steps) - 1
    t = drawn((torch.arange(count) + 0.5) / count, schedule, config)
    assert torch.equal(t, steps[1:])
    r, e = below(schedule, t, config)
    assert torch.equal(r, steps[:-1])
    assert e.tolist() == [max(b for b in borders if b < time) for time in t.tolist()]


def taught(schedule: Schedule, student: Denoiser, teacher: Denoiser, config: LossConfig) -> Tensor:
    """The loss of 64 images of the Gaussian's law at each quarter of each part, (times, 64)."""
    steps, out = ladder(schedule, config), []
    for t in steps[config.teacher_steps // 4 :: config.teacher_steps // 4]:
        times = t.expand(64)
        x0 = MEAN + normals(5, 64, 3) @ torch.linalg.cholesky(COVARIANCE).T
        x_t = destroy_at(*schedule.at(times), x0, normals(6, 64, 3))
        r, e = below(schedule, times, config)
        x_r = jump(schedule, teacher(x_t, times), r)
        target = jump(schedule, student(x_r, r), e) if bool((r > e).all()) else x_r
        estimate = jump(schedule, student(x_t, times), e)
        out.append(consistency(estimate, target, schedule, times, e))
    return torch.stack(out)


@pytest.mark.parametrize("borders", [(0.0, 1000.0), (0.0, 500.0, 1000.0)], ids=["one", "two"])
def test_the_exact_jump_loses_nothing_but_the_teachers_error(borders: tuple[float, ...]) -> None:
    """One step of DDIM is off by the square of its length, so the loss by its fourth power; the
    teacher's own jump, which is no consistency function, is off by as much as there is to go."""
    schedule = angle()
    student, teacher = exact(schedule, borders), gaussian(schedule, MEAN, COVARIANCE)
    counts = (40, 80, 160)
    losses = [
        float(taught(schedule, student, teacher, loss_config(borders, teacher_steps=n)).mean())
        for n in counts
    ]
    for coarse, fine in itertools.pairwise(losses):
        assert 2**3.8 <= coarse / fine <= 2**4.2, losses
    # a mean picture changes by the length of the step along the flow, and the loss by its square
    undistilled = [
        float(taught(schedule, teacher, teacher, loss_config(borders, teacher_steps=n)).mean())
        for n in counts
    ]
    for coarse, fine in itertools.pairwise(undistilled):
        assert 2**1.8 <= coarse / fine <= 2**2.2, undistilled
    assert losses[-1] < 1e-3 * undistilled[-1]


def test_the_gradient_vanishes_at_the_exact_jump_and_points_back_to_it() -> None:
    """Along any other velocity w: at J + h sin δ w the loss has the slope 2 h ‖w‖²/d."""
    schedule, borders = angle(), (0.0, 1000.0)
    config = loss_config(borders, teacher_steps=1000)
    right, teacher = exact(schedule, borders), gaussian(schedule, MEAN, COVARIANCE)
    times = torch.full((64,), 700.0, dtype=torch.float64)
    x_t = normals(8, 64, 3)
    r, e = below(schedule, times, config)
    x_r = jump(schedule, teacher(x_t, times), r)
    target = jump(schedule, right(x_r, r), e)
    v = torch.zeros_like(x_t, requires_grad=True)
    w = normals(9, 64, 3)
    there = jump(schedule, right(x_t, times), e)
    sine = math.sin(0.7 * math.pi / 2)
    loss = consistency(there - sine * v, target, schedule, times, e).sum()
    (slope,) = torch.autograd.grad(loss, v)
    assert float(slope.abs().max()) < 1e-4
    for h in (0.1, -0.3):
        v = (h * w).requires_grad_()
        loss = consistency(there - sine * v, target, schedule, times, e).sum()
        (slope,) = torch.autograd.grad(loss, v)
        torch.testing.assert_close(slope, 2 * h * w / 3, rtol=1e-3, atol=1e-4)


def test_the_loss_is_that_of_the_velocity() -> None:
    # without a step of the teacher, r = e = 0 and x_r = x_0: the plain loss of v
    schedule = angle()
    t = torch.tensor([5.0, 400.0, 1000.0], dtype=torch.float64)
    x0, eps, raw = normals(1, 3, 4), normals(2, 3, 4), normals(3, 3, 4)
    a, b = schedule.at(t)
    x_t = destroy_at(a, b, x0, eps)
    v = a[:, None] * eps - b[:, None] * x0
    zero = torch.zeros_like(t)
    loss = consistency(
        jump(schedule, predict("v", raw, x_t, schedule, t), zero), x0, schedule, t, zero
    )
    torch.testing.assert_close(loss, (raw - v).square().mean(1), rtol=1e-8, atol=1e-10)


def test_what_is_clipped_is_still_of_the_same_state() -> None:
    schedule = angle()
    t = torch.tensor([10.0, 500.0, 1000.0], dtype=torch.float64)
    x = normals(1, 3, 8)
    raw = predict("v", 5 * normals(2, 3, 8), x, schedule, t)
    said = clipped(lambda x_t, t, *, previous=None: raw, schedule)(x, t)
    assert float(said.x0.abs().max()) == 1
    torch.testing.assert_close(jump(schedule, said, t), x)


class TestSampler:
    @pytest.mark.parametrize("schedule", [angle(), cosine()], ids=["angle", "cosine"])
    @pytest.mark.parametrize("calls", [1, 2, 5])
    def test_the_exact_jump_gives_the_exact_law_in_any_number_of_calls(
        self, schedule: Schedule, calls: int
    ) -> None:
        n = 40_000
        chain = even_angles(schedule, calls)
        x = last(
            sampler(
                exact(schedule, (0.0, 1000.0)), normals(1, n, 3), chain, noise=noise_of(2, n, 3)
            )
        )
        assert_moments(x, MEAN, COVARIANCE)

    def test_one_call_goes_to_the_end_of_the_flow(self) -> None:
        schedule, x = angle(), normals(1, 50, 3)
        end = last(
            sampler(exact(schedule, (0.0, 1000.0)), x, even_times(schedule, 1), noise=noise_of(2))
        )
        torch.testing.assert_close(end, flow(x, MEAN, COVARIANCE, 0.0, 1.0), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("inner", [(), (500.0,), (120.0, 700.0)], ids=len)
    def test_from_border_to_border_no_noise_is_drawn(self, inner: tuple[float, ...]) -> None:
        schedule, x = angle(), normals(1, 50, 3)
        borders = (0.0, *inner, 1000.0)

        def none(t: int) -> Tensor:
            raise AssertionError("noise was drawn")

        jumps = sampler(
            exact(schedule, borders), x, schedule.keep(borders), noise=none, borders=borders
        )
        states = [step.x for step in jumps]
        for state, time in zip(states, reversed(borders[:-1]), strict=True):
            signal = float(schedule.at(torch.tensor(time).double())[0])
            torch.testing.assert_close(
                state, flow(x, MEAN, COVARIANCE, 0.0, signal), rtol=1e-8, atol=1e-8
            )
        # which is DDIM's way over the borders
        other = ddim(exact(schedule, borders), x, schedule.keep(borders))
        torch.testing.assert_close(states[-1], last(other))

    def test_between_borders_the_law_is_kept_too(self) -> None:
        n, schedule, borders = 40_000, angle(), (0.0, 400.0, 1000.0)
        chain = schedule.keep([0.0, 200.0, 400.0, 800.0, 1000.0])
        x = last(
            sampler(
                exact(schedule, borders),
                normals(3, n, 3),
                chain,
                noise=noise_of(4, n, 3),
                borders=borders,
            )
        )
        assert_moments(x, MEAN, COVARIANCE)

    def test_a_border_passed_over_is_named(self) -> None:
        schedule = angle()
        steps = sampler(
            exact(schedule, (0.0, 500.0, 1000.0)),
            normals(1, 2, 3),
            schedule.keep([0.0, 400.0, 1000.0]),
            noise=noise_of(2, 2, 3),
            borders=(0.0, 500.0, 1000.0),
        )
        with pytest.raises(ValueError, match="passes over 500"):
            list(steps)
