"""`unraze eval` and `unraze compare`: what they print, write and refuse, and how they go on."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from evaluated import Small, few_steps, files_below, short_flow, small, small_run
from unraze.cli import main
from unraze.evaluate import evaluation as evaluations, samples
from unraze.evaluate.evaluation import EVALUATION, Evaluation
from unraze.evaluate.stage import Stage

QUICK = ["-n", "20", "--skip", "levels", "--skip", "bound", "--skip", "flow"]
UNRAZE = [sys.executable, "-m", "unraze"]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture
def here(made_once: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with copies of the runs at `run`, `other` and `classy`."""
    monkeypatch.setenv("UNRAZE_CACHE", str(made_once.cache))
    monkeypatch.setattr(samples, "BATCH", 10)
    short_flow(monkeypatch)
    folder = tmp_path / "here"
    for run in (made_once.run, made_once.other, made_once.classy):
        shutil.copytree(run, folder / run.name)
    monkeypatch.chdir(folder)
    return folder


def told(capfd: pytest.CaptureFixture[str], argv: list[str], status: int = 0) -> list[str]:
    """The lines on stdout of a command that ends so."""
    capfd.readouterr()
    assert main(argv) == status, capfd.readouterr().err
    return capfd.readouterr().out.splitlines()


def refused(capfd: pytest.CaptureFixture[str], argv: list[str], says: str, status: int = 2) -> None:
    """One line on stderr, the exit status, and nothing new on disk."""
    before = files_below(Path.cwd())
    folders = sorted(Path.cwd().rglob("*"))
    capfd.readouterr()
    assert main(argv) == status
    err = capfd.readouterr().err
    assert re.fullmatch(r"unraze: error: [^\n]+\n", err), err
    assert re.search(says, err), err
    assert files_below(Path.cwd()) == before
    assert sorted(Path.cwd().rglob("*")) == folders


def result(path: str | Path) -> Evaluation:
    return EVALUATION.validate_json(Path(path).read_bytes())


def plain(path: str | Path) -> dict[str, Any]:
    """An evaluation's JSON without what depends on the clock."""
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    return {name: value for name, value in values.items() if name not in ("made", "seconds")}


def file_named(lines: list[str]) -> Path:
    assert lines[-2].startswith("as data: ")
    return Path(lines[-2].removeprefix("as data: "))


def pictures(folder: str, count: int, side: int = 8, *, seed: int = 0) -> Path:
    made = Path(folder)
    made.mkdir()
    random = np.random.default_rng(seed).integers(0, 256, (count, side, side)).astype(np.uint8)
    for number, pixels in enumerate(random):
        Image.fromarray(pixels).save(made / f"{number:03d}.png")
    return made


# a run


