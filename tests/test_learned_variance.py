"""The variance that a network learns: its meaning, its loss, its sampling, and what it is worth."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from oracle import chain, gaussian, generic_covariance, normals
from unraze import batches, generate, rng, step as training_step
from unraze.bound import bits, unit_step
from unraze.config import Config, SampleConfig, updated
from unraze.data import Images, batch as assemble
from unraze.denoiser import Denoiser, Prediction, clipped, denoiser, guided, predict
from unraze.evaluate.likelihood import bound
from unraze.evaluate.stage import finish
from unraze.loss import weighted
from unraze.process import destroy_at, log_variance
from unraze.samplers import even_angles, even_times, last, random
from unraze.schedule import angle, cosine, linear
from unraze.train import fit, prepare

MEAN = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(5, [0.004, 0.3, 2.0])
LEARNED = {"loss.variance": "learned"}


def _saying(denoise: Denoiser, share: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    def says(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        return replace(denoise(x_t, t), share=share(x_t, t))

    return says


SCHEDULES = {
    "full": linear(40),
    "sub, whole": even_times(linear(), 12),
    "sub, by angle": even_angles(cosine(), 15),
    "ends at nothing": angle(20),
    "one step": linear().keep([0, 1000]),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("share", "sigma"), [(1.0, "beta"), (0.0, "beta_tilde")])
def test_a_share_of_1_is_beta_and_of_0_beta_tilde_path_by_path(
    name: str, share: float, sigma: str
) -> None:
    schedule = SCHEDULES[name]
    exact = gaussian(schedule, MEAN, COVARIANCE)
    says = _saying(exact, lambda x, t: torch.full_like(x, share))
    x, noise = normals(1, 16, 3), lambda t: normals(100 + t, 16, 3)
    learned = random(says, x, schedule, noise=noise, sigma="learned")
    fixed = random(exact, x, schedule, noise=noise, sigma=sigma)
    for one, other in zip(learned, fixed, strict=True):
        torch.testing.assert_close(one.x, other.x, rtol=1e-11, atol=1e-12)


def test_noise_in_the_last_step_has_the_clipped_variance() -> None:
    schedule = linear(20)
    exact = gaussian(schedule, MEAN, COVARIANCE)
    says = _saying(exact, lambda x, t: torch.zeros_like(x))
    x, noise = normals(1, 4, 3), lambda t: normals(100 + t, 4, 3)
    runs = [
        last(random(says, x, schedule, noise=noise, sigma="learned", final_noise=final))
        for final in (False, True)
    ]
    torch.testing.assert_close(runs[1] - runs[0], schedule.beta_tilde[2] * normals(101, 4, 3))


def test_each_value_has_a_variance_of_its_own_of_the_step_taken() -> None:
    # the chain is linear in its noise: its covariance is A A^T with each step's own σ
    schedule = even_times(linear(), 12)
    shares = torch.tensor([0.0, 0.4, 1.3], dtype=torch.float64)
    mean, one = torch.zeros(3).double(), torch.eye(3).double()
    says = _saying(gaussian(schedule, mean, one), lambda x, t: shares.expand_as(x))
    n = 20_000
    x = last(
        random(
            says,
            normals(0, n, 3),
            schedule,
            noise=lambda t: normals(100 + t, n, 3),
            sigma="learned",
        )
    )
    for i, v in enumerate(shares.tolist()):
        tilde = schedule.beta_tilde.clone()
        tilde[1] = tilde[2]
        sigma = schedule.beta**v * tilde ** (1 - v)
        _, variance = chain(schedule, mean[:1], one[:1, :1], sigma=sigma)
        got = float(x[:, i].var())
        assert abs(got / float(variance) - 1) < 5 * math.sqrt(2 / n)


def test_a_denoiser_that_says_none_is_refused() -> None:
    steps = random(
        gaussian(linear(9), MEAN, COVARIANCE),
        normals(0, 1, 3),
        linear(9),
        noise=lambda t: normals(t, 1, 3),
        sigma="learned",
    )
    with pytest.raises(ValueError, match="learned no variance"):
        last(steps)


class Twice(nn.Module):
    """A network of 2C channels: (x/2 + c/10, x/3)."""

    def forward(self, x: Tensor, t: Tensor, classes: Tensor | None = None) -> Tensor:
        move = 0 if classes is None else classes.reshape(-1, 1, 1, 1) / 10
        return torch.cat([x / 2 + move, x / 3 + move], 1)


def test_the_second_half_is_the_share_and_guidance_and_clipping_hand_it_on() -> None:
    schedule, x, t = angle(), normals(1, 2, 2, 3, 3), torch.tensor(300.0)
    plain = denoiser(Twice(), schedule, "v")(x, t)
    assert plain.share is not None
    torch.testing.assert_close(plain.share, (x / 3 + 1) / 2)
    alone = predict("v", x / 2, x, schedule, t)
    assert torch.equal(plain.x0, alone.x0)
    assert torch.equal(plain.eps, alone.eps)
    assert alone.share is None

    one, two = (denoiser(Twice(), schedule, "v", classes=torch.tensor([c, c])) for c in (1, 2))
    got = clipped(guided(one, two, 3.0), schedule, limit=0.1)(x, t)
    # the mean is guided, the variance is that of the class asked for
    assert torch.equal(got.share, one(x, t).share)


def test_the_hybrid_loss_is_its_formula_and_leaves_the_mean_to_the_weighted_one(
    tiny_config: Config, tiny_images: Images
) -> None:
    """Gradients of both losses with the same weights: equal in the channels of the mean."""
    config = updated(tiny_config, LEARNED | {"loss.variance_weight": 0.5})
    trainee = training_step.begin(prepare(config, tiny_images), tiny_images)
    with torch.no_grad():
        for i, weight in enumerate(trainee.network.out.parameters()):
            weight.copy_(0.05 * normals(i, *weight.shape))
    loss = training_step.gradients(trainee, 1)
    both = trainee.network.out.weight.grad.clone()
    trunk = trainee.network.stem.weight.grad.clone()

    # the same batch by hand
    schedule = trainee.schedule
    indices, flips = batches.samples_of(config.train, 40, 1, flip=False)
    t = batches.times_of(config.train, config.loss, schedule, 1)
    x0 = assemble(tiny_images, indices, flips)
    eps = rng.normal(0, "noise", range(8), 1, (1, 8, 8))
    x_t = destroy_at(*schedule.at(t), x0, eps)
    denoise = denoiser(trainee.network, schedule, "v")
    p = denoise(x_t, t)
    mean_loss = weighted(p, x0, eps, schedule, t, config.loss)
    nats = unit_step(schedule, x0, t, p.x0.detach(), p.share)
    hybrid = mean_loss.mean() + 0.5 * 50 * bits(nats, 64).mean()
    assert loss == pytest.approx(float(hybrid.detach()), rel=1e-5)

    trainee.network.zero_grad()
    mean_loss.mean().backward()
    alone = trainee.network.out.weight.grad
    torch.testing.assert_close(both[:1], alone[:1], rtol=1e-4, atol=1e-7)
    assert not alone[1:].any()
    assert both[1:].abs().max() > 1e-3
    assert not torch.allclose(trunk, trainee.network.stem.weight.grad)


def test_a_fixed_run_does_not_notice(tiny_config: Config, tiny_images: Images) -> None:
    """The weight of a bound that is not learned by has no part in anything."""

    def gradient(config: Config) -> list[Tensor]:
        trainee = training_step.begin(config, tiny_images)
        training_step.gradients(trainee, 1)
        return [p.grad for p in trainee.network.parameters() if p.grad is not None]

    plain = prepare(tiny_config, tiny_images)
    other = updated(plain, {"loss.variance_weight": 7.0})  # which `prepare` would refuse
    for a, b in zip(gradient(plain), gradient(other), strict=True):
        assert torch.equal(a, b)


def test_a_constant_share_learned_on_a_gaussian_is_the_posterior_s() -> None:
    """By training: SGD on the bound's term of one long step, data N(0, s²), x̂_0 exact."""
    schedule, s2, t, n = angle(12), 0.3, 7, 4000
    denoise = gaussian(schedule, torch.zeros(1).double(), torch.tensor([[s2]]).double())
    x0 = math.sqrt(s2) * normals(1, n, 1)
    a, b = schedule.at(torch.tensor(float(t)))
    x0_hat = denoise(a * x0 + b * normals(2, n, 1), torch.tensor(float(t))).x0
    share = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([share], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        times = torch.full((n,), float(t))
        unit_step(schedule, x0, times, x0_hat, share.expand(n, 1)).mean().backward()
        optimizer.step()
    a_now, a_before = (float(schedule.alpha_bar[k]) for k in (t, t - 1))
    now, before = (k**2 * s2 + 1 - k**2 for k in (a_now, a_before))
    expected = before - (a_now / a_before * before) ** 2 / now  # Var(x_{t-1} | x_t)
    got = float(log_variance(schedule, t, share.detach().reshape(1, 1)).exp())
    # x_0 - x̂_0 is estimated from n draws: five standard errors of a variance
    true = float(schedule.beta_tilde[t] ** 2)
    assert abs(got - expected) < 5 * math.sqrt(2 / n) * (expected - true) + 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learned") / "run"


@pytest.fixture
def model(folder: Path, tiny_config: Config, tiny_images: Images) -> generate.Model:
    if not folder.exists():
        changes = LEARNED | {"train.steps": 40, "train.lr": 1e-2}
        fit(tiny_images, updated(tiny_config, changes), out=folder)
    return generate.load(folder)


@pytest.mark.parametrize("sigma", ["learned", "beta", "beta_tilde"])
def test_a_run_that_learned_it_samples_with_any_sigma(model: generate.Model, sigma: str) -> None:
    how = SampleConfig(sampler="random", sigma=sigma, steps=5)
    x = generate.sample(model, 3, settings=how)
    assert x.shape == (3, 1, 8, 8)
    assert bool(torch.isfinite(x).all())
    assert torch.equal(x, generate.sample(model, 3, settings=how))
    greedy = generate.sample(model, 3, settings=SampleConfig(sampler="greedy", steps=5))
    assert not torch.equal(x, greedy)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.parametrisation": "eps", "schedule.kind": "linear", "loss.times": "uniform"},
        {"loss.parametrisation": "edm", "loss.self_conditioning": True},
        {"loss.parametrisation": "x0", "train.dtype": "bfloat16"},
        {"loss.continuous": False, "train.classes": True, "train.accumulate": 2},
        {"network.kind": "unet", "network.dim": 8, "network.multipliers": [1, 2]},
    ],
    ids=["eps", "edm", "bfloat16", "classes", "unet"],
)
def test_it_trains_with_every_kind_of_run(
    tiny_config: Config, tiny_images: Images, tmp_path: Path, changes: dict[str, object]
) -> None:
    model = fit(tiny_images, updated(tiny_config, LEARNED | changes), out=tmp_path / "run")
    how = SampleConfig(sampler="random", sigma="learned", steps=4)
    assert bool(torch.isfinite(generate.sample(model, 2, settings=how)).all())


@pytest.mark.slow
def test_learning_it_improves_the_bound(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    """Below both fixed ones, on the same draws: at 50 steps neither β nor β̃ is right at all t."""
    changes = LEARNED | {"train.steps": 1500, "train.lr": 5e-3, "train.batch": 32}
    # on the training images: what is asked is whether the optimum is found, not how it carries over
    model = fit(tiny_images, updated(tiny_config, changes), out=tmp_path / "run")
    got = {bound.sigma: bound for bound in finish(bound(model, tiny_images.pixels, draws=49))}
    assert got["learned"].bits < min(got["beta"].bits, got["beta_tilde"].bits) - 0.02
