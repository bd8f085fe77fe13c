"""How training grows: with the images' number and size, the network's width, and the ranks.

    python bench/scale.py [--parts images,size,width,ranks,model]
    python bench/scale.py --parts model --per-gpu 300e12 --network-speed 40e9

`images` makes sets of 10³ to 10⁶ pictures of 16×16, as an array file and as tar shards of PNG, and
times how long they take until training may begin, at first and once they are kept; then how many
images a second the loader gives batches of, beside how many the network of `fast` trains on, on one
thread each. Peak memory is that of the process that loads.

`size` trains `fast` on grey pictures of 16×16 to 128×128, with the network that it takes for each,
batches of the same number.

`width` trains `fast` at 32×32 with its channels halved, doubled and tripled: images a second, FLOP
an image, and the memory that is counted and measured.

`ranks` trains `fast` at 28×28 with one thread a rank: one process, then 2 and, where there are as
many cores, 4 ranks of torchrun over gloo, DDP and divided (--shard), the same global batch. The
bytes on the wire are what the loopback interface counted, beside what the formula of a ring says.

`model` says what a run on 8, 64 and 512 GPUs would cost, from the counted FLOP and bytes and from
assumptions that are options, see `cost`. Nothing of it is measured.

Each case is kept as a file below --out, and the same command goes on where it was.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kept
import numpy as np
import torch
from machine import forget_peak, peak
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from unraze import ema
from unraze.batches import samples_of
from unraze.config import Config, preset, updated
from unraze.data import Images, batch, load_images, shards
from unraze.nn import parameters_in
from unraze.ranks import ALONE, Ranks, joined
from unraze.step import begin, clip, gradients, kept_for_gradients, network_of, reproducible
from unraze.train import prepare

RESULTS = Path(__file__).parent / "results" / "scale"
COUNTS = (10**3, 10**4, 10**5, 10**6)
SIZES = (16, 32, 64, 128)
WIDTHS = (0.5, 1.0, 2.0, 3.0)
SHARD = 50_000
"""Images in a tar."""
SECONDS = 10.0
"""How long a speed is measured."""


# ------------------------------------------------------------------------------ number of images


def pictures(count: int) -> Iterator[np.ndarray]:
    """Bright discs on noise, uint8 (n, 16, 16), 10,000 at a time."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    for first in range(0, count, 10_000):
        n = min(10_000, count - first)
        cy, cx = random.integers(0, 16, (2, n, 1, 1))
        inside = (y - cy) ** 2 + (x - cx) ** 2 < random.integers(2, 7, (n, 1, 1)) ** 2
        bright, dark = random.integers(100, 256, (n, 1, 1)), random.integers(0, 60, (n, 16, 16))
        yield np.where(inside, bright, dark).astype(np.uint8)


def made(folder: Path, count: int, kind: str) -> Path:
    """A set of that many pictures, as an array file or as tar shards."""
    if kind == "array":
        file = folder / "images.npy"
        whole = np.lib.format.open_memmap(file, "w+", np.uint8, (count, 16, 16))
        for number, some in enumerate(pictures(count)):
            whole[10_000 * number :][: len(some)] = some
        whole.flush()
        return file
    place = folder / "shards"
    place.mkdir()
    every = (one for some in pictures(count) for one in some)
    for first in range(0, count, SHARD):
        with tarfile.open(place / f"{first // SHARD:04d}.tar", "w") as tar:
            for number in range(first, min(first + SHARD, count)):
                buffer = io.BytesIO()
                Image.fromarray(next(every)).save(buffer, "PNG", compress_level=1)
                member = tarfile.TarInfo(f"{number:07d}.png")
                member.size = buffer.tell()
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
    return place


def loaded(source: str) -> dict[str, Any]:
    """Seconds until the images are found in shards, and until training may begin; images a second
    that batches are made of; peak memory."""
    torch.set_num_threads(1)
    began, found = time.perf_counter(), None
    if (tars := shards.named(source)) is not None:
        shards.read(source, tars)
        found = time.perf_counter() - began
    images = load_images(source, held_out=0.1)
    ready = time.perf_counter() - began
    config = preset("fast").train
    samples_of(config, len(images), 1, flip=False)  # the order of the epoch, once
    batches, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS / 2:
        batches += 1
        indices, _ = samples_of(config, len(images), batches, flip=False)
        batch(images, indices)
    speed = batches * config.batch / (time.perf_counter() - began)
    return {"ready": ready, "found": found, "images_per_second": speed, "peak": peak()}


