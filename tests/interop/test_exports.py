"""Exports are what Unraze draws, in files that need neither it nor torch."""

import errno
import io
import json
import os
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from test_tape import model_of

from evaluated import digits_file, small_run
from test_cli import refused
from unraze import files, generate, rng
from unraze.cli import main
from unraze.clusters import Clusters
from unraze.config import preset, updated
from unraze.data import to_uint8
from unraze.errors import InputError
from unraze.interop import exports, graphs, onnx_files, openvino_files

pytestmark = pytest.mark.usefixtures("files_made_once")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps on digits, told clusters, sampled with noise and guidance."""
    folder = tmp_path_factory.mktemp("trained")
    data = digits_file(folder / "digits.npz")
    changes = {
        "train.clusters": 4,
        "network.heads": 2,
        "sample.sampler": "dpmpp_2m_sde",
        "sample.spacing": "karras",
        "sample.guidance": 1.5,
        "sample.guidance_interval": (0.2, 0.8),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unraze.clusters.PER_CLUSTER", 30)
        return small_run(folder / "run", data, changes)


BEGUN = "exporting network and sampler, to be compared with the original"
SHORT = ["--sampler", "ddim", "--steps", "2", "--guidance", "1"]


@dataclass(frozen=True)
class Written:
    """A folder of an export, and the numbers of the files that were flushed to the disk first."""

    folder: Path
    flushed: frozenset[int]


@pytest.fixture(scope="module")
def written(
    trained: Path, tmp_path_factory: pytest.TempPathFactory, files_made_once: None
) -> Callable[[exports.Format], Written]:
    """Makes the export of a format, once: ONNX as the run samples, the others in two steps."""

    @cache
    def of(to: exports.Format) -> Written:
        out = tmp_path_factory.mktemp("exports") / to
        flushed, fsync = set[int](), os.fsync
        said = io.StringIO()

        def seen(handle: int) -> None:
            assert not out.exists()
            assert said.getvalue().splitlines()[:1] == [BEGUN]
            flushed.add(os.fstat(handle).st_ino)
            fsync(handle)

        options = [] if to == "onnx" else SHORT
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
            patch.setattr(os, "fsync", seen)
            patch.setattr(files, "flush_folder", lambda path: None)
            assert main(["export", to, str(trained), *options, "--out", str(out)]) == 0
        assert said.getvalue().splitlines()[-1] == str(out)
        return Written(out, frozenset(flushed))

    return of


@pytest.fixture
def as_onnx(written: Callable[[exports.Format], Written]) -> Path:
    return written("onnx").folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def told(file: Path) -> dict[str, object]:
    found = {}
    for key, value in session(file).get_modelmeta().custom_metadata_map.items():
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def test_the_sampler_is_a_function_of_its_inputs_for_any_number(
    trained: Path, as_onnx: Path
) -> None:
    model = generate.load(trained)
    how = generate.settings_of(model)
    about = told(as_onnx / "sampler.onnx")
    steps = about["noise_steps"]
    assert steps == [4, 3, 2]  # the last step adds none
    for count in (1, 5):
        numbers = range(count)
        walks = [rng.normal(7, "walk", numbers, step, model.shape).numpy() for step in steps]
        feed = {
            "start": rng.normal(7, "start", numbers, 0, model.shape).numpy(),
            "classes": np.array([generate.class_of(model, None, k, 7) for k in numbers]),
            "guidance": np.array(1.5, dtype=np.float32),
            "noise": np.stack(walks),
        }
        run = session(as_onnx / "sampler.onnx")
        (images,) = run.run(["images"], feed)
        wanted = generate.sample(model, count, seed=7, settings=how).numpy()
        assert np.abs(images - wanted).max() < 1e-4
        assert np.array_equal(images, run.run(["images"], feed)[0])
    other = feed | {"classes": (feed["classes"] + 1) % model.num_classes}
    assert np.abs(run.run(["images"], other)[0] - images).max() > 1e-3
    for scale in (1.0, 4.0):
        (guided,) = run.run(["images"], feed | {"guidance": np.array(scale, dtype=np.float32)})
        changed = how.model_copy(update={"guidance": scale})
        wanted = generate.sample(model, count, seed=7, settings=changed).numpy()
        assert np.abs(guided - wanted).max() < 1e-4
        assert np.abs(guided - images).max() > 1e-3


def test_the_network_is_that_of_the_run(trained: Path, as_onnx: Path) -> None:
    model = generate.load(trained)
    x = torch.randn(4, *model.shape, generator=torch.Generator().manual_seed(0))
    t, classes = torch.tensor([0.5, 3.0, 11.25, 20.0]), torch.tensor([0, 1, model.num_classes, 1])
    feed = {"x": x.numpy(), "t": t.numpy(), "classes": classes.numpy()}
    (raw,) = session(as_onnx / "network.onnx").run(["raw"], feed)
    np.testing.assert_allclose(raw, model.network(x, t, classes=classes).numpy(), atol=1e-5)


def test_the_files_say_what_they_are(trained: Path, as_onnx: Path) -> None:
    model = generate.load(trained)
    assert isinstance(model.clusters, Clusters)
    network, sampler = (told(as_onnx / f"{name}.onnx") for name in ("network", "sampler"))
    for about in (network, sampler):
        assert about["checkpoint"] == model.checkpoint
        assert about["shape"] == [1, 8, 8]
        assert about["range"] == [-1, 1]
        assert about["parametrisation"] == model.config.loss.parametrisation
        assert about["num_classes"] == len(model.clusters)
        assert about["shares"] == pytest.approx(list(model.clusters.shares))
        assert about["opset"] == 18
    assert network["alpha_bar"] == model.schedule.alpha_bar.tolist()
    assert sampler["settings"]["guidance_interval"] == [0.2, 0.8]
    assert sampler["guidance"] == 1.5
    assert "guidance" not in network
    assert sampler["network_calls"] == generate.calls_of(model, generate.settings_of(model))


def test_plain_operators_of_one_version_and_weights_that_are_shared(as_onnx: Path) -> None:
    network, sampler = (onnx.load(as_onnx / f"{name}.onnx") for name in ("network", "sampler"))
    for file in (network, sampler):
        onnx.checker.check_model(file, full_check=True)
        assert [(opset.domain, opset.version) for opset in file.opset_import] == [("", 18)]
        assert {node.domain for node in file.graph.node} == {""}
        assert not file.functions
        batches = {
            input.name: [d.dim_param for d in input.type.tensor_type.shape.dim if d.dim_param]
            for input in file.graph.input
        }
        assert batches.pop("guidance", []) == []
        assert all(len(free) == 1 for free in batches.values()), batches
    sizes = [
        sum(np.prod(weight.dims) for weight in file.graph.initializer)
        for file in (network, sampler)
    ]
    assert sizes[1] < 1.1 * sizes[0]


def test_the_script_draws_without_torch_and_unraze(
    trained: Path, as_onnx: Path, here: Path
) -> None:
    model = generate.load(trained)
    ran = script(as_onnx, here, "20", "3", "out")
    assert (ran.returncode, ran.stdout) == (0, "20 pictures: out\n"), ran.stderr
    wanted = to_uint8(generate.sample(model, 20, seed=3, batch=16))[:, 0]
    assert np.abs(pictures(here / "out") - wanted.astype(int)).max() <= 1

    ran = script(as_onnx, here, "3", "4", "third", "--class", "2", "--guidance", "3.5")
    assert ran.returncode == 0, ran.stderr
    how = generate.settings_of(model).model_copy(update={"guidance": 3.5})
    wanted = to_uint8(generate.sample(model, 3, seed=4, classes=2, settings=how))[:, 0]
    assert np.abs(pictures(here / "third") - wanted.astype(int)).max() <= 1


def script(folder: Path, here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs sample_onnx.py of a folder in a Python that sees numpy and onnxruntime alone."""
    packages = here.parent / f"{here.name}-packages"
    packages.mkdir(exist_ok=True)
    for package in (np, onnxruntime):
        place = Path(package.__file__).parent
        for found in (place, place.with_name(f"{place.name}.libs")):
            if found.exists() and not (packages / found.name).exists():
                (packages / found.name).symlink_to(found)
    code = (
        f"import sys, runpy; sys.path.append({str(packages)!r})\n"
        "for name in ('torch', 'unraze', 'PIL'):\n"
        "    try: __import__(name)\n"
        "    except ImportError: pass\n"
        "    else: raise SystemExit(name + ' is there')\n"
        f"sys.argv = ['sample_onnx.py', *{words!r}]\n"
        f"runpy.run_path({str(folder / 'sample_onnx.py')!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=here)


def pictures(folder: Path) -> np.ndarray:
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{k:05d}.png" for k in range(len(files))]
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)


