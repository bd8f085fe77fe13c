"""Exports are what Unraze draws, in files that need neither it nor torch."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from test_tape import model_of

from evaluated import digits_file, small_run
from test_cli import last_line, refused
from unraze import files, generate, rng
from unraze.cli import main
from unraze.clusters import Clusters
from unraze.config import preset, updated
from unraze.data import to_uint8
from unraze.errors import InputError
from unraze.interop import exports, graphs, onnx_files, openvino_files


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


@pytest.fixture(scope="module")
def as_onnx(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "onnx"
    assert main(["export", "onnx", str(trained), "--out", str(out)]) == 0
    return out


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
            "noise": np.stack(walks),
        }
        run = session(as_onnx / "sampler.onnx")
        (images,) = run.run(["images"], feed)
        wanted = generate.sample(model, count, seed=7, settings=how).numpy()
        assert np.abs(images - wanted).max() < 1e-4
        assert np.array_equal(images, run.run(["images"], feed)[0])
    feed["classes"] = (feed["classes"] + 1) % model.num_classes
    assert np.abs(run.run(["images"], feed)[0] - images).max() > 1e-3


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
        assert all(len(free) == 1 for free in batches.values()), batches
    sizes = [
        sum(np.prod(weight.dims) for weight in file.graph.initializer)
        for file in (network, sampler)
    ]
    assert sizes[1] < 1.1 * sizes[0]


def test_the_script_draws_without_torch_and_unraze(
    trained: Path, as_onnx: Path, here: Path
) -> None:
    """In a Python that sees numpy and onnxruntime alone."""
    packages = here / "packages"
    packages.mkdir()
    for package in (np, onnxruntime):
        place = Path(package.__file__).parent
        for found in (place, place.with_name(f"{place.name}.libs")):
            if found.exists():
                (packages / found.name).symlink_to(found)
    script = as_onnx / "sample_onnx.py"
    code = (
        f"import sys, runpy; sys.path.append({str(packages)!r})\n"
        "for name in ('torch', 'unraze', 'PIL'):\n"
        "    try: __import__(name)\n"
        "    except ImportError: pass\n"
        "    else: raise SystemExit(name + ' is there')\n"
        f"sys.argv = ['sample_onnx.py', '20', '3', 'out']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    drawn = [np.asarray(Image.open(here / "out" / f"{k:05d}.png")) for k in range(20)]
    wanted = to_uint8(generate.sample(generate.load(trained), 20, seed=3, batch=16))[:, 0]
    assert np.abs(np.stack(drawn).astype(int) - wanted.astype(int)).max() <= 1
    assert len(list((here / "out").iterdir())) == 20


def test_classes_of_the_run_are_drawn_in_turn_by_the_script() -> None:
    from unraze.interop import sample_onnx

    assert [sample_onnx.label({"num_classes": 3}, k, 5) for k in range(4)] == [0, 1, 2, 0]


def test_openvino_and_torch_draw_the_same(
    trained: Path, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import openvino

    model = generate.load(trained)
    how = generate.asked(model, {"sampler": "ddim", "steps": 2, "guidance": 1.0})
    wanted = generate.sample(model, 2, settings=how).numpy()
    feed = {"start": rng.normal(0, "start", range(2), 0, model.shape)}
    feed["classes"] = torch.tensor([generate.class_of(model, None, k, 0) for k in range(2)])
    options = ["--sampler", "ddim", "--steps", "2", "--guidance", "1"]
    for to in ("openvino", "torch"):
        assert main(["export", to, str(trained), *options, "--out", to]) == 0
        assert last_line(capfd) == to
    assert sorted(path.name for path in (here / "openvino").iterdir()) == [
        "network.bin",
        "network.xml",
        "sampler.bin",
        "sampler.xml",
    ]
    read = openvino.Core().read_model("openvino/sampler.xml")
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}  # or it takes bfloat16, where there is that
    compiled = openvino.compile_model(read, "CPU", exactly)
    (images,) = compiled({name: value.numpy() for name, value in feed.items()}).values()
    assert np.abs(images - wanted).max() < 1e-3
    about = json.loads(read.get_rt_info(["unraze"]).value)
    assert about["settings"]["sampler"] == "ddim"

    extra = {"unraze.json": ""}
    program = torch.export.load("torch/sampler.pt2", extra_files=extra)
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
@pytest.mark.parametrize("name", ["annotated", "ddpm", "fused attention"])
def test_the_parts_of_every_network_have_plain_operators(name: str) -> None:
    """Linear attention, Ho et al.'s blocks, and pictures too large for the formula of attention."""
    changes = {
        "annotated": {"network.dim": 16, "network.groups": 4},
        "ddpm": {"network.dim": 32},
        "fused attention": {"network.linear_attention": False, "network.attention": (0,)},
    }[name]
    config = updated(preset("ddpm" if name == "ddpm" else "annotated"), changes)
    model = model_of(config, size=32)
    graph = graphs.network_graph(model)
    file = onnx_files.network_file(graph)
    assert {node.domain for node in file.graph.node} == {""}
    for running in (onnx_files.running, openvino_files.running):
        graphs.require_equal(graph, running(file.SerializeToString()), name)


def test_what_is_too_far_from_the_original_is_not_written(
    trained: Path, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "BOUNDS", {"network": {"float32": -1.0}})
    options = ["--sampler", "ddim", "--steps", "1", "--guidance", "1", "--out", "made"]
    argv = ["export", "torch", str(trained), *options]
    refused(capfd, argv, "network.pt2", "differs from the original", "not taken", status=1)


def test_a_full_disk_leaves_nothing(
    trained: Path, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = list[Path]()

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(bytes(data[: len(data) // 2]))
        written.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_and_flush", full)
    options = ["--sampler", "ddim", "--steps", "1", "--guidance", "1", "--out", "made"]
    argv = ["export", "torch", str(trained), *options]
    refused(capfd, argv, "made", "the disk is full", status=1)
    assert [path.name for path in written] == ["network.pt2"]


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
