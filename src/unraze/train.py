"""The training loop, to be read from top to bottom.

Every random number of step n is a function of (seed, n, place in the batch): a run that was killed
and resumed makes the same steps as one that was not. Training is a generator of reports; the
terminal, `stats.jsonl` and the studio are readers of it.
"""

import math
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from unraze import (
    __version__,
    augment,
    checkpoint,
    clusters as clustering,
    ema,
    optim,
    plots,
    run as runs,
    schedule as schedules,
)
from unraze.batches import samples_of
from unraze.clusters import Clusters
from unraze.config import (
    ACTS_WITH,
    Config,
    LeanConfig,
    LossConfig,
    UNet2DConfig,
    from_dict,
    idle,
    preset,
    preset_names,
    require_given,
    updated,
)
from unraze.data import Images, absent_classes, load as load_images_of, record, to_uint8
from unraze.data.reading import IN_MEMORY
from unraze.errors import CheckpointError, DivergedError, InputError, UnrazeError
from unraze.evaluate import during
from unraze.evaluate.figures import Figure
from unraze.evaluate.stage import finish
from unraze.generate import Model, Stopped, load
from unraze.hardware import memory, peak_memory, require_device, resident
from unraze.measure import Pace, fewest_steps, measured, told, too_short
from unraze.nn.lean import fitted
from unraze.preview import (
    averaged_model,
    is_previewed,
    preview,
    preview_interval,
    remove_previews_after,
    write_reals,
)
from unraze.ranks import ALONE, Ranks
from unraze.run import Run
from unraze.schedule import Schedule
from unraze.sharded import divided_as
from unraze.step import (
    Trainee,
    begin,
    clip,
    divides,
    gradients,
    kept_for_gradients,
    network_of,
    reproducible,
)
from unraze.walk import check_start, plan, steps_for
from unraze.watch import LONG, Watch

__all__ = ["Report", "begun_with", "fit", "prepare", "require_memory", "train"]

BAD_STEPS_IN_A_ROW = 3
MOST_STEPS = 10**9
MOST_MINUTES = 10 * 365 * 24 * 60
ROUNDED = 0.01
"""How far outside [-1, 1] a value of an image may lie: resizing overshoots."""
DRAWN = 64
"""Images that are drawn at once; each takes about a quarter of what a step keeps of it."""
STOPPED_EARLY = "stopped before the first step"
LOWER_RATE = 0.3
"""What the learning rate is multiplied with, once, after a rollback."""


@dataclass(frozen=True)
class Report:
    """What one moment of training looks like.

    `phase` says what just happened; `message` is something to be said out loud. While "preparing"
    an evaluation, `step` and `steps` count what makes it ready, no training. `memory` is the
    most in bytes that the process had, on a GPU that its tensors had there; rates and times are of
    the last steps.
    """

    phase: Literal["measuring", "preparing", "training", "evaluated", "saved", "stopped", "done"]
    step: int
    steps: int
    loss: float = math.nan
    grad_norm: float = math.nan
    lr: float = 0.0
    images_per_second: float = math.nan
    seconds_left: float = math.nan
    memory: int = 0
    message: str | None = None


def begun_with(run: Run, config: Config) -> dict[str, Tensor] | None:
    """The weights that a run began with: of a distilled one its teacher's, of one that goes on from
    another that one's; None where it began at its beginning.

    Raises `CheckpointError` where they are not in its folder, whole, or are of another run.
    """
    origin, folder = config.distilled or config.begun, run.start
    if origin is None:
        return None
    if config.distilled is not None:
        folder = run.teacher
    saved, problems = checkpoint.newest(folder)
    if saved is None:
        why = problems[0] if problems else f"{folder}: is gone"
        raise CheckpointError(f"{why}; without what it began with it cannot go on: make it anew")
    if saved.hash != origin.checkpoint:
        raise CheckpointError(
            f"{saved.path}: holds not the weights that {run.path / 'config.toml'} names "
            f"({saved.hash[:12]}…, not {origin.checkpoint[:12]}…): bring them back"
        )
    return saved.ema


def never() -> bool:
    """The stop question of a run that is not to be stopped."""
    return False


