"""Inpainting: what is known stays, and the rest is drawn as it should be."""

import pytest
import torch
from torch import Tensor

from few import counted, drawn
from oracle import finite_set, gaussian, generic_covariance, normals
from unraze import schedule as schedules
from unraze.edit.inpainting import repaint, repaint_calls, replaced
from unraze.samplers import adams, ddim, even_angles, last, random

D = 3
ANGLE = schedules.angle(1000)
MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(1, [1.5, 0.7, 0.3])
PRIOR = gaussian(ANGLE, MEAN, COVARIANCE)
MASK = torch.tensor([True, False, False])
KNOWN = torch.tensor([[1.1, 0.0, 0.0]], dtype=torch.float64)


def exact() -> Tensor:
    """The mean of what is unknown, where the first number is known."""
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    return MEAN[1:] + gain * (KNOWN[0, 0] - MEAN[0])


def repainted(repeats: int, jump: int = 1, count: int = 4000) -> Tensor:
    chain = even_angles(ANGLE, 40)
    how = {"known": KNOWN.expand(count, D), "mask": MASK, "repeats": repeats, "jump": jump}
    return last(repaint(PRIOR, normals(0, count, D), chain, noise=drawn(5, count, D), **how))


def test_repaint_is_the_less_biased_the_oftener_it_repeats() -> None:
    """Known bias: with one repeat a fifth of a standard deviation and more; it falls with them."""
    off = [float((repainted(r)[:, 1:].mean(0) - exact()).abs().max()) for r in (1, 3, 10)]
    assert off[0] > 0.15
    assert off[1] < 0.7 * off[0]
    assert off[2] < 0.3 * off[0]


@pytest.mark.parametrize(("repeats", "jump"), [(1, 1), (4, 1), (3, 7), (2, 100)])
def test_repaint_keeps_what_is_known_and_makes_the_calls_that_it_says(
    repeats: int, jump: int
) -> None:
    chain = even_angles(ANGLE, 20)
    denoise, asked = counted(PRIOR)
    how = {"known": KNOWN.expand(5, D), "mask": MASK, "repeats": repeats, "jump": jump}
    steps = list(repaint(denoise, normals(0, 5, D), chain, noise=drawn(5, 5, D), **how))
    assert len(asked) == len(steps) == repaint_calls(20, repeats=repeats, jump=jump)
    assert len(asked) == repeats * 19 + 1
    assert steps[-1].t == 0
    assert [step.t for step in steps].count(0.0) == 1
    assert set(asked) == set(chain.times[1:].tolist())
    assert torch.equal(steps[-1].x[:, 0], KNOWN[0, 0].expand(5))


def test_repaint_with_nothing_known_is_ancestral_sampling() -> None:
    """One repeat, and the noise of what would be known is drawn and left aside."""
    chain, x = even_angles(ANGLE, 12), normals(1, 6, D)
    nothing = torch.zeros(D, dtype=torch.bool)
    how = {"known": torch.zeros(6, D, dtype=torch.float64), "mask": nothing, "repeats": 1}
    noise = drawn(3, 6, D)
    found = last(repaint(PRIOR, x, chain, noise=noise, **how))
    wanted = last(
        random(PRIOR, x, chain, noise=lambda t: noise(2 * (12 - t) + 1), sigma="beta_tilde")
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_what_is_replaced_is_kept_by_every_sampler_that_ends_in_its_estimate() -> None:
    chain = even_angles(ANGLE, 30)
    denoise = replaced(PRIOR, ANGLE, KNOWN, MASK)
    for sampler in (
        lambda d, x: ddim(d, x, chain),
        lambda d, x: adams(d, x, chain, order=2),
        lambda d, x: random(d, x, chain, noise=drawn(2, 8, D)),
    ):
        found = last(sampler(denoise, normals(2, 8, D)))
        torch.testing.assert_close(found[:, 0], KNOWN[0, 0].expand(8), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_is_replaced_leaves_the_rest_as_far_off_as_is_documented(eta: float) -> None:
    """What is drawn does not hear of what is known but through the state: its mean is off by a
    fifth of a standard deviation and more, where the data are Gaussian."""
    count, chain = 4000, even_angles(ANGLE, 40)
    denoise = replaced(PRIOR, ANGLE, KNOWN, MASK)
    found = last(ddim(denoise, normals(2, count, D), chain, noise=drawn(6, count, D), eta=eta))
    off = (found[:, 1:].mean(0) - exact()).abs() / COVARIANCE.diag()[1:].sqrt()
    assert 0.15 <= float(off.max()) <= 0.3
    left = COVARIANCE[1:, 1:] - COVARIANCE[1:, :1] @ COVARIANCE[:1, 1:] / COVARIANCE[0, 0]
    assert 0.85 <= float(found[:, 1:].T.cov().trace() / left.trace()) <= 1.0


POINTS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.3]], dtype=torch.float64)


@pytest.mark.parametrize("repeats", [0, 1, 5])
def test_the_shares_of_points_that_agree_with_what_is_known(repeats: int) -> None:
    """Of weights 0.5, 0.2 and 0.3 the first two do, and have 5/7 and 2/7. RePaint by its repeats;
    0 stands for what is replaced."""
    count, chain = 4000, even_angles(ANGLE, 40)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    prior = finite_set(ANGLE, POINTS, weights)
    known, mask = POINTS[:1].expand(count, 2), torch.tensor([True, False])
    x, noise = normals(0, count, 2), drawn(5, count, 2)
    if repeats:
        how = {"known": known, "mask": mask, "repeats": repeats}
        found = last(repaint(prior, x, chain, noise=noise, **how))
    else:
        denoise = replaced(prior, ANGLE, known, mask)
        found = last(ddim(denoise, x, chain, noise=noise, eta=1.0))
    nearest = torch.cdist(found, POINTS).argmin(dim=1)
    shares = torch.bincount(nearest, minlength=3) / count
    torch.testing.assert_close(
        shares.double(), torch.tensor([5, 2, 0]).double() / 7, rtol=0, atol=0.03
    )


def test_no_repeats_and_no_jumps_are_refused() -> None:
    for how in ({"repeats": 0}, {"jump": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            next(repaint(PRIOR, KNOWN, ANGLE, known=KNOWN, mask=MASK, noise=drawn(0, 1, D), **how))
