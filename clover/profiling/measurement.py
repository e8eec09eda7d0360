"""One measurement of a family, from candidates to a profile.

On a GPU a profile is measured on one instance of it, made for that and removed before the next.  A variant that a small
instance has no memory for starts with the next larger one.

A shared machine has fast and slow minutes, and the figures of variants are worth something only against each other.  So
what was measured is measured again in rounds, every cell of it once a round, and the medians over the rounds are kept:
in a slow minute all variants are slow.  A GPU's instances are not made again for that: no neighbour has a share of
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec
import numpy as np

from clover import backends as registry
from clover import families, profiles
from clover.config import EnergyConfig
from clover.errors import ProfileError, WorkerError
from clover.interfaces import Device
from clover.planning.model.queueing import REST_S
from clover.profiling import rows as rows_module
from clover.profiling.busy import busy_share
from clover.profiling.candidates import COMPILED_AT_FIRST_START, Candidates, on_cpu
from clover.profiling.chains import Answers, common, profile_of
from clover.profiling.choose import elect, faster
from clover.profiling.driver import Cell, Driver, Scored
from clover.profiling.effort import FULL, QUICK, Effort
from clover.profiling.instances import Standing
from clover.profiling.joules import Joules
from clover.profiling.placements import Devices, device_cores, devices_of, emulated, on_cores, places_of, whole_layout
from clover.profiling.records import accuracy_of, latency_of, middle_j, pooled, require_published, typical_p95
from clover.profiling.row_store import Kept, frugal, labelled
from clover.profiling.row_store import write as write_rows
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.workers.pool import Pool, WorkerProcess
from clover.types import (
    AccuracyMeasurement,
    BasePoint,
    CascadeProfile,
    FamilyProfile,
    FamilySpec,
    LatencyMeasurement,
    Method,
    Placement,
    VariantSpec,
)
from clover.worker.frames import WorkerOrder

log = logging.getLogger("clover.profiling")

_P = ParamSpec("_P")
_T = TypeVar("_T")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""

BASE_LOAD = 0.6
MULTITHREADED_FROM_MS = 1.0
"""A quick measurement tries several threads only where the largest batch takes one thread this long: handing work
between threads costs tens of microseconds."""

INFLATED = "latencies are inflated, and the default SLO with them"
"""What a note says of a profile that was measured while others used the cores."""

RESTED = 60
"""Batches after a pause that tell what waking up costs."""

BUSY = 0.15
"""The share of the cores that others may use before the profile says so."""

MOST_ROWS_PER_S = 4000.0
"""The fastest arrivals of the open-loop run; beyond, the generator itself would be measured."""

GPU_CELL_S = 0.6
"""The least time a batch size is run for on a GPU, whose energy counter moves every tenth of a second."""


async def measure(
    spec: FamilySpec,
    device: Devices,
    pool: Pool,
    store: profiles.ProfileStore | None,
    *,
    quick: bool,
    backends: Sequence[str],
    cache_dir: Path | str,
    energy: EnergyConfig | None = None,
    progress: Progress | None = None,
    compile_with: Iterable[str] = COMPILED_AT_FIRST_START,
    compile_s: float | None = None,
    silent_s: float = 30.0,
    effort: Effort | None = None,
    key: str = "",
) -> FamilyProfile:
    """Measure every variant of `spec` on every profile of `device` (one, or several by name) with every usable one of
    `backends`; `key` is what the profile is kept under (on cores it is known).

    Artifacts of `compile_with` that are missing are compiled first (within `compile_s`; 25 s where `quick`).
    The profile is written to `store` where one is given.  Raises ProfileError, saying what to do, where the family
    cannot be measured.
    """
    devices = devices_of(device)
    if emulated(devices):
        raise ProfileError("emulated devices are calculated, not measured: their time is not this machine's")
    looking = effort or (QUICK if quick else FULL)
    if compile_s is not None:
        looking = replace(looking, compile_s=compile_s)
    if not on_cores(devices):
        looking = replace(looking, least_s=max(looking.least_s, GPU_CELL_S), most_s=max(looking.most_s, 2 * GPU_CELL_S))
    data = await asyncio.to_thread(rows_module.load, spec)
    if not data.labelled:
        require_published(spec)
    config = energy or EnergyConfig()
    slab = Slab.create(Layout(spec, 2 * spec.max_batch * max(1, len(whole_layout(devices)))))
    try:
        work = _Measurement(spec, devices, pool, data, slab, looking, config, Path(cache_dir), progress, silent_s, key)
        try:
            profile = await work.run(tuple(dict.fromkeys(backends)), tuple(compile_with))
        finally:
            await work.standing.only(())
    finally:
        slab.close()
    if store is not None:
        store.put(profile)
    if work.kept is not None:
        await asyncio.to_thread(_keep_rows, Path(cache_dir), profile, work.kept)
    return profile


def _keep_rows(cache_dir: Path, profile: FamilyProfile, kept: Kept) -> None:
    path = profiles.ProfileStore(cache_dir).rows_path(profile.family, profile.key)
    try:
        write_rows(path, kept, profile.made_at)
    except OSError as error:
        log.warning("%s cannot be written (%s): emulated slices get the chains of this machine's cores", path, error)


@dataclass
class _Measurement:
    """State of one measurement; `run` goes through it once."""

    spec: FamilySpec
    devices: dict[str, Device]
    pool: Pool
    data: rows_module.Rows
    slab: Slab
    effort: Effort
    energy: EnergyConfig
    cache_dir: Path
    progress: Progress | None
    silent_s: float
    key: str
    notes: list[str] = field(default_factory=list)
    sure: dict[tuple[str, str], Answers] = field(default_factory=dict)
    """How sure each (variant, backend) was of the held-out rows, and where it was right."""
    calibration: dict[str, Answers] = field(default_factory=dict)
    """The same of the calibration rows, by variant: of the backend that was chosen."""
    kept: Kept | None = None
    accuracy: list[AccuracyMeasurement] = field(default_factory=list)
    latency: list[LatencyMeasurement] = field(default_factory=list)
    done: int = 0
    steps: int = 1

    def __post_init__(self) -> None:
        self.standing = Standing(self.devices)
        self.on_cores = on_cores(self.devices)

    async def run(self, wanted: tuple[str, ...], compile_with: tuple[str, ...]) -> FamilyProfile:
        spec, devices = self.spec, self.devices
        cores = device_cores(devices)
        self.driver = Driver(self.pool.completion_fd, self.slab, self.data, self.silent_s)
        self.joules = await Joules.start(self.energy, len(cores), () if self.on_cores else list(devices.values()))
        self.batches = self.effort.batches(spec.max_batch)
        busy = await busy_share(cores)
        places = places_of(devices)
        await self._compile(wanted, compile_with, places)
        candidates = self.candidates.of
        # A step is one worker started and measured; the estimate assumes that one of two thread counts suffices.
        self.steps = sum(map(len, candidates.values())) + len(spec.variants) * (len(places) - 1) + 1
        cascades = spec.confidence is not None and self.data.labelled
        self.steps += len(spec.variants) if cascades else 0
        self.steps += self.effort.rounds if self.on_cores else 0
        others = await asyncio.to_thread(rows_module.load, spec, "calibration") if cascades else None
        backend: dict[str, str] = {}
        first: dict[str, int] = {}
        for variant in spec.variants:
            first[variant.name] = await self._fitting(variant, candidates[variant.name], places)
            mine = [item for item in self.accuracy if item.variant == variant.name]
            backend[variant.name], notes = elect(mine, [m for m in self.latency if m.variant == variant.name])
            self.notes += notes
            if others is not None:
                # Now, while the instance stands that it was scored on.
                await self._calibrate(variant, backend[variant.name], places[first[variant.name]], others)
        for index, place in enumerate(places):
            for variant in spec.variants:
                if index <= first[variant.name]:
                    continue
                names = [backend[variant.name]] if self.effort.quick else candidates[variant.name]
                for name in names:
                    if any((m.variant, m.backend) == (variant.name, name) for m in self.latency):
                        await self._larger(variant, name, place)
        if self.on_cores:
            await self._again({place.profile: place for place in places})
        cascade = await self._cascade(backend)
        busy = max(busy, await busy_share(cores))
        if busy > BUSY:
            note = f"others used {busy:.0%} of the cores meanwhile: {INFLATED}"
            again = f"`python -m clover profile {families.reference(spec)} --force`"
            self.notes.append(f"{note}; measure again on a quiet machine with {again}")
            log.warning("%s: %s", spec.name, note)
        base = await self._base(backend)
        shapes = [device.shape() for device in devices.values()]
        if any(shape.shared_front for shape in shapes):
            self.notes.append("the front end shares the workers' cores")
        self.notes.append(self.joules.label)
        return FamilyProfile(
            family=spec.name,
            key=self.key or profiles.profile_key(spec, cores, wanted, self.energy),
            machine=f"{profiles.processor()}, {', '.join(dict.fromkeys(shape.label for shape in shapes))}",
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            quick=self.effort.quick,
            accuracy=tuple(self.accuracy),
            latency=tuple(self.latency),
            backend=backend,
            base=base,
            notes=tuple(dict.fromkeys(self.notes)),
            cascade=cascade,
        )

    # --- measuring ----------------------------------------------------------------------------------------------

    async def _compile(self, wanted: tuple[str, ...], compile_with: tuple[str, ...], places: list[Placement]) -> None:
        """Find the candidates and compile what is missing: for numbers of threads, or in a slice of each profile."""
        makes: list[tuple[int, str]] = [(1, "")]
        if not self.on_cores:
            makes = [(1, place.profile) for place in places]
        elif self.effort.compile_s == math.inf:
            makes = [(count, "") for count in sorted({1, *(place.size for place in places)})]
        targets = {} if self.on_cores else self.standing.targets(places)
        at = {place.profile: place for place in places}
        self.candidates = Candidates(self.spec, wanted, self.cache_dir, self.notes, targets)
        inside = on_cpu if self.on_cores else lambda profile: self.standing.inside(at[profile])
        await self.candidates.compile(compile_with, makes, self.effort.compile_s, self._say, inside)

    async def _fitting(self, variant: VariantSpec, names: list[str], places: list[Placement]) -> int:
        """Measure `variant` on the smallest profile that has room for it; that profile's index."""
        for index, place in enumerate(places):
            try:
                await self._smallest(variant, names, place)
            except ProfileError as error:
                if self.on_cores or not isinstance(error.__cause__, WorkerError) or index == len(places) - 1:
                    raise
                self.notes.append(f"{variant.name} does not run on {place.profile}: {error.__cause__}")
                log.warning("%s does not run on %s: %s", variant.name, place.profile, error.__cause__)
            else:
                return index
        raise AssertionError("there is a last profile")

    async def _smallest(self, variant: VariantSpec, names: list[str], place: Placement) -> None:
        """Accuracy and latency of every backend on the smallest profile."""
        reference: Any = None
        largest = self.batches[-1]
        for name in names:
            self._step(f"{variant.name} with {name} on {place.profile}")
            try:
                async with self._worker(variant, name, place, 1) as worker:
                    async with self.joules.window((place,)) as window:
                        scored: Scored = await self._drive(
                            self.driver.score,
                            worker,
                            largest,
                            # As a mere reference eager need not see every row, slow as it may be.
                            most_s=self.effort.score_s / (2 if name == "eager" and len(names) > 1 else 1),
                        )
                    if reference is None:
                        reference = scored.answers
                    self._score(variant, name, scored, reference)
                    for batch in self.batches[:-1]:
                        await self._cell(worker, variant, name, place, 1, batch)
                    if len(scored.cell.ms) >= self.effort.samples:
                        self._keep(
                            scored.cell, variant, name, place, 1, window.joules(scored.cell.rows, scored.cell.cpu_s)
                        )
                    else:
                        await self._cell(worker, variant, name, place, 1, largest)
            except WorkerError as error:
                if name == "eager":
                    raise ProfileError(f"{variant.name} of {self.spec.name} cannot be measured: {error}") from error
                self.notes.append(f"{name} is not used for {variant.name}: {error}")
                log.warning("%s cannot serve %s: %s", name, variant.name, error)

    async def _larger(self, variant: VariantSpec, name: str, place: Placement) -> None:
        """Latency on a larger profile, with the thread count that is worth it."""
        one = {m.batch: m.mean_ms for m in self.latency if (m.variant, m.backend, m.threads) == (variant.name, name, 1)}
        size = place.size if self.on_cores else 1
        counts = [size] if self.effort.quick else [size >> shift for shift in range(size.bit_length())]
        if self.effort.quick and max(one.values()) < MULTITHREADED_FROM_MS:
            counts = []
        best: list[LatencyMeasurement] = []
        several = [count for count in counts if count > 1 and self.candidates.compiled(variant, name, count)]
        for threads in (*several, 1):
            if threads == 1 and best:
                break
            self._step(f"{variant.name} with {name} on {place.profile}, {threads} thread{'s' if threads > 1 else ''}")
            try:
                found = await self._grid(variant, name, place, threads)
            except WorkerError as error:
                if self.on_cores:
                    raise
                self.notes.append(f"{variant.name} with {name} does not run on {place.profile}: {error}")
                log.warning("%s with %s does not run on %s: %s", variant.name, name, place.profile, error)
                return
            if threads == 1 or faster({m.batch: m.mean_ms for m in found}, one):
                reference = {m.batch: m.mean_ms for m in best}
                best = found if not best or faster({m.batch: m.mean_ms for m in found}, reference, 1.0) else best
        self.latency += best

    async def _grid(self, variant: VariantSpec, name: str, place: Placement, threads: int) -> list[LatencyMeasurement]:
        kept = len(self.latency)
        async with self._worker(variant, name, place, threads) as worker:
            for batch in self.batches:
                await self._cell(worker, variant, name, place, threads, batch)
        found, self.latency = self.latency[kept:], self.latency[:kept]
        return found

    async def _again(self, places: dict[str, Placement]) -> None:
        """Measure all cells again in rounds, and keep what these say instead of what was found first."""
        shares = self.effort.rounds
        part = replace(
            self.effort,
            samples=math.ceil(self.effort.samples / shares),
            least_s=self.effort.least_s / shares,
            most_s=self.effort.most_s / shares,
        )
        kinds = dict.fromkeys((m.variant, m.backend, m.profile, m.threads) for m in self.latency)
        cells: dict[tuple[str, str, str, int], list[Cell]] = {}
        joules: dict[tuple[str, str, str, int], list[tuple[float, Method]]] = {}
        for number in range(shares):
            self._step(f"everything again, round {number + 1} of {shares}")
            for variant, name, profile, threads in list(kinds):
                place = places[profile]
                try:
                    async with self._worker(self.spec.variant(variant), name, place, threads) as worker:
                        for batch in self.batches:
                            cell, energy = await self._timed(worker, place, batch, part)
                            cells.setdefault((variant, name, profile, batch), []).append(cell)
                            joules.setdefault((variant, name, profile, batch), []).append(energy)
                except WorkerError as error:
                    del kinds[variant, name, profile, threads]
                    self.notes.append(f"{variant} with {name} on {profile} was measured once only: {error}")
                    log.warning("%s with %s on %s was not measured again: %s", variant, name, profile, error)
        for index, m in enumerate(self.latency):
            if (m.variant, m.backend, m.profile, m.threads) in kinds:
                key = m.variant, m.backend, m.profile, m.batch
                each = middle_j(joules[key])
                found = latency_of(pooled(cells[key]), m.variant, m.profile, m.backend, m.threads, each)
                rested_j = m.rested_j * each[0] / m.energy_j_per_row if m.rested_j else 0.0
                self.latency[index] = msgspec.structs.replace(found, rested_j=rested_j)

    async def _timed(
        self, worker: WorkerProcess, place: Placement, batch: int, effort: Effort
    ) -> tuple[Cell, tuple[float, Method]]:
        """Return batches of one size, and joules a row with where they come from."""
        async with self.joules.window((place,)) as window:
            cell = await self._drive(
                self.driver.cell,
                worker,
                batch,
                samples=effort.samples,
                least_s=effort.least_s,
                most_s=effort.most_s,
            )
        return cell, window.joules(cell.rows, cell.cpu_s)

    async def _cell(
        self, worker: WorkerProcess, variant: VariantSpec, name: str, place: Placement, threads: int, batch: int
    ) -> None:
        cell, joules = await self._timed(worker, place, batch, self.effort)
        self._keep(cell, variant, name, place, threads, joules)
        if self.on_cores and batch == self.batches[0] < self.batches[-1]:
            rested = await self._rested_j(worker, place, batch)
            more_j = max(0.0, rested - batch * joules[0])
            self.latency[-1] = msgspec.structs.replace(self.latency[-1], rested_j=more_j)

    async def _rested_j(self, worker: WorkerProcess, place: Placement, batch: int) -> float:
        """Return joules of a batch whose worker slept before: what serving at a low load is like, and closed loops are
        not."""
        async with self.joules.window((place,)) as window:
            cell = await self._drive(
                self.driver.cell,
                worker,
                batch,
                samples=RESTED,
                least_s=0.0,
                most_s=self.effort.most_s,
                pause_s=REST_S,
            )
        return batch * window.joules(cell.rows, cell.cpu_s)[0]

    def _keep(
        self, cell: Cell, variant: VariantSpec, name: str, place: Placement, threads: int, joules: tuple[float, Any]
    ) -> None:
        self.latency.append(latency_of(cell, variant.name, place.profile, name, threads, joules))

    def _score(self, variant: VariantSpec, name: str, scored: Scored, reference: Any) -> None:
        self.accuracy.append(accuracy_of(self.spec, variant, name, scored.answers, reference, self.data.labels))
        self.sure[variant.name, name] = _sure(scored, self.data)

    # --- cascades -----------------------------------------------------------------------------------------------

    async def _calibrate(self, variant: VariantSpec, name: str, place: Placement, rows: rows_module.Rows) -> None:
        """Have `variant` answer the calibration rows, on which cascades are chosen, with the backend it was given."""
        self._step(f"{variant.name} with {name}: confidence on calibration rows")
        async with self._worker(variant, name, place, 1) as worker:
            scored: Scored = await self._drive(
                self.driver.score, worker, self.batches[-1], most_s=self.effort.score_s, rows=rows
            )
        self.calibration[variant.name] = _sure(scored, rows)

    async def _cascade(self, backend: dict[str, str]) -> CascadeProfile | None:
        """Return what the family's confidence is worth; None where it has none, or no labelled rows to tell by."""
        if not self.calibration:
            return None
        held_out = {name: self.sure[name, chosen] for name, chosen in backend.items()}
        found = frugal(self.latency, backend, whole_layout(self.devices)[0].profile)
        costs = {name: m.energy_j_per_row for name, m in found.items()}
        self.kept = Kept(common(self.calibration), common(held_out))
        cascade = await asyncio.to_thread(profile_of, self.kept.calibration, self.kept.held_out, costs)
        return labelled(cascade, found)

    # --- BASE ---------------------------------------------------------------------------------------------------

    async def _base(self, backend: dict[str, str]) -> BasePoint:
        """Return the best variant on whole devices at 60 % load."""
        whole = whole_layout(self.devices)
        values = {item.variant: item.value for item in self.accuracy if item.backend == backend[item.variant]}
        name = max(values, key=lambda key: values[key])
        variant = self.spec.variant(name)
        shape = whole[0].profile
        self._step(f"BASE: {name} on {len(whole)} x {shape} at {BASE_LOAD:.0%} load")
        measured = [m for m in self.latency if (m.variant, m.backend, m.profile) == (name, backend[name], shape)]
        if not measured:
            raise ProfileError(f"{name} of {self.spec.name} does not run on {shape}: BASE is the best variant on it")
        full = max(measured, key=lambda m: m.batch)
        rate = BASE_LOAD * len(whole) * full.batch / (full.mean_ms / 1e3)
        if rate > MOST_ROWS_PER_S:
            self.notes.append(f"BASE was measured at {MOST_ROWS_PER_S:g} rows/s, below 60 % load ({rate:.0f} rows/s)")
            rate = MOST_ROWS_PER_S
        seconds = min(max(self.effort.base_s, 200 / rate), 4 * self.effort.base_s)
        await self.standing.only(whole)
        async with AsyncExitStack() as stack:
            workers = [
                await stack.enter_async_context(self._worker(variant, full.backend, place, full.threads))
                for place in whole
            ]
            async with self.joules.window(whole) as window:
                run = await self._drive(self.driver.open_loop, workers, self.spec.max_batch, rate, seconds)
            joules, _ = window.joules(run.rows, run.cpu_s)
        return BasePoint(
            variant=name,
            profile=shape,
            count=len(whole),
            backend=full.backend,
            p95_ms=typical_p95(run.ms),
            energy_j_per_row=joules,
            accuracy=values[name],
            method="measured",
        )

    async def _drive(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run one of the driver's loops in a thread; cancelled, it ends first: nothing may touch ring or slab later."""
        task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.driver.stop()
            await asyncio.wait((task,))
            task.exception()
            raise

    # --- workers and progress -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _worker(
        self, variant: VariantSpec, name: str, place: Placement, threads: int
    ) -> AsyncIterator[WorkerProcess]:
        """A worker that is ready, on `place`; it is gone afterwards."""
        await self.standing.need(place)
        device = self.standing.device(place)
        profile = "" if self.on_cores else place.profile
        artifact = self.candidates.artifact(variant, name, threads, profile) if registry.get(name).compiles else ""
        order = WorkerOrder(
            family=self.spec,
            variant=variant.name,
            backend=name,
            artifact_dir=str(artifact),
            cores=device.cores(place),
            threads=threads,
            max_batch=self.spec.max_batch,
            visible_devices=device.visible(place),
            place=place.id,
        )
        worker = await self.pool.spawn(order, self.slab)
        try:
            yield worker
        except BaseException:
            worker.kill()
            raise
        await worker.drain_and_exit()

    def _step(self, what: str) -> None:
        self._say(what, self.done, self.steps)
        self.done += 1

    def _say(self, what: str, done: int, total: int) -> None:
        log.debug("%s (%d of %d)", what, done, total)
        if self.progress is not None:
            self.progress(what, done, max(total, done + 1))


def _sure(scored: Scored, rows: rows_module.Rows) -> Answers:
    """Return how sure a variant was, and whether it was right; nothing is right of rows without labels."""
    labels = rows.labels[: len(scored.answers)]
    right = scored.answers == labels if len(labels) else np.zeros(len(scored.answers), np.bool_)
    return Answers(scored.scores.astype(np.float64), np.asarray(right, np.bool_), scored.answers)
