"""What a moment may spend of an accuracy budget: the price of accuracy over what is left, and what that asks for now.

**The budget.**  Over a horizon of grid time rows may lose `accuracy_budget` points below the best variant on average,
so they have to reach T = best - budget (never less than the accuracy floor, which holds at every moment).  With R rows
served at a mean of S, and F rows to come, these have to reach A = T + (T - S) R / F: what was really served corrects
what was planned, hour by hour, and a horizon that ends where it should needs no forecast that was right.  A miss of
`_TOLERANCE` points (less of a small budget) is not corrected, or the last minutes of a horizon would be sent to an
extreme for it.

**The price.**  Intensity only scales the grams of a plan.  So the useful (accuracy, joules a row) of a family are found
once for a rate, SLO and floor (`ways`), and an hour at intensity I has these points at I x joules.  Over the parts
of the forecast the cheapest climbs that reach A, as in `planning.budget.horizon`, end at the price p: grams for a
percent of a row.

**This moment.**  An hour is content with a point where grams - p x accuracy is least.  On the paper's objective
f = L (C_base - C) / C_ref - (1 - L) (A_base - A) / A_base with C = E I and C_ref = E_base REF, one percent of accuracy
is worth (1 - L) / A_base and one gram L / C_ref, which makes a percent worth p = (1 - L) C_ref / (L A_base) grams:

    L = 1 / (1 + p A_base / C_ref)

The intensity is not in it, so that one lambda stands for a price over the whole horizon: the paper's objective of a
fixed L *is* a budget, for the L that nobody knows beforehand.  What L leaves open is the point where two are as good,
and a flat day is nothing else.  So parts whose break-even lies within `_BAND` of the price share what the price leaves
over, each in the same proportion, and the moment's share of it is an accuracy to land on (`Course.accuracy`), which the
plan then reaches at the least carbon by the shares of its variants.  A flat day gets the static mix, in every hour.

**Cascades.**  Where plans may have a chain, a way is a configuration *with* a chain and thresholds: the frontier is
that of all that the configurations found for it permit (`permitted`).  Such ways are points with nothing between them,
and what runs now need not be on the frontier: `course` says where to land among the points that *it* permits (`here`).

**Trust.**  Rows to come are a forecast too.  What a moment loses has to be made good by `_TRUST` of the rows that are
expected after it at their best; else it may lose less.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.planning.cascade.permitted import drawn_at, joint, permitted
from clover.planning.model.frontier import FrontierPoint, hull
from clover.planning.model.objective import Objective, objective_of, planned_floor
from clover.planning.model.problem import LEAST_RATE, Problem, accuracies, problem_of
from clover.planning.search.annealed import JOINT, every
from clover.planning.search.power_states import best_awake, charged
from clover.types import Candidate, Configuration, ObjectiveConfig, Reading, State

Floats = NDArray[np.float64]

GRAMS_PER_J = 1.0 / 3.6e6
"""At 1 g/kWh."""
_SOLVES = 7  # plans that a frontier is made of, at most
_RATE_STEP = math.log(1.03)  # rates that share a frontier: the highest of them has to be served
_FAR_STEP = math.log(1.25)  # the same for hours whose load is not like this one's
_DOWN = 8  # of these steps are tried below a rate that nothing can serve
_CHEAPEST, _BEST = 0.999, 0.001  # lambdas of the ends: all for carbon or accuracy, with the other to part equals
_STRAIGHT = 1e-3  # of the joules: a point that lies less below the line is none
_BAND = 0.02
_TOLERANCE, _TOLERATED = 0.005, 0.01  # points, and of the budget
_TRUST = 0.9


@dataclass(frozen=True)
class Course:
    """What an accuracy budget says of this moment.

    `accuracy` (percent) to reach now at the least carbon, at least the floor; `price` in grams for a percent of a row
    (0: accuracy is not wanted, inf: at any price), `lam` the lambda that has it; `asked`: what rows from now on have to
    reach for `target`; `served`: what they reached so far (NaN: none yet); `least`: what must be reached now, because
    the rows to come could not make it good.
    """

    accuracy: float
    price: float
    lam: float
    asked: float
    target: float
    served: float
    least: float = 0.0


@dataclass(frozen=True)
class Way:
    """A useful way to serve: percent and joules a row (idle ones too, where they differ), and the candidate that does
    it."""

    point: FrontierPoint
    candidate: Candidate

    @property
    def configuration(self) -> Configuration:
        """The workers that do it."""
        return self.candidate.configuration

    @property
    def shares(self) -> dict[str, float]:
        """The rows' shares of its variants."""
        return self.candidate.routing.shares

    @property
    def awake(self) -> int:
        """On how many devices it does (0: all)."""
        return self.candidate.awake


