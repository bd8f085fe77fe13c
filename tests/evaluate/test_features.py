"""The two feature spaces of a data set: which they are, when they are trained, what they say."""

import importlib.util
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import safetensors

from unraze.config import DataConfig
from unraze.data import Images, load
from unraze.errors import DataError, InputError, UnrazeError
from unraze.evaluate import feature_training, features, metrics
from unraze.evaluate.feature_files import read, weights_hash
from unraze.evaluate.features import (
    CLASSIFIERS,
    FASHION_MNIST,
    SELF_SUPERVISED,
    SHIPPED,
    spaces,
)
from unraze.evaluate.stage import Stage, finish

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "src" / "unraze" / "evaluate" / "weights"
FASHION_MNIST_TEST = "74b23acf87deaf573f9a86238fbc6a6c306f20332425e1e264cefe2774cbdae9"
NAMES = {True: ("residual classifier", "depthwise classifier"), False: ("contrast", "fill-in")}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and training of a few steps."""
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_training, "FEWEST_STEPS", 4)
    monkeypatch.setattr(feature_training, "EPOCHS", 1)
    return tmp_path / "cache"


def images(
    count: int = 40,
    shape: tuple[int, int, int] = (1, 8, 8),
    *,
    seed: int = 0,
    classes: int | None = 2,
    source: str = "made",
) -> Images:
    """Noise, brighter above in even classes and below in odd ones."""
    pixels = np.random.default_rng(seed).integers(0, 60, (count, *shape)).astype(np.uint8)
    labels = np.arange(count) % (classes or 2)
    half = shape[1] // 2
    pixels[labels % 2 == 0, :, :half] += 180
    pixels[labels % 2 == 1, :, half:] += 180
    named = labels.astype(np.int64) if classes else None
    return Images.from_arrays(pixels, labels=named, source=source)


def followed(stages: Generator[Stage, None, T]) -> tuple[T, set[str]]:
    """The result, and the names of the networks that were trained for it."""
    trained = set()
    while True:
        try:
            trained.add(next(stages).name.removeprefix("features: ").partition(",")[0])
        except StopIteration as end:
            return end.value, trained


def kept_files(cache: Path) -> list[Path]:
    return sorted((cache / "features").glob("*"))


# which spaces


@pytest.mark.parametrize("labelled", [True, False])
def test_classifiers_where_there_are_labels_and_self_supervised_ones_where_not(
    labelled: bool,
) -> None:
    both, trained = followed(spaces(images(classes=3 if labelled else None), None))
    assert tuple(space.name for space in both) == NAMES[labelled]
    assert trained == set(NAMES[labelled])
    assert len({space.hash for space in both}) == 2
    pixels = images(7, seed=1).pixels
    for space in both:
        found = space.extract(pixels)
        assert found.shape == (7, space.dim)
        assert found.dtype == np.float32
        probabilities = space.classify(pixels)
        if labelled:
            assert probabilities is not None
            assert probabilities.shape == (7, 3)
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
            assert (probabilities > 0).all()
        else:
            assert probabilities is None


def test_labels_of_one_class_and_labels_not_wanted_are_as_none() -> None:
    one = images(classes=1)
    assert one.labels is not None
    assert tuple(space.name for space in finish(spaces(one, None))) == NAMES[False]
    both = finish(spaces(images(classes=2), None, labels=False))
    assert tuple(space.name for space in both) == NAMES[False]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 11), (1, 40, 24), (3, 1, 5)])
@pytest.mark.parametrize("classes", [2, None])
def test_images_of_any_shape_have_features(
    shape: tuple[int, int, int], classes: int | None
) -> None:
    for space in finish(spaces(images(20, shape, classes=classes), images(16, shape, seed=1))):
        found = space.extract(images(5, shape, seed=2).pixels)
        assert found.shape == (5, space.dim)
        assert np.isfinite(found).all()
        assert found.std() > 0


def test_an_images_features_do_not_depend_on_the_others() -> None:
    pixels = images(30, seed=3).pixels
    for classes in (2, None):
        for space in finish(spaces(images(classes=classes), None)):
            together = space.extract(pixels)
            for alone in (0, 17, 29):
                one = space.extract(pixels[alone : alone + 1])
                np.testing.assert_allclose(one[0], together[alone], rtol=1e-5, atol=1e-5)


def test_both_networks_are_trained_on_the_same_images_at_most_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = images(80)
    monkeypatch.setattr(features, "MOST", 50)
    pools = [finish(features._pool(every, recipe.name)) for recipe in CLASSIFIERS]
    for pixels, labels in pools:
        assert pixels.shape == (50, 1, 16, 16)
        shown = pixels[:, :, ::2, ::2]  # every pixel of 8 x 8 is repeated
        places = [int((every.pixels == one).all(axis=(1, 2, 3)).argmax()) for one in shown]
        assert places == sorted(set(places))
        assert places != list(range(50))
        assert labels is not None
        np.testing.assert_array_equal(labels, every.labels[places])
    np.testing.assert_array_equal(pools[0][0], pools[1][0])


# what is kept


@pytest.mark.parametrize("classes", [2, None])
def test_a_network_is_trained_once(cache: Path, classes: int | None) -> None:
    training, held_out = images(classes=classes), images(20, seed=1, classes=classes)
    first, trained = followed(spaces(training, held_out))
    assert len(trained) == 2
    before = {file: file.read_bytes() for file in kept_files(cache)}
    assert len(before) == 2
    again, trained = followed(spaces(training, held_out))
    assert not trained
    assert {file: file.read_bytes() for file in kept_files(cache)} == before
    for one, other in zip(first, again, strict=True):
        assert one.hash == other.hash
        assert one.about == other.about
        np.testing.assert_array_equal(one.extract(held_out.pixels), other.extract(held_out.pixels))


def test_the_same_images_give_the_same_networks_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = [space.hash for space in finish(spaces(images(), None))]
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "another"))
    again, trained = followed(spaces(images(source="from elsewhere"), None))
    assert len(trained) == 2
    assert [space.hash for space in again] == hashes


@pytest.mark.parametrize("changed", ["images", "labels", "design", "recipe"])
def test_other_images_labels_or_ways_of_making_are_other_networks(
    cache: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = images()
    hashes = [space.hash for space in finish(spaces(training, None))]
    match changed:
        case "images":
            training = images(seed=9)
        case "labels":
            training = Images.from_arrays(
                training.pixels, labels=1 - training.labels, source=training.source
            )
        case "design":
            monkeypatch.setattr(features, "DESIGN", features.DESIGN + 1)
        case "recipe":
            others = tuple(replace(recipe, seed=recipe.seed + 50) for recipe in CLASSIFIERS)
            monkeypatch.setattr(features, "CLASSIFIERS", others)
    again, trained = followed(spaces(training, None))
    assert len(trained) == 2
    assert len(kept_files(cache)) == 4
    same = changed == "design"  # which here was raised for nothing
    assert [space.hash == h for space, h in zip(again, hashes, strict=True)] == [same] * 2


def test_a_damaged_file_is_warned_about_and_made_anew(cache: Path) -> None:
    training = images()
    hashes = [space.hash for space in finish(spaces(training, None))]
    damaged, whole = kept_files(cache)
    before = damaged.read_bytes()
    damaged.write_bytes(before[: len(before) // 2])
    with pytest.warns(UserWarning, match="is damaged") as caught:
        again, trained = followed(spaces(training, None))
    assert len(caught) == 1
    said = str(caught[0].message)
    assert said.startswith(f"{damaged}: ")
    assert said.endswith("; the features are trained anew")
    assert len(trained) == 1
    assert [space.hash for space in again] == hashes
    assert damaged.read_bytes() == before
    assert kept_files(cache) == [damaged, whole]


def test_a_cache_that_cannot_be_written_costs_a_warning(cache: Path) -> None:
    cache.mkdir()
    (cache / "features").write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="cannot be written") as caught:
        both, trained = followed(spaces(images(), None))
    assert len(caught) == len(trained) == 2
    for warning in caught:
        said = str(warning.message)
        assert said.startswith(str(cache))
        assert "UNRAZE_CACHE" in said
        assert "\n" not in said
    assert np.isfinite(both[0].extract(images().pixels)).all()
    assert (cache / "features").read_text() == "a file where the folder would be"


# scores


def test_a_classifiers_score_is_the_share_that_it_has_right() -> None:
    held_out = images(30, seed=4)
    for space in finish(spaces(images(), held_out)):
        probabilities = space.classify(held_out.pixels)
        assert probabilities is not None
        share = (probabilities.argmax(axis=1) == held_out.labels).mean()
        assert f"right on {share:.2%} of 30 held-out images" in space.about


def test_for_other_held_out_images_only_the_score_is_made_again(cache: Path) -> None:
    training = images()
    finish(spaces(training, images(30, seed=4)))
    mixed = images(24, seed=5)
    other = Images.from_arrays(mixed.pixels, labels=1 - mixed.labels, source="labels exchanged")
    both, trained = followed(spaces(training, other))
    assert not trained
    for space, recipe, file in zip(both, CLASSIFIERS, sorted_by_recipe(cache), strict=True):
        net, score = read(file, features._blank(recipe, training), recipe)
        assert score.held_out == other.fingerprint
        assert score.count == 24
        assert f"right on {score.share:.2%} of 24 held-out images" in space.about
        assert weights_hash(net, recipe) == space.hash
    before = {file: file.read_bytes() for file in kept_files(cache)}
    assert "not scored" not in finish(spaces(training, other))[0].about
    assert {file: file.read_bytes() for file in kept_files(cache)} == before


def sorted_by_recipe(cache: Path) -> list[Path]:
    return [
        next((cache / "features").glob(f"*-{recipe.name.replace(' ', '-')}.safetensors"))
        for recipe in CLASSIFIERS
    ]


def test_without_held_out_images_there_is_no_score_kept_or_not() -> None:
    training = images()
    assert all("not scored" in space.about for space in finish(spaces(training, None)))
    finish(spaces(training, images(30, seed=4)))
    both, trained = followed(spaces(training, None))
    assert not trained
    assert all("not scored" in space.about for space in both)


def test_a_classifier_is_not_scored_by_images_without_labels() -> None:
    for space in finish(spaces(images(), images(30, seed=4, classes=None))):
        assert "not scored" in space.about


def test_images_that_are_all_alike_are_not_found_again() -> None:
    """Among equal images the nearest copy is anyone's: one of each 256 is hit by chance."""
    one = images(1, classes=None).pixels
    alike = Images.from_arrays(one.repeat(300, axis=0), source="alike")
    for space in finish(spaces(images(classes=None), alike)):
        assert f"moved copy of {2 / 300:.2%} of 300 held-out images, each among 256" in space.about


