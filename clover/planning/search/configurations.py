"""The best configuration of devices: all are weighed if they are few, some are sampled if they are many.

**Few** (up to `EXACT`): `search` finds the best exactly, simulating p95 as seldom as possible.  A configuration is
optimistic, settled or evaluated (`planning.packing.evaluation`), each step more expensive and with a score no higher
than the one before.  The highest score is always taken next.  So the search ends when an evaluated configuration beats
the optimistic scores of all others: then nothing else can win (except for what moving shares does to batch sizes).  If
fewer than `ALTERNATIVES` good ones were evaluated, more are, for a controller that may not take the best.  `BUDGET`
bounds the configurations evaluated and `ASKED` the simulations of p95; if these end the search, the answer is the best
so far, and says so.

**Many**: the kernel (`clover._native.lanes`) walks the configurations of `formulation`, with tables in place of
simulations, and gives the best it met.  These are evaluated in full, best first, p95 by simulation, until what is left
promises less than what was found.  The kernel is asked twice, because its tables are not exact: once as if a few more
rows might be late, once as it is.  If none of its configurations keeps the SLO as a whole, it is asked again with fewer
late rows allowed.  BASE is evaluated in any case: an SLO may be derived from its p95, which is more exact than the
tables.  The number of evaluations is fixed and the random numbers are the state's, so that the same state gives the
same plan.

**Which is taken.**  Of plans that differ by less than the margin (`objective.HYSTERESIS` of the scale), the one that
keeps most of what runs is taken, then the better one.  So the running configuration is left only for a real gain.  If
nothing meets all constraints, the least bad plan is given, marked infeasible: the accuracy floor is kept (as far as any
variant reaches it), p95 is minimised, and if even capacity is short, the utilisation.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from clover._native import lanes
from clover.errors import PlanError
from clover.planning.model.objective import HYSTERESIS, Objective
from clover.planning.model.problem import Problem, best_whole, fitting, measured
from clover.planning.model.shares import Mix, balanced_mix
from clover.planning.packing.candidates import configurations_of, exchange, kinds_of
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
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.planning.packing.waits import tune_waits
from clover.planning.search.chains import best_chains
from clover.planning.search.shared import best_shared
from clover.types import Assignment, Candidate, Configuration, configuration_of

BUDGET = 400
"""Configurations that are evaluated, at most."""
ASKED = 200
"""Simulations of p95, at most."""
ALTERNATIVES = 5
"""Good candidates that a controller can choose from."""
_NEAR = 40  # configurations within the margin whose kept workers are counted
_MORE_KEPT = 5  # of which this many are tried because they keep more
_COMPARED = 8  # candidates within the margin whose kept workers are counted
_LEAST_BAD = 24
EXACT = 300
"""Configurations up to which every one is weighed.  With more, the exact search spends its questions on what looks well
and is late, and ends before it is through."""
JOINT = 64
"""Configurations up to which every one is weighed under every chain and threshold."""
EVALUATIONS = 20_000
RESTARTS = 1
KEEP = 24
ANNEALED_ASKED = 80
"""How often p95 is asked for at most; one answer takes about a millisecond."""
_LATE = (1.3, 1.0, 0.7)  # parts of the late rows there may be; the last if the others found nothing
_SLACK = 0.1  # of the margin: by how much the tables may be too cautious
_LOOKED = 14
Kept = Callable[[Configuration], int]


@dataclass(frozen=True)
class SearchResult:
    """The chosen candidate of a search, the best others, and how many configurations were evaluated of how many;
    `complete` if no other one can be better."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    evaluated: int
    total: int
    complete: bool


def best_found(
    problem: Problem,
    objective: Objective,
    running: Sequence[Assignment] = (),
    *,
    kept: Kept | None = None,
    seed: int = 0,
) -> SearchResult:
    """Return the best candidate: of all configurations if they are few, of those the kernel met elsewhere.

    What runs is weighed in any case, as long as the devices allow it.  `kept` counts the workers a configuration could
    keep; if there are many, those that it has in common with what runs stand for them.  PlanError if no layout of
    the devices can run the family at all.  Cascades are weighed beside them if the problem has any.  If rows
    may wait, that is weighed of both.  Workers that share their time are weighed beside all of these if a worker may
    hold several variants (`planning.search.shared`).
    """
    found = _best_mixed(problem, objective, running, kept, seed)
    if not problem.points and problem.resident < 2:
        return found
    now = configuration_of(tuple(running)) if running else None
    mix = tune_waits(problem, objective, found.best) if problem.objective.waits else found.best
    beat = mix.score if mix.feasible else -math.inf
    more: list[Candidate] = []
    if problem.points:
        space = every(problem, JOINT) or ()
        more = best_chains(problem, objective, problem.points, running=now, beat=beat, seed=seed, space=space)
    if problem.resident > 1:
        beat = max([beat, *(candidate.score for candidate in more if candidate.feasible)])
        more += best_shared(problem, objective, beat=beat, running=now)
    if now is not None and kept is None:
        kept = _alike(now)
    best, ranked = choose([*found.candidates, mix, *more], objective, running=now, kept=kept)
    distinct = {msgspec.json.encode(candidate): candidate for candidate in ranked}
    return SearchResult(best, tuple(distinct.values())[:10], found.evaluated + len(more), found.total, found.complete)


