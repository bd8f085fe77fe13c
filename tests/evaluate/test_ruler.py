"""The evaluator evaluated: figures move as they must where samples are spoilt, and only there.

What is expected stands in docs/ruler.py, which measures Fashion-MNIST for docs/evaluation.md; here
the same is asked of the bundled digits, at one strength each.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts import as_module
from unraze.data import Images
from unraze.data.named import read
from unraze.errors import InputError
from unraze.evaluate import features
from unraze.evaluate.feature_files import read as read_network, weights_hash
from unraze.evaluate.feature_training import network
from unraze.evaluate.figures import Figure
from unraze.evaluate.kept import read_result
from unraze.evaluate.stage import finish

ROOT = Path(__file__).parent.parent.parent
SCRIPT, PAGE = ROOT / "docs" / "ruler.py", ROOT / "docs" / "evaluation.md"

TRAINING, REAL, SAMPLES = 500, 450, 450
STRENGTHS = {
    "blur": 1.0,
    "noise": 96,
    "shift": 1,
    "dropped classes": 4,
    "duplicates": 15,
    "copies": 0.1,
    "noisy copies": 0.1,
    "mirrored copies": 1,
}
"""More blur makes one blob of all digits, which may happen to lie in a real digit's ball."""

FIRST_WRITTEN = "312af1b00d2f21ae3534fbcdd6e8d3a2549b76b30154ac205aa6686b45b4a171"
"""SHA-256 of the expectations as they were before anything was measured."""


@pytest.fixture(scope="module")
def ruler() -> Iterator[ModuleType]:
    """docs/ruler.py as a module."""
    with as_module(SCRIPT) as module:
        yield module


def digits() -> tuple[Images, Images]:
    """All 1,797, in an order of chance: those to train on, and the rest."""
    parts = [read("digits", part) for part in ("train", "test")]
    pixels = np.concatenate([part.pixels for part in parts]).transpose(0, 3, 1, 2)
    labels = np.concatenate([part.labels for part in parts])
    order = np.random.default_rng(0).permutation(len(pixels))
    first, rest = (
        Images.from_arrays(pixels[some], labels=labels[some], source="digits")
        for some in (order[:TRAINING], order[TRAINING:])
    )
    return first, rest


