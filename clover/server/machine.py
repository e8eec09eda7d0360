"""The devices of a server with their meters: opened at its start, watched while it runs, left in order at its end.

One meter reads the machine: all that the server's process tree does on its cores, be it on core-sets or beside GPUs.
Each GPU has a meter of its own.  On emulated GPUs the cores compute the answers; that work is the emulated GPU's, and
is left out of the machine's.

Instances that an earlier run left on a GPU are adopted or removed by the first plan that uses it
(`control.state.apply.SharedInstances`); a clean stop removes ours, unless `workers.keep_instances` leaves them for the
next start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clover import devices as made
from clover import energy
from clover.accounting import Account, HostCpu
from clover.ancestry import descends_from
from clover.config import ServerConfig, WorkersConfig
from clover.devices.core_idle import CoreIdle
from clover.devices.cpu import CpuDevice, available_cores
from clover.devices.guard import GpuGuard, GpuPolls
from clover.devices.mig import MigDevice
from clover.energy.cpu_time import ProcessTree
from clover.energy.gpu_probe import counted_others
from clover.energy.kept_idle import KeptIdles
from clover.energy.marks import ClosedMeters, MeterMark
from clover.errors import CloverError, ConfigError, DeviceError
from clover.interfaces import Device, EnergyMeter
from clover.process_clock import process_ns
from clover.runtime.workers import sandboxes
from clover.settings.check import on_gpus
from clover.types import DeviceShape, EnergySample, Method, Reading

log = logging.getLogger("clover.server")

NEVER_NS = (1 << 63) - 1
"""Later than any time of the monotonic clock."""
HOST = "host"
"""The machine's own account, if its devices are GPUs."""

CONTEXT_W = 35.0
"""Watts that a GPU draws for the contexts of its workers, if that was not measured: arXiv 2605.23918 found 26 to 50 W
on A100 and H100 boards, and 66 W on an L40S."""
_METERS = "meters"
"""The lanes of the driver's session in which meters read, one for each GPU: one that hangs holds up no other's."""
_RETRY_S = 30.0
"""Between two attempts to free quarantined instances: each may occupy the driver for a second."""


