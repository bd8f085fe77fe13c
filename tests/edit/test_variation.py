"""Where variations start, and blends on the sphere."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from oracle import gaussian, generic_covariance, normals
from unraze import schedule as schedules
from unraze.denoiser import guided
from unraze.edit.composition import composed
from unraze.edit.variation import below, slerp, varied_from
from unraze.samplers import ddim, last

ANGLE = schedules.angle(100)


def test_the_part_below_a_time_ends_there() -> None:
    half = below(ANGLE, 49.5)
    assert half.steps == 50
    assert half.times[-2:].tolist() == [49.0, 49.5]
    assert torch.equal(half.alpha_bar[:50], ANGLE.alpha_bar[:50])
    whole = below(ANGLE, 100.0)
    assert torch.equal(whole.alpha_bar, ANGLE.alpha_bar)
    for t in (0.0, -1.0, 100.5):
        with pytest.raises(ValueError, match="give a time"):
            below(ANGLE, t)


@pytest.mark.parametrize("t", [5.0, 40.0, 90.0])
def test_variations_of_gaussian_data_are_gaussian_data(t: float) -> None:
    """Destroyed and taken back by the flow, data keep their law; and they are correlated with what
    they began from by E[x'_0 x_0ᵀ] = ᾱ √C √(ᾱ² C + β̄²)⁻¹ √C √C for a Gaussian of mean 0."""
    covariance, count = generic_covariance(2, [1.2, 0.4]), 20_000
    x0 = normals(1, count, 2) @ torch.linalg.cholesky(covariance).T
    start = varied_from(ANGLE, x0, t, normals(2, count, 2))
    denoise = gaussian(ANGLE, torch.zeros(2, dtype=torch.float64), covariance)
    found = last(ddim(denoise, start, below(ANGLE, t)))
    assert float((found.T.cov() - covariance).abs().max()) < 0.06
    values, axes = torch.linalg.eigh(covariance)
    a = float(ANGLE.at(torch.tensor(t))[0])
    exact = axes @ torch.diag(a * values**1.5 / (a**2 * values + 1 - a**2).sqrt()) @ axes.T
    assert float((found.T @ x0 / count - exact).abs().max()) < 0.06


@given(st.integers(0, 100), st.floats(0, 1))
def test_a_blend_stays_on_the_sphere_at_its_share_of_the_angle(seed: int, share: float) -> None:
    a, b = (one / one.norm(dim=1, keepdim=True) for one in normals(seed, 2, 3, 5))
    found = slerp(a, b, share)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=torch.float64))
    omega = (a * b).sum(1).acos()
    torch.testing.assert_close(
        (a * found).sum(1).clamp(-1, 1).acos(), share * omega, atol=1e-6, rtol=0
    )


def test_a_blend_begins_and_ends_where_it_should_also_where_it_is_straight() -> None:
    a, b = normals(1, 2, 3, 4), normals(2, 2, 3, 4)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    assert slerp(a.float(), b.float(), 0.3).dtype == torch.float32
    assert math.isfinite(float(slerp(a, torch.zeros_like(a), 0.5).sum()))


def test_one_condition_is_guidance_and_a_negative_one_leads_away() -> None:
    one, other, none = (
        gaussian(
            ANGLE, torch.full((2,), mean, dtype=torch.float64), generic_covariance(3, [1, 0.5])
        )
        for mean in (1.0, -1.0, 0.0)
    )
    x, t = normals(3, 4, 2), torch.tensor(30.0)
    found, wanted = composed([one], none, [2.5])(x, t), guided(one, none, 2.5)(x, t)
    torch.testing.assert_close(found.x0, wanted.x0)
    torch.testing.assert_close(found.eps, wanted.eps)
    early = {"interval": (0.0, 29.0)}
    later, wanted = (
        composed([one], none, [2.5], **early)(x, t),
        guided(one, none, 2.5, **early)(x, t),
    )
    torch.testing.assert_close(later.x0, wanted.x0)
    both = composed([one, one], none, [2.0, -2.0])(x, t)
    torch.testing.assert_close(both.x0, none(x, t).x0)
    # conditions that differ in the mean alone: their estimates differ by a constant, which adds up
    apart = composed([one, other], none, [1.0, 1.0])(x, t)
    torch.testing.assert_close(apart.x0, one(x, t).x0 + other(x, t).x0 - none(x, t).x0)
    with pytest.raises(ValueError, match="one scale for each"):
        composed([one], none, [])
    with pytest.raises(ValueError, match="at least one"):
        composed([], none, [])
