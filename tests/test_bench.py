"""What the benchmarks keep is there whole or not at all, and is found again; nothing is timed."""

import argparse
import json
import math
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import few_steps
import guides
import kept
import numpy as np
import peers
import prepared
import pytest
import sample_speed
import time_to_quality
import torch
import train_speed
import trials
from PIL import Image
from processes import wait_for

from unraze import checkpoint, train as training
from unraze.config import Config, DistilledConfig, preset, updated
from unraze.data import Images
from unraze.denoiser import denoiser
from unraze.generate import Model, changed, sample
from unraze.schedule import Schedule, angle

RESULTS = Path(__file__).parent.parent / "bench" / "results"
PICTURES = np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8)


class Killed(BaseException):
    """In place of a signal."""


def making(count: list[int]) -> Callable[[], kept.Made]:
    """A `make` that counts its calls."""

    def make() -> kept.Made:
        count.append(1)
        return {"made": len(count)}, PICTURES

    return make


def test_a_cell_is_made_once(tmp_path: Path) -> None:
    file, count = tmp_path / "cells" / "lr0.002-seed0.json", list[int]()
    first = kept.cell(file, making(count))
    assert kept.cell(file, making(count)) == first == {"made": 1}
    assert {path.name for path in file.parent.iterdir()} == {
        "lr0.002-seed0.json",
        "lr0.002-seed0.png",
    }
    with Image.open(file.with_suffix(".png")) as picture:
        picture.verify()


