"""Parts of a GPU that share its memory and caches, measured again with the rest of the GPU at work.

How fast such a part is depends on its neighbours: alone it has all of the bandwidth.  Plans fill the GPU, so what they
need is the time of a part beside busy ones.  While a cell is measured, a worker with the same variant has the rest of
the GPU and is never without a batch of the largest size.  Other neighbours would be kinder or worse; the same variant
is what a plan of one variant runs, and is said in the profile.

Only times are taken from here.  Joules a row stay those of the part alone: the GPU has one counter, and what neighbours
draw would be in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.errors import WorkerError
from clover.profiling.driver import CREDITS, DrivenWorker, check_status
from clover.profiling.records import latency_of
from clover.profiling.rig import Findings, Rig, WorkerSetup
from clover.types import DeviceShape, Placement

_SAMPLES = 30


def rest_of(shape: DeviceShape, place: Placement) -> tuple[Placement, ...]:
    """Return what fills a device beside `place`, in the fewest parts; nothing if that is all of it."""
    rests = [tuple(other for other in layout if other != place) for layout in shape.layouts if place in layout]
    return min(rests, key=len, default=())


class BusyNeighbours:
    """Keeps `workers` at batches of `slots`, which `submit` gives them, until `settled`."""

    def __init__(self, workers: Sequence[DrivenWorker], slots: NDArray[np.uint32]) -> None:
        self._workers = workers
        self._slots = slots
        self._held: Counter[int] = Counter()

    def feed(self, submit: Callable[[DrivenWorker, NDArray[np.uint32]], int]) -> None:
        """Give each worker as many batches as it may hold.  Raises ProfileError if its model fails."""
        self._reap()
        for at, worker in enumerate(self._workers):
            while self._held[at] < CREDITS:
                submit(worker, self._slots)
                self._held[at] += 1

    def idle(self) -> bool:
        """Return whether all batches are back."""
        self._reap()
        return not any(self._held.values())

    def _reap(self) -> None:
        for at, worker in enumerate(self._workers):
            while (done := worker.ring.reap()) is not None:
                check_status(done[1])
                self._held[at] -= 1


class BesideNeighbours:
    """Measures the times of what was found on the profile of `place` again, beside busy neighbours; does nothing on
    devices whose parts do not disturb each other, and for the whole of one."""

    def __init__(self, rig: Rig, findings: Findings, place: Placement, least_s: float) -> None:
        device = rig.instances.device(place)
        self._rig = rig
        self._found = findings
        self._place = place
        self._rest = rest_of(device.shape(), place) if getattr(device, "parts_share", False) else ()
        most_s = max(rig.effort.most_s, 2 * least_s)
        self._effort = replace(rig.effort, samples=min(rig.effort.samples, _SAMPLES), least_s=least_s, most_s=most_s)

    async def run(self) -> None:
        """Measure, and keep these times instead of those of the part alone.  A variant that does not run beside itself
        keeps those, with a note."""
        if not self._rest:
            return
        rig, profile = self._rig, self._place.profile
        await rig.instances.only((self._place, *self._rest))
        for variant, name in sorted({(m.variant, m.backend) for m in self._found.latency if m.profile == profile}):
            setup = WorkerSetup(rig.spec.variant(variant), name, self._place)
            rig.steps.begin(f"{setup}, beside busy neighbours")
            try:
                await self._worker(setup)
            except WorkerError as error:
                self._found.note(f"times of {setup} are those of the part alone", error)
        others = " and ".join(place.profile for place in self._rest)
        self._found.notes.append(
            f"times on {profile} are measured beside busy neighbours (the same variant on {others}), joules alone"
        )

    async def _worker(self, setup: WorkerSetup) -> None:
        rig, profile = self._rig, self._place.profile
        async with AsyncExitStack() as stack:
            worker = await stack.enter_async_context(rig.worker(setup))
            others = [await stack.enter_async_context(rig.worker(setup._replace(place=place))) for place in self._rest]
            slots = np.arange(rig.batches[-1], dtype=np.uint32) + rig.spec.max_batch
            rig.rows.fill(rig.slab, slots.tolist(), 0)
            for batch in rig.batches:
                busy = BusyNeighbours(others, slots)
                cell = await rig.drive(rig.driver.beside, worker, batch, others, busy, self._effort)
                for index, m in enumerate(self._found.latency):
                    if (m.variant, m.backend, m.profile, m.batch) == (
                        setup.variant.name,
                        setup.backend,
                        profile,
                        batch,
                    ):
                        joules = (m.energy_j_per_row, m.energy_method)
                        timed = latency_of(cell, m.variant, m.profile, m.backend, m.threads, joules)
                        self._found.latency[index] = msgspec.structs.replace(
                            timed, rested_j=m.rested_j, energy_error=m.energy_error
                        )
