"""A run that was stopped and resumed is the run that was never stopped, to the byte; of those that
were killed see faults/test_killed.py."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from evaluated import digits_file, few_steps, small_config
from stopping import after_step
from unraze import checkpoint, run as runs
from unraze.config import Config, updated
from unraze.data import Images, load
from unraze.errors import CheckpointError, InputError
from unraze.evaluate import during
from unraze.run import Run
from unraze.train import prepare, train


def start(config: Config, images: Images, out: Path) -> Run:
    return runs.create(prepare(config, images), out=out)


def finish(run: Run, images: Images) -> list[str]:
    return [r.message for r in train(run, images) if r.message]


def weights(run: Run) -> dict[str, bytes]:
    last = checkpoint.listing(run.checkpoints)[-1]
    return {p.name: p.read_bytes() for p in sorted(last.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole_once(
    tiny_config: Config, tiny_images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    run = start(tiny_config, tiny_images, tmp_path_factory.mktemp("whole") / "run")
    finish(run, tiny_images)
    return run


@pytest.fixture
def whole(whole_once: Run, tmp_path: Path) -> Run:
    """A run that was never stopped."""
    return Run(shutil.copytree(whole_once.path, tmp_path / "whole"))


@pytest.fixture(scope="module")
def stopped_once(
    tiny_config: Config, tiny_images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    run = start(tiny_config, tiny_images, tmp_path_factory.mktemp("stopped") / "run")
    list(train(run, tiny_images, stop=after_step(run, 5)))
    return run


@pytest.fixture
def stopped(stopped_once: Run, tmp_path: Path) -> Run:
    """One that was stopped at step 5."""
    return Run(shutil.copytree(stopped_once.path, tmp_path / "run"))


def test_two_runs_are_the_same(
    whole: Run, tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    again = start(tiny_config, tiny_images, tmp_path / "again")
    finish(again, tiny_images)
    assert weights(again) == weights(whole)


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_stopped_mid_epoch_and_resumed(
    whole: Run, tiny_config: Config, tiny_images: Images, tmp_path: Path, stop_at: int
) -> None:
    run = start(tiny_config, tiny_images, tmp_path / "stopped")
    reports = list(train(run, tiny_images, stop=after_step(run, stop_at)))
    assert reports[-1].phase == "stopped"
    assert reports[-1].step == stop_at
    assert any("continuing from step" in text for text in finish(run, tiny_images))
    assert weights(run) == weights(whole)
    assert [row["step"] for row in runs.read_rows(run.stats)] == list(range(1, 13))


def test_stopped_while_it_was_measured_and_resumed(
    whole: Run, tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    measured = updated(tiny_config, {"train.checkpoint_every": None})
    run = start(measured, tiny_images, tmp_path / "stopped")
    last = list(train(run, tiny_images, stop=lambda: True))[-1]
    assert (last.phase, last.step) == ("stopped", 0)
    assert not checkpoint.listing(run.checkpoints)
    assert runs.read_config(run).train.checkpoint_every is None
    finish(run, tiny_images)
    assert weights(run) == weights(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.self_conditioning": True},
        {"network.dropout": 0.2},
        {"train.classes": True},
        {"train.accumulate": 4},
        {"data.flip": True},
        {"data.augment": 0.5},
        {"loss.variance": "learned"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_kind_of_randomness_resumes(
    tiny_config: Config, tiny_images: Images, tmp_path: Path, changes: dict[str, object]
) -> None:
    config = updated(tiny_config, changes)
    whole = start(config, tiny_images, tmp_path / "whole")
    finish(whole, tiny_images)
    run = start(config, tiny_images, tmp_path / "run")
    list(train(run, tiny_images, stop=after_step(run, 7)))
    finish(run, tiny_images)
    assert weights(run) == weights(whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(
    whole: Run, tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    config = updated(tiny_config, {"train.checkpoint_every": 3})
    run = start(config, tiny_images, tmp_path / "damaged")
    list(train(run, tiny_images, stop=after_step(run, 7)))
    newest = checkpoint.listing(run.checkpoints)[-1] / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\0")
    said = finish(run, tiny_images)
    assert any("DAMAGED" in text and str(newest) in text for text in said)
    assert any("continuing from step 6" in text for text in said)
    assert [p.name for p in run.checkpoints.glob("damaged-*")] == ["damaged-step-00000007"]
    assert weights(run) == weights(whole)


def test_other_images_are_refused(whole: Run, tiny_images: Images) -> None:
    other = Images.from_arrays(255 - tiny_images.pixels, source="other")
    with pytest.raises(CheckpointError, match="images are not those"):
        list(train(whole, other))


def test_a_different_machine_is_said_out_loud(whole: Run, tiny_images: Images) -> None:
    env = whole.path / "env.json"
    env.write_text(env.read_text(encoding="utf-8").replace('"cores": ', '"cores": 9'))
    said = finish(whole, tiny_images)
    assert any("DIFFERENT" in text and "cores" in text for text in said)


def test_the_same_machine_is_not_called_different(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    threads = torch.get_num_threads() + 1
    config = updated(tiny_config, {"train.threads": threads})
    run = start(config, tiny_images, tmp_path / "run")
    list(train(run, tiny_images, stop=after_step(run, 3)))
    assert not any("DIFFERENT" in text for text in finish(run, tiny_images))


def test_an_edited_setting_is_said_out_loud(stopped: Run, tiny_images: Images) -> None:
    file = stopped.path / "config.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("lr = 0.002", "lr = 0.004"), encoding="utf-8")
    said = finish(stopped, tiny_images)
    assert any("DIFFERENT" in t and "train.lr = 0.004, was 0.002" in t for t in said)


def test_an_edited_schedule_is_refused(stopped: Run, tiny_images: Images) -> None:
    file = stopped.path / "config.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('kind = "angle"', 'kind = "cosine"'), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"schedule\.kind was 'angle'"):
        finish(stopped, tiny_images)


@pytest.mark.parametrize("part", ["model", "ema", "optim"])
@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_tensors_that_do_not_fit_are_named_and_nothing_is_broadcast(
    stopped: Run, tiny_images: Images, part: str, change: str
) -> None:
    folder = checkpoint.listing(stopped.checkpoints)[-1]
    tensors = safetensors.torch.load_file(folder / f"{part}.safetensors")
    name = next(n for n in tensors if "stem.bias" in n and not n.endswith("/step"))
    match change:
        case "missing":
            del tensors[name]
        case "extra":
            tensors["zzz"] = torch.zeros(2)
        case "shape":
            tensors[name] = torch.zeros(1)
    data = safetensors.torch.save(tensors)
    (folder / f"{part}.safetensors").write_bytes(data)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state["sha256"][part] = hashlib.sha256(data).hexdigest()
    (folder / "state.json").write_text(json.dumps(state | {"hash": None}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="zzz" if change == "extra" else name):
        finish(stopped, tiny_images)


def test_two_trainers_of_one_run_are_refused(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    run = start(tiny_config, tiny_images, tmp_path / "run")
    first = train(run, tiny_images)
    next(first)
    with pytest.raises(InputError, match="another process"):
        next(train(run, tiny_images))
    first.close()


def test_a_run_of_before_a_key_was_known_is_not_called_different(
    stopped: Run, tiny_images: Images
) -> None:
    file = stopped.path / "config.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("held_out = 0.0\n", ""), encoding="utf-8")
    state = checkpoint.listing(stopped.checkpoints)[-1] / "state.json"
    values = json.loads(state.read_text(encoding="utf-8"))
    assert values["config"]["data"].pop("held_out") == 0
    state.write_text(json.dumps(values | {"hash": None}), encoding="utf-8")
    assert not [text for text in finish(stopped, tiny_images) if "DIFFERENT" in text]


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_evaluations_in_training_resume_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The same best checkpoint and the same figures; only what they cost is not the same."""
    monkeypatch.setenv("UNRAZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(during, "FEWEST", 10)
    source = digits_file(tmp_path / "digits.npz")
    budget = {"train.steps": 45, "train.batch": 64, "train.checkpoint_every": 13}
    config = small_config({"data.source": str(source), "train.eval_every": 20, **budget})
    images = load(config.data)

    def figures(run: Run) -> list[dict[str, object]]:
        rows = runs.read_rows(run.quality)
        return [{k: v for k, v in row.items() if k not in ("seconds", "share")} for row in rows]

    def best(run: Run) -> dict[str, bytes]:
        files = [p for folder in checkpoint.listing(run.best) for p in sorted(folder.iterdir())]
        return {p.parent.name + p.name: p.read_bytes() for p in files}

    with few_steps():
        whole = start(config, images, tmp_path / "whole")
        finish(whole, images)
        run = start(config, images, tmp_path / "run")
        steps = train(run, images, stop=lambda: how == "stopped" and len(made) >= 24)
        made: list[int] = []
        for report in steps:
            if report.phase == "training" and report.step:
                made.append(report.step)
            if how == "killed" and len(made) == 24:  # evaluated at 20, but last saved at 13
                steps.close()  # type: ignore[attr-defined]
        assert made[-1] in (24, 25)
        assert [row["step"] for row in figures(run)] == [20]
        said = finish(run, images)
    assert any(f"continuing from step {13 if how == 'killed' else made[-1]}" in t for t in said)
    assert [row["step"] for row in figures(run)] == [20, 40, 45]
    assert figures(run) == figures(whole)
    assert best(run) == best(whole)
    assert weights(run) == weights(whole)


def test_images_that_changed_before_the_first_checkpoint_are_told(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    run = start(tiny_config, tiny_images, tmp_path / "run")
    runs.write_data(run, tiny_images, runs.identity(tiny_config, tiny_images))  # and was killed
    others = Images.from_arrays(255 - tiny_images.pixels)
    for accept in (False, True):
        with pytest.raises(CheckpointError, match="has no checkpoint yet: bring them back"):
            list(train(run, others, accept_changed_data=accept))
    finish(run, tiny_images)
    assert checkpoint.listing(run.checkpoints)
