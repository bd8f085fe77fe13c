"""From a trained run to one that needs a call or two: what the new run is made of.

The new run begins with the averaged weights of the old one, which also stay beside it as its
teacher, and is trained by `unraze.train` like any other; what it minimises is `unraze.consistency`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unraze import checkpoint, clusters, run as runs
from unraze.config import BegunConfig, Config, idle, updated
from unraze.data import Images
from unraze.errors import InputError
from unraze.generate import Model, can_be_guided, load
from unraze.run import Run
from unraze.train import Report, prepare, train

__all__ = ["configuration", "create", "distill"]

RECIPE: dict[str, Any] = {
    "train.optimizer": "muon",
    "train.muon_scale": 10.0,
    "train.lr": 1e-3,
    "train.warmup": 20,
}
"""What is trained otherwise than a network from its beginning."""
COST = {"muon": 1.7, "adamw": 2.0, "adam": 2.0}
"""What a step costs at most, in steps of a training by that optimiser: the student forward and
back, target and teacher forward, and muon's own work. For the default network 1.57 and 1.9, as
measured by turns; the rest is for a machine's speed, which changes meanwhile."""
SECOND_LOOK = 0.3
"""What it costs more where the teacher is guided, which asks it twice: 0.28 at most for the default
network."""
BORDERS = {1: (0.0, 1.0), 2: (0.0, 0.6, 1.0)}
"""By calls, the angles between which one call jumps, as shares of θ_T: 0.6 because there both jumps
lose as much, measured on Fashion-MNIST."""
UNSURE = {
    "x0": "whose error is a short jump's too: from near 0 it does not stay there",
    "eps": "whose error a jump from T divides by ᾱ_T",
    "eps_step": "whose error a jump from T divides by ᾱ_T",
}
"""Why jumps are not learned by what some networks say; v and edm are as sure everywhere."""
OF_THE_TEACHER = (
    "preset",
    "network",
    "schedule",
    "distilled",
    "begun",
    "data.size",
    "data.channels",
    "train.classes",
    "train.clusters",
    "loss.parametrisation",
    "loss.self_conditioning",
    "loss.sigma_data",
    "loss.variance",
)
"""Sections and keys that say what the weights mean, `network.dropout` aside."""
TEACHER_STEPS = 12
"""From T to 0: where DDIM's Fréchet distance has nearly come to rest, and no more, for the
student learns them one after the other, from below."""


