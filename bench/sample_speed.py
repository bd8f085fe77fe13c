"""Images a second for equal quality: our samplers beside diffusers' pipelines, on one network.

    python bench/sample_speed.py [RUN] [--samples 2000] [--reference-samples 2000] [--rounds 5]
                                 [--distilled RUN …]

RUN is a run of `unraze train fashion-mnist`, of v; where none is named it is that of
`few_steps.py`, which is made where it is not there, with what is distilled from it. Three kinds of
ways are timed:

ours        `unraze.generate.sample` in 5 and 10 calls, as `unraze tune` found where it did, else by
            Adams of order 2 with Karras' steps; and in 25 calls of the run's own sampler; and the
            runs that were distilled from it, with --distilled, in theirs
pipelines   the same network, in the same dtype, in diffusers' own pipelines: `DDPMPipeline` in all
            T calls and `DDIMPipeline` in 50, as they come, DPM-Solver++ 2M in 25, and in few calls
            what is best there of those that such a pipeline takes, its SDE in 10 and 5 (UniPC's
            step has no generator, which it is handed); each with the same ᾱ, 2^-12 for the 0 at its
            end, even steps down from T, and x̂_0 clipped by the scheduler
their own   diffusers' UNet2DModel, untrained, in `DDPMPipeline` and `DDIMPipeline`: its cost
            alone, in float32

A time is that of one batch of pictures, of the batch from 16 to 256 that gives most of them a
second, in rounds of all ways in turn: the median over the rounds, with its range. Of pipelines of
more than 25 calls a round makes 25, and takes all to cost the same; how long the whole took for
the samples stands beside it in the file.

Quality is the Fréchet distance of --samples samples to the 10,000 test images, in both feature
spaces, with its 95 % interval. A way is as good as the 1,000 calls of `DDPMPipeline` where it is in
neither space worse by more than the intervals leave open, at equal numbers of samples: with
--reference-samples N the long one draws N, and the others are held against it with their first N.
What is said at the end is how many images a second the fastest of those make, ours and theirs.

Every cell is kept as a file below --out, and of a cell that is not whole what was drawn so far; the
same command goes on where it was.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kept
import matplotlib
import numpy as np
import prepared
import torch
from few_steps import AT_ONCE, betas, drawn
from material import test_images
from matplotlib.figure import Figure
from peer_networks import diffusers_unet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from train_speed import roofline

from unraze import rng
from unraze.config import SampleConfig
from unraze.denoiser import raw_output
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.figures import Figure as Measured
from unraze.evaluate.metrics import difference, frechet
from unraze.generate import (
    Model,
    calls_of,
    changed,
    class_of,
    dtype_of,
    load as load_run,
    within,
)

Array = np.ndarray[Any, Any]
Draw = Callable[[range, int, int], Array]
"""(which samples, seed, calls) -> uint8 (samples, C, H, W)."""

RESULTS = Path(__file__).parent / "results" / "sample-speed"
BATCHES = (16, 32, 64, 128, 256)
FEWEST = 256
"""Samples that a Fréchet distance in these spaces asks for."""
ROOF = ("product", "convolution")
"""What speeds are held against: a float32 matrix product and a 3×3 convolution, in every round."""
MOST_TIMED = 25
"""Calls of a pipeline that a round makes at most."""


@dataclass(frozen=True)
class Way:
    """A way from noise to pictures.

    `draw` gives images uint8 (N, C, H, W) of these numbers and this seed, in so many calls: in
    `calls`, or where it is timed in `timed`. `samples` of them are judged, where 0 none. `flop` are
    those of a call for an image. `settings` are ours, where it is ours; `computing` is what of the
    network its results go by besides.
    """

    label: str
    whose: str
    calls: int
    timed: int
    samples: int
    draw: Draw
    flop: float
    settings: SampleConfig | None = None
    computing: str = ""

    @property
    def name(self) -> str:
        """What it is called among all."""
        return f"{self.whose}: {self.label}"

    @property
    def about(self) -> list[Any]:
        """What a result of it depends on, beside the network and what it is drawn with."""
        settings = None if self.settings is None else self.settings.model_dump(mode="json")
        return [self.name, self.calls, self.timed, settings, self.computing]


class ForDiffusers(nn.Module):
    """A trained network of ours as its pipelines call one: (x, their t) -> .sample, which is v."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network, self.schedule, self.model = model.network, model.schedule, model
        self.computing = dtype_of(model, model.config.sample)
        self.classes: Tensor | None = None
        channels, height, width = model.shape
        self.config = SimpleNamespace(sample_size=(height, width), in_channels=channels)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def told(self, numbers: range, seed: int) -> None:
        """The classes or clusters, if the run has any, that the next pictures are to be of."""
        found = [class_of(self.model, None, k, seed) for k in numbers]
        self.classes = torch.tensor(found) if self.model.num_classes else None

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        """Their t is ours less 1."""
        ours = (t + 1).double().expand(len(x))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.computing == "bfloat16"):
            v = raw_output(self.network, self.schedule, "v", x, ours, classes=self.classes)
        return SimpleNamespace(sample=v.float())


