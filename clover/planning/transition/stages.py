"""A transition in time: which instances exist, which workers receive rows, and how much is served in each stage.

Steps of one stage run at once, and a stage begins when the one before it is over.  How long a stage takes is an
estimate from `StepSeconds`.  Workers load, and drain, side by side.  Instances of one GPU are made and removed one
after another, those of different GPUs at once, because that is how the driver is used.  Core-sets and whole GPUs need
not be made.

A worker serves if rows are routed to it.  A route step counts from its moment on, and a drain stops rows to its worker
when it begins; nothing else changes which workers serve.

A *shared* placement has several assignments: one process there takes turns with them.  At most it serves what it would
if it did nothing but the fastest of them, so that is its capacity, counted once (`capacity_by_placement`).  How much
less it really serves depends on the routing, which the plan chose for all of them; a transition only asks what
instances that are missing could serve.  If a variant comes to a process that already runs, or leaves a process that has
others, that takes no time: the process holds it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence

from clover.planning.transition.layout import Capacity, slices
from clover.types import Assignment, DeviceShape, Placement, Record, Step, Transition

Resident = Callable[[Assignment], bool]
"""Whether the process that runs at its placement now holds an assignment's variant ready to serve."""


class StepSeconds(Record, frozen=True, kw_only=True):
    """How long steps take, for estimates: a GPU instance made or removed, a worker loaded and warmed, or drained."""

    create_s: float = 1.0
    destroy_s: float = 1.0
    spawn_s: float = 2.0
    drain_s: float = 1.0
    spawns: dict[tuple[str, str, str], float] = {}
    """Seconds that the start of a worker took so far, by variant, backend and profile."""
    drained: bool = False
    """Whether `drain_s` was measured."""
    typical: dict[tuple[str, str], float] = {}
    """Seconds that a start is taken for which was not measured, by device and backend; else `spawn_s`."""

    def spawn(self, item: Assignment) -> float:
        """Return the seconds that a worker for `item` takes to start."""
        measured = self.spawns.get(start_key(item))
        if measured is not None:
            return measured
        return self.typical.get((item.placement.device, item.backend), self.spawn_s)


CPU_SPAWN_S = 0.1
CUDA_SPAWN_S = 4.0
TENSORRT_SPAWN_S = 10.0
"""What the start of a worker is taken for on cores (emulated slices too), on a GPU, and there with TensorRT (whose
libraries each worker loads itself), until one was seen: estimates."""


def start_key(item: Assignment) -> tuple[str, str, str]:
    """Return the key by which starts of workers are distinguished."""
    return item.variant, item.backend, item.placement.profile


def typical_spawn_s(device: DeviceShape | None, backend: str) -> float:
    """Return what the start of a worker on `device` is taken for (s, estimated) until one was seen."""
    if device is None or device.kind == "cpu" or device.emulated:
        return CPU_SPAWN_S
    return TENSORRT_SPAWN_S if backend == "tensorrt" else CUDA_SPAWN_S


class StageView(Record, frozen=True, kw_only=True):
    """One stage of a transition, which takes `seconds`.  `routed` and `capacity` hold from its start until the next
    stage; the `workers` are those there are when it is over.

    The state before the first stage is a view of its own: stage -1 without steps.
    """

    stage: int
    seconds: float
    steps: tuple[Step, ...]
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
    resident = set(transition.resident)
    free = at_once(transition.steps, running, resident.__contains__)
    return views(
        transition.steps, running, capacity=capacity or slices, durations=durations or StepSeconds(), free=free
    )


def at_once(steps: Sequence[Step], running: Sequence[Assignment], resident: Resident) -> frozenset[int]:
    """Return which of `steps`, by number, take no time, as the process that they concern is there before and after:
    spawns of variants that it holds (`resident`, while the process of `running` is there; of a process that was
    started, all that come to its placement before the next route step), and drains that leave it others."""
    members: dict[int, set[Assignment]] = {}
    process: dict[Assignment, int] = {}
    newest: dict[str, int] = {}
    started: set[int] = set()
    filling: set[int] = set()

    def join(item: Assignment, number: int) -> None:
        members.setdefault(number, set()).add(item)
        process[item] = newest[item.placement.id] = number

    for there in running:
        join(there, newest.get(there.placement.id, len(members)))
    free: set[int] = set()
    for index, step in enumerate(steps):
        item = step.assignment
        if step.kind == "route":
            filling.clear()
        if item is None:
            continue
        if step.kind == "spawn":
            number = newest.get(item.placement.id)
            held = number is not None and (number in filling or (number not in started and resident(item)))
            if number is not None and members[number] and held:
                free.add(index)
                join(item, number)
            else:
                started.add(len(members))
                filling.add(len(members))
                join(item, len(members))
        elif step.kind == "drain":
            number = process.pop(item, None)
            if number is not None:
                members[number].discard(item)
                if members[number]:
                    free.add(index)
    return frozenset(free)


