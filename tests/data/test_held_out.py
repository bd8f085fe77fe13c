"""Held-out images: a partition by content alone, the same wherever the images lie."""

import io
import itertools
import math
import re
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_digits

from unraze import load_images
from unraze.config import DataConfig
from unraze.data import Images, check, has_test_part, load, reading
from unraze.data.held_out import FEWEST, held_out
from unraze.errors import DataError, InputError

SHARES = (0.05, 0.1, 0.3, 0.5)


def different(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random images (N, …), no two the same."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def write_folder(path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    path.mkdir(parents=True)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(path / f"{number}.png")
    return path


def both(source: Path | str, share: float = 0.3, **options: Any) -> tuple[Images, Images]:
    config = DataConfig(source=str(source), held_out=share)
    train, held = (load(config, split=split, **options) for split in ("train", "held-out"))
    return train, held


def contents(images: Images) -> set[bytes]:
    return {one.tobytes() for one in images.pixels}


def test_the_two_parts_are_the_set_and_share_nothing(tmp_path: Path) -> None:
    pixels = different(300, 6, 5, 3)
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.arange(300) % 3)
    train, held = both(tmp_path / "x.npz")
    whole = load(DataConfig(source=str(tmp_path / "x.npz")))
    assert len(whole) == 300 == len(train) + len(held)
    assert (train.held_back, held.held_back, whole.held_back) == (len(held), 0, 0)
    assert not contents(train) & contents(held)
    assert contents(train) | contents(held) == contents(whole)
    for part in (train, held):
        numbers = [int(name.split()[1]) for name in part.names]
        assert numbers == sorted(numbers)
        np.testing.assert_array_equal(part.pixels, whole.pixels[numbers])
        assert part.labels is not None
        assert part.labels.tolist() == [n % 3 for n in numbers]
        assert part.class_names == whole.class_names
        again = Images.from_arrays(part.pixels, labels=part.labels, class_names=part.class_names)
        assert part.fingerprint == again.fingerprint


@pytest.mark.parametrize("share", SHARES)
def test_about_the_share_is_held_out(share: float) -> None:
    """Of n different images the number is binomial: within five standard deviations of n·share."""
    count = 20_000
    number = int(held_out(different(count, 1, 4, 4), share).sum())
    assert abs(number - count * share) < 5 * math.sqrt(count * share * (1 - share))


def test_a_larger_share_holds_out_what_a_smaller_one_does() -> None:
    pixels = different(500, 1, 4, 4)
    for less, more in itertools.pairwise(SHARES):
        assert (held_out(pixels, more) >= held_out(pixels, less)).all()
    assert not held_out(pixels, 0.0).any()


def test_it_does_not_depend_on_order_names_or_the_others(tmp_path: Path) -> None:
    pixels = different(120, 6, 5)
    _, held = both(write_folder(tmp_path / "a", pixels))
    _, reversed_ = both(write_folder(tmp_path / "b", pixels[::-1]))
    assert contents(reversed_) == contents(held)
    _, more = both(
        write_folder(tmp_path / "c", np.concatenate([different(60, 6, 5, seed=1), pixels]))
    )
    of_both = {one.tobytes() for one in pixels[:, None]} & contents(more)
    assert of_both == contents(held)


