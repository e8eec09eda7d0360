"""What one configuration can do: its lanes, its best shares, and what the model predicts of them.

A configuration is scored in up to three steps, each more expensive and with a score no higher than the one before:

 1. *optimistic*: its best mix, with each lane at the least energy that its share of the rate allows and without the p95
    limit.  But rows that certainly miss it, because the mean service of their worker alone does, are at most 5 %;
 2. *settled*: its best mix with the energy at the batch sizes expected, still without p95;
 3. *evaluated*: p95 is simulated, and the shares are moved until it is met, as long as that may still beat the best.

In a searched plan each lane gets at least `LEAST_PART` of the rows that its workers would get if all rows were dealt to
all workers alike.  Without that rule a machine fills with standby workers.  They hold memory and serve nothing, and
because all rows then go through one worker in long batches, such a plan even looks frugal.

Workers that share their time between variants (`planning.model.sharing`) need no such rule: there a variant without
rows takes memory, but no worker.  `settled_mix` finds their shares for each two of the variants, which is enough for an
objective that is linear in the shares.  `evaluate` then moves the shares until p95 is met, as above.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clover.planning.model.objective import Objective
from clover.planning.model.problem import Direct, Problem, direct, is_shared, variants_of
from clover.planning.model.queueing import Lane, Service, lane_of, latencies_ms, mixture_p95_ms
from clover.planning.model.shares import Mix, MixProblem, balanced_mix, within_p95
from clover.planning.model.sharing import SharedPool, pool_of
from clover.types import Candidate, Configuration, Prediction, Routing

LEAST_PART = 0.2
LATE = 0.05
"""The part of the rows that may miss the SLO."""
UNBOUNDED_MS = 3_600_000.0
"""Stands for "no bound" in a prediction's p95 (infinity does not survive JSON): an overloaded lane."""
_REREAD = 3
_EPSILON = 1e-9


@dataclass(frozen=True)
class ConfigurationLanes:
    """The lanes of one configuration, one a variant, with the capacity and accuracy of each."""

    variants: tuple[str, ...]
    lanes: tuple[Lane, ...]
    capacities: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass
