"""Schedules against their papers' formulas, diffusers, and many digits."""

import math

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings, strategies as st

from oracle import normals
from unraze.config import ScheduleConfig
from unraze.errors import InputError
from unraze.schedule import (
    SCHEDULES,
    Schedule,
    angle,
    check_terminal_signal,
    cosine,
    from_alphas_cumprod,
    from_config,
    from_variances,
    linear,
    quadratic,
    sigmoid,
    zero_terminal,
)


def _published(kind: str, n: int) -> np.ndarray:
    """Ho's variances β_1 … β_n as the papers and the tutorial give them."""
    match kind:
        case "linear":
            return np.linspace(1e-4, 0.02, n)
        case "quadratic":
            return np.linspace(1e-4**0.5, 0.02**0.5, n) ** 2
        case "sigmoid":
            return 1 / (1 + np.exp(-np.linspace(-6, 6, n))) * (0.02 - 1e-4) + 1e-4
        case "cosine":
            f = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - f[1:] / f[:-1], 0.999)
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["linear", "sigmoid", "cosine"])
def test_a_thousand_steps_are_the_published_numbers(kind: str) -> None:
    expected = np.sqrt(np.cumprod(1 - _published(kind, 1000)))
    got = SCHEDULES[kind](1000)
    np.testing.assert_allclose(got.alpha_bar[1:].numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose((got.beta[1:] ** 2).numpy(), _published(kind, 1000), rtol=1e-8)


@pytest.mark.parametrize("kind", ["linear", "quadratic", "sigmoid", "cosine"])
@pytest.mark.parametrize("steps", [50, 300, 1000])
def test_unscaled_they_are_the_formula_at_any_number_of_steps(kind: str, steps: int) -> None:
    expected = np.sqrt(np.cumprod(1 - _published(kind, steps)))
    got = SCHEDULES[kind](steps, rescaled=False).alpha_bar[1:]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_they_equal_diffusers(ours: str, theirs: str) -> None:
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)
    schedule = SCHEDULES[ours]()
    np.testing.assert_allclose(
        schedule.beta[1:].square().numpy(), scheduler.betas.double().numpy(), rtol=2e-5, atol=1e-9
    )
    np.testing.assert_allclose(
        schedule.alpha_bar[1:].square().numpy(),
        scheduler.alphas_cumprod.double().numpy(),
        rtol=2e-4,  # diffusers multiplies a thousand float32 numbers
    )


def test_the_angle_is_linear_in_time() -> None:
    for steps in (2, 10, 1000):
        schedule = angle(steps)
        t = np.arange(steps + 1) / steps
        np.testing.assert_allclose(schedule.alpha_bar, np.cos(np.pi / 2 * t), atol=1e-16)
        np.testing.assert_allclose(schedule.theta, np.pi / 2 * t, rtol=1e-9, atol=1e-15)
        assert schedule.alpha_bar[-1] == 0
        assert schedule.beta_bar[-1] == 1


@pytest.mark.parametrize("kind", SCHEDULES)
def test_three_hundred_steps_end_where_a_thousand_do(kind: str) -> None:
    make = SCHEDULES[kind]
    assert float(make(300).alpha_bar[-1]) == pytest.approx(float(make(1000).alpha_bar[-1]))
    # and every tenth of the way the same is left
    np.testing.assert_allclose(
        make(300).alpha_bar[::30].numpy(),
        make(1000).alpha_bar[::100].numpy(),
        rtol=1e-12,
        atol=1e-16,
    )


def test_the_ends_are_those_of_the_docstrings() -> None:
    assert float(linear().alpha_bar[-1]) == pytest.approx(0.0064, abs=5e-5)
    assert float(quadratic(rescaled=False).alpha_bar[-1]) == pytest.approx(0.027, abs=5e-4)
    assert float(quadratic().alpha_bar[-1]) == pytest.approx(0.01, rel=1e-12)
    assert float(linear(300, rescaled=False).alpha_bar[-1]) == pytest.approx(0.22, abs=5e-3)
    for kind in (linear, sigmoid, cosine, angle, quadratic):
        check_terminal_signal(kind(300))


