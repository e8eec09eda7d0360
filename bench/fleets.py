"""Fleets: how near the best the search over lanes comes, who sleeps, and what a margin for the profile's errors buys.

    python -m bench.fleets [families] [sleep] [error] [speed] [--json FILE]

`families` random families of two variants, two on one or two A100s, against every configuration: gaps of the search
           with the planner's budget and five times that, and how far above the optimum the bound lies
`sleep`    a random family on one to three A100s that may be parked or released: who is awake, parked and released,
           against exhaustive search
`error`    plans of the policy, with and without a margin for error, played on services that are up to 20 % slower or
           faster than the profile says, each (variant, profile, batch) by itself; joules are those of the profile
`speed`    evaluations a second of the kernel and of its twin at N = 10, 100, 1000 with one and two families (CPU time)

Without words: all four.  Gaps are parts of what saving all emissions of every family's BASE would be worth now.  Worth
and feasibility are those of the kernel's tables in `families` and `sleep`.
"""

from __future__ import annotations

import argparse
import importlib
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from bench.common import show, write_json
from clover._native import lanes
from clover.errors import PlanError
from clover.planning.model.problem import Problem, problem_of
from clover.planning.model.queueing import Service, energy_j_per_row, mixture_p95_ms, play
from clover.planning.packing.formulation import Formulation
from clover.planning.packing.plan_bound import plan_bound
from clover.planning.search.configurations import EVALUATIONS, KEEP, RESTARTS
from clover.policies.objective import ObjectivePolicy
from clover.types import Configuration, DeviceShape, FamilyProfile, Plan
from tests.reference import fleets
from tests.support.mig_fixture import a100s, mig_profile
from tests.support.profiles_fixture import cpu, objective, profile, state

NEAR = 0.005
HETEROGENEOUS = 0.02
TIE = 1e-9
DIGITS = 1e-5
"""Points of accuracy that may be missing because plans tell shares to six digits."""
MORE = 5
"""Times the planner's budget, beside it."""
ERROR = 0.2
DRAWS = 10
ROWS = 20_000
WARM_UP = 300
UTILISATIONS = (0.25, 0.45, 0.65)
"""Rates of `error`, as parts of what the middle variant serves on all devices."""
INTENSITIES = (100.0, 250.0, 500.0)
SIZES = (10, 100, 1000)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named parts; print tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleets", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="families, sleep, error, speed [all]")
    parser.add_argument("--count", type=int, default=50, help="problems of families and sleep [50]")
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"true services a plan of error [{DRAWS}]")
    parser.add_argument("--json", default="", help="write the figures there")
    given = parser.parse_args(argv)
    known: dict[str, Callable[[], Any]] = {
        "families": lambda: families(given.count),
        "sleep": lambda: sleep(given.count),
        "error": lambda: error(given.draws),
        "speed": lambda: speed(SIZES),
    }
    words = given.parts or list(known)
    strange = [word for word in words if word not in known]
    if strange:
        parser.error(f"unknown part {strange[0]}: families, sleep, error or speed")
    write_json(given.json, {word: known[word]() for word in words})
    return 0


# --- against every configuration --------------------------------------------------------------------------------------


def searched(form: Formulation, kernel: Any, seed: int, evaluations: int = EVALUATIONS) -> Any:
    """Return what the kernel finds, as the planner asks it."""
    return lanes.solve(kernel, seed, evaluations, form.alike(), RESTARTS, KEEP)


def feasible_problems(make: Callable[[int, int], Formulation], first: int, most: int, count: int) -> list[Any]:
    """Return `count` formulations of 1..`most` A100s of which some configuration is feasible, each with its kernel's
    problem and what `fleets.exhaustive` says."""
    found: list[Any] = []
    seed = first
    while len(found) < count:
        seed += 1
        try:
            form = make(seed, 1 + seed % most)
        except PlanError:
            continue
        kernel = form.kernel()
        exhaustive = fleets.exhaustive(form, kernel)
        if exhaustive[0] > -math.inf:
            found.append((seed, form, kernel, exhaustive))
    return found


