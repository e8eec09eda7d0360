"""A load generator that is cheap enough to share a small box with the server it measures.

One process, one uvloop, raw HTTP/1.1 over keep-alive connections, httptools for the answers.  Open loop: requests
leave at the times of a seeded Poisson process whether or not earlier answers have come, and latency counts from the
time a request *should* have left, so a stalled server cannot hide its queue (no coordinated omission).  Closed loop:
each connection sends its next request when the answer to the last is there.

Every answer is checked for its id; a `check` function may judge the body as well.

While a load runs there are no full garbage collections in this process: each walks all samples so far, of a few hundred
thousand for 200 ms, and the requests that were due meanwhile would count as slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools
import numpy as np

MAX_CONNECTIONS = 512
SETTLE_S = 30.0
"""Longest wait for the last answers."""
_NEVER = 2**31 - 1


@dataclass(slots=True)
class Body:
    """One prepared request: the payload, its id and the row of the evaluation set that it carries."""

    payload: bytes
    id: str
    row: int
    headers: bytes = b""


@dataclass(slots=True)
class Sample:
    """One finished request.  Times are monotonic nanoseconds; `due_ns` is when it should have left."""

    due_ns: int
    done_ns: int
    status: int
    row: int
    variant: str = ""
    correct: float | None = None
    mismatch: bool = False
    energy_j: float = 0.0
    carbon_mg: float = 0.0
    accuracy: float = 0.0

    @property
    def latency_ms(self) -> float:
        """Milliseconds from when the request was due to its whole answer."""
        return (self.done_ns - self.due_ns) / 1e6


class Alarm:
    """Wakes a coroutine at a monotonic time, to microseconds.  Timers of event loops are good to a millisecond, and
    requests that should leave within one would leave together, which no Poisson process does."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._rang)
        self._waiting: asyncio.Future[None] | None = None

    async def at(self, due_ns: int) -> None:
        """Return at `due_ns`; at once where that has passed."""
        if due_ns <= time.monotonic_ns():
            return
        self._waiting = self._loop.create_future()
        when = struct.pack("qqqq", 0, 0, *divmod(due_ns, 1_000_000_000))
        if self._libc.timerfd_settime(self._fd, 1, when, None):  # 1: the time is absolute
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._waiting

    def close(self) -> None:
        """Let go of the timer."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _rang(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class _NoFullCollections:
    """Has the garbage collector look only at what is young, while a load runs, or several."""

    def __init__(self) -> None:
        self._loads = 0
        self._before = gc.get_threshold()

    def __enter__(self) -> None:
        if not self._loads:
            self._before = gc.get_threshold()
            gc.set_threshold(*self._before[:2], _NEVER)
        self._loads += 1

    def __exit__(self, *error: object) -> None:
        self._loads -= 1
        if not self._loads:
            gc.set_threshold(*self._before)


no_full_collections = _NoFullCollections()

Check = Callable[[Body, Sample, bytes], None]


@dataclass(slots=True)
class Result:
    """What a run gave: samples of requests that were answered, and how many were not."""

    samples: list[Sample] = field(default_factory=list)
    sent: int = 0
    lost: int = 0
    seconds: float = 0.0
    begin_ns: int = 0

    def failed(self) -> int:
        """Return answers that are not 200, and requests without an answer."""
        return self.lost + sum(1 for s in self.samples if s.status != 200)

    def failures(self) -> str:
        """Return what failed, in words: "0", or "3 (429: 2, lost: 1)"."""
        codes = Counter(str(sample.status) for sample in self.samples if sample.status != 200)
        codes["lost"] += self.lost
        parts = [f"{code}: {count}" for code, count in sorted(codes.items()) if count]
        return f"{self.failed()} ({', '.join(parts)})" if parts else "0"

    def mismatched(self) -> int:
        """Return answers whose id or values are not those of their request."""
        return sum(1 for s in self.samples if s.mismatch)

    def latency_ms(self, q: float) -> float:
        """Return latency quantile in milliseconds over answered requests; NaN without any."""
        return quantile([s.latency_ms for s in self.samples if s.status == 200], q)


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile of `values`; NaN if there are none."""
    return float(np.quantile(values, q)) if len(values) else float("nan")


