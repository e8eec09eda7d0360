"""The best configuration of devices that have too many to look at: annealed, then looked at one by one.

Up to `EXACT` configurations are searched exactly (`search`).  Beyond, the kernel (`clover._native.lanes`) walks the
configurations of `formulation`, with tables in place of simulations, and gives the best it met.  These are evaluated in
full, p95 by simulation, best first, until what is left promises less than what was found.  If none of them keeps the
SLO as a whole, the kernel is asked again with fewer late rows allowed.  Its tables are no more exact than that, so it
is asked twice in any case: once as if a few more rows might be late, once as it is.

BASE is looked at in any case: its p95 is what an SLO may be made of, which is more exact than the tables.

The number of evaluations is fixed and the random numbers are the state's, so that the same state gives the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from clover._native import lanes
from clover.errors import PlanError
from clover.planning.cascade.chains import best_chains
from clover.planning.model.demand import exchanged
from clover.planning.model.objective import HYSTERESIS, Objective
from clover.planning.model.problem import Problem, best_whole, fitting
from clover.planning.model.sharing import measured
from clover.planning.packing.enumerate import configurations_of, kinds_of
from clover.planning.packing.evaluation import P95Budget, evaluate
from clover.planning.packing.exhaustive import ALTERNATIVES, SearchResult, chosen, least_bad, search
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.planning.packing.waits import tuned
from clover.planning.search.shared import best_shared
from clover.types import Assignment, Candidate, Configuration, configuration_of

EXACT = 300
"""Configurations up to which every one is weighed.  With more, the exact search spends its questions on what looks well
and is late, and ends before it is through."""
JOINT = 64
"""Configurations up to which every one is weighed under every chain and threshold."""
EVALUATIONS = 20_000
RESTARTS = 1
KEEP = 24
ASKED = 80
"""How often p95 is asked for at most; one answer takes about a millisecond."""
_LATE = (1.3, 1.0, 0.7)  # parts of the late rows there may be; the last if the others found nothing
_SLACK = 0.1  # of the margin: by how much the tables may be too cautious
_LOOKED = 14

Kept = Callable[[Configuration], int]


def every(problem: Problem, limit: int = EXACT) -> list[Configuration] | None:
    """Return all configurations, or None if there are more than `limit`."""
    try:
        return configurations_of(kinds_of(problem.devices), fitting(problem), limit=limit)
    except PlanError:
        return None


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
    found = _mixed(problem, objective, running, kept, seed)
    if not problem.points and problem.resident < 2:
        return found
    now = configuration_of(tuple(running)) if running else None
    mix = tuned(problem, objective, found.best) if problem.objective.waits else found.best
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
    best, ranked = chosen([*found.candidates, mix, *more], objective, running=now, kept=kept)
    distinct = {msgspec.json.encode(candidate): candidate for candidate in ranked}
    return SearchResult(best, tuple(distinct.values())[:10], found.evaluated + len(more), found.total, found.complete)


def _mixed(
    problem: Problem, objective: Objective, running: Sequence[Assignment], kept: Kept | None, seed: int
) -> SearchResult:
    """Return the best candidate whose rows are dealt to variants by shares."""
    now = configuration_of(tuple(running)) if running else None
    if now is not None and not measured(problem, now):
        now = None
    space = every(problem)
    if space is None:
        return annealed(problem, objective, running if now is not None else (), seed)
    if not space:
        raise PlanError("the family was not measured on every profile of any layout: profile it for these devices")
    return search(problem, objective, space, running=now, kept=kept)


def _alike(running: Configuration) -> Kept:
    """Return how many workers a configuration has in common with `running`: as many may stay, if the layouts agree."""
    counts = {(group.variants, group.profile): group.count for group in running}

    def kept(configuration: Configuration) -> int:
        return sum(min(group.count, counts.get((group.variants, group.profile), 0)) for group in configuration)

    return kept


def annealed(problem: Problem, objective: Objective, running: Sequence[Assignment], seed: int) -> SearchResult:
    """Return the best of what the kernel meets, and of what runs."""
    now = configuration_of(tuple(running)) if running else None
    try:
        here = [now] if now is not None else None
        form = Formulation([PackingMember(problem, objective)], problem.devices, running=here)
    except PlanError:
        form = Formulation([PackingMember(problem, objective)], problem.devices, slow=True)
    starts = form.alike()
    seen: dict[Configuration, Candidate] = {}
    spending = P95Budget(ASKED)
    if now is not None:
        stands = form.standing(running)
        if stands is not None:
            starts.append(stands)
            seen[now] = evaluate(problem, objective, now, standby=False, spending=spending)
    with suppress(PlanError):  # if the best variant was not measured on whole devices
        base = best_whole(problem, problem.devices)
        seen[base] = evaluate(problem, objective, base, standby=False, spending=spending)
    if not starts:
        raise PlanError("no variant was measured on every slice of any way to cut the devices: profile it for them")
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
            for made in exchanged(problem, form.configuration(item.counts), objective.max_utilisation):
                if made not in seen and not spending.exhausted:
                    seen[made] = evaluate(problem, objective, made, standby=False, beat=beat, spending=spending)
    if problem.demand and not any(candidate.feasible for candidate in seen.values()):
        for counts, _ in starts:
            for made in exchanged(problem, form.configuration(counts), objective.max_utilisation):
                if made not in seen:
                    seen[made] = evaluate(problem, objective, made, standby=False)
    if not any(candidate.feasible for candidate in seen.values()):
        alike = {form.configuration(counts): None for counts, _ in starts}
        alike[form.configuration(solution.nearest.counts)] = None
        for configuration in least_bad(problem, objective, list(alike)):
            seen[configuration] = evaluate(problem, objective, configuration)
    best, ranked = chosen(seen.values(), objective, running=now, kept=_alike(now) if now is not None else None)
    return SearchResult(best, ranked[:10], len(seen), evaluations, False)
