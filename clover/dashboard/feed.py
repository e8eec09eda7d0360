"""The live part: a look at the server every `TICK_S` seconds, made into one message for all open pages.

Without an open page the state is looked at only as often as charts need a sample.  A tick costs some milliseconds of
the loop however many pages are open, and then a write a page.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from clover._native.histogram import Histogram
from clover._version import __version__
from clover.carbon.chain import SourceChain
from clover.carbon.grid import Grid
from clover.carbon.labels import caveat
from clover.control.state.triggers import INTENSITY_CHANGE
from clover.control_time import control_task
from clover.dashboard import snapshot
from clover.dashboard.history import LatencyWindow, SampleHistory
from clover.dashboard.today import midnight
from clover.errors import CloverError
from clover.http.streams import EventStreams, event
from clover.planning.budget.forecast import HOUR_S
from clover.types import Decision

log = logging.getLogger("clover.dashboard")

TICK_S = 2.0
RETRY_MS = 2000
"""When a page whose stream ended comes back."""
_DECISIONS = 60
_RATE_S = 10.0
"""Seconds that grams an hour are taken over."""
_TODAY_S = 60.0
_PAST_H = 24
_ENCODED = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

Today = Mapping[str, Any]
"""What the ledger has of today, as the page shows it."""


@dataclass(frozen=True)
class FeedSources:
    """What the page shows: `state` gives the body of GET /v2/clover/state, `decisions` the newest ones, `latency` the
    histograms of the models (nanoseconds), `ready` whether requests are taken.  `today` reads the ledger in a thread;
    None: there is none."""

    state: Callable[[], dict[str, Any]]
    decisions: Callable[[int], Sequence[Decision]]
    latency: Callable[[], Mapping[str, Histogram]]
    ready: Callable[[], bool]
    draining: Callable[[], bool]
    grid: Grid
    chain: SourceChain
    today: Callable[[float], Today] | None = None


class Feed:
    """Looks, keeps the history, and sends messages to `streams`.  `epoch` changes with every start of a server."""

    def __init__(
        self,
        sources: FeedSources,
        *,
        wall_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.epoch = os.urandom(6).hex()
        self.streams = EventStreams(self.greeting)
        self.history = SampleHistory()
        self._sources = sources
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._sleep = sleep
        self._started_s = wall_s()
        self._latency = LatencyWindow()
        self._grams: deque[tuple[float, float]] = deque()
        self._number = 0
        self._shown: dict[str, Any] | None = None
        self._shown_s = -math.inf
        self._greeting = b""
        self._sent: dict[int, int] = {}
        self._forecast_sent: tuple[int, float] | None = None
        self._today: Today | None = None
        self._today_s = -math.inf
        self._reading: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Return the task that looks, begun in the running loop."""
        return control_task(self.run(), name="clover-dashboard")

    async def run(self) -> None:
        """Call `tick` until cancelled; one that fails is logged, and the next one is made all the same."""
        while True:
            try:
                self.tick()
            except Exception:
                log.exception("the dashboard's look at the server failed")
            await self._sleep(TICK_S)

    def tick(self) -> None:
        """Look, keep a sample if one is due, and send what there is to the open pages."""
        latencies = self._latency.observe(self._monotonic_s(), self._sources.latency())
        due = self.history.due(self._wall_s())
        if not due and not self.streams.open:
            return
        shown = self._observe(latencies)
        sample = snapshot.sample(self._wall_s(), shown)
        if due:
            self.history.add(sample)
        if self.streams.open:
            self._read_today()
            self._number += 1
            document = {**shown, "sample": sample, "decisions": self._news()}
            if (mark := self._forecast_mark()) != self._forecast_sent:
                self._forecast_sent = mark
                document["forecast"] = self._forecast()
            self.streams.publish(event("tick", self._encode(document), f"{self.epoch}.{self._number}"))

    def greeting(self) -> bytes:
        """Return what a page begins with: the present, the history, the forecast and the newest decisions.  It is made
        once for the pages that open between two looks; what came since is in the next message."""
        if self._shown is None or self._monotonic_s() - self._shown_s > TICK_S:
            self._observe(self._latency.observe(self._monotonic_s(), self._sources.latency()))
        self._read_today()
        if self._greeting:
            return self._greeting
        document = {
            **(self._shown or {}),
            "history": self.history.columns(),
            "forecast": self._forecast(),
            "decisions": [snapshot.decision(one) for one in self._sources.decisions(_DECISIONS)],
        }
        message = event("hello", self._encode(document), f"{self.epoch}.{self._number}")
        self._greeting = b"retry: %d\n\n" % RETRY_MS + message
        return self._greeting

    def _observe(self, latencies: snapshot.Latencies) -> dict[str, Any]:
        """Look at the server; return, and remember, what a page shows of it."""
        sources, now_s = self._sources, self._monotonic_s()
        self._end_yesterday()
        state = sources.state()
        shown = snapshot.overview(state, latencies, self._grams_per_hour(state, now_s))
        reading = sources.grid.reading
        shown |= {
            "epoch": self.epoch,
            "version": __version__,
            "started_s": round(self._started_s),
            "at": round(self._wall_s(), 1),
            "ready": sources.ready(),
            "draining": sources.draining(),
            "caveat": caveat(reading),
            "intensity_change": INTENSITY_CHANGE,
            "providers": self._providers(),
            "today": self._today,
            "ledger": sources.today is not None,
        }
        self._shown, self._shown_s, self._greeting = shown, now_s, b""
        return shown

    def _grams_per_hour(self, state: dict[str, Any], now_s: float) -> float | None:
        """Return the grams an hour that the server emitted over the last seconds; None before these have passed."""
        grams = ((state.get("totals") or {}).get("sci") or {}).get("operational_g")
        if grams is None:
            return None
        kept = self._grams
        kept.append((now_s, grams))
        while len(kept) > 2 and kept[1][0] <= now_s - _RATE_S:
            kept.popleft()
        seconds = now_s - kept[0][0]
        return 3600.0 * (grams - kept[0][1]) / seconds if seconds >= TICK_S / 2 else None

    def _providers(self) -> list[dict[str, Any]]:
        """Return the sources of the intensity in the order in which they are asked, and how each of them is."""
        last = self._sources.chain.last
        return [
            {
                "name": link.source.name,
                "remote": bool(link.source.remote),
                "in_force": last is not None and last.provider == getattr(link.good, "provider", link.source.name),
                "g_per_kwh": link.good.g_per_kwh if link.good is not None else None,
                "at_s": link.good.at_s if link.good is not None else None,
                "reads": link.reads,
                "failures": link.failures,
                "error": link.error,
                "trouble": link.trouble,
            }
            for link in self._sources.chain.links
        ]

    def _forecast(self) -> dict[str, Any]:
        grid = self._sources.grid
        now_s = grid.now()
        first = math.floor(now_s / HOUR_S) - _PAST_H
        means = grid.history.plain(first, _PAST_H + 1)
        hours = [((first + index) * HOUR_S, float(value)) for index, value in enumerate(means)]
        return snapshot.forecast(grid.foreseen, hours, now_s)

    def _forecast_mark(self) -> tuple[int, float]:
        """Return what changes when the forecast or the hours of the past do."""
        grid = self._sources.grid
        return id(grid.foreseen), math.floor(grid.now() / HOUR_S)

    def _news(self) -> list[dict[str, Any]]:
        """Return the decisions that are new, or were counted again, since the last message."""
        newest = self._sources.decisions(_DECISIONS)
        news = [snapshot.decision(one) for one in newest if self._sent.get(one.id) != one.count]
        self._sent = {one.id: one.count for one in newest}
        return news

    def _read_today(self) -> None:
        """Have the ledger's figures of today read again, in a thread, if they are a minute old."""
        today, now_s = self._sources.today, self._monotonic_s()
        if today is None or now_s - self._today_s < _TODAY_S or self._reading is not None:
            return
        self._today_s = now_s

        async def read() -> None:
            try:
                self._today = await asyncio.to_thread(today, self._wall_s())
            except CloverError as error:
                self._today = {"error": str(error)}
            finally:
                self._reading = None

        self._reading = asyncio.get_running_loop().create_task(read(), name="clover-today")

    def _end_yesterday(self) -> None:
        """Drop figures of a day that is over, so that they are read again and are shown as today's no longer."""
        if self._today is not None and self._today.get("since_s", math.inf) < midnight(self._wall_s()):
            self._today, self._today_s = None, -math.inf

    async def stop(self) -> None:
        """Wait for a reading of the ledger that is under way."""
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    @staticmethod
    def _encode(document: dict[str, Any]) -> bytes:
        return orjson.dumps(document, option=_ENCODED)
