"""The runner: rows of jobs go to spare workers in the hours of the plan, and each answer comes back once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from clover.interfaces import RowDone
from clover.planning.budget.forecast import History
from clover.types import JobView, Reading, Receipt, RowAnswer, WaitingRow
from clover.waiting.runner import PLAN_S, TRIAL_S, BatchRunner, LiveLoad, SpareRate, planner
from clover.waiting.schedule import PendingJob, PlannedHour, Schedule

RECEIPT = Receipt(
    variant="large", accuracy=90.0, energy_j=2.0, carbon_mg=0.1, intensity_g_per_kwh=300.0, method="modelled"
)


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 20.0))  # type: ignore[arg-type]

    run.__name__ = test.__name__
    return run


def job(name: str = "a", rows: int = 1000, model: str = "toy", **more: Any) -> JobView:
    given = {"rows": rows, "deadline_s": 86_400.0, "carbon": "wait", "created_s": 0.0, **more}
    return JobView(name, model, "", rows, **given)


class Store:
    def __init__(self, *jobs: JobView) -> None:
        self.jobs = {item.id: item for item in jobs}
        self.lent: dict[str, set[int]] = {item.id: set() for item in jobs}
        self.answers: dict[str, dict[int, RowAnswer]] = {item.id: {} for item in jobs}

    def open_jobs(self) -> list[JobView]:
        left = {name: item.rows_left - len(self.answers[name]) for name, item in self.jobs.items()}
        return [item._replace(rows_left=left[name]) for name, item in self.jobs.items() if left[name]]

    async def next_rows(self, job_id: str, count: int) -> list[WaitingRow]:
        taken = self.lent[job_id] | self.answers[job_id].keys()
        free = [number for number in range(self.jobs[job_id].rows_left) if number not in taken][:count]
        self.lent[job_id].update(free)
        return [WaitingRow(job_id, number, f"id-{number}", "toy", b"{}") for number in free]

    async def answered(self, job_id: str, answers: Sequence[Any]) -> None:
        for answer in answers:
            assert answer.number in self.lent[job_id]
            assert answer.number not in self.answers[job_id]
            self.lent[job_id].remove(answer.number)
            self.answers[job_id][answer.number] = answer

    def give_back(self, job_id: str, numbers: Sequence[int]) -> None:
        self.lent[job_id].difference_update(numbers)

    async def repeated(self, job_id: str, rows: int) -> None:
        raise AssertionError("nothing is computed twice")


class Spare:
    """Workers with room for eight rows; a test answers them."""

    def __init__(self) -> None:
        self.on = self.urgent = False
        self.hungry = lambda: None
        self.answered = 0
        self.energy_j = 0.0
        self.blocked = ""
        self.waiting: list[tuple[str, int, RowDone]] = []

    def rows_wanted(self) -> int:
        return 8 - len(self.waiting)

    def give_up(self, why: str) -> None:
        waiting, self.waiting = self.waiting, []
        for _, _, done in waiting:
            done(503, b"", None, "", 1.0)

    def answer(self, rows: int = 8, status: int = 200) -> None:
        for _ in range(min(rows, len(self.waiting))):
            _, _, done = self.waiting.pop(0)
            self.answered += status == 200
            self.energy_j += 2.0
            done(status, b'{"y":1}', RECEIPT if status == 200 else None, "7", None)


@dataclass
class World:
    """A runner with a clock and a plan of its own."""

    store: Store
    now_s: float = 0.0
    runs: tuple[str, ...] = ()
    plans: list[tuple[float, list[PendingJob]]] = field(default_factory=list)
    served: bool = True
    requests: int = 0
    past: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spare = Spare()
        self.load = LiveLoad(lambda: (0.0, 1, self.requests), lambda: self.now_s)
        self.runner = BatchRunner(
            self.store,
            self,
            lambda model: self.spare if self.served else None,
            self.load,
            self.plan,
            now=lambda: self.now_s,
            past=lambda hour: self.past.get(hour),
            monotonic=lambda: self.now_s,
        )

    async def plan(self, jobs: Sequence[PendingJob], spare: Any) -> Schedule:
        self.plans.append((self.now_s, list(jobs)))
        runs = {item.id: item.rows for item in jobs if item.id in self.runs}
        hours = (PlannedHour(self.now_s, self.now_s + 3600.0, runs, 100.0),)
        return Schedule(self.now_s, hours, (), {item.id: item for item in jobs}, 100.0)

    def start(self, item: JobView, body: bytes, done: RowDone) -> None:
        self.spare.waiting.append((item.id, 0, done))

    async def step(self, passes_s: float = 1.0) -> None:
        await self.runner.step(self.store.open_jobs())
        self.now_s += passes_s

    async def try_out(self) -> None:
        """Run rows until their rate is known: eight a second."""
        while not self.runner.rates or not next(iter(self.runner.rates.values())).known:
            await self.step()
            self.spare.answer()
        self.plans.clear()


@in_a_loop
async def test_a_models_first_rows_run_whatever_the_hour_until_their_rate_is_known() -> None:
    world = World(Store(job()))
    await world.try_out()
    assert world.now_s == TRIAL_S + 1.0
    await world.step()
    ((_, (planned,)),) = world.plans
    assert planned.row_s == pytest.approx(1 / 8)
    assert planned.row_j == pytest.approx(2.0)
    assert planned.rows == 1000 - len(world.store.answers["a"])
    assert not world.spare.on  # the plan has it wait
    world.spare.answer()
    await world.step()
    assert world.spare.waiting == []


@in_a_loop
async def test_rows_run_when_they_are_planned_and_go_back_when_not() -> None:
    world = World(Store(job(), job("b")), runs=("a",))
    await world.try_out()
    world.spare.answer()
    await world.step()
    assert {name for name, _, _ in world.spare.waiting} == {"a"}
    assert len(world.store.lent["a"]) > 8
    assert world.store.lent["b"] == set() or not world.spare.waiting
    world.runs = ()
    world.now_s += PLAN_S
    await world.step()
    assert not world.spare.on
    await world.runner._keeping  # type: ignore[misc]
    world.spare.answer()
    await world.runner._keeping  # type: ignore[misc]
    assert world.store.lent["a"] == set()


@in_a_loop
async def test_plans_are_made_with_each_job_hour_and_five_minutes() -> None:
    world = World(Store(job()), now_s=100.0)
    await world.try_out()
    await world.step()
    assert len(world.plans) == 1
    for _ in range(3):
        await world.step(passes_s=10.0)
    assert len(world.plans) == 1
    await world.step(passes_s=PLAN_S)
    await world.step(passes_s=1.0)
    assert len(world.plans) == 2
    world.store.jobs["b"] = job("b")
    world.store.lent["b"], world.store.answers["b"] = set(), {}
    await world.step()
    assert [len(jobs) for _, jobs in world.plans] == [1, 1, 2]
    world.now_s = 3600.0
    await world.step()
    assert len(world.plans) == 4


@in_a_loop
async def test_hours_in_which_nothing_runs_do_not_count_for_the_rate() -> None:
    world = World(Store(job()), runs=())
    await world.try_out()
    rate = world.runner.rates["toy"]
    before = rate.rows_per_s
    for _ in range(50):
        await world.step(passes_s=100.0)
        world.spare.answer()
    assert rate.rows_per_s == pytest.approx(before, rel=0.35)
    assert rate.seconds < 20.0


@in_a_loop
async def test_a_row_without_an_answer_is_given_back_and_the_model_left_alone_for_a_while() -> None:
    world = World(Store(job()))
    await world.step()
    world.spare.give_up("the model is unloaded")
    assert len(world.store.lent["a"]) == 256 - 8
    await world.step(passes_s=0.5)
    assert world.spare.waiting == []
    await world.step(passes_s=0.5)
    await world.step()
    assert len(world.spare.waiting) == 8


@in_a_loop
async def test_rows_of_a_model_that_is_blocked_or_gone_wait() -> None:
    world = World(Store(job()))
    world.spare.blocked = "no worker is ready"
    await world.step()
    assert world.spare.waiting == []
    assert "no worker is ready" in world.runner.reason("a")
    world.spare.blocked = "it sleeps, and is woken for them"
    await world.step()
    assert world.spare.on  # which wakes it
    world.spare.blocked, world.served = "", False
    await world.step()
    assert world.spare.waiting == []
    assert world.runner.rates["toy"].seconds == 0.0
    world.served = True
    await world.step()
    assert len(world.spare.waiting) == 8
    assert "how many rows" in world.runner.reason("a")
    assert world.runner.reason("x") == ""


@in_a_loop
async def test_rows_do_not_wake_a_model_outside_their_hours() -> None:
    world = World(Store(job()))
    await world.try_out()
    world.spare.blocked = "it sleeps, and is woken for them"
    await world.step()
    assert not world.spare.on
    assert "waits for the model" not in world.runner.reason("a")
    world.runs = ("a",)
    await world.step(PLAN_S)
    await world.step()
    assert world.spare.on
    assert world.runner.reason("a") == "waits for the model: it sleeps, and is woken for them"


@in_a_loop
async def test_what_waiting_avoided_is_counted_by_what_the_grid_turned_out_to_be() -> None:
    world = World(Store(job(rows=7300)))
    await world.try_out()
    waited = world.runner.waited["toy"]
    assert (waited.grams, waited.at_once_g) == pytest.approx((waited.rows * 1e-4, waited.rows * 1e-4))
    await world.step()
    counted, rate = waited.rows, world.runner.rates["toy"].rows_per_s
    world.past = {0: 600.0}  # twice that of the receipts
    world.now_s = 7200.0
    world.runs = ("a",)
    await world.step()
    world.spare.answer()
    assert waited.rows == counted + 8
    assert waited.at_once_g - waited.grams == pytest.approx(8 * 1e-4)
    assert waited.joules == pytest.approx(2.0 * waited.rows)
    # Those that would not have run in the first hour: of the second nothing is known.
    world.store.jobs["a"] = world.store.jobs["a"]._replace(rows=int(7300 + 4800 * rate))
    for hour, known in ((1, False), (1, True)):
        world.past = {hour: 150.0} if known else {}
        before, before_g = waited.rows, waited.at_once_g - waited.grams
        await world.step(0.0)
        world.spare.answer()
        assert waited.rows == before + 8 * known
        assert waited.at_once_g - waited.grams == pytest.approx(before_g - 8 * 0.5e-4 * known)


@in_a_loop
async def test_rows_are_read_with_pauses_while_clients_are_there_unless_their_job_is_urgent() -> None:
    world = World(Store(job()), runs=("a",))
    await world.try_out()

    async def pauses_s() -> set[float]:
        """What the runner waited for between the rows that it started in a step."""
        with pytest.MonkeyPatch.context() as patch:
            waited_s, sleep = [], asyncio.sleep
            patch.setattr(asyncio, "sleep", lambda seconds: waited_s.append(seconds) or sleep(0.0))
            await world.step()
        world.spare.answer()
        assert len(waited_s) == 8
        return set(waited_s)

    assert await pauses_s() == {0.0}
    world.requests += 1
    assert await pauses_s() == {0.001}
    assert world.runner.schedule is not None
    waiting = world.runner.schedule
    world.runner.schedule = replace(waiting, urgent=("a",))
    assert await pauses_s() == {0.0}
    world.runner.schedule = waiting
    assert await pauses_s() == {0.001}
    world.now_s += 5.0
    assert await pauses_s() == {0.0}


@in_a_loop
async def test_errors_are_answers() -> None:
    world = World(Store(job(rows=3)))
    await world.step()
    world.spare.answer(2)
    world.spare.answer(1, status=400)
    await world.runner._keeping  # type: ignore[misc]
    answers = world.store.answers["a"]
    assert [answers[number].status for number in range(3)] == [200, 200, 400]
    assert (answers[0].receipt, answers[0].version, answers[0].body) == (RECEIPT, "7", b'{"y":1}')
    assert answers[2].receipt is None


@in_a_loop
async def test_a_server_without_jobs_has_no_task_and_one_with_them_runs_to_the_end() -> None:
    world = World(Store(), runs=("a",))
    before = asyncio.all_tasks()
    world.runner.changed()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    world.store.jobs["a"], world.store.lent["a"], world.store.answers["a"] = job(rows=20), set(), {}
    world.runner.changed()
    while world.store.open_jobs():
        await asyncio.sleep(0)
        world.spare.answer()
        world.spare.hungry()
    while world.runner._task is not None:
        await asyncio.sleep(0)
    assert len(world.store.answers["a"]) == 20
    assert not world.spare.on
    assert world.runner.state() == []


@in_a_loop
async def test_a_stop_answers_what_runs_and_gives_the_rest_back() -> None:
    world = World(Store(job()))
    world.runner.changed()
    while not world.spare.waiting:
        await asyncio.sleep(0)
    world.spare.blocked = "workers compute those"
    flying, world.spare.waiting = world.spare.waiting, []
    stopping = asyncio.ensure_future(world.runner.stop())
    while world.spare.on or world.runner._task is not None:
        await asyncio.sleep(0)
    assert not stopping.done()
    rows, world.spare.waiting = len(flying), flying
    world.spare.answer()
    await stopping
    assert len(world.store.answers["a"]) == rows
    assert world.store.lent["a"] == set()
    world.runner.changed()
    await asyncio.sleep(0)
    assert world.runner._task is None
    await world.runner.stop()


def test_a_rate_forgets_what_is_long_ago() -> None:
    rate, now_s, answered = SpareRate(), 0.0, 0
    for rows in (10, 40):
        for _ in range(2000):
            rate.observe(answered, 2.0 * answered, now_s, 0.5, running=True)
            now_s, answered = now_s + 1.0, answered + rows
        assert rate.rows_per_s == pytest.approx(rows, rel=0.1)
    assert rate.spare_s == pytest.approx(rate.seconds / 2)
    assert rate.joules == pytest.approx(2.0 * rate.rows)


def test_live_rows_leave_a_part_of_the_machine() -> None:
    busy, now_s = [0.0], [0.0]
    load = LiveLoad(lambda: (busy[0], 2, 0), lambda: now_s[0])
    assert load.spare == 1.0
    for at in range(10):
        load.observe(float(at))
        busy[0] += 0.5
    assert load.spare == pytest.approx(0.75)
    assert load.ahead()(3600.0) == pytest.approx(0.75)


@in_a_loop
async def test_plans_go_by_the_grids_forecast_and_by_the_jobs_that_came() -> None:
    class Hours:
        history = History()
        now_s = 1800.0

        def now(self) -> float:
            return self.now_s

        async def priced(self) -> Reading:
            return Reading(g_per_kwh=300.0, at_s=0.0, provider="test")

        async def hours(self, reading: Reading, *, grid_s: float, until_s: float) -> tuple[Any, str]:
            return [300.0, 200.0, 50.0, *[250.0] * 30], "test"

    grid = Hours()
    make = planner(grid)
    schedule = await make([PendingJob("a", 100.0, 86_400.0, "wait", 1.0, 1.0)], lambda start_s: 1.0)
    assert schedule.running(1800.0) == ()
    assert schedule.running(2 * 3600.0) == ("a",)
    assert "50 g/kWh" in schedule.reason("a")

    # After a job of an hour that was due in two, another such one may come: not all is left to the last two hours.
    def until(name: str, work_s: float, due_s: float) -> PendingJob:
        return PendingJob(name, work_s, grid.now_s + due_s, "wait", 1.0, 1.0)

    grid.now_s += 86_400.0
    others = planner(grid)
    await make([until("b", 3600.0, 7200.0)], lambda start_s: 1.0)
    grid.now_s += 86_400.0
    ours, theirs = [await each([until("c", 6000.0, 3 * 3600.0)], lambda start_s: 1.0) for each in (make, others)]
    assert ours.running(grid.now_s) == ("c",)
    assert theirs.running(grid.now_s) == ()
