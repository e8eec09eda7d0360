"""Cascades as a plan: which chain with which thresholds on which configuration.

A *point* of the profile (`types.ChainPoint`) is a chain with its thresholds: what accuracy its answers have, and which
part of the rows reaches each stage, both on rows that had no part in choosing it.  On a configuration the stages are
lanes in a row.  All rows come to the first one; rows that a stage passes on reach the next when their batch is done:
they come together, and may share a batch again.  `played_ms` simulates that with the kernel that simulates a single
lane, stage by stage, each with service times of its own.  The part of the rows that ends at each stage is taken from
the profile and not left to chance: rows that ended at a stage are weighted to it (which halves the error if p95 lies
near the step between two stages).  `bench.stages` compares this with the router, row by row.  On workers that share
their time between the stages (`planning.model.sharing`) all stages are played at once, in one queue.

**Search.**  The stages of a point are *members* of a `Formulation`, each a family of one variant at its own rate, on
devices that they share: the kernel that packs several families packs a chain.  Each is held to what the others leave of
the SLO at their quickest; whether the chain as a whole keeps it is played afterwards, and if it does not, the stages
are held to parts of it, in proportion to the time a row takes in each.  Points are tried in the order of what they
could be worth at best, until none that is left could be worth more than what was found.  A machine of few
configurations is gone through instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clover._native import lanes
from clover.errors import PlanError
from clover.planning.cascade.waits import energy_j, worth
from clover.planning.model.demand import Direct, beside, direct, exchanged, reach_of
from clover.planning.model.objective import HYSTERESIS, Objective
from clover.planning.model.problem import Problem
from clover.planning.model.queueing import Lane, Service, lane_of, play
from clover.planning.model.sharing import SharedPool, is_shared, measured, pool_of, variants_of
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.planning.packing.waits import MARGIN, TICK_MS, least_company
from clover.types import Candidate, ChainPoint, Configuration, Prediction, Routing

Floats = NDArray[np.float64]
Stages = tuple[tuple[Service, ...], ...] | SharedPool
"""The workers of each stage, or those that share their time between all stages (or between the variants of a mix)."""

POINTS = 12
"""Points for which a configuration is found, at most."""
TRIED = 36
"""Points for which one is looked for, at most."""
FAILED = 2
"""Points of a chain for which none is found until the chain is given up: one that is too slow is mostly so at every
threshold."""
SPARE = 3
EVALUATIONS = 5_000
KEEP = 6
ROWS = 20_000
_WARM_UP = 500
_SEED = 20231112
_QUANTILES = 4_000
_RATE_STEP = 0.01
_HELD = (0.0, 1.0, 0.7, 0.5)  # parts of the SLO that the stages share, one after the other; 0: what others leave
_MISS = 0.95


def played_ms(stages: Stages, rate: float, reach: tuple[float, ...], wait_ms: float = 0.0) -> Floats:
    """Return equally likely latencies (ms, ascending) of rows that come to the workers of the first stage at `rate`
    rows a second and wait there for a full batch, and to the next stages as far as `reach` says.  Every stage must be
    stable."""
    step = math.ceil(math.log(max(rate, 1e-3)) / _RATE_STEP - 1e-9)
    return _played_ms(stages, math.exp(step * _RATE_STEP), tuple(float(f"{part:.4g}") for part in reach), wait_ms)


@lru_cache(maxsize=2048)
def _played_ms(stages: Stages, rate: float, reach: tuple[float, ...], wait_ms: float) -> Floats:
    values, cumulated = play_once(stages, rate, reach, wait_ms, rows=ROWS, warm_up=_WARM_UP, seed=_SEED)
    latencies: Floats = values[np.searchsorted(cumulated, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)]
    latencies.setflags(write=False)
    return latencies


def play_once(
    stages: Stages, rate: float, reach: Sequence[float], wait_ms: float = 0.0, *, rows: int, warm_up: int, seed: int
) -> tuple[Floats, Floats]:
    """Return latencies (ms, ascending) of `rows` rows that come after `warm_up` others, and the share of all rows that
    take no longer than each: the last is 1.  A wait is played a tick of its timer longer than asked for."""
    if isinstance(stages, SharedPool):
        return _shared_once(stages, rate, reach, wait_ms, rows, warm_up, seed)
    rng = np.random.default_rng(seed)
    begun_s = np.cumsum(rng.exponential(1.0 / rate, warm_up + rows))
    now_s, going, end = begun_s.copy(), np.arange(len(begun_s)), np.zeros(len(begun_s), np.int8)
    for at, workers in enumerate(stages):
        if at:
            going = going[rng.random(len(going)) < reach[at] / max(reach[at - 1], 1e-12)]
            end[going] = at
        if not len(going):
            break
        going = going[np.argsort(now_s[going], kind="stable")]
        held_ms = wait_ms + TICK_MS if at == 0 and wait_ms else 0.0
        took_s = play(workers, now_s[going], seed=seed + at, together=at > 0, wait_ms=held_ms)
        now_s[going] = np.round(now_s[going] + took_s, 9)  # rows of a batch end at one instant, to the last digit
    return _weighted((now_s - begun_s)[warm_up:] * 1e3 + stages[0][0].front_ms, end[warm_up:], reach)


def _shared_once(
    pool: SharedPool, rate: float, reach: Sequence[float], wait_ms: float, rows: int, warm_up: int, seed: int
) -> tuple[Floats, Floats]:
    """Return what `play_once` does, of workers that share their time; without `reach` of a mix."""
    rng = np.random.default_rng(seed)
    begun_s = np.cumsum(rng.exponential(1.0 / rate, warm_up + rows))
    held_ms = wait_ms + TICK_MS if wait_ms else 0.0
    end = np.zeros(len(begun_s), np.int8)
    going = np.ones(len(begun_s), bool)
    for at in range(1, len(reach)):
        going &= rng.random(len(going)) < reach[at] / max(reach[at - 1], 1e-12)
        end += going
    outcome = pool.play(begun_s, seed=seed, last=end if reach else None, wait_ms=held_ms, warm_up=warm_up)
    return _weighted(outcome.latency_s * 1e3 + pool.front_ms, end[warm_up:], reach or (1.0,))


def _weighted(values: Floats, end: NDArray[np.int8], reach: Sequence[float]) -> tuple[Floats, Floats]:
    """Return latencies, ascending, and the share of rows up to each, rows that end at a stage weighted to their part of
    all."""
    share = np.array(reach) - np.append(reach[1:], 0.0)
    weight = (share / np.maximum(np.bincount(end, minlength=len(share)), 1))[end]
    # Rows that took equally long may come in any order, and a stable sort takes seven times as long.
    order = np.argsort(values)
    cumulated = np.cumsum(weight[order])
    return values[order], cumulated / cumulated[-1]


def evaluate(
    problem: Problem, objective: Objective, configuration: Configuration, point: ChainPoint, *, play: bool = True
) -> Candidate:
    """Return the candidate of `point` on `configuration`; variants outside the chain are on standby.  If rows may wait,
    it has the most frugal wait (`cascade.waits`) that keeps the SLO.

    Without `play` p95 is not simulated: it is infinite and does not make the candidate infeasible, and joules are the
    least that a wait may lead to."""
    if missing := set(point.chain) - variants_of(configuration):
        return Candidate(
            configuration=configuration,
            routing=routing_of(point, configuration),
            prediction=Prediction(p95_ms=math.inf, accuracy=point.accuracy, energy_j_per_row=math.inf, utilisation=1e9),
            score=-math.inf,
            feasible=False,
            why=f"no worker holds {' and '.join(sorted(missing))}, which the chain asks",
        )
    stages = stages_of(problem, configuration, point)
    workers = workers_of(problem, configuration, point)
    asked = direct(problem, configuration, objective.max_utilisation, point.chain)
    reach = reach_of(problem, point, asked)
    loads = loads_of(workers, stages, problem.rate, reach)
    why, p95_ms, joules = "", math.inf, math.inf
    wait_ms = 0.0
    if max(loads) > objective.max_utilisation:
        at = loads.index(max(loads))
        named = point.chain[at] if len(loads) == len(point.chain) else " and ".join(point.chain)
        why = f"{named} would be at {loads[at]:.0%} of its capacity"
    if max(loads) < 1.0:
        served = workers if isinstance(workers, SharedPool) else stages
        ways = [(energy_j(served, problem.rate, reach), 0.0)]
        if problem.objective.waits and not why:
            least_j = HYSTERESIS * objective.base_energy_j
            company = least_company(configuration)
            found = worth(stages, problem.rate, reach, objective.slo_ms, least_j, company)
            if isinstance(workers, SharedPool):
                found = [(energy_j(workers, problem.rate, reach, wait_ms), wait_ms) for _, wait_ms in found]
            ways = [way for way in found if way[0] <= ways[0][0] - least_j] + ways
        (joules, wait_ms), p95_ms = _first_kept(workers, problem.rate, reach, ways, objective.slo_ms, play=play)
    if problem.demand and is_shared(configuration):
        why = asked.why or why
        if outside := ", ".join(beside(point, asked)):  # its rows take time of the workers that the chain counts on
            why = why or f"rows ask for the accuracy of {outside}, which is not in the chain"
    elif problem.demand:
        extra_j, late = _beside(problem, objective, configuration, point, asked)
        joules += extra_j
        why = asked.why or why or late
    if not why and play and p95_ms > objective.slo_ms:
        why = f"p95 {p95_ms:.2f} ms exceeds the SLO of {objective.slo_ms:.2f} ms"
    if not why and point.accuracy < (objective.cascade_floor if len(point.chain) > 1 else objective.planned_floor):
        why = f"accuracy {point.accuracy:.2f} % is below {objective.floor_text}"
    return Candidate(
        configuration=configuration,
        routing=routing_of(point, configuration, wait_ms),
        prediction=Prediction(
            p95_ms=p95_ms, accuracy=point.accuracy, energy_j_per_row=joules, utilisation=min(max(loads), 1e9)
        ),
        score=objective.score(point.accuracy, joules) if math.isfinite(joules) else -math.inf,
        feasible=not why,
        why=why,
    )


def _beside(
    problem: Problem, objective: Objective, configuration: Configuration, point: ChainPoint, asked: Direct
) -> tuple[float, str]:
    """Return joules a row, of all rows, of those that variants outside the chain serve, and why too many of them are
    late.  No worker shares its time between variants."""
    joules, late = 0.0, 0.0
    for variant, rate in beside(point, asked).items():
        groups = [(problem.services[variant, g.profile], g.count) for g in configuration if g.variant == variant]
        lane, share = lane_of(tuple(groups)), rate / problem.rate
        joules += share * lane.energy_j(rate, share)
        late += share * lane.late(objective.slo_ms)
    excess = late > 1.0 - _MISS + 1e-9
    return joules, f"{late:.0%} of the rows ask for an accuracy that takes longer than the SLO" if excess else ""


def _first_kept(
    workers: Stages,
    rate: float,
    reach: tuple[float, ...],
    ways: Sequence[tuple[float, float]],
    slo_ms: float,
    *,
    play: bool,
) -> tuple[tuple[float, float], float]:
    """Return the first of `ways` (joules, wait) that keeps the SLO, with `MARGIN` if rows wait, or the last, and its
    p95; without `play` the first of all."""
    if not play:
        return ways[0], math.inf
    for way in ways:
        p95_ms = float(np.quantile(played_ms(workers, rate, reach, way[1]), _MISS))
        if p95_ms <= (1.0 - MARGIN) * slo_ms:
            break
    return way, p95_ms


def stages_of(problem: Problem, configuration: Configuration, point: ChainPoint) -> list[Lane]:
    """Return the stages of `point` as lanes, on a configuration that has the variants of its chain.  A worker that
    shares its time counts as one in the lane of each of its variants."""
    groups: dict[str, list[tuple[Service, int]]] = {variant: [] for variant in point.chain}
    for group in configuration:
        for variant in groups.keys() & set(group.variants):
            groups[variant].append((problem.services[variant, group.profile], group.count))
    return [lane_of(tuple(members)) for members in groups.values()]


def workers_of(problem: Problem, configuration: Configuration, point: ChainPoint) -> Stages:
    """Return the workers of the stages of `point`, one by one, or as a pool if any share their time between stages."""
    if is_shared(configuration) and len(point.chain) > 1:
        return pool_of(problem.services, configuration, point.chain)
    return tuple(lane.workers for lane in stages_of(problem, configuration, point))


def loads_of(workers: Stages, stages: Sequence[Lane], rate: float, reach: Sequence[float]) -> list[float]:
    """Return the load of each stage at `rate` rows a second over its capacity, or the one load of workers that share
    their time."""
    if isinstance(workers, SharedPool):
        return [workers.utilisation([rate * part for part in reach])]
    return [rate * part / own.capacity for own, part in zip(stages, reach, strict=True)]


def routing_of(point: ChainPoint, configuration: Configuration, wait_ms: float = 0.0) -> Routing:
    """Return how rows follow `point`; a variant alone needs no chain, and variants on standby get no rows."""
    by = dict.fromkeys(sorted(variants_of(configuration)), 0.0) | ends_of(point)
    chained = len(point.chain) > 1
    return Routing(
        shares=by,
        wait_ms={point.chain[0]: wait_ms} if wait_ms else {},
        chain=point.chain if chained else (),
        thresholds=point.thresholds if chained else (),
    )


def wait_of(chain: Sequence[str], routing: Routing) -> float:
    """Return milliseconds that rows wait at the first stage of `chain`."""
    return routing.wait_ms.get(chain[0], 0.0)


def ends_of(point: ChainPoint) -> dict[str, float]:
    """Return the part of the rows that ends at each variant: how rows are dealt that do not follow the chain."""
    following = (*point.reach[1:], 0.0)
    parts = [here - later for here, later in zip(point.reach, following, strict=True)]
    return {variant: round(max(0.0, part), 6) for variant, part in zip(point.chain, parts, strict=True)}


def promising(problem: Problem, objective: Objective, points: Sequence[ChainPoint]) -> list[tuple[float, ChainPoint]]:
    """Return points of several stages that reach the floor and can run here, with what each could be worth at best,
    best first."""
    least = {variant: min(problem.energies(variant), default=math.inf) for variant in problem.variants}
    room = sum(max(map(len, device.layouts), default=0) for device in problem.devices)  # every stage needs a worker
    room = max(room, problem.resident)  # or its place in one
    found = []
    for point in points:
        if not 2 <= len(point.chain) <= room or point.accuracy < objective.cascade_floor:
            continue
        joules = sum(
            part * least.get(variant, math.inf) for variant, part in zip(point.chain, point.reach, strict=True)
        )
        if math.isfinite(joules):
            found.append((objective.score(point.accuracy, joules), point))
    return sorted(found, key=lambda item: (-item[0], item[1].chain, item[1].thresholds))


def best_chains(
    problem: Problem,
    objective: Objective,
    points: Sequence[ChainPoint],
    *,
    running: Configuration | None = None,
    beat: float = -math.inf,
    seed: int = 0,
    space: Sequence[Configuration] = (),
) -> list[Candidate]:
    """Return feasible candidates, the best first: what runs under every point it can serve, and the configurations
    found for the most promising points.  Nothing that cannot be worth more than `beat` is looked for.  Of a `space`
    that is all there is, the best is found for certain."""
    ranked = promising(problem, objective, points)
    found: list[Candidate] = []
    if running is not None and measured(problem, running):
        found = on_configuration(replace(problem, points=tuple(points)), objective, running)
    good = [candidate for candidate in found if candidate.feasible]
    if space:
        good += _best_of(problem, objective, [point for _, point in ranked], space, beat)
        return sorted(good, key=lambda candidate: -candidate.score)
    failed = Counter[tuple[str, ...]]()
    tried = number = 0
    for hope, point in ranked:
        best = max([beat, *(candidate.score for candidate in good)])
        if hope <= best or number >= POINTS or tried >= TRIED:
            break
        if failed[point.chain] >= FAILED:
            continue
        tried += 1
        candidate = next(_configurations(problem, objective, point, seed), None)
        if candidate is not None:
            good.append(candidate)
            number += 1
        else:
            failed[point.chain] += 1
    return sorted(good, key=lambda candidate: -candidate.score)


def _best_of(
    problem: Problem,
    objective: Objective,
    points: Sequence[ChainPoint],
    space: Sequence[Configuration],
    beat: float,
) -> list[Candidate]:
    """Return the best few of all configurations under all points that are worth more than `beat`.  What each can score
    at best is known without playing, and it does score that if no row waits: so they are played from the best down,
    until none that is left could be one of the few.  Several, as of near ones that of what runs is taken."""
    weighed = []
    for configuration in space:
        for point in points:
            if _suits(problem, objective, configuration, point):
                seen = evaluate(problem, objective, configuration, point, play=False)
                if seen.feasible and seen.score > beat:
                    weighed.append((seen.score, configuration, point))
    weighed.sort(key=lambda item: -item[0])
    good: list[Candidate] = []
    for hope, configuration, point in weighed:
        if sum(candidate.score >= hope - 1e-12 for candidate in good) >= SPARE:
            break
        candidate = evaluate(problem, objective, configuration, point)
        if candidate.feasible:
            good.append(candidate)
    return sorted(good, key=lambda candidate: -candidate.score)[:SPARE]


def on_configuration(problem: Problem, objective: Objective, configuration: Configuration) -> list[Candidate]:
    """Return what every promising point does on a configuration of the variants of its chain."""
    return [
        evaluate(problem, objective, configuration, point)
        for _, point in promising(problem, objective, problem.points)
        if _suits(problem, objective, configuration, point)
    ]


def _suits(problem: Problem, objective: Objective, configuration: Configuration, point: ChainPoint) -> bool:
    """Return whether `configuration` has the variants of the chain and none without rows but those that rows ask for,
    and those of workers that have others."""
    variants = variants_of(configuration)
    if not variants.issuperset(point.chain):
        return False
    spare = variants.difference(point.chain)
    if not spare or is_shared(configuration):
        return True
    return spare <= direct(problem, configuration, objective.max_utilisation, point.chain).rates.keys()


def _configurations(problem: Problem, objective: Objective, point: ChainPoint, seed: int) -> Iterator[Candidate]:
    """Yield feasible configurations for `point`, the most frugal first of those that were found in a turn."""
    for turn, part in enumerate(_HELD):
        try:
            form = Formulation(_members(problem, objective, point, part), problem.devices)
        except PlanError:
            return
        loaded = form.loaded()
        starts = [*form.alike(), *loaded]
        if not starts:
            return
        solution = lanes.solve(form.kernel(), seed + turn, EVALUATIONS, starts, 1, KEEP)
        good = []
        for counts in (*(item.counts for item in solution.found), *(counts for counts, _ in loaded)):
            groups = [group for at in range(len(point.chain)) for group in form.configuration(counts, at)]
            met = tuple(sorted(groups, key=lambda group: (group.variant, group.profile)))
            for configuration in exchanged(problem, met, objective.max_utilisation):
                candidate = evaluate(problem, objective, configuration, point)
                if candidate.feasible:
                    good.append(candidate)
        if good:
            yield from sorted(good, key=lambda candidate: -candidate.score)
            return


def _members(problem: Problem, objective: Objective, point: ChainPoint, part: float) -> list[PackingMember]:
    """Return the stages as families of their own, each held to its part of `part` of the SLO; for 0, to what the
    other stages leave of it."""
    own = [{key: service for key, service in problem.services.items() if key[0] == variant} for variant in point.chain]
    spent_ms = [min((service.mean_ms[0] for service in services.values()), default=0.0) for services in own]
    total_ms = max(sum(spent_ms), 1e-9)
    front_ms = next(iter(problem.services.values())).front_ms
    return [
        PackingMember(
            replace(
                problem,
                variants=(variant,),
                accuracy={variant: problem.accuracy[variant]},
                services=services,
                rate=max(problem.rate * reach, 1e-6),
            ),
            replace(
                objective,
                form="floor",
                accuracy_floor=0.0,
                planned_floor=0.0,
                chain_floor=None,
                slo_ms=max(
                    front_ms + part * (objective.slo_ms - front_ms) * (spent / total_ms)
                    if part
                    else objective.slo_ms - total_ms + spent,
                    1e-6,
                ),
            ),
        )
        for variant, services, reach, spent in zip(point.chain, own, point.reach, spent_ms, strict=True)
    ]
