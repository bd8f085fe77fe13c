"""Pictures and films: every pixel, every frame, and the recipe, whole or not at all."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from unraze import pictures
from unraze.errors import InputError, UnrazeError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[])),  # lone surrogates too: odd file names
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECIPES = st.dictionaries(st.text(st.characters(exclude_categories=[])), VALUES, max_size=5)


def images(count: int, channels: int = 1, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    shape = (count, *size, channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def frames(count: int, channels: int = 1) -> list[Image.Image]:
    return pictures.to_pil(images(count, channels, (10, 12)))


def one_line(error: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_pixel_in_its_place(channels: int) -> None:
    x = images(5, channels)
    shown = np.asarray(pictures.grid(x, columns=3, padding=2, upscale=3))
    assert shown.shape[:2] == (2 * (4 * 3 + 2) + 2, 3 * (6 * 3 + 2) + 2)
    shown = shown.reshape(*shown.shape[:2], channels)
    paper = np.ones(shown.shape[:2], dtype=bool)
    for k in range(5):
        top, left = 2 + k // 3 * 14, 2 + k % 3 * 20
        for i in range(3):
            for j in range(3):
                part = shown[top + i : top + 12 : 3, left + j : left + 18 : 3]
                assert np.array_equal(part, x[k])
        paper[top : top + 12, left : left + 18] = False
    assert (shown[paper] == 255).all()


@pytest.mark.parametrize(("count", "side"), [(64, 28), (16, 28), (64, 8), (64, 32), (16, 64)])
def test_a_grid_of_small_images_is_comfortably_wide(count: int, side: int) -> None:
    assert 512 <= pictures.grid(images(count, 1, (side, side))).width <= 900


def test_a_tensor_becomes_the_pictures_it_holds() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 7.0]).view(1, 1, 1, 4)
    (picture,) = pictures.to_pil(x)
    assert picture.mode == "L"
    assert np.asarray(picture).tolist() == [[0, 128, 255, 255]]
    assert [p.mode for p in pictures.to_pil(x.expand(2, 3, 1, 4))] == ["RGB", "RGB"]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 6, 1), "u1"), ((1, 4, 6, 2), "u1"), ((1, 4, 6, 1), "f4")]
)
def test_what_is_no_array_of_pictures_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match=r"give uint8 \(N, H, W, C\)"):
        pictures.grid(np.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("option", [{"columns": 0}, {"padding": -1}, {"upscale": 0}])
def test_a_grid_with_less_than_nothing_is_refused(option: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} = "):
        pictures.grid(images(2), **option)


def test_beside_keeps_the_pixels_apart() -> None:
    a, b = frames(2)
    whole = np.asarray(pictures.beside([a, b], gap=5))
    assert np.array_equal(whole[:, :12], np.asarray(a))
    assert np.array_equal(whole[:, 17:], np.asarray(b))
    assert (whole[:, 12:17] == 255).all()


# --------------------------------------------------------------------------------------- recipes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(recipe=RECIPES, name=st.sampled_from(["a.png", "film.png", "film.gif"]))
def test_a_recipe_comes_back_as_it_was(recipe: dict[str, Any], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.png":
        pictures.write_png(frames(1)[0], path, recipe)
    else:
        pictures.write_film(frames(2), path, recipe)
    assert pictures.read_recipe(path) == recipe


def test_a_png_says_in_words_what_it_is(tmp_path: Path) -> None:
    recipe = {"kind": "grid", "seed": 3, "class": None, "images": [0, 4]}
    pictures.write_png(frames(1)[0], tmp_path / "a.png", recipe)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["Software"] == "unraze"
        assert picture.info["Description"] == "kind grid, seed 3"


@pytest.mark.parametrize("name", ["a.png", "film.png", "film.gif"])
def test_the_same_again_is_the_same_bytes(name: str, tmp_path: Path) -> None:
    written = []
    for recipe in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):  # the order of its keys is no part of it
        if name == "a.png":
            pictures.write_png(frames(1, 3)[0], tmp_path / name, recipe)
        else:
            pictures.write_film(frames(4, 3), tmp_path / name, recipe)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_a_file_without_a_recipe_says_so(tmp_path: Path) -> None:
    (tmp_path / "none.png").write_bytes(b"")
    frames(1)[0].save(tmp_path / "plain.png")
    frames(1)[0].save(tmp_path / "other.gif", comment=b"made with another program")
    frames(1)[0].save(tmp_path / "photo.jpg")
    for name, says in {
        "absent.png": "no such file",
        "none.png": "cannot be read as a picture",
        "photo.jpg": "no PNG or GIF",
        "plain.png": "was not made by unraze",
        "other.gif": "was not made by unraze",
        "": "is not a file",
    }.items():
        with pytest.raises(InputError) as error:
            pictures.read_recipe(tmp_path / name)
        one_line(error, name, says)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_a_broken_recipe_is_an_error_too(text: str, tmp_path: Path) -> None:
    info = pictures.PngInfo()
    info.add_text(pictures.KEY, text)
    frames(1)[0].save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(InputError) as error:
        pictures.read_recipe(tmp_path / "a.png")
    one_line(error, "a.png", "its recipe cannot be read")


# ----------------------------------------------------------------------------------------- films


@pytest.mark.parametrize("ending", ["gif", "png"])
def test_a_grey_film_holds_every_frame_exactly_and_as_long_as_asked(
    ending: str, tmp_path: Path
) -> None:
    shown, path = frames(5), tmp_path / f"film.{ending}"
    pictures.write_film(shown, path, {}, milliseconds=120, hold_last_ms=900)
    with Image.open(path) as film:
        assert film.n_frames == 5
        assert film.info["loop"] == 0
        for k, frame in enumerate(shown):
            film.seek(k)
            assert np.array_equal(np.asarray(film.convert("L")), np.asarray(frame))
            assert film.info["duration"] == (900 if k == 4 else 120)


def test_a_film_of_few_colours_is_exact_in_both_formats(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 3)).astype(np.uint8)
    indices = np.random.default_rng(1).integers(0, 40, (4, 16, 16))
    # blocks of two: a palette that samples every other pixel sees each
    shown = pictures.to_pil(colours[indices].repeat(2, axis=1).repeat(2, axis=2))
    for name in ("film.gif", "film.png"):
        pictures.write_film(shown, tmp_path / name, {})
        with Image.open(tmp_path / name) as film:
            for k, frame in enumerate(shown):
                film.seek(k)
                assert np.array_equal(np.asarray(film.convert("RGB")), np.asarray(frame))


def test_a_films_frames_carry_time_and_a_bar_that_fills() -> None:
    states = [images(4, 3, (8, 8)) for _ in range(3)]
    made = pictures.film_frames(states, [1000, 500, 0], columns=2)
    plain = pictures.film_frames(states, [1000, 500, 0], columns=2, caption=False)
    assert plain == [pictures.grid(state, columns=2) for state in states]
    small = pictures.film_frames(states, [1000, 500, 0], columns=2, upscale=3, caption=False)
    assert small[0] == pictures.grid(states[0], columns=2, upscale=3)
    filled = []
    for frame, bare in zip(made, plain, strict=True):
        pixels = np.asarray(frame)
        assert np.array_equal(pixels[: bare.height], np.asarray(bare))
        bar = pixels[bare.height + 3, :, 0]
        filled.append(int((bar == 0x33).sum()))
        assert (pixels[bare.height + 8 :] < 128).any()  # the words
    assert filled[0] <= 1
    assert abs(filled[1] - made[0].width / 2) <= 1
    assert filled[2] == made[0].width
    with pytest.raises(ValueError, match="shorter"):
        pictures.film_frames(states, [1, 0])


def test_a_film_that_cannot_be_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"webm.*\.gif or \.png"):
        pictures.write_film(frames(2), tmp_path / "film.webm", {})
    with pytest.raises(InputError, match="at least one frame"):
        pictures.write_film([], tmp_path / "film.gif", {})
    with pytest.raises(ValueError, match="differ in size"):
        pictures.write_film([frames(1)[0], Image.new("L", (3, 3))], tmp_path / "film.gif", {})
    with pytest.raises(ValueError, match="milliseconds = 5"):
        pictures.write_film(frames(2), tmp_path / "film.gif", {}, milliseconds=5)
    with pytest.raises(ValueError, match="not JSON compliant"):
        pictures.write_png(frames(1)[0], tmp_path / "a.png", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------- whole or not


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder.png", tmp_path / ("x" * 300)):
        with pytest.raises(UnrazeError) as error:
            pictures.write_png(frames(1)[0], path, {})
        one_line(error, str(path), "cannot be written")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder.png"}
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["a.png", "film.gif"])
def test_a_full_disk_leaves_the_old_file_and_no_half_of_a_new_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")

    def cut_off(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(bytes(data)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    one = name == "a.png"
    with pytest.raises(UnrazeError) as error:
        pictures.write_png(frames(1)[0], path, {}) if one else pictures.write_film(
            frames(3), path, {}
        )
    one_line(error, name, "the disk is full", "free some space")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [name]
