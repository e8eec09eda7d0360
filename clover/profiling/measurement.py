"""One measurement of a family, from candidates to a profile.

On a GPU a profile is measured on one instance of it, made for that and removed before the next.  If a small instance
has no memory for a variant, the variant starts with the next larger one.

The steps:

1. find the backends that could serve each variant, and compile what is missing;
2. measure each backend on the smallest profile (accuracy and latency, `grid`) and choose one;
3. have the chosen one answer the calibration rows;
4. measure larger profiles;
5. measure everything again in rounds;
6. choose cascades from the answers;
7. measure BASE, and the front end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from msgspec import structs

from clover import energy, families, profiles
from clover.errors import CloverError, ProfileError
from clover.families import published
from clover.interfaces import Device
from clover.process_clock import process_ns
from clover.profiling import front_end
from clover.profiling import rows as rows_module
from clover.profiling.candidates import Candidates, on_cpu
from clover.profiling.chains import common_rows, profile_of
from clover.profiling.choose import choose_backend
from clover.profiling.driver import Driver, SilentWorker
from clover.profiling.evaluation_process import EvaluationProcess
from clover.profiling.front_end import LIGHT_PART, LightLoad, with_light_load
from clover.profiling.gpu_rounds import DUTIES, GpuRounds
from clover.profiling.grid import LatencyGrid
from clover.profiling.instances import TemporaryInstances
from clover.profiling.joules import EnergyMeters, busy_share, others_on
from clover.profiling.options import NO_LIMITS, Effort, MeasureOptions
from clover.profiling.placements import Devices, device_cores, devices_of, emulated, on_cores, places_of
from clover.profiling.proxy import judge_by_best
from clover.profiling.records import pair_with_best, require_published, typical_p95
from clover.profiling.rig import Findings, ProgressSteps, Rig, WorkerSetup, answers_of
from clover.profiling.row_store import CascadeRows, most_frugal, with_energies
from clover.profiling.row_store import write as write_rows
from clover.profiling.rows import SampleRows, step_notes
from clover.quantities import percent
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.workers.pool import Pool, WorkerProcess
from clover.types import (
    BasePoint,
    CascadeProfile,
    DeviceShape,
    FamilyProfile,
    FamilySpec,
    LatencyMeasurement,
    Placement,
    RejectedBackend,
)

log = logging.getLogger("clover.profiling")

INFLATED = "latencies are inflated, and the default SLO with them"
"""What a note says of a profile that was measured while others used the cores."""

BASE_LOAD = 0.6
"""The load at which BASE is measured, as a part of what it serves in full batches."""

BUSY = 0.15
"""The share of the cores that others may use before the profile says so."""

MOST_ROWS_PER_S = 4000.0
"""The fastest arrivals of the open-loop run; beyond, the generator itself would be measured."""

FIRST_GPU_CELL_S, GPU_CELL_S = 0.6, 2.0
"""The least time a batch size is run for on a GPU, whose energy counter moves every tenth of a second: when backends
are compared, and then in each round and at each duty cycle."""

LEAST_LOAD = 0.3
"""The lightest load at which the joules of a row of BASE are measured: below it a GPU's clocks and rests count most."""


async def measure(spec: FamilySpec, device: Devices, pool: Pool, options: MeasureOptions) -> FamilyProfile:
    """Return the profile of every variant of `spec` on every profile of `device` (one, or several by name).

    The answers behind its cascades are written to `options.cache_dir`.  Nobody else may read the pool's completions
    meanwhile.  Raises ProfileError, saying what to do, if the family cannot be measured.
    """
    devices = devices_of(device)
    if emulated(devices):
        raise ProfileError("emulated devices are calculated, not measured: their time is not this machine's")
    with rows_module.apart(spec, options.rows_sandbox) as process:
        return await _measure(spec, devices, pool, options, process)


