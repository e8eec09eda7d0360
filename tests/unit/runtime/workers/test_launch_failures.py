"""Deaths by CUDA's launch failure: the first in a minute is held against no row."""

from __future__ import annotations

import pytest

from clover.errors import says_launch_failed
from clover.runtime.workers.launch_failures import FORGIVEN_NS, LaunchFailures
from clover.types import Routing
from tests.support.fleet_fixture import House, at, in_a_house

REASON = "the GPU failed, and this worker with it: CUDA error 719: unspecified launch failure"


def test_only_launch_failures_are_forgiven_and_only_the_first() -> None:
    assert says_launch_failed(REASON)
    failures = LaunchFailures()
    assert not failures.forgives("CUDA error 700: an illegal memory access was encountered", 0)
    assert failures.forgives(REASON, 0)
    assert not failures.forgives(REASON, FORGIVEN_NS - 1)  # and the minute begins anew
    assert not failures.forgives(REASON, FORGIVEN_NS + 1)
    assert failures.forgives(REASON, 3 * FORGIVEN_NS)


@pytest.mark.parametrize(("reason", "deaths"), [(REASON, 1), ("CUDA error 700: illegal address", 2)])
def test_a_row_that_met_two_slices_of_a_failing_gpu_is_served_by_a_third(reason: str, deaths: int) -> None:
    @in_a_house
    async def test(house: House) -> None:
        fleet, router = house.fleet, house.router
        everywhere = (at(0), at(1), at(2))
        for item in everywhere:
            await fleet.spawn(item)
        fleet.route(everywhere, Routing(shares={"small": 1.0}))
        ticket = router.open(1)
        router.submit(ticket, lambda ticket: None)
        await house.settle()
        house.may_start.clear()
        for _ in range(2):
            next(worker for worker in house.started if worker.state == "ready" and worker.sent).die(reason)
            await house.settle()
        assert ticket.deaths == deaths
        assert (ticket.status == 503) == (deaths == 2)
        if deaths == 1:
            worker = next(worker for worker in house.started if worker.state == "ready" and worker.sent)
            worker.done.append((worker.sent[-1], 0, 1, house.now_ns, house.now_ns, 0))
            router.reap()
            assert ticket.status == 200
        house.may_start.set()
        await fleet.stop()

    test()
