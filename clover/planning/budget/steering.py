"""Spends an accuracy budget with cascades: thresholds at once, configurations slowly.

Every moment has one price of accuracy (`planning.budget.target`).  Two things follow it, at two speeds.

**Thresholds** cost nothing to change.  Whatever runs, the moment takes the point of its configuration's permitted set
(`planning.cascade.permitted`) that is nearest to the accuracy the price asks for.  Only discrete operating points
exist, so the error of one decision is carried into the next: the average meets the target although no single decision
does.

**Configurations** cost what it takes to start workers, and rows that others serve meanwhile.  Each is scored at the
price by joules - price x accuracy a row.  Another one is taken if its best point is better than the best one here by
`MARGIN` of what a row of BASE takes, at any intensity within `NOISE` of the reading.  It is taken at once in two cases:
nothing here is permitted any more, because the rate rose or a variant lost its worker; or what the rows so far are
short of cannot be made good from here.

**At a trickle** there is nothing to save.  If no routing spares the watts that it has to (`State.least_saving_w`),
rows go to the most accurate point, and the controller no longer plans for the grid's sake.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from clover.planning.budget.frontiers import frontier, permitted_on
from clover.planning.budget.target import GRAMS_PER_J, BudgetTarget, budget_target
from clover.planning.cascade.permitted import best_at, nearest, on_hull, point_of
from clover.planning.model.objective import MARGIN, NOISE, PlanningInput, held_to
from clover.planning.model.problem import measured, variants_of
from clover.planning.packing.evaluation import evaluate
from clover.planning.search.best import awake_in, with_idle_energy
from clover.types import Candidate, Configuration, configuration_of

_STEEP = 4.0  # times the steepest climb between known plans: above it, every price leads to the same choice

Permitted = tuple[Candidate, ...]


@dataclass(frozen=True)
class Steering:
    """What a moment is routed to: the candidate, what its configuration permits (the candidate included), how many
    configurations were weighed, in words why the configuration stays or changes, and whether there is nothing to
    save."""

    best: Candidate
    permitted: Permitted
    weighed: int
    why: str
    nothing_to_save: bool = False


def steer_on(given: PlanningInput, configuration: Configuration, awake: int = 0) -> Steering | None:
    """Choose the routing of this moment on `configuration`, whatever another configuration could do; None if nothing is
    permitted on it."""
    here = _with_mix(given, configuration, awake, budget_target(given))
    return _route(given, here, 1, "") if here else None


def steer(given: PlanningInput, target: BudgetTarget) -> Steering | None:
    """Choose the configuration and routing of this moment: what runs, or what is worth changing to; None if nothing
    keeps the limits."""
    state, problem, objective = given.state, given.problem, given.objective
    known = frontier(problem, objective, problem.rate, seed=state.seed)
    if not known:
        return None
    sets: dict[tuple[Configuration, int], list[Candidate]] = {}
    for plan in known:
        key = (plan.configuration, plan.awake)
        if key not in sets:
            sets[key] = list(permitted_on(problem, objective, *key))
        sets[key].append(plan.candidate)
    price_j = _price_j(given, target, known[0].candidate, [plan.candidate for plan in known])
    enough = objective.base_accuracy
    other = best_at(on_hull((item for own in sets.values() for item in own), enough), price_j)
    there = on_hull(sets[other.configuration, other.awake], enough)
    here = _running(given, target)
    if _nothing_to_save(given, here or there, (item for own in sets.values() for item in own)):
        return _route(given, here or there, len(sets), "", rests=True)
    if not here:
        why = "" if not state.running else "what runs permits nothing at this rate"
        return _route(given, there, len(sets), why)
    stay = best_at(here, price_j)
    if _same(stay, other):
        return _route(given, here, len(sets), "")
    reach = (here[-1].prediction.accuracy, there[-1].prediction.accuracy)
    if reach[0] < min(target.least, reach[1]) - 1e-9:
        why = f"what runs reaches {reach[0]:.2f} % of the {target.least:.2f} % that this moment has to reach"
        return _route(given, there, len(sets), why)
    gain = _gain(stay, other, price_j)
    needed = MARGIN * objective.base_energy_j
    words = f"changing gains {gain:.3g} J a row at the price of accuracy, and must gain {needed:.3g}"
    return _route(given, there if gain > needed else here, len(sets), words)


def _running(given: PlanningInput, target: BudgetTarget) -> Permitted:
    """Return what the running configuration permits; nothing if nothing runs, or if it can no longer be planned."""
    state, problem = given.state, given.problem
    running = configuration_of(state.running)
    if not running or not measured(problem, running):
        return ()
    awake = 0 if problem.spared_w is None else awake_in(problem, state.running)
    return _with_mix(given, running, awake, target)


def _with_mix(given: PlanningInput, configuration: Configuration, awake: int, target: BudgetTarget) -> Permitted:
    """Return what `configuration` permits, and the mix of its variants that reaches the target of this moment."""
    problem, objective = given.problem, given.objective
    candidates = list(permitted_on(problem, objective, configuration, awake))
    if len(variants_of(configuration)) > 1:
        mix = evaluate(problem, held_to(objective, target.accuracy), configuration)
        if mix.feasible:
            candidates.append(with_idle_energy(mix, problem, objective, awake))
    return on_hull(candidates, objective.base_accuracy)


def _route(given: PlanningInput, here: Permitted, weighed: int, why: str, *, rests: bool = False) -> Steering:
    """Choose among `here`; the most accurate one if `rests`, as there is nothing to save."""
    aim = budget_target(given, [point_of(item) for item in here])
    best = here[-1] if rests else nearest(here, aim.accuracy, aim.least)
    aims = held_to(given.objective, 0.0)

    def scored(item: Candidate) -> Candidate:
        return msgspec.structs.replace(item, score=aims.score(item.prediction.accuracy, item.prediction.joules))

    return Steering(scored(best), tuple(scored(item) for item in here), weighed, why, rests)


def _nothing_to_save(given: PlanningInput, here: Permitted, known: Iterable[Candidate]) -> bool:
    """Return whether no plan of `known`, at the rows that are expected in the coming hour, spares as much as it has to
    beside the most accurate point of `here`, which is as accurate as the best variant."""
    ahead, best = given.state.ahead, here[-1].prediction
    if not ahead or best.accuracy < given.objective.base_accuracy - 1e-9:
        return False
    spared_j = best.joules - min(item.prediction.joules for item in known)
    return spared_j * ahead[0].rows / ahead[0].seconds < given.state.least_saving_w


def _price_j(given: PlanningInput, target: BudgetTarget, cheapest: Candidate, known: Sequence[Candidate]) -> float:
    """Return the price of accuracy in joules at this moment's intensity; if it is without limit, one above every climb
    of `known`."""
    climbs = [
        (above.prediction.joules - below.prediction.joules)
        / max(above.prediction.accuracy - below.prediction.accuracy, 1e-9)
        for below, above in itertools.pairwise(known)
    ]
    most = _STEEP * max(climbs, default=cheapest.prediction.joules)
    grams_per_j = GRAMS_PER_J * max(given.state.intensity.g_per_kwh, 1e-9)
    return min(target.price / grams_per_j, most)


def _gain(stay: Candidate, other: Candidate, price_j: float) -> float:
    """Return joules a row that `other` is better by at the price, at the least favourable intensity within `NOISE`."""
    saved = stay.prediction.joules - other.prediction.joules
    lost = price_j * (stay.prediction.accuracy - other.prediction.accuracy)
    return min(part * saved - lost for part in (1.0 - NOISE, 1.0 + NOISE))


def _same(one: Candidate, two: Candidate) -> bool:
    return (one.configuration, one.awake) == (two.configuration, two.awake)
