"""Draws pictures with sampler.onnx, which lies beside this file. Needs numpy and onnxruntime alone.

    python sample_onnx.py [COUNT] [SEED] [FOLDER]    16 of seed 0 into the folder samples if absent

`--help` says what else can be asked of this sampler: a class, how far to guide towards it.
The same seed gives the pictures that `unraze sample RUN --seed SEED` gives, up to rounding: a grey
level where that computes in float32, more where it computes in bfloat16, as runs trained in it do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

BATCH = 16
"""Pictures drawn at a time."""


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Random numbers as a function of (seed, purpose, index)."""
    key = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest()
    counter = np.zeros(4, dtype=np.uint64)
    counter[2 : 2 + len(index)] = index
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64), counter=counter))


def normal(seed: int, purpose: str, number: int, step: int, shape: list[int]) -> np.ndarray:
    """The noise of one image at one step."""
    return stream(seed, purpose, number, step).standard_normal(shape, dtype=np.float32)


def label(about: dict[str, Any], number: int, seed: int) -> int:
    """The class of an image: all in turn; clusters as often as in the training images."""
    if "shares" not in about:
        return int(number % about["num_classes"])
    place = (stream(seed, "clusters of samples").random() + number * 0.6180339887498949) % 1.0
    found = np.searchsorted(np.cumsum(about["shares"]), place, "right")
    return int(min(found, about["num_classes"] - 1))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """pixels: uint8 (height, width, 1 or 3)."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    with path.open("xb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            check = struct.pack(">I", zlib.crc32(kind + data))
            file.write(struct.pack(">I", len(data)) + kind + data + check)


def number_of(kind: type, least: int) -> Callable[[str], Any]:
    """Reads a number of that kind, `least` or more."""

    def read(word: str) -> Any:
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{word}: give {what} of at least {least}")
        return value

    return read


def class_in(about: dict[str, Any]) -> Callable[[str], int]:
    """Reads a class by its name or number; a name goes before a number."""

    def read(word: str) -> int:
        names, count = about.get("class_names", []), about["num_classes"]
        if word in names:
            return int(names.index(word))
        if not (word.isascii() and word.isdigit() and int(word) < count):
            known = f" or {', '.join(names[:20])}" if names else ""
            raise argparse.ArgumentTypeError(f"{word}: give 0 to {count - 1}{known}")
        return int(word)

    return read


def asked(about: dict[str, Any]) -> argparse.Namespace:
    """What is asked for; words that will not do end the program with a line that says why."""
    parser = argparse.ArgumentParser(
        usage="sample_onnx.py [COUNT] [SEED] [FOLDER] [OPTIONS]",
        description="Draws pictures with sampler.onnx, which lies beside this file.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("count", nargs="?", type=number_of(int, 1), default=16, help="16 if absent")
    add("seed", nargs="?", type=number_of(int, 0), default=0, help="0 if absent")
    add("folder", nargs="?", type=Path, default=Path("samples"), help="samples if absent")
    if about["num_classes"]:
        add("--class", dest="label", metavar="NAME", type=class_in(about), help="or its number")
    if "guidance" in about:
        told = f"how far towards the class, 1 is none; {about['guidance']:g} if absent"
        add("--guidance", metavar="W", type=number_of(float, 0), help=told)
    words = parser.parse_args()
    if words.folder.is_dir() and any(words.folder.glob("*.png")):
        parser.error(f"{words.folder}: has pictures; give another folder, or remove them")
    try:
        words.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{words.folder}: cannot be made ({error.strerror}); give another folder")
    return words


def main() -> None:
    """Writes the pictures as 00000.png, 00001.png, …"""
    session = onnxruntime.InferenceSession(str(Path(__file__).with_name("sampler.onnx")))
    found = session.get_modelmeta().custom_metadata_map
    keys = ("shape", "num_classes", "noise_steps", "shares", "class_names", "guidance")
    about = {key: json.loads(found[key]) for key in keys if key in found}
    words, shape = asked(about), about["shape"]
    seed = words.seed
    for first in range(0, words.count, BATCH):
        numbers = range(first, min(first + BATCH, words.count))
        feed = {"start": np.stack([normal(seed, "start", k, 0, shape) for k in numbers])}
        if about["num_classes"]:
            labels = [label(about, k, seed) for k in numbers]
            feed["classes"] = np.array(labels, dtype=np.int64)
            if words.label is not None:
                feed["classes"][:] = words.label
        if "guidance" in about:
            scale = about["guidance"] if words.guidance is None else words.guidance
            feed["guidance"] = np.array(scale, dtype=np.float32)
        if steps := about["noise_steps"]:
            noise = [[normal(seed, "walk", k, step, shape) for k in numbers] for step in steps]
            feed["noise"] = np.array(noise)
        (images,) = session.run(["images"], feed)
        pixels = np.rint((images + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
        for number, picture in zip(numbers, pixels, strict=True):
            write_png(words.folder / f"{number:05d}.png", picture)
    print(f"{words.count} pictures: {words.folder}")


if __name__ == "__main__":
    main()
