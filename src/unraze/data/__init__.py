"""Where images come from: readers, one shape for all, checks.

`load` reads a folder, a zip, arrays, IDX or CIFAR-10 files, or a data set known by name, into
`Images`; `batch` gives some of them to a network; `check` and `stats` look at a set.
"""

from unraze.data.check import Finding, check
from unraze.data.images import Images, batch, to_float, to_uint8
from unraze.data.named import NAMES, get
from unraze.data.reading import load, load_images
from unraze.data.stats import Stats, contact_sheet, stats

__all__ = [
    "NAMES",
    "Finding",
    "Images",
    "Stats",
    "batch",
    "check",
    "contact_sheet",
    "get",
    "load",
    "load_images",
    "stats",
    "to_float",
    "to_uint8",
]
