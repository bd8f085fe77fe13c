"""What all samplers of few calls have in common, and the order of each on the probability flow.

Two orders are asked for. Inside, from θ = 1.3 to 0.4 on steps that begin fine, each method shows
the order of its formula. On the whole way, from ᾱ_T (0 in `angle`, 5e-5 in `cosine`) to data, it is
lower where λ = ln(ᾱ/β̄), in which a method's polynomial stands, is infinite, or where its first
step, of order 1, leaves an error of h² for good.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, reject, settings, strategies as st
from torch import Tensor

from few import (
    COUNTS,
    COVARIANCE,
    MEAN,
    ODE,
    POINTS,
    Sampler,
    counted,
    drawn,
    errors,
    noisy,
    slope,
)
from oracle import assert_moments, finite_set, flow, gaussian, normals, probes
from unraze.denoiser import clipped
from unraze.samplers import (
    adams,
    ddim,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    even_angles,
    even_log_snr,
    even_times,
    ipndm,
    karras,
    last,
    restart,
    unipc,
)
from unraze.schedule import Schedule, angle, cosine, linear, zero_terminal

INSIDE = {
    "heun": 2,
    "dpmpp_2m": 2,
    "dpmpp_3m": 3,
    "unipc 1": 2,
    "unipc 2": 3,
    "unipc 3": 3,  # its starting steps have order 2, and leave h³
    "ipndm 1": 1,
    "ipndm 2": 2,
    "ipndm 3": 2,  # even weights are not those of the step, whatever the number of slopes
    "ipndm 4": 2,
    "deis 1": 1,
    "deis 2": 2,
    "deis 3": 3,
    "deis 4": 4,
    "adams 1": 2,
    "adams 2": 3,
    "adams 3": 4,
}

LOGARITHM = {"dpmpp_2m", "unipc 1", "deis 2", "ipndm 2", "adams 1"}
"""Where a method's local error falls off like 1/i over the i-th step from an end: h² ln(1/h)."""

WHOLE = {
    "heun": 2,
    "dpmpp_2m": 2,
    "dpmpp_3m": 2,  # the last step's x̂_0 is off by θ², and no polynomial in λ stands at λ = -∞
    "unipc 1": 2,
    "ipndm 1": 1,
    "ipndm 2": 2,
    "deis 1": 1,
    "deis 2": 2,
    "deis 3": 2,  # the first step has order 1
    "deis 4": 2,
    "adams 1": 2,
    "adams 2": 3,
    "adams 3": 4,
}
SCHEDULES = {"angle": angle(), "cosine": cosine()}
AWKWARD = {
    "full": linear(60),
    "sub, whole": even_times(linear(), 12),
    "angle": angle(20),
    "zero terminal": zero_terminal(linear(40)),
    "karras": karras(angle(), 9),
    "log-SNR": even_log_snr(angle(), 7),
    "two steps": even_times(angle(), 2),
}


def _inside(sampler: Sampler) -> list[float]:
    """The error at θ = 0.4 from θ = 1.3, over θ = 0.4 + 0.9 sin u, whose first steps are h²."""
    schedule, x, found = angle(), normals(1, 64, 3), []
    for n in COUNTS:
        u = torch.linspace(0, math.pi / 2, n + 1, dtype=torch.float64)
        times = schedule.time_at(0.4 + 0.9 * u.sin())
        kept = schedule.keep(torch.cat([torch.zeros(1).double(), times]))
        *_, reached, _ = sampler(gaussian(kept, MEAN, COVARIANCE), x, kept)
        ends = float(kept.alpha_bar[-1]), float(kept.alpha_bar[1])
        exact = flow(x, MEAN, COVARIANCE, *ends)
        found.append(float((reached.x - exact).square().mean().sqrt()))
    return found


@pytest.mark.parametrize("name", INSIDE)
def test_a_method_has_its_order_between_the_ends(name: str) -> None:
    found = _inside(ODE[name])
    assert slope(found) == pytest.approx(INSIDE[name], abs=0.15), found


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", WHOLE)
def test_the_order_from_noise_to_data(name: str, kind: str) -> None:
    found = errors(ODE[name], SCHEDULES[kind])
    close = 0.15
    if name in LOGARITHM:
        found = [e / math.log(n) for e, n in zip(found, COUNTS, strict=True)]
        close = 0.2  # ln(1/h) stands there with a constant of its own
    assert slope(found) == pytest.approx(WHOLE[name], abs=close), found


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", ["unipc 2", "unipc 3", "ipndm 3", "ipndm 4"])
def test_these_come_to_order_two_or_seem_better_until_then(name: str, kind: str) -> None:
    # UniPC's first error terms cancel up to some 64 steps; iPNDM's slopes do, until its own order
    # shows: so the last halving of the step, and the error itself beside one of plain order two
    found = errors(ODE[name], SCHEDULES[kind])
    plain = errors(ODE["deis 4"], SCHEDULES[kind])
    assert all(e < p for e, p in zip(found, plain, strict=True)), (found, plain)
    if name.startswith("unipc"):
        assert math.log2(found[-2] / found[-1]) == pytest.approx(2, abs=0.15), found


