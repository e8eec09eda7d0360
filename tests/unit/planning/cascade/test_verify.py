"""Cascades before the router row by row, the planner's model of them, and the verification that a plan has to pass."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from bench.stages import APART, draw
from clover.planning.cascade.chains import best_chains, evaluate, play_once, played_ms
from clover.planning.cascade.verify import MOST_ROWS, CascadeVerdict, verified, verify
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.model.queueing import Service
from clover.planning.search import annealed
from clover.policies import plans
from clover.policies.plans import plan_fixed
from clover.types import Candidate
from tests.support.chains_fixture import FAST, SLOW, both, cascading, point, two_cores
from tests.support.row_by_row import Time, play

TWO = Service((1, 2, 4, 8), (4.0, 4.4, 5.2, 6.8), (1.0,) * 4, 0.1)
"""Takes hardly longer for more rows: batches that come together are worth much."""
STEADY = ((FAST,), (SLOW,)), 40.0, (1.0, 0.25)


def p95_ms(stages: tuple[tuple[Service, ...], ...], rate: float, reach: tuple[float, ...]) -> float:
    return float(np.quantile(played_ms(stages, rate, reach), 0.95))


# --- row by row -------------------------------------------------------------------------------------------------------


def test_time_passes_from_timer_to_timer() -> None:
    time, seen = Time(), []
    time.call_later(2.0, lambda: seen.append(("late", time.now_ns)))
    timer = time.call_later(1.0, lambda: seen.append(("never", time.now_ns)))
    time.call_later(0.5, lambda: time.call_soon(lambda: seen.append(("soon", time.now_ns))))
    timer.cancel()
    time.until(1_500_000_000)
    assert seen == [("soon", 500_000_000)]
    time.until(3_000_000_000)
    assert seen[1:] == [("late", 2_000_000_000)]
    assert time.clock() == 3_000_000_000


def test_rows_before_the_router_take_what_their_stages_take() -> None:
    """At no load: 1 ms, and 10 more for a fifth of the rows."""
    found = play(((FAST,), (SLOW,)), 0.5, (1.0, 0.2), rows=4000, warm_up=10)
    assert len(found.latency_ms) == 4000
    assert found.reach == (1.0, pytest.approx(0.2, abs=0.02))
    later = found.latency_ms > 5.0
    assert later.mean() == pytest.approx(found.reach[1])
    assert np.median(found.latency_ms[~later]) == pytest.approx(1.0)
    assert np.median(found.latency_ms[later]) == pytest.approx(11.0)


def test_one_stage_before_the_router_is_a_queue_whose_wait_is_known() -> None:
    """M/D/1 at a load of 0.5 waits half a service in the mean."""
    found = play(((SLOW,),), 50.0, (1.0,), rows=20_000, warm_up=500)
    assert found.latency_ms.mean() == pytest.approx(15.0, rel=0.03)


def test_the_same_seed_gives_the_same_rows() -> None:
    one, two = (play(*STEADY, rows=500, warm_up=10, seed=3) for _ in range(2))
    assert one.latency_ms.tolist() == two.latency_ms.tolist()


# --- the model --------------------------------------------------------------------------------------------------------


def test_rows_that_go_on_from_a_batch_share_one_again() -> None:
    """Eight rows of a batch that all go on take the second stage once, not eight times."""
    stages, rate = ((TWO, TWO), (TWO, TWO)), 900.0
    found = play(stages, rate, (1.0, 0.4), rows=20_000, warm_up=500)
    assert p95_ms(stages, rate, (1.0, 0.4)) == pytest.approx(float(np.quantile(found.latency_ms, 0.95)), rel=0.05)


def test_rows_end_where_the_profile_says_whatever_chance_did() -> None:
    values, cumulated = play_once(((FAST,), (SLOW,)), 0.5, (1.0, 0.2), rows=300, warm_up=0, seed=1)
    assert cumulated[-1] == pytest.approx(1.0)
    assert cumulated[np.searchsorted(values, 5.0) - 1] == pytest.approx(0.8)


@pytest.mark.parametrize("seed", range(12))
def test_the_model_is_what_the_router_does_or_is_rejected(seed: int) -> None:
    """Drawn configurations, as `bench.stages` draws hundreds; rows enough to know most p95 within 5 %."""
    drawn = draw(random.Random(seed))
    found = play(drawn.stages, drawn.rate, drawn.reach, rows=20_000, warm_up=2_000, seed=seed)
    told = p95_ms(drawn.stages, drawn.rate, drawn.reach)
    apart = told / float(np.quantile(found.latency_ms, 0.95)) - 1.0
    if abs(apart) > APART:
        verdict = verify(drawn.stages, drawn.rate, drawn.reach, p95_ms=told, slo_ms=math.inf)
        late = [float((block > verdict.p95_ms).mean()) for block in np.array_split(found.latency_ms, 20)]
        noise = 2.9 * float(np.std(late, ddof=1)) / math.sqrt(20)
        assert not verdict.accepted or abs(np.mean(late) - 0.05) < noise, f"{apart:+.1%} and accepted"


# --- the verification -------------------------------------------------------------------------------------------------


def judged(told: float, slo_ms: float = 1000.0, **how: int) -> CascadeVerdict:
    """Of `STEADY`, whose p95 is told as `told` times what it is."""
    return verify(*STEADY, p95_ms=told * p95_ms(*STEADY), slo_ms=slo_ms, **how)


def test_what_is_right_is_accepted() -> None:
    found = judged(1.0)
    assert found.accepted
    assert found.why == ""
    assert found.late == 0.0
    assert found.p95_ms == pytest.approx(p95_ms(*STEADY), rel=0.03)


@pytest.mark.parametrize(("told", "sign"), [(1.2, "+"), (0.8, "-")])
def test_a_p95_that_is_told_wrong_is_rejected(told: float, sign: str) -> None:
    found = judged(told)
    assert (found.holds, found.agrees) == (True, False)
    assert f" ms is {sign}" in found.why
    assert "8% is allowed" in found.why


def test_a_missed_slo_is_rejected() -> None:
    found = judged(1.0, slo_ms=0.8 * p95_ms(*STEADY))
    assert (found.holds, found.agrees) == (False, True)
    assert "later than the SLO" in found.why
    assert found.late > 0.05


def test_an_slo_that_is_just_kept_is_not_rejected() -> None:
    """Optima lie at their SLO: doubt does not reject them."""
    assert judged(1.0, slo_ms=judged(1.0).p95_ms * 1.002).holds


def test_what_stays_undecided_is_rejected() -> None:
    stages, rate, reach = ((FAST,), (SLOW,)), 380.0, (1.0, 0.25)  # 95 % of what the second serves
    found = verify(stages, rate, reach, p95_ms=p95_ms(stages, rate, reach), slo_ms=1e9, most_rows=200_000)
    assert not found.accepted
    assert "too close to decide" in found.why


# --- in plans ---------------------------------------------------------------------------------------------------------


def test_a_plan_does_not_take_what_is_rejected() -> None:
    problem, aim = replace(problem_of(two_cores()), points=(point(),)), objective_of(two_cores())
    good = evaluate(problem, aim, both(problem), point())
    wrong = msgspec.structs.replace(
        good,
        score=good.score + 1.0,
        prediction=msgspec.structs.replace(good.prediction, p95_ms=0.7 * good.prediction.p95_ms),
    )
    found = verified(problem, aim, [wrong, good])
    assert [candidate.feasible for candidate in found] == [False, True]
    assert found[0].why.startswith("rejected by verification: its p95")
    assert found[1] is good


def test_as_many_are_verified_as_may_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, aim = problem_of(two_cores()), objective_of(two_cores())
    good = evaluate(problem, aim, both(problem), point())
    seen: list[float] = []

    def judged(problem: object, objective: object, candidate: Candidate) -> CascadeVerdict:
        seen.append(candidate.score)
        return CascadeVerdict(1.0, 0.0, 0.0, 10, True, True, "")

    monkeypatch.setattr("clover.planning.cascade.verify._judged", judged)
    scores = [good.score, good.score - 1e-9 * aim.scale, good.score - aim.scale]
    verified(problem, aim, [msgspec.structs.replace(good, score=score) for score in scores])
    assert seen == scores[:2]


def test_the_search_falls_back_to_the_next_best(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [point(91.2, reach=(1.0, 0.1)), msgspec.structs.replace(point(91.8, reach=(1.0, 0.2)), thresholds=(0.7,))]
    given = cascading(points)
    problem, aim = problem_of(given), objective_of(given)
    first = annealed.best_found(problem, aim).best
    assert first.routing.thresholds == (0.5,)
    genuine = best_chains

    def misjudged(*args: object, **how: object) -> list[Candidate]:
        return [
            msgspec.structs.replace(own, prediction=msgspec.structs.replace(own.prediction, p95_ms=1.0))
            if own.routing.thresholds == (0.5,)
            else own
            for own in genuine(*args, **how)  # type: ignore[arg-type]
        ]

    monkeypatch.setattr(annealed, "best_chains", misjudged)
    found = annealed.best_found(problem, aim)
    assert found.best.routing.thresholds == (0.7,)
    assert any("rejected by verification" in own.why for own in found.candidates)


def test_a_fixed_configuration_does_not_take_what_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    given = cascading([point(91.2, reach=(1.0, 0.1))])
    configuration = annealed.best_found(problem_of(given), objective_of(given)).best.configuration
    assert plan_fixed(given, configuration).routing.chain
    rejected = msgspec.structs.replace
    monkeypatch.setattr(
        plans, "verified", lambda problem, objective, found: [rejected(own, feasible=False, why="no") for own in found]
    )
    assert not plan_fixed(given, configuration).routing.chain


def test_the_bound_on_rows_is_kept() -> None:
    assert judged(1.0).replications * 20_000 <= MOST_ROWS
