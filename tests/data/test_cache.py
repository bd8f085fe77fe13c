"""Sets larger than memory: the same images from a memory map, remade whenever it is not whole."""

import errno
import multiprocessing
import os
import shutil
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unraze.config import DataConfig
from unraze.data import Images, batch, cache, load, reading
from unraze.errors import DataError, UnrazeError


def make_some(start: Barrier, end: Barrier) -> None:
    """Makes the sets of keys 0 to 9, each to end when others do; half are there already, damaged,
    when they end."""
    images = Images.from_arrays(np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4))
    for number in range(10):
        with cache.making(cache.key(number), 96) as made:
            (made / "pixels").write_bytes(images.pixels.tobytes())
            cache.describe(made, images)
            if start.wait(20) == 0 and number % 2:
                place = cache.cache_folder() / "images" / cache.key(number)
                place.mkdir()
                (place / "pixels").write_bytes(b"")
            end.wait(20)
        found = cache.kept(cache.key(number), "array", verify=False)
        assert found is not None, number
        np.testing.assert_array_equal(found.pixels, images.pixels)


@pytest.fixture
def classes(folder: Path) -> Path:
    """The 12 images in two classes."""
    for number in range(12):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        (folder / f"{number}.png").rename(place / f"{number}.png")
    return folder


def mapped(folder: Path, **options: Any) -> Images:
    return load(DataConfig(source=str(folder), **options), memory=0)


def pixel_files(own_cache: Path) -> list[Path]:
    return sorted(own_cache.rglob("pixels"))


def test_it_equals_the_set_in_memory(classes: Path, own_cache: Path) -> None:
    inside = load(DataConfig(source=str(classes), size=(5, 7)))
    assert not pixel_files(own_cache)
    for _ in range(2):  # made, then found
        outside = mapped(classes, size=(5, 7))
        assert isinstance(outside.pixels, np.memmap)
        np.testing.assert_array_equal(outside.pixels, inside.pixels)
        assert outside.labels is not None
        assert inside.labels is not None
        np.testing.assert_array_equal(outside.labels, inside.labels)
        for name in ("class_names", "source", "fingerprint", "skipped"):
            assert getattr(outside, name) == getattr(inside, name)
        assert list(outside.names) == list(inside.names)
    some = np.array([4, 1])
    assert batch(outside, some).equal(batch(inside, some))
    assert len(pixel_files(own_cache)) == 1


def test_it_is_found_without_decoding(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mapped(classes)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Image, "open", never)
    assert mapped(classes).fingerprint == first.fingerprint


