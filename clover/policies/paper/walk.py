"""The paper's two searches: simulated annealing over the configuration graph, and random search over the raw space.

Both score one configuration after the other, beginning with the one that runs (if nothing runs, BASE).  They stop once
they know a configuration that holds the latency target and

 - `NO_BETTER` in a row were no better than the best, or
 - `NEW` new ones were scored, or
 - no new neighbour is found.

While nothing has held they continue, here up to `GIVE_UP` configurations (the artifact has no such end).  The artifact
remembers scores from hour to hour; a policy here sees one state and no other.

**Annealing.**  The centre moves to the configuration just scored with probability exp((new - centre) / (K T)), always
if it is better.  T falls from 100 by 5 each time, down to 10.  Scores that break the latency target are changed first,
and there the two versions part:

 - `punish`: a broken target always lowers the score, the more the later p95 is;
 - `punish_as_artifact`: the score times SLO / p95.  **That is a fault.**  If the score is negative, and it mostly is if
   accuracy weighs more than carbon, the product is *closer to zero*.  So the worse a configuration breaks the target,
   the better it looks, and an overloaded one looks best of all.  This misleads the centre only: the best is chosen
   among configurations that hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from clover._native.random import Random
from clover.planning.packing.evaluation import UNBOUNDED_MS
from clover.policies.paper.fifo import ClosedForms, Counts, Fifo, stack
from clover.policies.paper.fleet import TRIES, At, PaperFleet, draw_neighbour, neighbour
from clover.types import Candidate

NO_BETTER = 5
NEW = 10
GIVE_UP = 25
HOT, COLD, COOLING = 100.0, 10.0, 5.0
K = 1e-4
_VERIFIED = 3

Penalty = Callable[[float, float, float], float]
"""From score, p95 and SLO (both milliseconds) to the score that moves the centre."""


def punish(score: float, p95_ms: float, slo_ms: float) -> float:
    """Return the score, lower the more p95 exceeds the SLO."""
    if p95_ms <= slo_ms:
        return score
    return score * slo_ms / p95_ms if score > 0.0 else score * p95_ms / slo_ms


def punish_as_artifact(score: float, p95_ms: float, slo_ms: float) -> float:
    """Return the artifact's: **rewards** a broken SLO if the score is negative."""
    return score if p95_ms <= slo_ms else score * slo_ms / p95_ms


@dataclass(frozen=True)
class Trial:
    """A configuration that was scored by a short play."""

    counts: Counts
    forms: ClosedForms
    candidate: Candidate

    @property
    def rank(self) -> tuple[float, ...]:
        """The best first: what holds by score, the rest by p95 and load."""
        expected = self.candidate.prediction
        if self.candidate.feasible:
            return (0.0, -self.candidate.score)
        load = expected.utilisation if expected.p95_ms >= UNBOUNDED_MS else 0.0
        return (1.0, expected.p95_ms, load, -self.candidate.score)


class Walk:
    """Looks, counted for the stop rules.  `known`: the first is what runs, so that it is not new."""

    def __init__(self, fifo: Fifo, *, known: bool) -> None:
        self._fifo = fifo
        self._new = -1 if known else 0
        self._without = 0
        self._best: float | None = None
        self._looks: dict[bytes, Trial] = {}
        self.times = 0

    def __contains__(self, counts: Counts) -> bool:
        return counts.tobytes() in self._looks

    def evaluate(self, counts: Counts) -> Trial:
        """Score a configuration."""
        key = counts.tobytes()
        if key not in self._looks:
            self._looks[key] = evaluate(self._fifo, counts)
        found = self._looks[key]
        self.times += 1
        self._new += 1
        score = found.candidate.score
        if found.candidate.feasible and (self._best is None or score > self._best):
            self._best, self._without = score, 0
        else:
            self._without += 1
        return found

    def should_stop(self, *, exhausted: bool = False) -> bool:
        """Return whether a stop rule says so."""
        if self._best is None:
            return self.times >= GIVE_UP
        return exhausted or self._without >= NO_BETTER or self._new >= NEW

    def rank(self) -> list[Candidate]:
        """Return the best of all that were scored, as the planner's own play expects it, and the others as they were
        scored.  If the longer play takes back that the best holds the next best is taken, and so on for a few."""
        ranked = sorted(self._looks.values(), key=lambda item: item.rank)
        best: Candidate | None = None
        for item in ranked[:_VERIFIED]:
            if best is not None and not item.candidate.feasible:
                break
            longer = self._fifo.candidate(item.counts, item.forms, 0)
            best = longer if best is None or longer.feasible else best
            if longer.feasible:
                break
        assert best is not None  # every walk scores its start
        return [best, *(item.candidate for item in ranked if item.candidate.configuration != best.configuration)]


def evaluate(fifo: Fifo, counts: Counts) -> Trial:
    """Try one configuration by a short play."""
    forms = fifo.closed_forms(stack([counts]))
    p95_ms = fifo.glance_p95_ms(counts, forms.shares[0])
    return Trial(counts, forms, fifo.candidate(counts, forms, 0, p95_ms))


def moves(centre: float, new: float, temperature: float, rng: Random) -> bool:
    """Return whether the centre moves to a new score."""
    return new >= centre or rng.uniform() <= math.exp((new - centre) / (K * temperature))


def anneal(
    fifo: Fifo, fleet: PaperFleet, start: At, rng: Random, penalty: Penalty, *, drawn: bool, known: bool
) -> Walk:
    """Return the walk of simulated annealing from `start`.  `drawn`: neighbours come up as the artifact draws them."""
    walk = Walk(fifo, known=known)
    seen: set[At] = set()
    at = centre = start
    standing, temperature = -math.inf, HOT
    while True:
        seen.add(at)
        candidate = walk.evaluate(fleet.counts(at)).candidate
        worth = penalty(candidate.score, candidate.prediction.p95_ms, fifo.objective.slo_ms)
        if moves(standing, worth, temperature, rng):
            centre, standing = at, worth
        temperature = max(COLD, temperature - COOLING)
        following, met = draw_neighbour(fleet, centre, seen, rng) if drawn else _next(fleet, centre, walk, rng)
        if walk.should_stop(exhausted=not met) or following is None:
            return walk
        at = following


def _next(fleet: PaperFleet, centre: At, walk: Walk, rng: Random) -> tuple[At | None, bool]:
    for _ in range(TRIES):
        following = neighbour(fleet, centre, rng)
        if fleet.counts(following) not in walk:
            return following, True
    return None, False


def wander(fifo: Fifo, fleet: PaperFleet, start: At, rng: Random, *, known: bool) -> Walk:
    """Search the raw space at random: every device draws a layout and then a variant for each of its
    slices."""
    walk = Walk(fifo, known=known)
    seen: set[tuple[object, ...]] = set()
    counts = fleet.counts(start)
    while True:
        walk.evaluate(counts)
        for _ in range(TRIES):
            code, counts = fleet.draw_raw(rng)
            if code not in seen:
                break
        else:
            return walk
        seen.add(code)
        if walk.should_stop():
            return walk
