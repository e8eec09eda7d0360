"""The model of a change (`change_protocol`) with workers that hold several variants.

Workers at one placement then share a process, which holds the variants of `held`.  A worker whose variant the process
there holds comes at once; a worker that leaves others behind takes no process with it, and the last one does.  A
process may turn out not to hold a variant after all (it left it out for want of memory): that takes a fault, and the
worker gets a process of its own.

Beside what must be true of every change: if the target's variants are all held where they are to run, nothing is
loaded, made or removed, as long as there is no fault and no crash: routing alone changes.

`shared` is a mutation: a worker that leaves ends the process that others are in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, DeviceShape, Transition
from tests.reference.change_box import DRAIN, ENDED, SPAWN, Action, Box, Deployment, Mutation, State
from tests.reference.change_protocol import Model


class ResidentModel(Model):
    """Model the change of workers that hold the variants `held`."""

    def __init__(
        self,
        box: Box,
        before: Deployment,
        target: Deployment,
        *,
        held: frozenset[str],
        faults: int = 1,
        crashes: int = 1,
        mutation: Mutation = "",
        shared: bool = False,
    ) -> None:
        self.held = held
        self.shared = shared
        super().__init__(box, before, target, faults=faults, crashes=crashes, floor=math.inf, mutation=mutation)
        places = {item.placement for item in before}
        self.routing_alone = all(item.placement in places and item.variant in held for item in target) and places == {
            item.placement for item in target
        }

    def plan(
        self, running: Deployment, target: Deployment, shapes: tuple[DeviceShape, ...], floor: float = 0.0
    ) -> Transition:
        """Return the planner's steps, which knows what the processes hold."""
        up = {item.placement for item in running if item.variant in self.held}

        def resident(item: Assignment) -> bool:
            return item.variant in self.held and item.placement in up

        return plan_transition(running, target, shapes, floor=floor, resident=resident)

    def _companions(self, workers: int, subject: int) -> int:
        """Return those of a mask of workers that share the process of a worker."""
        place = self.workers[subject].placement
        return sum(
            1 << index
            for index, item in enumerate(self.workers)
            if workers >> index & 1 and index != subject and item.placement == place and item.variant in self.held
        )

    def _proceed(self, state: State, action: Action) -> Iterator[tuple[str, State, int]]:
        kind, subject, progress = action
        held = kind in (SPAWN, DRAIN) and self.workers[subject].variant in self.held
        if held and self._companions(state.ready, subject):
            name = f"{self.workers[subject].variant}@{self.workers[subject].placement.id}"
            bit = 1 << subject
            if kind == SPAWN and progress == 0:
                yield f"{name} is there at once", state._replace(ready=state.ready | bit), ENDED
                if state.faults:
                    left_out = state._replace(loading=state.loading | bit, faults=state.faults - 1)
                    yield f"{name} was left out: starts", left_out, 1
                return
            if kind == DRAIN and progress == 1 and self.shared:
                gone = bit | self._companions(state.ready, subject)
                yield f"{name}: gone with its process", state._replace(ready=state.ready & ~gone), ENDED
                return
        yield from super()._proceed(state, action)

    def violation(self, state: State) -> str:
        """Return what is wrong with `state`; empty if nothing is."""
        untouched = state.faults == self.faults and state.crashes == self.crashes and state.control[0] != "down"
        if self.routing_alone and untouched:
            if state.loading:
                return "7: a process starts for what one holds already"
            if state.made != self.spots(self.before) or state.complete != state.made:
                return "7: an instance is made or removed for a change of routing"
        return super().violation(state)
