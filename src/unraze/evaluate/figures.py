"""A figure: a number with its interval, its floor, and the counts it was computed from."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

__all__ = ["Figure", "Number"]


def _number(value: Any) -> Any:
    return float("nan") if value is None else value


Number = Annotated[float, BeforeValidator(_number)]
"""A float that may be NaN, which JSON has no word for: null there, and NaN again when read."""


@dataclass(frozen=True)
class Figure:
    """One number about a generator.

    Arguments:
        name: what it is called, "Fréchet distance" say.
        value: its estimate; NaN where the images are too few for it, and the note says so.
        low, high: a 95 % interval over the sampling of both sets of images (not over training
            seeds); NaN where there is none.
        floor: the same number between equal-sized disjoint halves of real images: what a perfect
            generator would get. NaN where it was not computed.
        better: whether a lower or a higher value is the better one.
        generated, real: how many images of each kind it is computed from.
        alike: the same number at the floor's counts, which alone may be held against the floor.
        halves: how many images each side of `floor` and `alike` has; 0 where there is no floor.
        note: what must be said beside it, "extrapolated" say; empty where nothing.
    """

    name: str
    value: Number
    low: Number
    high: Number
    floor: Number
    better: Literal["lower", "higher"]
    generated: int
    real: int
    alike: Number = float("nan")
    halves: int = 0
    note: str = ""
