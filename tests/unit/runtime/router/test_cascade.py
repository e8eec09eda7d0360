"""Rows that go on: the router asks a dearer variant where the score of a cheaper one is too low."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.errors import BadRequest
from clover.runtime.cascade import RoutedChain, chain_of
from clover.runtime.router.tickets import RouterTicket
from clover.types import ChainPoint
from tests.support.router_fixture import MS, SECOND, FakeWorker, House, dealt

SMALL, MEDIUM, LARGE = range(3)
CHAIN = ("small", "medium", "large")
POINTS = tuple(
    ChainPoint(
        chain=chain,
        thresholds=thresholds,
        accuracy=low + 1.0,
        low=low,
        high=low + 2.0,
        reach=(1.0, 0.3, 0.1)[: len(chain)],
        ends=(95.0, 91.0, 84.0)[: len(chain)],
        cut=(60.0, 55.0, 84.0)[: len(chain)],
        cost=cost,
    )
    for chain, thresholds, low, cost in (
        (("small",), (), 79.0, 0.1),
        (("small", "medium"), (0.7,), 83.0, 0.2),
        (CHAIN, (0.8, 0.5), 87.0, 0.3),
        (CHAIN, (0.9, 0.9), 88.5, 0.7),
        (("large",), (), 89.0, 1.0),
    )
)


class Cascade(House):
    """One worker a variant; rows follow small > medium > large, with thresholds 0.8 and 0.5."""

    def __init__(self, lanes: tuple[int, ...] = (SMALL, MEDIUM, LARGE), **config: Any) -> None:
        super().__init__(slots=64, **config)
        self.router.state.lanes.points = POINTS
        self.staff = {lane: self.entry(lane) for lane in lanes}
        self.chain()

    def chain(self, chain: tuple[str, ...] = CHAIN, thresholds: tuple[float, ...] = (0.8, 0.5)) -> None:
        routing = dealt(1.0, 0.0, 0.0, chain=chain, thresholds=thresholds)
        self.router.route(list(self.staff.values()), routing)

    def worker(self, lane: int) -> FakeWorker:
        worker: FakeWorker = self.staff[lane][0]
        return worker

    def answer(self, lane: int, *scores: float, status: int = 0) -> None:
        """The worker of `lane` answers its next batch with these scores."""
        _, slots = self.worker(lane).ring.batches[0]
        assert len(slots) == len(scores)
        self.slab.score[slots] = np.array(scores, np.float32)
        self.complete(self.worker(lane), status)

    def sent(self, lane: int) -> list[int]:
        return [len(slots) for _, slots in self.worker(lane).ring.batches]


@pytest.fixture
def house() -> Cascade:
    return Cascade()


def test_a_row_that_is_sure_enough_ends_where_it_began(house: Cascade) -> None:
    ticket = house.ask()
    assert house.sent(SMALL) == [1]
    house.answer(SMALL, 0.8)
    assert house.done == [ticket]
    assert (ticket.status, ticket.variants, list(house.router.escalation.paths(ticket))) == (200, [SMALL], ["small"])
    assert house.router.receipt(ticket).accuracy == 95.0
    assert house.router.traffic.rows == [1, 0, 0]
    house.check_slots()


def test_a_row_that_is_not_goes_on_to_the_end(house: Cascade) -> None:
    ticket = house.ask()
    slot = ticket.slots[0]
    house.answer(SMALL, 0.79)
    assert house.worker(MEDIUM).ring.batches[0][1] == [slot], "the row stays in its slot"
    assert house.done == []
    house.answer(MEDIUM, 0.49)
    house.answer(LARGE, 0.0)
    assert (ticket.status, ticket.variants) == (200, [LARGE])
    assert list(house.router.escalation.paths(ticket)) == ["small>medium>large"]
    receipt = house.router.receipt(ticket)
    assert (receipt.variant, receipt.accuracy) == ("large", 84.0)
    traffic = house.router.traffic
    assert (traffic.rows, traffic.escalated) == ([0, 0, 1], [1, 1, 0])
    assert traffic.report("toy", "1", 0)["inference_count"] == 1
    assert house.router.observe()["accuracy_served"] == 84.0
    assert traffic.cut_short == {}
    house.check_slots()


def test_a_row_that_keeps_its_earlier_answer_is_counted_as_served_once(house: Cascade) -> None:
    def served() -> int:
        meters = [entry[3] for entry in house.staff.values()]
        return sum(meter.window_useful - meter.window_gone_on for meter in meters)

    house.ask()
    house.answer(SMALL, 0.1)
    house.answer(MEDIUM, 0.1, status=1)
    assert [ticket.status for ticket in house.done] == [200]
    assert served() == 1
    house.ask(timeout_ns=5 * MS)
    house.answer(SMALL, 0.1)
    house.loop.advance(10 * MS)
    house.answer(MEDIUM, 0.9)
    house.ask()
    house.answer(SMALL, 0.9)
    assert served() == sum(ticket.status == 200 for ticket in house.done)


def test_a_score_that_is_no_number_is_not_sure(house: Cascade) -> None:
    house.ask()
    house.answer(SMALL, float("nan"))
    assert house.sent(MEDIUM) == [1]


def test_rows_of_one_request_end_apart_and_are_answered_together(house: Cascade) -> None:
    ticket = house.ask(3)
    house.answer(SMALL, 0.9, 0.1, 0.2)
    assert house.sent(MEDIUM) == [2]
    assert house.done == []
    house.answer(MEDIUM, 0.6, 0.3)
    house.answer(LARGE, 0.9)
    assert house.done == [ticket]
    assert list(house.router.escalation.paths(ticket)) == ["small", "small>medium", "small>medium>large"]
    receipt = house.router.receipt(ticket)
    assert receipt.variant == "small+medium+large"
    assert receipt.accuracy == pytest.approx((95 + 91 + 84) / 3)


def test_energy_is_that_of_all_stages(house: Cascade) -> None:
    ticket = house.ask()  # a millisecond of 8 W in each stage
    for lane in (SMALL, MEDIUM, LARGE):
        house.answer(lane, 0.0)
    assert ticket.energy_j == pytest.approx(0.024)


def test_who_does_not_want_a_cascade_is_dealt_by_shares(house: Cascade) -> None:
    ticket = house.ask(cascade=False)
    house.answer(SMALL, 0.0)
    assert (ticket.status, ticket.variants) == (200, [SMALL])
    assert house.router.receipt(ticket).accuracy == 80.0


def test_batches_are_of_mixed_origin(house: Cascade) -> None:
    """Rows that went on and rows that were sent to medium share its batches."""
    house.router.route(list(house.staff.values()), dealt(1.0, 0.0, 0.0, chain=CHAIN, thresholds=(0.8, 0.5)))
    house.ask(2)
    direct = house.ask(1, turn=False, min_accuracy=84.0, cascade=False)
    assert direct.chain is None
    house.answer(SMALL, 0.1, 0.1)
    assert house.sent(MEDIUM) == [3]
    house.answer(MEDIUM, 0.9, 0.9, 0.9)
    assert {ticket.status for ticket in house.done} == {200}
    assert len(house.done) == 2


@pytest.mark.parametrize(
    ("least", "chain", "thresholds"),
    [(79.0, ("small",), ()), (80.0, ("small", "medium"), (0.7,)), (87.5, CHAIN, (0.9, 0.9)), (89.0, ("large",), ())],
)
def test_a_least_accuracy_takes_the_cheapest_chain_that_is_sure_to_have_it(
    house: Cascade, least: float, chain: tuple[str, ...], thresholds: tuple[float, ...]
) -> None:
    ticket = house.ask(min_accuracy=least)
    assert ticket.chain is not None
    assert [CHAIN[lane] for lane in ticket.chain.lanes] == list(chain)
    assert ticket.chain.thresholds == thresholds


def test_a_least_accuracy_that_no_chain_is_sure_of_asks_a_variant_that_is_expected_to_have_it(house: Cascade) -> None:
    ticket = house.ask(min_accuracy=89.5)
    assert ticket.chain is None
    assert house.sent(LARGE) == [1]
    with pytest.raises(BadRequest, match="no variant"):
        house.ask(min_accuracy=91.0)


def test_a_chain_whose_stage_is_not_there_is_not_taken_for_a_least_accuracy() -> None:
    house = Cascade((SMALL, LARGE))
    ticket = house.ask(min_accuracy=80.0)
    assert ticket.chain is not None
    assert ticket.chain.lanes == (LARGE,)
    house.answer(LARGE, 0.0)
    assert (ticket.status, house.router.receipt(ticket).path) == (200, ("large",))


def test_thresholds_turn_between_two_requests(house: Cascade) -> None:
    before = house.ask()
    house.chain(thresholds=(0.3, 0.2))
    after = house.ask()
    house.answer(SMALL, 0.5)
    assert (before.phase, house.sent(MEDIUM)) == (1, [1]), "it left under the thresholds of then"
    house.answer(SMALL, 0.5)
    assert house.done == [after]


def test_time_that_does_not_suffice_is_not_spent(house: Cascade) -> None:
    """Medium took 8 ms last time; 5 are left."""
    house.router.escalation.busy_ns[MEDIUM] = 8 * MS
    ticket = house.ask(timeout_ns=10 * MS)
    house.loop.advance(5 * MS)
    house.answer(SMALL, 0.1)
    assert (ticket.status, ticket.variants) == (200, [SMALL])
    assert house.router.traffic.cut_short == {"deadline": 1}
    assert house.router.receipt(ticket).accuracy == 60.0, "of the rows that should have gone on"
    assert house.router.observe()["accuracy_served"] == 60.0


def test_a_queue_before_the_next_stage_counts_as_time(house: Cascade) -> None:
    house.router.escalation.busy_ns[MEDIUM] = 8 * MS
    tickets = [house.ask(min_accuracy=85.0, cascade=False) for _ in range(2)]
    late = house.ask(timeout_ns=20 * MS)
    house.answer(SMALL, 0.1)  # two batches are before it: 24 ms
    assert (late.status, house.router.traffic.cut_short) == (200, {"deadline": 1})
    assert {ticket.phase for ticket in tickets} == {1}


def test_at_the_deadline_a_row_that_waits_keeps_its_answer(house: Cascade) -> None:
    others = [house.ask(min_accuracy=85.0, cascade=False) for _ in range(2)]  # both credits of medium
    ticket = house.ask(timeout_ns=10 * MS)
    house.answer(SMALL, 0.1)
    assert house.done == []
    house.loop.advance(11 * MS)
    assert house.done == [ticket]
    assert (ticket.status, ticket.variants, list(house.router.escalation.paths(ticket))) == (200, [SMALL], ["small"])
    assert house.router.traffic.cut_short == {"deadline": 1}
    assert house.router.traffic.rows == [1, 0, 0]
    assert all(other.phase == 1 for other in others)
    house.check_slots()


def test_at_the_deadline_a_row_that_is_being_computed_is_missed(house: Cascade) -> None:
    """A worker may be writing into its slot: nobody knows whose answer lies there."""
    ticket = house.ask(timeout_ns=10 * MS)
    house.answer(SMALL, 0.1)
    house.loop.advance(11 * MS)
    assert (ticket.status, house.done) == (504, [ticket])
    house.answer(MEDIUM, 0.9)
    house.router.close(ticket)
    house.check_slots()


def test_a_stage_that_fails_leaves_the_answer_before(house: Cascade) -> None:
    ticket = house.ask()
    house.answer(SMALL, 0.1)
    house.answer(MEDIUM, 0.0, status=1)
    assert (ticket.status, ticket.variants) == (200, [SMALL])
    assert house.router.traffic.cut_short == {"failed": 1}
    assert house.router.traffic.rows == [1, 0, 0]


def test_a_first_stage_that_fails_is_a_failure(house: Cascade) -> None:
    ticket = house.ask()
    house.answer(SMALL, 0.0, status=1)
    assert ticket.status == 500


def test_without_a_worker_of_the_next_stage_a_row_stays() -> None:
    house = Cascade((SMALL, LARGE))
    ticket = house.ask()
    house.answer(SMALL, 0.1)
    assert (ticket.status, ticket.variants) == (200, [SMALL])
    assert house.router.traffic.cut_short == {"nobody": 1}


def test_without_a_worker_of_the_first_stage_shares_deal() -> None:
    house = Cascade((MEDIUM, LARGE))
    ticket = house.ask()
    assert ticket.chain is None
    assert house.sent(MEDIUM) == [1]


def test_a_row_whose_stage_died_goes_to_the_next(house: Cascade) -> None:
    ticket = house.ask()
    house.answer(SMALL, 0.1)
    house.router.died(house.worker(MEDIUM), "killed")
    assert ticket.deaths == 1
    assert house.sent(LARGE) == [1]
    house.answer(LARGE, 0.9)
    assert (ticket.status, list(house.router.escalation.paths(ticket))) == (200, ["small>large"])
    house.check_slots()


def test_a_row_whose_stage_died_is_asked_there_again_where_others_are(house: Cascade) -> None:
    house.staff[7] = house.entry(MEDIUM)
    house.chain()
    ticket = house.ask()
    house.answer(SMALL, 0.1)
    first, second = (MEDIUM, 7) if house.sent(MEDIUM) else (7, MEDIUM)
    house.router.died(house.worker(first), "killed")
    assert house.sent(second) == [1]
    house.answer(second, 0.9)
    assert (ticket.status, list(house.router.escalation.paths(ticket))) == (200, ["small>medium"])


def test_a_row_that_has_to_begin_anew_forgets_its_path() -> None:
    house = Cascade((SMALL, LARGE))
    house.chain(("small", "large"), (0.8,))
    ticket = house.ask()
    house.answer(SMALL, 0.1)
    house.router.died(house.worker(LARGE), "killed")
    assert house.sent(SMALL) == [1]
    house.answer(SMALL, 0.1)
    assert (ticket.status, list(house.router.escalation.paths(ticket))) == (200, ["small"])
    assert house.router.traffic.cut_short == {"nobody": 1}


def test_deaths_count_across_stages(house: Cascade) -> None:
    ticket = house.ask()
    house.router.died(house.worker(SMALL), "killed")
    assert house.sent(MEDIUM) == [1]
    house.router.died(house.worker(MEDIUM), "killed")
    assert (ticket.status, ticket.deaths) == (503, 2)
    assert house.router.traffic.poisoned == 1


@pytest.mark.parametrize("blame", [True, False])
def test_an_answer_that_a_dying_worker_may_have_overwritten_is_not_kept(house: Cascade, blame: bool) -> None:
    """The next stage died over the row; it waits to be asked there again when its deadline comes."""
    house.staff[7] = house.entry(MEDIUM)
    house.chain()
    ticket = house.ask(timeout_ns=10 * MS)
    house.answer(SMALL, 0.1)
    first, second = (MEDIUM, 7) if house.sent(MEDIUM) else (7, MEDIUM)
    others = [house.ask(min_accuracy=85.0, cascade=False) for _ in range(3)]  # no credit of the lane is left
    house.router.died(house.worker(first), "killed", blame=blame)
    assert house.sent(second) == [1, 1]
    house.loop.advance(11 * MS)
    assert (house.done, ticket.status) == ([ticket], 504)
    assert house.router.traffic.cut_short == {}
    assert all(other.phase == 1 for other in others)
    house.check_slots()


def test_an_answer_of_a_batch_that_was_never_begun_is_kept(house: Cascade) -> None:
    house.staff[7] = house.entry(MEDIUM)
    house.chain()
    ticket = house.ask(timeout_ns=10 * MS)
    house.answer(SMALL, 0.1)
    first, second = (MEDIUM, 7) if house.sent(MEDIUM) else (7, MEDIUM)
    for _ in range(3):
        house.ask(min_accuracy=85.0, cascade=False)
    house.worker(first).ring.waiting = 2
    house.router.died(house.worker(first), "killed")
    assert house.sent(second) == [1, 1]
    house.loop.advance(11 * MS)
    assert (ticket.status, ticket.variants) == (200, [SMALL])


def test_at_the_deadline_a_row_that_began_anew_does_not_pass_another_answer_for_that_of_its_first_stage() -> None:
    """Medium's answer lies in its slot, and small is asked again: nobody else is left."""
    house = Cascade()
    ticket = house.ask(timeout_ns=10 * MS)
    house.answer(SMALL, 0.1)
    house.answer(MEDIUM, 0.1)
    others = [house.ask(cascade=False) for _ in range(2)]  # both credits of small
    house.router.leave(house.worker(MEDIUM), lambda: None)
    house.worker(LARGE).ring.waiting = 1
    house.router.died(house.worker(LARGE), "killed")
    assert (ticket.phase, ticket.variants, ticket.paths) == (1, [SMALL], {0: ()})
    house.loop.advance(11 * MS)
    assert ticket.status == 504
    assert all(other.phase == 1 for other in others)


