"""The SDK's batch processor is given notes; in its thread, spans are made of them and sent.

The event loop puts and never waits for a collector.  The thread makes and encodes spans in Python, though, and holds
the interpreter's lock meanwhile: a loop that wakes up then waits for it for Python's switch interval, which is 5 ms.
While spans are sent it is `SWITCH_S`.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

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
        self._queued = self._taken = 0
        self._switch_s = sys.getswitchinterval()
        self._ended = False
        self._failing = False
        self._unmade = False
        # Its types say spans: of a note it reads `context` alone, and `export` takes notes.
        self._processor: Any = BatchSpanProcessor(cast("Any", self), QUEUE_SPANS, FLUSH_S * 1e3, BATCH_SPANS)

    def start(self) -> None:
        """Let the event loop take the interpreter's lock back sooner from now on."""
        sys.setswitchinterval(min(self._switch_s, SWITCH_S))

    def put(self, note: RequestNote) -> None:
        """Queue the span of `note` and return at once; count it if there is no room for it."""
        if self._ended or self._queued - self._taken >= QUEUE_SPANS:
            self.dropped += 1
            return
        self._queued += 1
        self._processor.on_end(note)

    def close(self, within_s: float) -> None:
        """Send what is queued, for at most `within_s` seconds, and count the rest as dropped.  Blocks."""
        ending = threading.Timer(within_s, self.shutdown)
        ending.start()
        self._processor.shutdown()
        ending.cancel()
        sys.setswitchinterval(self._switch_s)

    def shutdown(self) -> None:
        """End a request to the collector that is under way, and send no more; the processor calls it."""
        if not self._ended:
            self._ended = True
            self._sender.shutdown()

    def counts(self) -> dict[str, int]:
        """Return spans by outcome: sent, failed, dropped."""
        return {"sent": self.sent, "failed": self.failed, "dropped": self.dropped}

    def export(self, notes: Sequence[RequestNote]) -> None:
        """Send one batch, in the processor's thread; whatever goes wrong is counted, and logged once until batches are
        taken again."""
        self._taken += len(notes)
        if self._ended:
            self.dropped += len(notes)
            return
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
