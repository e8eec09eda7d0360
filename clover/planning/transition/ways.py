"""Ways from one deployment to another: transitions between the same two, for whoever has to keep an SLO meanwhile.

A capacity floor counts rows a second and says nothing of how long they wait: workers that can just serve what arrives
let it queue.  So there are several ways, those with the fewest steps first:

    quick    exchanges as much at once as the capacity floor allows (`plan_transition`)
    gentle   exchanges as little at once as can be, so that capacity stays as high as some order can keep it
    helped   as gentle, and another variant helps out: before the exchanges, workers that would serve more rows with it
             are swapped for it on their instances, which costs no capacity if memory holds both; what the exchanges
             bring begins with it if that serves more rows there, too; when all stands, what was planned follows

On half of the devices a faster variant may well serve what takes a slower one all of them.  The swaps are jobs like
others, ordered by capacity: what gains comes first, what loses last.  Cores need no helper, as workers load beside each
other there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from msgspec import structs

from clover.planning.transition.layout import Capacity
from clover.planning.transition.stages import StepSeconds, placed
from clover.planning.transition.steps import transition_of
from clover.types import Assignment, DeviceShape, Placement, Step, Transition

Leg = Callable[[Sequence[Assignment], Sequence[Assignment], float, Collection[str]], Transition]
"""Plans the transition from the first deployment to the second above a floor (rows/s), if at the placements of these
ids the process is not the one of now any more."""


@dataclass(frozen=True, kw_only=True)
class Ways:
    """The ways from `running` to `target` on `devices`, each planned in one leg or in several by `leg`.  `capacity`:
    rows/s of a worker; `floor`: the least that shall be served meanwhile (rows/s), which `quick` alone goes down to;
    `resident`, `durations`: as `plan_transition` has them."""

    running: Sequence[Assignment]
    target: Sequence[Assignment]
    devices: Sequence[DeviceShape]
    leg: Leg
    capacity: Capacity
    floor: float
    durations: StepSeconds
    resident: Callable[[Assignment], bool]

    def quick(self) -> Transition:
        """Return the way of the fewest steps above the capacity floor."""
        return self.leg(self.running, self.target, self.floor, ())

    def gentle(self) -> Transition:
        """Return the way that exchanges as little at once as can be."""
        return self._through((self.running, self.target))

    def helped(self, variant: str, backend: str, count: int) -> Transition | None:
        """Return the way on which `variant` helps out at up to `count` placements of what runs, and as many of what
        comes: those where it gains most.  None if it gains nothing anywhere."""
        first = self._with_help(self.running, variant, backend, count)
        last = self._with_help(self.target, variant, backend, count)
        stops = [tuple(self.running), first, last, tuple(self.target)]
        legs = [stop for index, stop in enumerate(stops) if index == 0 or set(stop) != set(stops[index - 1])]
        return self._through(legs) if first != stops[0] or last != stops[-1] else None

    def places(self, variant: str, backend: str) -> int:
        """Return at how many placements of what runs, or of what comes if these are more, `variant` could help out."""
        return max(len(list(self._gains(items, variant, backend))) for items in (self.running, self.target))

    def _with_help(
        self, deployment: Sequence[Assignment], variant: str, backend: str, count: int
    ) -> tuple[Assignment, ...]:
        """Return `deployment` with the `count` placements where `variant` gains most serving it alone."""
        gains = sorted(self._gains(deployment, variant, backend), key=lambda item: (-item[0], item[1].placement.id))
        helpers = {helper.placement.id: helper for _, helper in gains[:count]}
        others = [item for item in deployment if item.placement.id not in helpers]
        return (*others, *helpers.values()) if helpers else tuple(deployment)

    def _gains(
        self, deployment: Sequence[Assignment], variant: str, backend: str
    ) -> Iterator[tuple[int, Assignment]]:
        """Yield what `variant` would gain at each placement where it does, and the worker for it."""
        overlap = {device.device for device in self.devices if device.overlap}
        now = placed(deployment, self.capacity)
        places: dict[str, Placement] = {item.placement.id: item.placement for item in deployment}
        families = {item.placement.id: item.family for item in deployment}
        for key, place in places.items():
            helper = Assignment(placement=place, family=families[key], variant=variant, backend=backend)
            gain = placed([helper], self.capacity)[key] - now[key]
            if gain > 0 and place.device not in overlap:
                yield gain, helper

    def _through(self, stops: Sequence[Sequence[Assignment]]) -> Transition:
        """Return the transition that passes through all of `stops`, from each to the next as gently as can be."""
        steps: list[Step] = []
        memory: dict[str, None] = {}
        replaced: set[str] = set()
        for before, after in itertools.pairwise(stops):
            part = self.leg(before, after, math.inf, frozenset(replaced))
            first = steps[-1].stage + 1 if steps else 0
            steps += [structs.replace(step, stage=step.stage + first) for step in part.steps]
            memory |= dict.fromkeys(filter(None, [part.memory]))
            replaced |= {
                step.assignment.placement.id
                for step in part.steps
                if step.kind == "spawn" and step.assignment is not None and step.assignment not in part.resident
            }
        found = transition_of(
            steps,
            self.running,
            self.target,
            self.devices,
            capacity=self.capacity,
            floor=self.floor,
            durations=self.durations,
            resident=self.resident,
        )
        return structs.replace(found, memory="; ".join(memory))
