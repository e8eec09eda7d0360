"""Which variant stands by, and how fast everybody is within an SLO."""

from __future__ import annotations

import pytest

from clover.planning.model.queueing import Service
from clover.runtime.workers.standby import StandbyPolicy
from clover.types import Assignment, Placement
from tests.support.profiles_fixture import VARIANTS, profile

NAMES = ("tiny", "small", "medium", "large")
MS = {"tiny": 1.0, "small": 2.5, "medium": 6.0, "large": 10.0}
"""Of a row, in batches of any size: 1000, 400, 167 and 100 rows/s."""


def worker(variant: str, start: int = 0, shape: str = "1g") -> Assignment:
    placement = Placement(device="gpu0", profile=shape, start=start, size=1)
    return Assignment(placement=placement, family="toy", variant=variant, backend="eager")


def understudies(relief: str = "auto", slo_ms: float = 100.0, **services: Service) -> StandbyPolicy:
    found = StandbyPolicy(NAMES, relief, lambda: slo_ms)
    known = services or {name: Service((1, 8), (ms, 8 * ms), (1.0, 1.0)) for name, ms in MS.items()}
    found._services = {(name, "1g"): service for name, service in known.items()}
    found._backend = {(name, "1g"): "onnxruntime" for name in known}
    return found


def chosen(found: tuple[Assignment, ...]) -> set[str]:
    return {item.variant for item in found}


@pytest.mark.parametrize(("plan", "expected"), [("large", "small"), ("medium", "tiny"), ("small", "tiny")])
def test_auto_is_the_most_accurate_that_serves_three_times_as_much(plan: str, expected: str) -> None:
    found = understudies().choose([worker(plan, 0), worker(plan, 1)])
    assert chosen(found) == {expected}
    assert {item.placement.start for item in found} == {0, 1}
    assert {item.backend for item in found} == {"onnxruntime"}


def test_where_none_serves_three_times_as_much_it_is_who_serves_most() -> None:
    services = {name: Service((1,), (ms,), (1.0,)) for name, ms in (("tiny", 8.0), ("small", 7.0), ("large", 10.0))}
    assert chosen(understudies(**services).choose([worker("large")])) == {"small"}


def test_the_configured_one_is_taken_whatever_it_serves() -> None:
    assert chosen(understudies("medium").choose([worker("large")])) == {"medium"}


def test_nobody_stands_by_beside_a_cheaper_one_or_on_a_shape_that_was_not_measured() -> None:
    found = understudies("small").choose([worker("tiny", 0), worker("small", 1), worker("large", 2)])
    assert [item.placement.start for item in found] == [2]
    assert understudies("tiny").choose([worker("large", shape="7g")]) == ()
    assert understudies().choose([worker("tiny")]) == ()
    assert understudies().choose([]) == ()


def test_nobody_stands_by_if_the_device_has_no_room_for_another() -> None:
    found = understudies()
    found._fits = lambda one, other: one.placement.device != "gpu0"
    assert found.choose([worker("large")]) == ()


def test_workers_of_its_own_variant_count_among_those_that_serve() -> None:
    """Half of the slices have small already: with the others they serve 1,600 of the 1,000 rows/s there are now, which
    is too little; tiny beside all serves 4,000."""
    plan = [worker("large", 0), worker("large", 1), worker("small", 2), worker("small", 3)]
    found = understudies().choose(plan)
    assert chosen(found) == {"tiny"}
    assert len(found) == 4


def test_a_process_with_several_variants_serves_as_much_as_with_the_fastest() -> None:
    """1,000 rows/s if it serves tiny alone, so that small with 400 would be no relief; tiny is there already."""
    both = [worker("tiny"), worker("large")]
    assert understudies().choose(both) == (worker("tiny"),)
    assert understudies("tiny").choose(both) == (worker("tiny"),)
    assert chosen(understudies("small").choose(both)) == {"small"}
    found = understudies("tiny").choose([*both, worker("large", 1)])
    assert [(item.placement.start, item.backend) for item in found] == [(0, "eager"), (1, "onnxruntime")]
    # Three times 167 rows/s of medium, not of medium and large: small with 400 would not do for 267 either.
    services = {name: Service((1, 8), (ms, 8 * ms), (1.0, 1.0)) for name, ms in (MS | {"small": 1.9}).items()}
    assert chosen(understudies(**services).choose([worker("medium"), worker("large")])) == {"small"}


def test_speed_is_that_of_batches_that_leave_time_to_wait() -> None:
    batching = Service((1, 8), (10.0, 45.0), (1.0, 1.0))
    assert understudies(slo_ms=100.0, large=batching).rows_per_s(worker("large")) == pytest.approx(8 / 0.045)
    assert understudies(slo_ms=50.0, large=batching).rows_per_s(worker("large")) == pytest.approx(4 / 0.025)
    assert understudies(slo_ms=5.0, large=batching).rows_per_s(worker("large")) == pytest.approx(100.0)
    assert understudies().rows_per_s(worker("large", shape="7g")) == 0.0


def test_a_row_may_wait_half_of_the_slo() -> None:
    assert understudies(slo_ms=40.0).wait_ms() == 20.0
    assert understudies(slo_ms=0.0).wait_ms() == 0.0, "without a target nothing is late"


def test_without_a_profile_nobody_stands_by() -> None:
    found = understudies()
    found.use(None)
    assert found.choose([worker("large")]) == ()
    assert found.rows_per_s(worker("large")) == 0.0


def test_a_profile_says_who_can() -> None:
    found = StandbyPolicy(list(VARIANTS), "auto", lambda: 100.0)
    found.use(profile())
    best = Placement(device="cpu0", profile="1c", start=0, size=1)
    (one,) = found.choose([Assignment(placement=best, family="toy", variant="large", backend="eager")])
    assert one.variant == "small"
    assert found.rows_per_s(one) > 0.0


def test_nobody_stands_by_where_memory_does_not_hold_both() -> None:
    full = {1}
    found = StandbyPolicy(NAMES, "small", lambda: 100.0, lambda one, other: other.placement.start not in full)
    known = understudies()
    found._services, found._backend = known._services, known._backend
    plan = [worker("large", 0), worker("large", 1)]
    assert [item.placement.start for item in found.choose(plan)] == [0]
    full.clear()
    assert [item.placement.start for item in found.choose(plan)] == [0, 1]
