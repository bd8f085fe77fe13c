"""One factor of the recipe at a time: `fast` with some keys changed, at equal steps.

    python bench/trials.py base "adamw: train.optimizer=adamw" "wide: network.widths=[96,192]"
    python bench/trials.py base --draw "w4: sample.guidance=4" --draw "plain: sample.guidance=1"
    python bench/trials.py base "augmented: data.augment=0.12" --data FOLDER --size 32

Each trial is a name and the keys that it changes, as `--set` takes them. It trains on the first
55,000 of Fashion-MNIST's training images, draws 2,000 as the preset does in 25 network calls, and
holds them against the last 5,000 training images in the first feature space: claims are made
elsewhere, on the test images and in the second (`time_to_quality.py`). Each --draw is another way
of drawing from the same trainings: keys of `sample`, in as many steps as it says or else as take 25
calls. Steps of training are equal, not minutes, so that trials may run beside one another; what a
step costs is in `train_speed.py`. Each is kept as a file below --out as soon as it is scored, and
the same command goes on where it was; `trials.json` is the table of all that are kept there.

Beside the distance stands the grid: the power of the differences within the network's folded
squares over that between the squares, and the same of real images, about 1; and of few images,
which may be learned by heart, whether samples are copies of them.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import kept
import numpy as np
import torch
from material import FASHION, Material, copies, figures, material

from unraze import train as training
from unraze.config import Config, from_dict, preset, updated
from unraze.data import to_uint8
from unraze.evaluate.gaussian import FRECHET
from unraze.generate import Model, calls_of, changed, load, sample, within

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Array = np.ndarray[Any, Any]

SAMPLES, CALLS = 2000, 25
RESULTS = Path(__file__).parent / "results" / "trials"


def changes(text: str) -> tuple[str, dict[str, Any]]:
    """ "name: a.b=1 c.d=[2,3]" as its name and its keys."""
    name, _, rest = text.partition(":")
    pairs = (pair.split("=", 1) for pair in re.split(r"\s+(?=[a-z0-9_.]+=)", rest.strip()) if pair)
    return name.strip(), {key: _value(value) for key, value in pairs}


def _value(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return tuple(value) if isinstance(value, list) else value


def squares(pixels: Array, fold: int = 2) -> float:
    """Power of the differences within squares over that across their edges; uint8 (N, C, H, W)."""
    x = pixels.astype(np.float32)
    within, across = [], []
    for axis in (2, 3):
        d = np.diff(x, axis=axis)
        place = np.arange(d.shape[axis]) % fold
        power = np.square(d).mean(axis=tuple(k for k in range(4) if k != axis))
        within.append(power[place != fold - 1].mean())
        across.append(power[place == fold - 1].mean())
    return float(sum(within) / sum(across))


def judged(model: Model, drawing: dict[str, Any], of: Material, seed: int) -> kept.Made:
    """The figures of a model's samples, drawn with these keys changed, and the samples."""
    changes = {key.removeprefix("sample."): value for key, value in drawing.items()}
    settings = changed(model.config.sample, changes)
    if "steps" not in changes:
        settings = within(model, CALLS, lambda k: changed(settings, {"steps": k}))
    drawn = to_uint8(sample(model, SAMPLES, seed=seed, settings=settings, batch=250))
    space = of.spaces[0]
    found = figures(of, space.extract(of.validation), space.extract(drawn))
    result = {
        "figures": {figure.name: asdict(figure) for figure in found},
        "squares": squares(drawn, _fold(model)),
        "real squares": squares(of.validation, _fold(model)),
        "calls": calls_of(model, settings),
    }
    if of.measure != FRECHET:  # of few images, which may be learned by heart
        result["copies"] = copies(drawn, of, of.validation)
    return result, drawn


def _fold(model: Model) -> int:
    """The side of the squares to look for: those of the network, 2 where it has none."""
    return max(2, getattr(model.config.network, "fold", None) or 2)


