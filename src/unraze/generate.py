"""From a trained run to pictures.

The noise of image k of seed s is a function of (s, k) alone, so an image is the same whatever the
batch it is drawn in (up to the rounding of kernels that differ with the batch's shape).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor, nn
from typing_extensions import assert_never

from unraze import (
    __version__,
    augment,
    checkpoint,
    clusters as clustering,
    nn as networks,
    rng,
    schedule as schedules,
    untrusted,
)
from unraze.clusters import Clusters
from unraze.config import (
    DISTILLED,
    NOT_DISTILLED,
    OF_A_SAMPLER,
    Config,
    SampleConfig,
    explained,
    replaced,
)
from unraze.denoiser import Denoiser, Prediction, clipped, denoiser, guided
from unraze.errors import CheckpointError, InputError, UnrazeError
from unraze.hardware import has_bfloat16, require_device, require_pictures
from unraze.ranks import ALONE, Ranks
from unraze.run import Run, find, identity_of, read_config
from unraze.samplers import Noise
from unraze.schedule import Schedule
from unraze.walk import Plan, check_start, plan, walk

__all__ = [
    "Classes",
    "Model",
    "Progress",
    "Stopped",
    "Tuning",
    "asked",
    "bounded",
    "calls_of",
    "can_be_guided",
    "changed",
    "check",
    "class_of",
    "denoiser_of",
    "device_of",
    "dtype_of",
    "generate",
    "guided_between",
    "keep_tuning",
    "kept_tuning",
    "load",
    "noise_of",
    "plan_of",
    "quick",
    "recipe",
    "sample",
    "settings_of",
    "start",
    "tuned_for",
    "within",
]

TUNING = "sampling.json"
"""The file of a checkpoint's `Tuning`."""

WAY = {"sampler", "spacing", "sigma", "final_noise", *OF_A_SAMPLER}
"""The keys of `sample` that say how to go from noise to picture."""

Classes = int | tuple[int, ...] | Literal["all", "none"] | None
"""One class; classes in turn, again and again; all of them in turn (image k is of class k mod K);
no label. None: all in turn where there are any, and clusters as often as in the training images."""


