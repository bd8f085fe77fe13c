"""Other programs than torch to compute the network while Unraze samples.

An engine computes one call of the network; samplers, guidance and films around it stay as they are.
What it runs is the network's ONNX file, made once and kept beside the checkpoint,

    RUN/checkpoints/step-…/engines/HASH-KEY.onnx      of the weights; of versions that wrote it
                                   choices.json       what `fastest` measured, by machine and batch

and it is held against torch whenever it is taken up, for a run may have come to another machine.
onnxruntime computes in float32, OpenVINO also in bfloat16.
"""

import hashlib
import json
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unraze import __version__, files, rng, untrusted
from unraze.config import SampleConfig
from unraze.errors import InputError, UnrazeError
from unraze.generate import Model, dtype_of
from unraze.hardware import memory
from unraze.interop import graphs, onnx_files, openvino_files
from unraze.interop.graphs import Arrays, Dtype
from unraze.run import environment

__all__ = ["ENGINES", "Engine", "Measured", "fastest", "missing", "with_engine"]

Engine = Literal["torch", "onnx", "openvino"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
RUNTIME: dict[Engine, tuple[str, ...]] = {
    "torch": (),
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
}
WRITERS = ("onnx", "onnxscript")
"""What makes the network's file, where it is not there yet."""
FOLDER, CHOICES = "engines", "choices.json"
ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """What `fastest` found: an engine, the model and the settings with it (`with_engine`), images a
    second of each, and why others were left out.

    `remembered` says that it was measured before, `forgotten` why it will have to be once more.
    """

    engine: Engine
    model: Model
    settings: SampleConfig
    rates: dict[str, float]
    left_out: tuple[str, ...]
    remembered: bool
    forgotten: str | None = None


def with_engine(model: Model, engine: Engine, settings: SampleConfig) -> tuple[Model, SampleConfig]:
    """The model with its network computed by that engine, and the settings with its dtype.

    Raises `InputError` where the engine is not installed or does not compute in what is asked for,
    `UnrazeError` where its file cannot be made or kept, or differs from torch.
    """
    if engine == "torch":
        return model, settings
    device = next(model.network.parameters()).device
    if device.type != "cpu":
        raise InputError(
            f"engine = {engine}: computes on the processor; leave device = {device} out"
        )
    dtype: Dtype = dtype_of(model, settings)
    if engine == "onnx":
        if settings.dtype == "bfloat16":
            raise InputError(
                "engine = onnx: onnxruntime computes in float32 on a processor, the settings say "
                "dtype = bfloat16; take torch or openvino"
            )
        dtype = "float32"
    _require(engine, model)
    file = _file(model)
    graph = replace(graphs.network_graph(model), dtype=dtype)
    try:
        computed = _computed(engine, _read(file), dtype)
        graphs.require_equal(graph, computed, f"engine = {engine}")
    except UnrazeError as error:
        raise UnrazeError(
            f"{error}; if it may be damaged, remove it and it is made anew: {file}"
        ) from error
    network = _ByEngine(model, computed)
    exact = settings.model_copy(update={"dtype": dtype})
    return replace(model, network=network.eval(), engine=engine), exact


def missing(engine: Engine, model: Model) -> list[str]:
    """The packages that this engine lacks here."""
    from importlib.util import find_spec

    wanted = RUNTIME[engine]
    if engine != "torch" and not _place(model).is_file():
        wanted += WRITERS
    return [package for package in wanted if find_spec(package) is None]


def fastest(model: Model, settings: SampleConfig, *, batch: int) -> Measured:
    """The engine that computes most images a second of those that are installed and equal torch.

    It is measured once for a number of images at once, and remembered beside the checkpoint for
    this machine, these versions and threads, and this file of the network. Where torch can compute
    it does not fail: what cannot be used or written is left out, and said.
    """
    device = next(model.network.parameters()).device
    if device.type != "cpu":
        others = tuple(f"{engine}: computes on the processor" for engine in ENGINES[1:])
        return Measured("torch", model, settings, {}, others, remembered=False)
    file = _folder(model) / CHOICES
    known = _read_choices(file)
    engines = [engine for engine in ENGINES if not missing(engine, model)]
    left_out = [
        f"{engine}: {' and '.join(missing(engine, model))} not installed"
        for engine in ENGINES
        if engine not in engines
    ]
    before = known.get(_choice(model, settings, engines, batch))
    if before in engines:
        with suppress(UnrazeError):  # what became of it is found again, and said, below
            return Measured(before, *with_engine(model, before, settings), {}, (), remembered=True)
    ready: dict[Engine, tuple[Model, SampleConfig]] = {}
    for engine in engines:
        try:
            ready[engine] = with_engine(model, engine, settings)
        except UnrazeError as error:
            left_out.append(f"{engine}: {error}")
    rates = {engine: batch / _seconds(*taken, batch) for engine, taken in ready.items()}
    best = max(rates, key=lambda engine: rates[engine])
    forgotten = None
    try:
        kept = known | {_choice(model, settings, engines, batch): best}
        _write(file, json.dumps(kept, indent=1).encode())
    except UnrazeError as error:
        forgotten = str(error)
    told = {str(engine): rate for engine, rate in rates.items()}
    left = tuple(left_out)
    return Measured(best, *ready[best], told, left, remembered=False, forgotten=forgotten)


class _ByEngine(nn.Module):
    """What is called as the network is, and asks an engine.

    It holds the network too, for its parameters say on which device pictures are made.
    """

    def __init__(self, model: Model, computed: Arrays) -> None:
        super().__init__()
        self.network, self.computed = model.network, computed
        self.num_classes = model.num_classes
        self.self_conditioning = model.config.loss.self_conditioning

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        classes: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        inputs = {"x": x, "t": t}
        if self.num_classes:
            nothing = torch.full(t.shape, self.num_classes, dtype=torch.int64)
            inputs["classes"] = nothing if classes is None else classes
        if self.self_conditioning:
            inputs["previous"] = torch.zeros_like(x) if previous is None else previous
        return self.computed(inputs)


def _computed(engine: Engine, file: bytes, dtype: Dtype) -> Arrays:
    if engine == "onnx":
        return onnx_files.spread(file)
    return openvino_files.running(file, precision="bf16" if dtype == "bfloat16" else "f32")


def _require(engine: Engine, model: Model) -> None:
    packages = missing(engine, model)
    if packages:
        onnx_files.require(*packages, what=f"engine = {engine}")


def _seconds(model: Model, settings: SampleConfig, batch: int) -> float:
    """The median time of a call of the network for so many images."""
    x = rng.normal(0, "engines", range(batch), 0, model.shape)
    t = torch.full((batch,), float(model.schedule.times[-1]) / 2)
    told = {"classes": torch.zeros(batch, dtype=torch.int64)} if model.num_classes else {}
    in_bfloat16 = dtype_of(model, settings) == "bfloat16"
    times = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
        for _ in range(ROUNDS + 1):
            began = time.perf_counter()
            model.network(x, t, **told)
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _choice(model: Model, settings: SampleConfig, engines: list[Engine], batch: int) -> str:
    """What a choice is remembered for. With another file of the network it is made anew, for it may
    be that the last one was damaged."""
    place = _place(model)
    there = place.stat() if place.is_file() else None
    file = None if there is None else (there.st_size, there.st_mtime_ns)
    return _key(engines, batch, dtype_of(model, settings), settings.dtype, environment(), file)


def _folder(model: Model) -> Path:
    if model.folder is None:
        raise UnrazeError(
            "this model is of no checkpoint, so there is no place to keep an engine's file; take "
            "engine = torch"
        )
    return model.folder / FOLDER


def _place(model: Model) -> Path:
    """Where the network's file is, or would be."""
    key = _key(__version__, torch.__version__, onnx_files.OPSET)
    return _folder(model) / f"{model.checkpoint[:12]}-{key}.onnx"


def _file(model: Model) -> Path:
    """The network's file, made where it is not there; files that other versions made go."""
    place = _place(model)
    if not place.is_file():
        made = onnx_files.network_file(graphs.network_graph(model)).SerializeToString()
        _write(place, made)
        for old in place.parent.glob(f"{model.checkpoint[:12]}-*.onnx"):
            if old != place:
                with suppress(OSError):  # it only takes room
                    old.unlink()
    return place


def _write(file: Path, data: bytes) -> None:
    untrusted.require_no_links(file.parent.parent)
    try:
        file.parent.mkdir(exist_ok=True)
        files.write_whole(file, data)
    except OSError as error:
        raise UnrazeError(
            files.cannot_write(
                file,
                error,
                then="try again, or take --engine torch",
                otherwise="draw from a copy of the run that can be written to, or take --engine "
                "torch",
            )
        ) from error


def _read(file: Path) -> bytes:
    try:
        return untrusted.read(file, memory())
    except OSError as error:
        raise UnrazeError(f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UnrazeError(f"{error}, does not fit in memory") from error


def _read_choices(file: Path) -> dict[str, Engine]:
    """What was measured before; nothing where that is not there, or not as it was written."""
    try:
        found = untrusted.json_of(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(*of: object) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
