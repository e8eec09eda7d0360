"""Rows that ask for an accuracy of their own (`clover_min_accuracy`), as a constraint on plans.

`Problem.demand` says how many rows a second need at least which accuracy.  They go straight to a variant that reaches
it, whatever the shares or the cascade of all other rows are.  So a configuration serves them if it has workers for
them: the most demanding rows first, each to the variant of the fewest joules that is accurate enough, as far as the
utilisation limit leaves room.  A configuration with none, or too few, is not feasible; nothing else about a plan
changes.  While a plan is searched, shares are of all rows, so these rows are a least share of their variant
(`planning.packing.evaluation`); the router deals only the others by quota, and is given the shares of those
(`of_the_others`).

Where they enter a cascade is said in `planning.cascade.evaluation`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clover.planning.model.problem import Problem
from clover.types import Assignment, Configuration, Demand

_EPSILON = 1e-9


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


def of_the_others(problem: Problem, shares: dict[str, float], asked: Direct) -> dict[str, float]:
    """Return the shares of the rows that ask for no accuracy, from the `shares` of all rows."""
    if not asked.rates:
        return shares
    left = {name: max(0.0, share - asked.rates.get(name, 0.0) / problem.rate) for name, share in shares.items()}
    total = sum(left.values())
    return {name: round(share / total, 6) for name, share in left.items()} if total > 1e-6 else shares


def met_by(
    demand: Sequence[Demand], running: Sequence[Assignment], accuracy: Mapping[str, float]
) -> tuple[Demand, ...]:
    """Return those of `demand` that some worker of `running` is accurate enough for."""
    best = max((accuracy.get(item.variant, 0.0) for item in running), default=-math.inf)
    return tuple(item for item in demand if item.accuracy <= best + _EPSILON)
