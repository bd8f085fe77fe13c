"""Processes of the package that tests can kill, and what a run left, to be compared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluated
from unraze import checkpoint, run as runs
from unraze.run import Run

HERE = Path(__file__).parent
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Whole:
    """A run that was never stopped: its data, what it left, and the seconds it took."""

    data: Path
    path: Path
    left: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Forker:
    """The program of forker.py, as it runs."""

    program: subprocess.Popen[str]

    def start(self, do: str, **job: Any) -> int:
        """Begins a job in a process of its own; its number."""
        return int(self._ask({"do": do, **job}))

    def wait(self, process: int) -> int:
        """How a process ended: its exit status, or minus the signal that killed it."""
        return int(self._ask({"wait": process}))

    def finish(self, do: str, **job: Any) -> int:
        """Begins a job and waits for it."""
        return self.wait(self.start(do, **job))

    @contextmanager
    def running(self, do: str, **job: Any) -> Iterator[int]:
        """A job in a process of its own, which does not outlive a test that fails."""
        process = self.start(do, **job)
        try:
            yield process
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            raise

    def kill_after(self, seconds: float, do: str, **job: Any) -> int:
        """Begins a job and kills it then; how it ended."""
        process = self.start(do, **job)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        return self.wait(process)

    def kill_inside(
        self, phase: str, at: int, seconds: float, marker: Path, do: str, **job: Any
    ) -> tuple[bool, int]:
        """Begins a job and kills it so long after it came to a part of the run the time number
        `at`; whether it was still in it, and how it ended."""
        fault = {"enter": phase, "time": at, "marker": str(marker)}
        process = self.start(do, faults=[fault], **job)
        while not marker.exists() and not has_ended(process):
            time.sleep(0.0005)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        ended = self.wait(process)
        inside = marker.exists()
        marker.unlink(missing_ok=True)
        return inside and ended == KILLED, ended

    def _ask(self, job: dict[str, Any]) -> str:
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(json.dumps(job) + "\n")
        self.program.stdin.flush()
        answer = self.program.stdout.readline()
        assert answer, "the forking program has ended"
        return answer


def wait_for(there: Callable[[], object], seconds: float = 60) -> None:
    """Returns when it is there; fails where it does not come."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.01)


def has_ended(process: int) -> bool:
    """Whether a process only waits to be asked how it ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


@contextmanager
def forking() -> Iterator[Forker]:
    """The forking program, as long as the context lasts."""
    program = subprocess.Popen(
        [sys.executable, str(HERE / "forker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"},
    )
    with program:
        try:
            yield Forker(program)
        finally:
            assert program.stdin is not None
            program.stdin.close()
            program.wait()


def make_data(folder: Path) -> Path:
    """Some of the digits with a test part, to train on and to evaluate by."""
    return evaluated.digits_file(folder / "digits.npz")


SETTINGS = {
    "steps": 16,
    "eval_every": 8,
    "checkpoint_every": 3,
    "preview_every": 8,
    "batch": 16,
}


def command(data: Path, out: Path | str, **settings: Any) -> list[str]:
    """The command of a small run that evaluates, saves and previews every few steps."""
    width, clusters = settings.pop("width", 8), settings.pop("clusters", 0)
    tiny = ["network.fold=2", f"network.widths=[{width}]", "network.blocks=1", "network.groups=4"]
    tiny += ["network.heads=1", "schedule.steps=50", "sample.steps=4"]
    values = SETTINGS | settings
    tiny += [f"train.{key}={value}" for key, value in values.items() if value is not None]
    given = [word for text in tiny for word in ("--set", text)]
    options = ["--clusters", str(clusters), "--dtype", "float32", "--threads", "1"]
    return ["train", str(data), *options, *given, "--out", str(out)]


def left_by(path: Path) -> dict[str, Any]:
    """All that a run is to be the same in: weights, what did best, figures, pictures."""
    run = Run(path)
    last = checkpoint.listing(run.checkpoints)[-1]
    found: dict[str, Any] = {"step": last.name}
    for folder in (last, *checkpoint.listing(run.best)):
        for file in sorted(folder.iterdir()):
            found[f"{folder.parent.name}/{folder.name}/{file.name}"] = file.read_bytes()
    clocks = ("images_per_second", "seconds", "share")
    for name, rows in (("stats", run.stats), ("quality", run.quality)):
        found[name] = [
            {k: v for k, v in row.items() if k not in clocks} for row in runs.read_rows(rows)
        ]
    for picture in sorted(run.samples.iterdir()):
        found[picture.name] = picture.read_bytes()
    found["reals"] = (run.path / "reals.png").read_bytes()
    return found


def command_for(data: Path, out: Path, **settings: Any) -> list[str]:
    """How to go on: with the run where there is one, else by the command that begins it."""
    if (out / "config.toml").exists():
        return ["resume", str(out)]
    return command(data, out, **settings)


def half_made(path: Path) -> list[str]:
    """Names of what a run has that is not whole."""
    return sorted(str(p.relative_to(path)) for p in path.rglob("*.part"))
