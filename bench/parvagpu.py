"""How many A100s eleven networks take: Clover's packing beside ParvaGPU's published deployments.

    python -m bench.parvagpu FOLDER [--json FILE]

FOLDER holds the data of ParvaGPU's artifact (SC24, github.com/MunQ-Lee/ParvaGPU_SC24): `prof_data/NETWORK.csv`,
`SLO/SLO_latency.csv`, `SLO/SLO_req_rate.csv`, `deployment/SLO<n>/SLO<n>_ParvaGPU_deploy.csv`.  Columns of the two SLO
files are the networks in alphabetical order.

ParvaGPU's rule holds for all figures but `with room`: a batch takes less than .9 of half the SLO, and what the slices
of a network serve, batch after batch, is at least its rate.  Nothing waits by chance.

`ParvaGPU`       GPUs of the published deployment: up to five processes a slice, by MPS
`joint`          GPUs that `clover.planning.packing` finds for all networks together, one process a slice, with as many
                 evaluations as the server's planner has.  The number of GPUs awake is chosen outside of the search, as
                 the server does for a family: from what whole GPUs would serve upwards, until a plan is found
`least`          the fewest there can be, by an integer program of this bench (HiGHS), independent of the planner
`relaxed`        the same with parts of GPUs and slices, rounded up: what a linear bound, as the planner's, can prove
`processes`      `least` with up to one, two, ... five processes a slice: more than one are *not servable* by Clover
`own GPUs`       GPUs that a Clover server takes.  It deals GPUs, or parts of one, to families by their `share`, and
                 plans each family by itself.  Shares are set to what each network needs
`with room`      `joint` by Clover's rule: Poisson arrivals, p95 of wait and service within the SLO, utilisation at most
                 `max_utilisation`
`covers`         the least part of its rate that a network gets from the published deployment, by the rule as read here
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from bench.common import show, write_json
from clover._native import lanes
from clover.config import ControllerConfig
from clover.control.state.device_pool import DevicePool
from clover.devices.tables import slice_profiles, table
from clover.errors import PlanError
from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem
from clover.planning.model.queueing import Service
from clover.planning.packing.candidates import multisets_of
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.planning.packing.geometry import layouts
from clover.planning.search.configurations import EVALUATIONS, KEEP, RESTARTS
from clover.types import DeviceShape, ObjectiveConfig

BOARD = "a100-80gb"
PART = 0.9 * 0.5
"""Of the SLO: what a batch has to take less than."""
MOST_PROCESSES = 5
NO_LIMIT_MS = 1e9
TRIES = 3
"""Searches of a number of GPUs, each with another seed, until it is given up."""
MOST_GPUS = 64


@dataclass(frozen=True)
class Measured:
    """How one batch size runs on a slice: `processes` together serve `rows_s`, a batch taking `seconds`."""

    slices: int
    batch: int
    processes: int
    rows_s: float
    seconds: float


@dataclass(frozen=True)
class Network:
    """A network with its load: rows a second, SLO in ms, and what was measured of it that keeps the rule."""

    name: str
    rate: float
    slo_ms: float
    measured: tuple[Measured, ...]

    def best(self, processes: int) -> dict[int, float]:
        """Return the most rows a second on a slice of each size, with at most so many processes."""
        most: dict[int, float] = {}
        for item in self.measured:
            if item.processes <= processes:
                most[item.slices] = max(most.get(item.slices, 0.0), item.rows_s)
        return most


@dataclass(frozen=True)
class LoadSet:
    """One set of SLOs: its networks, the GPUs that ParvaGPU published for it, and what these cover (`covers` above)."""

    name: str
    networks: tuple[Network, ...]
    gpus: int
    covers: float


def main(argv: Sequence[str] | None = None) -> int:
    """Pack every set of SLOs; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the data of ParvaGPU's artifact")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures to FILE")
    given = parser.parse_args(argv)
    if missing := missing_files(given.folder):
        parser.error(f"{given.folder} is not the data of ParvaGPU's artifact: it lacks {', '.join(missing)}")
    rows = [packed(item) for item in load_sets(given.folder)]
    columns = ["networks", "rows_s", "ParvaGPU", "joint", "joint_s", "least", "least_s", "relaxed", "processes"]
    columns += ["own_gpus", "with_room", "with_room_s", "covers"]
    show("GPUs (analytical, on measured profiles)", ["set", *columns], [[r["set"], *map(r.get, columns)] for r in rows])
    write_json(given.json, {"sets": rows})
    return 0


