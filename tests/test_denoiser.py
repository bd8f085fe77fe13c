"""Every meaning of a network's output, there and back, and against its paper's own formula."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from oracle import finite_set, gaussian, generic_covariance, normals
from unraze.denoiser import (
    Prediction,
    clipped,
    denoiser,
    edm_input_scale,
    emission,
    from_x0,
    guided,
    predict,
    raw_output,
)
from unraze.process import destroy_at
from unraze.samplers import ddim, even_times, greedy, last
from unraze.schedule import SCHEDULES, Schedule, angle, cosine, linear, zero_terminal

PARAMETRISATIONS = ["eps_step", "eps", "x0", "v", "edm"]
MEAN = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(5, [0.04, 0.3, 2.0])

EVERY: dict[str, Schedule] = {name: make() for name, make in SCHEDULES.items()} | {
    "short": linear(7),
    "zero terminal": zero_terminal(linear()),
    "sub": linear().keep([0, 3, 40, 500.5, 1000]),
}


class Told(nn.Module):
    """A network that keeps what it was given and says `answer(x, t)`."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.calls: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, **more: Tensor) -> Tensor:
        self.calls.append({"x": x, "t": t, **more})
        return self.answer(x, t)


def _curved(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(2 * x + t.reshape(-1, *[1] * (x.ndim - 1)) / 300) + 0.3 * x


# there and back


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(EVERY)),
    part=st.floats(0.0, 1.0),
    whole=st.booleans(),
    sigma_data=st.floats(0.1, 3.0),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_predictions_convert_there_and_back(
    parametrisation: str, name: str, part: float, whole: bool, sigma_data: float, seed: int
) -> None:
    schedule = EVERY[name]
    end = float(schedule.times[-1])
    time = min(max(1.0, part * end), end)
    t = torch.tensor([round(time) if whole else time], dtype=torch.float64)
    a, b = schedule.at(t)
    if a < 1e-5 and (a == 0 or parametrisation.startswith("eps")):
        return
    x0, eps = normals(seed, 1, 2, 3, 4), normals(seed + 1, 1, 2, 3, 4)
    x_t = a * x0 + b * eps

    raw = emission(parametrisation, x0, eps, schedule, t, sigma_data=sigma_data)
    back = predict(parametrisation, raw, x_t, schedule, t, sigma_data=sigma_data)
    # norms: a single value may be near 0 by chance, and then has no relative error to speak of
    assert float((back.x0 - x0).norm() / x0.norm()) < 1e-10
    # x0 determines ε̄ only to rounding over β̄, as ε̄ determines x_0 only to rounding over ᾱ
    assert float((back.eps - eps).norm() / eps.norm()) < 1e-10
    again = emission(parametrisation, back.x0, back.eps, schedule, t, sigma_data=sigma_data)
    assert float((again - raw).norm() / raw.norm()) < 1e-10


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(EVERY)),
    part=st.floats(0.001, 1.0),
    sigma_data=st.floats(0.1, 3.0),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_whatever_the_network_says_a_prediction_explains_the_state(
    parametrisation: str, name: str, part: float, sigma_data: float, seed: int
) -> None:
    # x_t = ᾱ x̂_0 + β̄ ε̂ for any raw output, also a wrong one
    schedule = EVERY[name]
    t = torch.tensor([part * float(schedule.times[-1])], dtype=torch.float64)
    a, b = schedule.at(t)
    if a < 1e-5 and parametrisation.startswith("eps"):
        return
    x_t, raw = normals(seed, 1, 5), normals(seed + 1, 1, 5)
    p = predict(parametrisation, raw, x_t, schedule, t, sigma_data=sigma_data)
    assert float((a * p.x0 + b * p.eps - x_t).norm() / x_t.norm()) < 1e-10
    assert p.share is None


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_emission_is_linear_so_that_it_turns_errors_into_errors(parametrisation: str) -> None:
    schedule, t = cosine(), torch.tensor([3.0, 700.5])
    parts = [normals(i, 2, 4) for i in range(4)]

    def emit(x0: Tensor, eps: Tensor) -> Tensor:
        return emission(parametrisation, x0, eps, schedule, t, sigma_data=0.4)

    torch.testing.assert_close(
        emit(parts[0] - 2 * parts[2], parts[1] - 2 * parts[3]),
        emit(parts[0], parts[1]) - 2 * emit(parts[2], parts[3]),
    )


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_each_image_has_its_own_time(parametrisation: str) -> None:
    schedule, t = linear(), torch.tensor([1.0, 500.25, 1000.0], dtype=torch.float64)
    x, raw = normals(1, 3, 1, 2, 2), normals(2, 3, 1, 2, 2)
    together = predict(parametrisation, raw, x, schedule, t, sigma_data=0.5)
    for i in range(3):
        one = slice(i, i + 1)
        alone = predict(parametrisation, raw[one], x[one], schedule, t[i], sigma_data=0.5)
        torch.testing.assert_close(together.x0[one], alone.x0, rtol=1e-14, atol=0)
        torch.testing.assert_close(together.eps[one], alone.eps, rtol=1e-14, atol=0)


