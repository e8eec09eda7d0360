"""Runs the rows of batch jobs: in the hours that the schedule names, as far as workers have nothing else to do.

    store ---- rows ----> BatchRunner ---- requests ----> SpareCapacity of each model (workers without a batch)
      ^                     |  ^                          |
      +----- answers -------+  +------- answers ----------+

**The rate.**  How many rows a second a machine spares is seen while rows run: `SpareRate` counts only time in which
they could.  So a model's first rows run at once, for `TRIAL_S`, whatever the hour.  What is seen is made into seconds
of the whole machine by the part of it that live rows left (`LiveLoad`), which is known in all hours.

**Plans** are made anew with each job that comes or goes, each hour of the grid, and every `PLAN_S`.

The runner is one task, which a server without jobs does not have.  Rows that it has borrowed and not started when the
hour is over, or the server drains, go back to the store; rows that workers compute are answered first.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from clover.interfaces import RowStarter, SpareCapacity, WaitingRows
from clover.planning.budget.forecast import DAY, HOUR_S, History
from clover.types import JobView, Reading, Receipt, RowAnswer, WaitingRow
from clover.waiting.arrivals import WorkToCome
from clover.waiting.forecasts import IssuedForecasts, hours_ahead, spare_ahead
from clover.waiting.schedule import PendingJob, Schedule, plan

log = logging.getLogger("clover.waiting")

TRIAL_S = 5.0
"""Seconds for which a model's first rows run, to see how many a second the machine spares."""
PLAN_S = 300.0
_MEMORY_S = 600.0
"""Beyond so many seconds, what was seen of a rate weighs half."""
_BORROWED = 256
"""Rows that are taken from the store at once."""
_KEEP_S = 0.2
"""Answers are kept together for so long before they are given to the store."""
_LOOK_S = 1.0
_SWITCH_S = 0.0001
"""While rows run, the thread of the store keeps the interpreter for so long at most: by default that is 5 ms, which
clients would wait for."""
_CLIENTS_S = 5.0
"""Clients are taken to be there for so long after their last request."""
_PAUSES, _LEAST_PAUSE_S = 3.0, 0.001
"""While clients are there, the pause after reading a row is so many times as long as reading it took, and so long at
least: answers of clients come from the same thread."""
_STOP_S = 10.0
"""How long a stop waits for rows that workers compute."""
_LEAST_SPARE = 0.05
"""The part of a machine that is taken to be spare at least, when a rate is made into seconds of the machine."""


@dataclass
class Waited:
    """What answered rows of a model took, and what they would have emitted if their jobs had started as soon as they
    came, by the intensity that the grid turned out to have then.  Rows of hours without a reading are not counted."""

    rows: int = 0
    joules: float = 0.0
    grams: float = 0.0
    at_once_g: float = 0.0
    accuracy_rows: float = 0.0
    """Rows x percent."""


Planner = Callable[[Sequence[PendingJob], Callable[[float], float]], Awaitable[Schedule]]
"""Makes a schedule of jobs; the function says which part of the machine is spare in the hour that begins at a time."""


class SpareRate:
    """How many rows of a model a second ran, over the time in which they could, and their joules.  `spare_s`: the same
    seconds, times the part of the machine that was spare."""

    def __init__(self) -> None:
        self.rows = self.joules = self.seconds = self.spare_s = 0.0
        self._counted = (0, 0.0)
        self._since_s: float | None = None

    def observe(self, answered: int, energy_j: float, now_s: float, spare: float, *, running: bool) -> None:
        """Take note of what was `answered` until `now_s`.  `running`: rows can run from now on."""
        if self._since_s is not None:
            self.seconds += now_s - self._since_s
            self.spare_s += (now_s - self._since_s) * max(spare, _LEAST_SPARE)
            self.rows += answered - self._counted[0]
            self.joules += energy_j - self._counted[1]
            if self.seconds > _MEMORY_S:
                self.rows, self.joules = self.rows / 2, self.joules / 2
                self.seconds, self.spare_s = self.seconds / 2, self.spare_s / 2
        self._counted = answered, energy_j
        self._since_s = now_s if running else None

    @property
    def known(self) -> bool:
        """Whether rows ran for long enough."""
        return self.seconds >= TRIAL_S and self.rows > 0.0

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds if self.seconds > 0.0 else 0.0


