"""Plans whose workers share their time: all workers of a layout hold the same variants, and serve a mix or a cascade.

On a machine with one placement (a plain GPU, one core) this is the only way to serve several variants at once.  On
other machines it competes with workers of one variant each: a rarely asked stage needs no worker of its own, but rows
wait for batches of another variant.

Each multiset of profiles is weighed (of many devices: those with all devices of a kind cut alike), with each two
variants as a mix and with each useful point of the profile as a cascade, if a worker on every profile may hold the
variants together.  They are taken best first, in three steps with ever lower scores: at the least joules there are, at
the batches expected, and played.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from clover.planning.cascade.evaluation import evaluate as evaluate_chain
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem, is_shared, measured
from clover.planning.model.shares import best_mix
from clover.planning.packing.candidates import shared_configuration, shared_layouts
from clover.planning.packing.evaluation import evaluate, settled_mix
from clover.planning.search.chains import promising
from clover.types import Candidate, ChainPoint, Configuration

SETTLED = 400
"""Candidates whose batches are worked out, at most."""
PLAYED = 16
"""Candidates that are played, at most."""
SPARE = 2
"""Candidates that are given, at most."""


@dataclass(frozen=True)
class _Hope:
    """A candidate and what it can score at best; `point` None: a mix.  `settled`: at the batches expected."""

    configuration: Configuration
    point: ChainPoint | None
    settled: bool = False


def best_shared(
    problem: Problem, objective: Objective, *, beat: float = -math.inf, running: Configuration | None = None
) -> list[Candidate]:
    """Return the best few candidates on workers that share their time, the best first, that are worth more than
    `beat`; and the best mix on what runs if that is shared, feasible or not."""
    candidates: list[Candidate] = []
    if running is not None and is_shared(running) and measured(problem, running):
        candidates.append(evaluate(problem, objective, running))
    order = itertools.count()
    heap = [(-hope, next(order), own) for hope, own in _hopes(problem, objective, beat)]
    heapq.heapify(heap)
    best, settled, played, good = beat, 0, 0, 0
    while heap and settled < SETTLED and played < PLAYED and good < SPARE:
        hope, _, own = heapq.heappop(heap)
        if -hope <= beat:
            break
        if not own.settled:
            settled += 1
            score = _settled(problem, objective, own)
            if score > beat:
                heapq.heappush(heap, (-min(score, -hope), next(order), _Hope(own.configuration, own.point, True)))
            continue
        played += 1
        if own.point is None:
            candidate = evaluate(problem, objective, own.configuration, beat=best)
        else:
            candidate = evaluate_chain(problem, objective, own.configuration, own.point)
        if candidate.feasible:
            candidates.append(candidate)
            good += 1
            best = max(best, candidate.score)
    return sorted(candidates, key=lambda candidate: (not candidate.feasible, -candidate.score))


def _hopes(problem: Problem, objective: Objective, beat: float) -> Iterator[tuple[float, _Hope]]:
    """Yield what may be worth more than `beat`, with that at best."""
    ranked = promising(problem, objective, problem.points)
    least_j = {variant: min(problem.energies(variant), default=math.inf) for variant in problem.variants}
    pairs = []
    for pair in itertools.combinations(problem.variants, 2):
        accuracy = [problem.accuracy[variant] for variant in pair]
        gains = [objective.score(own, least_j[variant]) for own, variant in zip(accuracy, pair, strict=True)]
        mix = best_mix(gains, accuracy, [1.0, 1.0], objective.planned_floor)
        if mix is not None:
            pairs.append((sum(share * gain for share, gain in zip(mix, gains, strict=True)), pair))
    for profiles in shared_layouts(problem):
        made: dict[tuple[str, ...], Configuration | None] = {}
        for hope, names, point in (
            *((hope, pair, None) for hope, pair in pairs),
            *((hope, tuple(sorted(point.chain)), point) for hope, point in ranked),
        ):
            if hope <= beat:
                continue
            if names not in made:
                made[names] = shared_configuration(problem, profiles, names)
            configuration = made[names]
            if configuration is not None:
                yield hope, _Hope(configuration, point)


def _settled(problem: Problem, objective: Objective, own: _Hope) -> float:
    """Return what a candidate scores at the batches expected, p95 left out; minus infinity if it breaks a limit."""
    if own.point is None:
        mix = settled_mix(problem, objective, own.configuration)
        return -math.inf if mix.why else mix.score
    candidate = evaluate_chain(problem, objective, own.configuration, own.point, play=False)
    return candidate.score if candidate.feasible else -math.inf
