"""How far an evaluation has come. Its parts are generators of stages that return their result."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Stage", "finish"]

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """`done` of `total` units of the part called `name` are done: network calls, or images."""

    name: str
    done: int
    total: int


def finish(stages: Generator[Stage, None, T]) -> T:
    """Runs a part to its end without showing anything, and returns its result."""
    while True:
        try:
            next(stages)
        except StopIteration as end:
            result: T = end.value
            return result
