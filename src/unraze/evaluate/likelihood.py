"""How likely held-out images are, in bits a dimension: by the bound, and by the probability flow.

    bound = prior + Σ_t L_t + decoder,   Σ_t L_t ≈ Σ_k (P_k/p_t) L_t,   t of group k drawn ∝ p_t

(`unraze.bound`): the steps are cut into groups of about equal p = ln(β̄_t/β̄_{t-1}), one step of
each is drawn for every image, and P_k is the group's share of p. For standard normal data L_t is
proportional to that p, so that little is left to chance; for all data it is unbiased. Prior and
decoder are taken of every image.

    flow = -log₂ p(x)/d + log₂ 127.5,   x = (byte + u - ½)/127.5 - 1,   u uniform in [0, 1)

(`unraze.flow`): the density of uniformly dequantised bytes, which bounds -log₂ P(bytes) from above
in the mean (Theis et al. 2016, arXiv:1511.01844, eq. 4).
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
import torch
from torch import Tensor
from typing_extensions import assert_never

from unraze import flow as flows, rng
from unraze.bound import bits, continuous_decoder, decoder, prior, step
from unraze.config import SampleConfig
from unraze.data import to_float
from unraze.denoiser import Denoiser, Prediction
from unraze.errors import InputError
from unraze.evaluate.chosen import chosen_for, label_nats
from unraze.evaluate.intervals import standard_error
from unraze.evaluate.stage import Stage
from unraze.flow import log_normal
from unraze.generate import Model, changed, denoiser_of, plan_of
from unraze.process import destroy, log_variance
from unraze.schedule import Schedule

__all__ = [
    "BOUND_CALLS",
    "FLOW_CALLS",
    "Bound",
    "Flow",
    "Sigma",
    "Term",
    "bound",
    "bounded",
    "flow",
    "flowed",
    "groups_of",
]

Array = np.ndarray[Any, Any]
Labels = Sequence[int | None]
Bind = Callable[[Labels], Denoiser]
"""The denoiser of a batch with these labels."""
Sigma = Literal["beta", "beta_tilde", "learned"]

IMAGES, DRAWS = 256, 20
BOUND_CALLS = IMAGES * (DRAWS + 1)
"""Network calls of a bound, an image each, unless asked for otherwise."""
FLOW_IMAGES, FLOW_STEPS = 64, 32
FLOW_CALLS = 3 * FLOW_IMAGES * 4 * (FLOW_STEPS + FLOW_STEPS // 2)
"""What the flow's likelihood costs in plain calls, one with its gradient counted as three."""

BATCH = 64
COVERAGE = 0.975
DEQUANTISED = 1 / (127.5 * math.sqrt(12))
"""The standard deviation of the uniform noise on one byte."""


@dataclass(frozen=True)
class Term:
    """What the steps `first` … `last` of the chain cost together, in bits a dimension.

    `t_first` and `t_last` are the training times that these steps end at; `error` is the standard
    error of `bits` over images.
    """

    first: int
    last: int
    t_first: float
    t_last: float
    bits: float
    error: float


@dataclass(frozen=True)
class Bound:
    """The variational bound, bits a dimension: bits = prior + steps + decoder.

    Arguments:
        bits: its mean over images; `low`, `high` a 95 % interval over the images, the steps and the
            noise drawn (not over training seeds).
        prior, steps, decoder: its parts, `terms` the steps' in groups from little noise to much.
        images: how many; `calls` the network calls, an image each.
        chain: the number of steps T of the chain that it is the bound of.
        sigma: the chain's σ; `clipped` says that its x̂_0 are clipped to [-1, 1].
        note: what must be said beside it.
    """

    bits: float
    low: float
    high: float
    prior: float
    steps: float
    decoder: float
    terms: tuple[Term, ...]
    images: int
    calls: int
    chain: int
    sigma: Sigma
    clipped: bool
    note: str


@dataclass(frozen=True)
class Flow:
    """The likelihood by the probability flow, bits a dimension.

    Arguments:
        bits: its mean over images; `low`, `high` a 95 % interval over the images, the noise of the
            bytes and the probes of the divergence.
        error: the mean over images of what halving the steps changes; the solver's error is less
            (a fifteenth of it, where the method's order 4 is reached).
        images: how many; `steps` of the solver; `calls` the network calls, an image each and with
            its gradient, those of half the steps counted.
        theta: the angle at which the images enter.
        note: what must be said beside it.
    """

    bits: float
    low: float
    high: float
    error: float
    images: int
    steps: int
    calls: int
    theta: float
    note: str


