"""Weights divided over the ranks, on disk: each rank writes what it has, while training goes on.

A folder of files `shard-0000R-….safetensors`, as torch.distributed.checkpoint's safetensors storage
writes them: in the header of each is where its pieces lie in the whole tensors. They are read on
any number of ranks, or by one process as a whole. There is no pickle in them.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from torch import Tensor

from unraze import files, untrusted, weights
from unraze.errors import CheckpointError, UnrazeError
from unraze.ranks import Ranks

__all__ = [
    "Piece",
    "described",
    "divided_as",
    "hash_of",
    "is_divided",
    "read",
    "read_into",
    "require_whole",
    "whole",
    "write",
]

_OFFSETS = "DCP_SHARDING_INFO"
_BLOCK = 2**24
_MOST = 2**62
_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class Piece:
    """A part of a tensor that lies in a file: where in the whole it begins, and what it is."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def ends(self) -> tuple[int, ...]:
        """Where in the whole it ends."""
        return tuple(o + n for o, n in zip(self.offsets, self.shape, strict=True))

    @property
    def place(self) -> tuple[slice, ...]:
        """Where in the whole it is."""
        return tuple(map(slice, self.offsets, self.ends))


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
    folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks, group: dist.ProcessGroup | None
) -> "Future[dict[str, str]]":
    """Begins to write the tensors as they are now into a folder that is there; by all ranks at
    once.

    What is returned is done when the disk has what all ranks wrote, and that is all of the tensors:
    then it has the SHA-256 of each file. Else it has the error of a rank that could not, the same
    on all of them. `group` is one that nothing else is sent by meanwhile.
    """
    from torch.distributed.checkpoint import (  # type: ignore[attr-defined]
        HuggingFaceStorageWriter,
        async_save,
    )

    wanted = {k: (tuple(v.shape), v.dtype) for k, v in tensors.items()}
    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    begun = async_save(dict(tensors), storage_writer=writer, process_group=group)
    assert isinstance(begun, Future)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hashes")
    hashed = thread.submit(_hashed, begun, folder, wanted, ranks, group)
    thread.shutdown(wait=False)
    return hashed


Written = tuple[dict[str, str], list[dict[str, Piece]]]
"""The SHA-256 of each file that a rank wrote, and the pieces in each."""


def _hashed(
    begun: "Future[Any]",
    folder: Path,
    wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    ranks: Ranks,
    group: dist.ProcessGroup | None,
) -> dict[str, str]:
    """Each rank hashes what it wrote, and is told of what all others did: the disk of one may not
    yet show what another wrote."""
    begun.result()
    own: Written | OSError | UnrazeError
    try:
        own = _own(folder, ranks.number)
    except (OSError, UnrazeError) as error:
        own = error
    every: list[Any] = [own]
    if ranks.count > 1:
        every = [None] * ranks.count
        dist.all_gather_object(every, own, group=group)
    for found in every:
        if isinstance(found, Exception):
            raise found
    there = described(folder, [pieces for _, of_rank in every for pieces in of_rank])
    if {k: (tuple(v.shape), v.dtype) for k, v in there.items()} != wanted:
        raise CheckpointError(f"{folder}: is without some of what was to be written")
    return {name: digest for hashes, _ in every for name, digest in hashes.items()}


def _own(folder: Path, number: int) -> Written:
    """Of what the rank of this number wrote, when the disk has it. A rank may have had nothing."""
    hashes, pieces = {}, []
    for path in sorted(folder.glob(f"shard-{number + 1:05d}-*.safetensors")):
        files.flush(path)
        hashes[path.name] = hash_of(path)
        pieces.append(_pieces(path))
    files.flush_folder(folder)
    return hashes, pieces


def require_whole(folder: Path, expected: Mapping[str, str], *, at_once: bool) -> None:
    """Raises `CheckpointError` where a file of shards is not the one of that SHA-256, or one is
    there that is not among them, and `UnreadableError`.

    Where they are to be read `at_once`, all are to fit in memory; else each, as it does that a rank
    has.
    """
    with weights.reading(folder):
        there = sorted(p.name for p in folder.glob("*.safetensors"))
    if others := [name for name in there if name not in expected]:
        raise CheckpointError(f"{folder / others[0]}: is not of this checkpoint, and lies in it")
    sizes = {}
    for name in expected:
        path = folder / name
        with weights.reading(path):
            if not path.is_file():
                raise CheckpointError(f"{path}: is missing")
            sizes[path] = path.stat().st_size
    if at_once:
        weights.require_memory(folder, sum(sizes.values()))
    for path, size in sizes.items():
        weights.require_memory(path, size)
        with weights.reading(path):
            found = hash_of(path)
        if found != (hash_then := expected[path.name]):
            raise CheckpointError(
                f"{path}: is damaged, its SHA-256 is {found[:12]}… and not {hash_then[:12]}…"
            )