def test_an_evaluation_says_what_it_does_and_where_its_result_is(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = told(capfd, ["eval", "run", "-n", "20"])
    assert re.fullmatch(r"run, step 30, weights averaged: 20 samples .* 60 held-out .*", lines[0])
    assert lines[1].startswith("this takes ")
    assert lines[2].startswith("features: residual classifier, weights ")
    assert lines[-1] == str(Path("run/report.html"))
    file = file_named(lines)
    assert re.fullmatch(r"run/eval/step-00000030-[0-9a-f]{8}\.json", str(file))
    found = result(file)
    assert found.subject.generated == 20
    assert len(found.spaces) == len(found.bounds) == 2
    assert None not in (found.memorisation, found.levels, found.flow)
    text = "\n".join(lines)
    for space in found.spaces:
        for figure in space.figures:
            assert figure.name in text
    assert "\x1b" not in text
    assert "% ━" not in text
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert found.spaces[0].hash[:16] in page


def test_the_same_again_makes_nothing_and_ends_the_same(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = file_named(told(capfd, ["eval", "run", *QUICK]))
    first, seconds = plain(file), result(file).seconds
    lines = told(capfd, ["eval", str(here / "run"), *QUICK])  # from whichever folder
    assert lines[1] == "this takes seconds"
    assert not any(line.startswith(("sampling", "nearest")) for line in lines)
    again = plain(here / file)
    assert first["subject"].pop("name") == "run"
    assert again["subject"].pop("name") == str(here / "run")
    assert again == first
    assert result(file).seconds == seconds
    assert len(list(Path("run/eval").glob("*.json"))) == 1


def test_options_of_sampling_are_evaluations_of_their_own(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {
        file_named(told(capfd, ["eval", "run", *QUICK, *options]))
        for options in (
            [],
            ["--seed", "1"],
            ["--steps", "3"],
            ["--sampler", "random"],
            ["--raw"],
        )
    }
    assert len(files) == 5
    raw = [result(file) for file in files if result(file).subject.raw]
    assert len(raw) == 1
    assert {result(file).subject.settings["steps"] for file in files} == {3, 4}


def test_a_class_conditional_run_is_measured_class_by_class(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = told(capfd, ["eval", "classy", *QUICK, "--guidance", "2"])
    assert sum("of samples are taken for the class asked for" in line for line in lines) == 2
    found = result(file_named(lines)).spaces[0].classes
    assert {c.name for c in found} <= set("0123456789")
    assert sum(c.generated for c in found) == 20
    assert "Class by class" in Path("classy/report.html").read_text(encoding="utf-8")


def test_the_best_checkpoint_is_evaluated(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(capfd, ["eval", "run", *QUICK, "--checkpoint", "best"], "has no best checkpoint")
    shutil.copytree("run/checkpoints/step-00000030", "run/best/step-00000030")
    lines = told(capfd, ["eval", "run", *QUICK, "--checkpoint", "best"])
    assert "step 30" in lines[0]


def test_features_of_ones_own(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = told(capfd, ["eval", "run", *QUICK])
    Path("own.onnx").write_bytes(mean_of_quarters())
    own = told(capfd, ["eval", "run", *QUICK, "--features", "onnx:own.onnx"])
    assert not any(line.startswith("sampling") for line in own)  # the samples are there
    assert result(file_named(own)).spaces[0].name == "onnx:own.onnx"
    assert file_named(own) != file_named(lines)


def mean_of_quarters(*, ruined: bool = False) -> bytes:
    """A network of 8 x 8 RGB to the means of its quarters, or to not-a-number for grey ones."""
    shape = {"kernel_shape": [4, 4], "strides": [4, 4]}
    nodes = [helper.make_node("AveragePool", ["in"], ["out"], **shape)]
    if ruined:  # √(mean - 200), and white and black, which are tried first, are neither less
        nodes = [
            helper.make_node("AveragePool", ["in"], ["means"], **shape),
            helper.make_node("Sub", ["means", "middle"], ["off"]),
            helper.make_node("Mul", ["off", "off"], ["square"]),
            helper.make_node("Sub", ["square", "most"], ["less"]),
            helper.make_node("Sqrt", ["less"], ["out"]),
        ]
    constants = {"middle": 127.5, "most": 16_000.0} if ruined else {}
    graph = helper.make_graph(
        nodes,
        "quarters",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 3, 2, 2])],
        [onnx.numpy_helper.from_array(np.float32(v), name) for name, v in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


# images


def test_images_are_the_same_from_a_folder_a_zip_and_an_array(
    here: Path, capfd: pytest.CaptureFixture[str], made_once: Small
) -> None:
    folder = pictures("pictures", 12)
    shutil.make_archive("packed", "zip", folder)
    np.save("array.npy", np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())]))
    found = []
    for target in ("pictures", "packed.zip", "array.npy"):
        lines = told(capfd, ["eval", target, "--against", str(made_once.data)])
        assert lines[0].startswith(f"{target}: 12 images against 60 held-out images of")
        assert lines[-1] == f"{target}-evaluation/report.html"
        values = plain(file_named(lines))
        assert values["subject"].pop("name") == target
        found.append(values)
    assert found[0] == found[1] == found[2]
    assert found[0]["levels"] is None
    assert found[0]["spaces"][0]["hash"] == made_once.spaces[0].hash
    lines = told(capfd, ["eval", "pictures", "--against", str(made_once.data), "--out", "there"])
    assert lines[-1] == "there/report.html"
    shutil.copytree(folder, "run/samples-00000")
    lines = told(capfd, ["eval", "run/samples-00000", "--against", str(made_once.data)])
    assert lines[-1] == "run-samples-00000-evaluation/report.html"


def test_features_that_nothing_asks_for_are_not_trained(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNRAZE_CACHE", str(here.parent / "nothing"))
    without = ["--skip", "figures", "--skip", "memorisation"]
    lines = told(capfd, ["eval", "run", "-n", "20", *without, "--skip", "flow"])
    assert not [line for line in lines if line.startswith("features:") or "feature net" in line]
    found = EVALUATION.validate_json(file_named(lines).read_bytes())
    assert found.bounds
    monkeypatch.setattr("unraze.hardware.memory", lambda device="cpu": 1100)  # 17 such pictures
    refused(capfd, ["eval", "run", "-n", "20"], "-n 20: so many pictures are")


def test_images_that_cannot_be_read_are_left_out_and_counted(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("pictures", 12), ("real", 80)):
        folder = pictures(name, count)
        (folder / "bad.png").write_bytes(b"no picture")
    argv = ["eval", "pictures", "--against", "real", "--skip", "memorisation"]
    refused(capfd, argv, "bad.png.* leave them out by --skip-bad")
    with few_steps():
        lines = told(capfd, [*argv, "--skip-bad"])
    assert lines[0].startswith("pictures: 12 images against")
    for line, name in zip(lines[1:3], ("pictures", "real"), strict=True):
        assert re.fullmatch(rf"\S*{name}: 1 left out as unreadable", line)


def test_a_folder_of_other_things_is_not_written_into(
    here: Path, capfd: pytest.CaptureFixture[str], made_once: Small
) -> None:
    pictures("pictures", 12)
    argv = ["eval", "pictures", "--against", str(made_once.data), "--out"]
    refused(capfd, [*argv, "pictures"], "pictures: exists and holds other things")
    refused(capfd, [*argv, "run"], "run: exists and holds other things")


# stopped


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("run", "whole")
    whole = plain(file_named(told(capfd, ["eval", "whole", "-n", "20", "--skip", "flow"])))

    def interrupted(*args: Any, **options: Any) -> Generator[Stage, None, None]:
        yield Stage("part", 1, 2)
        raise KeyboardInterrupt

    argv = ["eval", "run", "-n", "20", "--skip", "flow"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/unraze", *argv])
    for module, name in (
        (evaluations, "drawn"),
        (evaluations, "memorisation"),
        (evaluations.likelihood, "bound"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupted)
            capfd.readouterr()
            assert main(argv) == 130
        out, err = capfd.readouterr()
        assert err.splitlines()[-1] == (
            "unraze: interrupted; what is done is kept, go on with: "
            "unraze eval run -n 20 --skip flow"
        )
        assert "as data" not in out
        assert not Path("run/report.html").exists()
    lines = told(capfd, argv)
    assert not any(line.startswith(("sampling", "nearest", "loss")) for line in lines)
    found = plain(file_named(lines))
    assert found["subject"].pop("name") == "run"
    assert whole["subject"].pop("name") == "whole"
    assert found == whole


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_by_a_signal_again_and_again_it_ends_the_same(
    here: Path, capfd: pytest.CaptureFixture[str], how: signal.Signals
) -> None:
    argv = ["eval", "run", "-n", "1000", "--threads", "1"]

    def parts() -> int:
        return sum(1 for path in Path("run/eval/kept").rglob("*.*") if path.is_file())

    stops, status = 0, -1
    while status != 0:
        before = parts()
        process = subprocess.Popen([*UNRAZE, *argv], stdout=subprocess.DEVNULL)
        while process.poll() is None and parts() < before + 4:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(how)
        status = process.wait()
        assert status in (0, 130 if how == signal.SIGINT else -how)
        stops += status != 0
    assert stops >= 2
    (file,) = Path("run/eval").glob("step-*.json")
    shutil.rmtree(here / "other")
    shutil.copytree("run", "other", ignore=shutil.ignore_patterns("eval"))
    subprocess.run([*UNRAZE, *argv[:1], "other", *argv[2:]], check=True, capture_output=True)
    (whole,) = Path("other/eval").glob("step-*.json")
    found, wanted = plain(file), plain(whole)
    del found["subject"]["name"], wanted["subject"]["name"]
    assert found == wanted


def test_a_full_disk_is_said_in_a_line_and_it_goes_on_when_there_is_room(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(capfd, ["eval", "other", *QUICK])  # keeps the features of the real images
    left = iter([None] * 3)
    flush = os.fsync

    def fsync(handle: int) -> None:
        if next(left, "full") == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        capfd.readouterr()
        assert main(["eval", "run", *QUICK]) == 1
    err = capfd.readouterr().err
    assert re.fullmatch(
        r"unraze: error: run/eval/kept/\S+: .*the disk is full; free some space.*\n",
        err,
    )
    assert len([p for p in Path("run/eval").rglob("*") if p.is_file()]) == 3
    lines = told(capfd, ["eval", "run", *QUICK])
    assert not any(line.startswith("sampling") for line in lines)


# what will not do


def test_what_will_not_do_is_one_line_and_leaves_no_trace(
    here: Path, capfd: pytest.CaptureFixture[str], made_once: Small
) -> None:
    real = ["--against", str(made_once.data)]
    Path("empty").mkdir()
    pictures("few", 3)
    pictures("large", 30, side=9)
    Path("bad.onnx").write_bytes(b"no model")
    Path("nan.onnx").write_bytes(mean_of_quarters(ruined=True))
    for argv, says in (
        (["run", "-n", "3"], "-n 3: too few for figures; give at least 7"),
        (["run", "-n", "0"], "-n 0: give at least 1"),
        (["run", "-n", "1000000000"], "-n 1000000000: give at most"),
        (["run", "--seed", "-1"], "--seed -1: give at least 0"),
        (["run", "--steps", "51"], "--steps = 51"),
        (["run", "--guidance", "3"], "--guidance = 3: this run was trained without classes"),
        (["run", "--threads", "0"], "--threads = 0"),
        (["run", "--device", "cuda:77"], "--device"),
        (["run", "--checkpoint", "7"], "no checkpoint of step 7; there is 30"),
        (["run", "--against", "digits"], "is a run, which knows its own .* leave --against out"),
        (
            ["run", *(f"--skip={part}" for part in evaluations.PARTS)],
            "--skip: leaves nothing to measure",
        ),
        (["run", "--features", "own"], "--features own: give onnx:FILE"),
        (["run", "--features", "onnx:none.onnx"], "none.onnx: cannot be read .*; give the path"),
        (["run", "--skip-bad"], "is a run, and these are for images; leave --skip-bad out"),
        (["run", "--features", "onnx:bad.onnx"], "bad.onnx: does not load"),
        (["run", "--features", "onnx:nan.onnx"], "features that are not finite"),
        (["few"], "few: is no run; .* --against"),
        (["none"], "none: there is no such run, nor such images"),
        (["none", *real], "none: there is no such file or folder"),
        (["few", *real], "few: 3 images: too few for figures; give at least 7"),
        (["empty", *real], "empty: holds no images"),
        (["few", "--against", "empty"], "empty: holds no images"),
        (["few", "--against", "large"], "images of 8 x 8 grey, but large has 9 x 9"),
        (["large", *real], "images of 9 x 9 grey, but .* has 8 x 8 grey; .*--size"),
        (["large", "--against", "few"], "few: has 3 images; of fewer than 20 none is held out"),
        (["large", *real, "-n", "50"], "is no run, and these are for runs; leave -n out"),
        (["large", *real, "--size", "0"], "--size 0"),
    ):
        refused(capfd, ["eval", *argv], says)


def test_runs_that_cannot_be_evaluated_are_refused(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = pictures("own", 40)
    small_run(Path("all"), own, {"data.held_out": 0.0})
    small_run(Path("gone"), own, {"data.held_out": 0.3})
    refused(capfd, ["eval", "all"], "holds no images back.*unraze eval FOLDER --against")
    shutil.rmtree(own)
    refused(capfd, ["eval", "gone"], "own: there is no such file or folder")
    shutil.rmtree("run/checkpoints/step-00000030")
    refused(capfd, ["eval", "run"], "run: has no checkpoint yet")
    file = Path("other/checkpoints/step-00000030/ema.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    refused(capfd, ["eval", "other"], "ema.safetensors: is damaged")


# how long, and help


def test_it_says_first_that_networks_are_to_be_trained(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unraze.evaluate import features, forecast

    def untrained(*args: Any, **options: Any) -> Generator[Stage, None, None]:
        yield Stage("features", 0, 1)
        raise KeyboardInterrupt

    monkeypatch.setenv("UNRAZE_CACHE", str(here.parent / "empty"))
    monkeypatch.setattr(features, "make", untrained)
    monkeypatch.setattr(forecast, "features_time", lambda recipes, images: 65.0 * len(recipes))
    lines = told(capfd, ["eval", "run", *QUICK], status=130)
    assert "training feature networks, once 2:10" in lines[1]
    assert re.match(r"this takes about 2:\d\d: ", lines[1])
    assert not Path("run/eval").exists()


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_help_is_quick_and_says_what_matters(command: str) -> None:
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "unraze", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "100"},
    )
    loaded = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert not {"torch", "numpy", "pydantic", "matplotlib"} & loaded
    text = " ".join(found.stdout.split())
    wanted = {
        "eval": ("interval", "report page", "goes on where it was", "unraze eval RUN -n 10000"),
        "compare": ("which differences are real", "newest", "same real images"),
    }
    for words in wanted[command]:
        assert words in text


# side by side


def test_compare_says_which_differences_are_real(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [file_named(told(capfd, ["eval", run, *QUICK])) for run in ("run", "other", "classy")]
    lines = told(capfd, ["compare", "run", "other"])
    assert lines[0].startswith("A  run, step 30, seed 0, 20 samples")
    assert lines[0].endswith(f": {files[0]}")
    text = "\n".join(lines)
    a, b = (result(file).spaces[0].figures[2] for file in files[:2])
    assert a.name == "KID"
    assert f"{a.value - b.value:.3g}" in text
    assert "A and B: of 10 figures" in text  # of 7 in two spaces, both Fréchet distances have none
    assert "not measured" in text
    lines = told(capfd, ["compare", "run", str(files[1]), "classy"])
    assert [line[0] for line in lines[:3]] == ["A", "B", "C"]
    assert sum(re.match(r"[AB] and [BC]: of 10 figures", line) is not None for line in lines) == 3


def test_compare_takes_the_newest_evaluation_and_says_so(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = file_named(told(capfd, ["eval", "run", *QUICK]))
    values = json.loads(file.read_text(encoding="utf-8"))
    for name, made, count in (("1", "2020", 31), ("2", "2040", 32), ("3", "2030", 33)):
        values["made"], values["subject"]["generated"] = f"{made}-01-01T00:00:00+00:00", count
        copy = file.with_name(f"step-00000030-0000000{name}.json")
        copy.write_text(json.dumps(values), encoding="utf-8")
    lines = told(capfd, ["compare", "run", "run"])
    assert "32 samples" in lines[0]
    assert lines[0].endswith("step-00000030-00000002.json, the newest of 4")
    file.write_text("{}", encoding="utf-8")
    refused(capfd, ["compare", "run", "run"], f"{file}: is damaged, or no evaluation; remove it")


def test_compare_refuses_what_says_nothing(
    here: Path, capfd: pytest.CaptureFixture[str], made_once: Small
) -> None:
    pictures("pictures", 20)
    told(capfd, ["eval", "run", *QUICK])
    told(capfd, ["eval", "pictures", "--against", str(made_once.data)])
    lines = told(capfd, ["compare", "run", "pictures-evaluation"])
    assert lines[1].startswith("B  pictures, 20 images")
    for argv, says in (
        (["run"], "give two evaluated runs or more"),
        (["run", "other"], "other: was not evaluated yet; `unraze eval other` does it"),
        (["run", "pictures"], "pictures: is neither an evaluated run nor"),
        (["run", "nowhere"], "nowhere: is neither an evaluated run nor"),
        (["run", "run/config.toml"], "config.toml: is no evaluation of this version"),
    ):
        refused(capfd, ["compare", *argv], says)
    told(capfd, ["eval", "other", "-n", "21", *QUICK[2:]])
    refused(capfd, ["compare", "run", "other"], "20 and 21 samples.*with the same -n")


def test_what_is_piped_is_whole_and_plain(here: Path) -> None:
    """The bar is drawn on a terminal alone; a table is not cut where there is none."""
    found = subprocess.run(
        [*UNRAZE, "eval", "run", *QUICK, "--threads", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "COLUMNS"},
    )
    lines = found.stdout.splitlines()
    assert lines[-1] == "run/report.html"
    assert "\x1b" not in found.stdout + found.stderr
    assert "━" not in found.stdout + found.stderr
    assert any(re.search(r"Fréchet distance, N = ∞ +– +– … –", line) for line in lines)
