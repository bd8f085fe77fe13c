"""Training speed side by side: `fast`, `annotated` and diffusers' network, by size and by batch.

    python bench/train_speed.py [--dtype float32] [--threads 2] [--pairs 5]
    python bench/train_speed.py --growth [--sizes 16,32,64,128] [--channels 1,3]
                                         [--batches 16,64,256] [--networks fast,diffusers]

The first measures the three networks on 28×28 grey images in batches of 128; the second how what
they cost grows with the size of the image, grey and colour, and with the batch.

Every network makes the same training step (data, noise, forward, backward, clipping, the optimiser,
EMA) on random images, in this one process, in turn: `pairs` rounds of all. Each figure is the
median over the rounds, with its range, and what may be claimed are the ratios, pair by pair. FLOP
are counted by torch's own counter over the forward and backward pass; the shares are of the float32
matrix product and of the float32 3×3 convolution that are measured between the rounds. Ours is the
network that `unraze train` builds for images of the size; diffusers' takes its place in its
training, but with AdamW, as diffusers' own scripts train it, where `fast` has Muon.

Peak memory is that of a process of its own that trains one network alone. Start-up is the time from
launching a process to the end of its first training step: of ours `python -m unraze train`, as a
user types it, with what of it measures the machine's speed; of diffusers import, building and one
step. A network that would keep more than --memory for its gradients is left out.

Each case is kept as a file below --out, and the same command goes on where it was.
"""

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import kept
import matplotlib
import numpy as np
import torch
from machine import peak
from matplotlib.figure import Figure
from peer_networks import diffusers_unet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unraze import ema, optim
from unraze.config import Config, preset, updated
from unraze.data import Images
from unraze.hardware import memory
from unraze.nn import parameters_in
from unraze.step import (
    Trainee,
    begin,
    clip,
    gradients,
    kept_for_gradients,
    network_of,
    reproducible,
)
from unraze.train import prepare

NAMES = ("fast", "annotated", "diffusers")
TABLE = {"sizes": "28", "channels": "1", "batches": "128", "networks": ",".join(NAMES)}
GROWTH = {
    "sizes": "16,32,64,128",
    "channels": "1,3",
    "batches": "16,64,256",
    "networks": "fast,diffusers",
}
IMAGES = 2048
ROUND_SECONDS = 10.0
"""A round of one network takes no more steps than fit in this, but one at least."""
STARTS_SECONDS = 60.0
"""Start-up is not measured again once this has passed."""
RESULTS = Path(__file__).parent / "results" / "train-speed"


@dataclass(frozen=True)
class Case:
    """What is trained on, and how."""

    size: int
    channels: int
    batch: int
    dtype: str
    threads: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.channels, self.size, self.size


@dataclass
class Contender:
    """A trainee and its step counter."""

    name: str
    trainee: Trainee
    step: int = 0


class FromDiffusers(nn.Module):
    """diffusers' network, called as ours are."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.unet = diffusers_unet(shape)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The raw output (B, C, H, W) at times t (B,)."""
        out: Tensor = self.unet(x, t).sample
        return out


# ------------------------------------------------------------------------------- who is measured