def prepare(config: Config, images: Images, ranks: Ranks = ALONE) -> Config:
    """The configuration with what the data decides filled in, checked against them.

    Its `data` says how these images were loaded, so that they can be again, or that they cannot.
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
    require_device(train.device)
    if train.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise InputError(
            "train.compile = true: there is no C++ compiler, g++ or clang++, which torch.compile "
            "needs; install one, or set it to false"
        )
    schedule = schedules.from_config(config.schedule)
    parametrisation = config.loss.parametrisation
    if parametrisation in ("eps", "eps_step") and float(schedule.alpha_bar[-1]) == 0:
        raise InputError(
            f"loss.parametrisation = '{parametrisation}' cannot be learned where ᾱ_T = 0, as in "
            f"schedule.kind = '{config.schedule.kind}': take 'v', 'x0' or 'edm', or a schedule "
            "with ᾱ_T > 0"
        )
    if config.sample.steps == 0:
        own = min(steps_for((height, width)), schedule.steps)
        config = updated(config, {"sample.steps": own})
    if config.sample.steps > schedule.steps:
        raise InputError(
            f"sample.steps = {config.sample.steps}: the schedule has T = {schedule.steps}; "
            f"give --set sample.steps={schedule.steps} or fewer"
        )
    _require_a_way(config, schedule)
    _require_a_teacher_s(config)
    _require_what_acts(config)
    changes: dict[str, Any] = {
        **_origin_of(images),
        "data.size": (height, width),
        "data.channels": channels,
        "data.augment": augment.chance_for(config, count),
        "loss.sigma_data": config.loss.sigma_data or _root_mean_square(images),
        "train.threads": train.threads or torch.get_num_threads(),
        "train.clusters": clustering.clusters_for(train.clusters, count),
    }
    if train.epochs is not None:
        passes = min(train.epochs * count / train.batch, 2.0 * MOST_STEPS)  # refused below
        changes["train.steps"] = max(1, round(passes))
    told = train.classes or changes["train.clusters"]
    if not (told and train.label_dropout):
        _require_own_guidance(config)
        changes["sample.guidance"] = 1.0
    if isinstance(config.network, LeanConfig):
        network = fitted(config.network, (height, width))
        fitting = ("fold", "widths", "finish")
        changes |= {f"network.{key}": getattr(network, key) for key in fitting}
    config = updated(config, changes)
    if (steps := config.train.steps or 0) > MOST_STEPS:
        key = "train.steps" if train.epochs is None else "train.epochs"
        asked = f"{key} = {steps if train.epochs is None else train.epochs}"
        raise InputError(f"{asked}: is more than {MOST_STEPS:,} steps; give less")
    if (minutes := train.minutes or 0) > MOST_MINUTES:
        raise InputError(f"train.minutes = {minutes}: is more than ten years; give less")
    num_classes = len(images.class_names) if train.classes else config.train.clusters
    _require_rows(config, num_classes)
    weighing, step = require_memory(config, num_classes=num_classes, ranks=ranks)
    _require_memory_for_all(config, images, weighing, step, ranks)
    if train.eval_every is not None:
        during.require_worth(config, load_images_of(config.data, split="held-out"))
    return config


def _require_a_way(config: Config, schedule: Schedule) -> None:
    """Raises `InputError` where the run could not be drawn from as it says, or says what does
    nothing there."""
    if config.sample.final_noise and config.sample.sampler != "random":
        raise InputError(
            f'sample.final_noise = true: sampler = "{config.sample.sampler}" has none; leave it '
            "out, or take random"
        )
    guidance, (low, high) = config.sample.guidance, config.sample.guidance_interval
    if config.distilled is not None and (guidance, low, high) != (1.0, 0.0, 1.0):
        raise InputError(
            f"sample.guidance = {guidance:g}, sample.guidance_interval = {low:g}, {high:g}: a "
            "distilled network has learned its guidance; leave them out, and give `unraze distill` "
            "--guidance and --guidance-interval"
        )
    whole = not config.loss.continuous
    try:
        way = plan(schedule, config.sample, whole=whole, borders=config.loss.borders)
        if not config.schedule.allow_signal:
            check_start(schedule, way.chain)
    except InputError as error:
        raise InputError(f"sample: {error}") from error


def _require_a_teacher_s(config: Config) -> None:
    """Raises `InputError` for what is said of a teacher where there is none."""
    if config.loss.objective == "consistency":
        return
    for key in ("teacher_steps", "teacher_guidance", "teacher_interval"):
        value = getattr(config.loss, key)
        if value != LossConfig.model_fields[key].default:
            raise InputError(
                f'loss.{key} = {value}: objective = "{config.loss.objective}" has no teacher; '
                "leave it out, `unraze distill` sets it"
            )


def _require_what_acts(config: Config) -> None:
    """Raises `InputError` for a number that was set, of a choice that was not made."""
    for name, default in idle(config).items():
        section, own = name.split(".")
        key, needed = ACTS_WITH[name]
        values = getattr(config, section)
        raise InputError(
            f"{name} = {getattr(values, own):g}: does nothing where {key} = "
            f"{getattr(values, key.split('.')[1])}, but with {' or '.join(needed)}; leave it at "
            f"{default:g}"
        )


def _require_rows(config: Config, num_classes: int) -> None:
    """Raises `InputError` where a table of classes has not as many rows as it is asked for."""
    network, train = config.network, config.train
    if not (num_classes and isinstance(network, UNet2DConfig) and network.num_class_embeds):
        return
    untold = not train.classes or train.label_dropout > 0
    rows, needed = network.num_class_embeds, num_classes + untold
    if needed <= rows <= num_classes + 1:
        return
    kind = "classes" if train.classes else "clusters"
    raise InputError(
        f"network.num_class_embeds = {rows}: there are {num_classes} {kind}, and a row more for "
        f"images without one where train.label_dropout > 0: give {num_classes + 1}, or leave it out"
    )


def _require_own_guidance(config: Config) -> None:
    """Raises `InputError` where guidance was asked for, beyond what the preset has, and there is
    nothing to guide towards, or nothing to guide from."""
    guidance, own = config.sample.guidance, 1.0
    if config.preset in preset_names():
        own = preset(config.preset).sample.guidance
    if guidance not in (1.0, own):
        raise InputError(
            f"sample.guidance = {guidance:g}: guides towards what the network is told, and away "
            f"from what it says untold; train with --classes, or --clusters of at least "
            f"{clustering.PER_CLUSTER} images each, and with train.label_dropout > 0, or give "
            "--set sample.guidance=1"
        )


def require_memory(
    config: Config, *, num_classes: int = 0, ranks: Ranks = ALONE
) -> tuple[int, int]:
    """Bytes of the weights and all that goes with them, and of what a step keeps; raises
    `InputError` where the network or a step can't be held, or the network not be built.

    Nothing is allocated. Images have the size and the channels that `config.data` names. Of several
    ranks each holds what `_weighing` says and computes its share of a batch.
    """
    assert config.data.size is not None
    gib = _each_may_have(config, ranks) / 2**30
    try:
        with torch.device("meta"):  # shapes alone
            network = network_of(config, num_classes=num_classes)
    except (RuntimeError, OverflowError) as error:
        raise InputError(
            "network: has more weights than can be counted; give smaller numbers under network"
        ) from error
    weights = sum(p.numel() for p in network.parameters())
    weighing, among = _weighing(weights, config, ranks), _among(ranks)
    if (needed := weighing / 2**30) > gib:
        raise InputError(
            f"network: its {weights:,} weights need {needed:,.0f} GiB to be trained{among}, and "
            f"{gib:,.0f} are there; give smaller numbers under network"
        )
    at_once = _at_once(config, ranks)
    batch, (height, width) = config.train.batch, config.data.size
    values = (config.data.channels or 1) * height * width
    # in float32: picture, noise, x_t, and what the network says of it
    if 16 * values * at_once / 2**30 + 24 * batch / 2**30 > gib:
        raise InputError(
            f"train.batch = {batch}: so many images of {height} x {width} at once need more than "
            f"the {gib:,.0f} GiB that there are{among}; give less, or --set train.accumulate=PARTS"
        )
    step = kept_for_gradients(network, config, at_once, num_classes=num_classes)
    if (needed := (weighing + step) / 2**30) > gib:
        raise InputError(
            f"network: a step of train.batch = {batch} images of {height} x {width} needs "
            f"{needed:,.0f} GiB{among}, and {gib:,.0f} are there; give a smaller batch, --set "
            "train.accumulate=PARTS, or smaller numbers under network"
        )
    return weighing, step


def _weighing(weights: int, config: Config, ranks: Ranks) -> int:
    """Bytes that so many weights cost a rank, in float32: weights, their gradient, two moments,
    their average, and their teacher's where there is one. Where they are divided a rank has its
    part of that, and all weights once: as a run begins, and to draw with."""
    if not divides(config, ranks):
        return (20 if config.distilled is None else 24) * weights
    return 4 * weights + -(-20 * weights // ranks.count)


def _at_once(config: Config, ranks: Ranks) -> int:
    """The most images that a rank computes at once."""
    share = -(-config.train.batch // ranks.count)
    return -(-share // config.train.accumulate)


def _each_may_have(config: Config, ranks: Ranks) -> int:
    """Bytes of memory that each rank may have: those of one machine share its processors'."""
    all_of_it = memory(config.train.device)
    return all_of_it // ranks.here if torch.device(config.train.device).type == "cpu" else all_of_it