# what is refused


def test_too_few_images_are_refused(cache: Path) -> None:
    finish(spaces(images(16), None))
    with pytest.raises(InputError, match=r"^few: 15 images are too few .* at least 16.*onnx:FILE"):
        finish(spaces(images(15, source="few"), None))


def test_held_out_images_of_another_shape_are_refused(cache: Path) -> None:
    with pytest.raises(InputError, match="held-out images are 1 x 8 x 9, training images 1 x 8 x"):
        finish(spaces(images(), images(shape=(1, 8, 9))))
    assert not cache.exists()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 1, 8, 9), dtype=np.uint8),
        np.zeros((2, 3, 8, 8), dtype=np.uint8),
        np.zeros((1, 8, 8), dtype=np.uint8),
        np.zeros((2, 1, 8, 8), dtype=np.float32),
        np.zeros((0, 1, 8, 8), dtype=np.uint8),
    ],
    ids=["size", "colour", "axes", "floats", "none"],
)
def test_images_unlike_those_of_training_are_refused(pixels: np.ndarray) -> None:
    space = finish(spaces(images(), None))[0]
    with pytest.raises(InputError, match=r"give uint8 \(N, 1, 8, 8\)"):
        space.extract(pixels)
    with pytest.raises(InputError, match=r"trained on images of 1 x 8 x 8"):
        space.classify(pixels)