def packed(item: LoadSet) -> dict[str, Any]:
    """Return the figures of one set."""
    joint, joint_s = timed(joint_gpus, item.networks)
    least, least_s = timed(least_gpus, item.networks, 1)
    room, room_s = timed(joint_gpus, item.networks, room=True)
    return {
        "set": item.name,
        "networks": len(item.networks),
        "rows_s": sum(network.rate for network in item.networks),
        "ParvaGPU": item.gpus,
        "covers": item.covers,
        "joint": joint,
        "joint_s": joint_s,
        "least": least,
        "least_s": least_s,
        "relaxed": least_gpus(item.networks, 1, whole=False),
        "processes": " ".join(str(least_gpus(item.networks, most)) for most in range(1, MOST_PROCESSES + 1)),
        "own_gpus": own_gpus(item.networks),
        "with_room": room,
        "with_room_s": room_s,
    }


def timed(call: Any, *arguments: Any, **named: Any) -> tuple[int, float]:
    """Return what `call` returns, and the seconds it took."""
    began = time.perf_counter()
    value = call(*arguments, **named)
    return value, time.perf_counter() - began


# --- the data ---------------------------------------------------------------------------------------------------------

_SLO_FILES = ("SLO/SLO_latency.csv", "SLO/SLO_req_rate.csv")


def missing_files(folder: Path) -> list[str]:
    """Return which of the files of the artifact `folder` lacks."""
    missing = [] if any(folder.glob("prof_data/*.csv")) else ["prof_data/*.csv"]
    missing += [name for name in _SLO_FILES if not (folder / name).is_file()]
    if not missing:
        sets = len(_table(folder / _SLO_FILES[0]))
        missing += [name for at in range(1, sets + 1) if not (folder / (name := _deployment(at))).is_file()]
    return missing


def measured_in(folder: Path) -> dict[str, list[Measured]]:
    """Return what was measured of each network of the artifact in `folder`."""
    return {
        path.stem: [
            Measured(int(slices), int(batch), int(processes), float(rows_s) * int(processes), float(seconds))
            for slices, batch, processes, rows_s, seconds in _table(path)[1:]
            if float(rows_s) > 0.0  # 0: it did not run
        ]
        for path in sorted(folder.glob("prof_data/*.csv"))
    }


def load_sets(folder: Path) -> list[LoadSet]:
    """Return the sets of SLOs of the artifact's `folder`."""
    measured = measured_in(folder)
    latencies, rates = (_table(folder / name) for name in _SLO_FILES)
    sets = []
    for at, (slos, loads) in enumerate(zip(latencies, rates, strict=True), start=1):
        networks = tuple(
            Network(
                name,
                float(rate),
                float(slo),
                tuple(item for item in measured[name] if item.seconds * 1e3 < PART * float(slo)),
            )
            for name, slo, rate in zip(measured, slos, loads, strict=True)
            if rate != "N/A"
        )
        sets.append(_published(folder, at, networks, measured))
    return sets


