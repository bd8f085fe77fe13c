"""Each reader against what was written, by the format's own description."""

import gzip
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unraze.config import DataConfig
from unraze.data import Images, check, load
from unraze.errors import DataError

Noise = Callable[..., np.ndarray[Any, Any]]


def read(source: Path, **options: Any) -> Images:
    return load(DataConfig(source=str(source), **options))


def nchw(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return pixels.transpose(0, 3, 1, 2)


class TestFolder:
    def test_pixels_in_natural_order(self, folder: Path, noise: Noise) -> None:
        images = read(folder)
        np.testing.assert_array_equal(images.pixels, nchw(noise(12, 6, 4, 3)))
        assert list(images.names) == [f"{i}.png" for i in range(12)]
        assert images.labels is None
        assert images.class_names == ()

    def test_sub_folders_are_classes_at_any_depth(self, tmp_path: Path) -> None:
        for place, level in {"b10/x.png": 3, "b9/deep/er/y.png": 2, "a/z.png": 1}.items():
            (tmp_path / place).parent.mkdir(parents=True)
            Image.new("L", (5, 3), level).save(tmp_path / place)
        images = read(tmp_path)
        assert images.class_names == ("a", "b9", "b10")
        assert images.labels is not None
        assert images.labels.tolist() == [0, 1, 2]
        assert images.pixels[:, 0, 0, 0].tolist() == [1, 2, 3]
        assert images.pixels.shape == (3, 1, 3, 5)

    def test_a_folder_that_holds_all_is_no_class(self, tmp_path: Path) -> None:
        for place in ("all/cats/1.png", "all/dogs/1.png"):
            (tmp_path / place).parent.mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / place)
        assert read(tmp_path).class_names == ("cats", "dogs")
        assert read(tmp_path / "all" / "cats").labels is None

    def test_images_beside_classes_are_refused(self, folder: Path) -> None:
        (folder / "cats").mkdir()
        (folder / "0.png").rename(folder / "cats" / "0.png")
        with pytest.raises(DataError, match=r"11 images \(1\.png.*beside 1 folder of.*\(cats\)"):
            read(folder)

    def test_what_is_no_image_is_left_out_and_counted(self, folder: Path) -> None:
        (folder / ".hidden.png").write_bytes(b"")
        (folder / "notes.txt").write_text("hello")
        (folder / ".git").mkdir()
        os.mkfifo(folder / "pipe.png")
        assert len(read(folder)) == 12
        [left] = [f for f in check(DataConfig(source=str(folder))) if f.kind == "left out"]
        assert set(left.names) == {".hidden.png", "notes.txt", ".git", "pipe.png"}

    def test_links_in_a_circle_end(self, folder: Path) -> None:
        (folder / "again").symlink_to(folder, target_is_directory=True)
        assert len(read(folder)) == 12


class TestZip:
    def pack(self, folder: Path, prefix: str = "") -> Path:
        path = folder.with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*.png"), reverse=True):
                archive.write(file, prefix + str(file.relative_to(folder)))
        return path

    def test_reads_in_place_what_the_folder_holds(self, folder: Path, own_cache: Path) -> None:
        expected = read(folder)
        packed = self.pack(folder, "pictures/")
        before = set(folder.parent.rglob("*"))
        images = read(packed)
        np.testing.assert_array_equal(images.pixels, expected.pixels)
        assert images.fingerprint == expected.fingerprint
        assert images.labels is None
        assert set(folder.parent.rglob("*")) == before
        assert not list(own_cache.iterdir())

    def test_folders_are_classes(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / "set" / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "set" / name / "1.png")
        images = read(self.pack(tmp_path / "set", "set/"))
        assert images.class_names == ("one", "two")

    def test_a_damaged_member_is_named(self, folder: Path) -> None:
        packed = self.pack(folder)
        data = bytearray(packed.read_bytes())
        with zipfile.ZipFile(packed) as archive:
            start = archive.getinfo("7.png").header_offset
        data[start + 30 + len("7.png") + 40] ^= 0xFF
        packed.write_bytes(data)
        with pytest.raises(DataError, match=r"1 of 12 images .*: 7\.png is damaged in the archive"):
            read(packed)
        assert read(packed, skip_bad=True).skipped == ("7.png",)

    def test_files_without_a_date(self, folder: Path) -> None:
        path = folder.with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                undated = zipfile.ZipInfo(file.name, (1980, 0, 0, 0, 0, 0))
                archive.writestr(undated, file.read_bytes())
        assert read(path).fingerprint == read(folder).fingerprint

    def test_what_is_no_zip(self, tmp_path: Path) -> None:
        (tmp_path / "x.zip").write_bytes(b"PK not really")
        with pytest.raises(DataError, match="not a whole zip"):
            read(tmp_path / "x.zip")


