"""A watch over ranks that wait for each other: which one is late or slow, and what it does.

A thread of each rank writes down every `BEAT` seconds, in the store that they share, what its rank
does, for how long, and its stack. The first rank reads what all wrote. Where what they do together
takes too long, it says which of them are where: those that wait have one stack in common, the one
that is late has another, or has stopped writing. Where one rank computes longer at every step than
the others, which wait for it, it says that too. Nothing is ended: a rank that hangs for good is
ended by the patience of the others (`unraze.ranks`), and started anew by torchrun.
"""

import json
import os
import socket
import statistics
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from torch.distributed import Store  # type: ignore[attr-defined]

from unraze.errors import UnrazeError
from unraze.ranks import Ranks

__all__ = ["LONG", "Beat", "Watch", "late", "slow"]

BEAT = 2.0
LATE = 60.0
"""Seconds that a step may take before it is called late."""
LONG = 600.0
"""The same of what takes long: an evaluation, a checkpoint."""
SLOW = 1.5
"""How many times as long as the middle one a rank computes that is called slow."""
STEPS = 50
"""Steps that a rank's time is a mean of before it is compared."""
FRAMES = 4


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself: who it is, what it does and for how many seconds, where its main
    thread is, and the mean seconds it computes in a step before it waits, NaN before `STEPS`."""

    number: int
    who: str
    doing: str
    seconds: float
    patience: float
    stack: Sequence[str]
    own: float


class Watch:
    """What this rank says of itself, and on the first rank, what is told of all of them."""

    def __init__(self, ranks: Ranks, tell: Callable[[str], None]) -> None:
        self.ranks, self.tell = ranks, tell
        self.doing_now = ("", 0.0, LATE)
        self.own: list[float] = []
        self.ended = threading.Event()
        self.main = threading.get_ident()
        self.told: set[str] = set()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        if self.ranks.store is not None:
            store = self.ranks.store.clone()  # type: ignore[attr-defined]
            self.thread = threading.Thread(target=self._watch, args=(store,), daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.thread is not None:  # an interpreter that ends below it would be ended by it
            self.thread.join(timeout=10 * BEAT)

    @contextmanager
    def doing(self, what: str, patience: float | None = None) -> Iterator[None]:
        """All ranks do this together in this context, `patience` seconds at most."""
        self.doing_now = (what, time.monotonic(), LATE if patience is None else patience)
        yield
        self.doing_now = ("", 0.0, LATE)

    def computed(self, seconds: float) -> None:
        """This rank computed for so long in a step before it waited for the others."""
        self.own = [*self.own[1 - STEPS :], seconds]

    def _beat(self) -> Beat:
        what, since, patience = self.doing_now
        frame = sys._current_frames().get(self.main)
        stack = traceback.format_stack(frame, FRAMES) if frame is not None else []
        return Beat(
            number=self.ranks.number,
            who=f"process {os.getpid()} on {socket.gethostname()}",
            doing=what,
            seconds=time.monotonic() - since if what else 0.0,
            patience=patience,
            stack=stack,
            own=statistics.mean(self.own) if len(self.own) == STEPS else float("nan"),
        )

    def _watch(self, store: Store) -> None:
        heard: dict[int, tuple[str, float]] = {}
        count = 0
        while not self.ended.wait(BEAT):
            count += 1
            try:
                store.set(f"watch/{self.ranks.number}", json.dumps([count, vars(self._beat())]))
                said = self._heard(store) if self.ranks.is_first else {}
            except (RuntimeError, ConnectionError):
                return  # the store went with who kept it: there is nobody left to be told
            now, beats, silent = time.monotonic(), [], {}
            for number, text in said.items():
                if heard.get(number, ("", 0.0))[0] != text:
                    heard[number] = (text, now)
                beat = Beat(**json.loads(text)[1])
                beats.append(beat)
                silent[number] = now - heard[number][1]
            for words in (*late(beats, silent), *slow(beats)):
                key = words.split(":")[0]
                if key not in self.told:
                    self.told.add(key)
                    with suppress(UnrazeError):  # the log cannot be written: training will say so
                        self.tell(words)

    def _heard(self, store: Store) -> dict[int, str]:
        keys = {k: f"watch/{k}" for k in range(self.ranks.count)}
        there = {k: key for k, key in keys.items() if store.check([key])}
        return {k: store.get(key).decode() for k, key in there.items()}


def late(beats: Sequence[Beat], silent: dict[int, float]) -> list[str]:
    """What is to be said of what takes the ranks too long: which of them are where.

    `silent` are the seconds since each was last heard of.
    """
    overdue = [b for b in beats if b.doing and b.seconds + silent[b.number] > b.patience]
    if not overdue:
        return []
    what = overdue[0].doing
    seconds = max(b.seconds + silent[b.number] for b in overdue)
    mute = [b for b in beats if silent[b.number] > overdue[0].patience / 2]
    places: dict[str, list[Beat]] = defaultdict(list)
    for beat in beats:
        if beat not in mute:
            places["".join(beat.stack)].append(beat)
    lines = [f"LATE, {what}: has taken {seconds:.0f} s so far"]
    for beat in mute:
        lines.append(
            f"rank {beat.number} ({beat.who}) has not been heard of for {silent[beat.number]:.0f} "
            "s: it is stopped, or its machine is"
        )
    for stack, there in sorted(places.items(), key=lambda pair: len(pair[1])):
        names = ", ".join(str(b.number) for b in there[:16]) + (" …" if len(there) > 16 else "")
        who = f" ({there[0].who})" if len(there) == 1 else ""
        lines.append(f"rank{'' if len(there) == 1 else 's'} {names}{who} at\n{stack.rstrip()}")
    return ["\n".join(lines)]


def slow(beats: Sequence[Beat]) -> list[str]:
    """What is to be said of ranks that compute longer than the others, which wait for them."""
    known = [b for b in beats if b.own == b.own]
    if len(known) < 2:
        return []
    middle = statistics.median_low([b.own for b in known])
    return [
        f"SLOW, rank {b.number}: computes {b.own:.3g} s a step ({b.who}), where the middle one "
        f"takes {middle:.3g} s; all wait for it"
        for b in known
        if b.own > SLOW * middle
    ]