def images_of(case: Case) -> Images:
    """Random ones; what is in them costs nothing."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (IMAGES, *case.shape), dtype=np.uint8)
    return Images.from_arrays(pixels, source=f"random {case.size}×{case.size}")


def configured(name: str, case: Case, images: Images) -> Config:
    """What `unraze train` would train these images by; of diffusers, what its network is put in."""
    changes = {
        "train.steps": 10**6,
        "train.batch": case.batch,
        "train.dtype": case.dtype,
        "train.threads": case.threads,
    }
    theirs = {"train.optimizer": "adamw"} if name == "diffusers" else {}
    base = preset("fast" if name == "diffusers" else name)
    return prepare(updated(base, changes | theirs), images)


def contender(name: str, case: Case, images: Images) -> Contender:
    """Builds one; the network of diffusers takes the place of `fast`'s in `fast`'s training, but
    for the optimiser."""
    trainee = begin(configured(name, case, images), images)
    if name == "diffusers":
        network = FromDiffusers(case.shape)
        trainee = replace(
            trainee,
            network=network,
            optimizer=optim.build(network, trainee.config.train),
            average=ema.start(network),
        )
    return Contender(name, trainee)


def on_paper(name: str, case: Case, images: Images) -> tuple[nn.Module, Config]:
    """The network without its numbers, and its configuration."""
    config = configured(name, case, images)
    with torch.device("meta"):
        network = FromDiffusers(case.shape) if name == "diffusers" else network_of(config, 0)
    return network, config


def needed(name: str, case: Case, images: Images) -> int:
    """Bytes that weights, moments, average and gradients take, counted and not measured."""
    network, config = on_paper(name, case, images)
    return 20 * parameters_in(network) + kept_for_gradients(network, config)


def recipe(names: Sequence[str], case: Case, images: Images) -> list[Any]:
    """All that says what is trained: another network or training is another case."""
    parts = []
    for name in names:
        network, config = on_paper(name, case, images)
        shapes = [(key, list(value.shape)) for key, value in network.state_dict().items()]
        parts.append([shapes, config.model_dump_json(exclude={"about", "sample"})])
    return parts


# ------------------------------------------------------------------------------- how it is measured


def flop_per_image(name: str, case: Case, images: Images) -> float:
    """FLOP of a forward and a backward pass, counted over two images."""
    pair = contender(name, replace(case, batch=2), images)
    counter = FlopCounterMode(display=False)
    with counter:
        gradients(pair.trainee, 1)
    return counter.get_total_flops() / 2


def train_steps(one: Contender, steps: int) -> float:
    """Seconds a step over `steps` training steps."""
    began = time.perf_counter()
    for _ in range(steps):
        one.step += 1
        gradients(one.trainee, one.step)
        clip(one.trainee)
        one.trainee.optimizer.step()
        ema.update(one.trainee.average, one.trainee.network, 0.995)
    return (time.perf_counter() - began) / steps


def speed_of(work: Callable[[], object], flop: float) -> float:
    """FLOP/s, the best of five after a warm-up."""
    work()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return flop / min(seconds)


def roofline() -> tuple[float, float]:
    """FLOP/s of a float32 matrix product of 1024 and of a 3×3 convolution of 64 channels."""
    a = torch.randn(1024, 1024)
    x = torch.randn(128, 64, 14, 14).to(memory_format=torch.channels_last)
    convolution = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    with torch.no_grad():
        product_speed = speed_of(lambda: a @ a, 2 * 1024**3)
        return product_speed, speed_of(lambda: convolution(x), 2 * 128 * 14 * 14 * 64 * 64 * 9)


def alone(name: str, case: Case) -> None:
    """Trains one network for two steps, and prints the peak of this process."""
    one = contender(name, case, images_of(case))
    with reproducible(one.trainee.config.train):
        train_steps(one, 2)
    print(json.dumps({"peak": peak()}))


def peak_alone(name: str, case: Case) -> int:
    """Bytes of peak memory of a process that trains this network alone; 0: it was killed for it."""
    told = json.dumps({"name": name, **asdict(case)})
    command = [sys.executable, __file__, "--alone", told]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ran.returncode == -signal.SIGKILL:
        return 0
    ran.check_returncode()
    return int(json.loads(ran.stdout)["peak"])


def started(name: str, case: Case, images: Path) -> dict[str, float]:
    """Seconds from launch to the end of the first step, and those of them that measured speed."""
    batch, threads = str(case.batch), str(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        if name == "diffusers":
            script = Path(__file__).with_name("first_step.py")
            command = [sys.executable, str(script), str(images), batch, threads, case.dtype]
        else:
            command = [sys.executable, "-m", "unraze", "train", str(images), "--preset", name]
            command += ["--minutes", "4", "--batch", batch, "--threads", threads]
            command += ["--out", f"{folder}/run"]
        began, at = time.perf_counter(), dict[str, float]()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                past = time.perf_counter() - began
                if line.startswith("measuring"):
                    at["measuring"] = past
                elif re.match(r"\d+ steps? of", line):
                    at["measured"] = past
                elif line.startswith("step 1/"):
                    at["first"] = past
                    break
            process.kill()
        if "first" not in at:
            raise RuntimeError(f"{' '.join(command)}: came to no first step")
    return {
        "seconds": at["first"],
        "measuring": at.get("measured", 0.0) - at.get("measuring", 0.0),
    }


def starts(names: Sequence[str], case: Case, images: Images, times: int) -> dict[str, Any]:
    """Start-up of each, in turn, so many times, or until it has taken too long."""
    out: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, images.pixels.transpose(0, 2, 3, 1))
        for number in range(times):
            if number and time.perf_counter() - began > STARTS_SECONDS:
                break
            for name in names:
                out[name].append(started(name, case, file))
    return out


def rounds(
    names: Sequence[str], case: Case, images: Images, pairs: int, most: int
) -> dict[str, list[float]]:
    """Images a second of each, and FLOP/s of product and convolution, round by round."""
    everyone = [contender(name, case, images) for name in names]
    rates: dict[str, list[float]] = {name: [] for name in (*names, "product", "convolution")}
    with reproducible(everyone[0].trainee.config.train):
        steps = {}
        for one in everyone:
            train_steps(one, 1)
            steps[one.name] = max(1, min(most, int(ROUND_SECONDS / train_steps(one, 1))))
        for _ in range(pairs):
            for one in everyone:
                rates[one.name].append(case.batch / train_steps(one, steps[one.name]))
            for name, speed in zip(("product", "convolution"), roofline(), strict=True):
                rates[name].append(speed)
    return rates


def measured(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """A case's result, from its file or made now."""
    images = images_of(case)
    names = options.networks
    asked = [options.pairs, options.steps, options.starts, options.memory]
    place = f"{'+'.join(names)}-{case.size}x{case.size}x{case.channels}-batch{case.batch}"
    place += f"-{case.dtype}-{case.threads}threads-{kept.here(recipe(names, case, images), asked)}"

    def make() -> kept.Made:
        needs = {name: needed(name, case, images) for name in names}
        peaks = {n: peak_alone(n, case) for n in names if needs[n] <= options.memory * 2**30}
        here = [name for name in names if peaks.get(name)]
        found: dict[str, Any] = {name: {"needed": needs[name]} for name in names}
        rates: dict[str, list[float]] = {"product": [], "convolution": []}
        if here:
            began = starts(here, case, images, options.starts)
            for name in here:
                found[name] |= {"start_up": began[name], "peak": peaks[name]}
            rates = rounds(here, case, images, options.pairs, options.steps)
        for name in here:
            found[name] |= {
                "weights": parameters_in(on_paper(name, case, images)[0]),
                "flop_per_image": flop_per_image(name, case, images),
                "images_per_second": rates[name],
            }
        roof = {name: rates[name] for name in ("product", "convolution")}
        result = {**asdict(case), **roof, "networks": found}
        print(lines(result)[0], flush=True)
        return result, None

    return kept.cell(options.out / "cells" / f"{place}.json", make)


