"""What tabs are told: the newest state of each subject, whatever their pace."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from unraze.studio import events
from unraze.studio.events import Crowded, Event, Hub


async def some(told: AsyncIterator[Event | None], count: int) -> list[Any]:
    return [await asyncio.wait_for(anext(told), 5) for _ in range(count)]


def test_all_tabs_are_told_and_slow_ones_the_newest_of_each_subject() -> None:
    async def scene() -> None:
        hub = Hub()
        quick, slow = hub.join("a"), hub.join("b")
        assert await some(quick, 1) == await some(slow, 1) == [("hello", {})]
        for number in range(1000):
            hub.say("job", "job 1", {"done": number})
            if number == 500:
                assert await some(quick, 1) == [("job", {"done": 500})]
        hub.say("run", "run 1", {"step": 7})
        hub.say("job-gone", "job 1", {"id": 1})
        expected = [("run", {"step": 7}), ("job-gone", {"id": 1})]
        assert await some(quick, 2) == expected
        assert await some(slow, 2) == expected

    asyncio.run(scene())


def test_what_waits_is_bounded_by_the_number_of_subjects() -> None:
    async def scene() -> None:
        hub = Hub()
        told = hub.join("a")
        await anext(told)
        for number in range(10_000):
            hub.say("job", f"job {number % 5}", {"done": number})
        (tab,) = hub._tabs
        assert len(tab.waiting) == 5
        last = [state["done"] for _, state in await some(told, 5)]
        assert last == [9995, 9996, 9997, 9998, 9999]

    asyncio.run(scene())


def test_a_tab_that_is_closed_is_noticed_and_one_that_reloads_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "GRACE", 0.05)

    async def scene() -> list[str]:
        closed: list[str] = []
        hub = Hub(closed.append)
        for client in ("reloads", "closes"):
            told = hub.join(client)
            await anext(told)
            await told.aclose()  # type: ignore[attr-defined]
            if client == "reloads":
                again = hub.join(client)
                await anext(again)
        await asyncio.sleep(0.2)
        return closed

    assert asyncio.run(scene()) == ["closes"]


def test_a_tab_that_reloads_twice_is_not_taken_for_closed_by_its_first_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "GRACE", 1.0)

    async def scene() -> list[str]:
        closed: list[str] = []
        hub = Hub(closed.append)
        for wait in (0.6, 0.6):  # the first leave's time ends while it is away for the second
            told = hub.join("reloads")
            await anext(told)
            await told.aclose()  # type: ignore[attr-defined]
            await asyncio.sleep(wait)
        again = hub.join("reloads")
        await anext(again)
        await asyncio.sleep(1.1)
        return closed

    assert asyncio.run(scene()) == []


def test_no_more_tabs_listen_than_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_TABS", 2)

    async def scene() -> None:
        hub = Hub()
        hub.join("a")
        hub.join("b")
        with pytest.raises(Crowded, match="close one"):
            hub.join("c")

    asyncio.run(scene())
