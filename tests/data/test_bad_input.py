"""Bad input: one line that names the thing, the value and the remedy, and nothing changed."""

import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unraze.config import DataConfig
from unraze.data import Images, load
from unraze.errors import DataError, InputError

Noise = Callable[..., np.ndarray[Any, Any]]


def read(source: Path | str, **options: Any) -> Images:
    return load(DataConfig(source=str(source), **options))


def refused(source: Path | str, *says: str, **options: Any) -> None:
    """Asserts that loading fails in one line that says all that, and changes nothing on disk."""
    roots = [Path(os.environ["UNRAZE_CACHE"])]
    if isinstance(source, Path):
        roots.append(source.parent)
    before = [sorted(root.rglob("*")) for root in roots]
    with pytest.raises(InputError) as caught:
        read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for words in says:
        assert words in message
    assert [sorted(root.rglob("*")) for root in roots] == before


@pytest.mark.parametrize(
    "name",
    [
        *("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "data_batch_1.bin", "x.npy"),
        *("x.npz", "x.zip", "x.tar", "{0..0}.tar", "odd"),
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    file = tmp_path / name.replace("{0..0}", "0")
    os.mkfifo(file)
    refused(tmp_path / name, str(file) if "{" in name else name)
    if name in ("x.npy", "x.npz", "x.zip", "odd"):  # those are no images of a folder
        refused(tmp_path, "holds no images")
    elif name != "{0..0}.tar":
        refused(tmp_path, file.name if name != "x.tar" else "holds no images")


def test_a_pipe_in_the_place_of_labels_is_not_waited_for(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 4, 4)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(32))
    os.mkfifo(tmp_path / "train-labels-idx1-ubyte")
    refused(tmp_path, "train-labels-idx1-ubyte: cannot be read (is not a plain file)")


class Bomb:
    """What a pickle may do when it is loaded: this one leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "zero bytes": (lambda good: b"", "is empty, 0 bytes"),
    "truncated": (lambda good: good[: len(good) // 2], "is damaged"),
    "no image": (lambda good: b"hello", "is in no image format"),
    "another kind": (lambda good: b"%!PS-Adobe-3.0 EPSF-3.0\n", "is in no image format"),
    "bomb": (lambda good: png_header(60_000, 60_000), "declares more than 100 million pixels"),
    "smaller bomb": (lambda good: png_header(10_001, 10_000), "10001 x 10000"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("options", [{}, {"size": (6, 4), "channels": 3}])
def test_an_unreadable_image_is_named_with_its_reason(
    folder: Path, kind: str, options: dict[str, Any]
) -> None:
    spoil, reason = BAD_FILES[kind]
    bad = folder / "5.png"
    bad.write_bytes(spoil(bad.read_bytes()))
    refused(folder, str(folder), "1 of 12", "5.png", reason, "--skip-bad", **options)
    images = read(folder, skip_bad=True, **options)
    assert images.skipped == ("5.png",)
    assert len(images) == 11 == len(images.names)
    assert "5.png" not in images.names


def test_labels_stay_with_their_images_when_one_is_left_out(tmp_path: Path) -> None:
    for level, place in enumerate(["a/0.png", "a/1.png", "b/2.png"]):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), level).save(tmp_path / place)
    (tmp_path / "a" / "0.png").write_bytes(b"")
    images = read(tmp_path, skip_bad=True)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]
    assert images.pixels[:, 0, 0, 0].tolist() == [1, 2]


def test_many_bad_ones_are_counted_and_the_first_named(folder: Path) -> None:
    for number in range(8):
        (folder / f"{number}.png").write_bytes(b"")
    refused(folder, "8 of 12", "0.png is empty", "2.png", "and 5 more", "--skip-bad")


def test_where_all_are_bad_none_can_be_skipped(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"")
    refused(folder, "12 of 12", "give other images", skip_bad=True)
    refused(folder, "12 of 12", size=(4, 4), channels=1, skip_bad=True)


def test_a_link_that_leads_nowhere(folder: Path) -> None:
    (folder / "12.png").symlink_to(folder / "gone.png")
    refused(folder, "12.png cannot be opened: No such file")


def test_mixed_sizes(folder: Path) -> None:
    Image.new("RGB", (30, 20)).save(folder / "large.png")
    refused(folder, "2 sizes", "6 x 4 (12)", "20 x 30 (1)", "--size 6x4")


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no images", "give a folder")
    (tmp_path / "empty" / "a.txt").write_text("")
    refused(tmp_path / "empty", "1 file of other kinds")


def test_a_name_that_is_not_printable_stays_one_line(folder: Path) -> None:
    (folder / "a\nb.png").write_bytes(b"")
    refused(folder, r"a\nb.png")
    refused("no\nsuch", r"no\nsuch")


@pytest.mark.parametrize("source", ["nowhere", "x" * 5000, "nul\0byte"])
def test_nothing_there(source: str) -> None:
    refused(source, "there is no such file or folder", "digits and fashion-mnist")


def test_did_you_mean() -> None:
    refused("fashion_mnist", "did you mean 'fashion-mnist'?")
    refused("digit", "did you mean 'digits'?")
    refused("", "no data is given")


def test_an_absurd_size(folder: Path) -> None:
    refused(folder, "size = 100000 x 100000", "give a smaller", size=(100_000, 100_000))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x.png", "single image"),
        ("x.tar.gz", "unpack it"),
        ("x.txt", "no kind of file that is read"),
        ("x.pkl", "is a pickle"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    refused(tmp_path / name, name, says)


class TestPickles:
    def test_arrays_of_objects_are_refused_unopened(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace"
        objects = np.array([Bomb(trace)], dtype=object)
        np.save(tmp_path / "x.npy", objects, allow_pickle=True)
        np.savez(tmp_path / "x.npz", images=objects, allow_pickle=True)
        refused(tmp_path / "x.npy", "holds Python objects", "pickle", "np.stack")
        refused(tmp_path / "x.npz", "holds Python objects", "pickle", "np.stack")
        (tmp_path / "y.npy").write_bytes(pickle.dumps(Bomb(trace)))
        refused(tmp_path / "y.npy", "is not a numpy array", "pickle")
        assert not trace.exists()

    def test_cifars_python_version_is_refused_unopened(self, tmp_path: Path) -> None:
        trace, folder = tmp_path / "trace", tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        for name in ("data_batch_1", "test_batch", "batches.meta"):
            (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
        for source in (folder, folder / "data_batch_1"):
            refused(source, "pickle", "binary version", "cifar-10-binary")
        assert not trace.exists()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 8, 8), np.int64), "holds int64"),
        (np.zeros((4, 8, 8), bool), "holds bool"),
        (np.full((4, 8, 8), -1.0), "floats from -1 to -1"),
        (np.full((4, 8, 8), 255.0), "bring them to 0 … 1"),
        (np.full((4, 8, 8), np.nan), "floats from nan"),
        (np.zeros((8, 8), np.uint8), "shape (8, 8)"),
        (np.zeros((16, 16, 3), np.uint8), "shape (16, 16, 3)"),
        (np.zeros((4, 8, 8, 2), np.uint8), "C = 1, 3 or 4"),
        (np.zeros((0, 8, 8), np.uint8), "is empty"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, array: np.ndarray[Any, Any], says: str) -> None:
    np.save(tmp_path / "x.npy", array)
    refused(tmp_path / "x.npy", "x.npy", says)


def test_a_numpy_file_that_is_cut_off(tmp_path: Path, noise: Noise) -> None:
    np.save(tmp_path / "x.npy", noise(9, 8, 8))
    data = (tmp_path / "x.npy").read_bytes()
    for length in (0, 7, 40, 300):
        (tmp_path / "x.npy").write_bytes(data[:length])
        refused(tmp_path / "x.npy", "x.npy")
    np.savez(tmp_path / "x.npz", images=noise(9, 8, 8))
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    refused(tmp_path / "x.npz", "x.npz", "save it again")


def npy_header(text: str) -> bytes:
    """An `.npy` file of this header and 64 bytes."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(64)


def uint8_header(shape: str) -> bytes:
    return npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (uint8_header("(1000000000, 1000, 1000)"), "declares the shape (1000000000, 1000, 1000)"),
        (uint8_header("(4611686018427387904, 4, 4)"), "declares the shape"),
        (uint8_header("(-1, -8, 8)"), "declares the shape (-1, -8, 8)"),
        (uint8_header("(1, 8, 8), (2L"), "is damaged or cut off"),  # no tokens
        (uint8_header("(1, 8 8)"), "is damaged or cut off"),
        (npy_header("[" * 5000), "is damaged or cut off"),
        (npy_header("x" * 60_000), "is damaged or cut off"),
        (npy_header("{}"), "is damaged or cut off"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99), "is damaged or cut off"),
    ],
)
def test_a_damaged_header_of_an_array(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    refused(tmp_path / "x.npy", "x.npy", says, "save it again")
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", packing) as archive:
            archive.writestr("images.npy", content)
        refused(tmp_path / "x.npz", "x.npz", says, "save it again")


def test_an_archive_that_declares_more_than_it_can_hold(tmp_path: Path) -> None:
    content = uint8_header("(1000000000, 1000, 1000)")
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24  # the size unpacked, in the directory
    assert data[place : place + 4] == struct.pack("<I", len(content))
    data[place : place + 4] = struct.pack("<I", 2**32 - 2)
    (tmp_path / "x.npz").write_bytes(data)
    refused(tmp_path / "x.npz", "declares the shape", "save it again")


@pytest.mark.parametrize("place", ["method", "encrypted", "data", "names"])
def test_a_damaged_archive_of_arrays(tmp_path: Path, noise: Noise, place: str) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=noise(5, 8, 8))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    match place:
        case "method":  # one that nobody knows
            data[directory + 10] = data[8] = 77
        case "encrypted":
            data[directory + 8] |= 1
            data[6] |= 1
        case "data":  # a block of a type that deflate does not have
            data[30 + len("images.npy") + struct.unpack("<H", data[28:30])[0]] = 0xFF
        case "names":
            np.savez(tmp_path / "x.npz", images=noise(5, 8, 8), labels=np.arange(5), class_names=5)
            data = bytearray((tmp_path / "x.npz").read_bytes())
    (tmp_path / "x.npz").write_bytes(data)
    refused(tmp_path / "x.npz", "x.npz", "; save ")


