"""A run distilled from another: it is a run, it learns the flow, and what cannot be is refused."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stopping import after_step
from unraze import checkpoint, finetuning, rng, run as runs, step as step_of_training
from unraze.config import Config, preset, updated
from unraze.consistency import jump, ladder
from unraze.data import Images
from unraze.distillation import configuration, create, distill
from unraze.errors import CheckpointError, DivergedError, InputError
from unraze.generate import Model, changed, denoiser_of, generate, load
from unraze.run import Run
from unraze.samplers import ddim
from unraze.train import fit, prepare, train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 200 steps with classes: two kinds of 8×8 picture."""
    config = updated(
        Config(),
        {
            "network.fold": 1,
            "network.widths": (16, 16),
            "network.blocks": 1,
            "network.groups": 4,
            "schedule.steps": 50,
            "sample.steps": 4,
            "train.steps": 200,
            "train.batch": 16,
            "train.lr": 5e-3,
            "train.classes": True,
            "train.dtype": "float32",
            "train.threads": 1,
            "train.preview_every": 1000,
            "train.checkpoint_every": 1000,
        },
    )
    out = tmp_path_factory.mktemp("teacher") / "run"
    fit(two_kinds(), config, out=out)
    return out


def two_kinds() -> Images:
    """40 pictures, bright above or bright below, each as bright as chance has it."""
    bright = np.random.default_rng(0).integers(100, 250, (40, 1, 1, 1)).astype(np.uint8)
    labels = (np.arange(40) % 2).astype(np.int64)
    pixels = np.full((40, 1, 8, 8), 20, dtype=np.uint8)
    pixels[labels == 0, :, :4] = bright[labels == 0]
    pixels[labels == 1, :, 4:] = bright[labels == 1]
    return Images.from_arrays(pixels, labels=labels, class_names=("above", "below"), source="kinds")


QUICK = {"train.steps": 12, "train.checkpoint_every": 5, "train.preview_every": 6}


def begun(teacher: Path, out: Path, **changes: Any) -> Run:
    model = load(teacher)
    given = QUICK | {key.replace("__", "."): value for key, value in changes.items()}
    return create(model, configuration(model, changes=given), two_kinds(), out=out)


