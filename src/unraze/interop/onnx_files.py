"""Networks and samplers as ONNX files, written by torch's exporter and run by onnxruntime.

The network is exported once. A sampler is exported with a placeholder for each of its network
calls, and the nodes of the network are then put in the place of each: they share its weights, the
exporter follows the network once instead of once a call, and the file has plain operators alone.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unraze import __version__
from unraze.errors import InputError, UnrazeError
from unraze.interop.graphs import Arrays, Graph, Inputs, Sampler

__all__ = [
    "OPSET",
    "exported",
    "network_file",
    "quiet",
    "require",
    "running",
    "sampler_file",
    "spread",
]

OPSET = 18
"""The version of ONNX's operators: what onnxruntime of 2023, OpenVINO and onnxruntime-web read."""
DOMAIN, PLACE = "unraze", "network"
PART = 16
"""Images that a thread computes at once, at most, so that none waits long for another."""


def require(*packages: str, what: str) -> None:
    """Raises `InputError` where a package is not installed."""
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(
            f"{what}: needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            'not installed; install it: pip install "unraze[export]"'
        )


def exported(graph: Graph) -> torch.export.ExportedProgram:
    """The module as torch.export sees it, for any number of images."""
    batch = torch.export.Dim("batch", min=1, max=2**20)
    shapes = {
        name: {graph.batch[name]: batch} if name in graph.batch else None for name in graph.example
    }
    with quiet(), torch.no_grad():
        return torch.export.export(graph.module, (), graph.example, dynamic_shapes=shapes)


def network_file(graph: Graph) -> Any:
    """An `onnx.ModelProto` of a network."""
    return _told(_converted(graph), graph)


def sampler_file(graph: Graph, network: Any) -> Any:
    """An `onnx.ModelProto` of a sampler, with the nodes of the network's file in it."""
    assert isinstance(graph.module, Sampler)
    channels = graph.module.raw_channels
    outline = Sampler(graph.module.tape, _Placeholder(channels), channels)
    return _told(_filled(_converted(replace(graph, module=outline)), network), graph)


def running(file: Path | bytes, *, threads: int | None = None) -> Arrays:
    """onnxruntime on the processor; raises `UnrazeError` where it does not take the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is in the exception
    options.use_deterministic_compute = True
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            file if isinstance(file, bytes) else str(file),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # onnxruntime's own exceptions share no other base
        raise UnrazeError(
            f"onnxruntime {onnxruntime.__version__} does not take the file: {_reason(error)}"
        ) from error
    names = {one.name for one in session.get_inputs()}

    def run(inputs: Inputs) -> Tensor:
        feed = {name: value.contiguous().numpy() for name, value in inputs.items() if name in names}
        (out,) = session.run(None, feed)
        made: Tensor = torch.from_numpy(out)
        return made

    return run


def spread(file: Path | bytes, *, threads: int | None = None) -> Arrays:
    """As `running`, for a network: its images are spread over the threads.

    Each computes some of them by itself, which on two cores takes three quarters of the time that
    they take together on all; where there are fewer images than threads they do work together.
    """
    threads = threads or torch.get_num_threads()
    together = running(file, threads=threads)
    if threads == 1:
        return together
    alone, pool = running(file, threads=1), ThreadPoolExecutor(threads)

    def run(inputs: Inputs) -> Tensor:
        count = len(inputs["x"])
        if count < threads:
            return together(inputs)
        size = min(PART, -(-count // threads))
        parts = [
            {name: value[first : first + size] for name, value in inputs.items()}
            for first in range(0, count, size)
        ]
        return torch.cat(list(pool.map(alone, parts)))

    return run


class _Placeholder(nn.Module):
    """One node with the network's inputs, and its output's shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(
        self, x: Tensor, t: Tensor, classes: Tensor | None, previous: Tensor | None
    ) -> Tensor:
        inputs = {"x": x, "t": t, "classes": classes, "previous": previous}
        given = {name: value for name, value in inputs.items() if value is not None}
        out: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{PLACE}",
            tuple(given.values()),
            {"names": list(given)},
            dtype=torch.float32,
            shape=(x.shape[0], self.channels, *x.shape[2:]),
            version=1,
        )
        return out


def _converted(graph: Graph) -> Any:
    program = exported(graph)
    with quiet():
        made = torch.onnx.export(
            program,
            kwargs=graph.example,
            dynamo=True,
            opset_version=OPSET,
            output_names=[graph.output],
            verbose=False,
        )
    assert made is not None
    return made.model_proto


def _filled(outline: Any, network: Any) -> Any:
    """The outline with the network's nodes in the place of each placeholder."""
    import onnx

    inner = network.graph
    (raw,) = (output.name for output in inner.output)
    shared = {weight.name: f"network/{weight.name}" for weight in inner.initializer}
    nodes: list[Any] = []
    calls = 0
    for node in outline.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        names = next(attribute for attribute in node.attribute if attribute.name == "names")
        given = [name.decode() for name in names.strings]
        place = shared | dict(zip(given, node.input, strict=True)) | {raw: node.output[0], "": ""}
        for part in inner.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(part)
            for used in (copied.input, copied.output):
                for number, name in enumerate(used):
                    used[number] = place.get(name) or (name and f"call{calls}/{name}")
            copied.name = f"call{calls}/{part.name}"
            nodes.append(copied)
        calls += 1
    out = onnx.ModelProto()
    out.CopyFrom(outline)
    del out.graph.node[:], out.graph.value_info[:]
    out.graph.node.extend(nodes)
    for weight in inner.initializer:
        copied = out.graph.initializer.add()
        copied.CopyFrom(weight)
        copied.name = shared[weight.name]
    for opset in [one for one in out.opset_import if one.domain == DOMAIN]:
        out.opset_import.remove(opset)
    return out


def _told(file: Any, graph: Graph) -> Any:
    """The file with what it is in its metadata, checked by the format's own checker."""
    import onnx

    file.producer_name, file.producer_version = "unraze", __version__
    del file.metadata_props[:]
    for key, value in (graph.about | {"opset": OPSET}).items():
        text = value if isinstance(value, str) else json.dumps(value)
        file.metadata_props.add(key=key, value=text)
    for part in (*file.graph.node, *file.graph.initializer, *file.graph.value_info):
        del part.metadata_props[:]  # where in whose source it came from
        part.doc_string = ""
    onnx.checker.check_model(file, full_check=True)
    return file


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter says of itself: that torchvision is not there, say."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # of weights that are laid out channels-last; what is read again is compared
            warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
