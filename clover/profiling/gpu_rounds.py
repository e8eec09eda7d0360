"""Measures the cells of a GPU again: its energy counter is coarse, and its clocks and temperature drift.

While an instance of a profile stands, its cells are measured in two rounds, in shuffled order, at full and at light
load (`clover.profiling.duty`).  Joules a row are those of the line of power over duty.  How far the measurements are
from the line is kept beside them (`LatencyMeasurement.energy_error`).
"""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec

from clover.errors import ProfileError, WorkerError
from clover.profiling.driver import Cell
from clover.profiling.duty import LIGHT, DutyPoint, Pauses, fit
from clover.profiling.joules import NOT_ABOVE_IDLE
from clover.profiling.records import latency_of, pool_cells
from clover.profiling.rig import Findings, Rig, WorkerSetup
from clover.types import Method, Placement

DUTIES = {True: ((1.0,), (LIGHT,)), False: ((1.0, LIGHT), (1.0, LIGHT))}
"""The duty cycles of each round, of a quick measurement and of a full one."""
_SAMPLES = 30

CellKey = tuple[str, str, int]
"""Variant, backend and batch size."""


class GpuRounds:
    """Measures again what was found on the profile of `place`, each cell for `least_s` at every duty cycle."""

    def __init__(self, rig: Rig, findings: Findings, place: Placement, least_s: float) -> None:
        self._rig = rig
        self._found = findings
        self._place = place
        self._effort = replace(
            rig.effort, samples=min(rig.effort.samples, _SAMPLES), least_s=least_s, most_s=2 * least_s
        )
        self._shuffled = random.Random(place.profile)
        self._busy: dict[CellKey, list[Cell]] = {}
        """Cells at full load, which latencies are taken from."""
        self._points: dict[CellKey, list[DutyPoint]] = {}
        self._method: Method = "none"

    async def run(self) -> None:
        """Measure, and replace what was measured first.  The instance must stand.  Raises ProfileError if a GPU's
        energy did not rise above rest."""
        profile, rounds = self._place.profile, DUTIES[self._rig.effort.quick]
        left = {(m.variant, m.backend) for m in self._found.latency if m.profile == profile}
        for number, duties in enumerate(rounds):
            order = sorted(left)
            self._shuffled.shuffle(order)
            for variant, name in order:
                setup = WorkerSetup(self._rig.spec.variant(variant), name, self._place)
                self._rig.steps.begin(f"{setup}, round {number + 1} of {len(rounds)}")
                try:
                    await self._worker(setup, duties)
                except WorkerError as error:
                    left.remove((variant, name))
                    self._found.record(f"{setup} was measured once only", error)
        for index, m in enumerate(self._found.latency):
            key = (m.variant, m.backend, m.batch)
            if m.profile != profile or (m.variant, m.backend) not in left or key not in self._points:
                continue
            line = fit(self._points[key])
            if line.joules <= 0.0:
                raise ProfileError(f"{m.variant} on {profile}, batches of {m.batch}: {NOT_ABOVE_IDLE}")
            joules = (line.joules, self._method)
            latency = latency_of(pool_cells(self._busy[key]), m.variant, profile, m.backend, m.threads, joules)
            self._found.latency[index] = msgspec.structs.replace(latency, energy_error=line.error)

    async def _worker(self, setup: WorkerSetup, duties: tuple[float, ...]) -> None:
        """Measure the cells of one worker at each of `duties`."""
        rig = self._rig
        cells = [(batch, duty) for batch in rig.batches for duty in duties]
        self._shuffled.shuffle(cells)
        async with rig.worker(setup) as worker:
            for batch, duty in cells:
                pauses = Pauses(duty=duty, seed=self._shuffled.randrange(1 << 30))
                cell, window = await rig.time_batches(worker, self._place, batch, self._effort, pauses=pauses)
                key = (setup.variant.name, setup.backend, batch)
                if (point := window.point(cell)) is not None:
                    self._points.setdefault(key, []).append(point)
                    self._method = window.method
                if duty == 1.0:
                    self._busy.setdefault(key, []).append(cell)
