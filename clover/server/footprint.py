"""The embodied carbon of this server's hardware, and its Software Carbon Intensity: what is reserved, and for how long.

On core-sets the server reserves the cores of its front end and its workers; with GPUs, whole GPUs and the cores that it
may use of the machine they stand in.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from clover.accounting import Account, Spans
from clover.accounting.embodied import EmbodiedLedger, EmbodiedMethod, Hardware
from clover.accounting.sci import SciReport, sci
from clover.config import EmbodiedConfig, ServerConfig
from clover.devices import embodied
from clover.devices.cpu import CpuDevice, available_cores
from clover.devices.mig import MigDevice
from clover.interfaces import Device
from clover.server.machine import HOST
from clover.types import Reading


class Footprint:
    """Counts embodied carbon and rows, and reports SCI."""

    def __init__(self, config: ServerConfig, devices: Mapping[str, Device], account: Account) -> None:
        self._account = account
        self._rows: Counter[str] = Counter()
        hardware = hardware_of(config.embodied, devices)
        self._ledger = EmbodiedLedger(hardware, config.embodied.life_years, time.monotonic_ns())
        self._intensities: set[str] = set()

    def window(self, now_ns: int, reading: Reading, spans: Spans) -> None:
        """Charge the time since the last call, in which joules were priced at `reading`, and count the rows of `spans`.

        So rows and joules are those of the same windows.
        """
        self._ledger.charge(now_ns, self._account.workers())
        self._intensities.add(reading.known)
        for model, span in spans.families.items():
            self._rows[model] += sum(span.rows.values()) - span.gone_on

    @property
    def charged_ns(self) -> int:
        """The monotonic time until which hardware is charged."""
        return self._ledger.since_ns

    def begin(self, at_ns: int) -> None:
        """Charge hardware from `at_ns` (monotonic) on: until then another server does."""
        self._ledger.since_ns = at_ns

    @property
    def hardware(self) -> Sequence[Hardware]:
        """The hardware that the server reserves."""
        return self._ledger.hardware

    def report(self) -> SciReport:
        """Return what was emitted for each row so far."""
        models = {name: (rows, self._account.totals(name)) for name, rows in self._rows.items()}
        return sci(self._account.devices(), models, self._ledger, intensities=self._intensities, pue=self._account.pue)


def hardware_of(
    config: EmbodiedConfig, devices: Mapping[str, Device], *, cores: int | None = None
) -> tuple[Hardware, ...]:
    """Return the hardware that a server with these devices reserves; `cores` counts the CPUs of the machine."""
    total = cores or os.cpu_count() or 1
    items: list[Hardware] = []
    for name, device in devices.items():
        if isinstance(device, CpuDevice):
            reserved = len({*device.front_cores, *device.worker_cores})
            items.append(_machine(name, config, reserved, len(device.worker_cores), total))
        elif isinstance(device, MigDevice):
            items.append(_gpu(name, config, device))
    if any(isinstance(device, MigDevice) for device in devices.values()):
        items.append(_machine(HOST, config, len(available_cores()), 0, total))
    return tuple(items)


def _machine(name: str, config: EmbodiedConfig, reserved: int, workers: int, total: int) -> Hardware:
    figure = embodied.per_cpu()
    share = float(min(reserved, total)) if config.reserved is None else config.reserved * total
    own = config.machine_kg is not None
    return Hardware(
        device=name,
        product=f"a machine of {total} CPU{'s' if total > 1 else ''}",
        kg=figure.kg * total if config.machine_kg is None else config.machine_kg,
        low_kg=None if own or figure.low is None else figure.low * total,
        high_kg=None if own or figure.high is None else figure.high * total,
        reserved=share,
        total=total,
        for_workers=share * workers / reserved,
        slices=workers,
        known="configured" if own else "cited default",
        source="embodied.machine_kg" if own else f"{figure.kg:g} kg a CPU: {figure.cited()}",
    )


def _gpu(name: str, config: EmbodiedConfig, gpu: MigDevice) -> Hardware:
    figure = embodied.of_gpu(gpu.product)
    known: EmbodiedMethod = "configured"
    kg, low_kg, high_kg, source = config.gpu_kg, None, None, "embodied.gpu_kg"
    if kg is None and figure is not None:
        kg, low_kg, high_kg, source, known = figure.kg, figure.low, figure.high, figure.cited(), "cited default"
    elif kg is None:
        source, known = "nothing is published of it: set embodied.gpu_kg", "unknown"
    slices = gpu.shape().slices
    return Hardware(
        device=name,
        product=gpu.product,
        kg=kg,
        low_kg=low_kg,
        high_kg=high_kg,
        reserved=slices,
        total=slices + gpu.others,
        for_workers=slices,
        slices=slices,
        known="emulated" if gpu.emulated and kg is not None else known,
        source=source,
    )