@pytest.mark.parametrize("kind", SCHEDULES)
@settings(max_examples=25, deadline=None)
@given(steps=st.integers(2, 3000))
def test_any_number_of_steps_is_a_schedule(kind: str, steps: int) -> None:
    schedule = SCHEDULES[kind](steps)
    assert schedule.steps == steps
    assert torch.equal(schedule.times, torch.arange(steps + 1, dtype=torch.float64))
    check_terminal_signal(schedule)
    for values in (schedule.alpha, schedule.beta, schedule.beta_bar, schedule.beta_tilde):
        assert torch.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()
    one = torch.ones(steps + 1, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha**2 + schedule.beta**2, one, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        schedule.alpha.cumprod(0), schedule.alpha_bar, rtol=1e-11, atol=1e-15
    )
    assert (schedule.log_snr.diff() < 0).all()
    assert (schedule.beta_tilde <= schedule.beta).all()


@pytest.mark.parametrize("steps", [1, 0, -5])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_fewer_than_two_steps_are_refused(kind: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps = {steps}"):
        SCHEDULES[kind](steps)


def test_the_unscaled_linear_schedule_of_the_tutorial_is_refused_with_the_remedy() -> None:
    config = ScheduleConfig(kind="linear", steps=300, rescaled=False)
    with pytest.raises(InputError, match=r"ᾱ_T = 0\.219 .*T = 300.*rescaled=true.*--allow-signal"):
        from_config(config)
    allowed = from_config(config.model_copy(update={"allow_signal": True}))
    assert float(allowed.alpha_bar[-1]) == pytest.approx(0.22, abs=5e-3)
    ends = from_config(config.model_copy(update={"zero_terminal": True}))
    assert float(ends.alpha_bar[-1]) == 0
    assert float(from_config(ScheduleConfig(kind="linear", steps=300)).alpha_bar[-1]) < 0.01


@pytest.mark.parametrize("kind", SCHEDULES)
def test_from_config_is_the_schedule_of_that_name(kind: str) -> None:
    got = from_config(ScheduleConfig(kind=kind, steps=77))
    assert torch.equal(got.alpha_bar, SCHEDULES[kind](77).alpha_bar)


# construction

falling = st.lists(st.floats(1e-6, 1 - 1e-6), min_size=2, max_size=8, unique=True).map(
    lambda values: [1.0, *sorted(values, reverse=True)]
)


@settings(deadline=None)
@given(falling)
def test_what_falls_from_one_is_a_schedule(alpha_bar: list[float]) -> None:
    schedule = Schedule(alpha_bar)
    assert schedule.alpha_bar.tolist() == alpha_bar
    assert schedule.alpha_bar.dtype == torch.float64
    assert schedule.steps == len(alpha_bar) - 1


@settings(deadline=None)
@given(falling, st.data())
def test_whatever_does_not_is_refused(alpha_bar: list[float], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(alpha_bar) - 1))
    bad = data.draw(
        st.sampled_from([float("nan"), float("inf"), -float("inf"), -1e-9, 1.0 + 1e-9, -2.0])
    )
    with pytest.raises(ValueError, match="alpha_bar"):
        Schedule([*alpha_bar[:i], bad, *alpha_bar[i + 1 :]])
    j = data.draw(st.integers(1, len(alpha_bar) - 1))
    with pytest.raises(ValueError, match=r"alpha_bar\[.*must decrease strictly"):
        Schedule([*alpha_bar[:j], alpha_bar[j - 1], *alpha_bar[j:]])


@pytest.mark.parametrize(
    "bad", [[], [1.0], [[1.0, 0.5]], 1.0, [0.5, 0.25], [0.0, 1.0], [1.0, 0.5, -0.1], [1.0, 1.0]]
)
def test_a_shape_or_start_that_will_not_do_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="alpha_bar"):
        Schedule(bad)


@pytest.mark.parametrize(
    "times", [[0, 1], [0, 1, 1], [0, 2, 1], [1, 2, 3], [0, 1, float("nan")], [0, 1, float("inf")]]
)
def test_times_that_do_not_rise_from_0_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="times"):
        Schedule([1.0, 0.5, 0.1], torch.tensor(times))


def test_a_schedule_is_its_own_copy() -> None:
    values = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    schedule = Schedule(values)
    values[1] = 7
    assert float(schedule.alpha_bar[1]) == 0.5


# precision


@settings(deadline=None)
@given(st.floats(1e-16, 0.5))
def test_the_noise_amplitude_keeps_its_digits_near_the_picture(gap: float) -> None:
    a = 1 - gap
    if a == 1:
        return
    with mpmath.workdps(60):
        exact = mpmath.sqrt(1 - mpmath.mpf(a) ** 2)
        schedule = Schedule([1.0, a, a / 2])
        assert abs(float(mpmath.mpf(float(schedule.beta_bar[1])) / exact - 1)) < 4e-16
        step = mpmath.sqrt(1 - (mpmath.mpf(a / 2) / mpmath.mpf(a)) ** 2)
        assert abs(float(mpmath.mpf(float(schedule.beta[2])) / step - 1)) < 1e-15
        tilde = step * exact / mpmath.sqrt(1 - mpmath.mpf(a / 2) ** 2)
        assert abs(float(mpmath.mpf(float(schedule.beta_tilde[2])) / tilde - 1)) < 2e-15


