"""Bytes to floats and back, batches, fingerprints."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unraze.data import Images, batch, contact_sheet, stats, to_float, to_uint8
from unraze.errors import DataError

Noise = Callable[..., np.ndarray[Any, Any]]


def test_every_byte_survives_the_way_there_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    x = to_float(levels)
    assert x.dtype == torch.float32
    assert (x[0].item(), x[255].item()) == (-1.0, 1.0)
    torch.testing.assert_close(
        x.double(), torch.arange(256).double() / 127.5 - 1, atol=1e-7, rtol=0
    )
    np.testing.assert_array_equal(to_uint8(x), levels)


def test_floats_beyond_the_range_are_cut_off() -> None:
    x = torch.tensor([-9.0, -1.004, 1.004, torch.inf, -torch.inf])
    assert to_uint8(x).tolist() == [0, 0, 255, 255, 0]


def test_what_is_no_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="not-a-number"):
        to_uint8(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="float64"):
        to_float(np.zeros(3))


def test_a_batch_is_the_images_asked_for(noise: Noise) -> None:
    pixels = noise(10, 3, 4, 6)
    images = Images.from_arrays(pixels)
    indices = np.array([3, 0, 3, 9])
    flips = np.array([False, True, True, False])
    plain, flipped = batch(images, indices), batch(images, indices, flips)
    assert plain.shape == (4, 3, 4, 6)
    for place, (number, flip) in enumerate(zip(indices, flips, strict=True)):
        one = to_float(pixels[number])
        assert torch.equal(plain[place], one)
        assert torch.equal(flipped[place], one.flip(-1) if flip else one)
    np.testing.assert_array_equal(images.pixels, noise(10, 3, 4, 6))


def test_the_fingerprint_tells_pixels_shape_and_labels_apart(noise: Noise) -> None:
    pixels, labels = noise(4, 1, 4, 6), np.arange(4)
    changed = pixels.copy()
    changed[-1, -1, -1, -1] ^= 1
    sets = [
        Images.from_arrays(pixels),
        Images.from_arrays(changed),
        Images.from_arrays(pixels.reshape(4, 1, 6, 4)),
        Images.from_arrays(pixels, labels=labels),
        Images.from_arrays(pixels, labels=labels[::-1].copy()),
    ]
    assert len({images.fingerprint for images in sets}) == len(sets)
    again = Images.from_arrays(noise(4, 1, 4, 6), labels=labels.astype(np.uint8), source="other")
    assert again.fingerprint == sets[3].fingerprint


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((4, 8, 8), {}, r"\(N, C, H, W\)"),
        ((4, 2, 8, 8), {}, "C = 1 or 3"),
        ((0, 1, 8, 8), {}, "holds no pixels"),
        ((4, 1, 8, 8), {"names": ["one"]}, "1 names for 4 images"),
        ((4, 1, 8, 8), {"labels": np.array([0, 1, 2, 3]), "class_names": ("a", "b")}, "0 to 1"),
    ],
)
def test_arrays_that_are_no_images(shape: tuple[int, ...], options: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Images.from_arrays(np.zeros(shape, np.uint8), **options)


def test_stats_are_those_of_the_floats(noise: Noise) -> None:
    pixels = noise(2000, 3, 4, 5)
    pixels[:, 1] //= 3
    images = Images.from_arrays(pixels, labels=np.arange(2000) % 3, class_names=("a", "b", "c"))
    x = pixels.astype(np.float64) / 127.5 - 1
    found = stats(images)
    assert (found.count, found.size, found.channels) == (2000, (4, 5), 3)
    np.testing.assert_allclose(found.mean, x.mean((0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(found.spread, x.std((0, 2, 3)), atol=1e-12)
    assert found.sigma_data == pytest.approx(np.sqrt((x**2).mean()), abs=1e-12)
    assert found.classes == {"a": 667, "b": 667, "c": 666}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_contact_sheet_shows_images_in_rows(noise: Noise, channels: int) -> None:
    pixels = noise(7, channels, 4, 5)
    sheet = contact_sheet(Images.from_arrays(pixels), columns=3)
    assert sheet.shape == (2 + 3 * 6, 2 + 3 * 7, channels)
    np.testing.assert_array_equal(sheet[8:12, 9:14], pixels[4].transpose(1, 2, 0))
    assert (sheet[14:, 9:] == 255).all()
    small = contact_sheet(Images.from_arrays(pixels), limit=2)
    np.testing.assert_array_equal(small[2:6, 9:14], pixels[6].transpose(1, 2, 0))
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    with pytest.raises(ValueError, match="columns = 0"):
        contact_sheet(Images.from_arrays(pixels), columns=0)
