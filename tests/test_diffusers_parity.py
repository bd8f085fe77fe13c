"""The same steps as diffusers' schedulers, where those are right. diffusers' t is ours minus 1."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from oracle import gaussian, generic_covariance, normals
from unraze.denoiser import Denoiser, clipped, emission
from unraze.samplers import (
    Step,
    ddim,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    even_angles,
    even_times,
    ipndm,
    karras,
    last,
    random,
    unipc,
)
from unraze.samplers.dpmpp import _parabola
from unraze.schedule import (
    SCHEDULES,
    Schedule,
    cosine,
    from_alphas_cumprod,
    linear,
    zero_terminal,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        IPNDMScheduler,
        UniPCMultistepScheduler,
    )

Scheduler = DDPMScheduler | DDIMScheduler

OURS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
MEAN = torch.tensor([0.6, -0.8, 0.5], dtype=torch.float64)
COVARIANCE = generic_covariance(5, [0.04, 0.3, 2.0])
SHAPE = (5, 3)


def _scheduler(kind: type, schedule: Schedule, **options: object) -> Scheduler:
    """Their scheduler on our numbers, so that float64 is compared with float64."""
    scheduler = kind(num_train_timesteps=schedule.steps, **options)
    scheduler.alphas_cumprod = schedule.alpha_bar[1:] ** 2
    one = torch.ones((), dtype=torch.float64)
    scheduler.one = scheduler.final_alpha_cumprod = one
    return scheduler


def _said(denoise: Denoiser, schedule: Schedule, kind: str, x: Tensor, t: Tensor) -> Tensor:
    p = denoise(x, t)
    return emission(OURS[kind], p.x0, p.eps, schedule, t)


def _only(schedule: Schedule, t: int) -> Schedule:
    """The sub-schedule whose last step is step t of the schedule."""
    return schedule.keep(schedule.times[: t + 1])


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("beta", ["linear", "squaredcos_cap_v2"])
def test_variances_equal_theirs(kind: str, beta: str) -> None:
    scheduler = DDPMScheduler(variance_type=kind, beta_schedule=beta)
    schedule = SCHEDULES["linear" if beta == "linear" else "cosine"]()
    ours = schedule.beta_tilde if kind == "fixed_small" else schedule.beta
    theirs = np.array([float(scheduler._get_variance(t)) for t in range(1000)])
    # theirs is float32: 1 - ᾱ_t²/ᾱ_{t-1}² has an error of some 1e-7 whatever its size
    np.testing.assert_allclose(ours[1:].square().numpy(), theirs, rtol=1e-3, atol=3e-7)
    exact = _scheduler(DDPMScheduler, schedule, variance_type=kind)
    theirs = np.array([float(exact._get_variance(t)) for t in range(1000)])
    np.testing.assert_allclose(ours[1:].square().numpy(), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine", "sigmoid", "quadratic", "angle"])
def test_the_logarithm_of_the_large_variance_is_a_number(kind: str) -> None:
    # theirs takes the square root of a logarithm ("fixed_large_log"), which is no number; and the
    # logarithm of the small variance of the first step, 0, is kept away only by a clamp
    schedule = SCHEDULES[kind]()
    a = schedule.alpha_bar.numpy()
    closed = 1 - (a[1:] / a[:-1]) ** 2
    log_large = 2 * schedule.beta[1:].log()
    assert torch.isfinite(log_large).all()
    np.testing.assert_allclose(log_large.numpy(), np.log(closed), rtol=1e-6, atol=1e-9)
    std = (0.5 * log_large).exp()
    torch.testing.assert_close(std, schedule.beta[1:], rtol=1e-13, atol=0)
    sample = last(
        random(
            gaussian(schedule, MEAN, COVARIANCE),
            normals(1, *SHAPE),
            even_times(schedule, 8),
            noise=lambda t: normals(t, *SHAPE),
            sigma=lambda s: torch.cat([torch.zeros(1), (0.5 * (2 * s.beta[1:].log())).exp()]),
            final_noise=True,
        )
    )
    assert torch.isfinite(sample).all()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("kind", OURS)
def test_one_ancestral_step_equals_theirs(kind: str, variance: str, clip: bool) -> None:
    schedule = linear()
    exact = gaussian(schedule, MEAN, COVARIANCE)
    ours = clipped(exact, schedule) if clip else exact
    scheduler = _scheduler(
        DDPMScheduler, schedule, prediction_type=kind, variance_type=variance, clip_sample=clip
    )
    x = normals(1, *SHAPE)
    for t in (1000, 999, 500, 20, 2, 1):
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        theirs = scheduler.step(
            _said(exact, schedule, kind, x, schedule.times[t]),
            t - 1,
            x,
            generator=torch.Generator().manual_seed(t),
        )
        steps = random(
            ours,
            x,
            _only(schedule, t),
            noise=lambda _, z=z: z,
            sigma="beta_tilde" if variance == "fixed_small" else "beta",
        )
        step: Step = next(iter(steps))
        torch.testing.assert_close(step.x, theirs.prev_sample, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(
            step.prediction.x0, theirs.pred_original_sample, rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", ["none", "anew", "kept"])
@pytest.mark.parametrize("kind", OURS)
def test_one_ddim_step_equals_theirs(kind: str, clip: str, eta: float) -> None:
    schedule = linear()
    exact = gaussian(schedule, MEAN, COVARIANCE)
    ours = exact if clip == "none" else clipped(exact, schedule, keep_eps=clip == "kept")
    scheduler = _scheduler(
        DDIMScheduler, schedule, prediction_type=kind, clip_sample=clip != "none"
    )
    scheduler.set_timesteps(1000)
    x, z = normals(1, *SHAPE), normals(2, *SHAPE)
    for t in (1000, 999, 500, 20, 2, 1):
        theirs = scheduler.step(
            _said(exact, schedule, kind, x, schedule.times[t]),
            t - 1,
            x,
            eta=eta,
            use_clipped_model_output=clip == "anew",
            variance_noise=z if eta > 0 else None,
        )
        step = next(iter(ddim(ours, x, _only(schedule, t), noise=lambda _: z, eta=eta)))
        torch.testing.assert_close(step.x, theirs.prev_sample, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("steps", [25, 50])
def test_a_whole_walk_over_few_steps_equals_theirs(steps: int, kind: str) -> None:
    # "trailing" spacing keeps both ends, as even_times does
    schedule = linear()
    exact = gaussian(schedule, MEAN, COVARIANCE)
    sub = even_times(schedule, steps)
    x = normals(1, *SHAPE)

    scheduler = _scheduler(
        DDIMScheduler,
        schedule,
        prediction_type=kind,
        clip_sample=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    assert [int(t) + 1 for t in scheduler.timesteps] == sub.times.flip(0)[:-1].long().tolist()
    theirs = x
    for t in scheduler.timesteps:
        raw = _said(exact, schedule, kind, theirs, schedule.times[t + 1])
        theirs = scheduler.step(raw, int(t), theirs, use_clipped_model_output=True).prev_sample
    ours = last(ddim(clipped(exact, schedule), x, sub))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)

    scheduler = _scheduler(
        DDPMScheduler,
        schedule,
        prediction_type=kind,
        clip_sample=False,
        variance_type="fixed_large",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    theirs, drawn = x, torch.Generator().manual_seed(3)
    for t in scheduler.timesteps:
        raw = _said(exact, schedule, kind, theirs, schedule.times[t + 1])
        theirs = scheduler.step(raw, int(t), theirs, generator=drawn).prev_sample
    ours_drawn = torch.Generator().manual_seed(3)
    # diffusers draws at each step that is not its t = 0; the last of a sub-schedule is not, and
    # gets noise there of variance β_1'²: the text's literal rule, our final_noise
    ours = last(
        random(
            exact,
            x,
            sub,
            noise=lambda _: torch.randn(SHAPE, generator=ours_drawn, dtype=torch.float64),
            final_noise=True,
        )
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_the_zero_terminal_rescale_equals_theirs() -> None:
    # theirs on its own float32 numbers; the last ᾱ² it sets to 2⁻²⁴ afterwards, for its own use
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    ours = zero_terminal(linear()).alpha_bar[1:].square().numpy()
    np.testing.assert_allclose(
        ours[:-1], scheduler.alphas_cumprod[:-1].double().numpy(), rtol=2e-3, atol=1e-7
    )
    assert ours[-1] == 0


def test_their_schedule_can_be_read() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    schedule = from_alphas_cumprod(scheduler.alphas_cumprod)
    np.testing.assert_allclose(
        schedule.beta[1:].square().numpy(), scheduler.betas.double().numpy(), rtol=1e-2, atol=1e-6
    )


@pytest.mark.parametrize("kind", OURS)
def test_destroying_and_its_targets_equal_theirs(kind: str) -> None:
    from unraze.process import destroy

    schedule = linear()
    scheduler = _scheduler(DDPMScheduler, schedule, prediction_type=kind)
    t = torch.tensor([1, 2, 500, 999, 1000])
    x0, eps = normals(1, *SHAPE), normals(2, *SHAPE)
    torch.testing.assert_close(
        destroy(schedule, x0, t, eps), scheduler.add_noise(x0, eps, t - 1), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        emission("v", x0, eps, schedule, t.double()),
        scheduler.get_velocity(x0, eps, t - 1),
        rtol=1e-9,
        atol=1e-9,
    )


SUBS = {
    "even": even_times(linear(), 10),
    "karras": karras(cosine(), 8),
    "long": even_angles(cosine(), 20),
}


def _with_levels(scheduler, schedule: Schedule):
    """Their multistep scheduler at our σ = β̄/ᾱ, from the noisiest to 0, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # theirs, of numpy's copy=
        scheduler.set_timesteps(schedule.steps)
    scheduler.sigmas = (schedule.beta_bar / schedule.alpha_bar).flip(0)
    return scheduler


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", SUBS)
def test_dpm_solver_of_order_two_equals_theirs(kind: str, eta: float) -> None:
    # their step() rounds the state to float32, so its parts are called, in the order that it has
    schedule, x = SUBS[kind], normals(1, *SHAPE)
    exact = gaussian(schedule, MEAN, COVARIANCE)
    algorithm = "dpmsolver++" if eta == 0 else "sde-dpmsolver++"
    scheduler = _with_levels(DPMSolverMultistepScheduler(algorithm_type=algorithm), schedule)
    theirs, known = x, []
    for i, t in enumerate(range(schedule.steps, 0, -1)):
        known = [*known[-1:], exact(theirs, schedule.times[t]).x0]
        scheduler._step_index = i
        z = normals(t, *SHAPE)
        if len(known) < 2 or t == 1:
            theirs = scheduler.dpm_solver_first_order_update(known[-1], sample=theirs, noise=z)
        else:
            theirs = scheduler.multistep_dpm_solver_second_order_update(
                known, sample=theirs, noise=z
            )
    steps = dpmpp_2m_sde(exact, x, schedule, noise=lambda t: normals(t, *SHAPE), eta=eta)
    torch.testing.assert_close(last(steps), theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", SUBS)
def test_dpm_solver_of_order_three_equals_theirs_with_the_whole_curvature(
    kind: str, eta: float
) -> None:
    # theirs has half of h² x̂_0'' (and order 2, see tests/samplers): the other half is added here.
    # With noise its factor of that half is -φ_2/k - 1/2, which does not vanish with k; -φ_3, as
    # without noise, is -φ_2/k + 1/2
    schedule, x = SUBS[kind], normals(1, *SHAPE)
    exact = gaussian(schedule, MEAN, COVARIANCE)
    algorithm = "dpmsolver++" if eta == 0 else "sde-dpmsolver++"
    scheduler = _with_levels(
        DPMSolverMultistepScheduler(algorithm_type=algorithm, solver_order=3), schedule
    )
    lam = (schedule.alpha_bar / schedule.beta_bar).log()
    known: list[Tensor] = []
    steps = dpmpp_3m_sde(exact, x, schedule, noise=lambda t: normals(t, *SHAPE), eta=eta)
    for i, (t, step) in enumerate(zip(range(schedule.steps, 0, -1), steps, strict=True)):
        known = [*known[-2:], step.prediction.x0]
        scheduler._step_index = i
        z = normals(t, *SHAPE)
        if len(known) < 2 or t == 1:
            theirs = scheduler.dpm_solver_first_order_update(known[-1], sample=x, noise=z)
        elif len(known) < 3 or t == 2:
            theirs = scheduler.multistep_dpm_solver_second_order_update(known, sample=x, noise=z)
        else:
            theirs = scheduler.multistep_dpm_solver_third_order_update(known, sample=x, noise=z)
            k = (1 + eta) * (lam[t - 1] - lam[t])
            phi_3 = (torch.expm1(-k) / k + 1) / k - 0.5
            _, bend = _parabola(schedule, t, known[::-1])
            theirs = theirs - schedule.alpha_bar[t - 1] * phi_3 * bend / 2
            if eta == 1:
                theirs = theirs + schedule.alpha_bar[t - 1] * bend / 2
        torch.testing.assert_close(step.x, theirs, rtol=1e-9, atol=1e-10)
        x = step.x


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", SUBS)
def test_unipc_equals_theirs(kind: str, order: int) -> None:
    schedule, x = SUBS[kind], normals(1, *SHAPE)
    exact = gaussian(schedule, MEAN, COVARIANCE)
    scheduler = _with_levels(
        UniPCMultistepScheduler(
            solver_order=order,
            solver_type="bh2",
            prediction_type="sample",
            final_sigmas_type="zero",
        ),
        schedule,
    )
    scheduler._step_index, theirs = 0, x
    for t in range(schedule.steps, 0, -1):
        said = exact(theirs, schedule.times[t]).x0
        theirs = scheduler.step(said, t, theirs).prev_sample
    ours = last(unipc(exact, x, schedule, order=order))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", SUBS)
def test_ipndm_equals_theirs(kind: str) -> None:
    schedule, x = SUBS[kind], normals(1, *SHAPE)
    exact = gaussian(schedule, MEAN, COVARIANCE)
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(schedule.steps)
    scheduler.alphas, scheduler.betas = schedule.alpha_bar.flip(0), schedule.beta_bar.flip(0)
    scheduler._step_index, theirs = 0, x
    for t in range(schedule.steps, 0, -1):
        said = _said(exact, schedule, "v_prediction", theirs, schedule.times[t])
        theirs = scheduler.step(said, t, theirs).prev_sample
    torch.testing.assert_close(last(ipndm(exact, x, schedule)), theirs, rtol=1e-9, atol=1e-10)