def families(count: int) -> dict[str, Any]:
    """Compare searches for two families on few devices."""
    gaps: dict[int, list[float]] = {1: [], MORE: []}
    above, configurations = [], []
    mixed = shared = single = 0
    for seed, form, kernel, (best, _, counts, total) in feasible_problems(fleets.two_families, 0, 2, count):
        scale = fleets.scale(form)
        for times, own in gaps.items():
            found = searched(form, kernel, seed, times * EVALUATIONS).found
            own.append((best - found[0].value) / scale if found else math.inf)
        above.append((plan_bound(form) - best) / scale)
        configurations.append(total)
        mixed += (best - fleets.alike(form, kernel)) / scale > HETEROGENEOUS
        shared += fleets.share_a_device(form, counts)
        single += form.kinds[0][1] == 1
    row = {
        "problems": count,
        "of_one_device": single,
        "configurations": max(configurations),
        "mixed": mixed,
        "shared": shared,
        "near": sum(gap <= NEAR for gap in gaps[1]),
        "optimal": sum(gap <= TIE for gap in gaps[1]),
        "worst": max(gaps[1]),
        "near_more": sum(gap <= NEAR for gap in gaps[MORE]),
        "worst_more": max(gaps[MORE]),
        "bound_least": min(above),
        "bound_median": statistics.median(above),
        "bound_most": max(above),
    }
    show(
        f"Two families on one ({single}) or two ({count - single}) A100s, up to {max(configurations)} configurations",
        ["evaluations", f"within {NEAR:.1%}", "optimal", "worst gap"],
        [
            [
                times * EVALUATIONS,
                f"{sum(gap <= NEAR for gap in own)} of {count}",
                sum(gap <= TIE for gap in own),
                f"{max(own):.3%}",
            ]
            for times, own in gaps.items()
        ],
    )
    show(
        "Their optima, and the bound above them",
        ["must share a device", f"alike {HETEROGENEOUS:.0%} below", "bound above: least", "median", "most"],
        [[shared, mixed, f"{min(above):.3%}", f"{row['bound_median']:.1%}", f"{max(above):.1%}"]],
    )
    return row


def sleep(count: int) -> dict[str, Any]:
    """Compare searches with devices awake, parked and released."""
    alike, some_asleep, gaps = 0, 0, []
    states: dict[str, int] = {}
    problems = feasible_problems(fleets.sleepers, 0, 3, count)
    for seed, form, kernel, (best, by_state, _, _) in problems:
        found = searched(form, kernel, seed).found
        asleep = [at for at, cut in enumerate(form.cuts) if not cut.profiles]
        chosen = tuple(found[0].used[asleep].tolist()) if found else ()
        alike += by_state.get(chosen, -math.inf) >= best - TIE
        some_asleep += any(chosen)
        gaps.append((best - found[0].value) / fleets.scale(form) if found else math.inf)
        awake = form.kinds[0][1] - sum(chosen)
        name = "/".join(str(n) for n in (awake, *chosen))
        states[name] = states.get(name, 0) + 1
    row = {"problems": count, "alike": alike, "some_asleep": some_asleep, "worst": max(gaps), "states": states}
    show(
        "One family on one to three A100s that may sleep: awake, parked and released against exhaustive search",
        ["problems", "as many of each", "with some asleep", "worst gap of the value"],
        [[count, f"{alike} of {count}", some_asleep, f"{max(gaps):.3%}"]],
    )
    show("Awake/parked/released", list(states), [list(states.values())])
    return row


# --- when the profile is wrong ----------------------------------------------------------------------------------------


def slower(measured: FamilyProfile, margin: float) -> FamilyProfile:
    """Return the profile with every latency raised by `margin`."""
    rows = [
        msgspec.structs.replace(
            item,
            mean_ms=item.mean_ms * (1.0 + margin),
            p50_ms=item.p50_ms * (1.0 + margin),
            p95_ms=item.p95_ms * (1.0 + margin),
            p99_ms=item.p99_ms * (1.0 + margin),
        )
        for item in measured.latency
    ]
    return msgspec.structs.replace(measured, latency=tuple(rows))


def truth(service: Service, draw: random.Random, error: float = ERROR) -> Service:
    """Return a service that was measured wrongly, each batch size by itself."""
    means = tuple(ms * draw.uniform(1.0 - error, 1.0 + error) for ms in service.mean_ms)
    return Service(service.batches, means, service.energy_j_per_row, service.cv)


def workers_of(
    configuration: Configuration, variant: str, services: Mapping[tuple[str, str], Service]
) -> tuple[Service, ...]:
    """Return the workers of one variant."""
    groups = [group for group in configuration if group.variant == variant]
    return tuple(services[group.variant, group.profile] for group in groups for _ in range(group.count))


def played_p95_ms(
    configuration: Configuration,
    shares: dict[str, float],
    services: Mapping[tuple[str, str], Service],
    rate: float,
    seed: int,
) -> float:
    """Return p95 of wait + service at these quota shares, by arrivals of that seed; infinite if a lane is
    overloaded."""
    found = []
    for variant, share in shares.items():
        workers = workers_of(configuration, variant, services)
        if share <= 0.0:
            continue
        if rate * share >= 0.999 * sum(worker.capacity() for worker in workers):
            return math.inf
        gaps = np.random.default_rng(seed).gamma(1.0 / share, share, ROWS + WARM_UP)
        latencies = play(workers, np.cumsum(gaps) / (rate * share))[WARM_UP:] * 1e3
        found.append((share, latencies))
    return mixture_p95_ms(found)


def scenes() -> list[tuple[str, FamilyProfile, tuple[DeviceShape, ...], str]]:
    """Return profiles and devices, and the profile of a whole device."""
    return [
        ("4 cores", profile((1, 2, 4)), (cpu(4),), "4c"),
        *((f"{n} A100s", mig_profile(), a100s(n), "7g.40gb") for n in (2, 4, 10)),
    ]


