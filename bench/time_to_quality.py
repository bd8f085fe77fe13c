"""Quality by training time: `fast` and the peers' own networks, trained for the same minutes.

    python bench/time_to_quality.py [--minutes 5,10] [--peers azula,diffusers] [--seeds 3 or 3,4,5]
    python bench/time_to_quality.py --long 60
    python bench/time_to_quality.py --data FOLDER --size 32 --minutes 10

Every contender is trained on the first 55,000 of Fashion-MNIST's training images for each of the
times, with each of the seeds, by the same threads, one after the other, in turns; each in float32
or bfloat16, whichever makes its steps faster. A peer's learning rate is the best of 3e-4, 1e-3 and
2e-3, chosen first: by another seed, the shortest time, the first feature space and the last 5,000
training images, by which also the best of its own samplers is chosen, each time, with 500 samples.
Ours is the preset's. Then all draw the same number of samples in the same number of network calls,
and are held against as many of the 10,000 test images in both feature spaces. Every training is
kept as a file below --out as soon as it is scored; the same command goes on where it was, and
counts what is there, whichever machine it was measured on, if by as many threads. With --out NEW
all of it is measured anew. A peer's training that is killed goes on from what it had saved a minute
before at most, ours begins again.

What is said at the end, for each time: the Fréchet distance of each contender, over its seeds; the
floor, which two sets of as many real images have; and the ratio of what is above the floor, ours
to the best peer's, with its 95 % interval over seeds. With --long the peers are also trained for so
many minutes, with one seed. Beside every contender stands whether its samples are copies of
training images.

Other images than Fashion-MNIST are held out by a fifth, half of which rates are chosen by and half
is measured on; where these are too few for a Fréchet distance, KID is what is compared, its ratio
with the interval that the figures' own errors give.

azula and denoising-diffusion-pytorch (lucidrains) ask for torchvision, which is not used here, so
they are installed without what they depend on; the command is said where they are missing.
"""

import argparse
import hashlib
import math
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kept
import matplotlib
import numpy as np
import peers
import torch
from machine import machine, start, versions
from material import FASHION, Material, copies, figures, material
from matplotlib.figure import Figure
from scipy import stats

from unraze import train as training
from unraze.config import preset, updated
from unraze.data import to_uint8
from unraze.evaluate.gaussian import FRECHET
from unraze.evaluate.metrics import frechet, kid
from unraze.generate import changed, sample, within

Array = np.ndarray[Any, Any]

OURS = "unraze"
RATES = "3e-4,1e-3,2e-3"
SELECTION_SEED = 1000
NORMAL = 1.96
CHOSEN_BY = 500
"""Samples that a peer's sampler is chosen by."""
RESULTS = Path(__file__).parent / "results" / "time-to-quality"


@dataclass(frozen=True)
class Cell:
    """One training: who, for how long, with which learning rate (0 is its own) and seed."""

    name: str
    minutes: float
    lr: float
    seed: int

    @property
    def slug(self) -> str:
        """The name of its file; ours with a key of the preset, of which another result is kept."""
        recipe = f"lr{self.lr:g}" if self.name != OURS else _recipe()
        return f"{self.name}-{self.minutes:g}min-{recipe}-seed{self.seed}"


def _recipe() -> str:
    # without keys that are absent: a key that is new, and absent in the preset, changes nothing;
    # nor with those that change how a step is computed and not what
    how = {"recompute", "compile", "shard"}
    left_out: dict[str, Any] = {"about": True, "sample": True, "train": how}
    return _key(preset("fast").model_dump_json(exclude=left_out, exclude_none=True))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def trained(cell: Cell, of: Material, options: argparse.Namespace) -> tuple[Array, dict[str, Any]]:
    """The samples uint8 (N, C, H, W) of a contender after its training, and what that was."""
    torch.set_num_threads(options.threads)
    if cell.name == OURS:
        began = time.perf_counter()
        config = updated(
            preset("fast"),
            {
                "train.minutes": cell.minutes,
                "train.seed": cell.seed,
                "train.threads": options.threads,
            },
        )
        folder = options.out / "runs" / f"{of.name}{cell.slug}"
        shutil.rmtree(folder, ignore_errors=True)
        model = training.fit(of.training, config, out=folder)
        seconds, steps = time.perf_counter() - began, model.step
        images = steps * config.train.batch
        settings = within(
            model, options.calls, lambda k: changed(model.config.sample, {"steps": k})
        )
        drawn = to_uint8(sample(model, options.samples, seed=cell.seed, settings=settings))
        how, dtype, scores = settings.sampler, model.config.train.dtype, {}
    else:
        draws, steps, seconds, dtype = peers.train(
            cell.name,
            of.training.pixels,
            seconds=60 * cell.minutes,
            lr=cell.lr,
            batch=options.batch,
            seed=cell.seed,
            file=begun(cell, of, options),
        )
        images = steps * options.batch
        few = min(CHOSEN_BY, options.samples)
        scores = {
            name: _by_validation(draw(few, options.calls, cell.seed), of)
            for name, draw in draws.items()
        }
        how = min(scores, key=lambda name: scores[name])
        drawn = draws[how](options.samples, options.calls, cell.seed)
    about = {
        "seconds": round(seconds, 1),
        "steps": steps,
        "images": images,
        "sampler": how,
        "samplers": scores,
        "dtype": dtype,
    }
    return drawn, about


