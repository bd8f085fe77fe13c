"""Copies planted on purpose are caught; models that draw as the data do are acquitted."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from unraze.config import preset, updated
from unraze.data import Images, to_uint8
from unraze.data.named import read
from unraze.errors import DataError, InputError
from unraze.evaluate.memorisation import Memorisation, memorisation, worst_pairs
from unraze.evaluate.nearest_training import Points, nearest_training
from unraze.evaluate.stage import finish
from unraze.generate import sample
from unraze.train import fit

COPIES, CLEAR = "copies", "no sign of copying"


def digits() -> np.ndarray:
    """All of scikit-learn's, uint8 (1797, 1, 8, 8), in an order of chance."""
    parts = [read("digits", part).pixels for part in ("train", "test")]
    pixels = np.concatenate(parts).transpose(0, 3, 1, 2)
    return pixels[np.random.default_rng(0).permutation(len(pixels))]


DIGITS = digits()
TRAINING, HELD_OUT, HONEST = DIGITS[:600], DIGITS[600:1000], DIGITS[1000:]


def jittered(pixels: np.ndarray, seed: int = 1, by: int = 2) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-by, by + 1, pixels.shape)
    return (pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)


def planted(copies: np.ndarray) -> np.ndarray:
    """The honest samples, some of them replaced by copies, evenly."""
    samples = HONEST.copy()
    samples[np.linspace(0, len(samples) - 1, len(copies)).astype(int)] = copies
    return samples


def found(
    samples: np.ndarray,
    training: np.ndarray = TRAINING,
    held_out: np.ndarray | None = HELD_OUT,
    spaces=(),
    *,
    flip: bool = False,
) -> Memorisation:
    points = [points_of(space, samples, training, held_out, flip=flip) for space in spaces]
    return finish(memorisation(samples, training, held_out, points, flip=flip))


def points_of(space, samples, training, held_out, *, flip: bool) -> Points:
    turned = space.extract(training[..., ::-1]) if flip else None
    of_real = space.extract(training[:0] if held_out is None else held_out)
    return Points(space.name, space.extract(samples), space.extract(training), of_real, turned)


# who is whose neighbour


def two_by_scikit_learn(query, reference):
    def flat(x):
        return x.reshape(len(x), -1).astype(float)

    brute = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(flat(reference))
    return brute.kneighbors(flat(query))


def test_nearest_training_images_are_those_of_scikit_learn() -> None:
    near = finish(nearest_training(HONEST, TRAINING, flip=False))
    distance, index = two_by_scikit_learn(HONEST, TRAINING)
    assert np.array_equal(near.training, index[:, 0])
    assert near.distance == pytest.approx(distance[:, 0])
    assert near.ratio == pytest.approx(distance[:, 0] / distance[:, 1])
    assert not near.mirrored.any()


def test_a_mirror_image_is_the_same_image_where_training_flipped() -> None:
    near = finish(nearest_training(HONEST, TRAINING, flip=True))
    straight = two_by_scikit_learn(HONEST, TRAINING)
    turned = two_by_scikit_learn(HONEST[..., ::-1], TRAINING)
    mirrored = turned[0][:, 0] < straight[0][:, 0]
    assert 20 < mirrored.sum() < len(HONEST) - 20
    assert np.array_equal(near.mirrored, mirrored)
    best = np.where(mirrored, turned[1][:, 0], straight[1][:, 0])
    assert np.array_equal(near.training, best)
    # the second nearest is another image, either way round
    for row in range(0, len(HONEST), 40):
        others = np.delete(TRAINING, best[row], axis=0)
        both = np.concatenate([others, others[..., ::-1]])
        second = two_by_scikit_learn(HONEST[row : row + 1], both)[0][0, 0]
        assert near.ratio[row] == pytest.approx(near.distance[row] / second)


@pytest.mark.parametrize("flip", [False, True])
def test_duplicates_within_the_training_images_count_as_one(flip: bool) -> None:
    twins = TRAINING[..., ::-1] if flip else TRAINING
    once = finish(nearest_training(HONEST, TRAINING, flip=flip))
    thrice = finish(nearest_training(HONEST, np.concatenate([TRAINING, twins, twins]), flip=flip))
    for field in ("training", "mirrored", "distance", "ratio"):
        assert np.array_equal(getattr(once, field), getattr(thrice, field))


# who is caught


