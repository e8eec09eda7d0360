"""The best plan over all configurations, exactly, simulating p95 as seldom as possible.

A configuration is optimistic, settled or evaluated (`planning.packing.evaluation`), each step more expensive and with a
score no higher than the one before.  The highest score is always looked at next, so that the search ends when an
evaluated configuration beats the optimistic scores of everything else: then nothing else can win (but for what moving
shares does to batch sizes), and what is missing of `ALTERNATIVES` good ones is evaluated, for a controller that may not
take the best.  `BUDGET` bounds the configurations evaluated and `ASKED` the simulations of p95; if these end the search
the answer is the best seen, and says so.

Of plans that differ by less than the margin (`objective.HYSTERESIS` of the scale) the one that keeps most of what runs
is taken, then the better: the running configuration is left only for a real gain.

If nothing meets all constraints the least bad plan is given, marked infeasible: the accuracy floor is kept (as far as
any variant reaches it), p95 is minimised, and if even capacity is short, the utilisation.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clover.planning.model.objective import HYSTERESIS, Objective
from clover.planning.model.problem import Problem
from clover.planning.model.shares import Mix, balanced_mix
from clover.planning.packing.evaluation import (
    LATE,
    ConfigurationLanes,
    P95Budget,
    evaluate,
    lanes_of,
    optimistic,
    rank,
    settle,
)
from clover.types import Candidate, Configuration

BUDGET = 400
"""Configurations that are evaluated, at most."""
ASKED = 200
"""Simulations of p95, at most."""
ALTERNATIVES = 5
"""Good candidates that a controller can choose from."""
_NEAR = 40  # configurations within the margin whose kept workers are counted
_MORE_KEPT = 5  # of which this many are looked at because they keep more
_COMPARED = 8  # candidates within the margin whose kept workers are counted
_LEAST_BAD = 24


@dataclass(frozen=True)
class SearchResult:
    """The chosen candidate of a search, the best others, and how many configurations were evaluated of how many;
    `complete` if no other one can be better."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    evaluated: int
    total: int
    complete: bool


def search(
    problem: Problem,
    objective: Objective,
    configurations: Sequence[Configuration],
    *,
    running: Configuration | None = None,
    kept: Callable[[Configuration], int] | None = None,
) -> SearchResult:
    """Return the best candidate among `configurations` (at least one).

    `running` is evaluated in any case if it is one of them.  `kept` counts the workers a configuration could keep.
    """
    heap: list[tuple[float, int, bool]] = []  # (- the score to hope for, index, whether it is settled)
    for index, configuration in enumerate(configurations):
        bound = optimistic(problem, objective, configuration)
        if bound is not None:
            heap.append((-bound, index, False))
    heapq.heapify(heap)
    seen: dict[Configuration, Candidate] = {}
    spending = P95Budget(ASKED)
    best = -math.inf
    if running is not None and running in configurations:
        seen[running] = evaluate(problem, objective, running, standby=False, spending=spending)
        best = seen[running].score if seen[running].feasible else best
    complete = True
    good = sum(candidate.feasible for candidate in seen.values())
    while heap and (-heap[0][0] > best or good < ALTERNATIVES):
        hope, index, settled = heapq.heappop(heap)
        configuration = configurations[index]
        if configuration in seen:
            continue
        if not settled:
            found = settle(problem, objective, configuration, standby=False)
            if found.mix is not None and not found.short:
                heapq.heappush(heap, (max(hope, -found.score), index, True))
            continue
        if len(seen) >= BUDGET or spending.exhausted:
            complete = -hope <= best
            break
        beat = best if good >= ALTERNATIVES else -math.inf
        seen[configuration] = evaluate(problem, objective, configuration, standby=False, beat=beat, spending=spending)
        if seen[configuration].feasible:
            good += 1
            best = max(best, seen[configuration].score)
    if best == -math.inf:
        for configuration in least_bad(problem, objective, configurations):
            seen[configuration] = evaluate(problem, objective, configuration)
    margin = HYSTERESIS * objective.scale
    if best > -math.inf and kept is not None:
        top = max(seen.values(), key=lambda candidate: candidate.score if candidate.feasible else -math.inf)
        close = [configurations[i] for hope, i, _ in heapq.nsmallest(_NEAR, heap) if -hope > best - margin]
        more = [(kept(configuration), configuration) for configuration in close if configuration not in seen]
        more = [item for item in more if item[0] > kept(top.configuration)]
        for _, configuration in sorted(more, key=lambda item: -item[0])[:_MORE_KEPT]:
            seen[configuration] = evaluate(problem, objective, configuration, standby=False, beat=best - margin)
    best_candidate, ranked = chosen(seen.values(), objective, running=running, kept=kept)
    return SearchResult(best_candidate, ranked[:10], len(seen), len(configurations), complete)


def chosen(
    candidates: Iterable[Candidate],
    objective: Objective,
    *,
    running: Configuration | None = None,
    kept: Callable[[Configuration], int] | None = None,
) -> tuple[Candidate, tuple[Candidate, ...]]:
    """Return the candidate to take, and all of them from the best down.  Of those within the margin what runs stays; if
    it is not among them, the one that keeps most of it is taken, then the better one."""
    ranked = tuple(sorted(candidates, key=lambda candidate: rank(candidate, objective)))
    best = ranked[0]
    if not best.feasible:
        return best, ranked
    margin = HYSTERESIS * objective.scale
    near = [c for c in ranked if c.feasible and c.score >= best.score - margin]
    stays = next((candidate for candidate in near if candidate.configuration == running), None)
    if stays is not None or kept is None:
        return stays or best, ranked
    return max(near[:_COMPARED], key=lambda candidate: (kept(candidate.configuration), candidate.score)), ranked


def least_bad(problem: Problem, objective: Objective, configurations: Sequence[Configuration]) -> list[Configuration]:
    """Return those of the configurations closest to the floor that have the least peak utilisation, then the fastest
    ones that are not overloaded."""
    ranked = []
    for index, configuration in enumerate(configurations):
        lanes = lanes_of(problem, configuration)
        floor = min(objective.planned_floor, max(lanes.accuracy))
        mix = balanced_mix(lanes.capacities, lanes.accuracy, floor)
        assert mix is not None
        peak = max(problem.rate * share / total for share, total in zip(mix, lanes.capacities, strict=True))
        overloaded = max(0.0, peak - objective.max_utilisation)
        ranked.append((round(objective.planned_floor - floor, 6), peak, overloaded, _service_p95_ms(lanes, mix), index))
    loaded = heapq.nsmallest(_LEAST_BAD // 2, ranked)
    swift = heapq.nsmallest(_LEAST_BAD, ranked, key=lambda item: (item[0], *item[2:]))
    chosen = dict.fromkeys(item[-1] for item in (*loaded, *swift))
    return [configurations[index] for index in list(chosen)[:_LEAST_BAD]]


def _service_p95_ms(lanes: ConfigurationLanes, mix: Mix) -> float:
    """Return p95 of the service times alone, each row by itself."""
    parts = [
        (service.mean_ms[0], share * part)
        for lane, share in zip(lanes.lanes, mix, strict=True)
        for part, (service, _) in zip(lane.parts, lane.groups, strict=True)
    ]
    left = 1.0 - LATE
    for ms, weight in sorted(parts):
        left -= weight
        if left <= 0.0:
            return ms
    return max(ms for ms, _ in parts)
