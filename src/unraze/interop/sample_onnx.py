"""Draws pictures with sampler.onnx, which lies beside this file. Needs numpy and onnxruntime alone.

    python sample_onnx.py [COUNT] [SEED] [FOLDER]    16 of seed 0 into the folder samples if absent

The same seed gives the pictures that `unraze sample RUN --seed SEED` gives, up to rounding: a grey
level where that computes in float32, more where it computes in bfloat16, as runs trained in it do.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


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
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            check = struct.pack(">I", zlib.crc32(kind + data))
            file.write(struct.pack(">I", len(data)) + kind + data + check)


def main(count: int = 16, seed: int = 0, folder: str = "samples", batch: int = 16) -> None:
    """Draws `batch` pictures at a time, and writes them as 00000.png, 00001.png, …"""
    session = onnxruntime.InferenceSession(str(Path(__file__).with_name("sampler.onnx")))
    words = session.get_modelmeta().custom_metadata_map
    about = {key: json.loads(words[key]) for key in ("shape", "num_classes", "noise_steps")}
    if "shares" in words:
        about["shares"] = json.loads(words["shares"])
    out, shape = Path(folder), about["shape"]
    out.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        feed = {"start": np.stack([normal(seed, "start", k, 0, shape) for k in numbers])}
        if about["num_classes"]:
            feed["classes"] = np.array([label(about, k, seed) for k in numbers], dtype=np.int64)
        if steps := about["noise_steps"]:
            noise = [[normal(seed, "walk", k, step, shape) for k in numbers] for step in steps]
            feed["noise"] = np.array(noise)
        (images,) = session.run(["images"], feed)
        pixels = np.rint((images + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
        for number, picture in zip(numbers, pixels, strict=True):
            write_png(out / f"{number:05d}.png", picture)
    print(f"{count} pictures: {out}")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(*map(int, words[:2]), *words[2:3])  # type: ignore[arg-type]