def test_words_that_the_script_cannot_take_are_said(
    as_onnx: Path, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = here / "there"
    there.mkdir()
    (there / "00001.png").write_bytes(b"mine")
    (here / "file").write_text("")
    for words, why in (
        (["many"], "many: give a whole number of at least 1"),
        (["0"], "0: give a whole number of at least 1"),
        (["1.5"], "1.5: give a whole number"),
        (["4", "-1"], "-1: give a whole number of at least 0"),
        (["4", "0", "out", "more"], "more"),
        (["4", "0", "there"], "there: has pictures; give another folder, or remove them"),
        (["4", "0", "file"], "file: cannot be made"),
        (["--class", "4"], "4: give 0 to 3"),
        (["--class", "shoe"], "shoe: give 0 to 3"),
        (["--guidance", "nan"], "nan: give a number of at least 0"),
        (["--guidance=-1"], "-1: give a number of at least 0"),
    ):
        monkeypatch.setattr(sys, "argv", ["sample_onnx.py", *words])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(as_onnx / "sample_onnx.py"), run_name="__main__")
        said = capfd.readouterr()
        usage, error = said.err.splitlines()
        assert said.out == "", words
        assert usage == "usage: sample_onnx.py [COUNT] [SEED] [FOLDER] [OPTIONS]"
        assert why in error
    assert sorted(path.name for path in here.iterdir()) == ["file", "there"]
    assert (there / "00001.png").read_bytes() == b"mine"
    assert list(there.iterdir()) == [there / "00001.png"]


