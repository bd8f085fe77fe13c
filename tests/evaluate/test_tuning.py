"""The search for settings of few calls: what is tried, kept, and taken from then on."""

import os
import shutil
import signal
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Forker, wait_for

from evaluated import Small, files_below
from unraze import generate, run as runs
from unraze.cli import main
from unraze.config import SampleConfig, updated
from unraze.data import to_uint8
from unraze.errors import CheckpointError, InputError, UnrazeError
from unraze.evaluate import tuning
from unraze.evaluate.figures import Figure
from unraze.evaluate.gaussian import frechet
from unraze.evaluate.kernel import kid
from unraze.evaluate.reference import Reference, of_run
from unraze.evaluate.stage import Stage, finish
from unraze.generate import Model, Tuning, load

NEW = 60


@pytest.fixture
def search(model: Model, ready: Small, tmp_path: Path) -> tuning.Search:
    return tuning.search(
        model, of_run(model), ready.spaces[0], count=NEW, folder=tmp_path / "scores"
    )


def test_the_best_of_what_was_tried_is_found(search: tuning.Search) -> None:
    """Its score is the least of all scores, and its figure is of other noise and other images."""
    found, own, winners = finish(tuning.tuned(search, (3, 5)))
    assert set(winners) == set(found.settings) == {3, 5}
    scored = {path.name: float(path.read_text()) for path in search.folder.glob("score-*")}
    assert len(scored) == sum(one.tried for one in winners.values())
    for n, one in winners.items():
        assert one.settings.steps == n
        assert found.settings[n] == one.settings
        assert one.tried >= len(tuning.SPACINGS) + 2 * (len(tuning.SOLVERS) - 1)
        score = finish(tuning._score(search, one.settings, ""))
        drawn = generate.sample(search.model, NEW, seed=tuning.REPORT_SEED, settings=one.settings)
        ours = search.space.extract(to_uint8(drawn))
        real = search.space.extract(search.reference.held_out.pixels)
        assert one.found.value == pytest.approx(kid(real, ours).value, rel=1e-4)
        assert one.found.value != score
    best = min(scored.values())
    assert best in [finish(tuning._score(search, one.settings, "")) for one in winners.values()]
    assert found.default in (3, 5)
    assert own.generated == NEW
    assert found.checkpoint == search.model.checkpoint


