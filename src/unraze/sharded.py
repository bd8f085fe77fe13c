"""Weights divided over the ranks, on disk: each rank writes what it has, while training goes on.

A folder of files `shard-0000R-….safetensors`, as torch.distributed.checkpoint's safetensors storage
writes them: in the header of each is where its pieces lie in the whole tensors. They are read on
any number of ranks, or by one process as a whole. There is no pickle in them.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from torch import Tensor

from unraze import files, untrusted, weights
from unraze.errors import CheckpointError

__all__ = [
    "PATTERN",
    "divided_as",
    "hashes",
    "is_divided",
    "read",
    "read_into",
    "require_whole",
    "whole",
    "write",
]

PATTERN = "shard-*.safetensors"
_OFFSETS = "DCP_SHARDING_INFO"
_BLOCK = 2**24


def is_divided(tensor: Tensor) -> bool:
    """Whether this rank has a part of it: a DTensor, whose module takes seconds to import."""
    return hasattr(tensor, "full_tensor")


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those that are divided gathered on each rank. By all ranks at once."""
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in tensors.items()}


def divided_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that all ranks have, divided as `like` is, if it is."""
    if not is_divided(like):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def write(
    folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> "Future[Any]":
    """Begins to write the tensors as they are now into a folder that is there; by all ranks at
    once.

    What is returned is done when all ranks have written theirs, and has the error of any that could
    not. `group` is one that nothing else is sent by meanwhile.
    """
    from torch.distributed.checkpoint import (  # type: ignore[attr-defined]
        HuggingFaceStorageWriter,
        async_save,
    )

    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    begun = async_save(dict(tensors), storage_writer=writer, process_group=group)
    assert isinstance(begun, Future)
    return begun


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of shards in a folder, when the disk has them. Raises `OSError`."""
    found = {}
    for path in sorted(folder.glob(PATTERN)):
        files.flush(path)
        found[path.name] = _hash_of(path)
    return found


def require_whole(folder: Path, expected: Mapping[str, str]) -> None:
    """Raises `CheckpointError` where a file of shards is not the one of that SHA-256."""
    for name, hash_then in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        try:
            found = _hash_of(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        if found != hash_then:
            raise CheckpointError(
                f"{path}: is damaged, its SHA-256 is {found[:12]}… and not {hash_then[:12]}…"
            )


def read(folder: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The whole tensors of the files of these names; raises `CheckpointError`.

    No more is allocated than the files have bytes.
    """
    pieces: dict[str, list[tuple[list[int], Tensor]]] = {}
    for name in sorted(names):
        path = folder / name
        try:
            weights.require_header(path)
            with safetensors.safe_open(path, "pt") as file:
                places = untrusted.json_in((file.metadata() or {})[_OFFSETS])
                for key in file.keys():  # noqa: SIM118  (it is no mapping)
                    offsets = [int(n) for n in places[key]["saved_offsets"]]
                    pieces.setdefault(key, []).append((offsets, file.get_tensor(key)))
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a safetensors file ({error})") from error
        except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: does not say where its pieces belong ({type(error).__name__}: {error})"
            ) from error
    return {key: _joined(folder, key, parts) for key, parts in pieces.items()}


def _joined(folder: Path, key: str, parts: list[tuple[list[int], Tensor]]) -> Tensor:
    """A tensor of its pieces, which fill it exactly."""
    shape = [max(starts) for starts in zip(*(_ends(*part) for part in parts), strict=False)]
    values = sum(piece.numel() for _, piece in parts)
    fits = all(len(offsets) == piece.ndim == len(shape) for offsets, piece in parts)
    low = min((min(offsets, default=0) for offsets, _ in parts), default=0)
    if not fits or low < 0 or values != torch.Size(shape).numel():
        raise CheckpointError(f"{folder}: the pieces of {key} do not make a whole; {_REMEDY}")
    out = torch.empty(shape, dtype=parts[0][1].dtype)
    for offsets, piece in parts:
        place = tuple(slice(o, o + n) for o, n in zip(offsets, piece.shape, strict=True))
        out[place] = piece
    return out


_REMEDY = "are files of another checkpoint among them?"


def _ends(offsets: list[int], piece: Tensor) -> list[int]:
    return [o + n for o, n in zip(offsets, piece.shape, strict=False)]


def read_into(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Fills tensors, divided over the ranks or not, from a folder that was found whole; by all
    ranks at once, each of which reads what it needs."""
    from torch.distributed.checkpoint import (  # type: ignore[attr-defined]
        HuggingFaceStorageReader,
        load,
    )

    storage = HuggingFaceStorageReader(path=str(folder))
    load(dict(tensors), storage_reader=storage, process_group=group)


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
