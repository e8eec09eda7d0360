"""What else could have served a load: the best fixed mixes, single variants, and BASE right-sized.

It makes plans and simulates p95, so it is for the solver's process.  All of them keep the SLO and the utilisation limit
at that load; fixed mixes and single variants also the accuracy floor.

**Right-sized BASE** is the best variant on as few cores (of one device of cores), or on as few whole devices, as keep
the SLO, and on all if none do; the others are asleep or off, and so is their part of the idle power.  Slices of a GPU
do not sleep one by one, so a GPU is used as a whole or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from clover.errors import PlanError
from clover.planning.budget.counterfactual import Fixed
from clover.planning.budget.frontiers import frontier
from clover.planning.model.objective import Objective
from clover.planning.model.planning_input import PlanningInput
from clover.planning.model.problem import Problem, best_whole, whole
from clover.planning.packing.evaluation import evaluate
from clover.types import Candidate, Configuration, DeviceShape, GroupCount, Placement, Record, State


class Alternatives(Record, frozen=True, kw_only=True):
    """Other ways to serve a load: `mixes`, the best fixed mixes, from the most frugal up; `singles`, for each variant
    the most frugal workers that serve everything with it; `right_sized`, BASE on as little as keeps the SLO."""

    mixes: tuple[Fixed, ...] = ()
    singles: tuple[Fixed, ...] = ()
    right_sized: Fixed | None = None


def alternatives(state: State, rate: float) -> Alternatives:
    """Return what else could serve `rate` rows a second; empty if nothing keeps the limits of `state`.  PlanError if no
    device can be used."""
    given = PlanningInput.of(state)
    plans = frontier(given.problem, given.objective, rate, seed=state.seed)
    problem = replace(given.problem, rate=max(rate, given.problem.rate))
    return Alternatives(
        mixes=tuple(Fixed(configuration=plan.configuration, shares=plan.shares) for plan in plans),
        singles=tuple(_singles(problem, given.objective)),
        right_sized=_right_sized(problem, given.objective),
    )


def _singles(problem: Problem, objective: Objective) -> Iterator[Fixed]:
    layouts = [_layouts(device) for device in problem.devices]
    for variant in problem.variants:
        if problem.accuracy[variant] < objective.planned_floor:
            continue
        found = []
        for at in range(max(map(len, layouts))):
            used = [choices[min(at, len(choices) - 1)] for choices in layouts if choices]
            tried = _tried(problem, objective, variant, [item for layout in used for item in layout])
            if tried is not None:
                found.append(tried)
        if found:
            best = min(found, key=lambda candidate: candidate.prediction.energy_j_per_row)
            yield Fixed(configuration=best.configuration, shares={variant: 1.0})


def _right_sized(problem: Problem, objective: Objective) -> Fixed | None:
    total = sum(device.slices for device in problem.devices)
    best: tuple[float, float, Fixed] | None = None
    for used, slices in _smaller(problem.devices):
        kept = slices / total
        if best is not None and kept > best[0]:
            continue
        tried = _tried(problem, objective, problem.best, used)
        if tried is not None and (best is None or (kept, tried.prediction.energy_j_per_row) < best[:2]):
            fixed = Fixed(configuration=tried.configuration, shares={problem.best: 1.0}, kept=kept)
            best = kept, tried.prediction.energy_j_per_row, fixed
    if best is not None:
        return best[2]
    try:
        return Fixed(configuration=best_whole(problem, problem.devices), shares={problem.best: 1.0})
    except PlanError:  # it was not measured on whole devices
        return None


def _smaller(devices: Sequence[DeviceShape]) -> Iterator[tuple[list[Placement], int]]:
    """Yield the parts of a machine that BASE may be put on, with their slices: some cores of its one device of cores,
    or some of its devices as a whole."""
    if len(devices) == 1 and devices[0].kind == "cpu":
        for layout in _layouts(devices[0]):
            for count in range(1, len(layout) + 1):
                yield list(layout[:count]), sum(item.slices for item in layout[:count])
        return
    usable = [device for device in devices if device.layouts]
    for count in range(1, len(usable) + 1):
        yield [item for device in usable[:count] for item in whole(device)], sum(d.slices for d in usable[:count])


def _layouts(device: DeviceShape) -> list[tuple[Placement, ...]]:
    """Return the layouts of equal parts, the fewest parts first."""
    even = {layout for layout in device.layouts if layout and len({item.profile for item in layout}) == 1}
    return sorted(even, key=len)


def _tried(problem: Problem, objective: Objective, variant: str, places: Sequence[Placement]) -> Candidate | None:
    """Return what `variant` does on `places`; None if it was not measured there, or does not keep the limits."""
    counts = Counter(item.profile for item in places)
    if not counts or any((variant, name) not in problem.services for name in counts):
        return None
    configuration: Configuration = tuple(
        GroupCount(variant=variant, profile=name, count=count) for name, count in sorted(counts.items())
    )
    candidate = evaluate(problem, objective, configuration)
    return candidate if candidate.feasible else None
