"""Networks and samplers in OpenVINO's own format, and on its runtime.

They are read from the ONNX files by `Core.read_model`: `openvino.convert_model` reads them by the
same front end, but also sends to Intel that it was used.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unraze import files
from unraze.errors import UnrazeError
from unraze.interop.graphs import Arrays, Graph, Inputs

__all__ = ["running", "write"]

KEY = "unraze"


def write(onnx_file: bytes, graph: Graph, file: Path) -> None:
    """Writes FILE.xml and FILE.bin, with what they are in `rt_info`, and waits until the disk has
    them; raises `OSError`.

    OpenVINO writes them itself and does not say why it could not. So what it was made of is written
    beside them then, which tells.
    """
    import openvino

    model = openvino.Core().read_model(onnx_file)
    model.set_rt_info(json.dumps(graph.about), [KEY])
    try:
        openvino.save_model(model, str(file), compress_to_fp16=False)
    except RuntimeError as error:
        files.write_and_flush(file.with_suffix(".onnx"), onnx_file)
        raise OSError(errno.EIO, f"OpenVINO: {_reason(error)}") from error
    for part in (file, file.with_suffix(".bin")):
        with part.open("rb") as written:
            os.fsync(written.fileno())


def running(file: Path | bytes, *, threads: int | None = None, precision: str = "f32") -> Arrays:
    """OpenVINO on the processor, its products in `precision` ("f32", "bf16").

    It is compiled anew for each number of images, in a tenth of a second for a network: a program
    of a fixed size takes two thirds of the time of one of any size. Raises `UnrazeError` where it
    does not take the file.
    """
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def compiled_for(inputs: Inputs) -> Any:
        shapes = tuple(tuple(value.shape) for value in inputs.values())
        if shapes not in compiled:
            try:
                model = core.read_model(file if isinstance(file, bytes) else str(file))
                model.reshape({name: list(value.shape) for name, value in inputs.items()})
                request = core.compile_model(model, "CPU", options).create_infer_request()
            except RuntimeError as error:
                raise UnrazeError(
                    f"OpenVINO {openvino.__version__} does not take the file: {_reason(error)}"
                ) from error
            if len(compiled) == KEPT:
                del compiled[next(iter(compiled))]
            compiled[shapes] = request
        return compiled[shapes]

    def run(inputs: Inputs) -> Tensor:
        request = compiled_for(inputs)
        request.infer(
            {name: value.contiguous().numpy() for name, value in inputs.items()}, share_inputs=True
        )
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return run


KEPT = 4
"""Programs of different sizes that are kept at once."""


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