class TestArrays:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_layouts_hold_the_same(self, tmp_path: Path, noise: Noise, channels: int) -> None:
        pixels = noise(9, 6, 8, channels)
        np.save(tmp_path / "last.npy", pixels)
        np.save(tmp_path / "first.npy", nchw(pixels))
        for name in ("last", "first"):
            np.testing.assert_array_equal(read(tmp_path / f"{name}.npy").pixels, nchw(pixels))

    def test_grey_without_an_axis_of_channels(self, tmp_path: Path, noise: Noise) -> None:
        np.save(tmp_path / "x.npy", noise(5, 6, 8))
        np.testing.assert_array_equal(read(tmp_path / "x.npy").pixels[:, 0], noise(5, 6, 8))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats_in_0_to_1(self, tmp_path: Path, dtype: type) -> None:
        levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
        np.save(tmp_path / "x.npy", (levels / 255).astype(dtype))
        np.testing.assert_array_equal(read(tmp_path / "x.npy").pixels[:, 0], levels)

    def test_alpha_is_flattened(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.full((2, 8, 8, 4), [10, 20, 30, 0], dtype=np.uint8))
        pixels = read(tmp_path / "x.npy", background="#010203").pixels
        assert pixels[0, :, 0, 0].tolist() == [1, 2, 3]

    @pytest.mark.parametrize(
        ("images", "labels"), [("images", "labels"), ("x", "y"), ("x_train", "y_train")]
    )
    def test_npz_with_labels(self, tmp_path: Path, noise: Noise, images: str, labels: str) -> None:
        numbers = np.array([2, 0, 1, 2, 2])
        names = np.array(["ape", "bee", "cat"])
        np.savez(tmp_path / "x.npz", **{images: noise(5, 8, 8), labels: numbers}, class_names=names)
        read_back = read(tmp_path / "x.npz")
        assert read_back.labels is not None
        assert read_back.labels.dtype == np.int64
        assert read_back.labels.tolist() == numbers.tolist()
        assert read_back.class_names == ("ape", "bee", "cat")
        np.testing.assert_array_equal(read_back.pixels[:, 0], noise(5, 8, 8))

    def test_an_open_layout_can_be_stated(self, tmp_path: Path, noise: Noise) -> None:
        pixels = noise(5, 3, 8, 3)
        np.savez(tmp_path / "open.npz", pixels)
        with pytest.raises(DataError, match=r"may be \(N, H, W, C\) or .*nhwc=images"):
            read(tmp_path / "open.npz")
        np.savez(tmp_path / "nhwc.npz", nhwc=pixels)
        assert read(tmp_path / "nhwc.npz").pixels.shape == (5, 3, 3, 8)
        np.savez(tmp_path / "nchw.npz", nchw=pixels)
        assert read(tmp_path / "nchw.npz").pixels.shape == (5, 3, 8, 3)

    def test_resizing_acts_on_arrays_as_on_files(self, folder: Path, noise: Noise) -> None:
        np.save(folder / "x.npy", noise(12, 6, 4, 3))
        of_array = read(folder / "x.npy", size=(3, 5), channels=1)
        np.testing.assert_array_equal(of_array.pixels, read(folder, size=(3, 5), channels=1).pixels)


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


class TestIdx:
    @pytest.mark.parametrize("end", ["", ".gz"])
    def test_a_folder_with_both_parts(self, tmp_path: Path, noise: Noise, end: str) -> None:
        for part, count in {"train": 7, "t10k": 3}.items():
            write_idx(tmp_path / f"{part}-images-idx3-ubyte{end}", noise(count, 5, 6))
            write_idx(tmp_path / f"{part}-labels-idx1-ubyte{end}", np.arange(count))
        for split, count in {"train": 7, "test": 3}.items():
            images = load(DataConfig(source=str(tmp_path)), split=split)  # type: ignore[arg-type]
            np.testing.assert_array_equal(images.pixels[:, 0], noise(count, 5, 6))
            assert images.labels is not None
            assert images.labels.tolist() == list(range(count))
        by_file = tmp_path / f"train-images-idx3-ubyte{end}"
        assert len(read(by_file)) == 7
        assert len(load(DataConfig(source=str(by_file)), split="test")) == 3

    def test_cut_off(self, tmp_path: Path, noise: Noise) -> None:
        plain, packed = tmp_path / "a-idx3-ubyte", tmp_path / "b-idx3-ubyte.gz"
        for path in (plain, packed):
            write_idx(path, noise(7, 5, 6))
            path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(DataError, match="declares 210 bytes but has only 201"):
            read(plain)
        with pytest.raises(DataError, match="damaged or cut off"):
            read(packed)

    def test_labels_in_the_place_of_images(self, tmp_path: Path) -> None:
        write_idx(tmp_path / "x-idx3-ubyte", np.arange(40))
        with pytest.raises(DataError, match="begins with 00000801, not 00000803"):
            read(tmp_path / "x-idx3-ubyte")


class TestCifar:
    def write(self, folder: Path, noise: Noise) -> np.ndarray[Any, Any]:
        pixels = noise(6, 3, 32, 32)
        for name, part in {
            "data_batch_1": [0, 1],
            "data_batch_2": [2, 3],
            "test_batch": [4, 5],
        }.items():
            records = [bytes([i]) + pixels[i].tobytes() for i in part]
            (folder / f"{name}.bin").write_bytes(b"".join(records))
        return pixels

    def test_planes_and_labels(self, tmp_path: Path, noise: Noise) -> None:
        pixels = self.write(tmp_path, noise)
        images = read(tmp_path)
        np.testing.assert_array_equal(images.pixels, pixels[:4])
        assert images.labels is not None
        assert images.labels.tolist() == [0, 1, 2, 3]
        assert images.class_names[3] == "cat"
        test = load(DataConfig(source=str(tmp_path)), split="test")
        np.testing.assert_array_equal(test.pixels, pixels[4:])

    def test_cut_off(self, tmp_path: Path, noise: Noise) -> None:
        self.write(tmp_path, noise)
        file = tmp_path / "data_batch_2.bin"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(DataError, match=r"data_batch_2\.bin: has 6145 bytes.*3073"):
            read(tmp_path)


def test_other_sources_have_no_test_part(folder: Path) -> None:
    with pytest.raises(DataError, match="has no test part of its own; give"):
        load(DataConfig(source=str(folder)), split="test")


def test_progress_ends_with_all(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(DataConfig(source=str(folder)), progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (12, 12)
