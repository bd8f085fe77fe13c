"""Evaluations in the middle of training: bounded, shown, and without a trace in the weights."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluated import Small, few_steps, small_config
from unraze import checkpoint, generate, run as runs, step as step_of_training, train as training
from unraze.config import Config, preset, updated
from unraze.data import Images, load, to_uint8
from unraze.errors import InputError
from unraze.evaluate import during
from unraze.evaluate.during import (
    CALLS,
    FEWEST,
    SHARE,
    Cost,
    Ruler,
    affordable,
    every_of,
    quality,
    require_worth,
    ruler,
    told,
)
from unraze.evaluate.metrics import kid
from unraze.evaluate.stage import finish
from unraze.generate import Model
from unraze.ranks import Ranks
from unraze.run import Run

EVERY = 20
ENOUGH = Images.from_arrays(np.zeros((50, 1, 8, 8), dtype=np.uint8), source="held-out")


@pytest.fixture
def by(ready: Small, monkeypatch: pytest.MonkeyPatch) -> Ruler:
    """What evaluations of the small runs are measured with: 11 samples every 20 steps."""
    monkeypatch.setattr(during, "FEWEST", 10)
    config = config_of(ready)
    return finish(ruler(config, load(config.data), load(config.data, split="held-out")))


def config_of(ready: Small, **changes: Any) -> Config:
    """45 steps of 64 images, evaluated at 20, 40 and 45."""
    values = {"train.steps": 45, "train.batch": 64, "train.eval_every": EVERY}
    return small_config({"data.source": str(ready.data), **values, **changes})


def trained(config: Config, out: Path) -> tuple[Run, list[training.Report]]:
    images = load(config.data)
    run = runs.create(training.prepare(config, images), out=out)
    return run, list(training.train(run, images))


def weights(run: Run) -> dict[str, bytes]:
    last = checkpoint.listing(run.checkpoints)[-1]
    return {p.name: p.read_bytes() for p in sorted(last.glob("*.safetensors"))}


# what it costs


@pytest.mark.parametrize("batch", [8, 1000])
@pytest.mark.parametrize(("steps", "every"), [(1000, 100), (1000, 999), (500, 300), (90, 1000)])
def test_all_evaluations_together_cost_no_more_than_their_share(
    ready: Small,
    steps: int,
    every: int,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sample is CALLS forward passes; a training step is, an image, one forward and one backward
    pass, which is twice as dear."""
    monkeypatch.setattr(during, "FEWEST", 0)
    budget = {"train.steps": steps, "train.batch": batch, "train.eval_every": every}
    config = config_of(ready, **budget)
    count = finish(ruler(config, load(config.data), load(config.data, split="held-out"))).count
    evaluations = sum(step % every == 0 or step == steps for step in range(1, steps + 1))
    assert evaluations * count * CALLS / 3 <= SHARE * steps * batch + 1e-6
    if count < during.MOST:  # and not much less
        assert evaluations * (count + 1) * CALLS / 3 > SHARE * steps * batch - 1e-6


def test_more_samples_are_affordable_the_rarer_they_are() -> None:
    config, half = (updated(preset("fast"), {"train.batch": batch}) for batch in (64, 32))
    assert affordable(config, 100) == int(0.1 * 100 * 64 * 3 / 25)
    assert affordable(config, 1000) == 10 * 0.1 * 100 * 64 * 3 / 25
    assert affordable(config, 500) == affordable(half, 1000)


def test_of_a_distilled_run_more_samples_are_affordable() -> None:
    """It draws them in the calls that it was distilled to."""
    config = updated(preset("fast"), {"train.batch": 64})
    jumps = {"loss.objective": "consistency", "loss.borders": (0, 600, 1000)}
    jumps |= {"sample.sampler": "consistency", "sample.steps": 2, "sample.guidance": 1.0}
    jumps |= {"distilled": {"run": "a", "checkpoint": "0" * 64}}
    assert affordable(updated(config, jumps), 100) == int(0.1 * 100 * 64 * 3 / 2)


