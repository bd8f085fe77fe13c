"""Restoration beside exact posteriors: Gaussian data, and finitely many points."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from few import drawn
from oracle import assert_moments, finite_set, gaussian, generic_covariance, normals, probes
from unraze import schedule as schedules
from unraze.denoiser import Denoiser, clipped
from unraze.edit.operators import Observed
from unraze.edit.restoration import diffpir, dps, held, mmps, pigdm
from unraze.process import like
from unraze.samplers import ddim, even_angles, heun, last, random
from unraze.schedule import Schedule

D = 4
COSINE = schedules.cosine(200)
ANGLE = schedules.angle(200)
MEAN = torch.tensor([0.3, -0.2, 0.5, 0.0], dtype=torch.float64)
COVARIANCE = generic_covariance(1, [1.5, 0.7, 0.3, 0.05])
A = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
SIGMA = 0.2
TRUTH = torch.tensor([0.8, -0.5, 0.1, 0.2], dtype=torch.float64)
SEEN = Observed((A @ TRUTH)[None], lambda x: x @ A.T, SIGMA)

Wrapped = Callable[[Denoiser, Schedule, Observed], Denoiser]
METHODS: dict[str, Wrapped] = {
    "mmps": lambda d, s, o: mmps(d, s, o, iterations=2),
    "pigdm": pigdm,
    "diffpir": diffpir,
}


def posterior(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x_0 ~ N(m, C) where A x_0 + σ n is seen."""
    noise = SIGMA**2 * torch.eye(len(A), dtype=torch.float64)
    gain = covariance @ A.T @ torch.linalg.inv(A @ covariance @ A.T + noise)
    return mean + gain @ (SEEN.y[0] - A @ mean), covariance - gain @ A @ covariance


