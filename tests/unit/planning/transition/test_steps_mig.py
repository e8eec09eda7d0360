"""Transitions of GPUs: legal at every step, nothing kept is touched, the floor is held or the loss is told, exactly."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clover.errors import PlanError
from clover.planning.transition.layout import lay_out
from clover.planning.transition.stages import StepSeconds, order, stages
from clover.planning.transition.steps import Job, jobs_of, plan_transition
from clover.types import Assignment, DeviceShape, Placement, Transition, configuration_of
from tests.support.examples import examples
from tests.support.geometry_fixture import a30, a100, a100_layouts, filled, runs
from tests.support.profiles_fixture import cpu, worker
from tests.support.transition_machine import TransitionMachine, rows_per_s

VARIANTS = ("small", "medium", "large")
BACKEND = dict.fromkeys(VARIANTS, "eager")
Deployment = tuple[Assignment, ...]


def destroy_all(running: Deployment, target: Deployment) -> int:
    """Steps (routing apart) of draining and destroying everything, then building everything."""
    places = [len({item.placement.id for item in deployment}) for deployment in (running, target)]
    return len(running) + len(target) + sum(places)


def checked(
    running: Deployment,
    target: Deployment,
    devices: tuple[DeviceShape, ...],
    *,
    floor: float = 0.0,
    by_rows: bool = True,
) -> Transition:
    """Plan and carry out; all that must be true of any transition."""
    capacity = rows_per_s if by_rows else None
    transition = plan_transition(running, target, devices, capacity=capacity, floor=floor)
    machine = TransitionMachine(running, devices)
    machine.run(transition)
    assert machine.workers == Counter(target)
    assert machine.routed == Counter(target)
    assert set(machine.instances) == {item.placement.id for item in target}
    assert Counter(transition.kept) == Counter(running) & Counter(target)
    untouched = {item.placement.id for item in transition.kept}
    assert not untouched & {step.placement.id for step in transition.steps if step.placement is not None}
    assert sum(step.kind != "route" for step in transition.steps) <= destroy_all(running, target)
    exchanges = sum(job.exchange for job in jobs_of(running, target, devices, lambda one, other: True))
    assert sum(step.kind == "route" for step in transition.steps) <= exchanges + 2
    views = stages(transition, running, capacity=capacity)
    assert [step for view in views for step in view.steps] == list(transition.steps)
    assert transition.lowest_capacity == min(view.capacity for view in views)
    below = [view.seconds for view in views if view.capacity < transition.capacity_floor]
    assert transition.loses_s == sum(below)
    assert transition.holds == (not below)
    if views[0].capacity:
        assert transition.lowest_capacity > 0.0 or not transition.holds or best_low(running, target, devices) <= 0.0
    assert views[-1].workers == views[-1].routed == tuple(sorted(target, key=order))
    return transition


def best_low(running: Deployment, target: Deployment, devices: tuple[DeviceShape, ...]) -> float:
    """The highest lowest capacity over every order of the jobs, one after another."""
    jobs = jobs_of(running, target, devices, lambda one, other: True)
    if len(jobs) > 7:
        assume(False)
    most = -math.inf
    for sequence in itertools.permutations(jobs):
        most = max(most, low_of(sequence, running))
    return round(most, 6)


def low_of(sequence: Sequence[Job], running: Deployment) -> float:
    now = low = sum(map(rows_per_s, running))
    for job in sequence:
        gone, come = sum(map(rows_per_s, job.leaving)), sum(map(rows_per_s, job.coming))
        low = min(low, now - gone if job.exchange else now + min(0.0, come - gone))
        now += come - gone
    return low


def deployment(draw: Callable[..., Any], devices: tuple[DeviceShape, ...], *, holes: bool = False) -> Deployment:
    found = []
    for device in devices:
        for place in draw(st.sampled_from(device.layouts)):
            if holes and draw(st.integers(0, 4)) == 0:
                continue
            variant = draw(st.sampled_from(VARIANTS))
            found.append(Assignment(placement=place, family="toy", variant=variant, backend="eager"))
    return tuple(found)


# --- every pair, and random boxes ---------------------------------------------------------------


@pytest.mark.slow
def test_every_pair_of_layouts_of_one_a100() -> None:
    device = (a100(),)
    nothing_kept = 0
    for before, after in itertools.product(a100_layouts(), repeat=2):
        running, target = filled(before), filled(after)
        for floor in (0.0, math.inf):
            transition = checked(running, target, device, floor=floor, by_rows=False)
            assert transition.capacity_floor <= 7
            if before == after:
                assert transition.steps == ()
            elif floor:
                same = sum(place.slices for place in set(before) & set(after))
                assert transition.lowest_capacity >= same
                if not same and len({len(before), len(after)}) == 2 and 1 in (len(before), len(after)):
                    assert transition.lowest_capacity == 0.0  # one fully occupied GPU: the whole is given up
                    assert not transition.holds
        nothing_kept += before != after and not transition.kept
    assert nothing_kept == 124


def test_the_order_of_exchanges_never_leaves_the_geometry_of_an_a100() -> None:
    """No device is one big exchange for the sake of its rules: memory alone decides."""
    for before, after in itertools.product(a100_layouts(), repeat=2):
        jobs = jobs_of(filled(before), filled(after), (a100(),), lambda one, other: True)
        for job in jobs:
            if job.exchange:
                spans = [(p.start, p.start + p.size) for p in (*job.destroyed, *job.created)]
                covered = sorted({cell for low, high in spans for cell in range(low, high)})
                assert covered == list(range(covered[0], covered[-1] + 1))
                assert min(len(job.destroyed), len(job.created)) == 1


BOXES = {
    "2xa100": (a100("gpu0"), a100("gpu1")),
    "3xa100": (a100("gpu0"), a100("gpu1"), a100("gpu2")),
    "a100+2xa30": (a100("gpu0"), a30("gpu1"), a30("gpu2")),
    "a100+cores": (a100("gpu0"), cpu(4, "cpu0")),
}


@pytest.mark.slow
@pytest.mark.parametrize("box", sorted(BOXES))
@settings(max_examples=examples(60), deadline=None)
@given(data=st.data(), share=st.sampled_from((0.0, 0.3, 0.5, 0.8, 1.0, math.inf)))
def test_random_pairs_of_deployments(box: str, data: st.DataObject, share: float) -> None:
    devices = BOXES[box]
    holes = data.draw(st.booleans())
    running, target = (deployment(data.draw, devices, holes=holes) for _ in range(2))
    total = sum(map(rows_per_s, running))
    checked(running, target, devices, floor=share * total if total else share)


@pytest.mark.slow
@settings(max_examples=examples(150), deadline=None)
@given(data=st.data(), share=st.sampled_from((0.2, 0.5, 0.7, 0.9, math.inf)))
def test_no_order_keeps_more_capacity(data: st.DataObject, share: float) -> None:
    devices = data.draw(st.sampled_from(((a100("gpu0"), a100("gpu1")), (a30("gpu0"), a30("gpu1"), a30("gpu2")))))
    holes = data.draw(st.booleans())
    running, target = (deployment(data.draw, devices, holes=holes) for _ in range(2))
    assume(running and target)
    best = best_low(running, target, devices)
    transition = checked(running, target, devices, floor=share * sum(map(rows_per_s, running)))
    if transition.holds:
        assert best >= transition.capacity_floor - 1e-5
    else:
        assert transition.lowest_capacity == pytest.approx(best, abs=1e-5)
        assert best < transition.capacity_floor


@pytest.mark.slow
@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_laid_out_first_nothing_more_is_touched_than_must_be(data: st.DataObject) -> None:
    devices = BOXES["2xa100"]
    running = deployment(data.draw, devices)
    wanted = configuration_of(deployment(data.draw, devices))
    target = lay_out(wanted, family="toy", backend=BACKEND, devices=devices, running=running, capacity=rows_per_s)
    transition = checked(running, target, devices, floor=math.inf)
    if wanted == configuration_of(running):
        assert transition.steps == ()


# --- what a plan looks like ---------------------------------------------------------------------


def kinds(transition: Transition) -> list[str]:
    """Stages in words: "2 drain", "route"."""
    found = []
    for _, group in itertools.groupby(transition.steps, key=lambda step: step.stage):
        steps = list(group)
        found.append("route" if steps[0].kind == "route" else f"{len(steps)} {steps[0].kind}")
    return found


def base(*names: str) -> Deployment:
    return tuple(runs("large", "7g.40gb", 0, name) for name in names)


def finest(*names: str) -> Deployment:
    return tuple(runs("small", "1g.5gb", start, name) for name in names for start in range(7))


def test_two_gpus_change_one_after_the_other_under_a_floor() -> None:
    devices = BOXES["2xa100"]
    running, target = base("gpu0", "gpu1"), finest("gpu0", "gpu1")
    transition = checked(running, target, devices, floor=0.8 * rows_per_s(running[0]))
    assert transition.holds
    assert transition.lowest_capacity == pytest.approx(rows_per_s(running[0]), abs=1e-6)
    assert kinds(transition) == [
        *("route", "1 drain", "1 destroy", "7 create", "7 spawn"),
        *("route", "1 drain", "1 destroy", "7 create", "7 spawn"),
        "route",
    ]
    assert transition.loses_s == 0.0
    back = checked(target, running, devices, floor=0.8 * rows_per_s(running[0]))
    assert back.holds
    assert len([step for step in back.steps if step.kind == "route"]) == 3


def test_one_full_gpu_says_what_it_loses_and_for_how_long() -> None:
    transition = checked(base("gpu0"), finest("gpu0"), (a100(),), floor=0.1)
    assert not transition.holds
    assert transition.lowest_capacity == 0.0
    assert transition.lost_capacity == 1.0
    assert kinds(transition) == ["1 drain", "1 destroy", "7 create", "7 spawn", "route"]
    assert transition.loses_s == 1.0 + 1.0 + 7.0 + 2.0
    quick = StepSeconds(create_s=0.1, destroy_s=0.2, spawn_s=0.5, drain_s=0.25)
    short = plan_transition(base("gpu0"), finest("gpu0"), (a100(),), floor=0.1, durations=quick)
    assert short.loses_s == pytest.approx(0.25 + 0.2 + 0.7 + 0.5)


def test_gpus_change_together_as_far_as_the_floor_allows() -> None:
    names = [f"gpu{index}" for index in range(10)]
    devices = tuple(a100(name) for name in names)
    one = rows_per_s(base("gpu0")[0])
    for spared, rounds in ((7, 2), (5, 2), (3, 4), (1, 10)):
        transition = checked(base(*names), finest(*names), devices, floor=(10 - spared) * one)
        assert transition.holds
        # What has come serves much more, so that the second round takes all the rest where it may.
        assert len([step for step in transition.steps if step.kind == "route"]) <= rounds + 1
        assert max(Counter(step.stage for step in transition.steps if step.kind == "drain").values()) >= spared


def test_without_a_floor_somebody_still_serves() -> None:
    transition = checked(base("gpu0", "gpu1"), finest("gpu0", "gpu1"), BOXES["2xa100"])
    assert transition.lowest_capacity > 0.0


def test_gains_come_first_and_losses_last() -> None:
    devices = BOXES["2xa100"]
    # gpu0 changes a variant for a faster one, gpu1 is exchanged; a 1g of gpu1 changes for a slower one.
    running = (
        runs("large", "7g.40gb", 0, "gpu0"),
        *(runs("large", "2g.10gb", start, "gpu1") for start in (0, 2, 4)),
        runs("small", "1g.5gb", 6, "gpu1"),
    )
    target = (
        runs("small", "7g.40gb", 0, "gpu0"),
        runs("large", "4g.20gb", 0, "gpu1"),
        runs("large", "2g.10gb", 4, "gpu1"),
        runs("large", "1g.5gb", 6, "gpu1"),
    )
    transition = checked(running, target, devices, floor=math.inf)
    assert transition.holds
    assert kinds(transition) == [
        *("1 spawn", "route"),  # the faster variant beside the slower one
        *("3 drain", "2 destroy", "1 create", "2 spawn", "route"),
        "1 drain",
    ]
    drained = [step.assignment.variant for step in transition.steps if step.kind == "drain" and step.assignment]
    assert drained[-1] == "small"


def test_a_variant_that_does_not_fit_beside_the_old_one_waits_until_that_is_gone() -> None:
    running, target = base("gpu0"), (runs("small", "7g.40gb", 0),)
    transition = plan_transition(running, target, (a100(),), capacity=rows_per_s, beside=lambda one, other: False)
    assert kinds(transition) == ["1 drain", "1 spawn", "route"]
    assert transition.lost_capacity == 1.0
    assert kinds(plan_transition(running, target, (a100(),))) == ["1 spawn", "route", "1 drain"]


def test_a_gpu_for_one_process_is_given_up_before_another_takes_it() -> None:
    alone = msgspec.structs.replace(a100(), one_process=True)
    transition = plan_transition(base("gpu0"), (runs("small", "7g.40gb", 0),), (alone,), capacity=rows_per_s)
    assert kinds(transition) == ["1 drain", "1 spawn", "route"]
    assert transition.lost_capacity == 1.0


def test_an_empty_gpu_is_filled_before_another_is_given_up() -> None:
    transition = checked(base("gpu0"), base("gpu1"), BOXES["2xa100"], floor=math.inf)
    assert transition.holds
    assert kinds(transition) == ["1 create", "1 spawn", "route", "1 drain", "1 destroy"]


def test_what_was_on_a_lost_gpu_counts_for_nothing_and_is_cleared_first() -> None:
    running = (*base("gpu0"), *base("gpu1"))
    target = finest("gpu0")
    transition = plan_transition(running, target, (a100("gpu0"),), capacity=rows_per_s, floor=0.1)
    TransitionMachine(running, BOXES["2xa100"]).run(transition)
    drained = [step for step in transition.steps if step.kind == "drain" and step.stage == transition.steps[0].stage]
    assert base("gpu1")[0] in [step.assignment for step in drained]
    assert transition.lowest_capacity == 0.0
    assert not transition.holds
    assert transition.capacity_floor == 0.1
    with pytest.raises(PlanError, match="no device gpu1"):
        plan_transition((), base("gpu1"), (a100("gpu0"),))


def test_a_target_that_cannot_exist_is_refused_before_anything_is_touched() -> None:
    both = (runs("large", "4g.20gb", 0), runs("small", "1g.5gb", 2))
    with pytest.raises(PlanError, match="cannot exist together on gpu0"):
        plan_transition(base("gpu0"), both, (a100(),))


def test_core_sets_load_one_after_another_beside_what_serves_and_all_at_once_before() -> None:
    device = (cpu(4, "cpu0"),)
    target = tuple(worker("small", start, 1, "cpu0") for start in range(4))
    assert kinds(plan_transition((), target, device)) == ["4 create", "4 spawn", "route"]
    running = (worker("large", 0, 4, "cpu0"),)
    assert kinds(plan_transition(running, target, device)) == [
        *("4 create", "1 spawn", "1 spawn", "1 spawn", "1 spawn", "route", "1 drain", "1 destroy")
    ]


def test_a_whole_gpu_is_one_instance_that_need_not_be_made() -> None:
    whole = Placement(device="gpu0", profile="gpu", start=0, size=1)
    shape = DeviceShape(device="gpu0", kind="mig", layouts=((whole,),), slices=1, overlap=False)
    item = Assignment(placement=whole, family="toy", variant="large", backend="eager")
    other = Assignment(placement=whole, family="toy", variant="small", backend="eager")
    assert kinds(plan_transition((), (item,), (shape,))) == ["1 create", "1 spawn", "route"]
    assert kinds(plan_transition((item,), (other,), (shape,))) == ["1 spawn", "route", "1 drain"]
    views = stages(plan_transition((), (item,), (shape,)), ())
    assert [view.seconds for view in views] == [0.0, 0.0, 2.0, 0.0]


def test_stages_show_what_serves_between() -> None:
    running, target = base("gpu0", "gpu1"), finest("gpu0", "gpu1")
    views = stages(plan_transition(running, target, BOXES["2xa100"], floor=math.inf), running)
    assert (views[0].stage, views[0].steps, views[0].capacity) == (-1, (), 14.0)
    assert [view.stage for view in views] == list(range(-1, len(views) - 1))
    assert [round(view.capacity) for view in views] == [14, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14]
    assert len(views[4].workers) == 1
    assert len(views[5].workers) == 8