class LiveLoad:
    """Which part of the machine live rows leave: `seen` returns the seconds that workers computed them so far, all
    workers together, how many workers there are, and how many requests clients sent so far."""

    def __init__(self, seen: Callable[[], tuple[float, int, int]], now: Callable[[], float]) -> None:
        self.spare = 1.0
        """Over the last second or more."""
        self.hours = History()
        """By the hour of grid time."""
        self._seen = seen
        self._now = now
        self._last: tuple[float, float] | None = None
        self._requests = 0
        self._asked_s = -math.inf

    def observe(self, at_s: float) -> None:
        """Look at what workers did until `at_s` (monotonic)."""
        busy_s, workers, requests = self._seen()
        if requests != self._requests:
            self._requests, self._asked_s = requests, at_s
        if self._last is not None and at_s - self._last[0] >= _LOOK_S and workers:
            used_s = max(busy_s - self._last[1], 0.0)
            self.spare = min(max(1.0 - used_s / (workers * (at_s - self._last[0])), 0.0), 1.0)
            self.hours.record(self._now(), self.spare)
        elif self._last is not None and at_s - self._last[0] < _LOOK_S:
            return
        self._last = at_s, busy_s

    def has_clients(self, at_s: float) -> bool:
        """Return whether a client asked any model in the last seconds before `at_s` (monotonic)."""
        return at_s - self._asked_s <= _CLIENTS_S

    def ahead(self) -> Callable[[float], float]:
        """Return which part will be spare in the hour that begins at a time."""
        hour = math.floor(self._now() / HOUR_S)
        return spare_ahead(self.hours.hourly(hour), hour, self.spare, 8 * DAY)


class HoursOfGrid(Protocol):
    """What plans need of the grid (`clover.carbon.grid.Grid`)."""

    now: Callable[[], float]

    @property
    def history(self) -> History: ...

    async def priced(self) -> Reading: ...

    async def hours(self, reading: Reading, *, grid_s: float, until_s: float) -> tuple[Any, str]: ...


def planner(grid: HoursOfGrid) -> Planner:
    """Return what plans by the forecasts of `grid`, as far as those of the last weeks were right, with room for such
    jobs as came in the last weeks since the start."""
    issued, to_come = IssuedForecasts(), WorkToCome()
    recorded: set[str] = set()

    async def make(jobs: Sequence[PendingJob], spare: Callable[[float], float]) -> Schedule:
        grid_s = grid.now()
        hour = math.floor(grid_s / HOUR_S)
        until_s = max([grid_s + DAY * HOUR_S, *(job.deadline_s for job in jobs)])
        expected, _ = await grid.hours(await grid.priced(), grid_s=grid_s, until_s=until_s)
        issued.record(hour, expected)
        margin = issued.margin(grid.history.hourly(hour), hour)
        for job in jobs:
            if job.id not in recorded:
                to_come.record(grid_s, job.rows * job.row_s, job.deadline_s)
        recorded.clear()
        recorded.update(job.id for job in jobs)
        return await asyncio.to_thread(  # with a thousand jobs it takes some 40 ms
            plan,
            grid_s,
            jobs,
            hours_ahead(grid_s, expected),
            spare=spare,
            to_come=to_come.ahead(grid_s),
            margin_gco2e_kwh=margin,
        )

    return make


@dataclass
class _Running:
    """What the runner has of a job: rows that were borrowed and not started, and how many were started."""

    borrowed: deque[WaitingRow] = field(default_factory=deque)
    started: int = 0
    empty_until_s: float = -math.inf
    """The store had no more rows to lend; it is not asked again before (monotonic)."""


