"""Two versions behind one name: who answers, what is compared, and that clients do not pay for the new one's faults."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from clover.config import TenantConfig
from clover.errors import BadRequest, Overloaded, Unavailable
from clover.runtime.guard.release import ReleaseLimits, ReleaseTests
from clover.runtime.memory.slab import ROWS_REFUSED
from clover.runtime.split import ServedVersion, VersionSplit
from clover.tenants import Tenant
from clover.types import StepsSpec, TensorSpec
from tests.support.router_fixture import FakeWorker, House, family


class Versions:
    """A stable version and a new one, each with a worker that the test drives."""

    def __init__(
        self, share: float = 0.5, paired: float = 0.0, config: dict[str, Any] | None = None, **changes: Any
    ) -> None:
        spec = family(**changes)
        self.stable, self.new = (
            House(msgspec.structs.replace(spec, version=version), **config or {}) for version in ("1", "2")
        )
        self.workers: list[FakeWorker] = [
            house.route(2, shares=(0.0, 0.0, 1.0))[0] for house in (self.stable, self.new)
        ]
        self.tests = ReleaseTests(ReleaseLimits(warmup_s=0.0), 0.0)
        versions = [ServedVersion(house.router, house.slab) for house in (self.stable, self.new)]
        self.now_s = 0.0
        self.split = VersionSplit(versions[0], versions[1], self.tests, clock=lambda: self.now_s)
        self.split.share, self.split.paired = share, paired
        self.done: list[Any] = []

    def ask(self, value: float = 1.0, rows: int = 1, tenant: Tenant | None = None, uncached: int = 0) -> Any:
        split = self.split
        ticket = split.open(rows, 1, tenant=tenant)
        ticket.uncached = uncached
        split.write(ticket, 0, np.full((rows, 2), value, np.float32))
        split.submit(ticket, self.done.append, context="mine")
        return ticket

    def answer(self, new: bool, values: tuple[float, float] = (1.0, 0.0), status: int = 0) -> None:
        """Have a version's worker finish its oldest batch."""
        house, worker = (self.new, self.workers[1]) if new else (self.stable, self.workers[0])
        house.loop.turn()
        house.router.dispatch.run_turn()
        for slot in worker.finish(house.loop.now_ns, status):
            house.slab.output(0)[slot] = values
        house.router.reap()

    def refuse(self, new: bool, reason: str = "no picture") -> None:
        """Have the steps of a version refuse the first row of its oldest batch."""
        house, worker = (self.new, self.workers[1]) if new else (self.stable, self.workers[0])
        house.loop.turn()
        house.router.dispatch.run_turn()
        house.slab.refuse(worker.ring.batches[0][1], {0: reason})
        worker.finish(house.loop.now_ns, ROWS_REFUSED)
        house.router.reap()

    def by_new(self, ticket: Any) -> bool:
        return self.split.version_of(ticket).version == "2"

    def close(self) -> None:
        for house in (self.stable, self.new):
            house.check_slots()
            house.router.stop()
            house.slab.close()


def test_each_version_has_its_share_at_any_time() -> None:
    scene = Versions(share=0.1)
    taken = 0
    for count in range(1, 501):
        ticket = scene.split.open(1)
        taken += scene.by_new(ticket)
        scene.split.close(ticket)
        assert abs(taken - 0.1 * count) < 3
    assert (scene.split.new.requests, scene.split.stable.requests) == (taken, 500 - taken)
    scene.close()


def test_an_answer_is_that_of_the_version_that_was_asked_and_says_so() -> None:
    scene = Versions(share=1.0)
    ticket = scene.ask(3.0)
    scene.answer(new=True, values=(0.25, 0.75))
    assert scene.done == [ticket]
    assert ticket.context == "mine"
    assert scene.split.read(ticket, 0).tolist() == [[0.25, 0.75]]  # type: ignore[union-attr]
    assert scene.split.receipt(ticket).version == "2"
    scene.split.close(ticket)
    scene.split.close(ticket)
    assert scene.split.waiting == 0
    scene.close()


def test_what_the_new_version_fails_is_answered_by_the_stable_one() -> None:
    scene = Versions(share=1.0)
    ticket = scene.ask(3.0)
    scene.answer(new=True, status=1)
    if not scene.stable.router.state.batcher.depth():  # a failed batch is tried again once
        scene.answer(new=True, status=1)
    assert scene.done == []
    scene.answer(new=False, values=(0.5, 0.5))
    assert scene.done == [ticket]
    assert ticket.status == 200
    assert scene.split.receipt(ticket).version == "1"
    assert scene.split.read(ticket, 0).tolist() == [[0.5, 0.5]]  # type: ignore[union-attr]
    scene.split.close(ticket)
    scene.tests.evaluate(2.0)
    assert (scene.split.new.failed, scene.split.stable.failed) == (1, 0)
    scene.close()


