"""A run folder made of weights that another program trained.

It is a run like any other for what draws from it. What it lacks is what it was trained on, so it
can't be trained further, or be measured against images of its own: its `data.source` says so.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from unraze import checkpoint, files, nn as networks, run as runs
from unraze.config import Config, updated
from unraze.data.reading import IMPORTED
from unraze.errors import UnrazeError
from unraze.run import Run

__all__ = ["create_run"]


def create_run(
    config: Config,
    network_state: Mapping[str, Tensor],
    ema_state: Mapping[str, Tensor],
    *,
    shape: tuple[int, int, int],
    class_names: Sequence[str] = (),
    num_classes: int = 0,
    sigma_data: float = 1.0,
    step: int = 0,
    out: Path | None,
    folder: Path = Path("runs"),
    command: Sequence[str] = (),
) -> Run:
    """Makes a run of these weights, with one checkpoint; whole, or not at all.

    Arguments:
        config: of the run; its `data.source` names what the weights were read from. Size, channels,
            σ_data and the number of steps are filled in.
        network_state: the weights as trained, by the names of the network of `config.network`.
        ema_state: their average, which is sampled from; the same again where there is none.
        shape: (C, H, W) of the images, C 1 or 3.
        step: the training step that they were saved at, 0 where it is not known.
        out: the run's folder; None: the next number under `folder`, named after `data.source`.
        command: what is kept as the command that made it.

    Raises `InputError` where `out` is not free, `UnrazeError` where it cannot be written, and
    `ValueError` for weights that are not those of the network.
    """
    config = updated(
        config,
        {
            "data.source": f"{IMPORTED}{config.data.source}",
            "data.size": shape[1:],
            "data.channels": shape[0],
            "data.held_out": 0.0,
            "loss.sigma_data": sigma_data,
            "train.steps": max(step, 1),
        },
    )
    _require_its_weights(config, network_state, num_classes, "network_state")
    _require_its_weights(config, ema_state, num_classes, "ema_state")
    numbered = None if out is not None else runs.make_numbered(folder, config.data.source)
    final = out if numbered is None else numbered
    assert final is not None
    runs.require_free(final)
    part = files.temporary(Path(os.path.abspath(final)))
    try:
        run = runs.create(config, out=part, command=command)
        checkpoint.save_weights(
            run.checkpoints,
            step,
            model=dict(network_state),
            ema=dict(ema_state),
            about={
                "shape": list(shape),
                "class_names": list(class_names),
                "num_classes": num_classes,
                "sigma_data": sigma_data,
                "clusters": None,
            },
            data="",
            config=config.model_dump(mode="json"),
        )
        runs.log(run, f"made of the weights of {config.data.source}, step {step}")
        part.rename(final)
        files.flush_folder(part.parent)
    except OSError as error:
        raise UnrazeError(files.cannot_write(final, error)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if numbered is not None and not any(numbered.iterdir()):
            numbered.rmdir()
    return Run(final)


def _require_its_weights(
    config: Config, weights: Mapping[str, Tensor], num_classes: int, name: str
) -> None:
    """Raises `ValueError` unless these are the tensors of the configuration's network."""
    assert config.data.size is not None
    assert config.data.channels is not None
    with torch.device("meta"):  # shapes alone
        network = networks.build(
            config.network,
            channels=config.data.channels,
            size=config.data.size,
            num_classes=num_classes,
            self_conditioning=config.loss.self_conditioning,
            learned_variance=config.loss.variance == "learned",
        )
    wanted = {key: (tuple(v.shape), v.dtype) for key, v in network.state_dict().items()}
    there = {key: (tuple(v.shape), v.dtype) for key, v in weights.items()}
    for key in sorted(wanted.keys() | there.keys()):
        if wanted.get(key) != there.get(key):
            raise ValueError(
                f"{name}: {key} is {there.get(key, 'missing')}, the network has "
                f"{wanted.get(key, 'none')}"
            )
