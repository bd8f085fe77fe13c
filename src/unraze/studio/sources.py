"""The sets of images that can be looked at and trained on, each by an identifier.

They are those that Unraze knows by name, those that the command line named (`--data`), and those
that the runs here were trained on. The page never says a path.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unraze.data import NAMES
from unraze.studio.library import Library, Missing

__all__ = ["Sources"]

ABOUT = {
    "fashion-mnist": "70,000 grey pictures of clothing, 28 x 28, ten classes",
    "digits": "1,797 grey digits, 8 x 8, ten classes; comes with Unraze",
}


class Sources:
    """What can be trained on here."""

    def __init__(self, given: Sequence[str], library: Library) -> None:
        self._given, self._library = tuple(given), library

    def all(self) -> list[dict[str, Any]]:
        """They, as the page shows them."""
        return [
            {
                "id": _name_of(source),
                "title": Path(source).name if os.sep in source else source,
                "detail": ABOUT.get(source, source),
                "kind": kind,
                "has_classes": True if source in ABOUT else None,
            }
            for source, kind in self._there().items()
        ]

    def source(self, name: str) -> str:
        """What DATA of `unraze train DATA` is for this one; raises `Missing`."""
        for source in self._there():
            if _name_of(source) == name:
                return source
        raise Missing(
            "these images are not named here; start the studio with --data FOLDER to have them"
        )

    def _there(self) -> dict[str, str]:
        found = dict.fromkeys(self._given, "given")
        found |= {name: "known" for name in NAMES if name not in found}
        of_runs = sorted({told.source for told in self._library.all()} - {""})
        return found | {source: "run" for source in of_runs if source not in found}


def _name_of(source: str) -> str:
    return hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