def test_too_often_is_refused_and_the_remedy_is_the_least_that_will_do() -> None:
    for steps in (None, 400, 1000, 10_000):
        config = small_config({"train.batch": 64, "train.eval_every": 20})
        budget = {"train.minutes": 5.0} if steps is None else {"train.steps": steps}
        config = updated(config, budget)
        with pytest.raises(
            InputError, match=r"train\.eval_every = 20: .* give --eval-every \d+$"
        ) as e:
            require_worth(config, ENOUGH)
        least = int(str(e.value).split()[-1])
        require_worth(updated(config, {"train.eval_every": least}), ENOUGH)
        with pytest.raises(InputError):
            require_worth(updated(config, {"train.eval_every": least - 1}), ENOUGH)
        interval = least if steps is None else steps / math.ceil(steps / least)
        assert affordable(config, interval) >= FEWEST


def test_minutes_that_turn_out_to_be_few_steps_are_evaluated_more_rarely() -> None:
    config = small_config({"train.batch": 64, "train.steps": 1000, "train.eval_every": 200})
    assert every_of(config) == 200
    often = updated(config, {"train.eval_every": 50})
    every = every_of(often)
    evaluations = math.ceil(1000 / every)
    assert evaluations > 1
    assert evaluations * FEWEST * CALLS / 3 <= SHARE * 1000 * 64  # forward passes of an image
    assert (evaluations + 1) * FEWEST * CALLS / 3 > SHARE * 1000 * 64
    assert f"every {every} steps in place of 50" in told(often, ENOUGH)
    assert "in place of" not in told(config, ENOUGH)
    assert every_of(updated(config, {"train.steps": 20, "train.eval_every": 5})) == 20


def test_too_few_held_out_images_are_refused() -> None:
    few = Images.from_arrays(ENOUGH.pixels[:49], source="photos")
    config = small_config({"train.batch": 64, "train.steps": 1000, "train.eval_every": 200})
    with pytest.raises(InputError, match=r"49 held-out images of photos are too few .* least 50"):
        require_worth(config, few)
    require_worth(config, ENOUGH)
    require_worth(updated(config, {"train.eval_every": None}), few)


def test_a_finished_run_is_not_made_ready_to_evaluate(
    ready: Small, by: Ruler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = trained(config_of(ready), tmp_path / "run")
    monkeypatch.setattr(during, "ruler", None)
    images = load(config_of(ready).data)
    reports = list(training.train(run, images))
    assert reports[-1].phase == "done"
    assert "preparing" not in {report.phase for report in reports}


def test_making_ready_shows_how_far_it_is_and_can_be_stopped(
    ready: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(during, "FEWEST", 10)
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "cache"))  # where no feature network is
    config = config_of(ready)
    images = load(config.data)
    run = runs.create(training.prepare(config, images), out=tmp_path / "run")
    asked = iter([False, True])
    with few_steps():
        few, *before, last = training.train(run, images, stop=lambda: next(asked))
    assert str(few.message).startswith("TOO SHORT: 45 steps")
    assert [report.phase for report in before] == ["preparing"] * 3
    # what is to be done, images that are read, and steps
    assert [(report.step, report.steps) for report in before] == [(0, 0), (150, 150), (0, 12)]
    assert (last.phase, last.message) == ("stopped", "stopped at step 0 of 45, before the next one")
    with few_steps():
        assert list(training.train(run, images))[-1].phase == "done"
    whole, _ = trained(config, tmp_path / "whole")
    assert weights(run) == weights(whole)


def test_a_run_that_is_too_short_for_any_is_refused() -> None:
    config = small_config({"train.batch": 64, "train.steps": 100, "train.eval_every": 100})
    with pytest.raises(
        InputError, match=r"of the run's 100 steps; give --steps 131 --eval-every 131, or"
    ):
        require_worth(config, ENOUGH)
    require_worth(updated(config, {"train.steps": 131, "train.eval_every": 131}), ENOUGH)
    require_worth(small_config({"train.steps": 3}), ENOUGH)  # no evaluation is asked for


def test_the_stopwatch_tells_evaluations_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(during.time, "perf_counter", lambda: now)
    cost = Cost(rest=8.0, evaluating=2.0)
    now += 6
    with cost.of_evaluation():
        now += 4
    assert (cost.seconds, cost.share) == (4, 6 / 20)
    now += 20
    with cost.of_evaluation():
        now += 1
    assert (cost.seconds, cost.rest, cost.evaluating) == (1, 34, 7)


