"""Carries out a transition, and undoes one that failed.

**Instances are shared**: two families may have workers on one core-set.  `SharedInstances` counts the holders of each,
makes an instance for the first and removes it after the last.

**Failures.**  The steps of a stage run at once.  If one fails, the others of its stage are finished and the transition
ends.  Two failures are recorded and do not end it: a worker that does not drain is gone all the same, and an old
instance that cannot be removed matters only if a new one was to stand in its place (the device leaves the place out
from then on).

**Routing meanwhile** (`interim`).  During a transition, and after workers were lost, rows are routed as the solver
found for the remaining workers; if it found nothing, by the shares of the plan.

**The way back** is a transition too, planned from what really stands.  It is staggered like any other, so that what was
exchanged already serves while the rest goes back.  Workers that do not serve yet and are not wanted go first; then come
the steps of the plan.  If the old deployment cannot stand any more (a GPU was lost, a slot cannot be emptied), only
steps that cost no capacity are taken.  If a step of the way back fails, it ends there.  In the end either the old
deployment is complete again, or `ApplyError.restored` is false and the fleet serves with what stands.  Instances
without a worker are removed, so that the next plan starts from what is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from clover.control.state.memory_troubles import FailedStart
from clover.errors import CloverError, DeviceError, PlanError
from clover.interfaces import Device, Fleet
from clover.planning.transition.layout import Capacity, slices
from clover.planning.transition.memory import MemoryAware
from clover.planning.transition.stages import served
from clover.planning.transition.steps import plan_transition
from clover.types import (
    Assignment,
    Configuration,
    DeviceShape,
    Placement,
    Routing,
    Step,
    Transition,
    configuration_of,
)

log = logging.getLogger("clover.control")

_Failure = tuple[Step, CloverError]
NOWHERE = Routing(shares={})
"""The routing without any worker."""
WayBack = Callable[[Sequence[Assignment], Sequence[Assignment], Sequence[DeviceShape]], Transition]
"""Plans a transition from the first to the second on devices, giving up as little capacity as possible."""


def interim(routed: Sequence[Assignment], routing: Routing, before: Routing) -> Routing:
    """Return the routing while only `routed` take rows.  Each variant gets its new share, or its old one if it has no
    new one, made to sum to 1; equal shares if none has any.  Largest batches stay.  The chain is the new one if all its
    variants are there, else the old one if all of those are, else none.  No lane waits for a batch to fill: waits were
    sized for as many workers as the old or the new deployment has, and need not hold for those there are meanwhile."""
    names = list(dict.fromkeys(item.variant for item in routed))
    weights = {variant: routing.shares.get(variant, 0.0) or before.shares.get(variant, 0.0) for variant in names}
    total = sum(weights.values())
    chained = next((item for item in (routing, before) if item.chain and weights.keys() >= set(item.chain)), NOWHERE)
    return Routing(
        shares={variant: weights[variant] / total if total > 0.0 else 1.0 / len(names) for variant in names},
        largest={variant: rows for variant, rows in before.largest.items() if variant in weights},
        wait_ms=dict.fromkeys((variant for variant in before.wait_ms if variant in weights), 0.0),
        chain=chained.chain,
        thresholds=chained.thresholds,
    )


def straight_back(
    running: Sequence[Assignment], target: Sequence[Assignment], shapes: Sequence[DeviceShape]
) -> Transition:
    """Return the transition from `running` to `target` without knowing anything of speed or memory."""
    return plan_transition(running, target, shapes, floor=math.inf)


class ApplyError(PlanError):
    """A transition failed.  `restored`: whether the previous deployment is restored; `starts`: which workers did not
    start."""

    def __init__(self, message: str, *, restored: bool, starts: Sequence[FailedStart] = ()) -> None:
        super().__init__(message)
        self.restored = restored
        self.starts = tuple(starts)


@runtime_checkable
class Barring(Protocol):
    """A device that may fail to make what it could make before (`clover.devices.mig.MigDevice`)."""

    def bar(self, placement: Placement, why: str) -> None:
        """Leave `placement` out of the layouts until an instance can be made there."""


class SharedInstances:
    """The instances of all devices, and which families hold each."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = devices
        self._holders: dict[str, set[str]] = {}

    def held(self, family: str) -> set[str]:
        """Return the ids of the placements a family holds."""
        return {place for place, holders in self._holders.items() if family in holders}

    def shapes(self) -> tuple[DeviceShape, ...]:
        """Return the shapes of the devices: what each allows now."""
        return tuple(device.shape() for device in self._devices.values())

    async def hold(self, family: str, placement: Placement) -> None:
        """Make the instance unless it stands.  DeviceError if that fails; nothing is held then."""
        holders = self._holders.get(placement.id)
        if not holders:
            await self._device(placement).create(placement)
            holders = self._holders.setdefault(placement.id, set())
        holders.add(family)

    async def release(self, family: str, placement: Placement) -> None:
        """Remove the instance unless another family holds it.  DeviceError if that fails; the family holds it no more
        in any case."""
        holders = self._holders.get(placement.id)
        if holders is None or family not in holders:
            return
        holders.discard(family)
        if not holders:
            del self._holders[placement.id]
            await self._device(placement).destroy(placement)

    def bar(self, placement: Placement, why: str) -> None:
        """Leave a place out of its device's layouts; `why` says why nothing can be made there although it is free."""
        device = self._device(placement)
        if isinstance(device, Barring):
            device.bar(placement, why)

    def _device(self, placement: Placement) -> Device:
        device = self._devices.get(placement.device)
        if device is None:
            raise DeviceError(f"there is no device {placement.device}")
        return device


