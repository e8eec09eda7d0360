"""An OpenTelemetry collector on the loopback: takes OTLP over HTTP, and keeps what came as protobuf messages."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def plain(attributes: Any) -> dict[str, Any]:
    """Return a message's attributes by their names."""
    found = {}
    for pair in attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


class Collector:
    """Listens on a free port while it is entered.  `status` is what it answers; `hold` keeps requests waiting until it
    is set, if it is not."""

    def __init__(self) -> None:
        self.status = 200
        self.hold = threading.Event()
        self.hold.set()
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.points: dict[str, list[NumberDataPoint]] = {}
        self.units: dict[str, str] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.hold.wait(30)
                if collector.status == 200:
                    collector.take(self.path, body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, path: str, body: bytes) -> None:
        """Keep what a request brought."""
        if path == "/v1/traces":
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(plain(group.resource.attributes))
                for scope in group.scope_spans:
                    self.spans += scope.spans
        elif path == "/v1/metrics":
            for measured in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for metrics in measured.scope_metrics:
                    for metric in metrics.metrics:
                        self.units[metric.name] = metric.unit
                        self.points[metric.name] = list(metric.sum.data_points)

    def named(self, request_id: str) -> tuple[Span, dict[str, Any]]:
        """Return the one span of the request with that id, and its attributes."""
        found = [(span, plain(span.attributes)) for span in self.spans]
        (one,) = [item for item in found if item[1].get("clover.request_id") == request_id]
        return one