def test_honest_samples_are_acquitted() -> None:
    result = found(HONEST)
    assert result.verdict == CLEAR
    assert result.words.startswith("no sign of copying: single copies (d₁/d₂ under 0.33) among ")
    assert result.words.endswith("of the samples would have shown in pixels")
    assert result.spaces[0].detectable < 0.02
    assert (result.generated, result.training, result.held_out) == (797, 600, 400)
    assert result.distinct == result.compared == 600


@pytest.mark.parametrize("by", [0, 2])
def test_a_few_copies_among_honest_samples_are_caught(by: int) -> None:
    copied = np.arange(16) * 30
    result = found(planted(jittered(TRAINING[copied], by=by)))
    (pixels,) = result.spaces
    assert result.verdict == pixels.verdict == COPIES
    assert pixels.share >= 16 / 797
    assert "copies (seen in pixels)" in result.words
    # and named
    places = np.linspace(0, 796, 16).astype(int)
    worst = {(pair.sample, pair.training) for pair in pixels.worst[:18]}
    assert set(zip(places.tolist(), copied.tolist(), strict=True)) <= worst


def test_mirrored_copies_are_copies_only_where_training_flipped() -> None:
    samples = planted(jittered(TRAINING[:16, ..., ::-1]))
    result = found(samples, flip=True)
    assert result.verdict == COPIES
    assert sum(pair.mirrored for pair in result.spaces[0].worst[:16]) >= 12
    assert found(samples).verdict == CLEAR
    assert found(HONEST, flip=True).verdict == CLEAR


@pytest.mark.parametrize("flip", [False, True])
def test_copies_of_an_image_that_training_holds_many_times_are_caught(flip: bool) -> None:
    twins = TRAINING[..., ::-1] if flip else TRAINING
    training = np.concatenate([TRAINING, twins, TRAINING])
    result = found(planted(jittered(TRAINING[:16])), training, flip=flip)
    assert result.verdict == COPIES
    assert (result.training, result.distinct) == (1800, 600)
    assert max(pair.training for pair in result.spaces[0].worst) < 600


def families(seed: int, of: np.ndarray) -> np.ndarray:
    """New versions of images, a little different each time."""
    return jittered(DIGITS[of], seed, by=5)


def test_a_data_set_full_of_near_duplicates_does_not_accuse_the_model() -> None:
    # a third of all new images have a version of themselves among the training ones
    rng = np.random.default_rng(3)
    training = families(4, np.arange(500))
    held_out = families(5, rng.integers(0, 1500, 2000))
    honest = families(6, rng.integers(0, 1500, 2000))
    result = found(honest, training, held_out)
    assert result.spaces[0].share > 0.25  # alone, this would be an accusation
    assert result.verdict == CLEAR
    # but of a model that draws nothing else, it is one
    copier = families(7, rng.integers(0, 500, 2000))
    assert found(copier, training, held_out).verdict == COPIES


def test_pairs_of_near_duplicates_within_the_training_images_do_not_accuse_either() -> None:
    # the held-out part by other hands, and each training image there twice: what the training
    # images are among themselves is what the samples are to them
    training = np.concatenate([families(1, np.arange(900)), families(2, np.arange(600))])
    held_out = DIGITS[900:1300]
    honest = np.concatenate([families(3, np.arange(600, 900)), DIGITS[1300:]])
    result = found(honest, training, held_out)
    assert result.spaces[0].share > 0.25
    assert result.spaces[0].share_held_out < 0.01
    assert result.spaces[0].share_training > 0.5
    assert result.verdict != COPIES


def test_samples_that_lean_on_training_images_without_copying_one_are_caught_as_a_whole() -> None:
    rng = np.random.default_rng(4)
    those = TRAINING[rng.integers(0, 600, 500)].astype(float)
    samples = (those + rng.normal(0, 25, those.shape)).clip(0, 255).astype(np.uint8)
    (pixels,) = found(samples).spaces
    assert pixels.verdict == COPIES
    assert pixels.closer > 0.9
    assert pixels.closer_ratio > 0.9
    assert pixels.z < -3


def test_smooth_samples_and_samples_of_one_kind_are_not_copies() -> None:
    # towards the mean of all, as of a model that learned too little
    smooth = (0.85 * HONEST + 0.15 * TRAINING.mean(0)).round().astype(np.uint8)
    result = found(smooth)
    assert result.spaces[0].z < -2  # nearer than real images are, yet to none in particular
    assert result.verdict == CLEAR
    # the class that is nearest to itself
    near = finish(nearest_training(HONEST, TRAINING, flip=False))
    alike = HONEST[near.distance < np.quantile(near.distance, 0.4)]
    assert found(alike).spaces[0].z < -3
    assert found(alike).verdict == CLEAR