def _published(
    folder: Path, at: int, networks: tuple[Network, ...], measured: Mapping[str, Sequence[Measured]]
) -> LoadSet:
    with open(folder / _deployment(at)) as lines:
        instances = list(csv.DictReader(lines))
    known = {
        (name, item.slices, item.batch, item.processes): item.rows_s for name in measured for item in measured[name]
    }
    served: dict[str, float] = defaultdict(float)
    for row in instances:
        key = row["Model"], int(row["Instance size"]), int(row["Batch size"]), int(row["Num proc"])
        served[row["Model"]] += known.get(key, 0.0)
    covers = min(served[network.name] / network.rate for network in networks)
    return LoadSet(f"SLO{at}", networks, len({(row["Num instance"], row["Num GPU"]) for row in instances}), covers)


def _deployment(at: int) -> str:
    return f"deployment/SLO{at}/SLO{at}_ParvaGPU_deploy.csv"


def _table(path: Path) -> list[list[str]]:
    with open(path) as lines:
        return [row for row in csv.reader(lines) if row]


# --- Clover's planner -------------------------------------------------------------------------------------------------


@cache
def gpus(count: int) -> tuple[DeviceShape, ...]:
    """Return `count` boards with every layout that MIG allows."""
    board = table(BOARD)
    return tuple(
        DeviceShape(
            device=f"gpu{number}",
            kind="mig",
            layouts=layouts(slice_profiles(board), device=f"gpu{number}", compute=board.compute_slices),
            slices=board.compute_slices,
            overlap=False,
            emulated=True,
            label=board.product,
        )
        for number in range(count)
    )


@cache
def profile_names() -> dict[int, str]:
    """Return the name of the slice of each number of compute slices."""
    return {profile.slices: profile.name for profile in slice_profiles(table(BOARD))}


def member(network: Network, devices: tuple[DeviceShape, ...], *, room: bool) -> PackingMember:
    """Return a network as a family of one variant that shares `devices`: with `room` as Clover plans it, else by
    ParvaGPU's rule.  No joules were measured, so that every plan of the same GPUs is worth the same."""
    services = {}
    for slices, most in network.best(1).items():
        rows = {m.batch: m.rows_s for m in network.measured if (m.slices, m.processes) == (slices, 1)}
        if not room:
            rows = {batch: rows_s for batch, rows_s in rows.items() if rows_s == most}
        services[network.name, profile_names()[slices]] = Service(
            tuple(sorted(rows)),
            tuple(1e3 * batch / rows[batch] for batch in sorted(rows)),
            tuple(1.0 for _ in rows),
        )
    slo_ms = network.slo_ms if room else NO_LIMIT_MS
    config = ObjectiveConfig(form="floor", slo_ms=slo_ms, accuracy_floor=0.0, lam=None, reference_g_per_kwh=1.0)
    problem = Problem(
        family=network.name,
        variants=(network.name,),
        accuracy={network.name: 100.0},
        backend={network.name: "measured"},
        own={},
        services=services,
        rate=network.rate,
        objective=config,
        devices=devices,
    )
    objective = Objective(
        form="floor",
        lam=0.5,
        carbon_weight=1.0,
        base_energy_j=1.0,
        base_accuracy=100.0,
        slo_ms=slo_ms,
        accuracy_floor=0.0,
        planned_floor=0.0,
        max_utilisation=ControllerConfig().max_utilisation if room else 1.0,
    )
    return PackingMember(problem, objective)


def joint_gpus(networks: Sequence[Network], *, room: bool = False) -> int:
    """Return the first number of GPUs for which the planner's search finds a plan of all networks."""
    whole = {network.name: best_layout(network) for network in networks}
    first = math.ceil(sum(network.rate / whole[network.name] for network in networks))
    for number in range(first, MOST_GPUS + 1):
        devices = gpus(number)
        try:
            form = Formulation([member(network, devices, room=room) for network in networks], devices)
        except PlanError:
            continue
        kernel, starts = form.kernel(), [*form.alike(), *form.loaded()]
        for seed in range(TRIES):
            solution = lanes.solve(kernel, seed, EVALUATIONS, starts, RESTARTS, KEEP)
            if solution.feasible:
                check(form, solution.found[0])
                return number
    raise SystemExit(f"no plan on {MOST_GPUS} GPUs")