def test_a_new_version_without_workers_costs_no_client_anything() -> None:
    scene = Versions(share=1.0)
    scene.new.router.route([], scene.new.router.state.lanes.routing)
    ticket = scene.ask()
    assert not scene.by_new(ticket)
    scene.answer(new=False)
    assert ticket.status == 200
    scene.split.close(ticket)
    assert scene.split.new.failed == 1
    scene.split.alone = True
    with pytest.raises(Unavailable):
        scene.split.open(1)
    scene.close()


def test_what_the_new_version_refuses_when_it_is_submitted_moves_with_its_rows() -> None:
    scene = Versions(share=1.0)

    def refuse(*_: Any) -> None:
        raise Overloaded("too many rows wait")

    split = scene.split
    ticket = split.open(2, 1)
    split.write(ticket, 0, np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    ticket.waited_ns = 5_000_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split.new, "router", _Refusing(scene.new.router, refuse))
        split.submit(ticket, scene.done.append)
        moved = split._asked[ticket].answering
        assert scene.stable.slab.input(0)[moved.slots].tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert (moved.waited_ns, moved.submit_ns - moved.arrival_ns) == (5_000_000, 5_000_000), "it was held"
        scene.answer(new=False)
        assert scene.done == [ticket]
        split.close(ticket)
    scene.close()


class _Refusing:
    """A router that refuses what is submitted."""

    def __init__(self, router: Any, submit: Any) -> None:
        self._router = router
        self.submit = submit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)


def test_a_request_that_is_wrong_is_refused_and_counts_for_neither() -> None:
    scene = Versions(share=1.0)
    ticket = scene.split.open(1)
    with pytest.raises(BadRequest):
        scene.split.submit(ticket, scene.done.append, min_accuracy=99.0)
    scene.split.close(ticket)
    assert scene.split.stable.requests == 0
    assert (scene.split.new.failed, scene.split.stable.failed, scene.split.waiting) == (0, 0, 0)
    scene.close()


def test_an_accuracy_that_only_the_stable_version_reaches_costs_its_client_nothing() -> None:
    scene = Versions(share=1.0)
    scene.new.router.accuracy[:] = [value - 5.0 for value in scene.new.router.accuracy]
    ticket = scene.split.open(1)
    scene.split.write(ticket, 0, np.ones((1, 2), np.float32))
    scene.split.submit(ticket, scene.done.append, min_accuracy=90.0)
    scene.answer(new=False)
    assert (ticket.status, scene.split.receipt(ticket).version) == (200, "1")
    scene.split.close(ticket)
    assert scene.split.new.failed == 1
    scene.close()


def test_rows_that_only_the_new_version_refuses_are_answered_by_the_stable_one() -> None:
    scene = Versions(share=1.0, steps=StepsSpec())
    ticket = scene.ask(3.0)
    scene.refuse(new=True)
    assert scene.done == []
    scene.answer(new=False)
    assert (ticket.status, scene.split.receipt(ticket).version) == (200, "1")
    scene.split.close(ticket)
    assert (scene.split.new.failed, scene.split.stable.failed) == (1, 0)
    wrong = scene.ask(4.0)  # both refuse it: the fault is the client's
    scene.refuse(new=True)
    scene.refuse(new=False, reason="no picture at all")
    assert (wrong.status, wrong.error) == (400, "no picture at all")
    scene.split.close(wrong)
    assert (scene.split.new.failed, scene.split.stable.failed) == (1, 0)
    scene.close()


def test_a_row_of_both_that_the_new_version_refuses_is_answered_differently() -> None:
    scene = Versions(share=0.0, paired=1.0, steps=StepsSpec())
    ticket = scene.ask()
    scene.answer(new=False)
    scene.split.close(ticket)
    scene.refuse(new=True)
    assert (scene.tests.tests["differs"].count, scene.tests.tests["differs"].mean) == (1, 1.0)
    assert (scene.split.pairs, scene.split.waiting) == (1, 0)
    scene.close()


def test_a_tenant_pays_once_for_rows_that_both_versions_were_asked() -> None:
    scene = Versions(share=1.0, steps=StepsSpec())
    tenant = Tenant(TenantConfig(name="ada", token="x" * 16, rate=1.0, burst=2), 1)
    for value in (1.0, 2.0):
        ticket = scene.ask(value, tenant=tenant)
        scene.refuse(new=True)
        scene.answer(new=False)
        assert ticket.status == 200
        scene.split.close(ticket)
    with pytest.raises(Overloaded):
        scene.ask(tenant=tenant)
    scene.close()


