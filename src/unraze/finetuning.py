"""From a trained run to one that goes on from its weights, on other images or with another recipe.

What the weights mean is the old run's: its network, its schedule and its loss; how they are trained
on is a preset's. The new run keeps the weights that it began with in its own folder.
"""

from collections.abc import Sequence
from pathlib import Path

from unraze import checkpoint, run as runs
from unraze.config import BegunConfig, Config
from unraze.data import Images
from unraze.errors import InputError
from unraze.generate import Model
from unraze.run import Run
from unraze.step import TABLES
from unraze.train import prepare

__all__ = ["LOWER_RATE", "configuration", "create"]

LOWER_RATE = 0.1
"""The learning rate of what is trained already, over that of a network from its beginning."""


def configuration(config: Config, model: Model) -> Config:
    """`config` for a run that begins with the weights of `model`, whose network, schedule, loss and
    way of drawing it takes.

    It is told clusters where the model was, and of classes none, unless asked for. Raises
    `InputError` for a distilled model.
    """
    old = model.config
    if old.distilled is not None:
        raise InputError(
            f"{model.run}: a distilled network is not trained further; go on from the run that it "
            f"was distilled from: {old.distilled.run}"
        )
    data = config.data.model_copy(
        update={
            "size": config.data.size or model.shape[1:],
            "channels": config.data.channels or model.shape[0],
            "augment": config.data.augment or old.data.augment,
        }
    )
    train = config.train
    if not old.train.clusters:
        train = train.model_copy(update={"clusters": 0})
    if model.num_classes and not old.train.label_dropout:  # its network knows no images without
        train = train.model_copy(update={"label_dropout": 0.0})
    sections = {
        "data": data,
        "schedule": old.schedule,
        "network": old.network,
        "loss": old.loss,
        "sample": old.sample,
        "train": train,
    }
    return config.model_copy(update=sections)


def create(
    model: Model, config: Config, images: Images, *, out: Path | None, command: Sequence[str] = ()
) -> Run:
    """A run folder of that configuration, with the model's weights in it.

    The table of classes goes with them where the classes are the same, else it begins anew. Raises
    `InputError` for images of another shape than the model's, and what `prepare` raises.
    """
    if images.pixels.shape[1:] != model.shape:
        c, h, w = model.shape
        raise InputError(
            f"{images.source}: images of {images.pixels.shape[1:]}, while {model.run} draws "
            f"{model.shape}; give --size {h}x{w} --channels {c}, or leave them out"
        )
    same = config.train.classes and model.class_names == images.class_names
    if model.num_classes and not same and _knows_but_classes(model):
        raise InputError(
            f"{model.run}: its network knows images of its {model.num_classes} classes alone; give "
            "--classes and images in sub-folders of these names: "
            f"{', '.join(model.class_names[:5])}{' …' if model.num_classes > 5 else ''}"
        )
    weights = {k: v for k, v in model.network.state_dict().items() if same or k not in TABLES}
    begun = BegunConfig(run=str(Path(model.run).resolve()), checkpoint=checkpoint.hash_of(weights))
    config = prepare(config.model_copy(update={"begun": begun}), images)
    run = runs.create(config, out=out, command=command)
    state = {
        "updates": 0,
        "bad": 0,
        "lr_factor": 1.0,
        "rolled_back": False,
        "periodic": False,
        "model": {
            "shape": list(model.shape),
            "class_names": list(model.class_names) if same else [],
            "num_classes": model.num_classes if same else 0,
            "sigma_data": model.sigma_data,
            "clusters": None,
        },
        "data": model.data,
        "config": model.config.model_dump(mode="json"),
    }
    checkpoint.save(
        run.start, model.step, model=weights, ema=weights, optim={}, state=state, keep=1
    )
    return run


def _knows_but_classes(model: Model) -> bool:
    """Whether its network has no row for images without a class."""
    return model.config.train.classes and not model.config.train.label_dropout