def scheduler_of(model: Model, kind: str, **options: Any) -> Any:
    """A scheduler of diffusers for what this run emits, with the run's own ᾱ."""
    import diffusers

    return getattr(diffusers, kind)(
        num_train_timesteps=model.schedule.steps,
        trained_betas=betas(model.schedule),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        **options,
    )


def piped(kind: str, network: nn.Module, scheduler: Any) -> Draw:
    """Drawing by a pipeline of diffusers."""
    import diffusers

    pipeline = getattr(diffusers, kind)(unet=network, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def draw(numbers: range, seed: int, calls: int) -> Array:
        if isinstance(network, ForDiffusers):
            network.told(numbers, seed)
        images = pipeline(
            batch_size=len(numbers),
            generator=torch.Generator().manual_seed(
                rng.torch_seed(seed, "a pipeline's noise", numbers.start)
            ),
            num_inference_steps=calls,
            output_type="np",
        ).images
        out: Array = np.round(255 * images).astype(np.uint8).transpose(0, 3, 1, 2)
        return out

    return draw


def by_ours(model: Model, settings: SampleConfig) -> Draw:
    """Drawing by Unraze, always in all calls."""

    def draw(numbers: range, seed: int, calls: int) -> Array:
        assert calls == calls_of(model, settings)
        return drawn(model, numbers, seed, settings)

    return draw


def few_calls(model: Model, calls: int) -> SampleConfig:
    """As tuned for this network where it was for so many calls, else Adams with Karras' steps."""
    if model.tuning is not None and calls in model.tuning.settings:
        return model.tuning.settings[calls]
    adams = {"sampler": "adams", "order": 2, "spacing": "karras"}
    return within(model, calls, lambda k: changed(model.config.sample, {**adams, "steps": k}))


def ours(model: Model, settings: SampleConfig, samples: int) -> Way:
    """A way of Unraze."""
    calls, draw = calls_of(model, settings), by_ours(model, settings)
    name = settings.sampler if model.config.distilled is None else Path(model.run).name
    label, computing = f"{name}, {calls}", f"{dtype_of(model, settings)}, {model.checkpoint[:12]}"
    flop = flop_of(ForDiffusers(model), model.shape)
    return Way(label, "unraze", calls, calls, samples, draw, flop, settings, computing)


def ways(model: Model, students: Sequence[Model], options: argparse.Namespace) -> list[Way]:
    """All of them, the long one first among the pipelines."""
    own = within(model, 25, lambda k: changed(model.config.sample, {"steps": k}))
    out = [
        ours(model, settings, options.samples)
        for settings in (few_calls(model, 5), few_calls(model, 10), own)
    ]
    out += [ours(student, student.config.sample, options.samples) for student in students]
    steps, network = model.schedule.steps, ForDiffusers(model)
    flop = flop_of(network, model.shape)
    clipped = {"thresholding": True, "sample_max_value": 1.0}  # a bound of 1 is clipping
    noisy = {"algorithm_type": "sde-dpmsolver++"}
    for label, kind, scheduler, calls, more in (
        ("DDPMPipeline", "DDPMPipeline", "DDPMScheduler", steps, {}),
        ("DDIMPipeline", "DDIMPipeline", "DDIMScheduler", 50, {}),
        ("DPM-Solver++ 2M", "DDPMPipeline", "DPMSolverMultistepScheduler", 25, clipped),
        ("DPM-Solver++ 2M SDE", "DDPMPipeline", "DPMSolverMultistepScheduler", 10, clipped | noisy),
        ("DPM-Solver++ 2M SDE", "DDPMPipeline", "DPMSolverMultistepScheduler", 5, clipped | noisy),
    ):
        count = options.reference_samples if calls == steps else options.samples
        draw = piped(kind, network, scheduler_of(model, scheduler, **more))
        timed = min(calls, MOST_TIMED)
        name, computing = f"{label}, {calls}", network.computing
        out.append(Way(name, "diffusers", calls, timed, count, draw, flop, computing=computing))
    return out + _of_their_own(model)


def _of_their_own(model: Model) -> list[Way]:
    from diffusers import DDIMScheduler, DDPMScheduler

    network = diffusers_unet(model.shape).eval()
    flop = flop_of(network, model.shape)
    return [
        Way(f"{kind}, {calls}", "UNet2DModel", calls, MOST_TIMED, 0, draw, flop)
        for kind, calls, draw in (
            ("DDPMPipeline", 1000, piped("DDPMPipeline", network, DDPMScheduler(1000))),
            ("DDIMPipeline", 50, piped("DDIMPipeline", network, DDIMScheduler(1000))),
        )
    ]


def flop_of(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """FLOP of a call of a network of pipelines, for one image."""
    if isinstance(network, ForDiffusers):
        network.told(range(1), 0)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, *shape), torch.tensor(1))
    return float(counter.get_total_flops())


