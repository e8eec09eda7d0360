"""What a server remembers over restarts: an SQLite file with the account by minute, hour and day.

schema      tables, versions and migrations          rows       what readers get
store       `LedgerWriter` and `LedgerReader`        latency    histograms as text
report_order   what the process that makes a page's report is asked
"""

from __future__ import annotations

from clover.telemetry.ledger.store import LedgerReader, LedgerWriter

__all__ = ["LedgerReader", "LedgerWriter"]
