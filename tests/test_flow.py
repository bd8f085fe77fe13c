"""The density of the probability flow against that of Gaussians, and its order of convergence."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from oracle import finite_set, flow as exact_flow, gaussian, generic_covariance, normals
from unraze.denoiser import denoiser
from unraze.flow import log_density, log_normal, velocity, walk
from unraze.schedule import Schedule, angle, cosine, linear

MEAN = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(5, [0.01, 0.3, 2.0])


def _law(theta: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x(θ) = cos θ x_0 + sin θ ε̄."""
    a, b = math.cos(theta), math.sin(theta)
    return a * MEAN, a**2 * COVARIANCE + b**2 * torch.eye(3, dtype=torch.float64)


def _probes() -> Tensor:
    """All eight vectors of ±1, whose products average to the exact trace."""
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)


def _exact(schedule: Schedule, x: Tensor, theta: float) -> Tensor:
    """ln p of the exact flow of the Gaussian from N(0, 1) at θ_T, by its affine map."""
    end = float(schedule.alpha_bar[-1])
    a = math.cos(theta)
    basis = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    images = exact_flow(basis, MEAN, COVARIANCE, a, end)
    jacobian = (images[1:] - images[0]).T
    y = exact_flow(x, MEAN, COVARIANCE, a, end)
    normal = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    return normal.log_prob(y) + torch.linalg.slogdet(jacobian)[1]


def _averaged(schedule: Schedule, x: Tensor, theta: float, steps: int) -> Tensor:
    """ln p (N,), the trace exact by averaging over all probes."""
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    probes = _probes()
    rows = x.repeat_interleave(8, 0)
    each = log_density(denoise, schedule, rows, probes.repeat(len(x), 1), theta=theta, steps=steps)
    return each.reshape(-1, 8).mean(1)


@pytest.mark.parametrize("theta", [0.3, 0.9, 1.4])
def test_the_velocity_is_that_of_the_exact_flow(theta: float) -> None:
    schedule, x = angle(), normals(1, 8, 3)
    v, product = velocity(gaussian(schedule, MEAN, COVARIANCE), schedule, x, theta, _probes())
    h = 1e-5

    def moved(y: Tensor, by: float) -> Tensor:
        return exact_flow(y, MEAN, COVARIANCE, math.cos(theta), math.cos(theta + by))

    torch.testing.assert_close(v, (moved(x, h) - moved(x, -h)) / (2 * h), rtol=1e-7, atol=1e-8)
    # the trace of its Jacobian is d/dθ ½ ln det of the covariance
    log_det = [torch.logdet(_law(theta + s)[1]) / 2 for s in (-h, h)]
    assert float(product.mean()) == pytest.approx(float((log_det[1] - log_det[0]) / (2 * h)), 1e-6)


@pytest.mark.parametrize("schedule", [angle(), linear(), cosine(200)], ids=["angle", "lin", "cos"])
@pytest.mark.parametrize("theta", [0.002, 0.1])
def test_the_density_is_that_of_the_gaussian(schedule: Schedule, theta: float) -> None:
    mean, covariance = _law(theta)
    law = torch.distributions.MultivariateNormal(mean, covariance)
    x = law.mean + normals(3, 6, 3) @ torch.linalg.cholesky(covariance).T
    got = _averaged(schedule, x, theta, 64)
    torch.testing.assert_close(got, _exact(schedule, x, theta), rtol=0, atol=2e-5)
    # what begins as N(0, 1) at θ_T is the data's own law up to what ᾱ_T leaves: nothing, or 1 %
    slack = 1e-5 if schedule.alpha_bar[-1] == 0 else 0.1
    torch.testing.assert_close(got, law.log_prob(x), rtol=0, atol=slack)


def test_it_converges_with_order_four() -> None:
    schedule, theta = angle(), 0.01
    x = MEAN + normals(3, 4, 3) @ torch.linalg.cholesky(COVARIANCE).T
    exact = _exact(schedule, x, theta)
    errors = [
        float((_averaged(schedule, x, theta, n) - exact).abs().mean()) for n in (12, 24, 48, 96)
    ]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(4, abs=0.3), (errors, slopes)
    assert slopes[-2] == pytest.approx(4, abs=0.6), (errors, slopes)


def test_one_probe_is_right_in_the_mean() -> None:
    schedule, n = angle(), 2000
    signs = (normals(5, n, 3) > 0).double() * 2 - 1
    x = normals(4, 1, 3)
    rows = x.expand(n, 3)
    each = log_density(
        gaussian(schedule, MEAN, COVARIANCE), schedule, rows, signs, theta=0.01, steps=24
    )
    exact = float(_averaged(schedule, x, 0.01, 24))
    assert abs(float(each.mean()) - exact) < 5 * float(each.std()) / math.sqrt(n)
    assert float(each.std()) > 0.01


def test_densities_of_a_nonlinear_flow_integrate_to_one() -> None:
    # 1-D data -½ or ½: the trace is exact, and ∫ p dx = 1 is Liouville's theorem
    schedule = angle()
    points = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    x = torch.linspace(-3, 3, 3001, dtype=torch.float64).reshape(-1, 1)
    p = log_density(
        finite_set(schedule, points), schedule, x, torch.ones_like(x), theta=0.2, steps=48
    ).exp()
    assert float(torch.trapezoid(p, x.flatten())) == pytest.approx(1, abs=1e-4)
    a, b = math.cos(0.2), math.sin(0.2)
    mixture = sum(
        torch.distributions.Normal(a * m, b).log_prob(x.flatten()).exp() / 2 for m in (-0.5, 0.5)
    )
    torch.testing.assert_close(p, mixture, rtol=0, atol=1e-3)


def test_a_network_s_gradient_goes_through_all_of_its_denoiser() -> None:
    # v̂ = W x, written as a network: the trace is W's
    schedule = angle()
    weights = normals(1, 4, 4)

    class Linear(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return (x.flatten(1) @ weights.T).reshape(x.shape)

    probe = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4).reshape(16, 1, 2, 2)
    denoise = denoiser(Linear(), schedule, "v")
    with torch.no_grad():  # as an evaluation may be
        v, product = velocity(denoise, schedule, normals(2, 16, 1, 2, 2), 0.7, probe)
    assert float(product.mean()) == pytest.approx(float(weights.trace()), rel=1e-9)
    assert not v.requires_grad


def test_log_normal() -> None:
    x = normals(1, 3, 2, 2)
    expected = torch.distributions.Normal(0, 1).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(log_normal(x), expected)


@pytest.mark.parametrize(("theta", "steps"), [(0.0, 4), (1.6, 4), (-0.1, 4), (0.1, 0)])
def test_what_cannot_be_walked_is_refused(theta: float, steps: int) -> None:
    x = normals(0, 1, 3)
    with pytest.raises(ValueError, match=f"theta = {theta:g}, steps = {steps}"):
        next(walk(gaussian(angle(), MEAN, COVARIANCE), angle(), x, x, theta=theta, steps=steps))


def test_the_walk_ends_at_the_schedule_s_end() -> None:
    schedule, x = linear(), normals(0, 2, 3)
    steps = list(
        walk(
            gaussian(schedule, MEAN, COVARIANCE),
            schedule,
            x,
            torch.ones_like(x),
            theta=0.1,
            steps=5,
        )
    )
    assert len(steps) == 5
    assert steps[-1].theta == pytest.approx(float(schedule.theta[-1]), abs=1e-12)
