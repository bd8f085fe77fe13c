"""A sampler's way, written down once: what it does with its inputs, and with nothing else.

`unraze.walk.walk` is a Python generator whose tables of steps are float64 numbers. It is run here
on one image while a tape listens: each call of torch that an input takes part in is written down,
everything else (times, ᾱ, weights of polynomials, whether guidance acts) happens as always and is
on the tape as a constant. What is played back is then a function of tensors alone, which an
exporter can follow, and no sampler is written a second time for it.

One image, because every constant that is made for the batch then has one row, and broadcasts to as
many images as the tape is played with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function

from unraze import rng
from unraze.config import SampleConfig
from unraze.errors import InputError
from unraze.generate import Model, check, denoiser_of, plan_of
from unraze.walk import walk

__all__ = ["Call", "Network", "Slot", "Tape", "play", "record"]

Network = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""(x (B, C, H, W), t (B,), classes (B,) or None, previous x̂_0 or None) -> raw output."""

KNOWN_BEFORE = {"shape", "ndim", "dtype", "device", "size", "dim", "__len__"}
"""What may be asked of a tensor without asking for its values."""


@dataclass(frozen=True)
class Slot:
    """The place of a tensor that depends on the inputs."""

    number: int


@dataclass(frozen=True)
class Call:
    """function(*args, **kwargs) -> the slots of what it returned; no function: the network."""

    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any


@dataclass(frozen=True)
class Tape:
    """What a sampler does with its inputs, and where these and the result are.

    `guidance` is there where the settings guide, and do so at one of the steps.
    `noise_steps` are the steps whose noise it asks for, as `unraze.samplers.Noise` numbers them, in
    that order; `calls` how often it calls the network; `shape` is (C, H, W).
    """

    lines: tuple[Call, ...]
    start: Slot
    classes: Slot | None
    guidance: Slot | None
    noise: tuple[Slot, ...]
    noise_steps: tuple[int, ...]
    images: Slot
    calls: int
    shape: tuple[int, int, int]


def record(model: Model, settings: SampleConfig) -> Tape:
    """The way from noise to images, clamped to [-1, 1], of a model sampled with these settings.

    The network is called in whatever type the one has that the tape is played with. Raises
    `InputError` for what the run cannot do (`unraze.generate.check`).
    """
    check(model, settings)
    settings = settings.model_copy(update={"dtype": "float32"})
    recorder = _Recorder()
    x = rng.normal(0, "tape", range(1), 0, model.shape)
    labels = torch.zeros(1, dtype=torch.int64) if model.num_classes else None
    start, classes = recorder.enter(x), None if labels is None else recorder.enter(labels)
    scale = torch.tensor(settings.guidance, dtype=torch.float32)
    guidance = recorder.enter(scale)
    noise_steps: list[int] = []
    noises: list[Slot] = []

    def noise(step: int) -> Tensor:
        z = rng.normal(0, "tape", range(1), step, model.shape)
        noise_steps.append(step)
        noises.append(recorder.enter(z))
        return z

    followed = replace(model, network=_Followed(model.network))
    borders = model.config.loss.borders or (0.0,)
    with torch.no_grad(), recorder:
        denoise = denoiser_of(
            followed, settings, [None] if labels is None else labels, guidance=scale
        )
        chain = plan_of(model, settings).chain
        for step in walk(denoise, x, chain, settings, noise, borders=borders):
            x = step.x
        images = x.clamp(-1, 1)
    return Tape(
        lines=tuple(recorder.lines),
        start=start,
        classes=classes,
        guidance=guidance if _used(guidance, recorder.lines) else None,
        noise=tuple(noises),
        noise_steps=tuple(noise_steps),
        images=recorder.slots[id(images)],
        calls=sum(line.function is None for line in recorder.lines),
        shape=model.shape,
    )


