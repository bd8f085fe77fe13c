"""Curves: schedules and losses. matplotlib is imported when something is drawn."""

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

    from unraze.schedule import Schedule

__all__ = ["COLOURS", "bare", "figure", "loss_figure", "save", "schedule_figure", "smoothed"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Okabe & Ito's colours: told apart by the colour-blind too."""
STYLES = ("-", (0, (5, 2)), (0, (1, 1.2)))
"""Solid, dashed, dotted in turn, so that a curve shows where it lies upon another."""
INK = "#444444"
LOG_FROM = 3.0
"""The ratio of largest to smallest loss from which on the axis is logarithmic."""


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
        lr = [row["lr"] for row in good]
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
