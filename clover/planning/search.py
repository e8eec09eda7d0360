"""The best plan over all configurations, exactly, asking for p95 as seldom as possible.

Every configuration first gets an optimistic score: its best mix with each lane at its least energy and without the p95
limit.  Best first, configurations are then evaluated in full (energy at the batch sizes expected, p95), until no
optimistic score exceeds the best feasible one: then nothing unevaluated can win.  `budget` bounds the evaluations;
where it ends the search the answer is the best seen, and says so.

A worker has to earn its place: in a searched plan each lane gets at least `LEAST_PART` of the rows its workers would
get if all rows were dealt to all workers alike.  Without that rule a machine fills with standby workers, which hold
memory, serve nothing, and (by sending all rows through one worker in long batches) even look frugal.

Of plans that differ by less than the margin (`objective.HYSTERESIS` of the scale) the one that keeps most of what runs
is taken, then the better: the running configuration is left only for a real gain.

Where nothing meets all constraints the least bad plan is given, marked infeasible: the accuracy floor is kept (as far
as any variant reaches it), the p95 minimised, and where even capacity is short, the utilisation.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from clover.planning.objective import HYSTERESIS, Objective
from clover.planning.problem import Problem
from clover.planning.queueing import (
    Service,
    capacity,
    energy_j_per_row,
    latencies_ms,
    least_energy_j_per_row,
    mixture_p95_ms,
)
from clover.planning.shares import Mix, balanced_mix, best_mix, within_p95
from clover.types import Candidate, Configuration, Prediction, Routing

BUDGET = 400
LEAST_PART = 0.2
UNBOUNDED_MS = 3_600_000.0
"""Stands for "no bound" in a prediction's p95 (infinity does not survive JSON): an overloaded lane."""
_LEAST_BAD = 24
_REREAD = 3