def play(
    tape: Tape,
    network: Network,
    start: Tensor,
    *,
    classes: Tensor | None = None,
    guidance: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Images (B, C, H, W) from start (B, C, H, W), classes (B,), guidance () and noise
    (steps, B, C, H, W).

    `classes`, `guidance` and `noise` are None where the tape has none of them.
    """
    made: dict[int, Any] = {tape.start.number: start}
    if tape.classes is not None:
        made[tape.classes.number] = classes
    if tape.guidance is not None:
        made[tape.guidance.number] = guidance
    for number, slot in enumerate(tape.noise):
        assert noise is not None
        made[slot.number] = noise[number]
    for line in tape.lines:
        args = _filled(line.args, made)
        if line.function is None:
            result = network(*_of_all(line.args, args))
        else:
            result = line.function(*args, **_filled(line.kwargs, made))
        _keep(line.result, result, made)
    images: Tensor = made[tape.images.number]
    return images


class _Followed(nn.Module):
    """The network, whose calls are one line of a tape each."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        classes: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        out: Tensor = handle_torch_function(self.called, (x,), x, t, classes, previous)
        return out

    def called(
        self, x: Tensor, t: Tensor, classes: Tensor | None, previous: Tensor | None
    ) -> Tensor:
        """What the recorder runs, and knows the network by."""
        told = {"classes": classes, "previous": previous}
        out: Tensor = self.network(x, t, **{k: v for k, v in told.items() if v is not None})
        return out


class _Recorder(TorchFunctionMode):
    """Runs what torch is asked for, and writes down what an input takes part in."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Call] = []
        self.slots: dict[int, Slot] = {}
        self.kept: list[Tensor] = []  # an id is its tensor's only as long as that is there
        self.count = 0

    def enter(self, x: Tensor) -> Slot:
        """A place for x, which is followed from now on."""
        self.kept.append(x)
        self.slots[id(x)] = Slot(self.count)
        self.count += 1
        return self.slots[id(x)]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not (self._depends(args) or self._depends(tuple(kwargs.values()))):
            return result
        if not _tensors_in(result):
            self._require_known_before(func)
            return result
        is_network = isinstance(getattr(func, "__self__", None), _Followed)
        given, named = self._slotted(args), self._slotted(dict(kwargs))
        places = self._entered(result)
        self.lines.append(Call(None if is_network else func, given, named, places))
        return result

    def _depends(self, value: Any) -> bool:
        return any(id(x) in self.slots for x in _tensors_in(value))

    def _require_known_before(self, func: Callable[..., Any]) -> None:
        """A property is asked by its `__get__`, which is bound to what has the property's name."""
        name = getattr(getattr(func, "__self__", None), "__name__", func.__name__)
        if name not in KNOWN_BEFORE:
            raise InputError(
                f"this way of sampling looks at the values of a picture ({name}) to decide how to "
                "go on, so it is no graph; take another --sampler"
            )

    def _slotted(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            # a copy, for a constant may be a view of a table, which exporters keep whole
            return self.slots.get(id(value)) or value.clone()
        if isinstance(value, tuple | list):
            return tuple(map(self._slotted, value))
        if isinstance(value, dict):
            return {key: self._slotted(one) for key, one in value.items()}
        return value

    def _entered(self, value: Any) -> Any:
        """The slots that results are given; one that is returned as it came has a new one too."""
        if isinstance(value, Tensor):
            return self.enter(value)
        return tuple(map(self._entered, value))


def _used(slot: Slot, lines: Sequence[Call]) -> bool:
    """Whether a line takes what is there."""

    def takes(value: Any) -> bool:
        if isinstance(value, tuple):
            return any(map(takes, value))
        return any(map(takes, value.values())) if isinstance(value, Mapping) else value is slot

    return any(takes(line.args) or takes(line.kwargs) for line in lines)


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return [x for one in value for x in _tensors_in(one)]
    return []


def _filled(value: Any, made: Mapping[int, Any]) -> Any:
    if isinstance(value, Slot):
        return made[value.number]
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        return tuple(_filled(one, made) for one in value)
    if isinstance(value, Mapping):
        return {key: _filled(one, made) for key, one in value.items()}
    return value


def _of_all(recorded: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The network's arguments, of which what was a constant of one row is of all images now."""
    x = args[0]
    return [
        arg.expand(x.shape[0], *arg.shape[1:]) if isinstance(was, Tensor) else arg
        for was, arg in zip(recorded, args, strict=True)
    ]


def _keep(places: Any, result: Any, made: dict[int, Any]) -> None:
    if isinstance(places, Slot):
        made[places.number] = result
        return
    for place, one in zip(places, result, strict=True):
        _keep(place, one, made)
