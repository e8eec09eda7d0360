"""Spans of inferences and the energy of devices, as an OpenTelemetry collector gets them from a whole server."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.proto", reason="the extra otel is not installed")

from tests.support.otlp_collector import Collector
from tests.support.servers import run, serve, until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def ask(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, str]]:
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}


@pytest.mark.usefixtures("forked_zygotes")
def test_a_collector_gets_spans_and_energy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"name": "INPUT0", "shape": [2, 1], "datatype": "FP32", "data": [[0.5], [0.1]]}]
    body = json.dumps({"inputs": rows}).encode()

    async def main(collector: Collector) -> None:
        chosen = {"http": True, "otel": collector.url, "otel_sample": 0.0, "log_access": True}
        async with serve("slow", tmp_path, **chosen) as server:
            url = f"{server.url}/v2/models/slow/infer"

            async def asked(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, str]]:
                return await asyncio.to_thread(ask, url, body, **headers)

            parent = f"00-{TRACE}-{PARENT}-01"
            status, sampled = await asked(url, body, x_request_id="one", traceparent=parent, tracestate="vendor=x")
            assert status == 200
            version, trace_id, span_id, flags = sampled["traceparent"].split("-")
            assert (version, trace_id, flags) == ("00", TRACE, "01")
            # The parent is not sampled, or there is none and the ratio is 0.
            _, other = await asked(url, body, x_request_id="two", traceparent=f"00-{TRACE}-{PARENT}-00")
            assert other["traceparent"].startswith(f"00-{TRACE}-")
            assert other["traceparent"].endswith("-00")
            assert (await asked(url, body, x_request_id="three"))[1]["traceparent"].endswith("-00")
            # Refused before it had slots, by its body.
            assert (await asked(url, b"{}", x_request_id="four", traceparent=parent))[0] == 400
            assert "traceparent" not in (await asyncio.to_thread(ask, f"{server.url}/v2", None, traceparent=parent))[1]
            sent = server.engine.otel.counts
            await until(lambda: sent()["sent"] == 2)
            assert sent() == {"sent": 2, "failed": 0, "dropped": 0}
            assert b'clover_otel_spans_total{outcome="sent"} 2.0' in server.engine.metrics()
            await check(collector, span_id)
        # What the SDK's reader collects at the end.
        (energy,) = collector.points["hw.energy"]
        assert collector.units == {"hw.energy": "J", "clover.carbon": "g"}
        assert energy.as_double > 0.0
        (carbon,) = collector.points["clover.carbon"]
        assert carbon.as_double > 0.0
        (known,) = [item.value.string_value for item in carbon.attributes if item.key == "clover.intensity"]
        assert known == "configured"

    async def check(collector: Collector, span_id: str) -> None:
        span, found = collector.named("one")
        assert (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()) == (TRACE, span_id, PARENT)
        assert (span.name, span.kind) == ("POST /v2/models/{model}/infer", 2)
        assert span.trace_state == "vendor=x"
        assert collector.resources[0]["service.name"] == "clover"
        wanted: dict[str, Any] = {
            "http.response.status_code": 200,
            "clover.model": "slow",
            "clover.variant": "fast",
            "clover.rows": 2,
        }
        assert {name: found[name] for name in wanted} == wanted
        assert found["clover.batch_rows"] >= 1
        assert found["clover.energy_j"] > 0.0
        assert found["clover.carbon_mg"] > 0.0
        assert found["clover.energy_method"] == "modelled"
        took_s = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert 0.0 < found["clover.input_s"] + found["clover.queue_s"] + found["clover.compute_s"] <= took_s
        refused, found = collector.named("four")
        assert found["http.response.status_code"] == 400
        assert refused.end_time_unix_nano == refused.start_time_unix_nano
        lines = {getattr(line, "request_id", ""): vars(line) for line in caplog.records}
        assert (lines["one"]["trace_id"], lines["one"]["span_id"]) == (TRACE, span_id)

    caplog.set_level(logging.INFO, "clover.access")
    with Collector() as collector:
        run(main(collector))