class Spectrum:
    """The size of the two-dimensional Fourier transform, which a cyclic shift does not change."""

    name = "spectrum"

    def extract(self, pixels: np.ndarray, /) -> np.ndarray:
        size = np.abs(np.fft.rfft2(pixels.astype(float)))
        return size.reshape(len(pixels), -1).astype(np.float32)


def test_what_pixels_do_not_see_a_feature_space_may() -> None:
    samples = planted(np.roll(TRAINING[:24], (1, 2), axis=(2, 3)))
    result = found(samples, spaces=[Spectrum()])
    pixels, spectrum = result.spaces
    assert (pixels.verdict, spectrum.verdict) == (CLEAR, COPIES)
    assert result.verdict == COPIES
    assert "seen in spectrum" in result.words
    assert found(HONEST, spaces=[Spectrum()]).verdict == CLEAR


def test_without_held_out_images_training_images_are_the_measure() -> None:
    for nothing in (None, HELD_OUT[:0]):
        honest = found(HONEST, held_out=nothing)
        assert honest.verdict == CLEAR
        assert honest.spaces[0].share_held_out is None
        assert honest.note.startswith("no held-out images")
    assert found(planted(TRAINING[:24]), held_out=None).verdict == COPIES
    assert found(HONEST, held_out=HELD_OUT[:19]).note.startswith("19 held-out images are too few")


def test_too_few_images_acquit_nobody() -> None:
    result = found(HONEST[:12], TRAINING[:40], HELD_OUT[:30])
    assert result.verdict == "cannot tell: too few"
    assert result.words.startswith("cannot tell")
    alone = found(HONEST[:1], TRAINING[:3], None)
    assert alone.verdict == "cannot tell: too few"
    assert alone.spaces[0].detectable is None


# the numbers


def test_the_tests_are_those_of_scipy() -> None:
    samples = planted(TRAINING[:5])
    (pixels,) = found(samples).spaces
    ours = finish(nearest_training(samples, TRAINING, flip=False))
    unseen = finish(nearest_training(HELD_OUT, TRAINING, flip=False))
    flat = TRAINING.reshape(600, -1).astype(float)
    among = NearestNeighbors(n_neighbors=3).fit(flat).kneighbors(flat)[0][:, 1:]
    hits, n = int((ours.ratio < 1 / 3).sum()), len(samples)
    p_values = []
    for ratio in (unseen.ratio, among[:, 0] / among[:, 1]):
        theirs, m = int((ratio < 1 / 3).sum()), len(ratio)
        table = [[hits, n - hits], [theirs, m - theirs]]
        p_values.append(stats.fisher_exact(table, alternative="greater").pvalue)
    assert pixels.p_single == pytest.approx(max(p_values))
    u = stats.mannwhitneyu(
        ours.distance, unseen.distance, use_continuity=False, method="asymptotic"
    )
    pairs = n * len(unseen.distance)
    above = stats.mannwhitneyu(ours.distance, among[:, 0]).statistic / (n * 600)
    assert pixels.closer == pytest.approx(1 - max(u.statistic / pairs, above))
    assert 2 * stats.norm.sf(abs(pixels.z)) == pytest.approx(u.pvalue)


def test_the_detectable_share_is_the_least_that_is_caught() -> None:
    (honest,) = found(HONEST).spaces
    least = round(honest.detectable * len(HONEST))
    exactly = HONEST.copy()
    clean = finish(nearest_training(HONEST, TRAINING, flip=False)).ratio >= 1 / 3
    places = np.flatnonzero(clean)
    exactly[~clean] = HONEST[places[0]]
    for copies in (least - 1, least):
        samples = exactly.copy()
        samples[places[:copies]] = TRAINING[:copies]
        assert (found(samples).verdict == COPIES) is (copies == least)


def test_the_result_is_plain_data() -> None:
    result = found(HONEST[:40], held_out=None)
    adapter = TypeAdapter(Memorisation)
    assert adapter.validate_json(adapter.dump_json(result)) == result


def test_stages_count_up_to_their_total() -> None:
    points = points_of(Spectrum(), HONEST, TRAINING, HELD_OUT, flip=True)
    stages = list(memorisation(HONEST, TRAINING, HELD_OUT, [points], flip=True))
    assert [stage.name for stage in stages] == [
        "nearest to samples, pixels",
        "nearest to held-out images, pixels",
        "nearest to training images, pixels",
        "nearest to samples, spectrum",
        "nearest to held-out images, spectrum",
        "nearest to training images, spectrum",
    ]
    assert all(stage.done == stage.total for stage in stages)