def test_arrays_with_a_few_wrong_bytes_are_read_or_refused(tmp_path: Path, noise: Noise) -> None:
    draw = random.Random(0)
    whole = {}
    for name, save in (("x.npy", np.save), ("x.npz", np.savez), ("y.npz", np.savez_compressed)):
        buffer = io.BytesIO()
        save(buffer, noise(5, 8, 8))  # type: ignore[operator]
        whole[name] = buffer.getvalue()
    for _ in range(300):
        name = draw.choice(sorted(whole))
        data = bytearray(whole[name])
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(min(len(data), 200))] = draw.randrange(256)
        (tmp_path / name).write_bytes(data)
        with suppress(DataError):
            read(tmp_path / name)


def test_memory_that_does_not_suffice(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise MemoryError

    np.savez(tmp_path / "x.npz", images=noise(5, 8, 8))
    monkeypatch.setattr(np.lib.format, "read_array", full)
    refused(tmp_path / "x.npz", "x.npz", "does not fit in memory", "np.save")


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_image_in_a_zip_is_named(tmp_path: Path, noise: Noise, packing: int) -> None:
    picture = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(picture, "bmp")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", packing) as archive:
        archive.writestr("good.bmp", picture.getvalue())
        archive.writestr("spoilt.bmp", picture.getvalue())
    data = bytearray((tmp_path / "x.zip").read_bytes())
    start = data.rindex(b"spoilt.bmp", 0, data.index(b"PK\x01\x02")) + len("spoilt.bmp")
    data[start + 12 : start + 32] = b"\xff" * 20
    (tmp_path / "x.zip").write_bytes(data)
    refused(tmp_path / "x.zip", "1 of 2", "spoilt.bmp", "--skip-bad")
    assert len(read(tmp_path / "x.zip", skip_bad=True)) == 1


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.arange(4), "int64 (4,)"),
        (np.arange(5) - 1, "from -1 to 3"),
        (np.zeros(5), "float64"),
        (np.full(5, 2**40), "number the classes from 0"),
    ],
)
def test_labels_that_do_not_fit(
    tmp_path: Path, noise: Noise, labels: np.ndarray[Any, Any], says: str
) -> None:
    np.savez(tmp_path / "x.npz", images=noise(5, 8, 8), labels=labels)
    refused(tmp_path / "x.npz", says)


def test_an_npz_without_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", weights=np.zeros(3))
    refused(tmp_path / "x.npz", "has weights", "images, x, arr_0")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(folder: Path) -> None:
    (folder / "3.png").chmod(0)
    refused(folder, "3.png cannot be opened: Permission denied")
    folder.chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read"):
            read(folder)
    finally:
        folder.chmod(0o755)