def test_copies_are_on_the_same_side(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", different(60, 6, 5))
    for file in list(folder.iterdir()):
        shutil.copy(file, folder / f"copy-{file.name}")
        Image.open(file).save(folder / f"again-{file.stem}.bmp")
    train, held = both(folder)
    assert len(train) + len(held) == 180
    assert len(contents(train)) * 3 == len(train)
    assert not contents(train) & contents(held)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_it_is_the_same_in_memory_on_disk_zipped_and_in_arrays(
    tmp_path: Path, own_cache: Path, split: Any
) -> None:
    pixels = different(600, 6, 5, 3)
    folder = write_folder(tmp_path / "a", pixels)
    np.save(tmp_path / "a.npy", pixels)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    inside = load(DataConfig(source=str(folder), held_out=0.2), split=split)
    assert 0 < len(inside) < 600
    for name in ("a", "a.npy", "a.zip"):
        for memory in (2**30, 0, 0):  # in memory; made on disk; found there
            there = load(
                DataConfig(source=str(tmp_path / name), held_out=0.2), split=split, memory=memory
            )
            assert isinstance(there.pixels, np.memmap) == (memory == 0)
            np.testing.assert_array_equal(there.pixels, inside.pixels)
            assert there.fingerprint == inside.fingerprint
            assert (there.held_back, there.held_out) == (inside.held_back, 0.2)
    assert len(list(own_cache.rglob("pixels"))) == 6  # both parts of each


def test_parts_and_shares_do_not_share_a_cache(tmp_path: Path, own_cache: Path) -> None:
    pixels = different(200, 6, 5)
    np.savez(tmp_path / "a.npz", images=pixels)
    sizes = set()
    for share in (0.0, 0.1, 0.4):
        config = DataConfig(source=str(tmp_path / "a.npz"), held_out=share)
        sizes.add(len(load(config, memory=0)))
        if share:
            sizes.add(len(load(config, split="held-out", memory=0)))
    assert len(sizes) == 5 == len(list(own_cache.rglob("pixels")))
    np.savez(tmp_path / "b.npz", x_train=pixels, x_test=pixels[:7])
    config = DataConfig(source=str(tmp_path / "b.npz"))
    assert [len(load(config, split=s, memory=0)) for s in ("train", "test")] == [200, 7]  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["train", "held-out"])
def test_both_parts_are_of_one_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any
) -> None:
    folder = write_folder(tmp_path / "a", different(80, 6, 5))
    inside = both(folder)
    load(DataConfig(source=str(folder), held_out=0.3), split=first, memory=0)
    monkeypatch.setattr(reading, "read_one", None)  # it is not asked again
    for there, here in zip(both(folder, memory=0), inside, strict=True):
        np.testing.assert_array_equal(there.pixels, here.pixels)
        assert there.fingerprint == here.fingerprint
        assert list(there.names) == list(here.names)
        assert there.held_back == here.held_back


def test_the_size_is_the_one_that_counts(tmp_path: Path) -> None:
    """What is held out at the images' own size is so when that size is asked for, as a run does."""
    folder = write_folder(tmp_path / "a", different(100, 6, 5, 3))
    for split in ("train", "held-out"):
        own = load_images(folder, split=split, held_out=0.3)  # type: ignore[arg-type]
        asked = load_images(folder, size=(6, 5), channels=3, split=split, held_out=0.3)  # type: ignore[arg-type]
        assert own.fingerprint == asked.fingerprint


