"""The estimated bound and the flow's likelihood against closed forms, and those of a run."""

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from oracle import gaussian, generic_covariance, normals
from unraze import generate, nn as networks
from unraze.config import Config, updated
from unraze.data import Images
from unraze.denoiser import Denoiser, Prediction
from unraze.errors import DataError, InputError
from unraze.evaluate import likelihood
from unraze.evaluate.likelihood import (
    Bound,
    bound,
    bounded,
    flow,
    flowed,
    groups_of,
)
from unraze.evaluate.stage import Stage, finish
from unraze.generate import Model
from unraze.samplers import even_times
from unraze.schedule import Schedule, angle, cosine, from_config, linear
from unraze.train import fit

MEAN = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
EIGENVALUES = [0.05, 0.3, 2.0]
COVARIANCE = generic_covariance(5, EIGENVALUES)
D = 3
LN2 = math.log(2)


def one(stages: Generator[Stage, None, tuple[Bound, ...]]) -> Bound:
    """The bound of a call that asks for one."""
    (found,) = finish(stages)
    return found


def _images(n: int, seed: int = 1) -> Tensor:
    return MEAN + normals(seed, n, D) @ torch.linalg.cholesky(COVARIANCE).T


def _with_share(denoise: Denoiser, value: float) -> Denoiser:
    def says(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        return replace(denoise(x_t, t), share=torch.full_like(x_t, value))

    return says


def _expected(chain: Schedule, share: float) -> list[float]:
    """The decoder and the steps 2 … T in bits a dimension, by the papers' variances."""
    a2 = chain.alpha_bar.numpy() ** 2
    out = []
    for t in range(1, chain.steps + 1):
        beta2 = 1 - a2[t] / a2[t - 1]
        true = beta2 * (1 - a2[t - 1]) / (1 - a2[t])
        first = (1 - a2[2] / a2[1]) * (1 - a2[1]) / (1 - a2[2]) if chain.steps > 1 else beta2
        sigma2 = beta2**share * (true if t > 1 else first) ** (1 - share)
        error = sum(v * (1 - a2[t]) / (a2[t] * v + 1 - a2[t]) for v in EIGENVALUES)  # E‖x_0 - x̂_0‖²
        if t == 1:
            nats = 0.5 * (error / sigma2 + D * math.log(2 * math.pi * sigma2))
        else:
            gain2 = a2[t - 1] * (beta2 / (1 - a2[t])) ** 2
            nats = 0.5 * (
                D * (true / sigma2 - 1 + math.log(sigma2 / true)) + gain2 * error / sigma2
            )
        out.append(nats / (D * LN2))
    return out


CHAINS = {
    "angle": angle(200),
    "linear": linear(),
    "short": even_times(cosine(), 9),
    "one step": linear().keep([0, 1000]),
}


@pytest.mark.parametrize("sigma", ["beta", "beta_tilde", "learned"])
@pytest.mark.parametrize("name", CHAINS)
def test_the_bound_is_the_closed_form_on_a_gaussian(name: str, sigma: str) -> None:
    chain, share = CHAINS[name], {"beta": 1.0, "beta_tilde": 0.0, "learned": 0.4}[sigma]
    denoise = _with_share(gaussian(chain, MEAN, COVARIANCE), 0.4)
    got = one(
        bounded(
            lambda labels: denoise, chain, _images(2000), sigmas=[sigma], continuous=True, draws=12
        )
    )
    expected = _expected(chain, share)
    left2 = float(chain.alpha_bar[-1]) ** 2
    square = float(MEAN @ MEAN) + sum(EIGENVALUES)
    prior = 0.5 * (left2 * (square - D) - D * math.log(1 - left2)) / (D * LN2)
    assert got.prior == pytest.approx(prior, abs=1e-4)
    error = (got.high - got.low) / 3.92
    assert abs(got.bits - sum(expected) - prior) < 5 * error
    assert error < 0.1
    assert got.bits == pytest.approx(got.prior + got.steps + got.decoder, rel=1e-12)
    assert got.steps == pytest.approx(sum(term.bits for term in got.terms), rel=1e-9, abs=1e-12)
    for term in got.terms:
        exact = sum(expected[term.first - 1 : term.last])
        assert abs(term.bits - exact) < 5 * term.error + 1e-9, term
    assert got.calls == 2000 * (1 + min(12, chain.steps - 1))
    assert (got.images, got.chain, got.sigma) == (2000, chain.steps, sigma)


def test_groups_of_one_step_each_leave_nothing_of_t_to_chance() -> None:
    chain = even_times(cosine(), 9)
    got = one(
        bounded(lambda labels: gaussian(chain, MEAN, COVARIANCE), chain, _images(4), draws=50)
    )
    assert [(term.first, term.last) for term in got.terms] == [(t, t) for t in range(2, 10)]
    assert [term.t_last for term in got.terms] == chain.times[2:].tolist()


def test_the_interval_covers() -> None:
    # 200 evaluations of 24 images: the exact value is inside 95 % of the intervals
    chain, inside = angle(60), 0
    denoise = gaussian(chain, MEAN, COVARIANCE)
    exact = sum(_expected(chain, 1.0))
    for k in range(200):
        got = one(
            bounded(
                lambda labels: denoise,
                chain,
                _images(24, seed=k),
                continuous=True,
                draws=4,
                seed=k,
            )
        )
        inside += got.low <= exact <= got.high
    assert 178 <= inside <= 200


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 60), st.integers(1, 70), st.sampled_from([angle, linear, cosine]), st.booleans()
)
def test_groups_hold_every_step_once(steps: int, count: int, kind: object, short: bool) -> None:
    chain = kind(steps)
    chain = chain.keep([0, steps]) if short and steps < 4 else chain
    groups = groups_of(chain, count)
    assert [int(t) for group, _ in groups for t in group] == list(range(2, chain.steps + 1))
    assert len(groups) == min(count, chain.steps - 1)
    for group, mass in groups:
        assert len(group) == len(mass) > 0
        assert (mass > 0).all()
        assert mass.sum() == pytest.approx(1)


