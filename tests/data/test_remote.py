"""Files on a web server against the same bytes in memory; servers and connections that fail."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from range_server import Site, serving

from unraze.data import remote
from unraze.errors import DataError

DATA = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    with serving(Site(files={"/a.tar": DATA, "/empty.tar": b""})) as given_site:
        yield given_site


@pytest.fixture(scope="module")
def steady() -> Iterator[Site]:
    with serving(Site(files={"/a.tar": DATA})) as given_site:
        yield given_site


class TestReading:
    @settings(deadline=None, max_examples=30)
    @given(
        moves=st.lists(
            st.tuples(st.integers(0, len(DATA) + 10), st.integers(0, 30_000)), min_size=1
        ),
        ahead=st.sampled_from([512, 10_000, 2**20]),
    )
    def test_is_as_of_a_file(self, steady: Site, moves: list[tuple[int, int]], ahead: int) -> None:
        expected = io.BytesIO(DATA)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote, "AT_ONCE", ahead)
            with remote.opened(f"{steady.address}/a.tar") as stream:
                for place, size in moves:
                    assert stream.seek(place) == expected.seek(place)
                    assert stream.read(size) == expected.read(size)
                    assert stream.tell() == expected.tell()
                assert stream.seek(-7, io.SEEK_END) == expected.seek(-7, io.SEEK_END)
                assert stream.read() == expected.read()

    def test_asks_ahead(self, site: Site) -> None:
        with remote.opened(f"{site.address}/a.tar") as stream:
            for place in range(0, len(DATA), 512):
                stream.seek(place)
                stream.read(100)
        assert [wanted for _, wanted in site.asked] == [f"bytes=0-{remote.AT_ONCE - 1}"]

    def test_goes_on_where_an_answer_broke_off(self, site: Site) -> None:
        with remote.opened(f"{site.address}/a.tar") as stream:
            site.broken = 3
            assert stream.read() == DATA
        assert site.broken == 0
        assert len(site.asked) >= 5

    def test_asks_a_busy_server_again(self, site: Site) -> None:
        site.busy = remote.TRIES - 1
        with remote.opened(f"{site.address}/a.tar") as stream:
            assert stream.read(10) == DATA[:10]

    def test_a_query_is_sent_and_not_shown(self, site: Site) -> None:
        with remote.opened(f"{site.address}/a.tar?key=SECRET") as stream:
            assert stream.read(3) == DATA[:3]
        with pytest.raises(DataError) as caught:
            remote.opened(f"{site.address}/b.tar?key=SECRET").read(1)
        assert "SECRET" not in str(caught.value)


class TestStamps:
    def test_are_size_and_version(self, site: Site) -> None:
        address = f"{site.address}/a.tar"
        (plain,) = remote.stamps([address])
        assert plain[0] == len(DATA)
        site.versions["/a.tar"] = '"1"'
        first, again = remote.stamps([address, address])
        assert first == again != plain
        site.versions["/a.tar"] = '"2"'
        assert remote.stamps([address]) != [first]

    def test_of_none(self) -> None:
        assert remote.stamps([]) == []


class TestWhatFails:
    @pytest.mark.parametrize(
        ("path", "says"),
        [
            ("/none.tar", "has no such file"),
            ("/empty.tar", "has an empty file"),
            ("/closed.tar", "does not let you read it"),
        ],
    )
    def test_what_is_not_to_be_had(self, site: Site, path: str, says: str) -> None:
        site.closed = frozenset({"/closed.tar"})
        with pytest.raises(DataError, match=says):
            remote.opened(site.address + path).read(1)

    def test_a_server_without_ranges(self, site: Site) -> None:
        site.ranges = False
        with pytest.raises(DataError, match="no ranges of them; download it"):
            remote.opened(f"{site.address}/a.tar").read(1)

    def test_a_server_that_gives_other_ranges(self, site: Site) -> None:
        with remote.opened(f"{site.address}/a.tar") as stream:
            site.shifted = True
            with pytest.raises(DataError, match="another range"):
                stream.read(10)

    @pytest.mark.parametrize("change", ["version", "size", "gone"])
    def test_a_file_that_changes(self, site: Site, change: str) -> None:
        site.versions["/a.tar"] = '"1"'
        with remote.opened(f"{site.address}/a.tar") as stream:
            stream.seek(0, io.SEEK_END)
            stream.seek(0)
            if change == "version":
                site.versions["/a.tar"] = '"2"'
            else:
                site.files["/a.tar"] = DATA[:500] if change == "size" else b""
            with pytest.raises(DataError, match="another file there than a moment ago"):
                stream.read(1000)

    def test_a_server_that_stays_busy(self, site: Site) -> None:
        site.busy = 100
        with pytest.raises(DataError, match="answers 503"):
            remote.opened(f"{site.address}/a.tar").read(1)
        assert len(site.asked) == remote.TRIES

    def test_a_server_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
        with serving(Site()) as gone:
            pass
        with pytest.raises(DataError, match=r"did not answer, 5 times .*refused"):
            remote.opened(f"{gone.address}/a.tar").read(1)

    def test_a_password_in_the_address(self) -> None:
        with pytest.raises(DataError, match="netrc") as caught:
            remote.opened("https://me:SECRET@host/a.tar")
        assert "SECRET" not in str(caught.value)

    def test_what_is_no_address(self) -> None:
        with pytest.raises(DataError, match="cannot be asked"):
            remote.opened("http:///a.tar").read(1)


def test_addresses(tmp_path: Path) -> None:
    assert remote.is_address("HTTPS://host/x")
    assert not remote.is_address(str(tmp_path))
    assert remote.short("https://me@host:1/a/b.tar?x=1#y") == "https://host:1/a/b.tar"
    assert remote.name_of("https://host/a/b.tar?x=/1") == "b.tar"
