"""Quality by network calls: every sampler, ours and diffusers', on one trained network.

    python bench/few_steps.py [RUN] [--calls 5,10,20] [--samples 2000] [--distilled RUN …]

RUN is a run of `unraze train fashion-mnist`; where none is named one is trained for ten minutes,
tuned for these calls and distilled to two and to one (`prepared.py`). Each draws the same number of
samples, from the same starting noise where it can, with the same clipped denoiser; they are held
against the 10,000 test images in both feature spaces. The reference is the text's random sampler
(σ = β) in all T steps. All of these without guidance; beside them stands what `unraze tune` found
for RUN, where it was tuned, guidance included in the calls, and the runs that were distilled from
it, in theirs.
A scheduler of diffusers is given the same ᾱ, with 2^-12 for the 0 at the end, as its own
rescaling to zero terminal signal has it. Every cell is kept as a file below --out, and of a cell
that is not whole what was drawn so far; the same command goes on where it was.

What is said at the end, for each number of calls: the best of ours, the best of theirs and the
reference, as Fréchet distances; and the ratios with 95 % intervals.
"""

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import kept
import matplotlib
import numpy as np
import prepared
import torch
from material import test_images
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from unraze.config import SampleConfig
from unraze.data import to_uint8
from unraze.denoiser import emission
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.metrics import frechet, kid
from unraze.generate import (
    Model,
    calls_of,
    changed,
    class_of,
    denoiser_of,
    generate,
    load as load_run,
    plan_of,
    start,
)
from unraze.schedule import Schedule

Array = np.ndarray[Any, Any]
Draw = Callable[[Model, range, int], Array]
"""(model, which samples, seed) -> uint8 (samples, C, H, W)."""

RESULTS = Path(__file__).parent / "results" / "few-steps"
CALLS = (5, 10, 20)
SAMPLES = 2000
AT_ONCE = 64
REFERENCE = "random, σ = β"
LEAST = 2.0**-12
"""ᾱ_T that diffusers' schedulers are given where it is 0."""

OURS: dict[str, dict[str, Any]] = {
    f"{name}{f' {order}' if order else ''}, {spacing}": {
        "sampler": name,
        "spacing": spacing,
        **({"order": order} if order else {}),
    }
    for name, order in (
        ("ddim", None),
        ("heun", None),
        ("dpmpp_2m", None),
        ("dpmpp_3m", None),
        ("dpmpp_2m_sde", None),
        ("dpmpp_3m_sde", None),
        ("unipc", 2),
        ("unipc", 3),
        ("deis", 3),
        ("ipndm", 3),
        ("adams", 2),
        ("adams", 3),
        ("restart", 1),
        ("random", None),
    )
    for spacing in ("angle", "log_snr", "karras")
}

THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "DDPM": ("DDPMScheduler", {"timestep_spacing": "trailing"}),
    "Euler": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "Heun": ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "Heun, Karras": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    "DPM++ 2M, Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 3M": (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "trailing", "solver_order": 3},
    ),
    "DPM++ 2M SDE": (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "trailing", "algorithm_type": "sde-dpmsolver++"},
    ),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}),
    "UniPC 2": ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
    "UniPC 2, Karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC 3": ("UniPCMultistepScheduler", {"timestep_spacing": "trailing", "solver_order": 3}),
    "DEIS": ("DEISMultistepScheduler", {"timestep_spacing": "trailing"}),
    "LMS": ("LMSDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "PNDM": ("PNDMScheduler", {"timestep_spacing": "trailing", "skip_prk_steps": True}),
}

SIDES: dict[str, dict[str, Any]] = {
    "diffusers' schedulers": {"color": "tab:orange", "lw": 0.8, "marker": "_"},
    "our samplers": {"color": "tab:blue", "lw": 0.8, "marker": "_"},
    "ours, tuned": {"color": "tab:blue", "lw": 2, "marker": "o"},
    "ours, distilled": {"color": "tab:green", "lw": 2, "marker": "D"},
}
"""How each kind is drawn."""


def by_ours(changes: dict[str, Any], calls: int) -> Draw:
    """A sampler of Unraze."""

    def draw(model: Model, numbers: range, seed: int) -> Array:
        return drawn(model, numbers, seed, settings(model, changes, calls))

    return draw


def as_set(wanted: SampleConfig) -> Draw:
    """As these settings say."""

    def draw(model: Model, numbers: range, seed: int) -> Array:
        return drawn(model, numbers, seed, wanted)

    return draw


def drawn(model: Model, numbers: range, seed: int, wanted: SampleConfig) -> Array:
    """These samples of a seed, in one batch, uint8 (N, C, H, W)."""
    count = len(numbers)
    steps = generate(model, count, seed=seed, settings=wanted, batch=count, first=numbers.start)
    (last,) = (step.x for step in steps if step.finished)
    return to_uint8(last.clamp(-1, 1))


def settings(model: Model, changes: dict[str, Any], calls: int) -> SampleConfig:
    """Those of the run with a sampler of these calls, without guidance: theirs have none."""
    plain = {"steps": calls, "clip": "clip", "guidance": 1.0}
    return changed(model.config.sample, {**plain, **changes})


