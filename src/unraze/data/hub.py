"""Data sets of the `datasets` library: on a hub by name, or a local folder that it reads.

    hf:ylecun/mnist                               its train split, its only column of images
    hf:ylecun/mnist,column=image,label=label      columns by name; `label=` for no labels
    hf:FOLDER,split=validation                    as save_to_disk wrote it, parquet, imagefolder
    hf:NAME,config=NAME,stream=yes,take=10000     one of its configurations; the first rows

The text says all, so that it names the data wherever data is named and a run remembers it as it is;
commas, for a shell leaves them alone. The library's own cache holds what it downloads. Images are
taken as the files they are, encoded, and decoded as all others are; no code comes with them.
"""

import hashlib
import io
import os
import re
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from unraze import untrusted
from unraze.data.archive import MAX_BYTES
from unraze.data.found import Opener, Pictures, listed, natural, no_test_part, shown
from unraze.data.shape import UnreadableError
from unraze.errors import DataError

__all__ = [
    "absolute",
    "has_test_part",
    "hub_name",
    "is_reachable",
    "is_source",
    "read",
    "short_name",
]

PREFIX = "hf:"
KEYS = ("split", "column", "label", "config", "stream", "take")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SECONDS = 5.0
"""How long the hub may take to answer at all."""
OPTION = re.compile(r",([a-z]+)=([^,]*)$")

Own = Literal["train", "test"]


@dataclass(frozen=True)
class Wanted:
    """What a source asks for; None is what the data set decides, of `take` all rows."""

    source: str
    name: str
    split: str | None = None
    column: str | None = None
    label: str | None = None
    config: str | None = None
    stream: bool = False
    take: int | None = None

    @property
    def folder(self) -> Path | None:
        """Where it lies on this machine; None for a name on a hub."""
        path = Path(self.name).expanduser()
        return path if os.path.exists(path) else None


def is_source(source: str) -> bool:
    """Whether a source is of this kind."""
    return source.startswith(PREFIX)


def absolute(source: str) -> str:
    """The source with the whole path of its folder, so that it holds in any other."""
    wanted = _wanted(source)
    folder = wanted.folder
    if folder is None:
        return source
    return PREFIX + str(folder.resolve()) + source[len(PREFIX) + len(wanted.name) :]


def hub_name(source: str) -> str | None:
    """The name on a hub that a source has; None for a folder, be it there or not any more, and for
    a source of another kind."""
    if not is_source(source):
        return None
    wanted = _parsed(source)
    return wanted.name if wanted.folder is None and HUB_NAME.fullmatch(wanted.name) else None


def short_name(source: str) -> str:
    """What such a source is called: its name on a hub, or its folder's without those above it."""
    return hub_name(source) or Path(_parsed(source).name).name


def has_test_part(source: str) -> bool:
    """Whether there is a test split besides the one to train on; one that is named stands alone.

    Raises `DataError` where the data set cannot be loaded.
    """
    wanted = _wanted(source)
    return wanted.split is None and {"train", "test"} <= _splits(wanted).keys()


def read(source: str, split: Own = "train") -> Pictures:
    """The images of a split, in the order of its rows, with their classes where it has such.

    Raises `DataError` where the library is not installed, the data set cannot be loaded, or split
    or columns are not there or not of images and labels.
    """
    wanted = _wanted(source)
    rows = _split(wanted, split)
    column, label = _columns(wanted, rows.features)
    names_of_classes = getattr(rows.features.get(label), "names", None) if label else None
    rows = rows.select_columns([column] + ([label] if label else []))
    rows = _undecoded(rows, column)
    if wanted.take is not None:
        rows = rows.take(wanted.take)
    if wanted.stream:
        encoded, told, stamp = _spooled(wanted, rows, column, label)
        count = len(told)
    else:
        count, stamp = len(rows), _stamp(rows)
        told = list(rows[label]) if label else []
        encoded = _stored(wanted, rows, column)
    if not count:
        raise DataError(f"{shown(source)}: holds no rows; give another split or data set")
    labels, class_names = _classes(wanted, told, label, names_of_classes)
    return Pictures(
        source=source,
        names=[f"row {number}" for number in range(count)],
        labels=labels,
        class_names=class_names,
        stamps=[(stamp, number) for number in range(count)],
        opened=lambda: nullcontext(encoded),
        left_out=(),
    )


# ------------------------------------------------------------------------------- what is asked for


def _wanted(source: str) -> Wanted:
    """What a source asks for; raises `DataError` where that can be neither folder nor name."""
    wanted = _parsed(source)
    if wanted.folder is None and not HUB_NAME.fullmatch(wanted.name):
        raise DataError(f"{shown(source)}: there is no such file or folder; check the path")
    return wanted