def test_adams_keeps_where_lambda_is_infinite_what_others_lose() -> None:
    for kind in SCHEDULES.values():
        ours = errors(ODE["adams 3"], kind)
        for name in WHOLE.keys() | {"unipc 3", "ipndm 4"}:
            if not name.startswith("adams"):
                theirs = errors(ODE[name], kind)
                assert all(o < t for o, t in zip(ours, theirs, strict=True)), (name, ours, theirs)


@pytest.mark.parametrize("schedule", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("name", [*ODE, *noisy(torch.zeros(1))])
def test_one_point_is_recovered_exactly(schedule: Schedule, name: str) -> None:
    point = torch.tensor([[0.25, -1.0, 0.7]], dtype=torch.float64)
    x = normals(6, 8, 3)
    sampler = (ODE | noisy(x))[name]
    steps = sampler(finite_set(schedule, point), x, schedule)
    torch.testing.assert_close(last(steps), point.expand(8, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ODE)
def test_the_own_noise_of_a_point_is_carried_along_exactly(name: str) -> None:
    # for one point x = cos θ x_0 + sin θ ε̄ is the flow, and ε̄ is x_T where ᾱ_T = 0
    schedule = even_angles(angle(), 9)
    point = torch.tensor([[0.4, -0.2, 0.9]], dtype=torch.float64)
    eps = normals(3, 8, 3)
    for step in ODE[name](finite_set(schedule, point), eps, schedule):
        theta = step.t / 1000 * math.pi / 2
        exact = math.cos(theta) * point + math.sin(theta) * eps
        torch.testing.assert_close(step.x, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", [*ODE, *noisy(torch.zeros(1))])
def test_a_finite_set_of_points_is_reached_with_its_shares(name: str, kind: str) -> None:
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    n, schedule = 4000, even_angles(SCHEDULES[kind], 100)
    x = normals(9, n, 3)
    sampler = (ODE | noisy(x))[name]
    samples = last(sampler(finite_set(schedule, POINTS, weights), x, schedule))
    distance, nearest = torch.cdist(samples, POINTS).min(1)
    assert float(distance.median()) < 1e-6
    # a few start on the border of two points, where no step is short enough
    assert float((distance < 0.02).double().mean()) > 0.99
    shares = torch.bincount(nearest, minlength=4) / n
    error = (weights * (1 - weights) / n).sqrt()
    assert ((shares - weights).abs() <= 5 * error + 0.005).all(), shares


ORDERS_OF_LAW = {
    "dpmpp_2m_sde": (1.6, 2.0),  # rises to 2: 1.23, 1.53, 1.67, 1.74, 1.79 from 20 steps on
    "dpmpp_3m_sde": (1.9, 2.2),
    "dpmpp_3m_sde half": (2.7, 3.2),
    "restart 1": (0.94, 1.06),
    "restart 2": (1.8, 2.1),  # cosine: the interval of a restart is that of the nearest steps
}
"""Between what the order of the error of mean and covariance is, from 80 steps to 160."""


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", noisy(torch.zeros(1)))
def test_the_moments_of_noisy_samplers_come_to_the_gaussian_s_by_their_order(
    name: str, kind: str
) -> None:
    def off(steps: int) -> float:
        """How far the exact covariance of what is drawn is from the data's: no sampling in it."""
        schedule = even_angles(SCHEDULES[kind], steps)
        mean, covariance = _law(name, schedule)
        assert torch.isfinite(covariance).all()
        return float((covariance - COVARIANCE).norm() + (mean - MEAN).norm())

    found = [off(n) for n in (20, 40, 80, 160)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(found)]
    low, high = ORDERS_OF_LAW[name]
    assert low < orders[-1] < high, orders
    assert all(order > 0.9 for order in orders), orders


@pytest.mark.parametrize("name", noisy(torch.zeros(1)))
def test_noisy_samplers_draw_with_the_moments_of_the_gaussian(name: str) -> None:
    schedule, n = even_angles(angle(), 80), 4000
    x = normals(2, n, 3)
    samples = last(noisy(x)[name](gaussian(schedule, MEAN, COVARIANCE), x, schedule))
    assert_moments(samples, *_law(name, schedule))
    assert_moments(samples, MEAN, COVARIANCE)


def _law(name: str, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a sampler's end, which is affine in x_T and z."""
    x, noise = probes(3, schedule.steps + 3)
    denoise = gaussian(schedule, MEAN, COVARIANCE)
    out = last(noisy(x, noise)[name](denoise, x, schedule))
    columns = out[1:] - out[0]
    return out[0], columns.T @ columns


@pytest.mark.parametrize(
    ("with_noise", "without"), [(dpmpp_2m_sde, dpmpp_2m), (dpmpp_3m_sde, dpmpp_3m)]
)
def test_without_noise_an_sde_sampler_is_its_ode_sampler(with_noise, without) -> None:
    def never(t: int) -> Tensor:
        raise AssertionError("noise was drawn")

    for schedule in AWKWARD.values():
        denoise, x = gaussian(schedule, MEAN, COVARIANCE), normals(1, 4, 3)
        silent = last(with_noise(denoise, x, schedule, noise=never, eta=0.0))
        assert torch.equal(silent, last(without(denoise, x, schedule)))


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_one_point_keeps_its_marginals_whatever_eta(name: str, eta: float) -> None:
    # x_s is N(ᾱ_s x_0, β̄_s²) for every η: the squares of its coefficients add up to β̄_s²
    schedule = even_times(linear(), 12)
    rows = torch.eye(13, dtype=torch.float64)  # row 0 is x_T, row t the noise of step t
    sampler = {"dpmpp_2m_sde": dpmpp_2m_sde, "dpmpp_3m_sde": dpmpp_3m_sde}[name]
    steps = sampler(
        finite_set(schedule, torch.zeros(1, 1).double()),
        schedule.beta_bar[-1] * rows[:, :1],
        schedule,
        noise=lambda t: rows[:, t : t + 1],
        eta=eta,
    )
    for t, step in zip(range(11, -1, -1), steps, strict=True):
        variance = step.x.square().sum()
        torch.testing.assert_close(variance, schedule.beta_bar[t] ** 2, rtol=1e-12, atol=1e-14)


FIRST_ORDER = {
    "unipc": lambda d, x, s: unipc(d, x, s, order=1),
    "ipndm": lambda d, x, s: ipndm(d, x, s, order=1),
    "deis": lambda d, x, s: deis(d, x, s, order=1),
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "adams": lambda d, x, s: adams(d, x, s, order=1),
}


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_the_first_step_of_all_is_that_of_ddim(name: str) -> None:
    for schedule in AWKWARD.values():
        denoise, x = gaussian(schedule, MEAN, COVARIANCE), normals(1, 4, 3)
        first = next(FIRST_ORDER[name](denoise, x, schedule))
        theirs = next(ddim(denoise, x, schedule))
        torch.testing.assert_close(first.x, theirs.x, rtol=1e-10, atol=1e-11)
        if name in ("ipndm", "deis"):
            ends = last(FIRST_ORDER[name](denoise, x, schedule)), last(ddim(denoise, x, schedule))
            assert torch.equal(*ends)


@pytest.mark.parametrize("name", [*ODE, *noisy(torch.zeros(1))])
def test_calls_are_those_that_the_step_count_says(name: str) -> None:
    schedule = even_angles(angle(), 20)
    x = normals(1, 2, 3)
    denoise, asked = counted(gaussian(schedule, MEAN, COVARIANCE))
    steps = list((ODE | noisy(x))[name](denoise, x, schedule))
    # t = 0.05 T and 0.2 T are the steps 1 and 4: three more for each return
    expected = {"heun": 39, "restart 1": 20 + 2 * 3, "restart 2": 39 + 3 * 2 * 3}.get(name, 20)
    assert len(asked) == expected
    assert min(asked) > 0  # the denoiser is never asked at t = 0
    assert [step.t for step in steps if step.t == 0] == [0.0]
    assert steps[-1].t == 0


@pytest.mark.parametrize("name", [*ODE, *noisy(torch.zeros(1))])
def test_the_last_estimate_is_passed_on(name: str) -> None:
    schedule = even_times(linear(), 6)
    exact = clipped(gaussian(schedule, MEAN, COVARIANCE), schedule, limit=0.5)
    seen: list[Tensor | None] = []
    said: list[Tensor] = []

    def watching(x_t, t, *, previous=None):
        seen.append(previous)
        prediction = exact(x_t, t)
        said.append(prediction.x0)
        return prediction

    x = normals(0, 2, 3)
    list((ODE | noisy(x))[name](watching, x, schedule))
    assert seen[0] is None
    assert all(p is s for p, s in zip(seen[1:], said, strict=False))


@settings(deadline=None, max_examples=40)
@given(
    times=st.lists(st.floats(1e-3, 999.9), min_size=1, max_size=8, unique=True),
    name=st.sampled_from([*ODE, *noisy(torch.zeros(1))]),
    kind=st.sampled_from(["linear", "angle"]),
)
def test_no_steps_however_long_or_short_are_not_a_number(
    times: list[float], name: str, kind: str
) -> None:
    schedule = {"linear": linear(), "angle": angle()}[kind]
    try:
        sub = schedule.keep([0.0, *sorted(times), 1000.0])
    except ValueError:  # two times so near that ᾱ is the same number
        reject()
    x = normals(0, 4, 1)
    denoise = finite_set(sub, torch.tensor([[1.0], [-0.5]], dtype=torch.float64))
    for step in (ODE | noisy(x))[name](denoise, x, sub):
        assert torch.isfinite(step.x).all()


@pytest.mark.parametrize("name", [*ODE, *noisy(torch.zeros(1))])
def test_float32_stays_float32_and_near_float64(name: str) -> None:
    schedule = even_angles(angle(), 12)
    x = normals(1, 5, 3)

    def single(x_t, t, *, previous=None):
        exact = gaussian(schedule, MEAN, COVARIANCE)(x_t.double(), t)
        return type(exact)(exact.x0.float(), exact.eps.float())

    noise = drawn(7, *x.shape)
    exact = last((ODE | noisy(x, noise))[name](gaussian(schedule, MEAN, COVARIANCE), x, schedule))
    samplers = ODE | noisy(x, lambda t: noise(t).float())
    end = last(samplers[name](single, x.float(), schedule))
    assert end.dtype == torch.float32
    torch.testing.assert_close(end.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "most"), [(unipc, 3), (ipndm, 4), (deis, 4), (adams, 3), (restart, 2)]
)
@pytest.mark.parametrize("order", [0, -1, 5])
def test_an_order_that_there_is_not_is_refused(sampler, most: int, order: int) -> None:
    schedule = linear(10)
    denoise, x = gaussian(schedule, MEAN, COVARIANCE), normals(0, 1, 3)
    extra = {"noise": drawn(1, 1, 3)} if sampler is restart else {}
    with pytest.raises(ValueError, match=f"order = {order}: give 1 to {most}"):
        last(sampler(denoise, x, schedule, order=order, **extra))


@pytest.mark.parametrize("sampler", [dpmpp_2m_sde, dpmpp_3m_sde])
def test_an_eta_outside_its_bounds_or_without_noise_is_refused(sampler) -> None:
    schedule = linear(10)
    denoise, x = gaussian(schedule, MEAN, COVARIANCE), normals(0, 1, 3)
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="eta"):
            last(sampler(denoise, x, schedule, noise=drawn(1, 1, 3), eta=eta))
    with pytest.raises(ValueError, match="noise"):
        last(sampler(denoise, x, schedule))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"interval": (0.3, 0.3)}, "interval"),
        ({"interval": (-0.1, 0.3)}, "interval"),
        ({"interval": (0.1, 1.3)}, "interval"),
        ({"repeats": 0}, "repeats = 0"),
    ],
)
def test_a_restart_that_will_not_do_is_refused(options: dict[str, object], says: str) -> None:
    schedule = linear(10)
    denoise, x = gaussian(schedule, MEAN, COVARIANCE), normals(0, 1, 3)
    with pytest.raises(ValueError, match=says):
        last(restart(denoise, x, schedule, noise=drawn(1, 1, 3), **options))
    with pytest.raises(ValueError, match="1 step"):
        last(restart(denoise, x, linear(1000).keep([0, 1000]), noise=drawn(1, 1, 3)))


def test_a_return_of_restart_is_the_forward_process() -> None:
    # for one point at 0 the state is all noise: its squares add up to β̄² before and after
    schedule = even_times(angle(), 10)
    rows = torch.eye(14, dtype=torch.float64)
    denoise = finite_set(schedule, torch.zeros(1, 1).double())
    steps = restart(
        denoise,
        rows[:, :1],
        schedule,
        noise=lambda k: rows[:, k : k + 1],
        interval=(0.2, 0.5),
        repeats=3,
        order=1,
    )
    for step in steps:
        b = schedule.at(torch.tensor(step.t))[1]
        torch.testing.assert_close(step.x.square().sum(), b**2, rtol=1e-12, atol=1e-14)
