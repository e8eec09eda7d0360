"""The clock of a shortened day, and the arrivals that bench.parking plays."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bench.parking import DAY_S, Day, longest, paces, times_of
from clover.config import ControllerConfig


def test_a_whole_day_has_the_server_s_own_times() -> None:
    times, own = times_of(DAY_S), ControllerConfig()
    assert (times.verify_s, times.sleep_after_s) == (own.verify_s, own.sleep_after_s)
    assert times.interval_s == 60.0


def test_a_short_day_has_as_much_shorter_times_down_to_what_a_controller_can() -> None:
    times = times_of(DAY_S / 200.0)
    assert times.sleep_after_s == pytest.approx(1.5)
    assert times.interval_s == pytest.approx(0.3)
    assert times_of(1.0).interval_s == 0.2
    assert times_of(1.0).verify_s == 1.0


def test_drawn_arrivals_follow_the_day(tmp_path: Path) -> None:
    given = argparse.Namespace(box="a100-40gb", gpus=3, day_s=240.0, warm_s=10.0)
    (tmp_path / "pace.json").write_text(json.dumps(paces({"1g.5gb": 1, "7g.40gb": 7})))
    day = Day(given, tmp_path, "park")
    day.rate = 50.0
    arrivals = day.drawn_s(seed=3)
    assert arrivals == sorted(arrivals) == day.drawn_s(seed=3) != day.drawn_s(seed=4)
    assert arrivals[0] == -10.0
    assert arrivals[-1] < 240.0
    busiest, quietest = (sum(at <= one < at + 20.0 for one in arrivals) for at in (130.0, 10.0))  # 13 to 15, 1 to 3 h
    assert busiest == pytest.approx(1.4 * 50.0 * 20.0, rel=0.1)
    assert quietest == pytest.approx(0.6 * 50.0 * 20.0, rel=0.15)


def test_late_seconds_count_in_a_row() -> None:
    assert longest({3, 4, 5, 9, 10}) == 3
    assert longest(set()) == 0