# ------------------------------------------------------------------------------- what is said


def told(values: Sequence[float], digits: int = 0) -> str:
    """median (lowest … highest)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


COLUMNS = "{:<10} {:>8} {:>11} {:>24} {:>8} {:>10} {:>8} {:>8} {:>22} {:>9}"


def lines(result: dict[str, Any]) -> list[str]:
    """A case in words: a line a network, and the ratios of ours to diffusers'."""
    colour = "grey" if result["channels"] == 1 else "colour"
    out = [
        f"{result['size']}×{result['size']} {colour}, batch {result['batch']}, {result['dtype']}, "
        f"{result['threads']} threads"
    ]
    there = {n: x for n, x in result["networks"].items() if "images_per_second" in x}
    if there:
        out[0] += (
            f"; float32 product 1024³ {told([x / 1e9 for x in result['product']])} GFLOP/s, "
            f"3×3 convolution {told([x / 1e9 for x in result['convolution']])}"
        )
    head = ("network", "weights", "MFLOP/image", "images/s", "GFLOP/s", "of product", "of conv.")
    out.append(COLUMNS.format(*head, "peak MiB", "start-up s", "measuring"))
    for name, one in result["networks"].items():
        if name not in there:
            out.append(f"{name:<10} left out: would take {one['needed'] / 2**30:.1f} GiB or more")
            continue
        speed = statistics.median(one["images_per_second"]) * one["flop_per_image"]
        shares = [speed / statistics.median(result[of]) for of in ("product", "convolution")]
        out.append(
            COLUMNS.format(
                name,
                f"{one['weights'] / 1e6:.2f}M",
                f"{one['flop_per_image'] / 1e6:.0f}",
                told(one["images_per_second"], 1),
                f"{speed / 1e9:.0f}",
                f"{shares[0]:.0%}",
                f"{shares[1]:.0%}",
                f"{one['peak'] / 2**20:.0f}",
                told([start["seconds"] for start in one["start_up"]], 1),
                f"{statistics.median(start['measuring'] for start in one['start_up']):.1f}",
            )
        )
    for name in there:
        if name != "diffusers" and "diffusers" in there:
            pairs = (there[n]["images_per_second"] for n in (name, "diffusers"))
            ratios = [a / b for a, b in zip(*pairs, strict=True)]
            out.append(f"{name} / diffusers, images a second, pair by pair: {told(ratios, 2)}")
    return out