def test_a_stage_that_fails_after_one_that_died_leaves_no_answer(house: Cascade) -> None:
    house.staff[7] = house.entry(MEDIUM)
    house.chain()
    ticket = house.ask()
    house.answer(SMALL, 0.1)
    first, second = (MEDIUM, 7) if house.sent(MEDIUM) else (7, MEDIUM)
    house.router.died(house.worker(first), "killed")
    house.answer(second, 0.0, status=1)
    assert ticket.status == 500


def test_a_stage_that_answers_after_one_that_died_is_kept_again(house: Cascade) -> None:
    house.staff[7] = house.entry(MEDIUM)
    house.chain()
    ticket = house.ask()
    house.answer(SMALL, 0.1)
    first, second = (MEDIUM, 7) if house.sent(MEDIUM) else (7, MEDIUM)
    house.router.died(house.worker(first), "killed")
    house.answer(second, 0.1)
    house.answer(LARGE, 0.0, status=1)
    assert (ticket.status, ticket.variants) == (200, [MEDIUM])


def test_rows_of_a_stage_that_lost_its_worker_move_to_another() -> None:
    house = Cascade()
    for _ in range(3):
        house.ask()
        house.answer(SMALL, 0.1)
    left: list[bool] = []
    house.router.leave(house.worker(MEDIUM), lambda: left.append(True))
    assert house.done == []
    while house.sent(MEDIUM):
        house.answer(MEDIUM, *[0.9] * house.sent(MEDIUM)[0])
    for lane in (SMALL, LARGE):
        while house.sent(lane):
            house.answer(lane, *[0.9] * house.sent(lane)[0])
    assert len(house.done) == 3
    assert {ticket.status for ticket in house.done} == {200}
    house.check_slots()


