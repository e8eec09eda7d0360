"""How the bench of swaps among resident variants splits its times, and reads memory."""

from __future__ import annotations

import pytest

from bench.swap_resident import (
    PACE_MS,
    AnswerTimes,
    Swap,
    figures_of,
    memory_mib,
    pace_file,
    split,
)
from clover import families

MS = 1_000_000


def answer(variant: str, sent: float, begun: float, took: float, done: float) -> AnswerTimes:
    return AnswerTimes(variant, *(round(ms * MS) for ms in (sent, begun, took, done)))


def swap(first: AnswerTimes) -> Swap:
    return Swap(begun_ns=10 * MS, routed_ns=11 * MS, end_ns=14 * MS, first=first)


def test_the_parts_of_a_first_answer_add_up() -> None:
    one = swap(answer("large", sent=12, begun=15, took=2, done=17.5))
    parts = one.parts_ms()
    assert parts == pytest.approx(
        {"routed": 1.0, "asked": 1.0, "batches_ahead": 3.0, "own_batch": 2.0, "handed_back": 0.5}
    )
    assert sum(parts.values()) == pytest.approx(one.first_ms)


def test_a_request_that_waited_already_was_asked_at_once() -> None:
    one = swap(answer("large", sent=9, begun=15, took=2, done=17.5))
    assert one.parts_ms()["asked"] == 0.0
    assert one.parts_ms()["batches_ahead"] == pytest.approx(4.0)
    assert sum(one.parts_ms().values()) == pytest.approx(one.first_ms)


def test_what_a_swap_met_is_apart_from_ordinary_answers() -> None:
    before = answer("small", sent=1, begun=2, took=1, done=4)
    first = answer("large", sent=12, begun=15, took=2, done=18)
    later = answer("large", sent=50, begun=50.5, took=2, done=53)
    one = swap(first)
    assert split([later, before, first], [one]) == ([first], [before, later])
    figures = figures_of([later, before, first], [one])
    assert figures["first_answer_ms_median"] == pytest.approx(8.0)
    assert figures["all_but_asked_ms_median"] == pytest.approx(7.0)
    assert figures["by variant"]["large"]["ordinary_ms_median"] == pytest.approx(3.0)
    assert figures["by variant"]["large"]["ordinary_batch_ms_median"] == pytest.approx(2.0)
    assert figures["p99_ratio"] == pytest.approx(6.0 / 3.0)


def test_every_variant_has_a_pace() -> None:
    assert list(PACE_MS) == [variant.name for variant in families.load_family("fashion").variants]
    assert {row["variant"] for row in pace_file()["rows"]} == set(PACE_MS)


def test_memory_is_read_as_the_kernel_writes_it() -> None:
    text = "55d-7ff ---p 0 00:00 0    [rollup]\nRss:   4096 kB\nPss:   2048 kB\nPss_Dirty:  3 kB\n"
    text += "Private_Clean:  1024 kB\nPrivate_Dirty:   512 kB\n"
    assert memory_mib(text) == {"private": 1.5, "pss": 2.0, "rss": 4.0}
