"""Destroy and Reconstruct, of one image at one moment: what is answered at once.

x_t = ᾱ_t x_0 + β̄_t ε̄,   and what the network says of x_t alone: x̂_0 and ε̂
"""

import base64
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unraze import generate
from unraze.config import SampleConfig
from unraze.data import Images, to_float, to_uint8
from unraze.denoiser import Prediction
from unraze.errors import InputError
from unraze.generate import Model
from unraze.process import destroy_at
from unraze.schedule import Schedule
from unraze.studio.asked import Destroyed, Drawn, Example, Picture, Upload
from unraze.studio.held import Held
from unraze.studio.library import Missing, finite
from unraze.studio.sprites import sprite
from unraze.studio.tasks.editing import Edits
from unraze.studio.tasks.sampling import Drawing
from unraze.studio.work import Queue

__all__ = [
    "chosen",
    "destroyed",
    "estimate",
    "file_of",
    "image_of",
    "noise_of",
    "schedule_of",
    "start",
]

Array = np.ndarray[Any, Any]

POINTS = 256
NOISE_LIMIT = 3.0
"""The noise that is shown as white, and its negative as black."""


def image_of(picture: Picture, model: Model, held: Held, queue: Queue) -> Tensor:
    """x_0 (1, C, H, W) in [-1, 1]; raises `Missing`."""
    match picture:
        case Example():
            return to_float(chosen(held.examples(model), picture.number)[None])
        case Upload():
            return to_float(held.upload(picture.id, model)[None])
        case Drawn():
            job = queue.get(picture.job)
            shown = None if job is None else job.shown
            final = shown.final if isinstance(shown, Drawing | Edits) else None
            if final is None or picture.image >= len(final):
                raise Missing("this picture is not kept any more; draw it again")
            one = np.ascontiguousarray(final[picture.image].transpose(2, 0, 1))
            if one.shape != model.shape:
                raise InputError(
                    f"this picture is {_size(one.shape)}, the run draws {_size(model.shape)}; take "
                    "one of the same shape"
                )
            return to_float(one[None])


def file_of(picture: Picture, model: Model, held: Held) -> str:
    """The name of the file that an image is in, or would be saved in; raises `Missing`."""
    match picture:
        case Example():
            return f"{held.examples(model).split}-{picture.number:05d}.png"
        case Upload():
            return held.file_of(picture.id)
        case Drawn():
            return f"{picture.image:05d}.png"


def chosen(images: Images, number: int) -> Array:
    """An image of a data set, uint8 (C, H, W); raises `Missing`."""
    if number >= len(images):
        raise Missing(f"there is no image {number}, there are {len(images)}")
    return np.asarray(images.pixels[number])


def noise_of(model: Model, seed: int) -> Tensor:
    """ε̄ (1, C, H, W) of a seed: that which picture 0 of that seed is drawn from."""
    return generate.start(model, seed, range(1))


def start(model: Model, x0: Tensor, t: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, ε̄ and the time t as a tensor; raises `InputError` for a time outside the schedule."""
    last = float(model.schedule.times[-1])
    if t > last:
        raise InputError(f"t = {t:g}: this run's schedule goes from 0 to {last:g}")
    eps, time_ = noise_of(model, seed), torch.tensor([t], dtype=torch.float64)
    x_t = destroy_at(*model.schedule.at(time_), x0, eps)
    return x_t, eps, time_


@torch.no_grad()
def estimate(model: Model, x_t: Tensor, t: Tensor, label: int | None) -> Prediction:
    """What the network says of x_t, clipped as nothing is."""
    plain = SampleConfig(clip="none", dtype="float32")
    labels = [label_of(model, label)]
    return generate.denoiser_of(model, plain, labels)(x_t, t)


def label_of(model: Model, label: int | None) -> int | None:
    """The class to tell the network; of a run that never saw an image without one, class 0 where
    none is asked for."""
    if label is not None or not model.num_classes:
        return generate.class_of(model, label, 0, 0)
    return None if model.config.train.label_dropout else 0


def destroyed(asked: Destroyed, model: Model, x0: Tensor) -> dict[str, Any]:
    """One moment in pictures and figures; one network call."""
    began = time.perf_counter()
    t = _whole(model, asked.t)
    x_t, eps, time_ = start(model, x0, t, asked.seed)
    error = None
    if t > 0:
        said = estimate(model, x_t, time_, asked.label)
        x0_hat, eps_hat = said.x0, said.eps
        error = {
            "eps": finite((eps_hat - eps).square().mean()),
            "x0": finite((x0_hat - x0).square().mean()),
        }
    else:  # nothing is destroyed: there is nothing to say
        x0_hat, eps_hat = x0, torch.zeros_like(x0)
    row = torch.cat([x0, x_t, eps / NOISE_LIMIT, x0_hat, eps_hat / NOISE_LIMIT])
    if bool(row.isnan().any()):
        raise InputError("the network says not-a-number; take an older checkpoint")
    shown = sprite(to_uint8(row).transpose(0, 2, 3, 1), 5)
    return {
        "t": t,
        "values": _values(model, t),
        "shape": list(model.shape),
        "error": error,
        "sprite": "data:image/png;base64," + base64.b64encode(shown).decode(),
        "seconds": time.perf_counter() - began,
    }


def _whole(model: Model, t: float) -> float:
    """A time that the network knows: a whole one, unless it was trained at all of them."""
    return t if model.config.loss.continuous else float(round(t))


def _values(model: Model, t: float) -> dict[str, float | None]:
    """The amplitudes at a time; those of a step are of the whole step that ends there."""
    schedule = model.schedule
    alpha_bar, beta_bar = (float(v) for v in schedule.at(torch.tensor(t, dtype=torch.float64)))
    step = max(1, min(schedule.steps, int(np.ceil(t))))
    ratio = alpha_bar / beta_bar if beta_bar else float("inf")
    return {
        "alpha_bar": alpha_bar,
        "beta_bar": beta_bar,
        "alpha": float(schedule.alpha[step]) if t else None,
        "beta": float(schedule.beta[step]) if t else None,
        "beta_tilde": float(schedule.beta_tilde[step]) if t else None,
        "log_snr": finite(2 * np.log(ratio)) if ratio else None,
        "signal_to_noise": finite(ratio),
    }


def schedule_of(schedule: Schedule) -> dict[str, Any]:
    """Its curves, at no more points than a page has use for."""
    at = np.unique(np.linspace(0, schedule.steps, min(schedule.steps, POINTS) + 1).round())
    index = torch.from_numpy(at).long()

    def column(values: Tensor, *, of_steps: bool = False) -> list[float | None]:
        told = [finite(value) for value in values[index].tolist()]
        return [None, *told[1:]] if of_steps else told

    return {
        "T": float(schedule.times[-1]),
        "t": schedule.times[index].tolist(),
        "alpha_bar": column(schedule.alpha_bar),
        "beta_bar": column(schedule.beta_bar),
        "log_snr": column(schedule.log_snr),
        "alpha": column(schedule.alpha, of_steps=True),
        "beta": column(schedule.beta, of_steps=True),
        "beta_tilde": column(schedule.beta_tilde, of_steps=True),
    }


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[2]} {'grey' if shape[0] == 1 else 'colour'}"
