"""The weights of polynomials against integrals in closed form and by scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.integrate import quad

from unraze.samplers.solver import first_order, noise_weights, picture_weights, usable
from unraze.schedule import Schedule, angle, cosine

ANGLES = st.lists(
    st.floats(0.01, math.pi / 2 - 0.01), min_size=4, max_size=6, unique_by=lambda a: round(a, 2)
)


def _at(angles: list[float]) -> Schedule:
    theta = torch.tensor([0.0, *sorted(angles)], dtype=torch.float64)
    return Schedule(theta.cos())


@settings(deadline=None)
@given(angles=ANGLES, order=st.integers(1, 4))
def test_picture_weights_integrate_powers_of_the_signal_exactly(
    angles: list[float], order: int
) -> None:
    # sin θ_s ∫ cosᵏ/sin² from θ_s to θ_t: cot; 1/sin; -cot - θ; -1/sin - sin
    schedule = _at(angles)
    for t in range(1, schedule.steps - order + 2):
        nodes = list(range(t, t + order))
        weights = np.array(picture_weights(schedule, t, nodes))
        start, end = float(schedule.theta[t]), float(schedule.theta[t - 1])
        up, down = math.sin(end) / math.sin(start), math.cos(end)
        moments = [down - up * math.cos(start), 1 - up]
        moments.append(moments[0] - math.sin(end) * (start - end))
        moments.append(moments[1] - math.sin(end) * (math.sin(start) - math.sin(end)))
        at = schedule.alpha_bar[nodes].numpy()
        size = float(np.abs(weights).sum())
        for power in range(order):
            assert weights @ at**power == pytest.approx(moments[power], abs=1e-12 * size + 1e-13)


@settings(deadline=None, max_examples=30)
@given(angles=ANGLES, order=st.integers(2, 4))
def test_noise_weights_are_the_integrals_of_lagrange_s_polynomials(
    angles: list[float], order: int
) -> None:
    schedule = _at(angles)
    theta = schedule.theta.numpy()
    t = 1 if schedule.steps == order else 2
    nodes = list(range(t, min(t + order, schedule.steps + 1)))
    weights = noise_weights(schedule, t, nodes)

    def integrand(a: float, j: int) -> float:
        others = [n for n in nodes if n != nodes[j]]
        value = math.prod((a - theta[n]) / (theta[nodes[j]] - theta[n]) for n in others)
        return value / math.cos(a) ** 2

    for j, weight in enumerate(weights, start=1):
        exact = (
            math.cos(theta[t - 1])
            * quad(integrand, theta[t], theta[t - 1], args=(j,), epsabs=1e-13, epsrel=1e-12)[0]
        )
        assert weight == pytest.approx(exact, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("schedule", [angle(), cosine()], ids=["angle", "cosine"])
def test_a_step_from_no_picture_at_all_and_one_to_data_have_finite_weights(
    schedule: Schedule,
) -> None:
    last = schedule.steps
    assert picture_weights(schedule, last, [last])[0] == pytest.approx(
        float(schedule.alpha_bar[last - 1] - schedule.alpha_bar[last]), rel=1e-5
    )
    # at data the weights are the polynomial's own at ᾱ = 1
    a = schedule.alpha_bar[[1, 2]].numpy()
    line = [(1 - a[1]) / (a[0] - a[1]), (1 - a[0]) / (a[1] - a[0])]
    np.testing.assert_allclose(picture_weights(schedule, 1, [1, 2]), line, rtol=1e-9)


def test_orders_rise_with_what_is_known_and_fall_with_what_is_left() -> None:
    assert [usable(3, made) for made in (1, 2, 3, 9)] == [1, 2, 3, 3]
    assert [usable(3, 9, left) for left in (4, 3, 2, 1)] == [3, 3, 2, 1]


def test_the_first_order_step_reads_both_halves_of_a_prediction() -> None:
    from unraze.denoiser import Prediction

    schedule = cosine(10)
    p = Prediction(torch.ones(2, 3).double(), torch.full((2, 3), 2.0).double())
    exact = float(schedule.alpha_bar[3] + 2 * schedule.beta_bar[3])
    torch.testing.assert_close(first_order(schedule, 4, p), torch.full((2, 3), exact).double())
