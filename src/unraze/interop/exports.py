"""A run as files that programs without Unraze, or without Python, can sample with.

    onnx       network.onnx, sampler.onnx, sample_onnx.py
    openvino   network.xml and .bin, sampler.xml and .bin
    torch      network.pt2, sampler.pt2

Each file says in its metadata what it is (`unraze.interop.graphs`). A folder is written under a
temporary name; its files are read again, run and compared with the original there, and it has its
name only if all of them are within the bounds.
"""

import io
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from typing_extensions import assert_never

from unraze import files
from unraze.config import SampleConfig
from unraze.errors import InputError
from unraze.generate import Model
from unraze.interop import graphs, onnx_files, openvino_files
from unraze.interop.folder import whole_folder
from unraze.interop.graphs import Arrays, Dtype, Graph

__all__ = ["DTYPES", "Checked", "Format", "checked", "export", "require_packages"]

Format = Literal["onnx", "openvino", "torch"]

DTYPES: dict[Format, tuple[Dtype, ...]] = {
    "onnx": ("float32", "float16"),
    "openvino": ("float32", "float16"),
    "torch": ("float32", "float16", "bfloat16"),
}
"""What holds up. A convolution of bfloat16 is not among ONNX's operators before version 22, and
onnxruntime has none for a processor."""

NEEDED: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch": (),
}
SCRIPT = "sample_onnx.py"


@dataclass(frozen=True)
class Checked:
    """One exported file: its name, its bytes, and its greatest difference to the original."""

    name: str
    size: int
    difference: float
    calls: int | None


def export(
    model: Model, to: Format, out: Path, *, settings: SampleConfig, dtype: Dtype = "float32"
) -> list[Checked]:
    """Writes the network and the sampler with these settings into a new folder.

    Raises `InputError` where a package is missing, the folder exists, or the run cannot be sampled
    so; `UnrazeError` where a file differs from the original by more than
    `unraze.interop.graphs.BOUNDS`, or cannot be written. Then there is no folder.
    """
    require_packages(to)
    if dtype not in DTYPES[to]:
        raise InputError(f"dtype = {dtype}: {to} takes {' or '.join(DTYPES[to])}")
    network = graphs.network_graph(model, dtype)
    both = (network, graphs.sampler_graph(model, settings, network, dtype))
    with whole_folder(out) as folder:
        match to:
            case "onnx":
                made = _onnx(both, folder)
            case "openvino":
                made = _openvino(both, folder)
            case "torch":
                made = _torch(both, folder)
            case _:
                assert_never(to)
    return made


def require_packages(to: Format) -> None:
    """Raises `InputError` where what a format is made or checked with is not installed."""
    onnx_files.require(*NEEDED[to], what=f"export {to}")


def _onnx(both: tuple[Graph, Graph], folder: Path) -> list[Checked]:
    made = []
    for graph, model in zip(both, _onnx_models(both), strict=True):
        file = folder / f"{graph.kind}.onnx"
        files.write_and_flush(file, model.SerializeToString())
        made.append(checked(graph, onnx_files.running(file), [file]))
    script = resources.files("unraze.interop").joinpath(SCRIPT).read_bytes()
    files.write_and_flush(folder / SCRIPT, script)
    return made


def _openvino(both: tuple[Graph, Graph], folder: Path) -> list[Checked]:
    made = []
    for graph, model in zip(both, _onnx_models(both), strict=True):
        file = folder / f"{graph.kind}.xml"
        openvino_files.write(model.SerializeToString(), graph, file)
        computed = openvino_files.running(file)
        made.append(checked(graph, computed, [file, file.with_suffix(".bin")]))
    return made


def _torch(both: tuple[Graph, Graph], folder: Path) -> list[Checked]:
    made = []
    for graph in both:
        file = folder / f"{graph.kind}.pt2"
        buffer = io.BytesIO()
        about = {"unraze.json": json.dumps(graph.about)}
        program = onnx_files.exported(graph)
        _forget_sources(program)
        with onnx_files.quiet():
            torch.export.save(program, buffer, extra_files=about)
        files.write_and_flush(file, buffer.getbuffer())
        made.append(checked(graph, _running_program(file), [file]))
    return made


def _forget_sources(program: torch.export.ExportedProgram) -> None:
    """Takes from the nodes where in whose source they came from: paths of the machine."""
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)


def _onnx_models(both: tuple[Graph, Graph]) -> tuple[Any, Any]:
    network = onnx_files.network_file(both[0])
    return network, onnx_files.sampler_file(both[1], network)


def _running_program(file: Path) -> Arrays:
    program = torch.export.load(file).module()

    def run(inputs: graphs.Inputs) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = program(**inputs)
        return out

    return run


def checked(graph: Graph, computed: Arrays, parts: list[Path]) -> Checked:
    """What the files `parts` of a graph are, of which `computed` runs the first; raises
    `UnrazeError` where that differs from the original by more than it may."""
    far = graphs.require_equal(graph, computed, parts[0].name)
    size = sum(part.stat().st_size for part in parts)
    return Checked(parts[0].name, size, far, graph.about.get("network_calls"))
