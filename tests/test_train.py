"""The loop: what it learns, what it refuses, and what it does when numbers blow up."""

import gc
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stopping import after_step
from unraze import (
    batches,
    checkpoint,
    ema,
    measure,
    optim,
    pictures,
    preview,
    rng,
    run as runs,
    step as step_of_training,
    train as training,
)
from unraze.config import Config, DataConfig, TrainConfig, from_dict, preset, updated
from unraze.data import Images, load, load_images, to_float
from unraze.denoiser import denoiser
from unraze.errors import DataError, DivergedError, InputError
from unraze.generate import generate
from unraze.measure import fixed, told, too_short
from unraze.preview import CALLS, SHARE, share_of
from unraze.process import destroy
from unraze.ranks import ALONE, Ranks
from unraze.step import kept_for_gradients, network_of
from unraze.train import Report, fit, prepare, train


def losses(path: Path) -> list[float]:
    return [row["loss"] for row in runs.read_rows(runs.Run(path).stats) if "loss" in row]


def test_a_small_real_training_learns(tmp_path: Path) -> None:
    """Digits for 200 steps. The zero-initialised network of a v-loss starts at about the mean
    square of v, near 1; the mean of the data alone (a constant picture) stays above 0.4."""
    images = load(DataConfig(source="digits"))
    config = updated(
        preset("fast"),
        {
            "network.widths": (16, 32),
            "network.blocks": 1,
            "train.steps": 200,
            "train.batch": 32,
            "train.dtype": "float32",
            "train.threads": 1,
        },
    )
    seen: list[Report] = []
    model = fit(images, config, out=tmp_path / "run", report=seen.append)
    curve = losses(tmp_path / "run")
    assert curve[0] > 0.6
    assert np.mean(curve[-20:]) < 0.36
    assert seen[-1].phase == "done"
    for name in ("config.toml", "command.txt", "env.json", "log.txt", "reals.png", "loss.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert len(list((tmp_path / "run" / "samples").glob("step-*.png"))) == 8
    final = next(p.x for p in generate(model, 32, batch=32) if p.finished)
    # the digits' ink: the mean picture of the samples is that of the data, not of noise
    mean = torch.from_numpy(images.pixels.astype(np.float32) / 127.5 - 1).mean(0)
    off = (final.clamp(-1, 1).mean(0) - mean).abs().mean()
    assert off < 0.25


def test_minutes_become_steps_once_and_are_recorded(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    config = updated(tiny_config, {"train.minutes": 0.02, "train.dtype": "auto"})
    run = runs.create(prepare(config, tiny_images), out=tmp_path / "run")
    assert runs.read_config(run).train.steps is None
    list(train(run, tiny_images))
    resolved = runs.read_config(run)
    assert resolved.train.minutes is None
    assert resolved.train.dtype in ("float32", "bfloat16")
    assert runs.read_rows(run.stats)[-1]["step"] == resolved.train.steps
    assert "0.02 minutes" in (run.path / "config.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("begins", range(0, 40, 10))
def test_what_the_machine_does_beside_measuring_costs_both_dtypes_alike(
    tiny_config: Config, tiny_images: Images, monkeypatch: pytest.MonkeyPatch, begins: int
) -> None:
    """A step of bfloat16 takes 0.6 of one of float32; while something else runs, half of the time
    measured, all of them take thrice as long."""
    count = itertools.count()

    def seconds_of(trainee: step_of_training.Trainee, step: int) -> float:
        disturbed = begins <= next(count) < begins + 20
        return (0.6 if trainee.config.train.dtype == "bfloat16" else 1.0) * (3 if disturbed else 1)

    monkeypatch.setattr(measure, "has_bfloat16", lambda kind: True)
    monkeypatch.setattr(measure, "_seconds_of", seconds_of)
    config = prepare(updated(tiny_config, {"train.dtype": "auto"}), tiny_images)
    found = measure.seconds_a_step(config, tiny_images, 20, 60.0, ALONE, lambda: False)
    assert found is not None
    assert next(count) == 2 * 20
    assert measure.fastest(found) == "bfloat16"
    assert found["bfloat16"] / found["float32"] == pytest.approx(0.6)


def test_both_kinds_of_step_of_a_self_conditioned_network_count_alike(
    tiny_config: Config, tiny_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that look twice take 1.3 of the others, however many there are of each."""
    for seed in range(5):
        changes = {"loss.self_conditioning": True, "train.seed": seed}
        config = prepare(updated(tiny_config, changes), tiny_images)
        kinds: list[bool] = []

        def seconds_of(trainee: step_of_training.Trainee, step: int) -> float:
            kinds.append(batches.looks_twice(trainee.config.train, step))  # noqa: B023
            return 1.3 if kinds[-1] else 1.0  # noqa: B023

        monkeypatch.setattr(measure, "_seconds_of", seconds_of)
        found = measure.seconds_a_step(config, tiny_images, 5, 60.0, ALONE, lambda: False)
        assert found == {"float32": pytest.approx(1.15)}
        assert set(kinds[1:]) == {False, True}


def test_previews_that_are_close_have_their_time(tiny_config: Config) -> None:
    config = updated(tiny_config, {"train.preview_every": None, "train.minutes": 1.0})
    assert share_of(config) == SHARE == share_of(updated(config, {"train.preview_every": 10_000}))
    # two pictures by these calls of a third of an image of a step, of which it has eight
    each = 2 * preview.quick(config, CALLS).steps / 3 / 8
    assert share_of(updated(config, {"train.preview_every": 1})) == pytest.approx(each / (1 + each))


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (2, {"train.label_dropout": 0.1}),
        (1, {"train.label_dropout": 0.0}),
        (4, {"train.label_dropout": 0.0}),
    ],
)
def test_a_table_of_classes_has_as_many_rows_as_are_asked_for(
    tiny_images: Images, rows: int, changes: dict[str, Any]
) -> None:
    network: dict[str, Any] = {"kind": "unet2d", "num_class_embeds": rows}
    network |= {"block_out_channels": [8, 16], "norm_num_groups": 4}
    kinds = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    train = {"steps": 1, "classes": True}
    config = from_dict({"network": network | kinds, "train": train})
    with pytest.raises(InputError, match=f"num_class_embeds = {rows}: there are 2 classes.*give 3"):
        prepare(updated(config, changes), tiny_images)
    prepare(updated(config, changes | {"network.num_class_embeds": 3}), tiny_images)


def test_a_step_is_measured_in_the_dtype_that_is_asked_for(
    tiny_config: Config, tiny_images: Images
) -> None:
    config = prepare(updated(tiny_config, {"train.dtype": "bfloat16"}), tiny_images)
    found = measure.seconds_a_step(config, tiny_images, 5, 60.0, ALONE, lambda: False)
    assert found is not None
    assert list(found) == ["bfloat16"]
    assert found["bfloat16"] > 0


def test_what_is_measured_is_told_the_clusters_of_the_run(
    tiny_config: Config, tiny_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def seconds_of(trainee: step_of_training.Trainee, step: int) -> float:
        told.append(trainee.num_classes)
        return 1.0

    monkeypatch.setattr(measure, "_seconds_of", seconds_of)
    changes = {"train.clusters": 4, "train.steps": 2, "train.checkpoint_every": None}
    many = Images.from_arrays(np.tile(tiny_images.pixels, (20, 1, 1, 1)))
    model = fit(many, updated(tiny_config, changes), out=tmp_path / "run")
    assert model.num_classes > 1
    assert set(told) == {model.num_classes}


def test_bfloat16_is_to_earn_what_it_leaves_out() -> None:
    assert measure.fastest({"float32": 1.0, "bfloat16": 0.95}) == "float32"
    assert measure.fastest({"float32": 1.0, "bfloat16": 0.9}) == "bfloat16"


def test_fit_takes_one_budget(tiny_config: Config, tiny_images: Images, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="minutes and steps"):
        fit(tiny_images, tiny_config, out=tmp_path / "run", minutes=1.0, steps=3)
    assert not (tmp_path / "run").exists()


def test_epochs_become_steps(tiny_config: Config, tiny_images: Images) -> None:
    config = prepare(updated(tiny_config, {"train.epochs": 3}), tiny_images)
    assert config.train.steps == 3 * 40 // 8


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulated_gradients_are_the_whole_batch(
    tiny_config: Config, tiny_images: Images, accumulate: int
) -> None:
    def gradient(parts: int) -> list[torch.Tensor]:
        config = updated(tiny_config, {"train.accumulate": parts})
        trainee = step_of_training.begin(prepare(config, tiny_images), tiny_images)
        for p in trainee.network.parameters():
            torch.manual_seed(p.numel())
            torch.nn.init.normal_(p, std=0.1)
        step_of_training.gradients(trainee, 1)
        return [p.grad for p in trainee.network.parameters() if p.grad is not None]

    for a, b in zip(gradient(1), gradient(accumulate), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.objective": "reduced"},
        {"loss.objective": "four-variable"},
        {"loss.objective": "reduced", "loss.self_conditioning": True},
    ],
    ids=["reduced", "four-variable", "self-conditioned"],
)
def test_the_losses_of_the_text_train(
    tiny_config: Config, tiny_images: Images, tmp_path: Path, changes: dict[str, object]
) -> None:
    """Either makes the network a better judge of the noise: ‖ε̄ - ε̂‖² falls below 1 a value."""
    text = {
        "loss.parametrisation": "eps_step",
        "loss.continuous": False,
        "loss.times": "uniform",
        "schedule.kind": "linear",
        "schedule.steps": 10,
        "train.steps": 30,
        "train.batch": 32,
        "train.lr": 1e-2,
    }
    model = fit(tiny_images, updated(tiny_config, text | changes), out=tmp_path / "run")
    x0 = to_float(tiny_images.pixels)
    errors = []
    for t in range(1, 11):
        times = torch.full((40,), float(t))
        eps = rng.normal(1, "judge", range(40), t, (1, 8, 8))
        x_t = destroy(model.schedule, x0, times.long(), eps)
        denoise = denoiser(model.network, model.schedule, "eps_step")
        errors.append(float((denoise(x_t, times).eps - eps).square().mean()))
    assert np.mean(errors) < 0.7, "an untrained network emits 0 and stands at 1"


class TestBlowUp:
    """Loss or gradient that is not finite."""

    @staticmethod
    def poison(monkeypatch: pytest.MonkeyPatch, bad: set[int], once: bool = False) -> None:
        honest = step_of_training._losses
        left = set(bad)

        def poisoned(trainee, x0, t, places, step, **rest):  # type: ignore[no-untyped-def]
            values = honest(trainee, x0, t, places, step, **rest)
            if step in (left if once else bad):
                left.discard(step)
                return values * float("nan")
            return values

        monkeypatch.setattr(step_of_training, "_losses", poisoned)

    def test_one_bad_step_is_skipped(
        self,
        tiny_config: Config,
        tiny_images: Images,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.poison(monkeypatch, {5})
        model = fit(tiny_images, tiny_config, out=tmp_path / "run")
        rows = runs.read_rows(runs.Run(tmp_path / "run").stats)
        assert [row["step"] for row in rows if "skipped" in row] == [5]
        assert all(bool(torch.isfinite(p).all()) for p in model.network.parameters())

    def test_three_in_a_row_roll_back_once_with_a_lower_rate(
        self,
        tiny_config: Config,
        tiny_images: Images,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.poison(monkeypatch, {6, 7, 8}, once=True)
        config = updated(tiny_config, {"train.checkpoint_every": 4})
        given_up, seen = [], list[Report]()
        remove = training.remove_previews_after

        def removed(run: runs.Run, step: int) -> None:
            before = {int(p.stem[5:]) for p in run.samples.glob("step-*.png")}
            remove(run, step)
            given_up.append(sorted(before - {int(p.stem[5:]) for p in run.samples.glob("*.png")}))

        monkeypatch.setattr(training, "remove_previews_after", removed)
        fit(tiny_images, config, out=tmp_path / "run", report=seen.append)
        assert any("back to step 4" in (r.message or "") for r in seen)
        assert given_up == [[6]]
        rows = runs.read_rows(runs.Run(tmp_path / "run").stats)
        assert [row["step"] for row in rows] == list(range(1, 13))
        resolved = runs.read_config(runs.Run(tmp_path / "run")).train
        full = optim.learning_rate(7, 12, resolved)
        assert rows[6]["lr"] == pytest.approx(full * training.LOWER_RATE)

    def test_what_a_bad_step_left_is_not_what_is_rolled_back_to(
        self,
        tiny_config: Config,
        tiny_images: Images,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.poison(monkeypatch, {6, 7, 8}, once=True)
        config = updated(tiny_config, {"train.checkpoint_every": 1})
        seen: list[Report] = []
        fit(tiny_images, config, out=tmp_path / "run", report=seen.append)
        assert any("back to step 5" in (r.message or "") for r in seen)

    def test_a_run_that_is_stopped_again_and_again_rolls_back_as_one_that_is_not(
        self,
        tiny_config: Config,
        tiny_images: Images,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """More stops between periodic checkpoints than are kept, while it goes bad, and after."""
        config = updated(tiny_config, {"train.checkpoint_every": 5, "train.preview_every": 12})
        honest = step_of_training._losses

        def poisoned(trainee, x0, t, places, step, **rest):  # type: ignore[no-untyped-def]
            full = optim.learning_rate(step, 12, trainee.config.train)
            bad = step in (9, 10, 11) and trainee.optimizer.param_groups[0]["lr"] == full
            return honest(trainee, x0, t, places, step, **rest) * (float("nan") if bad else 1)

        monkeypatch.setattr(step_of_training, "_losses", poisoned)

        def trained(name: str, stops: list[int]) -> tuple[list[str], list[bytes]]:
            run = runs.create(prepare(config, tiny_images), out=tmp_path / name)
            said: list[str] = []
            for stop in [*stops, 0]:
                now = lambda stop=stop: runs.read_rows(run.stats)[-1]["step"] == stop  # noqa: E731
                said += [r.message or "" for r in train(run, tiny_images, stop=now)]
            assert [row["step"] for row in runs.read_rows(run.stats)] == list(range(1, 13))
            last = checkpoint.read(checkpoint.listing(run.checkpoints)[-1])
            assert last.step == 12
            return said, [p.read_bytes() for p in sorted(last.path.glob("*.safetensors"))]

        back = "3 bad steps in a row: back to step 5, with 0.3 of the learning rate"
        whole, expected = trained("whole", [])
        said, found = trained("stopped", [6, 7, 8, 9, 10, 6, 7, 8])
        assert whole.count(back) == said.count(back) == 1
        begun = [text for text in said if text.startswith("continuing")]
        assert begun == [f"continuing from step {k} of 12" for k in (6, 7, 8, 9, 10, 6, 7, 8)]
        assert found == expected

    def test_then_it_stops_and_says_where_and_why(
        self,
        tiny_config: Config,
        tiny_images: Images,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.poison(monkeypatch, set(range(6, 13)))
        config = updated(tiny_config, {"train.checkpoint_every": 4})
        with pytest.raises(DivergedError) as caught:
            fit(tiny_images, config, out=tmp_path / "run")
        assert caught.value.exit_status == 3
        text = str(caught.value)
        expected, _ = batches.samples_of(config.train, 40, 8, flip=False)
        assert "step 8" in text
        assert ", ".join(map(str, expected.tolist())) in text
        assert "learning rate" in text
        found, problems = checkpoint.newest(tmp_path / "run" / "checkpoints")
        assert found is not None
        assert problems == []
        assert found.step == 4
        assert all(bool(torch.isfinite(v).all()) for v in found.ema.values())
        assert runs.summaries(tmp_path)[0].state == "failed"

    def test_a_rate_that_diverges_by_itself_never_saves_what_is_not_finite(
        self, tiny_config: Config, tiny_images: Images, tmp_path: Path
    ) -> None:
        wild = {"train.lr": 1e30, "train.steps": 30, "train.checkpoint_every": 1, "train.warmup": 0}
        with pytest.raises(DivergedError):
            fit(tiny_images, updated(tiny_config, wild), out=tmp_path / "run")
        for path in checkpoint.listing(tmp_path / "run" / "checkpoints"):
            found = checkpoint.read(path)
            assert all(bool(torch.isfinite(v).all()) for v in found.model.values())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train.steps": None}, "the budget is missing"),
        ({"loss.parametrisation": "eps"}, "cannot be learned where ᾱ_T = 0"),
        ({"train.device": "nonsense"}, "device = 'nonsense'"),
        ({"network.widths": [8] * 9}, "size 8x8 .* 8 halvings of the sides make 256x256 of it"),
        ({"schedule.kind": "linear", "schedule.rescaled": False}, "ᾱ_T = "),
        ({"train.steps": 10**10}, "train.steps = 10000000000: is more than 1,000,000,000 steps"),
        ({"train.epochs": 1e300}, r"train.epochs = 1e\+300: is more than 1,000,000,000 steps"),
        ({"train.epochs": 1e308}, r"train.epochs = 1e\+308: is more than 1,000,000,000 steps"),
        ({"train.minutes": 1e300}, r"train.minutes = 1e\+300: is more than ten years"),
        ({"train.batch": 10**9}, "train.batch = 1000000000: so many images of 8 x 8 at once"),
        ({"train.batch": 10**12}, "train.batch = 1000000000000: give at most 1000000000"),
        ({"network.widths": [2**16]}, r"network: its [0-9,]+ weights need [0-9,]+ GiB"),
        ({"network.widths": [2**40]}, r"network.widths.0 = 1099511627776: give at most 65536"),
        ({"sample.sampler": "restart"}, "sample: steps = [0-9]+: too few calls for restart"),
        (
            {"sample.spacing": (0.0, 2.5, 9.0), "sample.steps": 2, "loss.continuous": False},
            "sample: spacing: this network was trained at whole times alone",
        ),
        (
            {"sample.spacing": (0.0, 1.0, 2.0), "sample.steps": 2},
            r"sample: spacing = … 2: ᾱ = 0\.9.* let the last time be T = ",
        ),
        (
            {"sample.final_noise": True},
            'sample.final_noise = true: sampler = "[a-z0-9_]+" has none',
        ),
        ({"loss.teacher_guidance": 2.0}, "loss.teacher_guidance = 2.0: .* has no teacher"),
        (
            {"loss.huber_delta": 0.1, "loss.distance": "l2"},
            "loss.huber_delta = 0.1: does nothing where loss.distance = l2, but with huber; leave",
        ),
        (
            {"loss.times_std": 2.0, "loss.times": "uniform"},
            "loss.times_std = 2: .* = uniform, but with logit-normal or log-normal; leave it at 1",
        ),
        (
            {"train.muon_scale": 2.0, "train.optimizer": "adamw"},
            "train.muon_scale = 2: does nothing where train.optimizer = adamw, but with muon",
        ),
    ],
)
def test_what_would_fail_later_is_refused_first(
    tiny_config: Config, tiny_images: Images, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        prepare(updated(tiny_config, changes), tiny_images)


@pytest.mark.parametrize(("side", "asked", "steps"), [(48, 0, 10), (49, 0, 15), (49, 10, 10)])
def test_the_steps_of_sampling_go_by_the_size(
    tiny_config: Config, side: int, asked: int, steps: int
) -> None:
    """Where none are asked for; and there are never more than T."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, side, side), dtype=np.uint8)
    config = updated(tiny_config, {"sample.steps": asked, "schedule.steps": 60})
    images = Images.from_arrays(pixels)
    assert prepare(config, images).sample.steps == steps
    if not asked:
        short = prepare(updated(config, {"schedule.steps": 5}), images)
        assert short.sample.steps == 5


def test_a_number_of_a_choice_is_taken_where_it_was_made(
    tiny_config: Config, tiny_images: Images
) -> None:
    made = {"loss.distance": "huber", "loss.weighting": "p2", "loss.times": "log-normal"}
    of_them = {"loss.huber_delta": 0.1, "loss.p2_k": 2.0, "loss.times_mean": -1.2}
    found = prepare(updated(tiny_config, {**made, **of_them}), tiny_images)
    assert (found.loss.huber_delta, found.loss.p2_k, found.loss.times_mean) == (0.1, 2.0, -1.2)


@pytest.mark.parametrize("name", ["fast", "annotated", "literal"])
def test_what_a_step_keeps_is_counted_before_it_is_made(name: str) -> None:
    size = {"data.size": (16, 16), "data.channels": 1}
    config = updated(preset(name), {**size, "train.batch": 8, "train.accumulate": 2})
    network = network_of(config, num_classes=0)
    sizes: dict[int, int] = {}
    held = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        held.append(x)  # or its memory would be given to another
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(torch.randn(4, 1, 16, 16), torch.rand(4))
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    wanted = sum(size for pointer, size in sizes.items() if pointer not in weights)
    with torch.device("meta"):
        shapes = network_of(config, num_classes=0)
    found = kept_for_gradients(shapes, config)
    # what lies otherwise in memory is copied here and not there, or the other way about
    assert found == pytest.approx(wanted, rel=0.15)
    half = kept_for_gradients(shapes, updated(config, {"train.dtype": "bfloat16"}))
    assert half == found // 2


def test_a_step_that_memory_does_not_bear_is_refused(
    tiny_config: Config, tiny_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = updated(tiny_config, {"train.batch": 64})
    prepare(config, tiny_images)
    monkeypatch.setattr(training, "memory", lambda device: 2**20)
    with pytest.raises(InputError, match=r"a step of train.batch = 64 images of 8 x 8 needs"):
        prepare(config, tiny_images)
    monkeypatch.setattr(training, "memory", lambda device: 2**27)  # less than the program has
    with pytest.raises(InputError, match=r"with 0\.0 of images, and 0\.1 may be had here"):
        prepare(config, tiny_images)


def test_what_one_rank_cannot_hold_many_may(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its share of a batch, and of the weights where they are divided; on processors they
    share the memory of their machine."""
    sizes = {"data.size": (8, 8), "data.channels": 1, "train.batch": 4096}
    config = updated(tiny_config, {**sizes, "train.accumulate": 1})
    monkeypatch.setattr(training, "memory", lambda device: 64 * 2**20)
    with pytest.raises(InputError, match=r"a step of train.batch = 4096 .* needs"):
        training.require_memory(config)
    training.require_memory(config, ranks=Ranks(0, 64))
    with pytest.raises(InputError, match="by each of 64 ranks"):
        training.require_memory(config, ranks=Ranks(0, 64, 0, 64))
    with torch.device("meta"):
        weights = sum(p.numel() for p in network_of(config, num_classes=0).parameters())
    few = updated(config, {"train.batch": 64})
    monkeypatch.setattr(training, "memory", lambda device: 12 * weights)
    for divided in (few, updated(few, {"train.shard": True})):
        with pytest.raises(InputError, match="weights need"):
            training.require_memory(divided)
    with pytest.raises(InputError, match="weights need"):
        training.require_memory(few, ranks=Ranks(0, 4))
    with pytest.raises(InputError, match=r"a step of train\.batch"):  # the weights alone fit
        training.require_memory(updated(few, {"train.shard": True}), ranks=Ranks(0, 4))


def test_a_resumed_run_does_not_keep_what_it_read(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    run = runs.create(prepare(tiny_config, tiny_images), out=tmp_path / "run")
    list(training.train(run, tiny_images, stop=after_step(run, 5)))
    for report in training.train(run, tiny_images):
        if report.phase == "training" and report.step > 6:
            gc.collect()
            assert not [x for x in gc.get_objects() if type(x) is checkpoint.Checkpoint]


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.full((4, 1, 8, 8), 255.0), r"values from 255 to 255; give them in \[-1, 1\]"),
        (np.zeros((4, 8, 8), dtype=np.uint8), r"images: ndarray; .*Images\.from_arrays"),
    ],
)
def test_images_that_would_be_misread_are_refused(
    images: Any, says: str, tiny_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        fit(images, tiny_config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_classes_need_labels(tiny_config: Config, tiny_images: Images) -> None:
    bare = Images.from_arrays(tiny_images.pixels, source="bare")
    with pytest.raises(InputError, match="no class labels"):
        prepare(updated(tiny_config, {"train.classes": True}), bare)


class TestBatches:
    def test_an_epoch_sees_every_image_once(self) -> None:
        config = TrainConfig(batch=8, seed=5)
        seen = [batches.samples_of(config, 40, step, flip=False)[0] for step in range(1, 11)]
        for epoch in (seen[:5], seen[5:]):
            assert sorted(np.concatenate(epoch).tolist()) == list(range(40))
        assert not np.array_equal(np.concatenate(seen[:5]), np.concatenate(seen[5:]))

    def test_a_batch_larger_than_the_data_goes_round(self) -> None:
        indices, _ = batches.samples_of(TrainConfig(batch=100), 30, 1, flip=False)
        counts = np.bincount(indices, minlength=30)
        assert counts.min() == 3
        assert counts.max() == 4

    def test_half_are_mirrored_and_the_same_ones_each_time(self) -> None:
        config = TrainConfig(batch=2000)
        _, flips = batches.samples_of(config, 2000, 1, flip=True)
        _, again = batches.samples_of(config, 2000, 1, flip=True)
        assert flips is not None
        assert again is not None
        assert np.array_equal(flips, again)
        assert abs(flips.mean() - 0.5) < 5 * 0.5 / 2000**0.5

    def test_each_rank_draws_the_mirroring_of_its_own_places(self) -> None:
        config = TrainConfig(batch=100)
        indices, flips = batches.samples_of(config, 30, 7, flip=True)
        assert flips is not None
        streams = [
            rng.generator(config.seed, "flip", int(sample), (600 + place) // 30)
            for place, sample in enumerate(indices)
        ]
        assert flips.tolist() == [stream.random() < 0.5 for stream in streams]
        together = np.zeros(100, dtype=bool)
        for number in range(3):
            places = Ranks(number, 3).share(100)
            own_indices, own = batches.samples_of(config, 30, 7, flip=True, places=places)
            assert own is not None
            assert np.array_equal(own_indices, indices)
            assert not together[places].any()
            together |= own
        assert np.array_equal(together, flips)

    def test_labels_are_hidden_at_the_asked_rate(self) -> None:
        config = TrainConfig(batch=5000, label_dropout=0.2)
        drawn = batches.labels_of(config, np.zeros(5000, dtype=np.int64), 3, 1)
        share = float((drawn == 3).double().mean())
        assert set(drawn.tolist()) == {0, 3}
        assert abs(share - 0.2) < 5 * 0.4 / 5000**0.5


class TestAverageAndOptimiser:
    def test_the_average_is_that_of_the_formula(self) -> None:
        network = torch.nn.BatchNorm1d(3)  # has trained weights and buffers
        average = ema.start(network)
        expected = average["weight"].clone().double()
        for n in range(5):
            with torch.no_grad():
                network.weight.add_(torch.randn(3))
                network.running_mean.fill_(float(n))
            d = ema.decay_at(n, 0.9, warmup=True)
            assert d == min(0.9, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * network.weight.detach().double()
            ema.update(average, network, d)
        torch.testing.assert_close(average["weight"].double(), expected, rtol=1e-5, atol=1e-6)
        assert average["running_mean"].tolist() == [4.0] * 3, "buffers are copied, not averaged"

    def test_the_rate_rises_stays_and_falls_to_almost_nothing(self) -> None:
        config = TrainConfig(lr=1.0, warmup=10, decay=0.5)
        rates = [optim.learning_rate(step, 200, config) for step in range(1, 201)]
        assert rates[0] == pytest.approx(1 / 11)
        assert max(rates) == 1.0
        assert rates[10:100] == [1.0] * 90
        assert all(a > b for a, b in itertools.pairwise(rates[101:]))
        assert rates[-1] == pytest.approx(0.01)

    @pytest.mark.parametrize("kind", ["adamw", "muon"])
    def test_norms_and_biases_do_not_decay(self, kind: Any) -> None:
        network = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.GroupNorm(2, 4))
        config = TrainConfig(weight_decay=0.5, lr=0.1, muon_scale=1.0, optimizer=kind)
        optimizer = optim.build(network, config)
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        before = [p.detach().clone() for p in network.parameters()]
        optimizer.step()
        factors = [
            float((a.detach() / b).nanmean()) if b.abs().sum() > 0 else 1.0
            for a, b in zip(network.parameters(), before, strict=True)
        ]
        assert factors == pytest.approx([0.95, 1.0, 1.0, 1.0])


class TestMuon:
    @pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 3, 3, 3), (3, 8, 3, 3), (40, 2, 1, 1)])
    @pytest.mark.parametrize("lasting", [False, True])
    def test_a_step_is_the_formula(self, shape: tuple[int, ...], lasting: bool) -> None:
        """Against the singular value decomposition: directions as they are, sizes near 1."""
        generator = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        if lasting and len(shape) == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
        config = TrainConfig(weight_decay=0.3, lr=0.01, muon_scale=10.0, optimizer="muon")
        other = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        muon = optim.Muon([p], torch.optim.AdamW([other]), config)
        momentum = torch.zeros(shape, dtype=torch.float64)
        for _ in range(3):
            p.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
            momentum = 0.95 * momentum + p.grad
            before = p.detach().clone()
            muon.step()
            moved = (p.detach() - (1 - 0.1 * 0.3) * before).flatten(1)
            u, _, v = torch.linalg.svd((p.grad + 0.95 * momentum).flatten(1), full_matrices=False)
            rows, columns = moved.shape
            sizes = u.T @ moved @ v.T / (-0.1 * max(1, rows / columns) ** 0.5)
            torch.testing.assert_close(sizes, torch.diag(sizes.diag()), rtol=0, atol=1e-9)
            assert 0.6 < sizes.diag().min() <= sizes.diag().max() < 1.3

    def test_its_weights_are_those_between_features(self) -> None:
        changes = {"data.size": (8, 8), "data.channels": 1, "network.finish": 8}
        names = optim.hidden_weights(network_of(updated(preset("fast"), changes), num_classes=0))
        assert "down_levels.0.0.conv1.weight" in names
        assert "attention.inner.qkv.weight" in names
        assert not [n for n in names if n.startswith(("stem", "out", "conditioning"))]
        assert not [n for n in names if "norm" in n or n.endswith("bias")]

    def test_a_run_with_it_resumes_to_the_same_bytes(
        self, tiny_config: Config, tiny_images: Images, tmp_path: Path
    ) -> None:
        config = updated(tiny_config, {"train.optimizer": "muon", "train.checkpoint_every": 4})
        fit(tiny_images, config, out=tmp_path / "whole")
        run = runs.create(prepare(config, tiny_images), out=tmp_path / "stopped")
        list(train(run, tiny_images, stop=after_step(run, 6)))
        assert list(train(run, tiny_images))[-1].phase == "done"
        whole, stopped = (
            checkpoint.listing(tmp_path / name / "checkpoints")[-1] for name in ("whole", "stopped")
        )
        for name in ("model", "ema", "optim"):
            file = f"{name}.safetensors"
            assert (whole / file).read_bytes() == (stopped / file).read_bytes()


def test_the_state_file_says_what_the_weights_are_for(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    fit(tiny_images, updated(tiny_config, {"train.classes": True}), out=tmp_path / "run")
    newest = checkpoint.listing(tmp_path / "run" / "checkpoints")[-1]
    about = json.loads((newest / "state.json").read_text(encoding="utf-8"))["model"]
    assert about["shape"] == [1, 8, 8]
    assert about["class_names"] == ["above", "below"]
    assert about["num_classes"] == 2


def test_a_tensor_is_trained_on_as_its_bytes_are(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    from_bytes = fit(tiny_images, tiny_config, out=tmp_path / "bytes")
    from_tensor = fit(to_float(tiny_images.pixels), tiny_config, out=tmp_path / "tensor")
    assert from_tensor.checkpoint == from_bytes.checkpoint


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_run_records_how_its_images_are_loaded_again(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Another part, another way of fitting and a folder to go to: none of it is lost."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 12)).astype(np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    monkeypatch.chdir(tmp_path)
    wanted = DataConfig(source="x.npy", size=(8, 8), fit="pad", background="black", held_out=share)
    images = load(wanted)
    assert (len(images) < 60) == (share > 0)
    elsewhere = updated(tiny_config, {"data.source": "digits", "data.held_out": 0.2})
    fit(images, elsewhere, out="run")
    monkeypatch.chdir("/")
    run = runs.find(tmp_path / "run")
    config = runs.read_config(run)
    assert config.data.held_out == share == images.held_out
    again = load(config.data)
    assert again.fingerprint == images.fingerprint
    assert [r.message for r in train(run, again) if r.message] == [
        "finished already, at step 12 of 12"
    ]
    if share:
        assert len(load(config.data, split="held-out")) == 60 - len(images)


def test_all_images_that_are_given_are_trained_on(tiny_config: Config, tmp_path: Path) -> None:
    """Whatever share the preset has: it is of what is loaded, not of what is given."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    config = updated(tiny_config, {"data.held_out": 0.5})
    given = load_images(tmp_path / "x.npy")
    seen = prepare(config, given)
    assert seen.data.held_out == 0
    assert load(seen.data).fingerprint == given.fingerprint


@pytest.mark.parametrize("what", ["tensor", "array", "held-out"])
def test_images_that_no_file_holds_cannot_be_loaded_again(
    tiny_config: Config, tiny_images: Images, tmp_path: Path, what: str
) -> None:
    given: Images | torch.Tensor = tiny_images
    if what == "tensor":
        given = to_float(tiny_images.pixels)
    if what == "held-out":
        np.save(tmp_path / "x.npy", tiny_images.pixels[:, 0])
        given = load_images(tmp_path / "x.npy", split="held-out", held_out=0.4)
    fit(given, updated(tiny_config, {"data.source": "digits"}), out=tmp_path / "run")
    run = runs.find(tmp_path / "run")
    with pytest.raises(DataError, match="cannot be read again; give them from Python"):
        load(runs.read_config(run).data)
    if isinstance(given, Images):  # which the remedy is for
        assert list(train(run, given))[-1].phase == "done"


def test_a_preview_names_the_weights_that_drew_it(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    config = updated(tiny_config, {"train.preview_every": 6, "train.checkpoint_every": 100})
    fit(tiny_images, config, out=tmp_path / "run")
    samples = tmp_path / "run" / "samples"
    before, last = (pictures.read_recipe(samples / f"step-{k:08d}.png") for k in (6, 12))
    (saved,) = checkpoint.listing(tmp_path / "run" / "checkpoints")
    hashes = checkpoint.read(saved).state["sha256"]
    assert last["checkpoint"] == hashes["ema"]
    assert last["checkpoint as trained"] == hashes["model"]
    assert len(before["checkpoint"]) == 64
    assert before["checkpoint"] != last["checkpoint"]


def test_the_budget_is_told_in_steps_time_and_memory(tiny_config: Config) -> None:
    changes = {"train.steps": 600, "train.dtype": "bfloat16", "train.preview_every": None}
    config = updated(tiny_config, changes)
    said = told(config, 1200, 0.25, 3 * 2**29)
    assert said == "600 steps of 8 images, 4.0 epochs, bfloat16; about 2:36, 1.5 GiB of memory"


@pytest.mark.parametrize("seconds", [0.001, 0.4, 1.3, 60.0])  # the last: a step is all of it
@pytest.mark.parametrize("eval_every", [None, 5])
def test_minutes_that_hold_too_few_steps_say_how_many_would_do(
    tiny_config: Config, tmp_path: Path, seconds: float, eval_every: int | None
) -> None:
    def of_minutes(minutes: float) -> Config:
        asked = {"train.minutes": minutes, "train.eval_every": eval_every, "train.steps": None}
        asked |= {"data.size": (8, 8), "data.channels": 1, "loss.sigma_data": 0.5}
        config = updated(tiny_config, asked)
        (tmp_path / "run").mkdir(exist_ok=True)
        return fixed(config, runs.Run(tmp_path / "run"), {"float32": seconds})[0]

    minutes = 0.5 * 300 * seconds / 60
    said = too_short(of_minutes(minutes), minutes, seconds)
    assert said is not None
    (enough,) = map(int, re.findall(r"--minutes (\d+)", said))
    assert too_short(of_minutes(enough), enough, seconds) is None
    if enough > 1:
        assert too_short(of_minutes(0.98 * (enough - 1)), enough - 1, seconds) is not None


def test_steps_that_are_too_few_are_said_unless_they_go_on_from_what_was_learned(
    tiny_config: Config,
) -> None:
    few = updated(tiny_config, {"train.steps": 299, "data.size": (8, 8)})
    said = too_short(few, None, None)
    assert said is not None
    assert said.startswith(
        "TOO SHORT: 299 steps, and fewer than 300 learn next to nothing of 8 x 8"
    )
    assert "give --steps 300" in said
    assert too_short(updated(few, {"train.steps": 300}), None, None) is None
    large = too_short(updated(few, {"train.steps": 599, "data.size": (48, 64)}), None, None)
    assert large is not None
    assert "fewer than 600 learn next to nothing of 48 x 64 pictures: give --steps 600" in large
    begun = updated(few, {"begun": {"run": "there", "checkpoint": "0" * 64}})
    assert too_short(begun, None, None) is None


def test_a_run_of_seconds_says_that_it_is_too_short(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    config = updated(tiny_config, {"train.minutes": 0.003, "train.dtype": "float32"})
    said: list[str] = []
    fit(tiny_images, config, out=tmp_path / "run", report=lambda r: said.append(r.message or ""))
    assert any(text.startswith("TOO SHORT: 0.003 minutes are") for text in said), set(said)
    assert any(" GiB of memory" in text for text in said)


def test_time_and_memory_are_told_first_where_nothing_is_left_open(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    assert tiny_config.train.checkpoint_every is not None
    said: list[str] = []

    def report(one: Report) -> None:
        if one.step == 1:
            raise KeyboardInterrupt  # of 300 steps the first is enough
        said.append(one.message or "")

    config = updated(tiny_config, {"train.steps": 300, "train.dtype": "float32"})
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_images, config, out=tmp_path / "run", report=report)
    assert any(re.search(r"300 steps of .* about \d+:\d+, .* GiB of memory", t) for t in said), said


@pytest.mark.parametrize(
    "network",
    [{"kind": "lean", "dropout": 0.3}, {"kind": "lean", "finish": 32}, {"kind": "unet", "dim": 8}],
)
def test_what_is_computed_again_gives_the_same_gradient_and_keeps_less(
    tiny_config: Config, tiny_images: Images, network: dict[str, object]
) -> None:
    config = updated(tiny_config, {f"network.{key}": value for key, value in network.items()})
    found, kept = [], []
    for again in (False, True):
        one = prepare(updated(config, {"train.recompute": again}), tiny_images)
        trainee = step_of_training.begin(one, tiny_images)
        loss = step_of_training.gradients(trainee, 3)
        found.append([loss, *(p.grad for p in trainee.network.parameters())])
        with torch.device("meta"):
            kept.append(kept_for_gradients(network_of(one, 0), one))
    assert found[0][0] == found[1][0]
    for kept_one, computed in zip(*(each[1:] for each in found), strict=True):
        assert torch.equal(kept_one, computed)
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_a_compiled_network_takes_the_same_steps(tiny_config: Config, tiny_images: Images) -> None:
    config = updated(tiny_config, {"network.dropout": 0.3})
    found = []
    for compiled in (False, True):
        one = prepare(updated(config, {"train.compile": compiled}), tiny_images)
        trainee = step_of_training.begin(one, tiny_images)
        losses = [step_of_training.gradients(trainee, n) for n in (1, 2, 3)]
        found.append([losses, *(p.grad for p in trainee.network.parameters())])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for plain, compiled in zip(*(each[1:] for each in found), strict=True):
        assert (plain - compiled).abs().max() < 1e-5


def test_nothing_is_compiled_without_a_compiler(
    tiny_config: Config, tiny_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"no C\+\+ compiler"):
        prepare(updated(tiny_config, {"train.compile": True}), tiny_images)
