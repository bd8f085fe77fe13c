"""From a trained run to one that goes on from its weights, on other images or with another recipe.

What the weights mean is the old run's: its network, its schedule and its loss; how they are trained
on is a preset's. The new run keeps the weights that it began with in its own folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unraze import augment, checkpoint, run as runs
from unraze.config import BegunConfig, Config, UNet2DConfig, idle, updated
from unraze.data import Images
from unraze.errors import InputError
from unraze.generate import Model
from unraze.ranks import ALONE, Ranks
from unraze.run import Run
from unraze.step import AUGMENTATION, TABLES
from unraze.train import prepare

__all__ = ["LOWER_RATE", "configuration", "create"]

LOWER_RATE = 0.1
"""The learning rate of what is trained already, over that of a network from its beginning."""


def configuration(config: Config, model: Model) -> Config:
    """`config` for a run that begins with the weights of `model`, whose network, schedule, loss and
    way of drawing it takes, its size and its clusters; and a tenth of the learning rate.

    Any of these may be changed in what it returns, but for the first three. Raises `InputError` for
    a distilled model.
    """
    old = model.config
    if old.distilled is not None:
        raise InputError(
            f"{model.run}: a distilled network is not trained further; go on from the run that it "
            f"was distilled from: {old.distilled.run}"
        )
    sections: dict[str, Any] = {
        "data": config.data.model_copy(
            update={
                "size": config.data.size or model.shape[1:],
                "channels": config.data.channels or model.shape[0],
            }
        ),
        "schedule": old.schedule,
        "network": old.network,
        "loss": old.loss,
        "sample": old.sample,
        "train": config.train.model_copy(
            update={
                "lr": config.train.lr * LOWER_RATE,
                "clusters": 0 if config.train.classes else old.train.clusters,
                "label_dropout": config.train.label_dropout if _knows_nothing(model) else 0.0,
            }
        ),
    }
    if not (old.train.clusters or config.train.classes):
        sections["sample"] = old.sample.model_copy(update={"guidance": 1.0})
    config = config.model_copy(update=sections)
    of_the_old = {key: value for key, value in idle(config).items() if key.startswith("loss.")}
    return updated(config, of_the_old)


def create(
    model: Model,
    config: Config,
    images: Images,
    *,
    out: Path | None,
    command: Sequence[str] = (),
    ranks: Ranks = ALONE,
    launch: str = "",
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
    # the names of clusters are numbers, as those of classes may be
    knows_classes = model.clusters is None and model.class_names == images.class_names
    same = config.train.classes and knows_classes
    if not _knows_nothing(model) and not same:
        raise InputError(
            f"{model.run}: its network knows images of its {model.num_classes} classes alone; give "
            "--classes and images in sub-folders of these names: "
            f"{', '.join(model.class_names[:5])}{' …' if model.num_classes > 5 else ''}"
        )
    if not _knows_nothing(model) and config.train.label_dropout:
        raise InputError(
            f"train.label_dropout = {config.train.label_dropout:g}: the network of {model.run} has "
            "no place for images without a class; leave it at 0"
        )
    left = set() if same else set(TABLES)
    if not augment.chance_for(config, len(images.pixels)):
        # of images that nothing is done to it says nothing
        left.add(AUGMENTATION)
    weights = {k: v for k, v in model.network.state_dict().items() if k not in left}
    begun = BegunConfig(
        run=str(Path(model.run).resolve()),
        checkpoint=checkpoint.hash_of(weights),
        unseen=_held_out_the_same(model, images),
    )
    config = prepare(config.model_copy(update={"begun": begun}), images, ranks)
    run = runs.create(config, out=out, command=command, ranks=ranks.count, launch=launch)
    about = {
        "shape": list(model.shape),
        "class_names": list(model.class_names) if same else [],
        "num_classes": model.num_classes if same else 0,
        "sigma_data": model.sigma_data,
        "clusters": None,
    }
    checkpoint.save_weights(
        run.start,
        model.step,
        model=weights,
        ema=weights,
        about=about,
        data=model.data,
        config=model.config.model_dump(mode="json"),
    )
    return run


def _held_out_the_same(model: Model, images: Images) -> bool:
    """Whether the model saw none of what is held out of these images: it was trained on the same
    ones, and so was what it began with itself."""
    before = model.config.begun
    if model.data != images.fingerprint or runs.saw_others(Run(Path(model.run))):
        return False
    return before is None or before.unseen


def _knows_nothing(model: Model) -> bool:
    """Whether its network has a place for images without a class."""
    network = model.config.network
    rows = network.num_class_embeds if isinstance(network, UNet2DConfig) else None
    return not model.num_classes or rows != model.num_classes
