"""One family being served: its slab, router and fleet, put together.

The order of a worker holds all that it needs.  On a GPU it names the instance that the worker may see.  On an emulated
GPU it also has the time and the power of batches: those of the profile, unless the pace file gives the board other
figures (`drawn`), which a profile cannot know before it is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clover import backends
from clover.accounting import Account, ProfiledEnergy, profiled_energy
from clover.accounting.devices import Line
from clover.accounting.labels import grams_method, join_labels
from clover.config import FamilyConfig, WorkersConfig
from clover.devices import emulation
from clover.errors import DeviceError, WorkerLostInStart
from clover.interfaces import Device
from clover.planning.model.problem import services_of
from clover.planning.model.queueing import Service
from clover.planning.transition.memory import MemoryNeeds, Room, SliceMemory
from clover.profiles import Paces, pace_of
from clover.runtime.memory import numa
from clover.runtime.memory.free import free_bytes
from clover.runtime.memory.slab import Layout, Slab
from clover.runtime.router.lane_pace import ProfiledPace, pace_by
from clover.runtime.router.router import Router
from clover.runtime.router.traffic import TenantTotals, Traffic
from clover.runtime.router.waiting import SpareTime
from clover.runtime.workers import sandboxes
from clover.runtime.workers.fleet import FamilyFleet
from clover.runtime.workers.output import LeftOut
from clover.runtime.workers.pool import Pool, WorkerProcess
from clover.runtime.workers.resident_orders import choose_residents, part_of_machine, recording, resident_bytes
from clover.runtime.workers.standby import StandbyPolicy
from clover.types import Assignment, FamilyProfile, FamilySpec, LatencyMeasurement, Method, Placement
from clover.worker.frames import Resident, WorkerOrder

_log = logging.getLogger("clover.fleet")

LEFT_OUT_NS = 600 * 1_000_000_000
"""For how long a variant that a worker left out is not tried again beside others on such slices, and none is beside
another where a worker died that was to hold several."""

ALSO_PART = 0.5
"""The part of the time for starting (`workers.start_s`) after which a worker begins to load no further variant."""

SLAB_BYTES = 128 << 20
"""The most shared memory for the inputs and outputs of one family.  Pages are taken once they are written to, so that
a slab costs what waits in it; `queue_rows` limits that."""
LEAST_SLOTS_PER_BATCH = 4
"""Slots are at least this many batches' worth, whatever `SLAB_BYTES` says: two credits running, as many waiting."""


def measured_threads(profile: FamilyProfile | None, variant: str, shape: str, backend: str) -> int | None:
    """Return the number of threads that the profiler found best for this worker; None if it was not measured."""
    if profile is None:
        return None
    best: list[LatencyMeasurement] = [
        m for m in profile.latency if (m.variant, m.profile, m.backend) == (variant, shape, backend)
    ]
    return max(best, key=lambda m: m.batch).threads if best else None


