"""From one x_t back to a picture, greedy and random side by side.

x_{t-1} = μ(x_t)          x_{t-1} = μ(x_t) + η σ_t z
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unraze import generate
from unraze.config import SampleConfig
from unraze.data import to_uint8
from unraze.drawing import kept_states
from unraze.errors import InputError
from unraze.evaluate.stage import Stage
from unraze.generate import Model
from unraze.run import Run
from unraze.samplers import greedy, random
from unraze.schedule import Schedule
from unraze.studio import looks
from unraze.studio.asked import Walked
from unraze.studio.held import Held
from unraze.studio.library import Missing
from unraze.studio.sprites import MOST_BYTES, sprite
from unraze.studio.work import Task, Work

__all__ = ["Walk", "walking"]

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Walk:
    """Frames of four pictures, uint8 (4, H, W, C): greedy x, random x, greedy x̂_0, random x̂_0."""

    frames: list[Array] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(frame.nbytes for frame in self.frames)

    def frame(self, number: int) -> bytes:
        """A frame as a sprite; raises `Missing`."""
        if number >= len(self.frames):
            raise Missing(f"frame {number} is not there yet")
        return sprite(self.frames[number], 4)


def walking(asked: Walked, run: Run, held: Held, image: Callable[[Model], Tensor]) -> Work:
    """The work of walking; `image` gives x_0 of a model's shape."""

    def work(task: Task) -> Generator[Stage, None, None]:
        yield Stage("reading the network", 0, 1)
        model = held.model(run)
        x_t, _, _ = looks.start(model, image(model), round(asked.t), asked.seed)
        chain = _chain(model, round(asked.t), asked.steps)
        sigma = _sigma(asked, model, chain)
        shown = task.job.shown = Walk()
        yield from _walked(task, asked, model, x_t, chain, sigma, shown)

    return work


def _walked(
    task: Task,
    asked: Walked,
    model: Model,
    x_t: Tensor,
    chain: Schedule,
    sigma: list[float | None],
    shown: Walk,
) -> Generator[Stage, None, None]:
    settings = SampleConfig(clip="clip", dtype="float32")
    label = looks.label_of(model, asked.label)

    noise = generate.noise_of(model, asked.seed, range(1))

    def denoise() -> Any:
        return generate.denoiser_of(model, settings, [label])

    both = zip(
        greedy(denoise(), x_t, chain),
        random(denoise(), x_t, chain, noise=noise, sigma=asked.sigma, share=asked.eta),
        strict=True,
    )
    each = max(1, 4 * int(np.prod(model.shape)))
    kept = kept_states(chain.steps, max(1, MOST_BYTES // each))
    made, at = 0, [chain.steps]
    while True:
        with torch.no_grad():
            step = next(both, None)
        if step is None:
            return
        one, other = step
        estimates = [one.prediction.x0, other.prediction.x0]
        if not shown.frames:
            shown.frames.append(_pixels([x_t, x_t, *estimates]))
        made += 1
        if made in kept:
            shown.frames.append(_pixels([one.x, other.x, *estimates]))
            at.append(chain.steps - made)
            task.job.result = _told(asked, model, chain, sigma, at)
        yield Stage("walking", made, chain.steps)


def _told(
    asked: Walked, model: Model, chain: Schedule, sigma: list[float | None], at: list[int]
) -> dict[str, Any]:
    """Figures by frame, each at a place of the chain; those of a step are of the one before it."""
    steps = [k + 1 for k in at[1:]]
    return {
        "frames": len(at),
        "times": [float(chain.times[k]) for k in at],
        "shape": list(model.shape),
        "seed": asked.seed,
        "eta": asked.eta,
        "sigma_t": [None, *(sigma[k] for k in steps)],
        "alpha_t": [None, *(float(chain.alpha[k]) for k in steps)],
        "beta_t": [None, *(float(chain.beta[k]) for k in steps)],
        "alpha_bar": [float(chain.alpha_bar[k]) for k in at],
    }


def _chain(model: Model, t: int, steps: int) -> Schedule:
    """At most so many steps of the schedule from t down, at whole times."""
    if t < 1:
        raise InputError("t = 0: is the picture itself; move t up and walk back from there")
    times = np.unique(np.linspace(0, t, min(steps, t) + 1).round())
    return model.schedule.keep(torch.from_numpy(times))


def _sigma(asked: Walked, model: Model, chain: Schedule) -> list[float | None]:
    """η σ_t of each step of the chain, from 0; None where the network says it."""
    if model.config.distilled is not None:
        raise InputError(
            "a distilled run jumps along the flow and knows no μ(x_t); walk with the run that it "
            "was made of"
        )
    if asked.sigma == "learned":
        if model.config.loss.variance == "fixed":
            raise InputError("sigma = learned: this run learned no variance; take beta")
        return [None] * (chain.steps + 1)
    values = chain.beta if asked.sigma == "beta" else chain.beta_tilde
    found: list[float | None] = [asked.eta * float(value) for value in values]
    found[1] = 0.0  # no noise is added in the last step
    return found


def _pixels(states: list[Tensor]) -> Array:
    x = torch.cat(states)
    if bool(x.isnan().any()):
        raise InputError("the network says not-a-number; take an older checkpoint")
    return np.ascontiguousarray(to_uint8(x).transpose(0, 2, 3, 1))
