"""What may still come is at least what came before, and no more than is left of it."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clover.waiting.arrivals import WorkToCome

DAY_S = 86_400.0
AGAIN_S = 8 * DAY_S
JOBS = st.lists(
    st.tuples(st.floats(0.0, 4 * DAY_S), st.floats(1.0, 3600.0), st.floats(0.0, 4 * DAY_S)), min_size=1, max_size=12
).map(sorted)


@given(JOBS, st.floats(0.0, 4 * DAY_S), st.floats(0.0, 8 * DAY_S))
def test_what_comes_again_as_it_came_before_is_expected(
    jobs: list[tuple[float, float, float]], now_s: float, until_s: float
) -> None:
    to_come = WorkToCome()
    now_s, until_s = now_s + 2 * AGAIN_S, until_s + 2 * AGAIN_S
    rounds = [
        [(at_s + again * AGAIN_S, work_s, at_s + again * AGAIN_S + window_s) for at_s, work_s, window_s in jobs]
        for again in range(3)
    ]
    for job in itertools.chain(*rounds):
        if job[0] <= now_s:
            to_come.record(*job)
    comes = sum(work_s for at_s, work_s, due_s in rounds[2] if at_s > now_s and due_s <= until_s)
    most = to_come.ahead(now_s)(np.array([now_s]), np.array([until_s]))
    assert most.item() >= comes - 1e-6


def test_what_has_come_does_not_come_once_more_at_once() -> None:
    to_come = WorkToCome()
    for day in range(14):
        to_come.record(day * DAY_S, 3600.0, day * DAY_S + 6 * 3600.0)
    now_s = 13 * DAY_S
    most = to_come.ahead(now_s)(np.array([now_s]), now_s + 3600.0 * np.array([5.0, 12.0, 36.0, 60.0]))
    assert most.tolist() == [[0.0, 1800.0, 7200.0, 10800.0]]  # half a job more than what came, and spans are rounded up


def test_weeks_ago_is_forgotten() -> None:
    to_come = WorkToCome()
    to_come.record(0.0, 3600.0, 3600.0)
    to_come.record(22 * DAY_S, 60.0, 22 * DAY_S + 60.0)
    now_s = 40 * DAY_S
    assert to_come.ahead(now_s)(np.array([now_s]), np.array([now_s + DAY_S])).item() == 60.0


def test_without_jobs_nothing_is_expected() -> None:
    assert WorkToCome().ahead(0.0)(np.array([0.0, 1.0]), np.array([1.0, 1e9])).tolist() == [[0.0, 0.0], [0.0, 0.0]]
