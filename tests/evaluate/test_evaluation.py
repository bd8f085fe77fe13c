"""A whole evaluation is its parts, whether it was stopped on the way or not."""

import json
import math
import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluated import HELD_OUT, Small
from unraze import generate
from unraze.config import BegunConfig
from unraze.data import Images, to_uint8
from unraze.errors import DataError, InputError, UnrazeError
from unraze.evaluate import evaluation as evaluations, forecast, likelihood, metrics, samples
from unraze.evaluate.evaluation import (
    EVALUATION,
    FEWEST,
    PARTS,
    Evaluation,
    Part,
    Subject,
    evaluate_images,
    evaluate_run,
    require_enough,
)
from unraze.evaluate.features import to_train
from unraze.evaluate.memorisation import memorisation
from unraze.evaluate.nearest_training import Points
from unraze.evaluate.noise_levels import noise_levels
from unraze.evaluate.places import Places, places_of_images, places_of_run
from unraze.evaluate.reference import Reference, of_run
from unraze.evaluate.samples import drawn, in_proportion, labels_asked, to_draw
from unraze.evaluate.stage import Stage, finish
from unraze.generate import Model
from unraze.run import Run, write_data

COUNT = 30
Running = Generator[Stage, None, tuple[Evaluation, np.ndarray | None]]


@pytest.fixture
def reference(model: Model) -> Reference:
    return of_run(model)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples come in parts of 10."""
    monkeypatch.setattr(samples, "BATCH", 10)


def places_at(
    folder: Path, model: Model, reference: Reference, *, count: int = COUNT, **changes: Any
) -> Places:
    settings = generate.changed(model.config.sample, changes.pop("settings", {}))
    wanted = {"settings": settings, "seed": 0, **changes}
    return places_of_run(folder, model, reference, count=count, **wanted)


def running(
    folder: Path,
    model: Model,
    reference: Reference,
    ready: Small,
    *,
    parts: Sequence[Part] = PARTS,
    count: int = COUNT,
) -> Running:
    return evaluate_run(
        model,
        reference,
        ready.spaces,
        subject=Subject(kind="run", name="it", generated=count, seed=0),
        settings=model.config.sample,
        parts=parts,
        places=places_at(folder, model, reference, count=count),
    )


def plain(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as plain values, without what depends on the clock."""
    values = json.loads(EVALUATION.dump_json(evaluation))
    return {name: value for name, value in values.items() if name not in ("made", "seconds")}


def stages_of(stages: Running) -> tuple[list[Stage], Evaluation]:
    seen = []
    while True:
        try:
            seen.append(next(stages))
        except StopIteration as end:
            return seen, end.value[0]


# what it consists of


def test_an_evaluation_is_its_parts(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    found, pixels = finish(running(tmp_path, model, reference, ready))
    assert pixels is not None
    x = generate.sample(model, COUNT, batch=10)
    np.testing.assert_array_equal(pixels, to_uint8(x))
    unseen, known = reference.held_out.pixels, reference.training.pixels
    for space, one in zip(ready.spaces, found.spaces, strict=True):
        wanted = metrics.all_figures(space.extract(unseen), space.extract(pixels))
        assert repr(one.figures) == repr(wanted)
        assert (one.name, one.hash, one.classes) == (space.name, space.hash, ())
    points = [
        Points(space.name, *(space.extract(images) for images in (pixels, known, unseen)))
        for space in ready.spaces
    ]
    assert found.memorisation == finish(memorisation(pixels, known, unseen, points, flip=False))
    assert found.levels == finish(noise_levels(model, known, unseen))
    assert found.bounds == finish(likelihood.bound(model, unseen))
    assert found.flow == finish(likelihood.flow(model, unseen))
    assert found.against.real == HELD_OUT
    assert found.against.shape == (1, 8, 8)
    assert found.seconds.keys() == {"sampling", *PARTS}
    again = EVALUATION.validate_json(EVALUATION.dump_json(found))
    assert repr(again) == repr(found)


def test_features_of_an_image_are_taken_once(
    ready: Small,
    model: Model,
    reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "empty"))
    taken: list[int] = []
    space = ready.spaces[0]

    def extract(pixels: np.ndarray) -> np.ndarray:
        taken.append(len(pixels))
        return space.extract(pixels)

    parts: tuple[Part, ...] = ("figures", "memorisation")
    counting = replace(ready, spaces=(replace(space, extract=extract),))
    finish(running(tmp_path, model, reference, counting, parts=parts))
    assert taken == [HELD_OUT, COUNT, len(reference.training)]
    taken.clear()
    finish(running(tmp_path, model, reference, counting, parts=parts, count=COUNT + 10))
    assert taken == [COUNT + 10]  # those of the real images are kept
    taken.clear()
    mirrored = replace(reference, flip=True)
    finish(running(tmp_path, model, mirrored, counting, parts=parts))
    finish(running(tmp_path, model, mirrored, counting, parts=parts, count=COUNT + 10))
    assert taken == [COUNT, len(reference.training), COUNT + 10]