@pytest.mark.parametrize("written", [0, 1])
def test_a_cell_that_is_killed_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Killed before the picture, then the result, has its name."""
    file, count, before = tmp_path / "cells" / "one.json", list[int](), Path.replace
    done: list[Path] = []

    def replace_or_die(self: Path, target: Path) -> Path:
        if len(done) == written:
            raise Killed
        done.append(target)
        return before(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(Killed):
        kept.cell(file, making(count))
    assert [path.name for path in file.parent.iterdir()] == ["one.png"][:written]
    monkeypatch.setattr(Path, "replace", before)
    assert kept.cell(file, making(count)) == {"made": 2}


def test_samples_go_on_where_they_were(tmp_path: Path) -> None:
    file, asked = tmp_path / "cells" / "one.json", list[range]()

    def draw(numbers: range) -> kept.Array:
        asked.append(numbers)
        if len(asked) == 3:
            raise Killed
        return np.full((len(numbers), 1, 2, 2), numbers.start, dtype=np.uint8)

    def make() -> kept.Made:
        drawn, seconds = kept.samples(file, 10, 4, draw)
        return {"drawn": drawn[:, 0, 0, 0].tolist(), "timed": seconds > 0}, None

    with pytest.raises(Killed):
        kept.cell(file, make)
    assert not file.exists()
    found = kept.cell(file, make)
    assert asked == [range(4), range(4, 8), range(8, 10), range(8, 10)]
    assert found == {"drawn": [0] * 4 + [4] * 4 + [8] * 2, "timed": True}
    assert [path.name for path in file.parent.iterdir()] == ["one.json"]


def test_a_summary_says_with_what(tmp_path: Path) -> None:
    options = Namespace(samples=3, out=tmp_path, runs=[tmp_path, tmp_path], data=str(tmp_path))
    kept.summary(tmp_path, "all", seeds=range(2), options=options, told=["a"], cells=[], more=1)
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["seeds"] == [0, 1]
    assert found["options"] == {"samples": 3}  # no paths
    assert found["versions"]["torch"] == torch.__version__
    assert {"machine", "told", "cells", "more"} <= found.keys()


def test_a_key_tells_values_apart() -> None:
    assert kept.key("a", 1) == kept.key("a", 1)
    assert len({kept.key("a", 1), kept.key("a", 2), kept.here("a", 1)}) == 3


@pytest.mark.parametrize(
    "file", sorted((RESULTS / "time-to-quality" / "cells").glob("*.json")), ids=lambda f: f.stem
)
def test_the_cells_of_time_to_quality_are_found_again(file: Path) -> None:
    """Of ours by all but the recipe, which may be an older one."""
    values = json.loads(file.read_text())
    cell = time_to_quality.Cell(*(values[key] for key in ("name", "minutes", "lr", "seed")))
    options = Namespace(out=file.parent.parent, samples=values["samples"], calls=values["calls"])
    of_data = file.stem[: file.stem.index(cell.name)]
    place = time_to_quality.place(cell, of_data, options)
    if cell.name == time_to_quality.OURS:
        then = re.compile("[0-9a-f]{8}")  # the recipe, which is another one since
        assert then.sub("", place.name) == then.sub("", file.name)
    else:
        assert place == file


@pytest.mark.parametrize("minutes", [5.0, 10.0])
def test_what_is_said_of_the_preset_is_of_today_s(minutes: float) -> None:
    """Another preset is to be measured anew: `python bench/time_to_quality.py`."""
    options = Namespace(out=time_to_quality.RESULTS, samples=2000, calls=25)
    ours = time_to_quality.Cell(time_to_quality.OURS, minutes, 0.0, 0)
    assert time_to_quality.place(ours, "", options).is_file()


def test_a_trial_s_words_are_its_keys() -> None:
    name, changes = trials.changes("p2: loss.weighting=p2 loss.p2_k=2 network.widths=[96, 192]")
    assert name == "p2"
    assert changes == {"loss.weighting": "p2", "loss.p2_k": 2, "network.widths": (96, 192)}
    assert trials.changes("base") == ("base", {})


def test_a_peer_has_the_rates_that_are_its_own_or_anyones() -> None:
    assert time_to_quality.parsed_rates("3e-4,1e-3") == [("", 3e-4), ("", 1e-3)]
    options = Namespace(rates=time_to_quality.parsed_rates("azula=2e-3,diffusers=1e-3"))
    options.minutes = [5.0]
    nothing: Any = None
    assert time_to_quality.best_rate("azula", nothing, options) == 2e-3
    assert time_to_quality.best_rate("diffusers", nothing, options) == 1e-3


def test_what_is_kept_says_how_many_threads_and_what_is_not_needs_its_packages(
    tmp_path: Path,
) -> None:
    options = Namespace(out=tmp_path, samples=1, calls=1, batch=64, threads=None)
    images: Any = Namespace(name="", training=Namespace(fingerprint="these"))
    cell = time_to_quality.Cell("azula", 5.0, 1e-3, 0)
    file = time_to_quality.place(cell, images.name, options)
    file.parent.mkdir()
    file.write_text(json.dumps({"threads": 2, "batch": 64}))
    assert time_to_quality.measured(cell, images, options)["threads"] == options.threads == 2
    file.write_text(json.dumps({"threads": 2, "batch": 64, "data": "others"}))
    with pytest.raises(SystemExit, match="on other images of that name"):
        time_to_quality.measured(cell, images, options)
    file.write_text(json.dumps({"threads": 2, "batch": 64, "data": "these"}))
    options.threads = 1
    with pytest.raises(SystemExit, match="--threads 2, not 1"):
        time_to_quality.measured(cell, images, options)
    file.unlink()
    options.everyone = ["diffusers", "a peer that nobody has"]
    with pytest.raises(SystemExit, match="a peer that nobody has: not installed; pip install"):
        time_to_quality.measured(cell, images, options)


def test_what_a_peer_begins_with_is_none_of_its_own_noise() -> None:
    """A sampler that drew the very noise again would begin with √2 of it at once."""
    seen = []

    def way(x: torch.Tensor, calls: int) -> torch.Tensor:
        seen.extend([x, torch.randn_like(x)])
        return x.clamp(-1, 1)

    pixels = peers._draw(way, (1, 8, 8), 300, 5, seed=0)
    assert pixels.shape == (300, 1, 8, 8)
    for x, noise in zip(seen[::2], seen[1::2], strict=True):
        both = torch.stack([x.flatten(), noise.flatten()])
        assert float(both.corrcoef()[0, 1].abs()) < 0.1  # of 3,200 and more independent ones


def test_a_peer_s_training_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its tenth step and begun again, with the same images, noise and rate, it ends with
    the weights of one that was not; by a clock that ticks a second a step."""

    clock, kill = [0.0], [math.inf]

    def peer(shape: tuple[int, int, int]) -> peers.Peer:
        network = torch.nn.Conv2d(shape[0], shape[0], 3, padding=1)

        def loss(x0: torch.Tensor) -> torch.Tensor:
            clock[0] += 1.0
            if clock[0] == kill[0]:
                raise Killed
            return (network(x0 + torch.randn_like(x0)) - x0).square().mean()

        return peers.Peer(network, loss, {"as it is": lambda x, calls: network(x)})

    def ended(file: Path) -> tuple[kept.Array, int, float]:
        clock[0] = 0.0
        draws, steps, spent, _ = peers.train(
            "one", pixels, seconds=20.0, lr=1e-2, batch=16, seed=3, file=file, every=3.0
        )
        return draws["as it is"](3, 1, 0), steps, spent

    monkeypatch.setitem(peers.PEERS, "one", peer)
    monkeypatch.setattr(peers, "_faster", lambda *_: "float32")
    monkeypatch.setattr(peers, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    whole, *of_it = ended(tmp_path / "whole.pt")
    kill[0] = 10.0
    with pytest.raises(Killed):
        ended(tmp_path / "killed.pt")
    kill[0] = math.inf
    drawn, *of_this = ended(tmp_path / "killed.pt")
    assert clock[0] == 20 - 9  # it had been saved after nine steps
    assert of_it == of_this == [20, 20.0]
    assert np.array_equal(whole, drawn)


def test_guided_away_from_itself_a_network_draws_as_alone(tmp_path: Path) -> None:
    """x̂ + w (x̂ - x̂) = x̂; of another network it is another picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    small = {"network.widths": (8, 8), "network.fold": 1, "train.steps": 2, "train.batch": 4}
    config = updated(preset("fast"), small | {"train.threads": 1, "train.clusters": 0})
    images = Images.from_arrays(pixels)
    model, other = (
        training.fit(images, updated(config, {"train.seed": seed}), out=tmp_path / str(seed))
        for seed in range(2)
    )
    settings = changed(model.config.sample, {"guidance": 3.0, "steps": 4})
    alone = guides.drawn(model, None, changed(settings, {"guidance": 1.0}), 3, 0)
    np.testing.assert_array_equal(guides.drawn(model, model, settings, 3, 0), alone)
    assert (guides.drawn(model, other, settings, 3, 0) != alone).any()


def test_the_ratio_of_means_has_its_interval_where_one_may_be_negative() -> None:
    """In 95 of 100 repetitions it holds the true ratio; it is not said where it has no end."""
    random = np.random.default_rng(0)
    errors = (0.01, 0.02)
    held = 0
    for _ in range(2000):
        ours, theirs = random.normal((0.01, 0.1), errors)
        _, low, high = time_to_quality.ratio_of_means([ours], [theirs], errors)
        held += low <= 0.1 <= high
    assert abs(held / 2000 - 0.95) < 0.02
    middle, low, high = time_to_quality.ratio_of_means([0.01, 0.03], [0.03], errors)
    assert middle == pytest.approx(2 / 3)
    assert np.isnan([low, high]).all()


def test_the_ratio_has_its_interval_over_seeds() -> None:
    """In 95 of 100 repetitions it holds the true ratio, of which the spread differs by side."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        ours, theirs = np.exp(random.normal((0.0, 1.0), (0.1, 0.3), size=(4, 2))).T
        middle, low, high = time_to_quality.ratio(ours, theirs)
        assert low < middle < high
        held += low <= np.exp(-1) <= high
    assert abs(held / 2000 - 0.95) < 0.02
    middle, low, high = time_to_quality.ratio([0.2], [0.4])  # one seed tells no interval
    assert middle == pytest.approx(0.5)
    assert np.isnan([low, high]).all()


def test_seeds_are_a_number_or_are_named() -> None:
    assert time_to_quality.parsed_seeds("3") == [0, 1, 2]
    assert time_to_quality.parsed_seeds("3,5") == [3, 5]


def test_other_seeds_have_a_summary_of_their_own() -> None:
    assert time_to_quality.summary_of("", [0, 1, 2]) == "time-to-quality"
    assert time_to_quality.summary_of("emoji-32px-", [0]) == "time-to-quality-emoji-32px"
    assert time_to_quality.summary_of("", [3, 4]) == "time-to-quality-seeds-3-4"
    assert time_to_quality.summary_of("", [0, 7]) == "time-to-quality-seeds-0-7"


def test_what_is_asked_for_otherwise_has_a_summary_of_its_own() -> None:
    usual = Namespace(samples=2000, seed=0, only="")
    assert few_steps.summary_of([5, 20, 10], usual) == "few-steps"
    assert few_steps.summary_of([5, 10], usual) == "few-steps-5-10-calls"
    other = Namespace(samples=500, seed=1, only="unipc")
    assert few_steps.summary_of([10], other) == "few-steps-10-calls-500-samples-seed-1-only-unipc"


def test_what_is_said_of_time_to_quality_is_the_best_peer_s(small: trials.Material) -> None:
    """Above the floor, ours over the peer with the least mean; and the hour of each."""

    def cell(name: str, minutes: float, value: float) -> dict[str, Any]:
        figure = {"value": 9.0, "low": 0.9, "high": 1.1, "alike": value, "floor": 0.1}
        figures = {"halves, test, Fréchet distance": figure}
        return {"name": name, "minutes": minutes, "images": 1000, "figures": figures}

    cells = [
        *(cell("unraze", 5, 0.1 + v) for v in (0.1, 0.2)),
        *(cell("slow", 5, 0.1 + v) for v in (8.0, 8.0)),
        *(cell("good", 5, 0.1 + v) for v in (1.0, 4.0)),
        cell("good", 60, 0.77),
    ]
    options = Namespace(minutes=[5], peers=["slow", "good"], long=60)
    of = replace(small, measure="Fréchet distance")
    told = "\n".join(time_to_quality.told(cells, of, options))
    assert "unraze / good: 0.071 (" in told  # √(0.1 × 0.2) over √(1 × 4)
    assert "60 min  good         0.7700" in told


def test_the_ratio_of_few_steps_is_of_two_figures() -> None:
    def one(value: float, width: float) -> tuple[float, float]:
        low, high = value * np.exp(-1.96 * width), value * np.exp(1.96 * width)
        figure = {"value": value, "low": low, "high": high}
        return few_steps.distance({"figures": {"a, Fréchet distance": figure}}, "a")

    assert one(0.4, 0.1) == (0.4, pytest.approx(0.1))
    apart = np.exp(1.96 * 0.05)
    words = f"0.500 ({0.5 / apart:.3f} … {0.5 * apart:.3f})"
    assert few_steps.ratio(one(0.2, 0.03), one(0.4, 0.04)) == words


def test_copies_are_known_in_every_space(small: trials.Material) -> None:
    images = small.training.pixels
    found = trials.copies(np.concatenate([images] * 3), small, small.validation)
    assert found["verdict"] == "copies"
    assert found["spaces"].keys() == {"pixels", "halves"}
    assert all(one["d1/d2 < 1/3"]["samples"] == 1 for one in found["spaces"].values())
    random = np.random.default_rng(9).integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    assert trials.copies(random, small, small.validation)["verdict"] != "copies"


def test_a_trial_of_another_configuration_is_another() -> None:
    config = updated(preset("fast"), {"train.steps": 10})
    kept_config = updated(config, {"train.threads": 7}).model_dump(mode="json")
    result = {"config": kept_config, "drawing": {"sample.guidance_interval": [0.2, 0.8]}}
    drawing = {"sample.guidance_interval": (0.2, 0.8)}
    assert trials.differences(result, config, drawing) == ""
    times = {"sample.spacing": (0.0, 500.0, 1000.0), "sample.steps": 2}
    assert trials.differences(result, updated(config, times), drawing) == "sample"
    wider = updated(config, {"network.widths": (96, 192), "train.lr": 1e-3})
    assert trials.differences(result, wider, drawing) == "network, train"
    assert trials.differences(result, config, {}) == "ways of drawing"


def test_the_kept_trials_are_those_of_today_s_preset() -> None:
    """Or the same command would not go on where it was."""
    files = sorted((trials.RESULTS / "cells").glob("base-*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        fixed = {"train.steps": result["steps"], "train.seed": result["seed"]}
        config = updated(preset("fast"), fixed)
        assert trials.differences(result, config, result["drawing"]) == "", file.name


@pytest.fixture
def small() -> trials.Material:
    """Noise of 8×8 in three parts, and a space of half of its pixels, by which KID is compared."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 1, 8, 8), dtype=np.uint8)
    space: Any = SimpleNamespace(
        name="halves", hash="0", extract=lambda x: x.reshape(len(x), -1)[:, ::2] / 255.0
    )
    training = Images.from_arrays(pixels[:40])
    return trials.Material("", training, pixels[40:60], pixels[60:], (space,), "KID")


def test_a_trial_is_trained_once_however_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: trials.Material
) -> None:
    monkeypatch.setattr(trials, "SAMPLES", 40)
    of = small
    small = {"network.widths": (8, 8), "network.fold": 1, "train.steps": 2, "train.batch": 4}
    config = updated(preset("fast"), small | {"train.threads": 1})
    plain = trials.tried(("one", config), ("", {}), of, tmp_path)
    trained = (tmp_path / "runs" / "one-2-seed0" / "loss.png").stat().st_mtime_ns
    ddim = ("ddim 3", {"sample.sampler": "ddim", "sample.steps": 3})
    drawn = trials.tried(("one", config), ddim, of, tmp_path)
    assert (tmp_path / "runs" / "one-2-seed0" / "loss.png").stat().st_mtime_ns == trained
    assert (plain["calls"], drawn["calls"]) == (25, 3)
    assert plain["loss"] == drawn["loss"]
    assert plain["figures"]["KID"]["value"] != drawn["figures"]["KID"]["value"]
    assert "one, ddim 3" in trials.line(drawn)
    with pytest.raises(SystemExit, match="other ways of drawing"):
        trials.tried(("one", config), ("ddim 3", {"sample.sampler": "heun"}), of, tmp_path)


def test_cases_of_training_speed() -> None:
    options = Namespace(sizes=[16, 32], channels=[1, 3], batches=[8], dtype="float32", threads=1)
    shapes = [case.shape for case in train_speed.cases(options)]
    assert shapes == [(1, 16, 16), (3, 16, 16), (1, 32, 32), (3, 32, 32)]


def test_training_speed_in_words() -> None:
    one = {"weights": 2e6, "flop_per_image": 1e9, "peak": 2**29, "needed": 2**30}
    one["start_up"] = [{"seconds": 4.0, "measuring": 1.0}]
    result: dict[str, Any] = {"size": 32, "channels": 3, "batch": 8, "dtype": "float32"}
    result |= {"threads": 2, "product": [100e9] * 2, "convolution": [200e9] * 2}
    networks = {
        "fast": one | {"images_per_second": [40.0, 60.0]},
        "diffusers": one | {"images_per_second": [20.0, 20.0]},
        "annotated": {"needed": 50 * 2**30},
    }
    told = "\n".join(train_speed.lines(result | {"networks": networks}))
    assert "32×32 colour, batch 8" in told
    assert "50%" in told  # 50 images of 1 GFLOP a second, of a product of 100
    assert "25%" in told
    assert "annotated  left out: would take 50.0 GiB or more" in told
    assert "fast / diffusers, images a second, pair by pair: 2.50 (2.00 … 3.00)" in told


def test_the_picture_of_growth_has_every_point() -> None:
    def one(size: int, channels: int, batch: int, rates: dict[str, float]) -> dict[str, Any]:
        networks: dict[str, Any] = {n: {"images_per_second": [r] * 2} for n, r in rates.items()}
        networks.setdefault("diffusers", {"needed": 50 * 2**30})
        return {"size": size, "channels": channels, "batch": batch, "networks": networks}

    results = [
        one(16, 1, 8, {"fast": 100.0, "diffusers": 20.0}),
        one(32, 1, 8, {"fast": 50.0}),
        one(16, 3, 64, {"fast": 90.0}),
    ]
    grey, colour = train_speed.by_size(results).axes
    drawn = [
        {
            line.get_label(): list(zip(*map(list, line.get_data()), strict=True))
            for line in each.lines
        }
        for each in (grey, colour)
    ]
    assert drawn == [
        {"fast, batch 8": [(16, 100.0), (32, 50.0)], "diffusers, batch 8": [(16, 20.0)]},
        {"fast, batch 64": [(16, 90.0)]},
    ]


def test_training_speed_knows_networks_by_what_they_are(tiny_images: Images) -> None:
    """The network is the trainer's, and another one has another key."""
    case = train_speed.Case(size=8, channels=1, batch=4, dtype="float32", threads=1)
    network, config = train_speed.on_paper("fast", case, tiny_images)
    trained = training.network_of(config, 0).state_dict()
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in trained.items()
    }
    recipe = train_speed.recipe(["fast"], case, tiny_images)
    assert recipe == train_speed.recipe(["fast"], case, tiny_images)
    assert recipe != train_speed.recipe(["fast"], replace(case, batch=8), tiny_images)
    assert train_speed.needed("fast", case, tiny_images) > 20 * sum(
        p.numel() for p in network.parameters()
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of the preset's schedule and loss, a few steps of a small network."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    changes = {
        "network.fold": 1,
        "network.widths": (8, 8),
        "network.blocks": 1,
        "schedule.steps": 30,
        "train.steps": 8,
        "train.batch": 8,
        "train.threads": 1,
        "train.dtype": "float32",
        "train.checkpoint_every": 8,
    }
    out = tmp_path_factory.mktemp("run") / "one"
    config: Config = updated(preset("fast"), changes)
    return training.fit(Images.from_arrays(pixels), config, out=out)


def test_few_steps_draws_what_sample_does(model: Model) -> None:
    """In parts, the same pictures."""
    wanted = few_steps.settings(model, {"sampler": "ddim", "spacing": "angle"}, 4)
    parts = [few_steps.drawn(model, numbers, 3, wanted) for numbers in (range(4), range(4, 7))]
    whole = sample(model, 7, seed=3, settings=wanted, batch=4)
    assert np.array_equal(np.concatenate(parts), few_steps.to_uint8(whole))


def test_the_run_of_few_steps_is_made_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the commands of a user, of which each goes on where it was."""
    asked, tuned = list[tuple[str, ...]](), dict[int, Any]()

    def unraze(*command: str) -> None:
        asked.append(command)
        if "--out" in command:
            folder = Path(command[command.index("--out") + 1])
            folder.mkdir()
            (folder / "config.toml").touch()
        if command[0] == "tune":
            tuned.update(dict.fromkeys(map(int, command[3::2])))

    monkeypatch.setattr(prepared, "_unraze", unraze)
    monkeypatch.setattr(
        prepared, "load", lambda _: SimpleNamespace(tuning=Namespace(settings=tuned))
    )
    run = prepared.ten([5, 10], tmp_path)
    made = prepared.distilled(run)
    ten, two, one = (str(tmp_path / name) for name in ("ten", "ten-distilled", "ten-one"))
    assert [str(path) for path in (run, *made)] == [ten, two, one]
    assert asked == [
        ("train", "fashion-mnist", "--minutes", "10", "--out", ten),
        ("tune", ten, "--calls", "5", "--calls", "10"),
        ("distill", ten, "--calls", "2", "--out", two),
        ("distill", ten, "--calls", "1", "--out", one),
    ]
    asked.clear()
    prepared.distilled(prepared.ten([5, 20], tmp_path))
    tune = ("tune", ten, "--calls", "20")
    assert asked == [("resume", ten), tune, ("resume", two), ("resume", one)]


def test_who_stops_the_benchmark_stops_the_training_that_it_began(tmp_path: Path) -> None:
    stats = tmp_path / "run" / "stats.jsonl"
    words = ["train", "digits", "--steps", "100000", "--out", str(tmp_path / "run")]
    line = [sys.executable, "-c", f"import prepared; prepared._unraze(*{words})"]
    with subprocess.Popen(line, cwd=Path(prepared.__file__).parent) as process:
        wait_for(lambda: stats.exists() and stats.stat().st_size)
        process.terminate()
        assert process.wait(60) == 130
    assert checkpoint.listing(tmp_path / "run" / "checkpoints")


def test_what_the_run_of_few_steps_cannot_be_is_said_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepared, "_unraze", None)  # nothing is made
    options = Namespace(run=None, distilled=None)
    with pytest.raises(SystemExit):
        prepared.settle(options, argparse.ArgumentParser(), [5, 1])
    assert "--calls 1: a run is tuned for 2 to 100" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="diffusers: not installed"):
        prepared.settle(options, argparse.ArgumentParser(), [5])


def test_a_student_is_of_its_teacher(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    own = checkpoint.hash_of(model.network.state_dict())
    of = {
        "mine": DistilledConfig(run="a", checkpoint=own),
        "other": DistilledConfig(run="b", checkpoint="0" * 64),
        "none": None,
    }
    made = {
        name: replace(model, config=model.config.model_copy(update={"distilled": distilled}))
        for name, distilled in of.items()
    }
    monkeypatch.setattr(prepared, "load", lambda path: made[str(path)])
    assert prepared.students(model, [Path("mine")]) == [made["mine"]]
    for name in ("other", "none"):
        with pytest.raises(SystemExit, match=f"{name}: was not distilled from"):
            prepared.students(model, [Path(name)])


def test_the_picture_of_few_steps_has_every_point() -> None:
    """Also with one number of calls: each line's least over its spacings, at its calls."""

    def one(label: str, calls: int, value: float) -> dict[str, Any]:
        figure = {"value": value, "low": 0.9 * value, "high": 1.1 * value}
        return {"label": label, "calls": calls, "figures": {"a, Fréchet distance": figure}}

    cells = [
        one("ddim, angle", 10, 0.7),
        one("ddim, karras", 10, 0.6),
        one("DDIM", 10, 0.5),
        one("tuned", 10, 0.3),
        one("distilled", 2, 0.4),
        one(few_steps.REFERENCE, 50, 0.8),
    ]
    (axes,) = few_steps.by_calls(cells, ["a"], 50).axes
    drawn = {line.get_label(): line for line in axes.lines}
    points = {
        label: list(zip(*map(list, line.get_data()), strict=True))
        for label, line in drawn.items()
        if line.get_marker() != "None"
    }
    assert points == {
        "our samplers": [(10, 0.6)],
        "diffusers' schedulers": [(10, 0.5)],
        "ours, tuned": [(10, 0.3)],
        "ours, distilled": [(2, 0.4)],
    }
    (reference,) = (line for label, line in drawn.items() if label.startswith(few_steps.REFERENCE))
    assert set(reference.get_ydata()) == {0.8}


def test_a_network_in_diffusers_says_v_at_its_own_time(model: Model) -> None:
    """(ᾱ, β̄) of the scheduler at its t are ours at t + 1, and v from there is x_0 of ours."""
    pytest.importorskip("diffusers")
    scheduler = sample_speed.scheduler_of(model, "DDPMScheduler", clip_sample=False)
    x = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0))
    denoise = denoiser(model.network, model.schedule, "v")
    for t in (torch.tensor(0), torch.tensor(11), torch.tensor(28)):
        with torch.no_grad():
            v = sample_speed.ForDiffusers(model)(x, t).sample
            said = denoise(x, (t + 1).double())
        a = scheduler.alphas_cumprod[t].double()
        torch.testing.assert_close((a.sqrt() * x - (1 - a).sqrt() * v).float(), said.x0)


