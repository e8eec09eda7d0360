"""Thresholds at once, configurations slowly: an accuracy budget spent with cascades.

Every moment has one price of accuracy (`budget`).  Two things may answer to it, at two speeds.

**Thresholds** cost nothing to turn.  Whatever runs, the moment goes to the point of its permitted set (`permitted`)
nearest to where the price lets it land.  A set is points with nothing between them; what one moment is off by, the next
ones are asked for, so that the mean lands where it should although no moment does.

**Configurations** cost what it takes to start workers, and rows that others serve meanwhile.  Another one is taken
where at the price, joules - price x accuracy a row, its best point is better than the best one here by

    what the change costs, spread over the rows of `PAYBACK_S`, and `MARGIN` of what a row of BASE takes,

at any intensity within `NOISE` of the reading.  Where nothing here is permitted any more, because the rate rose or a
variant lost its worker, or where what is owed cannot be reached from here, it is taken at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from clover.planning.budget.price import GRAMS_PER_J, Course, course, held_to, options, ways
from clover.planning.cascade.chains import unwaiting
from clover.planning.cascade.permitted import best_at, drawn_at, landing, moving_j, on_hull
from clover.planning.cascade.verify import point_of, verified
from clover.planning.model.objective import NOISE, Objective, objective_of
from clover.planning.model.problem import Problem, problem_of
from clover.planning.packing.exhaustive import evaluate
from clover.planning.search.power_states import charged
from clover.types import Candidate, Configuration, State, configuration_of

PAYBACK_S = 3600.0
"""Seconds within which a change of configuration has to pay."""
MARGIN = 0.005
"""Of BASE's joules a row: what a change has to save at least."""
_STEEP = 4.0  # times the steepest climb: a price that stands for any

Permitted = tuple[Candidate, ...]


@dataclass(frozen=True)
class Steered:
    """Where a moment goes: the candidate, what its configuration permits (the candidate is one of it), how many
    configurations were weighed, and in words why it stays or goes."""

    best: Candidate
    permitted: Permitted
    weighed: int
    why: str


def turned(state: State, configuration: Configuration, awake: int = 0) -> Steered | None:
    """Return the moment on `configuration`, whatever another would do; None where nothing is permitted on it."""
    now = course(state)
    here = _with_mix(state, problem_of(state), objective_of(state), configuration, awake, now)
    return _landed(state, here, 1, "") if here else None


def steered(state: State, now: Course) -> Steered | None:
    """Return the moment of `now` on what runs, or on what is worth changing to; None where nothing keeps the limits."""
    problem, objective = problem_of(state), objective_of(state)
    known = ways(state, state.arrival_rate)
    if not known:
        return None
    sets: dict[tuple[Configuration, int], list[Candidate]] = {}
    for way in known:
        sets.setdefault((way.configuration, way.awake), list(options(state, way.configuration, way.awake))).append(
            way.candidate
        )
    price_j = _price_j(state, now, known[0].candidate, [way.candidate for way in known])
    other = best_at([item for own in sets.values() for item in own], price_j)
    there = on_hull(sets[other.configuration, other.awake])
    here = _standing(state, problem, objective, now)
    if not here:
        why = "" if not state.running else "what runs permits nothing at this rate"
        return _landed(state, there, len(sets), why)
    running, stay = configuration_of(state.running), best_at(here, price_j)
    if _same(stay, other):
        return _landed(state, here, len(sets), "") or _landed(state, there, len(sets), "")
    reach = (here[-1].prediction.accuracy, there[-1].prediction.accuracy)
    if reach[0] < min(now.least, reach[1]) - 1e-9:
        why = f"what runs reaches {reach[0]:.2f} % of {now.least:.2f} % owed"
        return _landed(state, there, len(sets), why) or _landed(state, here, len(sets), why)
    gain = _gain(stay, other, price_j)
    asked = moving_j(problem, running, other.configuration) / (problem.rate * PAYBACK_S)
    asked += MARGIN * objective.base_energy_j
    words = f"changing gains {gain:.3g} J a row at the price of accuracy and has to gain {asked:.3g}"
    first, second = (there, here) if gain > asked else (here, there)
    return _landed(state, first, len(sets), words) or _landed(state, second, len(sets), words)


def _standing(state: State, problem: Problem, objective: Objective, now: Course) -> Permitted:
    """Return what runs permits; nothing where nothing runs, or the devices do not know it any more."""
    running = configuration_of(state.running)
    if not running or any((group.variant, group.profile) not in problem.services for group in running):
        return ()
    awake = 0 if problem.spared_w is None else len({item.placement.device for item in state.running})
    return _with_mix(state, problem, objective, running, awake, now)


def _with_mix(
    state: State, problem: Problem, objective: Objective, configuration: Configuration, awake: int, now: Course
) -> Permitted:
    """Return what `configuration` permits, and the mix of its variants that lands where the moment should."""
    found = list(options(state, configuration, awake))
    if len({group.variant for group in configuration}) > 1:
        mix = evaluate(problem, held_to(objective, now.accuracy), configuration)
        if mix.feasible:
            found.append(charged(mix, problem, objective, awake))
    return on_hull(found)


def _landed(state: State, here: Permitted, weighed: int, why: str) -> Steered | None:
    """Return the moment among `here`, where what it goes to is verified first (`chain_verify`), and what that rejects
    is not permitted either; None where nothing is left."""
    problem, objective = problem_of(state), objective_of(state)
    while here:
        aim = course(state, [drawn_at(item) for item in here])
        best = landing(here, aim.accuracy, aim.least)
        if not best.routing.chain or verified(problem, objective, [best])[0].feasible:
            break
        others = [item for item in here if item is not best]
        at_once = unwaiting(problem, objective, best, point_of(problem, best))
        if at_once is not None:
            others.append(charged(at_once, problem, objective, best.awake) if best.awake else at_once)
        here = on_hull(others)
    else:
        return None
    aims = held_to(objective, 0.0)

    def scored(item: Candidate) -> Candidate:
        return msgspec.structs.replace(item, score=aims.score(item.prediction.accuracy, item.prediction.joules))

    return Steered(scored(best), tuple(scored(item) for item in here), weighed, why)


def _price_j(state: State, now: Course, cheapest: Candidate, known: Sequence[Candidate]) -> float:
    """Return the price in joules of this moment; where it is without limit, above every climb there is."""
    climbs = [
        (above.prediction.joules - below.prediction.joules)
        / max(above.prediction.accuracy - below.prediction.accuracy, 1e-9)
        for below, above in itertools.pairwise(known)
    ]
    most = _STEEP * max(climbs, default=cheapest.prediction.joules)
    grams_per_j = GRAMS_PER_J * max(state.intensity.g_per_kwh, 1e-9)
    return min(now.price / grams_per_j, most)


def _gain(stay: Candidate, other: Candidate, price_j: float) -> float:
    """Return joules a row that `other` is better by at the price, at the least favourable intensity within `NOISE`."""
    saved = stay.prediction.joules - other.prediction.joules
    lost = price_j * (stay.prediction.accuracy - other.prediction.accuracy)
    return min(part * saved - lost for part in (1.0 - NOISE, 1.0 + NOISE))


def _same(one: Candidate, two: Candidate) -> bool:
    return (one.configuration, one.awake) == (two.configuration, two.awake)
