"""Changed and made-up files: each reader reads them, or refuses them in a line of the package's."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from scripts import as_module

with as_module(Path(__file__).parents[2] / "tools" / "fuzz.py") as fuzz:
    pass

WORDS = (
    *(b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"[[[[", b'{"a":', b"null", b"-1"),
    *(b"9" * 30, b"1e999", b'"', b"\\", b"../", b"\n", b"true", b"PK\x01\x02", b"\x80\x02c"),
)
"""What files are made to stumble over."""
EXAMPLES = {
    "weights": 20,
    "shards": 20,
    "state": 20,
    "sampling": 12,
    "config": 20,
    "lucidrains": 30,
}
"""Of the slow ones."""


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A whole file with some bytes of it changed, taken out, put in, doubled, or cut off."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(1, 40)))
        match draw(st.sampled_from(["change", "out", "in", "double", "end"])):
            case "change":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "out":
                del data[at:to]
            case "in":
                data[at:at] = draw(st.sampled_from(WORDS))
            case "double":
                data[at:at] = data[at:to]
            case "end":
                del data[at:]
    return bytes(data)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "cache"))


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != "cache"}


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_whole_file_is_read(name: str, tmp_path: Path) -> None:
    reader = fuzz.TARGETS[name]
    (tmp_path / "work").mkdir()
    reader.prepare(tmp_path / "work")
    refused = [fuzz.tried(reader, tmp_path / "work", seed) for seed in reader.seeds()]
    assert None in refused
    # what is whole and refused all the same: floats beyond 0 … 1, axes that may be two
    others = [said for said in refused if said is not None]
    assert all(
        "floating-point" in said or "may be (N" in said or "ᾱ_T = 0.219" in said for said in others
    )


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_changed_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    reader = fuzz.TARGETS[name]
    work = tmp_path / "work"
    work.mkdir()
    reader.prepare(work)
    reader.read(work, reader.seeds()[0])
    there = everything(tmp_path)
    how: dict[str, Any] = {"deadline": None, "derandomize": True, "database": None}
    how["suppress_health_check"] = list(HealthCheck)

    @settings(max_examples=EXAMPLES.get(name, 40), **how)
    @given(data=changed(reader.seeds()) | st.binary(max_size=200))
    def try_it(data: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the decoders' own
            fuzz.tried(reader, work, data)

    try_it()
    assert everything(tmp_path) == there, "a reader wrote something"


def test_another_exception_is_a_finding(tmp_path: Path) -> None:
    def broken(folder: Path, data: bytes) -> None:
        raise IndexError("string index out of range")

    with pytest.raises(IndexError):
        fuzz.tried(fuzz.Reader(broken, list), tmp_path, b"")
