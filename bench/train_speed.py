"""Training speed side by side: images a second and FLOP/s of `fast`, `annotated` and diffusers.

    python bench/train_speed.py [--pairs 5] [--batch 128] [--dtype float32] [--threads 2]

Every network makes the same training step (data, noise, forward, backward, clipping, AdamW, EMA) on
random 28×28 grey images, in this one process, in turn: `pairs` rounds of all. Each figure is the
median over the rounds, with its range. FLOP are counted by torch's own counter over the forward and
backward pass; the share is of the float32 matrix product measured between the rounds. Peak memory
is that of a process of its own that trains one network alone (`--alone NAME`).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unraze import ema, optim
from unraze.config import Config, preset, updated
from unraze.data import Images
from unraze.nn import parameters_in
from unraze.step import Trainee, begin, clip, gradients, reproducible
from unraze.train import prepare

NAMES = ("fast", "annotated", "diffusers")


class FromDiffusers(nn.Module):
    """diffusers' UNet2DModel of (32, 64, 128) channels, called as our networks are."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.unet = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The raw output (B, 1, 28, 28) at times t (B,)."""
        out: Tensor = self.unet(x, t).sample
        return out


@dataclass
class Contender:
    """A trainee, its step counter and what one image costs."""

    name: str
    trainee: Trainee
    flop_per_image: float
    step: int = 0


def contender(name: str, arguments: argparse.Namespace) -> Contender:
    """Builds one; the network of diffusers takes the place of `fast`'s in `fast`'s training."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (2048, 1, 28, 28)).astype(np.uint8)
    images = Images.from_arrays(pixels, source="random 28×28")
    changes = {
        "train.steps": 10**6,
        "train.batch": arguments.batch,
        "train.dtype": arguments.dtype,
        "train.threads": arguments.threads,
    }
    base: Config = preset("fast" if name == "diffusers" else name)
    trainee = begin(prepare(updated(base, changes), images), images)
    if name == "diffusers":
        network = FromDiffusers()
        trainee = replace(
            trainee,
            network=network,
            optimizer=optim.build(network, trainee.config.train),
            average=ema.start(network),
        )
    counter = FlopCounterMode(display=False)
    with counter:
        gradients(trainee, 1)
    return Contender(name, trainee, counter.get_total_flops() / arguments.batch)


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
        product = speed_of(lambda: a @ a, 2 * 1024**3)
        return product, speed_of(lambda: convolution(x), 2 * 128 * 14 * 14 * 64 * 64 * 9)


def peak_alone(name: str, arguments: argparse.Namespace) -> float:
    """MiB of peak memory of a process that trains this network alone."""
    command = [sys.executable, __file__, "--alone", name, "--dtype", arguments.dtype]
    command += ["--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    alone = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(alone.stdout)["peak"]) / 2**20


def told(values: list[float], digits: int = 0) -> str:
    """median (lowest … highest)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="rounds of all networks in turn")
    parser.add_argument("--steps", type=int, default=4, help="training steps a round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--alone", choices=NAMES, help="train this one and print its peak memory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    if arguments.alone:
        one = contender(arguments.alone, arguments)
        with reproducible(one.trainee.config.train):
            train_steps(one, arguments.steps)
        print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return

    # first, while this process is small: a new one starts from the peak of the one that makes it
    peaks = {name: peak_alone(name, arguments) for name in NAMES}
    everyone = [contender(name, arguments) for name in NAMES]
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    products, convolutions = [], []
    with reproducible(everyone[0].trainee.config.train):
        for one in everyone:
            train_steps(one, 2)
        for _ in range(arguments.pairs):
            for one in everyone:
                rates[one.name].append(arguments.batch / train_steps(one, arguments.steps))
            product, convolution = roofline()
            products.append(product / 1e9)
            convolutions.append(convolution / 1e9)

    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{arguments.threads} threads, batch {arguments.batch}, {arguments.dtype}, "
        f"{arguments.pairs} interleaved rounds of {arguments.steps} steps"
    )
    print(f"float32 matrix product 1024³   {told(products)} GFLOP/s")
    print(f"float32 convolution 3×3, 64    {told(convolutions)} GFLOP/s")
    header = ("network", "weights", "MFLOP/image", "images/s", "GFLOP/s", "of product", "peak MiB")
    print("{:<10} {:>8} {:>11} {:>24} {:>8} {:>10} {:>8}".format(*header))
    for one in everyone:
        rate = statistics.median(rates[one.name])
        gflops = rate * one.flop_per_image / 1e9
        print(
            f"{one.name:<10} {parameters_in(one.trainee.network) / 1e6:>7.2f}M "
            f"{one.flop_per_image / 1e6:>11.0f} {told(rates[one.name]):>24} {gflops:>8.0f} "
            f"{gflops / statistics.median(products):>10.0%} {peaks[one.name]:>8.0f}"
        )
    for name in ("fast", "annotated"):
        ratios = [a / b for a, b in zip(rates[name], rates["diffusers"], strict=True)]
        print(f"{name} / diffusers, images a second, pair by pair: {told(ratios, 2)}")


if __name__ == "__main__":
    main()