async def _measure(
    spec: FamilySpec,
    devices: Mapping[str, Device],
    pool: Pool,
    options: MeasureOptions,
    process: EvaluationProcess | None,
) -> FamilyProfile:
    """Measure as `measure` says, with the rows and the metric of `process`, or of this one."""
    effort = options.effort
    if not on_cores(devices):
        least_s, most_s = max(effort.least_s, FIRST_GPU_CELL_S), max(effort.most_s, 2 * FIRST_GPU_CELL_S)
        options = replace(options, effort=replace(effort, least_s=least_s, most_s=most_s))
    rows = await asyncio.to_thread(rows_module.load, spec, process=process)
    if not rows.labelled and not families.by_agreement(spec):
        require_published(spec)
    instances = TemporaryInstances(devices)
    layout = Layout(spec, 2 * spec.max_batch * max(1, len(instances.whole)))
    with contextlib.closing(Slab.create(layout)) as slab:
        try:
            cores, places = device_cores(devices), places_of(devices)
            gpus = () if instances.on_cores else tuple(devices.values())
            meters = await EnergyMeters.start(options.energy, len(cores), gpus)
            busy = await busy_share(cores)
            announce = None if instances.on_cores else log.info
            steps, findings = ProgressSteps(options.progress, announce=announce), Findings()
            if untrained := published.caution(spec):
                findings.notes.append(untrained)
                log.warning("%s", untrained)
            findings.notes += await asyncio.to_thread(step_notes, spec, rows, options.energy)
            rig = Rig(
                spec=spec,
                pool=pool,
                slab=slab,
                rows=rows,
                driver=Driver(pool.completions, slab, rows, options.silent_s),
                instances=instances,
                candidates=await _compile_missing(spec, instances, places, options, steps, findings.notes),
                meters=meters,
                effort=options.effort,
                steps=steps,
                sandbox=options.sandbox,
            )
            try:
                profile, behind = await _Measurement(rig, findings, options).run(cores, places, busy)
            except SilentWorker as error:
                raise ProfileError(too_slow(spec, steps.what, options.silent_s, findings.latency)) from error
            meters.keep(options.cache_dir, gpus)
        finally:
            await instances.only(())
    if behind is not None:
        await asyncio.to_thread(_keep_rows, options.cache_dir, profile, behind)
    return profile


def inflated(profile: FamilyProfile) -> str:
    """Return the note of a profile that was measured while others used the cores; "" of any other."""
    return next((note for note in profile.notes if INFLATED in note), "")


def base_seconds(effort: Effort, rate: float) -> float:
    """Return how long BASE is measured at `rate` rows a second: longer if few come."""
    return min(max(effort.base_s, 200 / rate), 4 * effort.base_s)


def too_slow(spec: FamilySpec, step: str, silent_s: float, known: Iterable[LatencyMeasurement]) -> str:
    """Return what to say and do if a batch of `step` was not answered within `silent_s`; `known`: what others take."""
    fit = dict.fromkeys(one.variant for one in known if one.variant not in step.replace(":", "").split())
    without = f", or leave slow variants out: --only {','.join(fit)}" if fit else ""
    return (
        f"{spec.name} ({step}): a batch of up to {spec.max_batch} rows took more than {silent_s:g} s: raise --silent-s"
        f"{without}"
    )


async def _compile_missing(
    spec: FamilySpec,
    instances: TemporaryInstances,
    places: Sequence[Placement],
    options: MeasureOptions,
    steps: ProgressSteps,
    notes: list[str],
) -> Candidates:
    """Return the candidates of each variant, after compiling what was missing.  On cores artifacts are compiled for
    numbers of threads, on GPUs in an instance of each profile.  Reasons why a backend is no candidate are added to
    `notes`."""
    makes: list[tuple[int, str]] = [(1, "")]
    if not instances.on_cores:
        makes = [(1, place.profile) for place in places]
    elif options.effort.compiling == NO_LIMITS:
        makes = [(count, "") for count in sorted({1, *(place.size for place in places)})]
    targets = {} if instances.on_cores else instances.targets(places)
    at = {place.profile: place for place in places}
    wanted = tuple(dict.fromkeys(options.backends))
    candidates = Candidates(spec, wanted, options.cache_dir, notes, targets, options.sandbox)
    inside = on_cpu if instances.on_cores else lambda profile: instances.inside(at[profile])
    await candidates.compile(options.compile_with, makes, options.effort.compiling, steps.report, inside)
    return candidates


def _keep_rows(cache_dir: Path, profile: FamilyProfile, behind: CascadeRows) -> None:
    path = profiles.ProfileStore(cache_dir).rows_path(profile.family, profile.key)
    try:
        write_rows(path, behind, profile.made_at)
    except OSError as error:
        log.warning("%s cannot be written (%s): emulated slices get the chains of this machine's cores", path, error)