def bound(
    model: Model,
    held_out: Array,
    *,
    labels: Array | None = None,
    sigmas: Sequence[Sigma] | None = None,
    steps: int | None = None,
    clip: bool = True,
    images: int = IMAGES,
    draws: int = DRAWS,
    seed: int = 0,
) -> Generator[Stage, None, tuple[Bound, ...]]:
    """The variational bound of a trained model on held-out images, without guidance, for each σ.

    Arguments:
        held_out: uint8 (N, C, H, W), of which `images` are taken, evenly over the set.
        labels: (N,), needed where the model is conditional: then it is the bound given the class;
            of clusters it is that of the image alone, `label_nats` included.
        sigmas: the chains' σ_t, where β̃_1 = 0 is replaced by β̃_2; absent: β, β̃ and, of a run that
            learned it, the learned one. All of them are had from the same network calls.
        steps: those of a sampler that keeps so many, at even times; absent: all T.
        clip: x̂_0 to [-1, 1], as the chain that samples does, and Nichol & Dhariwal's evaluation.
        draws: groups of steps, of which each image sees one; beside the last step, always seen.

    The stages count network calls, an image each. Raises `DataError` for images of another shape
    or fewer than 2, `InputError` for missing labels, a σ that was not learned, too many steps.
    """
    _require(images=(images, 2), draws=(draws, 1))
    learned = model.config.loss.variance == "learned"
    every: tuple[Sigma, ...] = ("beta", "beta_tilde", *(("learned",) if learned else ()))
    sigmas = every if sigmas is None else sigmas
    if "learned" in sigmas and not learned:
        raise InputError(
            "sigma = learned: this run learned no variance; take beta or beta_tilde, or train one "
            "with loss.variance = learned"
        )
    x0, asked = chosen_for(model, held_out, labels, images, names=("held_out", "labels"))
    chain = model.schedule
    if steps is not None:
        kept = {"sampler": "random", "steps": steps, "spacing": "time"}
        chain = plan_of(model, changed(model.config.sample, kept)).chain
    settings = SampleConfig(guidance=1.0, clip="clip" if clip else "none", dtype="float32")
    return (
        yield from bounded(
            lambda wanted: denoiser_of(model, settings, wanted),
            chain,
            to_float(x0).to(next(model.network.parameters()).device),
            labels=asked,
            more=label_nats(model, asked),
            sigmas=sigmas,
            clipped=clip,
            draws=draws,
            seed=seed,
            note=_note(model, "x̂₀ is clipped to [-1, 1]" if clip else "", few=len(x0)),
        )
    )


@torch.no_grad()
def bounded(
    denoiser_for: Bind,
    chain: Schedule,
    x0: Tensor,
    *,
    labels: Labels | None = None,
    more: Array | float = 0.0,
    sigmas: Sequence[Sigma] = ("beta",),
    clipped: bool = False,
    continuous: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    note: str = "",
) -> Generator[Stage, None, tuple[Bound, ...]]:
    """The bounds of a denoiser's chains, one for each σ, on images x_0 (N, …).

    x_0 holds bytes as p/127.5 - 1, or real numbers, of density, where `continuous`. What is drawn
    for image i is a function of (seed, i). `more` nats (N,) are added to the prior's; `clipped` and
    `note` are handed on.
    """
    count, values = len(x0), x0[0].numel()
    groups = groups_of(chain, draws)
    calls = 1 + len(groups)
    named = labels or [None] * count
    nats = np.empty((len(sigmas), calls, count))
    for first in range(0, count, BATCH):
        rows = range(first, min(first + BATCH, count))
        window = slice(rows.start, rows.stop)
        denoise, x = denoiser_for(named[window]), x0[window]
        u = np.stack([rng.uniform(seed, "bound times", calls, i).numpy() for i in rows], axis=1)
        for k in range(calls):
            # call 0 is the decoder's, of the last step
            group, mass = (np.array([1]), np.array([1.0])) if k == 0 else groups[k - 1]
            place = np.searchsorted(mass.cumsum()[:-1], u[k], side="right")
            t = torch.from_numpy(group[place])
            eps = rng.normal(seed, "bound", rows, k, x.shape[1:]).to(x)
            prediction = denoise(destroy(chain, x, t, eps), chain.times[t])
            for which, sigma in enumerate(sigmas):
                log_var = log_variance(chain, t, _share(sigma, prediction))
                if k == 0:
                    cost = (continuous_decoder if continuous else decoder)(
                        x, prediction.x0, log_var
                    )
                else:
                    cost = step(chain, x, t, prediction.x0, log_var)
                nats[which, k, window] = cost.cpu().numpy() / mass[place]
            yield Stage("variational bound", len(rows) * (k + 1) + first * calls, count * calls)
    start = bits(prior(chain, x0), values).cpu().numpy() + more / (values * math.log(2))
    every = bits(torch.from_numpy(nats), values).numpy()
    return tuple(
        _summed(
            sigma,
            chain,
            start,
            terms,
            groups,
            calls=calls * count,
            clipped=clipped,
            note=note,
        )
        for sigma, terms in zip(sigmas, every, strict=True)
    )