class Served:
    """A family with everything that serves it.  `slo` says how its SLO is held
    (`clover.control.watch.slo.slo_gauges`), `corrections` the factors beside its profile, by (variant, profile of the
    slice, "time" or "energy").

    `spec` is the family as loaded, which workers and profiles know; the router's carries the name it is served under.
    """

    def __init__(
        self,
        spec: FamilySpec,
        config: FamilyConfig,
        *,
        pool: Pool,
        devices: Mapping[str, Device],
        account: Account,
        workers: WorkersConfig,
        cache: Path,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.spec = spec
        self.config = config
        self.name = config.name or spec.name
        self.profile: FamilyProfile | None = None
        self.drawn: Paces = {}
        self.corrections: dict[tuple[str, str, str], float] = {}
        self.memory_share = 1.0
        """The part of the machine's memory that is the family's, on cores, which all families use."""
        self.budget: dict[str, float] = {}
        self.capacity: dict[str, float] = {}
        self.slo: dict[str, float] = {}
        self._targets: dict[str, float] = {}
        self._services: dict[tuple[str, str], Service] = {}
        self.state = "LOADING"
        self.reason = ""
        self.unmeasured = ""
        """Why it is served without a profile, if it is to have one."""
        self.wake_s: float | None = None
        """Seconds from a request to its first worker, the last time that it slept."""
        self.left_out = LeftOut()
        self._passed_over: dict[tuple[str, str], int] = {}
        self._alone: dict[str, int] = {}  # until when (ns), by profiles of slices where one with several variants died
        self._pool = pool
        self._account = account
        self._devices = devices
        self._workers = workers
        self._cache = cache
        layout = Layout.fitting(spec, SLAB_BYTES, least=spec.max_batch * LEAST_SLOTS_PER_BATCH)
        self.slab = Slab.create(layout)
        numa.keep_near(self.slab.memory, devices.values(), self.name)
        self.router = Router(
            msgspec.structs.replace(spec, name=self.name), self.slab, layout.slots, config, None, account, loop=loop
        )
        names = [variant.name for variant in spec.variants]
        self._standby_policy = (
            StandbyPolicy(names, config.relief, lambda: self.targets.get("slo_ms", 0.0), self._may_stand)
            if config.relief
            else None
        )
        self.fleet = FamilyFleet(
            self.router,
            start=self._start,
            profiled=self._energy_by_profile,
            silent_s=workers.silent_s,
            pace=self._pace,
            one_process=self._one_process,
            standby=self._standby_policy,
        )
        self._know_memory(None)
        self._loop = loop
        self.spare: SpareTime | None = None
        """What computes rows of batch jobs; None until there are some."""

    def spare_time(self) -> SpareTime:
        """Return what computes rows of batch jobs on workers that have nothing else to do."""
        if self.spare is None:
            self.spare = SpareTime(
                self.router,
                lambda variant, shape: self._services.get((variant, shape)),
                lambda: self.targets.get("slo_ms", 0.0),
                self._loop,
            )
        self.spare.spec = self.router.spec  # another version may have been loaded
        return self.spare

    def _may_stand(self, worker: Assignment, standby: Assignment) -> bool:
        """Return whether `standby` may be beside `worker`: memory has room, and the device takes a second process."""
        member = self.fleet.members.spawned.get(standby)
        if member is not None and member.standby and (member.ready or not member.failures):
            return True  # it was let in, and what it holds is missing from what is free now
        memory = self.fleet.memory
        alone = self._one_process(standby.placement)
        return memory.resident(standby) or (not alone and memory.beside(worker, standby))

    def _one_process(self, placement: Placement) -> bool:
        """Return whether the device of a placement takes one process at a time."""
        device = self._devices.get(placement.device)
        return device is not None and device.shape().one_process

    def use(self, profile: FamilyProfile | None, drawn: Paces | None = None) -> None:
        """Expect the accuracy and energy of `profile`; `drawn`: the real pace of emulated boards, if that is known
        apart from it."""
        self.profile = profile
        if profile is not None:
            self.unmeasured = ""
        self.drawn = drawn or {}
        self._services = services_of(profile) if profile is not None else {}
        if self._standby_policy is not None:
            self._standby_policy.use(profile)
        self._know_memory(profile)
        self.router.expect(profile, unmeasured=bool(self.unmeasured))

    @property
    def targets(self) -> dict[str, float]:
        """What the family is planned by: `slo_ms`, `accuracy_floor`.  Under overload the router keeps to them too."""
        return self._targets

    @targets.setter
    def targets(self, targets: dict[str, float]) -> None:
        self._targets = targets
        self.router.aim(targets.get("slo_ms", 0.0), targets.get("accuracy_floor", 101.0))

    def order(self, assignment: Assignment) -> WorkerOrder:
        """Return the order for a worker of `assignment`, which holds further variants beside it as far as the settings
        allow; raises DeviceError if its placement does not exist, or is emulated and has no known pace."""
        placement = assignment.placement
        device = self._device(placement)
        emulated = device.shape().emulated
        first = self._make_resident(assignment.variant, assignment.backend, placement, device)
        order = WorkerOrder(
            family=self.spec,
            variant=first.variant,
            backend=first.backend,
            artifact_dir=first.artifact_dir,
            cores=device.cores(placement),
            threads=first.threads,
            recording=first.recording,
            max_batch=self.spec.max_batch,
            memory_bytes=self._workers.memory_bytes,
            # What runs for an emulated slice runs on the CPU, whatever GPUs this machine has.
            visible_devices="" if emulated else device.visible(placement),
            place=placement.id,
            emulated=emulation("boxes").slice_of(first, device, placement) if emulated else None,
            sandbox=sandboxes.order_of(self._workers, gpu=not emulated and bool(device.visible(placement))),
        )
        return self._with_residents(order, assignment, device)

    def _with_residents(self, order: WorkerOrder, assignment: Assignment, device: Device) -> WorkerOrder:
        """Return `order` with the variants that its worker is to hold beside the one of `assignment`."""
        placement = assignment.placement
        most = self.config.most_resident(len(self.spec.variants))
        if self.config.variant or most == 1 or self._why_single(assignment.variant, placement.profile, first=True):
            return order
        limit_bytes = resident_bytes(device, placement, share=self.memory_share, limit_bytes=self._workers.memory_bytes)
        left_bytes = self.fleet.memory.left_bytes(placement, part_of_machine(device, placement, self.memory_share))
        if left_bytes is not None:  # it loads beside a worker, whose rows need their memory
            limit_bytes = max(1, min(limit_bytes, left_bytes))
        also = []
        for variant, backend in choose_residents(
            self.profile,
            (assignment.variant, assignment.backend),
            placement.profile,
            most=most,
            limit_bytes=limit_bytes,
            here={item.variant for item in self.fleet.planned if item.placement == placement},
            planned={item.variant for item in self.fleet.planned},
        ):
            if self._why_single(variant, placement.profile):
                continue
            with contextlib.suppress(DeviceError):  # nothing says how long it takes there: no plan asks it there either
                also.append(self._make_resident(variant, backend, placement, device))
        if not also:
            return order
        also_s = ALSO_PART * self._workers.start_s
        wished = msgspec.structs.replace(order, also=tuple(also), resident_bytes=limit_bytes, also_s=also_s)
        fitting = wished.fitting()
        if len(fitting.also) < len(also):
            _log.warning(
                "%s: a worker on %s holds %d of %d variants: with more, its order is longer than a message may be",
                self.name,
                placement.profile,
                len(fitting.also) + 1,
                len(also) + 1,
            )
        return fitting

    def _make_resident(self, variant: str, backend: str, placement: Placement, device: Device) -> Resident:
        """Return how a worker at `placement` loads a variant; raises DeviceError if it is emulated and no pace is
        known."""
        shape = placement.profile
        threads = measured_threads(self.profile, variant, shape, backend) or device.threads(placement)
        target = backends.target_of(device, shape)
        folder = backends.artifact_dir(
            self._cache, self.spec, self.spec.variant(variant), backend, threads, target=target
        )
        pace_ms: tuple[float, ...] = ()
        watts: tuple[float, ...] = ()
        if device.shape().emulated:
            pace = self.drawn.get((variant, shape)) or pace_of(self.profile, variant, shape, backend)
            if pace is None:
                raise DeviceError(
                    f"{self.name}: nothing says how long {variant} takes on an emulated {shape}: profile the family "
                    "(it needs an evaluation set or published accuracies), or name it in the file of workers.pace"
                )
            pace_ms, watts = pace.table(self.spec.max_batch)
        return Resident(
            variant=variant,
            backend=backend,
            artifact_dir=str(folder),
            threads=threads,
            recording=recording(self.profile, variant, shape, backend),
            pace_ms=pace_ms,
            watts=watts,
        )

    def _why_single(self, variant: str, profile: str, *, first: bool = False) -> str:
        """Return why no worker on slices of `profile` holds `variant` beside others now, or (`first`) others beside it;
        empty if one may."""
        now_ns = time.monotonic_ns()
        if now_ns < self._alone.get(profile, 0):
            return "a worker died there while it loaded several variants"
        if not first and now_ns < self._passed_over.get((variant, profile), 0):
            return "a worker there left it out"
        return ""

    def _know_memory(self, profile: FamilyProfile | None) -> None:
        """Let the fleet know what workers need of memory, by `profile`, and have of it."""
        self.fleet.memory = SliceMemory(
            needs=MemoryNeeds(profile),
            room=self._room,
            held=self.fleet.held_bytes,
            overlapped=self.fleet.overlapped,
            resident=self.fleet.resident,
            failed=self.fleet.found_no_room,
            alone=self._why_single,
            limit_bytes=self._workers.memory_bytes,
        )

    def _room(self, placement: Placement) -> Room:
        """Return what workers at `placement` may hold together: the slice's memory; on cores what the operator lets a
        worker have, else what is free on the machine."""
        try:
            slice_bytes = self._device(placement).memory_bytes(placement)
        except DeviceError:  # it is gone, is lost, or does not say
            return Room()
        if slice_bytes or self._workers.memory_bytes:
            return Room(slice_bytes or self._workers.memory_bytes)
        return Room(free_bytes(), free=True)

    @property
    def best(self) -> str:
        """The variant of the highest accuracy that is known; if it is known of none, the last one."""
        known = self.router.accuracy
        return self.spec.variants[max(range(len(known)), key=lambda lane: (known[lane], lane))].name

    def default_deployment(self) -> tuple[Assignment, ...]:
        """Return what to deploy without a profile, which planning needs: the pinned (or best) variant, eager, on every
        instance of the layout with most of them."""
        variant = self.config.variant or self.best
        out = []
        for device in self._devices.values():
            for placement in max(device.shape().layouts, key=len, default=()):
                out.append(Assignment(placement=placement, family=self.name, variant=variant, backend="eager"))
        return tuple(out)

    async def _start(self, assignment: Assignment) -> WorkerProcess:
        order = self.order(assignment)
        try:
            worker = await self._pool.spawn(order, self.slab, left_out=self.left_out)
        except WorkerLostInStart as error:
            if not order.also:
                raise
            shape = assignment.placement.profile
            if not error.hung:
                self._alone[shape] = time.monotonic_ns() + LEFT_OUT_NS
            _log.warning(
                "%s: a worker on %s to hold %s beside %s did not start (%s): it starts with that variant alone%s",
                self.name,
                shape,
                ", ".join(resident.variant for resident in order.also),
                order.variant,
                error,
                "" if error.hung else f", as are all on such slices for {LEFT_OUT_NS // 60_000_000_000} minutes",
            )
        else:
            until_ns = time.monotonic_ns() + LEFT_OUT_NS
            self._passed_over.update(((name, assignment.placement.profile), until_ns) for name in worker.left_out)
            return worker
        alone = msgspec.structs.replace(order, also=(), resident_bytes=0)
        return await self._pool.spawn(alone, self.slab, left_out=self.left_out)

    def _energy_by_profile(self, assignment: Assignment) -> ProfiledEnergy:
        shape = assignment.placement.profile
        return profiled_energy(self.profile, assignment.variant, shape, assignment.backend, self.spec.max_batch)

    def _pace(self, assignment: Assignment) -> ProfiledPace:
        """Return how fast a worker serves by the profile."""
        return pace_by(self._services.get((assignment.variant, assignment.placement.profile)))

    def _device(self, placement: Placement) -> Device:
        device = self._devices.get(placement.device)
        if device is None:
            raise DeviceError(f"there is no device {placement.device!r}")
        return device

    # --- what others read ---------------------------------------------------------------------------------------------

    @property
    def traffic(self) -> Traffic:
        return self.router.traffic

    @property
    def ready(self) -> bool:
        return self.router.ready

    @property
    def asleep(self) -> bool:
        """Whether it has no worker because nobody asked it, and none is there again yet."""
        return self.router.state.asleep is not None

    @property
    def tenants(self) -> dict[str, TenantTotals]:
        """What each tenant sent and what that cost; the empty name has what no tenant did, and sums are the model's."""
        used: dict[str, list[tuple[Method, Line]]] = {}
        for key, usage in self._account.usage.items():
            if key.family == self.name:
                used.setdefault(key.tenant, []).extend(usage.energy.items())
        return {
            name: dataclasses.replace(
                totals,
                active_j=sum(line.joules for _, line in used.get(name, ())),
                active_g=sum(line.grams for _, line in used.get(name, ())),
                method=join_labels(method for method, _ in used.get(name, ())),
                grams_method=join_labels(
                    grams_method(how, grid) for how, line in used.get(name, ()) for grid in line.grids
                ),
            )
            for name, totals in self.traffic.by_tenant().items()
        }

    def tenants_json(self) -> dict[str, Any]:
        """Return `tenants` for the state of the server; the empty name stands for requests without a tenant."""
        return {
            name: {
                **{field.name: getattr(totals, field.name) for field in dataclasses.fields(totals)},
                "requests": {str(code): count for code, count in sorted(totals.requests.items())},
                "rows": dict(totals.rows),
            }
            for name, totals in self.tenants.items()
        }

    def set_capacity(self, capacity: dict[str, float], max_utilisation: float) -> None:
        """Keep what `capacity_gauges` found within `max_utilisation`, and have rows refused for good that the devices
        would not serve in time though they did nothing else."""
        self.capacity = capacity
        self.router.limit(capacity.get("floor", 0.0) / max_utilisation)

    def close(self) -> None:
        """Free the shared memory; no worker may be left."""
        self.router.stop()
        self.router.monitor.release()
        self.slab.close()
