"""Checkpoints of shards, as several ranks write them, made of those of whole files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from unraze import checkpoint

STATE: dict[str, Any] = {
    "model": {"shape": [1, 8, 8], "class_names": [], "num_classes": 0, "sigma_data": 0.5},
    "data": "",
    "config": {},
    "updates": 0,
    "bad": 0,
    "lr_factor": 1.0,
    "rolled_back": False,
    "periodic": True,
}
"""Of a checkpoint of any tensors."""


def shard(file: Path, pieces: Mapping[str, tuple[Any, Tensor]]) -> str:
    """Writes a file of pieces, each with where it is said to begin; its SHA-256."""
    places = {key: {"saved_offsets": offsets} for key, (offsets, _) in pieces.items()}
    tensors = {key: piece.contiguous() for key, (_, piece) in pieces.items()}
    data = safetensors.torch.save(tensors, {"DCP_SHARDING_INFO": json.dumps(places)})
    file.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def name_of(number: int) -> str:
    """The file of rank `number`, from 0."""
    return f"shard-{number + 1:05d}-model-00001-of-00001.safetensors"


def tell(path: Path, shards: Mapping[str, str]) -> None:
    """Lets the state of a checkpoint name these files."""
    state = json.loads((path / "state.json").read_text())
    state |= {"sha256": None, "hash": None, "shards": dict(shards)}
    (path / "state.json").write_text(json.dumps(state))


def divide(path: Path, count: int = 2) -> None:
    """Puts files of `count` shards in the place of those of a checkpoint, divided along the first
    dimension; what has none is in the first."""
    saved = checkpoint.read(path)
    files: list[dict[str, tuple[list[int], Tensor]]] = [{} for _ in range(count)]
    for part in ("model", "ema", "optim"):
        for name, value in getattr(saved, part).items():
            pieces = value.tensor_split(count) if value.ndim else (value,)
            begin = 0
            for number, piece in enumerate(pieces):
                offsets = [begin, *[0] * (value.ndim - 1)] if value.ndim else []
                files[number][f"{part}/{name}"] = (offsets, piece)
                begin += len(piece) if value.ndim else 0
        (path / f"{part}.safetensors").unlink()
    tell(path, {name_of(k): shard(path / name_of(k), files[k]) for k in range(count)})
