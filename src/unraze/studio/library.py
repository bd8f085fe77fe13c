"""The runs of a folder, each by an identifier, and what is to be told of them.

A run is looked at again only where one of its files changed: two hundred of them are listed in the
time that asking for their files' dates takes.
"""

import hashlib
import io
import os
import stat
import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, BeforeValidator

from unraze import checkpoint, run as runs, untrusted
from unraze.config import Config
from unraze.data.shape import UnreadableError, decode
from unraze.errors import InputError, UnrazeError, UnreadableError as Unreachable
from unraze.run import Run

__all__ = [
    "Curves",
    "Library",
    "Missing",
    "RunTold",
    "checkpoints_of",
    "finite",
    "is_there",
    "name_of",
    "sayable",
]

LOOKED_AT = ("config.toml", "stats.jsonl", "quality.jsonl", "checkpoints", "samples", "failed.txt")
"""What a run's summary depends on, besides who trains it."""
POINTS = 1000
"""Points of a curve that are sent, at most."""
CURVES = 8
"""Runs whose curves are kept in memory."""
THUMBNAIL, THUMBNAILS = 96, 500
"""Pixels of a side, and how many are kept."""
PART = 2**24
"""Bytes of a log that are read at once."""
LOG_LINES, LOG_BYTES = 200, 2**18
STEPS = "step-*.png"

State = Literal["running", "done", "stopped", "failed", "empty", "unreadable", "starting"]


class Missing(UnrazeError):
    """What is asked for is not there, or not any more."""


Text = Annotated[str, BeforeValidator(lambda text: sayable(text))]


class RunTold(BaseModel):
    """A run at a glance.

    `changed` is in seconds of the epoch, `quality` the last evaluation in training, `preview` the
    step of the last pictures; `can_sample` says that it has weights, `error` why it failed, did not
    begin, or cannot be read.
    """

    id: str
    name: Text
    state: State
    step: int
    steps: int
    loss: float | None
    preset: Text
    source: Text
    shape: tuple[int, int, int] | None
    quality: dict[str, Any] | None
    preview: int | None
    changed: float
    thumbnail: str | None
    can_sample: bool
    error: Text | None


@dataclass
class _Seen:
    """A run as it was looked at last; `mark` changes with its files."""

    run: Run
    mark: tuple[Any, ...]
    told: RunTold