def test_groups_are_of_about_equal_mass_where_steps_are_fine() -> None:
    chain = linear()
    mass = chain.beta_bar.log().diff().numpy()
    shares = [mass[group - 1].sum() for group, _ in groups_of(chain, 8)]
    assert max(shares[1:]) / min(shares[1:]) < 1.2


@pytest.mark.parametrize("theta", [0.002, 0.3])
def test_the_flow_s_likelihood_is_the_gaussian_s(theta: float) -> None:
    schedule, n = angle(), 1500
    a, b = math.cos(theta), math.sin(theta)
    x = a * _images(n) + b * normals(2, n, D)
    got = finish(
        flowed(
            lambda labels: gaussian(schedule, MEAN, COVARIANCE),
            schedule,
            x,
            theta=theta,
            steps=24,
            offset=1.0,
        )
    )
    entropy = sum(0.5 * math.log(2 * math.pi * math.e * (a**2 * v + b**2)) for v in EIGENVALUES)
    assert abs(got.bits - 1 - entropy / (D * LN2)) < 5 * (got.high - got.low) / 3.92
    assert got.high - got.low < 0.2
    assert got.error < 2e-3
    assert got.calls == n * 4 * (24 + 12)


# a run's


def _model(config: Config, num_classes: int = 0) -> Model:
    """An untrained network: its output is 0, so that v̂ = 0 and x̂_0 = ᾱ x_t."""
    learned = config.loss.variance == "learned"
    network = networks.build(
        config.network,
        channels=1,
        size=(8, 8),
        num_classes=num_classes,
        learned_variance=learned,
    )
    return Model(
        config=config,
        network=network.eval().requires_grad_(False),
        schedule=from_config(config.schedule),
        shape=(1, 8, 8),
        num_classes=num_classes,
        sigma_data=0.5,
    )