def test_the_stopwatch_of_a_resumed_run_goes_on_from_its_logs(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for pace in (50.0, 100.0, 0.0):
        runs.append_row(run.stats, {"step": 1, "loss": 1.0, "images_per_second": pace})
    runs.append_row(run.quality, {"step": 1, "seconds": 0.25})
    runs.append_row(run.quality, {"step": 2})  # of before seconds were logged
    cost = Cost.before(run, batch=10)
    assert (cost.rest, cost.evaluating) == pytest.approx((0.3, 0.25))
    assert Cost.before(Run(tmp_path / "new"), batch=10).rest == 0
    for file, odd in ((run.stats, {"images_per_second": "x"}), (run.quality, {"seconds": [1]})):
        runs.append_row(file, {"step": 2} | odd)  # somebody's, who did not write as training does
    again = Cost.before(run, batch=10)
    assert (again.rest, again.evaluating) == (cost.rest, cost.evaluating)


# what it measures


def test_quality_is_the_kid_of_samples_of_the_same_noise_every_time(
    by: Ruler, model: Model
) -> None:
    found = quality(model, by)
    assert found is not None
    settings = generate.changed(
        model.config.sample, {"sampler": "ddim", "steps": 25, "clip": "clip", "guidance": 1.0}
    )
    x = generate.sample(model, by.count, seed=model.config.train.seed, settings=settings)
    wanted = kid(by.real, by.space.extract(to_uint8(x)))
    assert (found.value, found.low, found.high) == (wanted.value, wanted.low, wanted.high)
    # however the run is otherwise sampled
    odd = {"sample.sampler": "random", "sample.steps": 3, "sample.clip": "none"}
    changed = replace(model, config=updated(model.config, odd))
    assert repr(quality(changed, by)) == repr(found)


def test_the_ruler_holds_the_held_out_images(by: Ruler, ready: Small) -> None:
    config = config_of(ready)
    unseen = load(config.data, split="held-out").pixels
    np.testing.assert_array_equal(by.real, ready.spaces[0].extract(unseen))
    assert by.space.hash == ready.spaces[0].hash
    assert by.count == affordable(config, 15) == 11


def test_many_held_out_images_are_taken_evenly(
    ready: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(during, "MOST_REAL", 7)
    config = config_of(ready)
    unseen = load(config.data, split="held-out")
    found = finish(ruler(config, load(config.data), unseen))
    chosen = unseen.pixels[[0, 10, 20, 30, 39, 49, 59]]
    np.testing.assert_allclose(found.real, ready.spaces[0].extract(chosen), atol=1e-6)


def test_samples_that_are_no_numbers_have_no_quality(by: Ruler, model: Model) -> None:
    with torch.no_grad():
        next(model.network.parameters()).fill_(math.nan)
    assert quality(model, by) is None


def test_it_says_whether_a_network_is_trained_first(
    ready: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(during, "FEWEST", 10)
    images = load(config_of(ready).data)
    assert told(config_of(ready), images) == "making ready to evaluate on held-out images"
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "empty"))
    with few_steps():
        assert "training a feature network, once, takes about" in told(config_of(ready), images)
        finish(ruler(config_of(ready), images, load(config_of(ready).data, split="held-out")))
    kept = [file.name for file in (tmp_path / "empty" / "features").glob("*.safetensors")]
    assert len(kept) == 1  # the second space is none of its business
    assert told(config_of(ready), images) == "making ready to evaluate on held-out images"


# in training


def test_training_evaluates_keeps_the_best_and_is_the_same_run(
    by: Ruler, ready: Small, tmp_path: Path
) -> None:
    run, reports = trained(config_of(ready), tmp_path / "run")
    rows = runs.read_rows(run.quality)
    assert [row["step"] for row in rows] == [20, 40, 45]
    for row in rows:
        assert row["low"] < row["kid"] < row["high"]
        assert (row["samples"], row["features"]) == (by.count, by.space.hash)
        assert row["seconds"] > 0
        assert 0 < row["share"] < 1
    best = min(rows, key=lambda row: row["kid"])
    model = generate.load(run.path, step="best")
    assert model.step == best["step"]
    found = quality(model, by)
    assert found is not None
    assert found.value == pytest.approx(best["kid"], rel=1e-6)
    said = [report.message or "" for report in reports if report.phase == "evaluated"]
    log = (run.path / "log.txt").read_text(encoding="utf-8")
    for row, text in zip(rows, said, strict=True):
        assert f"step {row['step']}: KID × 1000 is {1000 * row['kid']:.2f} (" in text
        cost = re.search(r"it took ([\d.]+) s, evaluating ([\d.]+)% of the time so far", text)
        assert cost is not None
        assert float(cost[1]) == pytest.approx(row["seconds"], abs=0.06)
        assert float(cost[2]) == pytest.approx(100 * row["share"], abs=0.06)
        assert text in log
    plain, _ = trained(config_of(ready, **{"train.eval_every": None}), tmp_path / "plain")
    assert weights(plain) == weights(run)
    assert not plain.quality.exists()


def test_a_best_checkpoint_that_is_damaged_is_said(
    by: Ruler, ready: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([1.0, 2.0, 3.0])  # worse and worse: only the first would be kept

    def worse(model: Model, by: Ruler, ranks: Ranks, **_: Any) -> Any:
        found = quality(model, by, ranks)
        assert found is not None
        return replace(found, value=next(values))

    monkeypatch.setattr(during, "quality", worse)
    config = config_of(ready)
    images = load(config.data)
    run = runs.create(training.prepare(config, images), out=tmp_path / "run")
    said = []
    for report in training.train(run, images):
        if report.phase == "evaluated":
            said.append(report.message or "")
            if report.step == 20:
                (file,) = run.best.glob("*/ema.safetensors")
                file.write_bytes(file.read_bytes()[:-1])
    assert "the best so far" in said[0]
    assert "DAMAGED" in said[1]
    assert "best" not in said[2]
    assert [path.name for path in checkpoint.listing(run.best)] == ["step-00000040"]


def test_a_roll_back_returns_to_what_was_best_before(
    by: Ruler, ready: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of the course that is given up goes, the one before it is the best again, and later
    ones are held against it."""
    values, bad = iter([2.0, 1.0, 3.0, 2.5]), {41, 42, 43}
    honest, losses = quality, step_of_training._losses

    def given(model: Model, by: Ruler, ranks: Ranks, **_: Any) -> Any:
        found = honest(model, by, ranks)
        assert found is not None
        return replace(found, value=next(values))

    def poisoned(trainee: Any, x0: Any, t: Any, places: Any, step: int, **rest: Any) -> Any:
        found = losses(trainee, x0, t, places, step, **rest)
        if step not in bad:
            return found
        bad.discard(step)
        return found * math.nan

    monkeypatch.setattr(during, "quality", given)
    monkeypatch.setattr(step_of_training, "_losses", poisoned)
    config = config_of(ready, **{"train.checkpoint_every": 25})
    images = load(config.data)
    run = runs.create(training.prepare(config, images), out=tmp_path / "run")
    there, said = [], []
    for report in training.train(run, images):
        if report.phase == "evaluated":
            said.append("the best so far" in (report.message or ""))
            there.append([int(path.name[5:]) for path in checkpoint.listing(run.best)])
    assert said == [True, True, False, False]
    assert there == [[20], [20, 40], [20], [20]]
    assert generate.load(run.path, step="best").step == 20
    assert [(row["step"], row["kid"]) for row in runs.read_rows(run.quality)] == [
        (20, 2.0),
        (40, 3.0),
        (45, 2.5),
    ]


def test_images_that_are_no_numbers_leave_no_row(
    by: Ruler, ready: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(during, "quality", lambda *_, **__: None)
    run, reports = trained(config_of(ready), tmp_path / "run")
    said = [report.message or "" for report in reports if report.phase == "evaluated"]
    assert len(said) == 3
    assert all("not evaluated, the images drawn are not finite" in text for text in said)
    assert runs.read_rows(run.quality) == []
    assert checkpoint.listing(run.best) == []


def test_a_run_without_held_out_images_is_refused_before_it_begins(
    ready: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(during, "FEWEST", 1)
    with np.load(ready.data) as opened:
        np.save(tmp_path / "all.npy", opened["x_train"])
    config = config_of(ready, **{"data.source": str(tmp_path / "all.npy"), "data.held_out": 0.0})
    with pytest.raises(InputError, match="holds no images back from training"):
        training.prepare(config, load(config.data))
