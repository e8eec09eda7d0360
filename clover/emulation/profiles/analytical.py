"""A profile of emulated slices, calculated from the profile on CPU cores.

Answers of an emulated slice are computed on the CPU, so accuracy and the choice of backend are those measured there.
Time and power are not the CPU's.  If a pace file has rows of the family they are taken; otherwise

    ms(batch, slices) = ms of the batch on one core x SLICE_RATIO / speed.

**SLICE_RATIO** is a convention and no property of any GPU: one compute slice is paced 64 times *slower* than one core
of the machine that measured.  A slice then keeps a core busy for 1/64 of its time at most, and two cores can compute
the answers of dozens of slices in time.  On one slice, batch sizes and variants keep the proportions they have on the
CPU.

**Speed** of n slices, in units of one, is

    min(n^FILLED, max(1, growth / ROWS x max(1, row_ms / HEAVY_MS)^STEEP)).

`growth` is how many times longer than a row alone the batch takes on one core, `row_ms` what a row of the largest batch
takes there.  A batch that leaves one slice with room gains nothing from a second one; one that fills all of them gains
n^FILLED.  The figures were fitted to eight networks on MIG instances of an A100-80GB, one process each
(`bench.slice_speed`; profiles published with ParvaGPU, SC'24).  A GPU's batches have a larger fixed part than a core's,
so ROWS rows have to come together, but in very heavy networks one is enough.  What is not in the data: growth on a core
(taken as the number of rows), any network between 11.5 and 15.5 GFLOP a row, and more than one transformer, BERT, which
was left out of the fit and gains 2.5 at most where this says 6.3.

**Power** of n slices above idle, while a batch runs: (BUSY_W u + LOW_W (1 - u)) n / 7, where u = speed / n is the share
of the instance's multiprocessors that is busy.  BUSY_W is what an A100 was published to draw above idle in training and
inference of convolutional nets (a ResNet-50 in large batches: 173 W in all, some 52 W of them idle); LOW_W is what an
instance draws above idle merely for having work.  Both are an A100's, whichever GPU is emulated.

Nothing here was measured on a GPU.  Every figure is labelled "analytical", as are results that use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from clover import profiles
from clover.emulation.profiles.pace import PaceFile, PaceRow, as_pace
from clover.errors import ProfileError
from clover.planning.model.problem import services_of, whole
from clover.planning.model.queueing import capacity, estimate
from clover.profiling.chains import points_of
from clover.profiling.row_store import CascadeRows, most_frugal, with_energies
from clover.types import (
    BasePoint,
    CascadeProfile,
    DeviceShape,
    FamilyProfile,
    FamilySpec,
    LatencyMeasurement,
    MemoryMeasurement,
    Method,
    Placement,
)

VERSION = 2
"""Raised whenever the calculation changes."""

SLICE_RATIO = 64.0
"""How many times slower than one core of this machine one compute slice is paced."""

SLICES = 7
"""Compute slices of a whole GPU."""

FILLED = 0.95
ROWS = 3.3
HEAVY_MS = 223.0
"""10.7 GFLOP (multiply-adds) at what a ResNet-50 takes on a core: 85 ms for 4.09 (`bench/results/networks.md`)."""
STEEP = 8.0
"""Not fitted: between the heaviest network that gains nothing alone and the lightest that does, none was published."""

BUSY_W = 120.0
LOW_W = 15.0

BASE_LOAD = 0.6
_CORE = "1c"


def speed(slices: int, growth: float, row_ms: float) -> float:
    """Return the throughput of an instance of `slices` compute slices in units of one, for a batch that takes `growth`
    times as long as a row alone on one core, where a row of the largest batch takes `row_ms`.

    Raises ProfileError outside of what was measured.
    """
    if not 1 <= slices <= SLICES:
        raise ProfileError(f"an instance of {slices} compute slices has no known speed: give its rows in a pace file")
    return min(math.pow(slices, FILLED), max(1.0, growth / ROWS * math.pow(max(1.0, row_ms / HEAVY_MS), STEEP)))


def watts(slices: int, speed: float) -> float:
    """Return the watts above idle of an instance of `slices` compute slices while a batch runs at `speed`."""
    busy = speed / slices
    return (BUSY_W * busy + LOW_W * (1.0 - busy)) * slices / SLICES


def slices_of(place: Placement) -> int:
    """Return the compute slices of an instance; a GPU that is not partitioned has all seven."""
    return place.slices if "g." in place.profile else SLICES


def profiles_of(shapes: Iterable[DeviceShape]) -> dict[str, int]:
    """Return the profiles of these devices with their compute slices, smallest first."""
    found = {place.profile: slices_of(place) for shape in shapes for layout in shape.layouts for place in layout}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def emulate(
    measured: FamilyProfile,
    spec: FamilySpec,
    shapes: Sequence[DeviceShape],
    *,
    key: str,
    rows: Mapping[tuple[str, str], list[PaceRow]] | None = None,
    file: PaceFile | None = None,
    notes: Sequence[str] = (),
    kept: CascadeRows | None = None,
) -> FamilyProfile:
    """Return the profile of `spec` on emulated devices of `shapes`, under `key`.

    `measured` is its profile on CPU cores, and `kept` are the answers behind its cascades, if there are any: answers
    stay the same, only the costs of chains of variants differ.  `rows` are those of the pace `file` for this family and
    these devices; without any, the table is calculated.  `notes` are added to the profile.  Raises ProfileError.
    """
    offered = profiles_of(shapes)
    latency: list[LatencyMeasurement] = []
    all_notes = list(notes)
    for variant in measured.backend:
        if rows:
            assert file is not None
            latency += _take_given(measured, spec, variant, rows, file.method)
        else:
            for name, slices in offered.items():
                latency += _calculate(measured, variant, name, slices)
    if rows and file is not None:
        all_notes.append(f"times and watts of slices are {file.method}: {file.source}")
        measured_pairs = {(m.variant, m.profile) for m in latency}
        missing = [f"{v} on {p}" for v in measured.backend for p in offered if (v, p) not in measured_pairs]
        if missing:
            all_notes.append(f"no rows, so it does not run there: {', '.join(missing)}")
    else:
        all_notes.append(
            f"times of slices are analytical: one slice is paced {SLICE_RATIO:g} times slower than one core of this "
            "machine, larger ones by a curve fitted to throughputs of eight networks on MIG slices of an A100; watts "
            f"are {BUSY_W:g} W above idle for a busy A100, in proportion"
        )
    all_notes += [f"on the CPU, where answers come from: {note}" for note in measured.notes if "energy is" not in note]
    profile = msgspec.structs.replace(
        measured,
        key=key,
        machine=f"{_names(shapes)}; answers by {measured.machine}",
        latency=tuple(latency),
        memory=_memory(measured, latency),
        context_bytes=dict.fromkeys(offered, measured.context_bytes[_CORE]) if _CORE in measured.context_bytes else {},
        notes=tuple(dict.fromkeys(all_notes)),
    )
    base = base_of(profile, shapes)
    if (cascade := measured.cascade) is not None and cascade.best:
        cascade = at_other_energies(cascade, most_frugal(latency, measured.backend, base.profile), kept)
    return msgspec.structs.replace(profile, base=base, cascade=cascade)


def _memory(measured: FamilyProfile, latency: Sequence[LatencyMeasurement]) -> tuple[MemoryMeasurement, ...]:
    """Return what variants hold on emulated slices: as much as on a core, which computes their answers."""
    places = sorted({(cell.variant, cell.backend, cell.profile) for cell in latency})
    on_core = {(one.variant, one.backend): one for one in measured.memory if one.profile == _CORE}
    return tuple(
        msgspec.structs.replace(on_core[variant, backend], profile=profile)
        for variant, backend, profile in places
        if (variant, backend) in on_core
    )


def _calculate(measured: FamilyProfile, variant: str, profile: str, slices: int) -> list[LatencyMeasurement]:
    cells = profiles.measurements(measured, variant, _CORE)
    first, last = cells[0], cells[-1]
    measurements = []
    for cell in cells:
        growth = cell.mean_ms / (first.mean_ms / first.batch)
        gain = speed(slices, growth, last.mean_ms / last.batch)
        ms = cell.mean_ms * SLICE_RATIO / gain
        measurements.append(_cell(cell, profile, cell.batch, ms, watts(slices, gain), "analytical"))
    return measurements


def _take_given(
    measured: FamilyProfile,
    spec: FamilySpec,
    variant: str,
    rows: Mapping[tuple[str, str], list[PaceRow]],
    method: Method,
) -> list[LatencyMeasurement]:
    measurements = []
    for (name, profile), own in rows.items():
        if name != variant:
            continue
        # A worker takes batches up to the family's largest, and is paced for it whatever sizes the rows have.
        pace_ms, power_w = as_pace(own).table(spec.max_batch)
        given = {row.batch for row in own if row.batch <= spec.max_batch}
        for batch in sorted(given | {spec.max_batch}):
            like = profiles.latency(measured, variant, _CORE, batch)
            label = method if batch in given else "analytical"
            measurements.append(_cell(like, profile, batch, pace_ms[batch - 1], power_w[batch - 1], label))
    return measurements


def _cell(
    like: LatencyMeasurement, profile: str, batch: int, ms: float, power_w: float, method: Method
) -> LatencyMeasurement:
    """Return a cell that is paced: every batch takes `ms`.  Its CPU seconds are those of computing the answers."""
    return LatencyMeasurement(
        variant=like.variant,
        profile=profile,
        backend=like.backend,
        batch=batch,
        threads=1,
        samples=0,
        mean_ms=ms,
        cv=0.0,
        p50_ms=ms,
        p95_ms=ms,
        p99_ms=ms,
        cpu_s_per_row=like.cpu_s_per_row,
        energy_j_per_row=power_w * ms / 1e3 / batch,
        energy_method=method,
    )


def base_of(profile: FamilyProfile, shapes: Sequence[DeviceShape]) -> BasePoint:
    """Return the best variant on whole devices at 60 % load, by the queueing model that plans are made with."""
    best = profiles.best_variant(profile)
    parts = [place for shape in shapes for place in whole(shape)]
    services = services_of(profile)
    missing = sorted({place.profile for place in parts if (best, place.profile) not in services})
    if missing:
        raise ProfileError(
            f"{best} of {profile.family} has no row for {', '.join(missing)}: BASE is the best variant on whole devices"
        )
    workers = tuple(services[best, place.profile] for place in parts)
    lane = estimate(workers, BASE_LOAD * capacity(workers))
    return BasePoint(
        variant=best,
        profile=parts[0].profile,
        count=len(parts),
        backend=profile.backend[best],
        p95_ms=lane.p95_ms - profile.front_ms,
        energy_j_per_row=lane.energy_j_per_row,
        accuracy=profiles.accuracy_of(profile, best),
        method="analytical",
    )


def _names(shapes: Sequence[DeviceShape]) -> str:
    labels = [shape.label for shape in shapes]
    return ", ".join(f"{labels.count(label)} x {label}" for label in dict.fromkeys(labels))


def at_other_energies(
    cascade: CascadeProfile, found: Mapping[str, LatencyMeasurement], kept: CascadeRows | None
) -> CascadeProfile:
    """Return the cascade of the same answers at the energies of `found`, for the variants that have any.

    With the answers (`kept`) it has a front of its own; without them the same points at their new costs.
    """
    joules = {name: m.energy_j_per_row for name, m in found.items()}
    if kept is not None and joules.keys() <= kept.held_out.keys():
        calibration, held_out = ({name: split[name] for name in joules} for split in (kept.calibration, kept.held_out))
        points = points_of(calibration, held_out, joules, cascade.best)
    else:
        whole = max(joules[cascade.best], 1e-12)
        here = [point for point in cascade.points if set(point.chain) <= joules.keys()]
        costs = [expected_energy(point.reach, [joules[name] for name in point.chain]) / whole for point in here]
        moved = [replace(point, cost=cost) for point, cost in zip(here, costs, strict=True)]
        points = tuple(sorted(moved, key=lambda point: (point.cost, point.accuracy)))
    return with_energies(replace(cascade, points=points), found)


def expected_energy(reach: Sequence[float], joules_per_variant: Sequence[float]) -> float:
    """Return the expected active joules a row of a chain whose stages are asked `reach` of the rows
    (`ChainPoint.reach`), at joules a row asked of each stage's variant, in the chain's order."""
    return sum(part * joules for part, joules in zip(reach, joules_per_variant, strict=True))
