"""The text's two losses and the general one: exact expectations, and the papers' formulas."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from oracle import normals
from unraze.config import LossConfig
from unraze.denoiser import Prediction, emission, from_x0, predict
from unraze.loss import (
    WEIGHTINGS,
    draw_times,
    four_variable,
    reduced,
    stratify,
    weighted,
    weighting,
)
from unraze.process import destroy_at
from unraze.schedule import Schedule, angle, cosine, linear, zero_terminal

TARGETS = ["eps_step", "eps", "x0", "v", "edm"]


class Small(nn.Module):
    """A nonlinear ε_θ(x, t) of d values with random weights, float64."""

    def __init__(self, d: int, seed: int = 0) -> None:
        super().__init__()
        self.into = nn.Parameter(0.4 * normals(seed, d + 1, 4))
        self.out = nn.Parameter(0.5 * normals(seed + 1, 4, d))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = (t.to(x.dtype) / 40).reshape(-1, 1)
        return torch.tanh(torch.cat([x, time], 1) @ self.into) @ self.out


def _gradients(network: nn.Module, loss: object, *noises: Tensor) -> Tensor:
    """The gradient of the loss of each noise alone (N, number of weights)."""
    weights = {k: v.detach() for k, v in network.named_parameters()}

    def of_one(w: dict[str, Tensor], *noise: Tensor) -> Tensor:
        def eps_theta(x: Tensor, t: Tensor) -> Tensor:
            return functional_call(network, w, (x, t))

        return loss(eps_theta, *(n[None] for n in noise)).sum()  # type: ignore[operator]

    each = vmap(grad(of_one), in_dims=(None, *[0] * len(noises)))(weights, *noises)
    return torch.cat([g.flatten(1) for g in each.values()], 1)


def _both_gradients(
    schedule: Schedule, t: int, x0: Tensor, four: tuple[Tensor, Tensor], two: Tensor
) -> tuple[Tensor, Tensor]:
    network, step = Small(x0.numel()), torch.tensor([t])
    picture = x0.reshape(1, -1)
    # the checks of t read its value, which a vmapped tensor has not: t is one for all here
    g4 = _gradients(network, lambda f, a, b: four_variable(f, schedule, picture, step, a, b), *four)
    g2 = _gradients(network, lambda f, e: reduced(f, schedule, picture, step, e), two)
    return g4, g2


@pytest.mark.parametrize("t", [1, 2, 7, 25, 40])
def test_the_two_losses_of_the_text_agree_in_the_mean_exactly(t: int) -> None:
    # one value an image, so that Gauss-Hermite quadrature gives each expectation to ten digits:
    # E L₄ = (β_t/β̄_t)² E L₂ + (α_t β̄_{t-1}/β̄_t)² d and E g₄ = (β_t/β̄_t)² E g₂
    schedule, x0 = linear(40), torch.tensor([0.7], dtype=torch.float64)
    z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(64))
    w = w / w.sum()
    before, step = (v.reshape(-1, 1) for v in torch.meshgrid(z, z, indexing="ij"))
    ww = torch.outer(w, w).flatten()
    one = z.reshape(-1, 1)

    a, a_before = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[t - 1])
    ratio2 = (1 - (a / a_before) ** 2) / (1 - a**2)  # (β_t/β̄_t)²
    constant = (a / a_before) ** 2 * (1 - a_before**2) / (1 - a**2)

    network = Small(1)
    with torch.no_grad():
        n4, n2 = len(before), len(one)
        l4 = four_variable(network, schedule, x0.expand(n4, 1), torch.full((n4,), t), before, step)
        l2 = reduced(network, schedule, x0.expand(n2, 1), torch.full((n2,), t), one)
    mean4, mean2 = float(ww @ l4), float(w @ l2)
    assert mean4 == pytest.approx(ratio2 * mean2 + constant, rel=1e-8)

    g4, g2 = _both_gradients(schedule, t, x0, (before, step), one)
    torch.testing.assert_close(ww @ g4, ratio2 * (w @ g2), rtol=1e-6, atol=1e-8)

    # g₄ less its conditional mean (β_t/β̄_t)² g₂: its covariance is larger in every direction
    def covariance(g: Tensor, p: Tensor) -> Tensor:
        g = g - p @ g
        return g.T @ (p[:, None] * g)

    more = covariance(g4, ww) - covariance(ratio2 * g2, w)
    assert torch.linalg.eigvalsh(more).min() > -1e-7 * more.abs().max().clamp(min=1e-6)
    if t == 1:  # ε̄_0 has no weight there: the two are one
        assert more.abs().max() < 1e-8
    else:
        assert more.trace() > 0.01 * covariance(ratio2 * g2, w).trace()


@pytest.mark.parametrize("t", [2, 12, 40])
def test_the_two_losses_of_the_text_agree_in_the_mean_of_many_draws(t: int) -> None:
    # three values an image: five standard errors
    n, schedule = 8000, linear(40)
    x0 = normals(9, 3)
    ratio2 = float((schedule.beta[t] / schedule.beta_bar[t]) ** 2)
    g4, g2 = _both_gradients(
        schedule, t, x0, (normals(1, n, 3), normals(2, n, 3)), normals(3, n, 3)
    )
    g2 = ratio2 * g2
    error = ((g4.var(0) + g2.var(0)) / n).sqrt()
    assert ((g4.mean(0) - g2.mean(0)).abs() <= 5 * error).all()
    assert float(g4.var(0).sum()) > 1.05 * float(g2.var(0).sum())


def test_the_four_variable_loss_reads_like_its_formula() -> None:
    schedule, t = linear(40), torch.tensor([1, 5, 40])
    x0, before, step = (normals(i, 3, 2, 4, 4) for i in range(3))
    asked = {}

    def eps_theta(x: Tensor, at: Tensor) -> Tensor:
        asked.update(x=x, t=at)
        return 0.5 * x

    got = four_variable(eps_theta, schedule, x0, t, before, step)
    for i, at in enumerate([1, 5, 40]):
        # the same x_t, made by t - 1 steps at once and then one
        a, b = (float(schedule.alpha_bar[k]) for k in (at - 1, at))
        x = a * x0[i] + math.sqrt(1 - a**2) * before[i]
        x = b / a * x + math.sqrt(1 - (b / a) ** 2) * step[i]
        torch.testing.assert_close(asked["x"][i], x, rtol=1e-9, atol=1e-9)
        assert float(got[i]) == pytest.approx(float((step[i] - 0.5 * x).square().sum()), rel=1e-9)
    assert asked["t"] is t


def test_a_perfect_network_has_no_reduced_loss_and_the_constant_of_the_other() -> None:
    schedule, d, n = linear(40), 5, 20_000
    x0 = normals(7, 1, d).expand(n, d)
    for at in (1, 3, 40):
        t = torch.full((n,), at)
        ratio, a, b = schedule.beta[at] / schedule.beta_bar[at], *schedule.at(t[:1])

        def knows_x0(
            x: Tensor, t: Tensor, ratio: Tensor = ratio, a: Tensor = a, b: Tensor = b
        ) -> Tensor:
            return ratio * (x - a * x0) / b

        assert float(reduced(knows_x0, schedule, x0, t, normals(1, n, d)).max()) < 1e-18
        l4 = four_variable(knows_x0, schedule, x0, t, normals(2, n, d), normals(3, n, d))
        constant = d * float((schedule.alpha[at] * schedule.beta_bar[at - 1] / b) ** 2)
        assert abs(float(l4.mean()) - constant) <= 5 * float(l4.std()) / math.sqrt(n) + 1e-12


@pytest.mark.parametrize("t", [0, -1, 41])
def test_a_step_that_is_none_is_refused(t: int) -> None:
    x, at = normals(0, 1, 2), torch.tensor([t])
    with pytest.raises(ValueError, match=f"t = {t}"):
        four_variable(lambda x, t: x, linear(40), x, at, x, x)
    with pytest.raises(ValueError, match=f"t = {t}"):
        reduced(lambda x, t: x, linear(40), x, at, x)


# the general loss


def _case(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor, Prediction]:
    n = len(t)
    x0, eps = 0.5 * normals(1, n, 2, 3, 3), normals(2, n, 2, 3, 3)
    x_t = destroy_at(*schedule.at(t), x0, eps)
    return x0, eps, from_x0(schedule, x_t, t, x0 + 0.3 * normals(3, n, 2, 3, 3))


def _of_the_papers(name: str, a: float, b: float, e: dict[str, float], c: LossConfig, sd: float):
    """Each paper's loss in the paper's own words; e holds mean squared errors of ε̄, x_0 and v."""
    snr = (a / b) ** 2
    match name:
        case "eps":  # Ho et al. 2020, eq. 14
            return e["eps"]
        case "x0":
            return e["x0"]
        case "v":  # Salimans & Ho 2022
            return e["v"]
        case "min-snr":  # Hang et al. 2023, section 3.4: for a network that predicts ε̄
            return min(snr, c.min_snr_gamma) / snr * e["eps"]
        case "p2":  # Choi et al. 2022, eq. 8
            return e["eps"] / (c.p2_k + snr) ** c.p2_gamma
        case "edm":  # Karras et al. 2022, table 1: λ(σ) ‖D - y‖²
            sigma = b / a
            return (sigma**2 + sd**2) / (sigma * sd) ** 2 * e["x0"]
    raise AssertionError(name)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_each_weighting_is_the_loss_of_its_paper_whatever_the_target(
    name: str, target: str
) -> None:
    config = LossConfig(weighting=name, target=target, min_snr_gamma=4.0, p2_k=0.7, p2_gamma=1.3)
    sigma_data = 0.6
    for schedule in (linear(), cosine()):
        t = torch.tensor([1.0, 60.0, 250.5, 600.0, 990.0], dtype=torch.float64)
        x0, eps, p = _case(schedule, t)
        got = weighted(p, x0, eps, schedule, t, config, sigma_data=sigma_data)
        assert got.shape == (5,)
        for i in range(5):
            a, b = (float(v[i]) for v in schedule.at(t))
            errors = {
                "eps": float((p.eps - eps)[i].square().mean()),
                "x0": float((p.x0 - x0)[i].square().mean()),
                "v": float((a * (p.eps - eps) - b * (p.x0 - x0))[i].square().mean()),
            }
            expected = _of_the_papers(name, a, b, errors, config, sigma_data)
            assert float(got[i]) == pytest.approx(expected, rel=1e-8)


def test_min_snr_bounds_the_clean_end_and_not_the_noisy_one() -> None:
    # the clamp that a peer shipped the wrong way round
    config, log_snr = LossConfig(min_snr_gamma=5.0), torch.linspace(-10, 10, 41).double()
    w = weighting("min-snr", log_snr, config)
    snr = log_snr.exp()
    assert (w <= 5.0).all()
    assert torch.equal(w[snr < 5], snr[snr < 5])
    assert (w[snr >= 5] == 5).all()
    # on top of the ε̄ loss it is 1 where there is noise, and falls where there is little
    torch.testing.assert_close((w / snr)[0], torch.ones(()).double())
    assert float((w / snr)[-1]) < 1e-3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("distance", ["l1", "huber"])
def test_other_distances_are_taken_in_the_target(distance: str, target: str) -> None:
    # with the weighting of the target's own name nothing multiplies the distance
    schedule, sigma_data = linear(), 0.6
    t = torch.tensor([5.0, 300.0, 900.0], dtype=torch.float64)
    x0, eps, p = _case(schedule, t)
    truth = emission(target, x0, eps, schedule, t, sigma_data=sigma_data)
    said = emission(target, p.x0, p.eps, schedule, t, sigma_data=sigma_data)
    e = (said - truth).abs().numpy()
    delta = 0.2
    expected = e if distance == "l1" else np.where(e <= delta, e**2 / 2, delta * (e - delta / 2))
    name = "eps" if target == "eps_step" else target
    config = LossConfig(weighting=name, target=target, distance=distance, huber_delta=delta)
    got = weighted(p, x0, eps, schedule, t, config, sigma_data=sigma_data).numpy()
    factor = np.ones(3)
    if target == "eps_step":
        factor = 1 / schedule.step_ratio(t).numpy() ** 2  # w/s
    np.testing.assert_allclose(got, factor * expected.reshape(3, -1).mean(1), rtol=1e-8)


@pytest.mark.parametrize("schedule", [angle(), zero_terminal(linear()), cosine()])
@pytest.mark.parametrize("parametrisation", ["v", "x0", "edm"])
@pytest.mark.parametrize("distance", ["l2", "l1", "huber"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_are_finite_at_the_ends_of_time(
    schedule: Schedule, parametrisation: str, distance: str, dtype: torch.dtype
) -> None:
    ends = draw_times(torch.tensor([0.0, 1 - 2**-53, 0.5]).double(), schedule, LossConfig())
    extreme = torch.tensor([1e-6 * 1000, 1.0, 1000.0], dtype=torch.float64)
    t = torch.cat([ends, extreme])
    x0, eps = normals(1, 6, 4).to(dtype), normals(2, 6, 4).to(dtype)
    x_t = destroy_at(*schedule.at(t), x0, eps)
    for name in WEIGHTINGS:
        raw = normals(3, 6, 4).to(dtype).requires_grad_()
        p = predict(parametrisation, raw, x_t, schedule, t, sigma_data=0.5)
        config = LossConfig(weighting=name, target=parametrisation, distance=distance)
        loss = weighted(p, x0, eps, schedule, t, config, sigma_data=0.5)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert (loss >= 0).all()
        assert torch.isfinite(raw.grad).all()


def test_plain_v_is_plain_v() -> None:
    # the default: w/s = 1, also where ᾱ = 0, so that the loss is the mean square of v - v̂
    schedule, t = angle(), torch.tensor([0.5, 400.0, 1000.0], dtype=torch.float64)
    x0, eps, raw = normals(1, 3, 6), normals(2, 3, 6), normals(3, 3, 6)
    a, b = (v.reshape(3, 1) for v in schedule.at(t))
    p = predict("v", raw, a * x0 + b * eps, schedule, t)
    got = weighted(p, x0, eps, schedule, t, LossConfig())
    torch.testing.assert_close(
        got, (raw - (a * eps - b * x0)).square().mean(1), rtol=1e-9, atol=1e-12
    )


def test_every_weighting_of_the_configuration_is_there() -> None:
    named, absent = get_args(LossConfig.model_fields["weighting"].annotation)
    assert absent is type(None)
    assert set(WEIGHTINGS) == set(get_args(named))


# times


def _theta(schedule: Schedule, t: Tensor) -> np.ndarray:
    a, b = schedule.at(t)
    return torch.atan2(b, a).numpy()


@pytest.mark.parametrize("schedule", [angle(), cosine(200), linear()])
def test_continuous_times_have_the_law_they_are_named_for(schedule: Schedule) -> None:
    u = torch.from_numpy(np.random.default_rng(3).random(5000))
    end = float(schedule.times[-1])
    uniform = draw_times(u, schedule, LossConfig(times="uniform"))
    assert stats.kstest(uniform.numpy(), stats.uniform(0, end).cdf).pvalue > 1e-3

    t = draw_times(u, schedule, LossConfig(times="logit-normal", times_mean=0.3, times_std=0.8))
    share = _theta(schedule, t) / (np.pi / 2)
    assert stats.kstest(np.log(share / (1 - share)), stats.norm(0.3, 0.8).cdf).pvalue > 1e-3

    t = draw_times(u, schedule, LossConfig(times="log-normal", times_mean=-1.2, times_std=1.0))
    sigma = np.tan(_theta(schedule, t))
    assert stats.kstest(np.log(sigma), stats.norm(-1.2, 1.0).cdf).pvalue > 1e-3

    for values in (uniform, t):
        assert values.dtype == torch.float64
        assert ((values > 0) & (values <= end)).all()


@pytest.mark.parametrize("steps", [2, 7, 300, 1000])
def test_whole_steps_are_uniform_over_1_to_T_exactly(steps: int) -> None:
    schedule = linear(steps)
    u = (torch.arange(8 * steps, dtype=torch.float64) + 0.5) / (8 * steps)
    t = draw_times(u, schedule, LossConfig(times="uniform", continuous=False))
    assert torch.equal(t, t.round())
    assert torch.bincount(t.long(), minlength=steps + 1).tolist() == [0] + [8] * steps


@settings(deadline=None)
@given(
    u=st.floats(0, 1, exclude_max=True),
    times=st.sampled_from(["uniform", "logit-normal", "log-normal"]),
    continuous=st.booleans(),
    mean=st.floats(-5, 5),
    std=st.floats(0.01, 5),
)
def test_no_time_is_0_or_beyond_the_end(
    u: float, times: str, continuous: bool, mean: float, std: float
) -> None:
    schedule = angle(50)
    config = LossConfig(times=times, continuous=continuous, times_mean=mean, times_std=std)
    t = draw_times(torch.tensor([u, 0.0, 1 - 2**-53], dtype=torch.float64), schedule, config)
    assert ((t > 0) & (t <= 50)).all()
    if not continuous:
        assert torch.equal(t, t.round())
        assert (t >= 1).all()


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31))
def test_stratified_numbers_hit_each_part_once_in_the_given_order(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    order = torch.from_numpy(generator.permutation(count))
    u = stratify(torch.from_numpy(generator.random(count)), order)
    assert ((u >= 0) & (u < 1)).all()
    assert torch.equal((u * count).floor().long(), order)


def test_a_stratified_number_is_uniform_on_its_own() -> None:
    generator = np.random.default_rng(4)
    first = [
        float(
            stratify(
                torch.from_numpy(generator.random(16)), torch.from_numpy(generator.permutation(16))
            )[0]
        )
        for _ in range(2000)
    ]
    assert stats.kstest(first, stats.uniform.cdf).pvalue > 1e-3