class Applier:
    """Carries out the transitions of one family.  `progress` describes the one under way, or is None; `way_back` plans
    how to undo it."""

    def __init__(self, family: str, fleet: Fleet, instances: SharedInstances) -> None:
        self.progress: dict[str, object] | None = None
        self.way_back: WayBack = straight_back
        self._capacity: Capacity = slices
        self._on_the_way: Mapping[Configuration, Routing] = {}
        self._family = family
        self._fleet = fleet
        self._instances = instances
        self._places: dict[str, Placement] = {}
        self._stuck: dict[str, Placement] = {}
        self._workers: list[Assignment] = []
        self._routed: list[Assignment] = []

    @property
    def workers(self) -> tuple[Assignment, ...]:
        """The workers that were spawned and not drained."""
        return tuple(self._workers)

    def adopt(self, workers: Sequence[Assignment]) -> None:
        """Take over `workers`, which run and get all rows, with the instances that the family holds for them."""
        self._workers, self._routed = list(workers), list(workers)
        self._places = {item.placement.id: item.placement for item in workers}

    async def run(
        self,
        transition: Transition,
        *,
        before: Sequence[Assignment],
        routing_before: Routing = NOWHERE,
        routing: Routing,
        capacity: Capacity = slices,
        on_the_way: Mapping[Configuration, Routing] | None = None,
    ) -> tuple[str, ...]:
        """Carry out every step.  The last route gives exactly `routing`; those before it give workers rows as
        `on_the_way` has it for their configuration, else a mix of both routings.  Return what went wrong without doing
        harm.  ApplyError if a step fails, after the deployment `before` was restored as far as possible.  The way back
        is staggered by the `capacity` of workers."""
        self.progress = {"steps": len(transition.steps), "done": 0, "step": ""}
        self._capacity, self._on_the_way = capacity, on_the_way or {}
        self._stuck.clear()
        notes: list[str] = []
        try:
            self._expect(transition)
            failed = await self._carry_out(transition.steps, routing, routing_before, notes)
            if not failed:
                return tuple(notes)
            starts = [FailedStart(item, self._at(item), str(error)) for item, error in _spawns(failed)]
            restored, more = await self._restore(before, routing_before)
            text = "; ".join(dict.fromkeys([*map(_failure_text, failed), *notes, more]))
            raise ApplyError(text, restored=restored, starts=starts) from failed[0][1]
        finally:
            self._expect(None)
            self.progress = None

    def _expect(self, transition: Transition | None) -> None:
        """If on the way no worker is left to route to, let rows wait for the workers that come; None: no more."""
        if not isinstance(self._fleet, MemoryAware):
            return
        self._fleet.prepare(())
        coming: tuple[Assignment, ...] = ()
        if transition is not None and self._routed and transition.lowest_capacity <= 0.0:
            coming = tuple(step.assignment for step in transition.steps if step.kind == "spawn" and step.assignment)
        self._fleet.expect(coming)

    async def clear(self) -> None:
        """Drain every worker and remove every instance of the family; what fails is logged."""
        await self._try(Step(kind="drain", assignment=item) for item in self._workers)
        await self._try(Step(kind="destroy", placement=place) for place in self._places.values())

    async def forget(self, devices: Container[str], reason: str) -> None:
        """Forget all workers and instances on `devices`, which are lost: nothing there is waited for."""
        for item in [item for item in self._workers if item.placement.device in devices]:
            self._workers.remove(item)
            self._fleet.forget(item, reason)
        self._routed = [item for item in self._routed if item.placement.device not in devices]
        for places in (self._places, self._stuck):
            for key in [key for key, place in places.items() if place.device in devices]:
                place = places.pop(key)
                with contextlib.suppress(DeviceError):  # the device removes it when it is back
                    await self._instances.release(self._family, place)

    # --- forward ------------------------------------------------------------------------------------------------------

    async def _carry_out(
        self, steps: Sequence[Step], routing: Routing, before: Routing, notes: list[str]
    ) -> list[_Failure]:
        """Carry out `steps` stage by stage, up to the first failure that matters; return that failure, with the others
        of its stage."""
        last = max((index for index, step in enumerate(steps) if step.kind == "route"), default=-1)
        if isinstance(self._fleet, MemoryAware):
            self._fleet.prepare(steps[last].routed if last >= 0 else ())  # the deployment that the last route is for
        done = 0
        for _, group in itertools.groupby(steps, key=lambda step: (step.stage, step.kind)):
            parts = tuple(group)
            if self.progress is not None:
                self.progress.update(steps=len(steps), done=done, step=", ".join(map(describe_step, parts)))
            goal = routing if done == last else self._meanwhile(parts[0].routed, routing, before)
            done += len(parts)
            failures = await self._at_once(parts, goal)
            fatal = [failure for failure in failures if matters(failure[0], steps[done:])]
            notes.extend(_failure_text(failure) for failure in failures if failure not in fatal)
            if fatal:
                return fatal
        return []

    def _meanwhile(self, routed: Sequence[Assignment], routing: Routing, before: Routing) -> Routing:
        """Return how rows go to `routed` until more of them are ready."""
        known = self._on_the_way.get(configuration_of(tuple(routed)))
        return known if known is not None else interim(routed, routing, before)

    async def _at_once(self, steps: Sequence[Step], routing: Routing) -> list[_Failure]:
        """Carry out all of `steps` at once; return those that failed."""
        results = await asyncio.gather(*(self._do(step, routing) for step in steps), return_exceptions=True)
        failures: list[_Failure] = []
        for step, result in zip(steps, results, strict=True):
            if isinstance(result, CloverError):
                log.warning("%s: %s failed: %s", self._family, describe_step(step), result)
                failures.append((step, result))
            elif result is not None:
                raise result
        return failures

    async def _try(self, steps: Iterable[Step]) -> list[str]:
        """Carry out all of `steps`, whatever fails; return the failures in words."""
        return [_failure_text(failure) for failure in await self._at_once(tuple(steps), NOWHERE)]

    async def _do(self, step: Step, routing: Routing) -> None:
        if step.kind == "route":
            self._route(step.routed, routing)
        elif step.kind in ("create", "destroy"):
            assert step.placement is not None
            await (self._create if step.kind == "create" else self._destroy)(step.placement)
        else:
            assert step.assignment is not None
            action: Callable[[Assignment], Awaitable[None]] = self._spawn if step.kind == "spawn" else self._drain
            await action(step.assignment)

    def _route(self, routed: Sequence[Assignment], routing: Routing) -> None:
        self._fleet.route(tuple(routed), routing)
        self._routed = list(routed)

    async def _create(self, placement: Placement) -> None:
        await self._instances.hold(self._family, placement)
        self._places[placement.id] = placement
        self._stuck.pop(placement.id, None)

    async def _destroy(self, placement: Placement) -> None:
        self._places.pop(placement.id, None)
        try:
            await self._instances.release(self._family, placement)
        except DeviceError:
            self._stuck[placement.id] = placement
            raise

    async def _spawn(self, item: Assignment) -> None:
        await self._fleet.spawn(item)
        self._workers.append(item)

    async def _drain(self, item: Assignment) -> None:
        self._routed = [other for other in self._routed if other != item]
        try:
            await self._fleet.drain(item)
        finally:
            if item in self._workers:
                self._workers.remove(item)

    def _at(self, item: Assignment) -> tuple[Assignment, ...]:
        """Return the other workers at the placement of `item`."""
        return tuple(other for other in self._workers if other.placement == item.placement and other != item)

    # --- back ---------------------------------------------------------------------------------------------------------

    async def _restore(self, before: Sequence[Assignment], routing: Routing) -> tuple[bool, str]:
        """Restore the deployment `before`; return whether that worked, and what to say of it."""
        wanted = {item.placement.id for item in before}
        trouble = await self._try(
            Step(kind="create", placement=place) for key, place in list(self._stuck.items()) if key in wanted
        )
        trouble += await self._try(
            Step(kind="drain", assignment=item)
            for item in self._workers
            if item not in before and item not in self._routed
        )
        trouble += await self._clean(keep=wanted)
        shapes = self._instances.shapes()
        goal = possible(before, shapes, self._workers)
        back = self.way_back(self._workers, goal, shapes)
        there = {shape.device for shape in shapes if shape.layouts}
        now = served((item for item in self._routed if item.placement.device in there), self._capacity)
        if len(goal) == len(before) or back.lowest_capacity >= now:
            steps = [step for step in back.steps if step.kind != "create" or not self._stands(step.placement)]
            notes: list[str] = []
            failures = await self._carry_out(steps, routing, routing, notes)
            trouble += map(_failure_text, failures)
            for step, error in failures:
                if step.kind == "create" and step.placement is not None and isinstance(error, DeviceError):
                    self._instances.bar(step.placement, str(error))
            trouble += notes
        if len(goal) < len(before):
            names = ", ".join(item.placement.id for item in before if item not in goal)
            trouble.append(f"{names} cannot exist any more")
        trouble += await self._clean(keep=())
        restored = Counter(self._workers) == Counter(before)
        if self._workers:
            route = Step(kind="route", routed=tuple(self._workers))
            exact = restored and bool(routing.shares)
            meanwhile = self._meanwhile(self._workers, routing, routing)
            failed = await self._at_once([route], routing if exact else meanwhile)
            trouble += map(_failure_text, failed)
            restored = restored and not failed
        failures_text = "; ".join(dict.fromkeys(trouble))
        if not restored:
            log.error("%s: the previous deployment could not be restored: %s", self._family, failures_text)
            return False, f"the previous deployment could not be restored: {failures_text}"
        stands = "the previous deployment is restored" if before else "nothing ran before"
        return True, f"{stands}; {failures_text}" if failures_text else stands

    async def _clean(self, *, keep: Iterable[str]) -> list[str]:
        """Remove instances without a worker, except those in `keep`; return the failures in words."""
        needed = {item.placement.id for item in self._workers}.union(keep)
        return await self._try(
            Step(kind="destroy", placement=place) for key, place in list(self._places.items()) if key not in needed
        )

    def _stands(self, placement: Placement | None) -> bool:
        return placement is not None and placement.id in self._places