def error(draws: int) -> list[dict[str, Any]]:
    """Return how often plans break what they promise where the profile is wrong."""
    rows: list[dict[str, Any]] = []
    for name, measured, devices, whole in scenes():
        for margin in (0.0, ERROR):
            played = _Played(measured, devices, whole, margin, draws)
            for load in UTILISATIONS:
                for form in ("paper", "floor"):
                    for intensity in INTENSITIES:
                        played.play(load, form, intensity)
            energy_j = statistics.fmean(played.energy)
            rows.append({"devices": name, "margin": margin, **played.counted, "energy_j": energy_j})
    show(
        f"Plans on services up to {ERROR:.0%} off their profile, {draws} systems a plan",
        ["devices", "margin", "plans", "infeasible", "systems", "late", "", "worst p95/SLO", "below floor", "J/row"],
        [
            [
                r["devices"],
                f"{r['margin']:.0%}",
                int(r["plans"]),
                int(r["infeasible"]),
                int(r["systems"]),
                int(r["late"]),
                f"{r['late'] / max(1.0, r['systems']):.1%}",
                f"{r['worst']:.2f}",
                int(r["below"]),
                r["energy_j"],
            ]
            for r in rows
        ],
    )
    return rows


@dataclass
class _Played:
    """Plans for a profile with a `margin`, each played on `draws` true systems; `whole`: a whole device's profile."""

    measured: FamilyProfile
    devices: tuple[DeviceShape, ...]
    whole: str
    margin: float
    draws: int

    def __post_init__(self) -> None:
        self.counted = dict.fromkeys(("plans", "infeasible", "systems", "late", "below", "worst"), 0.0)
        self.energy: list[float] = []

    def play(self, load: float, form: str, intensity: float) -> None:
        """Plan once, and play the plan on true systems."""
        services = problem_of(state(measured=self.measured, devices=self.devices)).services
        middle = services["medium", self.whole]
        slo_ms = 2.5 * services["large", min(p for _, p in services)].mean_ms[0]
        config = objective(form=form, slo_ms=slo_ms, floor=89.5)
        rate = load * len(self.devices) * middle.capacity()
        asked = state(
            g_per_kwh=intensity,
            rate=rate,
            config=config,
            devices=self.devices,
            measured=slower(self.measured, self.margin),
        )
        plan: Plan = ObjectivePolicy().propose(asked)
        self.counted["plans"] += 1
        if not plan.feasible:
            self.counted["infeasible"] += 1
            return
        problem: Problem = problem_of(asked)
        shares = plan.routing.shares
        accuracy = sum(share * problem.accuracy[variant] for variant, share in shares.items()) / sum(shares.values())
        joules = 0.0
        for variant, share in shares.items():
            joules += share * energy_j_per_row(workers_of(plan.configuration, variant, services), rate * share, share)
        self.energy.append(joules)
        for number in range(self.draws):
            draw = random.Random(1000 * number + 7)
            true = {key: truth(services[key], draw) for key in sorted(services)}
            p95_ms = played_p95_ms(plan.configuration, shares, true, rate, 1 + number)
            self.counted["systems"] += 1
            self.counted["late"] += p95_ms > slo_ms
            self.counted["below"] += accuracy < config.accuracy_floor - DIGITS
            self.counted["worst"] = max(self.counted["worst"], p95_ms / slo_ms)


# --- speed ------------------------------------------------------------------------------------------------------------


def speed(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return evaluations a second of kernel and twin."""
    twin = importlib.import_module("tests.reference.lanes")
    rows = []
    for gpus in sizes:
        for number in (1, 2):
            form = _fleet(gpus, number)
            fast, slow = _evaluations_s(form, lanes, 200_000), _evaluations_s(form, twin, 500)
            rows.append({"gpus": gpus, "families": number, "groups": len(form.groups), "kernel": fast, "twin": slow})
    show(
        "Evaluations a second on one core, beside the twin (CPU time)",
        ["N", "families", "groups", "kernel", "twin", "times"],
        [[r["gpus"], r["families"], r["groups"], r["kernel"], r["twin"], r["kernel"] / r["twin"]] for r in rows],
    )
    return rows


def _fleet(gpus: int, number: int) -> Formulation:
    """Return families of four variants; the first seed of which they can all run."""
    for seed in range(100):
        draw = random.Random(seed)
        devices = a100s(gpus)
        try:
            members = [fleets.member(draw, devices, name=name, variants=4, load=(0.1, 0.3)) for name in "ab"[:number]]
            return Formulation(members, devices)
        except PlanError:
            continue
    raise AssertionError("some families run on A100s")


def _evaluations_s(form: Formulation, module: ModuleType, evaluations: int) -> float:
    problem, starts = form.kernel(module=module), form.alike()
    began = time.process_time()
    done = module.solve(problem, 1, evaluations, starts).evaluations
    return float(done) / (time.process_time() - began)


if __name__ == "__main__":
    raise SystemExit(main())
