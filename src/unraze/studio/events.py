"""What open tabs are told: states, not increments, so that a slow one misses nothing that counts.

Of each subject only the newest state waits for a tab, however slow it reads: what waits is bounded
by the number of subjects, and the last word on each of them always arrives.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from unraze.errors import UnrazeError

__all__ = ["Crowded", "Event", "Hub"]

MOST_TABS = 200
GRACE = 5.0
"""Seconds until a tab that does not listen any more is taken for closed: reloading takes less."""

Event = tuple[str, dict[str, Any]]
"""A name and its state."""


class Crowded(UnrazeError):
    """More listen, or wait, than the studio serves."""


@dataclass(eq=False)
class _Tab:
    client: str
    loop: asyncio.AbstractEventLoop
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: dict[str, Event] = field(default_factory=dict)


class Hub:
    """Tabs that listen, and what is said to all of them; any thread may say it.

    `closed` is told the client of a tab that is gone for good.
    """

    def __init__(self, closed: Callable[[str], None] = lambda client: None) -> None:
        self.closed = closed
        self._lock, self._tabs, self._ended = threading.Lock(), list[_Tab](), False
        self._left: dict[str, int] = {}

    @property
    def listens(self) -> bool:
        """Whether anybody does."""
        return bool(self._tabs)

    def say(self, name: str, about: str, state: dict[str, Any]) -> None:
        """Tells all tabs the state of a subject, in place of what they were not yet told of it."""
        with self._lock:
            for tab in self._tabs:
                tab.waiting.pop(about, None)
                tab.waiting[about] = (name, state)
                with suppress(RuntimeError):  # its loop has ended: the server is stopping
                    tab.loop.call_soon_threadsafe(tab.wake.set)

    def require_room(self) -> None:
        """Raises `Crowded` where no more tabs can be told."""
        if len(self._tabs) >= MOST_TABS:
            raise Crowded(f"{MOST_TABS} tabs listen already; close one of them")

    def join(self, client: str) -> AsyncIterator[Event | None]:
        """What a tab is told, as long as it listens; None now and then, where there is nothing.

        Raises `Crowded`.
        """
        with self._lock:
            self.require_room()
            tab = _Tab(client, asyncio.get_running_loop())
            self._tabs.append(tab)
        return self._told(tab)

    def end(self) -> None:
        """Ends all streams: the studio does."""
        with self._lock:
            self._ended = True
            for tab in self._tabs:
                with suppress(RuntimeError):
                    tab.loop.call_soon_threadsafe(tab.wake.set)

    async def _told(self, tab: _Tab) -> AsyncIterator[Event | None]:
        try:
            yield "hello", {}
            while not self._ended:
                try:
                    await asyncio.wait_for(tab.wake.wait(), 15.0)
                except asyncio.TimeoutError:  # of Python 3.10 another than the built-in one
                    yield None  # that the line is alive
                with self._lock:
                    tab.wake.clear()
                    told, tab.waiting = tab.waiting, {}
                for event in told.values():
                    yield event
        finally:
            with self._lock:
                self._tabs.remove(tab)
                times = self._left[tab.client] = self._left.get(tab.client, 0) + 1
            tab.loop.call_later(GRACE, self._gone, tab.client, times)

    def _gone(self, client: str, times: int) -> None:
        """A while after a client left for the so many-th time: is it still away since then?"""
        with self._lock:
            if self._left.get(client) != times:
                return  # it came back, and left again a moment ago
            del self._left[client]
            again = any(tab.client == client for tab in self._tabs)
        if not again:
            self.closed(client)