# ------------------------------------------------------------------------------- quality


def judged(
    way: Way, model: Model, real: Array, of: Sequence[FeatureSpace], options: argparse.Namespace
) -> dict[str, Any]:
    """A way's figures in both spaces, for each number of samples that it is held against."""
    counts = sorted({way.samples, min(way.samples, options.reference_samples)})
    place = f"{model.checkpoint[:12]}-{'-'.join(map(str, counts))}-{kept.slug(way.name)}"
    file = options.out / "cells" / f"{place}-seed{options.seed}-{kept.key(way.about)}.json"

    def make() -> kept.Made:
        print(f"{way.name}: drawing {way.samples}", flush=True)
        pictures, seconds = kept.samples(
            file, way.samples, AT_ONCE, lambda k: way.draw(k, options.seed, way.calls)
        )
        figures: dict[str, Any] = {}
        for space in of:
            ours, theirs = space.extract(pictures), space.extract(real)
            figures[space.name] = {
                str(count): asdict(frechet(theirs, ours[:count])) for count in counts
            }
        result = {"way": way.name, "calls": way.calls, "samples": way.samples}
        return result | {"seconds": round(seconds, 1), "figures": figures}, pictures

    return kept.cell(file, make)


def as_good(one: dict[str, Any], reference: dict[str, Any]) -> bool:
    """Whether it is in no space worse than the reference, or by no more than intervals explain."""
    count = str(reference["samples"])
    for space, figures in reference["figures"].items():
        pair = (Measured(**cell[count]) for cell in (one["figures"][space], figures))
        apart = difference(*pair)
        if apart.real and apart.value > 0:
            return False
    return True


# ------------------------------------------------------------------------------- speed


def seconds_of(way: Way, batch: int, seed: int) -> float:
    """Seconds that a batch takes in all its calls; of more than are timed, in proportion."""
    began = time.perf_counter()
    way.draw(range(batch), seed, way.timed)
    return (time.perf_counter() - began) * way.calls / way.timed


def batches(all_ways: Sequence[Way], options: argparse.Namespace) -> dict[str, int]:
    """The batch with which each makes most images a second; one try each after a small one."""
    best = {}
    for way in all_ways:
        seconds_of(way, min(options.batches), options.seed)
        rates = {batch: batch / seconds_of(way, batch, options.seed) for batch in options.batches}
        best[way.name] = max(rates, key=lambda batch: rates[batch])
        print(f"{way.name}: a batch of {best[way.name]}", flush=True)
    return best


