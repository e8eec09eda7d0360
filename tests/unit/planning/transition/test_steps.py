from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, DeviceShape, Placement, Transition
from tests.support.examples import examples
from tests.support.profiles_fixture import cpu, worker


def mig(device: str = "gpu0") -> DeviceShape:
    """Eight memory slices; sizes and offsets as in the A100's larger profiles."""

    def place(size: int, start: int) -> Placement:
        return Placement(device=device, profile=f"s{size}", start=start, size=size)

    layouts = [
        [(8, 0)],
        [(4, 0), (4, 4)],
        [(4, 0), (2, 4), (1, 6)],
        [(4, 0), (1, 4), (1, 5), (1, 6)],
        [(2, 0), (2, 2), (4, 4)],
        [(2, 0), (2, 2), (2, 4), (1, 6)],
        [(1, 0), (1, 1), (2, 2), (4, 4)],
        [(1, i) for i in range(7)] and [(1, i) for i in range(7)],
    ]
    return DeviceShape(
        device=device,
        kind="mig",
        layouts=tuple(tuple(place(size, start) for size, start in layout) for layout in layouts),
        slices=8,
        overlap=False,
    )


class Machine:
    """Instances, workers and routing under the rules of the devices; every step is checked before it is done."""

    def __init__(self, running: tuple[Assignment, ...], devices: tuple[DeviceShape, ...]) -> None:
        self.shapes = {device.device: device for device in devices}
        self.instances = {item.placement.id: item.placement for item in running}
        self.workers = Counter(running)
        self.routed = Counter(running)
        self.least = self.slices()

    def slices(self) -> int:
        return len(
            {
                (item.placement.device, index)
                for item in self.routed
                for index in range(item.placement.start, item.placement.start + item.placement.size)
            }
        )

    def run(self, transition: Transition) -> None:
        for step in transition.steps:
            if step.kind == "create":
                assert step.placement is not None
                assert step.placement.id not in self.instances
                self.instances[step.placement.id] = step.placement
                self.check_geometry(step.placement.device)
            elif step.kind == "destroy":
                assert step.placement is not None
                assert all(item.placement.id != step.placement.id for item in self.workers)
                del self.instances[step.placement.id]
            elif step.kind == "spawn":
                assert step.assignment is not None
                assert step.assignment.placement.id in self.instances
                self.workers[step.assignment] += 1
            elif step.kind == "drain":
                assert step.assignment is not None
                assert self.workers[step.assignment] > 0
                assert step.assignment not in transition.kept
                self.workers[step.assignment] -= 1
                self.workers += Counter()
                self.routed &= self.workers
            else:
                self.routed = Counter(step.routed)
                assert self.routed <= self.workers
                assert self.routed
            self.least = min(self.least, self.slices())

    def check_geometry(self, device: str) -> None:
        shape = self.shapes[device]
        if shape.overlap:
            return
        standing = {key for key, place in self.instances.items() if place.device == device}
        assert any(standing <= {place.id for place in layout} for layout in shape.layouts), standing


def deployments(devices: tuple[DeviceShape, ...]) -> st.SearchStrategy[tuple[Assignment, ...]]:
    @st.composite
    def draw(pick: st.DrawFn) -> tuple[Assignment, ...]:
        found = []
        for device in devices:
            for place in pick(st.sampled_from(device.layouts)):
                variant = pick(st.sampled_from(("small", "medium", "large", "")))
                if variant:
                    found.append(Assignment(placement=place, family="toy", variant=variant, backend="eager"))
        return tuple(found)

    return draw()


DEVICES = (mig("gpu0"), mig("gpu1"), cpu(4, "cpu0"))


@pytest.mark.slow
@settings(max_examples=examples(400), deadline=None)
@given(running=deployments(DEVICES), target=deployments(DEVICES))
def test_executing_the_steps_gives_the_target(running: tuple[Assignment, ...], target: tuple[Assignment, ...]) -> None:
    transition = plan_transition(running, target, DEVICES)
    machine = Machine(running, DEVICES)
    machine.run(transition)
    assert machine.workers == Counter(target)
    assert machine.routed == Counter(target)
    assert set(machine.instances) == {item.placement.id for item in target}
    assert Counter(transition.kept) == Counter(running) & Counter(target)
    smaller = min(Machine(running, DEVICES).slices(), Machine(target, DEVICES).slices())
    if smaller:
        assert machine.least >= smaller * (1.0 - transition.lost_capacity) - 1e-9
    else:
        assert transition.lost_capacity == 0.0


@settings(max_examples=examples(100), deadline=None)
@given(running=deployments((cpu(4),)), target=deployments((cpu(4),)))
def test_core_sets_lose_no_capacity(running: tuple[Assignment, ...], target: tuple[Assignment, ...]) -> None:
    assert plan_transition(running, target, (cpu(4),)).lost_capacity == 0.0


def test_the_same_deployment_needs_no_step() -> None:
    running = (worker("small", 0, 1), worker("large", 1, 1))
    transition = plan_transition(running, tuple(reversed(running)), (cpu(2),))
    assert transition.steps == ()
    assert Counter(transition.kept) == Counter(running)


def test_a_repartition_of_core_sets() -> None:
    transition = plan_transition((worker("large", 0, 2),), (worker("small", 0, 1), worker("large", 1, 1)), (cpu(2),))
    assert [step.kind for step in transition.steps] == [
        *("create", "create", "spawn", "spawn", "route", "drain", "destroy")
    ]
    assert transition.lost_capacity == 0.0


def test_a_variant_swap_makes_and_unmakes_nothing() -> None:
    for shape in (cpu(2), cpu(2, overlap=False)):
        transition = plan_transition((worker("large", 0, 2),), (worker("small", 0, 2),), (shape,))
        assert [step.kind for step in transition.steps] == ["spawn", "route", "drain"]
        assert transition.lost_capacity == 0.0


def test_a_fully_occupied_device_without_overlap_states_its_loss() -> None:
    shape = cpu(2, overlap=False)
    transition = plan_transition((worker("large", 0, 2),), (worker("small", 0, 1), worker("large", 1, 1)), (shape,))
    assert [step.kind for step in transition.steps] == [
        *("drain", "destroy", "create", "create", "spawn", "spawn", "route")
    ]
    assert transition.lost_capacity == 1.0


def test_groups_go_one_after_another() -> None:
    devices = (cpu(4, overlap=False),)
    running = (worker("small", 0, 2), worker("small", 2, 2))
    target = tuple(worker("small", start, 1) for start in range(4))
    transition = plan_transition(running, target, devices)
    assert transition.lost_capacity in (0.5, 1.0)  # 1.0 where no layout mixes 2c and 1c


def test_first_start() -> None:
    transition = plan_transition((), (worker("small", 0, 1), worker("small", 1, 1)), (cpu(2),))
    assert [step.kind for step in transition.steps] == ["create", "create", "spawn", "spawn", "route"]
    assert transition.lost_capacity == 0.0
