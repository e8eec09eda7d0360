"""What is noted of an inference on the event loop, and the OpenTelemetry span that is made of it later."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.trace.status import Status, StatusCode

from clover._version import __version__
from clover.types import Receipt

SCOPE = InstrumentationScope("clover", __version__)
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_INFER = re.compile(r"/v2/models/([^/]+)(/versions/[^/]+)?/infer")


class Phases(NamedTuple):
    """How long the parts of an inference took, and when it arrived; monotonic nanoseconds.

    `input_ns`: its rows were decoded and written to their slots.  `queue_ns`: the longest wait of a row until its batch
    began.  `compute_ns`: the longest batch that had a row of it; `batch_rows`: its rows, those of other requests
    included.
    """

    arrival_ns: int
    input_ns: int
    queue_ns: int
    compute_ns: int
    batch_rows: int
    rows: int


class RequestNote(NamedTuple):
    """What the loop notes of a sampled inference, as it is answered at `answered_ns` (monotonic).

    Ids are hexadecimal, `parent_id` is empty without a parent.  `phases` is None if it was refused before it had slots,
    `receipt` if it was not computed.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    tracestate: bytes
    path: str
    request_id: bytes
    client: str
    status: int
    answered_ns: int
    phases: Phases | None
    receipt: Receipt | None


def span_of(note: RequestNote, resource: Resource, epoch_ns: int) -> ReadableSpan:
    """Return the span of an inference; `epoch_ns` is what Unix time is ahead of the monotonic clock.

    Of a request that was refused before it had slots only the end is known, so that its span has no length.
    """
    parent = None
    trace_id, span_id = int(note.trace_id, 16), int(note.span_id, 16)
    state = _tracestate(note.tracestate)
    if note.parent_id:
        parent_id = int(note.parent_id, 16)
        parent = SpanContext(trace_id, parent_id, is_remote=True, trace_flags=SAMPLED, trace_state=state)
    matched = _INFER.fullmatch(note.path)
    route = f"/v2/models/{{model}}{'/versions/{version}' if matched and matched[2] else ''}/infer"
    return ReadableSpan(
        name=f"POST {route}",
        context=SpanContext(trace_id, span_id, is_remote=False, trace_flags=SAMPLED, trace_state=state),
        parent=parent,
        resource=resource,
        attributes=_attributes(note, route, matched[1] if matched else ""),
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR if note.status >= 500 else StatusCode.UNSET),
        start_time=(note.phases.arrival_ns if note.phases is not None else note.answered_ns) + epoch_ns,
        end_time=note.answered_ns + epoch_ns,
        instrumentation_scope=SCOPE,
    )


def _attributes(note: RequestNote, route: str, model: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": "POST",
        "http.route": route,
        "url.path": note.path,
        "http.response.status_code": note.status,
        "client.address": note.client,
        "clover.request_id": note.request_id.decode("latin-1"),
        "clover.model": model,
    }
    if note.status >= 500:
        found["error.type"] = str(note.status)
    if note.phases is not None:
        found |= {
            "clover.rows": note.phases.rows,
            "clover.input_s": note.phases.input_ns / 1e9,
            "clover.queue_s": note.phases.queue_ns / 1e9,
            "clover.compute_s": note.phases.compute_ns / 1e9,
            "clover.batch_rows": note.phases.batch_rows,
        }
    receipt = note.receipt
    if receipt is not None:
        found |= {
            "clover.variant": receipt.variant,
            "clover.accuracy": receipt.accuracy,
            "clover.energy_j": receipt.energy_j,
            "clover.energy_method": receipt.method,
            "clover.carbon_mg": receipt.carbon_mg,
            "clover.intensity_g_per_kwh": receipt.intensity_g_per_kwh,
            "clover.intensity_state": receipt.intensity_state,
            "clover.pue": receipt.pue,
        }
        if receipt.intensity is not None:
            found |= {
                "clover.intensity_method": receipt.intensity.method,
                "clover.intensity_provider": receipt.intensity.provider,
                "clover.intensity_zone": receipt.intensity.zone,
            }
        if receipt.path:
            found["clover.path"] = list(receipt.path)
    return {name: value for name, value in found.items() if value != ""}


def _tracestate(field: bytes) -> TraceState | None:
    return TraceState.from_header([field.decode("latin-1")]) if field else None
