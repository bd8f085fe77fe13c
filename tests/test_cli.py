"""The command line: what is asked for is done, what can't be done is said in one line."""

import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from processes import Forker, has_ended, wait_for

from unraze import cli as commands, generate, pictures
from unraze.cli import drawing, look, main, show, studio
from unraze.cli.app import SCHEDULE_KINDS
from unraze.config import (
    DataConfig,
    SampleConfig,
    ScheduleConfig,
    TrainConfig,
    from_toml,
    preset,
    preset_names,
    preset_text,
)
from unraze.data import load, load_images
from unraze.data.held_out import held_out
from unraze.errors import UnrazeError
from unraze.ranks import ALONE
from unraze.run import find, read_config
from unraze.schedule import SCHEDULES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TINY = [
    *["--set", "network.widths=[8, 8]", "--set", "network.blocks=1", "--set", "network.groups=4"],
    *["--set", "network.heads=1", "--set", "schedule.steps=20", "--set", "sample.steps=4"],
    *["--set", "train.preview_every=1000", "--set", "train.checkpoint_every=1000"],
    *["--dtype", "float32", "--threads", "1", "--batch", "8"],
]
UNRAZE = [sys.executable, "-m", "unraze"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own, with a cache of its own."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return here


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on the digits, with classes."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "digits", "--steps", "3", "--classes", "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture
def run(trained: Path, elsewhere: Path) -> Path:
    """A copy of that run, to be spoilt at will, at the relative path `run`."""
    shutil.copytree(trained, elsewhere / "run")
    return Path("run")


@pytest.fixture
def plain(elsewhere: Path) -> Path:
    """A run of one step that is told nothing of its images."""
    command = ["train", "digits", "--steps", "1", "--clusters", "0", "--out", "plain", *TINY]
    assert main(command) == 0
    return Path("plain")


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder, with the hash of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def refused(
    capfd: pytest.CaptureFixture[str], argv: list[str], *says: str, status: int = 2
) -> None:
    """One line on stderr that says all of `says`, the exit status, and nothing new on disk."""
    before = snapshot(Path.cwd())
    capfd.readouterr()
    assert main(argv) == status
    err = capfd.readouterr().err
    assert re.fullmatch(r"unraze: error: [^\n]+\n", err), err
    for words in says:
        assert words in err, err
    assert snapshot(Path.cwd()) == before


def here(err: Path = Path("err")) -> dict[str, str]:
    """Where a forked process works, and writes what it says on stderr."""
    return {"cwd": str(Path.cwd()), "err": str(err.resolve())}


def last_line(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().out.splitlines()[-1]


# ------------------------------------------------------------------------------ help and usage


def test_help_answers_without_the_heavy_packages() -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "unraze", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in told.stderr.splitlines()}
    assert "unraze.cli" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "PIL", "matplotlib"}
    for command in ("train", "resume", "sample", "destroy", "schedule", "data", "config", "runs"):
        assert re.search(rf"^│ {command} ", told.stdout, re.MULTILINE), command


@pytest.mark.parametrize(
    "command", ["train", "resume", "sample", "destroy", "schedule", "card", "publish"]
)
def test_each_command_helps_with_an_example(command: str, capsys) -> None:
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out
    assert f"unraze {command} " in told.split("Example")[1]
    operands = {"train": "DATA", "destroy": "IMAGE", "schedule": "[KINDS]", "publish": "FOLDER"}
    operand = operands.get(command, "RUN")
    assert told.startswith(f"Usage: unraze {command} {operand}")


