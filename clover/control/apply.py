"""Carrying out a transition, and undoing one that failed.

Instances are shared: two families may sit on one core-set.  `Instances` counts who holds what, makes an instance for
the first holder and unmakes it after the last.

A step that fails ends the transition.  Then the way back is planned from what really stands: rows go to what is left of
the old deployment at once, workers that came are drained, instances that came are unmade, and what had already left is
made, spawned and routed to again.  The old deployment is complete afterwards, or `ApplyError.restored` is false and the
fleet serves with what it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from clover.errors import CloverError, DeviceError, PlanError
from clover.interfaces import Device, Fleet
from clover.types import Assignment, Placement, Step, Transition

log = logging.getLogger("clover.control")


class ApplyError(PlanError):
    """A transition failed; `restored` tells whether the deployment before it stands again."""

    def __init__(self, message: str, *, restored: bool) -> None:
        super().__init__(message)
        self.restored = restored


class Instances:
    """The instances of all devices, by who holds them."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = devices
        self._holders: dict[str, set[str]] = {}

    def held(self, family: str) -> set[str]:
        """Ids of the placements a family holds."""
        return {place for place, holders in self._holders.items() if family in holders}

    async def hold(self, family: str, placement: Placement) -> None:
        """Make the instance unless it stands; DeviceError where that fails (then nothing is held)."""
        holders = self._holders.get(placement.id)
        if not holders:
            await self._device(placement).create(placement)
            holders = self._holders.setdefault(placement.id, set())
        holders.add(family)

    async def release(self, family: str, placement: Placement) -> None:
        """Unmake the instance unless another family holds it; DeviceError where that fails (it is held no more)."""
        holders = self._holders.get(placement.id)
        if holders is None or family not in holders:
            return
        holders.discard(family)
        if not holders:
            del self._holders[placement.id]
            await self._device(placement).destroy(placement)

    def _device(self, placement: Placement) -> Device:
        device = self._devices.get(placement.device)
        if device is None:
            raise DeviceError(f"there is no device {placement.device}")
        return device


class Applier:
    """Carries out the transitions of one family.  `progress` describes the one under way, or is None."""

    def __init__(self, family: str, fleet: Fleet, instances: Instances) -> None:
        self.progress: dict[str, object] | None = None
        self._family = family
        self._fleet = fleet
        self._instances = instances
        self._places: dict[str, Placement] = {}
        self._workers: list[Assignment] = []

    @property
    def workers(self) -> tuple[Assignment, ...]:
        """What was spawned and not drained."""
        return tuple(self._workers)

    async def run(
        self,
        transition: Transition,
        *,
        before: Sequence[Assignment],
        shares_before: Mapping[str, float],
        shares: Mapping[str, float],
    ) -> None:
        """Do every step; the last route gives exactly `shares`, those before it a mix of both.  ApplyError where a step
        fails, after the deployment `before` was restored as far as possible."""
        routes = [index for index, step in enumerate(transition.steps) if step.kind == "route"]
        self.progress = {"steps": len(transition.steps), "done": 0, "step": ""}
        started = not before  # nothing serves yet that loading could disturb: all workers start at once
        try:
            for index, step in enumerate(transition.steps):
                self.progress.update(done=index, step=described(step))
                last = bool(routes) and index == routes[-1]
                try:
                    if started and step.kind == "spawn":
                        started = False
                        await self._spawn_all([s.assignment for s in transition.steps if s.kind == "spawn"])
                    elif step.kind != "spawn" or step.assignment not in self._workers:
                        await self._do(step, shares if last else interim(step.routed, shares, shares_before))
                except CloverError as error:
                    log.warning("%s: %s failed: %s", self._family, described(step), error)
                    restored, more = await self._restore(before, shares_before)
                    text = f"{described(step)} failed: {error}"
                    raise ApplyError(f"{text}; {more}", restored=restored) from error
        finally:
            self.progress = None

    async def clear(self) -> None:
        """Drain every worker and unmake every instance of the family."""
        for item in list(self._workers):
            await self._drain(item)
        for place in list(self._places.values()):
            await self._destroy(place)

    async def _do(self, step: Step, shares: Mapping[str, float]) -> None:
        if step.kind == "route":
            self._fleet.route(step.routed, dict(shares))
        elif step.kind in ("create", "destroy"):
            assert step.placement is not None
            await (self._create if step.kind == "create" else self._destroy)(step.placement)
        else:
            assert step.assignment is not None
            await (self._spawn if step.kind == "spawn" else self._drain)(step.assignment)

    async def _create(self, placement: Placement) -> None:
        await self._instances.hold(self._family, placement)
        self._places[placement.id] = placement

    async def _destroy(self, placement: Placement) -> None:
        self._places.pop(placement.id, None)
        await self._instances.release(self._family, placement)

    async def _spawn(self, item: Assignment) -> None:
        await self._fleet.spawn(item)
        self._workers.append(item)

    async def _spawn_all(self, items: Sequence[Assignment | None]) -> None:
        coming = [item for item in items if item is not None]
        results = await asyncio.gather(*(self._spawn(item) for item in coming), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _drain(self, item: Assignment) -> None:
        await self._fleet.drain(item)
        if item in self._workers:
            self._workers.remove(item)

    async def _restore(self, before: Sequence[Assignment], shares: Mapping[str, float]) -> tuple[bool, str]:
        """Back to `before`; whether that worked, and what to say of it."""
        wanted = {item.placement.id for item in before}

        async def undo() -> None:
            left = tuple(item for item in before if item in self._workers)
            if left:
                self._fleet.route(left, interim(left, shares, shares))
            for item in [item for item in self._workers if item not in before]:
                await self._drain(item)
            for place in [place for key, place in self._places.items() if key not in wanted]:
                await self._destroy(place)
            for item in before:
                if item.placement.id not in self._places:
                    await self._create(item.placement)
                if item not in self._workers:
                    await self._spawn(item)
            if before:
                self._fleet.route(tuple(before), dict(shares))

        try:
            await undo()
        except CloverError as error:
            log.error("%s: the deployment before could not be restored: %s", self._family, error)
            return False, f"the deployment before could not be restored: {error}"
        return True, "the deployment before stands again" if before else "nothing ran before"


def interim(routed: Sequence[Assignment], shares: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Shares while only `routed` take rows: each variant's new share, else its old one, made to sum to 1; all alike
    where none has any."""
    weights = {item.variant: shares.get(item.variant, 0.0) or before.get(item.variant, 0.0) for item in routed}
    total = sum(weights.values())
    if total <= 0.0:
        return dict.fromkeys(weights, 1.0 / len(weights)) if weights else {}
    return {variant: weight / total for variant, weight in weights.items()}


def described(step: Step) -> str:
    """A step in words."""
    if step.kind == "route":
        return "route to " + ", ".join(f"{item.variant} at {item.placement.id}" for item in step.routed)
    if step.assignment is not None:
        return f"{step.kind} {step.assignment.variant} at {step.assignment.placement.id}"
    return f"{step.kind} {step.placement.id if step.placement is not None else ''}"