def _among(ranks: Ranks) -> str:
    return f" by each of {ranks.count} ranks" if ranks.count > 1 else ""


def _require_memory_for_all(
    config: Config, images: Images, weighing: int, step: int, ranks: Ranks
) -> None:
    """Raises `InputError` where all of it together can't be held: this program with the images that
    it has in memory, and, on its device, training, or drawing for previews and evaluations."""
    drawing = DRAWN * step // (4 * _at_once(config, ranks))
    if config.train.eval_every is not None:  # the samples are held against the data as a whole
        drawing += 4 * during.MOST * math.prod(images.pixels.shape[1:])
    working = weighing + max(step, drawing)
    here, needed = _each_may_have(config, ranks), working
    program = resident()
    if torch.device(config.train.device).type == "cpu":
        needed += program
    if needed > here:
        size = 0 if isinstance(images.pixels, np.memmap) else images.pixels.nbytes
        raise InputError(
            f"memory: {needed / 2**30:,.1f} GiB are needed, {working / 2**30:,.1f} to train and to "
            f"draw, {program / 2**30:,.1f} for this program with {size / 2**30:,.1f} of images"
            f"{_among(ranks)}, and {here / 2**30:,.1f} may be had here; give a smaller --batch, "
            "--size or network, or more memory"
        )