def tried(
    trial: tuple[str, Config], drawing: tuple[str, dict[str, Any]], of: Material, out: Path
) -> dict[str, Any]:
    """A trial's result, drawn in one way, from its file or made now."""
    name, config = trial
    drawing_name, changes = drawing
    steps, seed = config.train.steps, config.train.seed
    stem = f"{of.name}{name}-{steps}-seed{seed}"
    file = out / "cells" / f"{stem}{f'-{drawing_name}' if drawing_name else ''}.json"

    def make() -> kept.Made:
        folder = out / "runs" / stem
        if not drawing_name or not (folder / "loss.png").is_file():  # which a whole run has
            shutil.rmtree(folder, ignore_errors=True)
            training.fit(of.training, config, out=folder)
        model = load(folder)
        rows = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
        result, drawn = judged(model, changes, of, seed)
        about = {
            "name": f"{of.name}{name}{f', {drawing_name}' if drawing_name else ''}",
            "seed": seed,
            "steps": steps,
            "loss": statistics.mean(r["loss"] for r in rows[-len(rows) // 10 :] if "loss" in r),
            "images_per_second": rows[-1]["images_per_second"],
            "weights": sum(p.numel() for p in model.network.parameters()),
            "config": config.model_dump(mode="json"),
            "drawing": changes,
            "data": of.training.fingerprint,
        }
        return result | about, drawn

    result = kept.cell(file, make)
    if result.get("data") not in (None, of.training.fingerprint):
        sys.exit(f"{file}: was tried on other images of that name; give --out NEW")
    if differing := differences(result, config, changes):
        sys.exit(f"{file}: was tried with other {differing}; give another name, or remove it")
    return result


def differences(result: dict[str, Any], config: Config, drawing: dict[str, Any]) -> str:
    """The sections in which a kept trial's configuration is another, but for threads and steps."""
    if json.loads(json.dumps(drawing)) != result["drawing"]:
        return "ways of drawing"
    same = {"train.threads": None}
    then = updated(from_dict(result["config"]), same).model_dump()
    now = updated(config, same).model_dump()
    for each in (then, now):
        del each["sample"]["steps"]  # which `judged` chooses
    return ", ".join(key for key in now if key != "about" and now[key] != then[key])


def line(result: dict[str, Any]) -> str:
    """A trial in words."""
    fd = result["figures"].get("Fréchet distance")
    told = f"FD {fd['alike']:6.2f} (floor {fd['floor']:.2f})  " if fd else ""
    copied = f"  {result['copies']['verdict']}" if "copies" in result else ""
    return (
        f"{result['name']:<24} seed {result['seed']}  {result['steps']:>5} steps"
        f"  loss {result['loss']:.4f}  {result['calls']:>3} calls  {told}"
        f"KID {1000 * result['figures']['KID']['value']:6.1f}  squares {result['squares']:.3f}"
        f"  {result['weights'] / 1e6:.2f} M  {result['images_per_second']:.0f}/s{copied}"
    )


def summarised(options: argparse.Namespace) -> None:
    """Writes what all kept trials gave; their configurations are in their own files."""
    files = sorted((options.out / "cells").glob("*.json"))
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    kept.summary(
        options.out,
        "trials",
        seeds=sorted({cell["seed"] for cell in cells}),
        options=options,
        told=[line(cell) for cell in cells],
        cells=[{key: cell[key] for key in cell if key != "config"} for cell in cells],
    )


def main() -> None:
    """Parses, tries what is not there, prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", nargs="+", metavar="NAME: key=value …")
    parser.add_argument("--draw", action="append", default=[], metavar="NAME: key=value …")
    parser.add_argument("--data", default=FASHION)
    parser.add_argument("--size", type=int, help="that images are brought to")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    of = material(options.data, options.size, samples=SAMPLES)
    print(f"real images: squares of 2 x 2 {squares(of.validation):.3f}")
    drawings = [("", {}), *map(changes, options.draw)]
    if others := [key for _, keys in drawings for key in keys if not key.startswith("sample.")]:
        parser.error(f"--draw: {', '.join(others)}: give keys of sample")
    for text in options.trials:
        name, wanted = changes(text)
        for seed in map(int, options.seeds.split(",")):
            fixed = {"train.steps": options.steps, "train.seed": seed}
            config = updated(preset("fast"), {"train.threads": options.threads} | fixed | wanted)
            for drawing in drawings:
                print(line(tried((name, config), drawing, of, options.out)), flush=True)
    summarised(options)


if __name__ == "__main__":
    main()