def test_the_script_knows_classes_by_name(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], here: Path
) -> None:
    from unraze.interop import sample_onnx

    named = {"num_classes": 3, "class_names": ["cat", "2", "dog"]}
    for word, number in (("dog", 2), ("0", 0), ("2", 1)):  # a name goes before a number
        monkeypatch.setattr(sys, "argv", ["sample_onnx.py", "--class", word])
        assert sample_onnx.asked(named).label == number
    for about, option in (({"num_classes": 0}, "--class=1"), (named, "--guidance=2")):
        monkeypatch.setattr(sys, "argv", ["sample_onnx.py", option])
        with pytest.raises(SystemExit, match="2"):
            sample_onnx.asked(about)
        assert f"unrecognized arguments: {option}" in capfd.readouterr().err


def test_classes_of_the_run_are_drawn_in_turn_by_the_script() -> None:
    from unraze.interop import sample_onnx

    assert [sample_onnx.label({"num_classes": 3}, k, 5) for k in range(4)] == [0, 1, 2, 0]


def test_openvino_and_torch_draw_the_same(
    trained: Path, written: Callable[[exports.Format], Written]
) -> None:
    import openvino

    model = generate.load(trained)
    how = generate.asked(model, {"sampler": "ddim", "steps": 2, "guidance": 1.0})
    wanted = generate.sample(model, 2, settings=how).numpy()
    feed = {"start": rng.normal(0, "start", range(2), 0, model.shape)}
    feed["classes"] = torch.tensor([generate.class_of(model, None, k, 0) for k in range(2)])
    by_openvino, by_torch = (written(to).folder for to in ("openvino", "torch"))
    assert sorted(path.name for path in by_openvino.iterdir()) == [
        "network.bin",
        "network.xml",
        "sampler.bin",
        "sampler.xml",
    ]
    read = openvino.Core().read_model(by_openvino / "sampler.xml")
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}  # or it takes bfloat16, where there is that
    compiled = openvino.compile_model(read, "CPU", exactly)
    (images,) = compiled({name: value.numpy() for name, value in feed.items()}).values()
    assert np.abs(images - wanted).max() < 1e-3
    about = json.loads(read.get_rt_info(["unraze"]).value)
    assert about["settings"]["sampler"] == "ddim"

    extra = {"unraze.json": ""}
    program = torch.export.load(by_torch / "sampler.pt2", extra_files=extra)
    assert torch.equal(program.module()(**feed), torch.from_numpy(wanted))
    assert json.loads(extra["unraze.json"])["checkpoint"] == model.checkpoint


@pytest.mark.slow
def test_half_the_bits(trained: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--sampler", "ddim", "--steps", "2", "--dtype", "float16", "--out", "half"]
    assert main(["export", "onnx", str(trained), *options]) == 0
    assert "float16" in capfd.readouterr().out
    weights = onnx.load("half/network.onnx").graph.initializer
    halves = [w for w in weights if w.data_type == onnx.TensorProto.FLOAT16]
    assert sum(np.prod(w.dims) for w in halves) > 5000
    assert told(here / "half" / "sampler.onnx")["dtype"] == "float16"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["annotated", "ddpm", "fused attention", "lean, filled up"])
