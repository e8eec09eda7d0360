"""The grid of latencies and energies: every variant on every profile, with every backend and batch size worth trying.

A shared machine has fast and slow minutes, and figures of variants are only worth something in comparison.  So on cores
everything is measured again in rounds, every cell once a round, and the medians over the rounds are kept: in a slow
minute all variants are slow.

GPUs have rounds of their own (`clover.profiling.gpu_rounds`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from clover.errors import ProfileError, WorkerError
from clover.planning.model.queueing import REST_S
from clover.profiling.choose import BEHIND, faster, in_order, refusal, times_behind
from clover.profiling.driver import Cell, Scored
from clover.profiling.duty import Pauses
from clover.profiling.options import Effort
from clover.profiling.records import accuracy_of, latency_of, middle_j, pool_cells
from clover.profiling.rig import Findings, Rig, WorkerSetup, answers_of
from clover.runtime.workers.pool import WorkerProcess
from clover.types import LatencyMeasurement, Method, Placement, VariantSpec

log = logging.getLogger("clover.profiling")

TimedCell = tuple[Cell, tuple[float, Method]]
"""Batches of one size, and joules a row with how they are known."""

MULTITHREADED_FROM_MS = 1.0
"""A quick measurement tries several threads only if the largest batch takes one thread this long: handing work between
threads costs tens of microseconds."""

GLANCE_BATCHES, GLANCE_S = 4, 0.04
"""The least batches and seconds that show whether a backend is far behind another."""

WAKING_BATCHES = 60
"""Batches after a pause that show what waking up costs."""


class LatencyGrid:
    """Measures the cells of the grid and adds them to the findings."""

    def __init__(self, rig: Rig, findings: Findings) -> None:
        self._rig = rig
        self._found = findings

    async def smallest(self, variant: VariantSpec, names: Sequence[str], places: Sequence[Placement]) -> int:
        """Measure `variant` with each backend on the smallest profile that has room for it; return the profile's index.
        `places` are sorted by size.  On cores every variant fits the smallest.  Raises ProfileError if eager does not
        run on any."""
        for index, place in enumerate(places):
            try:
                await self._every_backend(variant, names, place)
            except ProfileError as error:
                cause = error.__cause__
                if self._rig.on_cores or not isinstance(cause, WorkerError) or index == len(places) - 1:
                    raise
                self._found.record(f"{variant.name} does not run on {place.profile}", cause)
            else:
                return index
        raise AssertionError("the loop returns or raises at its last place")

    async def _every_backend(self, variant: VariantSpec, names: Sequence[str], place: Placement) -> None:
        """Measure accuracy, agreement with eager, and latency of each backend on `place`, the most promising first.  A
        backend that fails, or on cores falls behind, is left out."""
        rig, effort = self._rig, self._rig.effort
        largest = rig.batches[-1]
        reference: Scored | None = None
        waiting = ["eager"]
        while waiting:
            name = waiting.pop(0)
            setup = WorkerSetup(variant, name, place)
            rig.steps.begin(str(setup))
            try:
                async with rig.worker(setup) as worker:
                    if name != "eager" and rig.on_cores and await self._is_behind(worker, setup):
                        continue
                    async with rig.meters.window((place,)) as window:
                        # As a mere reference eager need not see every row, slow as it may be.
                        most_s = effort.score_s / (2 if name == "eager" and len(names) > 1 else 1)
                        scored = await rig.score(worker, most_s=most_s)
                    reference = reference or scored
                    self._keep_score(setup, scored, reference)
                    for batch in rig.batches[:-1]:
                        await self._cell(worker, setup, batch)
                    if len(scored.cell.ms) >= effort.samples:
                        cell = scored.cell
                        self._keep(cell, setup, window.joules(cell.rows, cell.cpu_s, cell.busy_s))
                    else:
                        await self._cell(worker, setup, largest)
            except (WorkerError, ProfileError) as error:
                if name == "eager" and isinstance(error, WorkerError):
                    text = f"{variant.name} of {rig.spec.name} cannot be measured: {error}"
                    raise ProfileError(text) from error
                if name == "eager":
                    raise
                log.warning("%s is not used for %s: %s", name, variant.name, error)
                self._found.leave_out(setup, str(error))
            if name == "eager":
                waiting = in_order(names, self._found.of(variant.name, name)[largest])

    async def _is_behind(self, worker: WorkerProcess, setup: WorkerSetup) -> bool:
        """Return whether a glance at a backend shows that it costs clearly more than the cheapest so far that may stand
        for eager; it is left out then."""
        rig, name = self._rig, setup.variant.name
        scores = [item for item in self._found.accuracy if item.variant == name]
        costs = [self._found.of(name, item.backend) for item in scores if not refusal(item, scores[0])]
        glance = replace(rig.effort, samples=GLANCE_BATCHES, least_s=GLANCE_S, most_s=8 * GLANCE_S)
        mine = {}
        for batch in dict.fromkeys((rig.batches[-1], 1)):
            cell, _ = await rig.time_batches(worker, setup.place, batch, glance)
            mine[batch] = cell.cpu_s / cell.rows
        ratio = max(times_behind(mine, cost) for cost in costs)
        if ratio < BEHIND:
            return False
        largest = rig.batches[-1]
        self._found.leave_out(setup, f"a row takes {ratio:.1f} x the CPU or more", largest, mine[largest])
        return True

    async def larger(self, variant: VariantSpec, name: str, place: Placement) -> None:
        """Measure latency on a larger profile, with the thread count that is worth it."""
        rig = self._rig
        one = {
            m.batch: m.mean_ms
            for m in self._found.latency
            if (m.variant, m.backend, m.threads) == (variant.name, name, 1)
        }
        size = place.size if rig.on_cores else 1
        counts = [size] if rig.effort.quick else [size >> shift for shift in range(size.bit_length())]
        if rig.effort.quick and max(one.values()) < MULTITHREADED_FROM_MS:
            counts = []
        best: list[LatencyMeasurement] = []
        several = [count for count in counts if count > 1 and rig.candidates.compiled(variant, name, count)]
        for threads in (*several, 1):
            if threads == 1 and best:
                break
            setup = WorkerSetup(variant, name, place, threads)
            rig.steps.begin(f"{setup}, {threads} thread{'s' if threads > 1 else ''}")
            try:
                cells = await self._every_batch(setup)
            except WorkerError as error:
                if rig.on_cores:
                    raise
                self._found.record(f"{variant.name} with {name} does not run on {place.profile}", error)
                return
            times = {m.batch: m.mean_ms for m in cells}
            if threads == 1 or faster(times, one):
                best_times = {m.batch: m.mean_ms for m in best}
                best = cells if not best or faster(times, best_times, 1.0) else best
        self._found.latency += best

    async def _every_batch(self, setup: WorkerSetup) -> list[LatencyMeasurement]:
        """Return the measurements of every batch size, without adding them to the findings."""
        kept = len(self._found.latency)
        async with self._rig.worker(setup) as worker:
            for batch in self._rig.batches:
                await self._cell(worker, setup, batch)
        cells = self._found.latency[kept:]
        del self._found.latency[kept:]
        return cells

    async def again(self, places: Sequence[Placement], chosen: Mapping[str, str]) -> None:
        """Measure the cells of the backend `chosen` for each variant again in rounds, and replace what was measured
        first."""
        rig, shares = self._rig, self._rig.effort.rounds
        part = replace(
            rig.effort,
            samples=math.ceil(rig.effort.samples / shares),
            least_s=rig.effort.least_s / shares,
            most_s=rig.effort.most_s / shares,
        )
        at = {place.profile: place for place in places}
        kinds = dict.fromkeys(
            (m.variant, m.backend, m.profile, m.threads) for m in self._found.latency if m.backend == chosen[m.variant]
        )
        timed: dict[tuple[str, str, str, int], list[TimedCell]] = {}
        for number in range(shares):
            for variant, name, profile, threads in list(kinds):
                setup = WorkerSetup(rig.spec.variant(variant), name, at[profile], threads)
                rig.steps.begin(f"{setup}, round {number + 1} of {shares}")
                try:
                    cells = await self._round(setup, part)
                except WorkerError as error:
                    del kinds[variant, name, profile, threads]
                    self._found.record(f"{setup} was measured once only", error)
                    continue
                for batch, one in cells.items():
                    timed.setdefault((variant, name, profile, batch), []).append(one)
        for index, m in enumerate(self._found.latency):
            if (m.variant, m.backend, m.profile, m.threads) in kinds:
                each = timed[m.variant, m.backend, m.profile, m.batch]
                cell, energy = pool_cells([cell for cell, _ in each]), middle_j([joules for _, joules in each])
                latency = latency_of(cell, m.variant, m.profile, m.backend, m.threads, energy)
                rested_j = m.rested_j * energy[0] / m.energy_j_per_row if m.rested_j else 0.0
                self._found.latency[index] = msgspec.structs.replace(latency, rested_j=rested_j)

    async def _round(self, setup: WorkerSetup, effort: Effort) -> dict[int, TimedCell]:
        """Return what one worker takes for every batch size, by batch size."""
        rig, cells = self._rig, dict[int, TimedCell]()
        async with rig.worker(setup) as worker:
            for batch in rig.batches:
                cell, window = await rig.time_batches(worker, setup.place, batch, effort)
                cells[batch] = cell, window.joules(cell.rows, cell.cpu_s, cell.busy_s)
        return cells

    async def _cell(self, worker: WorkerProcess, setup: WorkerSetup, batch: int) -> None:
        """Measure one batch size; on cores, for the smallest, also what waking the worker up costs."""
        rig = self._rig
        cell, window = await rig.time_batches(worker, setup.place, batch, rig.effort)
        joules = window.joules(cell.rows, cell.cpu_s, cell.busy_s)
        self._keep(cell, setup, joules)
        if rig.on_cores and batch == rig.batches[0] < rig.batches[-1]:
            # At a low load a worker sleeps before each batch; in a closed loop it never does.
            waking = replace(rig.effort, samples=WAKING_BATCHES, least_s=0.0)
            pauses = Pauses(fixed_s=REST_S)
            rested_cell, window = await rig.time_batches(worker, setup.place, batch, waking, pauses=pauses)
            rested = window.joules(rested_cell.rows, rested_cell.cpu_s, rested_cell.busy_s)
            more_j = max(0.0, batch * (rested[0] - joules[0]))
            self._found.latency[-1] = msgspec.structs.replace(self._found.latency[-1], rested_j=more_j)

    def _keep(self, cell: Cell, setup: WorkerSetup, joules: tuple[float, Method]) -> None:
        variant, name, place, threads = setup
        self._found.latency.append(latency_of(cell, variant.name, place.profile, name, threads, joules))

    def _keep_score(self, setup: WorkerSetup, scored: Scored, eager: Scored) -> None:
        rig, variant, name = self._rig, setup.variant, setup.backend
        score = accuracy_of(rig.spec, variant, name, scored.answers, eager.answers, scored.right, rig.rows.count)
        if seen := min(len(scored.right), len(eager.right)):
            more = 100.0 * float(scored.right[:seen].mean() - eager.right[:seen].mean())
            score = msgspec.structs.replace(score, points=more)
        self._found.accuracy.append(score)
        self._found.held_out[variant.name, name] = answers_of(scored, rig.rows)
