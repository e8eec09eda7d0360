"""The best plan of a problem: at which rate, with how many devices awake, on which configuration.

**Awake.**  Idle power limits what a plan can save while every device is awake.  So at a low load the number of devices
awake matters most, if devices without workers draw less.  With n devices awake, the problem is that of n devices, and
their idle power is the same for all its plans.  So n is chosen outside of the search for a configuration
(`planning.search.configurations`), which needs no notion of it.  The bound of each n (`plan_bound`), less its idle
power, says what to hope for.  The most promising n is searched first; an n that promises less than what was found is
not searched at all.

Devices that have most of what runs stay awake first.  If devices are of several kinds, the others follow in their
order, so that not every set of n devices is weighed.  The utilisation limit holds on the devices awake, and no further
device wakes before the next plan.  If the load comes in gusts, fewer devices are therefore planned only if they serve
`ObjectiveConfig.sleep_room` times the rate.  Devices that run stay up to the utilisation limit, so that devices are not
parked and woken in turn.

**Cores.**  A row of cores whose cores may sleep (`DeviceShape.core_sleep_w`) is taken as so many devices: with n cores
awake the problem is that of its first n.  When more rows come, a sleeping core has a worker again only some seconds
later.  So fewer cores are planned only if they serve `ROOM` times the rate, while cores that run stay up to the
utilisation limit.  The distance between the two keeps cores from being put to sleep and woken in turn.

**The rate** that is planned for is what may arrive, with room for chance.  If no plan serves that much in time, the
plan of the least p95 at that rate need not be the best: the real rate may be lower, and a plan that is late at any rate
would be late then, too.  So the search is repeated at parts of the rate, and the first feasible plan is run.  It stays
marked as infeasible, with its prediction for the rate that was asked for.

**How few cores would do**: what a machine of the right size for this load would have, and what the other cores idle
for.  A plan on n cores is what the search finds on the first n.  More cores never serve less, so the fewest are found
by halving.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from clover.errors import PlanError
from clover.planning.cascade.evaluation import predict_routing, shortfall
from clover.planning.model.cores import core_counts, cores_under, first_cores, row_of_cores, sleeping_row
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.packing.formulation import Formulation, PackingMember, Sleep
from clover.planning.packing.plan_bound import plan_bound
from clover.planning.search.configurations import SearchResult, best_found, choose
from clover.types import Assignment, Candidate, Configuration, DeviceShape, configuration_of

ROOM = 1.5
"""How many times the rate fewer cores must be able to serve before the others are left without workers."""
PARTS = (0.9, 0.8, 0.7, 0.6, 0.45)
"""Parts of the rate that are tried, in turn, until some plan serves one in time."""
WASTED = 1.25
"""A plan whose utilisation is more than this many times that of the least bad one is not run, even if it keeps the SLO
at a lower rate."""


def best_sustained(
    problem: Problem,
    objective: Objective,
    running: Sequence[Assignment] = (),
    *,
    kept: Callable[[Configuration], int] | None = None,
    seed: int = 0,
) -> SearchResult:
    """Return what `best_power_state` finds, or if that is infeasible, what is feasible at the highest of `PARTS` of the
    rate, unless it serves clearly less (`WASTED`).  Raises PlanError as `best_power_state`."""
    found = best_power_state(problem, objective, running, kept=kept, seed=seed)
    if found.best.feasible:
        return found
    for part in PARTS:
        fewer = replace(problem, rate=part * problem.rate)
        there = predict_routing(fewer, found.best.configuration, found.best.routing)
        chained = len(found.best.routing.chain) > 1
        if there is not None and not shortfall(objective, there, chained=chained):
            break
        less = best_power_state(fewer, objective, running, kept=kept, seed=seed)
        if less.best.feasible:
            whole = predict_routing(problem, less.best.configuration, less.best.routing)
            if whole is None or whole.utilisation > WASTED * found.best.prediction.utilisation:
                break
            why = shortfall(objective, whole, chained=len(less.best.routing.chain) > 1)
            best = msgspec.structs.replace(less.best, prediction=whole, feasible=not why, why=why)
            best = with_idle_energy(best, problem, objective, less.best.awake)
            score = objective.score(whole.accuracy, best.prediction.joules)
            best = msgspec.structs.replace(best, score=score)
            return replace(found, best=best, evaluated=found.evaluated + less.evaluated)
    return found


# --- what is awake ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PowerState:
    """What is awake: `awake` devices, or so many cores of a row, which `devices` then has as a device of its own.
    `room`: how many times the rate that is planned for these must be able to serve."""

    devices: tuple[DeviceShape, ...]
    awake: int
    room: float = 1.0


def best_power_state(
    problem: Problem,
    objective: Objective,
    running: Sequence[Assignment] = (),
    *,
    kept: Callable[[Configuration], int] | None = None,
    seed: int = 0,
) -> SearchResult:
    """Return the best candidate and how many devices or cores it keeps awake; if all have to be awake, that of
    `best_found`.

    Of candidates within the margin what runs stays; `kept` is asked only if all devices are awake.
    """
    if problem.spared_w is None:
        return best_found(problem, objective, running, kept=kept, seed=seed)
    here = awake_in(problem, running), {item.placement.device for item in running}
    hopes = sorted(_hopes(problem, objective, running), key=lambda item: (-item[0], item[1].awake))
    if not hopes:
        raise PlanError("however the devices are cut, no variant was measured on every slice: profile it for them")
    bests: list[SearchResult] = []
    for hope, state in hopes:
        good = [each.best.score for each in bests if each.best.feasible]
        if good and hope <= max(good):
            break
        part = replace(problem, devices=state.devices)
        roomy = replace(objective, max_utilisation=objective.max_utilisation / state.room)
        those = running if here == (state.awake, {device.device for device in state.devices}) else ()
        one = best_found(part, roomy, those, seed=seed)
        ranked = tuple(with_idle_energy(item, problem, objective, state.awake) for item in one.candidates)
        bests.append(replace(one, best=with_idle_energy(one.best, problem, objective, state.awake), candidates=ranked))
    weighed = {(item.configuration, item.awake): item for each in bests for item in (*each.candidates, each.best)}
    best, ranked = choose(weighed.values(), objective, running=configuration_of(tuple(running)) if running else None)
    return SearchResult(
        best,
        ranked[:10],
        sum(each.evaluated for each in bests),
        sum(each.total for each in bests),
        all(each.complete for each in bests),
    )


def power_states(problem: Problem, running: Sequence[Assignment] = ()) -> list[PowerState]:
    """Return what may be awake, the least first: devices in the order in which they stay awake, or the first cores."""
    row = sleeping_row(problem.devices)
    if row is None:
        devices, here = in_use_first(problem.devices, running), awake_in(problem, running)
        room, least = problem.objective.sleep_room, min(problem.objective.least_awake, len(devices))
        return [
            PowerState(devices[:number], number, 1.0 if number in (here, len(devices)) else room)
            for number in range(max(least, 1), len(devices) + 1)
        ]
    here = cores_under(running)
    counts = sorted({count for count in (*core_counts(row.slices), here) if row.least_cores <= count <= row.slices})
    return [
        PowerState((first_cores(row, count),), count, 1.0 if count in (here, row.slices) else ROOM)
        for count in counts or (row.slices,)
    ]


def power_bound(problem: Problem, objective: Objective) -> float:
    """Return a score that no plan on any number of cores of a row can exceed; minus infinity if none can be planned."""
    return max((hope for hope, _ in _hopes(problem, objective, ())), default=-math.inf)


def _hopes(problem: Problem, objective: Objective, running: Sequence[Assignment]) -> Iterator[tuple[float, PowerState]]:
    """Yield what each state that can be planned may score at best, idle energy included."""
    for state in power_states(problem, running):
        part = replace(problem, devices=state.devices)
        try:
            form = Formulation([PackingMember(part, objective)], part.devices, slow=True)
            hope = plan_bound(form, waits=problem.gathers)
        except PlanError:
            continue
        yield hope - objective.score(0.0, 0.0) + objective.score(0.0, idle_j(problem, state.awake)), state


def awake_in(problem: Problem, deployment: Sequence[Assignment]) -> int:
    """Return how many devices, or cores of a row, the workers of `deployment` keep awake."""
    if sleeping_row(problem.devices) is not None:
        return cores_under(deployment)
    return len({item.placement.device for item in deployment})


def idle_j(problem: Problem, awake: int) -> float:
    """Return the joules a row that `awake` devices, or cores of a row, draw for being awake."""
    return awake * (problem.spared_w or 0.0) / problem.rate


def with_idle_energy(candidate: Candidate, problem: Problem, objective: Objective, awake: int) -> Candidate:
    """Return `candidate` on `awake` devices (or cores), with their idle energy if plans differ in it; it is infeasible
    if more of them have to be awake."""
    if problem.spared_w is None:
        return candidate
    expected = msgspec.structs.replace(candidate.prediction, idle_j_per_row=idle_j(problem, awake))
    score = objective.score(expected.accuracy, expected.joules)
    with_idle = msgspec.structs.replace(candidate, awake=awake, prediction=expected, score=score)
    row = sleeping_row(problem.devices)
    least = row.least_cores if row is not None else min(problem.objective.least_awake, len(problem.devices))
    if awake >= least:
        return with_idle
    why = candidate.why or f"{least} {'cores' if row is not None else 'devices'} have to have workers, not {awake}"
    return msgspec.structs.replace(with_idle, feasible=False, why=why)


def in_use_first(devices: Sequence[DeviceShape], running: Sequence[Assignment]) -> tuple[DeviceShape, ...]:
    """Return the devices that can be used, those with most slices in use first."""
    slices = Counter[str]()
    for placement in {item.placement for item in running}:
        slices[placement.device] += placement.slices
    return tuple(sorted((d for d in devices if d.layouts), key=lambda device: -slices[device.device]))


def sleep_states(spared_w: float | None) -> tuple[tuple[Sleep, ...], float]:
    """Return the sleep states and the idle watts of an awake device, as `Formulation` takes them; `spared_w` None: no
    device may sleep."""
    return ((), 0.0) if spared_w is None else ((Sleep(name="asleep", watts=0.0, wakes=True),), spared_w)


# --- how few cores would do -------------------------------------------------------------------------------------------


def fewest_cores(problem: Problem, objective: Objective) -> tuple[int, Candidate] | None:
    """Return the fewest cores on which a plan keeps SLO, floor and utilisation limit, and the best plan on them.

    None if no number does, or if the devices are not one row of cores.
    """
    row = row_of_cores(problem.devices)
    if row is None:
        return None
    counts = core_counts(row.slices)
    least: tuple[int, Candidate] | None = None
    low, high = 0, len(counts)
    while low < high:
        # All cores come first: if they do not serve the load, fewer need not be tried.
        middle = (low + high) // 2 if least is not None else len(counts) - 1
        try:
            part = replace(problem, devices=(first_cores(row, counts[middle]),))
            candidate = best_found(part, objective).best
        except PlanError:  # the profile has no such core-sets
            candidate = None
        if candidate is not None and candidate.feasible:
            least, high = (counts[middle], candidate), middle
        elif least is None:
            return None
        else:
            low = middle + 1
    return least