def by_images(count: int, kind: str) -> dict[str, Any]:
    """What a set of that many pictures costs, the first time and the second."""
    with tempfile.TemporaryDirectory(prefix="unraze-scale-") as name:
        folder = Path(name)
        source = made(folder, count, kind)
        environment = os.environ | {"UNRAZE_CACHE": str(folder / "cache")}
        found = []
        for _ in range(2):
            command = [sys.executable, __file__, "--load", str(source)]
            done = subprocess.run(command, env=environment, capture_output=True, check=True)
            found.append(json.loads(done.stdout))
    return {"first": found[0], "again": found[1]}


# ------------------------------------------------------------- size of images, width of the network


def random_images(size: int, count: int = 2048) -> Images:
    """Random ones; what is in them costs nothing."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    return Images.from_arrays(pixels, source=f"random {size}×{size}")


def configured(images: Images, **changes: Any) -> Config:
    """`fast` as it would train these images, in float32 and without clusters."""
    own = {"train.steps": 10**6, "train.dtype": "float32", "train.clusters": 0}
    return prepare(updated(preset("fast"), own | changes), images)


def trained(config: Config, images: Images, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Steps for `SECONDS`, the first two left out: images a second, peak memory, bytes sent."""
    with reproducible(config.train):
        trainee = begin(config, images, ranks=ranks)
        step, began, wire = 0, 0.0, 0
        while step < 4 or ranks.first(_is_before, began + SECONDS):
            step += 1
            if step == 3:
                ranks.each(lambda: None)
                began, wire = time.perf_counter(), loopback()
            gradients(trainee, step)
            clip(trainee)
            trainee.optimizer.step()
            ema.update(trainee.average, trainee.network, 0.995)
        seconds = time.perf_counter() - began
    return {
        "images_per_second": (step - 2) * config.train.batch / seconds,
        "seconds_a_step": seconds / (step - 2),
        "peak": sum(ranks.each(peak)),
        "wire": (loopback() - wire) / (step - 2),
        "parameters": parameters_in(network_of(config, 0)),
    }


def _is_before(moment: float) -> bool:
    return time.perf_counter() < moment


def loopback() -> int:
    """Bytes that this machine has sent to itself."""
    file = Path("/proc/net/dev")
    lines = file.read_text().splitlines() if file.is_file() else []
    return sum(int(line.split(":")[1].split()[8]) for line in lines if line.strip()[:3] == "lo:")


def by_width(factor: float, threads: int) -> dict[str, Any]:
    """`fast` at 32×32 with its channels so many times as many."""
    images = random_images(32)
    widths = configured(images).network.widths  # type: ignore[union-attr]
    assert widths is not None
    wide = [round(factor * width) for width in widths]
    return measured(images, **{"network.widths": wide, "train.threads": threads})


def by_size(size: int, threads: int) -> dict[str, Any]:
    """`fast` on grey pictures of so many pixels a side, with the network that it takes for them."""
    return measured(random_images(size, 512), **{"train.threads": threads})


def measured(images: Images, **changes: Any) -> dict[str, Any]:
    """Speed, memory as counted and as measured, and FLOP of `fast` with some changes."""
    config = configured(images, **changes)
    with torch.device("meta"):
        network = network_of(config, 0)
    counted = 20 * parameters_in(network) + kept_for_gradients(network, config)
    forget_peak()
    return trained(config, images) | {
        "widths": list(config.network.widths or ()),  # type: ignore[union-attr]
        "counted": counted,
        "flop": flop_per_image(config, images),
    }


def flop_per_image(config: Config, images: Images) -> float:
    """FLOP of a forward and a backward pass, counted over two images."""
    pair = begin(updated(config, {"train.batch": 2}), images)
    counter = FlopCounterMode(display=False)
    with counter:
        gradients(pair, 1)
    return counter.get_total_flops() / 2


# ------------------------------------------------------------------------------- number of ranks


def by_ranks(count: int, *, shard: bool) -> dict[str, Any]:
    """`fast` at 28×28 on so many ranks of one thread each, the same global batch."""
    with tempfile.TemporaryDirectory(prefix="unraze-scale-") as name:
        out = Path(name) / "found.json"
        command = [sys.executable]
        if count > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command += [__file__, "--rank", str(out), *(["--shard"] if shard else [])]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def as_rank(out: Path, *, shard: bool) -> None:
    """Trains as one of the ranks; the first writes what came of it."""
    images = random_images(28)
    with joined() as ranks:
        changes = {"train.threads": 1, "train.shard": shard and ranks.count > 1}
        found = trained(configured(images, **changes), images, ranks)
        if ranks.is_first:
            out.write_text(json.dumps(found))


# ----------------------------------------------------------------------------- many more of them


