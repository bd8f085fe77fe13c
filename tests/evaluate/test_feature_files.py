"""Networks of features on disk: what is kept comes back bit for bit, or is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from unraze.errors import CheckpointError
from unraze.evaluate import feature_training
from unraze.evaluate.feature_files import Score, read, weights_hash, write
from unraze.evaluate.feature_networks import Net
from unraze.evaluate.feature_training import Recipe, encoded, network, trained
from unraze.evaluate.stage import finish

RECIPES = (
    Recipe("a", "labels", "residual", seed=1, steps=5, batch=16, lr=3e-3),
    Recipe("b", "labels", "depthwise", seed=2, steps=5, batch=16, lr=3e-3),
    Recipe("c", "contrast", "residual", seed=3, steps=5, batch=16, lr=3e-3),
    Recipe("d", "fill in", "depthwise", seed=4, steps=5, batch=16, lr=3e-3),
)
IDS = [recipe.objective + " " + recipe.design for recipe in RECIPES]
SHAPE, CLASSES = (1, 16, 12), 3
PIXELS = np.random.default_rng(0).integers(0, 256, (40, *SHAPE)).astype(np.uint8)
SCORE = Score(0.1 + 0.2, 40, "ab12")


def made(recipe: Recipe) -> Net:
    return finish(trained(recipe, PIXELS, np.arange(40) % CLASSES, CLASSES))


def blank(recipe: Recipe) -> Net:
    """A network to read into, of other first weights."""
    return network(replace(recipe, seed=99), SHAPE, CLASSES)


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Net]:
    net = made(RECIPES[0])
    file = tmp_path / "net.safetensors"
    write(file, net, RECIPES[0], SCORE)
    return file, net


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_a_kept_network_gives_the_same_features_bit_for_bit(tmp_path: Path, recipe: Recipe) -> None:
    net = made(recipe)
    file = tmp_path / "deep" / "er" / "net.safetensors"
    write(file, net, recipe, SCORE)
    again, score = read(file, blank(recipe), recipe)
    assert score == SCORE
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    np.testing.assert_array_equal(encoded(again, PIXELS), encoded(net, PIXELS))
    assert weights_hash(again, recipe) == weights_hash(net, recipe)
    if recipe.objective == "labels":
        np.testing.assert_array_equal(
            encoded(again, PIXELS, head=True), encoded(net, PIXELS, head=True)
        )
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_matrices_take_half_the_bytes_and_what_was_only_for_training_none(tmp_path: Path) -> None:
    for recipe in RECIPES:
        file = tmp_path / "net.safetensors"
        write(file, made(recipe), recipe, SCORE)
        tensors = safetensors.torch.load_file(file)
        for name, value in tensors.items():
            if value.is_floating_point():
                assert value.dtype == (torch.float16 if value.dim() >= 2 else torch.float32), name
        has_head = any(name.startswith("head.") for name in tensors)
        assert has_head == (recipe.objective == "labels")


def test_the_hash_is_of_the_weights_alone(tmp_path: Path, kept: tuple[Path, Net]) -> None:
    file, net = kept
    other = tmp_path / "elsewhere" / "another name"
    write(other, net, RECIPES[0], Score(0.5, 7, "cd"))
    again, _ = read(other, blank(RECIPES[0]), RECIPES[0])
    assert weights_hash(again, RECIPES[0]) == weights_hash(net, RECIPES[0])
    with safetensors.safe_open(file, framework="pt") as opened:
        stated = json.loads(opened.metadata()["unraze"])["weights"]
    assert stated == weights_hash(net, RECIPES[0])


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_the_hash_tells_every_weight_and_statistic(recipe: Recipe) -> None:
    net = made(recipe)
    whole = weights_hash(net, recipe)
    for name, value in net.state_dict().items():
        before = value.clone()
        value += 1
        same = weights_hash(net, recipe) == whole
        value.copy_(before)
        assert same == (recipe.objective != "labels" and name.startswith("head.")), name
    assert weights_hash(net, recipe) == whole


def test_the_hash_does_not_depend_on_the_layout_in_memory(kept: tuple[Path, Net]) -> None:
    _, net = kept
    whole = weights_hash(net, RECIPES[0])
    changed = 0
    for weight in net.parameters():
        if weight.dim() == 4:
            other = weight.data.clone(memory_format=torch.contiguous_format)
            changed += other.stride() != weight.stride()
            weight.data = other
    assert changed
    assert weights_hash(net, RECIPES[0]) == whole


# damage


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def of_text(file: Path) -> None:
    file.write_text("no weights at all, but long enough to be read")


def removed(file: Path) -> None:
    file.unlink()


def changed_byte(share: float) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(share * (len(data) - 1))] ^= 4
        file.write_bytes(data)

    return change


def restated(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """The same weights, but other words about them."""

    def rewrite(file: Path) -> None:
        with safetensors.safe_open(file, framework="pt") as opened:
            about = json.loads(opened.metadata()["unraze"])
        change(about)
        tensors = safetensors.torch.load_file(file)
        safetensors.torch.save_file(tensors, file, metadata={"unraze": json.dumps(about)})

    return rewrite


def without_words(file: Path) -> None:
    safetensors.torch.save_file(safetensors.torch.load_file(file), file)


def less_a_weight(file: Path) -> None:
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(file)
    del tensors["scale"]
    safetensors.torch.save_file(tensors, file, metadata=metadata)


DAMAGE = {
    "cut off": cut_off,
    "empty": emptied,
    "text": of_text,
    "absent": removed,
    "first byte": changed_byte(0),
    "a byte of the header": changed_byte(0.005),
    "a byte at a third": changed_byte(1 / 3),
    "a byte at two thirds": changed_byte(2 / 3),
    "last byte": changed_byte(1),
    "a better score": restated(lambda about: about["score"].update(share=0.99)),
    "another hash": restated(lambda about: about.update(weights="0" * 64)),
    "no score": restated(lambda about: about.pop("score")),
    "a list": restated(lambda about: about.update(score=[1])),
    "no words": without_words,
    "less a weight": less_a_weight,
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_not_whole_is_refused_by_name(
    kept: tuple[Path, Net], harm: Callable[[Path], None]
) -> None:
    file, _ = kept
    read(file, blank(RECIPES[0]), RECIPES[0])
    harm(file)
    with pytest.raises(CheckpointError, match="is damaged") as raised:
        read(file, blank(RECIPES[0]), RECIPES[0])
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("recipe", "shape", "classes"),
    [(RECIPES[1], SHAPE, CLASSES), (RECIPES[0], (3, 16, 12), CLASSES), (RECIPES[0], SHAPE, 4)],
    ids=["another design", "colour", "more classes"],
)
def test_a_file_of_another_network_is_refused(
    kept: tuple[Path, Net], recipe: Recipe, shape: tuple[int, int, int], classes: int
) -> None:
    file, _ = kept
    with pytest.raises(CheckpointError, match="is damaged"):
        read(file, network(recipe, shape, classes), recipe)


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(
    kept: tuple[Path, Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, net = kept
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(file, net, RECIPES[0], Score(0.5, 7, "cd"))
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_training, "FEWEST_STEPS", 5)