class Tuning(BaseModel):
    """What `unraze tune` found for the averaged weights of one checkpoint, and keeps beside them.

    `settings` by number of network calls; `default` is the number to take where none is asked for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    default: int
    settings: dict[int, SampleConfig]

    @model_validator(mode="after")
    def _of_its_calls(self) -> "Tuning":
        if self.default not in self.settings:
            raise ValueError(f"default = {self.default}: there are no settings of so many calls")
        for calls, settings in self.settings.items():
            if settings.steps > calls:
                raise ValueError(f"settings.{calls} are of {settings.steps} calls")
        return self


@dataclass(frozen=True)
class Model:
    """A trained network with all that sampling needs.

    `shape` is (C, H, W); `num_classes` is 0 for an unconditional network; `checkpoint` is the
    SHA-256 of the weights' file, `step` the training step it was saved at, `data` the fingerprint
    of the images it was trained on; `folder` holds the checkpoint, `tuning` what was found for it;
    `clusters` are what the network is told where they are its classes; `engine` is what computes
    the network (`unraze.interop.engines`).
    """

    config: Config
    network: nn.Module
    schedule: Schedule
    shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    num_classes: int = 0
    sigma_data: float = 1.0
    run: str = ""
    checkpoint: str = ""
    step: int = 0
    data: str = ""
    folder: Path | None = None
    tuning: Tuning | None = None
    clusters: Clusters | None = None
    engine: str = "torch"


class Stopped(Exception):
    """Drawing was to stop before it was done."""


@dataclass(frozen=True)
class Progress:
    """One step of one batch: images `numbers` stand at time t; x (B, C, H, W) is their state, and
    `estimate` what the network took for x̂_0 on the way there.

    `done` of `total` steps are made over all batches; `finished` says that x is the sample.
    """

    numbers: range
    t: float
    x: Tensor
    estimate: Tensor
    done: int
    total: int
    finished: bool


def load(
    path: Path | str,
    *,
    raw: bool = False,
    step: int | Literal["best"] | None = None,
    device: str = "cpu",
    tuned: bool = True,
) -> Model:
    """The model of a run, from its newest whole checkpoint, from that of `step`, or from the best:
    that which the evaluations in training (`--eval-every`) liked best.

    `raw` takes the weights as trained in place of their average; without `tuned`, what `unraze
    tune` found for them is not read. Raises `CheckpointError` where there is no run, no such
    checkpoint, or one that is damaged or of another network.
    """
    require_device(device)
    run = find(Path(path))
    config = read_config(run)
    if step is not None:
        try:
            saved = checkpoint.read(_folder_of(run, step), run=identity_of(run))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; give another --checkpoint") from error
    else:
        newest, problems = checkpoint.newest(run.checkpoints, run=identity_of(run))
        if problems:
            remedy = "there is no older one that is whole: train anew"
            if newest is not None:
                remedy = f"the one before it is whole: give --checkpoint {newest.step}"
            raise CheckpointError(f"{problems[0]}; {remedy}")
        if newest is None and (run.path / "failed.txt").is_file():
            raise CheckpointError(
                f"{run.path}: diverged before its first checkpoint, failed.txt says how; train anew"
            )
        if newest is None:
            raise CheckpointError(f"{run.path}: has no checkpoint yet; train it for longer first")
        saved = newest
    about = saved.state["model"]
    told = about.get("clusters")
    channels, height, width = about["shape"]
    weights, of = saved.model if raw else saved.ema, config.network
    made: dict[str, Any] = {
        "channels": channels,
        "size": (height, width),
        "num_classes": about["num_classes"],
        "self_conditioning": config.loss.self_conditioning,
        "learned_variance": config.loss.variance == "learned",
        "augment_values": augment.VALUES if config.data.augment else 0,
    }
    checkpoint.require_fit(networks.shapes(of, **made), weights, saved.path)  # before it is made
    network = networks.build(of, **made)
    checkpoint.fill(network, weights, saved.path)
    return Model(
        config=config,
        network=network.to(device).eval().requires_grad_(False),
        schedule=schedules.from_config(config.schedule),
        shape=(channels, height, width),
        class_names=tuple(about["class_names"]),
        num_classes=about["num_classes"],
        sigma_data=about["sigma_data"],
        run=str(path),
        checkpoint=saved.state["sha256"]["model"] if raw else saved.hash,
        step=saved.step,
        data=saved.state["data"],
        folder=saved.path,
        tuning=_tuning(saved.path, saved.hash) if tuned and not raw else None,
        clusters=None if told is None else clustering.read(run.clusters, told),
    )


def keep_tuning(model: Model, tuning: Tuning) -> Path:
    """Writes what was found beside the checkpoint of the model; raises `UnrazeError`."""
    if model.folder is None:
        raise UnrazeError("this model is of no checkpoint, so there is no place to keep its tuning")
    file = model.folder / TUNING
    checkpoint.write_atomically(file, tuning.model_dump_json(indent=1) + "\n")
    return file


def kept_tuning(model: Model) -> Tuning | None:
    """What was kept beside the checkpoint of the model; raises `CheckpointError` for what is
    damaged, or of other weights."""
    return None if model.folder is None else _tuning(model.folder, model.checkpoint)


def _tuning(folder: Path, weights: str) -> Tuning | None:
    """What was kept beside a checkpoint of that hash; raises `CheckpointError`."""
    file = folder / TUNING
    if not file.exists():
        return None
    remedy = "remove it, or make it anew with `unraze tune`"
    try:
        tuning = Tuning.model_validate_json(untrusted.read(file, untrusted.MAX_JSON))
    except (OSError, ValueError) as error:
        why = explained(error) if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"{file}: is damaged ({why}): {remedy}") from error
    if tuning.checkpoint != weights:
        raise CheckpointError(f"{file}: was found for other weights: {remedy}")
    return tuning


def settings_of(model: Model, steps: int | None = None) -> SampleConfig:
    """How a model is sampled where nothing else is asked: as tuned, else as its run says.

    With `steps`, in so many network calls: as tuned for them, else the run's own sampler.
    """
    return asked(model, {} if steps is None else {"steps": steps})


def _folder_of(run: Run, step: int | Literal["best"]) -> Path:
    """Where the checkpoint of a step is, or the best one; raises `CheckpointError`."""
    best = checkpoint.listing(run.best)
    if step == "best":
        if not best:
            raise CheckpointError(
                f"{run.path}: has no best checkpoint, it was trained without evaluations; "
                "train with --eval-every, or name a step"
            )
        return best[-1]
    there = checkpoint.listing(run.checkpoints) + best
    found = [path for path in there if checkpoint.step_of(path) == step]
    if not found:
        steps = ", ".join(map(str, sorted(set(map(checkpoint.step_of, there)))))
        raise CheckpointError(
            f"{run.path}: no checkpoint of step {step}; there is {steps or 'none yet'}"
        )
    return found[0]


def asked(model: Model, changes: Mapping[str, Any], *, classes: Classes = None) -> SampleConfig:
    """How a model is sampled with these changes: as tuned (`settings_of`), unless one of them says
    which way to go, which the run's own settings are then changed by.

    Images without a label are guided only where the changes say so, for there is nothing to guide
    towards: it would be a second, equal call. Raises `InputError`.
    """
    changes = {**({"guidance": 1.0} if classes == "none" else {}), **changes}
    found = tuned_for(model, changes)
    if found is None:
        return changed(model.config.sample, changes)
    return changed(found, {key: value for key, value in changes.items() if key != "steps"})


def tuned_for(model: Model, changes: Mapping[str, Any]) -> SampleConfig | None:
    """What `unraze tune` found for the number of calls that the changes ask for, or its default;
    None where it found nothing for them, or they say which way to go."""
    if model.tuning is None or WAY & changes.keys():
        return None
    return model.tuning.settings.get(changes.get("steps", model.tuning.default))


def changed(settings: SampleConfig, changes: Mapping[str, Any]) -> SampleConfig:
    """Settings with some of them changed, checked; raises `InputError` naming field and value.

    With another sampler the keys that are its own are absent, unless they are among the changes,
    and only `random` keeps its noise in the last step; with another number of steps than a list of
    times has, the steps are even in time.
    """
    values = replaced("sample", settings.model_dump(), changes)
    if changes.get("steps", settings.steps) != settings.steps and isinstance(
        settings.spacing, tuple
    ):
        values["spacing"] = "time"
    try:
        return SampleConfig.model_validate(values | dict(changes))
    except ValidationError as error:
        raise InputError(f"sample: {explained(error)}") from error


def quick(config: Config, calls: int) -> SampleConfig:
    """How a run is looked at while it trains: by DDIM in so many calls, or as it was distilled."""
    if config.distilled is not None:
        return config.sample
    wanted = {"sampler": "ddim", "steps": min(calls, config.schedule.steps), "spacing": "time"}
    return changed(config.sample, {**wanted, "eta": 0.0, "clip": "clip", "guidance": 1.0})


def class_of(model: Model, classes: Classes, number: int, seed: int) -> int | None:
    """The class of image `number` of a seed; None for no label.

    Raises `InputError` for an unknown one.
    """
    if model.num_classes == 0:
        if classes not in (None, "none"):
            raise InputError(
                f"class = {classes}: this run was trained without classes; "
                "train one with --classes to ask for them"
            )
        return None
    match classes:
        case None if model.clusters is not None:
            return clustering.drawn(model.clusters, number, seed)
        case None | "all":
            return number % model.num_classes
        case "none":
            _require_unlabelled(model, "class = none")
            return None
        case tuple():
            return class_of(model, classes[number % len(classes)], number, seed)
        case int():
            if not 0 <= classes < model.num_classes:
                raise InputError(
                    f"class = {classes}: this run knows {model.num_classes} classes, "
                    f"0 to {model.num_classes - 1}"
                )
            return classes
        case _:
            raise InputError(f"class = {classes!r}: give a number, 'all' or 'none'")


def plan_of(model: Model, settings: SampleConfig) -> Plan:
    """The steps that sampling walks, with their calls; raises `InputError` for too many or few."""
    loss = model.config.loss
    return plan(model.schedule, settings, whole=not loss.continuous, borders=loss.borders)


def dtype_of(model: Model, settings: SampleConfig) -> Literal["float32", "bfloat16"]:
    """The type that the network computes in, by its settings, or as it was trained."""
    if settings.dtype != "auto":
        return settings.dtype
    as_trained = model.config.train.dtype == "bfloat16" and has_bfloat16(device_of(model).type)
    return "bfloat16" if as_trained else "float32"


def calls_of(model: Model, settings: SampleConfig) -> int:
    """Network calls for an image: the sampler's, and a second one wherever guidance acts.

    Counted on the way itself, with a denoiser that is none.
    """
    made = 0

    def counted(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        nonlocal made
        made += 1
        return Prediction(x_t, x_t, share=x_t)

    denoise: Denoiser = counted
    if settings.guidance != 1:
        denoise = _guided(model, settings, counted, counted, settings.guidance)
    x, borders = torch.zeros(1, 1), model.config.loss.borders or (0.0,)
    way = plan_of(model, settings)
    for _ in walk(denoise, x, way.chain, settings, lambda _: x, borders=borders):
        pass
    return made


def within(model: Model, calls: int, of_steps: Callable[[int], SampleConfig]) -> SampleConfig:
    """The settings of the most steps that take at most so many network calls, guidance included.

    `of_steps` are the settings of a number of steps. Raises `InputError` where one takes more.
    """
    for steps in range(min(calls, model.schedule.steps), 0, -1):
        settings = of_steps(steps)
        if calls_of(model, settings) <= calls:
            return settings
    raise InputError(f"calls = {calls}: one step takes more; give more, or guidance = 1")


def _guided(
    model: Model,
    settings: SampleConfig,
    denoise: Denoiser,
    nothing: Denoiser,
    scale: float | Tensor,
) -> Denoiser:
    return guided(denoise, nothing, scale, interval=guided_between(model, settings))


def guided_between(model: Model, settings: SampleConfig) -> tuple[float, float]:
    """The training times that guidance acts between, ends included."""
    last = float(model.schedule.times[-1])
    low, high = settings.guidance_interval
    return low * last, high * last


def denoiser_of(
    model: Model,
    settings: SampleConfig,
    labels: Sequence[int | None] | Tensor,
    *,
    guidance: Tensor | None = None,
) -> Denoiser:
    """The network with its labels, guidance and clipping, as these settings ask.

    The labels are numbers, None for none, or an int64 tensor (B,) of them. Where the settings guide
    (guidance ≠ 1), a tensor `guidance` () takes the place of their scale.
    """

    def bound(wanted: Sequence[int | None] | Tensor) -> Denoiser:
        null = model.num_classes
        classes = (
            wanted
            if isinstance(wanted, Tensor)
            else torch.tensor([null if c is None else c for c in wanted], dtype=torch.int64)
        )
        found = denoiser(
            model.network,
            model.schedule,
            model.config.loss.parametrisation,
            sigma_data=model.sigma_data,
            classes=classes.to(device_of(model)) if model.num_classes else None,
            self_conditioning=model.config.loss.self_conditioning,
        )
        return _in_bfloat16(found) if dtype_of(model, settings) == "bfloat16" else found

    denoise = bound(labels)
    if settings.guidance != 1:
        if model.num_classes == 0:
            raise InputError(
                f"guidance = {settings.guidance:g}: this run was trained without classes, "
                "there is nothing to guide towards"
            )
        _require_unlabelled(model, f"guidance = {settings.guidance:g}")
        scale = settings.guidance if guidance is None else guidance
        denoise = _guided(model, settings, denoise, bound([None] * len(labels)), scale)
    return bounded(model, settings, denoise)


def bounded(model: Model, settings: SampleConfig, denoise: Denoiser) -> Denoiser:
    """A denoiser with x̂_0 kept in its bounds, as these settings ask."""
    match settings.clip:
        case "none":
            return denoise
        case "clip":
            return clipped(denoise, model.schedule)
        case "x0-only":
            return clipped(denoise, model.schedule, keep_eps=True)
        case "dynamic":
            return clipped(denoise, model.schedule, quantile=settings.dynamic_quantile)
        case _:
            assert_never(settings.clip)


@torch.no_grad()
def generate(
    model: Model,
    n: int,
    *,
    seed: int = 0,
    settings: SampleConfig | None = None,
    classes: Classes = None,
    batch: int = 64,
    first: int = 0,
) -> Iterator[Progress]:
    """Draws images first … first+n-1 of a seed, in batches, yielding every step.

    Without `settings`, as `settings_of` has them, but images without a label unguided.
    Raises `InputError`, before anything is drawn, for what the run or its schedule cannot do.
    """
    settings = asked(model, {}, classes=classes) if settings is None else settings
    if n < 1 or batch < 1 or first < 0 or seed < 0:
        raise InputError(
            f"n = {n}, batch = {batch}, first = {first}, seed = {seed}: "
            "n and batch are at least 1, first and seed at least 0"
        )
    check(model, settings)
    require_pictures(min(batch, n), model.shape, str(device_of(model)))
    way = plan_of(model, settings)
    batches = [range(k, min(k + batch, first + n)) for k in range(first, first + n, batch)]
    borders = model.config.loss.borders or (0.0,)
    total, done = way.states * len(batches), 0
    for numbers in batches:
        labels = [class_of(model, classes, k, seed) for k in numbers]
        denoise = denoiser_of(model, settings, labels)
        x = start(model, seed, numbers)
        noise = noise_of(model, seed, numbers)
        for step in walk(denoise, x, way.chain, settings, noise, borders=borders):
            done += 1
            estimate = step.prediction.x0
            yield Progress(numbers, step.t, step.x, estimate, done, total, finished=step.t == 0)


def start(model: Model, seed: int, numbers: range) -> Tensor:
    """x_T of these images of a seed (B, C, H, W): normal noise, each image's its own."""
    return rng.normal(seed, "start", numbers, 0, model.shape).to(device_of(model))


