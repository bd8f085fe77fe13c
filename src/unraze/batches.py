"""What step n of a training run is made of: a function of (seed, n), of nothing else.

Places in the global batch are numbered 0 … B-1, whoever computes them; epochs are laid end to end,
each in an order of its own.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from unraze import augment, consistency, rng
from unraze.config import LossConfig, TrainConfig
from unraze.loss import draw_times, stratify
from unraze.nn.layers import Dropout
from unraze.schedule import Schedule

__all__ = ["augmentation_of", "labels_of", "looks_twice", "samples_of", "seed_dropout", "times_of"]


def samples_of(
    config: TrainConfig, count: int, step: int, *, flip: bool, places: range | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Which of `count` images step `step` (from 1) sees (B,), and which of them mirrored.

    With `places`, mirroring is drawn for these alone, the same as for all: of the others none is
    said to be. Each takes a stream of its own, which is slow for a batch of tens of thousands.
    """
    positions = np.arange((step - 1) * config.batch, step * config.batch)
    epochs, within = positions // count, positions % count
    indices = np.empty(config.batch, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        of_epoch = epochs == epoch
        indices[of_epoch] = _epoch_order(config.seed, count, epoch)[within[of_epoch]]
    if not flip:
        return indices, None
    flips = np.zeros(config.batch, dtype=bool)
    for place in range(config.batch) if places is None else places:
        stream = rng.generator(config.seed, "flip", int(indices[place]), int(epochs[place]))
        flips[place] = stream.random() < 0.5
    return indices, flips


def augmentation_of(config: TrainConfig, p: float, size: tuple[int, int], step: int) -> Tensor:
    """How the images of step `step` are changed: their labels (B, 9), see `unraze.augment`."""
    u = rng.uniform(config.seed, "augmentation", config.batch * augment.DRAWS, step)
    return augment.drawn(u.reshape(config.batch, augment.DRAWS), p, size)


def times_of(config: TrainConfig, loss: LossConfig, schedule: Schedule, step: int) -> Tensor:
    """The training times of step `step` (B,), stratified over the global batch where asked."""
    u = rng.uniform(config.seed, "time", config.batch, step)
    if loss.stratified:
        order = rng.permutation(config.seed, "strata", config.batch, step)
        u = stratify(u, torch.from_numpy(order))
    if loss.objective == "consistency":
        return consistency.drawn(u, schedule, loss)
    return draw_times(u, schedule, loss)


def labels_of(config: TrainConfig, labels: np.ndarray, num_classes: int, step: int) -> Tensor:
    """The labels (B,) with a share of them hidden: class `num_classes` stands for no label."""
    hidden = rng.uniform(config.seed, "label", config.batch, step) < config.label_dropout
    return torch.where(hidden, num_classes, torch.from_numpy(labels))


def looks_twice(config: TrainConfig, step: int) -> bool:
    """Whether a self-conditioned network sees its own first estimate in step `step`: half do."""
    return bool(rng.generator(config.seed, "self-conditioning", step).random() < 0.5)


def seed_dropout(network: nn.Module, config: TrainConfig, step: int, places: Sequence[int]) -> None:
    """Decides what the network drops of the images of these places in step `step`."""
    seeds = [rng.torch_seed(config.seed, "dropout", step, place) for place in places]
    layers = [layer for layer in network.modules() if isinstance(layer, Dropout)]
    for number, layer in enumerate(layers):
        layer.seeds = [(seed + number) % 2**63 for seed in seeds]


@lru_cache(maxsize=4)
def _epoch_order(seed: int, count: int, epoch: int) -> np.ndarray:
    return rng.permutation(seed, "order", count, epoch)
