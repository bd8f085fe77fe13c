"""Where images come from: readers, one shape for all, checks.

`load` reads a folder, a zip, tars, arrays, IDX or CIFAR-10 files, or a data set known by name, into
`Images`, those to train on or those held out; `batch` gives some of them to a network; `check` and
`stats` look at a set.
"""

from unraze.data.check import Finding, check
from unraze.data.images import Images, absent_classes, batch, evenly, to_float, to_uint8
from unraze.data.named import NAMES, get
from unraze.data.reading import has_test_part, load, load_images
from unraze.data.stats import Stats, contact_sheet, stats

__all__ = [
    "NAMES",
    "Finding",
    "Images",
    "Stats",
    "absent_classes",
    "batch",
    "check",
    "contact_sheet",
    "evenly",
    "get",
    "has_test_part",
    "load",
    "load_images",
    "stats",
    "to_float",
    "to_uint8",
]
