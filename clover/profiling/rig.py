"""What every step of a measurement uses: workers on real placements, the driver that feeds them, and the meters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np

from clover import backends as registry
from clover.hints import duration
from clover.profiling.candidates import Candidates
from clover.profiling.chains import Answers
from clover.profiling.driver import Cell, Driver, Scored
from clover.profiling.duty import NO_PAUSES, Pauses
from clover.profiling.instances import TemporaryInstances
from clover.profiling.joules import EnergyMeters, EnergyWindow
from clover.profiling.options import Effort, Progress
from clover.profiling.rows import SampleRows
from clover.runtime.memory.slab import Slab
from clover.runtime.workers.pool import Pool, WorkerProcess
from clover.types import (
    AccuracyMeasurement,
    FamilySpec,
    LatencyMeasurement,
    MemoryMeasurement,
    Placement,
    RecordedLaunches,
    RejectedBackend,
    SandboxOrder,
    VariantSpec,
)
from clover.worker.frames import HeldMemory, Recording, WorkerOrder

log = logging.getLogger("clover.profiling")

_P = ParamSpec("_P")
_T = TypeVar("_T")


class WorkerSetup(NamedTuple):
    """What runs in a worker that is measured, and where."""

    variant: VariantSpec
    backend: str
    place: Placement
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.variant.name} with {self.backend} on {self.place.profile}"


@dataclass
class Findings:
    """What was found so far."""

    accuracy: list[AccuracyMeasurement] = field(default_factory=list)
    latency: list[LatencyMeasurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    held_out: dict[tuple[str, str], Answers] = field(default_factory=dict)
    """Answers to the held-out rows by (variant, backend)."""
    calibration: dict[str, Answers] = field(default_factory=dict)
    """Answers to the calibration rows by variant, with the backend that was chosen."""

    left_out: list[RejectedBackend] = field(default_factory=list)
    """Backends that were tried and not measured to the end, or refused."""

    def of(self, variant: str, backend: str) -> dict[int, float]:
        """Return CPU seconds a row by batch size."""
        return {m.batch: m.cpu_s_per_row for m in self.latency if (m.variant, m.backend) == (variant, backend)}

    def leave_out(self, setup: WorkerSetup, why: str, batch: int = 0, cpu_s_per_row: float = 0.0) -> None:
        """Forget what was measured of a backend that is not used for a variant, and keep why."""
        which = setup.variant.name, setup.backend
        self.latency = [m for m in self.latency if (m.variant, m.backend) != which]
        self.accuracy = [item for item in self.accuracy if (item.variant, item.backend) != which]
        self.left_out.append(
            RejectedBackend(variant=which[0], backend=which[1], why=why, batch=batch, cpu_s_per_row=cpu_s_per_row)
        )

    def record(self, text: str, error: Exception) -> None:
        """Keep "text: error" as a note of the profile, and log it."""
        self.notes.append(f"{text}: {error}")
        log.warning("%s: %s", text, error)


class MemoryFindings:
    """What workers said that their one variant holds, the most of all reports."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, str], tuple[int, int]] = {}
        self.context_bytes: dict[str, int] = {}

    def record(self, profile: str, backend: str, held: Sequence[HeldMemory], context_bytes: int) -> None:
        """Keep what a worker with `backend` on a slice of `profile` holds."""
        for one in held:
            before = self._held.get((one.variant, profile, backend), (0, 0))
            largest = max(before[0], one.weights_bytes), max(before[1], one.peak_bytes)
            self._held[one.variant, profile, backend] = largest
            self.context_bytes[profile] = max(self.context_bytes.get(profile, 0), context_bytes)

    def measurements(self) -> tuple[MemoryMeasurement, ...]:
        """Return what is known, by variant, profile and backend."""
        return tuple(
            MemoryMeasurement(variant=variant, profile=profile, backend=backend, weights_bytes=weights, peak_bytes=peak)
            for (variant, profile, backend), (weights, peak) in sorted(self._held.items())
        )


class RecordingFindings:
    """What workers said of recorded launches: a refusal counts, however often the same launches were fine."""

    def __init__(self) -> None:
        self._refused: dict[tuple[str, str, str], str] = {}

    def record(self, profile: str, backend: str, recorded: Mapping[str, str]) -> None:
        """Keep what a worker with `backend` on a slice of `profile` found, by variant."""
        for variant, refused in recorded.items():
            known = self._refused.get((variant, profile, backend), "")
            self._refused[variant, profile, backend] = known or refused

    def order(self, variant: str, profile: str, backend: str) -> Recording:
        """Return what the next worker does about recorded launches: the first one compares them, which takes
        seconds."""
        refused = self._refused.get((variant, profile, backend))
        return "check" if refused is None else "skip" if refused else "trust"

    def launches(self) -> tuple[RecordedLaunches, ...]:
        """Return what is known, by variant, profile and backend."""
        return tuple(
            RecordedLaunches(variant=variant, profile=profile, backend=backend, refused=refused)
            for (variant, profile, backend), refused in sorted(self._refused.items())
        )

    def notes(self) -> list[str]:
        """Return what a reader of the profile should know."""
        return [
            f"{one.variant} with {one.backend} on {one.profile} runs without CUDA graphs: {one.refused}"
            for one in self.launches()
            if one.refused
        ]


