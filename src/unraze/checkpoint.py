"""Checkpoints: weights without code, whole or not at all.

A checkpoint is a folder `step-00001000/` of `model.safetensors`, `ema.safetensors`,
`optim.safetensors` and `state.json`, which holds the SHA-256 of each, and of itself. It is written
under a temporary name, flushed to the disk and renamed, so that a folder of that name is complete;
it is renamed again before it is removed. What a crash leaves behind is never mistaken for one. Nor
is one of another run: `state.json` names the run, see `unraze.run.identity`.

Where weights are divided over ranks, each writes what it has, `unraze.sharded`, and the folder has
`shard-*.safetensors` in place of the three. They are read as a whole, as if they were these.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from unraze import files, sharded, untrusted, weights
from unraze.errors import CheckpointError, Elsewhere, UnrazeError, UnreadableError
from unraze.ranks import Ranks

__all__ = [
    "Checkpoint",
    "Pending",
    "Saving",
    "cannot_write",
    "fill",
    "gather",
    "hash_of",
    "listing",
    "newest",
    "read",
    "read_into",
    "remove",
    "remove_after",
    "remove_left_over",
    "require_dtypes",
    "require_fit",
    "save",
    "save_sharded",
    "save_weights",
    "set_aside",
    "step_of",
    "write_atomically",
]

PARTS = ("model", "ema", "optim")
NAME = re.compile(r"step-(\d{8,})")
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
LEFT_OVER = ".step-*.part"
"""What a crash may leave, of one being written, removed or replaced."""
REPLACED = ".replaced.part"
"""How the name of one ends that another of its step takes the place of."""
PICKLED = (b"PK\x03\x04", b"\x80\x02\x8a")
"""How the files of torch.save begin, new and old: a zip with a pickle in it, or a pickle."""
MAX_STATE = 2**26
"""The most bytes of `state.json`: a name for each of a million classes."""


Shard = Annotated[str, Field(pattern=r"^shard-[\w.-]+\.safetensors$")]
Number = Annotated[int, Field(ge=0, lt=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Hashes(_Part):
    model: str
    ema: str
    optim: str


class _About(_Part):
    """The network's images and classes."""

    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    class_names: list[str]
    num_classes: Annotated[int, Field(ge=0, le=10**6)]
    sigma_data: Annotated[float, Field(gt=0)]
    clusters: str | None = None

    @model_validator(mode="after")
    def _as_trained(self) -> _About:
        if self.shape[0] not in (1, 3):
            raise ValueError(f"{self.shape[0]} channels, where only 1 and 3 are trained on")
        if self.shape[1] * self.shape[2] > untrusted.MAX_PIXELS:
            raise ValueError(f"{self.shape[1]} x {self.shape[2]} pixels, which are too many")
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} names of {self.num_classes} classes")
        return self


