"""Energy meters of what Clover runs on; every figure is labelled with how it is known.

The machine is measured by RAPL if the kernel lets this user read it, and otherwise modelled.  GPUs are measured by
NVML.  A GPU is modelled, with a warning, if it shows neither its energy nor its power, or if others have slices of it.
Meters are interchangeable (`clover.interfaces.EnergyMeter`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from clover.config import EnergyConfig
from clover.energy.cpu_power import CPUINFO, CpuPower, check_watts, cpu_power
from clover.energy.cpu_time import ProcessTree
from clover.energy.foreign_work import OurWork
from clover.energy.gpu_modelled import ModelledGpuMeter
from clover.energy.gpu_probe import BlockingSession, Failure, MeteredGpu, NvmlSession, Probe, counted_others
from clover.energy.host import ReadHost
from clover.energy.modelled import ModelledMeter
from clover.energy.nvml import GpuUnmetered, IdleSettings, NvmlMeter, Sleep
from clover.energy.rapl import POWERCAP, RaplError, RaplMeter, find_domains
from clover.errors import ConfigError

__all__ = [
    "CpuPower", "GpuMeter", "Meter", "ModelledGpuMeter", "ModelledMeter", "NvmlMeter", "OurWork", "RaplMeter", "build",
    "build_gpu", "cpu_power", "gpu_meter_key", "meter_key",
]  # fmt: skip

log = logging.getLogger("clover.energy")

Meter = RaplMeter | ModelledMeter
GpuMeter = NvmlMeter | ModelledGpuMeter


def build(
    config: EnergyConfig,
    *,
    cores: int,
    cpu_seconds: Callable[[], float],
    clock: Callable[[], int] = time.monotonic_ns,
    powercap: Path = POWERCAP,
    cpuinfo: Path = CPUINFO,
    host: ReadHost | None = None,
    device: str = "cpu0",
) -> Meter:
    """Return the meter of the machine that `config` asks for; `meter.why` says why it is this one.

    `cores` is the number of cores that are modelled, `cpu_seconds` returns the CPU time that the server used so far.  A
    configured idle power is that of a CPU: RAPL, which covers the whole host, multiplies it by all CPUs of the host.
    Raises ConfigError if the constants make no sense, or if `meter = "rapl"` and RAPL cannot be read.
    """
    power = cpu_power(config, cpuinfo)
    if cores < 1:
        raise ConfigError(f"a device has at least one core, not {cores}")
    why = "configured"
    if config.meter != "modelled":
        host = host or ProcessTree().host_use
        use = host()
        idle_w = None if config.idle_w is None else config.idle_w * (use.cpus if use is not None else cores)
        try:
            return RaplMeter(now_ns=clock(), idle_w=idle_w, power=power, host=host, root=powercap, device=device)
        except RaplError as error:
            if config.meter == "rapl":
                raise ConfigError(f'energy.meter = "rapl", but {error}; {error.advice}') from error
            why = f"RAPL is not readable: {error}"
    return ModelledMeter(
        idle_w=power.idle_w * cores,
        core_w=power.core_w,
        cpu_seconds=cpu_seconds,
        now_ns=clock(),
        why=f"{why}; {power.why}",
        idle_range=power.idle_range,
        core_range=power.core_range,
        device=device,
    )


def meter_key(config: EnergyConfig, *, powercap: Path = POWERCAP, cpuinfo: Path = CPUINFO) -> str:
    """Return what tells one meter of the machine from another: the counters of RAPL if they can be read, or the
    constants of the model.  A profile is valid only for the meter that measured it."""
    power = cpu_power(config, cpuinfo)
    if config.meter != "modelled":
        try:
            domains = find_domains(powercap)
        except RaplError:
            pass  # `build` says so, or refuses
        else:
            idle = "measured" if config.idle_w is None else f"{config.idle_w:g} W a CPU"
            return f"RAPL of {', '.join(domain.name for domain in domains)}, idle {idle}"
    return f"modelled, {power.core_w:g} W a busy CPU"


async def build_gpu(
    nvml: NvmlSession,
    gpu: MeteredGpu,
    config: EnergyConfig,
    *,
    work: OurWork | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Sleep = asyncio.sleep,
) -> GpuMeter:
    """Return the meter of a whole GPU with all its slices; `meter.why` says what it reads.

    Call it before there are workers.  `work` is what the server does on the GPU.  Raises ConfigError if
    `energy.gpu_idle_w` or `energy.gpu_resident_w` make no sense, DeviceError if the GPU cannot be read, or shows
    neither energy nor power and `energy.gpu_meter` is "nvml".
    """
    idle = IdleSettings(config.gpu_idle_w, config.gpu_resident_w)
    for name, watts in (("gpu_idle_w", idle.bare_w), ("gpu_resident_w", idle.resident_w)):
        if watts is not None:
            check_watts(name, watts)
    if idle.bare_w is not None and idle.resident_w is not None and idle.resident_w < idle.bare_w:
        raise ConfigError(
            f"energy.gpu_resident_w = {idle.resident_w:g} is below energy.gpu_idle_w = {idle.bare_w:g}: a GPU with a "
            "context draws no less than without one"
        )
    why, others = "configured", counted_others(gpu)
    if others and config.gpu_meter == "auto":
        why = f"its counter is also that of {others} slices that are not this server's"
        log.warning('%s: its energy is modelled: %s (energy.gpu_meter = "nvml" counts it all the same)', gpu.name, why)
    elif config.gpu_meter != "modelled":
        try:
            return await NvmlMeter.start(nvml, gpu, idle=idle, work=work, clock=clock, sleep=sleep)
        except GpuUnmetered as error:
            if config.gpu_meter == "nvml":
                raise
            why = "NVML shows neither its energy nor its power"
            log.warning("%s: its energy is modelled from here on: %s", gpu.name, error)
    return await ModelledGpuMeter.start(
        nvml, gpu, Probe(gpu.uuid, clock), idle_w=config.gpu_idle_w, work=work, why=f"modelled: {why}"
    )


def gpu_meter_key(config: EnergyConfig, gpu: MeteredGpu, session: BlockingSession) -> str:
    """Return what tells one meter of a GPU from another: the emulator, NVML's counter, its power over time, or the
    model.

    It asks the GPU, and blocks for that.  Raises DeviceError if NVML cannot be asked.
    """
    idle, resident = (
        "measured" if watts is None else f"{watts:g} W" for watts in (config.gpu_idle_w, config.gpu_resident_w)
    )
    known = f"idle {idle}, with a context {resident}"
    if gpu.emulated:
        return f"emulated, {known}"
    if config.gpu_meter == "modelled":
        return f"modelled GPU, {known}"
    if config.gpu_meter == "auto" and counted_others(gpu):
        return f"modelled GPU beside slices of others, {known}"
    probe = Probe(gpu.uuid, time.monotonic_ns)
    kinds = []
    for read in (probe.counter, probe.power):
        answer = session.call_sync(read)
        kinds.append(isinstance(answer, Failure) and answer.kind == "unsupported")
    if all(kinds):
        return f"modelled GPU, {known}"
    return f"NVML {'power' if kinds[0] else 'counter'}, {known}"
