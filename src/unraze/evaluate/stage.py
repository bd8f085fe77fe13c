"""How far an evaluation has come. Its parts are generators of stages that return their result."""

from collections.abc import Callable, Generator
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


def finish(stages: Generator[Stage, None, T], show: Callable[[Stage], None] = lambda _: None) -> T:
    """Runs a part to its end, shows every stage of it, and returns its result."""
    while True:
        try:
            stage = next(stages)
        except StopIteration as end:
            result: T = end.value
            return result
        show(stage)
