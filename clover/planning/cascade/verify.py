"""Verify a cascade, or a mix on shared workers, before it is applied: a longer simulation of what its plan predicts.

The p95 by which cascades are compared comes from one short play (`chains.played_ms`).  Mostly it is within 2 % of what
many such plays say, but not always: under a high load rows that are late come in clusters, of which a short play sees
few, and if hardly a row falls between two stages p95 jumps from one to the other with a tenth of a point.  A single
play does not show when.  So a cascade that may be taken is played by `REPLICATIONS` independent plays, at its exact
rate, and judged as `verify` judges a mix: by the mean over them and Student's interval, and with more of them while
that leaves the verdict open.

 - `holds`: no more than 5 % of the rows are later than the SLO; doubt does not reject (see `intervals.keeps`).
 - `agrees`: the p95 of the plan is within `APART` of the one played, the whole interval of it.  Otherwise the search
   compared wrong figures; what stays undecided at `MOST_ROWS` is rejected too.

What the plays share with the plan: single rows that arrive as a Poisson stream, rows that are passed on by chance and
independently of each other, and the service times of the profile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec
import numpy as np

from clover.planning.cascade.chains import Floats, Stages, play_once, unwaiting, wait_of, workers_of
from clover.planning.model.demand import direct, reach_of
from clover.planning.model.intervals import half_width, keeps, within
from clover.planning.model.objective import HYSTERESIS, Objective
from clover.planning.model.problem import Problem
from clover.planning.model.sharing import pool_of
from clover.types import Candidate, ChainPoint

APART = 0.08
"""Of the p95 played: how far the plan's may lie from it."""
REPLICATIONS = 10
"""At first; doubled while the verdict is open."""
ROWS = 20_000
MOST_ROWS = 800_000
_WARM_UP = 2_000
_QUANTILE = 0.95
_SEED = 4_020_230_911
"""Far from those of the plays that plans are made by."""


@dataclass(frozen=True)
class CascadeVerdict:
    """One cascade as played: its p95 and the half-width of that (milliseconds), the part of the rows later than the
    SLO.  `why` says what is wrong with one that is not accepted."""

    p95_ms: float
    half_width_ms: float
    late: float
    replications: int
    holds: bool
    agrees: bool
    why: str

    @property
    def accepted(self) -> bool:
        """Whether it may be acted on."""
        return self.holds and self.agrees


@lru_cache(maxsize=1024)
def verify(
    stages: Stages,
    rate: float,
    reach: tuple[float, ...],
    wait_ms: float = 0.0,
    *,
    p95_ms: float,
    slo_ms: float,
    most_rows: int = MOST_ROWS,
) -> CascadeVerdict:
    """Play the cascade, whose rows wait `wait_ms` at the first stage, with at most `most_rows` rows; judge the `p95_ms`
    that its plan predicts, and whether it keeps its SLO.  Every stage must be stable."""
    plays: list[tuple[Floats, Floats]] = []
    wanted = REPLICATIONS
    while True:
        for number in range(len(plays), wanted):
            seed = _SEED + max(len(reach), 1) * number  # a play takes a seed a stage
            plays.append(play_once(stages, rate, reach, wait_ms, rows=ROWS, warm_up=_WARM_UP, seed=seed))
        played_ms, half_width_ms = _p95(plays)
        above = [_late(play, slo_ms) for play in plays]
        late, doubt = float(np.mean(above)), float(half_width(above))
        holds = keeps(1.0 - _QUANTILE, late, doubt)
        agrees = within(APART, p95_ms / played_ms - 1.0, half_width_ms * p95_ms / played_ms**2)
        if None not in (holds, agrees) or 2 * wanted * ROWS > most_rows:
            break
        wanted *= 2
    faults = []
    if not holds:
        undecided = "" if holds is False else ", too close to the allowed share to decide"
        faults.append(f"{late:.2%} (+-{doubt:.2%}) of its rows are later than the SLO of {slo_ms:.4g} ms{undecided}")
    if not agrees:
        undecided = "" if agrees is False else ", too close to decide"
        faults.append(
            f"its p95 of {p95_ms:.4g} ms is {p95_ms / played_ms - 1.0:+.1%} beside {played_ms:.4g} ms "
            f"(+-{half_width_ms:.2g}) played; {APART:.0%} is allowed{undecided}"
        )
    return CascadeVerdict(played_ms, half_width_ms, late, wanted, holds is True, agrees is True, "; ".join(faults))


