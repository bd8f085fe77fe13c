"""What is kept is what was written, or it is made again; nothing half-written is ever taken."""

import errno
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from unraze.data import Images
from unraze.errors import InputError, UnrazeError
from unraze.evaluate import kept
from unraze.evaluate.features import FeatureSpace
from unraze.evaluate.figures import Figure
from unraze.evaluate.kept import (
    features_of_images,
    features_of_pixels,
    found_part,
    kept_part,
    key_of,
    read_arrays,
    read_result,
    write_arrays,
    write_bytes,
    write_result,
)
from unraze.evaluate.stage import Stage, finish

FIGURE = TypeAdapter(Figure)
PIXELS = np.arange(120, dtype=np.uint8).reshape(3, 1, 5, 8)
WANTED = {"pixels": ((3, 1, 5, 8), np.dtype(np.uint8)), "seconds": ((), np.dtype(np.float64))}


def figure(value: float = 1.5) -> Figure:
    return Figure("KID", value, value - 1, value + 1, 0.0, "lower", generated=10, real=20, alike=1)


def making(result: Figure, calls: list[int]) -> Callable[[], Generator[Stage, None, Figure]]:
    def make() -> Generator[Stage, None, Figure]:
        calls.append(1)
        yield Stage("part", 1, 2)
        return result

    return make


# arrays


