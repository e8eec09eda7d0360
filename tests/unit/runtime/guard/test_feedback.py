"""Labels that come late: what is remembered, what counts, what is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.errors import BadRequest, NotFound, Overloaded
from clover.runtime.guard.drift import wilson
from clover.runtime.guard.feedback import Feedback, Labellers
from clover.types import EvaluationSpec, TensorSpec
from tests.support.guard_fixture import LARGE, SMALL, Audited
from tests.support.router_fixture import family

NAMES = ("cat", "dog")
VARIANTS = ("small", "medium", "large")


def feedback(rows: int = 10, **tensor: Any) -> Feedback:
    shape = {"name": "y", "datatype": "FP32", "shape": (2,), "labels": NAMES} | tensor
    return Feedback(family(outputs=(TensorSpec(**shape),)), rows)


def take(found: Feedback, number: int, labels: list[Any], client: str = "me", at_s: float = 0.0) -> dict[str, Any]:
    return found.take(number, labels, client, int(at_s * 1e9))


def says(*classes: int) -> list[Any]:
    return list(classes)


def values(*found: Any, dtype: Any = object) -> list[Any]:
    return [np.array([item], dtype) for item in found]


def test_labels_are_counted_by_the_variant_that_answered() -> None:
    found = feedback()
    found.remember(1, [SMALL, LARGE, SMALL], says(0, 1, 1))
    told = take(found, 1, [0, "cat", None])
    assert (told["rows"], told["right"]) == (2, 1)
    low, high = wilson(1, 2)
    assert told["estimate"] == {"accuracy": 50.0, "low": low, "high": high, "rows": 2, "source": "feedback"}
    assert (found.right, found.labelled) == ([1, 0, 0], [1, 0, 1])
    report = found.report(VARIANTS)
    assert report["variants"]["small"]["accuracy"] == 100.0
    assert report["variants"]["large"]["accuracy"] == 0.0
    assert "medium" not in report["variants"]


def test_labels_stand_beside_what_was_expected_of_each_variant() -> None:
    found = feedback()
    found.remember(1, [SMALL, LARGE, SMALL, SMALL], says(0, 1, 1, 0))
    found.take(1, [0, 1, 1, None], "me", 0, [80.0, 90.0, 95.0])
    assert found.expected == pytest.approx([1.6, 0.0, 0.95])
    report = found.report(VARIANTS)["variants"]
    assert report["small"]["expected"] == pytest.approx(80.0)
    assert report["large"]["expected"] == pytest.approx(95.0)


def test_a_request_counts_once() -> None:
    found = feedback()
    found.remember(1, [SMALL], says(0))
    take(found, 1, [0])
    with pytest.raises(NotFound, match="got its labels"):
        take(found, 1, [0])
    assert sum(found.labelled) == 1


@pytest.mark.parametrize("labels", [[0], [0, 1, 1], ["bird", 0], [0, True], [0, [1]], [{}, 0]])
def test_labels_that_do_not_fit_count_nothing(labels: list[Any]) -> None:
    found = feedback()
    found.remember(1, [SMALL, SMALL], says(0, 0))
    with pytest.raises(BadRequest):
        take(found, 1, labels)
    assert sum(found.labelled) == 0
    assert take(found, 1, [0, 0])["right"] == 2


def test_texts_and_numbers() -> None:
    words = feedback(datatype="BYTES", shape=(1,), max_bytes=16, labels=())
    words.remember(1, [SMALL, SMALL], values(b"\x03\0\0\0yes", b"\x02\0\0\0no"))
    assert take(words, 1, ["yes", "yes"])["right"] == 1
    words.remember(2, [SMALL], values(b"\x03\0\0\0yes"))
    with pytest.raises(BadRequest):
        take(words, 2, [1])
    numbers = feedback(shape=(1,), labels=())
    numbers.remember(1, [SMALL, SMALL], values([0.5], [0.7], dtype=np.float32))
    assert take(numbers, 1, [0.5, 0.5])["right"] == 1
    numbers.remember(2, [SMALL], values([0.5], dtype=np.float32))
    with pytest.raises(BadRequest):
        take(numbers, 2, ["half"])


@given(given_=st.lists(st.integers(1, 6), max_size=40), room=st.integers(1, 12))
def test_memory_is_bounded_and_the_oldest_go_first(given_: list[int], room: int) -> None:
    found = feedback(room)
    kept: dict[int, int] = {}
    for number, rows in enumerate(given_):
        found.remember(number, [SMALL] * rows, says(*[0] * rows))
        if rows > room:
            continue
        kept[number] = rows
        while sum(kept.values()) > room:
            del kept[next(iter(kept))]
    assert found.remembered == sum(kept.values()) <= room
    assert set(found._known) == set(kept)
    for number, rows in kept.items():
        assert take(found, number, [0] * rows)["right"] == rows
    assert found.remembered == 0


@given(rows=st.lists(st.integers(1, 4), max_size=600), room=st.integers(64, 200))
def test_a_large_memory_lets_a_part_of_the_oldest_go_at_a_time(rows: list[int], room: int) -> None:
    found = feedback(room)
    for name, count in enumerate(rows):
        found.remember(name, [SMALL] * count, says(*[0] * count))
        assert found.remembered <= room
    names = [*found._known]
    assert names == list(range(len(rows)))[len(rows) - len(names) :], "the last ones, in their order"
    assert found.remembered == sum(rows[name] for name in names)
    if len(names) < len(rows):
        assert found.remembered > room - room // 64 - 4


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300)), max_size=20))
def test_one_row_is_remembered_as_one_of_many_is(given_: list[tuple[int, int]]) -> None:
    one, many = feedback(labels=()), feedback(labels=())
    for number, (lane, said) in enumerate(given_):
        one.remember_row(number, lane, said)
        many.remember(number, [lane], [said])
        assert one.remembered == many.remembered
    for number in [*one._known]:
        label = given_[number][1]
        assert take(one, number, [label]) == take(many, number, [label])
    assert (one.right, one.labelled) == (many.right, many.labelled)
    assert one.remembered == 0


def test_one_row_without_a_class_is_remembered_too() -> None:
    found = feedback(shape=(1,), labels=())
    found.remember_row(1, LARGE, np.array([[0.5]], np.float32))
    found.remember_row(2, LARGE, None)
    assert found.remembered == 2
    assert take(found, 1, [0.5])["right"] == 1
    assert take(found, 2, [0.5])["rows"] == 0
    assert found.labelled == [0, 0, 1]


def test_no_memory_remembers_nothing() -> None:
    assert not feedback(0).on
    assert feedback().on


def test_a_router_remembers_what_it_answered() -> None:
    house = Audited(share=0.0)
    ticket = house.ask()
    house.says(SMALL, 1)
    house.router.remember(7, ticket)
    house.close(ticket)
    assert house.router.count_labels(7, [1], "me")["right"] == 1
    assert house.router.guard_report()["feedback"]["estimate"]["rows"] == 1
    with pytest.raises(NotFound):
        house.router.count_labels(8, [1], "me")


def test_a_family_with_a_metric_of_its_own_takes_no_labels_later() -> None:
    own = EvaluationSpec(loader="data:load", metric="scores:near")
    house = Audited(share=0.0, spec=msgspec.structs.replace(family(), evaluation=own))
    ticket = house.ask()
    house.says(SMALL, 1)
    house.router.remember(7, ticket)
    house.close(ticket)
    with pytest.raises(BadRequest, match="metric of its own, 'scores:near'"):
        house.router.count_labels(7, [1], "me")
    found = house.router.guard_report()["feedback"]
    assert (found["remembered"], found["refused"]["unfit"]) == (0, 1)


@pytest.mark.parametrize(
    ("label", "right"),
    [(1, True), (1.0, True), (1.5, False), (300, False), (-1, False), (1e300, False), (10**400, False)],
)
def test_numbers_are_compared_as_they_are(label: float, right: bool) -> None:
    """An answer's type holds no label back, and makes none of another."""
    for dtype in (np.int8, np.uint8, np.int64, np.float32):
        found = feedback(datatype="INT8", shape=(1,), labels=())
        found.remember(1, [SMALL], values(1, dtype=dtype))
        assert bool(take(found, 1, [label])["right"]) is right