def by_theirs(kind: str, options: dict[str, Any], calls: int) -> Draw:
    """A scheduler of diffusers, told v at (their t) + 1."""
    import diffusers

    steps = calls
    if kind.startswith("Heun"):
        steps = (calls + 1) // 2
    if kind.startswith("PNDM"):  # which takes its second step twice
        steps = calls - 1

    def draw(model: Model, numbers: range, seed: int) -> Array:
        scheduler = getattr(diffusers, kind)(
            num_train_timesteps=model.schedule.steps,
            trained_betas=betas(model.schedule),
            prediction_type="v_prediction",
            **{"clip_sample": False} if kind in ("DDIMScheduler", "DDPMScheduler") else {},
            **options,
        )
        told = [class_of(model, None, k, seed) for k in numbers]
        denoise = denoiser_of(model, settings(model, {}, 1), told)
        x = start(model, seed, numbers)
        generator = torch.Generator().manual_seed(seed + numbers.start)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):  # else it is looked up among rounded times
            scheduler.set_begin_index(0)
        x = x * scheduler.init_noise_sigma
        if len(scheduler.timesteps) > calls:
            raise ValueError(f"{kind} makes {len(scheduler.timesteps)} calls")
        for t in scheduler.timesteps:
            said = denoise(scheduler.scale_model_input(x, t), t.double() + 1)
            at = torch.as_tensor(t.double() + 1)
            v = emission("v", said.x0, said.eps, model.schedule, at)
            random = {"generator": generator} if kind not in PLAIN else {}
            x = scheduler.step(v, t, x, **random).prev_sample.float()
        return to_uint8(x.clamp(-1, 1))

    return draw


def betas(schedule: Schedule) -> Array:
    """diffusers' β_t = 1 - ᾱ_t²/ᾱ_{t-1}² (T,) of a schedule, `LEAST` for a 0 at its end."""
    a = schedule.alpha_bar[1:].clone()
    a[-1] = max(float(a[-1]), LEAST)
    steps = torch.cat([a[:1], a[1:] / a[:-1]])
    out: Array = (1 - steps.square()).numpy()
    return out


