"""Choose how many devices to keep awake, if devices without workers draw less.

Idle power limits what a plan can save while every device is awake, so that at a low load the number of devices awake
matters most.  With n devices awake the rest is the problem of n devices, whose idle power is the same for all plans; so
n is chosen around the search, and the search needs no notion of it.  The bound of each n (`plan_bound`), less its idle
power, says what to hope for: the most promising number is searched first, and numbers that promise less than what was
found are not searched at all.

Devices that have most of what runs stay awake first.  If devices are of several kinds the others follow in their order,
so that not every set of n devices is weighed.  Head-room is that of every plan: the utilisation limit holds on the
devices awake, and no further device wakes before the next plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from clover.errors import PlanError
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.packing.exhaustive import SearchResult, chosen
from clover.planning.packing.formulation import Formulation, PackingMember, Sleep
from clover.planning.packing.plan_bound import plan_bound
from clover.planning.search.annealed import best_found
from clover.types import Assignment, Candidate, Configuration, DeviceShape, configuration_of


def best_power_state(
    problem: Problem,
    objective: Objective,
    running: Sequence[Assignment] = (),
    *,
    kept: Callable[[Configuration], int] | None = None,
    seed: int = 0,
) -> SearchResult:
    """Return the best candidate and how many devices it keeps awake; if all have to be awake, that of `best_found`.

    Of candidates within the margin what runs stays; `kept` is asked only if all devices are awake.
    """
    if problem.spared_w is None:
        return best_found(problem, objective, running, kept=kept, seed=seed)
    devices = in_use_first(problem.devices, running)
    here = {item.placement.device for item in running}
    hopes: list[tuple[float, int]] = []
    for number in range(1, len(devices) + 1):
        part = replace(problem, devices=devices[:number])
        try:
            form = Formulation([PackingMember(part, objective)], part.devices, slow=True)
            hope = plan_bound(form, waits=problem.objective.waits)
        except PlanError:
            continue
        hopes.append((-hope + objective.score(0.0, 0.0) - objective.score(0.0, idle_j(problem, number)), number))
    if not hopes:
        raise PlanError("no variant was measured on every slice of any way to cut the devices: profile it for them")
    found: list[SearchResult] = []
    for least, number in sorted(hopes):
        good = [each.best.score for each in found if each.best.feasible]
        if good and -least <= max(good):
            break
        names = {device.device for device in devices[:number]}
        part = replace(problem, devices=devices[:number])
        one = best_found(part, objective, running if here == names else (), seed=seed)
        ranked = tuple(with_idle_energy(item, problem, objective, number) for item in one.candidates)
        found.append(replace(one, best=with_idle_energy(one.best, problem, objective, number), candidates=ranked))
    weighed = {(item.configuration, item.awake): item for each in found for item in (*each.candidates, each.best)}
    best, ranked = chosen(weighed.values(), objective, running=configuration_of(tuple(running)) if running else None)
    return SearchResult(
        best,
        ranked[:10],
        sum(each.evaluated for each in found),
        sum(each.total for each in found),
        all(each.complete for each in found),
    )


def idle_j(problem: Problem, awake: int) -> float:
    """Return the joules a row that `awake` devices draw for being awake."""
    return awake * (problem.spared_w or 0.0) / problem.rate


def with_idle_energy(candidate: Candidate, problem: Problem, objective: Objective, awake: int) -> Candidate:
    """Return `candidate` on `awake` devices, with their idle energy if plans differ in it."""
    if problem.spared_w is None:
        return candidate
    expected = msgspec.structs.replace(candidate.prediction, idle_j_per_row=idle_j(problem, awake))
    score = objective.score(expected.accuracy, expected.joules)
    return msgspec.structs.replace(candidate, awake=awake, prediction=expected, score=score)


def in_use_first(devices: Sequence[DeviceShape], running: Sequence[Assignment]) -> tuple[DeviceShape, ...]:
    """Return the devices that can be used, those with most slices in use first."""
    slices = Counter[str]()
    for item in running:
        slices[item.placement.device] += item.placement.slices
    return tuple(sorted((d for d in devices if d.layouts), key=lambda device: -slices[device.device]))


def sleep_states(spared_w: float | None) -> tuple[tuple[Sleep, ...], float]:
    """Return the sleep states and the idle watts of an awake device, as `Formulation` takes them; `spared_w` None: no
    device may sleep."""
    return ((), 0.0) if spared_w is None else ((Sleep(name="asleep", watts=0.0, wakes=True),), spared_w)
