"""From snapshots to minutes: nothing is lost or counted twice, whatever the clocks and the meters do."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.telemetry.ledger import LedgerReader, LedgerWriter
from clover.telemetry.ledger.collector import MOST_EVENTS, Collector, micro, minutes_of, nano, spread
from clover.telemetry.ledger.latency import BOUNDS_MS, decode
from clover.telemetry.ledger.rows import EventRow
from clover.telemetry.ledger.snapshot import (
    Amount,
    CellCounts,
    CellKey,
    ComparedCounts,
    GridMoment,
    ModelCounts,
    Snapshot,
)
from clover.telemetry.ledger.store import RunStart

START = RunStart(0.0, "1", "box", 1, "d", "{}")
CELL = CellKey("m", "small", "cpu", "1c@0", "")
GB = ("GB", "neso", "average", "lifecycle", "live")


def counts(rows: int = 0, slo_ms: float = 20.0, **others: int) -> ModelCounts:
    latency = [rows] * len(BOUNDS_MS)
    known = {"labelled": 0, "right": 0, "violations": 0, "held": 0, "missed": 0, **others}
    return ModelCounts(
        receipts_j={"": 0.5 * rows},
        rows=rows,
        accuracy_rows=90.0 * rows,
        slo_ms=slo_ms,
        answered=rows,
        latency=latency,
        **known,
    )


def figures(collector: Collector, table: str, figure: str) -> dict[tuple[object, ...], object]:
    """Take what was collected, as figures by minute and key."""
    from clover.telemetry.ledger.schema import TABLES

    batch = collector.flush(0.0)
    rows = batch.rows.get(table, {}) if batch is not None else {}
    at = TABLES[table].figures.index(figure)
    return {(key[0], *key[2:]): row[at] for key, row in rows.items() if row[at]}


def test_a_model_that_is_gone_and_comes_back_begins_at_zero() -> None:
    collector = Collector(60.0, 0.0, 1.0)
    for at_s, rows in ((61.0, 5), (62.0, 3)):
        collector.take(Snapshot(at_s, at_s - 60.0, requests={("m", ""): {200: rows}}, models={"m": counts(rows)}))
        collector.forget("m")
    assert list(figures(collector, "usage", "requests").values()) == [8]


# --- minutes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "until", "minutes"),
    [
        (60.0, 61.0, [(60, 1.0)]),
        (59.0, 60.0, [(0, 1.0)]),
        (60.0, 60.0, [(60, 1.0)]),
        (50.0, 70.0, [(0, 0.5), (60, 1.0)]),
        (30.0, 180.0, [(0, 0.2), (60, 0.6), (120, 1.0)]),
    ],
)
def test_minutes_of_a_time(since: float, until: float, minutes: list[tuple[int, float]]) -> None:
    assert [(at, round(part, 9)) for at, part in minutes_of(since, until)] == minutes


@given(st.floats(0, 2e9), st.floats(0, 3e5), st.integers(-(10**15), 10**15))
def test_parts_sum_to_the_whole(since: float, seconds: float, whole: int) -> None:
    parts = minutes_of(since, since + seconds)
    assert len(parts) <= 1442
    assert parts[-1][1] == 1.0
    assert all(a[1] <= b[1] for a, b in pairwise(parts))
    assert sum(spread(whole, parts)) == whole


# --- what crosses a minute --------------------------------------------------------------------------------------------


def test_a_window_that_crosses_a_minute_is_split_by_time() -> None:
    collector = Collector(1000.0, 50.0, 1.5)  # 1000 = 16 x 60 + 40
    collector.take(Snapshot(1040.0, 90.0, lines={("cpu", "idle"): ("modelled", Amount(40.0, 4.0))}))
    assert figures(collector, "lines", "joules_uj") == {
        (960, "cpu", "idle", "modelled"): 20_000_000,
        (1020, "cpu", "idle", "modelled"): 20_000_000,
    }


def test_energy_that_came_late_is_of_its_own_time_and_rows_are_of_theirs() -> None:
    collector = Collector(0.0, 1000.0, 1.5)
    first: dict[str, Any] = {"cells": {CELL: CellCounts(6, {})}, "metered_s": {"cpu": 1010.0}}
    collector.take(Snapshot(10.0, 1010.0, **first))
    collector.flush(10.0)
    for minute in range(1, 10):  # the counter hangs
        collector.take(Snapshot(60.0 * minute, 1000.0 + 60.0 * minute, metered_s={"cpu": 1010.0}))
    energy = {"measured": Amount(600.0, 60.0)}
    late: dict[str, Any] = {
        "cells": {CELL: CellCounts(12, energy)},
        "lines": {("cpu", "active"): ("measured", Amount(600.0, 60.0))},
    }
    collector.take(Snapshot(610.0, 1610.0, metered_s={"cpu": 1610.0}, **late))
    batch = collector.flush(610.0)
    assert batch is not None
    usage = {key[0]: row for key, row in batch.rows["usage"].items()}
    whole_minutes = dict.fromkeys(range(60, 600, 60), 60_000_000)
    assert {minute: row[6] for minute, row in usage.items()} == {0: 50_000_000, **whole_minutes, 600: 10_000_000}
    assert sum(row[5] for row in usage.values()) == 6
    assert usage[540][5] + usage[600][5] == 6
    assert sum(row[0] for row in batch.rows["lines"].values()) == 600_000_000


def test_a_label_that_changes_takes_what_is_new() -> None:
    collector = Collector(0.0, 0.0, 1.5)
    for at, label, joules in ((1.0, "none", 0.0), (2.0, "modelled", 3.0), (3.0, "measured", 5.0)):
        collector.take(Snapshot(at, at, lines={("cpu", "idle"): (label, Amount(joules, 0.0))}))
    assert figures(collector, "lines", "joules_uj") == {
        (0, "cpu", "idle", "modelled"): 3_000_000,
        (0, "cpu", "idle", "measured"): 2_000_000,
    }


def test_quality_follows_the_slo_of_its_time() -> None:
    collector = Collector(0.0, 0.0, 1.5)
    collector.take(Snapshot(1.0, 1.0, models={"m": counts(10, violations=1)}))
    collector.take(Snapshot(2.0, 2.0, models={"m": counts(25, slo_ms=30.0, violations=3, labelled=4, right=3)}))
    batch = collector.flush(2.0)
    assert batch is not None
    rows = {key[3]: row for key, row in batch.rows["quality"].items()}
    assert rows[20.0][:6] == [10, 900_000_000, 0, 0, 10, 1]
    assert rows[30.0][:6] == [15, 1_350_000_000, 4, 3, 15, 2]
    assert [sum(decode(str(row[-1])).values()) for row in rows.values()] == [10, 15]
    receipts = [row for key, row in batch.rows["usage"].items() if row[10]]
    assert sum(row[10] for row in receipts) == 12_500_000


def test_requests_are_counted_by_outcome_and_tenant() -> None:
    collector = Collector(0.0, 0.0, 1.5)
    codes = {200: 5, 429: 2, 400: 1, 404: 1, 503: 3}
    collector.take(Snapshot(1.0, 1.0, requests={("m", "acme"): codes}))
    batch = collector.flush(1.0)
    assert batch is not None
    ((key, row),) = batch.rows["usage"].items()
    assert key[2:] == ("m", "", "", "", "acme", "")
    assert row[:5] == [12, 5, 2, 2, 3]


def test_the_grid_has_each_intensity_with_its_seconds_and_energy() -> None:
    collector = Collector(0.0, 100.0, 1.5)
    stale = (*GB[:4], "bridged")
    for at, key, g, joules in ((1.0, GB, 200.0, 10), (2.0, GB, 200.0, 30), (3.0, stale, 300.0, 60)):
        collector.grid(GridMoment(at, 100.0 + at, key, g, 5.0 * at, joules, 3 * joules))
    batch = collector.flush(3.0)
    assert batch is not None
    rows = {key[2:]: row for key, row in batch.rows["grid"].items()}
    assert rows[GB] == [2000, 200_000 * 2000, 15_000, 10, 30, 60, 90]
    assert rows[stale] == [1000, 300_000 * 1000, 15_000, 15, 30, 60, 90]


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [-3600.0, -90.0, 86_400.0])
def test_a_clock_that_is_set_loses_nothing_and_counts_nothing_twice(moved: float) -> None:
    collector = Collector(6000.0, 0.0, 1.5)
    joules = 0.0
    for second in range(1, 200):
        at = 6000.0 + second + (moved if second > 100 else 0.0)
        joules += 1.0
        collector.take(Snapshot(at, float(second), lines={("cpu", "idle"): ("modelled", Amount(joules, 0.0))}))
        collector.grid(GridMoment(at, float(second), GB, 200.0, 0.0, micro(joules), 0))
    batch = collector.flush(0.0)
    assert batch is not None
    assert sum(row[0] for row in batch.rows["lines"].values()) == 199_000_000
    assert sum(row[0] for row in batch.rows["grid"].values()) == 199_000
    assert collector.clock_steps == 1
    assert [event.kind for event in batch.events] == ["fault"]
    assert f"{moved:+.1f} s" in batch.events[0].summary


def test_one_that_begins_later_counts_from_there_and_keeps_its_events() -> None:
    """As a server that takes over: another one counted until 1060 s."""
    collector = Collector(1000.0, 0.0, 1.0)
    collector.event(EventRow(1000.0, "configuration", "", "started"))
    collector.begin(1060.0, 60.0)
    collector.grid(GridMoment(1070.0, 70.0, GB, 200.0, 0.0, 5, 7))
    batch = collector.flush(1070.0)
    assert batch is not None
    assert [event.summary for event in batch.events] == ["started"]
    (row,) = batch.rows["grid"].values()
    assert (row[0], row[4], row[6]) == (10_000, 5, 7)


def test_events_are_bounded() -> None:
    collector = Collector(0.0, 0.0, 1.5)
    for _ in range(MOST_EVENTS + 5):
        collector.event(EventRow(0.0, "fault", "", "x"))
    batch = collector.flush(0.0)
    assert batch is not None
    assert len(batch.events) == MOST_EVENTS
    assert collector.left_out_events == 5
    assert collector.flush(0.0) is None


# --- whole histories --------------------------------------------------------------------------------------------------

_STEP = st.tuples(
    st.floats(0.0, 400.0),  # seconds that pass
    st.sampled_from([0.0, 0.0, 0.0, -500.0, 7200.0]),  # by which the wall clock is set
    st.floats(0.0, 1e4),  # joules
    st.integers(0, 1000),  # rows
    st.booleans(),  # whether the meter could be read
    st.booleans(),  # whether it is flushed
)


@settings(max_examples=25)
@given(st.lists(_STEP, min_size=1, max_size=30))
def test_the_ledger_has_what_the_account_has_exactly(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, float, float, int, bool, bool]]
) -> None:
    path = tmp_path_factory.mktemp("history") / "a.db"
    writer = LedgerWriter(path)
    writer.begin(START)
    collector = Collector(1e9, 0.0, 1.5)
    wall, mono, active, idle, rows, metered, pending = 1e9, 0.0, 0.0, 0.0, 0, 0.0, 0.0
    for seconds, moved, joules, more, readable, flushed in steps:
        mono, wall, rows, pending = mono + seconds, wall + seconds + moved, rows + more, pending + joules
        if readable:
            active, idle, metered, pending = active + pending * 0.7, idle + pending * 0.3, mono, 0.0
        whole = micro(active) + micro(idle)
        collector.grid(GridMoment(wall, mono, GB, 200.0, 0.0, whole, nano(active * 1e-4) + nano(idle * 1e-4)))
        collector.take(
            Snapshot(
                wall,
                mono,
                lines={
                    ("cpu", "active"): ("modelled", Amount(active, active * 1e-4)),
                    ("cpu", "idle"): ("modelled", Amount(idle, idle * 1e-4)),
                },
                cells={CELL: CellCounts(rows, {"modelled": Amount(active, active * 1e-4)})},
                idle={("m", "small", "modelled"): Amount(idle, idle * 1e-4)},
                requests={("m", ""): {200: rows}},
                models={"m": counts(rows)},
                compared={
                    ("m", "server", "fixed"): ComparedCounts(
                        "modelled", rows, Amount(active, 1.0), Amount(1.1 * active, 2.0), 0.0, 0.0, -0.5
                    )
                },
                metered_s={"cpu": metered},
            )
        )
        if flushed and (batch := collector.flush(wall)) is not None:
            writer.add(batch)
    if (batch := collector.flush(wall)) is not None:
        writer.add(batch)
    writer.close()
    with LedgerReader(path) as ledger:
        for line, counted in (("active", active), ("idle", idle)):
            assert round(1e6 * sum(row.joules for row in ledger.lines() if row.line == line)) == micro(counted)
        usage = ledger.usage()
        assert round(1e6 * sum(row.active_j for row in usage)) == micro(active)
        assert round(1e6 * sum(row.idle_j for row in usage)) == micro(idle)
        assert round(1e9 * sum(row.active_g for row in usage)) == nano(active * 1e-4)
        assert sum(row.rows for row in usage) == sum(row.requests for row in usage) == rows
        assert round(1e6 * sum(row.receipts_j for row in usage)) == micro(0.5 * rows)
        assert round(1e6 * sum(row.joules for row in ledger.grid())) == micro(active) + micro(idle)
        assert sum(row.seconds for row in ledger.grid()) == pytest.approx(mono, abs=0.001)
        saved = ledger.saved()
        assert round(1e6 * sum(row.saved_j for row in saved)) == micro(1.1 * active) - micro(active)
        assert sum(sum(decode(row.latency).values()) for row in ledger.quality()) == rows
    path.unlink()
