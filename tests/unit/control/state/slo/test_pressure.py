"""A missed SLO has consequences: a faster plan if there is one, else one alarm and few plans; and noise has none.

The fleets answer as a truth of their own (`tests.support.plant_fleet`), which the profile may miss by half.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from clover.control.state.request import PlanRequest
from clover.control.state.slo.keeper import ALARM_S
from clover.control.state.slo.pressure import FIRST_HOLD_S, MOST, RISK, SloPressure, SloSight
from clover.control.state.slo.windows import SloWindows
from clover.control.wording import troubles
from clover.errors import PolicyFault
from clover.planning.cascade.evaluation import predict_routing
from clover.planning.model.problem import fitting, problem_of, services_of
from clover.planning.packing.candidates import configurations_of, kinds_of
from clover.types import Configuration, Plan, Prediction, Routing, State, WorkReport
from tests.support.control_fixture import Rig
from tests.support.plant_fleet import PlantFleet, plant, slowed
from tests.support.profiles_fixture import VARIANTS, profile

HOUR_S = 3600


def drive(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


def rig_of(times: float = 1.0, *, rate: float = 300.0, slo_ms: float = 10.0, **more: Any) -> tuple[Rig, PlantFleet]:
    """A family whose services take `times` as long as profiled; at 300 rows/s two plans differ by their p95."""
    return plant(
        slowed(profile((1, 2)), dict.fromkeys(VARIANTS, times)),
        rate=rate,
        g_per_kwh=100.0,
        measured=profile((1, 2)),
        family={"slo_ms": slo_ms, "accuracy_floor": 89.0},
        **more,
    )


async def watched(rig: Rig, fleet: PlantFleet, seconds: int) -> list[int]:
    """Deploy, look for `seconds`, and return the seconds at which rows that arrived missed the SLO."""
    if not fleet.routed:
        await rig.deploy()
    late = []
    for second in range(seconds):
        await rig.look()
        if fleet.p95_ms > rig.family.targets.slo_ms:
            late.append(second)
    return late


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


def made(rig: Rig) -> int:
    return sum(rig.controller.context.decisions.counts.values())


# --- a profile that is wrong ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("times", [1.2, 1.35, 1.5])
@pytest.mark.parametrize(("rate", "slo_ms"), [(150.0, 10.0), (300.0, 10.0), (300.0, 14.0), (500.0, 14.0)])
def test_an_slo_that_the_profile_promised_in_vain_is_met_within_a_minute(
    times: float, rate: float, slo_ms: float
) -> None:
    async def story() -> None:
        rig, fleet = rig_of(times, rate=rate, slo_ms=slo_ms)
        late = await watched(rig, fleet, 200)
        assert all(second < 60 for second in late)
        if late:
            assert rig.family.slo.pressure.factor > 1.0
            assert any(f"{RISK}: p95" in item["trigger"] and "was predicted" in item["trigger"]
                       for item in rig.controller.decisions(100))  # fmt: skip
        assert fleet.reconfigured <= 2
        assert rig.controller.context.decisions.counts["rolled back"] == 0
        rig.consistent()

    drive(story)


def test_a_profile_that_is_right_is_never_doubted() -> None:
    async def story() -> None:
        rig, fleet = rig_of()
        assert await watched(rig, fleet, 600) == []
        assert (rig.family.slo.pressure.factor, fleet.reconfigured) == (1.0, 0)

    drive(story)


def test_a_plan_that_is_better_than_what_missed_the_slo_is_not_rolled_back() -> None:
    async def story() -> None:
        rig, fleet = rig_of(2.5)
        late = await watched(rig, fleet, 300)
        assert late[-1] == 299, "nothing meets it"
        assert fleet.reconfigured >= 1
        assert rig.controller.context.decisions.counts["rolled back"] == 0
        assert fleet.p95_ms < 20.0

    drive(story)


# --- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("noise", [0.1, 0.3])
@pytest.mark.parametrize("times", [1.0, 1.5])
def test_a_noisy_p95_makes_no_more_than_two_reconfigurations_an_hour(times: float, noise: float, seed: int) -> None:
    async def story() -> None:
        rig, fleet = rig_of(times, noise=noise, seed=seed)
        await rig.deploy()
        fleet.reconfigured = 0
        await watched(rig, fleet, HOUR_S)
        assert fleet.reconfigured <= 2

    drive(story)


def test_a_p95_of_few_answers_is_no_reason(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        caplog.set_level(logging.INFO, "clover.control")
        rig = Rig()
        await rig.settled()
        before = made(rig)
        rig.fleet.figures.update(p95_ms=90.0, p95_least_ms=12.0)
        await rig.look(looks=600)
        assert made(rig) == before
        assert (rig.family.slo.pressure.factor, rig.family.slo.late) == (1.0, False)
        assert said(caplog, "SLO") == []

    drive(story)


def test_a_burst_is_answered_by_its_rate_and_not_by_pressure() -> None:
    async def story() -> None:
        rig, fleet = rig_of()
        await watched(rig, fleet, 60)
        fleet.rate = 450.0
        await watched(rig, fleet, 12)
        fleet.rate = 300.0
        await watched(rig, fleet, 120)
        assert rig.family.slo.pressure.factor == 1.0

    drive(story)


# --- an SLO that cannot be met --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_slo_that_cannot_be_met_is_one_alarm_and_at_most_ten_plans_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        caplog.set_level(logging.INFO, "clover.control")
        rig, fleet = rig_of(slo_ms=0.5)
        await rig.deploy()
        for _ in range(2):
            before, orders = made(rig), len(rig.solver.orders)
            await watched(rig, fleet, HOUR_S)
            assert made(rig) - before <= 10
            assert len(rig.solver.orders) - orders <= 10
        assert fleet.reconfigured == 0
        (alarm,) = said(caplog, "cannot be met here")
        assert "p95 <= 0.5 ms at 300 rows/s; best p95 seen is 2.46 ms; no plan is predicted to meet it" in alarm
        assert "ctl set slo_ms=2.8`" in alarm
        assert "one row of medium by itself takes 1.15 ms" in alarm
        assert "other programs off" not in alarm, "it is as predicted"
        assert "an accuracy floor" not in alarm, "one row of small takes 0.574 ms"
        state = rig.controller.state()["models"]["toy"]["slo"]
        assert state["alarm"].startswith("this SLO cannot be met here")
        assert (state["held_ratio"], state["windows_held"], state["late"], state["slower"]) == (0.0, 0, True, 1.0)
        assert state["words"] == "SLO held 0.0 % of the last hour (0 of 360 windows of 10 s)"
        # What it says would help does: the alarm is withdrawn at once, and does not come back.
        await rig.controller.command("set", {"slo_ms": 2.8}, "alice")
        await watched(rig, fleet, 300)
        assert rig.controller.state()["models"]["toy"]["slo"]["alarm"] is None
        assert said(caplog, "withdrawn") == ["toy: the alarm about its SLO is withdrawn: its SLO is 2.8 ms now"]
        assert len(said(caplog, "cannot be met here")) == 1

    drive(story)


def test_the_least_bad_plan_is_that_of_the_lowest_p95_at_the_floor() -> None:
    async def story() -> None:
        rig, fleet = rig_of(slo_ms=0.5)
        await rig.deploy()
        conditions = await rig.controller.context.conditions(rig.family)
        state = rig.family.state(conditions, rig.controller.context.config, PlanRequest(trigger="test"))
        plan = await rig.solver.propose(state, "objective")
        assert not plan.feasible
        problem = problem_of(state)
        every = configurations_of(kinds_of(problem.devices), fitting(problem), limit=1000)
        others = [await rig.solver.propose(state, "objective", one) for one in every]
        reach = [other for other in others if other.prediction.accuracy >= 89.0 - 1e-6]
        assert len(reach) > 3
        assert plan.prediction.p95_ms == pytest.approx(min(other.prediction.p95_ms for other in reach))
        # A slower one that runs does not hold it back.
        slow = max((other for other in reach), key=lambda other: other.prediction.p95_ms)
        groups = [{"variant": g.variant, "profile": g.profile, "count": g.count} for g in slow.configuration]
        await rig.controller.command("apply", {"configuration": groups, "force": True}, "alice")
        assert fleet.p95_ms > 2.0 * plan.prediction.p95_ms
        rig.family.triggers.again(rig.clock.now_s)
        await watched(rig, fleet, 30)
        assert rig.family.deployed is not None
        assert rig.family.deployed.configuration == plan.configuration
        assert predict_routing(problem, plan.configuration, rig.family.deployed.routing) is not None

    drive(story)


def test_an_alarm_is_withdrawn_when_the_slo_was_met_for_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        caplog.set_level(logging.INFO, "clover.control")
        rig, fleet = rig_of(slo_ms=2.6, rate=500.0)
        await watched(rig, fleet, 120)
        assert not math.isnan(rig.family.slo.alarm_s)
        fleet.rate = 20.0
        await watched(rig, fleet, 30)
        assert not math.isnan(rig.family.slo.alarm_s), "half a minute may be chance"
        await watched(rig, fleet, 90)
        assert math.isnan(rig.family.slo.alarm_s)
        assert len(said(caplog, "and no miss of 2.6 ms for 1 min")) == 1

    drive(story)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"mode": "observe"}, "mode observe changes nothing"), ({}, "it is frozen"), ({}, "it is pinned")],
)
def test_the_alarm_says_what_keeps_plans_from_being_made(
    settings: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        caplog.set_level(logging.INFO, "clover.control")
        rig = Rig(**settings)
        await rig.deploy()
        if "pinned" in why:
            await rig.controller.command("pin", {"configuration": [
                {"variant": "large", "profile": "1c", "count": 2}]}, "alice")  # fmt: skip
        rig.family.frozen = "frozen" in why
        rig.fleet.figures.update(p95_ms=45.0)
        await rig.look(looks=int(ALARM_S) + 10)
        (alarm,) = said(caplog, "cannot be met here")
        assert why in alarm
        assert rig.family.slo.pressure.factor == 1.0, "nothing would follow from it"

    drive(story)


def test_the_alarm_says_that_plans_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        caplog.set_level(logging.INFO, "clover.control")
        rig = Rig()
        await rig.settled()
        rig.fleet.figures.update(p95_ms=45.0)
        rig.solver.fail = "it is broken"
        await rig.look(looks=120)
        (alarm,) = said(caplog, "cannot be met here")
        assert "the last plan was failed: it is broken" in alarm

    drive(story)


def test_a_fault_of_a_policy_is_said_as_such_and_no_target_is_to_blame(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        caplog.set_level(logging.INFO, "clover.control")
        rig = Rig()
        await rig.settled()
        rig.fleet.figures.update(p95_ms=45.0)
        rig.solver.fail, rig.solver.raises = "policy objective raised KeyError: 1 (a fault of Clover's)", PolicyFault
        await rig.look(looks=120)
        assert rig.last["action"] == "fault"
        assert rig.controller.context.decisions.counts["fault"] > 1
        lines = "\n".join(record.getMessage() for record in caplog.records)
        assert "What would help" not in lines
        assert lines.count("KeyError") == 1, "in the alarm; the solver's client logs it too, once"
        wrong = "; ".join(troubles(rig.controller.state()))
        assert "keeps what runs, as no plan can be made: policy objective raised KeyError: 1 (a fault of" in wrong
        assert "larger SLO" not in wrong
        assert "p95 45 ms of 30 ms" in wrong
        rig.solver.fail = ""
        await rig.look(looks=120)
        assert "KeyError" not in "; ".join(troubles(rig.controller.state()))

    drive(story)


def test_rows_that_wait_for_a_worker_of_their_accuracy_are_not_late(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        caplog.set_level(logging.INFO, "clover.control")
        rig = Rig()
        await rig.settled()
        rig.fleet.figures.update(queue_rows=20.0, awaiting_rows=20.0)
        await rig.look(looks=60)
        assert (rig.family.slo.late, rig.family.slo.pressure.factor) == (False, 1.0)
        assert rig.family.slo.windows.share() == (0, 0)
        rig.fleet.figures.update(queue_rows=21.0)
        await rig.look(looks=30)
        assert rig.family.slo.late
        assert rig.family.slo.windows.share() == (0, 3)

    drive(story)


def test_a_p95_that_no_plan_moves_is_not_chased(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        caplog.set_level(logging.INFO, "clover.control")
        rig = Rig()
        await rig.settled()
        rig.fleet.figures.update(p95_ms=45.0, arrival_rate=50.0)
        before = made(rig)
        await rig.look(looks=HOUR_S)
        assert made(rig) - before <= 10
        assert rig.family.slo.pressure.factor < MOST
        assert len(said(caplog, "cannot be met here")) == 1

    drive(story)


# --- the rule by itself ---------------------------------------------------------------------------------------------


class Loop:
    """A pressure whose plan is always as promised, and a p95 that is what the story says."""

    def __init__(self, predicted_ms: float = 9.0) -> None:
        self.pressure, self.windows = SloPressure(), SloWindows()
        self.now_s = 1000.0
        self.service_ms = 4.0
        self.predicted_ms = predicted_ms
        self.routing = Routing(shares={"small": 1.0})
        self.reasons: list[tuple[float, str]] = []

    def look(self, p95_ms: float, seconds: int, *, as_planned: bool = True, feasible: bool = True) -> None:
        plan = Plan(
            family="toy",
            policy="objective",
            configuration=(),
            deployment=(),
            routing=self.routing,
            prediction=Prediction(p95_ms=self.predicted_ms, accuracy=90.0, energy_j_per_row=1.0, utilisation=0.5),
            score=0.0,
            bound=None,
            gap=None,
            reason="",
            feasible=feasible,
        )
        for _ in range(seconds):
            self.now_s += 1.0
            closed = self.windows.observe(self.now_s, p95_ms, False, 10.0)
            sight = SloSight(
                now_s=self.now_s,
                slo_ms=10.0,
                p95_ms=p95_ms,
                late=p95_ms > 10.0,
                queue_rows=0.0,
                as_planned=as_planned,
                deployment=(),
                routing=self.routing,
                plan=plan,
                service_ms=self.service_ms,
                bound="",
            )
            if not sight.late:
                self.pressure.forget_misses()
            reason = self.pressure.observe(sight, self.windows, closed)
            if reason:
                self.reasons.append((self.now_s, reason))
                self.routing = Routing(shares={"small": 1.0})  # a plan follows


def test_pressure_rises_by_as_much_as_the_p95_exceeds_what_was_predicted() -> None:
    loop = Loop()
    loop.look(8.0, 20)
    loop.look(10.8, 11)
    assert loop.pressure.factor == pytest.approx(1.2)
    loop.look(10.2, 20)
    assert loop.pressure.factor == pytest.approx(1.2), "what clients see trails behind the change"
    loop.look(10.2, 2)
    assert loop.pressure.factor == pytest.approx(1.2 * 1.15)
    assert [reason.startswith(RISK) for _, reason in loop.reasons] == [True, True]


def test_pressure_ends_at_its_bound() -> None:
    loop = Loop()
    for step in range(20):
        loop.look(1000.0 * 0.9**step, 30)
    assert loop.pressure.factor == MOST
    assert len(loop.reasons) <= 4


@pytest.mark.parametrize("known", [{"as_planned": False}, {"feasible": False}])
def test_nothing_is_raised_for_more_load_than_planned_or_a_plan_known_to_miss(known: dict[str, bool]) -> None:
    loop = Loop(predicted_ms=9.0 if "as_planned" in known else 12.0)
    loop.look(20.0, 600, **known)
    assert (loop.pressure.factor, loop.reasons) == (1.0, [])


def test_pressure_is_released_slowly_and_ever_more_rarely_where_it_is_needed() -> None:
    loop = Loop()
    loop.look(8.0, 30)
    began_s = loop.now_s
    for _ in range(12 * 3600 // 5):
        loop.look(5.0 if loop.pressure.factor >= 1.3 else 12.0, 5)  # it takes 1.3 to meet the SLO
    ups = [at_s for at_s, reason in loop.reasons if reason.startswith(RISK)]
    downs = [at_s for at_s, reason in loop.reasons if not reason.startswith(RISK)]
    assert downs[0] - ups[0] >= FIRST_HOLD_S
    assert all(sum(since <= at_s < since + HOUR_S for at_s, _ in loop.reasons) <= 2 for since, _ in loop.reasons)
    pauses = [later - earlier for earlier, later in itertools.pairwise(downs)]
    assert pauses[0] >= 2 * FIRST_HOLD_S
    assert min(pauses[1:]) >= 4 * FIRST_HOLD_S
    assert len(downs) <= 6, "in half a day"
    assert began_s < downs[0]


def test_pressure_that_is_not_needed_is_given_up() -> None:
    loop = Loop()
    loop.look(14.0, 22)
    assert loop.pressure.factor == pytest.approx(1.5)
    loop.look(5.0, int(5 * FIRST_HOLD_S))
    assert loop.pressure.factor == 1.0
    assert len(loop.reasons) == 4  # 1.5, 1.25, 1.125, 1


def test_pressure_falls_by_as_much_as_services_are_known_to_be_slower() -> None:
    loop = Loop()
    loop.look(14.0, 22)
    assert loop.pressure.factor == pytest.approx(1.5)
    loop.service_ms = 5.0
    loop.look(5.0, 1)
    assert loop.pressure.factor == pytest.approx(1.2)
    loop.service_ms = 4.5
    loop.look(5.0, 1)
    assert loop.pressure.factor == pytest.approx(1.2)
    loop.service_ms = 6.0
    loop.look(5.0, 1)
    assert loop.pressure.factor == 1.0


def test_a_profile_that_is_corrected_takes_the_place_of_pressure() -> None:
    async def story() -> None:
        rig, fleet = rig_of(1.5)
        await watched(rig, fleet, 60)
        assert rig.family.slo.pressure.factor == pytest.approx(1.5)
        rig.family.learned.corrected = fleet.truth
        rig.family.triggers.again(0.0)
        assert await watched(rig, fleet, 120) == []
        assert rig.family.slo.pressure.factor == 1.0

    drive(story)


def test_a_plan_for_what_was_just_learned_does_not_have_the_pressure_of_it_too() -> None:
    async def story() -> None:
        rig, fleet = rig_of(1.5)
        await watched(rig, fleet, 60)
        assert rig.family.slo.pressure.factor == pytest.approx(1.5)
        planned: list[tuple[float, float]] = []
        propose = rig.solver.propose

        async def recorded(state: State, policy: str, configuration: Configuration | None = None) -> Plan:
            services = services_of(state.profile), services_of(rig.profile)
            known = max(now.mean_ms[0] / services[1][key].mean_ms[0] for key, now in services[0].items())
            planned.append((known, 1.0 + state.objective.profile_error))
            return await propose(state, policy, configuration)

        rig.solver.propose = recorded  # type: ignore[method-assign]
        truth = services_of(fleet.truth)
        for _ in range(60):
            served = {(item.variant, item.placement.profile) for item in fleet.routed}
            took = {(*key, 1): (20.0, 20.0 * truth[key].seconds(1)) for key in served}
            fleet.work = WorkReport(served=took)
            await watched(rig, fleet, 1)
        assert rig.family.slo.pressure.factor == 1.0
        corrected = [slower for known, slower in planned if known > 1.3]
        assert corrected
        assert max(corrected) < 1.2

    drive(story)


# --- windows --------------------------------------------------------------------------------------------------------


def test_the_share_held_is_of_the_windows_in_which_rows_were_asked() -> None:
    windows = SloWindows()
    now_s = 0.0

    def pass_by(count: int, p95_ms: float | None, waiting: bool = False) -> None:
        nonlocal now_s
        for _ in range(10 * count):
            now_s += 1.0
            windows.observe(now_s, p95_ms, waiting, 30.0)

    windows.observe(0.0, None, False, 30.0)
    assert windows.share() == (0, 0)
    pass_by(6, None)
    pass_by(3, 20.0)
    pass_by(1, 31.0)
    pass_by(1, None, waiting=True)
    assert windows.share() == (3, 5)
    assert (windows.best_ms(), windows.usual_ms()) == (20.0, None)
    assert windows.spanned_s(now_s) == 50.0
    pass_by(360, 25.0)
    assert windows.share() == (360, 360)
    assert (windows.held, windows.missed) == (363, 2)
    assert (windows.best_ms(), windows.usual_ms()) == (25.0, 25.0)
    assert windows.within(25.0, now_s - 100.0) == (1.0, 10)
    pass_by(360, None)
    assert windows.share() == (0, 0)
