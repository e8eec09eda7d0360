"""A machine that carries out transitions step by step and believes none of them: for tests of planning."""

from __future__ import annotations

from collections import Counter

from clover.planning.packing.geometry import legal
from clover.types import Assignment, DeviceShape, Transition
from tests.support.geometry_fixture import BY_NAME

RATES = {"small": 0.4, "medium": 0.2, "large": 0.1}


def rows_per_s(item: Assignment) -> float:
    """What a worker serves: the better the variant, and the smaller the instance, the less."""
    return float(RATES[item.variant] * item.placement.slices**0.9)


class TransitionMachine:
    """Instances, workers and routing; every step is checked against the rules before it is believed."""

    def __init__(self, running: tuple[Assignment, ...], devices: tuple[DeviceShape, ...]) -> None:
        self.shapes = {device.device: device for device in devices}
        self.instances = {item.placement.id: item.placement for item in running}
        self.workers = Counter(running)
        self.routed = Counter(running)
        self.loading: set[str] = set()

    def run(self, transition: Transition) -> None:
        stage = -1
        for step in transition.steps:
            assert step.stage in (stage, stage + 1)
            if step.stage != stage:
                kinds = {other.kind for other in transition.steps if other.stage == step.stage}
                assert len(kinds) == 1
            stage = step.stage
            if step.kind == "create":
                assert step.placement is not None
                assert step.placement.id not in self.instances
                self.instances[step.placement.id] = step.placement
                self.check(step.placement.device)
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
                assert step.assignment not in transition.kept
                assert self.workers[step.assignment] == 1
                del self.workers[step.assignment]
                self.routed &= self.workers
            else:
                self.routed = Counter(step.routed)
                assert self.routed
                assert self.routed <= self.workers
                assert Counter(transition.kept) <= self.routed

    def check(self, name: str) -> None:
        standing = [place for place in self.instances.values() if place.device == name]
        if self.shapes[name].overlap:
            return
        ids = {place.id for place in standing}
        assert any(ids <= {place.id for place in layout} for layout in self.shapes[name].layouts)
        if all(place.profile in BY_NAME for place in standing):
            assert legal(standing, BY_NAME, compute=7) == ""
