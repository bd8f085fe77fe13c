"""How the benchmarks keep what they measured, so that the same command goes on where it was.

    bench/results/NAME/cells/*.json     one result each, and a .png where there are pictures
    bench/results/NAME/cells/*.samples  what was drawn so far for a cell that is not whole yet
    bench/results/NAME/*.json, *.png    the summary: machine, versions, seeds, what was said, cells

Each file is there as a whole or not at all: a benchmark may be killed at any moment.
"""

import argparse
import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, start, versions
from matplotlib.figure import Figure
from PIL import Image

from unraze.files import write_whole
from unraze.pictures import beside, captioned, grid

__all__ = ["cell", "figure", "here", "key", "samples", "side_by_side", "slug", "summary"]

Array = np.ndarray[Any, Any]
Made = tuple[dict[str, Any], Array | None]
"""A result, and pictures uint8 (N, C, H, W) of which the first 64 are kept beside it."""


def cell(file: Path, make: Callable[[], Made]) -> dict[str, Any]:
    """The result in `file`, or the one that `make` gives, which is then kept there.

    The pictures are written first: where the result is, they are too. Samples that were kept for it
    (`samples`) go when it is whole.
    """
    if not file.is_file():
        result, pictures = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        if pictures is not None:
            _picture(file.with_suffix(".png"), pictures)
        _json(file, result)
    shutil.rmtree(_samples_of(file), ignore_errors=True)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def samples(
    file: Path, count: int, part: int, draw: Callable[[range], Array]
) -> tuple[Array, float]:
    """Samples 0 … count-1 of a cell in the making, uint8 (count, C, H, W), and the seconds it took.

    They are drawn `part` at a time by `draw`, and each part is kept until the cell is whole.
    """
    folder = _samples_of(file)
    folder.mkdir(parents=True, exist_ok=True)
    parts, seconds = [], 0.0
    for first in range(0, count, part):
        numbers = range(first, min(first + part, count))
        kept = folder / f"{numbers.start:05}-{numbers.stop:05}.npz"
        if not kept.is_file():
            began = time.perf_counter()
            drawn = draw(numbers)
            buffer = io.BytesIO()
            np.savez(buffer, drawn=drawn, seconds=time.perf_counter() - began)
            write_whole(kept, buffer.getvalue(), durable=False)
        with np.load(kept) as there:
            parts.append(there["drawn"])
            seconds += float(there["seconds"])
    return np.concatenate(parts), seconds


def summary(
    out: Path,
    name: str,
    *,
    seeds: Sequence[int],
    options: argparse.Namespace,
    told: Sequence[str],
    cells: Sequence[dict[str, Any]],
    **more: Any,
) -> None:
    """Writes out/name.json: what was measured on and with, what was asked for, said and found.

    Without paths, which are this machine's.
    """
    asked = {key: value for key, value in vars(options).items() if not _is_place(value)}
    values = {
        "machine": machine(),
        "versions": versions(),
        "seeds": list(seeds),
        "options": asked,
        **more,
        "told": list(told),
        "cells": list(cells),
    }
    out.mkdir(parents=True, exist_ok=True)
    _json(out / f"{name}.json", values)


def figure(file: Path, of: Figure) -> None:
    """Writes a figure."""
    buffer = io.BytesIO()
    of.savefig(buffer, format="png", dpi=150)
    write_whole(file, buffer.getvalue())


def slug(label: str) -> str:
    """A label as a part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in label)


def key(*of: Any) -> str:
    """Eight letters that stand for all of these plain values in a file's name."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]


def here(*of: Any) -> str:
    """The same with this machine, since it started, and these versions: for times, which are of one
    machine alone, and machines of one name differ by as much as two."""
    return key(machine(), start(), versions(), *of)


def _is_place(value: Any) -> bool:
    """Whether it is a path, or a whole one in letters, as of a source of images; or has some."""
    if isinstance(value, list):
        return any(map(_is_place, value))
    return isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute())


def _samples_of(file: Path) -> Path:
    return file.with_suffix(".samples")


def side_by_side(file: Path, cells: Sequence[tuple[str, Path]]) -> None:
    """Writes the pictures of these cells beside each other, each with its words below it."""
    shown = []
    for words, cell in cells:
        with Image.open(cell.with_suffix(".png")) as picture:
            shown.append(captioned(picture.convert("RGB"), words))
    _png(file, beside(shown))


def _picture(file: Path, pictures: Array) -> None:
    _png(file, grid(pictures[:64].transpose(0, 2, 3, 1)))


def _png(file: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    write_whole(file, buffer.getvalue())


def _json(file: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    write_whole(file, text.encode())
