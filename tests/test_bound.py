"""The variational bound against Gaussian algebra on the whole chain, written as one big matrix."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor

from oracle import finite_set, gaussian, generic_covariance, normals
from unraze import bound
from unraze.process import destroy, log_variance
from unraze.samplers import even_angles, even_times
from unraze.schedule import Schedule, angle, cosine, from_variances, linear, zero_terminal

MEAN = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(5, [0.05, 0.3, 2.0])
D = 3

SCHEDULES = {
    "full": linear(40),
    "cosine": cosine(12),
    "sub, whole": even_times(linear(), 7),
    "sub, by angle": even_angles(cosine(), 9),
    "ends at nothing": angle(8),
    "one step": from_variances([0.7]),
    "two steps": zero_terminal(linear()).keep([0, 300, 1000]),
}
SHARES = {"beta": 1.0, "beta_tilde": 0.0, "between": 0.3}


def _sigmas2(schedule: Schedule, share: float) -> np.ndarray:
    """σ_t² (T+1,) from ᾱ alone; β̃_1 is β̃_2's."""
    a = schedule.alpha_bar.numpy()
    beta2 = 1 - (a[1:] / a[:-1]) ** 2
    tilde2 = beta2 * (1 - a[:-1] ** 2) / (1 - a[1:] ** 2)
    tilde2[0] = tilde2[1] if len(tilde2) > 1 else beta2[0]
    return np.concatenate([[0.0], beta2**share * tilde2 ** (1 - share)])