def by_size(results: Sequence[dict[str, Any]]) -> Figure:
    """Images a second by size of the images: a panel for grey and for colour, a line for each
    network and batch."""
    channels = sorted({r["channels"] for r in results})
    batches = sorted({r["batch"] for r in results})
    figure = Figure(figsize=(1.5 + 3.5 * len(channels), 3.6), layout="constrained")
    panels = figure.subplots(1, len(channels), squeeze=False, sharey=True)[0]
    for axes, count in zip(panels, channels, strict=True):
        for colour, name in enumerate(NAMES):
            for style, batch in zip(("o:", "o-", "o--", "o-."), batches, strict=False):
                points = sorted(
                    (r["size"], statistics.median(r["networks"][name]["images_per_second"]))
                    for r in results
                    if (r["channels"], r["batch"]) == (count, batch)
                    and "images_per_second" in r["networks"].get(name, {})
                )
                if points:
                    sizes, rates = zip(*points, strict=True)
                    label = f"{name}, batch {batch}"
                    axes.plot(sizes, rates, style, color=f"C{colour}", ms=4, label=label)
        sizes = sorted({r["size"] for r in results})
        title = "grey" if count == 1 else "colour"
        axes.set(title=title, xlabel="pixels a side", xscale="log", yscale="log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("images a second in training")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Every size with every number of channels and every batch, small ones first."""
    for size, channels, batch in product(options.sizes, options.channels, options.batches):
        yield Case(size, channels, batch, options.dtype, options.threads)


def main() -> None:
    """Parses, measures what is not there, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--growth", action="store_true", help="by size and batch")
    parser.add_argument("--sizes", help="of the images; 28, or 16,32,64,128 with --growth")
    parser.add_argument("--channels", help="1 grey, 3 colour; 1, or 1,3 with --growth")
    parser.add_argument("--batches", help="128, or 16,64,256 with --growth")
    parser.add_argument("--networks", help="some of " + ", ".join(NAMES))
    parser.add_argument("--pairs", type=int, default=5, help="rounds of all networks in turn")
    parser.add_argument("--steps", type=int, default=4, help="training steps a round, at most")
    parser.add_argument("--starts", type=int, default=3, help="times that start-up is measured")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--memory", type=float, help="GiB; half of the machine's where it is not given"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        about = json.loads(options.alone)
        alone(about.pop("name"), Case(**about))
        return
    for name, value in (GROWTH if options.growth else TABLE).items():
        words = (getattr(options, name) or value).split(",")
        setattr(options, name, words if name == "networks" else [int(word) for word in words])
    if unknown := [name for name in options.networks if name not in NAMES]:
        parser.error(f"--networks {','.join(unknown)}: give some of {', '.join(NAMES)}")
    if options.memory is None:
        options.memory = round(memory() / 2**31, 1)
    torch.set_num_threads(options.threads)

    results = [measured(case, options) for case in cases(options)]
    text = [line for result in results for line in (*lines(result), "")]
    print("\n".join(text))
    name = f"{'growth' if options.growth else 'train-speed'}-{options.dtype}"
    kept.summary(options.out, name, seeds=[0], options=options, told=text, cells=results)
    if len(options.sizes) > 1:
        matplotlib.use("Agg")
        kept.figure(options.out / f"{name}.png", by_size(results))


if __name__ == "__main__":
    main()
