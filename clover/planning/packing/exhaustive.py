"""The best plan over all configurations, exactly, asking for p95 as seldom as possible.

A configuration is looked at in up to three ways, each dearer and no higher than the one before:

 1. *optimistic*: its best mix, with each lane at the least energy that its share of the rate allows and without the p95
    limit, except that rows which certainly miss it (their worker's mean service alone does) are at most 5 %;
 2. *settled*: its best mix with the energy at the batch sizes expected, still without p95;
 3. *in full*: p95 asked for, and the shares moved until it is met, as long as that may still beat the best seen.

The highest figure is always looked at next, so that the search ends when a configuration looked at in full beats
everything else's hopes: then nothing else can win (but for what moving shares does to batch sizes), and what is missing
of `ALTERNATIVES` good ones is looked at, for a controller that may not take the best.  `budget` bounds the
configurations looked at in full and `ASKED` the times that p95 is asked for; where they end the search the answer is
the best seen, and says so.

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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clover.planning.model.demand import direct, leasts
from clover.planning.model.objective import HYSTERESIS, Objective
from clover.planning.model.problem import Problem
from clover.planning.model.queueing import Lane, Service, lane_of, latencies_ms, mixture_p95_ms
from clover.planning.model.shares import Mix, balanced_mix, best_mix, within_p95
from clover.types import Candidate, Configuration, Prediction, Routing

BUDGET = 400
ASKED = 200
LEAST_PART = 0.2
ALTERNATIVES = 5
_LATE = 0.05  # of the rows may miss the SLO
_NEAR = 40  # configurations within the margin whose kept workers are counted
_MORE_KEPT = 5  # of which this many are looked at because they keep more
_COMPARED = 8  # candidates within the margin whose kept workers are counted
UNBOUNDED_MS = 3_600_000.0
"""Stands for "no bound" in a prediction's p95 (infinity does not survive JSON): an overloaded lane."""
_LEAST_BAD = 24
_REREAD = 3


@dataclass(frozen=True)
class Lanes:
    """The lanes of one configuration, one a variant, with the capacity and accuracy of each."""

    variants: tuple[str, ...]
    lanes: tuple[Lane, ...]
    capacities: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass
class Asked:
    """How often p95 was asked for, of at most `most` times."""

    most: float = math.inf
    times: int = 0

    @property
    def over(self) -> bool:
        """Whether there is nothing left to ask."""
        return self.times >= self.most


