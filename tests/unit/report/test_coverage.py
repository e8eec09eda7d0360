"""Gaps, with their reasons, and how figures are known."""

from __future__ import annotations

import re

import pytest

from clover.report.coverage import energy_parts, grids_of, intensity_gaps, intensity_parts, record_gaps
from clover.telemetry.ledger.rows import EventRow, GridRow, RunRow
from tests.support.reports import SCENE, made_report

MINUTE = 60


def run(number: int, started: float, seen: float, ended: float | None) -> RunRow:
    return RunRow(number, started, seen, ended, "0.9", "box", 1, "c0ffee", "{}", "{}")


def grid(start: int, known: str = "live", seconds: float = MINUTE, joules: float = 1.0, g: float = 200.0) -> GridRow:
    return GridRow(
        start,
        MINUTE,
        "GB",
        "neso",
        "average",
        "lifecycle",
        known,
        seconds,
        g,
        1.0,
        1.0,
        joules,
        joules * g / 3.6e6,
        1.0,
    )


def spans(*starts: int) -> dict[int, int]:
    return dict.fromkeys(starts, MINUTE)


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([run(1, 0, 60, 60.0), run(2, 600, 660, None)], "the server was stopped, and started again later"),
        ([run(1, 0, 60, None), run(2, 600, 660, None)], "ended without a shutdown .killed.*, and started again later"),
        ([run(1, 0, 60, None)], "ended without a shutdown, or could not write its ledger any more"),
        ([run(1, 0, 660, None)], "nothing was written although the server ran"),
        ([], "before the first start that"),
    ],
)
def test_a_gap_says_why_as_far_as_is_known(runs: list[RunRow], reason: str) -> None:
    (gap,) = record_gaps(0.0, 660.0, spans(0, 600), runs, [])
    assert (gap.start, gap.seconds) == (60.0, 540.0)
    assert re.search(reason, gap.reason)


def test_gaps_at_both_ends_and_in_the_middle() -> None:
    found = record_gaps(0.0, 600.0, spans(120, 180, 300), [], [])
    assert [(gap.start, gap.seconds) for gap in found] == [(0.0, 120.0), (240.0, 60.0), (360.0, 240.0)]


def test_no_gap_without_a_gap() -> None:
    assert record_gaps(0.0, 180.0, spans(0, 60, 120), [], []) == []
    assert record_gaps(30.0, 150.0, spans(0, 60, 120), [], []) == []


def test_a_fault_nearby_is_named_and_safe_to_print() -> None:
    events = [EventRow(100.0, "fault", "", "disk \x1b[31mfull"), EventRow(100.0, "decision", "", "kept")]
    (gap,) = record_gaps(0.0, 600.0, spans(0, 540), [run(1, 0, 600, None)], events)
    assert gap.reason.endswith(r": disk \x1b[31mfull")


def test_neighbouring_minutes_without_a_live_intensity_are_one_gap() -> None:
    rows = [grid(0), grid(60, "bridged"), grid(120, "configured", 30.0), grid(120, "live", 30.0), grid(240, "bridged")]
    events = [EventRow(65.0, "provider", "", "neso does not answer")]
    found = intensity_gaps(rows, events)
    assert [(gap.start, gap.seconds) for gap in found] == [(60.0, 90.0), (240.0, 60.0)]
    assert found[0].reason.startswith("neso does not answer; its forecast")
    assert "the configured number stood in" in found[0].reason
    assert intensity_gaps([grid(0), grid(60, "estimated")], []) == []


def test_parts_are_by_energy() -> None:
    parts = intensity_parts([grid(0, "live", joules=3.0), grid(60, "estimated", joules=1.0)])
    assert [(item.name, item.part) for item in parts] == [("live", 0.75), ("estimated", 0.25)]
    assert sum(item.part for item in energy_parts({"measured": 2.0, "modelled": 1.0})) == pytest.approx(1.0)
    assert energy_parts({}) == ()


def test_means_are_by_energy_and_by_time() -> None:
    (found,) = grids_of([grid(0, joules=3.0, g=100.0), grid(60, joules=1.0, g=300.0)])
    assert found.g_per_kwh == pytest.approx(150.0)
    assert found.by_time_g_per_kwh == pytest.approx(200.0)


def test_the_scenes_gaps_are_found() -> None:
    found = made_report().gaps
    record = [gap for gap in found if gap.what == "record"]
    hour = 3600.0
    assert len(record) == sum(1 for since, until in SCENE.down if (until - since) * SCENE.days * 86_400 >= hour)
    assert record[0].reason.startswith("the server was stopped")
    assert any("neso does not answer" in gap.reason for gap in found if gap.what == "intensity")
