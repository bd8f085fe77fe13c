"""An evaluation as a page: one file that needs no other, pictures and plots inside."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import jinja2
import markupsafe
import numpy as np
from matplotlib.figure import Figure as Plot
from PIL import Image

from unraze import pictures, plots
from unraze.evaluate.evaluation import Evaluation, InSpace
from unraze.evaluate.figures import Figure
from unraze.evaluate.kept import write_bytes
from unraze.evaluate.likelihood import Bound, Flow
from unraze.evaluate.memorisation import worst_pairs
from unraze.evaluate.reference import Reference

__all__ = ["count", "likelihoods", "noted", "number", "percent", "summary", "write_report"]

SHOWN = 64
"""Samples, and real images, that the page shows."""
PAIRS = 16


def write_report(
    evaluation: Evaluation,
    path: Path,
    *,
    samples: np.ndarray | None,
    reference: Reference,
    command: str = "",
) -> None:
    """Writes the page. `samples` are those evaluated, uint8 (N, C, H, W), where there are any.

    Raises `UnrazeError` where it cannot be written.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        (resources.files("unraze.evaluate") / "report.html").read_text(encoding="utf-8")
    )
    page = template.render(
        e=evaluation,
        summary=summary(evaluation),
        images=_images(evaluation, samples, reference),
        likelihoods=likelihoods(evaluation),
        number=number,
        noted=noted,
        percent=percent,
        count=count,
        scale=scale,
        command=command,
    )
    write_bytes(path, page.encode())


def summary(evaluation: Evaluation) -> list[str]:
    """What a reader in a hurry should know, a sentence each."""
    said = []
    for space in evaluation.spaces:
        for figure in space.figures:
            if figure.name == "KID" and math.isfinite(figure.value):
                said.append(f"{_distance_in_words(figure)} ({space.name}).")
    said += filter(None, map(_agreement_in_words, evaluation.spaces))
    if evaluation.memorisation is not None:
        said.append(f"Memorisation: {evaluation.memorisation.words}")
    if evaluation.bounds:
        bound = min(evaluation.bounds, key=lambda b: b.bits)
        said.append(
            f"Held-out images cost at most {number(bound.bits)} bits a dimension "
            f"({number(bound.low)} … {number(bound.high)})."
        )
    if evaluation.levels is not None:
        said.append(evaluation.levels.words)
    return said


def likelihoods(evaluation: Evaluation) -> list[tuple[str, Bound | Flow]]:
    """What there is of them, each with its name for a table."""
    out: list[tuple[str, Bound | Flow]] = [
        (f"variational bound, {plots.SIGMAS[bound.sigma]}, {bound.chain} steps", bound)
        for bound in evaluation.bounds
    ]
    if evaluation.flow is not None:
        out.append(("probability flow", evaluation.flow))
    return out


def _distance_in_words(figure: Figure) -> str:
    value, low, high = (number(1000 * v) for v in (figure.value, figure.low, figure.high))
    said = f"KID × 1000 is {value} ({low} … {high})"
    if figure.low > 0:
        return f"{said}: samples can be told from real images"
    return f"{said}: so few images do not tell samples from real ones"


def _agreement_in_words(space: InSpace) -> str:
    """How many samples are taken for the class asked for; empty where no class was, or no network
    can say."""
    known = [c for c in space.classes if math.isfinite(c.agreement)]
    beside = [c for c in space.classes if math.isfinite(c.agreement_real)]
    if not known or not beside:
        return ""
    ours = sum(c.agreement * c.generated for c in known) / sum(c.generated for c in known)
    theirs = sum(c.agreement_real * c.real for c in beside) / sum(c.real for c in beside)
    return (
        f"{percent(ours)} of samples are taken for the class asked for, {percent(theirs)} of real "
        f"images for theirs ({space.name})."
    )


def noted(figures: Sequence[Figure]) -> list[str]:
    """What must be said beside the figures, each note once, with the figures it is of."""
    named: dict[str, list[str]] = {}
    for figure in figures:
        whole = figure.note.startswith("not measured")  # one sentence, whatever it holds
        for note in filter(None, [figure.note] if whole else figure.note.split("; ")):
            named.setdefault(note, []).append(figure.name)
    return [f"{', '.join(names)}: {note}" for note, names in named.items()]


def number(value: float | None, digits: int = 4) -> str:
    """So many digits that count, no exponent where it can be helped; "–" for what is not there."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 1e-4:
        return f"{value:.2g}"
    return f"{float(f'{value:.{digits}g}'):,g}"


def percent(share: float | None) -> str:
    """A share as per cent; "–" for what is not there."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.1f} %"


def count(value: int) -> str:
    """A count with commas."""
    return f"{value:,}"


def scale(figure: Figure) -> markupsafe.Markup:
    """The figure on a line: a dot, its interval and its floor; from 0 to what it takes."""
    values = [v for v in (figure.value, figure.low, figure.high, figure.floor) if math.isfinite(v)]
    if not values:
        return markupsafe.Markup("")
    low, high = min(0.0, *values), max(values)
    width, inset = 176, 6

    def x(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(inset + share * (width - 2 * inset), 1)

    parts = [f'<line x1="{inset}" x2="{width - inset}" y1="12" y2="12" stroke="#dfe4ea"/>']
    if math.isfinite(figure.low) and math.isfinite(figure.high):
        parts.append(
            f'<line x1="{x(figure.low)}" x2="{x(figure.high)}" y1="12" y2="12" '
            'stroke="#1f6f8b" stroke-width="4" stroke-linecap="round" opacity=".45"/>'
        )
    if math.isfinite(figure.floor):
        at = x(figure.floor)
        parts.append(
            f'<line x1="{at}" x2="{at}" y1="3" y2="21" stroke="#2d7d46" stroke-width="2"/>'
        )
    if math.isfinite(figure.value):
        parts.append(f'<circle cx="{x(figure.value)}" cy="12" r="4" fill="#1f6f8b"/>')
    label = markupsafe.escape(f"{figure.name} {number(figure.value)}")
    return markupsafe.Markup(
        f'<svg class="scale" viewBox="0 0 {width} 24" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _images(
    evaluation: Evaluation, samples: np.ndarray | None, reference: Reference
) -> Mapping[str, str]:
    """The page's pictures as data addresses; empty texts for those that there are none of."""
    made = dict.fromkeys(("samples", "reals", "pairs", "levels", "terms"), "")
    if samples is not None:
        made["samples"] = _png(_grid(samples))
        made["reals"] = _png(_grid(reference.held_out.pixels))
        found = evaluation.memorisation
        if found is not None:
            space = min(found.spaces, key=lambda s: s.p_single)
            pairs = worst_pairs(space, samples, reference.training.pixels, count=PAIRS)
            made["pairs"] = _png(pairs)
    if evaluation.levels is not None:
        made["levels"] = _plot(plots.noise_level_figure(evaluation.levels))
    if evaluation.bounds:
        made["terms"] = _plot(plots.bound_figure(evaluation.bounds))
    return made


def _grid(pixels: np.ndarray) -> Image.Image:
    chosen = np.asarray(pixels[:SHOWN]).transpose(0, 2, 3, 1)
    return pictures.grid(np.ascontiguousarray(chosen))


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _plot(plot: Plot) -> str:
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=160)
    buffer.seek(0)
    with Image.open(buffer) as picture:
        return _png(picture.convert("RGB"))
