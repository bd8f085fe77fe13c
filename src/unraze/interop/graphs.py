"""What is exported of a run: its network, and its whole sampler, as modules that exporters follow.

    network   x (B, C, H, W), t (B,), classes (B,), previous (B, C, H, W) -> raw output
    sampler   start (B, C, H, W), classes (B,), guidance (), noise (steps, B, C, H, W)
              -> images in [-1, 1]

`classes` int64 where the network has classes, `previous` where it is self-conditioned, `guidance`
where the settings guide, `noise` where the sampler draws some; all else float32, whatever the
network computes in. B is free.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unraze import __version__, generate, rng
from unraze.config import SampleConfig
from unraze.errors import InputError, UnrazeError
from unraze.generate import Model
from unraze.interop.tape import Tape, play, record

__all__ = [
    "BOUNDS",
    "MOST_CALLS",
    "Arrays",
    "Dtype",
    "Graph",
    "Inputs",
    "Sampler",
    "about_network",
    "difference",
    "module_dtype",
    "network_graph",
    "require_equal",
    "sampler_graph",
]

Dtype = Literal["float32", "float16", "bfloat16"]
Inputs = dict[str, Tensor]
Arrays = Callable[[Inputs], Tensor]
"""Something that computes: its inputs by name -> its only output."""

MOST_CALLS = 200
"""The most network calls that are written into one graph, each with all of its nodes."""

BOUNDS: dict[str, dict[Dtype, float]] = {
    "network": {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2},
    "sampler": {"float32": 1e-2, "float16": 0.25, "bfloat16": 1.0},
}
"""How far from the original an export may be at most: of a network's greatest output (or of 1,
where that is less); of a sampler in its images, whose range is 2 wide. What half the bits change in
a call is carried on and grows in the next ones, so that a few pixels come out as others."""

CHECKED = 3
"""Images that an export is checked on: another number than it was exported with."""


@dataclass(frozen=True)
class Graph:
    """A module to export, with inputs to follow it with, others to check it on, and what it is.

    `example` are inputs for two images; `asked` are other inputs and `wanted` what the original
    says to them, `further` are more such pairs; `batch` says which dimension of an input is B, if
    one is.
    """

    kind: Literal["network", "sampler"]
    module: nn.Module
    example: Inputs
    asked: Inputs
    wanted: Tensor
    batch: dict[str, int]
    output: str
    about: dict[str, Any]
    dtype: Dtype
    further: tuple[tuple[Inputs, Tensor], ...] = ()


class _Network(nn.Module):
    """The network by name of its inputs, with its products in one dtype."""

    def __init__(self, network: nn.Module, dtype: Dtype) -> None:
        super().__init__()
        self.dtype = module_dtype(dtype)
        self.network = copy.deepcopy(network).to(self.dtype)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        told: dict[str, Tensor] = {}
        if classes is not None:
            told["classes"] = classes
        if previous is not None:
            told["previous"] = previous.to(self.dtype)
        raw: Tensor = self.network(x.to(self.dtype), t, **told)
        return raw.float()


class Sampler(nn.Module):
    """A tape, played with a network; `raw_channels` are those of the network's output."""

    def __init__(self, tape: Tape, network: nn.Module, raw_channels: int) -> None:
        super().__init__()
        self.tape, self.network, self.raw_channels = tape, network, raw_channels

    def forward(
        self,
        start: Tensor,
        classes: Tensor | None = None,
        guidance: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        return play(self.tape, self.network, start, classes=classes, guidance=guidance, noise=noise)


def module_dtype(dtype: Dtype) -> torch.dtype:
    """torch's own name of it."""
    found: torch.dtype = getattr(torch, dtype)
    return found


def network_graph(model: Model, dtype: Dtype = "float32", *, count: int = CHECKED) -> Graph:
    """The network of a run, to be checked on `count` images."""
    asked = _network_inputs(model, count)
    with torch.no_grad():
        wanted = _Network(model.network, "float32")(**asked)
    return Graph(
        kind="network",
        module=_Network(model.network, dtype).eval(),
        example=_network_inputs(model, 2),
        asked=asked,
        wanted=wanted,
        batch=dict.fromkeys(asked, 0),
        output="raw",
        about=about_network(model, dtype),
        dtype=dtype,
    )


def about_network(model: Model, dtype: Dtype = "float32") -> dict[str, Any]:
    """What is said of the network of a run beside it."""
    alpha_bar = _plain(model.schedule.alpha_bar)
    return _about(model, dtype) | {"kind": "network", "alpha_bar": alpha_bar}


def sampler_graph(
    model: Model, settings: SampleConfig, network: Graph, dtype: Dtype = "float32"
) -> Graph:
    """The sampler of a run with these settings, around the module of `network_graph`.

    Raises `InputError` where the run cannot be sampled so, or in more than `MOST_CALLS` calls.
    """
    calls = generate.calls_of(model, settings)
    if calls > MOST_CALLS:
        raise InputError(
            f"steps = {settings.steps}: makes a graph of {calls} network calls, more than "
            f"{MOST_CALLS}; give fewer"
        )
    tape = record(model, settings)
    exact = settings.model_copy(update={"dtype": "float32"})
    asked = _sampler_inputs(model, tape, CHECKED, exact.guidance)
    wanted = generate.sample(model, CHECKED, seed=0, settings=exact)
    chain = generate.plan_of(model, settings).chain
    about = _about(model, dtype) | {
        "kind": "sampler",
        "settings": exact.model_dump(mode="json"),
        "network_calls": tape.calls,
        "noise_steps": list(tape.noise_steps),
        "times": _plain(chain.times),
        "alpha_bar": _plain(chain.alpha_bar),
    }
    further: tuple[tuple[Inputs, Tensor], ...] = ()
    if tape.guidance is not None:
        about["guidance"] = exact.guidance
        less = exact.model_copy(update={"guidance": (exact.guidance + 1) / 2})
        inputs = _sampler_inputs(model, tape, CHECKED, less.guidance)
        further = ((inputs, generate.sample(model, CHECKED, seed=0, settings=less)),)
    return Graph(
        kind="sampler",
        module=Sampler(tape, network.module, network.wanted.shape[1]).eval(),
        example=_sampler_inputs(model, tape, 2, exact.guidance),
        asked=asked,
        wanted=wanted,
        batch={name: 1 if name == "noise" else 0 for name in asked if name != "guidance"},
        output="images",
        about=about,
        dtype=dtype,
        further=further,
    )


def difference(graph: Graph, computed: Arrays) -> tuple[float, float]:
    """The greatest difference to the original, and what it is to be held against."""
    far = 0.0
    for asked, wanted in ((graph.asked, graph.wanted), *graph.further):
        given = computed(asked)
        if given.shape != wanted.shape:
            raise UnrazeError(
                f"the exported {graph.kind} gives {tuple(given.shape)} where the original gives "
                f"{tuple(wanted.shape)}"
            )
        differs = (given.float() - wanted).abs().max()
        far = float(torch.maximum(differs, torch.tensor(far)))  # not a number stays that
    scale = max(1.0, float(graph.wanted.abs().max())) if graph.kind == "network" else 1.0
    return far, scale


def require_equal(graph: Graph, computed: Arrays, what: str) -> float:
    """The greatest difference; raises `UnrazeError` where it is over the bound, or no number."""
    far, scale = difference(graph, computed)
    bound = BOUNDS[graph.kind][graph.dtype] * scale
    if not far <= bound:
        other = "" if graph.dtype == "float32" else ", or give --dtype float32"
        raise UnrazeError(
            f"{what}: its {graph.kind} differs from the original by {far:.3g}, more than "
            f"{bound:.3g}, so it is not taken; try another version of what runs it{other}"
        )
    return far


def _network_inputs(model: Model, count: int) -> Inputs:
    last = float(model.schedule.times[-1])
    x = rng.normal(0, "export", range(count), 0, model.shape)
    out = {"x": x, "t": (torch.arange(count) + 0.5).mul(last / count).round()}
    if model.num_classes:
        out["classes"] = torch.arange(count) * 7 % model.num_classes
    if model.config.loss.self_conditioning:
        out["previous"] = rng.normal(0, "export", range(count), 1, model.shape).clamp(-1, 1)
    return out


def _sampler_inputs(model: Model, tape: Tape, count: int, guidance: float) -> Inputs:
    """Those of images 0, 1, … of seed 0, as `unraze.generate.sample` draws them."""
    numbers = range(count)
    out = {"start": rng.normal(0, "start", numbers, 0, model.shape)}
    if tape.classes is not None:
        classes = [generate.class_of(model, None, k, 0) for k in numbers]
        out["classes"] = torch.tensor(classes, dtype=torch.int64)
    if tape.guidance is not None:
        out["guidance"] = torch.tensor(guidance, dtype=torch.float32)
    if tape.noise:
        steps = [rng.normal(0, "walk", numbers, step, model.shape) for step in tape.noise_steps]
        out["noise"] = torch.stack(steps)
    return out


def _about(model: Model, dtype: Dtype) -> dict[str, Any]:
    config = model.config
    about: dict[str, Any] = {
        "unraze": __version__,
        "checkpoint": model.checkpoint,
        "step": model.step,
        "shape": list(model.shape),
        "range": [-1, 1],
        "parametrisation": config.loss.parametrisation,
        "sigma_data": model.sigma_data,
        "schedule": config.schedule.model_dump(mode="json"),
        "num_classes": model.num_classes,
        "dtype": dtype,
    }
    if model.num_classes:
        about["can_be_guided"] = generate.can_be_guided(model)
    if model.clusters is not None:
        about["shares"] = [float(share) for share in model.clusters.shares]
    elif model.num_classes:
        about["class_names"] = list(model.class_names)
    json.dumps(about, allow_nan=False)
    return about


def _plain(values: Tensor) -> list[float]:
    out: list[float] = values.tolist()
    return out
