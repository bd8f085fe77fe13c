"""Pictures that are named on the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from unraze.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["opened"]


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture of a file; raises `DataError` where it cannot be read, while it is used too."""
    from unraze.data.reading import quiet_decoders
    from unraze.data.shape import UnreadableError, decode

    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{path}: is not a file; give the path of a picture")
    try:
        with quiet_decoders(), path.open("rb") as stream:
            yield decode(stream)
    except UnreadableError as error:
        raise DataError(f"{path}: {error}; give a picture that can be read") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); give the path of a picture"
        ) from error