def _summed(
    sigma: Sigma,
    chain: Schedule,
    start: Array,
    terms: Array,
    groups: Sequence[tuple[Array, Array]],
    *,
    calls: int,
    clipped: bool,
    note: str,
) -> Bound:
    """The bound from the prior (N,) and the terms (1 + G, N), decoder first, in bits."""
    mean, low, high = _interval(start + terms.sum(0))
    return Bound(
        bits=mean,
        low=low,
        high=high,
        prior=float(start.mean()),
        steps=float(terms[1:].sum(0).mean()),
        decoder=float(terms[0].mean()),
        terms=tuple(
            Term(
                first=int(group[0]),
                last=int(group[-1]),
                t_first=float(chain.times[group[0]]),
                t_last=float(chain.times[group[-1]]),
                bits=float(cost.mean()),
                error=standard_error(cost),
            )
            for (group, _), cost in zip(groups, terms[1:], strict=True)
        ),
        images=len(start),
        calls=calls,
        chain=chain.steps,
        sigma=sigma,
        clipped=clipped,
        note=note,
    )


def groups_of(chain: Schedule, count: int) -> list[tuple[Array, Array]]:
    """The steps 2 … T in at most `count` groups of about equal mass, and the mass of each in its.

    A step's mass is ln(β̄_t/β̄_{t-1}), and a thousandth of it spread evenly, so that none is without;
    within a group the masses add up to 1. No group for a chain of one step.
    """
    steps = np.arange(2, chain.steps + 1)
    count = min(count, len(steps))
    if count == 0:
        return []
    mass = chain.beta_bar.log().diff()[1:].numpy()
    mass = mass + 1e-3 * mass.mean()
    cumulative = mass.cumsum() / mass.sum()
    ends: list[int] = []
    for k in range(1, count):
        wanted = int(np.searchsorted(cumulative, k / count)) + 1
        least, most = (ends[-1] if ends else 0) + 1, len(steps) - (count - k)
        ends.append(min(max(wanted, least), most))
    parts = zip(np.split(steps, ends), np.split(mass, ends), strict=True)
    return [(group, weights / weights.sum()) for group, weights in parts]