# those that come with the package


def as_fashion_mnist(classes: int = 10) -> Images:
    """Other images under Fashion-MNIST's fingerprint, so that nothing needs to be installed."""
    some = images(40, (1, 28, 28), classes=classes)
    return replace(some, fingerprint=FASHION_MNIST)


def shipped_file(name: str) -> Path:
    return WEIGHTS / f"fashion-mnist-{name.replace(' ', '-')}.safetensors"


def test_fashion_mnists_networks_come_with_the_package(cache: Path) -> None:
    both, trained = followed(spaces(as_fashion_mnist(), None))
    assert not trained
    assert tuple(space.name for space in both) == NAMES[True]
    assert not cache.exists()
    third, trained = followed(spaces(as_fashion_mnist(), None, labels=False))
    assert trained == {"fill-in"}
    assert third[0].name == "contrast"
    assert [p.name.partition("-")[2] for p in kept_files(cache)] == ["fill-in.safetensors"]


@pytest.mark.parametrize("recipe", SHIPPED, ids=[recipe.name for recipe in SHIPPED])
def test_a_shipped_file_states_the_score_on_the_test_images(recipe: Any) -> None:
    file = shipped_file(recipe.name)
    net, score = read(file, features._blank(recipe, as_fashion_mnist()), recipe)
    assert score.held_out == FASHION_MNIST_TEST
    assert score.count == 10_000
    assert score.share >= (0.92 if recipe.objective == "labels" else 0.3)
    with safetensors.safe_open(file, framework="pt") as opened:
        assert weights_hash(net, recipe) in opened.metadata()["unraze"]
    test = replace(images(20, (1, 28, 28), classes=10), fingerprint=FASHION_MNIST_TEST)
    labels = recipe.objective == "labels"
    stages = spaces(as_fashion_mnist(), test, labels=labels)
    about = next(space.about for space in finish(stages) if space.name == recipe.name)
    assert f"{score.share:.2%} of 10000 held-out images" in about