@dataclass(frozen=True)
class Left:
    """What is left of a horizon, the moment first: for each part its rows, the least and the highest accuracy it can be
    run at, and the climbs between them: the grams that a percent of a row costs there, and by how much it rises (no
    rise, at an infinite price, where a part has fewer climbs than others)."""

    rows: Floats
    bottom: Floats
    top: Floats
    slopes: Floats
    rises: Floats

    @classmethod
    def of(cls, rows: Sequence[float], grams_per_j: Sequence[float], shapes: Sequence[Sequence[FrontierPoint]]) -> Left:
        """Return parts with these rows whose frontiers are `shapes`, in joules, at these grams a joule."""
        columns = max(len(shape) for shape in shapes) - 1
        slopes, rises = np.full((len(shapes), columns), np.inf), np.zeros((len(shapes), columns))
        climbs: dict[int, tuple[list[float], list[float]]] = {}
        for at, shape in enumerate(shapes):
            if id(shape) not in climbs:
                pairs = list(itertools.pairwise(shape))
                rise = [above.accuracy - below.accuracy for below, above in pairs]
                slope = [(above.grams - below.grams) / up for (below, above), up in zip(pairs, rise, strict=True)]
                climbs[id(shape)] = (slope, rise)
            slope, rise = climbs[id(shape)]
            slopes[at, : len(slope)] = grams_per_j[at] * np.array(slope)
            rises[at, : len(rise)] = rise
        bottom = np.array([shape[0].accuracy for shape in shapes])
        return cls(np.array(rows), bottom, bottom + rises.sum(axis=1), slopes, rises)

    def price(self, asked: float) -> float:
        """Return the price at which `asked` percent are met over all parts, as `planning.budget.horizon.spend` has it:
        climbs are taken from the cheapest up, and the last one needed makes the price.  0 where none is needed,
        infinite where all are not enough."""
        missing = asked * self.rows.sum() - (self.rows * self.bottom).sum()
        if missing <= 1e-12 * self.rows.sum():
            return 0.0
        order = np.argsort(self.slopes, axis=None, kind="stable")
        reached = np.cumsum((self.rows[:, None] * self.rises).ravel()[order])
        at = int(np.searchsorted(reached, missing * (1.0 - 1e-12)))
        return float(self.slopes.ravel()[order[at]]) if at < len(order) else math.inf

    def at(self, price: float) -> Floats:
        """Return the accuracy at which each part is content at `price`: up as far as a percent costs no more."""
        found: Floats = self.bottom + np.where(self.slopes <= price, self.rises, 0.0).sum(axis=1)
        return found

    def landing(self, asked: float, price: float) -> float:
        """Return the accuracy of the moment, where all parts that break even near `price` share alike what is left
        over."""
        low, high = self.at(price / (1.0 + _BAND)), self.at(price * (1.0 + _BAND))
        room = float((self.rows * (high - low)).sum())
        part = (asked * self.rows.sum() - (self.rows * low).sum()) / room if room > 0.0 else 0.0
        return float(low[0] + min(1.0, max(0.0, part)) * (high[0] - low[0]))

    def owed(self, target: float, state: State) -> float:
        """Return the least accuracy now that the rows after it, `_TRUST` of them at their best, can make good."""
        later = float((self.rows * np.maximum(self.top - target, 0.0))[1:].sum())
        debt = target * state.served_rows - state.served_accuracy_rows
        tolerance = _tolerance(target, state) * (state.served_rows + float(self.rows.sum()))
        return target + (debt - tolerance - _TRUST * later) / float(self.rows[0])


def target_of(state: State) -> float:
    """Return the accuracy (percent) that the budget asks for on average: best - budget, or what plans are held to where
    that is more, or where there is no budget."""
    return targeted(state.objective, max(accuracies(state.profile).values(), default=0.0))


