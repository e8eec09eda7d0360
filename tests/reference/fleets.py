"""Random fleets for tests and benches: families on A100s as `formulation` takes them, and all their configurations."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.model.queueing import Service
from clover.planning.packing.formulation import Formulation, PackingMember, Sleep
from clover.types import DeviceShape, ObjectiveConfig
from tests.support.mig_fixture import a100s

AWAKE_W = 60.0
SLEEP = (Sleep(name="parked", watts=45.0, wakes=True), Sleep(name="released", watts=0.0, wakes=False))
SLICES = {"1g.5gb": 1, "2g.10gb": 2, "3g.20gb": 3, "4g.20gb": 4, "7g.40gb": 7}
BATCHES = (1, 2, 4, 8)

Counts = NDArray[np.int64]


def member(
    draw: random.Random,
    devices: Sequence[DeviceShape],
    *,
    name: str = "a",
    variants: int = 2,
    load: tuple[float, float] = (0.1, 0.45),
    peak: float = 0.0,
) -> PackingMember:
    """Return a random family.

    Its rate is a part (drawn from `load`) of what its variants serve at best on all devices, half way between the
    fastest and the slowest.
    """
    services, accuracy = {}, {}
    row_ms, watts, percent = draw.uniform(3.0, 12.0), draw.uniform(25.0, 40.0), draw.uniform(72.0, 84.0)
    speeds = []
    for rank in range(variants):
        variant = f"{name}{rank}"
        accuracy[variant] = percent
        cv, fixed = draw.uniform(0.03, 0.2), draw.uniform(0.3, 0.6)
        steep, widest = draw.uniform(0.75, 1.0), draw.uniform(2.5, 8.0) + 2.0 * rank
        for profile, slices in SLICES.items():
            speed = min(slices**steep, widest) * draw.uniform(0.95, 1.05)
            means = tuple(row_ms / speed * (fixed + (1.0 - fixed) * batch) for batch in BATCHES)
            power = watts * speed**0.95 * draw.uniform(0.9, 1.1)
            joules = tuple(ms * 1e-3 * power / batch for ms, batch in zip(means, BATCHES, strict=True))
            services[variant, profile] = Service(BATCHES, means, joules, cv)
        speeds.append(max(services[variant, profile].capacity() / n for profile, n in SLICES.items()))
        row_ms *= draw.uniform(1.4, 3.0)
        percent += draw.uniform(1.0, 5.0)
    best = f"{name}{variants - 1}"
    base = services[best, "7g.40gb"].energy_j_per_row[0]
    floor = accuracy[f"{name}0"] + draw.uniform(0.0, 0.8) * (accuracy[best] - accuracy[f"{name}0"])
    slowest = services[best, "1g.5gb"].mean_ms[0]
    forms: tuple[Literal["paper", "floor"], ...] = ("paper", "floor")
    form, slo_ms, weight = draw.choice(forms), slowest * draw.uniform(0.8, 2.5), draw.uniform(0.4, 2.0)
    rate = draw.uniform(*load) * 7 * len(devices) * 0.5 * (speeds[0] + speeds[-1])
    config = ObjectiveConfig(form=form, slo_ms=slo_ms, accuracy_floor=floor, lam=None, reference_g_per_kwh=250.0)
    problem = Problem(
        family=name,
        variants=tuple(accuracy),
        accuracy=accuracy,
        backend=dict.fromkeys(accuracy, "eager"),
        own={},
        services=services,
        rate=rate,
        objective=config,
        devices=tuple(devices),
    )
    objective = Objective(
        form=form,
        lam=draw.uniform(0.05, 0.5),
        carbon_weight=weight,
        base_energy_j=base,
        base_accuracy=accuracy[best],
        slo_ms=slo_ms,
        accuracy_floor=floor,
        planned_floor=floor,
        max_utilisation=0.8,
    )
    return PackingMember(problem, objective, peak)


def two_families(seed: int, gpus: int) -> Formulation:
    """Return two random families of two variants."""
    draw = random.Random(seed)
    devices = a100s(gpus)
    return Formulation([member(draw, devices, name=name, load=(0.05, 0.3)) for name in "ab"], devices)


def sleepers(seed: int, gpus: int) -> Formulation:
    """Return a random family on devices that may sleep."""
    draw = random.Random(seed)
    devices = a100s(gpus)
    peak = draw.uniform(1.2, 3.0)
    one = member(draw, devices, variants=draw.choice((2, 2, 3)), load=(0.03, 0.5), peak=peak)
    return Formulation([one], devices, sleep=SLEEP, awake_w=AWAKE_W)


def scale(form: Formulation) -> float:
    """Return what saving all emissions of all BASEs would be worth now."""
    return sum(weight * m.objective.scale for weight, m in zip(form.weights, form.members, strict=True))


# --- every configuration ---


def _splits(number: int, ways: int) -> Counts:
    """Return the ways to deal `number` slices to so many groups, one a row."""
    places = list(itertools.combinations(range(number + ways - 1), ways - 1))
    bars = np.array(places, np.int64).reshape(len(places), ways - 1)
    edges = np.hstack([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), number + ways - 1)])
    return np.diff(edges, axis=1) - 1


def cuts(form: Formulation) -> Iterator[Counts]:
    """Return every number of devices with each cut, one of those with the same slices and the same devices asleep."""
    per_kind: list[list[Counts]] = []
    for kind, (_, number) in enumerate(form.kinds):
        own = [at for at, cut in enumerate(form.cuts) if cut.kind == kind]
        ways = _splits(number, len(own))
        every = np.zeros((len(ways), len(form.cuts)), np.int64)
        every[:, own] = ways
        per_kind.append(list(every))
    asleep = [at for at, cut in enumerate(form.cuts) if not cut.profiles]
    seen = set()
    for parts in itertools.product(*per_kind):
        used = np.sum(parts, axis=0)
        key = (*(used @ form.table).tolist(), *used[asleep].tolist())
        if key not in seen:
            seen.add(key)
            yield used


def configurations(form: Formulation) -> Iterator[tuple[Counts, Counts]]:
    """Yield (counts, used) of every configuration, in tables, one a cut."""
    groups = [[at for at, g in enumerate(form.groups) if g.profile == name] for name in form.profiles]
    splits: dict[tuple[int, int], Counts] = {}
    for used in cuts(form):
        counts = np.zeros((1, len(form.groups)), np.int64)
        for own, number in zip(groups, (used @ form.table).tolist(), strict=True):
            if number:
                deal = splits.setdefault((number, len(own)), _splits(number, len(own)))
                counts = np.repeat(counts, len(deal), axis=0)
                counts[:, own] = np.tile(deal, (len(counts) // len(deal), 1))
        yield counts, np.tile(used, (len(counts), 1))


def exhaustive(form: Formulation, kernel: Any) -> tuple[float, dict[tuple[int, ...], float], Counts, int]:
    """Return the best feasible value, the best for each number of devices asleep in each state, the best counts, and
    how many configurations there are.  Values are minus infinity if nothing is feasible.
    """
    asleep = [at for at, cut in enumerate(form.cuts) if not cut.profiles]
    by_state: dict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
    best, chosen, total = -np.inf, np.zeros(len(form.groups), np.int64), 0
    for counts, used in configurations(form):
        feasible, values = kernel.judge_many(counts, used)
        total += len(values)
        if feasible.any():
            at = int(np.argmax(np.where(feasible, values, -np.inf)))
            state = tuple(used[at, asleep].tolist())
            by_state[state] = max(by_state[state], float(values[at]))
            if values[at] > best:
                best, chosen = float(values[at]), counts[at]
    return best, dict(by_state), chosen, total


def share_a_device(form: Formulation, counts: Counts) -> bool:
    """Return whether two members cannot have devices of their own (two members at most, one kind of device)."""
    if len(form.members) < 2:
        return False
    wanted = []
    for own in range(2):
        slices = dict.fromkeys(form.profiles, 0)
        for group, number in zip(form.groups, counts, strict=True):
            slices[group.profile] += int(number) if group.member == own else 0
        wanted.append(tuple(slices.values()))
    number = form.kinds[0][1]
    sums = [{(0,) * len(form.profiles)}]
    for _ in range(number):
        sums.append({tuple(np.add(row, way).tolist()) for row in sums[-1] for way in form.table.tolist()})
    return not any(wanted[0] in sums[n] and wanted[1] in sums[number - n] for n in range(1, number))


def alike(form: Formulation, kernel: Any) -> float:
    """Return the best feasible value of devices and variants alike."""
    feasible, values = kernel.judge_many(*(np.array(rows) for rows in zip(*form.alike(), strict=True)))
    return float(values[feasible].max()) if feasible.any() else -np.inf
