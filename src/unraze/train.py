"""The training loop, to be read from top to bottom.

Every random number of step n is a function of (seed, n, place in the batch): a run that was killed
and resumed makes the same steps as one that was not. Training is a generator of reports; the
terminal, `stats.jsonl` and the studio are readers of it.
"""

import copy
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unraze import checkpoint, ema, nn as networks, optim, pictures, plots, rng, run as runs
from unraze import schedule as schedules
from unraze.batches import labels_of, looks_twice, samples_of, seed_dropout, times_of
from unraze.config import Config, TrainConfig, preset, updated
from unraze.data import Images, batch as pixels_of, to_uint8
from unraze.denoiser import predict, raw_output
from unraze.errors import CheckpointError, DivergedError, InputError
from unraze.generate import Model, changed, load, sample
from unraze.loss import four_variable, reduced, weighted
from unraze.process import destroy_at
from unraze.run import Run
from unraze.schedule import Schedule

__all__ = ["Report", "fit", "prepare", "train"]

BAD_STEPS_IN_A_ROW = 3
LOWER_RATE = 0.3
"""What the learning rate is multiplied with, once, after a rollback."""
SAVE_SECONDS = 60.0
PREVIEW_SHARE = 0.04
"""The most of the training time that previews may take."""


@dataclass(frozen=True)
class Report:
    """What one moment of training looks like.

    `phase` says what just happened; `message` is something to be said out loud. `memory` is the
    process's peak resident set in bytes; rates and times are of the last steps.
    """

    phase: Literal["measuring", "training", "saved", "stopped", "done"]
    step: int
    steps: int
    loss: float = math.nan
    grad_norm: float = math.nan
    lr: float = 0.0
    images_per_second: float = math.nan
    seconds_left: float = math.nan
    memory: int = 0
    message: str | None = None


@dataclass(frozen=True)
class Trainee:
    """What a training step works on: the network, its optimiser and average, and the data."""

    config: Config
    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    schedule: Schedule
    images: Images
    num_classes: int


def never() -> bool:
    """The stop question of a run that is not to be stopped."""
    return False


def prepare(config: Config, images: Images) -> Config:
    """The configuration with what the data decides filled in, checked against them.

    Raises `InputError` for all that would make the run fail later: no budget, a size that the
    network cannot divide, a schedule that leaves too much signal, a parametrisation that it does
    not bear, labels asked for where there are none. Nothing is written.
    """
    count, channels, height, width = images.pixels.shape
    train = config.train
    if train.minutes is None and train.steps is None and train.epochs is None:
        raise InputError("the budget is missing: give --minutes, --steps or --epochs")
    if train.classes and images.labels is None:
        raise InputError(
            f"{images.source}: has no class labels; put each class in a sub-folder of its own, "
            "or train without --classes"
        )
    try:
        torch.empty(0, device=train.device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"device = {train.device!r}: cannot be used here ({first})") from error
    schedule = schedules.from_config(config.schedule)
    parametrisation = config.loss.parametrisation
    if parametrisation in ("eps", "eps_step") and float(schedule.alpha_bar[-1]) == 0:
        raise InputError(
            f"loss.parametrisation = '{parametrisation}' cannot be learned where ᾱ_T = 0, as in "
            f"schedule.kind = '{config.schedule.kind}': take 'v', 'x0' or 'edm', or a schedule "
            "with ᾱ_T > 0"
        )
    if config.sample.steps is not None and config.sample.steps > schedule.steps:
        config = updated(config, {"sample.steps": schedule.steps})
    changes: dict[str, Any] = {
        "data.size": (height, width),
        "data.channels": channels,
        "loss.sigma_data": config.loss.sigma_data or _root_mean_square(images),
        "train.threads": train.threads or torch.get_num_threads(),
    }
    if train.epochs is not None:
        changes["train.steps"] = max(1, round(train.epochs * count / train.batch))
    config = updated(config, changes)
    _network(config, num_classes=len(images.class_names) if train.classes else 0)
    return config


