"""Whether two workers fit beside each other into the memory of a slice.

A worker holds its libraries (`FamilyProfile.context_bytes`), and of each variant the weights and the most that its
largest batch needs on top (`FamilyProfile.memory`).  Workers reported all of these figures.  What they may hold
together is `Room`: the memory of a slice, or what the operator lets a worker have.  Workers on cores without such a
limit share what is free on the machine, so everything that loads before something leaves has to fit into that.

`FULL` of it is used, because allocators round up and a driver keeps some for itself.  If a figure is unknown, the
workers load beside each other all the same, and the transition says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from clover.planning.transition.stages import Resident
from clover.types import Assignment, DeviceShape, FamilyProfile, Placement

FULL = 0.92
"""The part of a slice's memory that two workers may hold together."""
_MIB = 1 << 20

Cell = tuple[str, str, str]
"""Variant, profile of the slice, backend."""


@dataclass(frozen=True)
class Room:
    """Bytes that the workers at a placement may hold together, 0 if that is not known.  `free`: bytes that are free on
    the machine now, for all workers to come on the device."""

    bytes: int = 0
    free: bool = False


def no_room(placement: Placement) -> Room:
    """Return the room of a placement of which nothing is known."""
    return Room()


class MemoryNeeds:
    """What workers of a family hold: by its profile, or as they said since."""

    def __init__(self, profile: FamilyProfile | None) -> None:
        self._cells: dict[Cell, int] = {}
        self._context: dict[str, int] = {}
        if profile is not None:
            self._context = dict(profile.context_bytes)
            for item in profile.memory:
                self._cells[item.variant, item.profile, item.backend] = item.weights_bytes + item.peak_bytes

    def learn(self, cell: Cell, held_bytes: int, context_bytes: int, *, alone: bool = True) -> None:
        """Take what a worker said that it holds for a variant, and beside all of them.  A worker that was not `alone`
        on its slice may have taken another one's memory for its context: then what is known stays."""
        self._cells[cell] = held_bytes
        if alone or cell[1] not in self._context:
            self._context[cell[1]] = context_bytes

    def context_bytes(self, profile: str) -> int:
        """Return what a process on slices of `profile` holds beside its variants; 0 if that is not known."""
        return self._context.get(profile, 0)

    def process_bytes(self, workers: Iterable[Assignment]) -> int | None:
        """Return the bytes of one process that serves all of `workers`, which are at one placement; None if that is not
        known."""
        total, context = 0, 0
        for item in workers:
            held = self._cells.get((item.variant, item.placement.profile, item.backend))
            if held is None:
                return None
            total += held
            context = self.context_bytes(item.placement.profile)
        return total + context


@dataclass(frozen=True, kw_only=True)
class SliceMemory:
    """What is known of the memory that workers of one family need and have.  `held`: bytes that the process at a
    placement holds now with all its variants, 0 if that is not known (then `needs` of those that are routed there);
    `overlapped`: whether a process is on some part of a placement now; `failed`: whether one worker did not find room
    beside another before; `alone`: why a variant is not held beside others on a profile now, empty if it may be;
    `limit_bytes`: the limit of a worker, 0 without one."""

    needs: MemoryNeeds = field(default_factory=lambda: MemoryNeeds(None))
    room: Callable[[Placement], Room] = no_room
    held: Callable[[Placement], int] = lambda placement: 0
    overlapped: Callable[[Placement], bool] = lambda placement: False
    resident: Resident = lambda item: False
    failed: Callable[[Assignment, Assignment], bool] = lambda one, other: False
    alone: Callable[[str, str], str] = lambda variant, profile: ""
    limit_bytes: int = 0

    def without(self, replaced: Collection[str]) -> SliceMemory:
        """Return what is known if the processes at the placements of the ids `replaced` have changed by then."""
        if not replaced:
            return self
        return replace(
            self,
            held=lambda placement: 0 if placement.id in replaced else self.held(placement),
            resident=lambda item: item.placement.id not in replaced and self.resident(item),
        )

    def left_bytes(self, placement: Placement, part: float = 1.0) -> int | None:
        """Return what a further worker at a placement may hold beside those that are there; None if there is none, or
        that is not known.  `part`: how much of what is free on the machine is for this placement, as others may load at
        the same time."""
        room = self.room(placement)
        if room.free:
            return int(FULL * part * room.bytes) if room.bytes and self.overlapped(placement) else None
        held = self.held(placement)
        return max(0, int(FULL * room.bytes) - held) if held and room.bytes else None

    def by_profile(self, devices: Iterable[DeviceShape]) -> dict[str, int]:
        """Return the bytes of slices that have memory of their own, by profile: the least of any device."""
        bytes_by_profile: dict[str, int] = {}
        for device in devices:
            for place in {place.profile: place for layout in device.layouts for place in layout}.values():
                room = self.room(place)
                if room.bytes and not room.free:
                    bytes_by_profile[place.profile] = min(room.bytes, bytes_by_profile.get(place.profile, room.bytes))
        return bytes_by_profile

    def beside(self, one: Assignment, other: Assignment) -> bool:
        """Return whether a worker for `other` fits at its placement while the process of `one` is there."""
        return Swap(self, (one,), (other,)).beside(one, other)