def test_diffusers_betas_are_of_the_same_alpha_bar() -> None:
    schedule: Schedule = angle(20)
    alpha_bar = np.sqrt(np.cumprod(1 - few_steps.betas(schedule)))
    assert alpha_bar[:-1] == pytest.approx(schedule.alpha_bar[1:-1].numpy(), rel=1e-9)
    assert alpha_bar[-1] == pytest.approx(few_steps.LEAST, rel=1e-6)


def test_a_pipeline_draws_bytes(model: Model) -> None:
    pytest.importorskip("diffusers")
    network = sample_speed.ForDiffusers(model)
    scheduler = sample_speed.scheduler_of(model, "DDIMScheduler")
    draw = sample_speed.piped("DDIMPipeline", network, scheduler)
    drawn = draw(range(3), 0, 2)
    assert (drawn.dtype, drawn.shape) == (np.uint8, (3, *model.shape))
    assert np.array_equal(drawn, draw(range(3), 0, 2))


def judgement(low: float, value: float, high: float) -> dict[str, Any]:
    """A way whose distance this is, in one space."""
    figure = {"name": "Fréchet distance", "value": value, "low": low, "high": high}
    figure |= {"floor": 0.1, "better": "lower", "generated": 500, "real": 10_000}
    return {"samples": 500, "figures": {"a space": {"500": figure, "2000": {}}}}