def _bytes(n: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (n, 1, 8, 8)).astype(np.uint8)


def test_the_bound_of_a_network_that_says_nothing(tiny_config: Config) -> None:
    # x_0 - x̂_0 = β̄² x_0 - ᾱ β̄ ε̄: all expectations but the decoder's are closed forms
    model, pixels = _model(tiny_config), _bytes(150)
    got = one(bound(model, pixels, clip=False, images=150, sigmas=["beta"]))
    x2 = ((pixels.astype(np.float64) / 127.5 - 1) ** 2).reshape(150, -1).mean()
    a2 = model.schedule.alpha_bar.numpy() ** 2
    steps = 0.0
    for t in range(2, 51):
        beta2 = 1 - a2[t] / a2[t - 1]
        ratio = (1 - a2[t - 1]) / (1 - a2[t])  # β̃²/β²
        square = (1 - a2[t]) ** 2 * x2 + a2[t] * (1 - a2[t])
        gain2 = a2[t - 1] * beta2 / (1 - a2[t]) ** 2
        steps += 0.5 * (ratio - 1 - math.log(ratio) + gain2 * square) / LN2
    error = math.sqrt(sum(term.error**2 for term in got.terms))
    assert abs(got.steps - steps) < 6 * error
    assert got.prior == 0
    # no model of independent even bytes is below 8 bits
    assert got.low > 8
    assert got.calls == 150 * 21
    assert got.images == 150


def test_the_flow_of_a_network_that_says_nothing_stands_still(tiny_config: Config) -> None:
    model, pixels = _model(tiny_config), _bytes(40)
    got = finish(flow(model, pixels, images=40, steps=2))
    x = pixels.astype(np.float64) / 127.5 - 1
    expected = 0.5 * (math.log(2 * math.pi) + (x**2).mean() + 1 / (12 * 127.5**2)) / LN2
    assert got.bits == pytest.approx(expected + math.log2(127.5), abs=1e-3)
    assert got.error < 1e-6
    assert math.sin(got.theta) == pytest.approx(1 / (127.5 * math.sqrt(12)))
    assert "dequantised" in got.note


def test_a_run_of_whole_steps_is_entered_at_its_first(tiny_config: Config) -> None:
    config = updated(tiny_config, {"loss.continuous": False})
    got = finish(flow(_model(config), _bytes(2), steps=2))
    assert got.theta == pytest.approx(math.pi / 2 / 50)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "learned"


@pytest.fixture
def model(trained: Path, tiny_config: Config, tiny_images: Images) -> Model:
    if not trained.exists():
        changes = {"train.steps": 120, "train.lr": 1e-2, "loss.variance": "learned"}
        fit(tiny_images, updated(tiny_config, changes), out=trained)
    return generate.load(trained)


def _tuple(got: Bound) -> list[float]:
    return [got.bits, got.prior, got.steps, got.decoder, *(term.bits for term in got.terms)]