@dataclass(frozen=True)
class Assumed:
    """What is assumed of GPUs and of what connects them.

    Arguments:
        per_gpu: FLOP/s that one reaches in training such networks, not what its maker names.
        network_speed: bytes a second that one sends to another machine, while it receives as many.
        inside_speed: the same within a machine of eight.
        latency: seconds of a message from one to the next.
        least: seconds that a step takes at least for each tensor of weights, for a GPU is given its
            work kernel by kernel; found on an H200, where `fast` has 0.41 ms and three blocks a
            level 0.50, both by Muon.
        agree: seconds in which all agree on a number over TCP, times log₂ of their number.
        hidden: the share of a step's computing, its backward pass, that gradients are sent during.
    """

    per_gpu: float
    network_speed: float
    inside_speed: float
    latency: float = 10e-6
    least: float = 0.41e-3
    agree: float = 100e-6
    hidden: float = 2 / 3


@dataclass(frozen=True)
class Cost:
    """Of a step on N GPUs: seconds computing, sending, sending that is not hidden, agreeing; and
    the bytes that each sends."""

    computing: float
    sending: float
    exposed: float
    agreeing: float
    wire: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.computing + self.exposed + self.agreeing

    @property
    def share(self) -> float:
        """What of a step is not computing."""
        return 1 - self.computing / self.seconds


def ring_bytes(parameters: int, count: int, *, shard: bool, size: int = 4) -> float:
    """Bytes that each of N ranks sends in a step, to sum or to divide P numbers in rings.

    DDP    2 (N-1)/N · size · P      all-reduce: every part goes round twice
    FSDP2  3 (N-1)/N · size · P      gathered forward and backward, gradients scattered
    """
    return (3 if shard else 2) * (count - 1) / count * size * parameters


def cost(
    parameters: int,
    tensors: int,
    flop: float,
    images: int,
    count: int,
    of: Assumed,
    *,
    shard: bool = False,
) -> Cost:
    """What a step costs on N = `count` GPUs, of `images` images on each.

        t = C + max(0, S - h C) + 2 a log₂ N,   C = max(images · FLOP / F, tensors · least)
        S = bytes/B + 2 l log₂ N

    F is what a GPU reaches, B the slower of the two speeds where there is more than one machine;
    messages are taken to go by trees, as NCCL's do. Two numbers a step are agreed on beside the
    gradients: its loss, and whether to stop.
    """
    computing = max(images * flop / of.per_gpu, tensors * of.least)
    steps = 2 * float(np.log2(count))
    wire = ring_bytes(parameters, count, shard=shard)
    speed = of.inside_speed if count <= 8 else of.network_speed
    sending = wire / speed + steps * of.latency
    exposed = max(0.0, sending - of.hidden * computing)
    return Cost(computing, sending, exposed, steps * of.agree, wire)


def modelled(of: Assumed) -> list[str]:
    """The table of `model`: `fast` and `ddpm` at 32×32, 64 images on each GPU."""
    lines = [
        "network    GPUs   how   MB sent a step   step, ms   not computing   images/s",
    ]
    images = random_images(32)
    for name in ("fast", "ddpm"):
        own = {"train.steps": 100, "train.batch": 64, "train.dtype": "float32", "train.clusters": 0}
        config = prepare(updated(preset(name), own), images)
        network = network_of(config, 0)
        parameters, tensors = parameters_in(network), len(list(network.parameters()))
        flop = flop_per_image(config, images)
        for count in (1, 8, 64, 512):
            for shard in (False, True) if count > 1 else (False,):
                found = cost(parameters, tensors, flop, 64, count, of, shard=shard)
                how = "FSDP" if shard else "DDP" if count > 1 else "-"
                lines.append(
                    f"{name:<9} {count:>5}   {how:<4} {found.wire / 1e6:>14,.1f} "
                    f"{1e3 * found.seconds:>10.2f} {found.share:>14.0%} "
                    f"{64 * count / found.seconds:>11,.0f}"
                )
    return lines


# -------------------------------------------------------------------------------------- the tables


def told_of_images(cells: dict[str, dict[str, Any]], network: float) -> list[str]:
    """The table of `images`; `network` is what the network of `fast` trains on, images a second."""
    lines = [f"the network of fast, 16×16, one thread: {network:,.0f} images/s"]
    for name, cell in cells.items():
        first, again = cell["first"], cell["again"]
        times = again["images_per_second"] / network
        found = first.get("found")  # which cells of before do not say
        walked = "" if found is None else f" (found in {found:.1f})"
        lines.append(
            f"{name:<18} ready in {first['ready']:7.1f} s{walked}, "
            f"again in {again['ready']:6.1f} s; "
            f"{again['images_per_second']:>9,.0f} images/s, {times:,.0f} times the network's; "
            f"{again['peak'] / 2**30:.2f} GiB"
        )
    return lines


