"""The run folder: all of a training run, complete in itself.

runs/00003-fashion-mnist/
    config.toml    what was trained, in full      command.txt   the command that began it
    env.json       machine, versions, threads     log.txt       what was said
    stats.jsonl    one line a step                reals.png     some of the training images
    samples/step-*.png   previews                 checkpoints/step-*/   weights and state
    loss.png       the curve, at the end        data.json     which images, and of which run
    .lock          held by who trains it         .trainer.json  who that is
    launch.txt     the call of torchrun that began it, where one did
and where training evaluates (--eval-every)
    quality.jsonl  one line an evaluation         best/step-*/   the checkpoint that did best, the
    quality.png    its curve, at the end                        newest; one before it may be there,
                                                                which a roll-back would return to
and where it was distilled
    teacher/step-*/      the weights that it began with and learns from
and where it goes on from another run (--from)
    start/step-*/        the weights that it began with
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from unraze import checkpoint, untrusted
from unraze.checkpoint import cannot_write, write_atomically
from unraze.config import Config, from_toml, to_toml
from unraze.data import Images, record, remote
from unraze.data.record import Record
from unraze.errors import CheckpointError, InputError, UnrazeError, UnreadableError
from unraze.files import cannot_make, is_full, is_running, left_by, remove_left_over
from unraze.hardware import memory

__all__ = [
    "Run",
    "Summary",
    "append_row",
    "complete",
    "create",
    "find",
    "identity",
    "identity_of",
    "is_busy",
    "is_run",
    "last_row",
    "locked",
    "log",
    "make_next",
    "make_numbered",
    "of_launch",
    "read_config",
    "read_data",
    "read_env",
    "read_rows",
    "require_free",
    "rows_in",
    "saw_others",
    "summaries",
    "summary",
    "trainer_here",
    "truncate_rows",
    "write_config",
    "write_data",
]

LOCK_SECONDS = 0.5
"""How long a lock is waited for: whoever lists runs holds it for a moment."""

MAX_TEXT = 2**22
"""The most bytes of a file that says a line or two; a system's longest command line has fewer."""
TAIL = 2**16
"""Bytes of a log in which its last row is looked for."""
NUMBERS = frozenset(
    ("loss", "lr", "grad_norm", "images_per_second", "kid", "low", "high", "seconds", "share")
)
COUNTS = frozenset(("step", "steps", "samples"))
"""What a row holds, by what it is."""

State = Literal["running", "done", "stopped", "failed", "empty", "unreadable"]


@dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Where the previews of training are."""
        return self.path / "samples"

    @property
    def best(self) -> Path:
        """Where the checkpoint that evaluated best in training is, if training evaluated."""
        return self.path / "best"

    @property
    def teacher(self) -> Path:
        """Where the weights are that a distilled run began with."""
        return self.path / "teacher"

    @property
    def start(self) -> Path:
        """Where the weights are that a run began with which goes on from another."""
        return self.path / "start"

    @property
    def launch(self) -> Path:
        """The name of the call of torchrun that began the run, where one did."""
        return self.path / "launch.txt"

    @property
    def clusters(self) -> Path:
        """The clusters that the network is told, where it is told such."""
        return self.path / "clusters.safetensors"

    @property
    def data(self) -> Path:
        """Which images it is trained on, and the run's identity."""
        return self.path / "data.json"

    @property
    def trainer(self) -> Path:
        """Who trains it, or did when it was killed."""
        return self.path / ".trainer.json"

    @property
    def stats(self) -> Path:
        """The figures of every step, one JSON object a line."""
        return self.path / "stats.jsonl"

    @property
    def quality(self) -> Path:
        """The small evaluations in training, one JSON object a line."""
        return self.path / "quality.jsonl"


@dataclass(frozen=True)
class Summary:
    """A run at a glance; `loss` is the last one logged, NaN before the first."""

    path: Path
    state: State
    step: int
    steps: int
    loss: float
    preset: str
    source: str


def create(
    config: Config,
    *,
    out: Path | None,
    runs: Path = Path("runs"),
    command: Sequence[str] = (),
    ranks: int = 1,
    launch: str = "",
) -> Run:
    """Makes a run folder: `out`, or the next number under `runs`, named after the data.

    It will be trained by so many `ranks`, which the `launch` of that name started, see
    `ranks.launch`. Raises `InputError` where `out` exists and is not an empty folder.
    """
    if out is None:
        out = make_numbered(runs, config.data.source)
    else:
        require_free(out)
    run = Run(out)
    try:
        _make(run.path, parents=True)
        if launch:
            write_atomically(run.launch, launch + "\n")
        write_config(run, config)  # before the rest, for it makes a folder a run
        write_atomically(out / "command.txt", shlex.join(command) + "\n")
        complete(run, config, ranks=ranks)
    except UnrazeError:  # the same command is to do once there is room
        left = ("env.json", "command.txt", "samples", "checkpoints", "config.toml", "launch.txt")
        for name in (*left, ""):
            with suppress(OSError):
                _remove(out / name)
        raise
    return run