def described(folder: Path, pieces: Iterable[Mapping[str, Piece]]) -> dict[str, Tensor]:
    """The whole tensors that pieces make, without their values, on the device "meta"; raises
    `CheckpointError` where they do not."""
    parts: dict[str, list[Piece]] = {}
    for of_file in pieces:
        for key, piece in of_file.items():
            parts.setdefault(key, []).append(piece)
    return {key: _joined(folder, key, found) for key, found in parts.items()}


def read(folder: Path, names: Iterable[str], *, values: bool = True) -> dict[str, Tensor]:
    """The whole tensors of the files of these names, or, where not `values`, what they are, on the
    device "meta"; raises `CheckpointError` and `UnreadableError`.

    No more is allocated than the files have bytes.
    """
    pieces = {name: _pieces(folder / name) for name in sorted(names)}
    found = described(folder, pieces.values())
    if not values:
        return found
    with weights.reading(folder):
        try:
            found = {key: torch.empty_like(value, device="cpu") for key, value in found.items()}
        except RuntimeError as error:
            raise MemoryError from error
    for name, of_file in pieces.items():
        path = folder / name
        try:
            with weights.reading(path), safetensors.safe_open(path, "pt") as file:
                for key, piece in of_file.items():
                    found[key][piece.place] = file.get_tensor(key)
        except (safetensors.SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{path}: is not a safetensors file ({error})") from error
    return found


def _pieces(path: Path) -> dict[str, Piece]:
    """What a file of shards holds, of which only the header is read; raises `CheckpointError` and
    `UnreadableError`."""
    try:
        with weights.reading(path):
            weights.header(path)
            with safetensors.safe_open(path, "pt") as file:
                places = untrusted.json_in((file.metadata() or {})[_OFFSETS])
                keys = list(file.keys())
                return {key: _piece(file.get_slice(key), places[key]) for key in keys}
    except CheckpointError:
        raise
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: is not a safetensors file ({error})") from error
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: does not say where its pieces belong ({type(error).__name__}: "
            f"{untrusted.one_line(str(error))})"
        ) from error


def _piece(part: Any, said: Any) -> Piece:
    """A slice of safetensors, with the place that is said of it; raises `KeyError`, `TypeError`,
    `ValueError`."""
    shape, offsets = tuple(part.get_shape()), tuple(said["saved_offsets"])
    if not all(type(o) is int and 0 <= o < _MOST for o in offsets):
        raise ValueError("no place is there")
    if len(offsets) != len(shape):
        raise ValueError(f"{len(offsets)} offsets of {len(shape)} dimensions")
    return Piece(offsets, shape, _TYPES[part.get_dtype()])


def _joined(folder: Path, key: str, pieces: Sequence[Piece]) -> Tensor:
    """What pieces make that fill it exactly: each value is in one of them."""
    like = pieces[0]
    alike = all(p.dtype == like.dtype and len(p.shape) == len(like.shape) for p in pieces)
    shape = [max(ends) for ends in zip(*(p.ends for p in pieces), strict=False)]
    # what is empty fills nothing, and no tensor is larger than what can be counted
    filled = sorted((p for p in pieces if math.prod(p.shape)), key=lambda p: p.offsets)
    fits = math.prod(max(n, 1) for n in shape) <= _MOST
    fits &= sum(math.prod(p.shape) for p in filled) == math.prod(shape)
    if not (alike and fits) or _overlap(filled):
        name = untrusted.one_line(key)
        raise CheckpointError(f"{folder}: the pieces of {name} do not make a whole; {_REMEDY}")
    return torch.empty(shape, dtype=like.dtype, device="meta")


_REMEDY = "are files of another checkpoint among them?"


def _overlap(pieces: Sequence[Piece]) -> bool:
    """Whether two of these, which are in the order of their places, have a value in common."""
    for number, piece in enumerate(pieces):
        for other in pieces[number + 1 :]:
            if piece.shape and other.offsets[0] >= piece.ends[0]:
                break  # as all those after it
            starts = map(max, piece.offsets, other.offsets)
            if all(a < b for a, b in zip(starts, map(min, piece.ends, other.ends), strict=True)):
                return True
    return False


def read_into(
    folder: Path,
    names: Iterable[str],
    tensors: Mapping[str, Tensor],
    group: dist.ProcessGroup | None,
) -> None:
    """Fills tensors, divided over the ranks or not, from the files of these names in a folder that
    was found whole; by all ranks at once, each of which reads what it needs."""
    from torch.distributed.checkpoint import (  # type: ignore[attr-defined]
        HuggingFaceStorageReader,
        load,
    )

    storage = HuggingFaceStorageReader(path=str(folder))

    def named(path: "str | os.PathLike[str]") -> list[str]:
        return [os.path.join(path, name) for name in sorted(names)]

    # it would take what it sees in the folder, and what it does not see it would not miss
    storage.fs.ls = named  # type: ignore[method-assign]
    load(dict(tensors), storage_reader=storage, process_group=group)


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal, of which little is in memory at once."""
    untrusted.require_plain(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
