"""Ways to a deployment: all lead there by legal steps, a gentle one keeps more capacity, a helper makes up for what is
missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.control.plan.ways import Ways
from clover.planning.transition.stages import StepSeconds, stages
from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, DeviceShape, Transition
from tests.support.examples import examples
from tests.support.geometry_fixture import a100, runs
from tests.support.profiles_fixture import cpu, worker
from tests.support.transition_machine import TransitionMachine, rows_per_s

Deployment = tuple[Assignment, ...]
TWO = (a100("gpu0"), a100("gpu1"))
WHOLE = (runs("large", "7g.40gb", 0, "gpu0"), runs("large", "7g.40gb", 0, "gpu1"))
CUT = (runs("large", "4g.20gb", 0, "gpu0"), runs("large", "3g.20gb", 4, "gpu0"), runs("large", "7g.40gb", 0, "gpu1"))


def ways(
    running: Deployment,
    target: Deployment,
    *,
    devices: tuple[DeviceShape, ...] = TWO,
    floor: float = 0.0,
    beside: Callable[[Assignment, Assignment], bool] = lambda one, other: True,
    resident: Callable[[Assignment], bool] = lambda item: False,
) -> Ways:
    def leg(
        before: Sequence[Assignment], after: Sequence[Assignment], least: float, replaced: Collection[str]
    ) -> Transition:
        return plan_transition(
            before,
            after,
            devices,
            capacity=rows_per_s,
            floor=least,
            beside=beside,
            resident=lambda item: item.placement.id not in replaced and resident(item),
        )

    return Ways(
        running=running,
        target=target,
        devices=devices,
        leg=leg,
        capacity=rows_per_s,
        floor=floor,
        durations=StepSeconds(),
        resident=resident,
    )


def helped(found: Ways, count: int = 8) -> Transition:
    transition = found.helped("small", "eager", count)
    assert transition is not None
    return transition


def carried_out(transition: Transition, running: Deployment, devices: tuple[DeviceShape, ...]) -> TransitionMachine:
    machine = TransitionMachine(running, devices)
    machine.run(transition)
    return machine


def kinds(transition: Transition) -> list[str]:
    return [f"{step.kind} {step.assignment.variant}" for step in transition.steps if step.assignment is not None]


def test_a_helper_holds_the_capacity_that_an_exchange_of_a_whole_gpu_takes() -> None:
    found = ways(WHOLE, CUT)
    assert found.gentle().lowest_capacity == pytest.approx(rows_per_s(WHOLE[0]), abs=1e-6), "half of it is missing"
    with_help = helped(found, 1)
    assert with_help.lowest_capacity >= 2.0 * rows_per_s(WHOLE[0]) - 1e-6
    assert with_help.holds
    assert Counter(kinds(with_help)) == Counter(
        {"spawn small": 2, "drain small": 2, "spawn large": 3, "drain large": 2}
    ), "it helps at one placement of what runs, and at one of what comes"
    machine = carried_out(with_help, WHOLE, TWO)
    assert machine.routed == Counter(CUT)


def test_a_helper_is_swapped_in_before_anything_is_exchanged_and_out_when_all_stands() -> None:
    steps = helped(ways(WHOLE, CUT)).steps
    gone = next(index for index, step in enumerate(steps) if step.kind == "destroy")
    back = max(index for index, step in enumerate(steps) if step.kind == "create")
    first = [step.assignment.variant for step in steps[:gone] if step.kind == "spawn" and step.assignment]
    last = [step.assignment.variant for step in steps[back:] if step.kind == "drain" and step.assignment]
    assert set(first) == {"small"}
    assert set(last) == {"small"}


def test_each_swap_of_a_helper_takes_its_time() -> None:
    """What is swapped back loads again, although the process of the helper is at its placement."""
    transition = helped(ways(WHOLE, CUT), 1)
    assert transition.resident == ()
    views = stages(transition, WHOLE, capacity=rows_per_s, durations=StepSeconds(spawn_s=4.0))
    loading = [view for view in views if any(step.kind == "spawn" for step in view.steps)]
    assert [view.seconds for view in loading] == [4.0] * len(loading)


def test_a_helper_that_is_resident_comes_and_goes_without_a_start() -> None:
    transition = helped(ways(WHOLE, WHOLE[:1], resident=lambda item: True), 1)
    assert "spawn small" in kinds(transition)
    assert not transition.starts


def test_without_room_beside_what_runs_a_helper_brings_nothing() -> None:
    found = ways(WHOLE, CUT, beside=lambda one, other: False)
    assert helped(found).lowest_capacity <= found.gentle().lowest_capacity


def test_nothing_helps_that_serves_no_more_than_what_runs_and_comes() -> None:
    small = (runs("small", "7g.40gb", 0, "gpu0"),)
    found = ways(small, (runs("small", "4g.20gb", 0, "gpu0"),), devices=TWO[:1])
    assert found.places("large", "eager") == 0
    assert found.helped("large", "eager", 4) is None


def test_cores_need_no_helper() -> None:
    cores = (worker("large", 0, 2),)
    found = ways(cores, (worker("large", 0, 1),), devices=(cpu(2),))
    assert found.places("small", "eager") == 0


def test_the_floor_of_a_way_is_the_one_that_was_asked_for() -> None:
    found = ways(WHOLE, CUT, floor=0.3)
    assert found.quick().capacity_floor == found.gentle().capacity_floor == helped(found).capacity_floor == 0.3


@pytest.mark.slow
@settings(max_examples=examples(60), deadline=None)
@given(data=st.data(), share=st.sampled_from((0.0, 0.5, 1.0)), count=st.integers(1, 14))
def test_every_way_is_legal_and_leads_there(data: st.DataObject, share: float, count: int) -> None:
    def deployment() -> Deployment:
        return tuple(
            Assignment(
                placement=place, family="toy", variant=data.draw(st.sampled_from(("medium", "large"))), backend="eager"
            )
            for device in TWO
            for place in data.draw(st.sampled_from(device.layouts))
            if data.draw(st.integers(0, 4))
        )

    running, target = deployment(), deployment()
    found = ways(running, target, floor=share * sum(map(rows_per_s, running)))
    quick, gentle, with_help = found.quick(), found.gentle(), found.helped("small", "eager", count)
    assert gentle.lowest_capacity >= quick.lowest_capacity - 1e-6 or math.isclose(share, 1.0)
    for transition in (quick, gentle, *([with_help] if with_help is not None else [])):
        machine = carried_out(transition, running, TWO)
        assert machine.workers == machine.routed == Counter(target)
        assert set(machine.instances) == {item.placement.id for item in target}
