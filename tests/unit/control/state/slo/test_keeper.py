"""A missed SLO: what the log says, how often it is planned for, and how equal decisions are folded."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.control.state.decisions import DecisionEntry, Decisions
from clover.control.state.slo.keeper import EVERY_S, SloLog
from clover.errors import PlanError
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import profile


def drive(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "the SLO is" in record.getMessage()]


@pytest.mark.parametrize(
    ("slo_ms", "helps"),
    [
        (0.5, "no other load, variant or device, as HTTP and the front end alone take 0.8 ms"),
        (1.5, "neither less load nor more of these devices, as one row of large by itself takes 3.1 ms, 0.8 of"),
        (5.0, "less load, or more cores or devices; an accuracy floor of at most 90.00 %, which lets medium serve"),
    ],
)
def test_an_alarm_counts_http_and_offers_only_what_would_help(slo_ms: float, helps: str) -> None:
    async def story() -> None:
        rig = Rig(measured=msgspec.structs.replace(profile(), front_ms=0.8), family={"slo_ms": slo_ms})
        await rig.deploy()
        rig.fleet.figures.update(p95_ms=9.0, p95_least_ms=9.0, arrival_rate=3000.0, queue_rows=512.0)
        await rig.look(looks=120)
        alarm = rig.controller.state()["models"]["toy"]["slo"]["alarm"]
        _, _, remedies = alarm.partition("What would help: a larger SLO (`python -m clover ctl set slo_ms=9.9`); ")
        assert remedies.startswith(helps)

    drive(story)


# --- the log --------------------------------------------------------------------------------------------------------


def test_a_missed_slo_is_a_line_a_minute_and_one_when_it_is_met_again(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        caplog.set_level(logging.INFO, "clover.control")
        rig = Rig()
        await rig.settled()
        rig.fleet.figures.update(p95_ms=45.0, arrival_rate=3000.0, queue_rows=512.0)
        await rig.look(looks=301)
        found = lines(caplog)
        assert len(found) == 5
        assert "toy: the SLO is missed, for 2 s so far: p95 45.00 ms of 30.00 ms at 3000.0 rows/s, 512 rows" in found[0]
        assert "for 2 min 2 s so far" in found[2]
        assert all("the least bad plan: none meets the targets at this load" in line for line in found)
        rig.fleet.figures.update(p95_ms=12.0, arrival_rate=50.0, queue_rows=0.0)
        await rig.look(looks=60)
        assert lines(caplog)[5:] == ["toy: the SLO is met again after 5 min 0 s: p95 12.00 ms of 30.00 ms"]
        assert caplog.records[-1].levelname == "INFO"

    drive(story)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "observe"}, "mode observe changes nothing"),
        ({"family": {"variant": "large"}}, "2 x large@1c runs, and mode off changes nothing"),
        ({}, "of which a p95 of"),
    ],
)
def test_the_line_says_what_is_done(settings: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rig = Rig(**settings)
        await rig.deploy()
        rig.fleet.figures.update(p95_ms=45.0)
        await rig.look(looks=3)
        assert said in lines(caplog)[0]
        rig.family.frozen = True
        await rig.look(looks=60)
        assert "is frozen" in lines(caplog)[1]

    drive(story)


def test_a_burst_is_not_a_missed_slo_and_silence_is_not_a_met_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "clover.control")
    slo, clock = SloLog("toy"), itertools.count(1000.0)

    def look(looks: int, **observed: float) -> None:
        for _ in range(looks):
            slo.observe(next(clock), observed, 30.0, lambda: "waiting")

    for _ in range(50):
        look(2, p95_ms=31.0)
        look(1, p95_ms=29.0)
    assert lines(caplog) == []
    look(3, p95_ms=31.0)
    look(50, queue_rows=9.0)  # rows wait and none is answered
    assert len(lines(caplog)) == 1
    look(20)  # none waits either
    assert lines(caplog)[1:] == ["toy: the SLO is met again after 52 s: nothing was asked lately"]


def test_rows_that_wait_and_are_never_answered_are_a_missed_slo(caplog: pytest.LogCaptureFixture) -> None:
    slo = SloLog("toy")
    for second in range(600):
        slo.observe(1000.0 + second, {"queue_rows": 500.0}, 30.0, lambda: "waiting")
    assert len(lines(caplog)) == 10
    assert "no answer in time of 30.00 ms" in lines(caplog)[0]


@given(looks=st.lists(st.sampled_from([None, 10.0, 29.0, 31.0, 90.0]), min_size=1, max_size=600))
def test_whatever_the_p95_does_there_is_a_line_a_minute_at_most(looks: list[float | None]) -> None:
    slo, said = SloLog("toy"), list[tuple[float, int]]()

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((now_s, record.levelno))

    log, handler = logging.getLogger("clover.control"), Kept()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        for at, p95_ms in enumerate(looks):
            now_s = 1000.0 + at
            slo.observe(now_s, {} if p95_ms is None else {"p95_ms": p95_ms}, 30.0, str)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    missed = [at_s for at_s, levelno in said if levelno == logging.WARNING]
    assert all(later - earlier >= EVERY_S for earlier, later in itertools.pairwise(missed))
    for (_, one), (_, other) in itertools.pairwise(said):
        assert not one == other == logging.INFO  # it is met again only where it was said to be missed
    assert not said or said[0][1] == logging.WARNING


# --- how often it is planned for ------------------------------------------------------------------------------------


def test_a_plan_that_fails_again_and_again_is_spaced_out_too() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        rig.fleet.figures.update(p95_ms=45.0)
        rig.solver.fail = "it is broken"
        await rig.look(looks=300)
        assert rig.last["action"] == "failed"
        assert (
            rig.controller.context.decisions.counts["failed"] < 45
        )  # it is also tried again ten seconds after a failure

    drive(story)


# --- folding --------------------------------------------------------------------------------------------------------


class Wall:
    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def note(record: Decisions, **changed: Any) -> int:
    given: dict[str, Any] = {
        "family": "toy",
        "trigger": "SLO at risk: p95 45.00 ms exceeds 30.00 ms",
        "mode": "active",
        "action": "kept",
        "grid_s": 1.0,
        "detail": "waits 3.5 s",
    }
    return record.record(DecisionEntry(**(given | changed))).id


@pytest.mark.parametrize(
    "changed",
    [
        {"trigger": "rate moved from 1.0 to 2.0 rows/s"},
        {"mode": "observe"},
        {"action": "observed"},
        {"detail": "waits no more"},
        {"operator": "alice"},
        {"trigger": "gpu0 is lost"},
    ],
)
def test_only_equal_decisions_are_folded(changed: dict[str, Any]) -> None:
    record = Decisions(Wall())
    assert [note(record), note(record), note(record, **changed), note(record)] == [1, 1, 2, 3]
    found = record.newest(10)
    assert [item["count"] for item in found] == [1, 1, 2]
    assert json.loads(record.newest_json(2)) == found[:2]
    assert (found[2]["at"][17:19], found[2]["last_at"][17:19]) == ("01", "02")


def test_numbers_do_not_tell_decisions_apart_but_names_do() -> None:
    record = Decisions(Wall())
    assert note(record, trigger="SLO at risk: p95 46.10 ms exceeds 30.00 ms", detail="waits 2 s") == 1
    assert note(record) == 1
    assert record.newest(1)[0]["detail"] == "waits 3.5 s"
    assert note(record, trigger="gpu0 is lost") == 2
    assert note(record, trigger="gpu1 is lost") == 3
    assert note(record, detail="1 x small@1c waits") == 4
    assert note(record, detail="1 x small@2c waits") == 5


def test_an_operator_is_never_folded_and_families_are_folded_apart() -> None:
    record = Decisions(Wall())
    assert [note(record, operator="alice") for _ in range(3)] == [1, 2, 3]
    assert [note(record, family=name) for name in "abab"] == [4, 5, 4, 5]
    assert record.last("a").count == 2  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["kept", "observed"])), max_size=60))
def test_ids_are_without_gaps_and_counts_lose_nothing(made: list[tuple[str, str]]) -> None:
    record = Decisions(Wall(), kept=5)
    for family, action in made:
        note(record, family=family, action=action)
    ids = [item["id"] for item in record.newest(1000)]
    assert ids == list(range(ids[0], ids[0] - len(ids), -1) if ids else [])
    assert sum(record.counts.values()) == len(made)
    for name in "abc":
        last = record.last(name)
        assert last is None or last.action == [action for family, action in made if family == name][-1]


def test_an_error_of_the_solver_is_logged_as_before() -> None:
    async def story() -> None:
        rig = Rig()
        await rig.settled()
        rig.solver.fail = "broken"
        with pytest.raises(PlanError):
            await rig.controller.command("apply", {}, "alice")
        assert rig.last["action"] == "failed"

    drive(story)
