"""The dashboard of a server: its feed, its paths, and the report that it shows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from clover._native.histogram import Histogram
from clover.dashboard import Feed, FeedSources, ReportMaker, dashboard_paths
from clover.dashboard.paths import NO_REPORT, NOT_INSTALLED
from clover.dashboard.today import read_today
from clover.server.parts import Parts
from clover.server.periodic import cancel_task
from clover.telemetry.ledger.report_order import ReportOrder


class DashboardPage:
    """The feed and the paths of the page of a server that is made of `parts`; `ready` says whether it is."""

    def __init__(self, parts: Parts, ready: Callable[[], bool]) -> None:
        context = parts.controller.context
        ledger = parts.ledger.status.path if parts.ledger is not None else None

        def latency() -> Mapping[str, Histogram]:
            return {name: served.traffic.latency for name, served in parts.families.served.items()}

        def today(now_s: float) -> dict[str, Any]:
            assert ledger is not None
            return read_today(ledger, now_s)

        def order() -> ReportOrder:
            return ReportOrder(str(ledger), parts.config.report)

        report: ReportMaker | str = ReportMaker(order)
        if ledger is None:
            report = NO_REPORT
        elif importlib.util.find_spec("clover.report") is None:
            report = NOT_INSTALLED

        self.feed = Feed(
            FeedSources(
                state=parts.control.state,
                decisions=context.decisions.records,
                latency=latency,
                ready=ready,
                draining=lambda: parts.life.draining,
                grid=parts.grid,
                chain=parts.chain,
                today=today if ledger is not None else None,
            )
        )
        self.mounted = dashboard_paths(self.feed.streams, report)

    def start(self, stack: AsyncExitStack) -> None:
        """Sample the server, in the running loop, until `stack` is closed."""
        stack.push_async_callback(self.feed.stop)
        stack.push_async_callback(cancel_task, self.feed.start())