def flow(
    model: Model,
    held_out: Array,
    *,
    labels: Array | None = None,
    images: int = FLOW_IMAGES,
    steps: int = FLOW_STEPS,
    seed: int = 0,
) -> Generator[Stage, None, Flow]:
    """The likelihood of held-out images by the probability flow, without guidance or clipping.

    Arguments:
        held_out: uint8 (N, C, H, W), of which `images` are taken, evenly over the set.
        labels: (N,), needed where the model is conditional: then it is that given the class;
            of clusters a bound for the image alone, `label_nats` included.
        steps: of the solver, an even number; half as many are done too, for the error.

    The images enter at the angle whose β̄ is the spread of the uniform noise on a byte, or where
    the run knows whole steps only at t = 1, if that is later. The stages count network calls with
    gradient, an image each. Raises as `bound`.
    """
    _require(images=(images, 2), steps=(steps, 2))
    if steps % 2:
        raise InputError(f"steps = {steps}: half of them is done too, give an even number")
    pixels, asked = chosen_for(model, held_out, labels, images, names=("held_out", "labels"))
    theta = math.asin(DEQUANTISED)
    if not model.config.loss.continuous:
        theta = max(theta, float(model.schedule.theta[1]))
    noise = np.stack(
        [rng.uniform(seed, "dequantise", pixels[0].size, i).numpy() for i in range(len(pixels))]
    )
    x = (pixels + noise.reshape(pixels.shape) - 0.5) / 127.5 - 1
    settings = SampleConfig(guidance=1.0, clip="none", dtype="float32")
    device = next(model.network.parameters()).device
    return (
        yield from flowed(
            lambda wanted: denoiser_of(model, settings, wanted),
            model.schedule,
            torch.from_numpy(x).to(device=device, dtype=torch.float32),
            theta=theta,
            labels=asked,
            more=label_nats(model, asked),
            offset=math.log2(127.5),
            steps=steps,
            seed=seed,
            note=_note(model, "bytes are uniformly dequantised"),
        )
    )


def flowed(
    denoiser_for: Bind,
    schedule: Schedule,
    x: Tensor,
    *,
    theta: float,
    labels: Labels | None = None,
    more: Array | float = 0.0,
    offset: float = 0.0,
    steps: int = FLOW_STEPS,
    seed: int = 0,
    note: str = "",
) -> Generator[Stage, None, Flow]:
    """-log₂ p(x)/d + offset for x (N, …) that stand at the angle θ, by a denoiser's flow.

    `more` nats (N,) are added.
    """
    count, values = len(x), x[0].numel()
    named = labels or [None] * count
    halves = (steps, steps // 2)
    calls = 4 * sum(halves)
    nats = np.empty((2, count))
    for first in range(0, count, BATCH):
        rows = range(first, min(first + BATCH, count))
        window = slice(rows.start, rows.stop)
        denoise = denoiser_for(named[window])
        probe = rng.normal(seed, "probe", rows, 0, x.shape[1:]).to(x).sign()
        done = first * calls
        for side, number in enumerate(halves):
            for made in flows.walk(denoise, schedule, x[window], probe, theta=theta, steps=number):
                reached = made
                done += 4 * len(rows)
                yield Stage("likelihood by the flow", done, count * calls)
            density = log_normal(reached.x) + reached.log_det
            nats[side, window] = -density.cpu().numpy()
    fine, coarse = bits(torch.from_numpy(nats + more), values).numpy()
    mean, low, high = _interval(fine + offset)
    error = float(np.abs(fine - coarse).mean())
    said = [note] if note else []
    said.append(f"half the steps change it by {error:.1g} on average")
    return Flow(
        bits=mean,
        low=low,
        high=high,
        error=error,
        images=count,
        steps=steps,
        calls=calls * count,
        theta=theta,
        note=", ".join(said),
    )


def _share(sigma: Sigma, prediction: Prediction) -> Tensor:
    """v of ln σ² = v ln β² + (1-v) ln β̃²."""
    match sigma:
        case "beta":
            return torch.ones_like(prediction.x0)
        case "beta_tilde":
            return torch.zeros_like(prediction.x0)
        case "learned":
            if prediction.share is None:
                raise InputError("sigma = learned: this denoiser learned no variance")
            return prediction.share
        case _:
            assert_never(sigma)


def _interval(values: Array) -> tuple[float, float, float]:
    """The mean of independent numbers, and Student's 95 % interval for it."""
    mean = float(values.mean())
    half = float(scipy.stats.t.ppf(COVERAGE, len(values) - 1)) * standard_error(values)
    return mean, mean - half, mean + half


def _note(model: Model, first: str, *, few: int = IMAGES) -> str:
    parts = [first] if first else []
    if few < IMAGES:
        parts.append(f"of {few} images alone, where {IMAGES} are asked for")
    if model.clusters is not None:
        parts.append("given each image's cluster, whose own share is counted too")
    elif model.num_classes:
        parts.append("given each image's class")
    if model.config.loss.self_conditioning:
        parts.append("without self-conditioning")
    return ", ".join(parts)


def _require(**given: tuple[int, int]) -> None:
    for name, (value, least) in given.items():
        if value < least:
            raise InputError(f"{name} = {value}: give at least {least}")