def possible(
    deployment: Sequence[Assignment], shapes: Sequence[DeviceShape], standing: Sequence[Assignment]
) -> tuple[Assignment, ...]:
    """Return the part of `deployment` that the devices allow together, preferring what stands."""
    layouts = {shape.device: [{place.id for place in layout} for layout in shape.layouts] for shape in shapes}
    overlap = {shape.device for shape in shapes if shape.overlap}
    chosen: dict[str, set[str]] = {}
    placed = []
    for item in sorted(deployment, key=lambda item: item not in standing):
        device = item.placement.device
        places = chosen.setdefault(device, set()) | {item.placement.id}
        if device in overlap or any(places <= layout for layout in layouts.get(device, ())):
            chosen[device] = places
            placed.append(item)
    return tuple(placed)


def describe_step(step: Step) -> str:
    """Return a step in words."""
    if step.kind == "route":
        return "route to " + ", ".join(f"{item.variant} at {item.placement.id}" for item in step.routed)
    if step.assignment is not None:
        return f"{step.kind} {step.assignment.variant} at {step.assignment.placement.id}"
    return f"{step.kind} {step.placement.id if step.placement is not None else ''}"


def _spawns(failures: Iterable[_Failure]) -> list[tuple[Assignment, CloverError]]:
    """Return the starts among `failures`."""
    return [(step.assignment, error) for step, error in failures if step.kind == "spawn" and step.assignment]


def _failure_text(failure: _Failure) -> str:
    return f"{describe_step(failure[0])} failed: {failure[1]}"


def matters(step: Step, later: Sequence[Step]) -> bool:
    """Return whether the failure of `step` ends a transition of which `later` is still to be done."""
    if step.kind == "drain":
        return False
    if step.kind != "destroy" or step.placement is None:
        return True
    gone = step.placement
    return any(
        other.device == gone.device and other.start < gone.start + gone.size and gone.start < other.start + other.size
        for other in (later_step.placement for later_step in later if later_step.kind == "create")
        if other is not None
    )
