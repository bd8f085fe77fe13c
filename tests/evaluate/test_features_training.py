"""The networks of features: what they see, what they are trained for, and that it is repeatable."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from unraze.evaluate import feature_training
from unraze.evaluate.feature_files import weights_hash
from unraze.evaluate.feature_networks import Depthwise, Residual, at_working_size, working_size
from unraze.evaluate.feature_training import (
    Recipe,
    contrast,
    encoded,
    moved,
    network,
    steps_of,
    trained,
)
from unraze.evaluate.stage import finish

RECIPES = (
    Recipe("a", "labels", "residual", seed=1, steps=500, batch=16, lr=3e-3),
    Recipe("b", "labels", "depthwise", seed=2, steps=500, batch=16, lr=3e-3),
    Recipe("c", "contrast", "residual", seed=3, steps=500, batch=16, lr=3e-3),
    Recipe("d", "fill in", "depthwise", seed=4, steps=500, batch=16, lr=3e-3),
)
IDS = [recipe.objective + " " + recipe.design for recipe in RECIPES]


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_training, "FEWEST_STEPS", 6)
    monkeypatch.setattr(feature_training, "EPOCHS", 1)


def pictures(count: int, channels: int, height: int, width: int) -> np.ndarray:
    shape = (count, channels, height, width)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((28, 28), (28, 28)),
        ((32, 16), (32, 16)),
        ((8, 8), (16, 16)),
        ((6, 4), (18, 12)),
        ((1, 1), (16, 16)),
        ((20, 2), (20, 4)),
        ((64, 64), (32, 32)),
        ((200, 100), (32, 16)),
        ((3, 900), (4, 32)),
    ],
)
def test_the_size_at_which_images_are_seen(size: tuple[int, int], seen: tuple[int, int]) -> None:
    assert working_size(size) == seen
    assert at_working_size(pictures(3, 1, *size)).shape == (3, 1, *seen)


def test_large_images_are_averaged_over_areas_and_small_ones_repeated() -> None:
    large = pictures(300, 3, 64, 96)  # 96 to 32, 64 to 21: 3 pixels one way, not whole the other
    square = large[:, :, :, :64]
    means = square.reshape(300, 3, 32, 2, 32, 2).astype(float).mean((3, 5))
    assert np.abs(at_working_size(square) - means).max() <= 0.5 + 1e-3
    assert at_working_size(large).shape == (300, 3, 21, 32)
    small = pictures(3, 1, 8, 8)
    np.testing.assert_array_equal(at_working_size(small), small.repeat(2, 2).repeat(2, 3))
    same = pictures(3, 1, 28, 28)
    np.testing.assert_array_equal(at_working_size(same), same)


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (40, 3), (6, 4), (8, 8), (28, 28), (33, 50)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_shape_passes_both_designs(size: tuple[int, int], channels: int) -> None:
    x = at_working_size(pictures(2, channels, *size))
    for recipe in RECIPES:
        net = network(recipe, x.shape[1:], classes=5).eval()
        assert encoded(net, x).shape == (2, 64)
        out = encoded(net, x, head=True)
        wanted = {"labels": (2, 5), "contrast": (2, 64), "fill in": x.shape}
        assert out.shape == wanted[recipe.objective]


def test_the_designs_share_no_kind_of_norm() -> None:
    kinds = [{type(m) for m in net.modules()} for net in (Residual(1), Depthwise(1))]
    assert nn.BatchNorm2d in kinds[0] - kinds[1]
    assert nn.LayerNorm in kinds[1] - kinds[0]


def test_contrast_is_its_formula() -> None:
    z = np.random.default_rng(1).normal(size=(10, 7))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    terms = []
    for i in range(10):
        j = (i + 5) % 10
        below = sum(math.exp(unit[i] @ unit[k] / 0.2) for k in range(10) if k != i)
        terms.append(-math.log(math.exp(unit[i] @ unit[j] / 0.2) / below))
    assert float(contrast(torch.from_numpy(z))) == pytest.approx(np.mean(terms), rel=1e-12)


def test_a_weak_view_is_a_shift_by_whole_pixels() -> None:
    x = torch.zeros(200, 1, 28, 28)
    x[:, :, 14, 10] = 1.0
    where = moved(x, np.random.default_rng(0), strong=False).flatten(1).argmax(1).numpy()
    shifts = {(place // 28 - 14, place % 28 - 10) for place in where.tolist()}
    assert shifts == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}


def test_a_strong_view_shifts_further_and_adds_neither_noise_nor_blur() -> None:
    """Two grey levels stay two, but for the piece taken out; the edge between them moves."""
    x = torch.full((200, 3, 28, 28), 0.5)
    x[..., 10:] = -0.3
    views = moved(x, np.random.default_rng(0), strong=True)
    edges = set()
    for view in views:
        levels = torch.unique((view * 1e4).round())
        assert len(levels) <= 3
        row = next(row for row in view[0] if (row != 0).all())
        edges.add(int((row.diff().abs() > 1e-3).float().argmax()) + 1)
    assert edges == {8, 9, 10, 11, 12}
    assert 0.02 < float((views == 0).float().mean()) < 0.25
    highest = (views - (views == 0).float() * 9).flatten(1).amax(1)  # but for the piece
    assert len(torch.unique(highest)) == 200  # contrast and brightness


@pytest.mark.parametrize(
    ("count", "steps"), [(16, 200), (1500, 468), (10**6, 4500)], ids=["few", "some", "many"]
)
def test_the_number_of_steps_is_bounded(count: int, steps: int) -> None:
    recipe = Recipe("a", "labels", "residual", seed=0, steps=4500, batch=64, lr=1e-3)
    assert steps_of(recipe, count) == steps
    assert steps_of(Recipe("a", "labels", "residual", 0, 150, 64, 1e-3), count) == 150


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_training_is_a_function_of_images_and_recipe(recipe: Recipe, few_steps: None) -> None:
    pixels, labels = pictures(40, 1, 16, 16), np.arange(40) % 3
    state = torch.get_rng_state()
    net = finish(trained(recipe, pixels, labels, 3))
    torch.rand(5)  # a different global state
    np.random.default_rng().random()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = finish(trained(recipe, pixels, labels, 3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert weights_hash(net, recipe) == weights_hash(again, recipe)
    other = finish(trained(Recipe(**{**vars(recipe), "seed": 9}), pixels, labels, 3))
    assert weights_hash(net, recipe) != weights_hash(other, recipe)
    torch.set_rng_state(state)
    finish(trained(recipe, pixels, labels, 3))
    assert torch.equal(torch.get_rng_state(), state)  # it draws nothing from the global generator


def test_features_are_of_unit_scale_and_alone_what_they_are_together(few_steps: None) -> None:
    pixels, labels = pictures(300, 3, 16, 12), np.arange(300) % 3
    for recipe in RECIPES:
        net = finish(trained(recipe, pixels, labels, 3))
        assert not net.training
        together = encoded(net, pixels)
        assert together.dtype == np.float32
        assert np.square(together).mean() == pytest.approx(1, rel=1e-4)
        for alone in (0, 5, 255, 256, 299):
            np.testing.assert_array_equal(
                encoded(net, pixels[alone : alone + 1])[0], together[alone]
            )
        backwards = encoded(net, pixels[::-1])[::-1]
        np.testing.assert_allclose(backwards, together, atol=2e-6)


def test_kept_weights_lose_nothing(few_steps: None) -> None:
    """Training rounds to half precision itself, so that a network kept is the network trained."""
    pixels, labels = pictures(40, 1, 16, 16), np.arange(40) % 3
    net = finish(trained(RECIPES[0], pixels, labels, 3))
    for name, value in net.state_dict().items():
        if value.dim() >= 2:
            assert torch.equal(value, value.half().float()), name


def test_classes_that_can_be_told_apart_are() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 2
    pixels = generator.integers(0, 120, (240, 1, 8, 8)).astype(np.uint8)
    pixels[labels == 1, :, :4] += 90  # brighter above
    pixels[labels == 0, :, 4:] += 90  # brighter below
    pixels = at_working_size(pixels)
    recipe = Recipe("a", "labels", "residual", seed=1, steps=60, batch=16, lr=3e-3)
    net = finish(trained(recipe, pixels[:200], labels[:200], 2))
    right = encoded(net, pixels[200:], head=True).argmax(1) == labels[200:]
    assert right.mean() >= 0.95


PROGRAM = """
import numpy as np
from unraze.evaluate import feature_training
from unraze.evaluate.feature_files import weights_hash
from unraze.evaluate.feature_training import Recipe, trained
from unraze.evaluate.stage import finish

feature_training.FEWEST_STEPS, feature_training.EPOCHS = 6, 1
pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16)).astype(np.uint8)
for objective, design in (("labels", "residual"), ("fill in", "depthwise")):
    recipe = Recipe("a", objective, design, seed=1, steps=500, batch=16, lr=3e-3)
    net = finish(trained(recipe, pixels, np.arange(40) % 3, 3))
    print(weights_hash(net, recipe))
"""


def test_another_process_trains_the_same_network(few_steps: None) -> None:
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stdout.split()
    here = []
    for objective, design in (("labels", "residual"), ("fill in", "depthwise")):
        recipe = Recipe("a", objective, design, seed=1, steps=500, batch=16, lr=3e-3)  # type: ignore[arg-type]
        net = finish(trained(recipe, pictures(40, 1, 16, 16), np.arange(40) % 3, 3))
        here.append(weights_hash(net, recipe))
    assert here == out
