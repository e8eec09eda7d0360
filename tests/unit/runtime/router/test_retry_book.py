"""When refused clients shall come back: places are spread over the capacity, and hold for those who have one."""

from __future__ import annotations

import importlib.util
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clover.runtime.router import retry_book
from clover.runtime.router.retry_book import HORIZON_S, RetryBook
from tests.support.router_fixture import MS, SECOND

START = 1000 * SECOND
SOURCE = Path(__file__).parents[4] / "clover/runtime/router/retry_book.py"


def book(capacity: float = 100.0) -> RetryBook:
    return RetryBook(lambda: 0, lambda now_ns: capacity)


def refuse_all(places: RetryBook, count: int, flow: int, first: int = 0) -> None:
    """Refuse requests within a second, each with an id if `first` is above 0."""
    for number in range(count):
        places.book(first + number if first else 0, flow, 1, START + number * SECOND // count)


def test_places_are_spread_over_what_can_be_served_whenever_clients_are_refused() -> None:
    places = book()
    rng = random.Random(1)
    come: Counter[int] = Counter()
    now_ns = START
    for number in range(2000):
        now_ns = START + round(number * SECOND / 2000)  # all within a second
        come[(now_ns + places.book(number + 1, rng.randrange(100), 1, now_ns) * SECOND) // (100 * MS)] += 1
    assert max(come.values()) <= 10, "a tenth of a second serves ten rows"
    whole = [come[tenth] for tenth in range(min(come) + 1, min(come) + 200)]
    assert min(whole) >= 6, "they do not come in herds"
    assert sum(whole) == pytest.approx(7 * len(whole), rel=0.05), "seven tenths are booked"


def test_a_place_may_be_used_when_it_is_due_and_once() -> None:
    places = book()
    wait_s = places.book(7, 1, 1, START)
    assert wait_s == 1
    assert not places.due(7, START)
    assert not places.use(7, START + SECOND // 2)
    assert places.due(7, START + SECOND)
    assert not places.due(1, START + SECOND), "a request with an id is known by that"
    assert places.use(7, START + SECOND)
    assert not places.use(7, START + SECOND)
    assert places.places == {}


def test_who_comes_too_early_is_told_of_the_place_that_it_has() -> None:
    places = book(capacity=1.0)
    places.book(1, 1, 4, START)
    assert places.book(2, 1, 1, START) == 7
    assert places.book(2, 1, 1, START + 4 * SECOND) == 3


@pytest.mark.parametrize("together", [1, 20, 500])
def test_a_full_book_gives_no_more_places(together: int) -> None:
    places = book()
    places.together = together
    for number in range(700):
        places.book(number + 1, number, 70, START)  # a second of what is booked of the capacity
    full = len(places.places)
    assert full <= HORIZON_S
    assert places.book(1000, 7, 1, START) == HORIZON_S
    assert len(places.places) == full, "what lies beyond the horizon is nobody's place"


def test_all_connections_together_have_so_many_places_and_get_new_ones_as_these_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry_book, "_MOST_PLACES", 50)
    places = book()
    for number in range(80):
        assert places.book(number + 1, number, 1, START) >= 1
    assert len(places.places) == 50
    assert places.use(1, START + SECOND)
    places.book(1000, 7, 1, START + SECOND)
    assert 1000 in places.places
    places.due(0, START + 700 * SECOND)  # all are over
    assert places.places == {}
    places.book(1001, 7, 1, START + 700 * SECOND)
    assert 1001 in places.places


def test_a_request_without_an_id_is_known_by_its_connection() -> None:
    places = book()
    for _ in range(10):
        assert places.book(0, 5, 1, START) == 1, "one that does not wait gets no second place"
    assert [places.use(5, START + SECOND) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(("request_id", "refused"), [(9, [1, 2, 3, 4]), (0, [1, 1, 1, 1]), (-5, [1, 1, 1, 1])])
def test_only_a_request_with_an_id_is_known_to_be_the_one_that_was_refused_before(
    request_id: int, refused: list[int]
) -> None:
    places = book()
    now_ns, before = START, 0
    found = []
    for _ in range(4):
        now_ns += places.book(request_id, 5, 1, now_ns, before) * SECOND
        before = places.use(request_id or 5, now_ns)
        found.append(before)
    assert found == refused


def test_places_that_nobody_used_are_forgotten_and_others_are_booked_instead() -> None:
    def told(second: int) -> float:
        now_ns = START + second * SECOND
        return sum(places.book(0, 1000 * second + at, 1, now_ns + at * 5 * MS) for at in range(200)) / 200

    served = iter(range(0, 10**6, 100))
    places = RetryBook(lambda: next(served), lambda now_ns: 100.0)
    later = [told(second) for second in range(60)]
    assert max(later) == pytest.approx(60 * (200 / 100 - 1), rel=0.1), "nobody comes, so all of the capacity is booked"
    assert not places.due(1, START + 700 * SECOND)
    assert places.places == {}


def test_one_connection_has_a_bounded_number_of_places() -> None:
    places = book()
    refuse_all(places, 200, flow=1)
    assert len(places.places[1]) == 1
    refuse_all(places, 200, flow=0)
    assert len(places.places[0]) == 64
    refuse_all(places, 2000, flow=2, first=10)
    assert sum(map(len, places.places.values())) == 1 + 64 + 1024
    assert places.book(0, 3, 1, START + SECOND - 1) <= 1089 / 70 + 3


def test_of_a_burst_as_many_come_back_at_once_as_the_queue_holds() -> None:
    places = book()
    one = [places.book(0, flow, 1, START) for flow in range(40)]
    assert max(one) == 20, "two fit into a bin"
    places = book()
    places.together = 5
    assert max(places.book(0, flow, 1, START) for flow in range(40)) == pytest.approx(5, abs=1)


def test_nothing_is_booked_beyond_the_horizon_and_nothing_without_a_rate() -> None:
    places = book(capacity=1.0)
    assert places.book(0, 1, 10_000, START) == 1
    assert places.book(0, 2, 1, START) == HORIZON_S
    assert 2 not in places.places
    unknown = book(capacity=0.0)
    assert unknown.book(0, 1, 1, START) == 1
    assert unknown.places == {}


def test_the_rate_follows_what_is_served_while_clients_are_refused() -> None:
    served = [0]
    places = RetryBook(lambda: served[0], lambda now_ns: 10.0)
    for second in range(60):
        served[0] += 100
        for number in range(20):
            places.book(0, 100 * second + number, 1, START + second * SECOND + number * 50 * MS)
    assert places.book(0, 1, 1, START + 60 * SECOND) <= 3, "100 a second are served, and 20 are refused"


def plain_book() -> Any:
    """Return the class of a book that looks at every bin each time, and is otherwise the source."""
    spec = importlib.util.spec_from_file_location("plain_retry_book", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)

    class PlainBook(plain.RetryBook):  # type: ignore[misc, name-defined]
        def _find(self, now_bin: int, rows: int) -> int:
            self._full = [0] * len(self._full)
            return int(super()._find(now_bin, rows))

    return PlainBook


PlainBook = plain_book()
PAUSES_MS = st.sampled_from([0, 0, 20, 500, 1000, 2000, 5000])


ROWS = st.sampled_from([1, 1, 5, 30, 60])
TOGETHER = st.sampled_from([1, 7, 60, 2000])


@given(st.lists(st.tuples(PAUSES_MS, st.integers(1, 25), ROWS, TOGETHER), min_size=1, max_size=8), st.integers(0, 999))
@example([(5000, 11, 1, 7), (20, 1, 30, 60), (5000, 14, 30, 2000), (5000, 9, 1, 1), (20, 4, 5, 2000)], 0)
@example([(0, 22, 30, 60), (2000, 23, 1, 2000), (2000, 6, 1, 7)], 0)
def test_bins_that_were_full_are_passed_over_and_no_other(
    refusals: list[tuple[int, int, int, int]], seed: int
) -> None:
    def made(kind: Any) -> Any:
        return kind(lambda: served[0], lambda now_ns: 20.0 + now_ns // SECOND % 5 * 10.0)

    served, rng = [0], random.Random(seed)
    fast, plain = made(RetryBook), made(PlainBook)
    now_ns, number = START, 0
    for pause_ms, many, rows, together in refusals:
        now_ns += pause_ms * MS
        served[0] += pause_ms // 20
        fast.together = plain.together = together
        for _ in range(many):
            number += 1
            told = fast.book(number, number % 9, rows, now_ns)
            assert told == plain.book(number, number % 9, rows, now_ns)
            known = rng.randrange(1, number + 1)
            assert fast.use(known, now_ns) == plain.use(known, now_ns)


def test_what_a_refusal_takes_does_not_grow_with_how_many_may_come_at_once() -> None:
    def took_s(together: int) -> float:
        places = book()
        places.together = together
        begun_s = time.process_time()
        for number in range(3000):
            places.book(number + 1, number % 997, 1, START + number * 7 * MS)
        return time.process_time() - begun_s

    one, many = (min(took_s(together) for _ in range(3)) for together in (1, 30_000))
    assert many < 20 * one, "to look at each bin takes 70 times"