def targeted(objective: ObjectiveConfig, best: float) -> float:
    """Return the same of an objective, where the best variant has `best` percent."""
    floor, budget = planned_floor(objective, best), objective.accuracy_budget
    return floor if budget is None else max(floor, best - budget)


def held_to(objective: Objective, accuracy: float) -> Objective:
    """Return the least carbon at `accuracy` percent, or at the floor where that is more."""
    return replace(objective, form="floor", planned_floor=max(objective.planned_floor, accuracy))


def course(state: State, here: Sequence[FrontierPoint] = ()) -> Course:
    """Return what to reach now.  Without a forecast, and where no plan is feasible, the target itself.  `here` are the
    points (in joules, a hull) that this moment can be run at, where it cannot be everywhere on the frontier."""
    target = target_of(state)
    objective = objective_of(state)
    served = state.served_accuracy_rows / state.served_rows if state.served_rows > 0.0 else math.nan
    left = _left(state, here)
    if left is None:
        return Course(target, 0.0, objective.lam, target, target, served)
    asked = _asked(target, state, float(left.rows.sum()))
    price = left.price(asked)
    owed = left.owed(target, state)
    now = min(max(left.landing(asked, price), owed), float(left.top[0]))
    c_ref = objective.base_energy_j * GRAMS_PER_J * state.objective.reference_g_per_kwh
    return Course(
        accuracy=max(now, objective.planned_floor),
        price=price,
        lam=1.0 / (1.0 + price * objective.base_accuracy / c_ref),
        asked=asked,
        target=target,
        served=served,
        least=max(owed, objective.planned_floor),
    )


def ways(state: State, rate: float, *, coarse: bool = False) -> tuple[Way, ...]:
    """Return the useful ways to serve `rate` rows a second or a little more, from the most frugal to the most accurate.
    Empty where nothing keeps floor, SLO and utilisation limit."""
    return _ways(question(state, _above(rate, _FAR_STEP if coarse else _RATE_STEP)))


def options(state: State, configuration: Configuration, awake: int = 0) -> tuple[Candidate, ...]:
    """Return what `configuration` on so many devices permits at the rate of now or a little more (`permitted`)."""
    return _options(question(state, _above(state.arrival_rate, _RATE_STEP)), configuration, awake)


@lru_cache(maxsize=256)
def _options(asked: bytes, configuration: Configuration, awake: int) -> tuple[Candidate, ...]:
    state = msgspec.json.decode(asked, type=State)
    problem, objective = problem_of(state), objective_of(state)
    found = permitted(problem, objective, configuration)
    return tuple(charged(item, problem, objective, awake) for item in found)


def _above(rate: float, size: float) -> float:
    """Return the least rate of a grid of steps of `size` (of its logarithm) that is no less than `rate`."""
    return math.exp(math.ceil(math.log(max(rate, LEAST_RATE)) / size - 1e-9) * size)


def question(state: State, rate: float, *, running: bool = False) -> bytes:
    """Return all of `state` that a plan of the least energy depends on, at the reference intensity: the key of what is
    remembered from one state to the next.  `running`: what runs counts too."""
    asked = msgspec.structs.replace(
        state,
        grid_s=0.0,
        intensity=Reading(g_per_kwh=state.objective.reference_g_per_kwh, at_s=0.0, provider="reference"),
        arrival_rate=rate,
        p95_ms=None,
        queue_rows=0,
        running=state.running if running else (),
        routing=None,
        ahead=(),
        forecast="",
        served_rows=0.0,
        served_accuracy_rows=0.0,
    )
    return msgspec.json.encode(asked)