def sample(
    model: Model,
    n: int,
    *,
    seed: int = 0,
    settings: SampleConfig | None = None,
    classes: Classes = None,
    batch: int = 64,
    ranks: Ranks = ALONE,
    stop: Callable[[], bool] = lambda: False,
) -> Tensor:
    """n images (n, C, H, W) in [-1, 1], clamped; the same for the same seed.

    Of several `ranks` each draws its share of them, which may be none, and has that alone. `stop`
    is asked after every step; where it says yes, `Stopped` is raised.
    """
    share, drawn = ranks.share(n), [torch.empty(0, *model.shape, device=device_of(model))]
    if ranks.count > 1 and not share:
        return drawn[0]
    steps = generate(
        model,
        len(share),
        seed=seed,
        settings=settings,
        classes=classes,
        batch=batch,
        first=share.start,
    )
    for step in steps:
        if step.finished:
            drawn.append(step.x)
        if stop():
            raise Stopped
    return torch.cat(drawn).clamp(-1, 1)


def recipe(
    model: Model,
    settings: SampleConfig,
    *,
    seed: int,
    classes: Classes,
    batch: range,
    raw: bool = False,
) -> dict[str, Any]:
    """All that makes the pictures of one batch again, as plain values for their metadata."""
    return {
        "unraze": __version__,
        "run": model.run,
        "checkpoint": model.checkpoint,
        "step": model.step,
        "raw": raw,
        "seed": seed,
        "class": classes,
        "batch": [batch.start, len(batch)],
        "threads": torch.get_num_threads(),
        "device": str(device_of(model)),
        "engine": model.engine,
        "settings": settings.model_dump(mode="json") | {"dtype": dtype_of(model, settings)},
    }