def test_arrays_come_back_as_they_went(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.npz"
    write_arrays(file, pixels=PIXELS, seconds=2.5)
    found = read_arrays(file, **WANTED)
    assert found is not None
    np.testing.assert_array_equal(found["pixels"], PIXELS)
    assert float(found["seconds"]) == 2.5
    assert [path.name for path in file.parent.iterdir()] == ["a.npz"]


def test_no_flipped_or_missing_byte_gives_other_arrays(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    write_arrays(file, pixels=PIXELS, seconds=2.5)
    whole = file.read_bytes()
    refused = 0
    for place in range(0, len(whole), 2):
        for damaged in (
            whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :],
            whole[:place],
        ):
            file.write_bytes(damaged)
            found = read_arrays(file, **WANTED)
            refused += found is None
            if found is not None:
                np.testing.assert_array_equal(found["pixels"], PIXELS)
                assert float(found["seconds"]) == 2.5
    assert refused > 0.75 * len(whole)  # of the rest, dates and the like, nothing is asked


@pytest.mark.parametrize("shape", [(3, 1, 8, 5), (4, 1, 5, 8), (120,)])
def test_arrays_of_another_shape_or_kind_are_not_taken(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    file = tmp_path / "a.npz"
    write_arrays(file, pixels=PIXELS)
    assert read_arrays(file, pixels=(shape, np.dtype(np.uint8))) is None
    assert read_arrays(file, pixels=(PIXELS.shape, np.dtype(np.float32))) is None
    assert read_arrays(file, other=(PIXELS.shape, np.dtype(np.uint8))) is None
    assert read_arrays(tmp_path / "none.npz", pixels=(shape, np.dtype(np.uint8))) is None


# parts


def test_a_part_is_made_once(tmp_path: Path) -> None:
    calls: list[int] = []
    file = tmp_path / "part.json"
    assert found_part(file, FIGURE) is None
    first = finish(kept_part(file, FIGURE, making(figure(), calls)))
    again = finish(kept_part(file, FIGURE, making(figure(9.0), calls)))
    assert first == again == figure() == found_part(file, FIGURE)
    assert len(calls) == 1


@pytest.mark.parametrize("left", [0, 1, 40, -3])
def test_a_part_that_was_cut_off_is_made_again(tmp_path: Path, left: int) -> None:
    calls: list[int] = []
    file = tmp_path / "part.json"
    finish(kept_part(file, FIGURE, making(figure(), calls)))
    file.write_bytes(file.read_bytes()[:left])
    assert finish(kept_part(file, FIGURE, making(figure(), calls))) == figure()
    assert len(calls) == 2
    assert found_part(file, FIGURE) == figure()


def test_a_part_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    part = kept_part(tmp_path / "part.json", FIGURE, making(figure(), []))
    next(part)
    part.close()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_none_is_null_and_none_again(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    write_result(file, FIGURE, figure(float("nan")))
    assert '"value": null' in file.read_text(encoding="utf-8")
    found = read_result(file, FIGURE)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert found.floor == 0


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    for text in ("not JSON", "{}", '{"name": 3}', "[1, 2]"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"f\.json: is no evaluation of this version"):
            read_result(file, FIGURE)
    with pytest.raises(InputError, match=r"none\.json: cannot be read \(No such file"):
        read_result(tmp_path / "none.json", FIGURE)
    with pytest.raises(UnrazeError, match=r"cannot be read"):
        found_part(tmp_path, FIGURE)


# writing


def test_a_full_disk_is_said_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "f.json"
    write_bytes(file, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnrazeError, match=r"f\.json: .*the disk is full; free some space and give"):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnrazeError, match=r"file/f\.json: cannot be written"):
        write_bytes(tmp_path / "file" / "f.json", b"new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnrazeError, match=r"folder: cannot be written"):
        write_bytes(tmp_path / "folder", b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_what_a_killed_process_left_goes_but_not_what_is_being_written(tmp_path: Path) -> None:
    nobody = 99_999_999  # more processes than a system has
    old, young = tmp_path / f".a.json.{nobody}.part", tmp_path / f".b.json.{nobody}.part"
    for left in (old, young):
        left.write_bytes(b"half")
    long_ago = time.time() - 2 * kept.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    write_bytes(tmp_path / "c.json", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {young.name, "c.json"}


# names


def test_a_key_tells_all_values_apart() -> None:
    keys = [
        key_of(a=1, b="x"),
        key_of(a=2, b="x"),
        key_of(a=1, b="y"),
        key_of(a=1, b=None),
        key_of(a=1),
        key_of(a=1, c="x"),
        key_of(a=[1], b="x"),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(b="x", a=1) == keys[0]


# features


def space_of(name: str, seen: list[int], factor: float = 1.0) -> FeatureSpace:
    """Features are the first three grey levels; it notes how many images it was shown."""

    def extract(pixels: np.ndarray) -> np.ndarray:
        seen.append(len(pixels))
        return factor * pixels.reshape(len(pixels), -1)[:, :3].astype(np.float32)

    return FeatureSpace(name, f"hash of {name}", 3, "", extract, lambda pixels: None)


def images(count: int, seed: int = 0) -> Images:
    shape = (count, 1, 4, 4)
    return Images.from_arrays(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def test_features_are_those_of_every_image_and_stages_count_them() -> None:
    some = images(2100)
    seen: list[int] = []
    stages = features_of_pixels(space_of("a", seen), some.pixels, "a: images")
    counted = []
    while True:
        try:
            counted.append(next(stages))
        except StopIteration as end:
            found = end.value
            break
    np.testing.assert_array_equal(found, some.pixels.reshape(2100, -1)[:, :3])
    assert [(s.name, s.done, s.total) for s in counted] == [
        ("a: images", 1000, 2100),
        ("a: images", 2000, 2100),
        ("a: images", 2100, 2100),
    ]


def test_features_of_real_images_are_kept_by_space_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path))
    seen: list[int] = []
    a, b = space_of("a", seen), space_of("b", seen, factor=2.0)
    some, others = images(30), images(30, seed=1)
    first = finish(features_of_images(a, some, ""))
    np.testing.assert_array_equal(finish(features_of_images(a, some, "")), first)
    assert seen == [30]
    np.testing.assert_array_equal(finish(features_of_images(b, some, "")), 2 * first)
    assert not np.array_equal(finish(features_of_images(a, others, "")), first)
    assert seen == [30, 30, 30]
    for file in (tmp_path / "features").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    np.testing.assert_array_equal(finish(features_of_images(a, some, "")), first)
    assert seen == [30, 30, 30, 30]


def test_a_cache_that_cannot_be_written_does_not_stop_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"cannot be written.*UNRAZE_CACHE"):
        found = finish(features_of_images(space_of("a", []), images(30), ""))
    assert found.shape == (30, 3)
