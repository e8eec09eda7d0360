"""The dashboard as the engine holds it: its feed, its paths, and the report that it shows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clover._native.histogram import Histogram
from clover.config import ReportConfig
from clover.dashboard import Feed, FeedSources, dashboard_paths
from clover.dashboard.today import read_today
from clover.errors import LedgerError
from clover.report.build import ReportOptions, report_of
from clover.report.render.page import report_page
from clover.report.source import read_rows, whole_spans
from clover.server.tasks import cancelled
from clover.telemetry.ledger import LedgerReader
from clover.telemetry.metrics import Metrics
from clover.telemetry.metrics.server import pages

if TYPE_CHECKING:
    from clover.server.engine import Engine  # circle: types only; the engine makes its own page

REPORT_S = 31 * 86_400.0
"""How far back the report of the page goes; `clover report` makes one of any time."""


class DashboardPage:
    """The feed and the paths of an engine whose controller is made; what it counts is added to `metrics`."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        context = engine.controller.context
        ledger = engine.ledger.status.path if engine.ledger is not None else None

        def latency() -> Mapping[str, Histogram]:
            return {name: served.traffic.latency for name, served in engine.served.items()}

        def today(now_s: float) -> dict[str, Any]:
            assert ledger is not None
            return read_today(ledger, now_s)

        def report() -> str:
            assert ledger is not None
            return report_html(ledger, engine.config.report, time.time())

        self.feed = Feed(
            FeedSources(
                state=engine.controller.state,
                decisions=context.decisions.records,
                latency=latency,
                ready=engine.ready,
                draining=lambda: engine.draining,
                grid=engine.grid,
                chain=engine.chain,
                intensity_change=lambda: context.config.intensity_change,
                today=today if ledger is not None else None,
            )
        )
        self.mounted = dashboard_paths(self.feed.streams, report if ledger is not None else None)
        metrics.further.append(lambda: pages(self.feed.streams))

    def start(self, stack: AsyncExitStack) -> None:
        """Begin to look at the engine, in the running loop, until `stack` is closed."""
        stack.push_async_callback(self.feed.stop)
        stack.push_async_callback(cancelled, self.feed.start())


def report_html(path: Path, stated: ReportConfig, now_s: float) -> str:
    """Return the report of the last `REPORT_S` seconds that the ledger `path` has, as HTML; raises LedgerError."""
    with LedgerReader(path) as ledger:
        bounds = ledger.bounds()
        if bounds is None:
            raise LedgerError("the ledger is empty: nothing was recorded yet, come back in a minute")
        start, end = whole_spans(ledger, max(float(bounds[0]), now_s - REPORT_S), float(bounds[1]))
        rows = read_rows(ledger, start, end, UTC)
    options = ReportOptions(
        start=start,
        end=end,
        made=now_s,
        market_g_per_kwh=stated.market_g_per_kwh,
        market_source=stated.market_source,
    )
    return report_page(report_of(rows, options), UTC)
