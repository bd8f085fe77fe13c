"""A new folder that is there as a whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unraze import files
from unraze.errors import InputError, UnrazeError

__all__ = ["require_free", "whole_folder"]


def require_free(out: Path) -> None:
    """Raises `InputError` where there is anything of that name."""
    if os.path.lexists(out):
        raise InputError(f"--out {out}: exists; give another, or remove it")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `out` at the end, if there was no error.

    Raises `InputError` where `out` exists, `UnrazeError` where it cannot be written.
    """
    require_free(out)
    part = files.temporary(Path(os.path.abspath(out)))
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a process of this number that was killed
        part.mkdir(parents=True)
        yield part
        files.flush_folder(part)
        part.rename(out)
        files.flush_folder(part.parent)
    except OSError as error:
        raise UnrazeError(files.cannot_write(out, error)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