def timed(all_ways: Sequence[Way], model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """The batch of each way, and its images a second in every round; each round is a cell."""
    about = kept.here([way.about for way in all_ways], options.batches)
    stem = f"{model.checkpoint[:12]}-{options.threads}threads-{about}"
    cells = options.out / "cells"
    best = kept.cell(cells / f"{stem}-batches.json", lambda: (batches(all_ways, options), None))

    def make() -> kept.Made:
        rates = {
            way.name: best[way.name] / seconds_of(way, best[way.name], options.seed)
            for way in all_ways
        }
        return rates | dict(zip(ROOF, roofline(), strict=True)), None

    made = [kept.cell(cells / f"{stem}-round{k}.json", make) for k in range(options.rounds)]
    rates = {way.name: [one[way.name] for one in made] for way in all_ways}
    roof = {of: statistics.median(one[of] for one in made) for of in ROOF}
    shares = {
        way.name: [
            way.calls * way.flop * statistics.median(rates[way.name]) / roof[of] for of in ROOF
        ]
        for way in all_ways
    }
    return {"batches": best, "images_per_second": rates, "roofline": roof, "shares": shares}


# ------------------------------------------------------------------------------- what is said


def told(
    all_ways: Sequence[Way], judgements: dict[str, dict[str, Any]], speed: dict[str, Any]
) -> list[str]:
    """The table, line by line."""
    rates = speed["images_per_second"]
    reference = judgements[_reference(all_ways).name]
    names = list(reference["figures"])
    lines = [
        f"{'way':<36} {'batch':>5} {'images/s':>28} {'prod.':>6} {'conv.':>6}"
        f"  FD in {' and '.join(names)}"
    ]
    good = {}
    for way in all_ways:
        line = f"{way.name:<36} {speed['batches'][way.name]:>5} {ranged(rates[way.name]):>28}"
        line += "".join(f" {share:>6.0%}" for share in speed["shares"][way.name])
        if way.name in judgements:
            one = judgements[way.name]
            for space in names:
                figure = one["figures"][space][str(one["samples"])]
                line += f"  {figure['value']:.2f} ({figure['low']:.2f} … {figure['high']:.2f})"
            good[way.name] = as_good(one, reference)
            line += "" if good[way.name] else "  worse than the reference"
        lines.append(line)
    lines.append(f"at quality not significantly worse than {_reference(all_ways).name}:")
    best = {}
    for whose in ("unraze", "diffusers"):
        candidates = [w.name for w in all_ways if w.whose == whose and good.get(w.name)]
        if not candidates:
            lines.append(f"  {whose}: none of its ways")
            continue
        best[whose] = max(candidates, key=lambda name: statistics.median(rates[name]))
        lines.append(f"  {best[whose]:<34} {ranged(rates[best[whose]])} images/s")
    if len(best) == 2:
        lines.append(f"  ratio, round by round: {_ratio(rates, best['unraze'], best['diffusers'])}")
    if "unraze" in best:
        slow = _reference(all_ways).name
        lines.append(f"  to {slow}: {_ratio(rates, best['unraze'], slow)}")
    return lines


def by_speed(
    all_ways: Sequence[Way], judgements: dict[str, dict[str, Any]], speed: dict[str, Any]
) -> Figure:
    """Distance by images a second, a panel a space: ours, and the same network in pipelines."""
    names = list(judgements[_reference(all_ways).name]["figures"])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, space in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for whose, label in (("unraze", "unraze"), ("diffusers", "diffusers' pipelines")):
            ways = [way for way in all_ways if way.whose == whose and way.name in judgements]
            ours = [judgements[way.name] for way in ways]
            rates = [statistics.median(speed["images_per_second"][way.name]) for way in ways]
            values = [one["figures"][space][str(one["samples"])]["value"] for one in ours]
            axes.plot(rates, values, "o", label=label)
            for way, x, y in zip(ways, rates, values, strict=True):
                of_calls = f"{way.calls:,}"
                axes.annotate(of_calls, (x, y), (4, 4), textcoords="offset points", fontsize=8)
        axes.set(title=space, xlabel="images a second", xscale="log", yscale="log")
        axes.margins(0.12)  # for the words at the outer points
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    figure.axes[0].set_ylabel("Fréchet distance, at its network calls")
    return figure


def ranged(values: Sequence[float]) -> str:
    """median (lowest … highest), to three figures."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.3g} ({low:.3g} … {high:.3g})"


def _ratio(rates: dict[str, list[float]], a: str, b: str) -> str:
    return ranged([x / y for x, y in zip(rates[a], rates[b], strict=True)])


def _reference(all_ways: Sequence[Way]) -> Way:
    return next(way for way in all_ways if way.label.startswith("DDPMPipeline"))


@torch.no_grad()
def main() -> None:
    """Parses, draws and times what is not there, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        help="of `unraze train fashion-mnist`; absent: one is trained, tuned and distilled",
    )
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument(
        "--reference-samples", type=int, help="of the pipeline in all T calls; --samples if absent"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--distilled", type=Path, nargs="*", help="runs, from RUN")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.batches = [int(text) for text in options.batches.split(",")]
    options.reference_samples = min(options.reference_samples or options.samples, options.samples)
    if options.reference_samples < FEWEST:
        parser.error(f"--reference-samples {options.reference_samples}: give {FEWEST} or more")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    matplotlib.use("Agg")

    prepared.settle(options, parser, [5, 10])
    model = load_run(options.run)
    if model.config.train.classes or model.config.loss.parametrisation != "v":
        parser.error(f"{options.run}: give a run of v, without classes")
    real, of = test_images()
    if model.shape != real.shape[1:]:
        parser.error(f"{options.run}: give a run of fashion-mnist")
    all_ways = ways(model, prepared.students(model, options.distilled or []), options)
    speed = timed(all_ways, model, options)
    judgements = {
        way.name: judged(way, model, real, of, options) for way in all_ways if way.samples
    }
    lines = told(all_ways, judgements, speed)
    print("\n".join(lines))
    kept.summary(
        options.out,
        "sample-speed",
        seeds=[options.seed],
        options=options,
        told=lines,
        cells=list(judgements.values()),
        checkpoint=model.checkpoint,
        **speed,
    )
    kept.figure(options.out / "sample-speed.png", by_speed(all_ways, judgements, speed))


if __name__ == "__main__":
    main()