def told_of_width(cells: dict[str, dict[str, Any]]) -> list[str]:
    """The table of `width`, and of `size`."""
    return [
        f"{name:<7} channels {cell['widths']}: {cell['parameters'] / 1e6:6.2f} M weights, "
        f"{cell['flop'] / 1e9:6.2f} GFLOP an image, {cell['images_per_second']:7.0f} images/s, "
        f"memory counted {cell['counted'] / 2**30:.2f}, measured {cell['peak'] / 2**30:.2f} GiB"
        for name, cell in cells.items()
    ]


def told_of_ranks(cells: dict[str, dict[str, Any]]) -> list[str]:
    """The table of `ranks`, beside one process."""
    alone = cells["1 rank"]["images_per_second"]
    lines = []
    for name, cell in cells.items():
        count = int(name.split()[0])
        formula = count * ring_bytes(cell["parameters"], count, shard="FSDP" in name)
        lines.append(
            f"{name:<14} {cell['images_per_second']:7.0f} images/s, "
            f"{cell['images_per_second'] / alone:.2f} of one; {cell['wire'] / 1e6:7.2f} MB a step "
            f"on the wire, {formula / 1e6:7.2f} by the formula; {cell['peak'] / 2**30:.2f} GiB"
        )
    return lines


def main() -> None:
    """Parses, measures what is not there, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="images,size,width,ranks,model", help="some of these")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="of images")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of `size` and `width`"
    )
    parser.add_argument("--per-gpu", type=float, default=150e12, help="FLOP/s, of `model`")
    parser.add_argument("--network-speed", type=float, default=40e9, help="bytes/s, of `model`")
    parser.add_argument("--inside-speed", type=float, default=300e9, help="bytes/s, of `model`")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shard", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(loaded(options.load)))
        return
    if options.rank:
        as_rank(options.rank, shard=options.shard)
        return

    found: dict[str, dict[str, Any]] = {}
    recipe = preset("fast").model_dump_json(exclude={"about", "sample"})

    def cells(part: str, cases: dict[str, Any]) -> dict[str, dict[str, Any]]:
        for name, measure in cases.items():
            here = kept.here(part, options.threads, recipe)
            file = options.out / "cells" / f"{part}-{kept.slug(name)}-{here}.json"
            if not file.is_file():
                print(f"{part}: {name}", flush=True)
            made = kept.cell(file, lambda measure=measure: (measure(), None))
            found.setdefault(part, {})[name] = made
        return {name: found[part][name] for name in cases}

    said: dict[str, list[str]] = {}
    parts = options.parts.split(",")
    if "images" in parts:
        counts = [int(text) for text in options.counts.split(",")]
        of_images = {
            f"{count:,} {kind}": lambda count=count, kind=kind: by_images(count, kind)
            for kind in ("array", "tar")
            for count in counts
        }
        small = random_images(16)
        alone = configured(small, **{"train.threads": 1})
        network = cells("images", {"network": lambda: trained(alone, small)})["network"]
        speed = network["images_per_second"]
        said["images"] = told_of_images(cells("images", of_images), speed)
    if "size" in parts:
        of_size = {f"{s}×{s}": lambda s=s: by_size(s, options.threads) for s in SIZES}
        said["size"] = told_of_width(cells("size", of_size))
    if "width" in parts:
        of_width = {f"× {f:g}": lambda f=f: by_width(f, options.threads) for f in WIDTHS}
        said["width"] = told_of_width(cells("width", of_width))
    if "ranks" in parts:
        of_ranks = {"1 rank": lambda: by_ranks(1, shard=False)}
        for count in (2, 4):
            if count <= (os.cpu_count() or 1):
                for how, shard in (("DDP", False), ("FSDP2", True)):
                    of_ranks[f"{count} ranks {how}"] = lambda count=count, shard=shard: by_ranks(
                        count, shard=shard
                    )
        said["ranks"] = told_of_ranks(cells("ranks", of_ranks))
    if "model" in parts:
        speeds = (options.per_gpu, options.network_speed, options.inside_speed)
        said["model"] = modelled(Assumed(*speeds))
    for part, text in said.items():
        print("\n".join((f"{part}:", *text, "")))
        cells_of = [{"name": name} | cell for name, cell in found.get(part, {}).items()]
        kept.summary(
            options.out, f"scale-{part}", seeds=[0], options=options, told=text, cells=cells_of
        )


if __name__ == "__main__":
    main()