class ProgressSteps:
    """Counts steps for whatever shows progress.  A step is one worker that is started and measured, `what` the last.
    `announce` is called once, with how long all will take by what the first step did."""

    def __init__(
        self,
        progress: Progress | None,
        *,
        announce: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = 1
        self.what = ""
        self._progress = progress
        self._announce = announce
        self._clock = clock
        self._began_s = 0.0
        self._done = 0

    def begin(self, what: str) -> None:
        """Say that the next step is `what`."""
        if self._done == 0:
            self._began_s = self._clock()
        elif self._done == 1 and self._announce is not None:
            first_s = self._clock() - self._began_s
            self._announce(
                f"the first of {self.total} steps took {first_s:.1f} s: measuring takes about "
                f"{duration(first_s * self.total, rough=True)}, once"
            )
        self.what = what
        self.report(what, self._done, self.total)
        self._done += 1

    def report(self, what: str, done: int, total: int) -> None:
        """Pass on that `what` is being done after `done` steps; `total` is corrected if it was estimated too low."""
        log.debug("%s (%d of %d)", what, done, total)
        if self._progress is not None:
            self._progress(what, done, max(total, done + 1))


@dataclass(frozen=True)
class Rig:
    """Starts workers of `spec` one after another, drives them with `rows`, and meters their energy."""

    spec: FamilySpec
    pool: Pool
    slab: Slab
    rows: SampleRows
    driver: Driver
    instances: TemporaryInstances
    candidates: Candidates
    meters: EnergyMeters
    effort: Effort
    steps: ProgressSteps
    memory: MemoryFindings = field(default_factory=MemoryFindings)
    recorded: RecordingFindings = field(default_factory=RecordingFindings)
    sandbox: SandboxOrder | None = None

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes to measure, rising."""
        return self.effort.batches(self.spec.max_batch)

    @property
    def on_cores(self) -> bool:
        """Whether workers run on core-sets rather than GPUs."""
        return self.instances.on_cores

    @contextlib.asynccontextmanager
    async def worker(self, setup: WorkerSetup) -> AsyncIterator[WorkerProcess]:
        """Start a worker, wait until it is ready, and end it afterwards.  Raises WorkerError if it does not start."""
        variant, backend, place, threads = setup
        await self.instances.need(place)
        device = self.instances.device(place)
        profile = "" if self.on_cores else place.profile
        compiled = registry.get(backend).compiles
        order = WorkerOrder(
            family=self.spec,
            variant=variant.name,
            backend=backend,
            artifact_dir=str(self.candidates.artifact(variant, backend, threads, profile)) if compiled else "",
            cores=device.cores(place),
            threads=threads,
            recording=self.recorded.order(variant.name, place.profile, backend),
            max_batch=self.spec.max_batch,
            visible_devices=device.visible(place),
            place=place.id,
            sandbox=self.sandbox,
        )
        worker = await self.pool.spawn(order, self.slab)
        self.memory.record(place.profile, backend, worker.held, worker.context_bytes)
        self.recorded.record(place.profile, backend, worker.recorded)
        try:
            await self.meters.rest(place)
            yield worker
        except BaseException:
            worker.kill()
            raise
        await worker.drain_and_exit()

    async def drive(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run one of the driver's loops in a thread and return its result.

        If this is cancelled, the loop is ended first: nothing may touch ring or slab later.
        """
        task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.driver.stop()
            await asyncio.wait((task,))
            task.exception()
            raise

    async def score(self, worker: WorkerProcess, *, most_s: float, rows: SampleRows | None = None) -> Scored:
        """Return the answers of `worker` to `rows` (by default the rig's), as far as it gets in `most_s` seconds; on
        cores, time that it had none of does not count (see `Driver.score`)."""
        batch, patient = self.batches[-1], self.on_cores
        return await self.drive(self.driver.score, worker, batch, most_s=most_s, rows=rows, patient=patient)

    async def time_batches(
        self, worker: WorkerProcess, place: Placement, batch: int, effort: Effort, *, pauses: Pauses = NO_PAUSES
    ) -> tuple[Cell, EnergyWindow]:
        """Return the timing of batches of one size, and what was metered meanwhile."""
        async with self.meters.window((place,)) as window:
            cell = await self.drive(
                self.driver.cell,
                worker,
                batch,
                samples=effort.samples,
                least_s=effort.least_s,
                most_s=effort.most_s,
                pauses=pauses,
            )
        return cell, window


def answers_of(scored: Scored, rows: SampleRows) -> Answers:
    """Return the confidence of each answer and whether it is right; without labels no answer counts as right."""
    right = scored.right if rows.labelled else np.zeros(len(scored.answers), np.bool_)
    return Answers(scored.scores.astype(np.float64), right, scored.answers)
