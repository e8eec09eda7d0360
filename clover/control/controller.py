"""The controller: observes every family each second, plans if there is a reason, and verifies what it deployed.

**From a reason to a plan.**  `state.triggers` says what counts as a reason.  The state then goes to the policy in the
solver process, and a plan comes back (`plan.planner`).  Routing is the fast knob: if the plan keeps the configuration
that runs, it is applied at once.  Configuration is the slow knob: it never changes to one that was rolled back lately,
and never with a loss of capacity unless that is allowed (`plan.gate`).  If the configuration may not change yet, the
workers that run are routed as well as they can be, and the change is tried again when the hold ends.  A new deployment
is verified (`watch.verification`).  A bad one is rolled back, and its configuration is left alone for 60 s, then twice
as long each time (`plan.executor`).

**Devices come first** (`watch.devices`).  Workers on a lost GPU are given up at once.  Then, if the mode allows it, a
plan is made for what is left, and another one when the GPU is back or a slot cannot be used any more.  A family that
lost all its workers is treated as before its start.

**Capacity floor.**  A change of configuration may not take capacity below the configured share of BASE's, below what
arrives now, or below one worker that answers.  A change that would is refused, with how low capacity would fall and for
how long, unless the configuration allows it.

**Sleep.**  A family without workers because nobody asks it (`clover.server.sleeper`) is not planned.  What it had in
force when it fell asleep is in force when it wakes.  A plan that an operator asks for wakes it.

**Guard.**  If a family's answers drift from its profile (`clover.runtime.guard.guard`), its router acts at once.  A
plan follows that gives up half as much accuracy, or none, so that workers of more accurate variants are there.

**Demand.**  If rows ask for an accuracy that no worker reaches, a plan with such a worker is made at once
(`state.demand`); the rows wait for it.

**Modes.**  In every mode the policy makes the first plan, that plan is applied, and an operator may act.  `active`: as
above.  `observe`: later plans are made and recorded but not applied.  `off`: no later plans, except that a pinned
family follows its devices.  Freezing holds everything as it is, routing included, until it is lifted.

Polls and commands exclude each other (`Context.lock`).  Everything runs on the event loop except the arithmetic.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from clover.carbon.grid import Grid
from clover.config import ControllerConfig, FamilyConfig
from clover.control.baselines.shadows import FindAlternatives, Shadows
from clover.control.commands import Commands
from clover.control.core_need import CoreNeed, FewestCores
from clover.control.plan.executor import Executor
from clover.control.plan.planner import Planner
from clover.control.plan.ways import Solver
from clover.control.report import report
from clover.control.state.context import Clocks, Context, LeastSaving
from clover.control.state.family import Family
from clover.control.state.learner import Learner
from clover.control.state.ledger_files import LedgerFiles
from clover.control.state.request import PlanRequest
from clover.control.state.sleep import spared_w
from clover.control.state.triggers import Observation
from clover.control.watch.devices import DeviceWatch
from clover.control.watch.slo import watch_slo, watch_waits
from clover.control.watch.verification import verify
from clover.control_time import control_task
from clover.errors import CloverError, PolicyFault, StartError, Unavailable
from clover.hints import named_wait
from clover.interfaces import Device, Fleet
from clover.policies import SPENDING
from clover.policies.demanded import heeds
from clover.profiles import ProfileStore
from clover.runtime.guard.guard import ALARM_LEVELS
from clover.types import Assignment, FamilyProfile, FamilySpec, FrontLag

log = logging.getLogger("clover.control")

INTERVAL_S = 1.0
"""Seconds between two polls.  Grids and loads that a plan can follow move more slowly, as a change of workers takes
seconds itself."""

START = PlanRequest(trigger="start", force=True)


class Controller:
    """Implements `clover.interfaces.Control`.

    Families join by `adopt` and leave by `release`, before `start` or while it runs.  `context` is what its parts
    share.  What is learned is kept beside the profiles of `store`, budgets in `ledger_files`; without these both are
    lost at a restart.  `front_lag` is how long requests wait for the front end's event loop (`Learner`).
    `alternatives` finds the fixed mixes that savings are compared with beside BASE; `fewest_cores` how few cores would
    do.  `least_saving`: what a routing has to spare to be worth its accuracy (None: anything).  `interval_s`: the
    seconds between two polls, by default `INTERVAL_S`.
    """

    def __init__(
        self,
        config: ControllerConfig,
        *,
        devices: Mapping[str, Device],
        grid: Grid,
        solver: Solver,
        store: ProfileStore | None = None,
        ledger_files: LedgerFiles | None = None,
        front_lag: Callable[[], FrontLag | None] = lambda: None,
        alternatives: FindAlternatives | None = None,
        fewest_cores: FewestCores | None = None,
        clocks: Clocks | None = None,
        least_saving: LeastSaving | None = None,
        interval_s: float | None = None,
    ) -> None:
        self._interval_s = INTERVAL_S if interval_s is None else interval_s
        clocks = clocks or Clocks()
        self.context = Context(config, devices, grid, clocks, least_saving or LeastSaving())
        self.shadows = Shadows(self.context, alternatives)
        self.core_need = CoreNeed(self.context, fewest_cores)
        self.learner = Learner(self.context, store=store, front_lag=front_lag, wall=clocks.wall)
        self._executor = Executor(self.context)
        self._planner = Planner(self.context, solver, self._executor)
        self._device_watch = DeviceWatch(self.context, self._executor)
        self._commands = Commands(self.context, self._planner, self._executor, self._device_watch)
        self.ledger_files = ledger_files or LedgerFiles()
        """Where budgets are kept over a restart."""
        self._solver = solver
        self._sleep = clocks.sleep
        self._released: dict[str, Family] = {}
        self._task: asyncio.Task[None] | None = None
        self._commanded: set[asyncio.Task[dict[str, Any]]] = set()
        self._stopped = False
        self._hasty: asyncio.Task[None] | None = None
        self._hasty_s = -math.inf

    # --- life ---------------------------------------------------------------------------------------------------------

    def add(self, spec: FamilySpec, profile: FamilyProfile, fleet: Fleet, config: FamilyConfig) -> Family:
        """Take a family under control without planning yet.  Call it for all families before the first plan, so that
        each plans with its own share of the machine."""
        family = Family(spec, profile, fleet, config, self.context.config, self.context.instances)
        if (before := self._released.get(family.name)) is not None:
            family.restore_orders(before, self.context.config)
        self.context.families[family.name] = family
        self.learner.add(family)
        self.reserve(family.name, config.share)
        spends = self.context.policy_of(family) in SPENDING
        self.ledger_files.load(family, self.context.grid.now(), spends=spends)
        return family

    def reserve(self, name: str, share: float) -> None:
        """Give a family its part of the devices, even if it is served without a plan."""
        self.context.device_pool.name(name, share)
        self.context.device_pool.assign(self.context.occupied())

    async def start(
        self, *, initial: bool = True, prepare: Callable[[str], Coroutine[Any, Any, None]] | None = None
    ) -> None:
        """Deploy the first plan of every family (`initial`), each after `prepare`, then keep polling.  StartError if a
        first plan cannot be made or applied, or if there are fewer GPUs than families."""
        if short := self.context.device_pool.short():
            raise StartError(short)
        async with self.context.lock:
            await self.context.read_grid()  # families that are served without a plan are priced, too
        if initial:
            for name in list(self.context.families):
                if prepare is not None:
                    await prepare(name)
                with named_wait(f"the first plan of {name} and its workers", log.info):
                    await self.deploy(name)
        self._task = control_task(self._run(), name="clover-controller")

    async def deploy(self, name: str) -> None:
        """Make and apply the first plan of a family.  StartError if that fails."""
        context = self.context
        async with context.lock:
            family = context.families[name]
            await context.read_grid()
            await self._device_watch.poll()
            await self._make_room(family)
            shapes = context.device_pool.shapes()
            try:
                decision = await self._planner.plan_and_apply(family, START)
                refused = 0
                while family.deployed is None and len(family.memory_troubles.refused) > refused:
                    refused = len(family.memory_troubles.refused)  # each time without what did not fit
                    decision = await self._planner.plan_and_apply(family, START)
                if family.deployed is None and context.device_pool.shapes() != shapes:
                    # What an earlier run left could not all be removed, or a GPU was lost: plan with what there is.
                    await self._device_watch.poll()
                    decision = await self._planner.plan_and_apply(family, START)
            except CloverError as error:
                raise StartError(f"{name}: no first plan: {error}") from error
            if family.deployed is None:
                raise StartError(f"{name}: the first plan failed: {decision.detail}")
            self._decline(family)

    async def _make_room(self, family: Family) -> None:
        """Have running families leave the places that are now `family`'s."""
        context = self.context
        for other in context.families.values():
            if other is family or not context.must_move(other) or context.frozen_of(other):
                continue
            request = PlanRequest(trigger=f"{family.name} needs a place", force=True)
            try:
                await self._planner.plan_and_apply(other, request)
            except CloverError as error:
                log.warning("%s: cannot make room for %s: %s", other.name, family.name, error)

    async def adopt(
        self,
        spec: FamilySpec,
        profile: FamilyProfile,
        fleet: Fleet,
        config: FamilyConfig,
        running: tuple[Assignment, ...] = (),
    ) -> None:
        """Take a family under control and deploy its first plan, in place of the workers that were `running` without
        one (while it is frozen, these stay).  StartError if that fails; the family is then dropped again."""
        async with self.context.lock:  # a poll between both would take the family for one without workers
            family = self.add(spec, profile, fleet, config)
            try:
                if running:
                    await self._planner.take_over(family, running)
            except BaseException:
                del self.context.families[family.name]
                raise
        if running and self.context.frozen_of(family):
            return  # it is planned once it is let go
        try:
            await self.deploy(family.name)
        except BaseException:
            del self.context.families[family.name]
            raise

    async def release(self, name: str) -> None:
        """Drain all workers of a family, remove its instances and forget it, but for what an operator has set."""
        async with self.context.lock:
            family = self.context.families.pop(name, None)
            if family is not None:
                self._released[name] = family
                await self.learner.finish([family])
                await self.ledger_files.close([family], self.context.grid.now())
                await family.applier.clear()

    async def stop(self) -> None:
        """Stop polling, break off commands and end the solver.  Workers stay; a transition under way is left where it
        is, and no other begins."""
        self._stopped = True
        tasks = [*self._commanded, *(task for task in (self._task, self._hasty) if task is not None)]
        self._task = self._hasty = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.ledger_files.close(self.context.families.values(), self.context.grid.now())
        self.ledger_files.release()
        await self.shadows.stop()
        await self.core_need.stop()
        await self.learner.finish(self.context.families.values())
        await self._solver.close()

    # --- looking ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._sleep(self._interval_s)
            await self._poll_safely()

    async def _poll_safely(self) -> None:
        try:
            await self.poll()
        except Exception:
            log.exception("the controller's poll failed")

    async def poll(self) -> None:
        """Poll every family once and act if there is a reason; trouble with one does not keep the others from it."""
        context = self.context
        async with context.lock:
            await context.read_grid()
            await self._device_watch.poll()
            # A family that has to give up a GPU moves before the one that gets it.
            for family in sorted(context.families.values(), key=lambda family: not context.must_move(family)):
                try:
                    await self._poll_family(family)
                    self._decline(family)
                except Exception:
                    log.exception("%s: the controller's poll of it failed", family.name)
            context.count_parked()
            self.ledger_files.poll(context.families.values(), context.monotonic(), context.grid.now())
            self.shadows.poll()
            self.core_need.poll()
            self.learner.save()

    def poll_soon(self) -> None:
        """Poll soon, because rows wait for a worker that is not there; once between two polls at most."""
        now_s = self.context.monotonic()
        if self._stopped or now_s < self._hasty_s + self._interval_s:
            return  # the next poll will do
        if self._hasty is None or self._hasty.done():
            self._hasty_s = now_s
            self._hasty = control_task(self._poll_safely())

    def _decline(self, family: Family) -> None:
        """Tell the fleet which rows to refuse, as no worker will be started for them."""
        family.fleet.decline(self.context.declined(family), self.poll_soon)

    async def _poll_family(self, family: Family) -> None:
        """Observe a family, verify a new deployment, and plan if there is a reason."""
        context, config = self.context, self.context.config
        grid_s, seen = context.grid.now(), family.observe(context.monotonic())
        family.ledger.observe(grid_s, seen, family.config.budget_horizon_s)
        if family.fleet.asleep and not context.must_move(family):
            return
        now_s = context.monotonic()
        self.learner.poll(family)  # before the SLO: services that become known to be slower take its pressure off
        missed, waits = watch_slo(context, family, now_s), watch_waits(family, now_s)
        reason = missed or waits
        family.demand.observe(now_s, family.fleet.accuracy_demand())
        if context.frozen_of(family):
            return
        mode = context.mode_of(family)
        bare = family.deployed is None  # it lost all its workers, which is like before the start
        follow = mode == "off" and bool(family.news) and family.pin is not None
        if not bare and not follow:
            if mode == "off":
                return
            if mode == "active" and await verify(family, config, self._executor, now_s):
                if reason:
                    family.triggers.again(now_s)
                return
        if bare and not context.devices_of(family.name):
            return  # there is nothing to plan with
        devices = context.devices_of(family.name)
        if family.sleep.observe(family.slo.late, devices, family.desired, now_s):
            asleep = "GPUs parked" if spared_w(devices) is not None else "cores asleep"
            family.news = family.news or f"SLO missed with {asleep}"
        trigger = self._trigger(family, now_s)  # asked in any case: triggers count what they observe
        trigger = reason or trigger
        if not trigger:
            return
        if trigger.startswith("worker capacity") and family.missing and family.deployed is not None:
            family.back_off(family.deployed.configuration, now_s)
        try:
            await self._planner.plan_and_apply(family, PlanRequest(trigger=trigger, force=bare or follow))
        except PolicyFault:
            pass  # it is logged once, with its traceback, and recorded as a decision
        except CloverError as error:
            log.warning("%s: %s: %s", family.name, trigger, error)

    def _trigger(self, family: Family, now_s: float) -> str:
        """Return why to plan now, in words; empty if there is no reason."""
        context, config, policy = self.context, self.context.config, self.context.policy_of(family)
        rests = context.rests(family)
        assert context.grid.reading is not None
        alarm = f"guard: {ALARM_LEVELS[family.alarm_level]}" if family.alarm_level != family.planned_alarm_level else ""
        trigger = family.news or alarm or (family.demand.trigger(now_s) if heeds(policy) else "")
        if not trigger:
            seen = Observation(
                now_s=now_s,
                g_per_kwh=context.grid.reading.g_per_kwh,
                rate=family.rate(config),
                missing=family.missing,
            )
            trigger = family.triggers.check(seen, follows_grid=not rests)
        if not trigger and policy in SPENDING and not rests and family.ledger.due(context.grid.now()):
            return "forecast step"  # an hour is over: what it served counts, and the forecast moved on
        return trigger or family.learned.trigger(now_s)

    # --- what the front end sees --------------------------------------------------------------------------------------

    def state(self, totals: Callable[[], dict[str, Any]] | None = None) -> dict[str, Any]:
        """See `clover.interfaces.Control.state`.  `totals` gives what the server counts: joules, grams, rows, served
        accuracy."""
        return report(self.context, self.shadows, self.core_need, totals)

    def decisions(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest decisions as plain objects, newest first."""
        return self.context.decisions.newest(limit)

    def decisions_json(self, limit: int) -> bytes:
        """See `clover.interfaces.Control.decisions_json`."""
        return self.context.decisions.newest_json(limit)

    async def command(self, verb: str, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """See `clover.interfaces.Control.command`.  Unavailable once the server stops."""
        return await self.carry_out(lambda: self._run_command(verb, arguments, operator))

    async def carry_out(self, work: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
        """Do what an operator asks for, in a task that `stop` breaks off; Unavailable once the server stops."""
        self._refuse_if_stopped()
        task = control_task(work())
        self._commanded.add(task)
        task.add_done_callback(self._commanded.discard)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and not caller.cancelling():
                self._refuse_if_stopped()
            raise

    async def _run_command(self, verb: str, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """Carry out a command; then refuse at once the rows for which no worker will come after it."""
        try:
            return await self._commands.run(verb, arguments, operator)
        finally:
            for family in self.context.families.values():
                self._decline(family)

    def _refuse_if_stopped(self) -> None:
        if self._stopped:
            raise Unavailable("the server is shutting down")
