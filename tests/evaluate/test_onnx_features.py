"""Features by an ONNX file, against numpy: what is asked of a file, and what images become."""

import builtins
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from unraze.errors import InputError
from unraze.evaluate import onnx_features
from unraze.evaluate.onnx_features import onnx_space, resized

OPSET, IR = 17, 8
WEIGHTS = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
"""The small network: the mean of each colour, times these."""


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    shape = (count, channels, height, width)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def saved(
    file: Path,
    nodes: list[onnx.NodeProto],
    *,
    inputs: dict[str, tuple[int, list[Any]]],
    output: tuple[int, list[Any] | None] = (TensorProto.FLOAT, ["N", 4]),
    more_outputs: tuple[str, ...] = (),
    constants: dict[str, np.ndarray] | None = None,
) -> Path:
    """A file whose first output is `out`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, *of) for name, of in inputs.items()],
        [
            helper.make_tensor_value_info("out", *output),
            *(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in more_outputs),
        ],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.save(model, file)
    return file


def means_times_weights(
    file: Path,
    *,
    batch: int | str = "N",
    size: tuple[Any, Any] = (6, 5),
    kind: int = TensorProto.FLOAT,
    name: str = "images",
) -> Path:
    nodes = [
        helper.make_node("ReduceMean", [name], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["product"]),
        helper.make_node("Cast", ["product"], ["out"], to=kind),
    ]
    return saved(
        file,
        nodes,
        inputs={name: (TensorProto.FLOAT, [batch, 3, *size])},
        output=(kind, [batch, 4]),
        constants={"weights": WEIGHTS},
    )


def by_numpy(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resized(pixels, size).astype(np.float64).mean((2, 3)) @ WEIGHTS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return means_times_weights(tmp_path / "small.onnx")


# images as a file sees them


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(4, 9), (31, 17), (12, 10)])
def test_resizing_is_pillows_bicubic_of_each_channel_in_float(
    channels: int, size: tuple[int, int]
) -> None:
    pixels = pictures(3, channels, 12, 10)
    out = resized(pixels, size)
    assert out.dtype == np.float32
    assert out.shape == (3, 3, *size)
    for image, found in zip(pixels, out, strict=True):
        for c in range(3):
            channel = Image.fromarray(image[c % channels].astype(np.float32), mode="F")
            wanted = channel.resize(size[::-1], Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(found[c], np.asarray(wanted).clip(0, 255))


def test_resizing_averages_where_it_makes_smaller_and_stays_within_bytes() -> None:
    # every second column white: without averaging, halving would give columns of one kind
    stripes = np.zeros((1, 1, 16, 64), dtype=np.uint8)
    stripes[..., ::2] = 255
    inside = resized(stripes, (4, 16))[0, 0, :, 2:-2]
    np.testing.assert_allclose(inside, 127.5, atol=6)
    edge = np.zeros((1, 1, 8, 8), dtype=np.uint8)
    edge[..., 4:] = 255  # a cubic overshoots beside an edge
    large = resized(edge, (8, 80))
    assert large.min() == 0
    assert large.max() == 255


def test_images_of_the_right_size_are_left_alone() -> None:
    pixels = pictures(3, 3, 6, 5)
    np.testing.assert_array_equal(resized(pixels, (6, 5)), pixels)
    grey = pictures(3, 1, 6, 5)
    np.testing.assert_array_equal(resized(grey, (6, 5)), grey.repeat(3, axis=1))


# files that serve


@pytest.mark.parametrize(
    ("channels", "size"), [(3, (6, 5)), (1, (6, 5)), (3, (20, 30)), (1, (3, 2))]
)
@pytest.mark.parametrize("batch", ["N", 1, 4, 50])
def test_features_are_those_of_numpy_whatever_the_batch(
    tmp_path: Path, batch: int | str, channels: int, size: tuple[int, int]
) -> None:
    file = means_times_weights(tmp_path / "a.onnx", batch=batch)
    space = onnx_space(file)
    pixels = pictures(19, channels, *size)
    features = space.extract(pixels)
    assert features.dtype == np.float32
    assert features.shape == (19, space.dim) == (19, 4)
    np.testing.assert_allclose(features, by_numpy(pixels, (6, 5)), rtol=1e-5, atol=1e-3)


def test_what_a_space_says_of_itself(file: Path) -> None:
    space = onnx_space(str(file))
    assert space.name == "onnx:small.onnx"
    assert space.hash == hashlib.sha256(file.read_bytes()).hexdigest()
    assert space.dim == 4
    assert "6 x 5" in space.about
    assert space.classify(pictures(2, 3, 6, 5)) is None


def test_the_hash_is_the_files_alone(file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.onnx"
    elsewhere.write_bytes(file.read_bytes())
    assert onnx_space(elsewhere).hash == onnx_space(file).hash
    other = means_times_weights(tmp_path / "other.onnx", size=(6, 6))
    assert onnx_space(other).hash != onnx_space(file).hash


def test_an_images_features_do_not_depend_on_the_others(file: Path) -> None:
    space = onnx_space(file)
    pixels = pictures(21, 3, 9, 9)
    together = space.extract(pixels)
    others = pictures(21, 3, 9, 9, seed=1)
    others[7], others[20] = pixels[7], pixels[20]
    np.testing.assert_array_equal(space.extract(others)[[7, 20]], together[[7, 20]])
    for alone in (0, 7, 20):  # another place in a call may round differently
        np.testing.assert_allclose(
            space.extract(pixels[alone : alone + 1])[0], together[alone], rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [(TensorProto.FLOAT16, 1e-3), (TensorProto.DOUBLE, 1e-5)],
    ids=["half", "double"],
)
def test_other_floats_become_single(tmp_path: Path, kind: int, tolerance: float) -> None:
    space = onnx_space(means_times_weights(tmp_path / "a.onnx", kind=kind))
    pixels = pictures(5, 3, 6, 5)
    features = space.extract(pixels)
    assert features.dtype == np.float32
    wanted = by_numpy(pixels, (6, 5))
    np.testing.assert_allclose(features, wanted, rtol=tolerance, atol=tolerance * 100)


def test_places_of_one_pixel_are_flattened(tmp_path: Path) -> None:
    node = helper.make_node("GlobalAveragePool", ["x"], ["out"])  # (N, 3, 1, 1)
    file = saved(
        tmp_path / "a.onnx",
        [node],
        inputs={"x": (TensorProto.FLOAT, ["N", 3, 4, 4])},
        output=(TensorProto.FLOAT, ["N", 3, 1, 1]),
    )
    space = onnx_space(file)
    pixels = pictures(5, 3, 4, 4)
    assert space.dim == 3
    np.testing.assert_allclose(space.extract(pixels), pixels.mean((2, 3)), rtol=1e-6)


def test_the_name_of_the_input_and_further_outputs_do_not_matter(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["a strange name"], ["out"]),
        helper.make_node("Neg", ["out"], ["second"]),
    ]
    file = saved(
        tmp_path / "a.onnx",
        nodes,
        inputs={"a strange name": (TensorProto.FLOAT, ["N", 3, 2, 2])},
        output=(TensorProto.FLOAT, ["N", 12]),
        more_outputs=("second",),
    )
    pixels = pictures(3, 3, 2, 2)
    np.testing.assert_array_equal(onnx_space(file).extract(pixels), pixels.reshape(3, 12))


# files that do not


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        (TensorProto.UINT8, ["N", 3, 4, 4], r"tensor\(uint8\) \(N, 3, 4, 4\)"),
        (TensorProto.FLOAT16, ["N", 3, 4, 4], r"tensor\(float16\)"),
        (TensorProto.FLOAT, ["N", 1, 4, 4], r"\(N, 1, 4, 4\)"),
        (TensorProto.FLOAT, ["N", 4, 4, 3], r"\(N, 4, 4, 3\)"),
        (TensorProto.FLOAT, ["N", 3, "H", "W"], r"\(N, 3, H, W\)"),
        (TensorProto.FLOAT, ["N", 3, 4, None], r"\(N, 3, 4, "),
        (TensorProto.FLOAT, [3, 4, 4], r"\(3, 4, 4\)"),
        (TensorProto.FLOAT, ["N", 3, 4, 4, 1], r"\(N, 3, 4, 4, 1\)"),
    ],
    ids=["bytes", "half", "grey", "channels last", "free size", "free width", "no batch", "5 axes"],
)
def test_another_input_is_refused_with_what_would_do(
    tmp_path: Path, kind: int, shape: list[Any], said: str
) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["out"], to=TensorProto.FLOAT)]
    file = saved(
        tmp_path / "a.onnx", nodes, inputs={"x": (kind, shape)}, output=(TensorProto.FLOAT, None)
    )
    with pytest.raises(InputError, match=said + r".*one input, float32 \(N, 3, H, W\)") as raised:
        onnx_space(file)
    assert str(raised.value).startswith(str(file))


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    shape = ["N", 3, 2, 2]
    nodes = [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("Flatten", ["sum"], ["out"]),
    ]
    file = saved(
        tmp_path / "a.onnx",
        nodes,
        inputs={"x": (TensorProto.FLOAT, shape), "y": (TensorProto.FLOAT, shape)},
        output=(TensorProto.FLOAT, ["N", 12]),
    )
    with pytest.raises(InputError, match="has 2 inputs; export it with one input"):
        onnx_space(file)


def test_an_output_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("ArgMax", ["flat"], ["out"], axis=1),
    ]
    file = saved(
        tmp_path / "a.onnx",
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["N", 3, 2, 2])},
        output=(TensorProto.INT64, ["N", 1]),
    )
    with pytest.raises(InputError, match=r"first output 'out' is tensor\(int64\); export one of"):
        onnx_space(file)


def reduced(axes: list[int]) -> list[onnx.NodeProto]:
    return [helper.make_node("ReduceMean", ["x"], ["out"], axes=axes, keepdims=0)]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (reduced([1, 2, 3]), r"is \(8,\) for 8 images"),
        (reduced([0]), r"is \(3, 2, 2\) for 8 images"),
        ([helper.make_node("ReduceMean", ["x"], ["out"], keepdims=0)], r"is \(\) for 8 images"),
    ],
    ids=["one number an image", "a mean over images", "one number"],
)
def test_an_output_without_a_row_for_each_image_is_refused(
    tmp_path: Path, nodes: list[onnx.NodeProto], said: str
) -> None:
    file = saved(
        tmp_path / "a.onnx",
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["N", 3, 2, 2])},
        output=(TensorProto.FLOAT, None),
    )
    with pytest.raises(InputError, match=said + r"; export one that is \(N, d\)"):
        onnx_space(file)


def test_a_network_that_does_not_run_is_said_to(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["out"]),  # 7 numbers do not make 12
    ]
    file = saved(
        tmp_path / "a.onnx",
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["N", 3, 2, 2])},
        output=(TensorProto.FLOAT, None),
        constants={"shape": np.array([1, 7], dtype=np.int64)},
    )
    with pytest.raises(InputError, match="does not run") as raised:
        onnx_space(file)
    assert "\n" not in str(raised.value)


def damaged(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def of_text(file: Path) -> None:
    file.write_text("this is no network")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("harm", [damaged, of_text, emptied])
def test_what_is_no_onnx_file_is_refused(file: Path, harm: Callable[[Path], None]) -> None:
    harm(file)
    with pytest.raises(InputError, match="does not load as an ONNX model") as raised:
        onnx_space(file)
    assert str(raised.value).startswith(str(file))
    assert "\n" not in str(raised.value)


def test_weights_beside_the_file_are_refused(tmp_path: Path, file: Path) -> None:
    model = onnx.load(file)
    onnx.save(
        model,
        tmp_path / "parted.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert (tmp_path / "weights.bin").is_file()
    with pytest.raises(InputError, match="export it as one file, its weights in it"):
        onnx_space(tmp_path / "parted.onnx")


def test_a_missing_file_and_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.onnx: cannot be read \(No such file"):
        onnx_space(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="cannot be read"):
        onnx_space(tmp_path)


def test_values_that_are_not_finite_are_refused_when_they_come(tmp_path: Path) -> None:
    # log |mean - 100|: log 100 and log 155 for the black and the white that are tried first
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Sub", ["means", "middle"], ["less"]),
        helper.make_node("Abs", ["less"], ["distance"]),
        helper.make_node("Log", ["distance"], ["out"]),
    ]
    file = saved(
        tmp_path / "a.onnx",
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["N", 3, 2, 2])},
        output=(TensorProto.FLOAT, ["N", 3]),
        constants={"middle": np.array(100, dtype=np.float32)},
    )
    space = onnx_space(file)
    pixels = pictures(4, 3, 2, 2)
    assert np.isfinite(space.extract(pixels)).all()
    pixels[2] = 100
    with pytest.raises(InputError, match="gives features that are not finite numbers"):
        space.extract(pixels)


def test_a_network_that_is_never_finite_is_refused_at_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Log", ["flat"], ["out"]),  # log 0 of black
    ]
    file = saved(
        tmp_path / "a.onnx",
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["N", 3, 2, 2])},
        output=(TensorProto.FLOAT, ["N", 12]),
    )
    with pytest.raises(InputError, match="RGB from 0 to 255"):
        onnx_space(file)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 3, 4, 4), dtype=np.float32),
        np.zeros((2, 2, 4, 4), dtype=np.uint8),
        np.zeros((3, 4, 4), dtype=np.uint8),
        np.zeros((0, 3, 4, 4), dtype=np.uint8),
    ],
    ids=["floats", "two channels", "one image without its axis", "none"],
)
def test_other_images_are_refused(file: Path, pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"give uint8 \(N, 1 or 3, H, W\)"):
        onnx_space(file).extract(pixels)


def test_without_onnxruntime_the_remedy_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return really(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r'install it: pip install "unraze\[onnx\]"$'):
        onnx_space(file)


def test_importing_the_module_does_not_import_onnxruntime() -> None:
    assert not hasattr(onnx_features, "onnxruntime")