def check(model: Model, settings: SampleConfig) -> None:
    """Raises `InputError` for settings that this run or its schedule cannot be sampled with."""
    if settings.sigma == "learned" and model.config.loss.variance == "fixed":
        raise InputError(
            "sigma = learned: this run learned no variance; take beta or beta_tilde, or train one "
            "with loss.variance = learned"
        )
    _require_its_sampler(model, settings)
    if not model.config.schedule.allow_signal:
        check_start(model.schedule, plan_of(model, settings).chain)


def _require_its_sampler(model: Model, settings: SampleConfig) -> None:
    """Raises `InputError` where only one of network and sampler is of jumps along the flow."""
    distilled = model.config.distilled
    if settings.sampler == "consistency" and distilled is None:
        raise InputError(NOT_DISTILLED)
    if settings.sampler != "consistency" and distilled is not None:
        raise InputError(f"sampler = {settings.sampler}: {DISTILLED}: {distilled.run}")
    if settings.guidance != 1 and distilled is not None:
        raise InputError(
            f"guidance = {settings.guidance:g}: guidance bends the flow that a distilled network "
            "jumps along, so it has to be learned with it: unraze distill "
            f"{distilled.run} --guidance {settings.guidance:g}"
        )


def can_be_guided(model: Model) -> bool:
    """Whether a model knows both images of a class and images without one."""
    return model.num_classes > 0 and model.config.train.label_dropout > 0


def _require_unlabelled(model: Model, asked: str) -> None:
    if model.config.train.label_dropout == 0:
        raise InputError(
            f"{asked}: this run saw a label with every image (train.label_dropout = 0), so it does "
            "not know images without one; train with label_dropout = 0.1"
        )


def noise_of(model: Model, seed: int, numbers: range) -> Noise:
    """The noise z of each step, of these images of a seed: (B, C, H, W), each image's its own."""

    def noise(step: int) -> Tensor:
        return rng.normal(seed, "walk", numbers, step, model.shape).to(device_of(model))

    return noise


def _in_bfloat16(denoise: Denoiser) -> Denoiser:
    """The same denoiser with the products of its network in bfloat16, the rest in float32."""

    def cast(x_t: Tensor, t: Tensor, *, previous: Tensor | None = None) -> Prediction:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            return denoise(x_t, t, previous=previous)

    return cast


def device_of(model: Model) -> torch.device:
    """Where the network computes."""
    return next(model.network.parameters()).device
