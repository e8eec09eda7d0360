"""One run: the production controller in virtual time, beside a ledger of what it did.

A step of the ledger is as long as the controller's look interval.  At the beginning of each the load and the intensity
change; a second later the controller looks, as a server's does some time after its provider speaks.  So what a step
costs holds one second of the plan before.  A worker that takes `load_s` to load, and a transition of many, take their
time within the step, and the rows that meanwhile find less capacity wait.

Virtual seconds are grid seconds.  The controller therefore looks once in `look_s` (300 by default) instead of once in
the second a server looks by default, and its verification, back-off and retries run in the same seconds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from clover.carbon import GridClock, SourceChain
from clover.carbon.grid import Grid
from clover.config import FamilyConfig
from clover.control.controller import Controller
from clover.control.state.arrivals import WINDOW_S
from clover.control.state.context import Clocks
from clover.control.state.family import Family, default_targets
from clover.control.state.request import Targets
from clover.errors import ConfigError
from clover.policies.plans import chain_words
from clover.research.simulate import clock
from clover.research.simulate.families import spec_of
from clover.research.simulate.fleet import Serving, SimulatedDevice, SimulatedFleet, simulated
from clover.research.simulate.forecasts import ForecastSource
from clover.research.simulate.horizon_bound import HorizonPart, least_grams
from clover.research.simulate.records import JOULES_PER_KWH, ReplayStep, Run, summed
from clover.research.simulate.solver import LocalSolver
from clover.research.simulate.surprises import Surprises
from clover.research.simulate.world import Case
from clover.types import Decision, Reading

LAG_S = 1.0
"""So long after the beginning of a step the controller looks."""
_RATES = 4
"""Different rates in a run up to which its limit is worked out."""
HELD = {
    "capacity": "capacity floor",
    "noise": "noise of the intensity",
    "backoff": "failed lately",
}
"""Why the controller held a change back, by the words of its decisions."""


def play(case: Case, judge: Judge | None = None) -> Run:
    """Play a case to its end, and have `judge` see all that happens; StartError if not even its first plan can be
    made."""
    if case.scheme.cascade and case.world.known.profile.cascade is None:
        raise ConfigError("there is no profile of cascades: +cascade cannot be played")
    return clock.run(_Replay(case, judge).play())


class Judge(Protocol):
    """Looks on at a run, by what is true of it."""

    def record_routing(self, at_s: float, before: Serving, after: Serving) -> None:
        """Note that `after` serves instead of `before`, `at_s` seconds after the start."""

    def record_step(self, at_s: float, step: ReplayStep, serving: Serving, lost: Sequence[str]) -> None:
        """Note a step that ends `at_s` seconds after the start, what serves at its end, and the devices that are
        lost."""


class _Replay:
    """One case while it is played."""

    def __init__(self, case: Case, judge: Judge | None) -> None:
        world, trace, rules = case.world, case.trace, case.world.rules
        self.case = case
        self.step_s = rules.look_s
        if self.step_s > trace.source.step_s:
            raise ConfigError(
                f"--look-s {self.step_s:g} is longer than a step of {trace.name} ({trace.source.step_s:g} s)"
            )
        self.count = max(1, math.ceil(trace.hours * 3600.0 / self.step_s - 1e-9))
        self.rates = case.load.rates(world.capacity, trace.start_s, self.step_s, self.count, case.seed)
        self.observed = self.rates
        if case.load.counted_s:
            self.observed = _count_arrivals(case.load.counted_s, self.step_s, self.count)
        elif rules.noise:
            self.observed = _observe_rates(self.rates, self.step_s, case.seed)
        self.began_s = 0.0
        self.reported = 0
        self.judge = judge

    async def play(self) -> Run:
        """Play the case."""
        began = time.perf_counter()
        case, world, trace, rules = self.case, self.case.world, self.case.trace, self.case.world.rules
        grid_clock = GridClock(trace.start_s, 1.0, clock.now_s)
        source = ForecastSource(trace.source, rules.forecast, case.seed)
        chain = SourceChain([source], monotonic=clock.now_s)
        config = self._config()
        targets = default_targets(world.known.profile, config, case.settings)
        devices = simulated(world.machine.shapes)
        controller = Controller(
            case.settings,
            devices=devices,
            grid=Grid(chain, grid_clock.now),
            solver=LocalSolver(world.memory, seed=case.seed, spared_w=case.spared_w),
            clocks=Clocks(monotonic=clock.now_s, wall=grid_clock.now, sleep=self._until_the_next_look),
            interval_s=self.step_s,
        )
        fleet = SimulatedFleet(
            world.model(targets.slo_ms, case.seed),
            clock=clock.now_s,
            devices=len(world.machine.shapes),
            idle_w=world.machine.idle_w,
            pue=rules.pue,
            asleep_w=case.asleep_w,
            exact=not rules.noise and not case.load.counted_s,
            resident=case.scheme.resident,
        )
        family = controller.add(spec_of(world.known.profile), world.known.profile, fleet, config)
        fleet.weather(self.rates[0], self.observed[0], (await chain.read(trace.start_s)).g_per_kwh)
        await controller.start()
        fleet.load_s = rules.load_s  # the first deployment is ready at once
        for device in devices.values():
            device.create_s, device.destroy_s = rules.create_s, rules.destroy_s
        self.began_s = clock.now_s()
        if (judge := self.judge) is not None:
            fleet.on_route = lambda before, after: judge.record_routing(clock.now_s() - self.began_s, before, after)
        steps: list[ReplayStep] = []
        for index, (rate, observed) in enumerate(zip(self.rates, self.observed, strict=True)):
            at_s = trace.start_s + index * self.step_s
            reading = await chain.read(at_s)
            lost = _lose(rules.surprises, index * self.step_s, devices, fleet)
            fleet.weather(rate, observed, reading.g_per_kwh)
            before = family.changes, family.turned
            await asyncio.sleep(self.began_s + (index + 1) * self.step_s - clock.now_s())
            steps.append(self._close_step(fleet, family, controller, at_s, rate, before, reading))
            if judge is not None:
                judge.record_step(clock.now_s() - self.began_s, steps[-1], fleet.current, lost)
        run = self._run(controller, family, steps, targets)
        await controller.stop()
        return msgspec.structs.replace(run, seconds=time.perf_counter() - began)

    def _config(self) -> FamilyConfig:
        """Return how the family is served: by the scheme, or as the rules say."""
        case, scheme, rules = self.case, self.case.scheme, self.case.world.rules
        static = scheme.accuracy_floor is not None
        config = FamilyConfig(
            family=case.world.known.profile.family,
            slo_ms=case.slo_ms if case.slo_ms is not None else rules.slo_ms,
            accuracy_floor=scheme.accuracy_floor if static else rules.accuracy_floor,
            accuracy_margin=0.0 if static else rules.accuracy_margin,
            budget_horizon_s=rules.budget_horizon_s,
            resident="auto" if scheme.resident else "off",
        )
        budget = scheme.accuracy_budget if scheme.accuracy_budget is not None else rules.accuracy_budget
        return config if budget is None else msgspec.structs.replace(config, accuracy_budget=budget)

    def _run(self, controller: Controller, family: Family, steps: Sequence[ReplayStep], targets: Targets) -> Run:
        """Return what became of the case; `seconds` are still 0."""
        case, world, scheme = self.case, self.case.world, self.case.scheme
        decisions = [(decision["detail"], decision["count"]) for decision in controller.decisions(1000)]
        counts = controller.context.decisions.counts
        return Run(
            family=family.name,
            trace=case.trace.name,
            load=case.load.name,
            policy=scheme.name,
            seed=case.seed,
            accounting=case.accounting,
            gpus=len(world.machine.shapes),
            slo_ms=targets.slo_ms,
            accuracy_floor=targets.accuracy_floor,
            lam=family.lam(case.settings),
            steps=tuple(steps),
            sums=summed(steps),
            beside=scheme.beside,
            confidence="parametric" if case.cascades and world.known.confidence else "",
            plans=sum(counts.values()) - counts["failed"],
            held={why: sum(count for detail, count in decisions if words in detail) for why, words in HELD.items()},
            rollbacks=counts["rolled back"],
            failed=counts["failed"],
            limit_grams=self._limit(steps, targets.slo_ms),
            seconds=0.0,
        )

    def _limit(self, steps: Sequence[ReplayStep], slo_ms: float) -> float | None:
        """Return grams that no schedule of plans that reaches the run's accuracy with its rows can undercut; None if
        plans do not know the rate, if there are too many rates to compute, if workers serve otherwise than profiled or
        GPUs are lost, or if plans may cascade or share workers, for which no limit is known."""
        case, world = self.case, self.case.world
        unknown = world.rules.surprises.any or case.cascades or world.rules.noise or len(set(self.rates)) > _RATES
        unknown = unknown or case.scheme.resident
        if unknown or not all(step.rows > 0.0 for step in steps):
            return None
        per_j = world.rules.pue / JOULES_PER_KWH
        parts = [
            HorizonPart(step.rows, step.g_per_kwh * per_j, world.front(slo_ms, step.rate, case.spared_w))
            for step in steps
        ]
        accuracy = sum(step.rows * step.accuracy for step in steps) / sum(step.rows for step in steps)
        least_w = world.machine.idle_w if case.asleep_w is None else case.asleep_w  # of any device, whatever it does
        least_j = len(world.machine.shapes) * least_w * self.step_s
        return least_grams(parts, accuracy) + sum(least_j * step.g_per_kwh * per_j for step in steps)

    async def _until_the_next_look(self, seconds: float) -> None:
        """Sleep until the next look is due, so that a look that took long shifts no other."""
        past_s = clock.now_s() - self.began_s - LAG_S
        due_s = (math.floor(past_s / seconds + 1e-9) + 1) * seconds
        await asyncio.sleep(due_s - past_s)

    def _news(self, decision: Decision | None) -> str:
        """Return the newest decision in words; empty if it was reported before."""
        if decision is None or decision.id == self.reported:
            return ""
        self.reported = decision.id
        return _describe(decision)

    def _close_step(
        self,
        fleet: SimulatedFleet,
        family: Family,
        controller: Controller,
        at_s: float,
        rate: float,
        before: tuple[int, int],
        reading: Reading,
    ) -> ReplayStep:
        """Return the ledger's step that ends now."""
        sums = fleet.take()
        rows = max(sums.rows, 1e-12)
        return ReplayStep(
            at_s=at_s,
            seconds=self.step_s,
            g_per_kwh=reading.g_per_kwh,
            intensity_state=reading.state,
            rate=rate,
            rows=sums.rows,
            accuracy=sums.right / rows,
            active_j=sums.active_j,
            idle_j=sums.idle_j,
            active_grams=sums.active_grams,
            grams=sums.active_grams + sums.idle_grams,
            p95_ms=sums.p95_ms,
            late=sums.late / rows,
            queue_rows=fleet.queue_rows,
            awake=fleet.awake,
            deployment=fleet.words(),
            shares=fleet.routing.shares,
            chain=chain_words(fleet.routing),
            reason=self._news(controller.context.decisions.last(family.name)),
            changes=family.changes - before[0],
            turned=family.turned - before[1],
        )


