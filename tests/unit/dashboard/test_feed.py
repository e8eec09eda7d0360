"""The feed: one message a tick for all pages, little without pages, decisions once, and the ledger in a thread."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from clover._native.histogram import Histogram
from clover.dashboard.feed import Feed, FeedSources
from clover.dashboard.today import DAY_S, midnight
from clover.errors import LedgerError
from clover.planning.budget.forecast import History
from clover.types import Decision, Reading

READING = Reading(g_per_kwh=300.0, at_s=0.0, provider="p", zone="z", method="published")


class FakeGrid:
    def __init__(self) -> None:
        self.history = History()
        self.history.record(0.0, 300.0)
        self.reading = READING
        self.foreseen: list[Reading] = []

    def now(self) -> float:
        return 60.0


class Scene:
    """A feed whose server is made of figures, and whose clocks the test moves."""

    def __init__(self, **more: Any) -> None:
        self.now_s = 1000.0
        self.looks = 0
        self.grams = 0.0
        self.newest: list[Decision] = []
        self.histogram = Histogram()
        self.grid = FakeGrid()
        link = SimpleNamespace(
            source=SimpleNamespace(name="p", remote=True), good=READING, reads=3, failures=1, error="", trouble=""
        )
        chain = SimpleNamespace(last=READING, links=[link])
        self.feed = Feed(
            FeedSources(
                state=self.state,
                decisions=lambda limit: self.newest[:limit],
                latency=lambda: {"m": self.histogram},
                ready=lambda: True,
                draining=lambda: False,
                grid=self.grid,  # type: ignore[arg-type]
                chain=chain,  # type: ignore[arg-type]
                **more,
            ),
            wall_s=lambda: self.now_s,
            monotonic_s=lambda: self.now_s,
        )
        self.sent: list[bytes] = []
        self.pages = 0
        self.feed.streams = SimpleNamespace(open=0, publish=self.sent.append)  # type: ignore[assignment]

    def open(self, pages: int) -> None:
        self.feed.streams.open = pages  # type: ignore[misc]

    def state(self) -> dict[str, Any]:
        self.looks += 1
        return {
            "mode": "active",
            "policy": "p",
            "frozen": False,
            "grid_s": 60.0,
            "intensity": None,
            "devices": [],
            "models": {},
            "totals": {"sci": {"operational_g": self.grams}},
        }

    def tick(self, seconds: float = 2.0) -> dict[str, Any]:
        self.now_s += seconds
        self.sent.clear()
        self.feed.tick()
        return document(self.sent[0]) if self.sent else {}


def document(message: bytes) -> dict[str, Any]:
    (line,) = [line for line in message.splitlines() if line.startswith(b"data: ")]
    found: dict[str, Any] = json.loads(line[6:])
    return found


def decision(number: int, count: int = 1) -> Decision:
    return Decision(
        id=number, at="2026-01-01T00:00:00+00:00", last_at="2026-01-01T00:00:00+00:00", grid_s=0.0, family="m",
        trigger="start", mode="active", action="kept", count=count, inputs={}, plan=None,
    )  # fmt: skip


def test_without_a_page_the_server_is_looked_at_only_for_samples() -> None:
    scene = Scene()
    for _ in range(30):
        assert scene.tick() == {}
    assert scene.looks == 6, "one in ten seconds"
    assert len(scene.feed.history.columns()["at"]) == 6


def test_a_tick_makes_one_message_however_many_pages_are_open() -> None:
    scene = Scene()
    scene.open(50)
    first, second = scene.tick(), scene.tick()
    assert scene.looks == 2
    assert first["epoch"] == second["epoch"] == scene.feed.epoch
    assert second["sample"]["at"] == scene.now_s


def test_a_decision_is_sent_once_and_again_when_it_is_counted_again() -> None:
    scene = Scene()
    scene.open(1)
    scene.newest = [decision(1)]
    assert [one["id"] for one in scene.tick()["decisions"]] == [1]
    assert scene.tick()["decisions"] == []
    scene.newest = [decision(2), decision(1, count=2)]
    assert {(one["id"], one["count"]) for one in scene.tick()["decisions"]} == {(2, 1), (1, 2)}


def test_a_page_that_comes_between_ticks_takes_no_news_from_the_others() -> None:
    scene = Scene()
    scene.open(1)
    scene.tick()
    scene.newest = [decision(1)]
    greeting = document(scene.feed.greeting())
    assert [one["id"] for one in greeting["decisions"]] == [1]
    scene.newest = [decision(2), decision(1)]
    scene.feed.greeting()
    assert [one["id"] for one in scene.tick()["decisions"]] == [2, 1], "also for a page that got the greeting of before"


def test_a_greeting_has_history_and_forecast_and_says_when_to_come_back() -> None:
    scene = Scene()
    scene.tick()
    greeting = scene.feed.greeting()
    assert greeting.startswith(b"retry: 2000\n\n")
    found = document(greeting)
    assert found["history"]["at"] == [1002.0]
    assert found["forecast"]["past"] == [[0, 300.0]]
    assert found["providers"][0]["name"] == "p"


def test_pages_that_open_together_share_the_greeting_until_the_next_look() -> None:
    scene = Scene()
    scene.tick()
    greeting = scene.feed.greeting()
    assert scene.feed.greeting() is greeting
    scene.open(1)
    scene.tick()
    assert document(scene.feed.greeting())["at"] == scene.now_s


def test_a_forecast_is_sent_again_only_when_it_changes() -> None:
    scene = Scene()
    scene.open(1)
    assert "forecast" in scene.tick()
    assert "forecast" not in scene.tick()
    scene.grid.foreseen = [READING]
    assert "forecast" in scene.tick()


def test_grams_an_hour_are_those_of_the_last_seconds() -> None:
    scene = Scene()
    scene.open(1)
    assert scene.tick()["emission"]["grams_per_hour"] is None
    for _ in range(10):
        scene.grams += 0.01
        found = scene.tick()
    assert found["emission"]["grams_per_hour"] == pytest.approx(18.0)


def test_the_ledger_is_read_in_a_thread_once_a_minute_and_its_failure_is_said() -> None:
    threads: list[str] = []

    def today(now_s: float) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        if len(threads) > 1:
            raise LedgerError("it is damaged")
        return {"grams": 3.0}

    async def story() -> None:
        scene = Scene(today=today)
        scene.open(1)
        assert scene.tick()["today"] is None, "the loop does not wait for it"
        await scene.feed.stop()
        assert scene.tick()["today"] == {"grams": 3.0}
        for _ in range(20):
            scene.tick()
        await scene.feed.stop()
        assert len(threads) == 1
        for _ in range(10):
            scene.tick()
        await scene.feed.stop()
        assert scene.tick()["today"] == {"error": "it is damaged"}

    asyncio.run(story())
    assert len(threads) == 2
    assert threading.main_thread().name not in threads


def test_after_midnight_the_figures_of_yesterday_are_not_shown_as_those_of_today() -> None:
    async def story() -> None:
        scene = Scene(today=lambda now_s: {"since_s": midnight(now_s), "grams": 3.0})
        scene.now_s = 3 * DAY_S - 13.0
        scene.open(1)
        scene.tick()
        await scene.feed.stop()
        assert scene.tick()["today"] == {"since_s": 2 * DAY_S, "grams": 3.0}
        assert scene.tick(10.0)["today"] is None, "read again at once, and not a minute later"
        await scene.feed.stop()
        assert scene.tick()["today"] == {"since_s": 3 * DAY_S, "grams": 3.0}

    asyncio.run(story())


def test_a_look_that_fails_does_not_end_the_feed(caplog: pytest.LogCaptureFixture) -> None:
    class EnoughError(Exception):
        pass

    scene = Scene()
    sleeps = 0

    async def sleep(seconds: float) -> None:
        nonlocal sleeps
        sleeps += 1
        if sleeps == 3:
            raise EnoughError

    scene.feed._sleep = sleep
    scene.feed.tick = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(EnoughError):
        asyncio.run(scene.feed.run())
    assert caplog.text.count("the dashboard's look at the server failed") == 3
