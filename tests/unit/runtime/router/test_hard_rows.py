"""An energy attack: what clients cost, and change for others, that send only what cheap variants are unsure of."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from clover.control.state.counted import counted_accuracy, why_apart
from clover.runtime.guard.guard import OK, TIGHTENED
from clover.runtime.router.tickets import RouterTicket
from tests.support.guard_fixture import CHAIN, LARGE, POINT, SMALL, Audited, profile
from tests.support.router_fixture import dealt

REACH = 0.2
"""The part of the rows that is escalated by the plan."""
HARD = 0.05
"""The score of a row that is made to be escalated."""
Source = tuple[str, int]
"""An address and a connection."""


def addresses(count: int) -> list[Source]:
    return [(f"10.0.0.{at}", at + 1) for at in range(count)]


def connections(count: int) -> list[Source]:
    return [("10.0.0.1", at + 1) for at in range(count)]


class Siege(Audited):
    """Scores lie evenly in 0..1, so that one row in five is escalated, but for those that are made hard."""

    def __init__(self, sources: list[Source], seed: int = 1, **config: Any) -> None:
        super().__init__(share=0.001, **config)
        point = msgspec.structs.replace(POINT, thresholds=(REACH,), reach=(1.0, REACH), overruled=REACH / 5)
        self.router.expect(profile(points=(point,)))
        self.router.audits.sampler.set(0.001)
        self.router.route(list(self.staff.values()), dealt(1.0, 0.0, 0.0, chain=CHAIN, thresholds=(REACH,)))
        self.sources = sources
        self.draw = random.Random(seed)
        self.rows: dict[Source, int] = dict.fromkeys(sources, 0)
        self.escalated: dict[Source, int] = dict.fromkeys(sources, 0)

    def row(self, source: Source, score: float, *, again: int | None = None, **how: Any) -> RouterTicket:
        """Send a row that `small` answers with `score`."""
        ticket = self.router.open(1, source[1])
        ticket.client = source[0]
        self.inputs += 1
        self.slab.input(0)[ticket.slots] = (self.inputs if again is None else again, again is not None)
        self.router.submit(ticket, self.done.append, **how)
        self.loop.turn()
        if ticket.variants == [SMALL]:
            self.says(SMALL, 0, score)
        if not self.done or self.done[-1] is not ticket:
            self.rows[source] = self.rows.get(source, 0)
            self.escalated[source] = self.escalated.get(source, 0) + 1
            self.says(LARGE, int(self.draw.random() < 0.2))
        self.receipt = self.router.receipt(ticket)
        self.close(ticket)
        while self.sent(LARGE):
            self.says(LARGE, int(self.draw.random() < 0.1))  # an audit
        self.rows[source] = self.rows.get(source, 0) + 1
        return ticket

    def send(self, rows: int, share: float, attackers: list[Source], **how: Any) -> None:
        """Send rows of all sources, `share` of them from the `attackers`, which are hard."""
        others = [source for source in self.sources if source not in attackers]
        for at in range(rows):
            if self.draw.random() < share:
                self.row(self.draw.choice(attackers), HARD, **how)
            else:
                self.row(self.draw.choice(others), self.draw.random())
            if at % 100 == 99:
                self.router.guard.evaluate()

    def part(self, sources: list[Source]) -> float:
        """Return the part of the rows of some sources that were escalated."""
        return sum(self.escalated[one] for one in sources) / max(1, sum(self.rows[one] for one in sources))

    @property
    def pattern(self) -> dict[str, Any]:
        self.router.guard.evaluate()
        found: dict[str, Any] = self.router.guard_report()["pattern"]
        return found


@pytest.mark.slow
@pytest.mark.parametrize("made", [addresses, connections])
@pytest.mark.parametrize(("count", "share"), [(1, 0.1), (1, 0.3), (1, 0.5), (5, 0.3), (5, 0.4)])
def test_hard_rows_of_some_change_nothing_for_others(made: Any, count: int, share: float) -> None:
    sources = made(20)
    house = Siege(sources)
    house.send(3000, share, sources[:count])
    guard = house.router.guard
    assert (guard.alarm_level, guard.alarms) == (OK, 0)
    assert house.part(sources[count:]) == pytest.approx(REACH, abs=0.04), "they are escalated as planned"
    # Without a limit it would be REACH + share * (1 - REACH); all rows at twice the usual share are 2 * REACH at most.
    assert house.part(sources) < min(REACH + 0.6 * share * (1 - REACH), 2 * REACH)
    pattern = house.pattern
    assert (pattern["kind"], pattern["clients"]) == ("client", count)
    assert pattern["share"] == pytest.approx(share, abs=0.1)
    assert house.router.traffic.cut_short == {"limit": pattern["limited_rows"]}


def test_connections_that_come_one_after_the_other_are_one_client() -> None:
    sources = connections(20)
    house = Siege(sources)
    house.send(1000, 0.0, [])
    fresh = 1000
    for at in range(3000):
        if at % 3 == 0:
            fresh += at % 30 == 0
            house.row(("10.0.0.1", fresh), HARD)
        else:
            house.row(house.draw.choice(sources), house.draw.random())
    assert house.router.guard.alarm_level == OK
    assert house.part(list(house.rows)) < 0.35, "of .47 without a limit"


@pytest.mark.parametrize("made", [addresses, connections])
@pytest.mark.parametrize("count", [1, 2, 8, 20])
def test_drift_of_all_clients_raises_the_alarm_as_before_and_limits_nobody(made: Any, count: int) -> None:
    sources = made(count)
    house = Siege(sources)
    while house.router.guard.alarm_level == OK and sum(house.rows.values()) < 1000:
        house.row(house.draw.choice(sources), house.draw.random() ** 2)
    assert house.router.guard.alarm_level == TIGHTENED
    assert house.router.traffic.cut_short == {}
    pattern = house.pattern
    assert pattern["kind"] == "drift"
    assert ("the one client" in pattern["text"]) == (len({name for name, _ in sources}) == 1)


def test_the_same_inputs_again_and_again_look_like_a_probe() -> None:
    sources = addresses(10)
    house = Siege(sources)
    for at in range(1, 2000):
        if at % 3 == 0:
            house.row(sources[0], HARD, again=at % 5)
        else:
            house.row(house.draw.choice(sources[1:]), house.draw.random())
    pattern = house.pattern
    assert (pattern["kind"], pattern["clients"]) == ("repeats", 1)
    assert "the same 5 inputs again and again" in pattern["text"]
    assert "10.0.0" not in pattern["text"], "others may read the state"
    assert house.router.guard.alarm_level == OK


def test_one_input_again_and_again_is_a_probe_that_spends_nothing_and_misses_no_floor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "clover.guard")
    house = Siege(addresses(1))
    usual = POINT.accuracy
    for _ in range(400):
        house.row(house.sources[0], HARD, again=1)
    seen, pattern = house.router.observe(), house.pattern
    assert seen["accuracy_served"] == pytest.approx(88.0), "what is reported is what was served"
    assert counted_accuracy(seen) == pytest.approx(usual + (88.0 - usual) / 400), "the input says its own once"
    assert why_apart(seen) == "if a repeated input counts as any other"
    assert pattern["kind"] == "probe"
    assert pattern["text"].startswith("100% of the latest rows are the same input again and again: looks like a probe")
    assert [record.getMessage() for record in caplog.records] == [f"{house.router.name}: {pattern['text']}"]
    for _ in range(200):
        house.row(house.sources[0], house.draw.random())
    assert house.pattern["kind"] == "none"
    assert house.router.guard.alarm_level == OK


def test_repeats_that_are_cut_short_count_as_the_variant_that_answered() -> None:
    house = Siege(addresses(1))
    house.router.route([house.staff[SMALL]], dealt(1.0, 0.0, 0.0, chain=CHAIN, thresholds=(REACH,)))
    for _ in range(100):
        house.row(house.sources[0], HARD, again=1)
    assert house.router.traffic.cut_short == {"nobody": 100}
    seen, usual = house.router.observe(), house.router.accuracy[SMALL]
    assert seen["accuracy_served"] == pytest.approx(70.0)
    assert counted_accuracy(seen) == pytest.approx(usual + (70.0 - usual) / 100)


def test_the_log_names_the_client_once(caplog: pytest.LogCaptureFixture) -> None:
    sources = addresses(20)
    house = Siege(sources)
    house.send(3000, 0.3, sources[:1])
    named = [record.getMessage() for record in caplog.records if "10.0.0.0" in record.getMessage()]
    assert len(named) == 1
    assert "one client" in named[0]
    house.send(30_000 if house.pattern["kind"] == "none" else 12_000, 0.0, [])
    assert house.pattern["kind"] == "none"


def test_a_row_over_the_limit_says_so_and_one_that_asks_for_an_accuracy_is_escalated() -> None:
    sources = addresses(10)
    house = Siege(sources)
    house.send(2000, 0.4, sources[:1])
    while house.row(sources[0], HARD).paths:
        pass
    assert (house.receipt.variant, house.receipt.limited, house.receipt.accuracy) == ("small", 1, 70.0)
    before = house.router.traffic.cut_short["limit"]
    for _ in range(50):
        ticket = house.row(sources[0], HARD, min_accuracy=91.0)
        assert ticket.variants == [LARGE]
        assert house.receipt.limited == 0
    assert house.router.traffic.cut_short["limit"] == before


def test_rows_over_the_limit_spend_no_accuracy_budget_of_others() -> None:
    sources = addresses(10)
    house = Siege(sources)
    house.send(3000, 0.4, sources[:1])
    seen, traffic = house.router.observe(), house.router.traffic
    rows = seen["rows"] - seen["left_out_rows"]
    accuracy = (seen["rows"] * seen["accuracy_served"] - seen["left_out_accuracy_rows"]) / rows
    assert seen["left_out_rows"] == pytest.approx(0.4 * 3000, rel=0.15)
    assert accuracy == pytest.approx((1 - REACH) * 95.0 + REACH * 88.0, abs=0.5)
    assert traffic.accuracy_rows / sum(traffic.rows) < accuracy - 4.0, "what is reported is what was served"


def test_a_client_that_sends_usual_rows_again_is_limited_no_longer() -> None:
    sources = addresses(10)
    house = Siege(sources)
    house.send(1000, 0.3, sources[:1])
    house.send(1500, 0.0, [])
    for _ in range(150):
        house.row(sources[0], house.draw.random())
    assert not house.router.guard.clients.sender(*sources[0]).over


@pytest.mark.parametrize("config", [{"escalation_limit": 0.0}, {"guard": "watch"}, {"guard": "off"}])
def test_without_a_limit_all_hard_rows_are_escalated(config: dict[str, Any]) -> None:
    sources = addresses(10)
    house = Siege(sources, **config)
    house.send(1000, 0.3, sources[:1])
    assert house.part(sources[:1]) == 1.0
    assert house.router.traffic.cut_short == {}
    assert house.pattern["kind"] == ("none" if config == {"guard": "off"} else "client")


def test_while_the_family_escalates_as_planned_nobody_is_limited() -> None:
    sources = addresses(10)
    house = Siege(sources)
    for _ in range(2000):
        at = house.draw.randrange(100)
        house.row(sources[0] if at == 0 else sources[at % 9 + 1], HARD if at == 0 else house.draw.random())
    assert house.router.traffic.cut_short.get("limit", 0) <= 2