@dataclass(frozen=True)
class Found:
    """What a search gives: the chosen candidate, the best others, and how many were evaluated of how many."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    evaluated: int
    total: int
    complete: bool


def lanes_of(problem: Problem, configuration: Configuration) -> Lanes:
    """Return the lanes of `configuration`; KeyError where a (variant, profile) of it was not measured."""
    groups: dict[str, list[tuple[Service, int]]] = {}
    for group in configuration:
        own = groups.setdefault(group.variant, [])
        own.append((problem.services[group.variant, group.profile], group.count))
    variants = tuple(sorted(groups))
    lanes = tuple(lane_of(tuple(groups[variant])) for variant in variants)
    return Lanes(
        variants,
        lanes,
        tuple(lane.capacity for lane in lanes),
        tuple(problem.accuracy[variant] for variant in variants),
    )


def predict(problem: Problem, lanes: Lanes, mix: Mix) -> Prediction:
    """Return what the model expects of these shares; p95 `UNBOUNDED_MS` where a lane is overloaded."""
    energy = accuracy = load = 0.0
    for lane, own, share in zip(lanes.lanes, lanes.accuracy, mix, strict=True):
        if share > 0.0:
            energy += share * lane.energy_j(problem.rate * share, share)
            accuracy += share * own
            load = max(load, problem.rate * share / lane.capacity)
    return Prediction(
        p95_ms=min(UNBOUNDED_MS, p95_ms(problem, lanes, mix)),
        accuracy=accuracy,
        energy_j_per_row=energy,
        utilisation=load,
    )


def p95_ms(problem: Problem, lanes: Lanes, mix: Mix) -> float:
    """Return p95 of wait + service over all rows at these shares, milliseconds."""
    parts = []
    for lane, share in zip(lanes.lanes, mix, strict=True):
        if share <= 0.0:
            continue
        if problem.rate * share >= 0.999 * lane.capacity:
            return math.inf
        parts.append((share, latencies_ms(lane.workers, problem.rate * share, share)))
    return mixture_p95_ms(parts)


def optimistic(problem: Problem, objective: Objective, configuration: Configuration) -> float | None:
    """Return a score that the configuration cannot exceed; None where it cannot be feasible."""
    lanes = lanes_of(problem, configuration)
    limits = _limits(problem, objective, lanes)
    gains = _hopes(problem, objective, lanes, limits)
    least, short = _asked(problem, objective, configuration, lanes, _least(lanes, limits))
    mix = None if short else best_mix(gains, lanes.accuracy, limits, objective.planned_floor, least)
    return None if mix is None else sum(share * gain for share, gain in zip(mix, gains, strict=True))


@dataclass(frozen=True)
class _Settled:
    """A configuration with its best shares but for p95.  `short`: which constraint is not met all the same; `mix` is
    None where no shares are within the limits."""

    lanes: Lanes
    limits: list[float]
    least: list[float]
    floor: float
    mix: Mix | None
    gains: list[float]
    short: str

    @property
    def worth(self) -> float:
        """Its score, if p95 asks for no other shares."""
        return -math.inf if self.mix is None else sum(s * gain for s, gain in zip(self.mix, self.gains, strict=True))


def _settle(problem: Problem, objective: Objective, configuration: Configuration, *, standby: bool) -> _Settled:
    lanes = lanes_of(problem, configuration)
    limits = _limits(problem, objective, lanes)
    floor = objective.planned_floor
    least = [0.0] * len(limits) if standby else _least(lanes, limits)
    least, short = _asked(problem, objective, configuration, lanes, least)
    if max(lanes.accuracy) < floor - 1e-9:
        short = short or f"accuracy {max(lanes.accuracy):.2f} % is below {objective.floor_text}"
        floor = max(lanes.accuracy)
    gains = _hopes(problem, objective, lanes, limits)
    mix = best_mix(gains, lanes.accuracy, limits, floor, least)
    for _ in range(_REREAD):
        if mix is None:
            break
        gains = [
            objective.gain(own, lane.energy_j(problem.rate * share, max(share, 0.05)))
            for lane, own, share in zip(lanes.lanes, lanes.accuracy, mix, strict=True)
        ]
        following = best_mix(gains, lanes.accuracy, limits, floor, least)
        if following == mix:
            break
        mix = following
    return _Settled(lanes, limits, least, floor, mix, gains, short)


def _hopes(problem: Problem, objective: Objective, lanes: Lanes, limits: Sequence[float]) -> list[float]:
    """Return what a unit of share of each lane brings at best."""
    return [
        objective.gain(own, lane.least_energy_j(problem.rate * limit))
        for lane, own, limit in zip(lanes.lanes, lanes.accuracy, limits, strict=True)
    ]


def _short(problem: Problem, objective: Objective, lanes: Lanes, balanced: Mix) -> str:
    """Return why no shares fit."""
    peak = max(problem.rate * share / total for share, total in zip(balanced, lanes.capacities, strict=True))
    if peak > objective.max_utilisation:
        return f"utilisation {peak:.2f} exceeds {objective.max_utilisation:.2f} at {problem.rate:.1f} rows/s"
    for variant, lane in zip(lanes.variants, lanes.lanes, strict=True):
        if lane.late(objective.slo_ms) > 0.0:
            slowest = max(service.mean_ms[0] for service, _ in lane.groups)
            return f"a row of {variant} takes {slowest:.2f} ms, which exceeds the SLO of {objective.slo_ms:.2f} ms"
    return "the floor leaves some of its workers without rows"


def evaluate(
    problem: Problem,
    objective: Objective,
    configuration: Configuration,
    *,
    standby: bool = True,
    beat: float = -math.inf,
    asked: Asked | None = None,
) -> Candidate:
    """Return the configuration with its best shares, feasible or its least bad ones.  `standby` allows lanes without
    rows.

    Shares that cannot score more than `beat` are not tried; `asked` counts how often p95 was asked for.
    """
    count = asked or Asked()
    settled = _settle(problem, objective, configuration, standby=standby)
    lanes, why = settled.lanes, settled.short

    def p95(shares: Mix) -> float:
        count.times += 1
        return p95_ms(problem, lanes, shares)

    balanced = balanced_mix(lanes.capacities, lanes.accuracy, settled.floor)
    assert balanced is not None  # the floor is within reach
    if settled.mix is None:
        mix, why = balanced, why or _short(problem, objective, lanes, balanced)
    else:
        mix, met = within_p95(
            settled.mix,
            balanced,
            settled.gains,
            lanes.accuracy,
            settled.limits,
            settled.least,
            settled.floor,
            p95,
            objective.slo_ms,
            beat,
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
    kept: Callable[[Configuration], int] | None = None,
    budget: int = BUDGET,
) -> Found:
    """Return the best candidate among `configurations` (at least one).

    `running` is evaluated in any case where it is one of them.  `kept` counts the workers a configuration could keep.
    """
    heap: list[tuple[float, int, bool]] = []  # (- what to hope for, index, whether it is settled)
    for index, configuration in enumerate(configurations):
        bound = optimistic(problem, objective, configuration)
        if bound is not None:
            heap.append((-bound, index, False))
    heapq.heapify(heap)
    seen: dict[Configuration, Candidate] = {}
    asked = Asked(ASKED)
    best = -math.inf
    if running is not None and running in configurations:
        seen[running] = evaluate(problem, objective, running, standby=False, asked=asked)
        best = seen[running].score if seen[running].feasible else best
    complete = True
    good = sum(candidate.feasible for candidate in seen.values())
    while heap and (-heap[0][0] > best or good < ALTERNATIVES):
        hope, index, settled = heapq.heappop(heap)
        configuration = configurations[index]
        if configuration in seen:
            continue
        if not settled:
            found = _settle(problem, objective, configuration, standby=False)
            if found.mix is not None and not found.short:
                heapq.heappush(heap, (max(hope, -found.worth), index, True))
            continue
        if len(seen) >= budget or asked.over:
            complete = -hope <= best
            break
        beat = best if good >= ALTERNATIVES else -math.inf
        seen[configuration] = evaluate(problem, objective, configuration, standby=False, beat=beat, asked=asked)
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
    return Found(best_candidate, ranked[:10], len(seen), len(configurations), complete)


def chosen(
    candidates: Iterable[Candidate],
    objective: Objective,
    *,
    running: Configuration | None = None,
    kept: Callable[[Configuration], int] | None = None,
) -> tuple[Candidate, tuple[Candidate, ...]]:
    """Return the candidate to take, and all of them from the best down.  Of those within the margin what runs stays;
    where it is not among them, what keeps most of it comes first, then what is better."""
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


def _limits(problem: Problem, objective: Objective, lanes: Lanes) -> list[float]:
    """Return the largest share of each lane, for its utilisation and for the rows that certainly miss the SLO."""
    limits = []
    for lane in lanes.lanes:
        limit = min(1.0, objective.max_utilisation * lane.capacity / problem.rate)
        late = lane.late(objective.slo_ms)
        limits.append(min(limit, _LATE / late) if late > 0.0 else limit)
    return limits


def _least(lanes: Lanes, limits: Sequence[float]) -> list[float]:
    """Return the least share of each lane of more than one."""
    if len(lanes.lanes) == 1:
        return [0.0]
    total = sum(lane.count for lane in lanes.lanes)
    return [min(limit, LEAST_PART * lane.count / total) for lane, limit in zip(lanes.lanes, limits, strict=True)]


def _asked(
    problem: Problem, objective: Objective, configuration: Configuration, lanes: Lanes, least: list[float]
) -> tuple[list[float], str]:
    """Return the least shares with what rows that ask for an accuracy take, and why these cannot all be served."""
    if not problem.demand:
        return least, ""
    asked = direct(problem, configuration, objective.max_utilisation)
    workers = [lane.count for lane in lanes.lanes]
    raised = leasts(problem, asked, lanes.variants, workers, lanes.capacities, least, objective.max_utilisation)
    return raised, asked.why


def rank(candidate: Candidate, objective: Objective) -> tuple[float, ...]:
    """Return the order of candidates, best first: feasible ones by score, the others by how much accuracy they miss,
    then by p95, then (if that is unbounded) by utilisation."""
    if candidate.feasible:
        return (0.0, -candidate.score)
    missing = max(0.0, objective.planned_floor - candidate.prediction.accuracy)
    p95 = candidate.prediction.p95_ms
    load = candidate.prediction.utilisation if p95 >= UNBOUNDED_MS else 0.0
    return (1.0, round(missing, 6), p95, load, -candidate.score)


def least_bad(problem: Problem, objective: Objective, configurations: Sequence[Configuration]) -> list[Configuration]:
    """Of the configurations that come closest to the floor those of the least peak utilisation, and of those that are
    not overloaded the swiftest."""
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


def _service_p95_ms(lanes: Lanes, mix: Mix) -> float:
    """Return p95 of the service times alone, each row by itself."""
    parts = [
        (service.mean_ms[0], share * part)
        for lane, share in zip(lanes.lanes, mix, strict=True)
        for part, (service, _) in zip(lane.parts, lane.groups, strict=True)
    ]
    left = 1.0 - _LATE
    for ms, weight in sorted(parts):
        left -= weight
        if left <= 0.0:
            return ms
    return max(ms for ms, _ in parts)