def train(
    run: Run,
    images: Images,
    *,
    stop: Callable[[], bool] = never,
    ranks: Ranks = ALONE,
    accept_changed_data: bool = False,
) -> Iterator[Report]:
    """Trains a run from its newest whole checkpoint, or from its beginning, to its end.

    `run` holds a configuration that `prepare` made; `images` are those it was made with, or others,
    where `accept_changed_data` and there is a checkpoint. `stop` is asked after every step, and
    within evaluations and previews: when it says yes, the run is saved, "stopped" is reported, and
    that is all. Several `ranks` train it together, all of which call this; the first one reads and
    writes the folder.
    Raises `InputError` where this machine lacks the memory or the device, `DivergedError` where
    training cannot be rescued, `CheckpointError` where the run cannot be continued, `UnrazeError`
    where the disk is full.
    """
    config = ranks.first(runs.read_config, run)
    if config.data.augment == "auto":
        raise CheckpointError(
            f'{run.path}: config.toml says data.augment = "auto", while a run says how much; was '
            "it changed since? Give the number that it had"
        )
    require_device(config.train.device)
    told_of = len(images.class_names) if config.train.classes else config.train.clusters
    require_memory(config, num_classes=told_of or 0, ranks=ranks)
    _require_alike(images, config, ranks)
    divided = divides(config, ranks)
    apart = ranks.group() if divided else None
    pending = checkpoint.Pending(ranks)
    # ranks that draw their shares have not all as many steps to ask at
    heard = stop if ranks.count == 1 else never
    watch = Watch(ranks, partial(_warn, run))
    with _locked(run, ranks) as left, reproducible(config.train), watch, pending:
        if left is not None:
            yield _said(run, ranks, left)
        if config.train.shard and not divided:
            words = "train.shard: there is one process here, so the network is whole on it"
            yield _said(run, ranks, words)
        saved, problems = ranks.first(_newest, run, whole=not divided)
        for text in problems:
            yield _said(run, ranks, f"DAMAGED: {text}; going back to an older checkpoint")

        if accepted := ranks.first(
            _require_its_images, run, config, saved, images, accept_changed_data
        ):
            yield _said(run, ranks, accepted)
        if saved is None and config.train.clusters and not ranks.first(run.clusters.is_file):
            yield Report("measuring", 0, 0, message="finding clusters of alike images")
        clusters = ranks.first(clusters_of, run, config, images, saved)
        if saved is None and clusters is not None:
            sizes = np.bincount(clusters.labels)
            words = f"{len(sizes)} clusters of alike images, of {sizes.min()} to {sizes.max()}"
            yield _said(run, ranks, f"told apart: {words}; samples will be of each as often")

        if saved is None and config.data.augment:
            words = (
                f"each of six changes of an image is made with a chance of {config.data.augment:g}"
            )
            yield _said(run, ranks, f"augmented: {words}; samples show none")

        # a new run fixes its steps, its dtype and how often it saves, and is told what it takes;
        # where nothing is left open, it was told so before, or a few steps are sooner done
        steps, every = config.train.steps, config.train.checkpoint_every
        fixed = None not in (steps, every) and config.train.dtype != "auto"
        few = steps is not None and steps < fewest_steps(config.data.size)
        minutes, seconds = config.train.minutes, None
        if saved is None and not (fixed and (few or ranks.first(run.stats.is_file))):
            yield Report("measuring", 0, 0, message="measuring the speed of this machine")
            fixed_now = measured(config, images, run, clusters, ranks, stop)
            if fixed_now is None:
                _log(run, ranks, STOPPED_EARLY)
                yield Report("stopped", 0, 0, message=STOPPED_EARLY)
                return
            config, seconds = fixed_now
            memory = peak_memory(config.train.device)
            yield _said(run, ranks, told(config, len(images.pixels), seconds, memory))
        if saved is None and (warning := too_short(config, minutes, seconds)):
            yield _said(run, ranks, warning)

        # where to begin: at the beginning, or at a checkpoint
        weights = ranks.first(begun_with, run, config)
        trainee = begin(config, images, weights, clusters, ranks)
        del weights
        if saved is None:
            if ranks.is_first:
                runs.complete(run, config, ranks=ranks.count)  # killed while it was made, maybe
                checkpoint.write_atomically(run.stats, "")
                run.quality.unlink(missing_ok=True)  # of a run that was killed before it saved
                checkpoint.remove_after(run.best, 0)
                write_reals(run, images)
                runs.write_data(run, images, runs.identity(config, images))
            if lost := absent_classes(images):
                yield _said(run, ranks, _lost(lost, images))
            state: dict[str, Any] = {"updates": 0, "bad": 0, "lr_factor": 1.0, "rolled_back": False}
            start = 0
        else:
            differences = ranks.first(_differences, run, config, saved, ranks)
            state, start = _restore(trainee, saved), saved.step
            saved = None  # it is as large as what is trained
            for text in differences:
                yield _said(run, ranks, text)
            if ranks.is_first:
                runs.truncate_rows(run, start)
            how = "finished already, at" if start == config.train.steps else "continuing from"
            yield _said(run, ranks, f"{how} step {start} of {config.train.steps}")

        steps, every = config.train.steps, config.train.checkpoint_every
        assert steps is not None
        assert every is not None
        state["run"] = ranks.first(runs.identity_of, run)
        ruler, owed = None, ranks.first(_owed, run, config, start)
        if config.train.eval_every is not None and (start < steps or "evaluation" in owed):
            ruler = yield from _ruler(config, images, stop, ranks)
            if ruler is None:
                _log(run, ranks, f"stopped at step {start}")
                said = f"stopped at step {start} of {steps}, before the next one"
                yield Report("stopped", start, steps, message=said)
                return
        cost = during.Cost.before(run, config.train.batch)
        # what a run that was stopped in the middle of it has yet to do at the step it is at
        stopping = False
        if ruler is not None and "evaluation" in owed:
            with watch.doing(f"the evaluation at step {start}", LONG):
                evaluated = _evaluate(trainee, ruler, run, start, state, cost, heard)
            stopping = evaluated is None
            if evaluated is not None:
                _log(run, ranks, evaluated)
                yield Report("evaluated", start, steps, message=evaluated)
        if "preview" in owed and not stopping:
            with watch.doing(f"the preview at step {start}", LONG):
                stopping = not preview(trainee, run, start, heard)
        if stopping:
            _log(run, ranks, f"stopped at step {start}")
            said = f"stopped at step {start} of {steps}, before the next one"
            yield Report("stopped", start, steps, message=said)
            return
        step, pace = start, Pace(config.train.batch)
        while step < steps:
            step += 1
            lr = state["lr_factor"] * optim.learning_rate(step, steps, config.train)
            for group in trainee.optimizer.param_groups:
                group["lr"] = lr
            with watch.doing(f"step {step}"):
                loss = gradients(trainee, step, computed=watch.computed)
                norm = clip(trainee)
            # where processors round otherwise, one rank may find what another does not
            good = not ranks.any(not (math.isfinite(loss) and math.isfinite(norm)))
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
                yield _said(run, ranks, f"step {step} skipped: loss {loss}, gradient norm {norm}")
            pace.tick()
            if ranks.is_first:
                row |= {"images_per_second": round(pace.images, 1)}
                runs.append_row(run.stats, row)

            if state["bad"] == BAD_STEPS_IN_A_ROW:
                if state["rolled_back"]:
                    raise DivergedError(ranks.first(_give_up, run, trainee, step, lr))
                pending.finish()
                step = _roll_back(trainee, run, state)
                yield _said(
                    run,
                    ranks,
                    f"{BAD_STEPS_IN_A_ROW} bad steps in a row: back to step {step}, "
                    f"with {LOWER_RATE} of the learning rate",
                )
                continue

            stopping = step < steps and ranks.any(stop())
            report = Report(
                "training",
                step,
                steps,
                loss,
                norm,
                lr,
                pace.images,
                pace.left(steps - step),
                peak_memory(config.train.device),
            )
            yield report
            evaluating = ruler is not None and (step % ruler.every == 0 or step == steps)
            if ruler is not None and evaluating and not stopping:
                with watch.doing(f"the evaluation at step {step}", LONG):
                    evaluated = _evaluate(trainee, ruler, run, step, state, cost, heard)
                stopping = evaluated is None
                if evaluated is not None:
                    _log(run, ranks, evaluated)
                    yield replace(report, phase="evaluated", message=evaluated)
                pace.restart()
            if (step % preview_interval(config) == 0 or step == steps) and not stopping:
                with watch.doing(f"the preview at step {step}", LONG):
                    stopping = not preview(trainee, run, step, heard)
                pace.restart()
            periodic = step % every == 0 and state["bad"] == 0
            if periodic or stopping or step == steps:
                kept = state | {"periodic": periodic}
                with watch.doing(f"the checkpoint of step {step}", LONG):
                    pending.finish()
                    keep = config.train.keep
                    pending.begin(
                        _save(trainee, run.checkpoints, step, kept, keep=keep, group=apart)
                    )
                    if stopping or step == steps:
                        pending.finish()
                yield replace(report, phase="saved", message=None)
            else:
                with watch.doing("the checkpoint that is being written", LONG):
                    pending.finish(wait=False)
            if stopping:
                _log(run, ranks, f"stopped at step {step}")
                yield replace(report, phase="stopped", message=f"saved at step {step} of {steps}")
                return
        if ranks.is_first:
            _draw_curves(run, config, steps)
        _log(run, ranks, "done")
        yield Report("done", steps, steps, memory=peak_memory(config.train.device))