# the sheet


def test_the_sheet_shows_each_sample_beside_its_training_image() -> None:
    samples = planted(jittered(TRAINING[:16, ..., ::-1]))
    (pixels,) = found(samples, flip=True).spaces
    sheet = np.asarray(worst_pairs(pixels, samples, TRAINING, count=1))
    first = pixels.worst[0]
    assert first.mirrored
    large = np.concatenate(
        [
            samples[first.sample, 0],
            np.full((8, 1), 255),
            TRAINING[first.training, 0, :, ::-1],
        ],
        axis=1,
    ).repeat(16, axis=0)
    large = large.repeat(16, axis=1)
    top, left = (
        (outer - inner) // 2 for outer, inner in zip(sheet.shape, large.shape, strict=True)
    )
    assert np.array_equal(sheet[top : top + 128, left : left + 272], large)


def test_a_training_image_is_shown_once() -> None:
    samples = planted(np.repeat(TRAINING[:4], 20, axis=0))
    (pixels,) = found(samples).spaces
    shown = [pair.training for pair in pixels.worst]
    assert len(set(shown)) == len(shown) == 32
    assert sorted(shown[:4]) == [0, 1, 2, 3]
    worst = [(pair.ratio, pair.distance) for pair in pixels.worst]
    assert worst == sorted(worst)


def test_colour_and_few_pairs_are_drawn() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 8)).astype(np.uint8)
    (pixels,) = found(colour[:2], colour[2:], None).spaces
    sheet = worst_pairs(pixels, colour[:2], colour[2:])
    assert sheet.mode == "RGB"
    with pytest.raises(InputError, match="count = 0: give at least 1"):
        worst_pairs(pixels, colour[:2], colour[2:], count=0)


# bad input


class Broken:
    name = "broken"

    def extract(self, pixels: np.ndarray, /) -> np.ndarray:
        return np.full((len(pixels), 2), np.nan)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"generated: float64 .*; give uint8 \(N, C, H, W\)"):
        found(HONEST / 2)
    with pytest.raises(DataError, match=r"held_out: uint8 \(400, 1, 8, 7\)"):
        found(HONEST, held_out=HELD_OUT[..., :7])
    with pytest.raises(DataError, match="generated: holds no image"):
        found(HONEST[:0])
    with pytest.raises(DataError, match="training: holds no image"):
        found(HONEST, TRAINING[:0])
    with pytest.raises(DataError, match=r"training: holds 2 distinct images; .* from 3 on"):
        found(HONEST, np.repeat(TRAINING[:2], 5, axis=0))
    with pytest.raises(DataError, match=r"feature space broken: its points of samples .* finite"):
        found(HONEST, spaces=[Broken()])
    straight = points_of(Spectrum(), HONEST, TRAINING, HELD_OUT, flip=False)
    with pytest.raises(DataError, match="points of mirrored are None for 600 images"):
        finish(memorisation(HONEST, TRAINING, HELD_OUT, [straight], flip=True))
    with pytest.raises(DataError, match=r"points of held_out are \(400, 40\) for 399 images"):
        finish(memorisation(HONEST, TRAINING, HELD_OUT[1:], [straight], flip=False))
    with pytest.raises(InputError, match="ratio = 1: give a number between 0 and 1"):
        finish(memorisation(HONEST, TRAINING, HELD_OUT, flip=False, ratio=1))


# a model that was trained


@pytest.mark.slow
@pytest.mark.parametrize(("images", "steps", "verdict"), [(50, 1500, COPIES), (1437, 1000, CLEAR)])
def test_a_model_overfitted_on_purpose_is_caught_and_a_healthy_one_acquitted(
    images: int, steps: int, verdict: str, tmp_path: Path
) -> None:
    training = read("digits", "train").pixels.transpose(0, 3, 1, 2)[:images]
    held_out = read("digits", "test").pixels.transpose(0, 3, 1, 2)
    config = updated(
        preset("fast"),
        {
            "network.widths": (32, 64),
            "network.blocks": 1,
            "train.steps": steps,
            "train.batch": 50,
            "train.dtype": "float32",
            "train.threads": 1,
            "train.preview_every": steps,
            "train.checkpoint_every": steps,
        },
    )
    model = fit(Images.from_arrays(training, source="digits"), config, out=tmp_path / "run")
    samples = to_uint8(sample(model, 300, batch=100))
    result = found(samples, training, held_out, [Spectrum()])
    assert result.verdict == verdict, result.words
    assert all(space.verdict == verdict for space in result.spaces)