# the papers' own formulas


def test_step_noise_is_the_mean_of_epsilon_t_given_the_state() -> None:
    # E[ε_t|x_t] by Gaussian regression on the joint law of (ε_t, x_t), x_0 = 0 or known
    schedule = linear(20)
    for t in range(1, 21):
        a, before = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[t - 1])
        beta, beta_bar = math.sqrt(1 - (a / before) ** 2), math.sqrt(1 - a**2)
        x0, x_t = 0.4, 1.1
        expected = beta / beta_bar**2 * (x_t - a * x0)  # Cov(ε_t, x_t)/Var(x_t) = β_t/β̄_t²
        at = torch.tensor([float(t)], dtype=torch.float64)
        picture, state = (torch.full((1, 1), v, dtype=torch.float64) for v in (x0, x_t))
        eps = from_x0(schedule, state, at, picture).eps
        assert float(emission("eps_step", picture, eps, schedule, at)) == pytest.approx(expected)


def test_v_is_the_velocity_along_the_angle() -> None:
    # Salimans & Ho 2022, appendix D: v = d x_φ/dφ, x_φ = cos φ x_0 + sin φ ε
    schedule, h = angle(), 1e-3
    x0, eps = normals(1, 1, 6), normals(2, 1, 6)
    for t in (10.0, 333.3, 900.0):
        at = torch.tensor([t - h, t, t + h], dtype=torch.float64)
        low, _, high = destroy_at(*schedule.at(at), x0.expand(3, 6), eps.expand(3, 6))
        slope = (high - low) / (2 * h * math.pi / 2000)
        torch.testing.assert_close(
            emission("v", x0, eps, schedule, at[1:2])[0], slope, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("name", ["linear", "cosine", "short"])
def test_edm_is_the_formula_of_karras_et_al(name: str, sigma_data: float) -> None:
    schedule = EVERY[name]
    network = Told(_curved)
    denoise = denoiser(network, schedule, "edm", sigma_data=sigma_data)
    for part in (0.01, 0.3, 0.5, 0.77, 0.99):
        t = torch.tensor(part * float(schedule.times[-1]), dtype=torch.float64)
        a, b = schedule.at(t)
        sigma = float(b) / float(a)
        noisy = normals(3, 4, 1, 3, 3) * sigma + normals(4, 4, 1, 3, 3)  # Karras' x = x_0 + σ n
        # their table 1, in σ
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / math.sqrt(sigma_data**2 + sigma**2)
        c_in = 1 / math.sqrt(sigma**2 + sigma_data**2)
        expected = c_skip * noisy + c_out * _curved(c_in * noisy, t.expand(4))
        prediction = denoise(a * noisy, t)
        torch.testing.assert_close(prediction.x0, expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(prediction.eps, (noisy - expected) / sigma, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(network.calls[-1]["x"], c_in * noisy, rtol=1e-11, atol=0)


def test_edm_shows_the_network_numbers_of_one_size() -> None:
    # c_in: the variance of what goes in, and of what must come out, is 1 at every noise level
    schedule, sigma_data = cosine(), 0.3
    x0, eps = sigma_data * normals(1, 2000, 50), normals(2, 2000, 50)
    for time in (1.0, 200.0, 500.0, 990.0):
        t = torch.tensor(time, dtype=torch.float64)
        scale = edm_input_scale(schedule, t, sigma_data)
        seen = scale * destroy_at(*schedule.at(t), x0, eps)
        target = emission("edm", x0, eps, schedule, t, sigma_data=sigma_data)
        assert float(seen.std()) == pytest.approx(1, abs=0.02)
        assert float(target.std()) == pytest.approx(1, abs=0.02)


# the end of the schedule, where nothing is left


@pytest.mark.parametrize("schedule", [angle(50), zero_terminal(linear(50))])
@pytest.mark.parametrize("parametrisation", ["eps", "eps_step"])
def test_noise_alone_does_not_say_the_picture(schedule: Schedule, parametrisation: str) -> None:
    x = normals(1, 2, 3)
    with pytest.raises(ValueError, match=rf"'{parametrisation}'.*ᾱ_t = 0.*'v', 'x0' or 'edm'"):
        predict(parametrisation, x, x, schedule, torch.tensor([10.0, 50.0]))
    denoise = denoiser(Told(_curved), schedule, parametrisation)
    with pytest.raises(ValueError, match="ᾱ_t = 0"):
        last(greedy(denoise, x, schedule))
    p = predict(parametrisation, x, x, schedule, torch.tensor([10.0, 49.0]))
    assert torch.isfinite(p.x0).all()


@pytest.mark.parametrize("schedule", [angle(50), zero_terminal(linear(50))])
@pytest.mark.parametrize("parametrisation", ["v", "x0", "edm"])
def test_the_others_say_it_there_too(schedule: Schedule, parametrisation: str) -> None:
    t = torch.tensor([50.0], dtype=torch.float64)
    x0, eps = normals(1, 1, 6), normals(2, 1, 6)
    raw = emission(parametrisation, x0, eps, schedule, t, sigma_data=0.5)
    p = predict(parametrisation, raw, eps, schedule, t, sigma_data=0.5)  # x_T is the noise itself
    torch.testing.assert_close(p.x0, x0, rtol=1e-13, atol=0)
    torch.testing.assert_close(p.eps, eps, rtol=1e-13, atol=0)
    denoise = denoiser(Told(_curved), schedule, parametrisation, sigma_data=0.5)
    assert torch.isfinite(last(ddim(denoise, eps, schedule))).all()


# networks


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_an_exact_network_is_the_exact_denoiser(parametrisation: str) -> None:
    training = linear()
    exact = gaussian(training, MEAN, COVARIANCE)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        if parametrisation == "edm":
            x = x / edm_input_scale(training, t, 0.7).reshape(-1, 1)
        p = exact(x, t)
        return emission(parametrisation, p.x0, p.eps, training, t, sigma_data=0.7)

    denoise = denoiser(Told(answer), training, parametrisation, sigma_data=0.7)
    x = normals(1, 5, 3)
    for sub in (even_times(training, 100), even_times(training, 13)):
        torch.testing.assert_close(
            last(greedy(denoise, x, sub)), last(greedy(exact, x, sub)), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("parametrisation", ["eps_step", "eps"])
def test_on_a_sub_schedule_training_converts_and_the_longer_step_moves(
    parametrisation: str,
) -> None:
    # the network hears training times, its words are read with the training schedule, and
    # μ = (x - (β'²/β̄) ε̄)/α' with the amplitudes of the sub-schedule's own step
    training = linear()
    sub = training.keep([0, 1, 30, 250, 600, 1000])
    network = Told(_curved)
    x = normals(1, 4, 3)
    steps = list(greedy(denoiser(network, training, parametrisation), x, sub))
    assert [float(c["t"][0]) for c in network.calls] == [1000, 600, 250, 30, 1]
    assert all(c["t"].shape == (4,) for c in network.calls)
    a_bar = training.alpha_bar
    states = [x, *[s.x for s in steps]]
    moves = [(1000, 600), (600, 250), (250, 30), (30, 1), (1, 0)]
    for (t, s), before, after in zip(moves, states[:-1], states[1:], strict=True):
        raw = _curved(before, torch.full((4,), float(t), dtype=torch.float64))
        beta_bar = (1 - a_bar[t] ** 2).sqrt()
        if parametrisation == "eps_step":
            eps = raw * beta_bar / (1 - (a_bar[t] / a_bar[t - 1]) ** 2).sqrt()
        else:
            eps = raw
        alpha = a_bar[t] / a_bar[s]
        expected = (before - (1 - alpha**2) / beta_bar * eps) / alpha
        torch.testing.assert_close(after, expected, rtol=1e-8, atol=1e-8)


def test_the_network_gets_its_dtype_its_classes_and_no_more() -> None:
    network = Told(_curved)
    schedule = linear()
    x = torch.zeros(2, 1, 3, 3)
    denoiser(network, schedule, "eps")(x, torch.tensor(7.0, dtype=torch.float64), previous=x)
    assert set(network.calls[-1]) == {"x", "t"}  # not for it: trained without self-conditioning
    assert network.calls[-1]["t"].dtype == torch.float32
    classes = torch.tensor([1, 0])
    denoiser(network, schedule, "eps", classes=classes, self_conditioning=True)(
        x, torch.tensor([7.0, 8.0]), previous=x + 1
    )
    assert set(network.calls[-1]) == {"x", "t", "classes", "previous"}
    assert torch.equal(network.calls[-1]["classes"], classes)
    assert torch.equal(network.calls[-1]["previous"], x + 1)
    assert network.calls[-1]["t"].tolist() == [7.0, 8.0]
    raw = raw_output(network, schedule, "eps", x, torch.tensor([7.0, 8.0]))
    assert raw.dtype == x.dtype


def test_self_conditioning_sees_the_estimate_of_the_step_before() -> None:
    schedule = even_times(linear(), 6)
    network = Told(_curved)
    denoise = clipped(denoiser(network, linear(), "v", self_conditioning=True), schedule, limit=0.5)
    steps = list(ddim(denoise, normals(1, 2, 3), schedule))
    assert "previous" not in network.calls[0]
    for call, step in zip(network.calls[1:], steps, strict=False):
        assert torch.equal(call["previous"], step.prediction.x0)
        assert float(call["previous"].abs().max()) <= 0.5


# guidance


def _two() -> tuple[Schedule, Told, Told]:
    return linear(), Told(_curved), Told(lambda x, t: 0.2 * x - 0.1)


def test_guidance_of_1_and_0_are_the_two_denoisers() -> None:
    schedule, one, two = _two()
    x, t = normals(1, 3, 4), torch.tensor(400.0)
    with_class, without = denoiser(one, schedule, "eps"), denoiser(two, schedule, "eps")
    a, b = with_class(x, t), without(x, t)
    two.calls.clear()
    for w, expected in ((1.0, a), (0.0, b)):
        got = guided(with_class, without, w)(x, t)
        torch.testing.assert_close(got.x0, expected.x0, rtol=1e-14, atol=0)
        torch.testing.assert_close(got.eps, expected.eps, rtol=1e-14, atol=0)
    assert len(two.calls) == 1  # w = 1 costs one call, not two


@settings(deadline=None)
@given(st.floats(0, 10))
def test_guidance_is_linear_and_explains_the_state(w: float) -> None:
    schedule, one, two = _two()
    x, t = normals(1, 3, 4), torch.tensor(400.0)
    with_class, without = denoiser(one, schedule, "eps"), denoiser(two, schedule, "eps")
    got = guided(with_class, without, w)(x, t)
    eps = [d(x, t).eps.numpy() for d in (with_class, without)]
    # Ho & Salimans 2022, eq. 6, with their w = ours - 1
    np.testing.assert_allclose(got.eps, w * eps[0] - (w - 1) * eps[1], rtol=1e-10, atol=1e-10)
    a, b = schedule.at(t)
    torch.testing.assert_close(a * got.x0 + b * got.eps, x, rtol=1e-9, atol=1e-9)


def test_guidance_acts_within_its_interval_only_each_image_by_its_own_time() -> None:
    schedule, one, two = _two()
    with_class, without = denoiser(one, schedule, "eps"), denoiser(two, schedule, "eps")
    both = guided(with_class, without, 3.0)
    within = guided(with_class, without, 3.0, interval=(200.0, 600.0))
    x = normals(1, 1, 4)
    for time, acts in ((199.9, False), (200.0, True), (400.0, True), (600.0, True), (601.0, False)):
        t = torch.tensor(time, dtype=torch.float64)
        two.calls.clear()
        got = within(x, t).x0
        assert len(two.calls) == acts
        assert torch.equal(got, both(x, t).x0 if acts else with_class(x, t).x0)
    times = torch.tensor([100.0, 300.0, 900.0], dtype=torch.float64)
    mixed = within(x.expand(3, 4), times).x0
    for i, t in enumerate(times):
        torch.testing.assert_close(mixed[i : i + 1], within(x, t).x0, rtol=1e-13, atol=1e-13)


def test_guidance_passes_the_last_estimate_to_both() -> None:
    schedule, one, two = _two()
    with_class = denoiser(one, schedule, "eps", self_conditioning=True)
    without = denoiser(two, schedule, "eps", self_conditioning=True)
    previous = normals(2, 3, 4)
    guided(with_class, without, 2.0)(normals(1, 3, 4), torch.tensor(5.0), previous=previous)
    assert one.calls[0]["previous"] is previous
    assert two.calls[0]["previous"] is previous


# clipping


def _wild(schedule: Schedule) -> Callable[..., Prediction]:
    return denoiser(Told(lambda x, t: 3 * x), schedule, "x0")


@pytest.mark.parametrize("limit", [1.0, 0.4])
def test_clipping_derives_the_noise_anew(limit: float) -> None:
    schedule, t = linear(), torch.tensor([30.0, 800.0], dtype=torch.float64)
    x = normals(1, 2, 3, 5, 5)
    raw = _wild(schedule)(x, t)
    got = clipped(_wild(schedule), schedule, limit=limit)(x, t)
    assert torch.equal(got.x0, raw.x0.clamp(-limit, limit))
    assert not torch.allclose(got.eps, raw.eps)
    a, b = (v.reshape(2, 1, 1, 1) for v in schedule.at(t))
    torch.testing.assert_close(a * got.x0 + b * got.eps, x, rtol=1e-12, atol=1e-12)
    kept = clipped(_wild(schedule), schedule, limit=limit, keep_eps=True)(x, t)
    assert torch.equal(kept.eps, raw.eps)
    assert torch.equal(kept.x0, got.x0)


def test_clipping_leaves_what_lies_within() -> None:
    schedule, t = linear(), torch.tensor(300.0)
    point = torch.tensor([[0.9, -0.9, 0.1]], dtype=torch.float64)
    x = normals(1, 2, 3)
    exact = finite_set(schedule, point)
    for quantile in (None, 0.9):
        got = clipped(exact, schedule, quantile=quantile)(x, t)
        torch.testing.assert_close(got.x0, point.expand(2, 3))
        torch.testing.assert_close(got.eps, exact(x, t).eps)


@pytest.mark.parametrize("limit", [1.0, 0.5])
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_thresholding_is_that_of_saharia_et_al(quantile: float, limit: float) -> None:
    schedule, t = linear(), torch.tensor(300.0)
    scales = torch.tensor([0.05, 0.5, 3.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    x = scales * normals(1, 3, 2, 6, 6)
    raw = _wild(schedule)(x, t).x0.numpy()
    got = clipped(_wild(schedule), schedule, limit=limit, quantile=quantile)(x, t)
    for image, ours in zip(raw, got.x0.numpy(), strict=True):
        s = max(np.quantile(np.abs(image), quantile), limit)
        np.testing.assert_allclose(ours, np.clip(image, -s, s) / s * limit, rtol=1e-12)
    a, b = schedule.at(t)
    torch.testing.assert_close(a * got.x0 + b * got.eps, x, rtol=1e-10, atol=1e-10)


# the oracles themselves


def test_the_gaussian_oracle_is_the_limit_of_many_points() -> None:
    # and so each is checked by the other: Gauss-Hermite nodes stand for a normal law
    schedule = linear()
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    points = torch.from_numpy(0.2 + 0.7 * nodes).reshape(-1, 1)
    shares = torch.from_numpy(weights / weights.sum())
    one = torch.ones(1, dtype=torch.float64)
    exact = gaussian(schedule, 0.2 * one, 0.49 * one[:, None])
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64).reshape(-1, 1)
    for time in (500.0, 800.0, 1000.0):
        t = torch.tensor(time)
        points_say = finite_set(schedule, points, shares)(x, t)
        torch.testing.assert_close(points_say.x0, exact(x, t).x0, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(points_say.eps, exact(x, t).eps, rtol=1e-6, atol=1e-6)


def test_the_oracles_stand_where_nothing_is_left() -> None:
    schedule, x, t = angle(10), normals(1, 4, 3), torch.tensor(10.0)
    torch.testing.assert_close(
        gaussian(schedule, MEAN, COVARIANCE)(x, t).x0, MEAN.expand(4, 3), rtol=1e-14, atol=0
    )
    points = normals(2, 5, 3)
    got = finite_set(schedule, points)(x, t)
    torch.testing.assert_close(got.x0, points.mean(0).expand(4, 3))
    torch.testing.assert_close(got.eps, x)
