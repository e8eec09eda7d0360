"""Rows that ask for an accuracy of their own (`clover_min_accuracy`), as a constraint on plans.

`Problem.demand` says how many rows a second need at least which accuracy.  They go straight to a variant that reaches
it, whatever the shares or the cascade of all other rows are.  So a configuration serves them if it has workers for
them: the most demanding rows first, each to the variant of the fewest joules that is accurate enough, as far as the
utilisation limit leaves room.  A configuration with none, or too few, is not feasible; nothing else about a plan
changes.  While a plan is searched, shares are of all rows, so these rows are a least share of their variant (`leasts`);
the router deals only the others by quota, and is given the shares of those (`of_the_others`).

In a cascade they enter at a stage that satisfies them; if no stage does, they go to a variant outside the chain, which
needs workers of its own.  They are planned as if they had come through all stages before
it as well (`reach_of`), which is never too little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from clover.planning.model.problem import Problem
from clover.types import Assignment, ChainPoint, Configuration, Demand, GroupCount

_EPSILON = 1e-9
_EXCHANGES = 8
"""Rounds of exchanging workers until a configuration serves the demand."""
_KEPT = 12
"""Configurations that a round hands to the next, at most."""


@dataclass(frozen=True)
class Direct:
    """Rows a second that go straight to each variant, and in words what cannot be served (empty: nothing)."""

    rates: dict[str, float]
    why: str = ""


NONE = Direct({})


def direct(
    problem: Problem, configuration: Configuration, max_utilisation: float, chain: Sequence[str] = ()
) -> Direct:
    """Return which variants of `configuration` serve the rows that ask for an accuracy, as far as they can.  The
    variants of the `chain` that all other rows follow come first, as in the router: the others have no share there.

    Shares and rates are of all rows of the problem."""
    if not problem.demand:
        return NONE
    capacities: dict[str, float] = {}
    joules: dict[str, float] = {}
    beside: dict[str, set[str]] = {}
    for group in configuration:
        for variant in group.variants:
            service = problem.services[variant, group.profile]
            capacities[variant] = capacities.get(variant, 0.0) + group.count * service.capacity()
            joules[variant] = min(joules.get(variant, math.inf), service.least_energy_j)
            beside.setdefault(variant, set()).update(other for other in group.variants if other != variant)
    rates: dict[str, float] = {}
    why = ""
    for asked in sorted(problem.demand, key=lambda item: -item.accuracy):
        able = [variant for variant in capacities if problem.accuracy[variant] >= asked.accuracy - _EPSILON]
        left = min(asked.rate, problem.rate - sum(rates.values()))
        for variant in sorted(able, key=lambda name: (name not in chain, joules[name], name)):
            taken = sum(rates.get(other, 0.0) / capacities[other] for other in beside[variant])
            room = (max_utilisation - taken) * capacities[variant] - rates.get(variant, 0.0)
            part = max(0.0, min(left, room))
            if part > 0.0:
                rates[variant] = rates.get(variant, 0.0) + part
                left -= part
        if not able:
            why = why or f"no worker reaches the {asked.accuracy:.2f} % that {asked.rate:.3g} rows/s ask for"
        elif left > _EPSILON * problem.rate:
            why = why or f"too few workers reach the {asked.accuracy:.2f} % that {asked.rate:.3g} rows/s ask for"
    return Direct(rates, why)


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
    found = []
    for variant, count, capacity, own in zip(variants, workers, capacities, least, strict=True):
        rate = asked.rates.get(variant, 0.0)
        if rate > 0.0:
            needed = max(1, math.ceil(rate * count / (max_utilisation * capacity) - _EPSILON))
            found.append(max(rate / problem.rate, own * max(0, count - needed) / count))
        else:
            found.append(own)
    return found


def of_the_others(problem: Problem, shares: dict[str, float], asked: Direct) -> dict[str, float]:
    """Return the shares of the rows that ask for no accuracy, from the `shares` of all rows."""
    if not asked.rates:
        return shares
    left = {name: max(0.0, share - asked.rates.get(name, 0.0) / problem.rate) for name, share in shares.items()}
    total = sum(left.values())
    return {name: round(share / total, 6) for name, share in left.items()} if total > 1e-6 else shares


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


def exchanged(problem: Problem, configuration: Configuration, max_utilisation: float) -> Iterator[Configuration]:
    """Yield `configuration` if it serves the demand, else configurations that do, made from it by giving slices to
    accurate variants, the fewest slices first.

    For searches that look at some of all configurations, and might not meet one of these."""
    found: list[Configuration] = []
    seen = {configuration}
    front = [configuration]
    for _ in range(_EXCHANGES):
        following: list[Configuration] = []
        for one in front:
            if not direct(problem, one, max_utilisation).why:
                found.append(one)
                continue
            for other in _one_more(problem, one, max_utilisation):
                if other not in seen:
                    seen.add(other)
                    following.append(other)
        front = following[:_KEPT]
        if found or not front:
            break
    yield from found[:_KEPT]


def _one_more(problem: Problem, configuration: Configuration, max_utilisation: float) -> Iterator[Configuration]:
    """Yield `configuration` with one slice, of each profile and variant in turn, given to a variant that is asked
    for."""
    for asked in sorted(problem.demand, key=lambda item: -item.accuracy):
        alone = [item for item in problem.demand if item.accuracy >= asked.accuracy]
        if direct(_only(problem, alone), configuration, max_utilisation).why:
            break
    able = [variant for variant in problem.variants if problem.accuracy[variant] >= asked.accuracy - _EPSILON]
    for group in configuration:
        others = [name for name in able if (name, group.profile) in problem.services]
        if group.variant in able or not others:
            continue
        takes = min(others, key=lambda name: (problem.services[name, group.profile].least_energy_j, name))
        counts = {(item.variant, item.profile): item.count for item in configuration}
        counts[group.variant, group.profile] -= 1
        counts[takes, group.profile] = counts.get((takes, group.profile), 0) + 1
        yield tuple(
            GroupCount(variant=variant, profile=profile, count=count)
            for (variant, profile), count in sorted(counts.items())
            if count
        )


def _only(problem: Problem, demand: Sequence[Demand]) -> Problem:
    return replace(problem, demand=tuple(demand))


def met_by(
    demand: Sequence[Demand], running: Sequence[Assignment], accuracy: Mapping[str, float]
) -> tuple[Demand, ...]:
    """Return those of `demand` that some worker of `running` is accurate enough for."""
    best = max((accuracy.get(item.variant, 0.0) for item in running), default=-math.inf)
    return tuple(item for item in demand if item.accuracy <= best + _EPSILON)
