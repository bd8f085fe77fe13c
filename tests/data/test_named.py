"""The data sets known by name."""

import contextlib
import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from unraze.config import DataConfig
from unraze.data import NAMES, get, load, named
from unraze.errors import DataError, InputError

SYSTEM = Path("/usr/share/datasets/fashion-mnist")


def test_digits_are_scikit_learns() -> None:
    theirs = load_digits()
    parts = [load(DataConfig(source="digits"), split=split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [1500, 297]
    pixels = np.concatenate([part.pixels for part in parts])
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    np.testing.assert_array_equal(labels, theirs.target)
    # 17 levels over 0 … 255: the nearest byte
    assert np.abs(pixels[:, 0] - theirs.images * 255 / 16).max() <= 0.5
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert parts[0].class_names == tuple("0123456789")
    assert get("digits").stat().st_size < 100_000


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="the Debian package is not installed")
def test_fashion_mnist_of_the_system() -> None:
    assert get("fashion-mnist") == SYSTEM
    for split, count in {"train": 60_000, "test": 10_000}.items():
        images = load(DataConfig(source="fashion-mnist"), split=split)  # type: ignore[arg-type]
        assert images.pixels.shape == (count, 1, 28, 28)
        assert images.labels is not None
        assert np.bincount(images.labels).tolist() == [count // 10] * 10
        assert images.class_names[9] == "Ankle boot"


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="the Debian package is not installed")
def test_the_checksums_are_of_the_files_that_debian_packs() -> None:
    """Debian strips name and time from the gzip headers; with them the published files return."""
    for name, (size, sha256) in named._FILES.items():
        packed = (SYSTEM / name).read_bytes()
        stem = name.removesuffix(".gz").encode() + b"\0"
        assert len(packed) + len(stem) == size
        when = 1504176606 if name.startswith("train") else 1504176627
        header = packed[:3] + b"\x08" + when.to_bytes(4, "little") + packed[8:10] + stem
        assert hashlib.sha256(header + packed[10:]).hexdigest() == sha256


def test_an_unknown_name() -> None:
    assert NAMES == ("digits", "fashion-mnist")
    with pytest.raises(InputError, match="mnist-1d: is no known data set; the names are digits"):
        get("mnist-1d")
    with pytest.raises(InputError, match="did you mean 'digits'"):
        get("digit")


class TestDownload:
    """From a server of the test's own, with small files and their checksums."""

    @pytest.fixture
    def files(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
        files = {}
        for part, count in {"train": 6, "t10k": 2}.items():
            header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 4, 4))
            files[f"{part}-images-idx3-ubyte.gz"] = header + bytes(range(16)) * count
            header = b"\0\0\x08\x01" + count.to_bytes(4, "big")
            files[f"{part}-labels-idx1-ubyte.gz"] = header + bytes(range(count))
        files = {name: gzip.compress(data, mtime=0) for name, data in files.items()}
        known = {n: (len(data), hashlib.sha256(data).hexdigest()) for n, data in files.items()}
        monkeypatch.setattr(named, "_FILES", known)
        monkeypatch.setattr(named, "_SYSTEM", Path("/nowhere"))
        return files

    @pytest.fixture
    def asked(
        self, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[list[str]]:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path[1:])
                if self.path[1:] not in files:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the reader has had enough
                    self.wfile.write(files[self.path[1:]])

            def log_message(self, *_: object) -> None:
                return

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            monkeypatch.setattr(named, "_ADDRESS", f"http://127.0.0.1:{server.server_port}/")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            yield asked
            server.shutdown()
            thread.join()

    def test_once_into_the_cache(
        self, files: dict[str, bytes], asked: list[str], own_cache: Path
    ) -> None:
        told: list[tuple[int, int]] = []
        for _ in range(2):
            place = get("fashion-mnist", progress=lambda done, of: told.append((done, of)))
            assert place == own_cache / "fashion-mnist"
        assert asked == list(files)
        total = sum(len(data) for data in files.values())
        assert told[-1] == (total, total)
        assert {f.name: f.read_bytes() for f in place.iterdir()} == files
        assert load(DataConfig(source="fashion-mnist")).pixels.shape == (6, 1, 4, 4)

    def test_a_damaged_file_in_the_cache_is_fetched_again(
        self, files: dict[str, bytes], asked: list[str]
    ) -> None:
        place = get("fashion-mnist")
        damaged = place / "t10k-labels-idx1-ubyte.gz"
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
        asked.clear()
        get("fashion-mnist")
        assert asked == [damaged.name]
        assert damaged.read_bytes() == files[damaged.name]

    @pytest.mark.parametrize("fault", ["wrong", "cut off", "endless", "missing"])
    def test_what_is_not_the_file_is_not_kept(
        self, files: dict[str, bytes], asked: list[str], own_cache: Path, fault: str
    ) -> None:
        name = "t10k-images-idx3-ubyte.gz"
        good = files[name]
        match fault:
            case "wrong":
                files[name] = good[:-1] + b"x"
            case "cut off":
                files[name] = good[:-3]
            case "endless":
                files[name] = good + b"\0" * 5_000_000
            case "missing":
                del files[name]
        with pytest.raises(DataError, match="Not Found" if fault == "missing" else "checksum"):
            get("fashion-mnist")
        left = {file.name for file in (own_cache / "fashion-mnist").iterdir()}
        assert left == {"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"}


def test_missing_everywhere_lists_all_three_ways(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setattr(named, "_SYSTEM", Path("/nowhere"))
    monkeypatch.setattr(named, "_ADDRESS", "http://127.0.0.1:9/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError) as caught:
        load(DataConfig(source="fashion-mnist"))
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "install the Debian package dataset-fashion-mnist",
        str(own_cache / "fashion-mnist"),
        "connect to the network",
        "Connection refused",
    ):
        assert words in message
    assert not [file for file in own_cache.rglob("*") if file.is_file()]
