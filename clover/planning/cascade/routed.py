"""Predict what a configuration does under a given routing, at any rate, without a search.

A search asks which shares, chain or waits are best on some workers.  Here they are known, because they are in force or
were chosen for another rate, and the question is what they do at this one.
"""

from __future__ import annotations

import msgspec
import numpy as np

from clover.planning.cascade.chains import loads_of, played_ms, stages_of, wait_of, workers_of
from clover.planning.cascade.permitted import alone
from clover.planning.cascade.waits import energy_j
from clover.planning.model.demand import direct, reach_of
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.model.sharing import SharedPool, is_shared, pool_of, variants_of
from clover.planning.packing.evaluation import UNBOUNDED_MS, lanes_of, predict, predict_shared
from clover.planning.packing.waits import as_batched
from clover.types import ChainPoint, Configuration, Prediction, Routing

_SAME_ACCURACY = 1e-4
"""Points: shares are rounded when they are routed."""
_QUANTILE = 0.95


def predicted(problem: Problem, configuration: Configuration, routing: Routing) -> Prediction | None:
    """Return what `configuration` does with the problem's rows, routed so.

    None if the problem has no such cascade (thresholds of another profile, or cascades are not allowed now), or if the
    routing gives its variants no rows.  KeyError if a worker was never measured."""
    if routing.chain:
        known = ((point.chain, point.thresholds) for point in problem.points)
        at = next((at for at, key in enumerate(known) if key == (routing.chain, routing.thresholds)), None)
        if at is None:
            return None
        return _chained(problem, configuration, problem.points[at], wait_of(routing.chain, routing))
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
        return _chained(problem, configuration, alone(problem, variant), routing.wait_ms.get(variant, 0.0))
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


def _chained(problem: Problem, configuration: Configuration, point: ChainPoint, wait_ms: float) -> Prediction | None:
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
        p95_ms = float(np.quantile(played_ms(workers, problem.rate, reach, wait_ms), _QUANTILE))
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
