"""What a configuration does with a chain, or with any given routing.

A *point* of the profile (`types.ChainPoint`) is a chain with its thresholds, the accuracy of its answers, and the part
of the rows that reaches each stage; both figures are of rows that had no part in choosing it.  On a configuration the
stages are lanes in a row.  `evaluate` says what a point does on a configuration.  `predict_routing` says what shares,
chain and waits do that are in force, or were chosen for another rate, without a search.  What shares alone do at their
best is in `planning.packing.evaluation`.

**Example.**  100 rows/s, chain `small > large`, of which `large` is asked 30 %.  The lanes get 100 and 30 rows/s.  At
0.02 J a row of `small` and 0.10 J of `large` a row costs 0.02 + 0.3 x 0.10 = 0.05 J, half of what `large` alone costs.
70 % of the rows end at `small`, so the p95 lies among the others: it is their (0.95 - 0.70) / 0.30 = 83rd percentile.

**Latency is simulated.**  All rows come to the first stage.  Rows that it passes on reach the next stage when their
batch is done, so they come together and may share a batch again.  `play_latencies_ms` simulates that stage by stage,
with the kernel that simulates a single lane, each stage with its own service times.  The part of the rows that ends at
each stage is taken from the profile and not left to chance: rows that ended at a stage are weighted to it, which halves
the error if the p95 lies near the step between two stages.  `bench.stages` compares this with the router, row by row.
On workers that share their time between the stages (`planning.model.sharing`) all stages are played at once, in one
queue.

**Rows that ask for an accuracy** enter at a stage that satisfies them.  If no stage does, they go to a variant outside
the chain, which needs workers of its own.  They are planned as if they had come through all stages before it as well
(`reach_of`), which is never too little.

**Waits.**  The first stage of a cascade sees every row and is the cheapest.  So most of what a row costs there is what
a batch costs however many rows it has (the call, waking up).  A wait that brings five rows together can halve the
energy of the whole chain, where the best variant alone would gain a tenth.  Rows that are passed on do not wait again.
What a wait is worth in general is described in `planning.packing.waits`.

A quarter, a half and all of the room are weighed.  The room is what a wait and the batches that follow it may take
together, as there: it allows for a higher rate, the slow end of service times, timers that tick late, and a reserve of
the SLO.  The reserve is a little larger than there, because a row that is passed on meets a second queue and a second
worker.  On a small machine the workers of the stages, the front end and the clients run on the same cores, which adds
two or three milliseconds to the tail that no simulation of its queues shows.  If a wait is too long for that, it is
taken back (`control.state.slo.waits`).  A wait has to bring company, as there (`packing.waits.least_company`), and a
longer one is weighed only if it saves as much as the controller would change a plan for.

A batch whose first row waited w holds 1 + a w rows at a rate of a, or as many as the load gathers by itself if those
are more.  The energy of a row is that of a row in such a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.planning.model.objective import HYSTERESIS, Objective
from clover.planning.model.problem import Direct, Problem, direct, is_shared, variants_of
from clover.planning.model.queueing import Lane, Service, lane_of, play
from clover.planning.model.sharing import SharedPool, pool_of
from clover.planning.packing.evaluation import UNBOUNDED_MS, lanes_of, predict, predict_shared
from clover.planning.packing.waits import MARGIN, MORE, SLOW, TICK_MS, as_batched, least_company, longest_ms
from clover.types import Candidate, ChainPoint, Configuration, Prediction, Routing

_PARTS = (0.25, 0.5, 1.0)
_STEP_MS = 0.5  # so that a rate that moves a little asks for the same wait, whose play is remembered
_ROOM = 0.85  # of the SLO, in which a wait and the batches of all stages must end
_TAIL_MS = 2.0  # and so long before it
Floats = NDArray[np.float64]
Stages = tuple[tuple[Service, ...], ...] | SharedPool
"""The workers of each stage, or those that share their time between all stages (or between the variants of a mix)."""
ROWS = 20_000
_WARM_UP = 500
_SEED = 20231112
_QUANTILES = 4_000
_RATE_STEP = 0.01
_P95 = 0.95
_SAME_ACCURACY = 1e-4
"""Points: shares are rounded when they are routed."""


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
            waits = worth(stages, problem.rate, reach, objective.slo_ms, least_j, company)
            if isinstance(workers, SharedPool):
                waits = [(energy_j(workers, problem.rate, reach, wait_ms), wait_ms) for _, wait_ms in waits]
            ways = [way for way in waits if way[0] <= ways[0][0] - least_j] + ways
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
    excess = late > 1.0 - _P95 + 1e-9
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
        p95_ms = float(np.quantile(play_latencies_ms(workers, rate, reach, way[1]), _P95))
        if p95_ms <= (1.0 - MARGIN) * slo_ms:
            break
    return way, p95_ms


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
    """Return the part of the rows that ends at each variant: the shares by which rows are dealt that do not follow the
    chain."""
    following = (*point.reach[1:], 0.0)
    parts = [here - later for here, later in zip(point.reach, following, strict=True)]
    return {variant: round(max(0.0, part), 6) for variant, part in zip(point.chain, parts, strict=True)}


def alone(problem: Problem, variant: str) -> ChainPoint:
    """Return a chain of one."""
    accuracy = problem.accuracy[variant]
    return ChainPoint(
        chain=(variant,),
        thresholds=(),
        accuracy=accuracy,
        low=accuracy,
        high=accuracy,
        reach=(1.0,),
        ends=(accuracy,),
        cut=(accuracy,),
        cost=1.0,
    )


# --- the stages of a chain on a configuration -------------------------------------------------------------------------


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


def reach_of(problem: Problem, point: ChainPoint, asked: Direct) -> tuple[float, ...]:
    """Return the part of all rows that reaches each stage of `point`."""
    if not asked.rates:
        return point.reach
    own = [asked.rates.get(variant, 0.0) / problem.rate for variant in point.chain]
    others = max(0.0, 1.0 - sum(own))
    return tuple(min(1.0, others * part + sum(own[at:])) for at, part in enumerate(point.reach))


def beside(point: ChainPoint, asked: Direct) -> dict[str, float]:
    """Return the rows a second that go to variants outside the chain."""
    return {variant: rate for variant, rate in asked.rates.items() if rate > 0.0 and variant not in point.chain}


# --- a routing that is given ------------------------------------------------------------------------------------------


def predict_routing(problem: Problem, configuration: Configuration, routing: Routing) -> Prediction | None:
    """Return what `configuration` does with the problem's rows, routed so.

    None if the problem has no such cascade (thresholds of another profile, or cascades are not allowed now), or if the
    routing gives its variants no rows.  KeyError if a worker was never measured."""
    if routing.chain:
        known = ((point.chain, point.thresholds) for point in problem.points)
        at = next((at for at, key in enumerate(known) if key == (routing.chain, routing.thresholds)), None)
        if at is None:
            return None
        return _predict_chain(problem, configuration, problem.points[at], wait_of(routing.chain, routing))
    shares = _of_all(problem, configuration, routing)
    if not shares:
        return None
    if is_shared(configuration):
        dealt = {variant: share for variant, share in shares.items() if share > 0.0}
        accuracy = [problem.accuracy[variant] for variant in dealt]
        pool = pool_of(problem.services, configuration, tuple(dealt))
        return predict_shared(problem, pool, accuracy, tuple(dealt.values()))
    lanes = lanes_of(problem, configuration)
    routing = msgspec.structs.replace(routing, shares=shares)
    plain = predict(problem, lanes, tuple(shares.get(variant, 0.0) for variant in lanes.variants))
    if not (routing.wait_ms or routing.largest) or plain.p95_ms >= UNBOUNDED_MS:
        return plain
    if len(lanes.variants) == 1 and routing.wait_ms and problem.points:  # a chain of one stage, as it was planned
        variant = lanes.variants[0]
        return _predict_chain(problem, configuration, alone(problem, variant), routing.wait_ms.get(variant, 0.0))
    return as_batched(problem, configuration, routing, plain)


def _of_all(problem: Problem, configuration: Configuration, routing: Routing) -> dict[str, float]:
    """Return the shares of all rows: those that ask for an accuracy go straight to their variant, and the routing's
    shares are of the others.  Empty if no variant of the configuration has a share."""
    variants = sorted(variants_of(configuration))
    total = sum(routing.shares.get(variant, 0.0) for variant in variants)
    if total <= 0.0:
        return {}
    rates = direct(problem, configuration, 1.0).rates
    own = {variant: rates.get(variant, 0.0) / problem.rate for variant in variants}
    others = max(0.0, 1.0 - sum(own.values()))
    return {variant: own[variant] + others * routing.shares.get(variant, 0.0) / total for variant in variants}


def _predict_chain(
    problem: Problem, configuration: Configuration, point: ChainPoint, wait_ms: float
) -> Prediction | None:
    if not variants_of(configuration).issuperset(point.chain):
        return None
    stages = stages_of(problem, configuration, point)
    reach = reach_of(problem, point, direct(problem, configuration, 1.0, point.chain))
    workers = workers_of(problem, configuration, point)
    load = max(loads_of(workers, stages, problem.rate, reach))
    if load >= 1.0:
        reached = zip(stages, reach, strict=True)
        p95_ms, joules = UNBOUNDED_MS, sum(part * lane.least_energy_j() for lane, part in reached)
    else:
        p95_ms = float(np.quantile(play_latencies_ms(workers, problem.rate, reach, wait_ms), _P95))
        joules = energy_j(workers if isinstance(workers, SharedPool) else stages, problem.rate, reach, wait_ms)
    return Prediction(p95_ms=p95_ms, accuracy=point.accuracy, energy_j_per_row=joules, utilisation=min(load, 1e9))


def shortfall(objective: Objective, prediction: Prediction, *, chained: bool = False) -> str:
    """Return why what is predicted (of a cascade, if `chained`) does not keep the limits; empty if it does."""
    floor = objective.cascade_floor if chained else objective.planned_floor
    if prediction.accuracy < floor - _SAME_ACCURACY:
        return f"accuracy {prediction.accuracy:.2f} % is below {objective.floor_text}"
    if prediction.utilisation > objective.max_utilisation + 1e-6:
        return f"utilisation {prediction.utilisation:.2f} exceeds {objective.max_utilisation:.2f}"
    if prediction.p95_ms > objective.slo_ms * (1.0 + 1e-6):
        p95 = "unbounded" if prediction.p95_ms >= UNBOUNDED_MS else f"{prediction.p95_ms:.2f} ms"
        return f"p95 {p95} exceeds the SLO of {objective.slo_ms:.2f} ms"
    return ""


# --- latency ----------------------------------------------------------------------------------------------------------


def play_latencies_ms(stages: Stages, rate: float, reach: tuple[float, ...], wait_ms: float = 0.0) -> Floats:
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
        return _play_shared(stages, rate, reach, wait_ms, rows, warm_up, seed)
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
    return _weigh((now_s - begun_s)[warm_up:] * 1e3 + stages[0][0].front_ms, end[warm_up:], reach)


def _play_shared(
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
    return _weigh(outcome.latency_s * 1e3 + pool.front_ms, end[warm_up:], reach or (1.0,))


def _weigh(values: Floats, end: NDArray[np.int8], reach: Sequence[float]) -> tuple[Floats, Floats]:
    """Return latencies, ascending, and the share of rows up to each, rows that end at a stage weighted to their part of
    all."""
    share = np.array(reach) - np.append(reach[1:], 0.0)
    weight = (share / np.maximum(np.bincount(end, minlength=len(share)), 1))[end]
    # Rows that took equally long may come in any order, and a stable sort takes seven times as long.
    order = np.argsort(values)
    cumulated = np.cumsum(weight[order])
    return values[order], cumulated / cumulated[-1]


# --- waits ------------------------------------------------------------------------------------------------------------


def energy_j(lanes: Sequence[Lane] | SharedPool, rate: float, reach: Sequence[float], wait_ms: float = 0.0) -> float:
    """Return joules above idle of a row, over all stages it is asked of: lanes, or one pool of workers that share their
    time.  Rows are taken to come to later stages one by one; those that waited together may be passed on together, and
    cost less than this says."""
    if isinstance(lanes, SharedPool):
        joules = lanes.joules([rate * part for part in reach], wait_ms)
        return sum(part * own for part, own in zip(reach, joules, strict=True))
    first = lanes[0].energy_j(rate * reach[0], wait_ms=wait_ms) * reach[0]
    return first + sum(part * lane.energy_j(rate * part) for lane, part in zip(lanes[1:], reach[1:], strict=True))


def worth(
    lanes: Sequence[Lane], rate: float, reach: Sequence[float], slo_ms: float, least_j: float, company: float = 0.0
) -> list[tuple[float, float]]:
    """Return waits (ms) that leave room for the batches that follow, bring `company` rows to the one that came first,
    and save at least `least_j` a row over any shorter one of these, behind the joules of a row, the most frugal first.
    Every stage must be stable."""
    left_ms = slo_ms - lanes[0].front_ms
    room_ms = _room_ms(lanes, rate, reach, max(min(_ROOM * left_ms, left_ms - _TAIL_MS), 0.0))
    waits: list[tuple[float, float]] = []
    most_j = energy_j(lanes, rate, reach) - least_j
    for part in _PARTS:
        wait_ms = math.floor(part * room_ms / _STEP_MS) * _STEP_MS
        joules = energy_j(lanes, rate, reach, wait_ms)
        if wait_ms >= TICK_MS and 1e-3 * wait_ms * rate * reach[0] >= company and joules <= most_j:
            waits.append((joules, wait_ms))
            most_j = joules - least_j
    return waits[::-1]


def _room_ms(lanes: Sequence[Lane], rate: float, reach: Sequence[float], limit_ms: float) -> float:
    """Return the longest wait that leaves all batches time to be served."""
    later_ms = sum(_slowest_ms(lane, MORE * rate * part) for lane, part in zip(lanes[1:], reach[1:], strict=True))

    def fits(wait_ms: float) -> bool:
        return wait_ms + TICK_MS + _slowest_ms(lanes[0], MORE * rate * reach[0], wait_ms) + later_ms <= limit_ms

    return longest_ms(fits, limit_ms)


def _slowest_ms(lane: Lane, rate: float, wait_ms: float = 0.0) -> float:
    """Return what a batch takes on the slowest worker in 19 of 20 cases."""
    rows = lane.batch(min(rate, 0.999 * lane.capacity), wait_ms=wait_ms)
    return max(1e3 * service.seconds(rows) * (1.0 + SLOW * service.cv) for service, _ in lane.groups)
