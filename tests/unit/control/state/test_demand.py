"""The controller brings workers for rows that ask for an accuracy, and lets them go again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from clover.control.state.demand import KEEP_S, LASTING_S, RETRY_S, DemandMemory
from clover.types import Asked, Assignment, Placement
from tests.support.control_fixture import Rig


class Asking(Rig):
    """The rig under a dirty grid, where nothing but demand brings the best variant."""

    def __init__(self, **config: Any) -> None:
        super().__init__(g_per_kwh=900.0, lam=0.95, family={"accuracy_floor": 88.0}, **config)
        self.rows = 0

    def ask(
        self, rows: int = 1, waiting: int = 0, variant: str = "large", accuracy: float = 92.0, rate: float = 1.0
    ) -> None:
        self.rows += rows
        self.fleet.asked[variant] = Asked(accuracy=accuracy, rows_per_s=rate, rows=self.rows, waiting=waiting)

    @property
    def turns(self) -> int:
        """Decisions so far, equal ones in a row included."""
        return sum(decision["count"] for decision in self.controller.decisions(1000))

    @property
    def variants(self) -> set[str]:
        return {item.variant for item in self.fleet.routed}


def test_a_row_brings_a_worker_which_goes_when_nobody_asks_any_more() -> None:
    async def day() -> None:
        rig = Asking()
        await rig.settled()
        assert "large" not in rig.variants
        assert rig.fleet.declined == {}  # it may come
        rig.ask(waiting=1)
        await rig.look()
        assert "large" in rig.variants
        assert rig.last["trigger"].startswith("1 rows/s ask for 92.00 % or more (large)")
        rig.consistent()
        changes = rig.family.changes
        for _ in range(30):  # now and then another: nothing comes and goes
            rig.ask()
            await rig.look(KEEP_S / 2)
        assert rig.family.changes == changes
        assert "large" in rig.variants
        await rig.look(10.0, looks=int(KEEP_S / 10.0) + 2)
        assert "large" not in rig.variants
        assert f"no row asked for large for {KEEP_S:.0f} s" in [d["trigger"] for d in rig.controller.decisions(100)]
        assert rig.family.changes == changes + 1
        rig.consistent()

    asyncio.run(day())


def test_a_row_that_waits_is_looked_at_at_once_and_not_again_and_again() -> None:
    async def once() -> None:
        rig = Asking()
        await rig.settled()
        rig.ask(waiting=1)
        for _ in range(100):
            rig.fleet.wanted()
        task = rig.controller._hasty
        assert task is not None
        await task
        assert "large" in rig.variants
        turns = len(rig.solver.orders)
        rig.fleet.wanted()
        assert rig.controller._hasty is task  # the next look will do
        await rig.look(looks=5)
        assert len(rig.solver.orders) == turns
        await rig.controller.stop()

    asyncio.run(once())


@pytest.mark.parametrize(
    ("config", "why"), [({"mode": "off"}, "mode is off"), ({"mode": "observe"}, "mode is observe")]
)
def test_a_controller_that_does_not_act_declines(config: dict[str, Any], why: str) -> None:
    async def declined() -> None:
        rig = Asking(**config)
        await rig.deploy()
        assert why in rig.fleet.declined["large"].why
        assert rig.fleet.declined["large"].retry_after_s is None
        rig.ask(waiting=1)
        await rig.look(looks=3)
        assert "large" not in rig.variants

    asyncio.run(declined())


def test_frozen_and_pinned_families_decline_and_lift() -> None:
    async def held() -> None:
        rig = Asking()
        await rig.settled()
        await rig.controller.command("freeze", {"on": True}, "me")
        rig.ask(waiting=1)
        await rig.look()
        assert "frozen" in rig.fleet.declined["large"].why
        assert "large" not in rig.variants
        await rig.controller.command("freeze", {"on": False}, "me")
        await rig.look()
        assert "large" in rig.variants
        await rig.controller.command("pin", {"variant": "small"}, "me")
        await rig.look()
        assert rig.variants == {"small"}
        assert "static:small" in rig.fleet.declined["large"].why
        assert rig.last["trigger"] == "operator: pin"
        await rig.look(looks=5)
        assert rig.last["trigger"] == "operator: pin"

    asyncio.run(held())


def test_what_no_plan_can_have_is_refused_and_tried_again_later() -> None:
    async def tight() -> None:
        rig = Asking()
        rig.family.targets = type(rig.family.targets)(slo_ms=1.9, accuracy_floor=88.0, form="paper", lam=0.95)
        await rig.settled()
        rig.ask(waiting=1, rate=20.0)
        await rig.look()
        told = rig.fleet.declined["large"]
        assert told.retry_after_s == RETRY_S
        assert not told.waits
        assert "keeps the limits" in told.why
        turns = rig.turns
        for _ in range(20):
            rig.ask(rate=20.0)
            await rig.look()
        assert rig.turns == turns
        rig.ask(rate=20.0)
        await rig.look(RETRY_S)
        assert rig.turns == turns + 1

    asyncio.run(tight())


def test_a_worker_that_does_not_start_is_refused_too() -> None:
    async def failing() -> None:
        rig = Asking()
        await rig.settled()
        rig.fleet.fail = {"large"}
        rig.ask(waiting=1)
        await rig.look()
        assert rig.last["action"] == "rolled back"
        assert "does not load" in rig.fleet.declined["large"].why
        assert rig.fleet.declined["large"].retry_after_s is not None

    asyncio.run(failing())


def test_who_asks_for_what_cannot_be_had_is_not_told_to_come_back_for_ever() -> None:
    """A client that does as it is told would ask without end."""

    async def obeying() -> None:
        rig = Asking()
        await rig.settled()
        rig.fleet.fail = {"large"}
        told: list[float | None] = []
        for _ in range(10):
            rig.ask(waiting=1)
            await rig.look()
            told.append(rig.fleet.declined["large"].retry_after_s)
            if told[-1] is None:
                break
            await rig.look(told[-1])
        assert told[0] == RETRY_S
        assert told[-1] is None
        assert len(told) <= LASTING_S / RETRY_S + 2
        rig.fleet.fail = set()
        await rig.look(RETRY_S)
        rig.ask(waiting=1)
        await rig.look(RETRY_S)
        assert "large" in rig.variants, "plans are made for it as before"
        assert "large" not in rig.fleet.declined

    asyncio.run(obeying())


@pytest.mark.parametrize("action", ["kept", "failed"])
def test_only_what_is_missing_for_as_long_as_it_is_asked_for_counts(action: str) -> None:
    memory = DemandMemory()
    accuracy = {"small": 80.0, "large": 92.0}

    def told(at_s: float, rows: int) -> float | None:
        """Ask at `at_s`, and let the plan for it come to nothing; return what rows are told then."""
        memory.observe(at_s, {"large": Asked(accuracy=92.0, rows_per_s=1.0, rows=rows)})
        memory.record_decision(action, None, None, (), "no plan", at_s)
        return memory.declined(at_s, accuracy, (), "")["large"].retry_after_s

    assert told(0.0, 1) is not None
    assert told(LASTING_S - 1.0, 2) is not None
    assert told(LASTING_S, 3) is None
    assert told(LASTING_S + KEEP_S, 4) is not None, "nobody had asked for it for so long"


def test_a_declined_variant_that_a_plan_brings_all_the_same_is_missing_no_more() -> None:
    memory = DemandMemory()
    accuracy = {"small": 80.0, "large": 92.0}
    core = Placement(device="cpu0", profile="1c", start=0, size=1)
    runs = (Assignment(placement=core, family="m", variant="large", backend="eager"),)
    memory.observe(0.0, {"large": Asked(accuracy=92.0, rows_per_s=1.0, rows=1)})
    memory.record_decision("kept", None, None, (), "no plan", 0.0)
    assert memory.wanted(RETRY_S / 2) == ()
    memory.record_decision("applied", None, None, runs, "less carbon", RETRY_S / 2)
    memory.observe(LASTING_S, {"large": Asked(accuracy=92.0, rows_per_s=1.0, rows=2)})
    memory.record_decision("kept", None, None, (), "no plan", LASTING_S)
    assert memory.declined(LASTING_S, accuracy, (), "")["large"].retry_after_s == RETRY_S


def test_two_accuracies_that_alternate_do_not_move_anything_twice() -> None:
    async def hostile() -> None:
        rig = Asking()
        await rig.settled()
        for number in range(200):
            variant, accuracy = (("large", 92.0), ("medium", 90.0))[number % 2]
            rig.ask(waiting=1, variant=variant, accuracy=accuracy)
            await rig.look()
        assert rig.family.changes <= 3

    asyncio.run(hostile())


def test_state_says_what_is_asked_for() -> None:
    async def told() -> None:
        rig = Asking()
        await rig.settled()
        rig.ask(rows=4, waiting=2)
        await rig.look()
        (item,) = rig.controller.state()["models"]["toy"]["demand"]
        assert (item["variant"], item["rows"], item["waiting_rows"], item["declined"]) == ("large", 4, 2, None)
        assert item["kept_s"] == KEEP_S
        assert item["planned_rows_per_s"] >= 1.0

    asyncio.run(told())


def test_rates_are_remembered_at_their_highest_and_forgotten() -> None:
    memory = DemandMemory()
    for at_s, rows, rate in ((0.0, 10, 5.0), (100.0, 11, 0.1), (500.0, 11, 0.0)):
        memory.observe(at_s, {"large": Asked(accuracy=92.0, rows_per_s=rate, rows=rows)})
        wanted = memory.wanted(at_s)
        if at_s < 500.0:
            assert 5.0 <= wanted[0].rate <= 7.5
        else:
            assert wanted == ()


@pytest.mark.parametrize(
    ("verb", "arguments", "why"),
    [
        ("pin", {"variant": "small"}, "static:small"),
        ("base", {}, "policy base"),
        ("freeze", {"on": True}, "frozen"),
        ("set", {"mode": "off"}, "mode is off"),
    ],
)
def test_a_command_after_which_no_worker_comes_says_so_at_once(verb: str, arguments: dict[str, Any], why: str) -> None:
    async def commanded() -> None:
        rig = Asking()
        await rig.settled()
        assert rig.fleet.declined == {}
        await rig.controller.command(verb, arguments, "me")
        if verb == "base" and "large" in rig.variants:
            assert rig.fleet.declined == {}  # BASE runs it
        else:
            assert why in rig.fleet.declined["large"].why

    asyncio.run(commanded())