PLAIN = (
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Those whose step takes no generator."""


@torch.no_grad()
def measured(
    label: str,
    calls: int,
    draw: Draw,
    model: Model,
    of: tuple[Array, Sequence[FeatureSpace]],
    options: argparse.Namespace,
    settings: SampleConfig | None = None,
) -> dict[str, Any]:
    """A cell's result, from its file or made now; `settings` are those that were found, not made of
    the label."""
    about = {} if settings is None else {"settings": settings.model_dump(mode="json")}
    # where capitals are no letters of their own, "heun, karras" is the name of "Heun, Karras"
    whose = "diffusers-" * (label in THEIRS)
    name = f"{model.checkpoint[:12]}-{options.samples}-{calls}-{whose}{kept.slug(label)}"
    name += f"-{kept.key(about)}" * bool(about)
    file = options.out / "cells" / f"{name}{f'-seed{options.seed}' * (options.seed > 0)}.json"
    real, found_spaces = of

    def make() -> kept.Made:
        pictures, seconds = kept.samples(
            file, options.samples, AT_ONCE, lambda numbers: draw(model, numbers, options.seed)
        )
        figures = {}
        for space in found_spaces:
            ours, theirs = space.extract(pictures), space.extract(real)
            for figure in (frechet(theirs, ours), kid(theirs, ours)):
                numbers = asdict(figure)
                figures[f"{space.name}, {figure.name}"] = {
                    name: numbers[name] for name in ("value", "low", "high")
                }
        result = {"label": label, "calls": calls, "seconds": round(seconds, 1), "figures": figures}
        result |= about
        told = ", ".join(f"{distance(result, s.name)[0]:.2f}" for s in found_spaces)
        print(f"{calls:>4} calls  {label:<24} {told}   ({seconds:.0f} s)", flush=True)
        return result, pictures

    return kept.cell(file, make)


def distance(result: dict[str, Any], space: str) -> tuple[float, float]:
    """The Fréchet distance, and the standard error of its logarithm."""
    figure = result["figures"][f"{space}, Fréchet distance"]
    width = math.log(figure["high"]) - math.log(max(figure["low"], 1e-9))
    return float(figure["value"]), width / (2 * 1.96)


def ratio(a: tuple[float, float], b: tuple[float, float]) -> str:
    """a/b with its 95 % interval."""
    middle, width = a[0] / b[0], 1.96 * math.hypot(a[1], b[1])
    return f"{middle:.3f} ({middle * math.exp(-width):.3f} … {middle * math.exp(width):.3f})"


def told(cells: list[dict[str, Any]], names: Sequence[str], steps: int) -> list[str]:
    """The table, line by line."""
    lines = []
    for space in names:
        lines.append(f"{space}: Fréchet distance to the test images")
        (whole,) = [c for c in cells if c["label"] == REFERENCE and c["calls"] == steps]
        reference = distance(whole, space)
        lines.append(f"  {steps} calls  {REFERENCE:<28} {reference[0]:7.2f}")
        for calls in sorted({c["calls"] for c in cells} - {steps}):
            here = [c for c in cells if c["calls"] == calls]
            sides = [[c for c in here if (c["label"] in THEIRS) == side] for side in (False, True)]
            best = [min(s, key=lambda c: distance(c, space)[0]) for s in sides if s]
            for cell in best:
                d = distance(cell, space)
                who = "diffusers " if cell["label"] in THEIRS else ""
                lines.append(
                    f"  {calls:>4} calls  {who + cell['label']:<28} {d[0]:7.2f}   of the reference "
                    f"{ratio(d, reference)}"
                )
            if len(best) == 2:
                between = ratio(distance(best[0], space), distance(best[1], space))
                lines.append(f"              ours / theirs {between}, each the least of its own")
    return lines


def summary_of(calls: Sequence[int], options: argparse.Namespace) -> str:
    """The name of a summary: what was asked for otherwise does not replace that of what is measured
    by default."""
    told = {
        f"{'-'.join(map(str, calls))}-calls": sorted(calls) != sorted(CALLS),
        f"{options.samples}-samples": options.samples != SAMPLES,
        f"seed-{options.seed}": options.seed != 0,
        f"only-{kept.slug(options.only)}": bool(options.only),
    }
    return "-".join(["few-steps", *(name for name, is_other in told.items() if is_other)])


def by_calls(cells: list[dict[str, Any]], names: Sequence[str], steps: int) -> Figure:
    """Distance by calls, a panel a space: a line a sampler, each at the best of its spacings."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    (whole,) = [c for c in cells if c["label"] == REFERENCE and c["calls"] == steps]
    few = [c for c in cells if c is not whole]
    calls = sorted({c["calls"] for c in few})
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, space in zip(panels, names, strict=True):
        reference = distance(whole, space)[0]
        axes.axhline(reference, color="0.5", lw=1, label=f"{REFERENCE}, {steps:,} calls")
        for side, style in SIDES.items():
            mine = [c for c in few if _side(c) == side]
            families = sorted({c["label"].split(",")[0] for c in mine})
            for number, family in enumerate(families):
                best: dict[int, float] = {}
                for c in mine:
                    if c["label"].split(",")[0] == family:
                        value = distance(c, space)[0]
                        best[c["calls"]] = min(value, best.get(c["calls"], math.inf))
                points = zip(*sorted(best.items()), strict=True)
                axes.plot(*points, **style, label=None if number else side)
        axes.set(title=space, xlabel="network calls", xscale="log", yscale="log")
        axes.set_xticks(calls, [str(c) for c in calls])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_ylim(top=10 * reference)
    panels[0].set_ylabel("Fréchet distance")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _side(cell: dict[str, Any]) -> str:
    if cell["label"] in THEIRS:
        return "diffusers' schedulers"
    return f"ours, {cell['label']}" if cell["label"] in ("tuned", "distilled") else "our samplers"


def main() -> None:
    """Parses, draws what is not there, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        help="of `unraze train fashion-mnist`; absent: one is trained, tuned and distilled",
    )
    parser.add_argument("--calls", default=",".join(map(str, CALLS)))
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="labels that hold this text")
    parser.add_argument("--distilled", type=Path, nargs="*", help="runs, from RUN")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    matplotlib.use("Agg")

    all_calls = [int(text) for text in options.calls.split(",")]
    prepared.settle(options, parser, all_calls)
    model = load_run(options.run)
    students = prepared.students(model, options.distilled or [])
    of = test_images()
    cells = []
    for calls in all_calls:
        for label, changes in OURS.items():
            if options.only not in label:
                continue
            if changes["sampler"] == "restart" and calls < 8:
                continue
            plan_of(model, settings(model, changes, calls))
            cells.append(measured(label, calls, by_ours(changes, calls), model, of, options))
        for label, (kind, more) in THEIRS.items():
            if options.only in label:
                draw = by_theirs(kind, more, calls)
                cells.append(measured(label, calls, draw, model, of, options))
        if model.tuning is not None and calls in model.tuning.settings:
            found = model.tuning.settings[calls]
            cells.append(measured("tuned", calls, as_set(found), model, of, options, found))
    for student in students:
        own = student.config.sample
        calls = calls_of(student, own)
        cells.append(measured("distilled", calls, as_set(own), student, of, options, own))
    steps = model.schedule.steps
    reference = by_ours({"sampler": "random", "sigma": "beta", "spacing": "time"}, steps)
    cells.append(measured(REFERENCE, steps, reference, model, of, options))
    names = [space.name for space in of[1]]
    lines = told(cells, names, steps)
    print("\n".join(lines))
    name = summary_of(all_calls, options)
    kept.summary(
        options.out,
        name,
        seeds=[options.seed],
        options=options,
        told=lines,
        cells=cells,
        checkpoint=model.checkpoint,
    )
    kept.figure(options.out / f"{name}.png", by_calls(cells, names, steps))


if __name__ == "__main__":
    main()
