"""A folder that `unraze sample` wrote: 00000.png …, and beside them a grid and a film of the same.

The grid and the film are overviews, not images of the set. They are left out where all other images
of their folder are called as samples are, and their own metadata says that they are overviews.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import IO

from unraze import untrusted
from unraze.data.shape import UnreadableError, look

__all__ = ["overviews"]

_KINDS = {"grid.png": "grid", "film.gif": "film"}
_SAMPLE = re.compile(r"[0-9]{5,}\.png")
_KEY = "unraze"
"""As `unraze.pictures` writes it: a PNG's text entry, and the first word of a GIF's comment."""


def overviews(
    paths: Sequence[tuple[str, ...]], opened: Callable[[tuple[str, ...]], IO[bytes]]
) -> set[tuple[str, ...]]:
    """Those of the images' paths (folder, …, file) that are grids and films of the samples beside.

    `opened` gives the bytes of one; what cannot be read is no overview.
    """
    by_folder: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for path in paths:
        by_folder[path[:-1]].add(path[-1])
    found = set()
    for folder, names in by_folder.items():
        samples = names - _KINDS.keys()
        if samples and all(_SAMPLE.fullmatch(name) for name in samples):
            beside = [(*folder, name) for name in sorted(names & _KINDS.keys())]
            found |= {path for path in beside if _kind(path, opened) == _KINDS[path[-1]]}
    return found


def _kind(path: tuple[str, ...], opened: Callable[[tuple[str, ...]], IO[bytes]]) -> object:
    """What the recipe in a picture says that it is of; None where there is none."""
    try:
        with opened(path) as stream, look(stream) as picture:
            text, comment = picture.info.get(_KEY), picture.info.get("comment")
    except (OSError, UnreadableError):  # it stays among the images, and is named when it is read
        return None
    start = f"{_KEY} ".encode()
    if text is None and isinstance(comment, bytes) and comment.startswith(start):
        text = comment.removeprefix(start)
    try:
        recipe = untrusted.json_in(text) if isinstance(text, str | bytes) else None
    except ValueError:
        return None
    return recipe.get("kind") if isinstance(recipe, dict) else None