def of_launch(
    launch: str, command: Sequence[str], *, out: Path | None, runs: Path = Path("runs")
) -> Run | None:
    """The run that a launch of this name has made by this command: `out`, or the newest of those
    under `runs`.

    A run that was named may be of an earlier call of that name, see `ranks.launch`: to go on with
    it is what was asked for. None where it made none. What it left of one that it did not finish
    making is removed, unless there is something in it.
    """
    for path in sorted(runs.glob("*-*"), reverse=True) if out is None else [out]:
        run = Run(path)
        said = _text(run.launch)
        if out is not None:
            said, launch = said.partition("\n")[0], launch.partition("\n")[0]
        if said != launch:
            continue
        if is_run(path):
            return run if _text(path / "command.txt") in ("", shlex.join(command)) else None
        if all(file.name == run.launch.name or not _counts(file) for file in path.iterdir()):
            shutil.rmtree(path)
    return None


def _text(file: Path) -> str:
    """What a small file says; nothing where there is none, or it is not legible."""
    try:
        return untrusted.read(file, MAX_TEXT).decode("utf-8").strip()
    except (OSError, ValueError):
        return ""


def complete(run: Run, config: Config, *, ranks: int = 1) -> None:
    """Makes what a run has before its first step and does not have yet; raises `UnrazeError`."""
    _make(run.checkpoints)
    _make(run.samples)
    if not (run.path / "env.json").exists():
        environment_then = environment(threads=config.train.threads, ranks=ranks)
        write_atomically(run.path / "env.json", json.dumps(environment_then, indent=1) + "\n")


def _remove(path: Path) -> None:
    """Removes a file or an empty folder."""
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()


def _make(folder: Path, *, parents: bool = False) -> None:
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise UnrazeError(cannot_make(folder, error)) from error


def make_numbered(runs: Path, source: str) -> Path:
    """Makes the folder of the next number, named after the data; raises `UnrazeError`."""

    def free() -> Path:
        taken = [int(m[1]) for p in runs.glob("*") if (m := re.match(r"(\d{5})-", p.name))]
        return runs / f"{max(taken, default=-1) + 1:05d}-{_slug(source)}"

    return make_next(free)


def make_next(free: Callable[[], Path]) -> Path:
    """Makes the folder that is the next free one, as often as another process takes it meanwhile;
    raises `UnrazeError`."""
    while True:
        folder = free()
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UnrazeError(cannot_make(folder, error)) from error
        return folder


def require_free(out: Path) -> None:
    """Raises `InputError` where `out` exists and is not an empty folder."""
    if os.path.exists(out) and (not out.is_dir() or any(map(_counts, out.iterdir()))):
        if not is_run(out):
            raise InputError(f"--out {out}: exists and is not a run; give another")
        raise InputError(
            f"--out {out}: exists and is a run already; continue it with "
            f"`unraze resume {shlex.quote(str(out))}`, or give another"
        )


def _counts(path: Path) -> bool:
    """Whether it is more than what a process left that was killed before there was a run."""
    return left_by(path) is None


def is_run(folder: Path) -> bool:
    """Whether a folder is a run; what `unraze export` writes is none."""
    return (folder / "config.toml").is_file()


def find(path: Path) -> Run:
    """The run at `path`; raises `CheckpointError` where there is none."""
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: there is no such run; `unraze runs` lists what there is")
    if not is_run(path):
        raise CheckpointError(
            f"{path}: is not a run, it has no config.toml; give the folder of one, as "
            "`unraze runs` lists them"
        )
    return Run(path)


def read_config(run: Run) -> Config:
    """The run's configuration; raises `InputError` naming file and key where it is not valid."""
    return from_toml(run.path / "config.toml", complete=True)


def write_config(run: Run, config: Config, *, note: str = "") -> None:
    """Writes `config.toml`, with a note above it."""
    write_atomically(run.path / "config.toml", (f"# {note}\n" if note else "") + to_toml(config))


def environment(*, threads: int | None = None, ranks: int = 1) -> dict[str, Any]:
    """What the bytes of a result depend on besides the recipe: machine, versions, threads, and the
    number of ranks where there are several."""
    import numpy
    import torch

    from unraze import __version__

    return {
        "unraze": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "MKL_CBWR": os.environ.get("MKL_CBWR"),
        **({"ranks": ranks} if ranks > 1 else {}),
    }