def weights(run: Run) -> dict[str, bytes]:
    newest = checkpoint.listing(run.checkpoints)[-1]
    return {p.name: p.read_bytes() for p in sorted(newest.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = begun(teacher, tmp_path_factory.mktemp("whole") / "run")
    list(train(run, two_kinds()))
    return run


def jumped(model: Model, x: torch.Tensor, t: float, e: float) -> torch.Tensor:
    """The one jump of a model from the states x of 64 images, of classes in turn, at t to e."""
    denoise = denoiser_of(model, model.config.sample, [k % 2 for k in range(64)])
    with torch.no_grad():
        prediction = denoise(x, torch.tensor(t, dtype=torch.float64))
    return jump(model.schedule, prediction, torch.full((64,), e, dtype=torch.float64))


@pytest.mark.parametrize("calls", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_jumps_end_nearer_to_where_the_teacher_goes_step_by_step(
    teacher: Path, tmp_path: Path, calls: int
) -> None:
    before, images = load(teacher), two_kinds()
    given = {"train.steps": 120, "train.batch": 16, "train.ema": 0.98}
    given |= {"train.preview_every": 1000, "train.checkpoint_every": 1000}
    config = configuration(before, calls=calls, changes=given)
    run = create(before, config, images, out=tmp_path / "run")
    list(train(run, images))
    after = load(run.path)
    x = rng.normal(9, "start", range(64), 0, before.shape)
    way = ladder(before.schedule, config.loss)
    denoise = denoiser_of(before, before.config.sample, [k % 2 for k in range(64)])
    with torch.no_grad():
        states = {step.t: step.x for step in ddim(denoise, x, before.schedule.keep(way))}
    states[50.0] = x
    assert config.loss.borders is not None
    undistilled, off = (
        sum(
            float((jumped(model, states[t], t, e) - states[e]).square().mean())
            for e, t in itertools.pairwise(config.loss.borders)
        )
        for model in (before, after)
    )
    assert off < 0.65 * undistilled, (off, undistilled)


def test_it_is_a_run_like_any_other(teacher: Path, whole: Run) -> None:
    before, after = load(teacher), load(whole.path)
    distilled = after.config.distilled
    assert distilled is not None
    assert distilled.checkpoint == before.checkpoint
    assert distilled.run == str(teacher)
    assert after.num_classes == 2
    assert runs.summaries(whole.path.parent)[0].state == "done"
    for name in ("reals.png", "loss.png", "config.toml", "command.txt", "log.txt"):
        assert (whole.path / name).is_file()
    assert len(list(whole.samples.glob("step-*.png"))) == 2
    states = [p for p in generate(after, 2) if p.numbers.start == 0]
    assert len(states) == 2  # two calls
    assert states[-1].finished


def test_the_first_steps_start_from_the_teachers_weights(teacher: Path, tmp_path: Path) -> None:
    run = begun(teacher, tmp_path / "run", train__lr=1e-9)
    list(train(run, two_kinds()))
    before, after = load(teacher).network.state_dict(), load(run.path).network.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("stop_at", [1, 7])
def test_stopped_and_resumed_it_is_the_same_to_the_byte(
    teacher: Path, whole: Run, tmp_path: Path, stop_at: int
) -> None:
    run = begun(teacher, tmp_path / "run")
    reports = list(train(run, two_kinds(), stop=after_step(run, stop_at)))
    assert reports[-1].phase == "stopped"
    said = [r.message for r in train(run, two_kinds()) if r.message]
    assert any(f"continuing from step {stop_at}" in text for text in said)
    assert not any("DIFFERENT" in text for text in said)
    assert weights(run) == weights(whole)


def test_killed_before_anything_was_saved_it_begins_with_the_teacher_again(
    teacher: Path, whole: Run, tmp_path: Path
) -> None:
    run = begun(teacher, tmp_path / "run")
    steps = train(run, two_kinds())
    next(report for report in steps if report.step == 3)
    steps.close()  # type: ignore[attr-defined]
    assert not checkpoint.listing(run.checkpoints)
    list(train(run, two_kinds()))
    assert weights(run) == weights(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"network__dropout": 0.2, "train__accumulate": 4},
        {"loss__teacher_guidance": 3.0, "data__flip": True},
        {"loss__continuous": False, "train__optimizer": "adamw"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_kind_of_it_resumes(teacher: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    ends = []
    for stop_at in (None, 4):
        run = begun(teacher, tmp_path / f"run-{stop_at}", **changes)
        if stop_at is not None:
            list(train(run, two_kinds(), stop=after_step(run, 4)))
        list(train(run, two_kinds()))
        ends.append(weights(run))
    assert ends[0] == ends[1]


def test_numbers_of_the_teacher_s_training_are_left_behind(teacher: Path) -> None:
    """Which would be refused of a student, and of muon where it is not taken."""
    model = load(teacher)
    old = {"loss.distance": "huber", "loss.huber_delta": 0.1, "loss.times": "uniform"}
    huber = replace(model, config=updated(model.config, {**old, "loss.times_std": 2.0}))
    found = configuration(huber, changes={"train.optimizer": "adamw", "train.steps": 4})
    assert (found.loss.huber_delta, found.loss.times_std, found.train.muon_scale) == (1.0, 1.2, 5.0)
    assert configuration(model, changes={"train.steps": 4}).train.muon_scale == 10.0
    prepare(found, two_kinds())
    given = {"train.optimizer": "adamw", "train.muon_scale": 3.0, "train.steps": 4}
    with pytest.raises(InputError, match=r"train\.muon_scale = 3: does nothing"):
        prepare(configuration(model, changes=given), two_kinds())
    further = finetuning.configuration(preset("fast"), huber)
    assert (further.loss.huber_delta, further.loss.times_std) == (0.1, 1.2)


def test_a_run_of_augmented_images_is_distilled_with_them(teacher: Path, tmp_path: Path) -> None:
    """Teacher, target and estimate are told how an image was changed; and it resumes exactly."""
    changes = {"data.augment": 0.5, "train.steps": 20, "train.checkpoint_every": 20}
    fit(two_kinds(), updated(load(teacher).config, changes), out=tmp_path / "teacher")
    ends = []
    for stop_at in (None, 4):
        run = begun(tmp_path / "teacher", tmp_path / f"run-{stop_at}")
        if stop_at is not None:
            list(train(run, two_kinds(), stop=after_step(run, 4)))
        list(train(run, two_kinds()))
        ends.append(weights(run))
    assert ends[0] == ends[1]
    model = load(run.path)
    assert model.config.data.augment == 0.5
    before = load(tmp_path / "teacher").network.state_dict()["conditioning.augmentation"]
    after = model.network.state_dict()["conditioning.augmentation"]
    assert not torch.equal(before, after)
    assert all(p.x.isfinite().all() for p in generate(model, 2))


def test_of_a_teacher_that_was_divided_the_new_run_is_not(teacher: Path) -> None:
    model = load(teacher)
    divided = replace(model, config=updated(model.config, {"train.shard": True}))
    assert not configuration(divided, changes=QUICK).train.shard


@pytest.mark.parametrize("tells", [False, True])
def test_the_teacher_is_told_of_the_changes(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    changes = {"data.augment": 1.0, "train.steps": 2, "train.checkpoint_every": 2}
    fit(two_kinds(), updated(load(teacher).config, changes), out=tmp_path / "teacher")
    model = load(tmp_path / "teacher")
    config = configuration(model, changes=QUICK | {"loss.teacher_guidance": 2.0})
    run = create(model, config, two_kinds(), out=tmp_path / "run")
    trainee = step_of_training.begin(runs.read_config(run), two_kinds(), model.network.state_dict())
    asked = trainee.network if tells else trainee.teacher
    assert asked is not None
    told = []
    asked.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs.get("augmentation")), with_kwargs=True
    )
    step_of_training.gradients(trainee, 1)
    assert len(told) == 2
    assert all(a is not None and bool(a.any()) for a in told)


def test_the_whole_run_needs_nothing_of_the_old_one(
    teacher: Path, whole: Run, tmp_path: Path
) -> None:
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    run = begun(copy, tmp_path / "run")
    shutil.rmtree(copy)
    list(train(run, two_kinds()))
    assert weights(run) == weights(whole)


def test_the_same_dropout_falls_on_target_and_estimate(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short step changes little, unless other neurons are dropped on the way."""
    model = load(teacher)
    changes = QUICK | {"network.dropout": 0.5, "loss.teacher_steps": 200}
    config = configuration(model, changes=changes)
    run = create(model, config, two_kinds(), out=tmp_path / "run")
    config, state = runs.read_config(run), model.network.state_dict()

    def loss() -> float:
        trainee = step_of_training.begin(config, two_kinds(), state)
        return step_of_training.gradients(trainee, 1)

    same = loss()
    monkeypatch.setattr(step_of_training, "seed_dropout", lambda *_: None)  # each time anew
    assert 0 < same < 0.1 * loss()


def test_guidance_is_learned_with_it(teacher: Path, tmp_path: Path) -> None:
    """From the null class there is nothing to be guided away from; from a class there is."""
    model, ends = load(teacher), []
    for scale in (1.0, 4.0):
        changes = QUICK | {"loss.teacher_guidance": scale}
        run = create(
            model, configuration(model, changes=changes), two_kinds(), out=tmp_path / f"{scale:g}"
        )
        config = runs.read_config(run)
        state = model.network.state_dict()
        step_losses = []
        for hidden in (0.0, 0.999):
            one = updated(config, {"train.label_dropout": hidden})
            trainee = step_of_training.begin(one, two_kinds(), state)
            step_losses.append(step_of_training.gradients(trainee, 1))
        ends.append(step_losses)
    (plain, plain_null), (guided, guided_null) = ends
    assert guided_null == pytest.approx(plain_null, rel=1e-4)
    assert guided > 1.2 * plain


class TestBlowUp:
    def test_without_a_checkpoint_it_rolls_back_to_the_teacher(
        self, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = begun(teacher, tmp_path / "run", train__checkpoint_every=100)
        seen = []

        def gradients(trainee: step_of_training.Trainee, step: int, **_: object) -> float:
            seen.append({k: v.clone() for k, v in trainee.network.state_dict().items()})
            loss = step_of_training.gradients(trainee, step)
            return loss if step < 4 else float("nan")

        monkeypatch.setattr("unraze.train.gradients", gradients)
        with pytest.raises(DivergedError):
            list(train(run, two_kinds()))
        first, again = seen[0], seen[6]  # three good steps, three bad, and the first once more
        assert any(not torch.equal(first[name], seen[3][name]) for name in first)
        assert all(torch.equal(first[name], again[name]) for name in first)


class TestRefused:
    def test_a_run_without_a_checkpoint(self, teacher: Path, tmp_path: Path) -> None:
        shutil.copytree(teacher, tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        with pytest.raises(CheckpointError, match="has no checkpoint yet"):
            distill(tmp_path / "run", two_kinds(), out=tmp_path / "out")

    @pytest.mark.parametrize("parametrisation", ["x0", "eps", "eps_step"])
    def test_a_network_whose_jump_moves_at_once(self, teacher: Path, parametrisation: str) -> None:
        model = load(teacher)
        other = updated(model.config, {"loss.parametrisation": parametrisation})
        object.__setattr__(model, "config", other)
        why = "from near 0" if parametrisation == "x0" else "divides by ᾱ_T"
        with pytest.raises(InputError, match=f"says {parametrisation}, .*{why}.* v or edm"):
            configuration(model)

    def test_one_that_is_distilled_already(self, whole: Run) -> None:
        with pytest.raises(InputError, match="is distilled already; distil the run"):
            configuration(load(whole.path))

    def test_other_images(self, teacher: Path, tmp_path: Path) -> None:
        model = load(teacher)
        other = Images.from_arrays(255 - two_kinds().pixels, source="other")
        with pytest.raises(InputError, match="other: are not the images"):
            create(model, configuration(model), other, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_that_its_teacher_saw_other_images_is_kept(self, teacher: Path, tmp_path: Path) -> None:
        """Which its own record of images does not tell."""
        before = shutil.copytree(teacher, tmp_path / "teacher")
        images = two_kinds()
        create(load(before), configuration(load(before)), images, out=tmp_path / "a")
        assert runs.read_config(Run(tmp_path / "a")).begun is None
        name = runs.identity_of(Run(before))
        runs.write_data(Run(before), images, name, accepted=["0" * 64])
        new = create(
            load(before),
            configuration(load(before), changes={"train.steps": 2}),
            images,
            out=tmp_path / "b",
        )
        begun = runs.read_config(new).begun
        assert begun is not None
        assert not begun.unseen
        assert list(train(new, images))[-1].phase == "done"  # from its teacher's weights, as ever

    @pytest.mark.parametrize(
        ("calls", "changes", "says"),
        [
            (3, {}, r"calls = 3: give 1 or 2"),
            (2, {"train.muon_scale": -1.0}, r"train\.muon_scale = -1\.0: give more than 0"),
            (1, {"loss.borders": (0.0, 3.0, 50.0)}, "calls = 1: loss.borders, .* leave out one"),
            (None, {"loss.borders": (0.0, 3.0, 2.0)}, "borders: .* rise"),
            (None, {"loss.borders": (0.0, 30.0)}, r"the last is to be T = 50.* \(it is 30\)"),
            (2, {"loss.weighting": "snr"}, r"loss\.weighting"),
            (2, {"loss.weighting": "v"}, "leave out weighting"),
            (2, {"sample.sampler": "ddim"}, 'take "consistency"'),
            (2, {"loss.objective": "weighted", "loss.borders": None}, "it needs the run"),
            (2, {"loss.times": "uniform"}, "loss.times: a network is distilled at the steps of"),
            (2, {"preset": "quality"}, "preset is that of"),
            (2, {"loss.teacher_interval": (0.8, 0.2)}, r"teacher_interval = 0\.8, 0\.2: .* first"),
        ],
    )
    def test_what_will_not_do(
        self, teacher: Path, calls: int | None, changes: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(InputError, match=says):
            configuration(load(teacher), calls=calls, changes=changes)

    def test_augmentation_is_not_begun_or_ended(self, teacher: Path) -> None:
        for asked in (0.1, "auto"):
            words = rf"data\.augment = {asked}: .* trained without augmentation"
            with pytest.raises(InputError, match=words):
                configuration(load(teacher), changes={"data.augment": asked})

    def test_guidance_where_there_is_nothing_to_guide_towards(self, teacher: Path) -> None:
        model = load(teacher)
        object.__setattr__(model, "num_classes", 0)
        with pytest.raises(InputError, match="guidance = 2: this run does not know"):
            configuration(model, changes={"loss.teacher_guidance": 2.0})

    def test_a_part_of_the_time_where_nothing_is_guided(self, teacher: Path) -> None:
        changes = {"loss.teacher_interval": (0.2, 0.8)}
        with pytest.raises(InputError, match=r"teacher_interval = 0\.2, 0\.8: nothing is guided"):
            configuration(load(teacher), changes=changes | {"loss.teacher_guidance": 1.0})
        configuration(load(teacher), changes=changes | {"loss.teacher_guidance": 2.0})

    def test_its_sampler_without_it_and_others_with_it(self, teacher: Path, whole: Run) -> None:
        before, after = load(teacher), load(whole.path)
        jumping = changed(before.config.sample, {"sampler": "consistency"})
        with pytest.raises(InputError, match="unraze distill RUN"):
            next(generate(before, 1, settings=jumping))
        for sampler in ("ddim", "random", "adams"):
            settings = changed(after.config.sample, {"sampler": sampler})
            with pytest.raises(InputError, match=f"distilled from: {teacher}"):
                next(generate(after, 1, settings=settings))
        guided = changed(after.config.sample, {"guidance": 2.0})
        with pytest.raises(InputError, match=r"guidance = 2: .* --guidance 2"):
            next(generate(after, 1, settings=guided))

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"steps": 1}, "distilled to 2 calls an image"),
            ({"spacing": "karras"}, "spacing = karras: .* take angle"),
            ({"spacing": (0.0, 10.0, 50.0)}, "keep the time"),
            ({"steps": 51}, "the schedule has 50 steps"),
        ],
    )
    def test_ways_that_it_was_not_taught(
        self, whole: Run, changes: dict[str, Any], says: str
    ) -> None:
        after = load(whole.path)
        with pytest.raises(InputError, match=says):
            next(generate(after, 1, settings=changed(after.config.sample, changes)))

    @pytest.mark.parametrize("how", ["gone", "damaged", "another"])
    def test_a_teacher_that_is_not_there_any_more(
        self, teacher: Path, tmp_path: Path, how: str
    ) -> None:
        run = begun(teacher, tmp_path / "run")
        (folder,) = checkpoint.listing(run.teacher)
        match how:
            case "gone":
                shutil.rmtree(run.teacher)
                says = "teacher: is gone; .* make it anew"
            case "damaged":
                file = folder / "ema.safetensors"
                file.write_bytes(file.read_bytes()[:-1] + b"\0")
                says = "ema.safetensors: is damaged"
            case _:
                state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                file = folder / "ema.safetensors"
                raw = load(teacher, raw=True).network.state_dict()
                shutil.rmtree(folder)
                checkpoint.save(
                    run.teacher,
                    state.pop("step"),
                    model=raw,
                    ema=raw,
                    optim={},
                    state=state,
                    keep=1,
                )
                says = "holds not the weights that .* names"
        with pytest.raises(CheckpointError, match=says):
            list(train(run, two_kinds()))


@pytest.mark.parametrize("calls", [2, 3, 4, 7])
def test_more_calls_go_between_the_borders(whole: Run, calls: int) -> None:
    after = load(whole.path)
    settings = changed(after.config.sample, {"steps": calls})
    moments = list(generate(after, 2, settings=settings))
    times = [50.0, *(moment.t for moment in moments)]
    assert len(moments) == calls
    assert set(after.config.loss.borders or ()) <= set(times)
    assert times == sorted(set(times), reverse=True)


def test_a_learning_rate_is_that_of_all_weights(teacher: Path) -> None:
    model = load(teacher)
    own = configuration(model).train
    half = configuration(model, changes={"train.lr": own.lr / 2}).train
    assert half.muon_scale == own.muon_scale


def test_borders_of_ones_own_are_calls_of_ones_own(teacher: Path) -> None:
    config = configuration(load(teacher), changes={"loss.borders": (0.0, 10.0, 30.0, 50.0)})
    assert config.sample.steps == 3
    assert config.about == "distilled to 3 calls"
    assert config.loss.teacher_steps == 4


def test_what_the_teacher_does_not_know_it_cannot_teach(teacher: Path) -> None:
    model = load(teacher)
    told = replace(model, config=updated(model.config, {"train.label_dropout": 0.0}))
    with pytest.raises(InputError, match="cannot teach what is without one"):
        configuration(told, changes={"train.label_dropout": 0.1})
    assert configuration(told, changes={"train.label_dropout": 0.0}).train.label_dropout == 0
    assert configuration(model, changes={"train.label_dropout": 0.2}).train.label_dropout == 0.2


def test_the_default_budget_is_less_than_the_training_took(teacher: Path) -> None:
    """A step is the student there and back, target and teacher, where training's is there and back
    alone; and muon's own work, where training was not by muon."""
    model = load(teacher)
    assert configuration(model).train.steps == 200 // 2
    assert configuration(model, changes={"train.batch": 32}).train.steps == 200 // 2 // 2
    assert configuration(model, changes={"train.minutes": 1.0}).train.steps is None
    guided = {"loss.teacher_guidance": 2.0}
    assert configuration(model, changes=guided).train.steps == round(200 / 2.3)
    object.__setattr__(model, "config", updated(model.config, {"train.optimizer": "muon"}))
    assert configuration(model).train.steps == round(200 / 1.7)
    assert configuration(model, changes=guided).train.steps == round(200 / 2.0)


def test_of_a_training_that_was_stopped_the_budget_is_what_it_took(
    teacher: Path, tmp_path: Path
) -> None:
    changes = {"train.steps": 1000, "train.checkpoint_every": 1000}
    config = updated(load(teacher).config, changes)
    run = runs.create(prepare(config, two_kinds()), out=tmp_path / "run")
    list(train(run, two_kinds(), stop=after_step(run, 20)))
    model = load(run.path)
    assert 20 <= model.step < 1000
    assert configuration(model).train.steps == round(model.step / 2)


def test_a_teacher_of_whole_steps_is_not_asked_between_them(teacher: Path) -> None:
    model = load(teacher)
    whole = updated(model.config, {"loss.continuous": False})
    with pytest.raises(InputError, match=r"loss\.continuous is that of"):
        configuration(replace(model, config=whole), changes={"loss.continuous": True})
    assert configuration(model, changes={"loss.continuous": True}).loss.continuous


@pytest.mark.parametrize(("guidance", "looks"), [(1.0, 1), (2.0, 2)])
def test_a_step_asks_the_student_twice_and_a_guided_teacher_too(
    teacher: Path, guidance: float, looks: int
) -> None:
    changes = {"loss.teacher_guidance": guidance, "train.steps": 1}
    config = configuration(load(teacher), changes=changes)
    trainee = step_of_training.begin(config, two_kinds())
    assert trainee.teacher is not None
    asked: list[str] = []
    trainee.network.register_forward_hook(lambda *_: asked.append("student"))
    trainee.teacher.register_forward_hook(lambda *_: asked.append("teacher"))
    step_of_training.gradients(trainee, 1)
    assert (asked.count("student"), asked.count("teacher")) == (2, looks)