def fit(
    images: Images | Tensor,
    config: Config | str = "fast",
    *,
    out: Path | str,
    minutes: float | None = None,
    steps: int | None = None,
    report: Callable[[Report], None] = lambda _: None,
) -> Model:
    """Trains on images into the run folder `out` and returns the model, in one call.

    All of the images are trained on. They may be a tensor (N, C, H, W) in [-1, 1], C 1 or 3, which
    is rounded to bytes; then the run records that they cannot be loaded again, else how they were.
    `config` is a configuration or a preset's name; `minutes` or `steps` replaces its budget;
    `report` is shown every `Report`. Raises what `prepare`, `run.create` and `train` raise, and
    `InputError` for the configuration of a run that began with the weights of another.
    """
    if isinstance(images, Tensor):
        images = Images.from_arrays(to_uint8(_in_range(images)), source="tensor")
    elif not isinstance(images, Images):
        raise InputError(
            f"images: {type(images).__name__}; give a tensor (N, C, H, W) in [-1, 1], or of uint8 "
            "arrays Images.from_arrays(pixels)"
        )
    config = preset(config) if isinstance(config, str) else config
    budget = {"train.minutes": minutes, "train.steps": steps}
    config = updated(config, {key: value for key, value in budget.items() if value is not None})
    require_given(config.model_dump(), "config")
    run = runs.create(prepare(config, images), out=Path(out), command=sys.argv)
    for moment in train(run, images):
        report(moment)
    return load(run.path)


def _in_range(x: Tensor) -> Tensor:
    """The images, whose values lie in [-1, 1] but for rounding; raises `InputError`."""
    low, high = float(x.min()), float(x.max())
    if low < -1 - ROUNDED or high > 1 + ROUNDED:
        raise InputError(
            f"images: values from {low:g} to {high:g}; give them in [-1, 1], which is "
            "x / 127.5 - 1 for grey levels from 0 to 255"
        )
    return x


# ------------------------------------------------------------------- beginning, saving, going on


def _origin_of(images: Images) -> dict[str, Any]:
    """The keys of `data` by which `load` gives these images again, or says that it cannot."""
    if images.origin is None:
        return {"data.source": f"{IN_MEMORY}{images.source}", "data.held_out": 0.0}
    keys = ("source", "fit", "background", "skip_bad", "held_out")
    changes = {f"data.{key}": getattr(images.origin, key) for key in keys}
    if images.split != "train":
        changes["data.source"] = f"{IN_MEMORY}{images.split} part of {images.origin.source}"
    return changes


def _lost(classes: tuple[str, ...], images: Images) -> str:
    why = f"{images.held_back} images are held out, --held-out 0 would hold out none"
    if not images.held_back:
        why = "there are none"
    return f"{images.source}: no image to train on of the classes {', '.join(classes)}: {why}"


@contextmanager
def _locked(run: Run, ranks: Ranks) -> Iterator[str | None]:
    """Holds the run for these ranks: the first one has the lock. What is yielded is `locked`'s."""
    with ExitStack() as held:
        yield ranks.first(lambda: held.enter_context(runs.locked(run)))