def test_classes_are_measured_class_by_class(
    ready: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "FEWEST_OF_A_CLASS", 4)
    model = generate.load(ready.classy)
    reference = of_run(model)
    found, pixels = finish(running(tmp_path, model, reference, ready, parts=("figures",), count=60))
    assert pixels is not None
    space, real = ready.spaces[0], reference.held_out
    assert real.labels is not None
    asked = labels_asked(model, in_proportion(model, real), 60, seed=0)
    assert asked is not None
    counts = np.bincount(real.labels, minlength=10)
    assert len(set(counts)) > 1
    np.testing.assert_array_equal(np.bincount(asked, minlength=10), counts)
    drawn_as_asked = generate.sample(model, 60, classes=tuple(asked.tolist()), batch=10)
    np.testing.assert_array_equal(pixels, to_uint8(drawn_as_asked))
    guesses = space.classify(pixels), space.classify(real.pixels)
    assert guesses[0] is not None
    assert guesses[1] is not None
    for number, one in enumerate(found.spaces[0].classes):
        ours, theirs = pixels[asked == number], real.pixels[real.labels == number]
        assert (one.name, one.generated, one.real) == (str(number), len(theirs), len(theirs))
        if len(theirs) >= 4:
            kid = metrics.kid(space.extract(theirs), space.extract(ours))
            assert one.kid is not None
            assert one.kid.value == pytest.approx(kid.value, rel=1e-9)
        else:
            assert one.kid is None
        right = guesses[0][asked == number].argmax(1) == number
        assert one.agreement == pytest.approx(right.mean())
        of_real = guesses[1][real.labels == number].argmax(1) == number
        assert one.agreement_real == pytest.approx(of_real.mean())
    assert len(found.spaces[0].classes) == 10


