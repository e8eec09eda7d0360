"""Waits that bring no company end: clients that wait for each answer are told from those that do not."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter

import msgspec
import pytest

from clover.control.wait_watch import BATCHES, FIRST_HOLD_S, LONGEST_HOLD_S, WaitWatch
from clover.types import Routing, WorkReport
from tests.support.control_fixture import Rig

WAIT_S = 0.004
WAITING = Routing(shares={"a": 1.0}, wait_ms={"a": 1e3 * WAIT_S})
BUSY_S = 0.0005
"""What a batch takes."""


def independent(rate: float, seed: int) -> tuple[Counter[int], float]:
    """Return sizes of batches, and the seconds they took, of rows that come whatever becomes of the others."""
    rng, sizes, now_s = random.Random(seed), Counter[int](), 0.0
    while sizes.total() < BATCHES:
        now_s += rng.expovariate(rate)
        leaves_s, size = now_s + WAIT_S, 1
        while (now_s := now_s + rng.expovariate(rate)) < leaves_s:
            size += 1
        now_s = leaves_s  # memoryless: the next gap begins here
        sizes[size] += 1
    return sizes, now_s


def in_turn(clients: int, seed: int) -> tuple[Counter[int], float]:
    """Return the same of clients that send their next row when the last one is answered."""
    rng = random.Random(seed)
    sizes = Counter(clients if rng.random() < 0.98 else max(1, clients - 1) for _ in range(BATCHES))
    return sizes, BATCHES * (WAIT_S + BUSY_S)


def judged(watch: WaitWatch, sizes: Counter[int], now_s: float, seconds: float, largest: int = 32) -> str:
    """Return what `watch` says of batches that came from `now_s` on."""
    assert watch.look(now_s, WAITING, largest) in ("", "rows may wait for company again")
    watch.count({("a", "1c", size): (count, 0.01) for size, count in sizes.items()} | {("b", "1c", 1): (1e6, 1.0)})
    return watch.look(now_s + seconds, WAITING, largest)


@pytest.mark.parametrize("rate", [60.0, 200.0, 1000.0, 3000.0])
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_come_by_themselves_go_on_waiting(rate: float, seed: int) -> None:
    watch = WaitWatch()
    sizes, seconds = independent(rate, seed)
    assert judged(watch, sizes, 100.0, max(seconds, 3.5)) == ""
    assert not watch.held


@pytest.mark.parametrize("clients", [1, 2, 4, 8, 20])
def test_clients_that_wait_for_their_answers_do_not_wait_for_company(clients: int) -> None:
    watch = WaitWatch()
    sizes, seconds = in_turn(clients, 1)
    assert "waited in vain" in judged(watch, sizes, 100.0, max(seconds, 3.5))
    assert watch.held


def test_full_batches_say_nothing() -> None:
    watch = WaitWatch()
    assert judged(watch, Counter({8: BATCHES}), 100.0, 10.0, largest=8) == ""
    assert not watch.held


def test_a_hold_ends_and_the_next_one_is_longer_until_a_wait_pays() -> None:
    watch, now_s = WaitWatch(), 100.0
    alone = Counter({1: BATCHES})
    for hold_s in (FIRST_HOLD_S, 2 * FIRST_HOLD_S, 4 * FIRST_HOLD_S):
        assert "in vain" in judged(watch, alone, now_s, 4.0)
        now_s += 4.0
        assert watch.look(now_s + hold_s - 0.1, WAITING, 32) == ""
        assert watch.held
        now_s += hold_s
        assert watch.look(now_s, WAITING, 32) == "rows may wait for company again"
        assert not watch.held
    sizes, seconds = independent(200.0, 7)
    watch.look(now_s, Routing(shares={"a": 1.0}), 32)  # another routing: what was counted is of the one before
    assert judged(watch, sizes, now_s, seconds := max(seconds, 3.5)) == ""
    now_s += seconds
    assert "in vain" in judged(watch, alone, now_s, 4.0)
    assert watch.look(now_s + 4.0 + FIRST_HOLD_S, WAITING, 32), "a wait that paid starts the holds anew"
    for _ in range(20):
        judged(watch, alone, now_s := now_s + 2 * LONGEST_HOLD_S, 4.0)
        assert watch.look(now_s + 4.0 + LONGEST_HOLD_S, WAITING, 32), "no hold is longer"


def test_a_hold_and_its_end_are_reasons_to_plan() -> None:
    async def story() -> None:
        rig = Rig(waits=True)
        await rig.settled()
        family, fleet = rig.family, rig.fleet
        assert family.deployed is not None
        name = fleet.routed[0].variant
        waiting = msgspec.structs.replace(family.deployed.routing, wait_ms={name: 4.0})
        family.deployed = dataclasses.replace(family.deployed, routing=waiting)
        await rig.look()
        fleet.work = WorkReport(served={(name, fleet.routed[0].placement.profile, 1): (float(BATCHES), 0.1)})
        await rig.look(4.0)
        assert family.waiting.held
        assert "waited in vain" in rig.last["trigger"]
        assert not family.objective(family.targets, rig.controller.context.config).waits
        await rig.look(FIRST_HOLD_S)
        assert rig.last["trigger"] == "rows may wait for company again"

    asyncio.run(story())
