"""`unraze distill` from the terminal: a new run beside the old one, and one line for what fails."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from processes import Forker, wait_for

from evaluated import digits_file, few_steps
from test_cli import TINY, here, last_line, refused, snapshot
from unraze import checkpoint
from unraze.cli import main
from unraze.run import Run, find, read_config, read_rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of five steps with classes on digits in a file, and that file; another without."""
    folder = tmp_path_factory.mktemp("trained")
    data = digits_file(folder / "digits.npz")
    budget = ["--steps", "5", *TINY]
    for name, options in (("run", ["--classes"]), ("plain", [])):
        out = ["--out", str(folder / name)]
        assert main(["train", str(data), *options, *budget, *out]) == 0
    return folder, data


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the conditional run, at the relative path runs/a."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[0] / "run", tmp_path / "runs" / "a")
    return Path("runs/a")


def test_a_run_is_distilled_sampled_and_continued(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(run)
    assert main(["distill", str(run)]) == 0
    out = capfd.readouterr().out
    new = Path(out.splitlines()[-1])
    assert new == Path("runs/a-distilled")
    assert f"unraze sample {new}" in out
    assert snapshot(run) == before
    config = read_config(find(new))
    assert (config.sample.sampler, config.sample.steps) == ("consistency", 2)
    assert config.train.steps == 2  # of 5, each of which costs two
    assert config.distilled is not None
    assert config.distilled.run == str(run.resolve())

    assert main(["sample", str(new), "-n", "3", "--film"]) == 0
    drawn = Path(last_line(capfd))
    assert len(list(drawn.glob("0*.png"))) == 3
    assert main(["sample", "--like", str(drawn / "00001.png")]) == 0
    again = Path(last_line(capfd))
    assert again.read_bytes() == (drawn / "00001.png").read_bytes()

    assert main(["resume", str(new)]) == 0
    assert "finished already" in capfd.readouterr().out
    assert main(["runs", "runs"]) == 0
    assert re.search(r"a-distilled\W+done", capfd.readouterr().out)

    # the next one has a name of its own, and the options what they say
    options = ["--calls", "1", "--guidance", "2", "--guidance-interval", "0.1", "0.7"]
    options += ["--steps", "2", "--lr", "0.01", "--batch", "4", "--set", "loss.teacher_steps=3"]
    assert main(["distill", str(run), *options]) == 0
    other = Path(last_line(capfd))
    assert other.name == "a-distilled-2"
    config = read_config(find(other))
    assert config.loss.borders == (0.0, 20.0)
    assert (config.loss.teacher_guidance, config.loss.teacher_steps) == (2.0, 3)
    assert config.loss.teacher_interval == (0.1, 0.7)
    assert (config.train.steps, config.train.batch, config.train.lr) == (2, 4, 0.01)


@pytest.mark.parametrize(
    ("how", "after"),
    [
        (signal.SIGINT, 3),
        (signal.SIGKILL, 3),
        (signal.SIGKILL, 30),
    ],  # with and without a checkpoint
)
def test_stopped_and_continued_it_is_the_same_run(
    run: Path, forker: Forker, how: signal.Signals, after: int
) -> None:
    """A real process and a real signal: to the byte what an undisturbed one makes."""
    budget = ["--steps", "50", "--set", "train.checkpoint_every=25"]
    command = ["distill", str(run), *budget, "--out", "new"]
    new = Run(Path("new"))
    with forker.running("cli", argv=command, out=str(Path("out").resolve()), **here()) as process:
        wait_for(lambda: len(read_rows(new.stats)) >= after)
        os.kill(process, how)
        assert forker.wait(process) == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert "go on with: unraze resume new" in Path("out").read_text()
        assert "saving, then stopping" in Path("err").read_text()
    assert len(read_rows(new.stats)) < 50
    assert main(["resume", "new"]) == 0

    assert main(["distill", str(run), *budget, "--out", "whole"]) == 0
    for name in ("ema", "model"):
        one, other = (
            next(Path(folder, "checkpoints").glob(f"*50/{name}.safetensors")).read_bytes()
            for folder in ("new", "whole")
        )
        assert one == other


def test_the_parts_that_ask_for_a_mean_are_left_out_of_an_evaluation(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", str(run), "--out", "new"]) == 0
    with few_steps():
        assert main(["eval", "new", "-n", "60", "--skip", "memorisation"]) == 0
    page = Path(last_line(capfd)).read_text(encoding="utf-8")
    assert "Fréchet" in page
    (file,) = Path("new/eval").glob("step-*.json")
    made = json.loads(file.read_text(encoding="utf-8"))
    assert made["spaces"]
    assert not made["bounds"]
    assert made["flow"] is made["levels"] is None
    skip = ["--skip", "figures", "--skip", "memorisation"]
    refused(capfd, ["eval", "new", "-n", "50", *skip], "of a distilled run")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--calls", "3"], ["--calls = 3", "1 or 2"]),
        (["--minutes", "1", "--steps", "2"], ["--minutes and --steps", "give one"]),
        (["--lr", "-1"], ["--lr = -1.0", "more than 0"]),
        (["--steps", "0"], ["--steps = 0", "at least 1"]),
        (["--lr", "1", "--set", "train.lr=2"], ["--set train.lr", "an option of its own"]),
        (["--set", "train.nothing=2"], ["no key 'train.nothing'"]),
        (["--set", "train.shard=true"], ["train.shard = true", "one process"]),
        (["--checkpoint", "99"], ["no checkpoint of step 99"]),
        (["--out", "runs/a"], ["--out runs/a", "is a run already"]),
        (["--batch", "0"], ["error: --batch = 0: give at least 1"]),
        (
            ["--guidance", "2", "--guidance-interval", "0.8", "0.2"],
            ["error: --guidance-interval = 0.8, 0.2", "lower end first"],
        ),
        (
            ["--guidance", "1", "--guidance-interval", "0.1", "0.8"],
            ["--guidance-interval", "nothing is guided"],
        ),
        (["--set", "train.batch=abc"], ["error: --set: train.batch = 'abc': give a whole"]),
        (["--set", "loss.borders=5"], ["error: --set: loss.borders = 5: give a list"]),
        (["--set", "loss.teacher_guidance=abc"], ["teacher_guidance = 'abc': give a number"]),
        (["--set", "foo=1"], ["error: --set: there is no key 'foo'"]),
        (["--set", "network.blocks=2"], ["error: --set: network.blocks is that of runs/a"]),
        (["--set", "network.kind=unet"], ["network.kind is that of runs/a", "leave it out"]),
        (["--set", "schedule.kind=linear"], ["schedule.kind is that of runs/a"]),
        (["--set", "train.classes=false"], ["train.classes is that of runs/a"]),
        (["--set", "sample.guidance=2"], ["sample.guidance = 2", "`unraze distill` --guidance"]),
        (
            ["--set", "sample.guidance_interval=[0.1, 0.8]"],
            ["sample.guidance_interval = 0.1, 0.8", "leave them out"],
        ),
        (["--set", "train.clusters=3"], ["train.clusters is that of runs/a"]),
        (["--set", "loss.variance=learned"], ["loss.variance is that of runs/a"]),
        (["--set", "loss.self_conditioning=true"], ["loss.self_conditioning is that of runs/a"]),
        (["--set", "distilled.run=foo"], ["--set distilled.run", "`unraze distill`"]),
        (["--set", 'begun={run="a",checkpoint="b"}'], ["--set begun", "`unraze train --from`"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_will_not_do_is_said(
    run: Path, capfd: pytest.CaptureFixture[str], options: list[str], says: list[str]
) -> None:
    refused(capfd, ["distill", str(run), *options], *says)


def test_a_device_is_asked_for_before_the_images_are_read(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unraze.cli.distill.read_images", lambda *_: pytest.fail("reads images"))
    refused(capfd, ["distill", str(run), "--device", "foo"], "error: --device = 'foo'")


def test_runs_that_cannot_be_distilled(
    run: Path, trained: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    refused(capfd, ["distill", "runs/b"], "runs/b", "no such run")
    plain = trained[0] / "plain"
    refused(capfd, ["distill", str(plain), "--guidance", "2"], "--guidance = 2", "does not know")
    file = run / "config.toml"
    whole = file.read_text(encoding="utf-8")
    source = str(trained[1])
    file.write_text(whole.replace(source, source + ".gone"), encoding="utf-8")
    refused(capfd, ["distill", str(run)], "cannot be distilled without the images")
    file.write_text(whole, encoding="utf-8")
    checkpoint.set_aside(checkpoint.listing(run / "checkpoints")[-1])
    refused(capfd, ["distill", str(run)], "has no checkpoint yet")


def test_samplers_and_networks_that_do_not_fit(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(capfd, ["sample", str(run), "--sampler", "consistency"], "unraze distill RUN")
    refused(capfd, ["eval", str(run), "--sampler", "consistency"], "unraze distill RUN")
    assert main(["distill", str(run), "--out", "new"]) == 0
    for options in (["--sampler", "adams"], ["--greedy"], ["--sigma", "beta"]):
        refused(capfd, ["sample", "new", *options], "consistency", str(run.resolve()))
    refused(capfd, ["sample", "new", "--guidance", "3"], "unraze distill", "--guidance 3")
    refused(capfd, ["sample", "new", "--steps", "1"], "--steps = 1", "2 calls")
    refused(capfd, ["sample", "new", "--spacing", "karras"], "error: --spacing = karras", "angle")
    refused(capfd, ["sample", "new", "--sampler", "adams"], "error: --sampler = adams")
    refused(capfd, ["distill", "new"], "is distilled already")
    of_it = ["train", "digits", "--config", "new/config.toml"]
    refused(
        capfd, of_it, "config.toml: is of a run that began", f"`unraze distill {run.resolve()}`"
    )
    refused(
        capfd,
        ["train", "digits", "--set", "loss.objective=consistency"],
        "loss",
        "borders",
    )