def test_long_answers_are_not_remembered() -> None:
    found = feedback(datatype="INT8", shape=(512,), labels=())
    found.remember(5, [SMALL], [np.zeros(512, np.int8)])
    found.remember(6, [SMALL], [np.zeros(200, np.int8)])
    assert found.remembered == 1
    with pytest.raises(NotFound):
        take(found, 5, [0])


def test_a_client_labels_as_many_rows_a_minute_as_are_remembered_and_none_is_lost() -> None:
    found = feedback(10)
    for number in range(1, 4):
        found.remember(number, [SMALL] * 3, says(0, 0, 0))
        take(found, number, [0] * 3)
    found.remember(4, [SMALL] * 3, says(0, 0, 0))
    with pytest.raises(Overloaded) as refused:
        take(found, 4, [1] * 3, at_s=59.0)
    assert refused.value.retry_after_s == 1.0
    assert found.report(VARIANTS)["remembered"] == 3
    assert take(found, 4, [0] * 3, at_s=60.0)["right"] == 3
    found.remember(5, [SMALL] * 10, says(*[0] * 10))
    assert take(found, 5, [0] * 10, client="you", at_s=60.0)["right"] == 10, "others are not held up"


def test_guesses_are_held_off_and_nobody_else_is() -> None:
    found = feedback(10)
    found.remember(1, [SMALL], says(0))
    found.remember(2, [SMALL], says(0))
    for _ in range(600):
        with pytest.raises(NotFound):
            take(found, 0, [0])
    for _ in range(3):
        with pytest.raises(Overloaded):
            take(found, 0, [0])
    with pytest.raises(NotFound):
        take(found, 0, [0], client="you")
    assert take(found, 1, [0])["right"] == 1, "labels of own requests come through, also from a neighbour's address"
    with pytest.raises(NotFound):
        take(found, 1, [0], at_s=60.0)
    with pytest.raises(BadRequest):
        take(found, 2, [0, 0])
    assert found.report(VARIANTS)["refused"] == {"unknown": 602, "unfit": 1, "limited": 3}