def test_rows_of_both_leave_nothing_in_the_cache_of_the_new_version() -> None:
    scene = Versions(share=0.0, paired=1.0, config={"cache_answers": 1.0})
    for _ in range(2):
        ticket = scene.ask(7.0, uncached=2)
        scene.answer(new=False)
        scene.split.close(ticket)
        scene.answer(new=True)
    assert scene.split.pairs == 2
    assert scene.new.router.cached is not None
    assert scene.new.router.cached.cache.hits == 0
    scene.split.share, scene.split.paired = 1.0, 0.0
    ticket = scene.ask(8.0, uncached=2)  # the new version fails it: nor does the stable one keep it
    scene.new.router.fail_waiting("gone")
    assert scene.split._asked[ticket].answering.uncached == 2
    scene.answer(new=False)
    scene.split.close(ticket)
    scene.close()


def test_long_answers_of_both_versions_are_compared_and_not_kept() -> None:
    outputs = (TensorSpec(name="y", datatype="BYTES", shape=(1,), max_bytes=1000),)
    scene = Versions(share=0.0, paired=1.0, outputs=outputs)
    for number, length in ((1, 200), (2, 900)):
        ticket = scene.ask(float(number))
        for new in (False, True):
            house, worker = (scene.new, scene.workers[1]) if new else (scene.stable, scene.workers[0])
            house.loop.turn()
            house.router.dispatch.run_turn()
            for slot in worker.finish(house.loop.now_ns):
                house.slab.put_bytes("output", 0, slot, length.to_bytes(4, "little") + b"x" * length)
            house.router.reap()
            if not new:
                scene.split.remember(number, ticket)
                scene.split.close(ticket)
    assert (scene.split.pairs, scene.tests.tests["differs"].mean) == (2, 0.0)
    assert list(scene.split._answers) == [1]
    scene.close()


def test_labels_of_the_new_version_s_answers_are_known_as_long_as_those_answers_are() -> None:
    scene = Versions(share=1.0, config={"feedback_rows": 100})
    ticket = scene.ask()
    scene.answer(new=True)
    scene.new.router.remember(7, ticket)  # as for a request by path
    scene.split.close(ticket)
    assert scene.split.count_labels(7, [0], "someone")["right"] == 1
    scene.close()


def test_a_client_that_goes_frees_what_both_versions_hold() -> None:
    scene = Versions(share=1.0)
    ticket = scene.ask()
    scene.split.close(ticket)
    scene.new.loop.turn()
    assert scene.done == []
    assert scene.split.waiting == 0
    scene.close()


def test_rows_that_both_answer_are_compared_and_so_are_their_labels() -> None:
    scene = Versions(share=0.0, paired=1.0)
    for number, said in ((11, (1.0, 0.0)), (12, (0.0, 1.0))):
        ticket = scene.ask(float(number))
        scene.answer(new=False, values=(1.0, 0.0))
        scene.split.remember(number, ticket)
        scene.split.close(ticket)
        assert scene.split.waiting == 1
        scene.answer(new=True, values=said)
        assert scene.split.waiting == 0
    tests = scene.tests.tests
    assert (tests["differs"].count, tests["differs"].mean, scene.split.pairs) == (2, 0.5, 2)
    for number in (11, 12):
        assert scene.split.count_labels(number, [0], "someone")["right"] == 1
    assert (tests["accuracy"].count, tests["accuracy"].mean) == (2, 0.5)  # the new one is wrong once more
    assert scene.stable.slab.input(0)[0].tolist() == [12.0, 12.0]
    scene.close()


def test_labels_may_come_before_the_second_answer() -> None:
    scene = Versions(share=0.0, paired=1.0)
    ticket = scene.ask()
    scene.answer(new=False, values=(1.0, 0.0))
    scene.split.remember(5, ticket)
    scene.split.close(ticket)
    assert scene.split.count_labels(5, [0], "someone")["right"] == 1
    assert scene.tests.tests["accuracy"].count == 0
    scene.answer(new=True, values=(0.0, 1.0))
    assert (scene.tests.tests["accuracy"].count, scene.tests.tests["accuracy"].mean) == (1, 1.0)
    scene.close()


def test_latency_and_failures_are_counted_by_version() -> None:
    scene = Versions(share=0.5)
    for _ in range(8):
        ticket = scene.ask()
        new = scene.by_new(ticket)
        (scene.new if new else scene.stable).loop.now_ns += (40 if new else 10) * 1_000_000
        scene.answer(new)
        scene.split.close(ticket)
    scene.now_s = 1.5
    scene.tests.evaluate(scene.now_s)
    assert scene.tests.tests["slower"].mean == 1.0
    assert scene.tests.tests["errors"].mean == 0.0
    scene.close()