class P95Budget:
    """How many simulations of p95 a search may spend (`most`), and how many it has spent."""

    most: float = math.inf
    spent: int = 0

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to spend."""
        return self.spent >= self.most


def lanes_of(problem: Problem, configuration: Configuration) -> ConfigurationLanes:
    """Return the lanes of `configuration`; KeyError if a (variant, profile) of it was not measured."""
    groups: dict[str, list[tuple[Service, int]]] = {}
    for group in configuration:
        own = groups.setdefault(group.variant, [])
        own.append((problem.services[group.variant, group.profile], group.count))
    variants = tuple(sorted(groups))
    lanes = tuple(lane_of(tuple(groups[variant])) for variant in variants)
    return ConfigurationLanes(
        variants,
        lanes,
        tuple(lane.capacity for lane in lanes),
        tuple(problem.accuracy[variant] for variant in variants),
    )


def predict(problem: Problem, lanes: ConfigurationLanes, mix: Mix) -> Prediction:
    """Return what the model expects of these shares; p95 `UNBOUNDED_MS` if a lane is overloaded."""
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


def p95_ms(problem: Problem, lanes: ConfigurationLanes, mix: Mix) -> float:
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
    """Return a score that the configuration cannot exceed; None if it cannot be feasible."""
    lanes = lanes_of(problem, configuration)
    limits = _limits(problem, objective, lanes)
    least, short = _least_with_demand(problem, objective, configuration, lanes, _least(lanes, limits))
    gains = _hopes(problem, objective, lanes, limits)
    mixing = MixProblem(gains, lanes.accuracy, limits, least, objective.planned_floor)
    mix = None if short else mixing.best()
    return None if mix is None else mixing.gain(mix)


@dataclass(frozen=True)
class Settled:
    """A configuration with its best shares, p95 left out.  `mix` is None if no shares are within the limits; `short`
    says which limit the configuration breaks whatever the shares are (empty: none)."""

    lanes: ConfigurationLanes
    mixing: MixProblem
    mix: Mix | None
    short: str

    @property
    def score(self) -> float:
        """The score, if p95 asks for no other shares."""
        return -math.inf if self.mix is None else self.mixing.gain(self.mix)


def settle(problem: Problem, objective: Objective, configuration: Configuration, *, standby: bool) -> Settled:
    """Return the configuration with its best shares, p95 left out.  `standby` allows lanes without rows.  A floor that
    it cannot reach is lowered to the best that it can, and named in `short`."""
    lanes = lanes_of(problem, configuration)
    limits = _limits(problem, objective, lanes)
    floor = objective.planned_floor
    least = [0.0] * len(limits) if standby else _least(lanes, limits)
    least, short = _least_with_demand(problem, objective, configuration, lanes, least)
    if max(lanes.accuracy) < floor - 1e-9:
        short = short or f"accuracy {max(lanes.accuracy):.2f} % is below {objective.floor_text}"
        floor = max(lanes.accuracy)
    mixing = MixProblem(_hopes(problem, objective, lanes, limits), lanes.accuracy, limits, least, floor)
    mix = mixing.best()
    for _ in range(_REREAD):  # the joules of a row depend on the shares found
        if mix is None:
            break
        gains = [
            objective.score(own, lane.energy_j(problem.rate * share, max(share, 0.05)))
            for lane, own, share in zip(lanes.lanes, lanes.accuracy, mix, strict=True)
        ]
        mixing = replace(mixing, gains=gains)
        following = mixing.best()
        if following == mix:
            break
        mix = following
    return Settled(lanes, mixing, mix, short)


def _hopes(problem: Problem, objective: Objective, lanes: ConfigurationLanes, limits: Sequence[float]) -> list[float]:
    """Return what a unit of share of each lane brings at best."""
    return [
        objective.score(own, lane.least_energy_j(problem.rate * limit))
        for lane, own, limit in zip(lanes.lanes, lanes.accuracy, limits, strict=True)
    ]


def _short(problem: Problem, objective: Objective, lanes: ConfigurationLanes, balanced: Mix) -> str:
    """Return why no shares fit."""
    peak = max(problem.rate * share / total for share, total in zip(balanced, lanes.capacities, strict=True))
    if peak > objective.max_utilisation:
        return f"utilisation {peak:.2f} exceeds {objective.max_utilisation:.2f} at {problem.rate:.1f} rows/s"
    for variant, lane in zip(lanes.variants, lanes.lanes, strict=True):
        if lane.late(objective.slo_ms) > 0.0:
            slowest = max(service.mean_ms[0] for service, _ in lane.groups) + lane.front_ms
            return f"a row of {variant} takes {slowest:.2f} ms, which exceeds the SLO of {objective.slo_ms:.2f} ms"
    return "meeting the accuracy floor would leave some workers idle"


def evaluate(
    problem: Problem,
    objective: Objective,
    configuration: Configuration,
    *,
    standby: bool = True,
    beat: float = -math.inf,
    spending: P95Budget | None = None,
) -> Candidate:
    """Return the configuration with its best shares, feasible or its least bad ones.  `standby` allows lanes without
    rows.

    Shares that cannot score more than `beat` are not tried; every simulation of p95 is counted in `spending`.
    """
    budget = spending or P95Budget()
    if is_shared(configuration):
        return _shared(problem, objective, configuration, beat, budget)
    settled = settle(problem, objective, configuration, standby=standby)
    lanes, why = settled.lanes, settled.short

    def p95(shares: Mix) -> float:
        budget.spent += 1
        return p95_ms(problem, lanes, shares)

    balanced = balanced_mix(lanes.capacities, lanes.accuracy, settled.mixing.floor)
    assert balanced is not None  # the floor is within reach
    if settled.mix is None:
        mix, why = balanced, why or _short(problem, objective, lanes, balanced)
    else:
        mix, met = within_p95(settled.mixing, settled.mix, balanced, p95, objective.slo_ms, beat)
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


# --- workers that share their time between variants -------------------------------------------------------------------


@dataclass(frozen=True)
class SharedMix:
    """A configuration with shared workers and its best shares of two of its variants (`mix`), p95 left out: its
    `problem` of shares, the shares of the least load (`lightest`), and why the limits cannot be kept (empty: they
    can)."""

    pair: tuple[str, ...]
    pool: SharedPool
    mixing: MixProblem
    mix: Mix
    lightest: Mix
    why: str

    @property
    def score(self) -> float:
        """The score, if p95 asks for no other shares."""
        return self.mixing.gain(self.mix)


def settled_mix(problem: Problem, objective: Objective, configuration: Configuration) -> SharedMix:
    """Return the best mix of two variants of `configuration`, p95 left out; one that keeps the limits, if there is
    any, else the one of the least load.  KeyError if a variant was not measured."""
    names = sorted(variants_of(configuration))
    pairs: list[tuple[str, ...]] = [*itertools.combinations(names, 2)] or [(names[0],)]
    mixes = [_settle_pair(problem, objective, configuration, pair) for pair in pairs]
    return min(mixes, key=lambda own: (bool(own.why), -own.score if not own.why else _load(problem, own)))


def _load(problem: Problem, own: SharedMix) -> float:
    return own.pool.utilisation([problem.rate * share for share in own.mix])


def _settle_pair(
    problem: Problem, objective: Objective, configuration: Configuration, pair: tuple[str, ...]
) -> SharedMix:
    pool = pool_of(problem.services, configuration, pair)
    accuracy = [problem.accuracy[variant] for variant in pair]
    asked = direct(problem, configuration, objective.max_utilisation)
    why = asked.why
    if outside := [variant for variant, rate in asked.rates.items() if rate > 0.0 and variant not in pair]:
        why = why or f"rows ask for the accuracy of {', '.join(outside)}"
    least = [asked.rates.get(variant, 0.0) / problem.rate for variant in pair]
    floor = objective.planned_floor
    if max(accuracy) < floor - 1e-9:
        why = why or f"accuracy {max(accuracy):.2f} % is below {objective.floor_text}"
        floor = max(accuracy)
    limits = [
        min(1.0, objective.max_utilisation * full / problem.rate, LATE / max(_late(pool, lane, objective), LATE))
        for lane, full in enumerate(pool.capacities)
    ]
    if len(pair) == 2:
        limits = _jointly(limits, [problem.rate / full for full in pool.capacities], objective.max_utilisation)
    gains = [
        objective.score(own, min(s.least_energy_j for k in pool.kinds if (s := k.services[lane]) is not None))
        for lane, own in enumerate(accuracy)
    ]
    mixing = MixProblem(gains, accuracy, limits, least, floor)
    lightest = _lightest(pool.capacities, accuracy, least, floor)
    mix = mixing.best()
    for _ in range(_REREAD):  # the joules of a row depend on the shares found
        if mix is None:
            break
        joules = pool.joules([problem.rate * max(share, 0.02) for share in mix])
        mixing = replace(mixing, gains=[objective.score(own, j) for own, j in zip(accuracy, joules, strict=True)])
        following = mixing.best()
        if following == mix:
            break
        mix = following
    if mix is None:
        load = pool.utilisation([problem.rate * share for share in lightest])
        over = f"utilisation {load:.2f} exceeds {objective.max_utilisation:.2f} at {problem.rate:.1f} rows/s"
        late = f"rows of {' or '.join(pair)} take longer than the SLO of {objective.slo_ms:.2f} ms by themselves"
        why = why or (over if load > objective.max_utilisation else late)
    return SharedMix(pair, pool, mixing, lightest if mix is None else mix, lightest, why)


def _jointly(limits: Sequence[float], loads: Sequence[float], most: float) -> list[float]:
    """Return the largest shares of two lanes whose rows take `loads` of the time of the same workers each, if all rows
    were its own: below that, whatever is left to the other lane, no more than `most` of it is taken."""
    slow, fast = (0, 1) if loads[0] > loads[1] else (1, 0)
    limited = list(limits)
    if loads[slow] > most:
        room = (most - loads[fast]) / max(loads[slow] - loads[fast], 1e-12)
        limited[slow] = max(0.0, min(limited[slow], room))
    return limited


def _lightest(capacities: Sequence[float], accuracy: Sequence[float], least: Sequence[float], floor: float) -> Mix:
    """Return the shares of two lanes (or one) of the least load that reach the floor."""
    if len(capacities) == 1:
        return (1.0,)
    fast, slow = (0, 1) if capacities[0] >= capacities[1] else (1, 0)
    part = 1.0
    if accuracy[fast] < floor - 1e-9:
        part = max(0.0, (accuracy[slow] - floor) / (accuracy[slow] - accuracy[fast]))
    part = max(min(part, 1.0 - least[slow]), min(least[fast], 1.0))
    return (part, 1.0 - part) if fast == 0 else (1.0 - part, part)


def _late(pool: SharedPool, lane: int, objective: Objective) -> float:
    """Return a share of the lane's rows that takes longer than the SLO in any case."""
    groups = [(service, k.count) for k in pool.kinds if (service := k.services[lane]) is not None]
    return lane_of(tuple(groups)).late(objective.slo_ms)