@dataclass(frozen=True)
class Lanes:
    """The lanes of one configuration, one a variant, with the capacity and accuracy of each."""

    variants: tuple[str, ...]
    workers: tuple[tuple[Service, ...], ...]
    capacities: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Found:
    """What a search gives: the chosen candidate, the best others, and how many were evaluated of how many."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    evaluated: int
    total: int
    complete: bool


def lanes_of(problem: Problem, configuration: Configuration) -> Lanes:
    """The lanes of `configuration`; KeyError where a (variant, profile) of it was not measured."""
    workers: dict[str, list[Service]] = {}
    for group in configuration:
        workers.setdefault(group.variant, []).extend([problem.services[group.variant, group.profile]] * group.count)
    variants = tuple(sorted(workers))
    return Lanes(
        variants,
        tuple(tuple(workers[variant]) for variant in variants),
        tuple(capacity(workers[variant]) for variant in variants),
        tuple(problem.accuracy[variant] for variant in variants),
    )


def predict(problem: Problem, lanes: Lanes, mix: Mix) -> Prediction:
    """What the model expects of these shares; p95 `UNBOUNDED_MS` where a lane is overloaded."""
    energy = accuracy = load = 0.0
    for workers, total, own, share in zip(lanes.workers, lanes.capacities, lanes.accuracy, mix, strict=True):
        if share > 0.0:
            energy += share * energy_j_per_row(workers, problem.rate * share, share)
            accuracy += share * own
            load = max(load, problem.rate * share / total)
    return Prediction(
        p95_ms=min(UNBOUNDED_MS, p95_ms(problem, lanes, mix)),
        accuracy=accuracy,
        energy_j_per_row=energy,
        utilisation=load,
    )


def p95_ms(problem: Problem, lanes: Lanes, mix: Mix) -> float:
    """p95 of wait + service over all rows at these shares, milliseconds."""
    parts = []
    for workers, total, share in zip(lanes.workers, lanes.capacities, mix, strict=True):
        if share <= 0.0:
            continue
        if problem.rate * share >= 0.999 * total:
            return math.inf
        parts.append((share, latencies_ms(workers, problem.rate * share, share)))
    return mixture_p95_ms(parts)


def optimistic(problem: Problem, objective: Objective, configuration: Configuration) -> float | None:
    """A score that the configuration cannot exceed; None where it cannot be feasible."""
    lanes = lanes_of(problem, configuration)
    gains = [
        objective.gain(own, least_energy_j_per_row(workers))
        for workers, own in zip(lanes.workers, lanes.accuracy, strict=True)
    ]
    limits = _limits(problem, objective, lanes)
    least = _least(lanes, limits)
    mix = best_mix(gains, lanes.accuracy, limits, objective.planned_floor, least)
    return None if mix is None else sum(share * gain for share, gain in zip(mix, gains, strict=True))


def evaluate(
    problem: Problem, objective: Objective, configuration: Configuration, *, standby: bool = True
) -> Candidate:
    """The configuration with its best shares, feasible or its least bad ones.  `standby` allows lanes without rows."""
    lanes = lanes_of(problem, configuration)
    limits = _limits(problem, objective, lanes)
    floor = objective.planned_floor
    least = [0.0] * len(limits) if standby else _least(lanes, limits)
    why = ""
    if max(lanes.accuracy) < floor - 1e-9:
        why = f"accuracy {max(lanes.accuracy):.2f} % is below {objective.floor_text}"
        floor = max(lanes.accuracy)
    balanced = balanced_mix(lanes.capacities, lanes.accuracy, problem.rate, floor)
    assert balanced is not None  # the floor is within reach
    mix, gains = balanced, [0.0] * len(lanes.variants)
    for _ in range(_REREAD):
        gains = [
            objective.gain(own, energy_j_per_row(workers, problem.rate * share, max(share, 0.05)))
            for workers, own, share in zip(lanes.workers, lanes.accuracy, mix, strict=True)
        ]
        following = best_mix(gains, lanes.accuracy, limits, floor, least)
        if following is None or following == mix:
            break
        mix = following
    else:
        following = mix
    if following is None:
        peak = max(problem.rate * share / total for share, total in zip(balanced, lanes.capacities, strict=True))
        if not why and peak <= objective.max_utilisation:
            why = "the floor leaves some of its workers without rows"
        why = why or f"utilisation {peak:.2f} exceeds {objective.max_utilisation:.2f} at {problem.rate:.1f} rows/s"
        mix = balanced
    else:
        mix, met = within_p95(
            mix,
            balanced,
            gains,
            lanes.accuracy,
            limits,
            least,
            floor,
            lambda shares: p95_ms(problem, lanes, shares),
            objective.slo_ms,
        )
        if not met:
            why = why or f"p95 {p95_ms(problem, lanes, mix):.2f} ms exceeds the SLO of {objective.slo_ms:.2f} ms"
    prediction = predict(problem, lanes, mix)
    return Candidate(
        configuration=configuration,
        routing=Routing(shares={v: round(share, 6) for v, share in zip(lanes.variants, mix, strict=True)}),
        prediction=prediction,
        score=objective.score(prediction.accuracy, prediction.energy_j_per_row),
        feasible=not why,
        why=why,
    )


def search(
    problem: Problem,
    objective: Objective,
    configurations: Sequence[Configuration],
    *,
    running: Configuration | None = None,
    kept: dict[Configuration, int] | None = None,
    budget: int = BUDGET,
) -> Found:
    """The best candidate among `configurations` (at least one).

    `running` is evaluated in any case where it is one of them.  `kept` counts the workers each configuration could keep
    (0 where it is not named).
    """
    heap: list[tuple[float, int]] = []
    for index, configuration in enumerate(configurations):
        bound = optimistic(problem, objective, configuration)
        if bound is not None:
            heap.append((-bound, index))
    heapq.heapify(heap)
    seen: dict[Configuration, Candidate] = {}
    best = -math.inf
    if running is not None and running in configurations:
        seen[running] = evaluate(problem, objective, running, standby=False)
        best = seen[running].score if seen[running].feasible else best
    complete = True
    while heap and -heap[0][0] > best:
        if len(seen) >= budget:
            complete = False
            break
        configuration = configurations[heapq.heappop(heap)[1]]
        if configuration not in seen:
            seen[configuration] = evaluate(problem, objective, configuration, standby=False)
            if seen[configuration].feasible:
                best = max(best, seen[configuration].score)
    if best == -math.inf:
        for configuration in _least_bad(problem, objective, configurations):
            seen[configuration] = evaluate(problem, objective, configuration)
    ranked = sorted(seen.values(), key=lambda candidate: _rank(candidate, objective))
    chosen = ranked[0]
    if chosen.feasible:
        margin = HYSTERESIS * objective.scale
        near = [c for c in ranked if c.feasible and c.score >= chosen.score - margin]
        known = kept or {}
        chosen = max(near, key=lambda c: (c.configuration == running, known.get(c.configuration, 0), c.score))
    return Found(chosen, tuple(ranked[:10]), len(seen), len(configurations), complete)


def _limits(problem: Problem, objective: Objective, lanes: Lanes) -> list[float]:
    return [min(1.0, objective.max_utilisation * total / problem.rate) for total in lanes.capacities]


def _least(lanes: Lanes, limits: Sequence[float]) -> list[float]:
    """The least share of each lane of more than one."""
    total = sum(len(workers) for workers in lanes.workers)
    if len(lanes.workers) == 1:
        return [0.0]
    return [min(limit, LEAST_PART * len(workers) / total) for workers, limit in zip(lanes.workers, limits, strict=True)]


def _rank(candidate: Candidate, objective: Objective) -> tuple[float, ...]:
    if candidate.feasible:
        return (0.0, -candidate.score)
    missing = max(0.0, objective.planned_floor - candidate.prediction.accuracy)
    p95 = candidate.prediction.p95_ms
    load = candidate.prediction.utilisation if p95 >= UNBOUNDED_MS else 0.0
    return (1.0, round(missing, 6), p95, load, -candidate.score)


def _least_bad(problem: Problem, objective: Objective, configurations: Sequence[Configuration]) -> list[Configuration]:
    """The configurations of the least peak utilisation among those that come closest to the floor."""
    ranked = []
    for configuration in configurations:
        lanes = lanes_of(problem, configuration)
        floor = min(objective.planned_floor, max(lanes.accuracy))
        mix = balanced_mix(lanes.capacities, lanes.accuracy, problem.rate, floor)
        assert mix is not None
        peak = max(problem.rate * share / total for share, total in zip(mix, lanes.capacities, strict=True))
        ranked.append((round(objective.planned_floor - floor, 6), peak, configuration))
    ranked.sort(key=lambda item: (item[0], item[1]))
    return [configuration for _, _, configuration in ranked[:_LEAST_BAD]]
