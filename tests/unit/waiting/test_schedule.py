"""Plans of waiting rows: nobody is late, nothing is cheaper, and nothing waits for less than it costs."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.waiting.schedule import CUSHION_S, Hour, PendingJob, Schedule, plan

HOUR_S = 3600.0
NOW_S = 1_700_000_000.0 - 1_700_000_000.0 % HOUR_S


def hours(*values: float, step_s: float = HOUR_S, start_s: float = NOW_S) -> list[Hour]:
    return [Hour(start_s + at * step_s, start_s + (at + 1) * step_s, value) for at, value in enumerate(values)]


def job(name: str, work_h: float, window_h: float, carbon: str = "wait", row_j: float = 10.0) -> PendingJob:
    """A job whose rows take a second each, due `window_h` from now, the cushion not counted."""
    deadline_s = NOW_S + window_h * HOUR_S + CUSHION_S
    return PendingJob(name, work_h * HOUR_S, deadline_s, "now" if carbon == "now" else "wait", row_s=1.0, row_j=row_j)


def taken_h(schedule: Schedule) -> dict[float, float]:
    """Hours of work by the hour from now on in which they run."""
    return {(hour.start_s - NOW_S) / HOUR_S: sum(hour.rows.values()) / HOUR_S for hour in schedule.hours}


def finished_s(schedule: Schedule, spare: float = 1.0) -> dict[str, float]:
    """When each job is done, if hours run their rows in order, at `spare` of the machine."""
    done: dict[str, float] = {}
    rows: dict[str, float] = {}
    for hour in schedule.hours:
        at_s = hour.start_s
        for name, count in hour.rows.items():
            at_s += count * schedule.jobs[name].row_s / spare
            rows[name] = rows.get(name, 0.0) + count
            done[name] = at_s
        assert at_s <= hour.end_s + 1e-3
    for name, own in schedule.jobs.items():
        if rows.get(name, 0.0) < own.rows - 1e-6:
            done[name] = math.inf
    return done


def test_the_cleanest_hours_before_the_deadline() -> None:
    schedule = plan(NOW_S, [job("a", 2, 5)], hours(210, 150, 61, 58, 90, 1), reserve=0.0)
    assert taken_h(schedule) == pytest.approx({2.0: 1.0, 3.0: 1.0})
    assert schedule.running(NOW_S) == ()
    assert schedule.running(NOW_S + 2.5 * HOUR_S) == ("a",)
    assert schedule.urgent == ()
    assert schedule.reason("a").endswith(": 60 g/kWh instead of 210 now")
    assert schedule.grams() == pytest.approx(3600 * 10.0 * (61 + 58) / 3.6e6)


def test_the_earliest_deadline_runs_first_whoever_came_first() -> None:
    schedule = plan(NOW_S, [job("later", 1, 8), job("sooner", 1, 4)], hours(9, 9, 1, 1, 9, 9, 9, 9, 9), reserve=0.0)
    assert schedule.running(NOW_S + 2 * HOUR_S) == ("sooner",)
    assert schedule.running(NOW_S + 3 * HOUR_S) == ("later",)


def test_what_could_become_late_starts_now_and_says_so() -> None:
    schedule = plan(NOW_S, [job("a", 9.5, 10), job("b", 0.5, 20)], hours(*range(30, 0, -1)))
    assert schedule.urgent == ("a",)
    assert schedule.running(NOW_S) == ("a",)
    assert "in time" in schedule.reason("a")
    assert schedule.running(NOW_S + 19 * HOUR_S) == ("b",)


def test_jobs_that_cannot_be_in_time_run_before_all_that_can_wait() -> None:
    late = PendingJob("late", 3600, NOW_S - 10, "wait", 1.0, 1.0)
    schedule = plan(NOW_S, [job("b", 1, 20), late], hours(*range(30, 0, -1)))
    assert schedule.urgent == ("late",)
    assert schedule.running(NOW_S) == ("late",)
    assert finished_s(schedule)["late"] == pytest.approx(NOW_S + HOUR_S)


def test_a_job_that_is_not_to_wait_runs_now_unless_another_one_would_be_late() -> None:
    grid = hours(*range(30, 0, -1))
    schedule = plan(NOW_S, [job("now", 2, 20, "now"), job("wait", 1, 20)], grid, reserve=0.0)
    assert schedule.running(NOW_S) == ("now",)
    assert schedule.running(NOW_S + 2 * HOUR_S) == ()
    assert schedule.urgent == ()
    assert schedule.reason("now") == "runs now, as asked"
    assert plan(NOW_S, [job("now", 9, 20, "now"), job("wait", 0.5, 1)], grid).running(NOW_S) == ("wait", "now")


def test_without_a_forecast_all_run() -> None:
    schedule = plan(NOW_S, [job("b", 1, 20), job("a", 1, 10), job("now", 1, 30, "now")], [])
    assert schedule.running(NOW_S) == ("now", "a", "b")
    assert "no forecast" in schedule.reason("a")


def test_a_forecast_that_ends_early_is_not_waited_beyond() -> None:
    assert finished_s(plan(NOW_S, [job("a", 1, 48)], hours(9, 8, 7, 6)))["a"] <= NOW_S + 4 * HOUR_S


def test_less_waits_where_forecasts_mislead() -> None:
    grid = hours(100, 100, 80, 60, 100)
    runs = [plan(NOW_S, [job("a", 1, 5)], grid, margin_gco2e_kwh=margin).running(NOW_S) for margin in (0, 30, 50, 1e6)]
    assert runs == [(), (), ("a",), ("a",)]


def test_hours_in_which_the_machine_sleeps_cost_its_idle_power_too() -> None:
    def kept_on_w(start_s: float) -> float:
        return 20.0 if start_s >= NOW_S + 4 * HOUR_S else 0.0

    grid = hours(100, 90, 80, 70, 50, 40, 100)
    assert list(taken_h(plan(NOW_S, [job("a", 1, 7)], grid, reserve=0.0))) == [5.0]
    assert list(taken_h(plan(NOW_S, [job("a", 1, 7)], grid, reserve=0.0, kept_on_w=kept_on_w))) == [3.0]


def test_a_sleeping_machine_is_woken_once() -> None:
    jobs = [job(f"{at}", 0.1, 20 + at / 10) for at in range(10)]
    grid = hours(*([50, 30, 45, 50, 50, 29, 50, 50] * 3))
    apart = plan(NOW_S, [*jobs, job("long", 2, 23)], grid, kept_on_w=5.0)
    at_once = plan(NOW_S, [*jobs, job("long", 2, 23)], grid, kept_on_w=5.0, wake_j=50_000.0)
    assert len(taken_h(apart)) >= 3
    used = list(taken_h(at_once))
    assert len(used) == used[-1] - used[0] + 1  # one run
    awake = plan(
        NOW_S, [job("a", 1, 20)], hours(32, *[40] * 8, 30, *[40] * 12), kept_on_w=5.0, wake_j=9000.0, awake=True
    )
    asleep = plan(NOW_S, [job("a", 1, 20)], hours(32, *[40] * 8, 30, *[40] * 12), kept_on_w=5.0, wake_j=9000.0)
    assert awake.running(NOW_S) == ("a",)
    assert asleep.running(NOW_S) == ()


def test_room_is_kept_for_what_may_still_come() -> None:
    def four_hours_within_six(from_s: np.ndarray, until_s: np.ndarray) -> np.ndarray:
        return np.where(until_s - from_s[:, None] >= 6 * HOUR_S, 4 * HOUR_S, 0.0)

    grid = hours(*range(30, 0, -1))
    alone = plan(NOW_S, [job("a", 4, 20)], grid, reserve=0.0)
    assert taken_h(alone) == pytest.approx({16.0: 1.0, 17.0: 1.0, 18.0: 1.0, 19.0: 1.0})
    # Whatever comes at 14:00 and is due at 20:00, the job fits before or behind it: two hours are done by then.
    beside = plan(NOW_S, [job("a", 4, 20)], grid, reserve=0.0, to_come=four_hours_within_six)
    assert taken_h(beside) == pytest.approx({12.0: 1.0, 13.0: 1.0, 18.0: 1.0, 19.0: 1.0})
    assert beside.urgent == ()
    urgent = plan(NOW_S, [job("a", 4, 7)], grid, reserve=0.0, to_come=four_hours_within_six)
    assert urgent.urgent == ("a",)


def test_ten_thousand_jobs_are_planned_by_whole_ten_minutes() -> None:
    rng = random.Random(2)
    jobs = [job(str(at), rng.uniform(0.001, 0.01), rng.uniform(1.0, 160.0)) for at in range(10_000)]
    schedule = plan(NOW_S, jobs, hours(*(rng.uniform(50, 400) for _ in range(168))))
    done = finished_s(schedule)
    assert all(done[own.id] <= own.deadline_s for own in jobs)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="reserve"):
        plan(NOW_S, [], [], reserve=1.0)
    with pytest.raises(ValueError, match="order"):
        plan(NOW_S, [], list(reversed(hours(1, 2))))


# --- whatever the jobs and the grid -----------------------------------------------------------------------------------

GRIDS = st.lists(st.integers(1, 500).map(float), min_size=2, max_size=40)
SPARE = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=40, max_size=40)
JOBS = st.lists(
    st.tuples(st.floats(0.01, 8.0), st.floats(0.0, 45.0), st.sampled_from(["wait", "wait", "wait", "now"])),
    min_size=1,
    max_size=8,
).map(lambda drawn: [job(str(at), *values) for at, values in enumerate(drawn)])


def by_hour(parts: list[float]) -> Callable[[float], float]:
    return lambda start_s: parts[min(39, max(0, round((start_s - NOW_S) / HOUR_S)))]


def possible(jobs: list[PendingJob], grid: list[Hour], parts: list[float], reserve: float = 0.0) -> bool:
    """Whether all jobs can be done by their deadlines (less the cushion), the earliest first."""
    edges = [hour.start_s for hour in grid] + [grid[-1].end_s]
    until = np.cumsum([0.0] + [parts[at] * HOUR_S for at in range(len(grid))])
    ordered = sorted(jobs, key=lambda own: own.deadline_s)
    needed = np.cumsum([own.rows * own.row_s for own in ordered])
    due = np.interp([own.deadline_s - CUSHION_S for own in ordered], edges, until)
    return bool((needed <= (1.0 - reserve) * due + 1e-6).all())


@given(JOBS, GRIDS, SPARE, st.sampled_from([0.0, 0.1, 0.4]))
def test_no_plan_asks_for_more_than_there_is_and_none_is_late_that_need_not_be(
    jobs: list[PendingJob], values: list[float], parts: list[float], reserve: float
) -> None:
    grid = hours(*values)
    schedule = plan(NOW_S, jobs, grid, spare=by_hour(parts), reserve=reserve)
    rows: dict[str, float] = {}
    for hour in schedule.hours:
        seconds = 0.0
        for name, count in hour.rows.items():
            assert count > 0.0
            rows[name] = rows.get(name, 0.0) + count
            seconds += count
        assert seconds <= parts[round((hour.start_s - NOW_S) / HOUR_S)] * HOUR_S + 1e-3
    assert all(rows[name] <= schedule.jobs[name].rows + 1e-6 for name in rows)
    if not possible(jobs, grid, parts):
        return
    for own in jobs:  # row by row in time: what runs before the deadline is all there is
        limit_s = own.deadline_s - CUSHION_S
        before = sum(hour.rows.get(own.id, 0.0) for hour in schedule.hours if hour.start_s < limit_s)
        assert before == pytest.approx(own.rows, abs=1e-3)


@given(JOBS, GRIDS, st.floats(0.05, 0.5))
def test_what_waits_can_still_be_answered_at_the_reserve_whenever_it_is_looked_at(
    jobs: list[PendingJob], values: list[float], reserve: float
) -> None:
    """After each hour of a plan, what is left fits into the rest of its window at 1 - reserve of the machine."""
    grid = hours(*values)
    waiting = [own for own in jobs if own.carbon == "wait"]
    if not waiting or not possible(waiting, grid, [1.0] * 40, reserve):
        return
    schedule = plan(NOW_S, waiting, grid, reserve=reserve)
    assert schedule.urgent == ()
    left = {own.id: own.rows for own in waiting}
    for at, hour in enumerate(grid):
        for planned in schedule.hours:
            if planned.start_s == hour.start_s:
                for name, count in planned.rows.items():
                    left[name] -= count
        total = 0.0
        for own in sorted(waiting, key=lambda own: own.deadline_s):
            total += max(0.0, left[own.id]) * own.row_s
            seconds = min(own.deadline_s - CUSHION_S, grid[-1].end_s) - grid[at].end_s
            assert total <= max(0.0, (1.0 - reserve) * seconds) + 1e-3


@given(JOBS, GRIDS, SPARE)
def test_no_fill_of_hours_is_cheaper(jobs: list[PendingJob], values: list[float], parts: list[float]) -> None:
    """Beside the linear program of the module's heading."""
    optimize = pytest.importorskip("scipy.optimize")
    grid = hours(*values)
    waiting = [own for own in jobs if own.carbon == "wait"]
    if not waiting or not possible(waiting, grid, parts):
        return
    cuts = sorted({edge for hour in grid for edge in (hour.start_s, hour.end_s)}
                  | {min(own.deadline_s - CUSHION_S, grid[-1].end_s) for own in waiting})  # fmt: skip
    cost, most = [], []
    for start_s, end_s in itertools.pairwise(cuts):
        at = min(int((start_s - NOW_S) // HOUR_S), len(grid) - 1)
        cost.append(values[at])
        most.append(parts[at] * (end_s - start_s))
    above, needed = [], []
    for own in waiting:
        limit_s = min(own.deadline_s - CUSHION_S, grid[-1].end_s)
        above.append([-1.0 if end_s <= limit_s else 0.0 for end_s in cuts[1:]])
        needed.append(
            -sum(other.rows for other in waiting if min(other.deadline_s - CUSHION_S, grid[-1].end_s) <= limit_s)
        )
    least = optimize.linprog(cost, A_ub=above, b_ub=needed, bounds=list(zip([0.0] * len(cost), most, strict=True)))
    assert least.status == 0
    schedule = plan(NOW_S, waiting, grid, spare=by_hour(parts), reserve=0.0)
    found = sum(hour.gco2e_kwh * sum(hour.rows.values()) for hour in schedule.hours)
    assert found == pytest.approx(least.fun, rel=1e-6, abs=1e-3)


@given(JOBS, GRIDS, st.sampled_from([0.0, 0.1]))
def test_no_worse_than_at_once_if_the_forecast_is_right(
    jobs: list[PendingJob], values: list[float], reserve: float
) -> None:
    grid = hours(*values)
    waiting = [own for own in jobs if own.carbon == "wait"]
    at_once = [PendingJob(own.id, own.rows, own.deadline_s, "now", own.row_s, own.row_j) for own in waiting]
    if waiting and possible(waiting, grid, [1.0] * 40, reserve):
        later, now = (plan(NOW_S, each, grid, reserve=reserve).grams() for each in (waiting, at_once))
        assert later <= now * (1 + 1e-9) + 1e-9


@given(JOBS, GRIDS, st.integers(0, 7), st.floats(0.0, 20.0))
def test_a_later_deadline_or_fewer_rows_never_cost_more(
    jobs: list[PendingJob], values: list[float], which: int, more_h: float
) -> None:
    grid = hours(*values)
    waiting = [own for own in jobs if own.carbon == "wait"]
    if not waiting or not possible(waiting, grid, [1.0] * 40):
        return
    which %= len(waiting)
    own = waiting[which]
    grams = plan(NOW_S, waiting, grid, reserve=0.0).grams()
    for other in (
        PendingJob(own.id, own.rows, own.deadline_s + more_h * HOUR_S, "wait", own.row_s, own.row_j),
        PendingJob(own.id, own.rows / (1.0 + more_h), own.deadline_s, "wait", own.row_s, own.row_j),
    ):
        changed = [*waiting[:which], other, *waiting[which + 1 :]]
        assert plan(NOW_S, changed, grid, reserve=0.0).grams() <= grams * (1 + 1e-9) + 1e-9


@given(JOBS, GRIDS, st.floats(0.0, 1e5))
def test_merging_runs_never_makes_a_plan_dearer_or_late(
    jobs: list[PendingJob], values: list[float], wake_j: float
) -> None:
    grid = hours(*values)
    waiting = [own for own in jobs if own.carbon == "wait"]
    if not waiting or not possible(waiting, grid, [1.0] * 40, 0.1):
        return

    def cost(schedule: Schedule) -> float:
        used = schedule.hours
        begun = [hour for at, hour in enumerate(used) if at == 0 or used[at - 1].end_s < hour.start_s]
        run = sum(hour.gco2e_kwh * 15.0 * sum(hour.rows.values()) for hour in used)
        return run + sum(hour.gco2e_kwh * wake_j for hour in begun)

    plain = plan(NOW_S, waiting, grid, kept_on_w=5.0)
    merged = plan(NOW_S, waiting, grid, kept_on_w=5.0, wake_j=wake_j)
    for own in waiting:
        limit_s = own.deadline_s - CUSHION_S
        before = sum(hour.rows.get(own.id, 0.0) for hour in merged.hours if hour.start_s < limit_s)
        assert before == pytest.approx(own.rows, abs=1e-3)
    assert cost(merged) <= cost(plain) * (1 + 1e-6) + 1e-6


def test_a_week_of_half_hours_and_a_thousand_jobs_are_planned_at_once() -> None:
    rng = random.Random(1)
    jobs = [job(str(at), rng.uniform(0.01, 0.1), rng.uniform(6.0, 160.0)) for at in range(1000)]
    grid = hours(*(rng.uniform(50, 400) for _ in range(336)), step_s=1800.0)
    spent = []
    for _ in range(3):
        began = time.process_time()
        schedule = plan(NOW_S, jobs, grid)
        spent.append(time.process_time() - began)
    assert all(value < math.inf for value in finished_s(schedule).values())
    assert min(spent) < 0.25  # 20 ms on a quiet core