def predict_shared(problem: Problem, pool: SharedPool, accuracy: Sequence[float], mix: Mix) -> Prediction:
    """Return what the model expects of these shares of the lanes of `pool`; p95 `UNBOUNDED_MS` if it is overloaded."""
    rates = [problem.rate * share for share in mix]
    load = pool.utilisation(rates)
    return Prediction(
        p95_ms=_shared_p95_ms(problem, pool, mix),
        accuracy=sum(share * own for share, own in zip(mix, accuracy, strict=True)),
        energy_j_per_row=sum(share * joules for share, joules in zip(mix, pool.joules(rates), strict=True)),
        utilisation=min(load, 1e9),
    )


def _shared_p95_ms(problem: Problem, pool: SharedPool, mix: Mix) -> float:
    if pool.utilisation([problem.rate * share for share in mix]) >= 0.999:
        return UNBOUNDED_MS
    return min(UNBOUNDED_MS, mixture_p95_ms([(1.0, replace(pool, shares=tuple(mix)).latencies_ms(problem.rate))]))


def _shared(
    problem: Problem, objective: Objective, configuration: Configuration, beat: float, budget: P95Budget
) -> Candidate:
    own = settled_mix(problem, objective, configuration)
    mix, why = own.mix, own.why

    def p95(shares: Mix) -> float:
        budget.spent += 1
        return _shared_p95_ms(problem, own.pool, shares)

    if not why:
        mix, met = within_p95(own.mixing, own.mix, own.lightest, p95, objective.slo_ms, beat)
        if not met:
            late_ms = _shared_p95_ms(problem, own.pool, mix)
            why = f"p95 {late_ms:.2f} ms exceeds the SLO of {objective.slo_ms:.2f} ms"
    prediction = predict_shared(problem, own.pool, own.mixing.accuracy, mix)
    if not why and prediction.utilisation > objective.max_utilisation + 1e-6:  # of unlike workers
        why = f"utilisation {prediction.utilisation:.2f} exceeds {objective.max_utilisation:.2f}"
    shares = dict.fromkeys(sorted(variants_of(configuration)), 0.0)
    shares |= {variant: round(share, 6) for variant, share in zip(own.pair, mix, strict=True)}
    return Candidate(
        configuration=configuration,
        routing=Routing(shares=shares),
        prediction=prediction,
        score=objective.score(prediction.accuracy, prediction.energy_j_per_row),
        feasible=not why,
        why=why,
    )


