"""Which chain with which thresholds on which configuration: the search for cascades.

The stages of a point are *members* of a `Formulation`, each a family of one variant at its own rate, on devices that
they share: the kernel that packs several families also packs a chain.  Each stage has to keep what the others at their
quickest leave of the SLO.  The chain as a whole is then played (`planning.cascade.evaluation`).  If it misses the SLO,
each stage gets a part of the SLO, in proportion to the time a row takes in it.  Points are tried in the order of what
they could be worth at best, until none that is left could be worth more than what was found.  On a machine of few
configurations all are tried instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from clover._native import lanes
from clover.errors import PlanError
from clover.planning.cascade.evaluation import evaluate
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem, direct, is_shared, measured, variants_of
from clover.planning.packing.candidates import exchange
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.types import Candidate, ChainPoint, Configuration

POINTS = 12
"""Points for which a configuration is found, at most."""
TRIED = 36
"""Points for which one is searched for, at most."""
FAILED = 2
"""Points of a chain for which none is found until the chain is given up: one that is too slow is mostly so at every
threshold."""
SPARE = 3
EVALUATIONS = 5_000
KEEP = 6
_HELD = (0.0, 1.0, 0.7, 0.5)  # parts of the SLO that the stages share, one after the other; 0: what others leave


def best_chains(
    problem: Problem,
    objective: Objective,
    points: Sequence[ChainPoint],
    *,
    running: Configuration | None = None,
    beat: float = -math.inf,
    seed: int = 0,
    space: Sequence[Configuration] = (),
) -> list[Candidate]:
    """Return feasible candidates, the best first: what runs under every point it can serve, and the configurations
    found for the most promising points.  Nothing that cannot be worth more than `beat` is searched for.  Of a `space`
    that is all there is, the best is found for certain."""
    ranked = promising(problem, objective, points)
    candidates: list[Candidate] = []
    if running is not None and measured(problem, running):
        candidates = on_configuration(replace(problem, points=tuple(points)), objective, running)
    good = [candidate for candidate in candidates if candidate.feasible]
    if space:
        good += _best_of(problem, objective, [point for _, point in ranked], space, beat)
        return sorted(good, key=lambda candidate: -candidate.score)
    failed = Counter[tuple[str, ...]]()
    tried = number = 0
    for hope, point in ranked:
        best = max([beat, *(candidate.score for candidate in good)])
        if hope <= best or number >= POINTS or tried >= TRIED:
            break
        if failed[point.chain] >= FAILED:
            continue
        tried += 1
        candidate = next(_configurations(problem, objective, point, seed), None)
        if candidate is not None:
            good.append(candidate)
            number += 1
        else:
            failed[point.chain] += 1
    return sorted(good, key=lambda candidate: -candidate.score)


def promising(problem: Problem, objective: Objective, points: Sequence[ChainPoint]) -> list[tuple[float, ChainPoint]]:
    """Return points of several stages that reach the floor and can run here, with what each could be worth at best,
    best first."""
    least = {variant: min(problem.energies(variant), default=math.inf) for variant in problem.variants}
    room = sum(max(map(len, device.layouts), default=0) for device in problem.devices)  # every stage needs a worker
    room = max(room, problem.resident)  # or its place in one
    found = []
    for point in points:
        if not 2 <= len(point.chain) <= room or point.accuracy < objective.cascade_floor:
            continue
        joules = sum(
            part * least.get(variant, math.inf) for variant, part in zip(point.chain, point.reach, strict=True)
        )
        if math.isfinite(joules):
            found.append((objective.score(point.accuracy, joules), point))
    return sorted(found, key=lambda item: (-item[0], item[1].chain, item[1].thresholds))


def on_configuration(problem: Problem, objective: Objective, configuration: Configuration) -> list[Candidate]:
    """Return what every promising point does on a configuration of the variants of its chain."""
    return [
        evaluate(problem, objective, configuration, point)
        for _, point in promising(problem, objective, problem.points)
        if _suits(problem, objective, configuration, point)
    ]


def _suits(problem: Problem, objective: Objective, configuration: Configuration, point: ChainPoint) -> bool:
    """Return whether `configuration` has the variants of the chain and none without rows but those that rows ask for,
    and those of workers that have others."""
    variants = variants_of(configuration)
    if not variants.issuperset(point.chain):
        return False
    spare = variants.difference(point.chain)
    if not spare or is_shared(configuration):
        return True
    return spare <= direct(problem, configuration, objective.max_utilisation, point.chain).rates.keys()


def _best_of(
    problem: Problem,
    objective: Objective,
    points: Sequence[ChainPoint],
    space: Sequence[Configuration],
    beat: float,
) -> list[Candidate]:
    """Return the best few of all configurations under all points that are worth more than `beat`.  What each can score
    at best is known without playing, and it does score that if no row waits: so they are played from the best down,
    until none that is left could be one of the few.  Several, because of near ones the one that runs is taken."""
    weighed = []
    for configuration in space:
        for point in points:
            if _suits(problem, objective, configuration, point):
                seen = evaluate(problem, objective, configuration, point, play=False)
                if seen.feasible and seen.score > beat:
                    weighed.append((seen.score, configuration, point))
    weighed.sort(key=lambda item: -item[0])
    good: list[Candidate] = []
    for hope, configuration, point in weighed:
        if sum(candidate.score >= hope - 1e-12 for candidate in good) >= SPARE:
            break
        candidate = evaluate(problem, objective, configuration, point)
        if candidate.feasible:
            good.append(candidate)
    return sorted(good, key=lambda candidate: -candidate.score)[:SPARE]


def _configurations(problem: Problem, objective: Objective, point: ChainPoint, seed: int) -> Iterator[Candidate]:
    """Yield feasible configurations for `point`, the most frugal first of those that were found in a turn."""
    for turn, part in enumerate(_HELD):
        try:
            form = Formulation(_members(problem, objective, point, part), problem.devices)
        except PlanError:
            return
        loaded = form.loaded()
        starts = [*form.alike(), *loaded]
        if not starts:
            return
        solution = lanes.solve(form.kernel(), seed + turn, EVALUATIONS, starts, 1, KEEP)
        good = []
        for counts in (*(item.counts for item in solution.found), *(counts for counts, _ in loaded)):
            groups = [group for at in range(len(point.chain)) for group in form.configuration(counts, at)]
            met = tuple(sorted(groups, key=lambda group: (group.variant, group.profile)))
            for configuration in exchange(problem, met, objective.max_utilisation):
                candidate = evaluate(problem, objective, configuration, point)
                if candidate.feasible:
                    good.append(candidate)
        if good:
            yield from sorted(good, key=lambda candidate: -candidate.score)
            return


def _members(problem: Problem, objective: Objective, point: ChainPoint, part: float) -> list[PackingMember]:
    """Return the stages as families of their own, each held to its part of `part` of the SLO; for 0, to what the
    other stages leave of it."""
    own = [{key: service for key, service in problem.services.items() if key[0] == variant} for variant in point.chain]
    spent_ms = [min((service.mean_ms[0] for service in services.values()), default=0.0) for services in own]
    total_ms = max(sum(spent_ms), 1e-9)
    front_ms = next(iter(problem.services.values())).front_ms
    return [
        PackingMember(
            replace(
                problem,
                variants=(variant,),
                accuracy={variant: problem.accuracy[variant]},
                services=services,
                rate=max(problem.rate * reach, 1e-6),
            ),
            replace(
                objective,
                form="floor",
                accuracy_floor=0.0,
                planned_floor=0.0,
                chain_floor=None,
                slo_ms=max(
                    front_ms + part * (objective.slo_ms - front_ms) * (spent / total_ms)
                    if part
                    else objective.slo_ms - total_ms + spent,
                    1e-6,
                ),
            ),
        )
        for variant, services, reach, spent in zip(point.chain, own, point.reach, spent_ms, strict=True)
    ]
