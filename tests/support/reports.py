"""Reports of a plausible ledger, each made once a process."""

from __future__ import annotations

import tempfile
from datetime import UTC
from functools import cache
from pathlib import Path

from clover.report.build import LedgerRows, ReportOptions, report_of
from clover.report.records import Report, ReportedApplication
from clover.report.source import read_rows
from clover.telemetry.ledger import LedgerReader
from tests.support.ledgers import LedgerScene, LedgerTruth, write_ledger

SCENE = LedgerScene(days=2.0, minutes_days=0.05)
APPLICATION = ReportedApplication(name="Shop <search>", organisation="Example & Co")


@cache
def ledger_file(scene: LedgerScene = SCENE) -> tuple[Path, LedgerTruth, tempfile.TemporaryDirectory[str]]:
    """Return a ledger with what is in it, and the folder that keeps it."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    path = Path(folder.name) / "shop.db"
    return path, write_ledger(path, scene), folder


@cache
def rows_of(scene: LedgerScene = SCENE) -> LedgerRows:
    """Return all that a report reads of a ledger."""
    with LedgerReader(ledger_file(scene)[0]) as ledger:
        return read_rows(ledger, scene.start_s, scene.end_s, UTC)


def options_of(scene: LedgerScene = SCENE, market_g_per_kwh: float | None = 50.0) -> ReportOptions:
    """Return what is asked of a scene."""
    return ReportOptions(
        start=scene.start_s,
        end=scene.end_s,
        made=scene.end_s + 3600.0,
        server="shop",
        application=APPLICATION,
        market_g_per_kwh=market_g_per_kwh,
        market_source="contract 17",
    )


@cache
def made_report(scene: LedgerScene = SCENE) -> Report:
    """Return the report of a scene."""
    return report_of(rows_of(scene), options_of(scene))