def _by_validation(drawn: Array, of: Material) -> float:
    space = of.spaces[0]
    measure = frechet if of.measure == FRECHET else kid
    return measure(space.extract(of.validation), space.extract(drawn)).value


def scored(drawn: Array, of: Material) -> dict[str, Any]:
    """Figures of samples against both sets of real images, in both spaces."""
    found: dict[str, Any] = {}
    for space in of.spaces:
        ours = space.extract(drawn)
        for part, real in (("validation", of.validation), ("test", of.test)):
            for figure in figures(of, space.extract(real), ours):
                numbers = asdict(figure)
                kept = {name: numbers[name] for name in ("value", "low", "high", "alike", "floor")}
                found[f"{space.name}, {part}, {figure.name}"] = kept
    return found


def place(cell: Cell, name: str, options: argparse.Namespace) -> Path:
    """The file of a cell on the data of that name."""
    drawing = f"{options.samples}x{options.calls}"
    if cell.name == OURS:
        # whatever its steps are, it is drawn in as many as the calls allow
        sample = changed(preset("fast").sample, {"steps": 10})
        drawing += f"-{_key(sample.model_dump_json(exclude_none=True))}"
    return Path(options.out) / "cells" / f"{name}{cell.slug}-{drawing}.json"


def begun(cell: Cell, of: Material, options: argparse.Namespace) -> Path:
    """The file of a peer's training that is not whole yet."""
    what = kept.key(versions(), of.training.fingerprint)
    how = f"{options.batch}x{options.threads}threads-{what}"
    return Path(options.out) / "runs" / f"{of.name}{cell.slug}-{how}.pt"


def measured(cell: Cell, of: Material, options: argparse.Namespace) -> dict[str, Any]:
    """A cell's result, from its file or made now."""

    def make() -> kept.Made:
        options.threads = options.threads or torch.get_num_threads()
        if lacking := [name for name in options.everyone if not peers.is_installed(name)]:
            sys.exit(f"{', '.join(lacking)}: not installed; {peers.INSTALLED_BY}")
        print(f"{of.name}{cell.slug}: training", flush=True)
        drawn, about = trained(cell, of, options)
        result = {
            **asdict(cell),
            **about,
            "samples": options.samples,
            "calls": options.calls,
            "batch": options.batch,
            "threads": options.threads,
            "data": of.training.fingerprint,
            "machine": machine() | {"start": kept.key(start())},  # which of those of one name
            "versions": versions(),
            "figures": scored(drawn, of),
            "copies": copies(drawn, of, of.test),
        }
        told = f"{about}, {of.measure} {distance(result, of.spaces[0].name, 'test', of):.4g}"
        print(f"{of.name}{cell.slug}: {told}", flush=True)
        return result, drawn

    file = place(cell, of.name, options)
    if file.is_file():
        print(f"{of.name}{cell.slug}: kept", flush=True)
    result = kept.cell(file, make)
    options.threads = options.threads or result["threads"]  # of the first is of all
    begun(cell, of, options).unlink(missing_ok=True)
    if result.get("data") not in (None, of.training.fingerprint):
        sys.exit(f"{file}: was measured on other images of that name; give --out NEW")
    for what in ("threads", "batch"):
        if result[what] != getattr(options, what):
            sys.exit(
                f"{file}: was measured with --{what} {result[what]}, not {getattr(options, what)}: "
                f"give that, or --out NEW to measure anew"
            )
    return result


def distance(result: dict[str, Any], space: str, part: str, of: Material) -> float:
    """What is compared: Fréchet's at the counts of its floor; KID, which has no bias, as it is."""
    figure = result["figures"][f"{space}, {part}, {of.measure}"]
    return float(figure["alike" if of.measure == FRECHET else "value"])


def floor_of(result: dict[str, Any], space: str, of: Material) -> float:
    """What real images have at such counts, on the test images; KID is 0 for these."""
    if of.measure != FRECHET:
        return 0.0
    return float(result["figures"][f"{space}, test, {of.measure}"]["floor"])


