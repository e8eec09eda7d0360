"""Which variants a worker is to hold beside its first one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from clover.runtime.workers import resident_orders
from clover.runtime.workers.resident_orders import choose_residents, recording, resident_bytes
from clover.types import FamilyProfile, MemoryMeasurement, RecordedLaunches
from tests.support import profiles_fixture

MIB = 1 << 20
FIRST = ("medium", "eager")


def names(profile: FamilyProfile | None, shape: str = "1c", **changes: Any) -> list[str]:
    given = {"most": 9, "limit_bytes": 0, **changes}
    found = choose_residents(profile, FIRST, shape, **given)
    assert all(backend == "eager" for _, backend in found)
    return [variant for variant, _ in found]


def with_memory(profile: FamilyProfile, context: int = 0, **needs: int) -> FamilyProfile:
    memory = tuple(
        MemoryMeasurement(
            variant=variant, profile="1c", backend="eager", weights_bytes=need * MIB - 1000, peak_bytes=1000
        )
        for variant, need in needs.items()
    )
    return msgspec.structs.replace(profile, memory=memory, context_bytes={"1c": context * MIB})


def test_those_that_receive_rows_come_first_and_then_the_cheapest() -> None:
    profile = profiles_fixture.profile()
    assert names(profile) == ["small", "large"]
    assert names(profile, planned={"large", "medium"}) == ["large", "small"]
    assert names(profile, most=2, planned={"large"}) == ["large"]
    assert names(profile, most=2, here={"large"}, planned={"small", "large"}) == ["large"], "elsewhere is not here"
    assert names(profile, most=1) == []
    assert names(None) == []
    assert names(profile, "4c") == [], "nothing was profiled there"


def test_what_is_known_not_to_fit_is_passed_over() -> None:
    profile = with_memory(profiles_fixture.profile(), 50, small=10, medium=20, large=100)
    assert names(profile, limit_bytes=180 * MIB) == ["small", "large"]
    assert names(profile, limit_bytes=179 * MIB) == ["small"]
    assert names(profile, limit_bytes=170 * MIB, planned={"large"}) == ["large"]
    assert names(profile, "2c", limit_bytes=MIB) == ["small", "large"], "the worker finds out"
    assert names(profile) == ["small", "large"]


def test_launches_are_compared_once_by_profiling_where_it_knew() -> None:
    launches = (
        RecordedLaunches(variant="small", profile="1c", backend="eager"),
        RecordedLaunches(variant="large", profile="1c", backend="eager", refused="a replay differs"),
    )
    profile = msgspec.structs.replace(profiles_fixture.profile(), recorded=launches)
    assert recording(profile, "small", "1c", "eager") == "trust"
    assert recording(profile, "large", "1c", "eager") == "skip"
    for unknown in (("medium", "1c", "eager"), ("small", "2c", "eager"), ("small", "1c", "aoti")):
        assert recording(profile, *unknown) == "check"
    assert recording(None, "small", "1c", "eager") == "check"


class Device:
    def __init__(self, memory: int, cores: int = 4) -> None:
        self.memory, self.cores = memory, cores

    def memory_bytes(self, placement: Any) -> int:
        return self.memory

    def shape(self) -> Any:
        return profiles_fixture.cpu(self.cores)


def test_the_limit_is_a_part_of_the_slice_or_of_the_cores_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_orders, "MEMORY_PART", 0.5)
    two_cores = profiles_fixture.placement(0, 2)
    slice_: Any = Device(600 * MIB)
    cores: Any = Device(0)
    monkeypatch.setattr(resident_orders, "machine_memory", lambda: 1000 * MIB)

    def limit(device: Any, share: float = 1.0, limit_bytes: int = 0) -> int:
        return resident_bytes(device, two_cores, share=share, limit_bytes=limit_bytes)

    assert limit(slice_, limit_bytes=100 * MIB) == 300 * MIB
    assert limit(cores) == 250 * MIB
    assert limit(cores, limit_bytes=100 * MIB) == 50 * MIB
    assert limit(cores, share=0.4) == 100 * MIB, "other families are on the same cores"
    assert limit(slice_, share=0.4) == 300 * MIB, "an instance has its memory for itself"
    monkeypatch.setattr(resident_orders, "machine_memory", lambda: 0)
    assert limit(cores) == 0
    assert limit(cores, limit_bytes=100 * MIB) == 50 * MIB