def bears(answer: bytes, identity: str) -> bool:
    """Return whether a JSON answer bears the id of its request; some servers write a space after the colon."""
    return f'"id":"{identity}"'.encode() in answer or f'"id": "{identity}"'.encode() in answer


def parse_receipt(text: str) -> dict[str, str]:
    """Return the members of a `Clover-Receipt` header (an RFC 9651 dictionary of strings, numbers and tokens)."""
    members = (item.strip().partition("=") for item in text.split(","))
    return {key: value.strip('"') for key, _, value in members}


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    __slots__ = ("body", "chunks", "due_ns", "head", "owner", "parser", "receipt", "transport")

    def __init__(self, owner: _Run) -> None:
        self.owner = owner
        self.transport: asyncio.Transport | None = None
        self.body: Body | None = None
        self.due_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not asyncio's subclasses
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, body: Body, due_ns: int) -> None:
        assert self.transport is not None
        self.body, self.due_ns = body, due_ns
        self.parser = httptools.HttpResponseParser(self)
        self.chunks: list[bytes] = []
        self.receipt = ""
        self.transport.write(self.owner.head(body) + body.payload)

    def data_received(self, data: bytes) -> None:
        if self.body is not None:
            self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"clover-receipt":
            self.receipt = value.decode()

    def on_body(self, data: bytes) -> None:
        self.chunks.append(data)

    def on_message_complete(self) -> None:
        body, now = self.body, time.monotonic_ns()
        assert body is not None
        self.body = None
        if not self.parser.should_keep_alive() and self.transport is not None:
            self.transport.close()  # the server said that it takes no other request here
        sample = Sample(self.due_ns, now, self.parser.get_status_code(), body.row)
        if self.receipt:
            members = parse_receipt(self.receipt)
            sample.variant = members.get("variant", "")
            sample.energy_j = float(members.get("energy-j", 0))
            sample.carbon_mg = float(members.get("carbon-mg", 0))
            sample.accuracy = float(members.get("accuracy", 0))
        self.owner.finished(self, body, sample, b"".join(self.chunks))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.owner.disconnected(self)


class _Run:
    """The state that open and closed loop share."""

    def __init__(self, url: str, model: str, bodies: Sequence[Body], check: Check | None) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.prefix = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: clover-bench\r\n"
            "Accept: */*\r\nAccept-Encoding: identity\r\nConnection: keep-alive\r\n"
        ).encode()
        self.bodies, self.check = bodies, check
        self.result = Result()
        self.idle: list[_Connection] = []
        self.open = 0
        self.in_flight = 0
        self.on_idle: Callable[[_Connection], None] = self.idle.append

    def head(self, body: Body) -> bytes:
        return self.prefix + body.headers + b"Content-Length: %d\r\n\r\n" % len(body.payload)

    async def connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        self.open += 1
        _, connection = await loop.create_connection(lambda: _Connection(self), self.host, self.port)
        return connection

    def start(self, connection: _Connection, body: Body, due_ns: int) -> None:
        self.result.sent += 1
        self.in_flight += 1
        connection.send(body, due_ns)

    def finished(self, connection: _Connection, body: Body, sample: Sample, answer: bytes) -> None:
        self.in_flight -= 1
        if sample.status == 200:
            sample.mismatch = not bears(answer, body.id)
            if self.check is not None:
                self.check(body, sample, answer)
        self.result.samples.append(sample)
        if connection.transport is not None and not connection.transport.is_closing():
            self.on_idle(connection)

    def disconnected(self, connection: _Connection) -> None:
        self.open -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        if connection.body is not None:
            connection.body = None
            self.in_flight -= 1
            self.result.lost += 1

    async def settle(self, seconds: float) -> None:
        """Wait for what is in flight; what does not come counts as lost."""
        end = time.monotonic() + seconds
        while self.in_flight and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self.result.lost += self.in_flight
        for connection in self.idle:
            if connection.transport is not None:
                connection.transport.close()