def _require_alike(images: Images, config: Config, ranks: Ranks) -> None:
    """Raises `InputError` where a rank has other images, or would have no place of a batch."""
    fingerprints = ranks.each(lambda: images.fingerprint)
    if others := [k for k, found in enumerate(fingerprints) if found != fingerprints[0]]:
        raise InputError(
            f"{images.source}: rank {others[0]} has other images there than rank 0 (their "
            f"fingerprint is {fingerprints[others[0]][:12]}…, not {fingerprints[0][:12]}…); give "
            "every machine the same"
        )
    batch, parts = config.train.batch, config.train.accumulate
    if batch < ranks.count * parts:
        raise InputError(
            f"train.batch = {batch}: is less than an image for each of {ranks.count} ranks"
            f"{f' in {parts} parts' if parts > 1 else ''}; give a larger batch, or fewer of them"
        )


def _newest(run: Run, *, whole: bool) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, with a sentence for each damaged newer one, which is set
    aside; raises `CheckpointError` where there are only damaged ones."""
    (run.path / "failed.txt").unlink(missing_ok=True)
    saved, problems = checkpoint.newest(run.checkpoints, run=runs.identity_of(run), whole=whole)
    if saved is None and problems:
        raise CheckpointError(
            f"{run.path}: every checkpoint is damaged, the newest: {problems[0]}; train it anew"
        )
    for path in checkpoint.listing(run.checkpoints)[-len(problems) :] if problems else []:
        checkpoint.set_aside(path)
    return saved, problems


def _draw_curves(run: Run, config: Config, steps: int) -> None:
    curve = {"unraze": __version__, "kind": "loss", "run": run.path.name, "step": steps}
    plots.save(plots.loss_figure(runs.read_rows(run.stats)), run.path / "loss.png", curve)
    if config.train.eval_every is not None:
        figure = plots.quality_figure(runs.read_rows(run.quality))
        plots.save(figure, run.path / "quality.png", curve | {"kind": "quality"})


def _save(
    trainee: Trainee,
    folder: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: int,
    group: ProcessGroup | None = None,
) -> checkpoint.Saving | None:
    """Writes a checkpoint: the first rank does, or, where the weights are divided, all begin to,
    while training goes on. To be called by all ranks at once."""
    images = trainee.images
    about = {
        "shape": list(images.pixels.shape[1:]),
        "class_names": list(images.class_names) if trainee.num_classes else [],
        "num_classes": trainee.num_classes,
        "sigma_data": trainee.config.loss.sigma_data,
        "clusters": None if trainee.clusters is None else trainee.clusters.hash,
    }
    whole_state = {
        **state,
        "model": about,
        "data": images.fingerprint,
        "config": trainee.config.model_dump(mode="json"),
    }
    tensors: dict[str, Any] = {
        "model": trainee.network.state_dict(),
        "ema": trainee.average,
        "optim": optim.write_state(trainee.network, trainee.optimizer),
    }
    how: dict[str, Any] = {"state": whole_state, "keep": keep}
    if trainee.is_divided:
        return checkpoint.save_sharded(
            folder, step, **tensors, **how, ranks=trainee.ranks, group=group
        )
    trainee.ranks.first(checkpoint.save, folder, step, **tensors, **how)
    return None


def _ruler(
    config: Config, images: Images, stop: Callable[[], bool], ranks: Ranks
) -> Generator[Report, None, during.Ruler | None]:
    """What evaluations are measured with, made ready stage by stage; None where it is to stop.

    The first rank makes it and alone asks whether to stop; the others then find it kept.
    """
    yield Report("preparing", 0, 0, message=during.told(config, images))
    held_out = ranks.in_turn(lambda: load_images_of(config.data, split="held-out"))
    ruler: during.Ruler | None = None
    if ranks.is_first:
        made = during.ruler(config, images, held_out)
        while True:
            try:
                stage = next(made)
            except StopIteration as end:
                ruler = end.value
                break
            yield Report("preparing", stage.done, stage.total)
            if stop():
                break
    if not ranks.first(lambda: ruler is not None):
        return None
    found = ruler if ruler is not None else finish(during.ruler(config, images, held_out))
    spaces = ranks.each(lambda: found.space.hash)
    if others := [k for k, space in enumerate(spaces) if space != spaces[0]]:
        raise UnrazeError(
            f"train.eval_every: rank {others[0]} trained other features than rank 0, on another "
            "machine; let all have one cache, UNRAZE_CACHE on a disk that they share"
        )
    return found


def _evaluate(
    trainee: Trainee,
    ruler: during.Ruler,
    run: Run,
    step: int,
    state: dict[str, Any],
    cost: during.Cost,
    stop: Callable[[], bool],
) -> str | None:
    """Evaluates the averaged weights, logs it, keeps them where none were better; in words. None
    where it was to stop meanwhile.

    What it cost is logged too: how long this one took, and the share of the time so far that was
    spent evaluating. Nothing depends on it.
    """
    ranks = trainee.ranks
    with cost.of_evaluation():
        try:
            figure = during.quality(averaged_model(trainee, run), ruler, ranks, stop=stop)
        except Stopped:
            return None
    said, is_best = ranks.first(_judged, run, ruler, step, figure, cost, state["run"])
    if is_best:
        assert figure is not None
        best_state = state | {"periodic": False, "kid": figure.value}
        saving = _save(trainee, run.best, step, best_state, keep=3)  # until it is whole
        if saving is not None:
            ranks.each(saving.finish)
        assert trainee.config.train.checkpoint_every is not None
        ranks.first(_leave_the_best, run, trainee.config.train.checkpoint_every)
    if figure is not None and ranks.is_first:  # the last, for it says that the evaluation is done
        row: dict[str, Any] = {"step": step, "kid": figure.value}
        row |= {"low": figure.low, "high": figure.high}
        row |= {"samples": ruler.count, "features": ruler.space.hash}
        row |= {"seconds": round(cost.seconds, 2), "share": round(cost.share, 4)}
        runs.append_row(run.quality, row)
    return said


def _judged(
    run: Run,
    ruler: during.Ruler,
    step: int,
    figure: Figure | None,
    cost: during.Cost,
    name: str,
) -> tuple[str, bool]:
    """What an evaluation says, in words, and whether it is the best so far, in whose place no other
    is left; `name` is the run's identity."""
    spent = f"; it took {cost.seconds:.1f} s, evaluating {cost.share:.1%} of the time so far"
    if figure is None:
        return f"step {step}: not evaluated, the images drawn are not finite{spent}", False
    said = (
        f"step {step}: KID × 1000 is {1000 * figure.value:.2f} "
        f"({1000 * figure.low:.2f} … {1000 * figure.high:.2f})"
    )
    best, problems = checkpoint.newest(run.best, run=name, tensors=False)
    # after a crash the best may be of a step that is yet to be made again, or of this one
    kid = None if best is None or best.step == step else best.state.get("kid")
    is_best = kid is None or figure.value < kid
    if is_best:
        checkpoint.remove_after(run.best, step)
        said += ", the best so far"
        if problems:
            said += f", or kept as such for the best is lost (DAMAGED: {problems[0]})"
    elif problems and best is not None:
        checkpoint.remove_after(run.best, best.step)
        said += f"; the best is lost (DAMAGED: {problems[0]}), the next is of step {best.step}"
    return said + spent, is_best