def test_many_small_steps_keep_their_digits() -> None:
    # the step amplitudes of 3,000 steps, from the stored ᾱ, with 50 digits
    schedule = linear(3000)
    with mpmath.workdps(50):
        for t in (1, 2, 3, 1000, 2999, 3000):
            before, after = (mpmath.mpf(float(a)) for a in schedule.alpha_bar[t - 1 : t + 1])
            exact = mpmath.sqrt(1 - (after / before) ** 2)
            assert abs(float(mpmath.mpf(float(schedule.beta[t])) / exact - 1)) < 1e-14


def test_the_ends_of_the_derived_arrays() -> None:
    schedule = linear(10)
    assert schedule.log_snr[0] == math.inf
    assert angle(10).log_snr[-1] == -math.inf
    assert schedule.beta_bar[0] == schedule.beta[0] == schedule.beta_tilde[0] == 0
    assert schedule.beta_tilde[1] == 0
    assert schedule.alpha[0] == 1
    for values in (schedule.alpha, schedule.beta, schedule.beta_bar, schedule.beta_tilde):
        assert values.shape == (11,)
        assert values.dtype == torch.float64


# other people's numbers

variances = st.lists(st.floats(1e-6, 0.9), min_size=2, max_size=20)


@settings(deadline=None)
@given(variances)
def test_variances_come_back(values: list[float]) -> None:
    got = from_variances(values).beta[1:].square()
    np.testing.assert_allclose(got.numpy(), values, rtol=1e-8)


@settings(deadline=None)
@given(variances)
def test_cumulated_variances_come_back(values: list[float]) -> None:
    cumulated = np.cumprod(1 - np.array(values))
    got = from_alphas_cumprod(cumulated.tolist())
    np.testing.assert_allclose(got.alpha_bar[1:].square().numpy(), cumulated, rtol=1e-14)
    np.testing.assert_allclose(
        got.alpha_bar.numpy(), from_variances(values).alpha_bar.numpy(), rtol=1e-12
    )


@pytest.mark.parametrize(
    "bad", [[], [0.1, 0.0], [0.1, -0.1], [0.1, 1.1], [0.1, math.nan], [[0.1, 0.2]], 0.1, [1.0, 0.5]]
)
def test_variances_that_will_not_do_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"variances|alpha_bar"):
        from_variances(bad)


@pytest.mark.parametrize(
    "bad", [[], [1.1, 0.5], [0.5, -0.1], [0.5, 0.6], [0.5, math.nan], [[0.5, 0.2]], 0.5, [1.0, 0.5]]
)
def test_cumulated_variances_that_will_not_do_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"alphas_cumprod|alpha_bar"):
        from_alphas_cumprod(bad)


def _rescale_zero_terminal(betas: np.ndarray) -> np.ndarray:
    """Lin et al. 2023, algorithm 1: Ho's β -> Ho's β of a schedule that ends at 0."""
    root = np.sqrt(np.cumprod(1 - betas))
    first, final = root[0], root[-1]
    root = (root - final) * first / (first - final)
    bars = root**2
    return 1 - np.concatenate([bars[:1], bars[1:] / bars[:-1]])


@pytest.mark.parametrize("kind", ["linear", "cosine", "sigmoid"])
def test_zero_terminal_is_the_algorithm_of_lin_et_al(kind: str) -> None:
    got = zero_terminal(SCHEDULES[kind](1000))
    expected = _rescale_zero_terminal(_published(kind, 1000))
    assert got.alpha_bar[-1] == 0
    np.testing.assert_allclose(got.beta[1:].square().numpy(), expected, rtol=1e-7, atol=1e-12)
    assert float(got.alpha_bar[1]) == pytest.approx(float(SCHEDULES[kind]().alpha_bar[1]))


# between the steps


