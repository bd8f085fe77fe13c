"""Colour, transparency, orientation and size, against their definitions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unraze.config import DataConfig
from unraze.data import Images, load
from unraze.data.shape import flatten
from unraze.errors import InputError

Noise = Callable[..., np.ndarray[Any, Any]]


def read(source: Path, **options: Any) -> Images:
    return load(DataConfig(source=str(source), **options))


def test_flattening_is_the_rounded_mean_for_every_alpha() -> None:
    p, a = np.meshgrid(np.arange(256), np.arange(256))
    flat = flatten(p[..., None].astype(np.uint8), a[..., None].astype(np.uint8), (200, 200, 200))
    exact = (p * a + 200 * (255 - a)) / 255
    assert np.abs(flat[..., 0] - exact).max() < 0.5 + 1e-9


@pytest.mark.parametrize(("background", "expected"), [("white", 177), ("black", 50)])
def test_alpha_is_flattened_onto_the_stated_colour(
    tmp_path: Path, background: str, expected: int
) -> None:
    # 100 · 128/255 + b · 127/255 = 50.2 + (127 or 0)
    Image.new("LA", (4, 4), (100, 128)).save(tmp_path / "x.png")
    images = read(tmp_path, background=background)
    assert images.pixels.shape == (1, 1, 4, 4)
    assert set(images.pixels.flat) == {expected}


def test_a_coloured_background_makes_grey_with_alpha_colour(tmp_path: Path) -> None:
    Image.new("LA", (4, 4), (100, 0)).save(tmp_path / "x.png")
    assert read(tmp_path, background="#0a141e").pixels[0, :, 0, 0].tolist() == [10, 20, 30]


def test_hidden_colours_do_not_bleed_into_edges(tmp_path: Path) -> None:
    """Clear red beside opaque white: flattened onto white, resized, all of it stays white."""
    layers = np.zeros((8, 8, 4), dtype=np.uint8)
    layers[..., 0] = 255
    layers[:, 4:] = 255
    Image.fromarray(layers).save(tmp_path / "x.png")
    assert (read(tmp_path, size=(5, 3)).pixels == 255).all()


def test_a_palette_with_a_clear_colour(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 250, 0, 0])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / "x.png", transparency=0)
    pixels = read(tmp_path, background="blue").pixels[0]
    assert pixels[:, 0, 0].tolist() == [0, 0, 255]
    assert pixels[:, 1, 1].tolist() == [250, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, noise: Noise, orientation: int) -> None:
    upright = noise(3, 5)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "y.png")
    np.testing.assert_array_equal(read(tmp_path).pixels[:, 0], np.stack([upright, upright]))


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(levels).save(tmp_path / "x.png")
    pixels = read(tmp_path).pixels
    np.testing.assert_array_equal(pixels[0, 0].reshape(-1), np.arange(256))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, [255]),
        ("L", 7, [7]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
        ("CMYK", (0, 0, 0, 255), [0, 0, 0]),
    ],
)
def test_modes_decide_the_channels(
    tmp_path: Path, mode: str, value: Any, expected: list[int]
) -> None:
    Image.new(mode, (4, 4), value).save(tmp_path / "x.tif")
    assert read(tmp_path).pixels[0, :, 2, 2].tolist() == expected


def test_one_colour_image_makes_all_colour_unless_told(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "b.png")
    assert read(tmp_path).pixels[:, :, 0, 0].tolist() == [[9, 9, 9], [255, 0, 0]]
    # the luma of red: 0.299 · 255 = 76.2
    assert read(tmp_path, channels=1).pixels[:, :, 0, 0].tolist() == [[9], [76]]
    assert read(tmp_path, channels=3, size=(4, 4)).pixels.shape == (2, 3, 4, 4)


def test_of_a_film_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), level) for level in (40, 200)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert set(read(tmp_path).pixels.flat) == {40}


class TestFit:
    """A picture of 12 × 4 with a black, a grey and a white square, brought to a square."""

    @pytest.fixture
    def wide(self, tmp_path: Path) -> Path:
        levels = np.repeat(np.array([0, 100, 255], dtype=np.uint8), 4)
        Image.fromarray(np.tile(levels, (4, 1))).save(tmp_path / "x.png")
        return tmp_path

    def test_crop_keeps_the_middle(self, wide: Path) -> None:
        assert set(read(wide, size=(4, 4), fit="crop").pixels.flat) == {100}

    def test_pad_adds_background(self, wide: Path) -> None:
        pixels = read(wide, size=(12, 12), fit="pad", background="#090909").pixels[0, 0]
        assert set(pixels[:4].flat) == {9} == set(pixels[8:].flat)
        assert pixels[5].tolist() == [0] * 4 + [100] * 4 + [255] * 4

    def test_stretch_keeps_all(self, wide: Path) -> None:
        row = read(wide, size=(3, 3), fit="stretch").pixels[0, 0, 1]
        assert row[0] < 20
        assert abs(int(row[1]) - 100) < 25
        assert row[2] > 235

    @pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
    @pytest.mark.parametrize("size", [(1, 1), (3, 7), (40, 2), (5, 64)])
    def test_every_fit_gives_the_size(self, wide: Path, fit: str, size: tuple[int, int]) -> None:
        assert read(wide, size=size, fit=fit).pixels.shape == (1, 1, *size)

    def test_crop_is_resize_then_centre_crop(self, tmp_path: Path) -> None:
        """A smooth ramp survives to within a level: the middle half of it, halved."""
        ramp = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (32, 1))
        Image.fromarray(ramp).save(tmp_path / "x.png")
        row = read(tmp_path, size=(16, 16)).pixels[0, 0, 8].astype(float)
        expected = 255 * (16 + 2 * np.arange(16) + 0.5) / 63
        assert np.abs(row - expected).max() <= 1

    def test_reducing_averages(self, tmp_path: Path) -> None:
        """A chessboard becomes its mean, not one of its colours."""
        board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
        Image.fromarray(board).save(tmp_path / "x.png")
        middle = read(tmp_path, size=(8, 8)).pixels[0, 0, 2:6, 2:6].astype(float)
        assert np.abs(middle - 127.5).max() < 3


@pytest.mark.parametrize("name", ["whitte", "", "#12345", "#ffffff80", "transparent"])
def test_a_bad_colour_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"background = '{name}': is not an opaque colour; give"):
        read(folder, background=name)
