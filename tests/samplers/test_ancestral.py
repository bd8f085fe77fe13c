"""Greedy and random sampling against the exact law of their chains."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oracle import (
    assert_moments,
    chain,
    finite_set,
    gaussian,
    generic_covariance,
    normals,
    probes,
)
from unraze.denoiser import Denoiser, Prediction, clipped
from unraze.process import mu
from unraze.samplers import Step, even_angles, even_times, greedy, last, random
from unraze.schedule import Schedule, angle, cosine, from_variances, linear, zero_terminal

MEAN = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(5, [0.004, 0.3, 2.0])

SCHEDULES = {
    "full": linear(40),
    "sub, whole": even_times(linear(), 12),
    "sub, by angle": even_angles(cosine(), 15),
    "ends at nothing": angle(20),
    "uneven": linear().keep([0, 1, 2, 50, 51, 400, 999, 1000]),
}


def _half_beta(schedule: Schedule) -> Tensor:
    return 0.5 * schedule.beta


def _array(schedule: Schedule) -> Tensor:
    return torch.linspace(0.05, 0.6, schedule.steps + 1, dtype=torch.float64)


SIGMAS: dict[str, tuple[Callable[[Schedule], object], Callable[[Schedule], Tensor]]] = {
    # what the sampler is given, and the σ_t that it stands for, from ᾱ alone
    "beta": (
        lambda s: "beta",
        lambda s: (
            torch.cat([torch.zeros(1), (1 - (s.alpha_bar[1:] / s.alpha_bar[:-1]) ** 2)])
            .clamp(min=0)
            .sqrt()
        ),
    ),
    "beta_tilde": (
        lambda s: "beta_tilde",
        lambda s: torch.cat(
            [
                torch.zeros(1),
                (1 - (s.alpha_bar[1:] / s.alpha_bar[:-1]) ** 2)
                * (1 - s.alpha_bar[:-1] ** 2)
                / (1 - s.alpha_bar[1:] ** 2),
            ]
        ).sqrt(),
    ),
    "array": (_array, _array),
    "list": (lambda s: _array(s).tolist(), _array),
    "function": (lambda s: _half_beta, _half_beta),
    "zero": (lambda s: torch.zeros(s.steps + 1), lambda s: torch.zeros(s.steps + 1)),
}


def _affine(
    run: Callable[[Tensor, Callable[[int], Tensor]], Tensor], steps: int, d: int
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a chain that is affine in (x_T, z_T, …, z_1), without sampling."""
    out = run(*probes(d, steps))
    columns = out[1:] - out[0]
    return out[0], columns.T @ columns