@pytest.fixture(scope="module")
def material(ruler: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Digits, and two networks trained on 500 of them for this test."""
    training, rest = digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNRAZE_CACHE", str(tmp_path_factory.mktemp("cache")))
        both = finish(features.spaces(training, rest))
    return ruler.Material.of(training, rest, both, REAL, SAMPLES)


@pytest.fixture(scope="module")
def undisturbed(ruler: ModuleType, material: Any) -> Any:
    return ruler.measured(material, ruler.UNDISTURBED, 0)


@pytest.fixture(scope="module")
def spoilt(ruler: ModuleType, material: Any) -> dict[str, Any]:
    """What is measured of each corruption."""
    return {name: ruler.measured(material, name, by) for name, by in STRENGTHS.items()}


# what is expected


def test_the_expectations_are_those_that_were_written_first(ruler: ModuleType) -> None:
    text = json.dumps(ruler.EXPECTED, ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == FIRST_WRITTEN


def test_every_figure_of_every_corruption_has_an_expectation_and_a_reason(
    ruler: ModuleType,
) -> None:
    assert set(ruler.EXPECTED) == set(ruler.STRENGTHS) == set(ruler.UNITS) == set(STRENGTHS)
    for cells in ruler.EXPECTED.values():
        assert tuple(cells) == (*ruler.FIGURES, ruler.MEMORISATION)
        assert all(because for _, because in cells.values())


# how samples are spoilt


def test_parts_share_no_image_and_digits_stay_what_they_are(
    ruler: ModuleType, material: Any
) -> None:
    sets = [material.training, material.held_out, material.pool]
    assert [len(part) for part in sets] == [TRAINING, REAL, 1797 - TRAINING - REAL]
    every = {image.tobytes() for part in sets for image in part}
    assert len(every) == 1797  # all digits differ, so that no two parts hold the same one
    assert np.array_equal(ruler.spoilt(material, ruler.UNDISTURBED, 0), material.pool[:SAMPLES])


@pytest.mark.parametrize("name", STRENGTHS)
def test_there_are_always_as_many_samples(name: str, ruler: ModuleType, material: Any) -> None:
    samples = ruler.spoilt(material, name, STRENGTHS[name])
    assert samples.shape == (SAMPLES, 1, 8, 8)
    assert samples.dtype == np.uint8
    assert not np.array_equal(samples, material.pool[:SAMPLES])


def test_what_each_corruption_does(ruler: ModuleType, material: Any) -> None:
    honest = material.pool[:SAMPLES]
    known = {image.tobytes() for image in material.training}

    moved = ruler.spoilt(material, "shift", 2)
    assert np.array_equal(moved[..., 2:], honest[..., :-2])
    assert np.array_equal(moved[..., :2], honest[..., :1].repeat(2, axis=3))

    blurred = ruler.spoilt(material, "blur", 1).astype(float)
    assert blurred.mean() == pytest.approx(honest.mean(), rel=0.1)
    assert blurred.std() < 0.8 * honest.std()

    noise = ruler.spoilt(material, "noise", 16).astype(float) - honest
    inner = (honest > 80) & (honest < 175)  # where nothing is cut off
    assert noise[inner].std() == pytest.approx(16, rel=0.1)

    left = ruler.spoilt(material, "dropped classes", 4)
    pairs = zip(material.pool, material.labels, strict=True)
    of = {image.tobytes(): label for image, label in pairs}
    assert {of[image.tobytes()] for image in left} == {4, 5, 6, 7, 8, 9}
    assert len({image.tobytes() for image in left}) == SAMPLES

    repeated = ruler.spoilt(material, "duplicates", 15)
    _, times = np.unique(repeated.reshape(SAMPLES, -1), axis=0, return_counts=True)
    assert times.tolist() == [15] * 30

    copied = ruler.spoilt(material, "copies", 0.1)
    assert sum(image.tobytes() in known for image in copied) == 45
    turned = ruler.spoilt(material, "mirrored copies", 0.1)
    assert sum(image[..., ::-1].tobytes() in known for image in turned) >= 45
    by = ruler.spoilt(material, "noisy copies", 0.1).astype(int) - copied
    assert 0 < np.abs(by).max() < 12
    assert (by.any(axis=(1, 2, 3))).sum() == 45


# what the figures make of it


def test_perfect_samples_are_found_perfect(undisturbed: Any, ruler: ModuleType) -> None:
    assert undisturbed.verdict == ruler.CLEAR
    for figures in undisturbed.spaces:
        named = dict(zip(ruler.FIGURES, figures, strict=True))
        assert named["FD∞"].low < 0 < named["FD∞"].high
        assert named["KID"].low < 0 < named["KID"].high
        assert named["density"].low < 1 < named["density"].high
        assert min(named[name].value for name in ("precision", "recall")) > 0.8
        assert abs(named["coverage"].value - (1 - 2**-5)) < 0.03


@pytest.mark.parametrize("name", STRENGTHS)
def test_figures_move_as_expected_and_none_else(
    name: str, ruler: ModuleType, undisturbed: Any, spoilt: dict[str, Any]
) -> None:
    """Beyond the intervals in one of the two spaces at least, and in neither the other way."""
    wrong = []
    for figure, (expected, _) in ruler.EXPECTED[name].items():
        if expected == "either":
            continue
        found = {
            ruler.seen(undisturbed, [spoilt[name]], space, figure)[0]
            for space in range(len(undisturbed.spaces))
        }
        if expected in ("up", "down") and expected in found:
            found -= {"unchanged"}
        if not all(ruler.met(expected, [one]) for one in found):
            wrong.append(f"{figure} {expected}, but {' and '.join(sorted(found))}")
    assert not wrong


@pytest.mark.parametrize("name", ["copies", "noisy copies", "mirrored copies"])
def test_copies_of_training_images_move_memorisation(
    name: str, ruler: ModuleType, undisturbed: Any, spoilt: dict[str, Any]
) -> None:
    assert undisturbed.verdict == ruler.CLEAR
    assert spoilt[name].verdict == "copies"
    assert spoilt[name].shares[0] >= STRENGTHS[name]


def test_duplicates_move_recall_and_coverage_in_both_spaces_and_not_precision(
    ruler: ModuleType, undisturbed: Any, spoilt: dict[str, Any]
) -> None:
    for space in range(2):
        moved = {
            name: ruler.seen(undisturbed, [spoilt["duplicates"]], space, name)[0]
            for name in ruler.FIGURES
        }
        assert moved["recall"] == moved["coverage"] == "down"
        assert moved["precision"] == "unchanged"
        recall = spoilt["duplicates"].spaces[space][ruler.FIGURES.index("recall")]
        assert recall.value < 0.02  # the balls are points, which real images meet by chance alone
    assert spoilt["duplicates"].verdict == ruler.CLEAR


# the script's own parts


@pytest.mark.parametrize(
    ("expected", "seen", "holds"),
    [
        ("up", ["unchanged", "up"], True),
        ("up", ["up", "unchanged"], False),
        ("up", ["down", "up"], False),
        ("down", ["down"], True),
        ("down", ["up"], False),
        ("unchanged", ["unchanged", "unchanged"], True),
        ("unchanged", ["unchanged", "up", "unchanged"], False),
        ("either", ["up", "down"], True),
        ("none", ["no sign of copying"], True),
        ("none", ["cannot tell: too few"], False),
        ("copies", ["no sign of copying", "copies"], True),
        ("copies", ["copies", "no sign of copying"], False),
    ],
)
def test_when_an_expectation_is_met(
    expected: str, seen: list[str], holds: bool, ruler: ModuleType
) -> None:
    assert ruler.met(expected, seen) is holds


def test_intervals_of_repeated_measurements_are_summed_up(ruler: ModuleType) -> None:
    def figure(value: float) -> Figure:
        return Figure("KID", value, value - 1.96, value + 1.96, 0, "lower", 9, 9)

    rows = [(figure(value),) * len(ruler.FIGURES) for value in (-1.0, 0.0, 1.0)]
    table = ruler.interval_table(rows)
    assert table.count("| 0.0000 | 1.0000 | 1.00 | 3/3 |") == len(ruler.FIGURES)
    x = np.random.default_rng(0).standard_normal((400, 2))
    found = ruler.repeated(x, pairs=2, size=100)
    assert [len(one) for one in found] == [len(ruler.FIGURES)] * 2
    assert [f.name for f in found[0]] == list(ruler.FIGURE_NAMES)


def test_the_document_shows_what_was_measured_and_its_pictures_are_drawn_from_it(
    ruler: ModuleType, tmp_path: Path
) -> None:
    results = read_result(ruler.FOLDER / "ruler.json", ruler.RESULTS)
    page = PAGE.read_text(encoding="utf-8")
    assert ruler.expected_table() in page
    for space, (name, digest) in enumerate(results.spaces):
        assert name in page
        assert digest[:12] in page
        assert ruler.seen_table(results, space) in page
        assert ruler.value_table(results, space) in page
    for file in ruler.draw(results, tmp_path):
        with Image.open(file) as picture:
            assert picture.size[0] >= 900
            low, high = picture.convert("L").getextrema()
            assert high - low > 100, f"{file.name} shows nothing"


def test_what_the_document_measured_with_is_what_comes_with_the_package(ruler: ModuleType) -> None:
    results = read_result(ruler.FOLDER / "ruler.json", ruler.RESULTS)
    weights = Path(features.__file__).parent / "weights"
    shipped = []
    for recipe in features.CLASSIFIERS:
        file = weights / f"fashion-mnist-{recipe.name.replace(' ', '-')}.safetensors"
        net, _ = read_network(file, network(recipe, (1, 28, 28), 10), recipe)
        shipped.append((recipe.name, weights_hash(net, recipe)))
    assert shipped == list(results.spaces)


def test_expectations_are_printed_and_a_missing_file_is_named(
    ruler: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ruler.main(["expected"]) == 0
    assert ruler.expected_table() in capsys.readouterr().out
    assert ruler.main(["draw", "--out", str(tmp_path)]) == InputError.exit_status
    assert "ruler.json: cannot be read" in capsys.readouterr().err