@pytest.mark.parametrize("schedule", [COSINE, schedules.linear(200)])
@pytest.mark.parametrize("t", [1.0, 17.5, 100.0, 199.0, 200.0])
def test_moment_matching_is_exact_for_gaussian_data(schedule: Schedule, t: float) -> None:
    prior = gaussian(schedule, MEAN, COVARIANCE)
    exact = gaussian(schedule, *posterior(MEAN, COVARIANCE))
    x, time = 2 * normals(3, 6, D), torch.tensor(t)
    found = mmps(prior, schedule, SEEN, iterations=len(A))(x, time)
    wanted = exact(x, time)
    torch.testing.assert_close(found.x0, wanted.x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.eps, wanted.eps, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("t", [3.0, 80.0, 200.0])
def test_all_but_dps_are_exact_where_the_data_are_as_broad_everywhere(name: str, t: float) -> None:
    variance = 0.6
    covariance = variance * torch.eye(D, dtype=torch.float64)
    methods: dict[str, Wrapped] = METHODS | {
        "pigdm": lambda d, s, o: pigdm(d, s, o, variance=variance),
        "diffpir": lambda d, s, o: diffpir(d, s, o, variance=variance),
        "mmps": lambda d, s, o: mmps(d, s, o, variance=variance, iterations=2),
    }
    x, time = normals(4, 5, D), torch.tensor(t)
    # at the end of this schedule ᾱ = 0, where nothing but the pixels' variance is to be had
    found = methods[name](gaussian(ANGLE, MEAN, covariance), ANGLE, SEEN)(x, time)
    wanted = gaussian(ANGLE, *posterior(MEAN, covariance))(x, time)
    torch.testing.assert_close(found.x0, wanted.x0, rtol=0, atol=1e-8)
    a, b = ANGLE.at(time)
    torch.testing.assert_close(like(a, x) * found.x0 + like(b, x) * found.eps, x)


BY_THEIR_CHAIN: dict[str, Wrapped] = {
    "published": lambda d, chain, o: pigdm(d, chain, o, chain=chain),
    "dps": dps,
}


@pytest.mark.parametrize(
    ("name", "of_mean", "spread"),
    [
        ("mmps", (0.0, 1e-6), (0.95, 1.0)),
        ("pigdm", (0.0, 0.05), (0.95, 1.1)),
        ("diffpir", (0.1, 0.2), (1.1, 1.4)),
        ("published", (0.08, 0.15), (0.7, 0.85)),
    ],
)
def test_samples_of_gaussian_data_have_the_mean_and_spread_that_are_documented(
    name: str, of_mean: tuple[float, float], spread: tuple[float, float]
) -> None:
    """All are affine in the noise, so nothing is sampled: probes show mean and covariance."""
    prior = gaussian(COSINE, MEAN, COVARIANCE)
    mean, covariance = posterior(MEAN, COVARIANCE)
    x, noise = probes(D, COSINE.steps)
    denoise = (METHODS | BY_THEIR_CHAIN)[name](prior, COSINE, SEEN)
    rows = last(ddim(denoise, x, COSINE, noise=noise, eta=1.0))
    assert of_mean[0] <= float((rows[0] - mean).abs().max()) <= of_mean[1]
    found = (rows[1:] - rows[0]).T @ (rows[1:] - rows[0])
    assert spread[0] <= float(found.trace() / covariance.trace()) <= spread[1]


def test_samples_of_dps_are_as_far_off_as_is_documented() -> None:
    """It follows the distance, not its square, so that they are to be sampled."""
    count = 4000
    mean, covariance = posterior(MEAN, COVARIANCE)
    denoise = dps(gaussian(COSINE, MEAN, COVARIANCE), COSINE, SEEN)
    how = {"noise": drawn(1000, count, D), "eta": 1.0}
    found = last(ddim(denoise, normals(1, count, D), COSINE, **how))
    assert 0.1 <= float((found.mean(0) - mean).abs().max()) <= 0.2
    assert 1.4 <= float(found.T.cov().trace() / covariance.trace()) <= 1.65


def test_each_sampler_takes_a_restored_denoiser() -> None:
    """Heun follows the flow to the posterior: a monotone map of the noise, exact in the limit."""
    chain = even_angles(ANGLE, 100)
    denoise = mmps(gaussian(ANGLE, MEAN, COVARIANCE), ANGLE, SEEN, iterations=2)
    found = last(heun(denoise, normals(5, 4000, D), chain))
    # above T/2 steps or so ANGLE tells nothing, so the flow is that of the posterior but for T's
    assert_moments(found, *posterior(MEAN, COVARIANCE))


def test_dps_moves_the_ancestral_step_as_its_paper_says() -> None:
    prior, step, k = gaussian(COSINE, MEAN, COVARIANCE), 0.7, 120
    chain = even_angles(COSINE, 150)
    x, z = normals(6, 3, D), normals(7, 3, D)
    time = chain.times[k]
    start = x.clone().requires_grad_()
    distance = (SEEN.y - prior(start, time).x0 @ A.T).norm(dim=1)
    (gradient,) = torch.autograd.grad(distance.sum(), start)

    upper = Schedule(chain.alpha_bar[: k + 1], chain.times[: k + 1])
    how = {"noise": lambda t: z, "sigma": "beta_tilde"}
    plain = next(iter(random(prior, x, upper, **how))).x
    moved = next(iter(random(dps(prior, upper, SEEN, step=step), x, upper, **how))).x
    torch.testing.assert_close(moved, plain - step * gradient, rtol=0, atol=1e-12)


def test_pigdm_s_published_weight_moves_the_ancestral_step_as_its_algorithm_says() -> None:
    """x_s + ᾱ_s ᾱ_t r² Jᵀ Aᵀ (r² A Aᵀ + σ² 1)⁻¹ (y - A x̂_0), of Gaussian data, where J is known."""
    prior, k = gaussian(COSINE, MEAN, COVARIANCE), 60
    chain = even_angles(COSINE, 150)
    x, z = normals(6, 3, D), normals(7, 3, D)
    a, b = chain.alpha_bar[k], chain.beta_bar[k]
    one = torch.eye(D, dtype=torch.float64)
    jacobian = a * COVARIANCE @ torch.linalg.inv(a**2 * COVARIANCE + b**2 * one)
    left = b**2 / (b**2 + a**2)
    inner = torch.linalg.inv(left * A @ A.T + SIGMA**2 * torch.eye(len(A), dtype=torch.float64))
    residual = SEEN.y - prior(x, chain.times[k]).x0 @ A.T
    move = chain.alpha_bar[k - 1] * a * left * residual @ inner.T @ A @ jacobian

    upper = Schedule(chain.alpha_bar[: k + 1], chain.times[: k + 1])
    how = {"noise": lambda t: z, "sigma": "beta_tilde"}
    denoise = pigdm(prior, COSINE, SEEN, chain=upper)
    plain = next(iter(random(prior, x, upper, **how))).x
    moved = next(iter(random(denoise, x, upper, **how))).x
    torch.testing.assert_close(moved, plain + move, rtol=0, atol=1e-9)


def test_an_estimate_that_is_held_is_clipped_and_has_its_derivative() -> None:
    prior = gaussian(COSINE, MEAN, COVARIANCE)
    bound = partial(clipped, schedule=COSINE, limit=0.3)
    x, time = normals(9, 6, D), torch.tensor(60.0)
    start = x.clone().requires_grad_()
    found, free = held(prior, bound)(start, time), prior(start, time)
    wanted = bound(prior)(x, time)
    assert float((wanted.x0.abs() == 0.3).double().mean()) > 0.3
    torch.testing.assert_close(found.x0.detach(), wanted.x0)
    torch.testing.assert_close(found.eps.detach(), wanted.eps)
    gradients = [torch.autograd.grad(one.x0.square().sum(), start)[0] for one in (found, free)]
    factor = wanted.x0 / free.x0.detach()
    weighted = torch.autograd.grad((prior(start, time).x0.square() * factor).sum(), start)[0]
    torch.testing.assert_close(gradients[0], weighted)
    assert not torch.allclose(gradients[0], gradients[1])


POINTS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.3]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "off"),
    [("mmps", 0.1), ("pigdm", 0.05), ("diffpir", 0.15), ("published", 0.15), ("dps", 0.05)],
)
def test_the_shares_of_finitely_many_points_are_those_of_the_posterior(
    name: str, off: float
) -> None:
    """The first number is seen, with much noise; what is off at most is their bias."""
    count, sigma = 4000, 1.0
    seen = Observed(torch.tensor([[0.5]], dtype=torch.float64), lambda x: x[:, :1], sigma)
    chain = even_angles(ANGLE, 60)
    prior = finite_set(ANGLE, POINTS, WEIGHTS)
    schedule = chain if name in BY_THEIR_CHAIN else ANGLE
    denoise = (METHODS | BY_THEIR_CHAIN)[name](prior, schedule, seen)
    noise = lambda t: normals(100 + t, count, 2)  # noqa: E731
    found = last(ddim(denoise, normals(8, count, 2), chain, noise=noise, eta=1.0))
    nearest = torch.cdist(found, POINTS).argmin(dim=1)
    shares = torch.bincount(nearest, minlength=3) / count
    weight = WEIGHTS * (-0.5 * (0.5 - POINTS[:, 0]).square() / sigma**2).exp()
    exact = weight / weight.sum()
    assert float((exact - WEIGHTS).abs().max()) > 0.1  # what is seen does say something
    assert float((shares - exact).abs().max()) < off