def error_of(result: dict[str, Any], space: str, of: Material) -> float:
    """The standard error of the figure by the images drawn and held out, on the test images."""
    figure = result["figures"][f"{space}, test, {of.measure}"]
    return float(figure["high"] - figure["low"]) / (2 * NORMAL)


def best_rate(name: str, of: Material, options: argparse.Namespace) -> float:
    """The learning rate that a peer does best with on the validation images."""
    rates = [rate for whose, rate in options.rates if whose in ("", name)]
    if len(rates) == 1:
        return rates[0]
    minutes = min(options.minutes)

    def by(lr: float) -> float:
        result = measured(Cell(name, minutes, lr, SELECTION_SEED), of, options)
        return distance(result, of.spaces[0].name, "validation", of)

    return min(rates, key=by)


def parsed_rates(text: str) -> list[tuple[str, float]]:
    """Learning rates, and whose each is: "azula=2e-3,1e-3" has one more for azula."""
    pairs = [part.rpartition("=") for part in text.split(",")]
    return [(name, float(rate)) for name, _, rate in pairs]


def parsed_seeds(text: str) -> list[int]:
    """Seeds: "3" are 0, 1 and 2, "3,4,5" these."""
    seeds = [int(each) for each in text.split(",")]
    return list(range(seeds[0])) if len(seeds) == 1 else seeds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Geometric means' ratio and its 95 % interval over seeds, by Welch's t on the logarithms; not
    a number where one of them is at its floor or below."""
    if min(*ours, *theirs) <= 0:
        return math.nan, math.nan, math.nan
    a, b = np.log(ours), np.log(theirs)
    middle = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return math.exp(middle), math.nan, math.nan
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return math.exp(middle), math.exp(interval.low), math.exp(interval.high)


def ratio_of_means(
    ours: Sequence[float], theirs: Sequence[float], errors: tuple[float, float]
) -> tuple[float, float, float]:
    """Means' ratio and its 95 % interval by the figures' own errors (Fieller 1954, uncorrelated).

    For what may be below 0. The errors are those of one figure each, as seeds share the held-out
    images. Where the denominator may be 0, the interval is not a number.
    """
    a, b = statistics.mean(ours), statistics.mean(theirs)
    aa, bb = (mean**2 - (NORMAL * error) ** 2 for mean, error in zip((a, b), errors, strict=True))
    if bb <= 0:
        return a / b, math.nan, math.nan
    width = math.sqrt((a * b) ** 2 - aa * bb)
    return a / b, (a * b - width) / bb, (a * b + width) / bb


def told(results: list[dict[str, Any]], of: Material, options: argparse.Namespace) -> list[str]:
    """The table, line by line."""
    lines = []
    for space in of.spaces:
        lines.append(f"{space.name} ({space.hash[:12]}): {of.measure} to the test images")
        for minutes in options.minutes:
            above: dict[str, list[float]] = {}
            errors: dict[str, float] = {}
            for name in (OURS, *options.peers):
                cells = [r for r in results if (r["name"], r["minutes"]) == (name, minutes)]
                values = [distance(r, space.name, "test", of) for r in cells]
                floor = statistics.mean(floor_of(r, space.name, of) for r in cells)
                errors[name] = statistics.mean(error_of(r, space.name, of) for r in cells)
                above[name] = [value - floor for value in values]
                lines.append(
                    f"  {minutes:>4g} min  {name:<10} {statistics.mean(values):8.4f}"
                    f"  ({', '.join(f'{v:.4f}' for v in values)})  floor {floor:.4f}"
                    f"  {statistics.mean(r['images'] for r in cells):,.0f} images"
                    f"  {', '.join(sorted({_verdict(r) for r in cells} - {''}))}"
                )
            best = min(options.peers, key=lambda name: statistics.mean(above[name]))
            if of.measure == FRECHET:
                middle, low, high = ratio(above[OURS], above[best])
            else:
                of_both = (errors[OURS], errors[best])
                middle, low, high = ratio_of_means(above[OURS], above[best], of_both)
            said = f"{middle:.3f} ({low:.3f} … {high:.3f})"
            said = "one of them is at the floor" if math.isnan(middle) else said
            lines.append(f"            {OURS} / {best}: {said}")
        for r in results:
            if r["minutes"] == options.long:
                lines.append(
                    f"  {r['minutes']:>4g} min  {r['name']:<10} "
                    f"{distance(r, space.name, 'test', of):8.4f}"
                )
    return lines


def _verdict(result: dict[str, Any]) -> str:
    found: str = result.get("copies", {}).get("verdict", "")
    return found


def by_minutes(results: list[dict[str, Any]], of: Material) -> Figure:
    """Distance by minutes, a panel a space: each seed, and the line of their means."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    trained_for = sorted({r["minutes"] for r in results})
    for axes, space in zip(figure.subplots(1, len(of.spaces)), of.spaces, strict=True):
        for name in dict.fromkeys(r["name"] for r in results):
            points = [
                (r["minutes"], distance(r, space.name, "test", of))
                for r in results
                if r["name"] == name
            ]
            (dots,) = axes.plot(*zip(*sorted(points), strict=True), "o", label=name, alpha=0.7)
            means = {m: statistics.mean(v for at, v in points if at == m) for m, _ in points}
            axes.plot(*zip(*sorted(means.items()), strict=True), color=dots.get_color(), lw=1)
        floor = statistics.mean(floor_of(r, space.name, of) for r in results)
        axes.axhline(floor, color="0.5", lw=1, ls="--", label="floor")
        scale = "log" if of.measure == FRECHET else "linear"
        axes.set(title=space.name, xlabel="minutes of training", xscale="log", yscale=scale)
        axes.set_xticks(trained_for, [f"{minutes:g}" for minutes in trained_for])
        axes.set_xticks([], minor=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    figure.axes[0].set_ylabel(of.measure)
    return figure


def summary_of(data: str, seeds: Sequence[int]) -> str:
    """The name of a summary: that of other seeds than the first ones does not replace theirs."""
    are_first = list(seeds) == list(range(len(seeds)))
    others = "" if are_first else f"-seeds-{'-'.join(map(str, seeds))}"
    return f"time-to-quality{f'-{data[:-1]}' if data else ''}{others}"


def main() -> None:
    """Parses, trains what is not there, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", default="5,10", help="training times, separated by commas")
    parser.add_argument(
        "--peers", default="diffusers,azula", help="some of " + ", ".join(peers.PEERS)
    )
    parser.add_argument(
        "--rates", default=RATES, help="learning rates that a peer may have, or NAME=RATE,…"
    )
    parser.add_argument("--seeds", default="3", help="how many, 0 and up; or which: 3,4,5")
    parser.add_argument("--long", type=float, help="minutes that the peers alone are trained for")
    parser.add_argument("--long-peers", help="which those are; all if absent")
    parser.add_argument("--data", default=FASHION, help="a folder, or another source of images")
    parser.add_argument("--size", type=int, help="that images are brought to")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=25, help="network calls a sample")
    parser.add_argument("--batch", type=int, default=64, help="of the peers")
    parser.add_argument("--threads", type=int, help="absent: those of what is kept, or torch's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.minutes = [float(text) for text in options.minutes.split(",")]
    options.peers = options.peers.split(",")
    if options.long_peers is None:
        options.long_peers = list(peers.PEERS) if options.long else options.peers
    else:
        options.long_peers = options.long_peers.split(",")
    options.seeds = parsed_seeds(options.seeds)
    options.everyone = list(dict.fromkeys([*options.peers, *options.long_peers]))
    options.rates = parsed_rates(options.rates)
    if unknown := [name for name in options.everyone if name not in peers.PEERS]:
        parser.error(
            f"--peers, --long-peers: {','.join(unknown)}: give some of {', '.join(peers.PEERS)}"
        )
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        parser.error("--seeds: give one or more, each of them once")
    if options.long in options.minutes:
        parser.error(f"--long {options.long:g}: is among --minutes too; give other minutes")
    if options.long_peers != options.peers and not options.long:
        parser.error("--long-peers: give --long MINUTES too")
    rated = {name for name, _ in options.rates}
    if without := [name for name in options.everyone if not rated & {"", name}]:
        parser.error(f"--rates: none for {', '.join(without)}")
    matplotlib.use("Agg")

    of = material(options.data, options.size, samples=options.samples)
    rates = {OURS: 0.0, **{name: best_rate(name, of, options) for name in options.everyone}}
    results = [
        measured(Cell(name, minutes, rates[name], seed), of, options)
        for seed in options.seeds
        for minutes in options.minutes
        for name in (OURS, *options.peers)
    ]
    if options.long:
        seed = options.seeds[0]
        cells = [Cell(name, options.long, rates[name], seed) for name in options.long_peers]
        results += [measured(cell, of, options) for cell in cells]
    lines = told(results, of, options)
    print("\n".join(lines))
    name = summary_of(of.name, options.seeds)
    kept.summary(
        options.out,
        name,
        seeds=options.seeds,
        options=options,
        told=lines,
        cells=results,
        rates=rates,
    )
    kept.figure(options.out / f"{name}.png", by_minutes(results, of))
    for minutes in options.minutes:
        shown = [
            (
                f"{who}, {minutes:g} minutes",
                place(Cell(who, minutes, rates[who], options.seeds[0]), of.name, options),
            )
            for who in (OURS, *options.peers)
        ]
        kept.side_by_side(options.out / f"{name}-{minutes:g}min.png", shown)


if __name__ == "__main__":
    main()