@lru_cache(maxsize=64)
def _ways(asked: bytes) -> tuple[Way, ...]:
    """Both ends, then where two neighbours leave most room between them what is best at the price that makes these
    equal: until nothing lies below a line, or `_SOLVES` plans are made."""
    state = msgspec.json.decode(asked, type=State)
    problem, objective = problem_of(state), objective_of(state)
    found: dict[FrontierPoint, Candidate] = {}

    def solved(lam: float) -> FrontierPoint | None:
        best = best_awake(problem, replace(objective, form="paper", lam=lam), seed=state.seed).best
        if not best.feasible:
            return None
        point = FrontierPoint(accuracy=best.prediction.accuracy, grams=best.prediction.joules)
        found.setdefault(point, best)
        return point

    if solved(_CHEAPEST) is None or solved(_BEST) is None:
        return tuple(Way(point, candidate) for point, candidate in found.items())
    ends = hull(tuple(found))
    order = itertools.count()
    gaps = [(0.0, next(order), ends[0], ends[-1])] if len(ends) > 1 else []
    for _ in range(_SOLVES - 2):
        if not gaps:
            break
        _, _, low, high = heapq.heappop(gaps)
        slope = (high.grams - low.grams) / (high.accuracy - low.accuracy)
        point = solved(1.0 / (1.0 + slope * objective.base_accuracy / objective.base_energy_j))
        if point is None or not low.accuracy < point.accuracy < high.accuracy:
            continue
        if point.grams < (1.0 - _STRAIGHT) * (low.grams + slope * (point.accuracy - low.accuracy)):
            for left, right in ((low, point), (point, high)):
                if right.grams <= left.grams:
                    continue  # a search that is not exact may find a point that is better than the frugal end
                room = (right.accuracy - left.accuracy) * (right.grams - left.grams)
                heapq.heappush(gaps, (-room, next(order), left, right))
    if problem.points:
        for item in _chained(problem, objective, tuple(found.values())):
            found.setdefault(drawn_at(item), item)
    return tuple(Way(point, found[point]) for point in hull(tuple(found)))


def _chained(problem: Problem, objective: Objective, found: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield what all configurations of a small machine permit; of a larger one, those that were found."""
    space = every(problem, JOINT) if problem.spared_w is None else None
    if space:
        yield from joint(problem, objective, space)
        return
    for configuration, awake in dict.fromkeys((item.configuration, item.awake) for item in found):
        for item in permitted(problem, objective, configuration):
            yield charged(item, problem, objective, awake)


def _left(state: State, here: Sequence[FrontierPoint] = ()) -> Left | None:
    """Return what is left of the horizon, this moment at the points `here` where there are any; None without a
    forecast, or where nothing can be served now."""
    known: dict[tuple[bool, float], tuple[FrontierPoint, ...]] = {}
    later = msgspec.structs.replace(state, demand=())  # who asks for an accuracy now does not do so all day
    rows, steps, shapes = [], [], []
    for at, part in enumerate(state.ahead):
        if part.rows <= 0.0 and at > 0:
            continue
        rate = part.rate if at > 0 else state.arrival_rate  # this moment is planned for what may come, too
        key = (at == 0, rate)
        if key not in known:
            known[key] = _reachable(state if at == 0 else later, rate)
        shape = tuple(here) if here and at == 0 else known[key]
        if not shape and at == 0:
            return None
        if shape:
            rows.append(max(part.rows, 1e-9))
            steps.append(GRAMS_PER_J * (state.intensity.g_per_kwh if at == 0 else part.g_per_kwh))
            shapes.append(shape)
    return Left.of(rows, steps, shapes) if rows else None


def _reachable(state: State, rate: float) -> tuple[FrontierPoint, ...]:
    """Return the frontier at a rate: that of now where it is like now's, else its own, or that of the highest rate
    below that can be served."""
    alike = abs(math.log(max(rate, LEAST_RATE) / max(state.arrival_rate, LEAST_RATE))) < 0.5 * _FAR_STEP
    found = ways(state, state.arrival_rate) if alike else ()
    for down in range(_DOWN):
        found = found or ways(state, rate * math.exp(-down * _FAR_STEP), coarse=True)
    return tuple(way.point for way in found)


def _asked(target: float, state: State, rows: float) -> float:
    """Return what `rows` rows to come have to reach, with the tolerance used towards the target."""
    total = state.served_rows + rows
    exact = (target * total - state.served_accuracy_rows) / rows
    slack = _tolerance(target, state) * total / rows
    return min(max(target, exact - slack), exact + slack)


def _tolerance(target: float, state: State) -> float:
    """Return points by which a horizon may miss `target`."""
    best = max(accuracies(state.profile).values(), default=target)
    return min(_TOLERANCE, _TOLERATED * max(0.0, best - target))