@pytest.mark.parametrize("sigma", ["beta", "beta_tilde", "learned"])
def test_the_same_images_cost_the_same_in_any_batch(
    model: Model, tiny_images: Images, sigma: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = one(bound(model, tiny_images.pixels, sigmas=[sigma], draws=5))
    again = one(bound(model, tiny_images.pixels, sigmas=[sigma], draws=5))
    assert whole == again
    monkeypatch.setattr(likelihood, "BATCH", 7)
    parts = one(bound(model, tiny_images.pixels, sigmas=[sigma], draws=5))
    assert _tuple(parts) == pytest.approx(_tuple(whole), rel=1e-4)
    other = one(bound(model, tiny_images.pixels, sigmas=[sigma], draws=5, seed=1))
    assert other.bits != whole.bits
    assert abs(other.bits - whole.bits) < 2 * (whole.high - whole.low)  # 5.5 standard errors
    assert whole.images == 40


def test_training_makes_images_likelier_and_the_flow_agrees(
    model: Model, tiny_images: Images, tiny_config: Config
) -> None:
    before = one(bound(_model(tiny_config), tiny_images.pixels, sigmas=["beta"]))
    after = one(bound(model, tiny_images.pixels, sigmas=["beta"]))
    assert after.high < before.low - 0.3
    by_flow = finish(flow(model, tiny_images.pixels, images=40, steps=16))
    # bounds of two laws of one network: neither need be the lower, but they are near
    assert by_flow.error < 0.1
    assert abs(by_flow.bits - after.bits) < 2


def test_the_bound_is_that_of_the_sampler_s_steps(model: Model, tiny_images: Images) -> None:
    few, all_ = (one(bound(model, tiny_images.pixels, sigmas=["beta"], steps=n)) for n in (3, None))
    assert (few.chain, few.calls, all_.chain) == (3, 3 * 40, 50)
    assert few.bits > all_.bits
    listed = replace(
        model,
        config=updated(model.config, {"sample.spacing": (0.0, 9.0, 30.0, 50.0), "sample.steps": 3}),
    )
    assert one(bound(listed, tiny_images.pixels, sigmas=["beta"], steps=3)) == few


def test_every_sigma_of_a_run_comes_from_the_same_calls(
    model: Model, tiny_config: Config, tiny_images: Images
) -> None:
    together = finish(bound(model, tiny_images.pixels, draws=2, images=5))
    assert [found.sigma for found in together] == ["beta", "beta_tilde", "learned"]
    for found in together:
        sigmas = [found.sigma]
        alone = bound(model, tiny_images.pixels, sigmas=sigmas, draws=2, images=5)
        assert one(alone) == found
    fixed = finish(bound(_model(tiny_config), tiny_images.pixels, draws=2, images=5))
    assert [found.sigma for found in fixed] == ["beta", "beta_tilde"]


def test_stages_count_up_to_their_total(model: Model, tiny_images: Images) -> None:
    for part in (
        bound(model, tiny_images.pixels, draws=3),
        flow(model, tiny_images.pixels, images=5, steps=2),
    ):
        stages = list(part)
        done = [stage.done for stage in stages]
        assert done == sorted(set(done))
        assert {stage.total for stage in stages} == {done[-1]}


def test_a_conditional_run_needs_labels(tiny_config: Config) -> None:
    model = _model(updated(tiny_config, {"train.classes": True}), num_classes=2)
    labels = np.arange(6) % 2
    for part in (bound, flow):
        with pytest.raises(InputError, match="one label for each of the 6 images"):
            finish(part(model, _bytes(6)))
        found = finish(part(model, _bytes(6), labels=labels, images=2))
        for each in found if isinstance(found, tuple) else [found]:
            assert "given each image's class" in each.note


def test_bad_input_is_refused(model: Model, tiny_config: Config) -> None:
    for part in (bound, flow):
        with pytest.raises(DataError, match=r"\(2, 1, 8, 9\)"):
            finish(part(model, np.zeros((2, 1, 8, 9), np.uint8)))
        with pytest.raises(DataError, match="float64"):
            finish(part(model, np.zeros((2, 1, 8, 8))))
        with pytest.raises(DataError, match="holds 1 images"):
            finish(part(model, _bytes(1)))
        with pytest.raises(InputError, match="images = 1"):
            finish(part(model, _bytes(9), images=1))
    with pytest.raises(InputError, match="draws = 0"):
        finish(bound(model, _bytes(9), draws=0))
    with pytest.raises(InputError, match="steps = 51"):
        finish(bound(model, _bytes(9), steps=51))
    with pytest.raises(InputError, match="steps = 3"):
        finish(flow(model, _bytes(9), steps=3))
    with pytest.raises(InputError, match="this run learned no variance"):
        finish(bound(_model(tiny_config), _bytes(9), sigmas=["learned"]))