def _leave_the_best(run: Run, every: int) -> None:
    """Removes those that did best before, but for the one that would be the best again if the run
    were rolled back to what was saved last, every so many steps."""
    *older, best = checkpoint.listing(run.best)
    saved = (checkpoint.step_of(best) - 1) // every * every
    again = next((path for path in reversed(older) if checkpoint.step_of(path) <= saved), None)
    for path in older:
        if path != again:
            checkpoint.remove(path)


def _owed(run: Run, config: Config, step: int) -> set[str]:
    """What is to be done at the step that a run goes on from, and was not: it was stopped first."""
    steps = config.train.steps
    owed: set[str] = set()
    if step == 0 or steps is None:
        return owed
    if config.train.eval_every is not None and (
        step % during.every_of(config) == 0 or step == steps
    ):
        rows = runs.read_rows(run.quality)
        owed |= set() if any(row["step"] == step for row in rows) else {"evaluation"}
    if (step % preview_interval(config) == 0 or step == steps) and not is_previewed(run, step):
        owed.add("preview")
    return owed


def _restore(trainee: Trainee, saved: checkpoint.Checkpoint) -> dict[str, Any]:
    if trainee.is_divided and "shards" in saved.state:
        moments = optim.begun_state(trainee.network, trainee.config.train)
        if not saved.state["updates"]:
            moments = {}
        model = trainee.network.state_dict()
        checkpoint.read_into(saved, model=model, ema=trainee.average, optim=moments)
        optim.read_state(trainee.network, trainee.optimizer, moments)
    else:
        _fill(trainee, saved)
    return {key: saved.state[key] for key in ("updates", "bad", "lr_factor", "rolled_back")}


def _fill(trainee: Trainee, saved: checkpoint.Checkpoint) -> None:
    """Puts back what a checkpoint has; raises `CheckpointError` where it does not fit."""
    shapes = {name: value.shape for name, value in trainee.average.items()}
    checkpoint.require_fit(shapes, saved.ema, saved.path / "ema.safetensors")
    dtypes = {name: value.dtype for name, value in trainee.average.items()}
    checkpoint.require_dtypes(dtypes, saved.ema, saved.path / "ema.safetensors")
    moments = (
        optim.state_shapes(trainee.network, trainee.config.train) if saved.state["updates"] else {}
    )
    if moments and not saved.optim:
        raise CheckpointError(
            f"{saved.path}: is without the optimiser's state, as a run is that was published, so "
            "it cannot be resumed; go on from its weights: unraze train IMAGES --from RUN"
        )
    checkpoint.require_fit(moments, saved.optim, saved.path / "optim.safetensors")
    where = saved.path / "model.safetensors"
    checkpoint.fill(trainee.network, saved.model, where)
    for name, value in trainee.average.items():
        value.copy_(divided_as(saved.ema[name], value))
    optim.read_state(trainee.network, trainee.optimizer, saved.optim)


def _roll_back(trainee: Trainee, run: Run, state: dict[str, Any]) -> int:
    """Back to the newest checkpoint that a run never stopped has too, or to the beginning, with a
    lower learning rate; the step. What was saved after it, where the run was stopped, goes."""
    ranks = trainee.ranks
    saved = ranks.first(_newest_periodic, run, state["run"], whole=not trainee.is_divided)
    if saved is None:
        weights = ranks.first(begun_with, run, trainee.config)
        fresh = begin(trainee.config, trainee.images, weights, trainee.clusters, ranks)
        trainee.network.load_state_dict(fresh.network.state_dict())
        trainee.average.update(fresh.average)
        trainee.optimizer.state.clear()
        state |= {"updates": 0, "bad": 0}
    else:
        state |= _restore(trainee, saved)
    state |= {"bad": 0, "lr_factor": state["lr_factor"] * LOWER_RATE, "rolled_back": True}
    step = 0 if saved is None else saved.step
    if ranks.is_first:
        for folder in (run.checkpoints, run.best):  # the best of a course that is given up is none
            checkpoint.remove_after(folder, step)
        remove_previews_after(run, step)
        runs.truncate_rows(run, step)
    return step


