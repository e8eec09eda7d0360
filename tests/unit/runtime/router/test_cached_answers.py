"""Requests answered from the cache: which answer stands for which request, and what that counts as."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clover.accounting.usage import CACHED
from clover.config import TenantConfig
from clover.runtime.router.cached_answers import NO_CACHE, NO_STORE
from clover.runtime.router.tickets import RouterTicket
from clover.tenants import Tenants
from clover.types import ChainPoint
from tests.support.router_fixture import SECOND, FakeWorker, House, dealt


class Scene(House):
    """A router that keeps answers; its worker answers each row with its input plus one."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**({"cache_answers": 1.0, "audit": 0.0} | config))
        [self.worker] = self.route(2, shares=(0.0, 0.0, 1.0))

    def serve(self, worker: FakeWorker | None = None) -> None:
        """Let a worker answer what it has."""
        worker = worker or self.worker
        if worker.ring.batches:
            for slot in worker.ring.batches[0][1]:
                self.slab.output(0)[slot] = self.slab.input(0)[slot] + 1
            self.complete(worker)
        self.loop.turn()

    def asked(
        self, value: float = 5.0, *, rows: int = 1, uncached: int = 0, tenant: Any = None, **how: Any
    ) -> RouterTicket:
        """Ask, have it answered, and return the ticket, which stays open."""
        ticket = self.router.open(rows, 0, 0, tenant)
        for at, slot in enumerate(ticket.slots):
            self.slab.input(0)[slot] = (value + at, 1.0)
        ticket.uncached = uncached
        self.router.submit(ticket, self.done.append, **how)
        self.loop.turn()
        for worker in self.workers:
            self.serve(worker)
        assert self.done[-1] is ticket
        assert ticket.status == 200
        for at in range(rows):
            assert np.asarray(self.router.read(ticket, 0))[at].tolist() == [value + at + 1, 2.0]
        return ticket

    def cached(self, value: float = 5.0, **how: Any) -> bool:
        """Ask and close; return whether the answer came from the cache, as its receipt says."""
        ticket = self.asked(value, **how)
        receipt = self.router.receipt(ticket)
        self.router.close(ticket)
        self.check_slots()
        return receipt.cached


def test_the_same_row_is_answered_without_a_worker() -> None:
    scene = Scene()
    assert [scene.cached(), scene.cached(), scene.cached(6.0), scene.cached(6.0)] == [False, True, False, True]
    assert sum(scene.router.traffic.rows) == 2
    assert scene.router.traffic.codes == {200: 4}
    kept: Any = scene.router.cached
    assert (kept.cache.hits, kept.cache.misses) == (2, 2)
    stats = scene.router.stats()["inference_stats"]
    assert (stats["cache_hit"]["count"], stats["cache_miss"]["count"]) == (2, 2)
    assert stats["success"]["count"] == 4


def test_without_the_setting_there_is_no_cache() -> None:
    scene = Scene(cache_answers=0.0)
    assert scene.router.cached is None
    assert [scene.cached(), scene.cached()] == [False, False]


def test_a_receipt_says_what_the_look_up_cost_and_who_answered_first() -> None:
    scene = Scene()
    scene.cached()
    scene.router.cached._cpu_ns = iter((1_000, 251_000)).__next__  # type: ignore[union-attr]
    ticket = scene.asked()
    before_j = scene.account.receipts_j["toy", ""]
    receipt = scene.router.receipt(ticket)
    assert receipt.cached
    assert (receipt.variant, receipt.accuracy, receipt.method) == ("large", 90.0, "modelled")
    assert receipt.energy_j == pytest.approx(250e-6 * scene.account.core_w)
    assert scene.account.receipts_j["toy", ""] - before_j == pytest.approx(receipt.energy_j)


def test_rows_of_the_cache_have_a_line_of_their_own_and_plans_leave_them_out() -> None:
    scene = Scene()
    for _ in range(5):
        scene.cached()
    lines = {key.variant: usage.rows for key, usage in scene.account.usage.items()}
    assert lines[CACHED] == 4
    assert scene.router.traffic.arrivals.per_s(scene.loop.now_ns) == pytest.approx(1.0)
    assert "p95_ms" not in scene.router.observe() or scene.router.traffic.rows == [0, 0, 1]


def test_answers_age() -> None:
    scene = Scene()
    scene.cached()
    scene.loop.advance(300 * SECOND)
    assert scene.cached()
    scene.loop.advance(SECOND)
    assert not scene.cached()
    assert scene.cached()


def test_tenants_do_not_share_answers() -> None:
    scene = Scene()
    tenants = Tenants([TenantConfig(name=name, token=name * 32) for name in "ab"])
    first, second = tenants.named("a"), tenants.named("b")
    assert [scene.cached(tenant=first), scene.cached(tenant=second), scene.cached()] == [False, False, False]
    assert [scene.cached(tenant=first), scene.cached(tenant=second), scene.cached()] == [True, True, True]
    assert scene.router.traffic.for_tenant("a").requests[200] == 2


def test_a_tenant_that_asks_much_does_not_take_the_room_of_another() -> None:
    scene = Scene()
    tenants = Tenants([TenantConfig(name=name, token=name * 32) for name in "ab"])
    first, second = tenants.named("a"), tenants.named("b")
    assert scene.router.cached is not None
    cache = scene.router.cached.cache
    assert not scene.cached(tenant=first)
    cache.most_bytes = 4 * cache.bytes
    for value in range(10):
        assert not scene.cached(float(value), tenant=second)
    assert scene.cached(tenant=first)
    assert len(cache) == 4


def test_demands_are_part_of_the_question() -> None:
    scene = Scene()
    scene.cached()
    assert not scene.cached(min_accuracy=85.0)
    assert not scene.cached(cascade=False)
    assert scene.cached(min_accuracy=85.0)


