"""Tracing and device counters from the configuration; imports the OpenTelemetry SDK only if they are switched on."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from clover._version import __version__
from clover.config import OtelConfig
from clover.errors import ConfigError
from clover.telemetry.otel.collector import ENVIRONMENT, collector_of

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource

    from clover.telemetry.otel.energy import DeviceEnergy
    from clover.telemetry.otel.exporter import SpanExporter
    from clover.telemetry.otel.tracer import Tracer

log = logging.getLogger("clover.otel")

CLOSE_S = 3.0
"""How long the end of the server waits for spans and counters to be sent."""
REQUEST_S = 2.5
"""How long one request to the collector may take, its retries included; less than `CLOSE_S`, so that the last one is
over by then."""

_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_SDK_LOGGER = "opentelemetry"


def check(config: OtelConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Check that what is switched on can work here; raises ConfigError with what to do."""
    if not config.endpoint:
        return
    if missing := [package for package in _PACKAGES if not _installed(package)]:
        raise ConfigError(
            f"otel.endpoint is set, but {missing[0]} is not installed: pip install 'clover-inference[otel]', or leave "
            "--otel out"
        )
    if config.endpoint != ENVIRONMENT:
        return
    if not (environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        raise ConfigError(
            "otel.endpoint is env, but OTEL_EXPORTER_OTLP_ENDPOINT is not set: set it, or give the URL as --otel "
            "http://collector:4318"
        )
    spoken = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if spoken not in (None, "", "http/protobuf"):
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {spoken}, but Clover sends http/protobuf only: name the collector's port "
            "for that, 4318 as a rule"
        )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a parent
        return False


class OpenTelemetry:
    """Tracing and device counters of one server: hand `tracer` to the front end, `start`, `close`.

    `measure` makes what sends the counters, and so starts the SDK's thread; it returns None if they are sent nowhere.
    """

    def __init__(
        self, tracer: Tracer, exporter: SpanExporter, measure: Callable[[], MeterProvider | None], reasons: _LastReason
    ) -> None:
        self.tracer = tracer
        self.exporter = exporter
        self._measure = measure
        self._provider: MeterProvider | None = None
        self._reasons = reasons

    def start(self) -> None:
        """Start to send."""
        self._reasons.enter()
        self._provider = self._measure()
        self.exporter.start()

    def counts(self) -> dict[str, int]:
        """Return spans by outcome: sent, failed, dropped."""
        return self.exporter.counts()

    async def close(self) -> None:
        """Send what is left, for at most `CLOSE_S` seconds, while the loop goes on."""
        ends = [asyncio.to_thread(self.exporter.close, CLOSE_S)]
        if self._provider is not None:
            ends.append(asyncio.to_thread(self._provider.shutdown, CLOSE_S * 1e3))
        await asyncio.gather(*ends)
        self._reasons.leave()


def build(
    config: OtelConfig, loop: asyncio.AbstractEventLoop, devices: Callable[[], Sequence[DeviceEnergy]]
) -> OpenTelemetry | None:
    """Return what `config` asks for, None if that is nothing; `devices` is called on `loop`.  Raises ConfigError."""
    if not config.endpoint:
        return None
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        log.warning("OTEL_SDK_DISABLED is true: no spans and no energy of devices are sent")
        return None
    check(config)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    from clover.telemetry.otel.energy import DeviceReader, observe
    from clover.telemetry.otel.exporter import SpanExporter
    from clover.telemetry.otel.tracer import Tracer

    resource = _resource(os.environ)
    base = "" if config.endpoint == ENVIRONMENT else config.endpoint.rstrip("/")
    reasons = _LastReason()
    collector = collector_of(config, os.environ)
    reasons.enter()  # what the SDK says of a header that it cannot read quotes the header
    try:
        sender = OTLPSpanExporter(endpoint=f"{base}/v1/traces" if base else None, timeout=REQUEST_S)
    finally:
        reasons.leave()
    if said := reasons.take():
        log.warning("OpenTelemetry: %s", collector.clean(said))
    exporter = SpanExporter(sender, resource, collector, reasons.take)

    def measure() -> MeterProvider | None:
        named = any(map(os.environ.get, ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")))
        if not base and not named:
            return None
        metrics = OTLPMetricExporter(endpoint=f"{base}/v1/metrics" if base else None, timeout=REQUEST_S)
        provider = MeterProvider([PeriodicExportingMetricReader(metrics)], resource, shutdown_on_exit=False)
        observe(provider, DeviceReader(loop, devices))
        return provider

    return OpenTelemetry(Tracer(exporter.put, config.sample), exporter, measure, reasons)


def _resource(environ: Mapping[str, str]) -> Resource:
    """Return what the server is called in traces: `clover`, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say
    otherwise."""
    from opentelemetry.sdk.resources import Resource

    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({"service.version": __version__} | ({} if named else {"service.name": "clover"}))


class _LastReason(logging.Handler):
    """Keeps the SDK's last message instead of logging it: the SDK writes several for each batch that a collector
    does not take, and `SpanExporter` logs one until batches are taken again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._text = ""
        self._logger = logging.getLogger(_SDK_LOGGER)
        self._propagated = self._logger.propagate

    def enter(self) -> None:
        """Take the SDK's messages from now on."""
        self._logger.propagate = False
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self._text = record.getMessage()

    def take(self) -> str:
        """Return the last message."""
        return self._text

    def leave(self) -> None:
        """Let the SDK log again as before."""
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated
