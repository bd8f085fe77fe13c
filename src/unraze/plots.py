"""Curves and bars: schedules, losses, quality, likelihood.

matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unraze import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from unraze.evaluate.likelihood import Bound
    from unraze.evaluate.noise_levels import Levels
    from unraze.schedule import Schedule

__all__ = [
    "COLOURS",
    "SIGMAS",
    "bare",
    "bound_figure",
    "figure",
    "loss_figure",
    "noise_level_figure",
    "quality_figure",
    "save",
    "schedule_figure",
    "smoothed",
]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Okabe & Ito's colours: told apart by the colour-blind too."""
STYLES = ("-", (0, (5, 2)), (0, (1, 1.2)))
"""Solid, dashed, dotted in turn, so that a curve shows where it lies upon another."""
INK = "#444444"
SIGMAS = {"beta": "σ = β", "beta_tilde": "σ = β̃", "learned": "σ learned"}
"""How the spreads of a chain's steps are written."""
LOG_FROM = 3.0
"""The ratio of largest to smallest loss from which on the axis is logarithmic."""
LOWEST = 1e-4
"""The least share of the largest loss by noise level that is still shown."""


def figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches, at 110 pixels an inch."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def bare(axes: Axes) -> None:
    """Takes away what does not speak: the box, the dark grid."""
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelcolor=INK)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def schedule_figure(schedules: Mapping[str, Schedule]) -> Figure:
    """Four panels of t/T: signal ᾱ_t, noise β̄_t, step noise β_t and log-SNR 2 ln(ᾱ_t/β̄_t).

    Log-SNR is shown from -15 to 15. Raises `ValueError` where there is no schedule to draw.
    """
    if not schedules:
        raise ValueError("there is no schedule to draw: give one or more, by name")
    whole = figure(9.0, 6.2)
    panels = whole.subplots(2, 2)
    titles = (
        r"signal left, $\bar{\alpha}_t$",
        r"noise so far, $\bar{\beta}_t$",
        r"noise of one step, $\beta_t$",
        r"log-SNR, $2\,\ln(\bar{\alpha}_t/\bar{\beta}_t)$",
    )
    for axes, title in zip(panels.flat, titles, strict=True):
        bare(axes)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("t / T", color=INK)
    for i, (name, schedule) in enumerate(schedules.items()):
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        t = (schedule.times / schedule.times[-1]).numpy()
        log_snr = schedule.log_snr.numpy()
        shown = np.isfinite(log_snr)
        curves = (
            (t, schedule.alpha_bar.numpy()),
            (t, schedule.beta_bar.numpy()),
            (t[1:], schedule.beta.numpy()[1:]),
            (t[shown], log_snr[shown]),
        )
        for axes, (x, y) in zip(panels.flat, curves, strict=True):
            axes.plot(x, y, color=colour, linestyle=style, linewidth=1.8, label=name)
    _logarithmic(panels[1, 0], subs=(1.0,))
    panels[1, 1].set_ylim(-15, 15)
    panels[0, 0].legend(frameon=False, loc="upper right", labelcolor=INK, handlelength=2.6)
    return whole