def _best_mixed(
    problem: Problem, objective: Objective, running: Sequence[Assignment], kept: Kept | None, seed: int
) -> SearchResult:
    """Return the best candidate whose rows are dealt to variants by shares."""
    now = configuration_of(tuple(running)) if running else None
    if now is not None and not measured(problem, now):
        now = None
    space = every(problem)
    if space is None:
        return anneal(problem, objective, running if now is not None else (), seed)
    if not space:
        raise PlanError("the family was not measured on every profile of any layout: profile it for these devices")
    return search(problem, objective, space, running=now, kept=kept)


def every(problem: Problem, limit: int = EXACT) -> list[Configuration] | None:
    """Return all configurations, or None if there are more than `limit`."""
    try:
        return configurations_of(kinds_of(problem.devices), fitting(problem), limit=limit)
    except PlanError:
        return None


def _alike(running: Configuration) -> Kept:
    """Return how many workers a configuration has in common with `running`: as many may stay, if the layouts agree."""
    counts = {(group.variants, group.profile): group.count for group in running}

    def kept(configuration: Configuration) -> int:
        return sum(min(group.count, counts.get((group.variants, group.profile), 0)) for group in configuration)

    return kept


# --- few --------------------------------------------------------------------------------------------------------------


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
    best_candidate, ranked = choose(seen.values(), objective, running=running, kept=kept)
    return SearchResult(best_candidate, ranked[:10], len(seen), len(configurations), complete)


# --- many -------------------------------------------------------------------------------------------------------------


def anneal(problem: Problem, objective: Objective, running: Sequence[Assignment], seed: int) -> SearchResult:
    """Return the best of what the kernel meets, and of what runs."""
    now = configuration_of(tuple(running)) if running else None
    try:
        here = [now] if now is not None else None
        form = Formulation([PackingMember(problem, objective)], problem.devices, running=here)
    except PlanError:
        form = Formulation([PackingMember(problem, objective)], problem.devices, slow=True)
    starts = form.alike()
    seen: dict[Configuration, Candidate] = {}
    spending = P95Budget(ANNEALED_ASKED)
    if now is not None:
        stands = form.standing(running)
        if stands is not None:
            starts.append(stands)
            seen[now] = evaluate(problem, objective, now, standby=False, spending=spending)
    with suppress(PlanError):  # if the best variant was not measured on whole devices
        base = best_whole(problem, problem.devices)
        seen[base] = evaluate(problem, objective, base, standby=False, spending=spending)
    if not starts:
        raise PlanError("however the devices are cut, no variant was measured on every slice: profile it for them")
    evaluations = 0
    margin = HYSTERESIS * objective.scale
    for turn, part in enumerate(_LATE):
        if part < 1.0 and any(candidate.feasible for candidate in seen.values()):
            break
        solution = lanes.solve(form.kernel(part), seed + turn, EVALUATIONS, starts, RESTARTS, KEEP)
        evaluations += solution.evaluations
        for item in solution.found[:_LOOKED]:
            good = [candidate.score for candidate in seen.values() if candidate.feasible]
            if spending.exhausted or (len(good) >= ALTERNATIVES and item.value + _SLACK * margin <= max(good)):
                break
            beat = max(good) if len(good) >= ALTERNATIVES else -math.inf
            for made in exchange(problem, form.configuration(item.counts), objective.max_utilisation):
                if made not in seen and not spending.exhausted:
                    seen[made] = evaluate(problem, objective, made, standby=False, beat=beat, spending=spending)
    if problem.demand and not any(candidate.feasible for candidate in seen.values()):
        for counts, _ in starts:
            for made in exchange(problem, form.configuration(counts), objective.max_utilisation):
                if made not in seen:
                    seen[made] = evaluate(problem, objective, made, standby=False)
    if not any(candidate.feasible for candidate in seen.values()):
        alike = {form.configuration(counts): None for counts, _ in starts}
        alike[form.configuration(solution.nearest.counts)] = None
        for configuration in least_bad(problem, objective, list(alike)):
            seen[configuration] = evaluate(problem, objective, configuration)
    best, ranked = choose(seen.values(), objective, running=now, kept=_alike(now) if now is not None else None)
    return SearchResult(best, ranked[:10], len(seen), evaluations, False)


# --- which is taken ---------------------------------------------------------------------------------------------------


def choose(
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
