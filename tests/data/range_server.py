"""A web server of this process that gives ranges of files, and misbehaves where a test says so."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server has, and what it has been asked.

    Arguments:
        files: bytes by path.
        versions: the ETag of a file, where it is to have one.
        broken: how many of the next answers break off after half of their bytes.
        busy: how many of the next are 503.
        ranges: whether it knows of ranges.
        shifted: whether it gives other ranges than it is asked for.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    broken: int = 0
    busy: int = 0
    ranges: bool = True
    shifted: bool = False
    closed: frozenset[str] = frozenset()
    asked: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serves it on this machine while the block runs; its address is `site.address`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            wanted = self.headers.get("Range", "")
            site.asked.append((path, wanted))
            if site.busy:
                site.busy -= 1
                return self._answer(503)
            if path in site.closed:
                return self._answer(403)
            if path not in site.files:
                return self._answer(404)
            data = site.files[path]
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            if not site.ranges or found is None:
                return self._answer(200, data)
            first, last = int(found[1]), min(int(found[2]), len(data) - 1)
            if first >= len(data):
                return self._answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
            first += site.shifted
            headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            if path in site.versions:
                headers["ETag"] = site.versions[path]
            self._answer(206, data[first : last + 1], headers)

        def _answer(
            self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if site.broken and len(body) > 1:
                site.broken -= 1
                body, self.close_connection = body[: len(body) // 2], True
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients may hang up
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
