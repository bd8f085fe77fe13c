"""Which times to keep: the errors of jumps, and the cheapest way through them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from few import COVARIANCE, MEAN, POINTS
from oracle import finite_set, flow, gaussian, normals
from unraze.samplers import (
    adams,
    cheapest,
    ddim,
    even_angles,
    even_log_snr,
    even_times,
    jump_errors,
    karras,
    last,
)
from unraze.schedule import angle, linear


def _cost(errors: np.ndarray, kept: list[int], gamma: float) -> float:
    jumps = list(itertools.pairwise(kept))[::-1]
    return sum(gamma**k * errors[i, j] for k, (j, i) in enumerate(jumps))


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    last_=st.integers(1, 7),
    gamma=st.floats(0.5, 1.5),
    data=st.data(),
)
def test_no_other_way_is_cheaper(seed: int, last_: int, gamma: float, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, last_))
    errors = np.random.default_rng(seed).random((last_ + 1, last_ + 1))
    errors[np.triu_indices(last_ + 1)] = np.inf
    kept = cheapest(errors, steps, gamma)
    assert kept[0] == 0
    assert kept[-1] == last_
    assert len(kept) == steps + 1
    assert kept == sorted(set(kept))
    every = ([0, *inner, last_] for inner in itertools.combinations(range(1, last_), steps - 1))
    assert _cost(errors, kept, gamma) == pytest.approx(min(_cost(errors, w, gamma) for w in every))


def test_a_jump_is_off_by_what_ddim_is_off() -> None:
    """For Gaussian data both the flow's states and DDIM's step are known."""
    schedule = even_angles(angle(), 40)
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    x = normals(3, 200, 3)
    errors = jump_errors(denoise, x, schedule)
    assert np.isinf(errors[np.triu_indices(41)]).all()
    for i, j in ((40, 20), (20, 10), (10, 0), (5, 4)):
        start = flow(x, MEAN, COVARIANCE, 0.0, float(schedule.alpha_bar[i]))
        end = flow(x, MEAN, COVARIANCE, 0.0, float(schedule.alpha_bar[j]))
        said = denoise(start, schedule.times[i])
        a, b = schedule.alpha_bar[j], schedule.beta_bar[j]
        off = float((a * said.x0 + b * said.eps - end).norm(dim=1).mean())
        assert errors[i, j] == pytest.approx(off, rel=0.05, abs=2e-4)


def test_times_found_are_better_than_even_ones() -> None:
    """Even angles are about the best for these points; even times and log-SNRs are not."""
    schedule = linear()
    grid = even_angles(schedule, 40)
    denoise = finite_set(schedule, POINTS)
    errors = jump_errors(denoise, normals(1, 100, 3), grid)
    x = normals(2, 100, 3)
    exact = last(adams(denoise, x, even_angles(schedule, 400)))

    def off(times: torch.Tensor) -> float:
        return float((last(ddim(denoise, x, schedule.keep(times))) - exact).square().mean())

    for steps in (4, 6, 10):
        found = grid.times[cheapest(errors, steps, 1.0)]
        assert off(found) < 1.1 * off(even_angles(schedule, steps).times)
        for others in (even_times, even_log_snr, karras):
            assert off(found) < 0.9 * off(others(schedule, steps).times), others


@pytest.mark.parametrize(("steps", "gamma"), [(0, 1.0), (4, 1.0), (2, 0.0)])
def test_what_cannot_be_found_is_refused(steps: int, gamma: float) -> None:
    errors = np.full((4, 4), np.inf)
    errors[np.tril_indices(4, -1)] = 1.0
    with pytest.raises(ValueError, match=f"steps = {steps}"):
        cheapest(errors, steps, gamma)