def _forward(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (x_0, x_1, …, x_T) as x_t = α_t x_{t-1} + β_t ε_t makes them."""
    n, a = schedule.steps + 1, schedule.alpha_bar.numpy()
    maps = np.zeros((n, D, n * D))  # rows: x_t; columns: x_0 less its mean, whitened, then ε_1 …
    maps[0, :, :D] = np.linalg.cholesky(COVARIANCE.numpy())
    for t in range(1, n):
        alpha = a[t] / a[t - 1]
        maps[t] = alpha * maps[t - 1]
        maps[t, :, t * D : (t + 1) * D] = math.sqrt(1 - alpha**2) * np.eye(D)
    flat = maps.reshape(n * D, n * D)
    return np.concatenate([a_t * MEAN.numpy() for a_t in a]), flat @ flat.T


def _kernel(schedule: Schedule, t: int) -> tuple[np.ndarray, np.ndarray]:
    """A and b with μ(x_t, E[x_0|x_t]) = A x_t + b, by regression in the forward law.

    Exact x̂_0 makes μ the mean of q(x_{t-1}|x_t).
    """
    mean, covariance = _forward(schedule)
    now, before = slice(t * D, (t + 1) * D), slice((t - 1) * D, t * D)
    a = covariance[before, now] @ np.linalg.inv(covariance[now, now])
    return a, mean[before] - a @ mean[now]


def _reverse(schedule: Schedule, sigma2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (x_0, …, x_T) as the model's chain makes them from N(0, 1)."""
    n = schedule.steps + 1
    # every x_t is affine in (x_T, z_T, …, z_1): rows of `maps` hold the coefficients
    maps, means = np.zeros((n, D, n * D)), np.zeros((n, D))
    maps[-1, :, :D] = np.eye(D)
    for t in range(schedule.steps, 0, -1):
        a, b = _kernel(schedule, t)
        maps[t - 1] = a @ maps[t]
        maps[t - 1, :, t * D : (t + 1) * D] += math.sqrt(sigma2[t]) * np.eye(D)
        means[t - 1] = a @ means[t] + b
    flat = maps.reshape(n * D, n * D)
    return means.reshape(-1), flat @ flat.T


def _kl(p: tuple[np.ndarray, np.ndarray], q: tuple[np.ndarray, np.ndarray]) -> float:
    inverse = np.linalg.inv(q[1])
    off = q[0] - p[0]
    return 0.5 * float(
        np.trace(inverse @ p[1])
        - len(off)
        + off @ inverse @ off
        + np.linalg.slogdet(q[1])[1]
        - np.linalg.slogdet(p[1])[1]
    )


def _points(schedule: Schedule, t: int) -> tuple[Tensor, Tensor]:
    """x_0 and x_t (4D, D) whose equal-weighted mean of any quadratic function is exact."""
    n = 2 * D
    z = torch.cat([torch.eye(n), -torch.eye(n)]).double() * math.sqrt(n)
    eigenvalues, axes = torch.linalg.eigh(COVARIANCE)
    x0 = MEAN + (z[:, :D] * eigenvalues.sqrt()) @ axes.T
    return x0, destroy(schedule, x0, t, z[:, D:])


def _terms(schedule: Schedule, share: float) -> list[float]:
    """Decoder, steps 2 … T, prior: expectations over data and noise, exact."""
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    out = []
    for t in range(1, schedule.steps + 1):
        x0, x_t = _points(schedule, t)
        x0_hat = denoise(x_t, schedule.times[t]).x0
        log_var = log_variance(schedule, t, torch.full_like(x0, share))
        if t == 1:
            term = bound.continuous_decoder(x0, x0_hat, log_var)
        else:
            term = bound.step(schedule, x0, t, x0_hat, log_var)
        out.append(float(term.mean()))
    return [*out, float(bound.prior(schedule, x0).mean())]


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_term_is_its_closed_form_on_a_gaussian(name: str, share: float) -> None:
    schedule = SCHEDULES[name]
    got = _terms(schedule, share)
    sigma2 = _sigmas2(schedule, share)
    mean, covariance = _forward(schedule)
    for t in range(1, schedule.steps + 1):
        a, b = _kernel(schedule, t)
        if t == 1:
            # -E ln N(x_0; A x_1 + b, σ²): the residual's covariance in the forward law
            joint = covariance[: 2 * D, : 2 * D]
            row = np.concatenate([np.eye(D), -a], axis=1)
            square = np.trace(row @ joint @ row.T)
            expected = 0.5 * (square / sigma2[1] + D * math.log(2 * math.pi * sigma2[1]))
        else:
            # q(x_{t-1}|x_t,x_0) by conditioning the joint law, its mean G (x_t, x_0) + g
            given = np.r_[t * D : (t + 1) * D, 0:D]
            before = np.arange((t - 1) * D, t * D)
            inverse = np.linalg.inv(covariance[np.ix_(given, given)])
            gain = covariance[np.ix_(before, given)] @ inverse
            true = covariance[np.ix_(before, before)] - gain @ covariance[np.ix_(given, before)]
            # the two means differ by off (x_t, x_0) + a constant, zero in the mean
            off = gain - np.concatenate([a, np.zeros((D, D))], axis=1)
            bias = mean[before] - a @ mean[t * D : (t + 1) * D] - b
            square = bias @ bias + np.trace(off @ covariance[np.ix_(given, given)] @ off.T)
            expected = 0.5 * (
                (np.trace(true) + square) / sigma2[t]
                - D
                + D * math.log(sigma2[t])
                - np.linalg.slogdet(true)[1]
            )
        assert got[t - 1] == pytest.approx(expected, rel=1e-7, abs=1e-9), t
    # KL(N(ᾱ_T x_0, β̄_T²) ‖ N(0, 1)) with E x_0² = m² + C
    left = float(schedule.alpha_bar[-1]) ** 2
    square = float(MEAN @ MEAN + COVARIANCE.trace())
    expected = 0.5 * (left * square - D * left - D * math.log(1 - left))
    assert got[-1] == pytest.approx(expected, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_terms_add_up_to_the_divergence_of_the_two_chains(name: str, share: float) -> None:
    # Σ terms = KL(q(x_0 … x_T) ‖ p(x_0 … x_T)) + H(q(x_0)), each chain one big Gaussian
    schedule = SCHEDULES[name]
    forward = _forward(schedule)
    reverse = _reverse(schedule, _sigmas2(schedule, share))
    entropy = 0.5 * (D * math.log(2 * math.pi * math.e) + float(torch.logdet(COVARIANCE)))
    total = sum(_terms(schedule, share))
    assert total == pytest.approx(_kl(forward, reverse) + entropy, rel=1e-6)
    # and it is a bound: never below -E ln p(x_0), which is never below the entropy
    marginal = (reverse[0][:D], reverse[1][:D, :D])
    exact = _kl((MEAN.numpy(), COVARIANCE.numpy()), marginal) + entropy
    assert total >= exact - 1e-9
    assert exact >= entropy - 1e-9


def test_more_steps_tighten_the_bound_to_the_entropy() -> None:
    entropy = 0.5 * (D * math.log(2 * math.pi * math.e) + float(torch.logdet(COVARIANCE)))
    # σ = β, right for data that vary more than the noise does
    gaps = [sum(_terms(angle(n), 1.0)) - entropy for n in (20, 80, 320)]
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0


# the decoder of bytes


def _log_var(sigma: float) -> Tensor:
    return torch.tensor(2 * math.log(sigma), dtype=torch.float64)


def test_the_decoder_integrates_the_normal_law_over_a_grey_level() -> None:
    levels = torch.tensor([0, 1, 77, 254, 255])
    for mean, sigma in [(0.1, 0.05), (-0.99, 0.004), (-0.396, 0.2), (1.02, 3.0)]:
        x0 = (levels.double() / 127.5 - 1).reshape(5, 1)
        got = bound.decoder(x0, torch.full_like(x0, mean), _log_var(sigma))
        for level, value in zip(levels.tolist(), got.tolist(), strict=True):
            x = level / 127.5 - 1
            low = -math.inf if level == 0 else x - 1 / 255
            high = math.inf if level == 255 else x + 1 / 255
            mass, _ = integrate.quad(stats.norm(mean, sigma).pdf, low, high, epsabs=0, epsrel=1e-10)
            if mass > 1e-280:
                assert value == pytest.approx(-math.log(mass), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("sigma", [1e-3, 0.01, 0.2, 5.0, 1e3])
def test_the_decoder_is_a_probability_over_all_grey_levels(sigma: float) -> None:
    x0 = (torch.arange(256).double() / 127.5 - 1).reshape(256, 1)
    for mean in (-1.0, -0.3, 0.0, 0.999, 1.5):
        nats = bound.decoder(x0, torch.full_like(x0, mean), _log_var(sigma))
        assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_decoder_is_exact_in_the_tails() -> None:
    # a hundred σ and more away: -ln P ≈ the density's exponent at the nearer edge, by Mills' ratio
    x0 = torch.tensor([[1.0 / 255]], dtype=torch.float64)
    for sigma in (0.01, 0.001):
        for side in (-1, 1):
            mean = x0 + side * 1.5
            got = float(bound.decoder(x0, mean, _log_var(sigma)))
            z = (1.5 - 1 / 255) / sigma
            expected = -stats.norm.logsf(z)
            assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_finite_at_the_extremes(dtype: torch.dtype) -> None:
    x0 = torch.tensor([[-1.0, 0.2, 1.0]]).to(dtype).expand(4, 3)
    for mean in (-2.0, 0.2, 3.0):
        for log_var in (-14.0, -5.0, 0.0, 9.0):
            m = torch.full_like(x0, mean).requires_grad_()
            s = torch.full_like(x0, log_var).requires_grad_()
            nats = bound.decoder(x0, m, s)
            nats.sum().backward()
            assert torch.isfinite(nats).all()
            assert (nats >= 0).all()
            assert torch.isfinite(m.grad).all()
            assert torch.isfinite(s.grad).all()


def test_the_gradient_of_the_decoder_is_the_derivative() -> None:
    x0 = torch.tensor([[-1.0, 77 / 127.5 - 1, 1.0]], dtype=torch.float64)
    mean = torch.tensor([[-0.9, -0.3, 0.95]], dtype=torch.float64, requires_grad=True)
    log_var = torch.tensor([[-4.0, -6.0, -3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, s: bound.decoder(x0, m, s), (mean, log_var))


# what goes with it


@pytest.mark.parametrize("t", [0, 1, 9, -1])
def test_a_step_that_is_none_is_refused(t: int) -> None:
    x = normals(0, 2, 3)
    with pytest.raises(ValueError, match=f"t = {t}"):
        bound.step(angle(8), x, t, x, x)


def test_steps_of_a_batch_are_those_of_its_images() -> None:
    schedule, t = linear(40), torch.tensor([2, 17, 40])
    x0, x0_hat, share = normals(1, 3, 2, 4), normals(2, 3, 2, 4), normals(3, 3, 2, 4)
    whole = bound.step(schedule, x0, t, x0_hat, log_variance(schedule, t, share))
    for i, at in enumerate(t.tolist()):
        rows = slice(i, i + 1)
        log_var = log_variance(schedule, at, share[rows])
        one = bound.step(schedule, x0[rows], at, x0_hat[rows], log_var)
        assert float(one) == pytest.approx(float(whole[i]), rel=1e-12)
    assert whole.dtype == torch.float64


def test_variances_lie_where_they_are_named() -> None:
    schedule = cosine(30)
    for t in (1, 2, 13, 30):
        one = torch.ones(1, 2, dtype=torch.float64)
        upper, lower = (log_variance(schedule, t, v * one).exp() for v in (1, 0))
        torch.testing.assert_close(upper, schedule.beta[t] ** 2 * one)
        torch.testing.assert_close(lower, schedule.beta_tilde[max(t, 2)] ** 2 * one)
        between = log_variance(schedule, t, 0.5 * one).exp()
        torch.testing.assert_close(between, (upper * lower).sqrt())


def test_bits_a_dimension() -> None:
    assert float(bound.bits(torch.tensor(10 * math.log(2)), 5)) == pytest.approx(2)


# the term of one training time, for a learned variance


def test_at_whole_times_the_unit_step_is_the_bound_s() -> None:
    schedule, t = linear(40), torch.tensor([1.0, 2.0, 17.0, 40.0, 1.0])
    x0 = (torch.randint(0, 256, (5, 1, 2, 2), generator=torch.Generator().manual_seed(0))).double()
    x0 = x0 / 127.5 - 1
    x0_hat, share = x0 + 0.02 * normals(2, 5, 1, 2, 2), normals(3, 5, 1, 2, 2)
    got = bound.unit_step(schedule, x0, t, x0_hat, share)
    for i, at in enumerate(t.long().tolist()):
        rows = slice(i, i + 1)
        log_var = log_variance(schedule, at, share[rows])
        if at == 1:
            expected = bound.decoder(x0[rows], x0_hat[rows], log_var)
        else:
            expected = bound.step(schedule, x0[rows], at, x0_hat[rows], log_var)
        assert float(got[i]) == pytest.approx(float(expected), rel=1e-9)


def test_between_whole_times_it_is_the_bound_of_the_schedule_with_those_two() -> None:
    schedule, t = cosine(40), 17.3
    x0, x0_hat, share = normals(1, 1, 4), normals(2, 1, 4), normals(3, 1, 4)
    got = bound.unit_step(schedule, x0, torch.tensor([t], dtype=torch.float64), x0_hat, share)
    sub = schedule.keep([0, t - 1, t, 40])
    expected = bound.step(sub, x0, 2, x0_hat, log_variance(sub, 2, share))
    assert float(got) == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize("schedule", [angle(1000), linear(), cosine(), zero_terminal(linear(50))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_unit_step_is_finite_at_all_times(schedule: Schedule, dtype: torch.dtype) -> None:
    last = schedule.steps
    t = torch.tensor([1e-6 * last, 0.4, 1, 1 + 1e-9, 1.5, 2, 2.5, last - 0.5, last]).double()
    x0 = (normals(1, len(t), 1, 4, 4).clamp(-1, 1) * 127.5).round().div(127.5).to(dtype)
    # as good as a network is: the error of v, of even size over all times
    x0_hat = x0 + 0.3 * schedule.at(t)[1].reshape(-1, 1, 1, 1).to(dtype) * normals(2, *x0.shape)
    for v in (-1.0, 0.0, 0.5, 1.0, 2.0):
        share = torch.full_like(x0, v).requires_grad_()
        nats = bound.unit_step(schedule, x0, t, x0_hat.to(dtype), share)
        nats.sum().backward()
        assert torch.isfinite(nats).all()
        assert (nats >= 0).all()
        assert torch.isfinite(share.grad).all()


@pytest.mark.parametrize("t", [2, 5, 33, 40])
def test_the_best_share_is_the_variance_of_the_posterior_without_x_0(t: int) -> None:
    # 1-D data N(0, s²), exact x̂_0: the best σ² is Var(x_{t-1}|x_t), from the 2×2 covariance
    schedule, s2 = linear(40), 0.3
    mean, covariance = torch.zeros(1).double(), torch.tensor([[s2]]).double()
    denoise = gaussian(schedule, mean, covariance)
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    x0 = math.sqrt(s2) * z[:, :1]
    x_t = destroy(schedule, x0, t, z[:, 1:])
    x0_hat = denoise(x_t, schedule.times[t]).x0

    def slope(value: float) -> float:
        share = torch.full((4, 1), value, dtype=torch.float64, requires_grad=True)
        bound.unit_step(schedule, x0, torch.full((4,), float(t)), x0_hat, share).sum().backward()
        return float(share.grad.sum())

    share = torch.full((1, 1), optimize.brentq(slope, -1, 2, xtol=1e-12), dtype=torch.float64)
    a, a_before = (float(schedule.alpha_bar[k]) for k in (t, t - 1))
    v_now, v_before = a**2 * s2 + 1 - a**2, a_before**2 * s2 + 1 - a_before**2
    shared = a / a_before * v_before
    expected = v_before - shared**2 / v_now
    learned = log_variance(schedule, t, share).exp()
    assert float(learned) == pytest.approx(expected, rel=1e-6)


def test_bytes_of_two_values_cost_their_bit() -> None:
    # data -1/3 or 1/3 with even odds, exact x̂_0: the bound tends to one bit with many
    # steps, the first small beside a grey level
    points = torch.tensor([[85 / 127.5 - 1], [170 / 127.5 - 1]], dtype=torch.float64)
    schedule, n = angle(1500), 400
    denoise = finite_set(schedule, points)
    x0 = points.repeat(n // 2, 1)
    total = bound.prior(schedule, x0)
    for t in range(1, schedule.steps + 1):
        x0_hat = denoise(destroy(schedule, x0, t, normals(t, n, 1)), schedule.times[t]).x0
        log_var = log_variance(schedule, t, torch.zeros_like(x0))
        if t == 1:
            total = total + bound.decoder(x0, x0_hat, log_var)
        else:
            total = total + bound.step(schedule, x0, t, x0_hat, log_var)
    value = bound.bits(total, 1)
    assert abs(float(value.mean()) - 1) < 5 * float(value.std()) / math.sqrt(n) + 0.02