def train(run: Run, images: Images, *, stop: Callable[[], bool] = never) -> Iterator[Report]:
    """Trains a run from its newest whole checkpoint, or from its beginning, to its end.

    `run` holds a configuration that `prepare` made; `images` are those it was made with. `stop` is
    asked after every step: when it says yes, the run is saved, "stopped" is reported, and that is
    all. Raises `DivergedError` where training cannot be rescued, `CheckpointError` where the run
    cannot be continued, `UnrazeError` where the disk is full.
    """
    config = runs.read_config(run)
    with runs.locked(run), _reproducible(config.train):
        trainee = _begin(config, images)
        (run.path / "failed.txt").unlink(missing_ok=True)
        saved, problems = checkpoint.newest(run.checkpoints)
        for text in problems:
            yield _said(run, f"DAMAGED: {text}; going back to an older checkpoint")
        if saved is None and problems:
            raise CheckpointError(f"{run.path}: every checkpoint is damaged; train it anew")

        # where to begin: at a checkpoint, or with the measurement that fixes steps and dtype
        if saved is None:
            if config.train.steps is None or config.train.dtype == "auto":
                yield Report("measuring", 0, 0, message="measuring the speed of this machine")
                config = _measured(trainee, run)
                yield _said(run, _budget(config, len(images.pixels)))
            trainee = _begin(config, images)
            checkpoint.write_atomically(run.stats, "")
            _write_reals(run, images)
            state = {"updates": 0, "bad": 0, "lr_factor": 1.0, "rolled_back": False}
            start = 0
        else:
            for text in _differences(run, saved, images):
                yield _said(run, text)
            state, start = _restore(trainee, saved), saved.step
            runs.truncate_stats(run, start)
            yield _said(run, f"continuing from step {start} of {config.train.steps}")

        steps = config.train.steps
        assert steps is not None
        step, pace, said_last, last_save = start, _Pace(config.train.batch), "", time.monotonic()
        while step < steps:
            step += 1
            lr = state["lr_factor"] * optim.learning_rate(step, steps, config.train)
            for group in trainee.optimizer.param_groups:
                group["lr"] = lr
            loss = _gradients(trainee, step)
            norm = _clip(trainee)
            good = math.isfinite(loss) and math.isfinite(norm)
            row: dict[str, Any] = {"step": step, "steps": steps, "loss": loss, "lr": lr}
            if good:
                trainee.optimizer.step()
                decay = config.train.ema
                d = ema.decay_at(state["updates"], decay, warmup=config.train.ema_warmup)
                ema.update(trainee.average, trainee.network, d)
                state["updates"] += 1
                state["bad"] = 0
                row |= {"grad_norm": norm}
            else:
                state["bad"] += 1
                row = {"step": step, "steps": steps, "skipped": f"loss {loss}, gradient {norm}"}
                yield _said(run, f"step {step} skipped: loss {loss}, gradient norm {norm}")
            pace.tick()
            runs.append_stats(run, row | {"images_per_second": round(pace.images, 1)})

            if state["bad"] == BAD_STEPS_IN_A_ROW:
                if state["rolled_back"]:
                    raise DivergedError(_give_up(run, trainee, step, lr))
                step = _roll_back(trainee, run, state)
                runs.truncate_stats(run, step)
                yield _said(
                    run,
                    f"{BAD_STEPS_IN_A_ROW} bad steps in a row: back to step {step}, "
                    f"with {LOWER_RATE} of the learning rate",
                )
                continue

            stopping = step < steps and stop()
            now = time.monotonic()
            report = Report(
                "training",
                step,
                steps,
                loss,
                norm,
                lr,
                pace.images,
                pace.left(steps - step),
                _peak_memory(),
            )
            yield report
            every = config.train.checkpoint_every
            due = step % every == 0 if every else now - last_save > SAVE_SECONDS
            if due or stopping or step == steps:
                last_save = now
                path = _save(trainee, run, step, state)
                yield replace(report, phase="saved", message=None)
                said_last = path.name
            if step % _preview_every(config) == 0 or step == steps:
                _preview(trainee, run, step, said_last, pace)
            if stopping:
                runs.log(run, f"stopped at step {step}")
                yield replace(report, phase="stopped", message=f"saved at step {step} of {steps}")
                return
        plots.save(
            plots.loss_figure(runs.read_stats(run)), run.path / "loss.png", {"run": run.path.name}
        )
        runs.log(run, "done")
        yield Report("done", steps, steps, memory=_peak_memory())


def fit(
    images: Images,
    config: Config | str = "fast",
    *,
    out: Path | str,
    minutes: float | None = None,
    steps: int | None = None,
    report: Callable[[Report], None] = lambda _: None,
) -> Model:
    """Trains on images into the run folder `out` and returns the model, in one call.

    `config` is a configuration or a preset's name; `minutes` or `steps` replaces its budget;
    `report` is shown every `Report`. Raises what `prepare`, `run.create` and `train` raise.
    """
    config = preset(config) if isinstance(config, str) else config
    if minutes is not None:
        config = updated(config, {"train.minutes": minutes})
    if steps is not None:
        config = updated(config, {"train.steps": steps})
    run = runs.create(prepare(config, images), out=Path(out), command=sys.argv)
    for moment in train(run, images):
        report(moment)
    return load(run.path)