def _parsed(source: str) -> Wanted:
    name = source[len(PREFIX) :]
    options: dict[str, str] = {}
    while (found := OPTION.search(name)) and not os.path.exists(Path(name).expanduser()):
        if found[1] not in KEYS:
            raise DataError(
                f"{shown(source)}: {found[1]} is no key of such a source; they are "
                f"{', '.join(KEYS)}"
            )
        if found[1] in options:
            raise DataError(f"{shown(source)}: {found[1]} is given twice; give one value")
        options[found[1]] = found[2]
        name = name[: found.start()]
    if not name:
        raise DataError(f"{shown(source)}: names no data set; give hf:OWNER/NAME or hf:FOLDER")
    stream, take = options.pop("stream", "no"), options.pop("take", None)
    if stream not in ("yes", "no"):
        raise DataError(f"{shown(source)}: stream = {stream!r}; give yes or no")
    if take is not None and not re.fullmatch(r"0*[1-9][0-9]{0,8}", take):
        raise DataError(f"{shown(source)}: take = {take!r}; give a number of rows, at least 1")
    rows = None if take is None else int(take)
    return Wanted(source, name, stream=stream == "yes", take=rows, **options)


def _library(wanted: Wanted) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{shown(wanted.source)}: needs the package datasets, which is not installed; install "
            'it: pip install "unraze[datasets]"'
        ) from error
    return datasets


def _splits(wanted: Wanted) -> dict[str, Any]:
    """The data set's splits by name; raises `DataError` where it cannot be loaded."""
    datasets = _library(wanted)
    folder = wanted.folder
    if folder is not None and wanted.config is not None and (folder.is_file() or _is_saved(folder)):
        raise DataError(
            f"{shown(wanted.source)}: config = {wanted.config}: a file, or what save_to_disk "
            "wrote, has no configurations; leave it out"
        )
    try:
        if folder is None:
            found = _from_hub(wanted.name, wanted.config, wanted.stream)
        elif folder.is_file():
            found = datasets.load_dataset(
                "parquet", data_files={"train": str(folder)}, streaming=wanted.stream
            )
        elif _is_saved(folder):
            found = datasets.load_from_disk(str(folder))
            if wanted.stream:
                found = _streamed(found)
        else:
            found = datasets.load_dataset(str(folder), wanted.config, streaming=wanted.stream)
    except Exception as error:  # what loading raises is not a closed set
        raise DataError(_cannot_load(wanted, error)) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _is_saved(folder: Path) -> bool:
    """Whether save_to_disk wrote it."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def is_reachable() -> bool:
    """Whether the hub answers, asked once and with little patience: its library has much."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # what is raised depends on the client, and there have been several
        return False
    return True


@contextmanager
def _offline_if_need_be() -> Iterator[None]:
    """Has the library look into its cache at once where the hub does not answer."""
    import datasets
    from huggingface_hub import constants

    if is_reachable():
        yield
        return
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


@lru_cache(maxsize=4)
def _from_hub(name: str, config: str | None, stream: bool) -> Any:
    """A data set of that name; the hub is asked once, though it is needed several times."""
    import datasets

    with _offline_if_need_be():
        return datasets.load_dataset(name, config, streaming=stream)


def _streamed(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: rows.to_iterable_dataset() for name, rows in found.items()}
    return found.to_iterable_dataset()


def _cannot_load(wanted: Wanted, error: Exception) -> str:
    cause = error.__cause__ if error.__cause__ is not None else error
    why = " ".join(str(cause).split()) or type(cause).__name__
    if wanted.folder is not None:
        remedy = "give a folder of save_to_disk, of parquet files or of images"
    else:
        remedy = (
            "check the name, connect to the network where it was not downloaded before, or give a "
            "folder: there is none of that name"
        )
    return f"{shown(wanted.source)}: cannot be loaded ({shown(why[:300])}); {remedy}"


def _split(wanted: Wanted, split: Own) -> Any:
    """The rows of the split that is asked for; raises `DataError`."""
    splits = _splits(wanted)
    if split == "test":
        if wanted.split is not None or not {"train", "test"} <= splits.keys():
            raise no_test_part(wanted.source)
        return splits["test"]
    name = wanted.split or ("train" if "train" in splits else None)
    if name is None and len(splits) == 1:
        name = next(iter(splits))
    if name not in splits:
        missing = "no split train" if name is None else f"no split {shown(name)}"
        raise DataError(
            f"{shown(wanted.source)}: has {missing}; say which to take: "
            f"hf:…,split={next(iter(splits), 'NAME')} (it has {listed(list(splits), 8)})"
        )
    return splits[name]