class BatchRunner:
    """Runs the rows of `store`.  `spare` returns what the workers of a model spare; None while its rows wait whatever
    is planned (it is unloaded, or another version is rolled out).

    `now` is grid time, of which `speed` seconds pass in a second; `past` returns the mean intensity that an hour of it
    had (gCO2e/kWh), None if nothing is known of that hour.  Call `changed` when a job comes or goes.
    """

    def __init__(
        self,
        store: WaitingRows,
        starter: RowStarter,
        spare: Callable[[str], SpareCapacity | None],
        load: LiveLoad,
        make_plan: Planner,
        *,
        now: Callable[[], float],
        past: Callable[[int], float | None] = lambda hour: None,
        speed: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schedule: Schedule | None = None
        self.waited: dict[str, Waited] = {}
        """By model."""
        self.rates: dict[str, SpareRate] = {}
        """By model."""
        self._store = store
        self._starter = starter
        self._spare = spare
        self._load = load
        self._make_plan = make_plan
        self._now = now
        self._past = past
        self._speed = speed
        self._monotonic = monotonic
        self._running: dict[str, _Running] = {}
        self._used: dict[str, SpareCapacity] = {}
        self._paused_until_s: dict[str, float] = {}
        self._answers: dict[str, list[RowAnswer]] = {}
        self._in_flight = 0
        self._planned: tuple[float, int, tuple[tuple[str, str], ...]] = (-math.inf, 0, ())
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._stopped = False

    # --- life -----------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Look at the jobs: one came, ended or was cancelled."""
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._wake.set()
        if self._task is None and not self._stopped and self._store.open_jobs():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="clover: waiting rows")

    async def stop(self) -> None:
        """Start no more rows, keep the answers of those that workers compute, and give the others back."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._let_go()
        for spare in self._used.values():
            spare.give_up("the server is shutting down")
        end_s = self._monotonic() + _STOP_S
        while self._in_flight and self._monotonic() < end_s:
            self._wake.clear()
            await self._sleep(0.05)
        while self._keeping is not None:
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def _run(self) -> None:
        """Run rows until no job is left."""
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(min(interval_s, _SWITCH_S))
        try:
            while True:
                self._wake.clear()
                jobs = self._store.open_jobs()
                if not jobs:
                    return
                try:
                    await self.step(jobs)
                except Exception:
                    log.exception("running waiting rows failed")
                    await asyncio.sleep(_LOOK_S)
                await self._sleep(_LOOK_S)
        finally:
            sys.setswitchinterval(interval_s)
            self._task = None
            self._let_go()

    async def _sleep(self, seconds: float) -> None:
        """Wait until there is room for rows, a job came, or the time is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _let_go(self) -> None:
        """Run nothing, and give borrowed rows back."""
        for job_id in list(self._running):
            self._give_back(job_id)
        for model, spare in self._used.items():
            spare.on = False
            self._observe(model, spare)

    # --- what runs ------------------------------------------------------------------------------------------------

    async def step(self, jobs: Sequence[JobView]) -> None:
        """Plan if it is time, and start rows of what runs now, as many as there is room for."""
        self._load.observe(self._monotonic())
        await self._plan(jobs)
        running = self._jobs_now(jobs)
        models = {job.model for job in running}
        for model in {job.model for job in jobs} - self._used.keys():
            self.rates.setdefault(model, SpareRate())
        for model in models | self._used.keys():
            spare = self._spare(model)
            if spare is None:
                self._used.pop(model, None)
                self.rates[model].observe(0, 0.0, self._monotonic(), 1.0, running=False)
                continue
            self._used[model] = spare
            spare.hungry, spare.on = self._wake.set, model in models
            spare.urgent = any(job.model == model and self._is_urgent(job) for job in running)
            self._observe(model, spare)
        ids = {job.id for job in running}
        for job_id in list(self._running):
            if job_id not in ids:
                self._give_back(job_id)
        for job in running:
            spare = self._used.get(job.model)
            if spare is not None:
                await self._feed(job, spare)
        for model in models & self._used.keys():
            self._observe(model, self._used[model])

    async def _plan(self, jobs: Sequence[JobView]) -> None:
        """Make a plan of the jobs whose rate is known, if the last one is old, or of another hour or other jobs."""
        now_s, hour = self._monotonic(), math.floor(self._now() / HOUR_S)
        known = [job for job in jobs if (rate := self.rates.get(job.model)) is not None and rate.known]
        names = tuple((job.id, job.carbon) for job in known)
        at_s, at_hour, of = self._planned
        if self.schedule is not None and now_s - at_s < PLAN_S and (hour, names) == (at_hour, of):
            return
        self.schedule = await self._make_plan([self._describe(job) for job in known], self._load.ahead())
        self._planned = now_s, hour, names

    def _describe(self, job: JobView) -> PendingJob:
        rate = self.rates[job.model]
        row_s = self._speed * rate.spare_s / rate.rows
        return PendingJob(job.id, job.rows_left, job.deadline_s, job.carbon, row_s, rate.joules / rate.rows)

    def _jobs_now(self, jobs: Sequence[JobView]) -> list[JobView]:
        """Return the jobs that run now, that of the earliest deadline first, and those whose rate is not known."""
        by_id = {job.id: job for job in jobs}
        planned = self.schedule.running(self._now()) if self.schedule is not None else ()
        trials = [job for job in jobs if not self.rates.setdefault(job.model, SpareRate()).known]
        return [*(by_id[job_id] for job_id in planned if job_id in by_id), *trials]

    def _is_urgent(self, job: JobView) -> bool:
        return self.schedule is not None and job.id in self.schedule.urgent

    async def _feed(self, job: JobView, spare: SpareCapacity) -> None:
        """Start rows of a job while there is room for them."""
        mine = self._running.setdefault(job.id, _Running())
        began_s = self._monotonic()
        gentle = not self._is_urgent(job) and self._load.has_clients(began_s)
        while not (self._stopped or spare.blocked):
            now_s = self._monotonic()
            if now_s < self._paused_until_s.get(job.model, -math.inf) or spare.rows_wanted() <= 0:
                return
            if now_s - began_s >= _LOOK_S:  # workers are faster than rows are read: it may be another job's turn
                self._wake.set()
                return
            if not mine.borrowed:
                if now_s < mine.empty_until_s:
                    return
                mine.borrowed.extend(await self._store.next_rows(job.id, _BORROWED))
                if not mine.borrowed:
                    mine.empty_until_s = self._monotonic() + _LOOK_S
                    return
                continue
            row = mine.borrowed.popleft()
            self._in_flight += 1
            mine.started += 1
            self._starter.start(job, row.body, partial(self._done, job, row.number))
            pause_s = max(_PAUSES * (self._monotonic() - now_s), _LEAST_PAUSE_S) if gentle else 0.0
            await asyncio.sleep(pause_s)  # clients' requests are read between two rows

    def _give_back(self, job_id: str) -> None:
        """Give the rows of a job back that were not started."""
        mine = self._running[job_id]
        if mine.borrowed:
            self._store.give_back(job_id, [row.number for row in mine.borrowed])
            mine.borrowed.clear()
        if not mine.started:
            del self._running[job_id]

    def _observe(self, model: str, spare: SpareCapacity) -> None:
        """Take note of the rows that a model answered."""
        running = spare.on and not spare.blocked  # also while rows are read more slowly than workers compute them
        rate = self.rates.setdefault(model, SpareRate())
        rate.observe(spare.answered, spare.energy_j, self._monotonic(), self._load.spare, running=running)

    # --- answers --------------------------------------------------------------------------------------------------

    def _done(
        self,
        job: JobView,
        number: int,
        status: int,
        body: bytes,
        receipt: Receipt | None,
        version: str,
        again_s: float | None,
    ) -> None:
        """Take the answer of a row, or give the row back if it has none."""
        self._in_flight -= 1
        mine = self._running.get(job.id)
        if mine is not None:
            mine.started -= 1
        if again_s is not None:
            self._paused_until_s[job.model] = self._monotonic() + again_s
            self._store.give_back(job.id, [number])
            return
        if receipt is not None:
            self._count(job, receipt)
        self._answers.setdefault(job.id, []).append(RowAnswer(number, status, body, receipt, version))
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().create_task(self._keep(), name="clover: answers of waiting rows")

    def _count(self, job: JobView, receipt: Receipt) -> None:
        """Count what a row emitted, and would have if all rows of its job that were answered before had run from the
        start on, at the rate at which they ran."""
        rate = self.rates[job.model]
        before_s = self._speed * (job.rows - job.rows_left) * (rate.seconds / rate.rows if rate.rows else 0.0)
        hour = math.floor((job.created_s + before_s) / HOUR_S)
        grams = at_once_g = receipt.carbon_mg / 1e3
        if hour < math.floor(self._now() / HOUR_S):
            if (then := self._past(hour)) is None or receipt.intensity_g_per_kwh <= 0.0:
                return
            at_once_g *= then / receipt.intensity_g_per_kwh
        waited = self.waited.setdefault(job.model, Waited())
        waited.rows += 1
        waited.joules += receipt.energy_j
        waited.grams += grams
        waited.at_once_g += at_once_g
        waited.accuracy_rows += receipt.accuracy

    async def _keep(self) -> None:
        """Give answers to the store, those of a moment together, until there are none."""
        try:
            while self._answers:
                if not self._stopped:
                    await asyncio.sleep(_KEEP_S)
                answers, self._answers = self._answers, {}
                for job_id, some in answers.items():
                    try:
                        await self._store.answered(job_id, some)
                    except Exception:
                        log.exception("answers of %s could not be kept", job_id)
                        self._store.give_back(job_id, [answer.number for answer in some])
        finally:
            self._keeping = None
            self._wake.set()

    # --- for people -----------------------------------------------------------------------------------------------

    def reason(self, job_id: str) -> str:
        """Return when the rows of a job are planned to run, and why, in words; empty for an unknown job."""
        job = next((job for job in self._store.open_jobs() if job.id == job_id), None)
        if job is None:
            return ""
        spare = self._spare(job.model)
        planned = self.schedule is not None and job_id in self.schedule.jobs
        if spare is None or (spare.blocked and (not planned or self._jobs_now([job]))):
            return f"waits for the model: {spare.blocked if spare is not None else 'it takes no rows that wait now'}"
        if self.schedule is None or not planned:
            return "runs now, to see how many rows a second this machine spares"
        return self.schedule.reason(job_id)

    def state(self) -> list[dict[str, Any]]:
        """Return the jobs that have rows left: what is planned of each, and at which rate its model's rows ran."""
        jobs = self._store.open_jobs()
        running = {job.id for job in self._jobs_now(jobs)} if self._task is not None else set()
        return [
            {
                "job": job.id,
                "model": job.model,
                "tenant": job.tenant,
                "rows_left": job.rows_left,
                "deadline_s": job.deadline_s,
                "carbon": job.carbon,
                "running": job.id in running,
                "why": self.reason(job.id),
                "rows_per_s": rate.rows_per_s if (rate := self.rates.get(job.model)) is not None else 0.0,
            }
            for job in jobs
        ]