def test_a_plan_of_other_variants_forgets_and_the_same_one_remembers() -> None:
    scene = Scene()
    scene.cached()
    large = scene.router.state.lanes.entries()
    small = scene.entry(0)
    scene.router.route([small], dealt(1.0, 0.0, 0.0))
    assert not scene.cached()
    scene.router.route([*large, small], dealt(0.0, 0.0, 1.0))
    assert scene.cached()
    scene.router.route([*large, small], dealt(0.4, 0.0, 0.6))
    assert not scene.cached()
    scene.router.route([*large, small], dealt(0.3, 0.0, 0.7))  # shares alone change nothing
    assert scene.cached()


def test_an_answer_that_the_plan_did_not_mean_is_not_kept() -> None:
    scene = Scene()
    scene.router.route([scene.entry(0)], dealt(0.0, 0.0, 1.0))  # its worker is gone, and another variant serves
    assert [scene.cached(), scene.cached()] == [False, False]
    assert not scene.cached(min_accuracy=75.0)
    assert scene.cached(min_accuracy=75.0)  # it is as accurate as was asked for


def test_requests_may_forbid_the_cache() -> None:
    scene = Scene()
    assert not scene.cached(uncached=NO_STORE)
    assert not scene.cached()
    assert not scene.cached(uncached=NO_CACHE)
    assert not scene.cached(uncached=NO_STORE)
    assert scene.cached()


def test_a_fresh_answer_replaces_the_one_that_is_kept() -> None:
    scene = Scene()
    scene.cached()
    scene.loop.advance(250 * SECOND)
    scene.cached(uncached=NO_CACHE)
    scene.loop.advance(250 * SECOND)
    assert scene.cached()


def test_while_the_guard_is_alarmed_nothing_is_kept_or_given() -> None:
    scene = Scene()
    scene.cached()
    kept: Any = scene.router.cached
    monitor = kept._monitor
    kept._monitor = SimpleNamespace(guard=SimpleNamespace(alarm_level=1))
    assert [scene.cached(), scene.cached(), scene.cached(8.0)] == [False, False, False]
    kept._monitor = monitor
    assert [scene.cached(), scene.cached(8.0)] == [True, False]


def test_requests_of_several_rows_are_found_as_a_whole() -> None:
    scene = Scene()
    assert not scene.cached(1.0, rows=2)
    assert scene.cached(1.0, rows=2)
    assert scene.cached(2.0)
    assert not scene.cached(2.0, rows=2)
    assert scene.cached(1.0, rows=3)


def test_labels_may_come_for_an_answer_of_the_cache() -> None:
    scene = Scene()
    scene.cached()
    ticket = scene.asked()
    scene.router.remember(7, ticket)
    scene.router.close(ticket)
    assert scene.router.count_labels(7, [0], "client")["rows"] == 1
    assert scene.router.feedback.labelled == [0, 0, 1]


def test_a_failed_request_leaves_nothing() -> None:
    scene = Scene()
    ticket = scene.ask(again=5.0)
    scene.complete(scene.worker, status=1)
    scene.loop.turn()
    while ticket.status == 0:
        scene.complete(scene.worker, status=1)
        scene.loop.turn()
    assert ticket.status == 500
    scene.router.close(ticket)
    assert not scene.cached()


def test_a_client_that_leaves_meanwhile_leaves_nothing() -> None:
    scene = Scene()
    ticket = scene.ask(again=5.0)
    scene.router.close(ticket)
    scene.serve()
    assert not scene.cached()
    assert scene.cached()


def test_a_callback_comes_in_the_turn_after_as_for_every_request() -> None:
    scene = Scene()
    scene.cached()
    ticket = scene.ask(again=5.0, turn=False)
    assert ticket not in scene.done
    scene.loop.turn()
    assert scene.done[-1] is ticket


def test_an_answer_of_a_cascade_keeps_its_path_and_accuracy() -> None:
    scene = Scene()
    chain = ("small", "large")
    scene.router.state.lanes.points = (
        ChainPoint(
            chain=chain,
            thresholds=(0.8,),
            accuracy=87.0,
            low=86.0,
            high=88.0,
            reach=(1.0, 0.3),
            ends=(95.0, 84.0),
            cut=(60.0, 84.0),
            cost=0.3,
        ),
    )
    entries = [scene.entry(lane) for lane in (0, 2)]
    scene.router.route(entries, dealt(1.0, 0.0, 0.0, chain=chain, thresholds=(0.8,)))
    ticket = scene.ask(again=5.0)
    for worker, score in ((entries[0][0], 0.1), (entries[1][0], 0.9)):
        scene.slab.score[ticket.slots] = score
        scene.serve(worker)
    first = scene.router.receipt(ticket)
    scene.router.close(ticket)
    again = scene.ask(again=5.0)
    second = scene.router.receipt(again)
    assert (first.path, first.variant, first.accuracy) == (("small>large",), "large", 84.0)
    assert (second.path, second.variant, second.accuracy) == (first.path, first.variant, first.accuracy)
    assert (second.cached, first.cached) == (True, False)


def test_a_look_up_is_billed_once_however_often_its_receipt_is_read() -> None:
    scene = Scene()
    scene.cached()
    scene.router.cached._cpu_ns = iter((1_000, 251_000)).__next__  # type: ignore[union-attr]
    ticket = scene.asked()
    before_j = scene.account.receipts_j["toy", ""]
    first, second = scene.router.receipt(ticket), scene.router.receipt(ticket)  # for the answer, and for its span
    assert first.energy_j == second.energy_j
    assert scene.account.receipts_j["toy", ""] - before_j == pytest.approx(first.energy_j)
