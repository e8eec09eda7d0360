"""The dashboard: one page that shows the server live, and steers it.

    assets/      the page, the page that tries a model, their style and scripts; nothing comes from another host
    files        these files as answers: compressed once, under addresses that change with their contents, with the
                 headers that keep a page's scripts to its own
    history      what charts show of the past: two rings in memory, and latencies of the last seconds
    snapshot     the messages, made of the state that `GET /v2/clover/state` gives: pure
    today        what the ledger has of today
    feed         looks every two seconds and sends one message to all open pages
    report       has the report made in a process of its own, one at a time
    paths        GET /dashboard and what is below it
"""

from clover.dashboard.feed import Feed, FeedSources
from clover.dashboard.paths import dashboard_paths
from clover.dashboard.report import ReportMaker

__all__ = ["Feed", "FeedSources", "ReportMaker", "dashboard_paths"]