# ---------------------------------------------------------------------------- one training step


def _gradients(trainee: Trainee, step: int) -> float:
    """Leaves the gradient of step `step` in the network and returns its mean loss."""
    config = trainee.config
    whole = config.train.batch
    part = whole // config.train.accumulate
    images, count = trainee.images, len(trainee.images.pixels)
    indices, flips = samples_of(config.train, count, step, flip=config.data.flip)
    t = times_of(config.train, config.loss, trainee.schedule, step)
    second_look = config.loss.self_conditioning and looks_twice(config.train, step)
    labels = None
    if trainee.num_classes and images.labels is not None:
        labels = labels_of(config.train, images.labels[indices], trainee.num_classes, step)
    trainee.network.train()
    trainee.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for start in range(0, whole, part):
        places = range(start, start + part)
        window = slice(start, start + part)
        x0 = pixels_of(images, indices[window], None if flips is None else flips[window])
        if config.network.dropout > 0:
            seed_dropout(config.train, step, start)
        losses = _losses(
            trainee,
            x0.to(config.train.device),
            t[window],
            places,
            step,
            classes=None if labels is None else labels[window].to(config.train.device),
            second_look=second_look,
        )
        loss = losses.sum() / whole
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _losses(
    trainee: Trainee,
    x0: Tensor,
    t: Tensor,
    places: Sequence[int],
    step: int,
    *,
    classes: Tensor | None,
    second_look: bool,
) -> Tensor:
    """One number an image: the objective of the configuration, per value."""
    config, schedule = trainee.config, trainee.schedule
    sigma_data = config.loss.sigma_data or 1.0
    parametrisation = config.loss.parametrisation
    seed, shape, values = config.train.seed, x0.shape[1:], x0[0].numel()
    eps = rng.normal(seed, "noise", places, step, shape).to(x0.device)

    def emit(x_t: Tensor, times: Tensor, previous: Tensor | None = None) -> Tensor:
        with _autocast(config):
            return raw_output(
                trainee.network,
                schedule,
                parametrisation,
                x_t,
                times,
                sigma_data=sigma_data,
                classes=classes,
                previous=previous,
            )

    def estimate(x_t: Tensor, times: Tensor) -> Tensor:
        if not second_look:
            return emit(x_t, times)
        with torch.no_grad():
            raw = emit(x_t, times)
            first = predict(parametrisation, raw, x_t, schedule, times, sigma_data=sigma_data)
        return emit(x_t, times, first.x0)

    match config.loss.objective:
        case "four-variable":
            eps_step = rng.normal(seed, "step noise", places, step, shape).to(x0.device)
            return four_variable(estimate, schedule, x0, t.long(), eps, eps_step) / values
        case "reduced":
            return reduced(estimate, schedule, x0, t.long(), eps) / values
        case "weighted":
            x_t = destroy_at(*schedule.at(t), x0, eps)
            raw = estimate(x_t, t)
            prediction = predict(parametrisation, raw, x_t, schedule, t, sigma_data=sigma_data)
            return weighted(prediction, x0, eps, schedule, t, config.loss, sigma_data=sigma_data)


def _autocast(config: Config) -> Any:
    if config.train.dtype != "bfloat16":
        return nullcontext()
    return torch.autocast(torch.device(config.train.device).type, dtype=torch.bfloat16)


def _clip(trainee: Trainee) -> float:
    bound = trainee.config.train.clip
    parameters = list(trainee.network.parameters())
    if bound is None:
        grads = [p.grad for p in parameters if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))
    return float(torch.nn.utils.clip_grad_norm_(parameters, bound))


# ------------------------------------------------------------------- beginning, saving, going on


def _network(config: Config, num_classes: int) -> nn.Module:
    assert config.data.size is not None
    assert config.data.channels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(config.train.seed, "weights"))
        return networks.build(
            config.network,
            channels=config.data.channels,
            size=config.data.size,
            num_classes=num_classes,
            self_conditioning=config.loss.self_conditioning,
        )


def _begin(config: Config, images: Images) -> Trainee:
    """Everything as it is before the first step."""
    num_classes = len(images.class_names) if config.train.classes else 0
    network = _network(config, num_classes).to(config.train.device)
    return Trainee(
        config=config,
        network=network,
        optimizer=optim.build(network, config.train),
        average=ema.start(network),
        schedule=schedules.from_config(config.schedule),
        images=images,
        num_classes=num_classes,
    )