def test_the_parts_of_every_network_have_plain_operators(name: str) -> None:
    """Linear attention, Ho et al.'s blocks, pictures too large for the formula of attention, and
    those that are filled up."""
    changes = {
        "annotated": {"network.dim": 16, "network.groups": 4},
        "ddpm": {"network.dim": 32},
        "fused attention": {"network.linear_attention": False, "network.attention": (0,)},
        "lean, filled up": {"network.fold": 3, "network.widths": (16, 16)},
    }[name]
    of = {"ddpm": "ddpm", "lean, filled up": "fast"}.get(name, "annotated")
    model = model_of(updated(preset(of), changes), size=32)
    graph = graphs.network_graph(model)
    file = onnx_files.network_file(graph)
    assert {node.domain for node in file.graph.node} == {""}
    for running in (onnx_files.running, openvino_files.running):
        graphs.require_equal(graph, running(file.SerializeToString()), name)


def test_what_is_too_far_from_the_original_is_not_written(
    trained: Path, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "BOUNDS", {"network": {"float32": -1.0}})
    argv = ["export", "torch", str(trained), *SHORT, "--out", "made"]
    refused(capfd, argv, "network.pt2", "differs from the original", "not taken", status=1)


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_a_full_disk_leaves_nothing(
    trained: Path,
    here: Path,
    to: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of OpenVINO, which writes by itself, to a device that is always full."""
    import openvino

    written, save = list[Path](), openvino.save_model

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(bytes(data[: len(data) // 2]))
        written.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_to_full(model: openvino.Model, path: str, **options: bool) -> None:
        for suffix in (".xml", ".bin"):
            Path(path).with_suffix(suffix).symlink_to("/dev/full")
        save(model, path, **options)

    monkeypatch.setattr(files, "write_and_flush", full)
    monkeypatch.setattr(openvino, "save_model", save_to_full)
    argv = ["export", to, str(trained), *SHORT, "--out", "made"]
    refused(capfd, argv, "made", "the disk is full; free some space", status=1)
    assert [path.stem for path in written] == ["network"]


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_what_is_written_is_on_the_disk_before_it_has_its_name(
    written: Callable[[exports.Format], Written], to: exports.Format
) -> None:
    made = written(to)
    assert {file.stat().st_ino for file in made.folder.iterdir()} <= made.flushed


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_no_file_says_where_it_was_made(
    trained: Path, written: Callable[[exports.Format], Written], to: exports.Format
) -> None:
    folder = written(to).folder
    places = [torch.__file__, exports.__file__, __file__, sys.prefix, str(folder), str(trained)]
    roots = [str(Path(place).parent).encode() for place in places]
    for file in folder.iterdir():
        texts = {file.name: file.read_bytes()}
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                texts |= {name: archive.read(name) for name in archive.namelist()}
        for name, text in texts.items():
            assert [root for root in (*roots, b"site-packages") if root in text] == [], name


def test_what_will_not_do_is_said(
    trained: Path, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(trained)
    (here / "there").mkdir()
    refused(capfd, ["export", "onnx", "nowhere"], "nowhere", "no such run")
    refused(capfd, ["export", "onnx", "there"], "there", "is not a run")
    refused(capfd, ["export", "onnx", run, "--out", "there"], "--out there", "exists")
    refused(capfd, ["export", "onnx", run, "--steps", "99"], "--steps = 99", "50 steps")
    refused(capfd, ["export", "onnx", run, "--dtype", "bfloat16"], "--dtype")
    refused(capfd, ["export", "torch", run, "--sampler", "consistency"], "unraze distill")
    monkeypatch.setattr(graphs, "MOST_CALLS", 3)
    refused(capfd, ["export", "onnx", run], "steps = 4", "network calls")
    for package, to in (("onnxscript", "onnx"), ("openvino", "openvino")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            refused(capfd, ["export", to, run], package, 'pip install "unraze[export]"')
    model = generate.load(trained)
    how = generate.settings_of(model)
    with pytest.raises(InputError, match="dtype = bfloat16"):
        exports.export(model, "onnx", here / "made", settings=how, dtype="bfloat16")
