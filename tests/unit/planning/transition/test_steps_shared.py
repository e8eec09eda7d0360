"""Transitions of placements that are shared in time: several assignments of one process."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning.transition.stages import (
    CPU_SPAWN_S,
    CUDA_SPAWN_S,
    TENSORRT_SPAWN_S,
    StepSeconds,
    capacity_by_placement,
    served,
    stages,
    typical_spawn_s,
)
from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, DeviceShape, Placement, Transition
from tests.support.examples import examples
from tests.support.profiles_fixture import cpu, worker

RATES = {"tiny": 100.0, "small": 50.0, "large": 10.0}
GPU = Placement(device="gpu0", profile="gpu", start=0, size=1)
BOARD = DeviceShape(device="gpu0", kind="mig", layouts=((GPU,),), slices=1, overlap=False)


def on_gpu(*variants: str) -> tuple[Assignment, ...]:
    return tuple(Assignment(placement=GPU, family="toy", variant=name, backend="eager") for name in variants)


def on_cores(start: int, *variants: str) -> tuple[Assignment, ...]:
    return tuple(worker(name, start, 1) for name in variants)


def rate(item: Assignment) -> float:
    return RATES[item.variant]


def every(item: Assignment) -> bool:
    return True


def none(one: Assignment, other: Assignment) -> bool:
    return False


def kinds(transition: Transition) -> list[str]:
    found = []
    for _, group in groupby(transition.steps, key=lambda step: (step.stage, step.kind)):
        steps = list(group)
        names = ",".join(step.assignment.variant for step in steps if step.assignment)
        found.append(f"{steps[0].kind} {names}".strip())
    return found


def test_a_shared_placement_serves_what_the_fastest_of_it_does() -> None:
    items = (*on_cores(0, "tiny", "large"), *on_cores(1, "small"))
    assert capacity_by_placement(items, rate) == {"cpu0:1c@0": 100_000_000, "cpu0:1c@1": 50_000_000}
    assert served(items, rate) == 150.0


def test_a_resident_variant_comes_at_once_and_loses_nothing() -> None:
    for target in (("tiny", "large"), ("large",)):
        transition = plan_transition(on_gpu("tiny"), on_gpu(*target), (BOARD,), beside=none, resident=every)
        assert kinds(transition)[:2] == ["spawn large", "route"]
        assert (transition.lost_capacity, transition.loses_s) == (0.0, 0.0)
        assert transition.resident == on_gpu("large")
        assert transition.holds
        assert [view.seconds for view in stages(transition, on_gpu("tiny"))] == [0.0] * (len(transition.steps) + 1)


def test_what_serves_less_by_plan_is_no_loss_on_the_way() -> None:
    """From the fastest alone to a mix with a slow one: instances all stay, and so does the capacity."""
    running = (*on_cores(0, "tiny"), *on_cores(1, "tiny"))
    target = (*on_cores(0, "tiny", "large"), *on_cores(1, "tiny", "large"))
    transition = plan_transition(running, target, (cpu(2),), capacity=rate, floor=200.0, resident=every)
    assert transition.holds
    assert transition.lowest_capacity == 200.0
    assert transition.kept == running


def test_what_does_not_fit_beside_takes_the_whole_process_with_it() -> None:
    """The variants that stay at the placement are of the process that has to go: they go and come back."""
    running, target = on_gpu("small", "tiny"), on_gpu("large", "tiny")
    seconds = StepSeconds(spawn_s=4.0, drain_s=1.0)
    transition = plan_transition(running, target, (BOARD,), capacity=rate, floor=1.0, beside=none, durations=seconds)
    assert kinds(transition) == ["drain small,tiny", "spawn large", "spawn tiny", "route"]
    assert transition.kept == ()
    assert transition.resident == on_gpu("tiny")
    assert transition.lost_capacity == 1.0
    assert transition.lowest_capacity == 0.0
    assert transition.loses_s == 5.0
    assert not transition.holds


def test_what_loads_beside_leaves_the_rest_of_the_process_alone() -> None:
    transition = plan_transition(on_gpu("small", "tiny"), on_gpu("large", "tiny"), (BOARD,), capacity=rate)
    assert kinds(transition) == ["spawn large", "route", "drain small"]
    assert transition.kept == on_gpu("tiny")
    assert [view.seconds for view in stages(transition, on_gpu("small", "tiny"))] == [0.0, 2.0, 0.0, 0.0]


def test_the_variants_of_a_new_process_come_one_after_another() -> None:
    """The first brings the process, which holds the others too: not two processes at once."""
    transition = plan_transition((), on_gpu("large", "tiny"), (BOARD,))
    assert kinds(transition) == ["create", "spawn large", "spawn tiny", "route"]
    assert [view.seconds for view in stages(transition, ())] == [0.0, 0.0, 2.0, 0.0, 0.0]


def test_core_sets_are_exchanged_one_after_another_where_memory_does_not_hold_both() -> None:
    running = (*on_cores(0, "small"), *on_cores(1, "small"))
    target = (*on_cores(0, "large"), *on_cores(1, "large"))
    transition = plan_transition(running, target, (cpu(2),), capacity=rate, floor=10.0, beside=none)
    assert transition.holds
    assert [step.kind for step in transition.steps] == [
        *("route", "drain", "spawn"),
        *("route", "drain", "spawn"),
        "route",
    ]
    # A set of cores that nothing is on needs no exchange, and one over others waits for all of them.
    both = plan_transition(running, (worker("large", 0, 2),), (cpu(2),), capacity=rate, beside=none)
    assert [step.kind for step in both.steps] == ["drain", "drain", "destroy", "destroy", "create", "spawn", "route"]
    free = plan_transition(on_cores(0, "small"), (*on_cores(0, "small"), *on_cores(1, "large")), (cpu(2),), beside=none)
    assert [step.kind for step in free.steps] == ["create", "spawn", "route"]


def test_seconds_are_those_that_were_measured() -> None:
    running, target = on_gpu("small"), on_gpu("large")
    measured = {("large", "eager", "gpu"): 3.5}
    seconds = StepSeconds(spawns=measured, typical={("gpu0", "eager"): 4.0})
    there = plan_transition(running, target, (BOARD,), capacity=rate, floor=1.0, beside=none, durations=seconds)
    assert (there.loses_s, there.loses_how) == (4.5, "estimated")  # the drain was not measured
    drained = StepSeconds(spawns=measured, typical={("gpu0", "eager"): 4.0}, drain_s=0.2, drained=True)
    there = plan_transition(running, target, (BOARD,), capacity=rate, floor=1.0, beside=none, durations=drained)
    assert (there.loses_s, there.loses_how) == (3.7, "measured")
    back = plan_transition(target, running, (BOARD,), capacity=rate, floor=1.0, beside=none, durations=seconds)
    assert (back.loses_s, back.loses_how) == (5.0, "estimated")


def test_starts_that_were_not_seen_are_taken_for_what_the_device_lets_expect() -> None:
    assert typical_spawn_s(cpu(2), "eager") == CPU_SPAWN_S
    assert typical_spawn_s(BOARD, "eager") == CUDA_SPAWN_S
    assert typical_spawn_s(BOARD, "tensorrt") == TENSORRT_SPAWN_S
    emulated = DeviceShape(device="gpu0", kind="mig", layouts=((GPU,),), slices=1, overlap=False, emulated=True)
    assert typical_spawn_s(emulated, "eager") == CPU_SPAWN_S


PLACES = (cpu(4), BOARD)


@st.composite
def deployments(draw: st.DrawFn) -> tuple[Assignment, ...]:
    found = []
    for device in PLACES:
        for place in draw(st.sampled_from(device.layouts)):
            for name in draw(st.sets(st.sampled_from(sorted(RATES)))):
                found.append(Assignment(placement=place, family="toy", variant=name, backend="eager"))
    return tuple(found)


@settings(max_examples=examples(200), deadline=None)
@given(
    running=deployments(),
    target=deployments(),
    held=st.sampled_from([frozenset(), frozenset({"tiny", "small"}), frozenset(RATES)]),
    fits=st.booleans(),
)
def test_executing_the_steps_gives_the_target(
    running: tuple[Assignment, ...], target: tuple[Assignment, ...], held: frozenset[str], fits: bool
) -> None:
    """Whatever is resident and whatever fits; and where nothing fits, no process starts beside another's variants."""
    there = {item.placement.id for item in running}
    transition = plan_transition(
        running,
        target,
        PLACES,
        capacity=rate,
        floor=1.0,
        beside=lambda one, other: fits,
        resident=lambda item: item.placement.id in there and item.variant in held,
    )
    workers, routed = Counter(running), Counter(running)
    lowest = served(routed, rate)
    for index, step in enumerate(transition.steps):
        item = step.assignment
        if step.kind == "route":
            routed = Counter(step.routed)
            assert routed <= workers
        elif item is not None and step.kind == "spawn":
            if not fits and item not in transition.resident:
                assert all(other.placement.id != item.placement.id for other in workers)
            workers[item] += 1
            assert workers[item] == 1
        elif item is not None and step.kind == "drain":
            assert item not in transition.kept
            workers[item] -= 1
            workers += Counter()
            routed &= workers
        if index + 1 == len(transition.steps) or transition.steps[index + 1].stage != step.stage:
            lowest = min(lowest, served(routed, rate))
    assert workers == routed == Counter(target)
    assert lowest == pytest.approx(transition.lowest_capacity)
    assert transition.capacity_floor == pytest.approx(min(1.0, served(running, rate), served(target, rate)))