def loss_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss of every step, light, and its running mean, strong; the learning rate below.

    `rows` are those of `stats.jsonl`: a step with a finite "loss" also has its "lr"; the others,
    which training skipped, are marked at the bottom. The axis is logarithmic where losses are
    positive and span more than a factor of 3.
    """
    good = [row for row in rows if "loss" in row and math.isfinite(row["loss"])]
    skipped = [row["step"] for row in rows if "loss" not in row or not math.isfinite(row["loss"])]
    step = np.array([row["step"] for row in good])
    loss = np.array([row["loss"] for row in good], dtype=np.float64)
    whole = figure(8.0, 4.8)
    above, below = whole.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bare(above)
    bare(below)
    marker = "o" if len(good) == 1 else ""
    if len(good):
        above.plot(step, loss, color=COLOURS[0], alpha=0.3, linewidth=0.8, label="each step")
        above.plot(
            step, smoothed(loss), marker=marker, color=COLOURS[0], lw=2, label="running mean"
        )
        lr = [row.get("lr", 0.0) for row in good]
        below.plot(step, lr, marker=marker, color=COLOURS[1], linewidth=1.5)
        below.set_ylim(0, 1.1 * max(lr) or 1)
        if loss.min() > 0 and loss.max() > LOG_FROM * loss.min():
            _logarithmic(above, subs=(1.0, 2.0, 5.0))
    else:
        above.text(0.5, 0.5, "no step yet", transform=above.transAxes, ha="center", color=INK)
    if skipped:
        at_the_bottom = np.zeros(len(skipped))
        above.plot(
            skipped,
            at_the_bottom,
            "|",
            transform=above.get_xaxis_transform(),
            color=COLOURS[1],
            markersize=12,
            markeredgewidth=2,
            label="skipped",
        )
    if good or skipped:
        above.legend(frameon=False, loc="upper right", labelcolor=INK)
    above.set_title("loss", loc="left", fontsize=11)
    below.set_title("learning rate", loc="left", fontsize=11)
    below.set_xlabel("step", color=INK)
    below.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return whole


def noise_level_figure(levels: Levels) -> Figure:
    """The loss of v by noise level t/T: training and held-out images, and the linear denoiser.

    Bars are two standard errors to either side; levels where the model is overfitted are marked at
    the bottom. The axis is logarithmic where losses span more than a factor of 3, and ends four
    powers of ten below the largest: a perfect copier's have no end.
    """
    rows = levels.rows
    t = [row.t / levels.last for row in rows]
    whole = figure(8.0, 4.8)
    axes = whole.subplots()
    bare(axes)
    curves = (
        ("training images", [row.training for row in rows], [row.training_error for row in rows]),
        ("held-out images", [row.held_out for row in rows], [row.held_out_error for row in rows]),
    )
    drawn: list[float] = []
    for i, (name, loss, error) in enumerate(curves):
        axes.errorbar(
            t,
            loss,
            yerr=[2 * e for e in error],
            color=COLOURS[i],
            marker="o",
            markersize=3.5,
            linewidth=1.8,
            elinewidth=1,
            label=name,
        )
        drawn += loss
    linear = [(x, row.linear) for x, row in zip(t, rows, strict=True) if row.linear is not None]
    if linear:
        x, y = zip(*linear, strict=True)
        axes.plot(x, y, color=COLOURS[6], linestyle=(0, (5, 2)), lw=1.4, label="linear denoiser")
        drawn += y
    over = [x for x, row in zip(t, rows, strict=True) if row.overfitted]
    if over:
        axes.plot(
            over,
            np.zeros(len(over)),
            "|",
            transform=axes.get_xaxis_transform(),
            color=COLOURS[1],
            markersize=12,
            markeredgewidth=2,
            label="overfitted",
        )
    top, low = max(drawn), min(drawn)
    if 0 < LOG_FROM * low < top:
        low = max(low, LOWEST * top)
        _logarithmic(axes, subs=(1.0, 2.0, 5.0) if top < 100 * low else (1.0,))
        axes.set_ylim(low / 1.5, top * 1.5)
    axes.set_xlim(0, 1)
    axes.set_title(r"loss by noise level, $\Vert v - \hat{v}\Vert^2/d$", loc="left", fontsize=11)
    axes.set_xlabel("t / T", color=INK)
    axes.legend(frameon=False, labelcolor=INK)
    return whole


def bound_figure(bounds: Sequence[Bound]) -> Figure:
    """Where on the way the bounds' bits are: decoder, groups of steps, prior, a bar for each σ.

    Groups are one after the other from the picture to the noise, their width the same whatever the
    number of steps; two standard errors to either side. All bounds are of one chain.
    """
    whole = figure(8.0, 3.6)
    axes = whole.subplots()
    bare(axes)
    width = 0.84 / len(bounds)
    for which, (bound, colour) in enumerate(zip(bounds, COLOURS, strict=False)):
        heights = [bound.decoder, *(term.bits for term in bound.terms), bound.prior]
        errors = [0.0, *(2 * term.error for term in bound.terms), 0.0]
        places = np.arange(len(heights)) + (which - (len(bounds) - 1) / 2) * width
        label = f"{SIGMAS[bound.sigma]}: {bound.bits:.3f} in all"
        axes.bar(places, heights, width, color=colour, yerr=errors, ecolor=INK, label=label)
    terms = bounds[0].terms
    labels = ["decoder", *(_steps(t.first, t.last) for t in terms), "prior"]
    axes.set_xticks(np.arange(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_title("bits a dimension, by the steps they are spent in", loc="left", fontsize=11)
    axes.legend(frameon=False, labelcolor=INK)
    return whole


def _steps(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def quality_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """KID by training step with its 95 % interval, the best one marked; lower is better.

    `rows` are those of `quality.jsonl` that have "step", "kid", "low" and "high".
    """
    whole = figure(8.0, 3.6)
    axes = whole.subplots()
    bare(axes)
    axes.set_title("KID × 1000 of small samples, held-out images", loc="left", fontsize=11)
    axes.set_xlabel("step", color=INK)
    rows = [row for row in rows if "kid" in row and "low" in row and "high" in row]
    if not rows:
        axes.text(0.5, 0.5, "not evaluated yet", transform=axes.transAxes, ha="center", color=INK)
        return whole
    step = [row["step"] for row in rows]
    kid, low, high = ([1000 * row[name] for row in rows] for name in ("kid", "low", "high"))
    axes.fill_between(step, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    axes.plot(step, kid, "o-", color=COLOURS[0], markersize=4, linewidth=1.8)
    best = int(np.argmin(kid))
    axes.plot(step[best], kid[best], "o", color=COLOURS[1], markersize=8, label="best")
    axes.legend(frameon=False, loc="upper right", labelcolor=INK)
    axes.set_ylim(bottom=min(0.0, *low))
    return whole


def smoothed(values: np.ndarray[Any, Any], *, keep: float | None = None) -> np.ndarray[Any, Any]:
    """The exponential mean over both sides, m_i = Σ_j d^|i-j| v_j / Σ_j d^|i-j|: no lag, no bias.

    Arguments:
        values: (N,).
        keep: d, from 0 to below 1; where absent, 1 - 100/N, or 1/2 for fewer than 200 values.
    """
    d = (1 - 1 / max(2.0, len(values) / 100)) if keep is None else keep
    if not 0 <= d < 1:
        raise ValueError(f"keep = {d}: give at least 0 and less than 1")
    v = np.asarray(values, dtype=np.float64)
    ones = np.ones(len(v))
    return np.asarray(_both_sides(v, d) / _both_sides(ones, d))


def _both_sides(v: np.ndarray[Any, Any], d: float) -> np.ndarray[Any, Any]:
    """Σ_j d^|i-j| v_j, as two recursions that share the middle term."""
    return np.asarray(_decayed(v, d) + _decayed(v[::-1], d)[::-1] - v)


def _decayed(v: np.ndarray[Any, Any], d: float) -> np.ndarray[Any, Any]:
    """Σ_{j ≤ i} d^(i-j) v_j."""
    total, out = 0.0, np.empty(len(v))
    for i, value in enumerate(v):
        total = d * total + value
        out[i] = total
    return out


def _logarithmic(axes: Axes, *, subs: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are plain numbers, at these multiples of the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def save(whole: Figure, path: Path, recipe: Mapping[str, Any]) -> None:
    """Writes a figure as PNG with its recipe, as `pictures.write_png` does and with its errors."""
    buffer = io.BytesIO()
    whole.savefig(buffer, format="png", metadata={"Software": None})
    buffer.seek(0)
    with Image.open(buffer) as picture:
        pictures.write_png(picture.convert("RGB"), path, recipe)
