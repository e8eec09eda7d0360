"""A bounded queue of notes, and the thread that makes spans of them and sends these in batches.

The event loop puts and never waits for a collector.  The thread makes and encodes spans in Python, though, and holds
the interpreter's lock meanwhile: a loop that wakes up then waits for it for Python's switch interval, which is 5 ms.
While spans are sent it is `SWITCH_S`.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from clover.telemetry.otel.collector import OtelCollector
from clover.telemetry.otel.spans import RequestNote, span_of

log = logging.getLogger("clover.otel")

QUEUE_SPANS = 4096
"""Spans that wait to be sent, at most; more are dropped and counted."""
BATCH_SPANS = 64
SWITCH_S = 0.0005
FLUSH_S = 1.0
"""How long a span waits for others before it is sent."""


class SpanSender(Protocol):
    """What sends a batch, as the OTLP exporter of the SDK does."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult: ...
    def shutdown(self) -> None: ...


class SpanExporter:
    """Sends the spans of notes that were `put`.

    `sent` and `failed` count spans that the collector took and did not take, `failed` also those that could not be
    made; `dropped` those for which the queue had no room.  `reason` returns why the last batch failed.
    """

    def __init__(
        self, sender: SpanSender, resource: Resource, collector: OtelCollector, reason: Callable[[], str]
    ) -> None:
        self.sent = 0
        self.failed = 0
        self.dropped = 0
        self._sender = sender
        self._resource = resource
        self._collector = collector
        self._reason = reason
        self._queue: deque[RequestNote] = deque()
        self._wake = threading.Event()
        self._switch_s = sys.getswitchinterval()
        self._closing = False
        self._failing = False
        self._unmade = False
        self._thread = threading.Thread(target=self._run, name="clover-otel", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        sys.setswitchinterval(min(self._switch_s, SWITCH_S))
        self._thread.start()

    def put(self, note: RequestNote) -> None:
        """Queue the span of `note` and return at once; count it if there is no room for it."""
        waiting = len(self._queue)
        if waiting >= QUEUE_SPANS:
            self.dropped += 1
            return
        self._queue.append(note)
        if waiting + 1 == BATCH_SPANS:
            self._wake.set()

    def close(self, within_s: float) -> None:
        """Send what is queued, for at most `within_s` seconds, and count the rest as dropped.  Blocks."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(within_s)
        self._sender.shutdown()  # ends a request to the collector that is under way
        sys.setswitchinterval(self._switch_s)
        left = len(self._queue)
        self._queue.clear()
        self.dropped += left

    def counts(self) -> dict[str, int]:
        """Return spans by outcome: sent, failed, dropped."""
        return {"sent": self.sent, "failed": self.failed, "dropped": self.dropped}

    def _run(self) -> None:
        while True:
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            while self._queue:
                self._send([self._queue.popleft() for _ in range(min(len(self._queue), BATCH_SPANS))])
            if self._closing:
                return

    def _send(self, notes: list[RequestNote]) -> None:
        """Send one batch; whatever goes wrong is counted, and logged once until batches are taken again."""
        epoch_ns = time.time_ns() - time.monotonic_ns()
        spans = [span for note in notes if (span := self._made(note, epoch_ns)) is not None]
        if not spans:
            return
        reason = ""
        try:
            sent = self._sender.export(spans) is SpanExportResult.SUCCESS
            reason = "" if sent else self._reason()
        except Exception as error:  # this thread must outlive whatever the SDK raises
            sent, reason = False, f"{type(error).__name__}: {error}"
        if sent:
            self.sent += len(spans)
        else:
            self.failed += len(spans)
        if sent is self._failing:
            self._failing = not sent
            address, why = self._collector.address, self._collector.clean(reason) or "no reason was given"
            if sent:
                log.info("spans are taken again by %s; %d were lost meanwhile", address, self.failed)
            else:
                log.warning("spans are lost, %s does not take them: %s", address, why)

    def _made(self, note: RequestNote, epoch_ns: int) -> ReadableSpan | None:
        """Return the span of `note`; None if it cannot be made, which is counted, and logged the first time."""
        try:
            return span_of(note, self._resource, epoch_ns)
        except Exception:  # one request must not cost the others of its batch their spans
            self.failed += 1
            if not self._unmade:
                self._unmade = True
                log.exception("the spans of some requests cannot be made; they are counted as failed")
            return None