def views(
    steps: Sequence[Step],
    running: Sequence[Assignment],
    *,
    capacity: Capacity,
    durations: StepSeconds,
    free: Container[int] = frozenset(),
) -> tuple[StageView, ...]:
    """Return the stages of `steps` from `running` on, as `stages` does.  `free`: the steps, by number, that take no
    time (`at_once`)."""
    workers, routed = Counter(running), Counter(running)
    number = 0
    views_so_far: list[StageView] = []

    def see(stage: int, seconds: float, parts: tuple[Step, ...]) -> None:
        views_so_far.append(
            StageView(
                stage=stage,
                seconds=seconds,
                steps=parts,
                workers=tuple(sorted(workers.elements(), key=order)),
                routed=tuple(sorted(routed.elements(), key=order)),
                capacity=served(routed.elements(), capacity),
            )
        )

    see(-1, 0.0, ())
    for stage, group in itertools.groupby(steps, key=lambda step: step.stage):
        parts = tuple(group)
        for step in parts:
            if step.kind == "route":
                routed = Counter(step.routed)
            elif step.kind in ("spawn", "drain"):
                assert step.assignment is not None
                workers[step.assignment] += 1 if step.kind == "spawn" else -1
                workers += Counter()
                if step.kind == "drain":
                    routed &= workers
        slow = [step for index, step in enumerate(parts, number) if index not in free]
        number += len(parts)
        see(stage, seconds_of(slow, durations), parts)
    return tuple(views_so_far)


def measured(steps: Sequence[Step], free: Container[int], durations: StepSeconds) -> bool:
    """Return whether the seconds of all `steps` that take time (all but `free`, by number) were measured."""
    for step in (step for index, step in enumerate(steps) if index not in free):
        if step.kind == "spawn" and (step.assignment is None or start_key(step.assignment) not in durations.spawns):
            return False
        if step.kind == "drain" and not durations.drained:
            return False
        if step.kind in ("create", "destroy") and _is_instance(step.placement):
            return False
    return True


def seconds_of(steps: Iterable[Step], durations: StepSeconds) -> float:
    """Return how long the steps of one stage take together."""
    longest_s = 0.0
    changes: dict[str, float] = {}
    for step in steps:
        if step.kind in ("create", "destroy"):
            if step.placement is not None and _is_instance(step.placement):
                takes_s = durations.create_s if step.kind == "create" else durations.destroy_s
                changes[step.placement.device] = changes.get(step.placement.device, 0.0) + takes_s
        elif step.kind == "spawn":
            assert step.assignment is not None
            longest_s = max(longest_s, durations.spawn(step.assignment))
        elif step.kind == "drain":
            longest_s = max(longest_s, durations.drain_s)
    return max(longest_s, *changes.values(), 0.0)


def served(routed: Iterable[Assignment], capacity: Capacity) -> float:
    """Return what `routed` serve together, to a millionth."""
    return sum(capacity_by_placement(routed, capacity).values()) / UNITS


UNITS = 1_000_000
"""Capacities are added up as whole millionths, so that the order of adding does not matter."""


def units(item: Assignment, capacity: Capacity) -> int:
    """Return the capacity of one worker in `UNITS`."""
    return round(capacity(item) * UNITS)


def capacity_by_placement(items: Iterable[Assignment], capacity: Capacity) -> dict[str, int]:
    """Return the capacity of each placement in `UNITS`: of a shared one that of the fastest of its assignments."""
    capacities: dict[str, int] = {}
    for item in items:
        place = item.placement.id
        capacities[place] = max(capacities.get(place, 0), units(item, capacity))
    return capacities


def _is_instance(placement: Placement | None) -> bool:
    return placement is not None and "g." in placement.profile


def order(item: Assignment) -> tuple[str, int, int, str, str]:
    """Return the order in which workers are listed."""
    place = item.placement
    return (place.device, place.start, place.size, item.variant, item.backend)
