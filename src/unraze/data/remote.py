"""Files on a web server, read where they lie by ranges of bytes: nothing of them is kept.

    with remote.opened("https://host/shards/000.tar") as stream:
        stream.seek(512)
        stream.read(100)

Connections, redirects, certificates, proxies ($HTTPS_PROXY) and passwords (~/.netrc) are the part
of the `requests` library. An answer that does not come, or breaks off, is asked for again; a file
that became another one since it was opened is an error.
"""

import hashlib
import io
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unraze.data.found import shown
from unraze.errors import DataError

if TYPE_CHECKING:
    import requests

__all__ = ["is_address", "name_of", "opened", "short", "stamps"]

AT_ONCE = 4 * 2**20
"""The bytes that are asked for ahead of what is read."""
SECONDS = (10.0, 60.0)
"""How long a server may take to be reached, and to send more."""
TRIES = 5
"""How often a range is asked for, with a pause of 0.5 s, 1 s, … between."""
ASKERS = 16
"""The files that are asked about at once."""

_PIECE = 2**16
_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")
_BUSY = (429, 500, 502, 503, 504)
_SAYS = {
    401: "asks for a password, which is given in ~/.netrc",
    403: "does not let you read it",
    404: "has no such file",
    410: "has no such file any more",
}


def is_address(source: str) -> bool:
    """Whether a source is on a web server: begins with http:// or https://."""
    return source.lower().startswith(("http://", "https://"))


def short(address: str) -> str:
    """An address without what may be secret in it: name, password, and what follows a `?`."""
    parts = urlsplit(address)
    return shown(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def name_of(address: str) -> str:
    """The file's own name."""
    return urlsplit(address).path.rpartition("/")[2]


def opened(address: str) -> io.BufferedReader:
    """A file on a web server, to be read and sought in; `AT_ONCE` bytes come at a time.

    Reading from it raises `DataError` where the server is not reached or does not have it, gives no
    ranges, or gives another file than before.
    """
    return io.BufferedReader(_Ranges(address), AT_ONCE)


def stamps(addresses: Sequence[str]) -> list[tuple[int, int]]:
    """The size in bytes of each file, and a number for what its server says of its version (ETag,
    or time of change). Raises `DataError`."""

    def stamp(address: str) -> tuple[int, int]:
        with _Ranges(address) as file:
            file.ask()
            digest = hashlib.sha256(file.version.encode()).digest()
            return file.size, int.from_bytes(digest[:6], "big")

    with ThreadPoolExecutor(min(ASKERS, len(addresses)) or 1) as askers:
        return list(askers.map(stamp, addresses))


class _Ranges(io.RawIOBase):
    """A file on a web server as a stream: each read asks for the range that it is of.

    `size` and `version` are known once something was asked, -1 and "" before.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address, self._at, self.size, self.version = address, 0, -1, ""
        if urlsplit(address).password is not None:
            raise DataError(
                f"{short(address)}: is given with a password, which would be kept with the run; "
                "write it into ~/.netrc"
            )
        self._session = _session()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self.size < 0:
            self.ask()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self.size >= 0:
            view = view[: max(0, self.size - self._at)]
        got = self._fill(view) if len(view) else 0
        self._at += got
        return got

    def close(self) -> None:
        if not self.closed and hasattr(self, "_session"):
            self._session.close()
        super().close()

    def ask(self) -> None:
        """Finds out size and version. Raises `DataError`."""
        at, self._at = self._at, 0
        self._fill(memoryview(bytearray(1)))
        self._at = at

    def _fill(self, view: memoryview) -> int:
        """Fills `view` with the bytes from here on, or the first few of them where the answer
        breaks off or the file ends; returns how many there are, none at its end."""
        import requests

        broken = (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        )
        why: Exception | None = None
        for attempt in range(TRIES):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            got = 0
            try:
                with self._session.get(
                    self._address,
                    headers={"Range": f"bytes={self._at}-{self._at + len(view) - 1}"},
                    stream=True,
                    timeout=SECONDS,
                ) as answer:
                    if answer.status_code in _BUSY and attempt < TRIES - 1:
                        continue
                    view = view[: self._range_of(answer, len(view))]
                    if not view:
                        return 0
                    for piece in answer.iter_content(_PIECE):
                        if len(piece) > len(view) - got:
                            raise self._error("gives more than it was asked for", "download it")
                        view[got : got + len(piece)] = piece
                        got += len(piece)
            except broken as error:
                why = error
            except requests.RequestException as error:
                raise self._error(f"cannot be asked ({_reason(error)})") from error
            if got:
                return got
        raise self._error(
            f"did not answer, {TRIES} times ({_reason(why) if why else 'nothing came'})",
            "check the address and the connection",
        ) from why

    def _range_of(self, answer: "requests.Response", asked: int) -> int:
        """How many bytes from here on an answer gives; remembers the file's size and version.

        Raises `DataError` unless it is the range that was asked for, of the file as it was before.
        """
        status, headers = answer.status_code, answer.headers
        if status in _SAYS:
            raise self._error(_SAYS[status])
        if status == 200:
            raise self._error("gives whole files only, no ranges of them", "download it")
        if status == 416 and self._at == 0 and self.size < 0:
            raise self._error("has an empty file there")
        found = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if status not in (206, 416) or found is None:
            raise self._error(f"answers {status} {answer.reason or ''}".rstrip(), "try later")
        size = int(found[3])
        version = headers.get("ETag") or headers.get("Last-Modified") or self._address
        if self.size < 0:
            self.size, self.version = size, version
        if (size, version) != (self.size, self.version):
            raise self._error("has another file there than a moment ago", "begin again")
        count = max(0, min(asked, size - self._at))
        if count and (found[1], found[2]) != (str(self._at), str(self._at + count - 1)):
            raise self._error("gives another range than the one it was asked for", "download it")
        return count

    def _error(self, what: str, remedy: str = "check the address") -> DataError:
        return DataError(f"{short(self._address)}: the server {what}; {remedy}")


def _session() -> "requests.Session":
    try:
        import requests
    except ImportError as error:
        raise DataError(
            "data on a web server is read by the package requests, which is not installed; install "
            'it: pip install "unraze[http]"'
        ) from error
    session = requests.Session()
    # ranges are of the bytes as they are, not of a packed form of them
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "unraze"})
    return session


def _reason(error: BaseException) -> str:
    """The innermost cause: requests wraps it in several layers that say nothing more."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(str(error).split()) or type(error).__name__
