"""Whether two workers fit beside each other, from what workers reported."""

from __future__ import annotations

import msgspec

from clover.planning.transition.memory import MemoryNeeds, Room, SliceMemory, Swap
from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, FamilyProfile, MemoryMeasurement
from tests.support.profiles_fixture import cpu, profile, worker

MIB = 1 << 20


def measured(**mib: int) -> FamilyProfile:
    """Weights of so many MiB, peaks of a tenth, a context of 100 MiB on a core and on two."""
    memory = tuple(
        MemoryMeasurement(
            variant=name, profile=size, backend="eager", weights_bytes=held * MIB, peak_bytes=held * MIB // 10
        )
        for name, held in mib.items()
        for size in ("1c", "2c")
    )
    return msgspec.structs.replace(profile(), memory=memory, context_bytes={"1c": 100 * MIB, "2c": 100 * MIB})


NEEDS = MemoryNeeds(measured(small=100, medium=300, large=500))
SMALL, MEDIUM, LARGE = (worker(name, 0, 1) for name in ("small", "medium", "large"))


def slice_of(mib: int, **known: object) -> SliceMemory:
    return SliceMemory(needs=NEEDS, room=lambda place: Room(mib * MIB), **known)  # type: ignore[arg-type]


def test_a_process_holds_its_libraries_once_and_its_variants_with_their_peaks() -> None:
    assert NEEDS.process_bytes([SMALL]) == 210 * MIB
    assert NEEDS.process_bytes([SMALL, MEDIUM]) == 540 * MIB
    assert NEEDS.process_bytes([]) == 0
    assert NEEDS.process_bytes([worker("huge", 0, 1)]) is None
    assert MemoryNeeds(None).process_bytes([SMALL]) is None


def test_two_workers_use_at_most_92_percent_of_a_slice() -> None:
    together = 210 + 430
    assert slice_of(int(together / 0.92) + 1).beside(SMALL, MEDIUM)
    assert not slice_of(int(together / 0.92) - 1).beside(SMALL, MEDIUM)


def test_what_the_process_really_holds_counts_before_what_is_routed_there() -> None:
    memory = slice_of(1000, held=lambda place: 600 * MIB)
    assert slice_of(1000).beside(SMALL, MEDIUM)
    assert not memory.beside(SMALL, MEDIUM)


def test_a_further_worker_may_hold_what_is_left() -> None:
    place = SMALL.placement
    assert slice_of(1000).left_bytes(place) is None
    assert slice_of(1000, held=lambda place: 600 * MIB).left_bytes(place) == 320 * MIB
    assert slice_of(500, held=lambda place: 600 * MIB).left_bytes(place) == 0
    assert slice_of(0, held=lambda place: 600 * MIB).left_bytes(place) is None


def test_a_worker_beside_another_on_cores_may_hold_its_part_of_what_is_free_on_the_machine() -> None:
    place = SMALL.placement

    def left(mib: int, overlapped: bool) -> int | None:
        room = Room(mib * MIB, free=True)
        return SliceMemory(room=lambda place: room, overlapped=lambda place: overlapped).left_bytes(place, 0.25)

    assert left(1000, True) == 230 * MIB
    assert left(1000, False) is None, "what it may hold is planned with the whole machine"
    assert left(0, True) is None


def test_what_is_resident_needs_no_room() -> None:
    assert slice_of(1, resident=lambda item: item == MEDIUM).beside(SMALL, MEDIUM)


def test_what_is_not_known_loads_beside_and_the_transition_says_so() -> None:
    swap = Swap(slice_of(0), (SMALL,), (MEDIUM,))
    assert swap.beside(SMALL, MEDIUM)
    assert swap.words == "loaded beside what runs, as its memory is not known: medium at cpu0:1c@0"
    unknown = Swap(SliceMemory(needs=MemoryNeeds(profile()), room=lambda place: Room(MIB)), (SMALL,), (MEDIUM,))
    assert unknown.beside(SMALL, MEDIUM)
    assert "not known" in unknown.words
    assert Swap(slice_of(4000), (SMALL,), (MEDIUM,)).words == ""


def test_what_found_no_room_before_is_not_tried_beside_again() -> None:
    swap = Swap(slice_of(0, failed=lambda one, other: (one, other) == (SMALL, MEDIUM)), (SMALL,), (MEDIUM,))
    assert not swap.beside(SMALL, MEDIUM)
    assert swap.words == "exchanged at cpu0:1c@0, as medium found no room beside small before"


def test_all_workers_that_come_share_what_is_free_on_the_machine() -> None:
    running = tuple(worker("small", core, 1) for core in (0, 1))
    target = tuple(worker("medium", core, 1) for core in (0, 1))
    needs = 2 * 430
    for mib, fits in ((int(needs / 0.92) + 1, True), (int(needs / 0.92) - 1, False)):
        memory = SliceMemory(needs=NEEDS, room=lambda place, mib=mib: Room(mib * MIB, free=True))  # type: ignore[misc]
        swap = Swap(memory, running, target)
        assert all(swap.beside(one, other) is fits for one, other in zip(running, target, strict=True))
        assert ("860 MiB, with" in swap.words) is not fits


def test_each_worker_on_cores_has_a_limit_of_its_own() -> None:
    """Cores overlap, but the old worker's memory is not the new one's."""
    assert slice_of(450).beside(worker("small", 0, 2), MEDIUM)


def test_a_transition_exchanges_what_does_not_fit() -> None:
    running: tuple[Assignment, ...] = (worker("large", 0, 1), worker("small", 1, 1))
    target = (worker("medium", 0, 1), worker("medium", 1, 1))
    swap = Swap(slice_of(800), running, target)
    transition = plan_transition(running, target, (cpu(2),), beside=swap.beside)
    spawned = [step.assignment.placement.id for step in transition.steps if step.kind == "spawn" and step.assignment]
    kinds = [step.kind for step in transition.steps]
    assert sorted(spawned) == ["cpu0:1c@0", "cpu0:1c@1"]
    assert kinds.index("drain") < kinds.index("spawn")
    assert transition.lost_capacity == 0.5
    assert swap.words == (
        "exchanged at cpu0:1c@0, as medium does not fit beside large: 1080 MiB, with 736 of the 800 MiB of the slice "
        "to use"
    )