def _columns(wanted: Wanted, features: Any) -> tuple[str, str | None]:
    """The names of the columns of images and of labels; raises `DataError`."""
    datasets, where = _library(wanted), shown(wanted.source)
    if features is None:
        raise DataError(f"{where}: does not say what its columns hold; leave stream=yes out")
    there = f"it has {listed(list(features), 12)}"
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    column = wanted.column if wanted.column is not None else (images[0] if images else None)
    if column is None:
        raise DataError(
            f"{where}: has no column of images; name one of encoded images: hf:…,column=NAME "
            f"({there})"
        )
    if wanted.column is None and len(images) > 1:
        raise DataError(
            f"{where}: has {len(images)} columns of images, {listed(images, 8)}; say which: "
            f"hf:…,column={images[0]}"
        )
    for key, name in (("column", column), ("label", wanted.label)):
        if name and name not in features:
            raise DataError(f"{where}: there is no column {shown(name)} for {key} ({there})")
    kind = features[column]
    if column not in images and getattr(kind, "dtype", "") not in ("binary", "large_binary"):
        raise DataError(
            f"{where}: the column {shown(column)} holds {shown(str(kind))}, not images; name "
            f"another: hf:…,column=NAME ({there})"
        )
    if wanted.label:
        kind = features[wanted.label]
        if not re.match(r"u?int|(large_)?string$", getattr(kind, "dtype", None) or ""):
            raise DataError(
                f"{where}: the column {shown(wanted.label)} holds {shown(str(kind))}; labels are "
                "whole numbers or names: name another, hf:…,label=NAME, or none, hf:…,label="
            )
    if wanted.label is not None:
        return column, wanted.label or None
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return column, classes[0] if len(classes) == 1 else None


# --------------------------------------------------------------------------------- images, classes


def _undecoded(rows: Any, column: str) -> Any:
    """The rows with their images as the bytes of files."""
    import datasets

    if isinstance(rows.features[column], datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _stored(wanted: Wanted, rows: Any, column: str) -> Opener:
    return lambda number: io.BytesIO(_bytes(wanted, rows[number][column]))


def _bytes(wanted: Wanted, value: Any) -> bytes:
    """The bytes of an image; raises `UnreadableError` where there are none or too many."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return _file(wanted, str(value["path"]))
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise UnreadableError("holds no image")
    if len(value) > MAX_BYTES:
        raise UnreadableError(f"has {len(value)} bytes, more than {MAX_BYTES}")
    return value


def _file(wanted: Wanted, name: str) -> bytes:
    """An image that a row only names: one of the folder or of the library's cache, no other file of
    this machine, for the name may be anybody's."""
    import datasets

    roots = [Path(datasets.config.HF_DATASETS_CACHE), Path(datasets.config.HF_CACHE_HOME)]
    if wanted.folder is not None:
        roots.append(wanted.folder)
    path = Path(os.path.realpath(name))
    if "://" in name or not any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        raise UnreadableError(
            f"names a file elsewhere, {shown(name)}, which is not read; leave stream=yes out, or "
            "save the data set with its images in it (save_to_disk)"
        )
    try:
        return untrusted.read(path, MAX_BYTES)
    except ValueError as error:
        raise UnreadableError(str(error)) from error


def _spooled(
    wanted: Wanted, rows: Any, column: str, label: str | None
) -> tuple[Opener, list[Any], int]:
    """What a stream gives, kept in a file without a name; its labels, and a hash of the bytes.

    Images are read more than once, and a stream only once.
    """
    spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as its reader)
    places: list[tuple[int, int] | str] = []
    told: list[Any] = []
    digest = hashlib.sha256()
    try:
        for row in rows:
            try:
                data = _bytes(wanted, row[column])
                places.append((spool.tell(), len(data)))
                spool.write(data)
                digest.update(len(data).to_bytes(8, "big") + data)
            except UnreadableError as error:
                places.append(str(error))
            told.append(row[label] if label else None)
    except Exception as error:  # what loading raises is not a closed set
        spool.close()
        raise DataError(_cannot_load(wanted, error)) from error

    def opener(number: int) -> IO[bytes]:
        place = places[number]
        if isinstance(place, str):
            raise UnreadableError(place)
        spool.seek(place[0])
        return io.BytesIO(spool.read(place[1]))

    weakref.finalize(opener, spool.close)
    return opener, told, int(digest.hexdigest()[:12], 16)


def _stamp(rows: Any) -> int:
    """A number that tells the library's files from others of the same name."""
    stats = [(file["filename"], os.stat(file["filename"])) for file in rows.cache_files]
    text = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def _classes(
    wanted: Wanted, told: list[Any], label: str | None, names: list[str] | None
) -> tuple[np.ndarray[Any, Any] | None, tuple[str, ...]]:
    if label is None:
        return None, ()
    where = f"{shown(wanted.source)}: the column {shown(label)}"
    without = [number for number, value in enumerate(told) if value is None]
    if without:
        raise DataError(
            f"{where} is empty in {len(without)} of {len(told)} rows (row {without[0]} is the "
            "first); name another: hf:…,label=NAME, or none: hf:…,label="
        )
    if all(isinstance(value, int) for value in told):
        return np.array(told, dtype=np.int64), tuple(map(shown, names or ()))
    texts = sorted(set(told), key=natural)
    number = {text: i for i, text in enumerate(texts)}
    return np.array([number[text] for text in told], dtype=np.int64), tuple(map(shown, texts))
