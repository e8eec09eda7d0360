"""How settings that ran at other moments are held against each other, and at whose accuracy."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from typing import Any

import pytest

from bench.common import tree
from bench.load import Result, Sample
from bench.promise import WINDOW_S, Marks, Stretch
from bench.settings import BASE, Pair, Point, Prices, Setting, Side, compared, hull, moved

PRICES = Prices(core_w=2.0, pue=1.5)
REQUESTS = 40
WINDOWS = 3


def side(busy_s: float, right: float, *, control_s: float = 0.0, workers: float = 0.5) -> Side:
    """Return a server that was busy for so many seconds in each of three windows, and right in a part of its answers;
    the controller used `control_s` more, and the workers' part was `workers`."""
    cumulative = [busy_s * at for at in range(WINDOWS + 1)]
    marks = Marks(
        workers_s=[workers * used for used in cumulative],
        server_s=[used + control_s * at for at, used in enumerate(cumulative)],
        control_j=[PRICES.core_w * control_s * at for at in range(WINDOWS + 1)],
        g_per_kwh=[100.0, 200.0, 300.0, 400.0],
    )
    samples = []
    for number in range(REQUESTS * WINDOWS):
        due_ns = int(1e9 * (WINDOW_S * number / REQUESTS + 0.01))
        samples.append(Sample(due_ns, due_ns + 1_000_000, 200, 0, correct=number % REQUESTS < right * REQUESTS))
    state: dict[str, Any] = {}
    return Side(Stretch(Result(samples), marks, state), PRICES, "fashion")


def test_grams_are_joules_at_the_intensity_of_their_window() -> None:
    own = side(0.4, 1.0, control_s=0.1)
    joules = 0.4 * 2.0 / REQUESTS
    assert own.joules() == pytest.approx(joules)
    assert own.joules("server") == pytest.approx(joules * 0.5 / 0.4)
    assert own.joules("workers") == pytest.approx(joules * 0.5)
    assert own.windows_g() == pytest.approx([joules * 1.5 * g / 3.6e6 for g in (100.0, 200.0, 300.0)])
    assert own.grams() == pytest.approx(joules * 1.5 * 200.0 / 3.6e6)


def test_the_default_beside_each_is_the_common_measure() -> None:
    slower = 1.3  # the machine, while the second pair ran
    cascade = Setting("floor, cascade", "")
    found = compared(
        [
            Pair(BASE, side(1.0, 1.0), side(0.5, 0.9)),
            Pair(cascade, side(slower * 0.6, 0.95), side(slower * 0.5, 0.9)),
        ]
    )
    (row,) = found["settings"]
    assert found["default"]["saved"] == pytest.approx(0.5)
    assert row["saved"] == pytest.approx(0.4)
    assert row["error"] == pytest.approx(0.0, abs=1e-9)
    assert row["at the default's accuracy"] == pytest.approx(0.4), "it is more accurate than asked"
    assert found["default"]["all six"] == pytest.approx(0.4)


def test_forms_of_one_setting_share_a_line() -> None:
    pairs = [
        Pair(BASE, side(1.0, 1.0), side(0.5, 0.9)),
        Pair(Setting("low", "", of="one"), side(0.2, 0.8), side(0.5, 0.9)),
        Pair(Setting("high", "", of="one"), side(0.6, 0.95), side(0.5, 0.9)),
    ]
    low, high = compared(pairs)["settings"]
    between = 0.8 + (90.0 - 80.0) / 15.0 * (0.4 - 0.8)
    assert low["at the default's accuracy"] == high["at the default's accuracy"] == pytest.approx(between)


def test_the_hull_lies_on_no_less_than_each_of_its_points() -> None:
    points = [Point(90.0, 0.6), Point(92.0, 0.5), Point(91.0, 0.1), Point(94.0, 0.0)]
    assert hull(points, 91.0) == pytest.approx(0.55), "the point below the line counts for nothing"
    assert hull(points, 93.0) == pytest.approx(0.25)
    assert hull(points, 90.0) == hull(points, 80.0) == 0.6, "a more accurate setting is a less accurate one, too"
    assert math.isnan(hull(points, 95.0))


def test_a_server_moves_with_all_its_processes() -> None:
    core = min(os.sched_getaffinity(0))
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True) as parent:
        try:
            while len(pids := tree(parent.pid)) < 2:
                time.sleep(0.01)
            moved(parent.pid, core)
            assert all(os.sched_getaffinity(pid) == {core} for pid in pids)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)
