"""Clients of a cluster for `bench.cluster_day`: open loop over HTTP, each answer with who gave it and how.

Requests of each region are due at the times of a seeded Poisson process, whatever became of those before.  A client
connects as often as it needs to, keeps connections, and tries again if it gets no answer, as clients do; every failed
try is kept with when it failed and whether its answer had begun by then.

An answer says by which variant, with which expected accuracy (its receipt) and by which server it was given: ids that
servers make for requests begin with a random word of their process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRIES = 5
FIRST_PAUSE_S = 0.2
"""Before the second try; twice as long before each further one."""
ANSWER_S = 30.0
_MOST_CONNECTIONS = 128


@dataclass(frozen=True, slots=True)
class Failure:
    """A try that brought no answer: when it began and failed (seconds of the load), why, and whether the answer had
    begun."""

    sent_s: float
    at_s: float
    why: str
    begun: bool = False


@dataclass(slots=True)
class Asked:
    """One request: the region of its client, when it was due and answered (seconds of the load; None: never), the tries
    that failed, and of the answer the word of its server, its variant, the accuracy that its receipt expects (points)
    and whether it was right."""

    origin: str
    due_s: float
    done_s: float | None = None
    failures: list[Failure] = field(default_factory=list)
    server: str = ""
    variant: str = ""
    accuracy: float = 0.0
    correct: bool = False

    @property
    def latency_ms(self) -> float:
        """Milliseconds from when it was due to its whole answer; NaN without one."""
        return 1e3 * (self.done_s - self.due_s) if self.done_s is not None else float("nan")


@dataclass(frozen=True, slots=True)
class Question:
    """One body, and the class that is right."""

    body: bytes
    label: int


def questions(name: str, rows: NDArray[Any], labels: NDArray[Any], count: int) -> list[Question]:
    """Return requests of one row of the input `name` each, as JSON that asks for the receipt."""
    found = []
    for row, label in zip(rows[:count], labels[:count], strict=True):
        data = [round(float(value), 4) for value in row.reshape(-1)]
        tensor = {"name": name, "shape": [1, *row.shape], "datatype": "FP32", "data": data}
        document = {"inputs": [tensor], "parameters": {"clover_receipt": True}}
        found.append(Question(json.dumps(document, separators=(",", ":")).encode(), int(label)))
    return found


class _Failed(Exception):
    """A try that brought no answer."""

    def __init__(self, why: str, *, begun: bool = False) -> None:
        super().__init__(why)
        self.why, self.begun = why, begun


class _Connection:
    """A connection that takes one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.reusable = True

    @classmethod
    async def made(cls, port: int) -> _Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @property
    def closed(self) -> bool:
        """Whether the other side has ended it."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def ask(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer; `_Failed` if it does not come or breaks off."""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        begun = False
        try:
            self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            begun = True
            pairs = (line.partition(":") for line in lines[1:] if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            answer = await self._reader.readexactly(int(headers["content-length"]))
        except asyncio.IncompleteReadError as error:
            raise _Failed("closed without an answer", begun=begun or bool(error.partial)) from error
        except OSError as error:
            raise _Failed(type(error).__name__, begun=begun) from error
        self.reusable = headers.get("connection", "").lower() != "close"
        return int(lines[0].split()[1]), headers, answer

    def close(self) -> None:
        self._writer.close()


class Load:
    """Requests from each region to its port, `per_s` a second of all regions together, from `start` to `stop`.  It has
    a thread of its own, so that whoever watches does not make it late."""

    def __init__(self, ports: Mapping[str, int], per_s: float, given: Sequence[Question], model: str) -> None:
        self.asked: list[Asked] = []
        self.began_s = time.monotonic()
        self.skipped = 0
        """Requests that were not sent, as all connections waited for an answer already."""
        self._ports, self._per_s, self._questions = dict(ports), per_s, given
        self._path = f"/v2/models/{model}/infer"
        self._idle: dict[str, list[_Connection]] = {origin: [] for origin in ports}
        self._open: set[asyncio.Task[None]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def start(self) -> None:
        """Begin."""
        self.began_s = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Ask no more, and wait for the answers that are under way."""
        self._ended.set()
        self._thread.join()

    def now_s(self) -> float:
        """Return the seconds of the load."""
        return time.monotonic() - self.began_s

    async def _run(self) -> None:
        await asyncio.gather(*(self._send(at, origin) for at, origin in enumerate(self._ports)))
        await asyncio.gather(*self._open)
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connections on which nothing is asked; on the loop of the load."""
        for own in self._idle.values():
            while own:
                own.pop().close()

    async def _send(self, at: int, origin: str) -> None:
        drawn, due_s = random.Random(at), 0.0
        number = at * len(self._questions) // len(self._ports)
        while not self._ended.is_set():
            due_s += drawn.expovariate(self._per_s / len(self._ports))
            while (left_s := due_s - self.now_s()) > 0.0 and not self._ended.is_set():
                await asyncio.sleep(min(left_s, 0.2))
            if self._ended.is_set():
                return
            asked = Asked(origin, due_s)
            self.asked.append(asked)
            if len(self._open) >= _MOST_CONNECTIONS * len(self._ports):
                self.skipped += 1
                asked.failures.append(Failure(due_s, due_s, "not sent: too many wait already"))
                continue
            task = asyncio.create_task(self._ask(asked, self._questions[number % len(self._questions)]))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            number += 1

    async def _ask(self, asked: Asked, question: Question) -> None:
        """Ask until there is an answer, or `TRIES` times."""
        for tried in range(TRIES):
            sent_s = self.now_s()
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._try(asked, question)
                return
            except TimeoutError:
                asked.failures.append(Failure(sent_s, self.now_s(), f"no answer within {ANSWER_S:g} s"))
            except _Failed as failed:
                asked.failures.append(Failure(sent_s, self.now_s(), failed.why, failed.begun))
            if tried + 1 < TRIES:
                await asyncio.sleep(FIRST_PAUSE_S * 2.0**tried)

    async def _try(self, asked: Asked, question: Question) -> None:
        idle = self._idle[asked.origin]
        connection = None
        while idle and (connection is None or connection.closed):
            connection = idle.pop()
        try:
            if connection is None or connection.closed:  # nothing was sent on it: no try that failed
                connection = await _Connection.made(self._ports[asked.origin])
        except OSError as error:
            raise _Failed(type(error).__name__) from error
        whole = False
        try:
            status, headers, answer = await connection.ask(self._path, question.body)
            whole = True
        finally:
            if whole and connection.reusable:
                idle.append(connection)
            else:
                with contextlib.suppress(OSError):
                    connection.close()
        if status != 200:
            raise _Failed(str(status))
        document = json.loads(answer)
        receipt = document["parameters"]["clover_receipt"]
        asked.variant, asked.accuracy = receipt["variant"], receipt["accuracy"]
        asked.correct = int(np.argmax(document["outputs"][0]["data"])) == question.label
        asked.server = headers.get("x-request-id", "").partition("-")[0]
        asked.done_s = self.now_s()
