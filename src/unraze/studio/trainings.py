"""Trainings: processes of their own, which a studio that ends, or fails, leaves alone.

The studio starts them, tells them to stop as a terminal would, and sees by the run's folder how far
they are, whoever started them.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from unraze import run as runs
from unraze.errors import InputError, UnrazeError
from unraze.files import cannot_make
from unraze.studio.events import Hub
from unraze.studio.library import Library, RunTold, name_of

__all__ = ["Trainings"]

WORDS = 2**14
"""Bytes of what a training printed last that are looked into for why it failed."""
PROGRAM = (
    "import sys; sys.path[:1] = [path for path in sys.path[:1] if path]; "
    "from unraze.__main__ import main; sys.exit(main())"
)
"""`python -m unraze`, but without the modules of the folder one stands in, which may be others'."""
ENDS = 3.0
"""Seconds in which a training ends once it has saved."""
ON_PURPOSE = (0, 130, -signal.SIGINT, -signal.SIGTERM)
"""How a training ends that was stopped, or is done."""


class Trainings:
    """Starts, stops and goes on with runs of a library."""

    def __init__(self, library: Library, hub: Hub) -> None:
        self._library, self._hub = library, hub
        self._lock, self._begun = threading.Lock(), dict[str, subprocess.Popen[bytes]]()
        self._resuming = threading.Lock()

    def start(
        self, options: Sequence[str], *, source: str, preset: str, name: str | None
    ) -> RunTold:
        """Begins `unraze train` with these options in a new folder; raises `UnrazeError`."""
        self._forget_failed()
        folder = self._new_folder(source, name)
        told = RunTold(
            id=name_of(folder.name),
            name=folder.name,
            state="starting",
            step=0,
            steps=0,
            loss=None,
            preset=preset,
            source=source,
            shape=None,
            quality=None,
            preview=None,
            changed=time.time(),
            thumbnail=None,
            can_sample=False,
            error=None,
        )
        self._library.starting[told.id] = told
        try:
            # what a stranger's configuration calls its images is no option
            self._begin(told.id, folder, ["train", *options, f"--out={folder}", "--", source])
        except OSError as error:
            self._library.starting.pop(told.id, None)
            with suppress(OSError):
                folder.rmdir()
            raise _cannot_start(error) from error
        self._hub.say("run", f"run {told.id}", told.model_dump())
        return told

    def resume(self, name: str) -> None:
        """Goes on with a run; raises `InputError` where it is being trained."""
        run = self._library.run(name)
        with self._resuming:  # or two who ask at once would both begin it
            if runs.is_busy(run) or not self._has_ended(name):
                raise InputError(f"{run.path.name}: is being trained already, or about to be")
            self._library.failures.pop(name, None)
            try:
                self._begin(name, run.path, ["resume", "--", str(run.path)])
            except OSError as error:
                raise _cannot_start(error) from error

    def stop(self, name: str) -> None:
        """Tells a training to save and to stop; raises `InputError` where there is none here."""
        process = self._begun.get(name)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            return
        run = self._library.run(name)
        number = runs.trainer_here(run)
        if number is None or not runs.is_busy(run):
            raise InputError(
                f"{run.path.name}: no process of this machine trains it; where another does, stop "
                "it there"
            )
        try:
            os.kill(number, signal.SIGTERM)
        except OSError as error:
            raise UnrazeError(
                f"{run.path.name}: process {number} trains it and cannot be told to stop "
                f"({error.strerror})"
            ) from error

    def running(self) -> list[tuple[str, int]]:
        """The folders and processes of trainings that were started here and go on."""
        with self._lock:
            return [
                (self._library.folder_of(name), process.pid)
                for name, process in self._begun.items()
                if process.poll() is None
            ]

    def _has_ended(self, name: str) -> bool:
        """Whether the process that was started here for a run has; one that saves is waited for."""
        begun = self._begun.get(name)
        if begun is not None:
            with suppress(subprocess.TimeoutExpired):
                begun.wait(ENDS)
        return begun is None or begun.poll() is not None

    def _forget_failed(self) -> None:
        """Trainings that never began, and said why, were seen by who begins another."""
        for name, told in list(self._library.starting.items()):
            if told.state == "failed":
                self._library.starting.pop(name, None)
                self._hub.say("run-gone", f"run {name}", {"id": name})

    def _new_folder(self, source: str, name: str | None) -> Path:
        if name is None:
            return runs.make_numbered(self._library.folder, source)
        folder = self._library.folder / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise InputError(f"name = {name}: there is such a folder; give another name") from error
        except OSError as error:
            raise UnrazeError(cannot_make(folder, error)) from error
        return folder

    def _begin(self, name: str, folder: Path, arguments: Sequence[str]) -> None:
        """A session of its own, so that Ctrl-C in the studio's terminal is not for it; what it
        prints goes to a file without a name, not to a pipe, which would end it with the studio."""
        output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by whoever watches)
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with self._lock:
            self._begun[name] = process
        watch = threading.Thread(
            target=self._watched, args=(name, folder, process, output), daemon=True
        )
        watch.start()

    def _watched(
        self, name: str, folder: Path, process: subprocess.Popen[bytes], output: IO[bytes]
    ) -> None:
        """Waits for its end, and keeps why it failed where it did."""
        status = process.wait()
        said = _last_words(output)
        output.close()
        if runs.is_run(folder):
            if status not in ON_PURPOSE:
                self._library.failures[name] = said
            try:
                told = self._library.told(name)
            except UnrazeError:  # it is gone, or its folder cannot be looked into: who asks is told
                return
        else:
            with suppress(OSError):
                folder.rmdir()
            before = self._library.starting.pop(name, None)
            if before is None:
                return
            if status in ON_PURPOSE:
                self._hub.say("run-gone", f"run {name}", {"id": name})
                return
            told = before.model_copy(update={"state": "failed", "error": said})
            self._library.starting[name] = told
        self._hub.say("run", f"run {name}", told.model_dump())


def _cannot_start(error: OSError) -> UnrazeError:
    why = error.strerror or error
    return UnrazeError(f"the training cannot be started ({why}); free what is short and try again")


def _last_words(output: IO[bytes]) -> str:
    """The last line that was printed: of an error of ours, all of it."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - WORDS))
    lines = output.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("unraze: error: ") if lines else "it said nothing"