class _Measurement:
    """Goes through the steps once."""

    def __init__(self, rig: Rig, findings: Findings, options: MeasureOptions) -> None:
        self._rig = rig
        self._found = findings
        self._options = options
        self._grid = LatencyGrid(rig, findings)

    async def run(
        self, cores: Sequence[int], places: Sequence[Placement], busy: float
    ) -> tuple[FamilyProfile, CascadeRows | None]:
        """Return the profile, and the answers behind its cascades if it has any.

        `busy` is the share of `cores` that others used at the start.
        """
        rig, spec, findings = self._rig, self._rig.spec, self._found
        candidates = rig.candidates.of
        cascades = spec.confidence is not None and (rig.rows.labelled or families.by_agreement(spec))
        self._estimate_steps(len(places), cascades)
        others = None
        if cascades:
            others = await asyncio.to_thread(rows_module.load, spec, "calibration", rig.rows.process)
        backend: dict[str, str] = {}
        first: dict[str, int] = {}
        for variant in spec.variants:
            first[variant.name] = await self._grid.smallest(variant, candidates[variant.name], places)
            mine = [item for item in findings.accuracy if item.variant == variant.name]
            costs = [m for m in findings.latency if m.variant == variant.name]
            backend[variant.name], refused = choose_backend(mine, costs)
            for name, why in refused.items():
                findings.left_out.append(RejectedBackend(variant=variant.name, backend=name, why=why))
            if others is not None:
                # Now, while the instance stands that it was scored on.
                setup = WorkerSetup(variant, backend[variant.name], places[first[variant.name]])
                await self._calibrate(setup, others)
        for index, place in enumerate(places):
            for variant in spec.variants:
                if index > first[variant.name]:
                    await self._grid.larger(variant, backend[variant.name], place)
            if not rig.on_cores:
                await GpuRounds(rig, findings, place, GPU_CELL_S).run()
        if rig.on_cores:
            await self._grid.again(places, backend)
        if families.by_agreement(spec):
            judge_by_best(spec, findings, backend)
        cascade, behind = await self._cascade(backend)
        busy = max(busy, await busy_share(cores))
        if busy > BUSY:
            note = f"others used {busy:.0%} of the cores meanwhile: {INFLATED}"
            again = f"`python -m clover profile {families.reference(spec)} --force`"
            findings.notes.append(f"{note}; measure again on a quiet machine with {again}")
            log.warning("%s: %s", spec.name, note)
        if not rig.on_cores and (strangers := await others_on(list(rig.instances.devices.values()))):
            note = f"{strangers} meanwhile: joules are too many"
            findings.notes.append(note)
            log.warning("%s: %s; measure again without them", spec.name, note)
        base, light = await self._base(backend)
        shapes = rig.instances.shapes
        if any(shape.shared_front for shape in shapes):
            findings.notes.append("the front end shares the workers' cores")
        findings.notes.append(rig.meters.label)
        profile = self._profile(cores, shapes, backend, base, cascade)
        if fewer := profiles.cut_short_by_variant(profile):
            note = f"accuracy was counted on a part of the evaluation set, as its time ran out: {fewer}"
            wider = "its interval, and the margin of plans above the accuracy floor, are wider for it"
            again = f"`python -m clover profile {families.reference(spec)} --force`"
            log.warning("%s: %s; %s: %s takes more time", spec.name, note, wider, again)
            note = f"{note}; {wider}; {again} on a quiet machine takes more time"
            profile = structs.replace(profile, notes=(*profile.notes, note))
        return await self._with_front_end(profile, light), behind

    def _estimate_steps(self, places: int, cascades: bool) -> None:
        """Set how many steps there will be, assuming that one of two thread counts suffices."""
        rig = self._rig
        kinds = sum(map(len, rig.candidates.of.values())) + len(rig.spec.variants) * (places - 1)
        again = kinds * len(DUTIES[rig.effort.quick])
        if rig.on_cores:
            again = rig.effort.rounds * len(rig.spec.variants) * places
        rig.steps.total = kinds + (len(rig.spec.variants) if cascades else 0) + again + 2

    def _profile(
        self,
        cores: Sequence[int],
        shapes: Sequence[DeviceShape],
        backend: dict[str, str],
        base: BasePoint,
        cascade: CascadeProfile | None,
    ) -> FamilyProfile:
        spec, options, findings = self._rig.spec, self._options, self._found
        wanted = tuple(dict.fromkeys(options.backends))
        return FamilyProfile(
            family=spec.name,
            key=options.key or profiles.profile_key(spec, cores, wanted, energy.meter_key(options.energy)),
            machine=f"{profiles.processor()}, {', '.join(dict.fromkeys(shape.label for shape in shapes))}",
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            quick=options.effort.quick,
            accuracy=pair_with_best(findings.accuracy, findings.held_out, backend),
            latency=tuple(findings.latency),
            backend=backend,
            base=base,
            notes=tuple(dict.fromkeys([*findings.notes, *self._rig.recorded.notes()])),
            cascade=cascade,
            memory=self._rig.memory.measurements(),
            context_bytes=self._rig.memory.context_bytes,
            recorded=self._rig.recorded.launches(),
            left_out=tuple(findings.left_out),
        )

    async def _calibrate(self, setup: WorkerSetup, rows: SampleRows) -> None:
        """Have a worker answer the calibration rows, on which cascades are chosen."""
        rig = self._rig
        rig.steps.begin(f"{setup.variant.name} with {setup.backend}: confidence on calibration rows")
        async with rig.worker(setup) as worker:
            scored = await rig.score(worker, most_s=rig.effort.score_s, rows=rows)
        self._found.calibration[setup.variant.name] = answers_of(scored, rows)

    async def _cascade(self, backend: Mapping[str, str]) -> tuple[CascadeProfile | None, CascadeRows | None]:
        """Return the cascades of the family and the answers behind them.

        Both are None if the family has no confidence, or no labelled rows to choose thresholds on.
        """
        if not self._found.calibration:
            return None, None
        held_out = {name: self._found.held_out[name, chosen] for name, chosen in backend.items()}
        costs = most_frugal(self._found.latency, backend, self._rig.instances.whole[0].profile)
        behind = CascadeRows(common_rows(self._found.calibration), common_rows(held_out))
        joules = {name: m.energy_j_per_row for name, m in costs.items()}
        cascade = await asyncio.to_thread(profile_of, behind.calibration, behind.held_out, joules)
        return with_energies(cascade, costs), behind

    async def _base(self, backend: Mapping[str, str]) -> tuple[BasePoint, LightLoad | None]:
        """Measure the most accurate variant on whole devices in an open loop, at 60 % load or `MOST_ROWS_PER_S` if that
        is less; on cores also at a light load."""
        rig, spec = self._rig, self._rig.spec
        whole = rig.instances.whole
        values = {item.variant: item.value for item in self._found.accuracy if item.backend == backend[item.variant]}
        # A variant that always agrees with the last is not better than that.
        name = spec.variants[-1].name if families.by_agreement(spec) else max(values, key=lambda key: values[key])
        shape = whole[0].profile
        chosen = (name, backend[name], shape)
        measured = [m for m in self._found.latency if (m.variant, m.backend, m.profile) == chosen]
        if not measured:
            raise ProfileError(f"{name} of {spec.name} does not run on {shape}: BASE is the best variant on it")
        full = max(measured, key=lambda m: m.batch)
        rate = BASE_LOAD * len(whole) * full.batch / (full.mean_ms / 1e3)
        load = BASE_LOAD
        if rate > MOST_ROWS_PER_S:
            note = f"BASE was measured at {MOST_ROWS_PER_S:g} rows/s, below 60 % load ({rate:.0f} rows/s)"
            self._found.notes.append(note)
            load *= MOST_ROWS_PER_S / rate
            rate = MOST_ROWS_PER_S
        rig.steps.begin(f"BASE: {name} on {len(whole)} x {shape} at {percent(load)} load")
        await rig.instances.only(whole)
        async with AsyncExitStack() as stack:
            setups = [WorkerSetup(spec.variant(name), full.backend, place, full.threads) for place in whole]
            workers = [await stack.enter_async_context(rig.worker(setup)) for setup in setups]
            async with rig.meters.window(whole) as window:
                seconds = base_seconds(rig.effort, rate)
                run = await rig.drive(rig.driver.open_loop, workers, spec.max_batch, rate, seconds)
            light = await self._light(workers, rate, seconds) if rig.on_cores else None
            if window.busy_w is not None:
                joules = full.energy_j_per_row
            elif rig.on_cores or load >= LEAST_LOAD:
                joules, _ = window.joules(run.rows, run.cpu_s)
            else:
                joules = full.energy_j_per_row
                self._found.notes.append(
                    f"joules of a row of BASE are those of batches of {full.batch} one after the other: that rate is "
                    f"{percent(load)} load"
                )
        base = BasePoint(
            variant=name,
            profile=shape,
            count=len(whole),
            backend=full.backend,
            p95_ms=typical_p95(run.ms),
            energy_j_per_row=joules,
            accuracy=values[name],
            method="measured",
            load=load,
        )
        return base, light

    async def _light(self, workers: Sequence[WorkerProcess], rate: float, seconds: float) -> LightLoad:
        """Return what `LIGHT_RATE` rows a second, or `LIGHT_PART` of `rate`, took of `workers`."""
        driver, most, light = self._rig.driver, self._rig.spec.max_batch, min(front_end.LIGHT_RATE, LIGHT_PART * rate)
        before_ns = sum(process_ns(worker.pid) or 0 for worker in workers)
        run = await self._rig.drive(driver.open_loop, workers, most, light, seconds)
        used_ns = sum(process_ns(worker.pid) or 0 for worker in workers) - before_ns
        return LightLoad(used_ns / 1e9, run.wall_s, run.batches, run.rows, len(workers))

    async def _with_front_end(self, profile: FamilyProfile, light: LightLoad | None) -> FamilyProfile:
        """Return the profile with what the front end costs; if that cannot be measured, without it and with a note."""
        self._rig.steps.begin("the front end, with a model that echoes")
        try:
            front = await front_end.measure(self._rig.rows, self._options.silent_s)
        except (CloverError, OSError) as error:
            self._found.record("what HTTP adds was not measured, and the default SLO leaves it out", error)
            return structs.replace(profile, notes=(*profile.notes, self._found.notes[-1]))
        known = structs.replace(profile, front_ms=front.ms)
        return with_light_load(known, light, front) if light is not None else known
