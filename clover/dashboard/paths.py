"""The paths of the dashboard: GET /dashboard and /dashboard/try, their files, a stream of messages, the report."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any

from clover._version import __version__
from clover.dashboard.files import REPORT_POLICY, PageFile, PlotlyFile, headers, page_files
from clover.dashboard.report import ReportMaker
from clover.errors import CloverError
from clover.http import EventStreams, Mounted
from clover.http.api.routes import Methods
from clover.http.exchange import Exchange
from clover.http.oip.tensors import Body

log = logging.getLogger("clover.dashboard")

NO_REPORT = (
    "There is no report here: this server keeps no ledger to make one of. `python -m clover ctl state` prints what it "
    "counted since its start."
)
NOT_INSTALLED = (
    "There is no report here: this installation of Clover is without clover.report. Where it is installed, "
    "`python -m clover report LEDGER` makes one of a copy of the ledger."
)
_TEXT = b"text/plain; charset=utf-8"
_HTML = b"text/html; charset=utf-8"


def dashboard_paths(streams: EventStreams, report: ReportMaker | str = NO_REPORT) -> Mounted:
    """Return the dashboard's paths, for a front end to serve.  `report`: who makes it, or why there is none."""
    plotly, tasks = PlotlyFile(), _Tasks()
    pages, files = page_files(plotly, __version__)
    paths: dict[str, Methods] = {
        "/dashboard/stream": {"GET": lambda exchange, body, name: streams.accept(exchange)},
        "/dashboard/report": {"GET": partial(_send_report, report, tasks)},
        **{address: {"GET": partial(_send, file)} for address, file in {**pages, **files}.items()},
    }
    if plotly.address:
        paths[plotly.address] = {"GET": lambda exchange, body, name: tasks.start(_send_plotly(plotly, exchange))}
    return Mounted(paths, streams, None if isinstance(report, str) else report.close)


class _Tasks:
    """Keeps tasks from being collected while they run."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)


def _send(file: PageFile, exchange: Exchange, body: Body, name: str) -> None:
    parts, fields = file.parts(exchange.head.accept)
    exchange.finish(200, parts, fields, file.kind)


async def _send_plotly(plotly: PlotlyFile, exchange: Exchange) -> None:
    try:
        file = await plotly.get()
    except OSError as error:
        log.exception("plotly's script cannot be read")
        exchange.fault(error)
    else:
        _send(file, exchange, b"", "")


def _send_report(report: ReportMaker | str, tasks: _Tasks, exchange: Exchange, body: Body, name: str) -> None:
    if exchange.head.cross_site:
        # Its answer is hidden from the other page, but making it costs this machine some seconds.
        exchange.fail(403, "the report is not made for a page of another site: open it from the dashboard")
    elif isinstance(report, str):
        exchange.finish(404, [report.encode()], headers(REPORT_POLICY, False), _TEXT)
    elif exchange.head.method == "HEAD":
        exchange.finish(200, [], headers(REPORT_POLICY, False), _HTML)
    else:
        tasks.start(_make_report(report, exchange))


async def _make_report(report: ReportMaker, exchange: Exchange) -> None:
    try:
        page = await report.get()
    except CloverError as error:
        exchange.finish(503, [f"There is no report: {error}".encode()], headers(REPORT_POLICY, False), _TEXT)
    except Exception as error:
        log.exception("the report could not be made")
        exchange.fault(error)
    else:
        exchange.finish(200, [page], headers(REPORT_POLICY, False), _HTML)