class Machine:
    """The devices and meters of this machine, by name of the device.

    Raises ConfigError or DeviceError if a configured device cannot be used.
    """

    def __init__(self, config: ServerConfig, cache: Path, account: Account) -> None:
        self._config = config
        self._account = account
        self.devices: dict[str, Device] = made.build(config.workers, cache)
        self.gpus = [device for device in self.devices.values() if isinstance(device, MigDevice)]
        self._gpu_guard = GpuGuard(self.gpus)
        self.meters: dict[str, EnergyMeter] = {}
        self.beside = False
        """Whether another server meters the machine, and this one counts only what its own processes use."""
        self.core_idle: CoreIdle | None = None
        self._polls = GpuPolls()
        self._idles = KeptIdles(cache)
        self._retry_s = time.monotonic() + _RETRY_S
        self._retrying: asyncio.Task[None] | None = None
        self._samples: dict[str, EnergySample] = {}
        self._looked_ns: dict[str, int] = {}
        """By device, when its meter was last asked for a sample."""
        self._unreadable_ns: dict[str, int] = {}
        """By device, since when its meter cannot be read."""
        emulated = {name for name, device in self.devices.items() if device.shape().emulated}
        self._host = HostCpu(ProcessTree().read, process_ns, emulated.__contains__)
        for name, device in self.devices.items():
            if isinstance(device, CpuDevice):
                front_end = 0 if device.shared_front else len(device.front_cores)
                self._add_host(name, len(device.worker_cores) + front_end)
                self.core_idle = CoreIdle(device.worker_cores)
            elif isinstance(device, MigDevice):
                account.add_device(name, device.shape().slices, device.others)
            else:
                raise ConfigError(f"device {name}: there is no energy meter for {type(device).__name__}")
        if self.gpus:
            slices = sum(gpu.shape().slices for gpu in self.gpus)
            self._add_host(HOST, slices, cores=len(available_cores()))

    def sandbox(self) -> dict[str, Any]:
        """Return how the workers are confined, ready for JSON."""
        return sandboxes.report(self._config.workers, gpu=self._real_gpus())

    def _real_gpus(self) -> bool:
        return on_gpus(self._config.workers.device)

    def _add_host(self, name: str, slices: int, cores: int = 0) -> None:
        """Add the machine as device `name`, with its meter; its idle power is split over `slices`, which are its cores
        unless there are so many `cores`."""
        pieces = cores or slices
        meter = energy.build(self._config.energy, cores=pieces, cpu_seconds=self._host.own_seconds, device=name)
        if meter.method == "modelled" and self._config.energy.meter != "modelled":
            log.info("energy is modelled: %s", meter.why.partition(";")[0])  # with which watts, the banner says
        self.meters[name] = meter
        foreign = 0.0
        if meter.method == "measured":  # a counter is of all cores, ours or not
            foreign = max((os.cpu_count() or 1) - pieces, 0) / pieces * slices
        self._account.add_device(name, slices, foreign)
        self._account.add_host(name, self._host)

    async def start(self, folders: Sequence[str]) -> None:
        """Start the meters of the GPUs.  Call it before there are workers: it measures idle watts of all devices.

        `folders`: those of the families, which are searched for files that the sandbox does not keep from models."""
        sandboxes.check(self._config.workers, gpu=self._real_gpus())
        for line in sandboxes.exposed(self._config, folders):
            log.warning("%s", line)
        for meter in self.meters.values():
            if isinstance(meter, energy.RaplMeter):
                await meter.rest()
                log.info("%s: energy is measured: %s", meter.device, meter.why)
        self._gpu_guard.start()
        config = self._config.energy
        lanes = [gpu.session.lane(f"{_METERS}-{gpu.name}") for gpu in self.gpus]
        made = [
            energy.build_gpu(lane, gpu, config, work=self._work(gpu))
            for lane, gpu in zip(lanes, self.gpus, strict=True)
        ]
        for gpu, meter in zip(self.gpus, await asyncio.gather(*made), strict=True):
            self._idles.restore(gpu.uuid, meter)
            log.info("%s: %s; energy is %s: %s", gpu.name, gpu.shape().label, meter.method, meter.why)
            self.meters[gpu.name] = meter
            self._spare(gpu)

    def use_context_power(self) -> None:
        """Have meters know what a context costs on each GPU, which profiling has measured."""
        for gpu in self.gpus:
            if (meter := self.meters.get(gpu.name)) is not None:
                self._idles.restore(gpu.uuid, meter)

    async def rest(self) -> None:
        """Measure what a context costs on each GPU of which that is not known: call it while workers are there and
        nothing is asked of them.  It takes six seconds on GPUs of which it was never measured."""
        workers = {meter.device for meter in self._account.workers()}
        unknown = [
            (gpu, meter)
            for gpu in self.gpus
            if isinstance(meter := self.meters[gpu.name], energy.NvmlMeter)
            and gpu.name in workers
            and meter.idle.resident_by == "unknown"
        ]
        await asyncio.gather(*(meter.measure_resident() for _, meter in unknown))
        for gpu, meter in unknown:
            self._idles.save(gpu.uuid, meter)
            self._spare(gpu)

    def _spare(self, gpu: MigDevice) -> None:
        """Have plans know what `gpu` spares while it is parked, and how that is known; nothing if it never is."""
        gpu.spare(*spared(self._config.workers, self.meters[gpu.name], gpu.others))

    def _work(self, gpu: MigDevice) -> energy.OurWork:
        """Return what the server does on `gpu`, for its meter."""

        def owns(pid: int) -> bool:
            return descends_from(pid, os.getpid()) or any(meter.pid == pid for meter in self._account.workers())

        def held_part() -> float:
            # By placement, as several variants may share one; `others` are slices that are not for this process.
            held = {meter.placement: meter.slices for meter in self._account.workers() if meter.device == gpu.name}
            return min(sum(held.values()) / (gpu.shape().slices + gpu.others), 1.0)

        def foreign_instances() -> tuple[str, ...]:
            places = list(gpu.report()["foreign"])
            if others := counted_others(gpu):
                places.append(f"{others} of {gpu.shape().slices + others} slices of {gpu.name}")
            return tuple(f"whoever uses {place}" for place in places)

        return energy.OurWork(
            busy_ns=lambda: self._account.busy_ns(gpu.name),
            workers=lambda: frozenset(meter.pid for meter in self._account.workers() if meter.device == gpu.name),
            owns=owns,
            foreign_instances=foreign_instances,
            held_part=held_part,
        )

    def shapes(self) -> dict[str, DeviceShape]:
        """Return what each device allows now."""
        return {name: device.shape() for name, device in self.devices.items()}

    def idle_states(self) -> dict[str, Any] | None:
        """Return how the cores of workers idled lately (`CoreIdle.report`); None if workers are on GPUs."""
        return self.core_idle.report() if self.core_idle is not None else None

    def about(self, device: str) -> dict[str, float | str]:
        """Return the meter of `device`.  For a GPU also return its power at rest with a context (absent until known),
        and how both idle powers are known.  Empty for a device without a meter."""
        meter = self.meters.get(device)
        if meter is None:
            return {}
        facts: dict[str, float | str] = {"meter": meter.why}
        if isinstance(meter, energy.NvmlMeter):
            facts["idle_known"], facts["resident_known"] = meter.idle.bare_by, meter.idle.resident_by
            if meter.idle.resident_by != "unknown":
                facts["resident_w"] = meter.idle.resident_w
        return facts

    def metered_ns(self) -> dict[str, int]:
        """Return until when (monotonic) the meter of each device has been read, by name; not of those never read."""
        return {name: sample.at_ns for name, sample in self._samples.items()}

    async def measure(self, reading: Reading) -> None:
        """Close the energy window of every device, with its carbon priced at `reading`.

        The window of a GPU is closed as soon as its counter was read, which may wait for a tick: what its workers did
        counts until then.  The window of a device whose meter cannot be read stays open; its energy is counted once the
        meter can be read.
        """
        gpus = {gpu.name: gpu for gpu in self.gpus}

        async def read(name: str, meter: EnergyMeter) -> None:
            await meter.refresh()
            if name in gpus:
                self._spare(gpus[name])
                self._close(name, meter, reading)

        await asyncio.gather(*(read(name, meter) for name, meter in self.meters.items()))
        self._host.poll()
        for name, meter in self.meters.items():
            if name not in gpus:
                self._close(name, meter, reading)

    def _close(self, name: str, meter: EnergyMeter, reading: Reading) -> None:
        sample = self._sample(name, meter)
        if sample is not None:
            self._account.close_window(sample, reading, time.monotonic_ns())

    def _sample(self, name: str, meter: EnergyMeter) -> EnergySample | None:
        """Return the meter's sample, or the last one if it cannot be read, which leaves the window open; None if there
        is none, as of a counter that another server reads."""
        if self.beside and not isinstance(meter, energy.ModelledMeter):
            return None
        now_ns = time.monotonic_ns()
        looked_ns, self._looked_ns[name] = self._looked_ns.get(name, now_ns), now_ns
        before = self._samples.get(name)
        sample = before
        try:
            sample = self._samples[name] = meter.sample(now_ns)
        except DeviceError as error:
            if name not in self._unreadable_ns:
                self._unreadable_ns[name] = now_ns
                log.warning("%s: its energy cannot be read and is not counted until it can: %s", name, error)
        else:
            since_ns = self._unreadable_ns.pop(name, None)
            if since_ns is not None:
                log.info("%s: its energy is read again after %.0f s", name, (now_ns - since_ns) / 1e9)
        if sample is None or (before is not None and (sample.epoch, sample.at_ns) == (before.epoch, before.at_ns)):
            self._account.count_unmetered(name, (now_ns - looked_ns) / 1e9)
        return sample

    def marks(self) -> tuple[MeterMark, ...]:
        """Return where the meters that another server can go on with stand."""
        known = (energy.ModelledMeter, energy.RaplMeter)
        return tuple(meter.mark() for meter in self.meters.values() if isinstance(meter, known))

    def stand_beside(self) -> None:
        """Leave idle power and counters to another server until `take_over`.  Call it before anything is read."""
        self.beside = True
        for meter in self.meters.values():
            if isinstance(meter, energy.ModelledMeter):
                meter.count_idle(NEVER_NS)

    def take_over(self, closed: ClosedMeters | None, reading: Reading) -> None:
        """Continue the meters of another server from where they stand.  A meter that cannot be continued, or whose
        mark is missing, counts from now on."""
        self._host.poll()
        now_ns = time.monotonic_ns()
        marks = {mark.device: mark for mark in closed.meters} if closed is not None else {}
        for name, meter in self.meters.items():
            mark = marks.get(name)
            if isinstance(meter, energy.ModelledMeter):
                meter.count_idle(mark.at_ns if mark is not None else now_ns)
                continue
            sample = None
            if mark is not None and isinstance(meter, energy.RaplMeter):
                try:
                    sample = meter.take_over(mark)
                except ValueError as error:
                    log.warning("%s: its energy is counted only from now on: %s", name, error)
            if sample is None:
                try:
                    sample = meter.sample(now_ns)
                except DeviceError as error:
                    log.warning("%s: its energy cannot be read and is not counted until it can: %s", name, error)
                    continue
            if sample.method == "measured" and name == self._account.host_device:
                self._host.close()  # what was used until now is in the other server's account
            self._samples[name] = sample
            self._account.close_window(sample, reading, sample.at_ns)
        self.beside = False

    async def watch(self) -> None:
        """Look how cores idle, check that the GPUs are there, and try to free quarantined instances now and then."""
        if self.core_idle is not None and self.core_idle.due:
            await asyncio.to_thread(self.core_idle.poll)
        there = await self._polls.answering(self.gpus)
        if time.monotonic() >= self._retry_s and (self._retrying is None or self._retrying.done()):
            self._retry_s = time.monotonic() + _RETRY_S
            # Beside the watch: each try may occupy the driver for a second.
            self._retrying = asyncio.create_task(_retry(there))

    async def empty(self) -> None:
        """Remove our instances from the GPUs.  Call it only while no worker of ours runs there."""
        await asyncio.gather(*(self._clear(gpu) for gpu in self.gpus if not gpu.lost))

    async def leave(self) -> None:
        """Remove our instances, unless they are to stay for the next start, and close the GPUs.  Their workers must be
        gone."""
        for gpu in self.gpus:
            if (meter := self.meters.get(gpu.name)) is not None:
                self._idles.save(gpu.uuid, meter)
        try:
            if not self._config.workers.keep_instances:
                await self.empty()
        finally:
            self.close()

    def close(self) -> None:
        """Release the GPUs for others, with the instances that are on them."""
        self._gpu_guard.close()
        made.close(self.devices)

    async def _clear(self, gpu: MigDevice) -> None:
        try:
            await gpu.reconcile(keep=())
        except DeviceError as error:
            log.warning("%s: this server's instances stay, and the next start removes them: %s", gpu.name, error)


async def _retry(gpus: Iterable[MigDevice]) -> None:
    """Try to free what is quarantined on `gpus`."""
    for gpu in gpus:
        try:
            await gpu.retry_quarantined()
        except CloverError as error:
            log.warning("%s: %s", gpu.name, error)


def spared(workers: WorkersConfig, meter: EnergyMeter, others: int) -> tuple[float | None, Method]:
    """Return the watts that a parked GPU spares, and how they are known; None if no GPU is ever parked.

    A GPU spares 0 while others keep it awake: on `others` of its slices, or with a context that `meter` sees.  Watts
    are whole, because plans are remembered by them.
    """
    if workers.sleep == "off":
        return None, "none"
    if others or (isinstance(meter, energy.NvmlMeter) and meter.kept_awake):
        return 0.0, "modelled"
    if isinstance(meter, energy.NvmlMeter) and meter.idle.resident_by != "unknown":
        method: Method = "configured" if meter.idle.resident_by == "configured" else meter.method
        return float(round(meter.idle.resident_w - meter.idle.bare_w)), method
    return CONTEXT_W, "modelled"