def check(form: Formulation, found: Any) -> None:
    """Raise AssertionError unless the plan's slices are those of its GPUs and serve every rate."""
    slices = np.zeros(len(form.profiles), int)
    served = np.zeros(len(form.members))
    for group, count in zip(form.groups, found.counts.tolist(), strict=True):
        slices[form.profiles.index(group.profile)] += count
        served[group.member] += count * group.service.capacity()
    assert (slices == found.used @ form.table).all()
    assert found.used.sum() == sum(number for _, number in form.kinds)
    rates = np.array([m.problem.rate / m.objective.max_utilisation for m in form.members])
    assert (served >= rates * (1.0 - 1e-9)).all()


# --- the server as it is ----------------------------------------------------------------------------------------------


class _Board:
    """A device of the pool that is never used."""

    def __init__(self, shape: DeviceShape) -> None:
        self._shape = shape

    def shape(self) -> DeviceShape:
        return self._shape


def best_layout(network: Network, shape: DeviceShape | None = None) -> float:
    """Return the most rows a second of a network on all of one GPU, or of what `shape` leaves of it."""
    best = {profile_names()[slices]: rows_s for slices, rows_s in network.best(1).items()}
    ways = multisets_of(shape or gpus(1)[0])
    return max((sum(best.get(name, 0.0) * count for name, count in way) for way in ways), default=0.0)


def own_gpus(networks: Sequence[Network]) -> int:
    """Return the fewest GPUs on which every network is served by what the server's pool assigns to it."""
    needs = {network.name: network.rate / best_layout(network) for network in networks}
    for number in range(1, MOST_GPUS + 1):
        pool = DevicePool({shape.device: _Board(shape) for shape in gpus(number)})  # type: ignore[misc]
        whole = number >= len(networks)
        for name, need in needs.items():
            pool.name(name, math.ceil(need) if whole else need)
        if pool.short():
            continue
        pool.assign({})
        shares = {n.name: pool.devices_for(n.name, {}) for n in networks}
        if all(sum(best_layout(n, shape) for shape in shares[n.name]) >= n.rate for n in networks):
            return number
    raise SystemExit(f"no assignment of {MOST_GPUS} GPUs serves every network")


# --- the bound, which is not the planner's ----------------------------------------------------------------------------


def least_gpus(networks: Sequence[Network], processes: int, *, whole: bool = True) -> int:
    """Return the fewest GPUs of which some layouts serve every rate, with at most so many processes a slice: the
    optimum of an integer program over GPUs by multiset of slices, and slices by network.  Without `whole`: of the
    linear program, rounded up.

    Raises RuntimeError unless HiGHS proves it."""
    ways, sizes = multisets_of(gpus(1)[0]), sorted(profile_names())
    columns = len(ways) + len(networks) * len(sizes)
    rows, least = [], []
    for at, network in enumerate(networks):
        row, best = np.zeros(columns), network.best(processes)
        start = len(ways) + at * len(sizes)
        row[start : start + len(sizes)] = [best.get(size, 0.0) / network.rate for size in sizes]
        rows.append(row)
        least.append(1.0)
    for place, size in enumerate(sizes):
        row = np.zeros(columns)
        row[: len(ways)] = [dict(way).get(profile_names()[size], 0) for way in ways]
        row[len(ways) + place :: len(sizes)] = -1.0
        rows.append(row)
        least.append(0.0)
    cost = np.array([*itertools.repeat(1.0, len(ways)), *itertools.repeat(0.0, columns - len(ways))])
    found = milp(
        cost,
        integrality=np.full(columns, float(whole)),
        bounds=Bounds(0.0, np.inf),
        constraints=LinearConstraint(np.array(rows), np.array(least), np.inf),
    )
    if found.status != 0:
        raise RuntimeError(f"HiGHS proved nothing: {found.message}")
    return math.ceil(float(found.fun) - 1e-6)


if __name__ == "__main__":
    raise SystemExit(main())