@runtime_checkable
class MemoryAware(Protocol):
    """A fleet that knows what its workers hold and how long they take to start, and that can let rows wait for some
    that are to come."""

    memory: SliceMemory

    def expect(self, assignments: tuple[Assignment, ...]) -> None:
        """Let rows wait for `assignments`, which take the place of all that is routed to; none: stop that."""

    def prepare(self, target: tuple[Assignment, ...]) -> None:
        """Have workers that start hold what `target`, which a transition goes to, has beside them; none: what is
        routed."""

    def start_seconds(self) -> Mapping[tuple[str, str, str], float]:
        """Return how long workers took from the order to ready (s), by variant, backend and profile of the slice."""

    def drain_seconds(self) -> float | None:
        """Return how long workers took to finish their rows and end (s); None if none did yet."""


@dataclass
class Swap:
    """What memory says of a transition from `running` to `target`; `words` has what was asked of it."""

    memory: SliceMemory
    running: Sequence[Assignment]
    target: Sequence[Assignment]
    _found: dict[str, str] = field(default_factory=dict)
    _unknown: dict[str, None] = field(default_factory=dict)

    def beside(self, one: Assignment, other: Assignment) -> bool:
        """Return whether a worker for `other` may load while that of `one` is there."""
        memory = self.memory
        if memory.resident(other):
            return True
        place = other.placement.id
        if memory.failed(one, other):
            self._found[place] = f"{other.variant} found no room beside {one.variant} before"
            return False
        room = memory.room(other.placement)
        if room.free:
            need = self._of_all_that_load(other)
        elif one.placement.id != place:  # cores overlap, but each worker has its own limit
            return True
        else:
            need = self._together(place, other)
        if need is None or room.bytes <= 0:
            self._unknown[f"{other.variant} at {place}"] = None
            return True
        if need <= FULL * room.bytes:
            return True
        whole = "free on the machine" if room.free else "of the slice"
        self._found[place] = (
            f"{other.variant} does not fit beside {one.variant}: {need / _MIB:.0f} MiB, with "
            f"{FULL * room.bytes / _MIB:.0f} of the {room.bytes / _MIB:.0f} MiB {whole} to use"
        )
        return False

    @property
    def words(self) -> str:
        """Where the present workers have to leave first for want of memory, and where that is unknown."""
        reasons: dict[str, list[str]] = {}
        for place, why in self._found.items():
            reasons.setdefault(why, []).append(place)
        parts = [f"exchanged at {', '.join(places)}, as {why}" for why, places in reasons.items()]
        if self._unknown:
            parts.append(f"loaded beside what runs, as its memory is not known: {', '.join(self._unknown)}")
        return "; ".join(parts)

    def _together(self, place: str, other: Assignment) -> int | None:
        """Return what the process at `place` holds and what the one that comes there will."""
        needs = self.memory.needs
        here = [item for item in self.running if item.placement.id == place]
        old = self.memory.held(other.placement) or needs.process_bytes(here)
        new = needs.process_bytes(self._coming(place))
        return None if old is None or new is None else old + new

    def _of_all_that_load(self, other: Assignment) -> int | None:
        """Return what all workers hold that come to the device of `other`."""
        device = other.placement.device
        places = dict.fromkeys(item.placement.id for item in self.target if item.placement.device == device)
        needed = [self.memory.needs.process_bytes(self._coming(place)) for place in places]
        return None if None in needed else sum(filter(None, needed))

    def _coming(self, place: str) -> list[Assignment]:
        """Return what is to load at a placement."""
        running = set(self.running)
        return [
            item
            for item in self.target
            if item.placement.id == place and item not in running and not self.memory.resident(item)
        ]
