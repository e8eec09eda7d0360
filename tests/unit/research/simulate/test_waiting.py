"""Batch jobs in virtual hours: grams and ends by hand, nothing late, and the command."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.carbon.trace import TraceSource
from clover.research.cli.simulate import main
from clover.research.simulate import loads
from clover.research.simulate.waiting import Arrival, HourlyGrid, hourly, play, play_at_once, waiting_rows

HOUR_S, DAY_S = 3600.0, 86_400.0
WAVE = 300.0 - 200.0 * np.sin(np.arange(60 * 24) * np.pi / 12.0)


def test_a_job_waits_for_the_clean_hours() -> None:
    jobs = [Arrival(0.0, 4 * HOUR_S, 24 * HOUR_S)]
    grid = HourlyGrid(0, np.array([300.0] * 12 + [100.0] * 24))
    at_once, known = play_at_once(jobs, grid), play(jobs, grid, grid.known, careful=False)
    assert at_once.done_s == [4 * HOUR_S]
    assert at_once.grams == pytest.approx(4 * HOUR_S * 300.0 / 3.6e6)
    assert known.grams == pytest.approx(at_once.grams / 3.0)
    assert known.done_s == [16 * HOUR_S]


def test_live_rows_leave_a_part_and_a_start_costs_its_seconds() -> None:
    jobs = [Arrival(1800.0, HOUR_S, 9 * HOUR_S)]
    grid = HourlyGrid(0, np.array([100.0] * 12))
    found = play_at_once(jobs, grid, spare=lambda start_s: 0.5, wake_s=60.0)
    assert found.done_s == [1800.0 + 2 * HOUR_S]
    assert (found.grams, found.starts) == (pytest.approx((HOUR_S + 60.0) * 100.0 / 3.6e6), 1)


def test_the_earliest_deadline_comes_first_and_what_the_hours_do_not_hold_is_late() -> None:
    jobs = [Arrival(0.0, 2 * HOUR_S, 9 * HOUR_S), Arrival(HOUR_S, HOUR_S, 2.5 * HOUR_S), Arrival(0.0, 60.0, 10.0)]
    found = play_at_once(jobs, HourlyGrid(0, np.full(5, 100.0)))
    assert found.done_s == [3 * HOUR_S + 60.0, 2 * HOUR_S, 60.0]
    assert found.late(jobs) == {2}
    never = [Arrival(0.0, 9 * HOUR_S, 8 * HOUR_S)]
    assert play_at_once(never, HourlyGrid(0, np.full(5, 100.0))).done_s == [math.inf]


def test_a_machine_that_sleeps_is_woken_once() -> None:
    jobs = [Arrival(0.0, 3 * HOUR_S, 47 * HOUR_S)]
    grid = HourlyGrid(0, np.array([300.0, 100.0, 300.0] + [101.0, 101.5, 102.0] + [300.0] * 42))
    apart, merged = (play(jobs, grid, grid.known, careful=False, idle=0.8, wake_s=wake_s) for wake_s in (1.0, 600.0))
    assert (apart.starts, merged.starts) == (2, 1)


@given(
    st.lists(
        st.tuples(st.floats(0.0, 6 * DAY_S), st.floats(1.0, HOUR_S), st.floats(600.0, 3 * DAY_S)), max_size=12
    ).map(sorted)
)
def test_nothing_is_late_that_need_not_be_once_such_jobs_were_seen(drawn: list[tuple[float, float, float]]) -> None:
    """Week by week the same jobs: from the second one on nothing is late, if nothing is at once."""
    jobs = [
        Arrival(at_s + (35 + week * 7) * DAY_S, work_s, at_s + (35 + week * 7) * DAY_S + window_s)
        for week in range(2)
        for at_s, work_s, window_s in drawn
    ]
    grid = HourlyGrid(0, WAVE)
    planned, at_once = play(jobs, grid, grid.expected), play_at_once(jobs, grid)
    if not at_once.late(jobs):
        assert all(job < len(drawn) for job in planned.late(jobs))
    assert planned.grams <= at_once.grams * 1.01 + 1e-9


def test_provider_forecasts_are_taken_for_a_day() -> None:
    grid = HourlyGrid(0, WAVE, issued=WAVE + 7.0)
    expected = grid.expected(40 * 24)
    assert expected[0] == WAVE[40 * 24]
    assert expected[1:24] == pytest.approx(WAVE[40 * 24 + 1 : 41 * 24] + 7.0)
    assert len(expected) == 8 * 24


def test_hours_of_a_trace_are_means_and_gaps_are_filled(tmp_path: Path) -> None:
    path = tmp_path / "halves.csv"
    rows = [f"1970-01-{1 + half // 48:02d}T{half // 2 % 24:02d}:{30 * (half % 2):02d}:00Z,{half}" for half in range(96)]
    rows[50] = rows[50].rpartition(",")[0] + ","  # the first half of the second day's hour 1
    rows[52:54] = [row.rpartition(",")[0] + "," for row in rows[52:54]]  # its hour 2
    path.write_text("datetime_utc,carbon_intensity_gco2_per_kwh\n" + "\n".join(rows) + "\n")
    first, values = asyncio.run(hourly(TraceSource(path), 0.0, 48 * HOUR_S))
    assert first == 0
    assert values[:3].tolist() == [0.5, 2.5, 4.5]
    assert values[25:27].tolist() == [51.0, 4.5]  # as on the day before


def test_rows_that_wait_and_what_the_others_leave() -> None:
    jobs, spare = waiting_rows(loads.parse("constant:0.5"), 0.4, 7200.0, 0.0, 3)
    assert jobs == [Arrival(at * HOUR_S, 720.0, at * HOUR_S + 7200.0) for at in (1, 2, 3)]
    assert spare(0.0) == pytest.approx(0.7)
    assert waiting_rows(loads.parse("constant:3"), 0.1, 7200.0, 0.0, 3)[1](0.0) == 0.01


def test_the_command_prints_what_waiting_saves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--waiting-share", "0.3", "--within", "12h", "--hours", "48"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("synthetic"))
    _, hours, saved, foresight, captured, late, late_at_once = line.split()
    assert (hours, late, late_at_once) == ("48", "0", "0")
    assert 5.0 < float(saved.rstrip("%")) <= float(foresight.rstrip("%")) < 60.0
    assert 0.8 < float(captured) <= 1.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--within", "5m"], "--within is a time from 15m to 7d"),
        (["--load", "constant:20/s"], "parts of the machine's capacity"),
        (["fashion"], "without FAMILY"),
        (["--minutes", "2"], "without FAMILY"),
    ],
)
def test_what_cannot_be_played_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--waiting-share", "0.3", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_trace_that_ends_too_early_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "day.csv"
    rows = [f"2026-01-01T{hour:02d}:00:00Z,{100 + hour}" for hour in range(24)]
    path.write_text("datetime_utc,carbon_intensity_gco2_per_kwh\n" + "\n".join(rows) + "\n")
    assert main(["--waiting-share", "1", "--within", "24h", "--traces", str(path)]) == 2
    assert "ends before rows could wait 24h" in capsys.readouterr().err