@pytest.mark.parametrize("name", SCHEDULES)
def test_greedy_has_the_moments_of_its_recursion(name: str) -> None:
    schedule = SCHEDULES[name]
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    mean, covariance = chain(schedule, MEAN, COVARIANCE)
    exact = _affine(lambda x, noise: last(greedy(denoise, x, schedule)), schedule.steps, 3)
    torch.testing.assert_close(exact[0], mean, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(exact[1], covariance, rtol=1e-9, atol=1e-11)
    if schedule.alpha_bar[-1] > 0:
        assert_moments(last(greedy(denoise, normals(1, 20_000, 3), schedule)), mean, covariance)


@pytest.mark.parametrize("final_noise", [False, True])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_random_has_the_moments_of_its_recursion(name: str, sigma: str, final_noise: bool) -> None:
    schedule, (given, values) = SCHEDULES[name], SIGMAS[sigma]
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    mean, covariance = chain(
        schedule, MEAN, COVARIANCE, sigma=values(schedule).double(), final_noise=final_noise
    )

    def run(x: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        return last(
            random(
                denoise, x, schedule, noise=noise, sigma=given(schedule), final_noise=final_noise
            )
        )

    exact = _affine(run, schedule.steps, 3)
    torch.testing.assert_close(exact[0], mean, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(exact[1], covariance, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("final_noise", [False, True])
@pytest.mark.parametrize("sigma", ["beta", "beta_tilde", "array", "function"])
@pytest.mark.parametrize("name", ["full", "sub, whole"])
def test_random_chains_land_with_the_moments_of_their_recursion(
    name: str, sigma: str, final_noise: bool
) -> None:
    schedule, (given, values) = SCHEDULES[name], SIGMAS[sigma]
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    samples = last(
        random(
            gaussian(schedule, MEAN, COVARIANCE),
            x,
            schedule,
            noise=lambda t: torch.randn(20_000, 3, generator=generator, dtype=torch.float64),
            sigma=given(schedule),
            final_noise=final_noise,
        )
    )
    sigmas = values(schedule).double()
    moments = chain(schedule, MEAN, COVARIANCE, sigma=sigmas, final_noise=final_noise)
    assert_moments(samples, *moments)


@pytest.mark.parametrize("steps", [1000, 37])
def test_greedy_ends_at_the_terminal_signal_times_its_start_for_standard_normal_data(
    steps: int,
) -> None:
    schedule = even_times(linear(), steps)
    x = normals(2, 16, 3)
    denoise = gaussian(schedule, torch.zeros(3).double(), torch.eye(3).double())
    torch.testing.assert_close(
        last(greedy(denoise, x, schedule)), schedule.alpha_bar[-1] * x, rtol=1e-11, atol=0
    )


def test_random_with_sigma_beta_keeps_standard_normal_data() -> None:
    # Ho et al. 2020, section 3.2: σ = β is right for standard normal data, so with the final noise
    # the variance stays at 1 whatever the steps
    schedule = even_times(linear(), 10)
    denoise = gaussian(schedule, torch.zeros(2).double(), torch.eye(2).double())

    def run(x: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        return last(random(denoise, x, schedule, noise=noise, final_noise=True))

    mean, covariance = _affine(run, 10, 2)
    torch.testing.assert_close(mean, torch.zeros(2).double())
    torch.testing.assert_close(covariance, torch.eye(2).double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("final_noise", [False, True])
def test_greedy_is_random_with_no_noise(final_noise: bool) -> None:
    schedule = linear(50)
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    x = normals(3, 8, 3)

    def never(t: int) -> Tensor:
        raise AssertionError("noise was drawn")

    silent = random(
        denoise, x, schedule, noise=never, sigma=torch.zeros(51), final_noise=final_noise
    )
    assert torch.equal(last(silent), last(greedy(denoise, x, schedule)))


@pytest.mark.parametrize("sigma", ["beta", "beta_tilde", "learned"])
def test_a_share_of_sigma_is_that_much_of_the_noise(sigma: str) -> None:
    schedule = linear(50)
    plain, x = gaussian(schedule, MEAN, COVARIANCE), normals(3, 8, 3)

    def denoise(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        said = plain(x_t, t, previous=previous)
        return Prediction(said.x0, said.eps, torch.full_like(x_t, 0.3))

    def drawn(share: float) -> Tensor:
        how = {"sigma": sigma, "share": share}
        return last(random(denoise, x, schedule, noise=lambda t: normals(t, 8, 3), **how))

    # all is linear in the noise, and the noise in the share
    none, half, whole = drawn(0.0), drawn(0.5), drawn(1.0)
    torch.testing.assert_close(half, (none + whole) / 2)
    assert torch.equal(none, last(greedy(denoise, x, schedule)))
    assert not torch.allclose(none, whole)


def test_a_share_of_no_noise_draws_none_and_one_outside_of_0_to_1_is_refused() -> None:
    schedule, x = linear(10), normals(0, 1, 3)
    denoise = gaussian(schedule, MEAN, COVARIANCE)

    def never(t: int) -> Tensor:
        raise AssertionError("noise was drawn")

    last(random(denoise, x, schedule, noise=never, share=0.0, final_noise=True))
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="0, greedy, to 1"):
            last(random(denoise, x, schedule, noise=never, share=share))


def test_every_step_of_greedy_is_the_mu_of_the_text() -> None:
    schedule = even_times(linear(), 20)
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    x = normals(4, 5, 3)
    for t, step in zip(range(20, 0, -1), greedy(denoise, x, schedule), strict=True):
        eps = denoise(x, schedule.times[t]).eps
        step_noise = (1 - (schedule.alpha_bar[t] / schedule.alpha_bar[t - 1]) ** 2).sqrt() / (
            1 - schedule.alpha_bar[t] ** 2
        ).sqrt()
        torch.testing.assert_close(step.x, mu(schedule, x, t, step_noise * eps), rtol=1e-9, atol=0)
        assert step.t == float(schedule.times[t - 1])
        x = step.x


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["greedy", "beta", "beta_tilde"])
def test_one_point_is_recovered_exactly(schedule: Schedule, name: str) -> None:
    point = torch.tensor([[0.25, -1.0, 0.7]], dtype=torch.float64)
    denoise = finite_set(schedule, point)
    x = normals(6, 32, 3)
    steps = (
        greedy(denoise, x, schedule)
        if name == "greedy"
        else random(denoise, x, schedule, noise=lambda t: normals(t, 32, 3), sigma=name)
    )
    assert torch.equal(last(steps), point.expand(32, 3))


def test_the_final_noise_of_one_point_is_sigma_1() -> None:
    schedule = linear(30)
    denoise = finite_set(schedule, torch.zeros(1, 3).double())
    steps = random(
        denoise, normals(7, 4, 3), schedule, noise=lambda t: normals(t, 4, 3), final_noise=True
    )
    # t = 1 is the noise of step 1, of size σ_1 = β_1
    torch.testing.assert_close(last(steps), schedule.beta[1] * normals(1, 4, 3))


@pytest.mark.parametrize("sigma", ["beta", "beta_tilde"])
def test_points_are_drawn_with_their_shares(sigma: str) -> None:
    points = torch.tensor([[1.0, 1.0], [-1.0, 0.5], [0.2, -0.9], [0.9, -0.2]], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    schedule = even_times(linear(), 250)
    n = 4000
    generator = torch.Generator().manual_seed(8)
    samples = last(
        random(
            finite_set(schedule, points, weights),
            torch.randn(n, 2, generator=generator, dtype=torch.float64),
            schedule,
            noise=lambda t: torch.randn(n, 2, generator=generator, dtype=torch.float64),
            sigma=sigma,
        )
    )
    distance, nearest = torch.cdist(samples, points).min(1)
    assert distance.max() < 1e-6
    shares = torch.bincount(nearest, minlength=4) / n
    error = (weights * (1 - weights) / n).sqrt()
    assert ((shares - weights).abs() <= 5 * error).all(), shares


def test_noise_is_asked_for_once_a_step_by_the_number_of_the_step() -> None:
    schedule = even_times(linear(), 6)
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    asked: list[int] = []

    def noise(t: int) -> Tensor:
        asked.append(t)
        return torch.zeros(2, 3, dtype=torch.float64)

    for final_noise, expected in ((False, [6, 5, 4, 3, 2]), (True, [6, 5, 4, 3, 2, 1])):
        asked.clear()
        last(random(denoise, normals(0, 2, 3), schedule, noise=noise, final_noise=final_noise))
        assert asked == expected


def test_the_last_estimate_is_passed_on() -> None:
    schedule = even_times(linear(), 5)
    exact = clipped(gaussian(schedule, MEAN, COVARIANCE), schedule, limit=0.5)
    seen: list[Tensor | None] = []

    def watching(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        seen.append(previous)
        return exact(x_t, t, previous=previous)

    watched: Denoiser = watching
    for run in (
        greedy(watched, normals(0, 2, 3), schedule),
        random(watched, normals(0, 2, 3), schedule, noise=lambda t: normals(t, 2, 3)),
    ):
        seen.clear()
        steps: list[Step] = list(run)
        assert seen[0] is None
        assert len(seen) == len(steps) == 5
        for previous, step in zip(seen[1:], steps, strict=False):
            assert previous is step.prediction.x0
        assert max(float(step.prediction.x0.abs().max()) for step in steps) <= 0.5


def test_a_schedule_that_ends_at_nothing_forgets_its_start() -> None:
    schedule = zero_terminal(linear(100))
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    first = next(greedy(denoise, 1e6 * normals(0, 4, 3), schedule)).x
    torch.testing.assert_close(first, (schedule.alpha_bar[-2] * MEAN).expand(4, 3))


@pytest.mark.parametrize(
    ("sigma", "says"),
    [
        ("gamma", "gamma"),
        ([0.1] * 10, r"\(11,\)"),
        ([0.1] * 10 + [-0.1], "negative"),
        ([0.1] * 10 + [float("nan")], "finite"),
        ([0.1] * 10 + [float("inf")], "finite"),
        (lambda s: s.beta[1:], r"\(11,\)"),
    ],
)
def test_a_sigma_that_will_not_do_is_refused(sigma: object, says: str) -> None:
    schedule = linear(10)
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    steps = random(
        denoise, normals(0, 1, 3), schedule, noise=lambda t: normals(t, 1, 3), sigma=sigma
    )
    with pytest.raises(ValueError, match=says):
        last(steps)


def test_last_refuses_a_sampler_without_steps() -> None:
    with pytest.raises(ValueError, match="no step"):
        last(iter(()))


def test_a_step_variance_of_one_is_sampled_through() -> None:
    # Ho's β_T = 1 destroys everything in one step: α_T = 0, and μ must not divide by it
    schedule = from_variances([0.1, 0.2, 1.0])
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    x = last(random(denoise, normals(0, 4, 3), schedule, noise=lambda t: normals(t, 4, 3)))
    assert torch.isfinite(x).all()