def configuration(
    model: Model,
    *,
    calls: int | None = None,
    changes: Mapping[str, Any] | None = None,
    where: str = "option",
) -> Config:
    """The configuration of a run that distils `model` to `calls` network calls an image: 2 if
    absent, or as many as there are jumps between the `loss.borders` among the `changes`.

    Without a budget among the `changes` (dotted keys, as of `unraze.config.updated`), as many steps
    as take no longer than the training took. Raises `InputError` for a run that cannot be
    distilled, and for a change that will not do, which is said to be of `where`.
    """
    given = dict(changes or {})
    loss, trained = model.config.loss, model.config.train
    if model.config.distilled is not None:
        raise InputError(
            f"{model.run}: is distilled already; distil the run that it was distilled from: "
            f"{model.config.distilled.run}"
        )
    if why := UNSURE.get(loss.parametrisation):
        raise InputError(
            f"{model.run}: its network says {loss.parametrisation}, {why}; distil a run of "
            "loss.parametrisation = v or edm"
        )
    if calls not in (None, *BORDERS):
        raise InputError(f"calls = {calls}: give {' or '.join(map(str, BORDERS))}")
    if calls is not None and given.get("loss.borders") is not None:
        raise InputError(
            f"calls = {calls}: loss.borders, which is given too, says how many there are; leave "
            "out one of them"
        )
    _require_of_this_run(model, given, where)
    augment = given.get("data.augment", model.config.data.augment)
    number = isinstance(augment, int | float)
    if augment == "auto" or (number and bool(augment) != bool(model.config.data.augment)):
        had = "with" if model.config.data.augment else "without"
        raise InputError(
            f"data.augment = {augment}: the network of {model.run} was trained {had} augmentation, "
            "and one made of it is told as much; leave it as it was"
        )
    own = model.config.sample
    schedule = model.schedule
    shares = torch.tensor(BORDERS[calls or 2], dtype=torch.float64)
    borders = schedule.time_at(shares * float(schedule.theta[-1]))
    borders = borders.round(decimals=6) if loss.continuous else borders.round()
    borders[-1] = schedule.times[-1]
    asked = given.get("loss.borders")
    jumps = len(asked if isinstance(asked, list | tuple) and asked else borders) - 1
    of_the_old = dict.fromkeys(("minutes", "steps", "epochs", "preview_every", "checkpoint_every"))
    config = updated(
        model.config,
        {f"train.{key}": value for key, value in of_the_old.items() if f"train.{key}" not in given}
        | {
            "about": f"distilled to {jumps} call{'s' if jumps > 1 else ''}",
            "loss.objective": "consistency",
            "loss.distance": "l2",
            "loss.borders": tuple(borders.tolist()),
            "loss.teacher_steps": max(1, TEACHER_STEPS // jumps),
            "loss.teacher_guidance": own.guidance if can_be_guided(model) else 1.0,
            "loss.teacher_interval": own.guidance_interval,
            "sample.sampler": "consistency",
            "sample.steps": jumps,
            "sample.spacing": "angle",
            "sample.sigma": "beta",
            "sample.guidance": 1.0,
            "sample.guidance_interval": (0.0, 1.0),
            "train.eval_every": None,
            "train.shard": False,  # it is of one process
            **RECIPE,
            "distilled": {"run": str(Path(model.run).resolve()), "checkpoint": _hash(model)},
        }
        | given,
        where=where,
    )
    left = {key: value for key, value in idle(config).items() if key not in given}
    config = updated(config, left)  # of the teacher's training, or of muon
    guidance = config.loss.teacher_guidance
    if guidance != 1 and not can_be_guided(model):
        raise InputError(
            f"guidance = {guidance:g}: this run does not know both images with a class and without "
            "one, there is nothing to guide towards"
        )
    if guidance == 1 and "loss.teacher_interval" in given:
        low, high = config.loss.teacher_interval
        cure = "give a guidance other than 1" if can_be_guided(model) else "leave it out"
        raise InputError(f"loss.teacher_interval = {low:g}, {high:g}: nothing is guided; {cure}")
    if given.keys() & {"train.minutes", "train.steps", "train.epochs"}:
        return config
    cost = COST[trained.optimizer] + (SECOND_LOOK if guidance != 1 else 0.0)
    # one that was stopped took fewer than it was to take; 0 where it is not known
    took = min(filter(None, (model.step, trained.steps)), default=1)
    steps = took * trained.batch / config.train.batch / cost
    return updated(config, {"train.steps": max(1, round(steps))})


def _require_of_this_run(model: Model, given: Mapping[str, Any], where: str) -> None:
    """Raises `InputError` for a change by which the teacher's weights would mean something else,
    and for times of training, which are the teacher's steps."""
    for key, value in given.items():
        if key.startswith("loss.times"):
            raise InputError(
                f"{where}: {key}: a network is distilled at the steps of its teacher "
                "(loss.teacher_steps), times of its own it has none; leave it out"
            )
        if key == "train.label_dropout" and value and not model.config.train.label_dropout:
            raise InputError(
                f"{where}: train.label_dropout = {value}: {model.run} saw a label with every image "
                "(train.label_dropout = 0), so it cannot teach what is without one; leave it out"
            )
        taken = key in OF_THE_TEACHER or key.split(".")[0] in OF_THE_TEACHER
        # a network of whole steps alone was never asked between them
        taken |= key == "loss.continuous" and bool(value) and not model.config.loss.continuous
        if taken and key != "network.dropout":
            raise InputError(
                f"{where}: {key} is that of {model.run}, whose weights the new run begins with; "
                "leave it out"
            )


def _hash(model: Model) -> str:
    """Of the file that the weights are about to have, which is `model.checkpoint` where both were
    written by the same version of the format's library."""
    return checkpoint.hash_of(model.network.state_dict())


def create(
    model: Model, config: Config, images: Images, *, out: Path, command: Sequence[str] = ()
) -> Run:
    """A run folder of that configuration, with the model's weights in it.

    Raises `InputError` where `out` is not free or the images are not those of the model.
    """
    if images.fingerprint != model.data:
        raise InputError(
            f"{images.source}: are not the images that {model.run} was trained on (their "
            f"fingerprint is {images.fingerprint[:12]}…, was {model.data[:12]}…): bring them back"
        )
    if runs.saw_others(runs.Run(Path(model.run))):  # of which the new one's own record is silent
        before = BegunConfig(run=str(Path(model.run).resolve()), checkpoint=_hash(model))
        config = config.model_copy(update={"begun": before})
    run = runs.create(prepare(config, images), out=out, command=command)
    if model.clusters is not None:
        clusters.write(run.clusters, model.clusters)
    weights = model.network.state_dict()
    about = {
        "shape": list(model.shape),
        "class_names": list(model.class_names),
        "num_classes": model.num_classes,
        "sigma_data": model.sigma_data,
        "clusters": None if model.clusters is None else model.clusters.hash,
    }
    checkpoint.save_weights(
        run.teacher,
        model.step,
        model=weights,
        ema=weights,
        about=about,
        data=model.data,
        config=config.model_dump(mode="json"),
    )
    return run


def distill(
    model: Model | Path | str,
    images: Images,
    *,
    out: Path | str,
    calls: int | None = None,
    guidance: float | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    report: Callable[[Report], None] = lambda _: None,
) -> Model:
    """Distils a trained model into the run folder `out` and returns the new model, in one call.

    `images` are those that it was trained on; `calls` are those of the new model an image;
    `guidance` is learned with it, the run's own if absent. Raises what `configuration`, `create`
    and `unraze.train.train` raise.
    """
    model = model if isinstance(model, Model) else load(model)
    given = {
        "loss.teacher_guidance": guidance,
        "train.minutes": minutes,
        "train.steps": steps,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    config = configuration(model, calls=calls, changes=changes)
    run = create(model, config, images, out=Path(out), command=sys.argv)
    for moment in train(run, images):
        report(moment)
    return load(run.path)