def _limits(problem: Problem, objective: Objective, lanes: ConfigurationLanes) -> list[float]:
    """Return the largest share of each lane, for its utilisation and for the rows that certainly miss the SLO."""
    limits = []
    for lane in lanes.lanes:
        limit = min(1.0, objective.max_utilisation * lane.capacity / problem.rate)
        late = lane.late(objective.slo_ms)
        limits.append(min(limit, LATE / late) if late > 0.0 else limit)
    return limits


def _least(lanes: ConfigurationLanes, limits: Sequence[float]) -> list[float]:
    """Return the least share of each lane of more than one."""
    if len(lanes.lanes) == 1:
        return [0.0]
    total = sum(lane.count for lane in lanes.lanes)
    return [min(limit, LEAST_PART * lane.count / total) for lane, limit in zip(lanes.lanes, limits, strict=True)]


def _least_with_demand(
    problem: Problem, objective: Objective, configuration: Configuration, lanes: ConfigurationLanes, least: list[float]
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


def leasts(
    problem: Problem,
    asked: Direct,
    variants: Sequence[str],
    workers: Sequence[int],
    capacities: Sequence[float],
    least: Sequence[float],
    max_utilisation: float,
) -> list[float]:
    """Return the least share of each lane: what rows that ask for an accuracy take of it, or, if that is more, the part
    of `least` (the share that a planned worker has to get) that belongs to workers which these rows do not need."""
    leasts = []
    for variant, count, capacity, own in zip(variants, workers, capacities, least, strict=True):
        rate = asked.rates.get(variant, 0.0)
        if rate > 0.0:
            needed = max(1, math.ceil(rate * count / (max_utilisation * capacity) - _EPSILON))
            leasts.append(max(rate / problem.rate, own * max(0, count - needed) / count))
        else:
            leasts.append(own)
    return leasts