def read_env(run: Run) -> dict[str, Any]:
    """What `environment` said when the run began; where that is lost, why."""
    try:
        values = untrusted.json_of(run.path / "env.json")
    except (OSError, ValueError) as error:
        return {"env.json": f"cannot be read ({getattr(error, 'strerror', None) or error})"}
    return values if isinstance(values, dict) else {"env.json": "does not hold what it should"}


def identity(config: Config, images: Images) -> str:
    """A name for a run of this recipe on these images, 64 hex digits; its checkpoints carry it.

    Two runs of one recipe have the same, and the same checkpoints.
    """
    recipe = config.model_dump(mode="json", exclude={"sample", "about"})
    text = json.dumps([recipe, images.fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def identity_of(run: Run) -> str:
    """The run's identity, as it was kept; "" for a run of before it was, or where it is damaged."""
    kept = read_data(run)
    return "" if kept is None else kept.run


def write_data(run: Run, images: Images, name: str, accepted: Sequence[str] = ()) -> None:
    """Keeps which images it is trained on, and the run's identity; `accepted` are the fingerprints
    of those they took the place of. Raises `UnrazeError`."""
    write_atomically(run.data, record.written(record.record(images, name, list(accepted))))


def read_data(run: Run) -> Record | None:
    """What `write_data` kept; None for a run of before that was, or where it is damaged."""
    return record.read(run.data)


def saw_others(run: Run) -> bool:
    """Whether it was trained on other images before those of now (`--accept-changed-data`)."""
    kept = read_data(run)
    return kept is not None and bool(kept.accepted)


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Adds a line to `stats.jsonl` or `quality.jsonl`."""
    _append(file, json.dumps(row) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of such a file, up to the first that is not as it was written: a last line that a
    crash cut off, or somebody's, with something else where a number belongs.

    Raises `CheckpointError` for a file that does not fit in memory.
    """
    if not file.is_file():
        return []
    try:
        data = untrusted.read(file, memory())
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}; it is no log of a run") from error
    return rows_in(data)


def rows_in(data: bytes) -> list[dict[str, Any]]:
    """The rows of a part of such a file that begins with a line, up to the first that is none."""
    rows = []
    for line in data.splitlines():
        try:
            row = untrusted.json_in(line)
        except ValueError:
            break
        if not _is_row(row):
            break
        rows.append(row)
    return rows


def last_row(file: Path, key: str) -> dict[str, Any] | None:
    """The last row of such a file that has this key, from its end: the file may be long. None where
    there is no such row among the last ones, or no file that can be read."""
    try:
        size = untrusted.require_plain(file)
        with file.open("rb") as opened:
            opened.seek(max(0, size - TAIL))
            data = opened.read(TAIL)
    except OSError:
        return None
    if size > TAIL:
        data = data[data.find(b"\n") + 1 :]
    for line in reversed(data.splitlines()):
        for row in rows_in(line):
            if key in row:
                return row
    return None


def _is_row(row: object) -> bool:
    if not (isinstance(row, dict) and "step" in row):
        return False
    counts = [value for key, value in row.items() if key in COUNTS]
    numbers = [value for key, value in row.items() if key in NUMBERS]
    return all(type(value) is int for value in counts) and all(
        type(value) is float or (type(value) is int and abs(value) < 2**63)
        for value in counts + numbers
    )


def truncate_rows(run: Run, step: int) -> None:
    """Drops what was logged of steps after `step`: it is going to be made again."""
    for file in (run.stats, run.quality):
        if file.is_file():
            rows = [row for row in read_rows(file) if row["step"] <= step]
            write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))


def log(run: Run, message: str) -> None:
    """Adds a dated line to `log.txt`."""
    _append(run.path / "log.txt", f"{datetime.now().isoformat(timespec='seconds')} {message}\n")


@contextmanager
def locked(run: Run) -> Iterator[str | None]:
    """Holds the run for one trainer, and yields what is to be said of the one before it, if any.

    The system frees the lock of a process that ended, however it did. Raises `InputError`, which
    names process and machine, where another process has it, and where a link in the run's folder
    would have something else written to.
    """
    untrusted.require_no_links(run.path)
    lock = _lock(run, LOCK_SECONDS)
    if lock is None:
        raise InputError(
            f"{run.path}: is being trained by another process{_who_trains(run)}; wait for it, or "
            "stop it first"
        )
    try:
        before = _trainer(run)
        for folder in (run.path, run.samples):
            remove_left_over(folder)
        for folder in (run.checkpoints, run.best):
            with suppress(OSError):  # then saving will not do either, and says so
                checkpoint.remove_left_over(folder)
        write_atomically(run.trainer, json.dumps(_this_process()) + "\n")
        try:
            yield _left_by(run, before)
        finally:
            with suppress(OSError):  # the lock alone says whether somebody trains it
                run.trainer.unlink()
    finally:
        lock.release()