def _newest_periodic(run: Run, name: str, *, whole: bool) -> checkpoint.Checkpoint | None:
    """The newest checkpoint that a run never stopped has too."""
    for path in reversed(checkpoint.listing(run.checkpoints)):
        found = checkpoint.read(path, run=name, whole=whole)
        if found.state["periodic"] and found.state["bad"] == 0:
            return found
    return None


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


def clusters_of(
    run: Run, config: Config, images: Images, saved: checkpoint.Checkpoint | None
) -> Clusters | None:
    """Those that the run's network is told, found now where the run has none yet; None without.

    Raises `CheckpointError` where they are not those that the checkpoint was trained with.
    """
    if not config.train.clusters:
        return None
    if saved is None and not run.clusters.is_file():
        found = clustering.find(images, config.train.clusters, seed=config.train.seed)
        clustering.write(run.clusters, found)
    expected = None if saved is None else saved.state["model"].get("clusters")
    found = clustering.read(run.clusters, expected)
    now = clustering.of_others(found, images)
    if now is not found:  # they were found of others, and it was killed before it said so
        clustering.write(run.clusters, now)
    return now


def _require_its_images(
    run: Run,
    config: Config,
    saved: checkpoint.Checkpoint | None,
    images: Images,
    accept: bool,
) -> str | None:
    """Raises `CheckpointError` where the images are not those that a run was trained on, unless
    that is accepted: then what it means is returned. It is accepted once and for all."""
    kept = runs.read_data(run)
    if saved is None and kept is not None and kept.fingerprint != images.fingerprint:
        raise CheckpointError(
            f"{run.path}: the images are not those that it was begun with "
            f"({record.changes(kept, images)}), and it has no checkpoint yet: bring them back, or "
            "train anew, by which nothing is lost"
        )
    if saved is None or not saved.state["data"]:
        return None
    about = saved.state["model"]
    name = saved.state.get("run") or runs.identity(config, images)
    if saved.state["data"] == images.fingerprint:
        if kept is None:  # a run of before this was kept
            runs.write_data(run, images, name)
        return None
    if kept and kept.fingerprint == images.fingerprint and saved.state["data"] in kept.accepted:
        return None
    known = kept is not None and kept.fingerprint == saved.state["data"]
    what = record.changes(kept, images) if kept and known else "which ones, is not known"
    shape = list(images.pixels.shape[1:])
    if shape != about["shape"] or (
        config.train.classes and list(images.class_names) != about["class_names"]
    ):
        raise CheckpointError(
            f"{run.path}: the images are not those it was trained on ({what}), but of another "
            "shape, or of other classes: bring them back, or train anew"
        )
    if not accept:
        raise CheckpointError(
            f"{run.path}: the images are not those it was trained on ({what}): bring them back, "
            "train anew, or go on with those there are: unraze resume RUN --accept-changed-data"
        )
    accepted = [*(kept.accepted if kept else []), saved.state["data"]]
    runs.write_data(run, images, name, accepted)
    evaluations = ", and evaluations no longer compare with those before"
    return (
        f"CHANGED images are accepted ({what}): from here on the run is no longer the one that its "
        "command makes; what held-out images say of it is less sure, some may have been trained on"
        f"{evaluations if config.train.eval_every else ''}"
    )


def _differences(run: Run, config: Config, saved: checkpoint.Checkpoint, ranks: Ranks) -> list[str]:
    """A sentence for each thing that keeps a resumed run from being the same to the bit."""
    if not saved.state["data"]:
        raise CheckpointError(
            f"{run.path}: was made of weights that another program trained, without the state of "
            "that training, so it cannot go on with it; `unraze train IMAGES --from RUN` begins a "
            "training with these weights"
        )
    # read as a whole: a run of before a key was known had that key's default
    then = from_dict(saved.state["config"], where=f"{saved.path / 'state.json'}: config")
    config_then, config_now = then.model_dump(mode="json"), config.model_dump(mode="json")
    said: list[str] = []
    for key, was, is_now in _changed_keys(config_then, config_now):
        if key.startswith("schedule.") or key == "loss.parametrisation":
            raise CheckpointError(
                f"{run.path / 'config.toml'}: {key} was {was!r} when this was trained and is "
                f"{is_now!r} now, which makes its weights mean something else: put it back"
            )
        said.append(
            f"DIFFERENT from when the run began: config.toml has {key} = {is_now!r}, was {was!r}"
        )
    before, now = runs.read_env(run), runs.environment(ranks=ranks.count)
    if lost := before.get("env.json"):
        file = run.path / "env.json"
        return [*said, f"{file}: {lost}, so whether the machine is the same is not known"]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            said.append(
                f"DIFFERENT from when the run began: {key} is {now.get(key)!r}, was "
                f"{before.get(key)!r}; it goes on, but not to the same bits"
            )
    return said


def _changed_keys(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value before, value now) of what differs; how it is sampled does not count."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if prefix or key != "sample":
                yield from _changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def _log(run: Run, ranks: Ranks, message: str) -> None:
    if ranks.is_first:
        runs.log(run, message)


def _warn(run: Run, message: str) -> None:
    """Says what cannot wait for the next report."""
    runs.log(run, message)
    print(message, file=sys.stderr, flush=True)


def _said(run: Run, ranks: Ranks, message: str) -> Report:
    _log(run, ranks, message)
    return Report("training", 0, 0, message=message)


def _root_mean_square(images: Images) -> float:
    """σ_data: the root mean square of the pixels in [-1, 1]; of at most 4,096 images, evenly."""
    some = images.pixels[:: -(-len(images.pixels) // 4096)]
    values = some.astype(np.float64) / 127.5 - 1
    return round(float(np.sqrt(np.mean(values**2))), 6)
