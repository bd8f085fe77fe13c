"""An engine computes the network: pictures are torch's up to rounding, and made again exactly."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluated import digits_file, small_run
from test_cli import refused
from unraze import generate
from unraze.cli import main
from unraze.errors import InputError, UnrazeError
from unraze.interop import engines, graphs, onnx_files
from unraze.interop.engines import fastest, with_engine
from unraze.pictures import read_recipe

pytestmark = pytest.mark.usefixtures("files_made_once")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with classes, self-conditioning and noise, whose engine's file is made once."""
    folder = tmp_path_factory.mktemp("trained")
    data = digits_file(folder / "digits.npz")
    changes = {
        "train.classes": True,
        "network.heads": 2,
        "loss.self_conditioning": True,
        "sample.sampler": "ddim",
        "sample.eta": 0.5,
        "sample.guidance": 2.0,
    }
    return small_run(folder / "run", data, changes)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_the_pictures_are_those_of_torch(run: Path, engine: engines.Engine) -> None:
    model = generate.load(run)
    how = generate.settings_of(model)
    by_engine, settings = with_engine(model, engine, how)
    wanted = generate.sample(model, 5, seed=2, settings=how, batch=3)
    drawn = generate.sample(by_engine, 5, seed=2, settings=settings, batch=3)
    assert (drawn - wanted).abs().max() < 1e-3
    assert not np.array_equal(drawn.numpy(), wanted.numpy())  # torch did not compute them
    assert settings.dtype == "float32"


def test_images_spread_over_threads_are_in_their_places(run: Path) -> None:
    """Fewer than threads, as many for each, and not as many."""
    model = generate.load(run)
    with_engine(model, "onnx", generate.settings_of(model))
    assert model.folder is not None
    (file,) = (model.folder / "engines").glob("*.onnx")
    computed = onnx_files.spread(file, threads=3)
    for count in (2, 3, 8, 60):
        inputs = graphs.network_graph(model, count=count).asked
        told = {name: inputs[name] for name in ("classes", "previous")}
        wanted = model.network(inputs["x"], inputs["t"], **told)
        assert (computed(inputs) - wanted).abs().max() < 1e-5


