"""What the model of a change is made of: a box of GPUs, its states, and names for what is on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from clover.planning.packing.geometry import SliceProfile, layouts, legal
from clover.types import Assignment, DeviceShape, Placement, Step

Deployment = tuple[Assignment, ...]
Mutation = Literal[
    "",
    "destroy before drain",
    "create before destroy",
    "route before ready",
    "record last",
    "blind restart",
    "back at once",
]

CREATE, DESTROY, SPAWN, DRAIN, ROUTE, STRIKE = range(6)
NAMES = ("create", "destroy", "spawn", "drain", "route", "strike out")
KINDS = {name: code for code, name in enumerate(NAMES)}
ENDED, REFUSED = 90, 91

Action = tuple[int, int, int]
"""(kind, subject, progress): the subject is the index of a placement or a worker, or the mask that is routed to."""

Control = tuple[str, int, int]
"""(what is done, which program, the next stage of it)."""


@dataclass(frozen=True)
class Box:
    """GPUs of one geometry; `foreign` instances belong to others."""

    profiles: tuple[SliceProfile, ...]
    compute: int
    gpus: tuple[str, ...]
    foreign: tuple[Placement, ...] = ()

    def shapes(self, stuck: Iterable[Placement] = ()) -> tuple[DeviceShape, ...]:
        """Return what the GPUs allow beside `foreign` and `stuck` instances."""
        found = []
        for gpu in self.gpus:
            taken = [place for place in (*self.foreign, *stuck) if place.device == gpu]
            free = layouts(
                self.profiles,
                device=gpu,
                compute=self.compute - sum(place.slices for place in taken),
                blocked=[(place.start, place.size) for place in taken],
            )
            found.append(
                DeviceShape(
                    device=gpu,
                    kind="mig",
                    layouts=tuple(layout for layout in free if layout),
                    slices=self.compute,
                    overlap=False,
                )
            )
        return tuple(found)


class State(NamedTuple):
    """Masks over placements (recorded, made, complete, stuck) and workers (loading, ready, routed, ghosts)."""

    control: Control
    stage: tuple[Action, ...]
    recorded: int
    made: int
    complete: int
    stuck: int
    loading: int
    ready: int
    routed: int
    ghosts: int
    faults: int
    crashes: int


@dataclass
class Program:
    """Steps stage by stage, and what they are for."""

    purpose: str
    stages: list[tuple[Step, ...]]
    deployment: Deployment = ()

    def after(self, stage: int) -> list[Step]:
        return [step for later in self.stages[stage:] for step in later]


class Names:
    """Placements and workers of a box by number, so that sets of them are masks."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.places: list[Placement] = []
        self.workers: list[Assignment] = []
        self._profiles = {profile.name: profile for profile in box.profiles}
        self._legal: dict[int, str] = {}

    def place(self, item: Placement) -> int:
        if item not in self.places:
            self.places.append(item)
        return self.places.index(item)

    def worker(self, item: Assignment) -> int:
        self.place(item.placement)
        if item not in self.workers:
            self.workers.append(item)
        return self.workers.index(item)

    def mask(self, items: Iterable[Assignment]) -> int:
        return sum(1 << self.worker(item) for item in items)

    def spots(self, items: Iterable[Assignment]) -> int:
        return sum(1 << index for index in {self.place(item.placement) for item in items})

    def who(self, mask: int) -> Deployment:
        return tuple(item for index, item in enumerate(self.workers) if mask >> index & 1)

    def where(self, mask: int) -> tuple[Placement, ...]:
        return tuple(place for index, place in enumerate(self.places) if mask >> index & 1)

    def under(self, workers: int) -> int:
        """Return the placements under a mask of workers."""
        return self.spots(self.who(workers))

    def named(self, kind: int, subject: int) -> str:
        """Return the subject of an action in words."""
        if kind == ROUTE:
            return ", ".join(f"{item.variant}@{item.placement.id}" for item in self.who(subject))
        if kind in (SPAWN, DRAIN):
            return f"{self.workers[subject].variant}@{self.workers[subject].placement.id}"
        return self.places[subject].id

    def illegal(self, made: int) -> str:
        """Return why the instances `made` may not exist together; empty if they may."""
        if made not in self._legal:
            self._legal[made] = self._why_illegal(made)
        return self._legal[made]

    def _why_illegal(self, made: int) -> str:
        for gpu in self.box.gpus:
            together = [place for place in (*self.where(made), *self.box.foreign) if place.device == gpu]
            why = legal(together, self._profiles, compute=self.box.compute)
            if why:
                return why
        return ""


def mutated(steps: tuple[Step, ...], mutation: Mutation) -> tuple[Step, ...]:
    """Return `steps` with neighbouring stages in the wrong order."""
    swaps = {
        "destroy before drain": ("drain", "destroy"),
        "create before destroy": ("destroy", "create"),
        "route before ready": ("spawn", "route"),
    }
    if mutation not in swaps:
        return steps
    stages = [list(group) for _, group in itertools.groupby(steps, key=lambda step: step.stage)]
    first, second = swaps[mutation]
    for index in range(len(stages) - 1):
        if stages[index][0].kind == first and stages[index + 1][0].kind == second:
            stages[index], stages[index + 1] = stages[index + 1], stages[index]
            break
    return tuple(
        Step(kind=step.kind, assignment=step.assignment, placement=step.placement, routed=step.routed, stage=number)
        for number, stage in enumerate(stages)
        for step in stage
    )
