"""`clover report --audit`: who changed a server, or was refused, by its ledger."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from clover.errors import ConfigError, LedgerError
from clover.report.calendar import moment, time_words, zone_of
from clover.report.cli.options import suffix_format, write
from clover.telemetry.ledger import LedgerReader

MOST_CALLS = 10_000
"""Control calls that are listed at most."""


def report_calls(given: argparse.Namespace, path: Path, now: float) -> None:
    """List the control calls of the period in the ledger at `path`, oldest first.  Raises ConfigError, LedgerError."""
    form = given.format or suffix_format(given.out) or "table"
    if form not in ("table", "json"):
        raise ConfigError(f"--audit is written as table or json, not as {form}")
    zone = zone_of(given.tz)
    start = moment(given.start, zone, now) if given.start else 0.0
    end = moment(given.end, zone, now) if given.end else now
    try:
        with LedgerReader(path) as ledger:
            found = ledger.events(start, end, kinds=("control",), limit=MOST_CALLS)
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from error
    if form == "json":
        records = [msgspec.json.decode(event.detail) for event in found]
        write(msgspec.json.format(msgspec.json.encode(records), indent=1) + b"\n", given.out)
        return
    lines = [f"{time_words(event.at, zone)}  {event.summary}" for event in found]
    if len(found) == MOST_CALLS:
        lines.insert(0, f"the newest {MOST_CALLS} calls; --from and --to choose others")
    write(("\n".join(lines or ["no call changed the server in that time"]) + "\n").encode(), given.out)