def is_busy(run: Run) -> bool:
    """Whether a process is training it."""
    if not os.path.exists(run.path / ".lock"):
        return False
    held = _is_held(run.path / ".lock")
    if held is not None:
        return held
    try:
        lock = _lock(run, 0)
    except UnrazeError:  # a folder that only can be read: nobody trains there
        return False
    if lock is not None:
        lock.release()
    return lock is None


def _is_held(lock: Path) -> bool | None:
    """Whether a process has a file for itself; None where the system does not say.

    Those who ask share it: two who ask at once do not take each other for the one who has it.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        opened = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return None
    finally:
        os.close(opened)
    return False


def _lock(run: Run, seconds: float) -> FileLock | None:
    """The run's lock, held; None where another process holds it. Raises `UnrazeError`."""
    lock = FileLock(run.path / ".lock")
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and is_full(error):
            raise UnrazeError(cannot_write(run.path / ".lock", error)) from error
        why = getattr(error, "strerror", None) or error
        raise UnrazeError(
            f"{run.path / '.lock'}: cannot be locked ({why}); make the run's folder one that can "
            "be written to, on a file system with locks"
        ) from error
    return lock


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"process": pid, "machine": socket.gethostname(), "begun": _begun(pid)}


def _begun(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None where there is none, or the
    system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return f"{boot} {stat.rpartition(')')[2].split()[19]}"


def _trainer(run: Run) -> dict[str, Any]:
    """Who said last to train it; empty where nobody did, or it is not legible."""
    try:
        said = untrusted.json_of(run.trainer, MAX_TEXT)
    except (OSError, ValueError):
        return {}
    if not isinstance(said, dict):
        return {}
    whole = type(said.get("process")) is int and isinstance(said.get("machine"), str)
    return said if whole else {}


def trainer_here(run: Run) -> int | None:
    """The process of this machine that trains a run; None where none does, or it is elsewhere."""
    said = _trainer(run)
    if not said or said["machine"] != socket.gethostname():
        return None
    process: int = said["process"]
    begun = said.get("begun")  # where the system does not say, it may be any process by now
    there = begun is not None and is_running(process) and _begun(process) == begun
    return process if there else None


def _who_trains(run: Run) -> str:
    """The process that holds the lock, in words; nothing where that is not known.

    On this machine it is only named where it runs: what a dead one left is not believed.
    """
    for _ in range(10):  # it has the lock before it says who it is
        said = _trainer(run)
        if said and said["machine"] != socket.gethostname():
            return f", {said['process']} on {said['machine']}"
        if said and is_running(said["process"]) and _begun(said["process"]) == said.get("begun"):
            return f", {said['process']} on this machine ({said['machine']})"
        time.sleep(0.05)
    return ""


def _left_by(run: Run, before: dict[str, Any]) -> str | None:
    """What to say where the trainer before this one did not end by itself."""
    if not before:
        return None
    if before["machine"] == socket.gethostname():
        return f"process {before['process']}, which trained it before, was killed"
    return (
        f"process {before['process']} on {before['machine']}, which trained it before, was killed; "
        "where locks do not reach from one machine to another, as on some network file systems, it "
        "may still run: make sure that it does not"
    )


def summaries(folder: Path) -> list[Summary]:
    """The runs directly in a folder, by name; what is not a run is passed over."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the one that holds the runs")
    files = sorted(p for p in folder.glob("*/config.toml") if p.is_file())
    return [summary(Run(p.parent)) for p in files]


def summary(run: Run, config: Config | None = None) -> Summary:
    """A run at a glance, whatever state it is in; `config` is its own, where that was read."""
    try:
        config = config or read_config(run)
        saved = checkpoint.listing(run.checkpoints)
    except (InputError, UnreadableError):
        return Summary(run.path, "unreadable", 0, 0, float("nan"), "", "")
    # one that was imported has no rows
    begun = {"step": checkpoint.step_of(saved[-1]) if saved else 0, "loss": float("nan")}
    last: dict[str, Any] = last_row(run.stats, "loss") or begun
    steps = config.train.steps or int(last.get("steps", 0))
    state: State
    if is_busy(run):
        state = "running"
    elif (run.path / "failed.txt").exists():
        state = "failed"
    elif not saved:
        state = "empty"
    else:
        # training saves none of step 0: that is of weights whose step was not known
        state = "done" if checkpoint.step_of(saved[-1]) in (steps, 0) else "stopped"
    source = config.data.source
    return Summary(run.path, state, last["step"], steps, last["loss"], config.preset, source)


def _slug(source: str) -> str:
    name = remote.name_of(source) if remote.is_address(source) else Path(source).name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images"


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UnrazeError(cannot_write(path, error)) from error


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()
