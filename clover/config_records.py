"""The settings of the log, the ledger, the spans and the reports of a server, and of roll-outs."""

from __future__ import annotations

from typing import Annotated, Literal

from clover.config_section import Section
from clover.config_section import described as _help


class LogConfig(Section, frozen=True, kw_only=True):
    level: Annotated[Literal["debug", "info", "warning", "error"], _help("least severe messages to log")] = "info"
    json: Annotated[bool, _help("log one JSON object per line")] = False
    access: Annotated[bool, _help("log every request with its id")] = False


class LedgerConfig(Section, frozen=True, kw_only=True):
    keep: Annotated[
        Literal["auto", "on", "off"],
        _help(
            "keep what is used, emitted and saved in a file of state_dir, over restarts; auto: on for `clover serve`, "
            "off inside other programs"
        ),
    ] = "auto"
    name: Annotated[
        str, _help("name of the file; by default made of the address that is bound, so that each server has its own")
    ] = ""
    max_bytes: Annotated[
        int,
        _help(
            "largest file, bytes: beyond it spans are put together earlier, and at last the oldest are removed",
            ge=1 << 20,
        ),
    ] = 256 << 20


class OtelConfig(Section, frozen=True, kw_only=True):
    endpoint: Annotated[
        str,
        _help(
            "OpenTelemetry collector that takes OTLP over HTTP, as http://collector:4318; env takes it from the "
            "OTEL_EXPORTER_OTLP_* variables; empty sends nothing (needs the extra otel)"
        ),
    ] = ""
    sample: Annotated[
        float,
        _help("fraction of requests that are traced, of those without a traceparent, which says so itself", ge=0, le=1),
    ] = 1.0


class ReportConfig(Section, frozen=True, kw_only=True):
    application: Annotated[str, _help("name of the application that carbon reports are of")] = ""
    organisation: Annotated[str, _help("organisation that reports")] = ""
    market_g_per_kwh: (
        Annotated[
            float,
            _help(
                "carbon intensity of the electricity that was contracted, gCO2e per kWh, for market-based figures", ge=0
            ),
        ]
        | None
    ) = None
    market_source: Annotated[str, _help("where that factor is from: contract, certificates, residual mix")] = ""


class RolloutConfig(Section, frozen=True, kw_only=True):
    percent: Annotated[
        float, _help("percent of the requests that a new version of a model answers while it is tried", gt=0, le=50)
    ] = 10.0
    risk: Annotated[float, _help("percent of the good versions that may be rolled back for chance", gt=0, le=50)] = 1.0
    max_s: Annotated[float, _help("seconds after which a version that is still undecided is rolled back", gt=0)] = (
        86_400.0
    )
    root: Annotated[
        str, _help("folder that new versions must lie in; by default the one that the served family's folder lies in")
    ] = ""


class BatchJobsConfig(Section, frozen=True, kw_only=True):
    bytes: Annotated[
        int, _help("most bytes of files and answers of batch jobs that a tenant may keep in state_dir", ge=1 << 20)
    ] = 4 << 30
    rows: Annotated[int, _help("most rows of batch jobs of a tenant that may wait", ge=1)] = 1_000_000
    days: Annotated[float, _help("days after which files and ended batch jobs are deleted", gt=0)] = 7.0
