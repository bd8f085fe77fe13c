"""What is measured against: the run's own images, and only if they are those it was trained on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluated import HELD_OUT, TRAINING, Small, digits_file, small_run
from unraze.config import DataConfig
from unraze.data import Images, load
from unraze.errors import CheckpointError, DataError, InputError
from unraze.evaluate.reference import of_run, of_source, require_same_shape
from unraze.generate import Model, load as load_model


def write_folder(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def noise(count: int, shape: tuple[int, ...] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)


def rows(images: Images) -> set[bytes]:
    return {one.tobytes() for one in images.pixels}


def test_a_run_is_measured_against_what_it_did_not_see(model: Model) -> None:
    reference = of_run(model)
    assert (len(reference.training), len(reference.held_out)) == (TRAINING, HELD_OUT)
    assert reference.training.fingerprint == model.data
    assert not rows(reference.training) & rows(reference.held_out)
    assert not reference.flip


def test_a_folder_of_a_run_is_divided_as_it_was_for_training(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", noise(60))
    run = small_run(tmp_path / "run", folder, {"data.held_out": 0.3, "data.flip": True})
    reference = of_run(load_model(run))
    assert len(reference.training) + len(reference.held_out) == 60
    assert not rows(reference.training) & rows(reference.held_out)
    assert reference.flip


def test_images_that_are_not_those_of_the_training_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", noise(60))
    run = small_run(tmp_path / "run", folder, {"data.held_out": 0.3})
    (folder / "000.png").unlink()
    (folder / "001.png").unlink()  # one of each part, or two of the same: one of them counts
    Image.fromarray(255 - noise(1)[0]).save(folder / "more.png")
    Image.fromarray(noise(2)[1] // 2).save(folder / "more2.png")
    with pytest.raises(CheckpointError, match=r"not those it was trained on.*bring them"):
        of_run(load_model(run))


def test_images_that_were_trained_on_cannot_be_called_held_out_later(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", noise(60))
    run = small_run(tmp_path / "run", folder, {"data.held_out": 0.0})
    with pytest.raises(DataError, match=r"held_out = 0 holds no images back.*--against IMAGES"):
        of_run(load_model(run))
    file = run / "config.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("held_out = 0.0", "held_out = 0.3"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"not those it was trained on"):
        of_run(load_model(run))


def test_images_that_are_gone_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures", noise(30))
    run = small_run(tmp_path / "run", folder, {"data.held_out": 0.3})
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"pictures: there is no such file or folder"):
        of_run(load_model(run))


def test_a_conditional_run_needs_held_out_labels(ready: Small, tmp_path: Path) -> None:
    file = digits_file(tmp_path / "unlabelled.npz", test_labels=False)
    run = small_run(tmp_path / "run", file, {"train.classes": True})
    with pytest.raises(DataError, match=r"held-out images have no labels.*10 classes"):
        of_run(load_model(run))
    plain = small_run(tmp_path / "plain", file)  # no class, no need
    assert of_run(load_model(plain)).held_out.labels is None


def test_held_out_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    file = digits_file(tmp_path / "digits.npz")
    run = small_run(tmp_path / "run", file, {"train.classes": True})
    with np.load(file) as opened:
        arrays = dict(opened)
    arrays["y_test"] = arrays["y_test"] + 5
    np.savez(file, **arrays)
    with pytest.raises(DataError, match=r"held-out images are of 15 classes.*10 classes"):
        of_run(load_model(run))


def test_a_known_set_has_its_own_two_parts() -> None:
    reference = of_source(DataConfig(source="digits"))
    assert (len(reference.training), len(reference.held_out)) == (1500, 297)


def test_a_folder_is_cut_in_halves_by_what_its_images_are(tmp_path: Path) -> None:
    images = noise(200)
    there = of_source(DataConfig(source=str(write_folder(tmp_path / "there", images))))
    back = of_source(DataConfig(source=str(write_folder(tmp_path / "back", images[::-1]))))
    assert len(there.training) + len(there.held_out) == 200
    assert 70 <= len(there.held_out) <= 130  # 200 throws of a coin: 4 standard deviations are 28
    assert rows(there.held_out) == rows(back.held_out)
    assert not rows(there.training) & rows(there.held_out)


def test_too_few_to_be_halved_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of fewer than 20 none is held out"):
        of_source(DataConfig(source=str(write_folder(tmp_path / "few", noise(10)))))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((9, 8), "images of 9 x 8 grey, but digits has 8 x 8 grey; .*--size and --channels"),
        ((8, 8, 3), "images of 8 x 8 colour, but digits has 8 x 8 grey"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...], says: str) -> None:
    folder = write_folder(tmp_path / "pictures", noise(3, shape))
    reference = of_source(DataConfig(source="digits"))
    with pytest.raises(InputError, match=says):
        require_same_shape(load(DataConfig(source=str(folder))), reference)
    require_same_shape(reference.training, reference)
