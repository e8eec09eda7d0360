"""A transition in time: which instances exist, which workers receive rows, and how much is served in each stage.

Steps of one stage run at once, and a stage begins when the one before it is over.  How long a stage takes is an
estimate from `StepSeconds`: workers load, and drain, side by side; GPU instances are made and unmade one after another
on the whole machine, because that is how the driver is used.  Core-sets and whole GPUs need no making.

A worker serves if rows are routed to it.  A route step counts from its moment on, and a drain stops rows to its worker
by itself when it begins; nothing else changes which workers serve.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from clover.planning.transition.jobs import order
from clover.planning.transition.layout import Capacity, slices
from clover.types import Assignment, Placement, Record, Step, Transition


class StepSeconds(Record, frozen=True, kw_only=True):
    """How long steps take, for estimates: a GPU instance made or unmade, a worker loaded and warmed, or drained."""

    create_s: float = 1.0
    destroy_s: float = 1.0
    spawn_s: float = 2.0
    drain_s: float = 1.0


class StageView(Record, frozen=True, kw_only=True):
    """One stage of a transition.  It runs from `start_s` for `seconds`.  `routed` and `capacity` hold from its start
    until the next stage; the instances `standing` and the `workers` are those there are when it is over.

    The state before the first stage is a view of its own: stage -1 without steps.
    """

    stage: int
    start_s: float
    seconds: float
    steps: tuple[Step, ...]
    standing: tuple[Placement, ...]
    workers: tuple[Assignment, ...]
    routed: tuple[Assignment, ...]
    capacity: float


def stages(
    transition: Transition,
    running: Sequence[Assignment],
    *,
    capacity: Capacity | None = None,
    durations: StepSeconds | None = None,
) -> tuple[StageView, ...]:
    """Return the stages of `transition` from `running` on, the state before them first.  `capacity` in rows/s a worker;
    compute slices if it is not given."""
    return views(transition.steps, running, capacity=capacity or slices, durations=durations or StepSeconds())


def views(
    steps: Sequence[Step], running: Sequence[Assignment], *, capacity: Capacity, durations: StepSeconds
) -> tuple[StageView, ...]:
    """Return the stages of `steps` from `running` on, as `stages` does."""
    instances = {item.placement.id: item.placement for item in running}
    workers, routed = Counter(running), Counter(running)
    now_s = 0.0
    found: list[StageView] = []

    def see(stage: int, seconds: float, parts: tuple[Step, ...]) -> None:
        found.append(
            StageView(
                stage=stage,
                start_s=now_s,
                seconds=seconds,
                steps=parts,
                standing=tuple(sorted(instances.values(), key=lambda place: (place.device, place.start, place.size))),
                workers=tuple(sorted(workers.elements(), key=order)),
                routed=tuple(sorted(routed.elements(), key=order)),
                capacity=served(routed.elements(), capacity),
            )
        )

    see(-1, 0.0, ())
    for stage, group in itertools.groupby(steps, key=lambda step: step.stage):
        parts = tuple(group)
        for step in parts:
            if step.kind == "create":
                assert step.placement is not None
                instances[step.placement.id] = step.placement
            elif step.kind == "destroy":
                assert step.placement is not None
                instances.pop(step.placement.id, None)
            elif step.kind == "route":
                routed = Counter(step.routed)
            else:
                assert step.assignment is not None
                workers[step.assignment] += 1 if step.kind == "spawn" else -1
                workers += Counter()
                if step.kind == "drain":
                    routed &= workers
        seconds = seconds_of(parts, durations)
        see(stage, seconds, parts)
        now_s += seconds
    return tuple(found)


def seconds_of(steps: Iterable[Step], durations: StepSeconds) -> float:
    """Return how long the steps of one stage take together."""
    made, unmade, longest_s = 0, 0, 0.0
    for step in steps:
        if step.kind == "create":
            made += _is_instance(step.placement)
        elif step.kind == "destroy":
            unmade += _is_instance(step.placement)
        elif step.kind == "spawn":
            longest_s = max(longest_s, durations.spawn_s)
        elif step.kind == "drain":
            longest_s = max(longest_s, durations.drain_s)
    return max(longest_s, made * durations.create_s + unmade * durations.destroy_s)


def served(routed: Iterable[Assignment], capacity: Capacity) -> float:
    """Return what `routed` serve together, to a millionth."""
    return sum(units(item, capacity) for item in routed) / UNITS


UNITS = 1_000_000
"""Capacities are added up as whole millionths, so that the order of adding does not matter."""


def units(item: Assignment, capacity: Capacity) -> int:
    """Return the capacity of one worker in `UNITS`."""
    return round(capacity(item) * UNITS)


def _is_instance(placement: Placement | None) -> bool:
    return placement is not None and "g." in placement.profile
