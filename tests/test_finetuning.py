"""A run that goes on from another's weights: it begins with them, and is a run like any other."""

import itertools
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stopping import after_step
from unraze import checkpoint, finetuning, generate
from unraze.cli import main
from unraze.config import Config, DistilledConfig, preset, updated
from unraze.data import Images
from unraze.errors import CheckpointError, InputError
from unraze.generate import Model
from unraze.run import Run, write_data
from unraze.step import AUGMENTATION, begin
from unraze.train import begun_with, fit, train

QUICK = {
    "train.steps": 12,
    "train.batch": 8,
    "train.threads": 1,
    "train.dtype": "float32",
    "train.checkpoint_every": 5,
    "train.preview_every": 6,
}


@pytest.fixture(scope="module")
def old_once(
    tiny_config: Config, tiny_images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("old") / "run"
    fit(tiny_images, tiny_config, out=out)
    return out


@pytest.fixture
def old(old_once: Path, tmp_path: Path) -> Model:
    """A run without classes."""
    return generate.load(shutil.copytree(old_once, tmp_path / "old"))


def others() -> Images:
    """30 other pictures of the same shape, without labels."""
    pixels = np.random.default_rng(1).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
    return Images.from_arrays(pixels, source="others")


def begun(model: Model, out: Path, images: Images | None = None, **changes: Any) -> Run:
    """A run of a few steps that goes on from a model."""
    more = {key.replace("__", "."): value for key, value in changes.items()}
    config = updated(finetuning.configuration(preset("fast"), model), QUICK | more)
    return finetuning.create(model, config, others() if images is None else images, out=out)


def test_fit_takes_no_configuration_of_a_run_that_began_with_others_weights(
    old: Model, tmp_path: Path
) -> None:
    config = generate.read_config(begun(old, tmp_path / "new"))
    with pytest.raises(InputError, match="make one anew by `unraze train --from"):
        fit(others(), config, out=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_it_begins_with_the_weights_and_what_they_mean(old: Model, tmp_path: Path) -> None:
    run = begun(old, tmp_path / "new")
    config = generate.read_config(run)
    assert config.network == old.config.network
    assert config.schedule == old.config.schedule
    assert config.loss == old.config.loss
    assert config.sample == old.config.sample
    assert config.train.lr == pytest.approx(preset("fast").train.lr * finetuning.LOWER_RATE)
    assert config.train.optimizer == "muon"  # the preset's
    assert config.train.clusters == 0
    trainee = begin(config, others(), begun_with(run, config))
    for name, value in old.network.state_dict().items():
        assert torch.equal(trainee.network.state_dict()[name], value)
        assert torch.equal(trainee.average[name], value)
    steps = list(train(run, others()))
    assert steps[-1].phase == "done"
    new = generate.load(run.path)
    assert not torch.equal(new.network.out.weight, old.network.out.weight)
    assert generate.sample(new, 2).shape == (2, 1, 8, 8)


def test_stopped_and_resumed_it_ends_with_the_same_bytes(old: Model, tmp_path: Path) -> None:
    """Before its first checkpoint, where the weights in its own folder are all there is, and after
    one; the run that they came from is gone."""
    whole, parts = (begun(old, tmp_path / name) for name in ("whole", "parts"))
    shutil.rmtree(old.run)
    list(train(whole, others()))
    for most in (3, 4):
        list(itertools.islice(train(parts, others()), most))
    list(train(parts, others(), stop=after_step(parts, 7)))
    list(train(parts, others()))
    name = "checkpoints/step-00000012/model.safetensors"
    assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()


def test_clusters_are_found_anew(tiny_config: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many, fewer = (
        Images.from_arrays(rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)) for n in (400, 300)
    )
    told = fit(many, updated(tiny_config, {"train.clusters": 4}), out=tmp_path / "old")
    run = begun(told, tmp_path / "new", fewer)
    saved = checkpoint.newest(run.start)[0]
    assert saved is not None
    assert "conditioning.table.weight" not in saved.ema
    assert list(train(run, fewer))[-1].phase == "done"
    new = generate.load(run.path)
    assert new.clusters is not None
    assert len(new.clusters.labels) == 300


def test_a_table_of_clusters_is_none_of_classes_of_the_same_names(
    tiny_config: Config, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8)
    config = updated(tiny_config, {"train.clusters": 4})
    told = fit(Images.from_arrays(pixels), config, out=tmp_path / "old")
    labels = np.arange(400) % 4
    named = Images.from_arrays(pixels, labels=labels, class_names=told.class_names)
    run = begun(told, tmp_path / "new", named, train__classes=True)
    saved = checkpoint.newest(run.start)[0]
    assert saved is not None
    assert "conditioning.table.weight" not in saved.ema


def test_classes_go_with_it_where_they_are_the_same(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    known = fit(tiny_images, updated(tiny_config, {"train.classes": True}), out=tmp_path / "old")
    same = begun(known, tmp_path / "same", tiny_images, train__classes=True)
    saved = checkpoint.newest(same.start)[0]
    assert saved is not None
    table = known.network.state_dict()["conditioning.table.weight"]
    assert torch.equal(saved.ema["conditioning.table.weight"], table)
    renamed = replace(tiny_images, class_names=("top", "bottom"))
    anew = begun(known, tmp_path / "anew", renamed, train__classes=True)
    assert list(train(anew, renamed))[-1].phase == "done"
    assert generate.load(anew.path).class_names == ("top", "bottom")


def test_what_is_asked_for_holds(tiny_config: Config, tiny_images: Images, tmp_path: Path) -> None:
    """Clusters, augmentation and guidance that the old run had not, or had."""
    rng = np.random.default_rng(0)
    many = Images.from_arrays(rng.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8))
    guided = {"train.clusters": 4, "sample.guidance": 3.0, "data.augment": 0.5}
    for old_keys, new_keys in ((guided, {}), ({}, guided)):
        old = fit(many, updated(tiny_config, old_keys), out=tmp_path / f"old{len(old_keys)}")
        asked = {"train.clusters": 0, "data.augment": 0.0, "sample.guidance": 1.0} | new_keys
        more = {key.replace(".", "__"): value for key, value in asked.items()}
        run = begun(old, tmp_path / f"new{len(old_keys)}", many, **more)
        assert list(train(run, many))[-1].phase == "done"
        config = generate.read_config(run)
        assert config.train.clusters == asked["train.clusters"]
        assert config.data.augment == asked["data.augment"]
        assert config.sample.guidance == asked["sample.guidance"]
        assert generate.sample(generate.load(run.path), 1).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(("augment", "kept"), [("auto", True), (0.1, True), (0.0, False)])
def test_what_is_known_of_changed_images_goes_with_it(
    tiny_config: Config, tiny_images: Images, tmp_path: Path, augment: float | str, kept: bool
) -> None:
    old = fit(tiny_images, updated(tiny_config, {"data.augment": 0.5}), out=tmp_path / "old")
    run = begun(old, tmp_path / "new", tiny_images, data__augment=augment)
    saved = checkpoint.newest(run.start)[0]
    assert saved is not None
    assert (AUGMENTATION in saved.ema) == kept
    assert bool(generate.read_config(run).data.augment) == kept


def test_a_guided_run_goes_on_untold(tiny_config: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many = Images.from_arrays(rng.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8))
    guided = {"train.clusters": 4, "sample.guidance": 2.0}
    old = fit(many, updated(tiny_config, guided), out=tmp_path / "old")
    told = finetuning.configuration(preset("ddpm"), old)
    assert (told.train.clusters, told.sample.guidance) == (4, 2.0)
    with pytest.raises(InputError, match=r"give --set sample\.guidance=1"):
        begun(old, tmp_path / "new", others())
    run = begun(old, tmp_path / "new", others(), sample__guidance=1.0)
    assert generate.read_config(run).train.clusters == 0


def test_what_cannot_be_gone_on_with(old: Model, tmp_path: Path) -> None:
    wide = Images.from_arrays(np.zeros((9, 1, 8, 16), dtype=np.uint8), source="wide")
    with pytest.raises(InputError, match=r"wide: images of \(1, 8, 16\).*--size 8x8 --channels 1"):
        begun(old, tmp_path / "new", wide)
    jumps = DistilledConfig(run="teacher", checkpoint="0")
    distilled = replace(old, config=old.config.model_copy(update={"distilled": jumps}))
    with pytest.raises(InputError, match="go on from the run that it was distilled from: teacher"):
        begun(distilled, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    run = begun(old, tmp_path / "new")
    shutil.rmtree(run.start)
    with pytest.raises(CheckpointError, match=r"start: is gone; without what it began with"):
        list(train(run, others()))


def test_whether_it_may_have_seen_what_is_held_out_is_kept(
    old: Model, tiny_images: Images, tmp_path: Path
) -> None:
    def again(model: Model, name: str, images: Images) -> Model:
        run = begun(model, tmp_path / name, images)
        assert list(train(run, images))[-1].phase == "done"
        return generate.load(run.path)

    def is_unseen(model: Model) -> bool:
        assert model.config.begun is not None
        return model.config.begun.unseen

    same = again(old, "same", tiny_images)
    assert is_unseen(same)
    assert is_unseen(again(same, "same-again", tiny_images))
    other = again(old, "other", others())
    assert not is_unseen(other)
    write_data(Run(Path(old.run)), tiny_images, "name", accepted=["0" * 64])
    assert not is_unseen(again(old, "changed", tiny_images))
    assert not is_unseen(again(other, "other-again", others()))  # what it began with saw more


def test_guidance_towards_classes_goes_with_them(tmp_path: Path) -> None:
    small = [f"--set=network.{key}" for key in ("fold=1", "widths=[8,8]", "groups=2", "heads=2")]
    old = ["train", "digits", "--classes", "--steps", "2", "--out", str(tmp_path / "old"), *small]
    assert main([*old, "--set", "sample.guidance=2.25"]) == 0
    for name, options, guidance in (("told", ["--classes"], 2.25), ("untold", [], 1.0)):
        out = tmp_path / name
        new = ["train", "digits", "--steps", "2", "--from", str(tmp_path / "old"), *options]
        assert main([*new, "--out", str(out)]) == 0
        config = generate.read_config(Run(out))
        assert config.train.classes == bool(options)
        assert config.sample.guidance == guidance


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = [f"--set=network.{key}" for key in ("fold=1", "widths=[8,8]", "groups=2", "heads=2")]
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    assert main(["train", "digits", "--steps", "3", "--out", old, *small]) == 0
    assert main(["train", "digits", "--steps", "3", "--from", old, "--out", new]) == 0
    config = generate.read_config(Run(Path(new)))
    assert config.begun is not None
    assert config.begun.run == str(Path(old).resolve())
    assert config.train.lr == pytest.approx(preset("fast").train.lr * finetuning.LOWER_RATE)
    capfd.readouterr()
    refused = ["train", "digits", "--steps", "3", "--from", old, "--set", "network.blocks=2"]
    assert main(refused) == 2
    assert "--set network.blocks: is that of" in capfd.readouterr().err
    assert main([*refused[:-2], "--allow-signal"]) == 2
    assert "--allow-signal: is that of" in capfd.readouterr().err
    assert main([*refused[:-2], "--config", str(Path(old) / "config.toml")]) == 2
    assert "give one of them" in capfd.readouterr().err
    file = Path(new) / "config.toml"
    again = ["train", "digits", "--config", str(file), "--out", str(tmp_path / "again")]
    assert main(again) == 2
    said = capfd.readouterr().err
    assert f"{file}: is of a run that began with the weights of another, as [begun] says" in said
    assert f"`unraze train --from {Path(old).resolve()}`" in said
    assert not Path(again[-1]).exists()
    file.write_text(file.read_text(encoding="utf-8").partition("[begun]")[0], encoding="utf-8")
    assert main(again) == 0
    assert main(["train", "digits", "--from", str(tmp_path / "none")]) == 2
    assert "there is no such run" in capfd.readouterr().err


def test_a_model_of_diffusers_is_trained_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import UNet2DModel
    torch.manual_seed(0)
    for name, rows in (("theirs", None), ("told", 10)):
        UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=rows,
        ).save_pretrained(tmp_path / name)
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    assert main(["import", "diffusers", str(tmp_path / "theirs"), "--out", old]) == 0
    few = ["--steps", "3", "--batch", "8", "--dtype", "float32", "--threads", "1"]
    few += ["--set", "train.preview_every=1000", "--set", "train.checkpoint_every=1000"]
    assert main(["train", "digits", *few, "--from", old, "--out", new]) == 0
    assert main(["sample", new, "-n", "2", "--steps", "3", "--out", str(tmp_path / "out")]) == 0
    assert main(["export", "diffusers", new, "--out", str(tmp_path / "back")]) == 0
    assert "a stock DDPMPipeline" in capfd.readouterr().out
    classes = ["--classes", "--out", str(tmp_path / "classes")]
    assert main(["train", "digits", *few, "--from", old, *classes]) == 0
    assert main(["sample", classes[-1], "-n", "2", "--steps", "3", "--class", "4"]) == 0
    # one that knows classes, and no images without, is trained on with the same ones alone
    told, on = str(tmp_path / "told run"), str(tmp_path / "on")
    assert main(["import", "diffusers", str(tmp_path / "told"), "--out", told]) == 0
    assert main(["train", "digits", *few, "--from", told, "--classes", "--out", on]) == 0
    assert main(["sample", on, "-n", "2", "--steps", "3", "--class", "4"]) == 0
