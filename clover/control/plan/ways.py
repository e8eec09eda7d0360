"""Finds a way from one deployment to the next that keeps the SLO.

A plan says how well its workers serve once they stand, not how well rows are served until then.  If a third of the
workers is away for ten seconds, rows may wait longer than the SLO allows, and a minute's p95 misses it with them.

**The search.**  There are several ways between two deployments.  They are tried in order of their number of steps.
Each is followed phase by phase: which workers receive rows, for how long, and whether some routing of them meets the
targets at the rate planned for.  For these seconds a routing may do without the margin above the accuracy floor.  The
first way whose phases all meet the targets is taken.  If there is none, the nearest one is: first by the capacity
floor, then by the rows for which no worker is left, then by the seconds beyond the targets.

**The ways**, fewest steps first:

    quick    exchanges as much at once as the capacity floor allows (`plan_transition`)
    gentle   exchanges as little at once as possible, so that capacity stays as high as any order keeps it
    helped   as gentle, and another variant helps out.  Before the exchanges, workers that would serve more rows with
             the helper are swapped for it on their instances, which costs no capacity if memory holds both.  Instances
             that the exchanges bring begin with the helper if it serves more rows there.  When all stands, the planned
             variants follow

The capacity floor alone is not enough: it counts rows a second and says nothing of waiting.  Workers that can just
serve what arrives let it queue.

**The helper.**  On half of the devices a faster variant may serve what a slower one needs all of them for.  It helps
at as few placements as will do (1, 2, 4, ...).  The swaps are jobs like others, ordered by capacity: what gains comes
first, what loses last.  Cores need no helper, because there workers load beside each other.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import structs

from clover.errors import PlanError
from clover.planning.model.problem import accuracies
from clover.planning.transition.layout import Capacity
from clover.planning.transition.stages import StageView, StepSeconds, capacity_by_placement, stages
from clover.planning.transition.steps import transition_of
from clover.types import (
    Assignment,
    Configuration,
    DeviceShape,
    FamilyProfile,
    Placement,
    Plan,
    Routing,
    State,
    Step,
    Transition,
    configuration_of,
)

_HELPERS = 3
"""Variants, the most accurate first, that are asked whether they can help out."""
Leg = Callable[[Sequence[Assignment], Sequence[Assignment], float, Collection[str]], Transition]
"""Plans the transition from the first deployment to the second above a floor (rows/s), if at the placements of these
ids the process is not the present one any more."""


class Solver(Protocol):
    """Makes plans (`clover.control.solver.client.SolverClient`)."""

    async def propose(self, state: State, policy: str, configuration: Configuration | None = None) -> Plan: ...

    async def routing(self, state: State, configuration: Configuration) -> Routing | None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Way:
    """A transition on `shapes`.  `routing`: how rows go best to the workers that receive them meanwhile (nothing for
    workers that cannot meet the targets).  It also says for how many seconds the targets are missed on it, how many
    rows find no worker, and how long it takes (seconds).  `helper`: the variant that helps out, empty without one."""

    transition: Transition
    shapes: tuple[DeviceShape, ...]
    routing: Mapping[Configuration, Routing]
    late_s: float = 0.0
    unserved: float = 0.0
    seconds: float = 0.0
    helper: str = ""

    @property
    def good(self) -> bool:
        """Whether the targets are met and the capacity floor is kept all the way."""
        return self.transition.holds and self.late_s <= 0.0 and self.unserved <= 0.0

    @property
    def rank(self) -> tuple[bool, float, float, float]:
        """How bad it is: the best way has the lowest rank."""
        return (not self.transition.holds, self.unserved, self.late_s, self.seconds)


class WayFinder:
    """Finds the way to deployments in `state` among the `ways` to each.  `bare`: the state without the margin above the
    accuracy floor; `profile`: the family's, as corrected.  A finder is for one request: it remembers what it asked the
    solver."""

    def __init__(
        self,
        solver: Solver,
        ways: Callable[[tuple[Assignment, ...]], Ways],
        profile: FamilyProfile,
        state: State,
        bare: State,
    ) -> None:
        self._solver = solver
        self._profile = profile
        self._rate = state.arrival_rate
        self._states = (state, bare) if bare != state else (state,)
        lowered = msgspec.structs.replace(bare.objective, accuracy_floor=0.0, accuracy_margin=0.0)
        self._lowered = msgspec.structs.replace(bare, objective=lowered)
        self._ways = ways
        self._known: dict[tuple[Configuration, bool], Routing | None] = {}
        self._lenient = False

    async def best(self, target: tuple[Assignment, ...]) -> Way:
        """Return the best way to `target`.  PlanError if it cannot exist on the devices."""
        ways = self._ways(target)
        self._lenient = False
        found = await self._best_of(ways)
        if not found.good:  # the floor evens out over hours, the SLO does not: a way of seconds may be below the floor
            self._lenient = True
            found = min(found, await self._best_of(ways), key=lambda way: way.rank)
        return found

    async def _best_of(self, ways: Ways) -> Way:
        quick = await self._judge(ways, ways.quick())
        if quick.good:
            return quick
        tried = [quick]
        gentle = ways.gentle()
        if gentle.steps != quick.transition.steps:
            tried.append(await self._judge(ways, gentle))
        if not tried[-1].good:
            for variant, backend in self._helpers(ways):
                helped = await self._find_help(ways, variant, backend)
                if helped is not None:
                    tried.append(helped)
                    if helped.good:
                        break
        return min(tried, key=lambda way: way.rank)

    async def _find_help(self, ways: Ways, variant: str, backend: str) -> Way | None:
        """Return the way on which a variant helps out at as few placements as will do, or at all of them if none
        will."""
        places = ways.places(variant, backend)
        whole = await self._with_help(ways, variant, backend, places)
        count = 1
        while whole is not None and whole.good and count < places:
            fewer = await self._with_help(ways, variant, backend, count)
            if fewer is not None and fewer.good:
                return fewer
            count *= 2
        return whole

    async def _with_help(self, ways: Ways, variant: str, backend: str, count: int) -> Way | None:
        try:
            transition = ways.helped(variant, backend, count)
        except PlanError:  # the devices do not allow the instances together
            return None
        return await self._judge(ways, transition, variant) if transition is not None else None

    def _helpers(self, ways: Ways) -> list[tuple[str, str]]:
        """Return the variants that could help out, with their backends."""
        profile = self._profile
        accuracy = accuracies(profile)
        ranked = sorted(profile.backend, key=lambda variant: -accuracy.get(variant, 0.0))
        return [
            (variant, profile.backend[variant]) for variant in ranked if ways.places(variant, profile.backend[variant])
        ][:_HELPERS]

    async def _judge(self, ways: Ways, transition: Transition, helper: str = "") -> Way:
        """Return `transition` as a way: each of its phases judged."""
        late_s = unserved = seconds = 0.0
        routing: dict[Configuration, Routing] = {}
        end = configuration_of(tuple(ways.target))
        for view in self._phases(ways, transition):
            seconds += view.seconds
            served = configuration_of(view.routed)
            if served == end:  # what the plan itself says of it
                continue
            known = await self._routing(served)
            if known is not None:
                routing[served] = known
            else:
                late_s += view.seconds
                unserved += max(0.0, self._rate - view.capacity) * view.seconds
        return Way(
            transition=transition,
            shapes=tuple(ways.devices),
            routing=routing,
            late_s=late_s,
            unserved=unserved,
            seconds=seconds,
            helper=helper,
        )

    def _phases(self, ways: Ways, transition: Transition) -> Iterator[StageView]:
        """Yield the stages of `transition` that take time or route rows elsewhere."""
        for view in stages(transition, ways.running, capacity=ways.capacity, durations=ways.durations):
            if view.seconds > 0.0 or any(step.kind == "route" for step in view.steps):
                yield view

    async def _routing(self, served: Configuration) -> Routing | None:
        """Return how rows go best to these workers; None if they miss the targets with every routing."""
        key = (served, self._lenient)
        if key not in self._known:
            found = self._known.get((served, False))
            for state in (self._lowered,) if self._lenient else self._states:
                if found is not None or not served:
                    break
                with contextlib.suppress(PlanError):
                    found = await self._solver.routing(state, served)
            self._known[key] = found
        return self._known[key]


# --- the ways that there are ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ways:
    """The ways from `running` to `target` on `devices`, each planned in one leg or in several by `leg`.  `capacity`:
    rows/s of a worker; `floor`: the least that shall be served meanwhile (rows/s), to which only `quick` goes down;
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
        """Return the way that exchanges as little at once as possible."""
        return self._through((self.running, self.target))

    def helped(self, variant: str, backend: str, count: int) -> Transition | None:
        """Return the way on which `variant` helps out where it gains most, at up to `count` placements of what runs and
        as many of what comes.  None if it gains nothing anywhere."""
        first = self._with_help(self.running, variant, backend, count)
        last = self._with_help(self.target, variant, backend, count)
        stops = [tuple(self.running), first, last, tuple(self.target)]
        legs = [stop for index, stop in enumerate(stops) if index == 0 or set(stop) != set(stops[index - 1])]
        return self._through(legs) if first != stops[0] or last != stops[-1] else None

    def places(self, variant: str, backend: str) -> int:
        """Return at how many placements `variant` could help out: of what runs, or of what comes if those are more."""
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
        now = capacity_by_placement(deployment, self.capacity)
        places: dict[str, Placement] = {item.placement.id: item.placement for item in deployment}
        families = {item.placement.id: item.family for item in deployment}
        for key, place in places.items():
            helper = Assignment(placement=place, family=families[key], variant=variant, backend=backend)
            gain = capacity_by_placement([helper], self.capacity)[key] - now[key]
            if gain > 0 and place.device not in overlap:
                yield gain, helper

    def _through(self, stops: Sequence[Sequence[Assignment]]) -> Transition:
        """Return the transition that passes through all of `stops`, from each to the next as gently as possible."""
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
        transition = transition_of(
            steps,
            self.running,
            self.target,
            self.devices,
            capacity=self.capacity,
            floor=self.floor,
            durations=self.durations,
            resident=self.resident,
        )
        return structs.replace(transition, memory="; ".join(memory))
