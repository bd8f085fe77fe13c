"""What computes the network: torch, compiled torch, onnxruntime and OpenVINO, on one run.

    python bench/engines.py RUN [--rounds 5] [--batches 1,4,16,64] [--threads 2] [--patience 180]

All draw the run's own way (`unraze.generate.sample`), so that what is compared is all that a user
waits for; only who computes the network differs. Each is measured in a process of its own, round by
round in turn:

images/s    of each of --batches, the median of three drawings; the best batch of each is compared
first       seconds from a loaded run to the first picture: engine, compilation and one drawing of 1
memory      the most that the process held, in MiB
file        MB that are read to compute with: the averaged weights, or the network's ONNX file

torch.compile compiles for each batch anew, before that is timed: of a batch that it is to take as
any, it makes much slower code. float32 is held against float32. What computes in bfloat16 stands
apart: torch's own, as runs that were trained in it are sampled, and OpenVINO's. A way that takes
longer than --patience seconds in a round, as torch.compile may, is left out, and it is said.

Engines are held against torch before they are timed, as `unraze sample --engine` does it. Each
round of each way is a cell below --out; the same command goes on where it was.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kept
import torch
from machine import peak

from unraze.config import SampleConfig
from unraze.generate import Model, changed, load, sample, settings_of
from unraze.interop.engines import Engine, with_engine

RESULTS = Path(__file__).parent / "results" / "engines"
DRAWINGS = 3


@dataclass(frozen=True)
class Way:
    """Who computes the network, and in what."""

    name: str
    engine: Engine
    dtype: str
    compiled: bool = False


WAYS = (
    Way("torch", "torch", "float32"),
    Way("torch compiled", "torch", "float32", compiled=True),
    Way("onnxruntime", "onnx", "float32"),
    Way("OpenVINO", "openvino", "float32"),
    Way("torch bfloat16", "torch", "bfloat16"),
    Way("OpenVINO bfloat16", "openvino", "bfloat16"),
)


def ready(way: Way, model: Model) -> tuple[Model, SampleConfig]:
    """The run with its network computed that way."""
    settings = changed(settings_of(model), {"dtype": way.dtype})
    if way.compiled:
        return replace(model, network=torch.compile(model.network, dynamic=False)), settings
    return with_engine(model, way.engine, settings)


def alone(way: Way, run: Path, batches: list[int]) -> dict[str, Any]:
    """One round of a way, in this process; the run is loaded before the clock starts."""
    model = load(run)
    began = time.perf_counter()
    computed, settings = ready(way, model)
    sample(computed, 1, settings=settings)
    first = time.perf_counter() - began
    rates = {}
    for batch in batches:
        sample(computed, batch, settings=settings, batch=batch)
        seconds = []
        for seed in range(DRAWINGS):
            began = time.perf_counter()
            sample(computed, batch, seed=seed, settings=settings, batch=batch)
            seconds.append(time.perf_counter() - began)
        rates[str(batch)] = batch / statistics.median(seconds)
    return {"first": first, "rates": rates, "peak": peak(), "file": file_size(way, model)}


def file_size(way: Way, model: Model) -> int:
    """Bytes that the way reads to compute with."""
    assert model.folder is not None
    if way.engine == "torch":
        return (model.folder / "ema.safetensors").stat().st_size
    (file,) = (model.folder / "engines").glob(f"{model.checkpoint[:12]}-*.onnx")
    return file.stat().st_size


class LeftOut(Exception):
    """Why a way was not measured."""


def measured(way: Way, options: argparse.Namespace) -> dict[str, Any]:
    """What `alone` says in a process of its own; raises `LeftOut` where that says nothing."""
    command = [sys.executable, __file__, str(options.run), "--alone", way.name]
    command += ["--threads", str(options.threads), "--batches", options.batches]
    try:
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=options.patience, check=True
        )
    except subprocess.TimeoutExpired:
        raise LeftOut(f"took longer than {options.patience} s") from None
    except subprocess.CalledProcessError as error:
        raise LeftOut(f"ended with status {error.returncode}") from None
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def rounds(options: argparse.Namespace, model: Model) -> dict[str, list[dict[str, Any]]]:
    """Every round of every way, all ways in turn."""
    runtimes = {name: version(name) for name in ("onnxruntime", "openvino")}
    settings = settings_of(model).model_dump(mode="json")
    about = kept.here(options.batches, options.threads, runtimes, settings)
    out: dict[str, list[dict[str, Any]]] = {way.name: [] for way in WAYS}
    for number in range(options.rounds):
        for way in WAYS:
            if any("skipped" in cell for cell in out[way.name]):
                continue
            stem = f"{model.checkpoint[:12]}-{kept.slug(way.name)}-{about}-round{number}"
            print(f"round {number}: {way.name}", flush=True)
            try:
                cell = kept.cell(
                    options.out / "cells" / f"{stem}.json",
                    lambda way=way: (measured(way, options), None),  # type: ignore[misc]
                )
            except LeftOut as why:  # which is not kept: more patience, or memory, may do
                cell = {"skipped": str(why)}
            out[way.name].append(cell)
    return out


def told(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The table, line by line: medians, and ratios to torch in float32 round by round."""
    lines = [
        f"{'':<18} {'images/s':>9} {'batch':>6} {'to torch':>22} {'first s':>8} "
        f"{'to torch':>9} {'MiB':>6} {'MB':>6}"
    ]
    torch_cells = found["torch"]
    for name, cells in found.items():
        if skipped := [cell["skipped"] for cell in cells if "skipped" in cell]:
            lines.append(f"{name:<18} left out: {skipped[0]}")
            continue
        batch, rate = best(cells)
        reference = best(torch_cells)[0]
        ratios = [
            one["rates"][batch] / other["rates"][reference]
            for one, other in zip(cells, torch_cells, strict=True)
        ]
        first = statistics.median(cell["first"] for cell in cells)
        sooner = statistics.median(cell["first"] for cell in torch_cells) / first
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})"
        held = statistics.median(cell["peak"] for cell in cells) / 2**20
        lines.append(
            f"{name:<18} {rate:>9.1f} {batch:>6} {ratio:>22} {first:>8.2f} {sooner:>9.2f} "
            f"{held:>6.0f} {cells[0]['file'] / 1e6:>6.1f}"
        )
    for batch in torch_cells[0]["rates"]:
        parts = []
        for name, cells in found.items():
            if not any("skipped" in cell for cell in cells):
                ratios = [
                    one["rates"][batch] / other["rates"][batch]
                    for one, other in zip(cells, torch_cells, strict=True)
                ]
                parts.append(f"{name} {statistics.median(ratios):.2f}")
        lines.append(f"a batch of {batch}, to torch: {', '.join(parts)}")
    return lines


def best(cells: list[dict[str, Any]]) -> tuple[str, float]:
    """The batch with the most images a second, by the median over rounds, and these."""
    rates = {
        batch: statistics.median(cell["rates"][batch] for cell in cells)
        for batch in cells[0]["rates"]
    }
    batch = max(rates, key=lambda batch: rates[batch])
    return batch, rates[batch]


def main() -> None:
    """Parses, measures what is not there, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,4,16,64")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--patience", type=int, default=180, help="seconds for a way in a round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone is not None:
        way = next(way for way in WAYS if way.name == options.alone)
        batches = [int(text) for text in options.batches.split(",")]
        print(json.dumps(alone(way, options.run, batches)))
        return

    model = load(options.run)
    with_engine(model, "onnx", changed(settings_of(model), {"dtype": "float32"}))  # makes its file
    found = rounds(options, model)
    lines = told(found)
    print("\n".join(lines))
    kept.summary(
        options.out,
        "engines",
        seeds=list(range(DRAWINGS)),
        options=options,
        told=lines,
        cells=[{"way": name, "rounds": cells} for name, cells in found.items()],
        checkpoint=model.checkpoint,
    )


if __name__ == "__main__":
    main()