def test_a_picture_of_an_engine_is_made_again(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for engine in ("onnx", "openvino"):
        out = tmp_path / engine
        options = ["-n", "3", "--engine", engine, "--film", "--out", str(out)]
        assert main(["sample", str(run), *options]) == 0
        said = capfd.readouterr().out.splitlines()
        assert said[0] == f"making {engine} ready, held against torch first"
        assert said[-1] == str(out)
        for name in ("00001.png", "grid.png", "film.gif"):
            recipe = read_recipe(out / name)
            assert (recipe["engine"], recipe["settings"]["dtype"]) == (engine, "float32")
            assert main(["sample", "--like", str(out / name)]) == 0
            assert "the same, byte for byte" in capfd.readouterr().out
    assert main(["sample", str(run), "-n", "1", "--out", str(tmp_path / "torch")]) == 0
    assert read_recipe(tmp_path / "torch" / "00000.png")["engine"] == "torch"


def test_auto_measures_once(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = generate.load(run)
    seconds = {"torch": 2.0, "onnx": 1.0, "openvino": 3.0}
    monkeypatch.setattr(engines, "_seconds", lambda model, how, batch: seconds[model.engine])
    found = fastest(model, generate.settings_of(model), batch=4)
    assert (found.engine, found.remembered) == ("onnx", False)
    assert found.rates == {"torch": 2.0, "onnx": 4.0, "openvino": pytest.approx(4 / 3)}
    seconds["torch"] = 0.1
    again = fastest(model, generate.settings_of(model), batch=4)
    assert (again.engine, again.remembered) == ("onnx", True)
    assert fastest(model, generate.settings_of(model), batch=5).engine == "torch"
    out = ["--out", str(tmp_path / "auto")]
    assert main(["sample", str(run), "-n", "4", "--engine", "auto", *out]) == 0
    said = capfd.readouterr().out
    assert "making the engines ready, each held against torch first\n" in said
    assert "engine onnx (as measured before)" in said
    assert read_recipe(tmp_path / "auto" / "00000.png")["engine"] == "onnx"


def test_auto_leaves_out_what_is_not_there_or_not_equal(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = generate.load(run)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(graphs, "BOUNDS", {"network": {"float32": -1.0}})
    found = fastest(model, generate.settings_of(model), batch=7)
    assert found.engine == "torch"
    assert list(found.rates) == ["torch"]
    missing, differs = found.left_out
    assert missing == "openvino: openvino not installed"
    assert "differs from the original" in differs


def test_auto_does_not_need_to_remember(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a copy whose folder of engines is none, and in one that keeps files but no choices."""
    for name, kept in (("nothing", ()), ("no choices", ("onnx", "openvino"))):
        copy = tmp_path / name
        shutil.copytree(run, copy)
        (checkpoint,) = (copy / "checkpoints").iterdir()
        shutil.rmtree(checkpoint / "engines", ignore_errors=True)
        if kept:
            (checkpoint / "engines" / "choices.json").mkdir(parents=True)
        else:
            (checkpoint / "engines").write_text("")
        out = ["--out", str(tmp_path / f"{name} drawn")]
        for _ in range(2):
            assert main(["sample", str(copy), "-n", "2", "--engine", "auto", *out]) == 0
            said = capfd.readouterr().out
            assert "engine to be measured again next time: " in said
            assert "choices.json: cannot be written" in said
            assert "images a second a call: torch " in said
            left_out = [line for line in said.splitlines() if "left out: " in line]
            assert len(left_out) == (0 if kept else 2)


def test_auto_leaves_out_a_file_that_was_damaged_since(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    seconds = {"torch": 2.0, "onnx": 1.0, "openvino": 3.0}
    monkeypatch.setattr(engines, "_seconds", lambda model, how, batch: seconds[model.engine])
    command = ["sample", str(copy), "-n", "3", "--engine", "auto", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    model = generate.load(copy)
    assert model.folder is not None
    (file,) = (model.folder / "engines").glob(f"{model.checkpoint[:12]}-*.onnx")
    whole, before = file.read_bytes(), file.stat()
    file.write_bytes(bytes(len(whole)))
    for same_time in (True, False):  # as a disk loses bits, and as a copy breaks off
        if same_time:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            file.write_bytes(whole[: len(whole) // 2])
        capfd.readouterr()
        assert main(command) == 0
        said = capfd.readouterr().out
        assert "engine torch (images a second a call: torch " in said
        assert "engine left out: onnx: " in said
        assert "engine left out: openvino: " in said
        assert f"remove it and it is made anew: {file}" in said
    file.unlink()
    assert main(command) == 0
    assert "engine onnx (images a second" in capfd.readouterr().out
    assert main(command) == 0
    assert "engine onnx (as measured before)" in capfd.readouterr().out


def test_auto_is_torch_at_once_off_the_processor(run: Path) -> None:
    model = generate.load(run)
    model.network.to("meta")
    found = fastest(model, generate.settings_of(model), batch=2)
    assert (found.engine, found.model, found.rates) == ("torch", model, {})
    assert found.left_out == (
        "onnx: computes on the processor",
        "openvino: computes on the processor",
    )


def test_an_engine_that_is_not_installed(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = tmp_path / "drawn"
    assert main(["sample", str(run), "-n", "1", "--engine", "onnx", "--out", str(drawn)]) == 0
    for package, engine in (("onnxruntime", "onnx"), ("openvino", "openvino")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            argv = ["sample", str(run), "--engine", engine]
            refused(capfd, argv, f"--engine = {engine}", package, 'pip install "unraze[export]"')
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    again = ["sample", "--like", str(drawn / "00000.png")]
    refused(capfd, again, "its recipe cannot be followed here", "onnxruntime")


def test_files_are_made_once_and_those_of_other_versions_go(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = generate.load(run)
    how = generate.settings_of(model)
    with_engine(model, "onnx", how)
    assert model.folder is not None
    folder = model.folder / "engines"
    (file,) = folder.glob("*.onnx")
    old = folder / f"{model.checkpoint[:12]}-0123.onnx"
    old.write_bytes(b"")
    (folder / "choices.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # not needed for what is there
    before = file.stat().st_mtime_ns
    with_engine(model, "onnx", how)
    assert file.stat().st_mtime_ns == before
    monkeypatch.undo()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnrazeError, match=rf"remove it.*{file.name}"):
        with_engine(model, "onnx", how)
    file.unlink()
    with_engine(model, "onnx", how)
    assert [path.name for path in folder.glob("*.onnx")] == [file.name]
    assert (folder / "choices.json").read_text() == "{}"


def test_what_an_engine_cannot_do(run: Path) -> None:
    model = generate.load(run)
    how = generate.changed(generate.settings_of(model), {"dtype": "bfloat16"})
    with pytest.raises(InputError, match="float32"):
        with_engine(model, "onnx", how)
    with pytest.raises(UnrazeError, match="no checkpoint"):
        with_engine(replace(model, folder=None), "onnx", generate.settings_of(model))