class Curves:
    """The figures of a run's steps, read as they are written: what was read is not read again."""

    columns = ("step", "loss", "lr", "images_per_second")

    def __init__(self, file: Path) -> None:
        self.file, self._lock = file, threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._at, self._inode, self._rows = 0, 0, {c: array("d") for c in self.columns}

    def read(self, after: int) -> tuple[dict[str, list[float | None]], int, bool]:
        """The columns of later steps, thinned, the last step known, and whether what was told
        before does not hold any more: the run went back to an earlier step."""
        with self._lock:
            return self._read(after)

    def _read(self, after: int) -> tuple[dict[str, list[float | None]], int, bool]:
        anew = self._refresh()
        steps = self._rows["step"]
        if anew or (after and (not steps or after > steps[-1])):
            after, anew = 0, after > 0
        first = next((i for i in range(len(steps) - 1, -1, -1) if steps[i] <= after), -1) + 1
        each = max(1, -(-(len(steps) - first) // POINTS))
        told: dict[str, list[float | None]] = {}
        for name, values in self._rows.items():
            parts = [values[i : i + each] for i in range(first, len(values), each)]
            means = [part[-1] if name == "step" else sum(part) / len(part) for part in parts]
            told[name] = [finite(mean) for mean in means]
        return told, int(steps[-1]) if steps else 0, anew

    def _refresh(self) -> bool:
        """Reads what was added; whether the file is another one, or shorter."""
        try:
            untrusted.require_plain(self.file)
            with self.file.open("rb") as opened:
                about = os.fstat(opened.fileno())
                other = self._at > 0 and (about.st_ino != self._inode or about.st_size < self._at)
                if other:
                    self._begin()
                self._inode = about.st_ino
                opened.seek(self._at)
                while data := opened.read(PART):
                    if not self._take(data):
                        break
                    opened.seek(self._at)
        except OSError:
            lost = self._at > 0
            self._begin()
            return lost
        return other

    def _take(self, data: bytes) -> int:
        """Takes the whole lines of some bytes; how many bytes those have."""
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for row in runs.rows_in(whole):
            if "loss" in row:
                for name, values in self._rows.items():
                    values.append(float(row.get(name, float("nan"))))
        return len(whole)


class Library:
    """The runs directly in a folder, which need not be there yet.

    `starting` are those whose training was asked for and has not begun; `failures` says of others
    why their training ended with an error.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starting: dict[str, RunTold] = {}
        self.failures: dict[str, str] = {}
        self._lock, self._seen = threading.Lock(), dict[str, _Seen]()
        self._changed, self._gone = dict[str, RunTold](), set[str]()
        self._curves: OrderedDict[str, Curves] = OrderedDict()
        self._thumbnails: OrderedDict[tuple[str, Any], bytes] = OrderedDict()

    def refresh(self) -> None:
        """Looks at the folder; what has changed is kept for `news`, whoever looked."""
        with self._lock:
            there = self._folders()
            for name in [name for name in self._seen if name not in there]:
                del self._seen[name]
                self._changed.pop(name, None)
                self._gone.add(name)
            for name, path in there.items():
                self.starting.pop(name, None)
                told = self._looked_at(name, Run(path))
                if told is not None:
                    self._gone.discard(name)
                    self._changed[name] = told

    def news(self) -> tuple[list[RunTold], list[str]]:
        """Looks at the folder: the runs that changed since this was asked last, and those that are
        gone."""
        self.refresh()
        with self._lock:
            found = list(self._changed.values()), sorted(self._gone)
            self._changed, self._gone = {}, set()
        return found

    def all(self) -> list[RunTold]:
        """All runs, those that changed last first."""
        self.refresh()
        with self._lock:
            found = [*self.starting.values(), *(seen.told for seen in self._seen.values())]
        return sorted(found, key=lambda told: (-told.changed, told.name))

    def told(self, name: str) -> RunTold:
        """One of them; raises `Missing`."""
        self.refresh()
        starting, seen = self.starting.get(name), self._seen.get(name)
        if starting is not None:
            return starting
        if seen is None:
            raise Missing("there is no such run here any more; the list of runs has what there is")
        return seen.told

    def run(self, name: str) -> Run:
        """The folder of a run; raises `Missing`."""
        if name not in self._seen:
            self.told(name)
        seen = self._seen.get(name)
        if seen is None:
            raise Missing("this run is only beginning; wait until it has read its images")
        return seen.run

    def named(self, folder: str) -> str | None:
        """The identifier of the run whose folder has this name, where there is one."""
        name = name_of(Path(folder).name)
        return name if name in self._seen else None

    def folder_of(self, name: str) -> str:
        """The folder of a run, also of one that is only starting."""
        starting = self.starting.get(name)
        return str(self.run(name).path if starting is None else self.folder / starting.name)

    def curves(self, name: str, after: int) -> dict[str, Any]:
        """Columns of figures, and the evaluations in training, of steps later than `after`."""
        run = self.run(name)
        with self._lock:
            curves = self._curves.setdefault(name, Curves(run.stats))
            self._curves.move_to_end(name)
            while len(self._curves) > CURVES:
                self._curves.popitem(last=False)
        columns, step, anew = curves.read(after)
        keys = ("step", "kid", "low", "high", "samples")
        quality = [
            {key: finite(row[key]) for key in keys if key in row}
            for row in runs.read_rows(run.quality)
            if anew or row["step"] > after or not after
        ]
        return {"columns": columns, "quality": quality, "step": step, "began_anew": anew}

    def previews(self, run: Run) -> list[int]:
        """The steps of which there are pictures."""
        try:
            found = [path.stem[5:] for path in run.samples.glob(STEPS)]
        except OSError:  # what must not be looked into shows none
            return []
        return sorted(int(step) for step in found if step.isdecimal())

    def preview(self, name: str, step: int) -> bytes:
        """The file of a preview; raises `Missing`."""
        run = self.run(name)
        if step not in self.previews(run):
            raise Missing(f"there is no preview of step {step}")
        return _file(run.samples / f"step-{step:08d}.png")

    def reals(self, name: str) -> bytes:
        """The file of some of the images that it learns from; raises `Missing`."""
        return _file(self.run(name).path / "reals.png")

    def thumbnail(self, name: str) -> bytes:
        """A small PNG of what it draws, or else of what it learns from; raises `Missing`."""
        run = self.run(name)
        steps = self.previews(run)
        file = run.samples / f"step-{steps[-1]:08d}.png" if steps else run.path / "reals.png"
        key = (name, _date(file))
        small = self._thumbnails.get(key)
        if small is None:
            small = _small(_file(file), half=bool(steps))
            with self._lock:
                self._thumbnails[key] = small
                while len(self._thumbnails) > THUMBNAILS:
                    self._thumbnails.popitem(last=False)
        return small

    def log(self, run: Run) -> list[str]:
        """The last lines of its log."""
        try:
            size = untrusted.require_plain(run.path / "log.txt")
            with (run.path / "log.txt").open("rb") as opened:
                opened.seek(max(0, size - LOG_BYTES))
                text = opened.read(LOG_BYTES).decode("utf-8", "replace")
        except OSError:
            return []
        return [untrusted.one_line(line) for line in text.splitlines()[-LOG_LINES:]]

    def _folders(self) -> dict[str, Path]:
        """The folders that are runs, by their identifiers; raises `UnrazeError`."""
        try:
            with os.scandir(self.folder) as entries:
                paths = [Path(entry.path) for entry in entries]
        except FileNotFoundError:  # not there yet, or not any more: there is no run in it
            return {}
        except OSError as error:
            raise UnrazeError(
                f"{self.folder}: cannot be looked into ({error.strerror or error}); make it a "
                "folder that you may read, or start the studio with another"
            ) from error
        return {name_of(path.name): path for path in paths if _is_run(path)}

    def _looked_at(self, name: str, run: Run) -> RunTold | None:
        """What is told of a run, where that changed since it was looked at."""
        before = self._seen.get(name)
        mark = (*map(_date, (run.path / one for one in LOOKED_AT)), self.failures.get(name))
        trained = is_there(run.trainer)
        was_trained = before is not None and before.told.state == "running"
        if before is not None and before.mark == mark and not trained and not was_trained:
            return None
        told = self._told(name, run, mark)
        self._seen[name] = _Seen(run, mark, told)
        return told if before is None or before.told != told else None

    def _told(self, name: str, run: Run, mark: tuple[Any, ...]) -> RunTold:
        error, config, failed = self.failures.get(name), None, run.path / "failed.txt"
        try:
            config = runs.read_config(run)
            if failed.is_file():
                error = untrusted.one_line(_text(failed))
        except (InputError, OSError, ValueError) as problem:
            error = str(problem)
        summary = runs.summary(run, config)
        if summary.state in ("running", "done") and name in self.failures:
            self.failures.pop(name, None)  # somebody went on with it
            error = None
        last = runs.last_row(run.quality, "kid")
        quality = last and {
            "value": finite(last["kid"]),
            "low": finite(last.get("low")),
            "high": finite(last.get("high")),
            "step": last["step"],
        }
        previews = self.previews(run)
        pictured = bool(previews) or is_there(run.path / "reals.png")
        changed = max((date[0] for date in mark if isinstance(date, tuple)), default=0) / 1e9
        return RunTold(
            id=name,
            name=run.path.name,
            state=summary.state,
            step=summary.step,
            steps=summary.steps,
            loss=finite(summary.loss),
            preset=summary.preset,
            source=summary.source,
            shape=None if config is None else _shape(config),
            quality=quality,
            preview=previews[-1] if previews else None,
            changed=changed,
            thumbnail=f"/api/runs/{name}/thumbnail.png?v={int(changed)}" if pictured else None,
            can_sample=bool(checkpoints_of(run)[0]),
            error=error,
        )


def _is_run(path: Path) -> bool:
    """Whether it is one, as far as that can be seen: of what must not be entered its state says."""
    try:
        return stat.S_ISREG(os.stat(path / "config.toml").st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def is_there(file: Path) -> bool:
    """Whether there is such a file, as far as that can be seen."""
    return _date(file) is not None


def sayable(value: Any) -> Any:
    """A value of texts that can be said in JSON: what no encoding has, as in names of files that
    another system wrote, is replaced."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {sayable(key): sayable(one) for key, one in value.items()}
        case list():
            return [sayable(one) for one in value]
        case _:
            return value


def name_of(folder: str) -> str:
    """The identifier of the run of this folder: it says nothing, and leads nowhere."""
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def finite(value: Any) -> float | None:
    """A number as JSON can say it; None for one that is none."""
    number = float("nan") if value is None else float(value)
    return number if abs(number) < float("inf") else None


def checkpoints_of(run: Run) -> tuple[list[int], int | None]:
    """The steps of its checkpoints, and that of the best one."""
    try:
        best = [checkpoint.step_of(path) for path in checkpoint.listing(run.best)]
        steps = [checkpoint.step_of(path) for path in checkpoint.listing(run.checkpoints)]
    except Unreachable:
        return [], None
    return steps, best[-1] if best else None


def _shape(config: Config) -> tuple[int, int, int] | None:
    if config.data.size is None or config.data.channels is None:
        return None
    return (config.data.channels, *config.data.size)


def _date(file: Path) -> tuple[int, int, int] | None:
    """What changes with a file; None where there is none."""
    try:
        about = os.stat(file)
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


def _text(file: Path) -> str:
    return untrusted.read(file, 2**16).decode("utf-8", "replace").strip()


def _file(file: Path) -> bytes:
    try:
        return untrusted.read(file, untrusted.MAX_PIXELS)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise Missing(f"{file.name}: cannot be read ({why})") from error


def _small(data: bytes, *, half: bool) -> bytes:
    """A picture's right half, or all of it, cut to a square and made small."""
    try:
        picture = decode(io.BytesIO(data))
    except UnreadableError as error:
        raise Missing(f"its picture is damaged ({error})") from error
    width, height = picture.size
    left = (width + 16) // 2 if half else 0
    side = min(width - left, height)
    small = picture.crop((left, 0, left + side, side)).resize(
        (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX
    )
    out = io.BytesIO()
    small.save(out, format="PNG")
    return out.getvalue()
