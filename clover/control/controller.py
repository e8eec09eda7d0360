"""The controller: observe, propose, apply, verify, roll back, and keep a record of it all.

Every `interval_s` it looks at each family (`triggers` says what counts as a reason).  A reason makes a turn: the state
goes to the policy in the solver process, a plan comes back.  Routing is the fast knob: a plan of the configuration that
runs is applied at once.  Configuration is the slow one: it changes at most every `min_dwell_s`, never to a
configuration that was rolled back lately, never with a loss of capacity unless allowed.  What is held back for one of
these reasons leaves the configuration as it is, routed as well as it can be, and is tried again when the hold ends.

A new deployment is watched for `verify_s`.  If its workers keep dying, or its p95 is beyond the SLO and clearly worse
than predicted (`WORSE` times) although no more arrives than was planned for, the last good deployment is restored and
the configuration backed off (60 s, doubling).  The observed p95 trails by `WINDOW_S` and still holds rows of before, so
a bad one is judged only when that long has passed.

Devices.  What happens to them is looked at first.  Workers on a GPU that is lost are given up at once, in every mode
and also while frozen, and rows go to the others; then, as the mode allows, a plan is made for what is left, and another
one when the GPU is back or a slot cannot be used any more (`control.devices` says whose a GPU is).  A family that lost
everything is like one before the start.  A change of configuration may not take capacity below the floor: the
configured share of BASE's, what arrives now, and in any case somebody to answer.  Where that cannot be, it is refused
with how low capacity would go and for how long, unless the configuration allows it.

Guard.  Where a family's answers drift from its profile (`clover.runtime.guard.guard`), its router acts at once, and a
plan follows that gives up half of the accuracy it might, or none: workers of dearer variants are there then.

Demand.  Rows that ask for an accuracy that no worker reaches wait while a plan with such a worker is made, at once and
not at the next look (`control.demand`).

Modes.  `active`: as above.  `observe`: plans are made and recorded, nothing is changed after the first plan.  `off`: no
plans after the first, but a pinned family follows its devices.  In every mode the first plan is made and applied by the
policy, and an operator may act.  Freezing holds everything as it is, routing included, until it is lifted; an operator
may act.

Planner and commands exclude each other.  All of it runs on the event loop; only the arithmetic is elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from clover.config import ControllerConfig, FamilyConfig
from clover.control.apply import Instances
from clover.control.arrivals import WINDOW_S
from clover.control.baselines.shadows import FixedMixes, Shadows
from clover.control.commands import Commands
from clover.control.decisions import Decisions, outcome
from clover.control.demand import closed
from clover.control.device_pool import DevicePool
from clover.control.family import Family, Mode, Standing, Watch
from clover.control.forecasting import TURN_S, Grid
from clover.control.gate import still_possible
from clover.control.planner import Planner
from clover.control.report import doing, report
from clover.control.triggers import LEAST_QUEUE, Look
from clover.errors import CloverError, StartError, Unavailable
from clover.interfaces import Device, Fleet
from clover.planning.budget.forecast import HOUR_S
from clover.planning.model.problem import accuracies
from clover.policies import SPENDING
from clover.policies.demanded import heeds
from clover.runtime.guard.guard import ALARM_LEVELS
from clover.types import Configuration, Declined, DeviceShape, FamilyProfile, FamilySpec, Plan, Reading, State

log = logging.getLogger("clover.control")

WORSE = 1.5
LEAST_ROWS = 20.0
_DEATHS = 2.0


class Chain(Protocol):
    """Gives the intensity at a grid time, whatever happens to its sources (`clover.carbon.Chain`)."""

    async def read(self, grid_s: float) -> Reading: ...

    async def forecast(self, grid_s: float, horizon_s: float) -> list[Reading]: ...


class GridClock(Protocol):
    """Grid time (`clover.carbon.GridClock`)."""

    def now(self) -> float: ...


class Solver(Protocol):
    """Makes plans (`clover.control.solver.client.SolverClient`)."""

    async def propose(self, state: State, policy: str, configuration: Configuration | None = None) -> Plan: ...

    async def close(self) -> None: ...


class Controller:
    """Implements `clover.interfaces.Control`.

    Families join by `adopt` and leave by `release`, before `start` or while it runs.  `totals` gives what the server
    counts (joules, grams, rows, served accuracy) for `state`; `fixed_mixes` finds what savings are told against, beside
    BASE.
    """

    def __init__(
        self,
        config: ControllerConfig,
        *,
        devices: Mapping[str, Device],
        chain: Chain,
        grid_clock: GridClock,
        solver: Solver,
        totals: Callable[[], dict[str, Any]] | None = None,
        fixed_mixes: FixedMixes | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.config = config
        self.mode: Mode = config.mode
        self.frozen = False
        self.families: dict[str, Family] = {}
        self.devices = devices
        self.device_pool = DevicePool(devices)
        self.instances = Instances(devices)
        self.beside: dict[str, set[str]] = {}
        """On which devices families have workers that are not under control."""
        self.record = Decisions(wall)
        self.reading: Reading | None = None
        self.grid = Grid(chain)
        self.grid_clock = grid_clock
        self.monotonic = monotonic
        self.lock = asyncio.Lock()
        self.totals = totals
        self.planner = Planner(self, solver)
        self.shadows = Shadows(self, fixed_mixes)
        self._commands = Commands(self)
        self._chain = chain
        self._solver = solver
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None
        self._commanded: set[asyncio.Task[dict[str, Any]]] = set()
        self._stopped = False
        self._hasty: asyncio.Task[None] | None = None
        self._hasty_s = -math.inf

    # --- life ---------------------------------------------------------------------------------------------------------

    def add(self, spec: FamilySpec, profile: FamilyProfile, fleet: Fleet, config: FamilyConfig) -> Family:
        """Take a family under control without planning yet: for all families before the first plan, so that each
        plans with its own share of the machine."""
        family = Family(spec, profile, fleet, config, self.config, self.instances)
        self.families[family.name] = family
        self.reserve(family.name, config.share)
        return family

    def reserve(self, name: str, share: float) -> None:
        """Let a family have its part of the devices; one that is served without a plan has one too."""
        self.device_pool.name(name, share)
        self.device_pool.assign(self._standing())

    async def start(self, *, initial: bool = True) -> None:
        """Deploy the first plan of every family (`initial`), then keep looking.  StartError where a first plan cannot
        be made or applied, and where there are fewer GPUs than families."""
        if short := self.device_pool.short():
            raise StartError(short)
        if initial:
            for name in list(self.families):
                await self.deploy(name)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="clover-controller")

    async def deploy(self, name: str) -> None:
        """Make and apply the first plan of a family; StartError."""
        async with self.lock:
            family = self.families[name]
            await self.look_at_grid()
            await self.look_at_devices()
            shapes = self.device_pool.shapes()
            try:
                decision = await self.planner.plan_and_apply(family, "start", force=True)
                if family.standing is None and self.device_pool.shapes() != shapes:
                    # What an earlier run left could not all be removed, or a GPU was lost: plan with what there is.
                    await self.look_at_devices()
                    decision = await self.planner.plan_and_apply(family, "start", force=True)
            except CloverError as error:
                raise StartError(f"{name}: no first plan: {error}") from error
            if family.standing is None:
                raise StartError(f"{name}: the first plan failed: {decision.detail}")
            self._decline(family)

    async def adopt(self, spec: FamilySpec, profile: FamilyProfile, fleet: Fleet, config: FamilyConfig) -> None:
        """`add` and `deploy`; a family whose first plan fails is dropped again.  StartError."""
        family = self.add(spec, profile, fleet, config)
        try:
            await self.deploy(family.name)
        except BaseException:
            del self.families[family.name]
            raise

    async def release(self, name: str) -> None:
        """Drain all workers of a family, unmake its instances and forget it."""
        async with self.lock:
            family = self.families.pop(name, None)
            if family is not None:
                await family.applier.clear()

    async def stop(self) -> None:
        """Stop looking, break off commands and end the solver.  Workers stay; a transition under way is left where it
        is, and nobody begins another."""
        self._stopped = True
        tasks = [*self._commanded, *(task for task in (self._task, self._hasty) if task is not None)]
        self._task = self._hasty = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.shadows.stop()
        await self._solver.close()

    def reconfigure(self, config: ControllerConfig) -> None:
        """Take a new configuration: the mode in force and the objective of every family follow it."""
        for family in self.families.values():
            family.retarget(self.config, config)
            family.triggers.again(self.monotonic())
        if config.mode != self.config.mode:
            self.mode = config.mode
        self.config = config

    # --- looking ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._sleep(self.config.interval_s)
            try:
                await self.look()
            except Exception:
                log.exception("a look of the controller failed")

    async def look(self) -> None:
        """Look once at every family and act where there is a reason; trouble with one does not keep it from others."""
        async with self.lock:
            await self.look_at_grid()
            await self.look_at_devices()
            # Who has to give up a GPU moves before the one who gets it.
            for family in sorted(self.families.values(), key=lambda family: not self._guest(family)):
                try:
                    await self._look(family)
                    self._decline(family)
                except Exception:
                    log.exception("%s: a look of the controller failed", family.name)
            self.shadows.look()

    def _decline(self, family: Family) -> None:
        """Tell the fleet for which rows no worker comes."""
        family.fleet.decline(self.declined(family), self.hasten)

    def declined(self, family: Family) -> dict[str, Declined]:
        """For rows that need which variants no worker comes, and why."""
        policy = self.policy_of(family)
        pinned = "a configuration" if family.pin is not None and not policy else ""
        why = closed(self.mode_of(family), self.frozen or family.frozen, pinned, policy, heeds(policy))
        return family.demand.declined(self.monotonic(), accuracies(family.profile), family.running, why)

    def hasten(self) -> None:
        """Look soon, as rows wait for a worker that is not there; once in `interval_s` at most."""
        now_s = self.monotonic()
        if self._stopped or now_s < self._hasty_s + self.config.interval_s:
            return  # the next look will do
        if self._hasty is None or self._hasty.done():
            self._hasty_s = now_s
            self._hasty = asyncio.get_running_loop().create_task(self._look_now())

    async def _look_now(self) -> None:
        try:
            await self.look()
        except Exception:
            log.exception("a look of the controller failed")

    async def look_at_grid(self) -> Reading:
        """Read the intensity."""
        grid_s = self.grid_clock.now()
        self.reading = await self._chain.read(grid_s)
        self.grid.note(self.reading, grid_s)
        return self.reading

    async def look_at_devices(self) -> None:
        """Follow what happened to the devices: workers on lost ones are given up at once, in every mode, and rows go to
        the others; what to plan anew is noted."""
        changes = self.device_pool.changes()
        lost = self.device_pool.lost()
        for family in self.families.values():
            if gone := family.devices & lost:
                await self.planner.give_up(family, gone)
        if not changes:
            return
        log.warning("devices changed: %s", "; ".join(changes.values()))
        shapes = self.device_pool.shapes()
        before = {name: {*family.devices, *self.device_pool.assigned(name)} for name, family in self.families.items()}
        self.device_pool.assign(self._standing())
        for name, family in self.families.items():
            now = set(self.device_pool.assigned(name)) if self.device_pool.exclusive else set(shapes)
            concerned = sorted(before[name] | now)
            news = [changes[device] for device in concerned if device in changes]
            moved = [device for device in concerned if device in before[name] ^ now and device not in changes]
            news += [f"{device} is {self.device_pool.owner(device) or 'nobody'}'s now" for device in moved]
            if news:
                family.news = "; ".join(dict.fromkeys(filter(None, (family.news, *news))))
                family.dwell_until_s = min(family.dwell_until_s, self.monotonic())
            family.good = still_possible(family.good, tuple(shapes.values()))

    def devices_of(self, family: Family) -> tuple[DeviceShape, ...]:
        """Return what a family may plan with now."""
        return self.devices_for(family.name)

    def devices_for(self, name: str) -> tuple[DeviceShape, ...]:
        """Return the same for a family that is not under control."""
        return self.device_pool.of(name, self._standing())

    def why_none(self) -> str:
        """Return what happened to the devices, in brackets, where one is lost."""
        lost = sorted(self.device_pool.lost())
        return f" ({', '.join(lost)} lost)" if lost else ""

    def _standing(self) -> dict[str, set[str]]:
        return {**self.beside, **{name: family.devices for name, family in self.families.items()}}

    def _guest(self, family: Family) -> bool:
        """Return whether a family stands on a GPU that is another's by now."""
        return self.device_pool.exclusive and bool(family.devices - set(self.device_pool.assigned(family.name)))

    def mode_of(self, family: Family) -> Mode:
        """Return the mode in force for a family."""
        return family.mode or self.mode

    def policy_of(self, family: Family) -> str:
        """Return the policy in force for a family; empty where a configuration is."""
        return family.pin.policy if family.pin is not None else self.config.policy

    async def _look(self, family: Family) -> None:
        assert self.reading is not None
        family.ledger.look(self.grid_clock.now(), family.look(self.monotonic()), family.config.budget_horizon_s)
        now_s = self.monotonic()
        family.slo.look(now_s, family.observed, family.targets.slo_ms, lambda: doing(self, family))
        family.demand.look(now_s, family.fleet.demanded())
        if self.frozen or family.frozen:
            return
        mode = self.mode_of(family)
        bare = family.standing is None  # it lost everything, which is like before the start
        follow = mode == "off" and bool(family.news) and family.pin is not None
        if not bare and not follow and (mode == "off" or (mode == "active" and await self._verified(family, now_s))):
            return
        if bare and not self.devices_of(family):
            return  # there is nothing to plan with
        look = Look(
            now_s=now_s,
            g_per_kwh=self.reading.g_per_kwh,
            rate=family.rate(self.config),
            p95_ms=family.observed.get("p95_ms"),
            queue_rows=family.observed.get("queue_rows", 0.0) - family.observed.get("awaiting_rows", 0.0),
            missing=family.missing,
        )
        guarded = f"guard: {ALARM_LEVELS[family.rung]}" if family.rung != family.planned_rung else ""
        trigger = (
            family.news
            or guarded
            or (family.demand.trigger(now_s) if heeds(self.policy_of(family)) else "")
            or family.triggers.check(
                look,
                slo_ms=family.targets.slo_ms,
                intensity_change=self.config.intensity_change,
                rate_change=self.config.rate_change,
            )
        )
        step_s = TURN_S if self.config.cascade else HOUR_S
        if not trigger and self.policy_of(family) in SPENDING and family.ledger.due(self.grid_clock.now(), step_s):
            trigger = "forecast step"  # an hour is over: what it served counts, and the forecast moved on
        if not trigger:
            return
        if trigger.startswith("worker capacity") and look.missing and family.standing is not None:
            family.back_off(family.standing.configuration, now_s)
        try:
            await self.planner.plan_and_apply(family, trigger, force=bare or follow)
        except CloverError as error:
            log.warning("%s: %s: %s", family.name, trigger, error)
        made = self.record.last(family.name)
        family.triggers.decided(trigger, outcome(made) if made is not None else None, now_s)

    async def _verified(self, family: Family, now_s: float) -> bool:
        """Judge a deployment under verification; whether it was rolled back just now."""
        watch, standing = family.watch, family.standing
        if watch is None or standing is None:
            return False
        seen = family.observed
        why = ""
        watch.missing = watch.missing + 1 if family.missing else 0
        deaths = seen.get("restarts", 0.0) - watch.restarts
        if deaths >= _DEATHS or watch.missing >= 2:
            why = "its workers die"
        elif self._works_off(family, watch):
            watch.since_s = now_s
            return False
        elif now_s < watch.since_s + self.config.verify_s:
            return False
        elif self._worse(family, standing):
            if now_s < watch.since_s + max(self.config.verify_s, WINDOW_S):
                return False
            if family.good is not None and not family.good.plan.feasible:
                # What it replaced is known to miss its limits, and is not gone back to for that: watch on.
                family.watch = replace(watch, since_s=now_s, restarts=seen.get("restarts", 0.0), missing=0)
                return False
            predicted = standing.plan.prediction.p95_ms
            why = f"p95 {seen['p95_ms']:.2f} ms is beyond the SLO and far above the predicted {predicted:.2f} ms"
        if why and family.good is not None and family.good.deployment != standing.deployment:
            await self.planner.roll_back(family, why)
            return True
        if why:  # there is nothing to go back to: watch on
            family.watch = replace(watch, since_s=now_s, restarts=seen.get("restarts", 0.0), missing=0)
            return False
        family.watch = None
        family.good = standing
        family.backoffs.pop(standing.configuration, None)
        return False

    def _works_off(self, family: Family, watch: Watch) -> bool:
        """Return whether rows that waited before this deployment came are still being worked off: how late they are
        says nothing of it.  Ends with the first look at which fewer are not waiting."""
        queue_rows = family.observed.get("queue_rows", 0.0)
        shrinks = LEAST_QUEUE <= watch.queue_rows > queue_rows
        watch.queue_rows = queue_rows if shrinks else 0.0
        return shrinks

    def _worse(self, family: Family, standing: Standing) -> bool:
        seen, watch = family.observed, family.watch
        p95_ms = seen.get("p95_ms")
        if p95_ms is None or watch is None or seen.get("rows", 0.0) - watch.rows < LEAST_ROWS:
            return False
        expected_load = watch.rate * (1.0 + self.config.rate_change) + 1.0
        limit_ms = max(family.targets.slo_ms, WORSE * standing.plan.prediction.p95_ms)
        return p95_ms > limit_ms and seen.get("arrival_rate", 0.0) <= expected_load

    # --- what the front end sees --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """See `clover.interfaces.Control.state`."""
        return report(self)

    def decisions(self, limit: int) -> list[dict[str, Any]]:
        """See `clover.interfaces.Control.decisions`."""
        return self.record.newest(limit)

    async def command(self, verb: str, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """See `clover.interfaces.Control.command`.  Unavailable once the server stops."""
        self._refuse_where_stopped()
        task = asyncio.get_running_loop().create_task(self._commands.run(verb, arguments, operator))
        self._commanded.add(task)
        task.add_done_callback(self._commanded.discard)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and not caller.cancelling():
                self._refuse_where_stopped()
            raise

    def _refuse_where_stopped(self) -> None:
        if self._stopped:
            raise Unavailable("the server is shutting down")
