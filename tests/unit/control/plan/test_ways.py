"""The way to a plan: each phase is judged, the fewest steps that keep the targets are taken, else the nearest way."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import pytest

from clover.control.plan.ways import Way, WayFinder, Ways
from clover.control.state.request import PlanRequest
from clover.errors import PlanError
from clover.planning.transition.stages import StepSeconds, served
from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, Configuration, Routing, State, Transition
from tests.support.control_fixture import FakeGpu, Rig
from tests.support.geometry_fixture import a100, runs
from tests.support.mig_fixture import mig_profile

Deployment = tuple[Assignment, ...]
TWO = (a100("gpu0"), a100("gpu1"))
PROFILE = mig_profile()
WHOLE = (runs("large", "7g.40gb", 0, "gpu0"), runs("large", "7g.40gb", 0, "gpu1"))
CUT = tuple(
    worker
    for device in ("gpu0", "gpu1")
    for worker in (runs("large", "4g.20gb", 0, device), runs("large", "3g.20gb", 4, device))
)


def rig() -> Rig:
    return Rig(devices={shape.device: FakeGpu(shape) for shape in TWO}, measured=PROFILE)


class Strict:
    """A solver to whom workers keep the targets if they serve `least` rows/s together; counts what it is asked."""

    def __init__(self, of: Rig, least: float, *, bare: bool = False) -> None:
        self.least = least
        self.asked: list[Configuration] = []
        self._capacity = of.family.capacity(1.0)
        self._bare = bare

    async def routing(self, state: State, configuration: Configuration) -> Routing | None:
        self.asked.append(configuration)
        if any(group.profile == "3g.20gb" and group.count > 9 for group in configuration):
            raise PlanError("never measured")
        if self._bare and state.objective.accuracy_margin > 0.0:
            return None
        rows = sum(self._rows(group.variant, group.profile) * group.count for group in configuration)
        shares = {group.variant: 1.0 / len(configuration) for group in configuration}
        return Routing(shares=shares) if rows >= self.least else None

    def _rows(self, variant: str, profile: str) -> float:
        return served([runs(variant, profile, 0)], self._capacity)


async def found(of: Rig, solver: Strict, running: Deployment, target: Deployment, *, floor: float = 0.0) -> Way:
    capacity = of.family.capacity(1.0)

    def leg(
        before: Sequence[Assignment], after: Sequence[Assignment], least: float, replaced: Collection[str]
    ) -> Transition:
        return plan_transition(before, after, TWO, capacity=capacity, floor=least)

    def ways(goal: Deployment) -> Ways:
        return Ways(
            running=running,
            target=goal,
            devices=TWO,
            leg=leg,
            capacity=capacity,
            floor=floor,
            durations=StepSeconds(),
            resident=lambda item: False,
        )

    context, family = of.controller.context, of.family
    request = PlanRequest(trigger="test", rate=100.0)
    state = family.state(await context.conditions(family), context.config, request)
    bare, _ = family.without_margins(state, context.config)
    return await WayFinder(solver, ways, PROFILE, state, bare).best(target)


def rows(of: Rig, *workers: Assignment) -> float:
    return served(workers, of.family.capacity(1.0))


def drained_at_once(way: Way) -> int:
    stages = [step.stage for step in way.transition.steps if step.kind == "drain"]
    return max(map(stages.count, stages))


def test_the_way_of_the_fewest_steps_is_taken_if_it_keeps_the_targets() -> None:
    async def story() -> None:
        of = rig()
        solver = Strict(of, 0.0)
        way = await found(of, solver, WHOLE, CUT[:2] + WHOLE[1:])
        assert way.good
        assert way.helper == ""
        assert way.routing.keys() == set(solver.asked)

    asyncio.run(story())


def test_one_exchange_at_a_time_is_taken_if_all_at_once_would_miss_them() -> None:
    async def story() -> None:
        of = rig()
        here = (*CUT[:2], *CUT[2:])
        there = (
            runs("large", "4g.20gb", 0, "gpu0"),
            *(runs("large", "1g.5gb", start, "gpu0") for start in (4, 5, 6)),
            runs("large", "4g.20gb", 0, "gpu1"),
            *(runs("large", "1g.5gb", start, "gpu1") for start in (4, 5, 6)),
        )
        least = rows(of, *here) - 1.5 * rows(of, CUT[1])
        quick = await found(of, Strict(of, 0.0), here, there)
        gentle = await found(of, Strict(of, least), here, there)
        assert drained_at_once(quick) == 2
        assert drained_at_once(gentle) == 1
        assert gentle.good
        assert gentle.helper == ""

    asyncio.run(story())


def test_another_variant_helps_out_at_as_few_placements_as_will_do() -> None:
    async def story() -> None:
        of = rig()
        way = await found(of, Strict(of, 1.01 * rows(of, WHOLE[0])), WHOLE, (*CUT[:2], WHOLE[1]))
        assert way.good
        assert way.helper == "medium", "the most accurate of those that serve more"
        helpers = [step for step in way.transition.steps if step.kind == "spawn" and step.assignment]
        assert sum(step.assignment is not None and step.assignment.variant == "medium" for step in helpers) == 2

    asyncio.run(story())


@pytest.mark.parametrize("least", [0.0, 1.0])
def test_if_no_way_keeps_them_the_nearest_one_is_found_and_says_how_long_it_misses_them(least: float) -> None:
    async def story() -> None:
        of = rig()
        way = await found(of, Strict(of, 1e9), WHOLE, CUT, floor=least * rows(of, WHOLE[0]))
        assert not way.good
        assert 0.0 < way.late_s <= way.seconds
        assert way.routing == {}
        assert way.transition.holds

    asyncio.run(story())


def test_the_margin_above_the_floor_is_no_reason_to_stay() -> None:
    async def story() -> None:
        of = Rig(
            devices={shape.device: FakeGpu(shape) for shape in TWO},
            measured=PROFILE,
            family={"accuracy_floor": 90.5, "accuracy_margin": None},
        )
        assert of.family.margin(of.family.targets) > 0.0
        assert (await found(of, Strict(of, 0.0, bare=True), WHOLE, CUT)).good

    asyncio.run(story())