def test_how_much_one_client_said_is_told() -> None:
    found = feedback(10)
    assert found.report(VARIANTS)["largest_share"] is None
    for number, client in enumerate(("me", "you", "me", "me")):
        found.remember(number, [SMALL], says(0))
        take(found, number, [0], client=client)
    assert (found.report(VARIANTS)["clients"], found.report(VARIANTS)["largest_share"]) == (2, 0.75)


def test_clients_that_are_not_counted_one_by_one_are_no_client() -> None:
    found = Labellers(1_000_000)
    for number in range(5000):
        found.count_labels(str(number), 1, 0)
    assert found.largest_share == pytest.approx(1 / 5000)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.integers(0, 200)), max_size=60))
def test_no_client_gets_more_than_its_part_of_any_minute(asked: list[tuple[int, int, int]]) -> None:
    house = Labellers(6)
    taken: Counter[tuple[int, int]] = Counter()
    for client, rows, at_s in sorted(asked, key=lambda one: one[2]):
        try:
            house.count_labels(str(client), rows, at_s * 10**9)
        except Overloaded:
            assert taken[client, at_s // 60] + rows > 6
        else:
            taken[client, at_s // 60] += rows
    assert all(rows <= 6 for rows in taken.values())


def test_addresses_without_end_take_no_memory() -> None:
    house = Labellers(10)
    for client in range(5000):
        house.count_labels(str(client), 1, 0) if client < 4096 + 10 else house.count_unknown_id(str(client), 0)
    assert house.clients == 4097
    with pytest.raises(Overloaded):
        house.count_labels("one more", 1, 0)  # of ten, which those share that are not counted by themselves
    house.count_labels("0", 9, 0)
    for client in range(5000, 10_000):
        try:
            house.count_unknown_id(str(client), 0)
        except Overloaded:
            assert client >= 4096 + 600
    assert len(house._tries) == 4097


def test_many_names_of_classes_are_looked_up_at_once() -> None:
    names = tuple(f"class {at}" for at in range(1000))
    found = feedback(labels=(*names, "class 7"))
    found.remember(1, [SMALL, SMALL], says(7, 999))
    assert take(found, 1, ["class 7", "class 999"])["right"] == 2
