"""trackio's data base on this machine, where all runs lie side by side.

    RUN/trackio.json    which of its runs is this one's: project, name, id, and the run's own path

Nothing of a trackio run can be taken back but the whole, so whenever a training begins, goes on or
goes back its track is written anew, from the run's own files. A copy of a run's folder, whose path
is another, gets a track of its own.
"""

import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

from unraze import run as runs, untrusted
from unraze.errors import InputError
from unraze.files import write_whole
from unraze.run import Run

__all__ = ["FILE", "PROJECT", "Trackio"]

FILE = "trackio.json"
"""Where a run says which of trackio's runs is its own."""
PROJECT = "unraze"
ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""What sends a track away from this machine, where it could not be written anew."""


class Trackio:
    """A run of trackio's that is being written."""

    def __init__(self, run: Run) -> None:
        self.of = run
        self.run: Any = None
        self.logged = 0

    @staticmethod
    def require() -> None:
        """Raises `ImportError` where the package is not installed, and `InputError` where it is
        told to send its runs elsewhere."""
        import trackio  # noqa: F401

        for name in ELSEWHERE:
            if os.environ.get(name):
                raise InputError(
                    f"{name} = {os.environ[name]}: tracks are kept on this machine alone; unset it"
                )

    @staticmethod
    def is_of(run: Run) -> bool:
        """Whether the run has such a track."""
        return (run.path / FILE).is_file()

    @staticmethod
    def shown_by(run: Run) -> str:
        """The command that shows the track."""
        return f"trackio show --project {PROJECT}"

    def steps(self) -> Mapping[str, set[int]]:
        """None: all is written anew."""
        return {}

    def open(self, first: int) -> None:
        """Begins a run in place of the one there was; everything before `first` is to follow."""
        import trackio

        self._forget()
        self.logged = 0
        with redirect_stdout(StringIO()):  # where it says what the command line says at the end
            self.run = trackio.init(
                project=PROJECT,
                name=self.of.path.resolve().name,
                config=runs.read_config(self.of).model_dump(mode="json"),
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        said = {"project": PROJECT, "name": self.run.name, "id": self.run.id, "run": self._path()}
        try:
            write_whole(self.of.path / FILE, (json.dumps(said, indent=1) + "\n").encode())
        except OSError:
            trackio.finish()
            raise

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds the values of a step."""
        self.run.log(dict(values), step=step)
        self.logged += 1

    def picture(self, name: str, pixels: np.ndarray[Any, Any], step: int) -> None:
        """Adds a picture, uint8 (H, W, 3)."""
        import trackio

        self.run.log({name: trackio.Image(pixels)}, step=step)
        self.logged += 1

    def flush(self) -> None:
        """Nothing: what is logged is in the data base half a second later."""

    def close(self) -> None:
        """Waits until all of it is in the data base. Raises `OSError` where it is not, of which
        trackio itself only warns."""
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        with redirect_stdout(StringIO()):
            trackio.finish()
        try:
            kept = SQLiteStorage.get_log_count(PROJECT, self.run.name, run_id=self.run.id)
        except sqlite3.Error as error:
            raise OSError(None, f"{TRACKIO_DIR}: {error}") from error
        if kept != self.logged:
            raise OSError(None, f"{TRACKIO_DIR}: has {kept} of {self.logged} entries")

    def _path(self) -> str:
        return str(self.of.path.resolve())

    def _forget(self) -> None:
        """Deletes the track that there is. Raises `OSError` where it stays."""
        import trackio

        try:
            said = untrusted.json_of(self.of.path / FILE)
            path, number = said["run"], said["id"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return  # never tracked, or not known which it is: then there will be two
        if path != self._path():
            return
        try:
            for run in trackio.Api().runs(PROJECT):
                if run.id == number and not run.delete():
                    raise OSError(None, f"trackio does not give up the run {run.name}")
        except ValueError:  # another data base than before
            return
        except sqlite3.Error as error:
            raise OSError(None, f"trackio: {error}") from error
