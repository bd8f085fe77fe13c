"""What a sampler takes and yields."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from unraze.denoiser import Prediction

__all__ = ["Noise", "Step", "last"]

Noise = Callable[[int], Tensor]
"""i -> z, the standard normal noise of step i, of x's shape: from the schedule's T down to 1, and
where a sampler goes up again (`restart`), T+1, T+2, … for each time."""


@dataclass(frozen=True)
class Step:
    """One step made: the training time t reached, the state x there, and what led to it.

    The last step of a sampler has t = 0, and its x is the sample.
    """

    t: float
    x: Tensor
    prediction: Prediction


def last(steps: Iterable[Step]) -> Tensor:
    """Runs a sampler to its end and returns the sample."""
    x: Tensor | None = None
    for step in steps:
        x = step.x
    if x is None:
        raise ValueError("the sampler made no step")
    return x
