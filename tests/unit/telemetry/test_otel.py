"""OpenTelemetry: trace contexts, sampling, the queue and its thread, spans, and settings that cannot work."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace.status import StatusCode

from clover.accounting import Account
from clover.config import OtelConfig, ServerConfig
from clover.errors import ConfigError
from clover.settings import override
from clover.telemetry.otel import exporter, setup
from clover.telemetry.otel.collector import UNREADABLE, OtelCollector, address_of, collector_of
from clover.telemetry.otel.energy import DeviceEnergy, DeviceReader, observe
from clover.telemetry.otel.spans import Phases, RequestNote, span_of
from clover.telemetry.otel.tracer import Tracer, parent_of
from clover.types import EnergySample, Reading, Receipt

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
RECEIPT = Receipt(
    variant="full",
    accuracy=91.0,
    energy_j=0.25,
    carbon_mg=0.03,
    intensity_g_per_kwh=400.0,
    method="modelled",
    path=("half>full",),
)


def note(**changes: Any) -> RequestNote:
    phases = Phases(arrival_ns=1000, input_ns=100, queue_ns=2_000_000, compute_ns=3_000_000, batch_rows=5, rows=1)
    plain = RequestNote(
        TRACE.encode(),
        b"0000000000000007",
        SPAN.encode(),
        b"",
        "/v2/models/toy/infer",
        b"id",
        "10.0.0.1",
        200,
        9_000_000,
        phases,
        RECEIPT,
    )
    return plain._replace(**changes)


def exchange(
    traceparent: bytes = b"", path: str = "/v2/models/toy/infer", method: str = "POST", tracestate: bytes = b""
) -> Any:
    head = SimpleNamespace(traceparent=traceparent, tracestate=tracestate, path=path, method=method, refusal=None)
    return SimpleNamespace(head=head, traceparent=b"", traced=None, connection=None, request_id=b"id", model=None)


# --- context ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",  # version 00 ends there
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",  # a field that came twice
    ],
)
def test_what_is_no_trace_context_is_ignored(field: str) -> None:
    assert parent_of(field.encode()) is None


def test_a_trace_context_is_read() -> None:
    ids = TRACE.encode(), SPAN.encode()
    assert parent_of(f"00-{TRACE}-{SPAN}-01".encode()) == (*ids, True)
    assert parent_of(f"00-{TRACE}-{SPAN}-02".encode()) == (*ids, False)
    assert parent_of(f"01-{TRACE}-{SPAN}-0f-later".encode()) == (*ids, True)


@given(st.binary(max_size=80))
def test_no_field_breaks_the_reader(field: bytes) -> None:
    parent_of(field)


def test_the_parent_decides_and_the_ratio_for_roots() -> None:
    noted: list[RequestNote] = []
    for ratio in (0.0, 1.0):
        tracer = Tracer(noted.append, ratio)
        for flag in (b"00", b"01"):
            one = exchange(b"00-%b-%b-%b" % (TRACE.encode(), SPAN.encode(), flag))
            answered = tracer.record_answer(one, 200)
            assert answered == b"traceparent: %b\r\n" % one.traceparent
            assert one.traceparent.split(b"-")[1::2] == [TRACE.encode(), flag]
    assert [(item.trace_id, item.parent_id) for item in noted] == [(TRACE.encode(), SPAN.encode())] * 2
    noted.clear()
    draws = iter([(1 << 62) << 64 | 1, ((1 << 62) - 1) << 64 | 1])
    tracer = Tracer(noted.append, 0.25, bits=lambda n: next(draws))
    flags = [tracer.record_answer(exchange(), 200)[-4:-2] for _ in range(2)]
    assert flags == [b"00", b"01"]
    assert len(noted) == 1
    assert Tracer(noted.append, 1.0).record_answer(exchange(path="/metrics", method="GET"), 200) == b""
    assert len(noted) == 1


def test_a_span_that_cannot_be_noted_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    def broken(noted: RequestNote) -> None:
        raise RuntimeError("no")

    tracer = Tracer(broken, 1.0)
    for _ in range(3):
        assert tracer.record_answer(exchange(), 200).startswith(b"traceparent: 00-")
    assert len(caplog.records) == 1


def test_what_a_client_sends_is_noted_within_bounds() -> None:
    noted: list[RequestNote] = []
    tracer = Tracer(noted.append, 1.0)
    parent = b"00-%b-%b-01" % (TRACE.encode(), SPAN.encode())
    for length in (512, 513, 60_000):
        path, state = f"/v2/models/{'m' * length}/infer", b"a=" + b"1" * (length - 2)
        tracer.record_answer(exchange(parent, path, tracestate=state), 404)
    assert [len(item.tracestate) for item in noted] == [512, 0, 0]
    assert {len(item.path) for item in noted} == {512}


def test_nothing_is_noted_of_a_request_without_its_token() -> None:
    noted: list[RequestNote] = []
    one = exchange(b"00-%b-%b-01" % (TRACE.encode(), SPAN.encode()))
    one.head.refusal = (401, "a valid bearer token is needed", b"")
    assert Tracer(noted.append, 1.0).record_answer(one, 401).startswith(b"traceparent: 00-")
    assert noted == []


# --- spans ------------------------------------------------------------------------------------------------------------


def test_what_a_span_says() -> None:
    span = span_of(note(tracestate=b"a=1"), Resource({}), epoch_ns=10**18)
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (int(TRACE, 16), int(SPAN, 16))
    assert (span.start_time, span.end_time) == (10**18 + 1000, 10**18 + 9_000_000)
    assert span.context is not None
    assert span.context.trace_state.get("a") == "1"
    assert span.attributes is not None
    found = dict(span.attributes)
    assert found["clover.path"] == ["half>full"]
    assert (found["clover.queue_s"], found["clover.compute_s"]) == (0.002, 0.003)
    assert found["clover.batch_rows"] == 5
    assert (found["clover.accuracy"], found["clover.energy_j"], found["clover.carbon_mg"]) == (91.0, 0.25, 0.03)
    assert span.status.status_code is StatusCode.UNSET
    version = span_of(note(path="/v2/models/toy/versions/1/infer"), Resource({}), 0)
    assert version.name == "POST /v2/models/{model}/versions/{version}/infer"
    failed = span_of(note(status=503, phases=None, receipt=None, parent_id=b""), Resource({}), 0)
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.parent is None
    assert failed.start_time == failed.end_time
    assert failed.attributes is not None
    assert not any(name.startswith("clover.energy") for name in failed.attributes)


# --- queue and thread -------------------------------------------------------------------------------------------------


class Sender:
    """Takes batches, or does not; `gate` is what it waits for."""

    def __init__(self) -> None:
        self.good = True
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.came = threading.Semaphore(0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.gate.wait(30)
        self.batches.append(len(spans))
        self.came.release()
        return SpanExportResult.SUCCESS if self.good else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.gate.set()


def made(sender: Sender, reason: str = "no route") -> exporter.SpanExporter:
    return exporter.SpanExporter(sender, Resource({}), OtelCollector("http://collector:4318"), lambda: reason)


def test_a_collector_that_stands_still_costs_spans_and_no_time() -> None:
    sender = Sender()
    sender.gate.clear()
    queue = made(sender)
    queue.start()
    for _ in range(exporter.QUEUE_SPANS + 10 * exporter.BATCH_SPANS):
        queue.put(note())
    counts = queue.counts()
    assert counts["sent"] == 0
    assert counts["dropped"] >= 9 * exporter.BATCH_SPANS  # all but the queue and one batch under way
    sender.gate.set()
    queue.close(10.0)
    counts = queue.counts()
    assert counts["sent"] == sum(sender.batches)
    assert sum(counts.values()) == exporter.QUEUE_SPANS + 10 * exporter.BATCH_SPANS
    assert max(sender.batches) <= exporter.BATCH_SPANS


def test_a_collector_that_refuses_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sender = Sender()
    queue = made(sender)
    queue.start()
    for good in (False, False, True):
        sender.good = good
        for _ in range(exporter.BATCH_SPANS):
            queue.put(note())
        assert sender.came.acquire(timeout=10)
    queue.close(10.0)
    assert queue.counts() == {"sent": exporter.BATCH_SPANS, "failed": 2 * exporter.BATCH_SPANS, "dropped": 0}
    assert [record.getMessage() for record in caplog.records] == [
        "spans are lost, http://collector:4318 does not take them: no route",
        f"spans are taken again by http://collector:4318; {2 * exporter.BATCH_SPANS} were lost meanwhile",
    ]


def test_a_span_that_cannot_be_made_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender()
    queue = made(sender)
    for trace_id in (TRACE.encode(), b"no number", b"nor this", TRACE.encode()):
        queue.put(note(trace_id=trace_id))
    queue.start()
    queue.close(10.0)
    assert sender.batches == [2]
    assert queue.counts() == {"sent": 2, "failed": 2, "dropped": 0}
    assert [record.getMessage() for record in caplog.records] == [
        "the spans of some requests cannot be made; they are counted as failed"
    ]


# --- energy -----------------------------------------------------------------------------------------------------------


def test_devices_are_read_on_the_loop() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    threads: list[str] = []

    def devices() -> list[DeviceEnergy]:
        threads.append(threading.current_thread().name)
        return [DeviceEnergy("gpu0", "gpu", "A100", "measured", 12.0, account.grams("gpu0"))]

    # A counter, on an invented grid until the provider of a real one answers.
    account = Account(pue=1.0)
    begun = EnergySample(device="gpu0", at_ns=0, total_j=0.0, idle_w=1.0, method="measured")
    synthetic = Reading(g_per_kwh=3.6e5, at_s=0.0, provider="test", method="synthetic")
    account.close_window(begun, synthetic)
    account.close_window(structs.replace(begun, at_ns=10**9, total_j=6.0), synthetic)
    published = structs.replace(synthetic, method="published")
    account.close_window(structs.replace(begun, at_ns=2 * 10**9, total_j=12.0), published)

    async def main() -> None:
        observe(provider, DeviceReader(asyncio.get_running_loop(), devices))
        data: Any = await asyncio.to_thread(reader.get_metrics_data)
        metrics = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
        (point,) = metrics["hw.energy"].data.data_points
        assert (point.value, metrics["hw.energy"].unit) == (12.0, "J")
        assert metrics["hw.energy"].data.is_monotonic
        assert point.attributes == {"hw.id": "gpu0", "hw.type": "gpu", "hw.name": "A100", "clover.method": "measured"}
        points = metrics["clover.carbon"].data.data_points
        found = {(one.attributes["clover.method"], one.attributes["clover.intensity"]): one.value for one in points}
        assert found == {("modelled", "synthetic"): pytest.approx(0.6), ("measured", "published"): pytest.approx(0.6)}

    asyncio.run(main())
    assert set(threads) == {threading.current_thread().name}
    assert reader.get_metrics_data() is None  # the loop is closed
    provider.shutdown()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("collector:4318", "must be a URL"),
        ("grpc://collector:4317", "must be a URL"),
        ("http://collector:no", "must be a URL"),
        ("http://collector:4318/v1/traces", "leave /v1/... out"),
        ("http://me:secret@collector:4318", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://me:secret@collector:no", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_endpoints_that_cannot_be_used_are_refused(endpoint: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        override(ServerConfig(), otel=endpoint)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://collector:4318/", "http://collector:4318"),
        ("https://me:hunter2@collector/key/hunter2?key=hunter2#hunter2", "https://collector"),
        ("https://me:hunter2@[::1]:4318/v1/traces", "https://[::1]:4318"),
        ("http://me:hunter2@collector:no", UNREADABLE),
        ("http://me:hun/ter2@collector:4318", UNREADABLE),
        ("hunter2", UNREADABLE),
        ("http://[hunter2", UNREADABLE),
    ],
)
def test_a_collector_is_shown_without_credentials(url: str, address: str) -> None:
    assert address_of(url) == address
    named = collector_of(OtelConfig(endpoint="env"), {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url})
    assert named.address == address
    if "hun" in url:
        shown = named.clean(f"Failed to parse: {url}, or url: {url.partition('collector')[2]}")
        assert not any(part in shown for part in ("hunter2", "hun/", "ter2"))


def test_what_the_sdk_or_the_collector_repeats_is_masked_and_cut(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3same,key=o%70en,unreadable s3cret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hunter2@127.0.0.1:no")
    loop: Any = None
    found = setup.build(OtelConfig(endpoint="env"), loop, tuple)
    assert found is not None
    assert "unreadable s3cret" not in caplog.text
    named = collector_of(OtelConfig(endpoint="env"), os.environ)
    assert named.clean("no token s3same, Bearer s3same, open, o%70en") == "no token ***, ***, ***, ***"
    assert named.clean("\x1b[31mno\n" * 100).isprintable()
    assert len(named.clean("no" * 9000)) <= 210
    found.exporter.start()
    found.exporter.put(note())
    found.exporter.close(10.0)
    assert found.counts()["failed"] == 1
    assert f"{UNREADABLE} does not take them" in caplog.text
    assert "hunter2" not in caplog.text


def test_the_standard_variables_count_only_if_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    loop: Any = None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert setup.build(OtelConfig(), loop, tuple) is None
    chosen = OtelConfig(endpoint="env")
    setup.check(chosen)
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_ENDPOINT is not set"):
        setup.check(chosen, {})
    with pytest.raises(ConfigError, match="http/protobuf only"):
        setup.check(chosen, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    monkeypatch.setattr(setup, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'clover-inference\[otel\]'"):
        setup.check(OtelConfig(endpoint="http://c:4318"))
