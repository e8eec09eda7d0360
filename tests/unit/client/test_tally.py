"""Tallies: what calls used, over threads, tasks and nested blocks."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("httpx", reason="the client needs the extra `client`")

from clover.client import tallies
from clover.client.receipts import CallReceipt
from clover.client.tallies import tally


def receipt(joules: float = 1.0, *, method: str = "modelled", cached: bool = False) -> CallReceipt:
    return CallReceipt("small", 0.9, joules, 2.0, method, "estimated", cached=cached)


def test_a_tally_sums_by_model_and_says_how_each_figure_is_known() -> None:
    with tally() as used:
        tallies.count("a", receipt(1.5))
        tallies.count("b", receipt(0.5, method="measured", cached=True))
        tallies.count("b", None)
    tallies.count("a", receipt())
    assert (used.calls, used.joules, used.unknown, used.cached) == (3, 2.0, 1, 1)
    assert used.grams == pytest.approx(0.004)
    assert used.method == "measured+modelled"
    assert used.intensity_methods == {"estimated"}
    assert {name: one.calls for name, one in used.by_model.items()} == {"a": 1, "b": 2}
    assert used.by_model["b"].method == "measured"
    assert str(used) == "3 calls, 1 without a receipt: 2 J (measured+modelled), 0.004 g CO2e"


def test_an_empty_tally_knows_no_method() -> None:
    with tally() as used:
        pass
    assert (used.calls, used.method) == (0, "none")


def test_tallies_nest() -> None:
    with tally() as outer:
        tallies.count("a", receipt())
        with tally() as inner, tally(own=True) as own:
            tallies.count("a", receipt())
        tallies.count("a", receipt())
    assert (outer.calls, inner.calls, own.calls) == (3, 1, 1)


def test_calls_of_other_threads_count_and_none_is_lost() -> None:
    with tally() as used, tally(own=True) as own, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(tallies.count, "a", receipt()) for _ in range(400)]:
            done.result()
    assert (used.calls, own.calls) == (400, 0)
    assert used.joules == pytest.approx(400.0)


def test_own_tallies_of_tasks_do_not_mix() -> None:
    async def one(count: int) -> int:
        with tally(own=True) as used:
            for _ in range(count):
                tallies.count("a", receipt())
                await asyncio.sleep(0)
            await asyncio.create_task(asyncio.to_thread(tallies.count, "a", receipt()))
        return used.calls

    async def both() -> list[int]:
        return await asyncio.gather(one(2), one(5))

    with tally() as used:
        assert asyncio.run(both()) == [3, 6]
    assert used.calls == 9


def test_a_tally_ends_also_after_an_error() -> None:
    with pytest.raises(KeyError), tally() as used:
        raise KeyError
    tallies.count("a", receipt())
    assert used.calls == 0
