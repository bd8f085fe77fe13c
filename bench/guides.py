"""What samples are guided away from: the network without its label, or a weaker network.

    python bench/trials.py base "young: train.steps=300" --out NEW
    python bench/guides.py NEW/runs/base-1200-seed0 NEW/runs/young-300-seed0

x̂_0 = x̂_w + w (x̂ - x̂_w): of classifier-free guidance x̂_w is the network's own estimate without
the label, of autoguidance (Karras et al. 2024, arXiv:2406.02507) that of a weaker network, with the
label; one without labels can only be guided so. RUN and each WEAK are runs of `trials.py`, trained
on the same images with the same clusters. All draw as RUN's settings say, in as many steps, but for
weight and interval. Samples are held against the last 5,000 training images, which none of these
was trained on, in the first feature space. Every way is kept as a file below --out, and the same
command goes on where it was.
"""

import argparse
import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import kept
import numpy as np
import torch
from material import FASHION, Material, figures, material

from unraze.config import SampleConfig
from unraze.data import to_uint8
from unraze.denoiser import guided
from unraze.generate import (
    Model,
    bounded,
    calls_of,
    changed,
    class_of,
    denoiser_of,
    guided_between,
    load,
    noise_of,
    plan_of,
    start,
)
from unraze.walk import walk

Array = np.ndarray[Any, Any]

AT_ONCE = 64
RESULTS = Path(__file__).parent / "results" / "guides"


@torch.no_grad()
def drawn(model: Model, weak: Model | None, settings: SampleConfig, count: int, seed: int) -> Array:
    """Samples 0 … count-1 of a seed, guided away from `weak` or as the settings say."""
    way, parts = plan_of(model, settings), []
    for first in range(0, count, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, count))
        labels = [class_of(model, None, k, seed) for k in numbers]
        if weak is None:
            denoise = denoiser_of(model, settings, labels)
        else:
            alone = changed(settings, {"guidance": 1.0, "clip": "none"})
            strong, weaker = (denoiser_of(one, alone, labels) for one in (model, weak))
            interval = guided_between(model, settings)
            away = guided(strong, weaker, settings.guidance, interval=interval)
            denoise = bounded(model, settings, away)
        x, noise = start(model, seed, numbers), noise_of(model, seed, numbers)
        for step in walk(denoise, x, way.chain, settings, noise):
            x = step.x
        parts.append(to_uint8(x.clamp(-1, 1)))
    return np.concatenate(parts)


def measured(
    model: Model,
    weak: Model | None,
    settings: SampleConfig,
    of: Material,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """A way's result, from its file or made now."""
    low, high = settings.guidance_interval
    if settings.guidance == 1:
        how = by = "nothing"
    else:
        by = "no label" if weak is None else f"weak {weak.checkpoint[:8]}"
        how = f"{by} w{settings.guidance:g} {low:g}-{high:g}"
    name = f"{model.checkpoint[:12]}-{kept.key(settings.model_dump(mode='json'))}-{options.samples}"
    file = options.out / "cells" / f"{of.name}{name}-{kept.slug(how)}-seed{options.seed}.json"

    def make() -> kept.Made:
        pictures = drawn(model, weak, settings, options.samples, options.seed)
        space = of.spaces[0]
        found = figures(of, space.extract(of.validation), space.extract(pictures))
        result = {
            "away from": by,
            "weight": settings.guidance,
            "interval": [low, high],
            "calls": calls_of(model, settings),
            "figures": {figure.name: asdict(figure) for figure in found},
        }
        return result, pictures

    return kept.cell(file, make)


def line(result: dict[str, Any], measure: str) -> str:
    """A way in words."""
    low, high = result["interval"]
    figure = result["figures"][measure]
    way = f"w {result['weight']:<5g} {low:g} … {high:g}" if result["weight"] != 1 else ""
    return (
        f"{result['away from']:<14} {way:<20} {result['calls']:>3} calls   {measure} "
        f"{figure['value']:8.4f} ({figure['low']:.4f} … {figure['high']:.4f})"
    )


def main() -> None:
    """Parses, draws what is not there, prints a line each, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("weak", type=Path, nargs="*", help="runs to guide away from")
    parser.add_argument("--weights", default="1.5,2.5,3.5,5", help="w, separated by commas")
    parser.add_argument("--intervals", default="0.2-0.8,0-1", help="parts of T, LOW-HIGH")
    parser.add_argument("--data", default=FASHION, help="what the runs were trained on")
    parser.add_argument("--size", type=int, help="that images are brought to")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    intervals = [tuple(map(float, text.split("-"))) for text in options.intervals.split(",")]
    weights = [float(text) for text in options.weights.split(",")]

    of = material(options.data, options.size, samples=options.samples)
    model, weaker = load(options.run), [load(path) for path in options.weak]
    for path, one in zip(options.weak, weaker, strict=True):
        if (one.num_classes, one.shape) != (model.num_classes, model.shape):
            parser.error(f"{path}: of other images or labels than {options.run}")
    guides: list[Model | None] = [*([None] if model.num_classes else []), *weaker]
    cells = []
    plain = changed(model.config.sample, {"guidance": 1.0, "guidance_interval": (0.0, 1.0)})
    for weak, interval, weight in [
        (None, (0.0, 1.0), 1.0),
        *itertools.product(guides, intervals, weights),
    ]:
        settings = changed(plain, {"guidance": weight, "guidance_interval": interval})
        cells.append(measured(model, weak, settings, of, options))
        print(line(cells[-1], of.measure), flush=True)
    kept.summary(
        options.out,
        f"guides-{of.name}{model.checkpoint[:12]}",
        seeds=[options.seed],
        options=options,
        told=[line(cell, of.measure) for cell in cells],
        cells=cells,
        checkpoints={
            path.name: one.checkpoint
            for path, one in zip([options.run, *options.weak], [model, *weaker], strict=True)
        },
    )


if __name__ == "__main__":
    main()