def test_only_the_three_of_fashion_mnist_are_shipped() -> None:
    assert {file.name for file in WEIGHTS.iterdir()} == {
        shipped_file(recipe.name).name for recipe in SHIPPED
    }
    assert set(SHIPPED) <= {*CLASSIFIERS, *SELF_SUPERVISED}


def test_a_shipped_network_is_scored_anew_by_other_images(cache: Path) -> None:
    both, trained = followed(spaces(as_fashion_mnist(), images(30, (1, 28, 28), classes=10)))
    assert not trained
    assert all("of 30 held-out images" in space.about for space in both)
    assert not cache.exists()


def test_a_damaged_shipped_file_asks_for_a_new_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights" / shipped_file("residual classifier").name
    file.parent.mkdir()
    file.write_bytes(shipped_file("residual classifier").read_bytes()[:-5])
    monkeypatch.setattr(features.resources, "files", lambda package: tmp_path)
    with pytest.raises(
        UnrazeError, match="it came with the package: install unraze again"
    ) as raised:
        finish(spaces(as_fashion_mnist(), None))
    assert str(raised.value).startswith(str(file))


# with the data set installed


def fashion_mnist() -> tuple[Images, Images]:
    data = DataConfig(source="fashion-mnist")
    try:
        return load(data), load(data, split="test")
    except DataError as error:
        pytest.skip(str(error))


def probe_of_the_tool() -> Any:
    path = ROOT / "tools" / "make_features.py"
    spec = importlib.util.spec_from_file_location("make_features", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.probe


@pytest.mark.slow
def test_the_shipped_networks_are_as_good_as_they_say() -> None:
    training, test = fashion_mnist()
    assert training.fingerprint == FASHION_MNIST
    assert test.fingerprint == FASHION_MNIST_TEST
    for space, recipe in zip(finish(spaces(training, test)), CLASSIFIERS, strict=True):
        guessed = space.classify(test.pixels)
        assert guessed is not None
        share = float((guessed.argmax(axis=1) == test.labels).mean())
        assert share >= 0.92
        assert f"right on {share:.2%} of 10000" in space.about
        assert recipe.name == space.name
    net, _ = read(
        shipped_file("contrast"), features._blank(SELF_SUPERVISED[0], training), SELF_SUPERVISED[0]
    )
    assert probe_of_the_tool()(net, training, test) >= 0.85


@pytest.mark.slow
def test_blur_and_noise_move_images_away_in_every_shipped_space() -> None:
    training, test = fashion_mnist()
    first, second = test.pixels[:1000], test.pixels[1000:2000]
    noise = np.random.default_rng(0).normal(size=second.shape)
    padded = np.pad(second.astype(float), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    blurred = sum(padded[:, :, i : i + 28, j : j + 28] for i in range(3) for j in range(3)) / 9
    worse = [blurred, *(second + level * noise for level in (12, 24))]
    found = [*finish(spaces(training, None))]
    stages = features._space(SELF_SUPERVISED[0], training, None)
    for space in (*found, finish(stages)):
        real = space.extract(first)
        clean, blur, some, more = (
            metrics.frechet(real, space.extract(x.clip(0, 255).round().astype(np.uint8))).value
            for x in (second, *worse)
        )
        assert blur > 1.5 * clean, space.name
        assert some > 1.2 * clean, space.name
        assert more > some, space.name