@pytest.mark.parametrize("kind", SCHEDULES)
def test_at_its_own_times_a_schedule_says_its_own_numbers(kind: str) -> None:
    schedule = SCHEDULES[kind](137)
    alpha_bar, beta_bar = schedule.at(schedule.times)
    assert torch.equal(alpha_bar, schedule.alpha_bar)
    assert torch.equal(beta_bar, schedule.beta_bar)
    kept = schedule.keep(schedule.times)
    assert torch.equal(kept.alpha_bar, schedule.alpha_bar)
    assert torch.equal(kept.times, schedule.times)
    some = schedule.keep([0, 5, 136, 137])
    assert torch.equal(some.alpha_bar, schedule.alpha_bar[[0, 5, 136, 137]])


@settings(deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 137))
def test_between_them_the_angle_is_linear(kind: str, t: float) -> None:
    schedule = SCHEDULES[kind](137)
    a, b = schedule.at(torch.tensor(t, dtype=torch.float64))
    assert a.shape == b.shape == ()
    left = min(int(t), 136)
    theta = [
        math.atan2(float(schedule.beta_bar[i]), float(schedule.alpha_bar[i]))
        for i in (left, left + 1)
    ]
    expected = theta[0] + (t - left) * (theta[1] - theta[0])
    assert float(a) == pytest.approx(math.cos(expected), abs=1e-14)
    assert float(b) == pytest.approx(math.sin(expected), abs=1e-14)
    assert float(a**2 + b**2) == pytest.approx(1, abs=1e-15)


@settings(deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 137))
def test_time_at_is_the_inverse_of_at(kind: str, t: float) -> None:
    schedule = SCHEDULES[kind](137)
    a, b = schedule.at(torch.tensor([t], dtype=torch.float64))
    assert float(schedule.time_at(torch.atan2(b, a))) == pytest.approx(t, abs=1e-9)


def test_time_at_stays_within_the_schedule() -> None:
    schedule = linear(50)
    angles = torch.tensor([-1.0, 0.0, 1.5707963, 3.0], dtype=torch.float64)
    assert schedule.time_at(angles).tolist() == [0.0, 0.0, 50.0, 50.0]


def test_the_step_ratio_joins_step_noise_and_whole_noise() -> None:
    schedule = linear(80)
    a = schedule.alpha_bar.numpy()
    whole = np.arange(1, 81)
    expected = np.sqrt(1 - (a[1:] / a[:-1]) ** 2) / np.sqrt(1 - a[1:] ** 2)
    got = schedule.step_ratio(torch.from_numpy(whole))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10)
    assert float(got[0]) == 1
    assert schedule.step_ratio(torch.tensor([0.0, 0.5])).tolist() == [1.0, 1.0]
    half = schedule.step_ratio(torch.tensor(40.5).double())
    assert float(half) == pytest.approx((expected[39] + expected[40]) / 2)
    # it is E[ε̄ ε_t], what regresses the one on the other: x_t = … + β_t ε_t = ᾱ_t x_0 + β̄_t ε̄
    assert (got > 0).all()
    assert (got <= 1).all()


@pytest.mark.parametrize("t", [-0.001, 80.001, math.nan, math.inf])
def test_a_time_outside_the_schedule_is_refused(t: float) -> None:
    schedule = linear(80)
    for ask in (schedule.at, schedule.step_ratio):
        with pytest.raises(ValueError, match=r"\[0, 80\]"):
            ask(torch.tensor([3.0, t]))


@pytest.mark.parametrize("times", [[1, 2], [0, 2, 2], [0, 3, 2], [0, 81], [-1, 0, 3], [0], []])
def test_a_sub_schedule_must_rise_from_0_within_the_schedule(times: list[float]) -> None:
    with pytest.raises(ValueError, match=r"times|alpha_bar"):
        linear(80).keep(times)


def test_a_sub_schedule_of_a_sub_schedule_is_one_of_the_schedule() -> None:
    schedule = linear(100)
    once = schedule.keep([0, 20, 100])
    twice = schedule.keep([0, 10, 20, 60, 100]).keep([0, 20, 100])
    assert torch.equal(once.alpha_bar, twice.alpha_bar)
    assert torch.equal(once.times, twice.times)
    # its steps are longer, and still of length one each
    torch.testing.assert_close(once.alpha**2 + once.beta**2, torch.ones(3).double())
    assert float(once.alpha[1]) == pytest.approx(float(schedule.alpha[1:21].prod()))


def test_interpolation_keeps_gradients_and_devices_out() -> None:
    # times may come as float32 and with a gradient; the answer is float64 and has none
    t = torch.tensor([1.5, 7.0], requires_grad=True)
    a, b = linear(10).at(t)
    assert a.dtype == b.dtype == torch.float64
    assert not a.requires_grad
    assert normals(0, 1).dtype == torch.float64
