"""Labels that come late: what is remembered, what counts, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.errors import BadRequest, NotFound
from clover.planning.drift import wilson
from clover.runtime.feedback import Feedback
from clover.types import TensorSpec
from tests.unit.guard_fixture import LARGE, SMALL, Audited
from tests.unit.router_fixture import family

NAMES = ("cat", "dog")


def feedback(rows: int = 10, **tensor: Any) -> Feedback:
    shape = {"name": "y", "datatype": "FP32", "shape": (2,), "labels": NAMES} | tensor
    return Feedback(family(outputs=(TensorSpec(**shape),)), rows)


def says(*classes: int) -> list[Any]:
    return list(classes)


def values(*found: Any, dtype: Any = object) -> list[Any]:
    return [np.array([item], dtype) for item in found]


def test_labels_are_counted_by_the_variant_that_answered() -> None:
    found = feedback()
    found.remember("a", [SMALL, LARGE, SMALL], says(0, 1, 1))
    told = found.take("a", [0, "cat", None])
    assert (told["rows"], told["right"]) == (2, 1)
    low, high = wilson(1, 2)
    assert told["estimate"] == {"accuracy": 50.0, "low": low, "high": high, "rows": 2, "source": "feedback"}
    assert (found.right, found.labelled) == ([1, 0, 0], [1, 0, 1])
    report = found.report(("small", "medium", "large"))
    assert report["variants"]["small"]["accuracy"] == 100.0
    assert report["variants"]["large"]["accuracy"] == 0.0
    assert "medium" not in report["variants"]


def test_a_request_counts_once() -> None:
    found = feedback()
    found.remember("a", [SMALL], says(0))
    found.take("a", [0])
    with pytest.raises(NotFound, match="was told about"):
        found.take("a", [0])
    assert sum(found.labelled) == 1


@pytest.mark.parametrize("labels", [[0], [0, 1, 1], ["bird", 0], [0, True], [0, [1]], [{}, 0]])
def test_labels_that_do_not_fit_count_nothing(labels: list[Any]) -> None:
    found = feedback()
    found.remember("a", [SMALL, SMALL], says(0, 0))
    with pytest.raises(BadRequest):
        found.take("a", labels)
    assert sum(found.labelled) == 0
    assert found.take("a", [0, 0])["right"] == 2


def test_texts_and_numbers() -> None:
    words = feedback(datatype="BYTES", shape=(1,), max_bytes=16, labels=())
    words.remember("a", [SMALL, SMALL], values(b"\x03\0\0\0yes", b"\x02\0\0\0no"))
    assert words.take("a", ["yes", "yes"])["right"] == 1
    words.remember("b", [SMALL], values(b"\x03\0\0\0yes"))
    with pytest.raises(BadRequest):
        words.take("b", [1])
    numbers = feedback(shape=(1,), labels=())
    numbers.remember("a", [SMALL, SMALL], values([0.5], [0.7], dtype=np.float32))
    assert numbers.take("a", [0.5, 0.5])["right"] == 1
    numbers.remember("b", [SMALL], values([0.5], dtype=np.float32))
    with pytest.raises(BadRequest):
        numbers.take("b", ["half"])


@given(
    given_=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 6)), max_size=40),
    room=st.integers(1, 12),
)
def test_memory_is_bounded_and_the_oldest_go_first(given_: list[tuple[str, int]], room: int) -> None:
    found = feedback(room)
    kept: dict[str, int] = {}
    for name, rows in given_:
        found.remember(name, [SMALL] * rows, says(*[0] * rows))
        kept.pop(name, None)
        if rows > room:
            continue
        kept[name] = rows
        while sum(kept.values()) > room:
            del kept[next(iter(kept))]
    assert found.remembered == sum(kept.values()) <= room
    assert set(found._known) == set(kept)
    for name, rows in kept.items():
        assert found.take(name, [0] * rows)["right"] == rows
    assert found.remembered == 0


@given(rows=st.lists(st.integers(1, 4), max_size=600), room=st.integers(64, 200))
def test_a_large_memory_lets_a_part_of_the_oldest_go_at_a_time(rows: list[int], room: int) -> None:
    found = feedback(room)
    for name, count in enumerate(rows):
        found.remember(str(name), [SMALL] * count, says(*[0] * count))
        assert found.remembered <= room
    names = [int(name) for name in found._known]
    assert names == list(range(len(rows)))[len(rows) - len(names) :], "the last ones, in their order"
    assert found.remembered == sum(rows[name] for name in names)
    if len(names) < len(rows):
        assert found.remembered > room - room // 64 - 4


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 300)), max_size=20))
def test_one_row_is_remembered_as_one_of_many_is(given_: list[tuple[str, int, int]]) -> None:
    one, many = feedback(labels=()), feedback(labels=())
    last: dict[str, int] = {}
    for name, lane, said in given_:
        one.remember_row(name, lane, said)
        many.remember(name, [lane], [said])
        last[name] = said
        assert one.remembered == many.remembered
    for name, said_last in last.items():
        assert one.take(name, [said_last]) == many.take(name, [said_last])
    assert (one.right, one.labelled) == (many.right, many.labelled)
    assert one.remembered == 0


def test_one_row_without_a_class_is_remembered_too() -> None:
    found = feedback(shape=(1,), labels=())
    found.remember_row("a", LARGE, np.array([[0.5]], np.float32))
    found.remember_row("b", LARGE, None)
    assert found.remembered == 2
    assert found.take("a", [0.5])["right"] == 1
    assert found.take("b", [0.5])["rows"] == 0
    assert found.labelled == [0, 0, 1]


def test_ids_that_come_again_and_again_do_not_push_others_out() -> None:
    found = feedback(3)
    found.remember("first", [SMALL], says(0))
    for _ in range(5000):
        found.remember("again", [SMALL], says(0))
    found.remember("b", [SMALL], says(0))
    assert found.remembered == 3
    assert len(found._known) == 3, "what is forgotten does not pile up"
    found.remember("c", [SMALL], says(0))
    with pytest.raises(NotFound):
        found.take("first", [0])
    found.remember("d", [SMALL], says(0))
    with pytest.raises(NotFound):
        found.take("again", [0])
    for name in ("b", "c", "d"):
        assert found.take(name, [0])["right"] == 1
    assert found.remembered == 0


def test_ids_without_end_and_no_memory_remember_nothing() -> None:
    found = feedback()
    found.remember("", [SMALL], says(0))
    found.remember("x" * 257, [SMALL], says(0))
    assert found.remembered == 0
    assert not feedback(0).on


def test_a_router_remembers_what_it_answered() -> None:
    house = Audited(share=0.0)
    ticket = house.ask()
    house.says(SMALL, 1)
    house.router.remember("mine", ticket)
    house.close(ticket)
    assert house.router.labelled("mine", [1])["right"] == 1
    assert house.router.guarded()["feedback"]["estimate"]["rows"] == 1
    with pytest.raises(NotFound):
        house.router.labelled("other", [1])


@pytest.mark.parametrize(
    ("label", "right"), [(1, True), (1.0, True), (1.5, False), (300, False), (-1, False), (1e300, False)]
)
def test_numbers_are_compared_as_they_are(label: float, right: bool) -> None:
    """An answer's type holds no label back, and makes none of another."""
    for dtype in (np.int8, np.uint8, np.int64):
        found = feedback(datatype="INT8", shape=(1,), labels=())
        found.remember("a", [SMALL], values(1, dtype=dtype))
        assert bool(found.take("a", [label])["right"]) is right


def test_long_answers_are_not_remembered() -> None:
    found = feedback(datatype="INT8", shape=(512,), labels=())
    found.remember("long", [SMALL], [np.zeros(512, np.int8)])
    found.remember("short", [SMALL], [np.zeros(200, np.int8)])
    assert found.remembered == 1
    with pytest.raises(NotFound):
        found.take("long", [0])
