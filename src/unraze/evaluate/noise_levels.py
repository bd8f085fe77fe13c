"""How well each noise level is learned, on held-out images beside the training ones.

    loss(t) = E ‖v - v̂(x_t, t)‖²/d,   v = ᾱ ε̄ - β̄ x_0,   ‖v - v̂‖² = ‖x_0 - x̂_0‖²/β̄² = ‖ε̄ - ε̂‖²/ᾱ²

The error of v is of even size over all levels, where those of x_0 and ε̄ vanish at one end.
Held-out above training: overfitted there. Training above what the best linear denoiser of the
training images gets on held-out ones: underfitted there. With the training images' mean m,
eigenvalues λ and axes, and y = x_0 - m in those axes, its loss is, the noise averaged out,

    Σ_i [(β̄²/s_i)² y_i² + (ᾱ β̄ λ_i/s_i)²]/(β̄² d),   s_i = ᾱ² λ_i + β̄²
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from unraze import rng
from unraze.config import LossConfig, SampleConfig
from unraze.data import evenly, to_float
from unraze.denoiser import Denoiser
from unraze.errors import InputError
from unraze.evaluate.chosen import chosen_for
from unraze.evaluate.intervals import standard_error
from unraze.evaluate.stage import Stage
from unraze.generate import Model, denoiser_of
from unraze.loss import weighted
from unraze.process import destroy_at
from unraze.schedule import Schedule

__all__ = ["Levels", "NoiseLevel", "compared", "even_levels", "linear_losses", "noise_levels"]

Array = np.ndarray[Any, Any]
Labels = Sequence[int | None]
Bound = Callable[[Labels], Denoiser]
"""The denoiser of a batch with these labels."""

ALPHA = 0.01
"""How often, at most, equal losses are called different, over all levels."""
IMAGES, LEVELS = 256, 24
BATCH = 64
LINEAR_IMAGES = 8192
"""Training images, at most, that the linear denoiser is made from; evenly taken."""
PER_VALUE = 2
"""Images for each value of one, at least, for a covariance to be worth something."""
BYTE = (2 / 255) ** 2 / 12
"""The variance that rounding to a byte adds: no eigenvalue is less."""

V = LossConfig(parametrisation="v", target="v")


@dataclass(frozen=True)
class NoiseLevel:
    """The losses at training time t, with its ᾱ: means over images of the error of v, per value.

    Arguments:
        training, held_out: the losses; `training_error`, `held_out_error` their standard errors.
        difference: held_out - training, and `difference_error`, from pairs with the same noise.
        linear: the loss of the best linear denoiser on the held-out images; None where there are
            fewer than two training images a value, too few to make one from.
        overfitted: held_out is above training, beyond the errors.
        underfitted: training, on images that the model knows, is above `linear`, beyond the errors.
    """

    t: float
    alpha_bar: float
    training: float
    training_error: float
    held_out: float
    held_out_error: float
    difference: float
    difference_error: float
    linear: float | None
    overfitted: bool
    underfitted: bool


@dataclass(frozen=True)
class Levels:
    """The rows, from little noise to much, and in words where the model over- or underfits.

    `images` is the number of each kind, `last` is T, the time of pure noise.
    """

    rows: tuple[NoiseLevel, ...]
    images: int
    last: float
    words: str


def noise_levels(
    model: Model,
    training: Array,
    held_out: Array,
    *,
    training_labels: Array | None = None,
    held_out_labels: Array | None = None,
    images: int = IMAGES,
    levels: int = LEVELS,
    seed: int = 0,
) -> Generator[Stage, None, Levels]:
    """The losses of a trained model at noise levels even in angle, without guidance or clipping.

    Arguments:
        training, held_out: uint8 (N, C, H, W). As many of each are taken, evenly over the set:
            `images`, or what the smaller set has.
        training_labels, held_out_labels: (N,), needed where the model is conditional on classes.

    The stages count images times levels. Raises `DataError` for images of another shape or fewer
    than 2 of a kind, `InputError` for missing labels, fewer than 2 images or 1 level.
    """
    for name, value, least in (("images", images, 2), ("levels", levels, 1)):
        if value < least:
            raise InputError(f"{name} = {value}: give at least {least}")
    count = min(images, len(training), len(held_out))
    known, asked = chosen_for(
        model, training, training_labels, count, names=("training", "training_labels")
    )
    unseen, asked_unseen = chosen_for(
        model, held_out, held_out_labels, count, names=("held_out", "held_out_labels")
    )
    device = next(model.network.parameters()).device
    plain = SampleConfig(guidance=1.0, clip="none", dtype="float32")
    return (
        yield from compared(
            lambda labels: denoiser_of(model, plain, labels),
            model.schedule,
            to_float(known).to(device),
            to_float(unseen).to(device),
            even_levels(model.schedule, levels, whole=not model.config.loss.continuous),
            labels=(asked, asked_unseen),
            known=to_float(training[evenly(len(training), LINEAR_IMAGES)]),
            seed=seed,
        )
    )


@torch.no_grad()
def compared(
    denoiser_for: Bound,
    schedule: Schedule,
    training: Tensor,
    held_out: Tensor,
    times: Tensor,
    *,
    labels: tuple[Labels, Labels] | None = None,
    known: Tensor,
    seed: int = 0,
) -> Generator[Stage, None, Levels]:
    """The losses of a denoiser at these times (L,) on as many training as held-out images (N, …).

    Image i of either kind has the same noise at the same level. `known` (K, …) are the images
    that the linear denoiser is made from. Equal losses are called different at any level at most
    once in 100 times: each level is tested one-sided at 1 %/L, by Student's t of the N pairs (for
    underfitting, of two kinds of images without pairs).
    """
    count, total = len(training), 2 * len(training) * len(times)
    sides = (training, held_out)
    named = labels or ([None] * count, [None] * count)
    loss = np.empty((2, len(times), count))
    for level, t in enumerate(times):
        for first in range(0, count, BATCH):
            rows = range(first, min(first + BATCH, count))
            eps = rng.normal(seed, "noise levels", rows, level, training.shape[1:])
            for side in (0, 1):
                x0 = sides[side][rows.start : rows.stop]
                denoise = denoiser_for(named[side][rows.start : rows.stop])
                each = _losses(denoise, schedule, x0, eps.to(x0), t)
                loss[side, level, rows.start : rows.stop] = each.double().cpu().numpy()
            yield Stage("loss by noise level", 2 * (level * count + rows.stop), total)
    linear = linear_losses(schedule, known, held_out, times)
    rows_of = tuple(
        _row(schedule, float(t), loss[0, level], loss[1, level], beside, len(times))
        for level, (t, beside) in enumerate(zip(times, linear, strict=True))
    )
    last = float(schedule.times[-1])
    return Levels(rows_of, count, last, _words(rows_of, last))


def even_levels(schedule: Schedule, levels: int, *, whole: bool = False) -> Tensor:
    """Times in the middles of `levels` equal parts of the angle from 0 to θ_T, float64 (L,).

    With `whole`, rounded to whole steps from 1 on, each once, so that there may be fewer.
    """
    middle = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    times = schedule.time_at(middle * float(schedule.theta[-1]))
    if not whole:
        return times
    steps = sorted({max(1, round(t)) for t in times.tolist()})
    return torch.tensor(steps, dtype=torch.float64)


def linear_losses(schedule: Schedule, known: Tensor, x0: Tensor, times: Tensor) -> Array:
    """The loss (L, N) of the best linear denoiser of `known` (K, …) on each x_0, in the mean.

    NaN where K is less than twice the number of values of an image.
    """
    points, y = known.flatten(1).double().cpu(), x0.flatten(1).double().cpu()
    d = points.shape[1]
    if len(points) < PER_VALUE * d:
        return np.full((len(times), len(y)), np.nan)
    eigenvalues, axes = torch.linalg.eigh(points.T.cov())
    eigenvalues = eigenvalues.clamp(min=0) + BYTE
    square = ((y - points.mean(0)) @ axes).square()
    out = np.empty((len(times), len(y)))
    for level, t in enumerate(times):
        a, b = schedule.at(t)
        s = a**2 * eigenvalues + b**2
        noise = (a * b * eigenvalues / s).square().sum()
        out[level] = ((square @ (b**2 / s).square() + noise) / (b**2 * d)).numpy()
    return out


def _losses(denoise: Denoiser, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """‖v - v̂‖²/d (B,) for x_0 and ε̄ (B, …) at one time."""
    times = t.expand(len(x0))
    x_t = destroy_at(*schedule.at(times), x0, eps)
    return weighted(denoise(x_t, times), x0, eps, schedule, times, V)


def _row(
    schedule: Schedule, t: float, ours: Array, theirs: Array, linear: Array, levels: int
) -> NoiseLevel:
    alpha_bar, _ = schedule.at(torch.tensor(t, dtype=torch.float64))
    bound = float(scipy.stats.t.isf(ALPHA / levels, len(ours) - 1))
    above, beyond = theirs - ours, ours.mean() - linear.mean()
    return NoiseLevel(
        t=t,
        alpha_bar=float(alpha_bar),
        training=float(ours.mean()),
        training_error=standard_error(ours),
        held_out=float(theirs.mean()),
        held_out_error=standard_error(theirs),
        difference=float(above.mean()),
        difference_error=standard_error(above),
        linear=None if np.isnan(linear).any() else float(linear.mean()),
        overfitted=bool(above.mean() > bound * standard_error(above)),
        underfitted=bool(beyond > bound * np.hypot(standard_error(ours), standard_error(linear))),
    )


def _words(rows: Sequence[NoiseLevel], last: float) -> str:
    over = _ranges(rows, [row.overfitted for row in rows], last)
    under = _ranges(rows, [row.underfitted for row in rows], last)
    parts = []
    if over:
        parts.append(
            f"overfitted where t/T is {over}: held-out images lose more than training ones"
        )
    if under:
        parts.append(f"underfitted where t/T is {under}: a linear denoiser loses less")
    if not over:
        parts.insert(0, "no noise level at which held-out images lose more than training ones")
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}."


def _ranges(rows: Sequence[NoiseLevel], marked: Sequence[bool], last: float) -> str:
    """The runs of marked rows, by t/T: "0.002 to 0.31 and 0.6"."""
    runs: list[list[float]] = []
    for i, row in enumerate(rows):
        if marked[i] and i and marked[i - 1]:
            runs[-1].append(row.t / last)
        elif marked[i]:
            runs.append([row.t / last])
    return " and ".join(
        f"{run[0]:.2g} to {run[-1]:.2g}" if len(run) > 1 else f"{run[0]:.2g}" for run in runs
    )
