"""One measurement of a family, from candidates to a profile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from clover import backends as registry
from clover import families, profiles
from clover.config import EnergyConfig
from clover.errors import CloverError, ProfileError, WorkerError
from clover.interfaces import Device
from clover.profiling import rows as rows_module
from clover.profiling.busy import busy_share
from clover.profiling.candidates import COMPILED_AT_FIRST_START, Candidates
from clover.profiling.choose import elect, faster
from clover.profiling.drive import Cell, Driver, Scored
from clover.profiling.effort import FULL, QUICK, Effort
from clover.profiling.joules import Joules
from clover.profiling.places import device_cores, places_of, whole_layout
from clover.profiling.score import agreement, wilson
from clover.runtime.frames import WorkerOrder
from clover.runtime.pool import Pool, Worker
from clover.runtime.slab import Layout, Slab
from clover.types import (
    AccuracyMeasurement,
    BasePoint,
    FamilyProfile,
    FamilySpec,
    LatencyMeasurement,
    Placement,
    VariantSpec,
)

log = logging.getLogger("clover.profiling")

_P = ParamSpec("_P")
_T = TypeVar("_T")

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""

BASE_LOAD = 0.6
MULTITHREADED_FROM_MS = 1.0
"""A quick measurement tries several threads only where the largest batch takes one thread this long: handing work
between threads costs tens of microseconds."""

BUSY = 0.15
"""The share of the cores that others may use before the profile says so."""

MOST_ROWS_PER_S = 4000.0
"""The fastest arrivals of the open-loop run; beyond, the generator itself would be measured."""


async def measure(
    spec: FamilySpec,
    device: Device,
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
) -> FamilyProfile:
    """Measure every variant of `spec` on every profile of `device` with every usable one of `backends`.

    Artifacts of `compile_with` that are missing are compiled first (within `compile_s`; 25 s where `quick`).
    The profile is written to `store` where one is given.  Raises ProfileError, saying what to do, where the family
    cannot be measured.
    """
    looking = effort or (QUICK if quick else FULL)
    if compile_s is not None:
        looking = replace(looking, compile_s=compile_s)
    data = await asyncio.to_thread(rows_module.load, spec)
    if not data.labelled:
        _require_published(spec)
    config = energy or EnergyConfig()
    slab = Slab.create(Layout(spec, 2 * spec.max_batch * max(1, len(whole_layout(device)))))
    try:
        work = _Measurement(spec, device, pool, data, slab, looking, config, Path(cache_dir), progress, silent_s)
        profile = await work.run(tuple(dict.fromkeys(backends)), tuple(compile_with))
    finally:
        slab.close()
    if store is not None:
        store.put(profile)
    return profile


def typical_p95(ms: NDArray[np.float64]) -> float:
    """The median of the p95 of five consecutive stretches: one hiccup of the machine does not become the target."""
    return float(np.median([np.quantile(part, 0.95) for part in np.array_split(ms, min(5, len(ms)))]))


def _require_published(spec: FamilySpec) -> None:
    unknown = [variant.name for variant in spec.variants if variant.accuracy is None]
    if unknown:
        raise ProfileError(
            f"family {spec.name!r} has no evaluation set and no published accuracy for {', '.join(unknown)}: add "
            "[evaluation] with labelled rows, or accuracy = { value, metric, source } to each variant"
        )


@dataclass
class _Measurement:
    """State of one measurement; `run` goes through it once."""

    spec: FamilySpec
    device: Device
    pool: Pool
    data: rows_module.Rows
    slab: Slab
    effort: Effort
    energy: EnergyConfig
    cache_dir: Path
    progress: Progress | None
    silent_s: float
    notes: list[str] = field(default_factory=list)
    accuracy: list[AccuracyMeasurement] = field(default_factory=list)
    latency: list[LatencyMeasurement] = field(default_factory=list)
    done: int = 0
    steps: int = 1

    async def run(self, wanted: tuple[str, ...], compile_with: tuple[str, ...]) -> FamilyProfile:
        spec, device = self.spec, self.device
        cores = device_cores(device)
        self.driver = Driver(self.pool.completion_fd, self.slab, self.data, self.silent_s)
        self.joules = await Joules.start(self.energy, len(cores))
        self.batches = self.effort.batches(spec.max_batch)
        busy = await busy_share(cores)
        places = places_of(device)
        self.candidates = Candidates(spec, wanted, self.cache_dir, self.notes)
        candidates = self.candidates.of
        patient = self.effort.compile_s == math.inf
        threads = {1, *(place.size for place in places)} if patient else {1}
        await self.candidates.compile(compile_with, sorted(threads), self.effort.compile_s, self._say)
        # A step is one worker started and measured; the estimate assumes that one of two thread counts suffices.
        self.steps = sum(map(len, candidates.values())) + len(spec.variants) * (len(places) - 1) + 1
        backend: dict[str, str] = {}
        for variant in spec.variants:
            await self._smallest(variant, candidates[variant.name], places[0])
            mine = [item for item in self.accuracy if item.variant == variant.name]
            backend[variant.name], notes = elect(mine, [m for m in self.latency if m.variant == variant.name])
            self.notes += notes
        for place in places[1:]:
            for variant in spec.variants:
                names = [backend[variant.name]] if self.effort.quick else candidates[variant.name]
                for name in names:
                    if any((m.variant, m.backend) == (variant.name, name) for m in self.latency):
                        await self._larger(variant, name, place)
        busy = max(busy, await busy_share(cores))
        if busy > BUSY:
            note = (
                f"others used {busy:.0%} of the cores meanwhile: latencies are inflated, and the default SLO with them"
            )
            again = f"`python -m clover profile {families.reference(spec)} --force`"
            self.notes.append(f"{note}; measure again on a quiet machine with {again}")
            log.warning("%s: %s", spec.name, note)
        base = await self._base(backend)
        if device.shape().shared_front:
            self.notes.append("the front end shares the workers' cores")
        self.notes.append(self.joules.label)
        return FamilyProfile(
            family=spec.name,
            key=profiles.profile_key(spec, cores, wanted, self.energy),
            machine=f"{profiles.processor()}, {device.shape().label}",
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            quick=self.effort.quick,
            accuracy=tuple(self.accuracy),
            latency=tuple(self.latency),
            backend=backend,
            base=base,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    # --- measuring ----------------------------------------------------------------------------------------------

    async def _smallest(self, variant: VariantSpec, names: list[str], place: Placement) -> None:
        """Accuracy and latency of every backend on the smallest profile."""
        reference: Any = None
        largest = self.batches[-1]
        for name in names:
            self._step(f"{variant.name} with {name} on {place.profile}")
            try:
                async with self._worker(variant, name, place, 1) as worker:
                    with self.joules.window() as window:
                        scored: Scored = await self._drive(
                            self.driver.score,
                            worker,
                            largest,
                            most_rows=self.data.count,
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
        counts = (
            [place.size] if self.effort.quick else [place.size >> shift for shift in range(place.size.bit_length())]
        )
        if self.effort.quick and max(one.values()) < MULTITHREADED_FROM_MS:
            counts = []
        best: list[LatencyMeasurement] = []
        several = [count for count in counts if count > 1 and self.candidates.compiled(variant, name, count)]
        for threads in (*several, 1):
            if threads == 1 and best:
                break
            self._step(f"{variant.name} with {name} on {place.profile}, {threads} thread{'s' if threads > 1 else ''}")
            found = await self._grid(variant, name, place, threads)
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

    async def _cell(
        self, worker: Worker, variant: VariantSpec, name: str, place: Placement, threads: int, batch: int
    ) -> None:
        effort = self.effort
        with self.joules.window() as window:
            cell = await self._drive(
                self.driver.cell,
                worker,
                batch,
                samples=effort.samples,
                least_s=effort.least_s,
                most_s=effort.most_s,
            )
        self._keep(cell, variant, name, place, threads, window.joules(cell.rows, cell.cpu_s))

    def _keep(
        self, cell: Cell, variant: VariantSpec, name: str, place: Placement, threads: int, joules: tuple[float, Any]
    ) -> None:
        ms = np.array(cell.ms)
        p50, p95, p99 = np.quantile(ms, (0.5, 0.95, 0.99))
        self.latency.append(
            LatencyMeasurement(
                variant=variant.name,
                profile=place.profile,
                backend=name,
                batch=cell.batch,
                threads=threads,
                samples=len(ms),
                mean_ms=float(ms.mean()),
                cv=float(ms.std() / ms.mean()),
                p50_ms=float(p50),
                p95_ms=float(p95),
                p99_ms=float(p99),
                cpu_s_per_row=cell.cpu_s / cell.rows,
                energy_j_per_row=joules[0],
                energy_method=joules[1],
            )
        )

    def _score(self, variant: VariantSpec, name: str, scored: Scored, reference: Any) -> None:
        seen = min(len(scored.answers), len(reference))
        same = agreement(scored.answers[:seen], reference[:seen])
        if self.data.labelled:
            seen = len(scored.answers)
            right = int(np.sum(scored.answers == self.data.labels[:seen]))
            low, high = wilson(right, seen)
            value, method, source = 100.0 * right / seen, "measured", "held_out"
            metric = self.spec.evaluation.metric if self.spec.evaluation else ""
        else:
            published = variant.accuracy
            assert published is not None  # _require_published
            low = high = value = published.value
            seen, method, source, metric = 0, "published", published.source, published.metric
        self.accuracy.append(
            AccuracyMeasurement(
                variant=variant.name,
                backend=name,
                metric=metric,
                value=value,
                low=low,
                high=high,
                samples=seen,
                method=method,  # type: ignore[arg-type]
                agreement=same,
                source=source,
            )
        )

    # --- BASE ---------------------------------------------------------------------------------------------------

    async def _base(self, backend: dict[str, str]) -> BasePoint:
        """The best variant on whole devices at 60 % load."""
        whole = whole_layout(self.device)
        values = {item.variant: item.value for item in self.accuracy if item.backend == backend[item.variant]}
        name = max(values, key=lambda key: values[key])
        variant = self.spec.variant(name)
        shape = whole[0].profile
        self._step(f"BASE: {name} on {len(whole)} x {shape} at {BASE_LOAD:.0%} load")
        measured = [m for m in self.latency if (m.variant, m.backend, m.profile) == (name, backend[name], shape)]
        full = max(measured, key=lambda m: m.batch)
        rate = BASE_LOAD * len(whole) * full.batch / (full.mean_ms / 1e3)
        if rate > MOST_ROWS_PER_S:
            self.notes.append(f"BASE was measured at {MOST_ROWS_PER_S:g} rows/s, below 60 % load ({rate:.0f} rows/s)")
            rate = MOST_ROWS_PER_S
        seconds = min(max(self.effort.base_s, 200 / rate), 4 * self.effort.base_s)
        async with contextlib.AsyncExitStack() as stack:
            workers = [
                await stack.enter_async_context(self._worker(variant, full.backend, place, full.threads))
                for place in whole
            ]
            with self.joules.window() as window:
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
    async def _worker(self, variant: VariantSpec, name: str, place: Placement, threads: int) -> AsyncIterator[Worker]:
        """A worker that is ready, on `place`; it is gone afterwards."""
        await self.device.create(place)
        try:
            order = WorkerOrder(
                family=self.spec,
                variant=variant.name,
                backend=name,
                artifact_dir=str(self.candidates.artifact(variant, name, threads))
                if registry.get(name).compiles
                else "",
                cores=self.device.cores(place),
                threads=threads,
                max_batch=self.spec.max_batch,
            )
            worker = await self.pool.spawn(order, self.slab)
            try:
                yield worker
            except BaseException:
                worker.kill()
                raise
            await worker.drain_and_exit()
        finally:
            with contextlib.suppress(CloverError):
                await self.device.destroy(place)

    def _step(self, what: str) -> None:
        self._say(what, self.done, self.steps)
        self.done += 1

    def _say(self, what: str, done: int, total: int) -> None:
        log.debug("%s (%d of %d)", what, done, total)
        if self.progress is not None:
            self.progress(what, done, max(total, done + 1))