def test_arrays_are_cached_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 6, 5)).astype(np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    images = mapped(tmp_path / "x.npy")
    assert isinstance(images.pixels, np.memmap)
    np.testing.assert_array_equal(images.pixels[:, 0], pixels)


def test_a_changed_file_or_option_makes_another(classes: Path, own_cache: Path) -> None:
    first = mapped(classes)
    Image.new("RGB", (4, 6)).save(classes / "a" / "0.png")
    second = mapped(classes)
    assert not second.pixels[0].any()
    assert first.fingerprint != second.fingerprint
    mapped(classes, channels=1)
    assert len(pixel_files(own_cache)) == 3


@pytest.mark.parametrize("damage", ["a bit", "cut off", "longer", "about cut off", "no pixels"])
def test_a_damaged_one_is_remade(classes: Path, own_cache: Path, damage: str) -> None:
    before = mapped(classes)
    expected = np.array(before.pixels)
    [file] = pixel_files(own_cache)
    data = bytearray(file.read_bytes())
    match damage:
        case "a bit":
            data[100] ^= 4
            file.write_bytes(data)
        case "cut off":
            file.write_bytes(data[:-1])
        case "longer":
            file.write_bytes(data + b"x")
        case "about cut off":
            about = file.with_name("about.json")
            about.write_text(about.read_text()[:-20])
        case "no pixels":
            file.unlink()
    after = mapped(classes)
    np.testing.assert_array_equal(after.pixels, expected)
    assert after.fingerprint == before.fingerprint
    assert file.read_bytes() == expected.tobytes()


def test_bad_images_leave_nothing_behind(classes: Path, own_cache: Path) -> None:
    (classes / "a" / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a/4\.png is empty"):
        mapped(classes)
    assert not list((own_cache / "images").iterdir())
    for _ in range(2):
        images = mapped(classes, skip_bad=True)
        assert images.skipped == ("a/4.png",)
        assert len(images) == 11
    with pytest.raises(DataError, match=r"a/4\.png is empty"):
        mapped(classes)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_make_the_same_at_once_end_with_one_whole_set(own_cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    barriers = context.Barrier(3), context.Barrier(3)
    processes = [context.Process(target=make_some, args=barriers) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    left = sorted((own_cache / "images").iterdir())
    assert [folder.name for folder in left] == sorted(map(cache.key, range(10)))
    for folder in left:
        assert sorted(file.name for file in folder.iterdir()) == ["about.json", "pixels"]
        assert cache.kept(folder.name, "array") is not None


def test_a_disk_that_fills_up_leaves_nothing_behind(
    classes: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnrazeError, match=r"the disk is full.*UNRAZE_CACHE") as caught:
        mapped(classes)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 1
    assert not list((own_cache / "images").iterdir())


def test_a_disk_without_room_is_said_before_the_work(
    classes: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(own_cache)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UnrazeError, match=r"the disk is full \(0\.0 GiB are free\)"):
        mapped(classes)
    assert not list((own_cache / "images").iterdir())


def test_a_cache_that_cannot_be_made(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnrazeError, match="cannot be written"):
        mapped(classes)


def test_what_a_killed_process_left_is_removed_after_a_day(classes: Path, own_cache: Path) -> None:
    old, young = own_cache / "images" / ".making-old", own_cache / "images" / ".making-young"
    for place in (old, young):
        place.mkdir(parents=True)
    yesterday = time.time() - 30 * 3600
    os.utime(old, (yesterday, yesterday))
    mapped(classes)
    assert not old.exists()
    assert young.exists()


def test_the_folder_is_the_systems_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNRAZE_CACHE")
    assert cache.cache_folder().name == "unraze"


def test_many_small_files_are_decoded_once(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = load(DataConfig(source=str(classes), size=(8, 8), channels=3))
    monkeypatch.setattr(reading, "MANY_FILES", 3)
    many = load(DataConfig(source=str(classes), size=(8, 8), channels=3))
    assert isinstance(many.pixels, np.memmap)
    assert not isinstance(few.pixels, np.memmap)
    assert many.fingerprint == few.fingerprint
    monkeypatch.setattr(reading, "read_one", None)  # it is not asked again
    again = load(DataConfig(source=str(classes), size=(8, 8), channels=3))
    assert np.array_equal(again.pixels, few.pixels)


def test_a_run_finds_what_was_decoded_before_it_knew_the_channels(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MANY_FILES", 3)
    first = load(DataConfig(source=str(classes), size=(8, 8)))
    assert isinstance(first.pixels, np.memmap)
    monkeypatch.setattr(reading, "read_one", None)  # nothing is decoded again, nor looked at
    monkeypatch.setattr(reading, "look", None)
    for channels in (None, first.pixels.shape[1]):
        again = load(DataConfig(source=str(classes), size=(8, 8), channels=channels))
        assert np.array_equal(again.pixels, first.pixels)


def test_many_small_files_are_read_where_nothing_can_be_kept(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(reading, "MANY_FILES", 3)
    with pytest.warns(UserWarning, match="they are decoded again each time"):
        images = load(DataConfig(source=str(classes), size=(8, 8), channels=3))
    assert len(images) >= 3
    assert not isinstance(images.pixels, np.memmap)
