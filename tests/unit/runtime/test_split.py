"""Two versions behind one name: who answers, what is compared, and that clients do not pay for the new one's faults."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from clover.errors import BadRequest, Overloaded, Unavailable
from clover.runtime.guard.release import ReleaseLimits, ReleaseTests
from clover.runtime.split import ServedVersion, VersionSplit
from tests.support.router_fixture import FakeWorker, House, family


class Versions:
    """A stable version and a new one, each with a worker that the test drives."""

    def __init__(self, share: float = 0.5, paired: float = 0.0, **changes: Any) -> None:
        spec = family(**changes)
        self.stable, self.new = House(spec), House(msgspec.structs.replace(spec, version="2"))
        self.workers: list[FakeWorker] = [
            house.route(2, shares=(0.0, 0.0, 1.0))[0] for house in (self.stable, self.new)
        ]
        self.tests = ReleaseTests(ReleaseLimits(warmup_s=0.0), 0.0)
        versions = [ServedVersion(house.router, house.slab) for house in (self.stable, self.new)]
        self.now_s = 0.0
        self.split = VersionSplit(versions[0], versions[1], self.tests, clock=lambda: self.now_s)
        self.split.share, self.split.paired = share, paired
        self.done: list[Any] = []

    def ask(self, value: float = 1.0, rows: int = 1) -> Any:
        split = self.split
        ticket = split.open(rows, 1)
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
    scene.tests.look(2.0)
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split.new, "router", _Refusing(scene.new.router, refuse))
        split.submit(ticket, scene.done.append)
        moved = split._asked[ticket].answering
        assert scene.stable.slab.input(0)[moved.slots].tolist() == [[1.0, 2.0], [3.0, 4.0]]
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


def test_a_request_that_is_wrong_is_refused_and_asked_of_nobody_else() -> None:
    scene = Versions(share=1.0)
    ticket = scene.split.open(1)
    with pytest.raises(BadRequest):
        scene.split.submit(ticket, scene.done.append, min_accuracy=99.0)
    scene.split.close(ticket)
    assert scene.split.stable.requests == 0
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
        assert scene.split.labelled(number, [0], "someone")["right"] == 1
    assert (tests["accuracy"].count, tests["accuracy"].mean) == (2, 0.5)  # the new one is wrong once more
    assert scene.stable.slab.input(0)[0].tolist() == [12.0, 12.0]
    scene.close()


def test_labels_may_come_before_the_second_answer() -> None:
    scene = Versions(share=0.0, paired=1.0)
    ticket = scene.ask()
    scene.answer(new=False, values=(1.0, 0.0))
    scene.split.remember(5, ticket)
    scene.split.close(ticket)
    assert scene.split.labelled(5, [0], "someone")["right"] == 1
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
    scene.tests.look(scene.now_s)
    assert scene.tests.tests["slower"].mean == 1.0
    assert scene.tests.tests["errors"].mean == 0.0
    scene.close()
