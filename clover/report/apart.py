"""The process that makes the report of a running server's page: `python -m clover.report.apart`.

Standard input is the order, one line of JSON (`ReportOrder`); the parent leaves it open, and this process ends with it.
Standard output is the page.  An error in the operator's words is the last line of standard error, with exit status 3.
It runs at the lowest priority, so that it takes no core from what infers, and for `MOST_S` seconds at most.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from clover.errors import CloverError
from clover.report.making import latest_page
from clover.telemetry.ledger.report_order import MOST_S, REFUSED, ReportOrder

_LOWEST = 19


def _watch() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> int:
    """Make the page that is ordered, write it and return the exit code."""
    os.nice(_LOWEST)
    signal.alarm(MOST_S)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=ReportOrder)
    threading.Thread(target=_watch, daemon=True).start()
    try:
        page = latest_page(Path(order.ledger), order.stated, time.time())
    except CloverError as error:
        print(error, file=sys.stderr)
        return REFUSED
    sys.stdout.buffer.write(page.encode())
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # the watching thread still reads standard input, which would hold up a normal exit