@pytest.mark.parametrize(
    "usage",
    [
        "eval TARGET [OPTIONS]",
        "compare RUN RUN …",
        "runs [FOLDER]",
        "data check SOURCE [OPTIONS]",
        "data stats SOURCE [OPTIONS]",
        "data get NAME",
        "edit vary RUN IMAGE [OPTIONS]",
        "export diffusers RUN --out FOLDER [OPTIONS]",
        "export torch RUN [OPTIONS]",
    ],
)
def test_usage_names_operands_before_options(usage: str, capsys) -> None:
    words = [word for word in usage.split() if word.isalpha() and word.islower()]
    assert main([*words, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: unraze {usage}\n")


@pytest.mark.parametrize("columns", [60, 150])
def test_help_is_as_wide_as_the_terminal(columns: int) -> None:
    told = subprocess.run(
        [*UNRAZE, "data", "check", "--help"],
        env=os.environ | {"COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = told.split("\n\n")[2].splitlines()
    assert lines[-1].endswith("Nothing is changed.")
    # every line but the last is full: the next one's first word had no room on it
    for line, after in itertools.pairwise(lines):
        assert len(line.rstrip()) + 1 + len(after.split()[0]) > columns


def test_all_that_the_package_needs_is_installed_with_it() -> None:
    root = Path(commands.__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    globs = project["tool"]["setuptools"]["package-data"]["unraze"]
    package = root / "src/unraze"
    declared = {path for glob in globs for path in package.glob(glob)}
    there = {path for path in package.rglob("*") if path.is_file()}
    code = {path for path in there if path.suffix in (".py", ".pyc")}
    assert there - code == declared
    # and what is a package to Python is one to the build
    assert all((path.parent / "__init__.py").is_file() for path in code if path.suffix == ".py")


def test_the_package_itself_is_light() -> None:
    code = "import unraze, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="is of glibc")
def test_memory_that_is_freed_is_kept_for_what_comes_next() -> None:
    program = """
import resource
from unraze.environment import keep_freed_memory

def pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b"x" * 2**25
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = pages()
keep_freed_memory()
pages()  # asks for it once more
print(given_back, pages())
"""
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    env = {key: value for key, value in os.environ.items() if key not in names}

    def told(**chosen: str) -> list[int]:
        command = [sys.executable, "-c", program]
        ran = subprocess.run(command, env=env | chosen, capture_output=True, text=True, check=True)
        return [int(word) for word in ran.stdout.split()]

    all_of_it = 10 * 2**25 // resource.getpagesize()
    given_back, kept = told()
    assert given_back >= all_of_it
    assert kept < all_of_it / 100
    assert told(**dict.fromkeys(names, "65536"))[1] >= all_of_it  # what the user chose stays


def test_the_math_library_is_asked_for_the_same_bits() -> None:
    code = "from unraze.cli import main; import os; main(['--version']); print(dict(os.environ))"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MKL", "OMP"))}
    env["MKL_DYNAMIC"] = "TRUE"
    told = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "'MKL_CBWR': 'AUTO,STRICT'" in told
    assert "'OMP_DYNAMIC': 'FALSE'" in told
    assert "'MKL_DYNAMIC': 'TRUE'" in told  # what the user chose stays


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian", "digits"], ['"trian"', 'Did you mean "train"']),
        (["train", "digits", "--minuts", "3"], ["--minuts", "Did you mean --minutes"]),
        (["train", "digits", "--lr", "fast"], ["--lr", "fast"]),
        (["train", "digits", "more"], ["'more'"]),
        (["train"], ["fashion-mnist", "digits"]),
        (["train", "digits", "--preset", "fats"], ["'fats'", "did you mean 'fast'", "literal"]),
        (["config", "litteral"], ["'litteral'", "did you mean 'literal'"]),
        (["train", "digits", "--set", "train.lrr=1"], ["train.lrr", "did you mean 'train.lr'"]),
        (["train", "digits", "--set", "train.lr"], ["train.lr", "KEY=VALUE"]),
        (["train", "digits", "--set", "train.lr=[1]"], ["train.lr"]),
        (["train", "digits", "--set", "train.lr=1", "--lr", "1"], ["train.lr", "give one"]),
        (["train", "digits", "--set", "train.lr=1", "--set", "train.lr=2"], ["train.lr", "twice"]),
        (["train", "digits", "--lr", "-1"], ["error: --lr = -1.0: give more than 0"]),
        (
            ["train", "digits", "--augment", "1.2"],
            ["error: --augment = 1.2: give 'auto' or at most 1"],
        ),
        (["train", "digits", "--steps", "-3"], ["error: --steps = -3: give at least 1"]),
        (["train", "digits", "--batch", "0"], ["error: --batch = 0: give at least 1"]),
        (["train", "digits", "--set", "train.lr=-1"], ["error: --set: train.lr = -1"]),
        (
            ["train", "digits", "--batch", "7", "--set", "train.accumulate=2"],
            ["error: --batch = 7 cannot be computed in 2"],
        ),
        (
            ["train", "digits", "--steps", "1", "--batch", "10000000"],
            ["error: network: a step of --batch = 10000000 images", "a smaller batch"],
        ),
        (
            ["train", "digits", "--classes", "--clusters", "9"],
            ["--classes and --clusters 9", "one"],
        ),
        (["train", "digits", "--shard"], ["error: --shard: there is one process", "torchrun"]),
        (["train", "digits", "--set", "train.shard=true"], ["error: train.shard = true: there"]),
        (["train", "digits", "--set", 'begun={run="a"}'], ["--set begun", "leave it out"]),
        (["train", "digits", "--set", "distilled.run=a"], ["--set distilled.run", "leave it out"]),
        (["train", "digits", "--steps", "3", "--minutes", "1"], ["--minutes and --steps", "one"]),
        (["train", "digits", "--threads", "20000"], ["error: --threads = 20000", "1024"]),
        (["train", "digits", "--steps", "1.5"], ["--steps", '"1.5" is not a whole number']),
        (["train", "digits", "--steps", "1" * 20], ["--steps = 1", "more than 1,000,000,000"]),
        (["train", "digits", "--epochs", "1e300"], ["--epochs = 1e+300", "1,000,000,000 steps"]),
        (["train", "digits", "--minutes", "1e300"], ["--minutes = 1e+300", "ten years"]),
        (
            ["train", "digits", "--steps", "1", "--batch", "9" * 20],
            ["--batch = 9", "give at most 1000000000"],
        ),
        (
            ["train", "digits", "--steps", "1", "--set", "network.widths=[65536]"],
            ["network: its", "weights need", "smaller numbers"],
        ),
        (
            ["train", "digits", "--size", "8", "--set", "network.widths=[1000000000000]"],
            ["network.widths.0 = 1000000000000: give at most 65536"],
        ),
        (["train", "digits", "--preset", ""], ["no preset ''"]),
        (["train", "digits", "--set", "preset=literal"], ["--set preset", "--preset literal"]),
        (
            ["train", "digits", "--steps", "1", "--set", "sample.eta=2"],
            ["error: --set: sample.eta = 2: give at most 1"],
        ),
        (
            [
                "train",
                "digits",
                "--preset",
                "annotated",
                "--lr",
                "1",
                "--set",
                "network.widths=[8]",
            ],
            ["error: --set: there is no key 'network.widths'"],
        ),
        (["train", "digits", "--steps", "1e3"], ["--steps", '"1e3" is not a whole number']),
        (["train", "digits", "--seed", "1", "--seed", "2"], ["--seed is given twice"]),
        (["train", "digits", "--config", "."], ["cannot be read", "`unraze config`"]),
        (["train", "digits", "--set", "train.lr=1\nx=2"], ["train.lr = '1"]),
        (["train", "digits", "--set", "train.lr=" + "9" * 5000], ["train.lr = '9"]),
        (["train", "digits", "--set", "train.lr=" + "[" * 5000], ["train.lr = '["]),
        (["train", "digits", "--out", "x" * 300], ["--out x", "the name is too long"]),
        (["train", "x" * 5000], ["no such file or folder"]),
        (["train", "digits", "--device", "meta"], ["--device = 'meta'", "to compute on"]),
        (["train", "digits", "--background", "blurple"], ["error: --background = 'blurple'"]),
        (
            ["train", "nowhere", "--device", "foo"],
            ["error: --device = 'foo'", "give cpu, cuda (cuda:1, …) or mps"],
        ),
        (["train", "digits", "--size", "big"], ["--size big", "32x48"]),
        (["train", "digits", "--preset", "fast", "--config", "a.toml"], ["give one of them"]),
        (["train", "digits", "--config", "a.toml"], ["a.toml", "cannot be read"]),
        (["train", "digits", "--preset", "annotated", "--size", "30x31"], ["31"]),
        (["train", "digits", "--size", "0x3"], ["--size 0x3", "32x48"]),
        (["train", "digits", "--size", "1000000"], ["--size 1000000", "100 million"]),
        (["train", "digits", "--size", "9" * 5000], ["--size 9", "32x48"]),
        (["train", "digits", "--device", "cuda:99"], ["cuda:99"]),
        (
            ["train", "digits", "--preset", "annotated-original"],
            ["0.219", "--set schedule.rescaled=true", "--allow-signal"],
        ),
        (["sample", "nowhere"], ["nowhere", "no such run"]),
        (["sample"], ["which run"]),
        (["sample", "x", "--sampler", "gredy"], ['"gredy"', 'Did you mean "greedy"']),
        (["sample", "--like", "x.png", "-n", "3"], ["--like", "leave -n out"]),
        (["resume", "nowhere"], ["nowhere", "no such run"]),
        (["runs", "nowhere"], ["nowhere", "no such folder"]),
        (["studio", "nowhere", "--data", "nothing"], ["--data nothing: there is no such file"]),
        (["studio", "nowhere", "--remote"], ["--remote: nobody else reaches 127.0.0.1"]),
        (["studio", "nowhere", "--device", "foo"], ["--device = 'foo'", "to compute on"]),
        (["schedule", "cosin"], ['"cosin"', 'Did you mean "cosine"']),
        (["schedule", "--steps", "1"], ["error: --steps = 1:", "from 2 to 100,000"]),
        (["schedule", "--steps", "100000000000"], ["--steps = 100000000000:", "to 100,000"]),
        (["schedule", "--out", "/proc/x/a.png"], ["--out /proc/x/a.png", "another place"]),
        (["destroy", "none.png"], ["none.png", "give the path of a picture"]),
        (["destroy", "none.png", "--steps", "1"], ["error: --steps = 1:"]),
        (["destroy", "none.png", "--steps", "1000000000000"], ["--steps = 1000000000000:"]),
        (["destroy", "none.png", "--size", "1000000"], ["--size 1000000", "100 million"]),
        (["destroy", "none.png", "--size", "9000"], ["--size 9000", "--frames 60", "fewer frames"]),
        (["destroy", "none.png", "--out", "/proc/x"], ["--out /proc/x", "another place"]),
        (["data", "stats", "digits", "--background", "blurple"], ["error: --background = "]),
        (["data", "check", "digits", "--background", "blurple"], ["error: --background = "]),
        (["data", "stats", "digits", "--out", "/proc/x/a.png"], ["--out /proc/x/a.png"]),
        (["data", "stats", "digits", "--out", "x" * 300 + ".png"], ["the name is too long"]),
        (
            ["doctor", "--device", "foo"],
            ["error: --device = 'foo'", "cpu, cuda (cuda:1, …) or mps"],
        ),
        (["doctor", "--device", ""], ["error: --device = ''"]),
        (["doctor", "--device", "hpu"], ["error: --device = 'hpu'"]),
        (["doctor", "--device", "mkldnn"], ["error: --device = 'mkldnn'"]),
        (["config", "--list", "fast"], ["--list", "leave the rest out"]),
        (["sample", "x" * 5000], ["no such run"]),
        (["destroy", "none.png", "--frames", "1"], ["--frames 1"]),
        (["data", "get", "fashion-mnits"], ["fashion-mnits", "fashion-mnist"]),
    ],
)
def test_a_wrong_word_or_value_is_named_with_its_remedy(
    argv: list[str], says: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    refused(capfd, argv, *says)


def test_a_config_of_the_wrong_type_or_with_an_unknown_key_names_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("a.toml").write_text('[train]\nlr = "quick"\n')
    refused(capfd, ["train", "digits", "--config", "a.toml"], "a.toml", "train.lr", "'quick'")
    Path("a.toml").write_text("[train]\nlearning = 1\n[sample]\nstep = 3\n")
    refused(capfd, ["train", "digits", "--config", "a.toml"], "a.toml", "train.learning")
    Path("a.toml").write_text("lr = \n")
    refused(capfd, ["train", "digits", "--config", "a.toml"], "a.toml", "not TOML")
    Path("a.toml").write_text('preset = "nosuch"\n')
    refused(capfd, ["train", "digits", "--config", "a.toml"], "a.toml: there is no preset 'nosuch'")


# ------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_readable_and_prints_as_it_is(name: str, capsys) -> None:
    assert main(["config", name]) == 0
    printed = capsys.readouterr().out
    assert printed == preset_text(name)
    config = preset(name)
    assert config.preset == name
    assert config.about
    budget = (config.train.minutes, config.train.steps, config.train.epochs)
    assert sum(b is not None for b in budget) == 1
    # what is printed in full is a config that says the same
    assert main(["config", name, "--full"]) == 0
    Path("full.toml").write_text(capsys.readouterr().out)
    assert from_toml(Path("full.toml")) == config


def test_the_presets_are_listed_with_what_they_are_about(capsys) -> None:
    assert main(["config", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(preset_names())
    assert lines[0].startswith("fast")


def test_a_presets_every_key_is_explained_or_speaks_for_itself() -> None:
    for name in preset_names():
        assert tomllib.loads(preset_text(name))["preset"] == name
        assert preset_text(name).startswith("# ")


# ------------------------------------------------------------------------- training and resuming


def test_training_prints_its_run_last_and_leaves_it_complete(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", "--steps", "2", *TINY]) == 0
    assert last_line(capfd) == "runs/00000-digits"
    there = {p.name for p in Path("runs/00000-digits").iterdir()}
    assert there >= {"config.toml", "env.json", "stats.jsonl", "reals.png", "loss.png"}
    assert main(["train", "digits", "--steps", "1", *TINY]) == 0
    assert last_line(capfd) == "runs/00001-digits"
    assert main(["runs"]) == 0
    table = capfd.readouterr().out
    assert "00000-digits" in table
    assert "done" in table


def test_a_command_that_is_proposed_can_be_pasted(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["train", "digits", "--steps", "1", "--out", "my run", *TINY]
    assert main(command) == 0
    out = capfd.readouterr().out
    assert "unraze sample 'my run' -n 64" in out
    assert out.splitlines()[-1] == "my run"  # a path by itself is as it is
    refused(capfd, command, "--out my run", "`unraze resume 'my run'`")


def test_options_and_settings_reach_the_run() -> None:
    options = ["--steps", "1", "--lr", "3e-4", "--seed", "7", "--out", "run", "--size", "8x12"]
    extra = ["--set", "loss.distance=huber", "--set", "train.betas=[0.8, 0.9]"]
    assert main(["train", "digits", *options, *TINY, *extra]) == 0
    config = from_toml(Path("run/config.toml"))
    assert config.train.lr == 3e-4
    assert config.train.seed == 7
    assert config.data.size == (8, 12)
    assert config.loss.distance == "huber"  # a text needs no quotes
    assert config.train.betas == (0.8, 0.9)


def test_an_existing_folder_that_is_no_run_is_left_alone(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    command = ["train", "digits", "--steps", "1", *TINY]
    refused(capfd, [*command, "--out", "mine"], "mine", "is not a run", "--out")
    refused(capfd, [*command, "--out", "run"], "run", "unraze resume run")
    refused(capfd, ["resume", "mine"], "mine", "not a run")
    # before the images are read: there are none
    Path("empty").mkdir()
    refused(capfd, ["train", "empty", "--out", "mine"], "--out mine", "is not a run")
    refused(capfd, ["train", "empty", "--out", "/proc/x"], "--out /proc/x", "another place")
    annotated = ["--preset", "annotated", "--size", "30x31"]
    refused(capfd, ["train", "empty", *annotated], "30x31", "28x28")


def test_a_signal_saves_says_how_to_go_on_and_resume_ends_the_run() -> None:
    options = ["--steps", "100000", "--out", "run", *TINY]
    stats = Path("run/stats.jsonl")
    with subprocess.Popen(
        [*UNRAZE, "train", "digits", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(600):
            if stats.exists() and stats.stat().st_size > 0:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: unraze resume run" in out
    assert out.splitlines()[-1] == "run"
    # few steps are left when the budget is made to end soon; it is the run's own, so by hand
    step = json.loads(stats.read_text().splitlines()[-1])["step"]
    config = Path("run/config.toml")
    config.write_text(config.read_text().replace("steps = 100000", f"steps = {step + 2}"))
    assert main(["resume", "run"]) == 0
    assert json.loads(stats.read_text().splitlines()[-1])["step"] == step + 2


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc is Linux")
def test_signals_while_images_are_read_leave_no_run_and_no_traceback(forker: Forker) -> None:
    np.save("x.npy", np.zeros((40_000, 28, 28), dtype=np.uint8))
    command = ["train", "x.npy", "--size", "64", "--out", "run"]
    with forker.running("cli", argv=command, **here()) as process:
        maps = Path(f"/proc/{process}/maps")
        wait_for(lambda: "x.npy" in maps.read_text())
        os.kill(process, signal.SIGINT)
        wait_for(lambda: "interrupted" in Path("err").read_text())
        for _ in range(3):  # while it ends
            os.kill(process, signal.SIGINT)
            time.sleep(0.01)
        assert forker.wait(process) == 130
    assert Path("err").read_text() == "unraze: error: interrupted\n"
    assert not Path("run").exists()


def test_a_signal_while_the_program_itself_is_read_is_no_traceback(tmp_path: Path) -> None:
    # a module of this name, found first, is interrupted as it is imported
    lines = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "cyclopts.py").write_text(lines)
    done = subprocess.run(
        [*UNRAZE, "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "unraze: error: interrupted\n"


def test_a_second_signal_aborts_at_once(forker: Forker) -> None:
    # a step of this run lasts for half a minute: only the second signal can end it sooner
    slow = ["--size", "64", "--batch", "1500", "--set", "train.accumulate=100"]
    slow += ["--set", "train.checkpoint_every=9"]  # nothing to measure before the first step
    command = ["train", "digits", "--steps", "9", "--dtype", "float32", "--out", "run", *slow]
    with forker.running("cli", argv=command, **here()) as process:
        wait_for(Path("run/reals.png").exists)
        time.sleep(0.3)
        os.kill(process, signal.SIGINT)
        wait_for(lambda: "once more" in Path("err").read_text())
        os.kill(process, signal.SIGINT)
        wait_for(lambda: has_ended(process))
        assert forker.wait(process) == -signal.SIGINT
    assert not list(Path("run/checkpoints").glob("step-*"))


def test_divergence_is_exit_status_3(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "50", "--lr", "1e30", "--out", "run", "--set", "train.warmup=0"]
    assert main(["train", "digits", *options, *TINY]) == 3
    err = capfd.readouterr().err
    assert err.startswith("unraze: error: run: diverged at step")
    assert "learning rate" in err
    assert f"{err.removeprefix('unraze: error: ')}" == Path("run/failed.txt").read_text()
    refused(capfd, ["sample", "run"], "run: diverged before its first checkpoint", "failed.txt")
    assert main(["runs", "."]) == 0
    assert re.search(r"run +│ failed", capfd.readouterr().out)


def test_a_huge_loss_is_told_in_few_digits(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row = json.loads((run / "stats.jsonl").read_text().splitlines()[-1])
    with (run / "stats.jsonl").open("a") as stats:
        stats.write(json.dumps(row | {"loss": 4985659064320.0}) + "\n")
    assert main(["runs", "."]) == 0
    assert re.search(r"│ 5\.0e\+12 │", capfd.readouterr().out)


# -------------------------------------------------------------------------------------- sampling


def test_sampling_writes_pictures_grid_film_and_array(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["sample", "run", "-n", "5", "--batch", "3", "--film", "--npy", "a.npy", "--out", "o"]
    assert main(argv) == 0
    assert capfd.readouterr().out.splitlines()[-2:] == ["a.npy", "o"]
    names = {p.name for p in Path("o").iterdir()}
    assert names == {*(f"{k:05d}.png" for k in range(5)), "grid.png", "film.gif"}
    array = np.load("a.npy")
    assert array.shape == (5, 8, 8, 1)
    assert array.dtype == np.uint8
    for k in range(5):
        with Image.open(f"o/{k:05d}.png") as picture:
            assert np.array_equal(np.asarray(picture), array[k, :, :, 0])
    with Image.open("o/film.gif") as film:
        assert film.n_frames == 4  # one a step
    drawn = generate.sample(generate.load("run"), 5, batch=3)
    assert torch.equal(
        ((drawn + 1) * 127.5).round().to(torch.uint8)[:, 0], torch.from_numpy(array[..., 0])
    )


def test_sampling_into_the_run_takes_a_fresh_folder(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "run", "-n", "1"]) == 0
    assert last_line(capfd) == "run/samples-00000"
    assert main(["sample", "run", "-n", "1", "--greedy"]) == 0
    assert last_line(capfd) == "run/samples-00001"
    (run / "samples-²").mkdir()  # a digit, but of no number
    assert main(["sample", "run", "-n", "1"]) == 0
    assert last_line(capfd) == "run/samples-00002"


def test_two_that_sample_into_the_run_at_once_have_folders_of_their_own(run: Path) -> None:
    with drawing.own_folder(run, ALONE) as first, drawing.own_folder(run, ALONE) as second:
        assert (first.name, second.name) == ("samples-00000", "samples-00001")
        (second / "00000.png").touch()
    assert not first.exists()  # nothing was drawn
    assert second.exists()


def test_an_array_alone_writes_no_pictures(run: Path) -> None:
    before = snapshot(run)
    assert main(["sample", "run", "-n", "2", "--npy", "a.npy"]) == 0
    assert snapshot(run) == before
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["a.npy", "run"]


@pytest.mark.parametrize(
    "options",
    [
        ["--class", "5", "--guidance", "2", "--guidance-interval", "0.1", "0.9"],
        ["--sigma", "beta_tilde", "--final-noise"],
        ["--raw", "--seed", "3", "--sampler", "ddim", "--eta", "0.5", "--clip", "dynamic"],
        ["--greedy", "--steps", "7"],
    ],
)
def test_a_picture_is_made_again_from_its_recipe(
    run: Path, options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "run", "-n", "5", "--batch", "3", "--film", "--out", "o", *options]) == 0
    for name in ("00001.png", "00004.png", "grid.png", "film.gif"):
        assert main(["sample", "--like", f"o/{name}"]) == 0
        assert last_line(capfd) == str(Path("o-again", name).resolve())
        assert Path("o-again", name).read_bytes() == Path("o", name).read_bytes()


def test_what_is_told_nothing_is_not_guided(capfd: pytest.CaptureFixture[str]) -> None:
    """There is nothing to guide towards: the run's own guidance would be a second, equal call."""
    command = ["train", "digits", "--steps", "1", "--classes", "--out", "guided", *TINY]
    assert main([*command, "--set", "sample.guidance=2.5"]) == 0
    scales = {}
    for name, options in (("none", ["--class", "none"]), ("five", ["--class", "5"]), ("own", [])):
        assert main(["sample", "guided", "-n", "2", "--film", "--out", name, *options]) == 0
        scales[name] = pictures.read_recipe(Path(name, "00001.png"))["settings"]["guidance"]
    assert scales == {"none": 1.0, "five": 2.5, "own": 2.5}
    for name in ("00001.png", "grid.png", "film.gif"):
        assert main(["sample", "--like", f"none/{name}"]) == 0
        assert Path("none-again", name).read_bytes() == Path("none", name).read_bytes()
    capfd.readouterr()
    told = ["sample", "guided", "-n", "2", "--class", "none", "--guidance", "1", "--out", "one"]
    assert main(told) == 0
    assert Path("one/00001.png").read_bytes() == Path("none/00001.png").read_bytes()


def test_a_picture_of_another_run_or_of_none_is_not_made_again(
    run: Path, plain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "run", "-n", "1", "--out", "o"]) == 0
    refused(capfd, ["sample", "plain", "--like", "o/00000.png"], "plain", "step 3")
    shutil.rmtree(run)
    refused(capfd, ["sample", "--like", "o/00000.png"], "run", "is not here")
    Image.new("L", (8, 8)).save("mine.png")
    refused(capfd, ["sample", "--like", "mine.png"], "mine.png", "recipe")
    refused(capfd, ["sample", "--like", "none.png"], "none.png")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-n", "-3"], ["error: -n -3: give at least 1"]),
        (["-n", "0"], ["error: -n 0: give at least 1"]),
        (["--batch", "0"], ["error: --batch 0: give at least 1"]),
        (["--seed", "-1"], ["error: --seed -1: give at least 0"]),
        (["-n", "1.5"], ['"1.5" is not a whole number']),
        (["-n", "9" * 20], ["error: -n 9", "give at most 100,000,000"]),
        (["--batch", "9" * 20], ["error: --batch 9", "give at most 1,048,576"]),
        (["--npy", "x" * 300 + ".npy"], ["--npy x", "the name is too long"]),
        (["--device", ""], ["error: --device = ''"]),
        (["--steps", "21"], ["error: --steps = 21", "1 to 20"]),
        (["--steps", "0"], ["error: --steps = 0"]),
        (["--class", "10"], ["error: --class = 10", "10 classes", "0 to 9"]),
        (["--class", "-1"], ["error: --class = -1"]),
        (["--device", "foo"], ["error: --device = 'foo'", "give cpu, cuda (cuda:1, …) or mps"]),
        (["--guidance-interval", "0.9", "0.1"], ["error: --guidance-interval = 0.9, 0.1"]),
        (["--out", "/proc/x"], ["--out /proc/x", "another place"]),
        (["--npy", "no/such/a.npy"], ["--npy no/such/a.npy", "no folder no/such"]),
        (["--threads", "20000"], ["error: --threads = 20000", "1024"]),
        (["--class", "horse"], ["--class horse", "0, 1, 2", "all and none"]),
        (["--class", "All"], ["--class All", "did you mean 'all'"]),
        (["--checkpoint", "worst"], ["--checkpoint", '"worst" is neither a whole number nor best']),
        (["--checkpoint", "best"], ["no best checkpoint", "--eval-every"]),
        (
            ["--guidance", "2", "--guidance-interval", "0", "3"],
            ["error: --guidance-interval = 3.0: give at most 1"],
        ),
        (["--guidance-interval", "a", "b"], ["--guidance-interval", "is not a number"]),
        (["--guidance", "-1"], ["guidance", "-1"]),
        (["--guidance", "2", "--class", "none"], ["--guidance", "none"]),
        (["--guidance-interval", "0", "1", "--class", "none"], ["--guidance-interval and", "none"]),
        (["--sampler", "consistency"], ["error: --sampler = consistency", "unraze distill RUN"]),
        (["--guidance", "1", "--guidance-interval", "0", "1"], ["--guidance too"]),
        (["--greedy", "--sigma", "beta"], ["--sigma beta", "greedy"]),
        (["--sampler", "ddim", "--sigma-share", "0.5"], ["--sigma-share 0.5", "random"]),
        (["--sampler", "random", "--sigma-share", "2"], ["--sigma-share", "2.0"]),
        (["--greedy", "--eta", "0.5"], ["--eta 0.5", "ddim"]),
        (["--greedy", "--sampler", "ddim"], ["give one of them"]),
        (["--greedy", "--final-noise"], ["--final-noise", "random"]),
        (["--sampler", "random", "--eta", "1"], ["--eta 1", "ddim"]),
        (["--sampler", "ddim", "--sigma", "beta"], ["--sigma beta", "random"]),
        (["--sampler", "heun", "--order", "2"], ["--order 2", "unipc", "the sampler is heun"]),
        (["--sampler", "unipc", "--order", "4"], ["--order = 4", "1 to 3"]),
        (["--restart-interval", "0", "0.1"], ["--restart-interval 0.0 0.1 is for restart"]),
        (["--sampler", "restart", "--restart-interval", "0.2", "0.1"], ["0.2, 0.1: must rise"]),
        (["--sampler", "restart", "--steps", "2"], ["restart needs 3"]),
        (["--sampler", "restart", "--restart-repeats", "0"], ["--restart-repeats = 0"]),
        (["--spacing", "even"], ["--spacing", "log_snr"]),
        (["--sampler", "dpmpp"], ['"dpmpp"', "dpmpp_2m"]),
        (["--sigma", "learned"], ["error: --sigma learned", "beta_tilde", "loss.variance=learned"]),
        (["--eta", "1.5"], ["eta", "1.5"]),
        (["--checkpoint", "2"], ["step 2", "there is 3"]),
        (["--npy", "a.png"], ["a.png", ".npy"]),
        (["--threads", "0"], ["error: --threads = 0"]),
    ],
)
def test_what_a_run_cannot_draw_is_refused(
    run: Path, options: list[str], says: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    refused(capfd, ["sample", "run", *options], *says)


@pytest.mark.parametrize(
    ("given", "other"),
    [
        (["--seed", "1"], []),
        (["--steps", "5"], []),
        (["--sampler", "random"], []),
        (["--greedy"], []),
        (["--sampler", "heun"], []),
        (["--sampler", "unipc"], ["--sampler", "deis"]),
        (["--sampler", "adams", "--order", "1"], ["--sampler", "adams"]),
        (["--sampler", "dpmpp_2m_sde"], ["--sampler", "dpmpp_2m"]),
        (["--sampler", "dpmpp_3m_sde", "--eta", "0.5"], ["--sampler", "dpmpp_3m_sde"]),
        (
            ["--sampler", "restart", "--steps", "20", "--restart-interval", "0.1", "0.5"],
            ["--sampler", "restart", "--steps", "20"],
        ),
        (
            ["--sampler", "restart", "--steps", "20", "--restart-repeats", "3"],
            ["--sampler", "restart", "--steps", "20"],
        ),
        (["--spacing", "angle"], []),
        (["--spacing", "log_snr"], ["--spacing", "karras"]),
        (["--sigma", "beta_tilde"], ["--sigma", "beta"]),
        (["--sampler", "ddim", "--eta", "0.5"], ["--sampler", "ddim"]),
        (["--sampler", "random", "--final-noise"], ["--sampler", "random"]),
        (["--clip", "none"], []),
        (["--clip", "dynamic"], ["--clip", "none"]),
        (["--class", "3"], []),
        (["--class", "none"], ["--class", "all"]),
        (["--guidance", "3"], []),
        (["--guidance", "3", "--guidance-interval", "0", "1"], ["--guidance", "3"]),
        (["--raw"], []),
    ],
    ids=lambda options: " ".join(options) or "none",
)
def test_each_option_of_sampling_changes_the_pictures(
    run: Path, given: list[str], other: list[str]
) -> None:
    torch.manual_seed(0)  # three steps of training have hardly moved the weights
    rewrite(run, lambda weights: [v.add_(0.1 * torch.randn_like(v)) for v in weights.values()])
    drawn = []
    for name, options in (("a.npy", given), ("b.npy", other)):
        assert main(["sample", "run", "-n", "2", "--npy", name, *options]) == 0
        drawn.append(np.load(name))
    assert drawn[0].shape == drawn[1].shape == (2, 8, 8, 1)
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_not_a_file_is_not_written_over(
    run: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    match kind:
        case "folder":
            Path("odd.png").mkdir()
        case "pipe":
            os.mkfifo("odd.png")
        case "link":
            Path("odd.png").symlink_to("nowhere")
    if kind != "link":  # a link is replaced, not followed
        refused(capfd, ["schedule", "--out", "odd.png"], "--out odd.png", "is not a file")
        refused(capfd, ["data", "stats", "digits", "--out", "odd.png"], "--out odd.png")
        refused(capfd, ["destroy", "odd.png"], "odd.png: is not a file")
        refused(capfd, ["sample", "--like", "odd.png"], "odd.png")
    else:
        refused(capfd, ["train", "digits", "--out", "odd.png"], "a link that leads nowhere")
        refused(capfd, ["sample", "run", "--out", "odd.png"], "a link that leads nowhere")
        refused(capfd, ["destroy", "run/reals.png", "--out", "odd.png"], "leads nowhere")


@pytest.mark.parametrize(
    "text",
    [
        *("3\n", "[]\n", "null\n", '{"step": "x"}\n', "\xff\n", "{"),
        '{"step": 1, "loss": 0.5, "lr": 0.1, "steps": "many"}\n',
        '{"step": 1, "loss": 0.5, "lr": 0.1, "images_per_second": "x"}\n',
        '{"step": 1, "loss": 1' + "0" * 400 + "}\n",
        '{"step": 1, "loss": 0.5}\n{"step": 2, "kid": null, "seconds": [1]}\n',
    ],
)
def test_runs_are_listed_whatever_stands_in_their_files(
    run: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "stats.jsonl").write_bytes(text.encode("latin-1"))
    Path("odd").mkdir()
    os.mkfifo("odd/config.toml")
    assert main(["runs", "."]) == 0
    table = capfd.readouterr().out
    assert "run" in table
    assert "done" in table
    assert "odd" not in table
    (run / "env.json").write_bytes(text.encode("latin-1"))
    (run / "quality.jsonl").write_bytes(text.encode("latin-1"))
    assert main(["resume", "run"]) == 0


def test_where_there_are_no_runs_yet_it_is_said(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["runs"]) == 0
    assert capfd.readouterr().out == "no runs yet; `unraze train DATA` makes one\n"
    Path("runs").mkdir()
    assert main(["runs"]) == 0
    assert "runs: no runs in it" in capfd.readouterr().out


@pytest.mark.parametrize("command", ["runs", "studio"])
def test_a_folder_of_runs_is_no_run_and_no_file(
    run: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    Path("file").touch()
    refused(capfd, [command, "run"], "run: is a run itself; give the folder that holds it, .")
    refused(capfd, [command, "file"], "file: is not a folder; give the one that holds the runs")


def test_a_run_of_clusters_draws_them_by_number_and_as_often_as_they_are(
    elsewhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "digits", "--steps", "1", "--clusters", "6", "--out", "told", *TINY]
    assert main(command) == 0
    assert "clusters of alike images" in capfd.readouterr().out
    assert main(["sample", "told", "-n", "3", "--guidance", "2"]) == 0
    assert main(["sample", "told", "-n", "3", "--class", "1", "--out", "ones"]) == 0
    assert pictures.read_recipe(Path("ones/00002.png"))["class"] == 1
    assert main(["sample", "--like", "ones/00002.png"]) == 0
    refused(capfd, ["sample", "told", "--class", "99"], "99", "classes")
    refused(
        capfd,
        ["train", "digits", "--classes", "--set", "train.clusters=3"],
        "classes = true and clusters = 3",
    )
    Path("told/clusters.safetensors").unlink()
    refused(capfd, ["sample", "told"], "clusters.safetensors", "bring it back")
    refused(capfd, ["resume", "told"], "clusters.safetensors", "bring it back")


def test_fewer_clusters_than_were_asked_for_are_told(
    many: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "many.npy", "--steps", "1", "--out", "few", *TINY]
    assert main([*command, "--clusters", "8"]) == 0
    assert "--clusters 8: are none, each wants 100 images" in capfd.readouterr().out


def test_a_run_whose_device_is_not_here_says_where_it_stands(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = run / "config.toml"
    file.write_text(file.read_text().replace('device = "cpu"', 'device = "cuda:63"'))
    refused(capfd, ["resume", "run"], "run/config.toml: train.device = 'cuda:63'")


def test_the_studio_s_data_is_named_as_for_training(elsewhere: Path) -> None:
    for name in ("x-000.tar", "x-001.tar"):
        Path(name).touch()
    Path("digits").mkdir()
    Path("mine").mkdir()
    assert studio._source("digits") == "digits"  # the data set; the folder is ./digits
    assert studio._source("hf:some/name") == "hf:some/name"
    for given in ("./digits", "mine", "x-000.tar", "x-{000..001}.tar", "*.tar"):
        assert studio._source(given) == os.path.normpath(elsewhere / given)


def test_a_run_without_classes_has_none_to_draw(
    plain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(capfd, ["sample", "plain", "--class", "3"], "--class 3", "without classes")
    refused(capfd, ["sample", "plain", "--guidance", "2"], "guidance", "without classes")


def test_pictures_of_others_are_never_overwritten_or_mixed(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/holiday.png").write_bytes(b"sea")
    refused(capfd, ["sample", "run", "--out", "mine"], "mine", "holiday.png", "--out")
    refused(capfd, ["sample", "run", "--out", "mine/holiday.png"], "not a folder")
    assert main(["sample", "run", "-n", "3", "--film", "--out", "of"]) == 0
    refused(capfd, ["sample", "run", "-n", "3", "--seed", "1", "--out", "of"], "of", "film.gif")
    assert main(["sample", "run", "-n", "3", "--out", "o"]) == 0
    refused(capfd, ["sample", "run", "-n", "2", "--out", "o"], "o", "00002.png")
    assert main(["sample", "run", "-n", "3", "--seed", "1", "--out", "o"]) == 0
    Path("a.npy").write_bytes(b"numbers")
    refused(capfd, ["sample", "run", "--npy", "a.npy"], "a.npy", "exists")


RECIPES = [
    ({"threads": 0}, ["threads = 0"]),
    ({"threads": 20_000}, ["threads = 20000", "1024"]),
    ({"threads": None}, ["threads = None"]),
    ({"batch": [0]}, ["batch"]),
    ({"batch": [0, 0]}, ["batch.1 = 0"]),
    ({"batch": [0, 10**12]}, ["batch.1 = 1000000000000"]),
    ({"class": "5"}, ["class = '5'"]),
    ({"class": 50}, ["class = 50", "10 classes"]),
    ({"seed": -1}, ["seed = -1"]),
    ({"image": 7}, ["image = 7", "from 0 to 3"]),
    ({"image": ...}, ["image = None"]),
    ({"raw": ...}, ["raw is missing"]),
    ({"device": ...}, ["device is missing"]),
    ({"device": "foo"}, ["device = 'foo'"]),
    ({"run": 5}, ["run = 5"]),
    ({"run": "x" * 5000}, ["is not here"]),
    ({"settings": 5}, ["settings = 5"]),
    ({"settings": {"sampler": "foo"}}, ["settings.sampler = 'foo'", "'ddim'"]),
    ({"settings": {"steps": "4"}}, ["settings.steps = '4'"]),
    ({"settings": {"steps": 21}}, ["steps = 21", "1 to 20"]),
    ({"kind": "grid", "drawn": 10**9}, ["drawn = 1000000000"]),
    ({"kind": "painting"}, ["no recipe of `unraze sample`"]),
]


@pytest.mark.parametrize(("changes", "says"), RECIPES)
def test_an_odd_recipe_is_named_with_its_picture_and_field(
    run: Path, changes: dict[str, object], says: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "run", "-n", "3", "--out", "o"]) == 0
    recipe = pictures.read_recipe(Path("o/00001.png"))
    changed = {key: value for key, value in (recipe | changes).items() if value is not ...}
    pictures.write_png(Image.new("L", (8, 8)), Path("odd.png"), changed)
    refused(capfd, ["sample", "--like", "odd.png"], "odd.png", *says)


@pytest.mark.parametrize(("error", "status"), [(UnrazeError("no"), 1), (KeyboardInterrupt(), 130)])
def test_an_array_that_is_not_finished_is_removed(
    run: Path, error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = generate.generate

    def cut_off(*args, **options):
        for moment in drawn(*args, **options):
            yield moment
            if moment.finished:
                assert len(list(Path.cwd().iterdir())) == 2  # the run and the unfinished array
                raise error

    monkeypatch.setattr(generate, "generate", cut_off)
    assert main(["sample", "run", "-n", "4", "--batch", "2", "--npy", "a.npy"]) == status
    assert [path.name for path in Path.cwd().iterdir()] == ["run"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the kernel's own full disk is Linux")
def test_an_array_for_which_there_is_no_room(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path(f".a.npy.{os.getpid()}.part").symlink_to("/dev/full")
    assert main(["sample", "run", "-n", "4", "--npy", "a.npy"]) == 1
    err = capfd.readouterr().err
    assert re.fullmatch(r"unraze: error: a\.npy: cannot be written \(No space[^\n]+\n", err), err
    assert [path.name for path in Path.cwd().iterdir()] == ["run"]


def test_a_signal_to_sampling_leaves_nothing_unfinished(
    run: Path, forker: Forker, tmp_path: Path
) -> None:
    command = ["sample", "run", "-n", "1000000", "--threads", "1", "--npy", "a.npy"]
    err = tmp_path / "err"
    with forker.running("cli", argv=command, **here(err)) as process:
        wait_for(lambda: list(Path.cwd().glob(".a.npy.*")))
        os.kill(process, signal.SIGTERM)
        assert forker.wait(process) == 130
    assert err.read_text() == "unraze: error: interrupted\n"
    assert [path.name for path in Path.cwd().iterdir()] == ["run"]


# ------------------------------------------------------------------------------ damaged run folders


def rewrite(run: Path, change, part: str = "ema") -> None:
    """Changes the averaged weights of the newest checkpoint, with its checksum put right."""
    folder = max((run / "checkpoints").iterdir())
    tensors = safetensors.torch.load((folder / f"{part}.safetensors").read_bytes())
    change(tensors)
    data = safetensors.torch.save(tensors)
    (folder / f"{part}.safetensors").write_bytes(data)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"][part] = hashlib.sha256(data).hexdigest()
    (folder / "state.json").write_text(json.dumps(state | {"hash": None}))


def test_a_run_without_a_checkpoint(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    refused(capfd, ["sample", "run"], "run", "no checkpoint")


def test_a_checkpoint_of_another_shape(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        name = next(iter(tensors))
        tensors[name] = torch.zeros(3, 5, 7)

    rewrite(run, widen)
    refused(capfd, ["sample", "run"], "(3, 5, 7)", "config.toml")


def test_a_checkpoint_with_missing_and_extra_tensors(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["stranger"] = tensors.pop(next(iter(tensors)))

    rewrite(run, rename)
    refused(capfd, ["sample", "run"], "lacks", "stranger")


@pytest.mark.parametrize("part", ["ema", "model", "optim"])
def test_a_resume_from_other_weights_leaves_the_run_as_it_is(
    run: Path, part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def convert(tensors: dict[str, torch.Tensor]) -> None:
        name = next(iter(tensors))
        tensors[name] = tensors[name].double()

    if part != "optim":
        rewrite(run, convert, part)
        refused(capfd, ["resume", "run"], f"{part}.safetensors", "float64", "float32")
    rewrite(run, lambda tensors: tensors.update(stranger=torch.zeros(1)), part)
    refused(capfd, ["resume", "run"], f"{part}.safetensors", "stranger")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.002", "lr = 0.003"))
    refused(capfd, ["resume", "run"], f"{part}.safetensors", "stranger")


def test_a_resume_of_nothing_but_damage_leaves_the_run_as_it_is(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / "ema.safetensors").write_bytes(b"")
    says = ("every checkpoint is damaged", "ema.safetensors", "train it anew")
    refused(capfd, ["resume", "run"], *says)


def test_a_run_that_is_finished_says_so(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "env.json").unlink()
    assert main(["resume", "run"]) == 0
    out = capfd.readouterr().out
    assert "finished already, at step 3 of 3" in out
    assert len(re.findall("env.json", out)) == 1
    assert "None" not in out


def test_a_checkpoint_that_is_a_pickle(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = max((run / "checkpoints").iterdir())
    shutil.rmtree(folder)
    folder.mkdir()
    torch.save({}, folder / "model.pt")
    refused(capfd, ["sample", "run"], "model.pt", "pickle", "safetensors")


def test_a_damaged_checkpoint(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = max((run / "checkpoints").iterdir()) / "ema.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    refused(capfd, ["sample", "run"], "ema.safetensors", "no older one", "train anew")
    refused(capfd, ["sample", "run", "--checkpoint", "3"], "ema.safetensors", "another")
    older = run / "checkpoints/step-00000002"
    shutil.copytree(weights.parent, older)
    (older / "ema.safetensors").write_bytes(whole)
    state = older / "state.json"
    values = json.loads(state.read_text()) | {"step": 2, "hash": None}
    state.write_text(json.dumps(values))
    refused(capfd, ["sample", "run"], "step-00000003/ema.safetensors", "give --checkpoint 2")
    assert main(["sample", "run", "-n", "1", "--checkpoint", "2", "--npy", "a.npy"]) == 0


def test_a_ruined_model_is_named_with_its_step(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def ruin(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = torch.full_like(tensors[name], torch.nan)

    rewrite(run, ruin)
    for options in ([], ["--clip", "none"], ["--film"], ["--npy", "a.npy"]):
        command = ["sample", "run", "--threads", "1", *options]
        refused(capfd, command, "run: ", "step 3", "not-a-number", "--checkpoint", status=1)


def test_a_broken_config(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "config.toml").write_text('[network]\nkind = "lean"\nwidths = 3\n')
    refused(capfd, ["sample", "run"], "config.toml", "widths")
    refused(capfd, ["resume", "run"], "config.toml", "widths")
    assert main(["runs", "."]) == 0
    assert re.search(r"run +│ unreadable", capfd.readouterr().out)


# --------------------------------------------------------------------------------- damaged images


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, with no pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.fixture
def folder(elsewhere: Path) -> Path:
    """Twelve good images of 8 x 8, in colour."""
    path = Path("photos")
    path.mkdir()
    generator = np.random.default_rng(0)
    for k in range(12):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{k:02d}.png")
    return path


def damages() -> Iterator[tuple[str, bytes]]:
    yield "corrupt", b"\x89PNG\r\n\x1a\n" + b"nonsense" * 40
    yield "truncated", b""
    yield "zero-byte", b""
    yield "enormous", png(200_000, 200_000)


@pytest.mark.parametrize(("kind", "content"), [pytest.param(*d, id=d[0]) for d in damages()])
def test_an_unreadable_image_is_named_and_can_be_skipped(
    folder: Path, kind: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    if kind == "truncated":
        good = (folder / "03.png").read_bytes()
        content = good[: len(good) // 2]
    (folder / "03.png").write_bytes(content)
    command = ["train", "photos", "--steps", "1", "--out", "run", *TINY]
    refused(capfd, command, "03.png", "--skip-bad")
    assert main([*command, "--skip-bad"]) == 0
    assert "1 left out" in capfd.readouterr().out


def test_folders_that_hold_no_images_or_images_of_many_sizes(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    refused(capfd, ["train", "empty", "--steps", "1"], "empty")
    refused(capfd, ["train", "nowhere", "--steps", "1"], "nowhere")
    Image.new("RGB", (9, 8)).save(folder / "wide.png")
    refused(capfd, ["train", "photos", "--steps", "1"], "photos", "--size")


def test_a_size_that_the_network_cannot_divide(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    annotated = ["--preset", "annotated", "--steps", "1", "--size", "10x9"]
    refused(capfd, ["train", "photos", *annotated], "10x9", "8x8", "12x12")


def test_a_size_that_the_network_fills_up(folder: Path) -> None:
    command = ["train", "photos", "--steps", "1", "--size", "11x9", "--out", "run", *TINY]
    assert main(command) == 0
    assert main(["sample", "run", "-n", "1", "--out", "drawn"]) == 0
    with Image.open("drawn/00000.png") as picture:
        assert picture.size == (9, 11)


def test_a_run_whose_images_were_moved_goes_on_once_it_is_told_where(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "photos", "--steps", "1", "--out", "run", *TINY]) == 0
    folder.rename("moved")
    refused(capfd, ["resume", "run"], f"{folder.resolve()}", "run/config.toml", "source")
    config = Path("run/config.toml")
    moved = str(Path("moved").resolve())
    config.write_text(config.read_text().replace(str(folder.resolve()), moved))
    assert main(["resume", "run"]) == 0
    Path("moved/00.png").unlink()
    refused(capfd, ["resume", "run"], "run", "not those it was trained on", "bring them back")


def test_a_picture_that_is_not_square_and_in_colour_comes_all_the_way(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "photos", "--size", "8x12", "--steps", "1", "--out", "run", *TINY]
    assert main(command) == 0
    assert main(["sample", "run", "-n", "2", "--npy", "a.npy"]) == 0
    assert np.load("a.npy").shape == (2, 8, 12, 3)


# ------------------------------------------------------------------------------- the other commands


def test_destroy_begins_with_the_picture_and_ends_in_noise(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "PLAIN_SECONDS", 0.0)
    assert main(["destroy", "photos/03.png", "--steps", "40", "--frames", "5", "--out", "d"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said == [*(f"destroying {t}/40" for t in range(41)), "writing 0/1", "d"]
    assert {p.name for p in Path("d").iterdir()} == {"film.gif", "strip.png"}
    with Image.open("d/film.gif") as film:
        assert film.n_frames == 5
    (Path("d") / "mine.txt").write_text("mine")
    refused(capfd, ["destroy", "photos/03.png", "--out", "d"], "d", "mine.txt")


def test_schedule_draws_and_tells_where_the_picture_is_half_gone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["schedule", "angle", "linear", "--steps", "300", "--out", "s.png"]) == 0
    out = capfd.readouterr().out
    # cos(π/2 · t/300) = 1/2 at t = 200
    assert re.search(r"angle.* 200 ", out), out
    assert re.search(r"linear.*0\.00635", out), out
    with Image.open("s.png") as picture:
        picture.verify()


def test_data_commands_tell_and_find(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "03.png").write_bytes(b"")
    shutil.copy(folder / "04.png", folder / "copy.png")
    assert main(["data", "check", "photos"]) == 1
    out = capfd.readouterr().out
    assert "03.png" in out
    assert "copy.png" in out
    assert "--skip-bad" in out
    assert main(["data", "check", "photos", "--skip-bad"]) == 0
    assert "warning: 1 of 13 images cannot be read" in capfd.readouterr().out
    refused(capfd, ["data", "stats", "photos"], "03.png", "--skip-bad")
    Path("bad").mkdir()
    Path("bad/1.png").write_bytes(b"")
    assert main(["data", "check", "bad"]) == 1
    assert capfd.readouterr().out.splitlines() == [
        "error: 1 of 1 images cannot be read; give other images",
        "  1.png (is empty, 0 bytes)",
    ]
    assert main(["data", "stats", "photos", "--skip-bad", "--out", "sheet.png"]) == 0
    assert "1 unreadable" in capfd.readouterr().out
    (folder / "03.png").unlink()
    assert main(["data", "stats", "photos", "--out", "sheet.png"]) == 0
    out = capfd.readouterr().out
    assert "8" in out
    with Image.open("sheet.png") as sheet:
        sheet.verify()


@pytest.fixture
def many(elsewhere: Path) -> Path:
    """100 images of 8 x 8, in colour."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    np.save("many.npy", pixels)
    return Path("many.npy")


def test_what_is_held_out_is_said_recorded_and_found_again(
    many: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "many.npy", "--steps", "1", *TINY]
    counts = {}
    for share in ("0.1", "0.3", None):
        given = [] if share is None else ["--held-out", share]
        assert main([*command, *given, "--out", f"run-{share}"]) == 0
        first = capfd.readouterr().out.splitlines()[0]
        told = re.search(r"many\.npy: (\d+) images of 8 x 8, colour, (\d+) held out$", first)
        assert told, first
        counts[share] = (int(told[1]), int(told[2]))
        assert sum(counts[share]) == 100
        config = read_config(find(Path(f"run-{share}")))
        assert config.data.held_out == float(share or 0.1)
        for split, count in zip(("train", "held-out"), counts[share], strict=True):
            assert len(load(config.data, split=split)) == count
    assert counts["0.1"] == counts[None] != counts["0.3"]
    assert main([*command, "--held-out", "0"]) == 0
    assert re.search(r"100 images of 8 x 8, colour\n", capfd.readouterr().out)
    refused(capfd, [*command, "--held-out", "0.7"], "--held-out = 0.7", "0.5")
    assert main(["resume", "run-0.3"]) == 0
    assert f"colour, {counts['0.3'][1]} held out\n" in capfd.readouterr().out


def test_data_commands_tell_what_is_held_out(
    many: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert preset("fast").data.held_out == look.HELD_OUT
    apart = len(load_images("many.npy", split="held-out", held_out=0.1))
    assert main(["data", "stats", "many.npy"]) == 0
    told = capfd.readouterr().out
    assert re.search(rf"images +{100 - apart}\nheld out +{apart}\n", told), told
    assert main(["data", "check", "many.npy"]) == 0
    assert f"{apart} of 100 images are held out" in capfd.readouterr().out
    assert main(["data", "check", "many.npy", "--size", "8x4", "--fit", "stretch", "--all"]) == 0
    named = set(re.findall(r"number \d+", capfd.readouterr().out.partition("held out")[2]))
    fitted = DataConfig(source="many.npy", size=(8, 4), fit="stretch", held_out=0.1)
    assert named == set(load(fitted, split="held-out").names)
    for source, says in {"digits": "its own test part", "photos": "none"}.items():
        assert main(["data", "stats", source]) == 0
        assert re.search(rf"held out +{says}\n", capfd.readouterr().out)
    refused(capfd, ["data", "stats", "digits", "--held-out", "0.6"], "--held-out = 0.6")
    refused(capfd, ["data", "check", "digits", "--held-out", "-1"], "--held-out = -1")


def test_a_class_that_is_wholly_held_out_is_said(
    elsewhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.zeros(40, dtype=int)
    labels[np.flatnonzero(held_out(pixels[:, None], 0.3))[0]] = 1
    np.savez("x.npz", images=pixels, labels=labels, class_names=["ape", "bee"])
    command = ["train", "x.npz", "--steps", "1", "--classes", *TINY]
    assert main([*command, "--held-out", "0.3"]) == 0
    assert "no image to train on of the classes bee" in capfd.readouterr().out
    assert main([*command, "--held-out", "0"]) == 0
    assert "no image to train on" not in capfd.readouterr().out


def test_samples_of_a_run_are_a_set_of_images(run: Path) -> None:
    assert main(["sample", "run", "-n", "5", "--film", "--out", "drawn"]) == 0
    assert {"grid.png", "film.gif"} < {p.name for p in Path("drawn").iterdir()}
    assert load_images("drawn").pixels.shape == (5, 1, 8, 8)


def test_statistics_are_of_the_images_as_they_would_be_trained_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("clear").mkdir()
    for k in range(2):
        Image.new("RGBA", (8, 4), (0, 0, 0, 0)).save(f"clear/{k}.png")  # nothing but background
    Image.new("RGBA", (8, 4), (0, 0, 0, 255)).save("clear/2.png")  # black
    command = ["data", "stats", "clear", "--size", "8", "--channels", "1"]
    told = []
    for fit in ("pad", "stretch"):
        assert main([*command, "--fit", fit, "--background", "white"]) == 0
        told.append(capfd.readouterr().out)
    # two white images and one that is black, or black in its middle half
    assert re.search(r"mean +0\.6667", told[0])
    assert re.search(r"mean +0\.3333", told[1])
    assert main([*command, "--background", "black"]) == 0
    assert re.search(r"mean +-1\.0000", capfd.readouterr().out)


def test_every_choice_of_an_option_is_the_configurations() -> None:
    """They are spelt again in the command line, which is to answer --help without pydantic."""

    def choices(hint: object) -> set[object]:
        if get_origin(hint) is Literal:
            return set(get_args(hint))
        return {choice for part in get_args(hint) for choice in choices(part)}

    kinds = choices(ScheduleConfig.model_fields["kind"].annotation)
    assert {*SCHEDULE_KINDS, "given"} == kinds  # "given" is no curve that could be drawn
    assert set(SCHEDULE_KINDS) == set(SCHEDULES)
    compared = 0
    for command, sections in (
        (commands.train.train, (DataConfig, TrainConfig)),
        (commands.sample.sample, (SampleConfig,)),
        (commands.look.stats, (DataConfig,)),
    ):
        hints = get_type_hints(command)
        for section in sections:
            for name, field in section.model_fields.items():
                known = choices(field.annotation)
                if name in hints and known:
                    assert choices(hints[name]) == known, (command, name)
                    compared += 1
    assert compared >= 8


def test_digits_are_always_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "get", "digits"]) == 0
    assert Path(last_line(capfd)).is_file()


def test_doctor_tells_versions_and_speeds(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    assert torch.__version__ in out
    assert re.search(r"float32 +\d+ +\d+", out)


def test_a_reader_who_leaves_is_no_traceback() -> None:
    command = f"{sys.executable} -m unraze config ddpm --full | head -1 >/dev/null"
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert told.stderr == ""
