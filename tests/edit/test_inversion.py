"""Inversion: what it finds makes the picture again."""

import pytest
import torch
from torch import Tensor

from few import counted, drawn
from oracle import gaussian, generic_covariance, normals
from unraze import schedule as schedules
from unraze.denoiser import Prediction, from_x0
from unraze.edit.inversion import edit_friendly, invert
from unraze.samplers import ddim, even_angles, even_times, last, random

D = 3
ANGLE = schedules.angle(1000)
MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(1, [1.5, 0.7, 0.3])
PRIOR = gaussian(ANGLE, MEAN, COVARIANCE)
PICTURES = normals(5, 8, D)


def error(steps: int, iterations: int) -> float:
    chain = even_angles(ANGLE, steps)
    noise = last(invert(PRIOR, PICTURES, chain, iterations=iterations))
    return float((last(ddim(PRIOR, noise, chain)) - PICTURES).abs().max())


@pytest.mark.parametrize(("iterations", "order"), [(1, 1), (2, 2), (4, 4)])
def test_the_error_falls_by_an_order_for_each_iteration(iterations: int, order: int) -> None:
    coarse, fine = error(20, iterations), error(80, iterations)
    assert coarse < 0.05
    assert fine < coarse / 4**order * 1.3


def test_solved_to_the_end_it_gives_the_picture_back() -> None:
    """Gaussian data of full rank: DDIM's last step forgets nothing there."""
    assert error(10, 60) < 1e-12


def test_it_makes_the_calls_that_it_says_and_never_asks_at_zero() -> None:
    denoise, asked = counted(PRIOR)
    chain = even_times(ANGLE, 7)
    steps = list(invert(denoise, PICTURES, chain, iterations=3))
    assert asked == [t for t in chain.times[1:].tolist() for _ in range(3)]
    assert [step.t for step in steps] == chain.times[1:].tolist()


def test_noise_that_is_found_is_about_normal() -> None:
    x = normals(11, 4000, D) @ torch.linalg.cholesky(COVARIANCE).T + MEAN
    noise = last(invert(PRIOR, x, even_angles(ANGLE, 100), iterations=4))
    assert float((noise.T.cov() - torch.eye(D)).abs().max()) < 0.1
    assert float(noise.mean(0).abs().max()) < 0.1


def wrong(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
    """A denoiser that knows nothing."""
    return from_x0(ANGLE, x_t, t, torch.sin(3 * x_t))


@pytest.mark.parametrize("denoise", [PRIOR, wrong])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_edit_friendly_noise_makes_the_picture_whatever_the_denoiser(denoise, steps) -> None:  # type: ignore[no-untyped-def]
    chain = even_angles(ANGLE, steps)
    top, noise = edit_friendly(denoise, PICTURES, chain, noise=drawn(3, 8, D))
    found = last(random(denoise, top, chain, noise=noise, final_noise=True))
    torch.testing.assert_close(found, PICTURES, rtol=0, atol=1e-12)


def test_edit_friendly_noise_is_more_than_a_chain_s_own() -> None:
    """Its variance is above 1, as the states are independent: the layout is in it (the paper's
    figure 4)."""
    count = 4000
    x = normals(12, count, D) @ torch.linalg.cholesky(COVARIANCE).T + MEAN
    chain = even_angles(ANGLE, 50)
    _, noise = edit_friendly(PRIOR, x, chain, noise=drawn(4, count, D))
    found = {t: noise(t) for t in range(50, 0, -1)}
    assert float(found[25].var()) > 2


def test_edit_friendly_noise_is_found_step_by_step_as_it_is_asked_for() -> None:
    chain = even_angles(ANGLE, 5)
    denoise, asked = counted(PRIOR)
    top, noise = edit_friendly(denoise, PICTURES, chain, noise=drawn(3, 8, D))
    assert asked == []
    made = 0
    for step in random(PRIOR, top, chain, noise=noise, final_noise=True):
        made, found = made + 1, step.x
        assert len(asked) == made
    torch.testing.assert_close(found, PICTURES, rtol=0, atol=1e-12)
    assert asked == chain.times.flip(0)[:-1].tolist()
    with pytest.raises(ValueError, match="z_3 is asked for"):
        noise(3)
    with pytest.raises(ValueError, match="z_4 is asked for"):
        edit_friendly(denoise, PICTURES, chain, noise=drawn(3, 8, D))[1](4)


def test_what_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(ValueError, match="iterations = 0"):
        next(invert(PRIOR, PICTURES, ANGLE, iterations=0))
    with pytest.raises(ValueError, match="one step"):
        next(invert(PRIOR, PICTURES, even_times(ANGLE, 1)))
