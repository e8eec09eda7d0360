"""Waits that bring no company end: clients that wait for each answer are told from those that do not."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter

import msgspec
import pytest

from clover.control.wait_watch import BATCHES, FIRST_HOLD_S, LONGEST_HOLD_S, WELL_S, WaitSight, WaitWatch
from clover.types import Routing, WorkReport
from tests.support.control_fixture import Rig

WAIT_S = 0.004
WAITING = Routing(shares={"a": 1.0}, wait_ms={"a": 1e3 * WAIT_S})
AGAIN = "rows may wait for company again"
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


def seen(now_s: float, p95_ms: float = 5.0, *, waits: bool = True, largest: int = 32) -> WaitSight:
    """Return a look at an SLO of 20 ms, which is missed above that."""
    routing = WAITING if waits else Routing(shares={"a": 1.0})
    return WaitSight(now_s=now_s, routing=routing, largest=largest, p95_ms=p95_ms, slo_ms=20.0, late=p95_ms > 20.0)


def judged(watch: WaitWatch, sizes: Counter[int], now_s: float, seconds: float, largest: int = 32) -> str:
    """Return what `watch` says of batches that came from `now_s` on."""
    assert watch.look(seen(now_s)) in ("", AGAIN)
    watch.count({("a", "1c", size): (count, 0.01) for size, count in sizes.items()} | {("b", "1c", 1): (1e6, 1.0)})
    return watch.look(seen(now_s + seconds, largest=largest))


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


def test_a_hold_ends_and_the_next_one_is_longer_until_waits_went_well() -> None:
    watch, now_s = WaitWatch(), 100.0
    alone = Counter({1: BATCHES})

    def held(hold_s: float) -> None:
        nonlocal now_s
        assert "in vain" in judged(watch, alone, now_s, 4.0)
        now_s += 4.0
        assert watch.look(seen(now_s + hold_s - 0.1, waits=False)) == ""
        assert watch.held
        now_s += hold_s
        assert watch.look(seen(now_s, waits=False)) == AGAIN
        assert not watch.held

    for hold_s in (FIRST_HOLD_S, 2 * FIRST_HOLD_S, 4 * FIRST_HOLD_S):
        held(hold_s)
    sizes, _ = independent(200.0, 7)
    for _ in range(2):
        assert judged(watch, sizes, now_s, WELL_S) == ""
        now_s += WELL_S
    held(FIRST_HOLD_S)
    for _ in range(20):
        assert "in vain" in judged(watch, alone, now_s, 4.0)
        now_s += 4.0 + LONGEST_HOLD_S
        assert watch.look(seen(now_s)) == AGAIN, "no hold is longer"


def test_no_row_waits_while_the_slo_is_missed_nor_before_there_is_room() -> None:
    watch, now_s = WaitWatch(), 100.0
    sizes, _ = independent(200.0, 3)
    for second in range(11):  # what is seen is of the time before the rows waited, at first
        assert watch.look(seen(now_s + second, 30.0)) == ""
    watch.look(seen(now_s + 11, 19.0))
    for second in (12, 13):
        assert watch.look(seen(now_s + second, 30.0)) == "", "it may be chance"
    assert watch.look(seen(now_s + 14, 30.0)) == "rows of a waited while the SLO was missed"
    now_s += 14 + FIRST_HOLD_S
    assert watch.look(seen(now_s, 11.0, waits=False)) == ""
    assert watch.held, "a wait on top of that would miss it again"
    assert watch.look(seen(now_s + 2 * FIRST_HOLD_S - 1.0, 9.0, waits=False)) == ""
    assert watch.look(seen(now_s + 2 * FIRST_HOLD_S, 9.0, waits=False)) == AGAIN
    assert judged(watch, sizes, now_s + 2 * FIRST_HOLD_S, 9.0) == ""


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
        assert rig.last["trigger"] == AGAIN

    asyncio.run(story())