def verified(problem: Problem, objective: Objective, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return `candidates` (cascades, and mixes on shared workers, the best first), those that verification rejects
    marked infeasible with the reason.

    As many are verified as may be chosen: from the best down to the first that is accepted, and those within the margin
    of it.  One whose wait is rejected is tried without it.
    """
    least = -math.inf
    found = []
    left = list(candidates)
    while left:
        candidate = left.pop(0)
        if candidate.feasible and candidate.score >= least:
            why = _judged(problem, objective, candidate).why
            if why:
                chained = len(candidate.routing.chain) > 1
                other = unwaiting(problem, objective, candidate, point_of(problem, candidate)) if chained else None
                candidate = msgspec.structs.replace(candidate, feasible=False, why=f"rejected by verification: {why}")
                if other is not None:
                    left.insert(sum(item.score > other.score for item in left), other)
            elif math.isinf(least):
                least = candidate.score - HYSTERESIS * objective.scale
        found.append(candidate)
    return found


def _judged(problem: Problem, objective: Objective, candidate: Candidate) -> CascadeVerdict:
    prediction, shares = candidate.prediction, candidate.routing.shares
    if not candidate.routing.chain:
        dealt = tuple(variant for variant, share in shares.items() if share > 0.0)
        pool = pool_of(problem.services, candidate.configuration, dealt)
        pool = replace(pool, shares=tuple(shares[variant] for variant in dealt))
        return verify(pool, problem.rate, (), p95_ms=prediction.p95_ms, slo_ms=objective.slo_ms)
    point = point_of(problem, candidate)
    stages = workers_of(problem, candidate.configuration, point)
    wait_ms = wait_of(point.chain, candidate.routing)
    asked = direct(problem, candidate.configuration, objective.max_utilisation, point.chain)
    reach = reach_of(problem, point, asked)
    return verify(stages, problem.rate, reach, wait_ms, p95_ms=prediction.p95_ms, slo_ms=objective.slo_ms)


def point_of(problem: Problem, candidate: Candidate) -> ChainPoint:
    """Return the point of the profile that a cascade follows."""
    key = candidate.routing.chain, candidate.routing.thresholds, candidate.prediction.accuracy
    return next(own for own in problem.points if (own.chain, own.thresholds, own.accuracy) == key)


def _p95(plays: Sequence[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Return the latency that 95 % of the rows of all plays do not exceed, and the half-width of its interval: the
    longer side of it."""
    values = np.concatenate([values for values, _ in plays])
    weights = np.concatenate([np.diff(cumulated, prepend=0.0) for _, cumulated in plays])
    order = np.argsort(values, kind="stable")
    values, cumulated = values[order], np.cumsum(weights[order])

    def at(share: float) -> float:
        index = int(np.searchsorted(cumulated, share * cumulated[-1]))
        return float(values[min(index, len(values) - 1)])

    middle = at(_QUANTILE)
    doubt = float(half_width([_late(play, middle) for play in plays]))
    return middle, max(middle - at(_QUANTILE - doubt), at(min(_QUANTILE + doubt, 1.0)) - middle)


def _late(play: tuple[Floats, Floats], limit_ms: float) -> float:
    values, cumulated = play
    index = int(np.searchsorted(values, limit_ms, side="right"))
    return 1.0 - float(cumulated[index - 1]) if index else 1.0
