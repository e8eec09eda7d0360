"""OpenTelemetry over OTLP/HTTP: a span of each inference, and the joules and grams of each device.

    tracer.py     on the event loop: the trace context of a request, and whether it is sampled
    spans.py      what is noted of a request, and the span that the thread makes of it
    collector.py  where spans are sent, and what may be said of it: no credentials
    exporter.py   the thread `clover-otel`: takes spans from a bounded queue and sends them in batches
    energy.py     `hw.energy` and `clover.carbon`, read once per export
    setup.py      all of it from the configuration; the packages of the extra `otel` are imported here at the earliest

The loop only notes a few numbers of a sampled request and appends them to the queue; all that costs time, making spans,
encoding and sending, is the thread's.  A full queue drops spans and counts them: serving waits for no collector.
"""

from __future__ import annotations

from clover.telemetry.otel.collector import address_of, endpoint_of
from clover.telemetry.otel.setup import OpenTelemetry, build, check

__all__ = ["OpenTelemetry", "address_of", "build", "check", "endpoint_of"]