def test_a_search_that_was_stopped_goes_on(
    search: tuning.Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = tuning.tuned(search, (3,))
    for stage in stages:
        if stage.name == "3 calls, candidate 4":
            break
    stages.close()
    before = files_below(search.folder)
    assert len(before) == 3
    drawn = []
    own = tuning._features

    def counted(of: tuning.Search, settings: SampleConfig, seed: int, name: str):  # type: ignore[no-untyped-def]
        drawn.append(settings)
        return own(of, settings, seed, name)

    monkeypatch.setattr(tuning, "_features", counted)
    found, _, winners = finish(tuning.tuned(search, (3,)))
    assert len(drawn) == winners[3].tried - 3 + 2
    assert before.items() <= files_below(search.folder).items()
    shutil.rmtree(search.folder)
    assert finish(tuning.tuned(search, (3,)))[0] == found


def test_no_more_calls_are_made_than_were_forecast(
    search: tuning.Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = 0

    def count(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal images
        images += len(inputs[0])

    search.model.network.register_forward_pre_hook(count)
    finish(tuning.tuned(search, (4, 6)))
    forecast = tuning.calls_to_make(search.model, (4, 6), NEW)
    assert 0.7 * forecast < images <= forecast


def test_guidance_is_searched_where_it_can_be(ready: Small, tmp_path: Path) -> None:
    model = load(ready.classy)
    search = tuning.search(
        model, of_run(model), ready.spaces[0], count=NEW, folder=tmp_path / "scores"
    )
    _, _, winners = finish(tuning.tuned(search, (2,)))
    least = len(tuning.SPACINGS) + 2 * (len(tuning.SOLVERS) - 1) + len(tuning.GUIDANCE)
    assert winners[2].tried >= least


def test_the_measure_is_what_the_images_suffice_for(
    model: Model, ready: Small, tmp_path: Path
) -> None:
    space, reference = ready.spaces[0], of_run(model)
    few = tuning.search(model, reference, space, count=NEW, folder=tmp_path)
    assert few.measure is kid
    enough = tuning.search(model, reference, replace(space, dim=15), count=NEW, folder=tmp_path)
    assert enough.measure is frechet
    with pytest.raises(InputError, match="-n 49: too few samples"):
        tuning.search(model, reference, space, count=49, folder=tmp_path)
    cut = replace(reference.held_out, pixels=reference.held_out.pixels[:49], labels=None)
    with pytest.raises(InputError, match="49 held-out images are too few to choose by"):
        tuning.search(
            model, Reference(reference.training, cut, False), space, count=NEW, folder=tmp_path
        )


def _figure(value: float) -> Figure:
    return Figure("KID", value, value - 1, value + 1, float("nan"), "lower", NEW, NEW)


@pytest.mark.parametrize(
    ("values", "default"),
    [({4: 1.04, 8: 1.0, 12: 1.02}, 4), ({4: 1.06, 8: 1.0}, 8), ({4: -0.1, 8: -0.2}, 8)],
)
def test_the_default_is_the_least_number_that_is_nearly_the_best(
    search: tuning.Search,
    values: dict[int, float],
    default: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(
        of: tuning.Search, n: int, errors: np.ndarray
    ) -> Generator[Stage, None, tuning.Searched]:
        yield Stage("", 0, 1)
        return tuning.Searched(SampleConfig(steps=n), _figure(values[n]), 1)

    monkeypatch.setattr(tuning, "_searched", found)
    assert finish(tuning.tuned(search, tuple(values)))[0].default == default


# ---------------------------------------------------------------------- what is kept, and taken


@pytest.fixture
def here(ready: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ready.run, tmp_path / "here" / "run")
    shutil.copytree(ready.other, tmp_path / "here" / "other")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here" / "run"


def _tuning(model: Model) -> Tuning:
    settings = {
        n: SampleConfig(sampler="adams", order=2, steps=n, spacing=spacing)
        for n, spacing in ((2, (0.0, 20.0, 50.0)), (3, "angle"))
    }
    return Tuning(checkpoint=model.checkpoint, default=2, settings=settings)


def test_what_was_found_is_taken_where_no_other_way_is_asked_for(here: Path) -> None:
    before = load(here)
    assert generate.settings_of(before) == before.config.sample
    generate.keep_tuning(before, _tuning(before))
    model = load(here)
    assert model.tuning == _tuning(before)
    tuned = _tuning(before).settings
    assert generate.asked(model, {}) == tuned[2]
    assert generate.asked(model, {"steps": 3}) == tuned[3]
    assert generate.asked(model, {"clip": "none"}).spacing == (0.0, 20.0, 50.0)
    own = model.config.sample
    assert generate.asked(model, {"steps": 4}) == generate.changed(own, {"steps": 4})
    for way in (
        {"sampler": "ddim"},
        {"spacing": "angle"},
        {"sampler": "ddim", "eta": 1.0},
    ):
        assert generate.asked(model, way) == generate.changed(own, way)
        assert generate.tuned_for(model, way) is None
    guided = generate.changed(tuned[3], {"guidance": 2.0})
    assert generate.asked(model, {"steps": 3, "guidance": 2.0}) == guided
    both = Tuning(checkpoint=model.checkpoint, default=3, settings={3: guided})
    unlabelled = generate.asked(replace(model, tuning=both), {}, classes="none")
    assert unlabelled == tuned[3]
    assert torch.equal(generate.sample(model, 2), generate.sample(model, 2, settings=tuned[2]))
    assert load(here, raw=True).tuning is None


def test_tuning_of_other_weights_or_a_damaged_one_is_refused(here: Path) -> None:
    model = load(here)
    file = generate.keep_tuning(model, _tuning(model).model_copy(update={"checkpoint": "0" * 64}))
    with pytest.raises(CheckpointError, match="found for other weights: remove it"):
        load(here)
    for text in (
        "{",
        '{"default": 2}',
        _tuning(model).model_dump_json().replace('"default":2', '"default":4'),
    ):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"is damaged .* make it anew with `unraze tune`"):
            load(here)
    assert main(["tune", "run", "--calls", "2", "-n", "60"]) == 0
    assert set(load(here).tuning.settings) == {2}  # type: ignore[union-attr]
    file.unlink()
    assert load(here).tuning is None
    with pytest.raises(UnrazeError, match="no checkpoint"):
        generate.keep_tuning(replace(model, folder=None), _tuning(model))


def test_the_command_keeps_what_it_finds(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "run", "--calls", "3", "--calls", "2", "-n", "60"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert Path(out[-1]) == next((Path("run") / "checkpoints").glob("*/sampling.json"))
    assert sum("the default from now on" in line for line in out) == 1
    assert any(line.startswith("    4 calls  ddim, time") for line in out)
    assert set(load(here).tuning.settings) == {2, 3}  # type: ignore[union-attr]
    assert main(["sample", "run", "-n", "2", "--out", "a"]) == 0
    assert "as `unraze tune` found\n" in capfd.readouterr().out
    assert main(["sample", "--like", "a/00001.png"]) == 0
    assert main(["tune", "run", "--calls", "4", "-n", "60"]) == 0  # which leaves the others
    default = load(here).tuning.default  # type: ignore[union-attr]
    said = f"kept from before: 2, 3 calls; the default stays {default}\n"
    assert said in capfd.readouterr().out
    assert set(load(here).tuning.settings) == {2, 3, 4}  # type: ignore[union-attr]
    assert default in (2, 3)
    for way in ("--sampler", "ddim"), ("--spacing", "angle"):
        assert main(["sample", "run", "-n", "2", "--out", f"{way[1]}", *way]) == 0
        assert "tune" not in capfd.readouterr().out
    assert Path("a/00000.png").read_bytes() != Path("ddim/00000.png").read_bytes()


def test_all_of_the_noise_is_tried_whatever_share_the_run_has(
    search: tuning.Search, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = {"sample.sampler": "dpmpp_2m_sde", "sample.eta": 0.5, "sample.order": None}
    own = replace(model, config=updated(model.config, half))
    tried = []

    def score(
        of: tuning.Search, settings: SampleConfig, name: str
    ) -> Generator[Stage, None, float]:
        tried.append((settings.sampler, settings.eta))
        yield Stage("", 0, 1)
        return float(len(tried))

    monkeypatch.setattr(tuning, "_score", score)
    monkeypatch.setattr(tuning, "_figure", lambda *_: iter(()))
    stages = tuning._searched(replace(search, model=own), 3, np.zeros((3, 3)))
    finish(stages)
    assert {("dpmpp_2m_sde", 0.5), ("dpmpp_2m_sde", 1.0), ("dpmpp_3m_sde", 1.0)} <= set(tried)


def test_a_short_schedule_is_searched_for_the_calls_it_holds(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CALLS", (2, 3, 60))
    assert main(["tune", "run", "-n", "60"]) == 0
    assert set(load(here).tuning.settings) == {2, 3}  # type: ignore[union-attr]
    monkeypatch.setattr(tuning, "CALLS", (60,))
    assert main(["tune", "run", "-n", "60"]) == 2
    assert "its schedule has 50 steps; say how many calls, --calls" in capfd.readouterr().err


def test_a_run_that_is_being_trained_is_not_searched(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with runs.locked(runs.Run(here)):
        assert main(["tune", "run", "-n", "60"]) == 2
    assert "run: is being trained" in capfd.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_real_process_that_is_stopped_goes_on_to_the_same(
    here: Path, forker: Forker, how: signal.Signals
) -> None:
    shutil.copytree("run", "whole")
    command = ["tune", "run", "--calls", "3", "-n", "60"]
    job = {"cwd": str(Path.cwd()), "err": str(Path("err").resolve())}
    job["env"] = {"UNRAZE_CACHE": os.environ["UNRAZE_CACHE"]}

    def scores() -> int:
        return len(list(Path("run/tune").rglob("score-*")))

    with forker.running("cli", argv=command, **job) as process:
        wait_for(lambda: scores() >= 3)
        os.kill(process, how)
        assert forker.wait(process) == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        again = f"go on with: unraze {' '.join(command)}"
        assert f"unraze: interrupted; what is done is kept, {again}" in Path("err").read_text()
    kept = files_below(Path("run/tune"))
    assert load("run").tuning is None
    assert main(command) == 0
    assert kept.items() <= files_below(Path("run/tune")).items()
    assert main(["tune", "whole", *command[2:]]) == 0
    assert files_below(Path("run/tune")) == files_below(Path("whole/tune"))
    found, wanted = (
        next(Path(run, "checkpoints").glob("*/sampling.json")) for run in ("run", "whole")
    )
    assert found.read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--calls", "1"], "--calls 1: give 2 to 100"),
        (["--calls", "60"], "--calls 60: the run's schedule has 50"),
        (["-n", "0"], "-n 0"),
        (["-n", "20"], "-n 20: too few samples to choose by; give at least 50"),
        (["--checkpoint", "7"], "no checkpoint of step 7"),
        (["--device", "cuda:9"], "--device"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    here: Path,
    options: list[str],
    says: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And before features are trained, which takes longest."""
    monkeypatch.setattr(
        "unraze.evaluate.features.first_space", lambda *_: pytest.fail("trains features")
    )
    before = files_below(here)
    assert main(["tune", "run", *options]) == 2
    assert says in capfd.readouterr().err
    assert files_below(here) == before