@dataclass(eq=False)
class OpenLoop:
    """Poisson arrivals at `rate` requests a second: a number, or a function of the seconds since start.

    `bodies` go in turn, or a function of the seconds since start gives each request's.  `connections` are open from the
    start; more are opened while requests wait, up to `most_connections`.
    """

    url: str
    model: str
    bodies: Sequence[Body] | Callable[[float], Body]
    rate: float | Callable[[float], float]
    connections: int = 32
    seed: int = 1
    check: Check | None = None
    most_connections: int = MAX_CONNECTIONS

    def __post_init__(self) -> None:
        self._run = _Run(self.url, self.model, () if callable(self.bodies) else self.bodies, self.check)
        self._run.on_idle = self._next_or_idle
        self._waiting: list[tuple[Body, int]] = []
        self._growing: set[asyncio.Task[None]] = set()
        self._begin_ns = 0
        self._number = 0

    async def run(self, seconds: float, ended: asyncio.Event | None = None) -> Result:
        """Send requests for `seconds`, or until `ended`, wait for their answers, and return what became of them.  Once
        only."""
        with no_full_collections:
            return await self._sent(seconds, ended)

    async def _sent(self, seconds: float, ended: asyncio.Event | None) -> Result:
        run, rng, rate = self._run, random.Random(self.seed), self.rate
        run.idle.extend(await asyncio.gather(*(run.connect() for _ in range(self.connections))))
        rate_at = rate if callable(rate) else (lambda _t: float(rate))
        begin = self._begin_ns = run.result.begin_ns = time.monotonic_ns()
        due = 0.0
        alarm = Alarm()
        while True:
            due += rng.expovariate(rate_at(due))
            if due > seconds or (ended is not None and ended.is_set()):
                break
            await alarm.at(begin + int(due * 1e9))
            self._send(begin + int(due * 1e9))
            if self._number % 16 == 0:
                await asyncio.sleep(0)
        alarm.close()
        run.result.seconds = (time.monotonic_ns() - begin) / 1e9
        end = time.monotonic() + SETTLE_S
        while self._waiting and time.monotonic() < end:
            await asyncio.sleep(0.01)
        run.result.sent += len(self._waiting)
        run.result.lost += len(self._waiting)
        await run.settle(max(0.1, end - time.monotonic()))
        return run.result

    @property
    def result(self) -> Result:
        """What came so far; a long run may take samples away from it."""
        return self._run.result

    def send_one(self) -> None:
        """Send one request more, at once; only while `run` sends some."""
        if self._begin_ns:
            self._send(time.monotonic_ns())

    def _send(self, due_ns: int) -> None:
        bodies = self.bodies
        body = bodies((due_ns - self._begin_ns) / 1e9) if callable(bodies) else bodies[self._number % len(bodies)]
        self._number += 1
        if self._run.idle:
            self._run.start(self._run.idle.pop(), body, due_ns)
        else:
            self._waiting.append((body, due_ns))
            if self._run.open < self.most_connections:
                task = asyncio.create_task(self._grow())
                self._growing.add(task)
                task.add_done_callback(self._growing.discard)

    async def _grow(self) -> None:
        self._next_or_idle(await self._run.connect())

    def _next_or_idle(self, connection: _Connection) -> None:
        if self._waiting:
            body, due_ns = self._waiting.pop(0)
            self._run.start(connection, body, due_ns)
        else:
            self._run.idle.append(connection)


async def open_loop(
    url: str,
    model: str,
    bodies: Sequence[Body] | Callable[[float], Body],
    *,
    rate: float | Callable[[float], float],
    seconds: float,
    connections: int = 32,
    seed: int = 1,
    check: Check | None = None,
) -> Result:
    """Play an `OpenLoop` for `seconds`."""
    return await OpenLoop(url, model, bodies, rate, connections, seed, check).run(seconds)


async def closed_loop(
    url: str, model: str, bodies: Sequence[Body], *, connections: int, seconds: float, check: Check | None = None
) -> Result:
    """Run `connections` clients that each keep one request in flight for `seconds`."""
    run = _Run(url, model, bodies, check)
    begin = time.monotonic_ns()
    end = begin + int(seconds * 1e9)
    number = 0

    def again(connection: _Connection) -> None:
        nonlocal number
        now = time.monotonic_ns()
        if now >= end:
            run.idle.append(connection)
            return
        number += 1
        run.start(connection, bodies[number % len(bodies)], now)

    run.on_idle = again
    with no_full_collections:
        for connection in await asyncio.gather(*(run.connect() for _ in range(connections))):
            again(connection)
        await asyncio.sleep(seconds)
        run.result.seconds = (time.monotonic_ns() - begin) / 1e9
        await run.settle(SETTLE_S)
    return run.result