def _save(trainee: Trainee, run: Run, step: int, state: dict[str, Any]) -> Path:
    images = trainee.images
    about = {
        "shape": list(images.pixels.shape[1:]),
        "class_names": list(images.class_names) if trainee.num_classes else [],
        "num_classes": trainee.num_classes,
        "sigma_data": trainee.config.loss.sigma_data,
    }
    return checkpoint.save(
        run.checkpoints,
        step,
        model=trainee.network.state_dict(),
        ema=trainee.average,
        optim=optim.write_state(trainee.network, trainee.optimizer),
        state={**state, "model": about, "data": images.fingerprint},
        keep=trainee.config.train.keep,
    )


def _restore(trainee: Trainee, saved: checkpoint.Checkpoint) -> dict[str, Any]:
    checkpoint.fill(trainee.network, saved.model, saved.path)
    device = trainee.config.train.device
    for name, value in saved.ema.items():
        trainee.average[name] = value.to(device)
    optim.read_state(trainee.network, trainee.optimizer, saved.optim)
    return {key: saved.state[key] for key in ("updates", "bad", "lr_factor", "rolled_back")}


def _roll_back(trainee: Trainee, run: Run, state: dict[str, Any]) -> int:
    """Back to the newest checkpoint, or the beginning, with a lower learning rate; the step."""
    saved, _ = checkpoint.newest(run.checkpoints)
    if saved is None:
        fresh = _begin(trainee.config, trainee.images)
        trainee.network.load_state_dict(fresh.network.state_dict())
        trainee.average.update(fresh.average)
        trainee.optimizer.state.clear()
        state |= {"updates": 0, "bad": 0}
    else:
        state |= _restore(trainee, saved)
    state |= {"bad": 0, "lr_factor": state["lr_factor"] * LOWER_RATE, "rolled_back": True}
    return 0 if saved is None else saved.step


def _give_up(run: Run, trainee: Trainee, step: int, lr: float) -> str:
    config = trainee.config
    indices, _ = samples_of(config.train, len(trainee.images.pixels), step, flip=False)
    dtype = " or bfloat16" if config.train.dtype == "bfloat16" else ""
    text = (
        f"{run.path}: diverged at step {step}, also with a lower learning rate ({lr:.2g}); "
        f"the batch was of samples {', '.join(map(str, indices[:16].tolist()))}"
        f"{' …' if len(indices) > 16 else ''}; likely cause: learning rate{dtype}, or loss "
        "weights too large: try a tenth of --lr"
    )
    checkpoint.write_atomically(run.path / "failed.txt", text + "\n")
    runs.log(run, text)
    return text


def _differences(run: Run, saved: checkpoint.Checkpoint, images: Images) -> Iterator[str]:
    """A sentence for each thing that keeps a resumed run from being the same to the bit."""
    if saved.state["data"] != images.fingerprint:
        raise CheckpointError(
            f"{run.path}: the images are not those it was trained on (their fingerprint is "
            f"{images.fingerprint[:12]}…, was {saved.state['data'][:12]}…): bring them back, or "
            "train anew"
        )
    before, now = runs.read_env(run), runs.environment()
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield (
                f"DIFFERENT from when the run began: {key} is {now.get(key)!r}, was "
                f"{before.get(key)!r}; it goes on, but not to the same bits"
            )


@contextmanager
def _reproducible(config: TrainConfig) -> Iterator[None]:
    """Deterministic algorithms, the run's threads, no denormals; all as before afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(config.threads or threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_flush_denormal(False)


# --------------------------------------------------------------------- measuring and showing


def _measured(trainee: Trainee, run: Run) -> Config:
    """Fixes what depends on the machine's speed, steps and dtype, and writes it into the run."""
    config = trainee.config
    kind = torch.device(config.train.device).type
    dtypes = ["float32", "bfloat16"] if _has_bfloat16(kind) else ["float32"]
    if config.train.dtype != "auto":
        dtypes = [config.train.dtype]
    budget = 60 * config.train.minutes if config.train.minutes else math.inf
    seconds = {d: _seconds_a_step(trainee, d, min(5.0, 0.03 * budget)) for d in dtypes}
    best = min(dtypes, key=lambda d: seconds[d] * (1.1 if d == "bfloat16" else 1.0))
    changes: dict[str, Any] = {"train.dtype": best}
    if config.train.minutes is not None:
        usable = budget * (1 - PREVIEW_SHARE)
        changes["train.steps"] = max(1, round(usable / seconds[best]))
    speed = ", ".join(f"{config.train.batch / s:.0f} images/s in {d}" for d, s in seconds.items())
    asked = f"; {config.train.minutes:g} minutes" if config.train.minutes else ""
    config = updated(config, changes)
    runs.write_config(run, config, note=f"measured: {speed}{asked}: {config.train.steps} steps")
    return config