def test_images_are_measured_as_samples_are(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    parts: tuple[Part, ...] = ("figures", "memorisation")
    of_model, pixels = finish(running(tmp_path / "a", model, reference, ready, parts=parts))
    assert pixels is not None
    images = Images.from_arrays(pixels)
    found = finish(
        evaluate_images(
            images,
            reference,
            ready.spaces,
            subject=Subject(kind="images", name="it", generated=COUNT),
            parts=parts,
            places=places_of_images(tmp_path / "b", images, reference),
        )
    )
    assert repr(found.spaces) == repr(of_model.spaces)
    assert found.memorisation == of_model.memorisation
    assert (found.levels, found.bounds, found.flow) == (None, (), None)


# stopped, and continued


def test_stopped_anywhere_it_ends_the_same(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    parts: tuple[Part, ...] = ("figures", "memorisation", "levels", "bound")
    whole = finish(running(tmp_path / "whole", model, reference, ready, parts=parts))[0]
    stops, done = 0, False
    while not done:
        going = running(tmp_path / "stopped", model, reference, ready, parts=parts)
        try:
            for _ in range(7 + 5 * stops):  # a little farther every time
                next(going)
            going.close()
            stops += 1
        except StopIteration as end:
            found, done = end.value[0], True
    assert stops >= 3
    assert plain(found) == plain(whole)


def test_what_is_there_is_not_made_again(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    parts = PARTS[:-1]
    first = stages_of(running(tmp_path, model, reference, ready, parts=parts))[1]
    seen, again = stages_of(running(tmp_path, model, reference, ready, parts=parts))
    assert seen == []
    assert plain(again) == plain(first)
    assert again.seconds == first.seconds  # those that it took when it was made


def test_a_damaged_part_is_made_again_and_no_other(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    parts: tuple[Part, ...] = ("figures", "levels", "bound")
    first = finish(running(tmp_path, model, reference, ready, parts=parts))[0]
    places = places_at(tmp_path, model, reference)
    levels, part = places.of_network("levels"), places.samples / "images-00010-00019.npz"
    levels.write_bytes(levels.read_bytes()[:500])
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0xFF
    part.write_bytes(data)
    seen, again = stages_of(running(tmp_path, model, reference, ready, parts=parts))
    assert {stage.name for stage in seen} == {"sampling", "loss by noise level"}
    drawing = [stage.done for stage in seen if stage.name == "sampling"]
    assert drawing == [5, 6, 7, 8]  # of 3 batches in 4 steps the second
    assert plain(again) == plain(first)


def test_more_samples_begin_with_those_that_there_are(
    model: Model, reference: Reference, tmp_path: Path
) -> None:
    folder = places_at(tmp_path, model, reference).samples

    def draw(count: int) -> np.ndarray:
        settings = model.config.sample
        asked = {"seed": 0, "classes": None, "folder": folder}
        return finish(drawn(model, settings, count=count, **asked))[1]

    assert to_draw(model, 25, folder) == 25
    few = draw(25)
    assert to_draw(model, 25, folder) == 0
    assert to_draw(model, 40, folder) == 20  # the part of 5 is not one of 10
    many = draw(40)
    np.testing.assert_array_equal(many[:20], few[:20])
    assert to_draw(model, 25, folder) == to_draw(model, 40, folder) == 0
    np.testing.assert_array_equal(many, to_uint8(generate.sample(model, 40, batch=10)))


def test_parts_that_are_left_out_are_not_made_but_stay(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    some: tuple[Part, ...] = ("figures", "bound")
    seen, first = stages_of(running(tmp_path, model, reference, ready, parts=some))
    assert not {"loss by noise level", "likelihood by the flow"} & {s.name for s in seen}
    assert (first.memorisation, first.levels, first.flow) == (None, None, None)
    assert len(first.spaces) == 2
    assert len(first.bounds) == 2
    seen, more = stages_of(running(tmp_path, model, reference, ready, parts=("levels",)))
    assert {s.name for s in seen} == {"loss by noise level"}
    assert repr((more.spaces, more.bounds)) == repr((first.spaces, first.bounds))
    assert more.levels is not None


# names


def test_names_say_what_parts_depend_on(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    """Another of what a part depends on is another name; of what it does not, the same one."""

    def names(places: Places) -> dict[str, str]:
        files = {
            "samples": places.samples,
            "figures": places.figures(ready.spaces[0]),
            "memorisation": places.memorisation(ready.spaces),
            "bound": places.of_network("bound"),
        }
        return {name: path.name for name, path in files.items()}

    def changed(places: Places) -> set[str]:
        return {name for name, was in names(usual).items() if names(places)[name] != was}

    usual = places_at(tmp_path, model, reference)
    of_samples = {"samples", "figures", "memorisation"}
    assert changed(places_at(tmp_path, replace(model, run="elsewhere"), reference)) == set()
    assert changed(places_at(tmp_path, model, reference, count=40)) == of_samples - {"samples"}
    assert changed(places_at(tmp_path, model, reference, seed=1)) == of_samples
    assert changed(places_at(tmp_path, model, reference, settings={"steps": 5})) == of_samples
    assert changed(places_at(tmp_path, generate.load(ready.run, raw=True), reference)) == {
        *of_samples,
        "bound",
    }
    flipped = replace(reference, flip=True)
    assert changed(places_at(tmp_path, model, flipped)) == {"memorisation"}
    other = replace(reference, held_out=reference.training)
    assert changed(places_at(tmp_path, model, other)) == {"figures", "memorisation", "bound"}
    assert usual.figures(ready.spaces[0]) != usual.figures(ready.spaces[1])
    assert usual.memorisation(ready.spaces) != usual.memorisation(ready.spaces[:1])
    assert usual.of_network("bound") != usual.of_network("flow")
    assert usual.result(ready.spaces, "step-1") != usual.result(ready.spaces[:1], "step-1")


# what will not do


def test_the_fewest_images_are_those_that_the_figures_can_bear(
    ready: Small, reference: Reference
) -> None:
    normal = np.random.default_rng(0).normal(size=(40, 3))
    least = FEWEST["figures"]
    metrics.all_figures(normal, normal[:least] + 1)
    metrics.all_figures(normal[:least], normal + 1)
    for pair in ((normal, normal[: least - 1]), (normal[: least - 1], normal)):
        with pytest.raises(InputError, match="too few"):
            metrics.all_figures(*pair)
    require_enough("-n 7", least, reference, PARTS)
    with pytest.raises(InputError, match=r"-n 6: too few for figures; give at least 7"):
        require_enough("-n 6", 6, reference, PARTS)
    require_enough("-n 1", 1, reference, ("memorisation", "levels", "bound", "flow"))
    few = replace(reference, held_out=Images.from_arrays(reference.held_out.pixels[:6]))
    with pytest.raises(
        InputError,
        match=r"6 held-out images are too few for figures, which needs 7; train with more",
    ):
        require_enough("-n 50", 50, few, PARTS)


@pytest.mark.parametrize("part", ["levels", "bound", "flow"])
def test_one_held_out_image_is_too_few_for_an_interval(reference: Reference, part: Part) -> None:
    one = replace(reference, held_out=Images.from_arrays(reference.held_out.pixels[:1]))
    with pytest.raises(InputError, match=rf"1 held-out images are too few for {part}"):
        require_enough("-n 50", 50, one, (part,))


def test_training_images_that_are_all_the_same_are_refused(reference: Reference) -> None:
    same = Images.from_arrays(np.repeat(reference.training.pixels[:1], 20, axis=0))
    with pytest.raises(DataError, match=r"1 distinct image"):
        require_enough("-n 50", 50, replace(reference, training=same), PARTS)
    require_enough("-n 50", 50, replace(reference, training=same), ("figures",))


def test_what_a_begun_run_may_have_seen_is_said(
    model: Model, reference: Reference, ready: Small, tmp_path: Path
) -> None:
    begun = BegunConfig(run="before", checkpoint="0" * 64)
    for number, (origin, says) in enumerate(
        [(None, False), (begun, True), (begun.model_copy(update={"unseen": True}), False)]
    ):
        one = replace(model, config=model.config.model_copy(update={"begun": origin}))
        stages = running(tmp_path / str(number), one, reference, ready, parts=["figures"])
        _, found = stages_of(stages)
        assert (evaluations.MAY_HAVE_SEEN in found.remarks) == says


def test_what_its_training_does_to_held_out_images_is_said(
    model: Model, reference: Reference, ready: Small, tmp_path: Path
) -> None:
    """That they chose the checkpoint, and that others stood in their place before."""
    run = Run(tmp_path / "run")
    run.path.mkdir()
    plain = replace(model, run=str(run.path), folder=run.checkpoints / "step-00000002")
    best = replace(plain, folder=run.best / "step-00000002")
    said = {evaluations.SAW_OTHERS, evaluations.CHOSEN}

    def remarks(name: str, one: Model) -> set[str]:
        _, found = stages_of(running(tmp_path / name, one, reference, ready, parts=["figures"]))
        return said & set(found.remarks)

    assert remarks("plain", plain) == set()
    assert remarks("best", best) == {evaluations.CHOSEN}
    write_data(run, reference.training, "name", accepted=["0" * 64])
    assert remarks("changed", plain) == {evaluations.SAW_OTHERS}
    assert remarks("changed-best", best) == said


def test_weights_that_are_ruined_are_said(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(model.network.parameters()).fill_(math.nan)
    for part, says in (
        ("figures", "images 0 to 9 hold not-a-number"),
        ("levels", "loss by noise level: is not-a-number"),
        ("bound", "variational bound: is not-a-number"),
        ("flow", "likelihood by the flow: is not-a-number"),
    ):
        with pytest.raises(UnrazeError, match=says):
            finish(running(tmp_path, model, reference, ready, parts=(part,)))  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.npz"))


def test_features_that_are_no_numbers_are_said_before_anything_is_drawn(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    bad = replace(
        ready.spaces[0],
        hash="of none",
        extract=lambda pixels: np.full((len(pixels), 64), np.nan, dtype=np.float32),
    )
    ruined = replace(ready, spaces=(bad,))
    with pytest.raises(InputError, match="features that are not finite"):
        finish(running(tmp_path, model, reference, ruined))
    assert list(tmp_path.iterdir()) == []


# how long it takes


def test_what_is_there_takes_no_time(
    ready: Small, model: Model, reference: Reference, tmp_path: Path
) -> None:
    parts: tuple[Part, ...] = ("figures", "memorisation", "levels", "bound")
    places = places_at(tmp_path, model, reference)

    def seconds() -> list[float]:
        settings = model.config.sample
        return [
            forecast.sampling_time(model, settings, count=COUNT, places=places),
            forecast.samples_time(ready.spaces, reference, parts, places, count=COUNT),
            forecast.network_time(model, reference, parts, places),
        ]

    assert all(took > 0 for took in seconds())
    finish(running(tmp_path, model, reference, ready, parts=parts))
    assert seconds() == [0, 0, 0]
    assert forecast.network_time(model, reference, ("flow",), places) > 0
    assert forecast.samples_time(ready.spaces, reference, (), places, count=COUNT) == 0
    shutil.rmtree(tmp_path / "kept")
    assert all(took > 0 for took in seconds())


def test_feature_networks_that_are_kept_are_not_forecast(
    ready: Small, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert to_train(reference.training) == ()
    assert forecast.features_time((), reference.training) == 0
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path))
    left = to_train(reference.training)
    assert [recipe.objective for recipe in left] == ["labels", "labels"]
    assert to_train(reference.training, first=True) == left[:1]
    unlabelled = replace(reference.training, labels=None)
    assert {recipe.objective for recipe in to_train(unlabelled)} == {"contrast", "fill in"}
