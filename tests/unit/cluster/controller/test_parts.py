"""The parts of a cluster's controller by themselves: budget, demand, capacity, membership."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.cluster.controller.budget import MOST, AccuracyBudget
from clover.cluster.controller.capacity import Capacity, Cover, Reach, fastest_ms, keeps, most_rows
from clover.cluster.controller.demand import ClusterDemand
from clover.cluster.controller.members import LEAST_PACE, Membership
from clover.cluster.controller.memory import ClusterMemory
from clover.cluster.planning.records import ClusterNode, FamilyTerms, NodeTarget, OperatingPoint
from clover.cluster.ports import FamilyReport, NodeReport
from tests.support.cluster_fixture import FAMILY, frontier, node, terms


def report(
    name: str = "a",
    at_s: float = 0.0,
    *,
    started_s: float = 0.0,
    rows: int = 0,
    accuracy: float = 90.0,
    p95_ms: float = 30.0,
    rates: dict[str, float] | None = None,
    **other: object,
) -> NodeReport:
    own = FamilyReport(
        family=FAMILY,
        rates=rates or {},
        p95_ms=p95_ms,
        rows=rows,
        accuracy_rows=rows * accuracy,
        joules=2.0 * rows,
        grams=0.001 * rows,
    )
    given_fields = {"node": node(name, "north"), "url": f"http://{name}", "families": (own,), **other}
    return NodeReport(at_s=at_s, started_s=started_s, **given_fields)  # type: ignore[arg-type]


# --- the accuracy budget ----------------------------------------------------------------------------------------------


def test_counters_that_restart_are_summed_over_both_lives() -> None:
    budget = AccuracyBudget(86_400.0, 3600.0)
    budget.record(0.0, {"a": report(rows=100)})
    budget.record(10.0, {"a": report(rows=150, at_s=10.0)})
    budget.record(20.0, {"a": report(rows=30, started_s=15.0, at_s=20.0)})
    assert budget.sums[FAMILY].all_rows == 180
    assert budget.sums[FAMILY].joules == 360.0
    assert budget.grams == pytest.approx(0.18)


def test_an_older_report_that_comes_late_counts_nothing() -> None:
    budget = AccuracyBudget(86_400.0, 3600.0)
    for rows in (100, 40, 110):
        budget.record(0.0, {"a": report(rows=rows)})
    assert budget.rows == 110


def test_what_a_server_answered_before_the_cluster_is_none_of_its_budget() -> None:
    budget = AccuracyBudget(86_400.0, 3600.0)
    budget.record(1000.0, {"a": report(rows=10**6, accuracy=50.0, started_s=1.0)})
    budget.record(1010.0, {"a": report(rows=10**6 + 10, accuracy=50.0, started_s=1.0)})
    assert budget.rows == 10


@given(st.lists(st.tuples(st.integers(0, 500), st.booleans()), max_size=12))
def test_rows_are_counted_once_whatever_restarts_and_is_asked_again(parts: list[tuple[int, bool]]) -> None:
    budget, served, rows, started_s = AccuracyBudget(1e12, 3600.0), 0, 0, 0.0
    for at, (more, restarts) in enumerate(parts):
        if restarts:
            rows, started_s = 0, float(at)
        rows, served = rows + more, served + more
        for _ in range(2):
            budget.record(float(at), {"a": report(rows=rows, started_s=started_s)})
    assert budget.rows == served


def test_a_debt_raises_the_floor_and_a_credit_lowers_it() -> None:
    for accuracy, sign in ((89.9, 1.0), (90.1, -1.0)):
        budget = AccuracyBudget(86_400.0, 3600.0)
        budget.record(0.0, {"a": report(rows=360_000, accuracy=accuracy)})
        moved = budget.corrected(FAMILY, 90.0, 100.0, 92.0) - 90.0
        assert moved == pytest.approx(sign * 0.1 * 360_000 / (100.0 * 3600.0))


def test_a_corrected_floor_is_bounded_and_can_be_reached() -> None:
    budget = AccuracyBudget(86_400.0, 3600.0)
    budget.record(0.0, {"a": report(rows=10**7, accuracy=50.0)})
    assert budget.corrected(FAMILY, 90.0, 1.0, 95.0) == 90.0 + MOST
    assert budget.corrected(FAMILY, 90.0, 1.0, 90.5) == 90.5
    assert budget.corrected(FAMILY, 90.0, 0.0, 95.0) == 90.0
    assert budget.corrected("other", 90.0, 1.0, 95.0) == 90.0


def test_a_saved_budget_goes_on() -> None:
    budget = AccuracyBudget(86_400.0, 3600.0)
    budget.record(0.0, {"a": report(rows=100)})
    counters, sums = budget.snapshot()
    other = AccuracyBudget(86_400.0, 3600.0)
    other.restore(counters, sums, 0.0)
    other.record(0.0, {"a": report(rows=130)})
    assert other.rows == 130


# --- demand -----------------------------------------------------------------------------------------------------------


def test_a_day_that_is_known_is_expected_again() -> None:
    demand, key = ClusterDemand(), (FAMILY, "north")
    for hour in range(49):
        demand.record(hour * 3600.0, {key: 500.0 if hour % 24 == 2 else 100.0})
    found = demand.forecast(48 * 3600.0 + 1800.0, 7200.0)
    (own,) = found
    assert own.rate < 150.0
    assert max(rate for _, rate in own.forecast) > 300.0
    assert [at for at, _ in own.forecast] == sorted(at for at, _ in own.forecast)


def test_a_rise_that_comes_every_day_is_expected_until_it_is_there() -> None:
    demand, key = ClusterDemand(), (FAMILY, "north")
    for at in range(3 * 144):  # every ten minutes
        at_s, hour = at * 600.0, at / 6.0 % 24.0
        demand.record(at_s, {key: 700.0 if 12.0 <= hour < 15.0 else 60.0})
        if at >= 2 * 144 and 11.0 <= hour < 15.0:
            (own,) = demand.forecast(at_s, 4800.0)
            assert max(own.rate, *(rate for _, rate in own.forecast)) > 600.0, f"at {hour:.2f} h"
        if at >= 2 * 144 and (hour < 9.0 or hour > 17.0):
            (own,) = demand.forecast(at_s, 4800.0)
            assert max(own.rate, *(rate for _, rate in own.forecast)) < 100.0, f"at {hour:.2f} h"


def test_what_is_not_counted_any_more_went_away_and_nonsense_is_ignored() -> None:
    demand = ClusterDemand()
    demand.record(0.0, {(FAMILY, "north"): 100.0})
    for at in range(1, 20):
        demand.record(at * 60.0, {(FAMILY, "south"): math.nan})
    assert demand.rates() == {(FAMILY, "north"): 0.0}


def test_saved_demand_is_the_same_at_once() -> None:
    demand, key = ClusterDemand(), (FAMILY, "north")
    for at in range(30):
        demand.record(at * 60.0, {key: 100.0})
    other = ClusterDemand()
    other.restore(demand.snapshot(), 1800.0)
    assert other.rates()[key] == pytest.approx(demand.rates()[key])


# --- capacity ---------------------------------------------------------------------------------------------------------


def reach(**other: object) -> Reach:
    given_fields = {"family": FAMILY, "accuracy_floor": 90.0, "slo_p95_ms": 100.0, **other}
    own = FamilyTerms(**given_fields)  # type: ignore[arg-type]
    return Reach((own,), ("north", "south"), {"north": {"south": 70.0}, "south": {"north": 90.0}}, {FAMILY: 20.0})


def test_latency_and_residency_say_where_rows_may_go() -> None:
    assert reach().regions(FAMILY, "north") == ("north", "south")
    assert reach().regions(FAMILY, "south") == ("south",), "90 ms there and back leave no 20 ms to answer"
    assert reach(regions={"north": ("south",)}).regions(FAMILY, "north") == ("south",)


def test_the_fastest_mix_at_a_floor_is_that_of_two_points() -> None:
    points = frontier().points
    assert most_rows(points, 80.0) == 400.0
    assert most_rows(points, 93.0) == 0.0
    # half of the rows at 92 % and half at 90 %, which take 2/3 and 1/3 of the time
    assert most_rows(points, 91.0) == pytest.approx(400.0 / 3.0)


@given(
    st.lists(st.tuples(st.floats(1.0, 500.0), st.floats(80.0, 95.0)), min_size=1, max_size=6),
    st.floats(80.0, 95.0),
)
def test_no_mix_of_points_serves_more(drawn: list[tuple[float, float]], floor: float) -> None:
    points = [OperatingPoint(rate=rate, accuracy=accuracy, watts=1.0, p95_ms=1.0) for rate, accuracy in drawn]
    best = most_rows(points, floor)
    for one in points:
        for other in points:
            for part in (0.0, 0.1, 0.37, 0.5, 0.9, 1.0):
                rate = part * one.rate + (1.0 - part) * other.rate
                rows = part * one.rate * (one.accuracy - floor) + (1.0 - part) * other.rate * (other.accuracy - floor)
                if rows >= 0.0:
                    assert rate <= best * (1.0 + 1e-6) + 1e-6


def cover(survive: str = "none", **other: object) -> Cover:
    nodes = [node("n1", "north"), node("n2", "north"), node("s1", "south")]
    own = Capacity((frontier(),), reach(**other), {FAMILY: 90.0})
    return Cover(own, nodes, {(FAMILY, "north"): 400.0, (FAMILY, "south"): 200.0}, survive)


def test_load_is_of_those_that_may_share_the_least() -> None:
    every = frozenset({"n1", "n2", "s1"})  # 400 rows/s each at 90 %
    assert cover().load(every) == pytest.approx(0.5)
    assert cover().load(frozenset({"n1", "n2"})) == math.inf, "rows of the south may not go north"
    assert cover(regions={"north": ("north",)}).load(frozenset({"n1", "s1"})) == pytest.approx(1.0)


def test_load_after_a_loss() -> None:
    every = frozenset({"n1", "n2", "s1"})
    assert cover("node").load(every) == math.inf, "the south's only node"
    alone = cover("node", regions={"south": ("north",)}, slo_p95_ms=1000.0)
    assert alone.load(every) == pytest.approx(600.0 / 1600.0), "each serves 800 rows/s if accuracy does not matter"


@given(st.lists(st.frozensets(st.sampled_from(["n1", "n2", "s1"])), min_size=1, max_size=8))
def test_load_does_not_depend_on_what_was_asked_before(asked: list[frozenset[str]]) -> None:
    one = cover()
    for names in asked:
        assert one.load(names) == pytest.approx(cover().load(names))


def test_rows_that_no_node_may_answer_keep_no_other_node_awake() -> None:
    own = cover(regions={"south": ()})
    every = frozenset({"n1", "n2", "s1"})
    assert own.load(every) == math.inf
    covers = keeps(own, every)
    assert covers(every - {"s1"})
    assert covers(frozenset({"n1"})), "400 rows/s of the north are what one serves"
    assert not covers(frozenset())
    assert not keeps(cover(), every)(frozenset({"n1", "n2"})), "the south has only that one"


def test_the_fastest_point_of_a_family() -> None:
    assert fastest_ms([frontier()]) == {FAMILY: 20.0}


# --- membership -------------------------------------------------------------------------------------------------------


def membership(*names: str) -> Membership:
    found = Membership(15.0)
    found.declare([node(name, "north") for name in names], 0.0)
    return found


def test_a_node_that_falls_silent_is_lost_and_found_again() -> None:
    members = membership("a")
    assert members.record(0.0, {"a": report()}) == ["a is ready"]
    assert members.record(10.0, {}) == []
    assert members.record(20.0, {}) == ["a is lost: no report for 15 s"]
    assert members.for_plan() == ()
    assert members.record(30.0, {"a": report(at_s=30.0)}) == ["a is ready"]


def test_the_same_report_again_is_silence() -> None:
    members = membership("a")
    for at_s in (0.0, 10.0, 20.0):
        members.record(at_s, {"a": report(at_s=1e9)})  # a clock of its own
    assert members.members["a"].phase == "lost"


def test_a_controller_that_reaches_nobody_blames_no_node() -> None:
    members = membership("a")
    members.record(0.0, {"a": report()})
    for at_s in (10.0, 20.0, 30.0):
        members.unheard(10.0)
        members.record(at_s, {})
    assert members.members["a"].phase == "ready"


def test_a_start_that_takes_too_long_is_tried_again_later_and_later() -> None:
    members = membership("a")
    own, waits = members.members["a"], []
    now_s = 0.0
    for _ in range(4):
        own.enter("waking", now_s)
        now_s += 241.0
        members.record(now_s, {})
        assert own.phase == "lost"
        waits.append(own.retry_s - now_s)
        now_s = own.retry_s
    assert waits == [15.0, 30.0, 60.0, 120.0]


def test_a_node_that_says_it_is_not_healthy_gets_no_rows_and_is_no_part_of_plans() -> None:
    members = membership("a")
    members.record(0.0, {"a": report()})
    members.record(5.0, {"a": report(at_s=5.0, healthy=False, why="no worker")})
    own = members.members["a"]
    assert (own.phase, own.usable, own.why) == ("ready", False, "no worker")
    assert members.for_plan() == ()


def test_the_last_reports_of_a_released_node_do_not_bring_it_back() -> None:
    members = membership("a")
    own = members.members["a"]
    own.enter("released", 100.0)
    own.ended_s = 100.0
    members.record(105.0, {"a": report(at_s=105.0)})
    assert own.phase == "released"
    members.record(120.0, {"a": report(at_s=120.0)})
    assert own.phase == "ready", "somebody started it"


def test_a_slow_node_gets_less_and_recovers() -> None:
    members = membership("a")
    for at_s in range(0, 120, 5):
        members.record(float(at_s), {"a": report(at_s=at_s, p95_ms=150.0, rates={"north": 5.0})})
        slow = members.pace(float(at_s), {FAMILY: 100.0}, {})
        assert members.members["a"].pace == pytest.approx(max(LEAST_PACE, 0.8 ** (at_s // 10 + 1))), (
            "one step in ten seconds"
        )
    assert members.members["a"].pace == LEAST_PACE
    assert slow == ["a answers digits in 150 ms of 100 ms (p95) and gets 25% of its share"]
    for at_s in range(120, 480, 10):
        members.record(float(at_s), {"a": report(at_s=at_s, rates={"north": 5.0})})
        assert not members.pace(float(at_s), {FAMILY: 100.0}, {})
    assert members.members["a"].pace == 1.0


def test_a_target_may_leave_less_time_than_the_slo() -> None:
    members = membership("a")
    members.record(0.0, {"a": report(p95_ms=60.0, rates={"north": 5.0})})
    target = NodeTarget(node="a", awake=True, p95_ms={FAMILY: 50.0})
    assert members.pace(0.0, {FAMILY: 100.0}, {"a": target})


def test_a_node_is_ready_for_the_rows_of_the_target_it_took_as_long_as_that_holds() -> None:
    members = membership("a")
    members.record(0.0, {"a": report()})
    own = members.members["a"]
    assert own.ready_for(FAMILY, 0.0) == 0.0, "it has taken none"
    own.taken = NodeTarget(node="a", awake=True, rates={FAMILY: 40.0}, accuracy={FAMILY: 90.0})
    assert own.ready_for(FAMILY, 90.0) == 40.0
    assert own.ready_for(FAMILY, 90.1) == 0.0
    assert own.ready_for("letters", 0.0) == 0.0
    own.enter("partitioned", 5.0)
    assert own.ready_for(FAMILY, 90.0) == 0.0, "the lease of its target ends while nobody reaches it"
    own.enter("ready", 10.0)
    members.record(15.0, {"a": report(at_s=15.0, started_s=12.0)})
    assert own.ready_for(FAMILY, 90.0) == 0.0, "a new server has taken none"


def test_rows_of_a_server_that_does_not_answer_its_agent_have_not_gone_away() -> None:
    memory = ClusterMemory.new(terms([node("a", "north")]), 0.0)
    memory.record_reports(0.0, {"a": report(rates={"north": 100.0})})
    memory.record_reports(5.0, {"a": report(at_s=5.0, families=(), healthy=False)})
    assert sum(memory.demand.rates().values()) > 100.0
    memory.record_reports(45.0, {"a": report(at_s=45.0, families=(), healthy=False)})
    assert sum(memory.demand.rates().values()) < 100.0, "by then they are counted where they went"


def test_rows_of_a_partitioned_node_count_on_while_it_is_not_known_what_the_ingress_gives_it() -> None:
    memory = ClusterMemory.new(terms([node("a", "north"), node("b", "north")]), 0.0)
    both = {name: report(name, rates={"north": 100.0}) for name in ("a", "b")}
    memory.record_reports(0.0, both)
    memory.members.members["a"].enter("partitioned", 0.0)
    memory.weights, memory.given = {("", "south"): {"b": 1.0}}, {"b": 1.0}  # the answer for the north was lost
    for at_s in range(20, 200, 10):
        memory.record_reports(float(at_s), {"b": report("b", at_s=at_s, rates={"north": 100.0})})
    assert sum(memory.demand.rates().values()) == pytest.approx(200.0, rel=0.05)
    memory.in_force = True  # nothing is given to it any more
    for at_s in range(200, 400, 10):
        memory.record_reports(float(at_s), {"b": report("b", at_s=at_s, rates={"north": 100.0})})
    assert sum(memory.demand.rates().values()) == pytest.approx(100.0, rel=0.05)


def test_an_unknown_node_that_reports_is_taken_in() -> None:
    members = membership()
    members.record(0.0, {"b": report("b")})
    assert [own.name for own in members.for_plan()] == ["b"]


def test_saved_members_are_as_they_were() -> None:
    members = membership("a", "b")
    members.record(0.0, {"a": report()})
    members.members["b"].hold = "released"
    other = membership("a", "b")
    other.restore(members.snapshot(), 500.0)
    assert other.members["a"].phase == "ready"
    assert other.members["b"].hold == "released"
    other.record(510.0, {})
    assert other.members["a"].phase == "ready", "it has some seconds to answer the new controller"
    other.record(520.0, {})
    assert other.members["a"].phase == "lost"


def test_a_node_that_reports_other_devices_is_planned_with_those() -> None:
    members = membership("a")
    own = msgspec.structs.replace(node("a", "north"), devices={"gpu": 7})
    members.record(0.0, {"a": report(node=own)})
    (found,) = members.for_plan()
    assert isinstance(found, ClusterNode)
    assert found.devices == {"gpu": 7}


def test_a_node_that_is_waking_keeps_its_devices_in_plans_before_its_server_has_said_them() -> None:
    members = membership("a")
    members.record(0.0, {"a": report()})
    members.members["a"].enter("waking", 100.0)
    bare = msgspec.structs.replace(node("a", "north"), devices={}, state="starting")
    members.record(105.0, {"a": report(at_s=105.0, started_s=100.0, healthy=False, node=bare)})
    (planned,) = members.for_plan()
    assert (planned.devices, planned.state) == ({"gpu": 2}, "starting")
    assert members.snapshot()["a"].reported == msgspec.structs.replace(bare, devices={"gpu": 2})