def _seconds_a_step(trainee: Trainee, dtype: str, at_least: float) -> float:
    """The median time of a step in this dtype, on a copy of everything."""
    config = updated(trainee.config, {"train.dtype": dtype})
    scratch = _begin(config, trainee.images)
    times: list[float] = []
    started = time.monotonic()
    step = 0
    while step < 5 or (time.monotonic() - started < at_least and step < 200):
        step += 1
        before = time.perf_counter()
        _gradients(scratch, step)
        _clip(scratch)
        scratch.optimizer.step()
        ema.update(scratch.average, scratch.network, 0.9)
        times.append(time.perf_counter() - before)
    return float(np.median(times[2:]))


def _has_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def _budget(config: Config, count: int) -> str:
    steps, batch = config.train.steps or 0, config.train.batch
    return f"{steps} steps of {batch} images, {steps * batch / count:.1f} epochs, {config.train.dtype}"


class _Pace:
    """Images a second, smoothed over the last steps."""

    def __init__(self, batch: int) -> None:
        self.batch, self.seconds, self.last = batch, 0.0, time.perf_counter()

    def tick(self) -> None:
        now = time.perf_counter()
        took, self.last = now - self.last, now
        self.seconds = took if self.seconds == 0 else 0.95 * self.seconds + 0.05 * took

    @property
    def images(self) -> float:
        return self.batch / self.seconds if self.seconds else math.nan

    def left(self, steps: int) -> float:
        return steps * self.seconds


def _preview_every(config: Config) -> int:
    assert config.train.steps is not None
    return config.train.preview_every or max(1, math.ceil(config.train.steps / 8))


def _preview(trainee: Trainee, run: Run, step: int, saved: str, pace: _Pace) -> None:
    """Images from fixed noise at this step: as trained on the left, averaged on the right."""
    config = trainee.config
    calls = min(25, trainee.schedule.steps)
    # a forward pass takes about a third of a training step
    affordable = PREVIEW_SHARE * _preview_every(config) * config.train.batch * 3 / (2 * calls)
    count = max(1, min(32, int(affordable)))
    wanted = {"sampler": "ddim", "steps": calls, "eta": 0.0, "clip": "clip", "guidance": 1.0}
    settings = changed(config.sample, wanted)
    averaged = copy.deepcopy(trainee.network)
    averaged.load_state_dict(trainee.average)
    sides = []
    for network in (trainee.network, averaged):
        channels, height, width = trainee.images.pixels.shape[1:]
        model = Model(
            config=config,
            network=network.eval(),
            schedule=trainee.schedule,
            shape=(channels, height, width),
            class_names=tuple(trainee.images.class_names),
            num_classes=trainee.num_classes,
            sigma_data=config.loss.sigma_data or 1.0,
        )
        drawn = sample(model, count, seed=config.train.seed, settings=settings)
        sides.append(pictures.grid(to_uint8(drawn), columns=math.ceil(math.sqrt(count))))
    pictures.write_png(
        pictures.beside(sides),
        run.samples / f"step-{step:08d}.png",
        {
            "kind": "preview",
            "run": run.path.name,
            "step": step,
            "checkpoint": saved,
            "left": "weights as trained",
            "right": "their average",
            "seed": config.train.seed,
            "settings": settings.model_dump(mode="json"),
        },
    )
    pace.last = time.perf_counter()


def _write_reals(run: Run, images: Images) -> None:
    order = rng.permutation(0, "reals", len(images.pixels))[:64]
    shown = np.asarray(images.pixels[np.sort(order)]).transpose(0, 2, 3, 1)
    picture = pictures.grid(shown, columns=8)
    pictures.write_png(picture, run.path / "reals.png", {"kind": "reals", "source": images.source})


def _said(run: Run, message: str) -> Report:
    runs.log(run, message)
    return Report("training", 0, 0, message=message)


def _root_mean_square(images: Images) -> float:
    """σ_data: the root mean square of the pixels in [-1, 1]; of at most 4,096 images, evenly."""
    some = images.pixels[:: max(1, len(images.pixels) // 4096)]
    values = some.astype(np.float64) / 127.5 - 1
    return round(float(np.sqrt(np.mean(values**2))), 6)


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