@pytest.mark.parametrize("name", [*METHODS, "dps"])
def test_each_image_is_restored_by_itself(name: str) -> None:
    prior = gaussian(COSINE, MEAN, COVARIANCE)
    x, time = normals(9, 3, D), torch.tensor(90.0)
    method = (METHODS | {"dps": dps})[name]
    together = method(prior, COSINE, SEEN)(x, time).x0
    alone = [method(prior, COSINE, SEEN)(one[None], time).x0 for one in x]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_an_operator_need_not_be_linear(name: str) -> None:
    """x³ is seen without noise to speak of: the samples have that, where the prior allows it."""
    prior = gaussian(ANGLE, MEAN, COVARIANCE + 0.5 * torch.eye(D, dtype=torch.float64))
    seen = Observed((TRUTH**3)[None], lambda x: x**3, 0.01)
    denoise = (METHODS | {"mmps": lambda d, s, o: mmps(d, s, o, iterations=8)})[name](
        prior, ANGLE, seen
    )
    found = last(ddim(denoise, normals(10, 20, D), even_angles(ANGLE, 100)))
    assert float((found**3 - seen.y).abs().median()) < 0.03


def test_a_negative_sigma_is_refused() -> None:
    for sigma in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma"):
            Observed(SEEN.y, SEEN.operator, sigma)
