"""Files that a stranger may have written: what reading them can cost is bounded before it is paid.

A file's size is asked before it is read, and how deep JSON or TOML nests before it is parsed: a
parser that calls itself for every bracket is no place to find that out. What is refused is a
`ValueError` with the reason; the caller, who knows what the file is, says its name and the remedy.
"""

import errno
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unraze.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "MAX_DEPTH",
    "MAX_JSON",
    "MAX_PIXELS",
    "json_in",
    "json_of",
    "one_line",
    "read",
    "require_no_links",
    "require_plain",
    "toml_of",
]

MAX_PIXELS = 100_000_000
"""The most pixels that a picture, or what says how large pictures are, may declare."""
MAX_JSON = 2**24
"""The most bytes of a JSON file that says something small."""
MAX_DEPTH = 32
"""How deep JSON and TOML may nest, and how many parts a dotted key may have; ours need 6."""
LONGEST = 1000

# a string that does not end goes on to the end of the file: so none is read twice
_JSON = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|([\[{])|[\]}]', re.DOTALL)
_TOML = re.compile(
    r"#[^\n]*"
    r'|"""(?:[^"\\]|\\.|"(?!""))*(?:"""|\\?\Z)'
    r"|'''(?:[^']|'(?!''))*(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\.)*"?'
    r"|'[^'\n]*'?"
    r"|([\[{])|([\]}])|(\.)|([=,\n])",
    re.DOTALL,
)


def read(file: Path, most: int) -> bytes:
    """The bytes of a plain file of at most so many.

    Raises `OSError` where it cannot be read, or is a pipe or device, which need not end; and
    `ValueError` for a larger one, of which nothing is read.
    """
    size = require_plain(file)
    if size > most:
        raise ValueError(f"has {size:,} bytes, more than {most:,}")
    try:
        return file.read_bytes()
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(file)) from error


def require_plain(file: Path) -> int:
    """The bytes that a file has; raises `OSError` where it cannot be looked at, or is a pipe or
    device: to open one may wait for ever. A folder says itself that it is none."""
    about = os.stat(file)
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        raise OSError(errno.EINVAL, "is not a plain file", str(file))
    return about.st_size


def json_of(file: Path, most: int = MAX_JSON) -> Any:
    """What a JSON file holds; raises as `read` and `json_in` do."""
    return json_in(read(file, most))


def json_in(data: bytes | str, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """What JSON says; raises `ValueError` where it is none, or nests deeper than `MAX_DEPTH`.

    `parse_constant` is told of NaN and the infinities, as by `json.loads`.
    """
    text = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        depth = 0
        for found in _JSON.finditer(text):
            if found.lastindex:
                depth += 1
                _require_shallow(depth)
            elif not found[0].startswith(b'"'):
                depth -= 1
    words = data if isinstance(data, str) else data.decode("utf-8")
    return json.loads(words, parse_constant=parse_constant)


def toml_of(file: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """What a TOML file holds; raises as `read` does, and `ValueError` where it is no TOML or nests
    deeper than `MAX_DEPTH`, keys of many parts, `a.b.c`, included."""
    text = read(file, most).decode("utf-8")
    depth = parts = 0
    for found in _TOML.finditer(text):
        match found.lastindex:
            case 1:
                depth, parts = depth + 1, 0
            case 2:
                depth, parts = depth - 1, 0
            case 3:
                parts += 1
            case 4:
                parts = 0
        _require_shallow(max(depth, parts))
    return tomllib.loads(text)


def require_no_links(folder: Path) -> None:
    """Raises `InputError` where a folder that is going to be written into holds a link, which can
    lead anywhere."""
    for place, folders, names in os.walk(folder, onerror=_raise):
        for name in sorted(folders + names):
            link = Path(place, name)
            if link.is_symlink():
                raise InputError(
                    f"{link}: is a link, and what is written there may go anywhere; put what it "
                    "leads to in its place, if you trust it"
                )


def _raise(error: OSError) -> None:
    where = error.filename
    raise InputError(f"{where}: cannot be read ({error.strerror or error}); check its permissions")


def one_line(text: str) -> str:
    """A text of a file as one printable line, of no length that drowns what is said about it."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} …"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _require_shallow(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"nests more than {MAX_DEPTH} deep")