def test_the_picture_of_sampling_speed_has_every_way_that_is_judged() -> None:
    def way(label: str, whose: str, calls: int) -> sample_speed.Way:
        return sample_speed.Way(label, whose, calls, calls, 10, lambda *_: PICTURES, 1e6)

    ways = [
        way("adams, 5", "unraze", 5),
        way("DDPMPipeline, 1000", "diffusers", 1000),
        way("DDPMPipeline, 9", "UNet2DModel", 9),
    ]
    figure = {"10": {"value": 0.5}}
    judgements = {w.name: {"samples": 10, "figures": {"a": figure}} for w in ways[:2]}
    speed = {"images_per_second": {w.name: [2.0, 4.0, 3.0] for w in ways}}
    (axes,) = sample_speed.by_speed(ways, judgements, speed).axes
    points = {line.get_label(): [list(xy) for xy in line.get_data()] for line in axes.lines}
    assert points == {"unraze": [[3.0], [0.5]], "diffusers' pipelines": [[3.0], [0.5]]}
    assert [text.get_text() for text in axes.texts] == ["5", "1,000"]


def test_flop_of_a_call_are_counted_for_one_image(model: Model) -> None:
    """By hand for a convolution: two for each weight and place."""
    convolution = torch.nn.Conv2d(1, 4, 3, padding=1)

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return convolution(x)

    assert sample_speed.flop_of(Network(), (1, 8, 8)) == 2 * 4 * 9 * 64
    assert sample_speed.flop_of(sample_speed.ForDiffusers(model), model.shape) > 0