@pytest.mark.parametrize(
    ("chain", "thresholds"),
    [
        (("small", "huge"), (0.5,)),
        (("small", "small"), (0.5,)),
        (("small", "large"), ()),
        (("small", "large"), (0.5, 0.6)),
        (("small", "large"), (float("nan"),)),
    ],
)
def test_a_chain_that_is_none_is_refused_and_changes_nothing(
    house: Cascade, chain: tuple[str, ...], thresholds: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="chain"):
        house.chain(chain, thresholds)
    house.ask()
    house.answer(SMALL, 0.1)
    assert house.sent(MEDIUM) == [1]


def test_of_a_chain_that_was_not_profiled_each_variants_own_accuracy_is_known() -> None:
    lanes = {"small": 0, "large": 1}
    found = chain_of(("small", "large"), (0.5,), lanes, (80.0, 90.0), {})
    assert found == RoutedChain((0, 1), (0.5,), (80.0, 90.0), (80.0, 90.0))
    assert [found.stage(lane) for lane in (0, 1, 7)] == [0, 1, -1]


@pytest.mark.slow
@given(
    scores=st.lists(st.tuples(*[st.floats(0.0, 1.0, width=32)] * 2), min_size=1, max_size=12),
    sizes=st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
def test_every_row_ends_where_its_scores_say(scores: list[tuple[float, float]], sizes: list[int]) -> None:
    house = Cascade()
    expected: dict[int, tuple[RouterTicket, int, str]] = {}
    left = list(scores)
    for size in sizes:
        own, left = left[:size], left[size:]
        if not own:
            break
        ticket = house.ask(len(own))
        for row, (one, two) in enumerate(own):
            path = "small" if one >= 0.8 else "small>medium" if two >= 0.5 else "small>medium>large"
            expected[ticket.slots[row]] = (ticket, row, path)
            house.slab.input(0)[ticket.slots[row]] = (one, two)
    while any(house.sent(lane) for lane in (SMALL, MEDIUM, LARGE)):
        for lane in (SMALL, MEDIUM, LARGE):
            while house.sent(lane):
                slots = house.worker(lane).ring.batches[0][1]
                told = house.slab.input(0)[slots]
                house.answer(lane, *(told[:, lane].tolist() if lane < LARGE else [0.0] * len(slots)))
    for ticket, row, path in expected.values():
        assert ticket.status == 200
        assert list(house.router.escalation.paths(ticket))[row] == path
    ends = [path.rpartition(">")[2] for _, _, path in expected.values()]
    assert house.router.traffic.rows == [ends.count(name) for name in CHAIN]
    for ticket in list(house.done):
        house.router.close(ticket)
    house.check_slots()
    assert house.router.observe()["free_slots"] == 64
    house.loop.advance(40 * SECOND)


def test_batches_of_other_variants_on_the_same_worker_take_their_time_too() -> None:
    house = House()
    small, large = house.shared(SMALL, LARGE)
    alone = house.entry(LARGE)
    house.router.route([small, large], dealt(1.0, 0.0, 0.0))
    escalation = house.router.escalation
    escalation.busy_ns[:] = [10 * MS, 0, 50 * MS]
    house.ask()
    assert escalation._service_ns(LARGE) == 60 * MS
    house.router.route([small, alone], dealt(1.0, 0.0, 0.0))
    assert escalation._service_ns(LARGE) == 50 * MS