class _State(_Part):
    """What `state.json` holds: all that a resume goes on with."""

    step: Number
    sha256: _Hashes | None = None
    shards: dict[Shard, str] | None = None
    model: _About
    data: str
    config: dict[str, Any]
    updates: Number
    bad: Number
    lr_factor: Annotated[float, Field(gt=0, le=1)]
    rolled_back: bool
    periodic: bool
    run: str = ""
    kid: float | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> _State:
        if (self.sha256 is None) == (self.shards is None):
            raise ValueError("has the hashes of no file, or of two kinds of files")
        return self


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read and verified. `hash` is the SHA-256 of the averaged weights' file.

    It may have been verified alone: then it has no tensors. Where `state` names "shards" it may
    have tensors on the device "meta": their shapes and types.
    """

    path: Path
    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def hash(self) -> str:
        """The SHA-256 of `ema.safetensors`, hexadecimal: the name of what is sampled from."""
        return str(self.state["sha256"]["ema"])


def save(
    folder: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    ema: dict[str, Tensor],
    optim: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    beside: Iterable[Path] = (),
) -> Path:
    """Writes `folder/step-XXXXXXXX` and then removes all but the `keep` newest checkpoints.

    The newest periodic one is kept besides: a run that was stopped is to roll back to where one
    that was not would. Copies of what is `beside` lie in it, too. Raises `UnrazeError` where the
    disk is full or not writable; the older ones stay as they were.
    """
    final = folder / f"step-{step:08d}"
    temporary = _prepared(final)
    hashes = {}
    try:
        for part, tensors in zip(PARTS, (model, ema, optim), strict=True):
            data = _bytes_of(tensors)
            hashes[part] = hashlib.sha256(data).hexdigest()
            files.write_and_flush(temporary / f"{part}.safetensors", data)
        for path in beside:
            _copy(path, temporary / path.name)
        _complete(temporary, final, {**state, "step": step, "sha256": hashes}, keep=keep)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UnrazeError(cannot_write(final, error)) from error
    return final


def _prepared(final: Path) -> Path:
    """A folder to write a checkpoint into, under another name; what a crash left of such goes."""
    temporary = files.temporary(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(final.parent)
        temporary.mkdir()
    except OSError as error:
        raise UnrazeError(cannot_write(final, error)) from error
    return temporary


def _complete(temporary: Path, final: Path, state: dict[str, Any], *, keep: int) -> None:
    """Writes what makes the files of a folder a checkpoint, gives it its name, and removes all but
    the newest. Raises `OSError`."""
    state = state | {"hash": _hash_of_state(state)}
    text = json.dumps(state, indent=1, sort_keys=True)
    files.write_and_flush(temporary / "state.json", text.encode())
    files.flush_folder(temporary)
    _put_in_place(temporary, final)
    there = listing(final.parent)
    periodic = next((path for path in reversed(there) if _is_periodic(path)), None)
    for old in there[:-keep]:
        if old != periodic:
            remove(old)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Gives a folder its name. One of that name, of the same step, is there under another one until
    then, and at any moment of it one of the two is found again. Raises `OSError`."""
    replaced = final.with_name(f".{final.name}{REPLACED}")
    if replaced.exists():  # and `final` is, or it would have got its name back
        shutil.rmtree(replaced)
    if final.exists():
        final.rename(replaced)
    try:
        temporary.rename(final)
    except OSError:
        with suppress(OSError):
            replaced.rename(final)
        raise
    files.flush_folder(final.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _copy(path: Path, to: Path) -> None:
    """Copies a file or a folder of files, and waits until the disk has it. Raises `OSError`."""
    if not path.is_dir():
        shutil.copyfile(path, to)
        files.flush(to)
        return
    to.mkdir()
    for inner in path.iterdir():
        _copy(inner, to / inner.name)
    files.flush_folder(to)


def save_weights(
    folder: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    ema: dict[str, Tensor],
    about: dict[str, Any],
    data: str,
    config: dict[str, Any],
) -> Path:
    """Writes a checkpoint of weights alone, with no training behind them to be gone on with.

    `about` are the network's images and classes, `data` the fingerprint of what it was trained on,
    where that is known. Raises as `save` does.
    """
    state: dict[str, Any] = {"updates": 0, "bad": 0, "lr_factor": 1.0}
    state |= {"rolled_back": False, "periodic": False}
    state |= {"model": about, "data": data, "config": config}
    return save(folder, step, model=model, ema=ema, optim={}, state=state, keep=1)


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256, hexadecimal, of the file that these tensors have in a checkpoint."""
    return hashlib.sha256(_bytes_of(tensors)).hexdigest()


def listing(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, unread; raises `UnreadableError` where it cannot
    be told which there are."""
    try:
        with weights.reading(folder):
            names = os.listdir(folder)
            found = [(int(m[1]), folder / name) for name in names if (m := NAME.fullmatch(name))]
            return [path for _, path in sorted(found) if path.is_dir()]
    except CheckpointError:  # there is no such folder
        return []


def step_of(path: Path) -> int:
    """The training step of a checkpoint, by its name."""
    return int(path.name.removeprefix("step-"))


def remove_left_over(folder: Path) -> None:
    """Removes what a crash left half-written or half-removed, and gives back its name to what was
    to be replaced and was not; raises `OSError`."""
    for path in folder.glob(LEFT_OVER):
        final = path.with_name(path.name[1:].removesuffix(REPLACED))
        if path.name.endswith(REPLACED) and not final.exists():
            path.rename(final)
            files.flush_folder(folder)
        else:
            shutil.rmtree(path)


def remove_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps, the newest first; raises `UnrazeError`."""
    for path in reversed(listing(folder)):
        if step_of(path) > step:
            remove(path)


@dataclass(frozen=True)
class Saving:
    """A checkpoint that all ranks are writing, under a temporary name: on the first one `complete`,
    given the hashes of its files, makes it one."""

    path: Path
    temporary: Path
    ranks: Ranks
    written: Future[dict[str, str]]
    complete: Callable[[dict[str, str]], None]

    @property
    def is_written(self) -> bool:
        """Whether the disk has what all ranks wrote, as far as this one knows."""
        return self.written.done()

    def finish(self) -> None:
        """Waits until it is written, and makes it a checkpoint.

        Raises `UnrazeError` where it could not be written, and `Elsewhere` on all ranks but the
        first; nothing of it is left then.
        """
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            hashes = self.written.result()
            if self.ranks.is_first:
                self.complete(hashes)
        except (Exception, CheckpointException) as error:  # the latter is none of the former
            if self.ranks.is_first:
                shutil.rmtree(self.temporary, ignore_errors=True)
            reason: BaseException = error
            if isinstance(error, CheckpointException):
                failures = [failure for failure, _ in error.failures.values()]
                reason = next((f for f in failures if isinstance(f, OSError)), failures[0])
            elif not isinstance(error, OSError | CheckpointError):
                raise
            words = f"{self.path}: cannot be written ({reason}); older checkpoints are intact"
            if isinstance(reason, OSError):
                words = cannot_write(self.path, reason)
            raise (UnrazeError if self.ranks.is_first else Elsewhere)(words) from error


class Pending:
    """The checkpoint that is being written while training goes on, if one is. As a context it ends
    with that finished, also where an error ends it, which is the one that is raised then."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.saving: Saving | None = None

    def begin(self, saving: Saving | None) -> None:
        """This is being written from now on, all before it is finished."""
        assert self.saving is None
        self.saving = saving

    def finish(self, *, wait: bool = True) -> None:
        """Finishes it, by all ranks at once, which wait for each other; where not `wait`, only if
        all have written it. Raises `UnrazeError`."""
        saving = self.saving
        if saving is None or not (wait or not self.ranks.any(not saving.is_written)):
            return
        self.saving = None
        self.ranks.each(saving.finish)

    def __enter__(self) -> Pending:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        elif self.saving is not None and (issubclass(kind, Exception) or self.saving.is_written):
            with suppress(Exception):  # other ranks may be anywhere by now, and are not asked
                self.saving.finish()


def save_sharded(
    folder: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    ema: dict[str, Tensor],
    optim: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    ranks: Ranks,
    group: ProcessGroup | None,
) -> Saving:
    """Begins to write `folder/step-XXXXXXXX`, each rank its part of the tensors as they are now; by
    all ranks at once. The rest is as `save` does it, once it is finished.

    `group` is one by which nothing else is sent meanwhile.
    """
    final = folder / f"step-{step:08d}"
    temporary = ranks.first(_prepared, final)
    flat = _flat(model=model, ema=ema, optim=optim)

    def complete(shards: dict[str, str]) -> None:
        _complete(temporary, final, {**state, "step": step, "shards": shards}, keep=keep)

    written = sharded.write(temporary, flat, ranks, group)
    return Saving(final, temporary, ranks, written, complete)


def _flat(**parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{k}": v for part, tensors in parts.items() for k, v in tensors.items()}


def gather(path: Path) -> Path:
    """Makes one of shards one of whole files, of the same name, with all else that was in it;
    raises as `save` and `read` do."""
    saved = read(path)
    if "shards" not in saved.state:
        return path
    state = {k: v for k, v in saved.state.items() if k not in ("shards", "sha256", "step", "hash")}
    parts = {"model": saved.model, "ema": saved.ema, "optim": saved.optim}
    with weights.reading(path):
        names = saved.state["shards"].keys() | {"state.json"}
        beside = [each for each in sorted(path.iterdir()) if each.name not in names]
    keep = len(listing(path.parent))
    return save(path.parent, saved.step, **parts, state=state, keep=keep, beside=beside)


def read_into(saved: Checkpoint, **parts: Mapping[str, Tensor]) -> None:
    """Fills model, ema and optim of a divided run from a checkpoint of shards, each rank what it
    has; by all ranks at once. Raises `CheckpointError`, before anything is filled where it is of
    another network."""
    from torch.distributed.checkpoint.api import CheckpointException

    wanted = _flat(**parts)
    there = _flat(model=saved.model, ema=saved.ema, optim=saved.optim)
    require_fit({k: v.shape for k, v in wanted.items()}, there, saved.path)
    require_dtypes({k: v.dtype for k, v in wanted.items()}, there, saved.path)
    try:
        sharded.read_into(saved.path, saved.state["shards"], wanted, None)
    except CheckpointException as error:
        failure = next(iter(error.failures.values()))[0]
        raise UnreadableError(
            f"{saved.path}: could not be read by all ranks ({failure})"
        ) from error


def read(path: Path, *, run: str = "", whole: bool = True, tensors: bool = True) -> Checkpoint:
    """Reads one checkpoint and verifies its checksums; raises `CheckpointError`, and
    `UnreadableError` where it cannot be told whether it is one.

    Where `run` is given, one that says it is of another run is refused. Where not `whole`, of
    shards the shapes and types are read, and no values. Where not `tensors`, all is only verified.
    """
    state_file = path / "state.json"
    with weights.reading(path):
        if not state_file.is_file():
            pickles = sorted(p.name for p in path.glob("*") if p.suffix in PICKLES)
            if pickles:
                raise CheckpointError(_is_pickle(path / pickles[0]))
            raise CheckpointError(f"{path}: is not a checkpoint, it has no state.json")
    state = _state_in(state_file)
    step = state["step"]
    if path.name != f"step-{step:08d}":
        raise CheckpointError(f"{state_file}: is of step {step}, its folder's name says another")
    if run and state.get("run") not in (None, "", run):
        raise CheckpointError(
            f"{path}: is a checkpoint of another run ({state['run'][:12]}…, this one is "
            f"{run[:12]}…)"
        )
    if (shards := state.get("shards")) is not None:
        sharded.require_whole(path, shards, at_once=whole and tensors)
        parts = _of_shards(path, shards, values=whole) if tensors else _NOTHING
        if whole and tensors:
            state |= {"sha256": {part: hash_of(parts[part]) for part in ("model", "ema")}}
        return Checkpoint(path, step, **parts, state=state)
    parts = {}
    for part in PARTS:
        file, expected = path / f"{part}.safetensors", state["sha256"][part]
        parts[part] = _read_part(file, expected, values=tensors)
    return Checkpoint(path, step, **parts, state=state)


_NOTHING: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}


def _state_in(file: Path) -> dict[str, Any]:
    """What `state.json` says; raises as `read` does."""
    try:
        with weights.reading(file):
            state: dict[str, Any] = untrusted.json_of(file, MAX_STATE)
        _State.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        if place := ".".join(map(str, first["loc"])):
            what = f"{place} is missing" if first["type"] == "missing" else f"{place}: {what}"
        raise CheckpointError(f"{file}: is damaged ({what})") from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: is damaged ({error})") from error
    if state.get("hash") not in (None, _hash_of_state(state)):
        raise CheckpointError(f"{file}: is damaged, it is not what its own hash says")
    return state


def _of_shards(
    path: Path, shards: Mapping[str, str], *, values: bool
) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, value in sharded.read(path, shards, values=values).items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise CheckpointError(f"{path}: has a tensor of no part, {untrusted.one_line(key)!r}")
        parts[part][name] = value
    return parts


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that it is neither found nor counted again; raises
    `UnrazeError`."""
    aside = path.with_name(f"damaged-{path.name}")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        return path.rename(aside)
    except OSError as error:
        raise UnrazeError(
            f"{path}: is damaged, and cannot be renamed ({error.strerror or error}); make its "
            "folder writable"
        ) from error


def newest(
    folder: Path, *, run: str = "", whole: bool = True, tensors: bool = True
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is undamaged, and a sentence for each damaged newer one; `run`,
    `whole` and `tensors` as `read` has them. Raises `UnreadableError` where a newer one could not
    be read, which is no reason to go back to an older one."""
    problems: list[str] = []
    for path in reversed(listing(folder)):
        try:
            return read(path, run=run, whole=whole, tensors=tensors), problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def fill(network: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Loads weights into a network; raises `CheckpointError` that names what does not fit."""
    wanted = network.state_dict()
    require_fit({k: v.shape for k, v in wanted.items()}, tensors, where)
    require_dtypes({k: v.dtype for k, v in wanted.items()}, tensors, where)
    own = {k: sharded.divided_as(v, wanted[k]) for k, v in tensors.items()}
    network.load_state_dict(own)


def require_dtypes(
    wanted: Mapping[str, torch.dtype], tensors: Mapping[str, Tensor], where: Path
) -> None:
    """Raises `CheckpointError` unless the tensors of these names have these dtypes."""
    for name, dtype in wanted.items():
        if tensors[name].dtype != dtype:
            raise CheckpointError(
                f"{where}: {name} holds {tensors[name].dtype}, the network needs {dtype}; was it "
                "converted since?"
            )


def require_fit(
    wanted: Mapping[str, Sequence[int]],
    tensors: Mapping[str, Tensor],
    where: Path,
    *,
    remedy: str = "was config.toml changed since?",
) -> None:
    """Raises `CheckpointError` unless the tensors have exactly these names and shapes."""
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        says = [f"lacks {_some(missing)}"] if missing else []
        says += [f"has {_some(extra)} besides"] if extra else []
        raise CheckpointError(f"{where}: is of another network: it {' and '.join(says)}; {remedy}")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(tensors[name].shape)}, "
                f"the network needs {tuple(shape)}; {remedy}"
            )


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file under a temporary name, flushes it and renames it into place."""
    try:
        files.write_whole(path, text.encode())
        files.flush_folder(path.parent)
    except OSError as error:
        raise UnrazeError(cannot_write(path, error)) from error


def _hash_of_state(state: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, of all that a state says but this."""
    rest = {key: value for key, value in state.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def remove(path: Path) -> None:
    """Removes a checkpoint; half of one is never found under its name. Raises `UnrazeError`."""
    gone = path.with_name(f".{path.name}.gone.part")
    try:
        if gone.exists():
            shutil.rmtree(gone)
        shutil.rmtree(path.rename(gone))
    except OSError as error:
        raise UnrazeError(
            f"{path}: cannot be removed ({error.strerror or error}); make its folder writable"
        ) from error


def _bytes_of(tensors: Mapping[str, Tensor]) -> bytes:
    plain = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    return safetensors.torch.save(plain)


def _is_periodic(path: Path) -> bool:
    """Whether a run that is never stopped has it too; a damaged one does not count."""
    try:
        return untrusted.json_of(path / "state.json", MAX_STATE)["periodic"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _read_part(path: Path, expected: str, *, values: bool) -> dict[str, Tensor]:
    """The tensors of a file, or, where not `values`, none of them, once it is verified."""
    with weights.reading(path):
        if not path.exists():
            if pickles := [p for suffix in PICKLES if (p := path.with_suffix(suffix)).exists()]:
                raise CheckpointError(_is_pickle(pickles[0]))
            raise CheckpointError(f"{path}: is missing")
        if not path.is_file():
            raise CheckpointError(f"{path}: is damaged, it is not a file")
        weights.require_memory(path, path.stat().st_size)
        data = path.read_bytes() if values else b""
        found = hashlib.sha256(data).hexdigest() if values else sharded.hash_of(path)
        if found != expected:
            with path.open("rb") as stream:
                is_pickle = stream.read(max(map(len, PICKLED))).startswith(PICKLED)
            if is_pickle:
                raise CheckpointError(_is_pickle(path))
            raise CheckpointError(
                f"{path}: is damaged, its SHA-256 is {found[:12]}… and not {expected[:12]}…"
            )
        if not values:
            return {}
        try:
            return weights.parsed(data)
        except ValueError as error:
            if data.startswith(PICKLED):
                raise CheckpointError(_is_pickle(path)) from error
            raise CheckpointError(f"{path}: is not a safetensors file ({error})") from error


def _is_pickle(path: Path) -> str:
    return (
        f"{path}: a pickle can run code when it is opened, so it is not read; convert it to "
        "safetensors where you trust it"
    )


def cannot_write(path: Path, error: OSError) -> str:
    """What to say where a file of a run could not be written."""
    intact = "older checkpoints are intact"
    return files.cannot_write(path, error, then=f"resume: {intact}", otherwise=intact)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
