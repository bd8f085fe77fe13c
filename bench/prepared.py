"""The run that samplers are measured on, where none is named: trained, tuned and distilled.

    RUNS/ten              unraze train fashion-mnist --minutes 10
                          unraze tune RUNS/ten --calls …
    RUNS/ten-distilled    unraze distill RUNS/ten, of two calls
    RUNS/ten-one          unraze distill RUNS/ten --calls 1

Each of these commands goes on where it was, and so do all of them together.
"""

import argparse
import itertools
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import peers

from unraze import checkpoint
from unraze.cli.tune import FEWEST_CALLS, MOST_CALLS
from unraze.generate import Model, load
from unraze.run import is_run

__all__ = ["RUNS", "distilled", "settle", "students", "ten"]

RUNS = Path(__file__).parent / "results" / "few-steps" / "runs"
MINUTES = 10
CALLS_OF = {"ten-distilled": 2, "ten-one": 1}


def settle(
    options: argparse.Namespace, parser: argparse.ArgumentParser, calls: Sequence[int]
) -> None:
    """Makes them, and sets `run` and `distilled` to them, where the command names no run.

    What would not do is said before the hour that it takes.
    """
    if not peers.is_installed("diffusers"):
        sys.exit("diffusers: not installed; it is one of the development tools (bench/README.md)")
    if options.run is not None:
        return
    if options.distilled is not None:
        parser.error("--distilled: give the run that they were distilled from, before it")
    if wrong := [number for number in calls if not FEWEST_CALLS <= number <= MOST_CALLS]:
        parser.error(
            f"--calls {wrong[0]}: a run is tuned for {FEWEST_CALLS} to {MOST_CALLS}; for others "
            "name a RUN"
        )
    options.run = ten(calls)
    options.distilled = distilled(options.run)


def ten(calls: Sequence[int], runs: Path = RUNS) -> Path:
    """A run of ten minutes, tuned for each of these numbers of calls."""
    run = runs / "ten"
    _made(run, ["train", "fashion-mnist", "--minutes", str(MINUTES)])
    tuning = load(run).tuning
    tuned = set() if tuning is None else set(tuning.settings)
    if missing := sorted(set(calls) - tuned):
        words = (("--calls", str(n)) for n in missing)
        _unraze("tune", str(run), *itertools.chain(*words))
    return run


def distilled(run: Path) -> list[Path]:
    """What `unraze distill` makes of it, of two calls and of one."""
    made = []
    for name, calls in CALLS_OF.items():
        made.append(run.with_name(name))
        _made(made[-1], ["distill", str(run), "--calls", str(calls)])
    return made


def students(model: Model, runs: Sequence[Path]) -> list[Model]:
    """The models of runs that were distilled from this one."""
    found = []
    teacher = checkpoint.hash_of(model.network.state_dict())
    for path in runs:
        student = load(path)
        if student.config.distilled is None or student.config.distilled.checkpoint != teacher:
            sys.exit(f"{path}: was not distilled from {model.run}; give runs that were")
        found.append(student)
    return found


def _made(run: Path, command: Sequence[str]) -> None:
    """Makes the run by that command, or goes on with it."""
    _unraze(*(("resume", str(run)) if is_run(run) else (*command, "--out", str(run))))


def _unraze(*command: str) -> None:
    with subprocess.Popen([sys.executable, "-m", "unraze", *command]) as child:
        before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())  # it saves, and ends
        try:
            code = child.wait()
        except KeyboardInterrupt:  # which the command has had too: it saves
            code = child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if code:
        sys.exit(code)