class TestOwnTestParts:
    def is_its_test_part(self, source: Path | str, count: int, held: int) -> None:
        for share in (0.0, 0.1):
            train, apart = both(source, share)
            assert (len(train), len(apart), train.held_back) == (count, held, 0)
            test = load(DataConfig(source=str(source)), split="test")
            assert test.fingerprint == apart.fingerprint
        assert has_test_part(str(source))

    def test_digits(self) -> None:
        self.is_its_test_part("digits", 1500, 297)

    def test_all_training_digits_are_trained_on_to_the_bit(self) -> None:
        theirs = load_digits()
        pixels = np.rint(theirs.images[:1500, None] * (255 / 16)).astype(np.uint8)
        names = tuple("0123456789")
        same = Images.from_arrays(pixels, labels=theirs.target[:1500], class_names=names)
        train = load(DataConfig(source="digits", held_out=0.5))
        assert train.fingerprint == same.fingerprint

    def test_npz(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x_train=different(40, 6, 5), x_test=different(9, 6, 5, seed=1))
        self.is_its_test_part(tmp_path / "x.npz", 40, 9)

    def test_idx(self, tmp_path: Path) -> None:
        for part, count in {"train": 40, "t10k": 25}.items():
            header = struct.pack(">BBBB3I", 0, 0, 8, 3, count, 6, 5)
            (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(
                header + different(count, 6, 5).tobytes()
            )
        self.is_its_test_part(tmp_path, 40, 25)
        self.is_its_test_part(tmp_path / "train-images-idx3-ubyte", 40, 25)
        # the test file as the source is divided itself: it is not its own test part
        train, held = both(tmp_path / "t10k-images-idx3-ubyte")
        assert len(train) + len(held) == 25
        assert not contents(train) & contents(held)
        (tmp_path / "t10k-images-idx3-ubyte").unlink()
        train, held = both(tmp_path)
        assert len(train) + len(held) == 40

    def test_cifar(self, tmp_path: Path) -> None:
        pixels = different(60, 3, 32, 32)
        for name, part in {"data_batch_1": range(40), "test_batch": range(40, 60)}.items():
            records = [bytes([i % 10]) + pixels[i].tobytes() for i in part]
            (tmp_path / f"{name}.bin").write_bytes(b"".join(records))
        self.is_its_test_part(tmp_path, 40, 20)
        train, held = both(tmp_path / "test_batch.bin")
        assert len(train) + len(held) == 20
        assert not contents(train) & contents(held)


class TestSmallSets:
    @pytest.mark.parametrize("memory", [0, 2**30])
    def test_few_images_are_all_trained_on(self, tmp_path: Path, memory: int) -> None:
        folder = write_folder(tmp_path / "a", different(FEWEST - 1, 6, 5))
        config = DataConfig(source=str(folder), held_out=0.5)
        images = load(config, memory=memory)
        assert len(images) == FEWEST - 1
        assert images.held_back == 0
        with pytest.raises(DataError, match=r"has 19 images; of fewer than 20 none .* add images"):
            load(config, split="held-out", memory=memory)
        Image.fromarray(different(1, 6, 5, seed=9)[0]).save(folder / "one-more.png")
        assert len(load(config, memory=memory)) < FEWEST

    def test_images_that_cannot_be_read_do_not_count(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "a", different(FEWEST, 6, 5))
        (folder / "3.png").write_bytes(b"")
        config = DataConfig(source=str(folder), held_out=0.5, skip_bad=True)
        assert len(load(config)) == FEWEST - 1

    def test_where_none_falls_into_the_share_it_says_so(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", different(30, 6, 5))
        share = 1e-6
        assert len(load_images(tmp_path / "x.npy", held_out=share)) == 30
        with pytest.raises(DataError, match=r"none of its 30 images .* a larger share"):
            load_images(tmp_path / "x.npy", split="held-out", held_out=share)

    def test_no_larger_share_is_advised_than_there_is(self, tmp_path: Path) -> None:
        pixels = different(40, 1, 6, 5)
        kept = pixels[~held_out(pixels, 0.5)]
        np.save(tmp_path / "x.npy", np.repeat(kept[:1, 0], 50, axis=0))
        for share, remedy in ((0.1, "with a larger share, at most 0.5"), (0.5, "add other images")):
            with pytest.raises(DataError, match=f"none of its 50 images .*; .*{remedy}") as error:
                load_images(tmp_path / "x.npy", split="held-out", held_out=share)
            assert ("larger share" in str(error.value)) == (share < 0.5)

    @pytest.mark.parametrize("memory", [0, 2**30])
    def test_copies_of_one_image_are_trained_on(self, tmp_path: Path, memory: int) -> None:
        pixels = different(40, 1, 6, 5)
        held = pixels[held_out(pixels, 0.5)]
        np.save(tmp_path / "x.npy", np.repeat(held[:1, 0], 50, axis=0))
        config = DataConfig(source=str(tmp_path / "x.npy"), held_out=0.5)
        assert len(load(config, memory=memory)) == 50
        with pytest.raises(DataError, match="would hold out all of its 50 images"):
            load(config, split="held-out", memory=memory)


def test_no_share_holds_nothing_out(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", different(30, 6, 5))
    assert len(load_images(tmp_path / "x.npy")) == 30
    with pytest.raises(DataError, match=r"no test part of its own, and held_out = 0 .* 0\.1"):
        load_images(tmp_path / "x.npy", split="held-out")
    assert not has_test_part(str(tmp_path / "x.npy"))


@pytest.mark.parametrize("share", [-0.1, 0.51, math.nan])
def test_a_share_that_will_not_do(share: float) -> None:
    with pytest.raises(InputError, match=r"held_out = (-0\.1|0\.51|nan): "):
        load_images("digits", held_out=share)


def test_check_names_what_load_holds_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", different(100, 9, 7, 3))
    for options in ({}, {"size": (4, 4), "channels": 1, "fit": "pad"}):
        config = DataConfig(source=str(folder), held_out=0.2, **options)
        found = {finding.kind: finding for finding in check(config)}["held out"]
        held = load(config, split="held-out")
        assert found.names == tuple(held.names)
        assert found.severity == "note"
        assert f"{len(held)} of 100 images" in found.what


def test_check_tells_a_class_that_is_lost(tmp_path: Path) -> None:
    pixels = different(40, 1, 6, 5)
    held = held_out(pixels, 0.3)
    labels = np.zeros(40, dtype=int)
    labels[np.flatnonzero(held)[0]] = 1
    np.savez(tmp_path / "x.npz", images=pixels[:, 0], labels=labels, class_names=["ape", "bee"])
    config = DataConfig(source=str(tmp_path / "x.npz"), held_out=0.3)
    lost = {finding.kind: finding for finding in check(config)}["lost classes"]
    assert (lost.names, lost.severity) == (("bee",), "warning")
    assert load(config).class_names == ("ape", "bee")


class TestSamples:
    """A folder as `unraze sample` leaves it: the grid and the film are not images of it."""

    def write(self, folder: Path, kind: str = "grid") -> Path:
        folder.mkdir()
        for number in range(4):
            Image.new("L", (8, 8), number).save(folder / f"{number:05d}.png")
        recipe = PngInfo()
        recipe.add_text("unraze", f'{{"kind": "{kind}"}}')
        Image.new("L", (40, 40)).save(folder / "grid.png", pnginfo=recipe)
        Image.new("L", (40, 40)).save(folder / "film.gif", comment=b'unraze {"kind": "film"}')
        return folder

    def test_they_are_left_out(self, tmp_path: Path) -> None:
        folder = self.write(tmp_path / "a")
        images = load_images(folder)
        assert list(images.names) == [f"{n:05d}.png" for n in range(4)]
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for file in folder.iterdir():
                archive.write(file, f"a/{file.name}")
        assert load_images(tmp_path / "a.zip").fingerprint == images.fingerprint
        left = {f.kind: f for f in check(DataConfig(source=str(folder)))}["left out"]
        assert left.names == ("film.gif", "grid.png")

    def test_a_picture_of_that_name_stays_where_it_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="sizes"):
            load_images(self.write(tmp_path / "another-kind", kind="image"))
        other = self.write(tmp_path / "others-beside")
        Image.new("L", (8, 8)).save(other / "cat.png")
        with pytest.raises(DataError, match="sizes"):
            load_images(other)
        plain = self.write(tmp_path / "no-recipe")
        data = io.BytesIO()
        Image.new("L", (8, 8)).save(data, "png")
        (plain / "grid.png").write_bytes(data.getvalue())
        assert len(load_images(plain)) == 5
        (plain / "grid.png").write_bytes(b"")
        with pytest.raises(DataError, match=re.escape("grid.png is empty")):
            load_images(plain)