def test_as_good_is_not_worse_than_intervals_explain() -> None:
    reference = judgement(1.8, 2.0, 2.2)
    assert sample_speed.as_good(reference, reference)
    assert sample_speed.as_good(judgement(0.9, 1.0, 1.1), reference)
    assert sample_speed.as_good(judgement(2.0, 2.2, 2.4), reference)
    assert not sample_speed.as_good(judgement(2.8, 3.0, 3.2), reference)


def test_a_ring_sends_what_it_must_and_no_step_is_faster_than_its_computing() -> None:
    import scale

    assert scale.ring_bytes(10, 2, shard=False) == 40  # each of two: half to the other, twice
    assert scale.ring_bytes(10, 10**9, shard=False) == pytest.approx(80)
    assert scale.ring_bytes(10, 4, shard=True) == pytest.approx(90)
    of = scale.Assumed(per_gpu=1e12, network_speed=1e9, inside_speed=1e10)
    costs = [scale.cost(10**8, 10, 1e9, 64, count, of) for count in (1, 2, 8, 16, 512)]
    assert costs[0].seconds == costs[0].computing == pytest.approx(0.064)
    assert scale.cost(10**8, 1000, 1e9, 64, 1, of).computing == pytest.approx(0.41)
    seconds = [each.seconds for each in costs]
    assert seconds == sorted(seconds)
    assert all(0 <= each.share < 1 and each.exposed <= each.sending for each in costs)
    # between machines 0.8 GB take 0.8 s, of which two thirds of the computing are hidden
    assert costs[-1].exposed == pytest.approx(costs[-1].sending - 0.064 * 2 / 3)
    assert costs[-1].sending == pytest.approx(0.8, rel=0.01)
