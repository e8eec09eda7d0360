"""What a server asks the process that makes the report of its page, and how that process answers.

The process is `python -m clover.report.apart`, which an installation may lack: this is what the server knows of it.
"""

from __future__ import annotations

import msgspec

from clover.config import ReportConfig

MOST_S = 120
"""Seconds that the report of a server's page may take."""
REFUSED = 3
"""Exit status of the process if there is nothing to report."""


class ReportOrder(msgspec.Struct, frozen=True):
    """The report of this ledger, with what the settings `[report]` say."""

    ledger: str
    stated: ReportConfig
