"""How many devices to keep awake, where those without workers draw less.

Idle power sets the ceiling of what a plan can save while every device is awake, so that at a low load the dearest
question is how many are.  With n devices awake the rest is the problem of n devices, whose idle power is the same for
all plans; so n is chosen around the search, and the search knows nothing of it.  The bound of each n (`dual`), its idle
power taken off, says what to hope for: the most promising number is searched first, and numbers that promise less than
what was found are not searched at all.

Devices that have most of what runs stay awake first.  Where devices are of several kinds the others follow in their
order, so that not every set of n devices is weighed.  Head-room is that of every plan: the utilisation limit holds on
the devices awake, and what comes beyond it finds nobody else until the next plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from clover.errors import PlanError
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.packing.exhaustive import Found, chosen
from clover.planning.packing.formulation import Formulation, Member, Sleep
from clover.planning.packing.plan_bound import bound
from clover.planning.search.annealed import best_found
from clover.types import Assignment, Candidate, Configuration, DeviceShape, configuration_of


def best_awake(
    problem: Problem,
    objective: Objective,
    running: Sequence[Assignment] = (),
    *,
    kept: Callable[[Configuration], int] | None = None,
    seed: int = 0,
) -> Found:
    """Return the best candidate and how many devices it takes: `annealed.best_found` where all have to be awake.

    Of candidates within the margin what runs stays; `kept` is asked only where all are awake.
    """
    if problem.spared_w is None:
        return best_found(problem, objective, running, kept=kept, seed=seed)
    devices = in_use(problem.devices, running)
    here = {item.placement.device for item in running}
    hopes: list[tuple[float, int]] = []
    for number in range(1, len(devices) + 1):
        part = replace(problem, devices=devices[:number])
        try:
            hope = bound(Formulation([Member(part, objective)], part.devices, slow=True), waits=problem.objective.waits)
        except PlanError:
            continue
        hopes.append((-hope + objective.score(0.0, 0.0) - objective.score(0.0, idle_j(problem, number)), number))
    if not hopes:
        raise PlanError("no variant was measured on every slice of any way to cut the devices: profile it for them")
    found: list[Found] = []
    for least, number in sorted(hopes):
        good = [each.best.score for each in found if each.best.feasible]
        if good and -least <= max(good):
            break
        names = {device.device for device in devices[:number]}
        part = replace(problem, devices=devices[:number])
        one = best_found(part, objective, running if here == names else (), seed=seed)
        ranked = tuple(charged(item, problem, objective, number) for item in one.candidates)
        found.append(replace(one, best=charged(one.best, problem, objective, number), candidates=ranked))
    weighed = {(item.configuration, item.awake): item for each in found for item in (*each.candidates, each.best)}
    best, ranked = chosen(weighed.values(), objective, running=configuration_of(tuple(running)) if running else None)
    return Found(
        best,
        ranked[:10],
        sum(each.evaluated for each in found),
        sum(each.total for each in found),
        all(each.complete for each in found),
    )


def idle_j(problem: Problem, awake: int) -> float:
    """Return joules of a row that so many devices draw for being awake."""
    return awake * (problem.spared_w or 0.0) / problem.rate


def charged(candidate: Candidate, problem: Problem, objective: Objective, awake: int) -> Candidate:
    """`candidate` on so many devices, their idle power counted where it differs from plan to plan."""
    if problem.spared_w is None:
        return candidate
    expected = msgspec.structs.replace(candidate.prediction, idle_j_per_row=idle_j(problem, awake))
    score = objective.score(expected.accuracy, expected.joules)
    return msgspec.structs.replace(candidate, awake=awake, prediction=expected, score=score)


def in_use(devices: Sequence[DeviceShape], running: Sequence[Assignment]) -> tuple[DeviceShape, ...]:
    """Return devices that can be used, those with most of what runs first."""
    slices = Counter[str]()
    for item in running:
        slices[item.placement.device] += item.placement.slices
    return tuple(sorted((d for d in devices if d.layouts), key=lambda device: -slices[device.device]))


def asleep(spared_w: float | None) -> tuple[tuple[Sleep, ...], float]:
    """Return what a formulation takes for devices that may have no workers: the state, and watts of those that have."""
    return ((), 0.0) if spared_w is None else ((Sleep(name="asleep", watts=0.0, wakes=True),), spared_w)
