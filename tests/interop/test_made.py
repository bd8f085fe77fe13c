"""A run made of weights: it is drawn from like any other, and says what it lacks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evaluated import digits_file, few_steps
from unraze import checkpoint, nn as networks, run as runs
from unraze.cli import main
from unraze.config import Config, updated
from unraze.data import Images
from unraze.errors import CheckpointError, InputError, UnrazeError
from unraze.evaluate.reference import of_run, of_run_against
from unraze.generate import load, sample
from unraze.interop.made import create_run
from unraze.train import fit, train

SHAPE = (1, 8, 8)


def configured(config: Config) -> Config:
    return updated(config, {"data.source": "weights.pt", "train.steps": None})


def weights(config: Config, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = networks.build(config.network, channels=1, size=(8, 8))
    return {k: torch.randn_like(v) * 0.1 for k, v in network.state_dict().items()}


def made(config: Config, out: Path | None, **more: Any) -> runs.Run:
    raw, averaged = weights(config, 1), weights(config, 2)
    return create_run(configured(config), raw, averaged, shape=SHAPE, out=out, **more)


def test_it_is_drawn_from_like_any_other(tiny_config: Config, tmp_path: Path) -> None:
    run = made(tiny_config, tmp_path / "run", step=700, command=["unraze", "import"])
    model, raw = load(run.path), load(run.path, raw=True)
    for found, seed in ((model, 2), (raw, 1)):
        for name, value in weights(tiny_config, seed).items():
            assert torch.equal(found.network.state_dict()[name], value), name
    assert (model.step, model.shape, model.data) == (700, SHAPE, "")
    assert sample(model, 2).shape == (2, *SHAPE)
    assert main(["sample", str(run.path), "-n", "2", "--out", str(tmp_path / "drawn")]) == 0
    assert (run.path / "command.txt").read_text() == "unraze import\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drawn", "run"]


@pytest.mark.parametrize("step", [0, 700])
def test_it_is_listed_as_done(tiny_config: Config, tmp_path: Path, step: int) -> None:
    made(tiny_config, None, folder=tmp_path, step=step)
    (found,) = runs.summaries(tmp_path)
    assert found.path == tmp_path / "00000-imported-weights-pt"
    assert (found.state, found.step, found.source) == ("done", step, "imported:weights.pt")


@pytest.mark.parametrize("command", ["resume", "eval", "tune", "distill"])
def test_what_needs_its_images_says_that_there_are_none(
    tiny_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    run = made(tiny_config, tmp_path / "run")
    assert main([command, str(run.path)]) == 2
    said = capfd.readouterr().err
    assert "another program" in said
    assert "--against IMAGES" in said
    assert "moved" not in said
    assert list(tmp_path.iterdir()) == [run.path]


def test_images_named_later_are_no_training_of_it(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    run = made(tiny_config, tmp_path / "run")
    config = updated(runs.read_config(run), {"data.source": "digits", "train.steps": 5})
    runs.write_config(run, config)
    with pytest.raises(
        CheckpointError, match=r"another program trained, .*train IMAGES --from RUN"
    ):
        list(train(run, tiny_images))
    with pytest.raises(CheckpointError, match="say what it is to be held against"):
        of_run(load(run.path))


def test_it_is_evaluated_against_images_that_are_named(
    tiny_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, data = made(tiny_config, tmp_path / "run"), str(digits_file(tmp_path / "digits.npz"))
    skipped = [f"--skip={part}" for part in ("figures", "memorisation", "levels", "flow")]
    command = ["eval", str(run.path), *skipped, "--against"]
    with few_steps():
        assert main([*command, data]) == 0
    assert f"held-out images of {data}" in capfd.readouterr().out
    assert (run.path / "report.html").is_file()
    assert main([*command, str(tmp_path / "none")]) == 2
    assert "none" in capfd.readouterr().err


def test_a_run_that_knows_its_images_is_not_held_against_others(
    tiny_config: Config, tiny_images: Images, tmp_path: Path
) -> None:
    fit(tiny_images, tiny_config, out=tmp_path / "run")
    with pytest.raises(InputError, match="knows its own images; leave --against out"):
        of_run_against(load(tmp_path / "run"), "digits")


def test_a_place_that_is_taken_is_left_as_it_is(tiny_config: Config, tmp_path: Path) -> None:
    run = made(tiny_config, tmp_path / "run")
    before = checkpoint.listing(run.checkpoints)
    with pytest.raises(InputError, match="is a run already"):
        made(tiny_config, tmp_path / "run", step=9)
    assert checkpoint.listing(run.checkpoints) == before
    (tmp_path / "empty").mkdir()
    assert load(made(tiny_config, tmp_path / "empty").path).step == 0


def test_nothing_is_left_where_it_cannot_be_written(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise UnrazeError("the disk is full")

    monkeypatch.setattr(checkpoint, "save", full)
    for out in (tmp_path / "run", None):
        with pytest.raises(UnrazeError, match="full"):
            made(tiny_config, out, folder=tmp_path / "runs")
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_weights_of_another_network_are_refused(tiny_config: Config, tmp_path: Path) -> None:
    good = weights(tiny_config, 1)
    name = next(iter(good))
    for bad, says in (
        ({k: v for k, v in good.items() if k != name}, f"{name} is missing"),
        (good | {"more": torch.zeros(2)}, r"more is \(\(2,\), torch.float32\), .* none"),
        (good | {name: good[name].double()}, "torch.float64"),
    ):
        with pytest.raises(ValueError, match=says):
            create_run(configured(tiny_config), good, bad, shape=SHAPE, out=tmp_path / "run")
    assert not any(tmp_path.iterdir())