def _lose(
    surprises: Surprises, at_s: float, devices: Mapping[str, SimulatedDevice], fleet: SimulatedFleet
) -> tuple[str, ...]:
    """Let devices be lost, and come back, as they are `at_s` seconds after the start; return those that are lost."""
    now = {item.device for item in surprises.lost if item.holds(at_s)}
    for number, (name, device) in enumerate(devices.items()):
        if device.lost != (number in now):
            device.lost = number in now
            device.made.clear()  # a GPU that comes back has no instances
            if device.lost:
                fleet.lose(name)
    return tuple(name for name, device in devices.items() if device.lost)


def _describe(decision: Decision) -> str:
    plan = decision.plan.reason if decision.plan is not None else ""
    return "; ".join(filter(None, (f"{decision.trigger}: {decision.action}", decision.detail, plan)))


def _observe_rates(rates: list[float], step_s: float, seed: int) -> list[float]:
    """Return what a server's window would count of Poisson arrivals at these rates, one a step of `step_s` seconds; the
    same for every policy.  Windows of steps that are shorter than a window share arrivals, as a server's do; before
    the first step rows arrived as in it."""
    rng = np.random.default_rng([seed, len(rates)])
    shared = round(WINDOW_S / step_s)
    if shared <= 1:
        return [float(count) / WINDOW_S for count in rng.poisson(np.array(rates) * WINDOW_S)]
    arrived = rng.poisson(np.array([rates[0]] * (shared - 1) + rates) * step_s)
    return [float(count) / (shared * step_s) for count in np.convolve(arrived, np.ones(shared, int), "valid")]


def _count_arrivals(arrivals_s: Sequence[float], step_s: float, steps: int) -> list[float]:
    """Return the rows a second that a server's window counts at the look of each step; `arrivals_s` ascend."""
    ends = np.arange(steps) * step_s + min(LAG_S, step_s)
    counts = np.searchsorted(arrivals_s, ends) - np.searchsorted(arrivals_s, ends - WINDOW_S)
    rates: list[float] = (counts / np.minimum(WINDOW_S, ends)).tolist()
    return rates
