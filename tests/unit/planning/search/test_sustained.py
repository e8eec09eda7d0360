"""Where nothing is feasible, what sustains most of the rate is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clover.planning.cascade.evaluation import predict_routing, shortfall
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.search.best import PARTS as PARTS_OF_THE_RATE
from clover.planning.search.best import WASTED, best_power_state, best_sustained
from clover.types import Candidate
from tests.support.profiles_fixture import objective, state

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rate", [560.0, 600.0, 700.0, 900.0])
def test_where_nothing_is_feasible_what_sustains_most_is_taken(rate: float) -> None:
    now = state(rate=rate, config=objective(slo_ms=8.0, floor=91.9))
    problem, aims = problem_of(now), objective_of(now)
    least_bad, found = best_power_state(problem, aims).best, best_sustained(problem, aims).best
    assert not least_bad.feasible

    def sustains(candidate: Candidate) -> float:
        kept = [part for part in (1.0, *PARTS_OF_THE_RATE) if keeps(candidate, part)]
        return max(kept, default=0.0)

    def keeps(candidate: Candidate, part: float) -> bool:
        fewer = replace(problem, rate=part * rate)
        seen = predict_routing(fewer, candidate.configuration, candidate.routing)
        return seen is not None and not shortfall(aims, seen)

    assert sustains(found) >= sustains(least_bad)
    if sustains(found) == sustains(least_bad):
        assert found == least_bad, "nothing is gained by another"
    assert found.prediction.utilisation <= WASTED * least_bad.prediction.utilisation
