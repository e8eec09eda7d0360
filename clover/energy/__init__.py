"""Energy meters of what Clover runs on; every figure is labelled with how it is known.

The machine is measured by RAPL if the kernel lets this user read it, and otherwise modelled.  GPUs are measured by NVML
and never modelled: the error of such a model would be unknown.  Meters are interchangeable
(`clover.interfaces.EnergyMeter`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from clover.config import EnergyConfig
from clover.energy.cpu_power import CPUINFO, CpuPower, check_watts, cpu_power
from clover.energy.host import ReadHost, host_use
from clover.energy.modelled import ModelledMeter
from clover.energy.nvml import BlockingSession, Failure, MeteredGpu, NvmlMeter, NvmlSession, Probe
from clover.energy.rapl import POWERCAP, RaplError, RaplMeter, find_domains
from clover.errors import ConfigError

__all__ = [
    "CpuPower", "Meter", "ModelledMeter", "NvmlMeter", "RaplMeter", "build", "build_gpu", "cpu_power", "gpu_meter_key",
    "meter_key",
]  # fmt: skip

Meter = RaplMeter | ModelledMeter


def build(
    config: EnergyConfig,
    *,
    cores: int,
    cpu_seconds: Callable[[], float],
    clock: Callable[[], int] = time.monotonic_ns,
    powercap: Path = POWERCAP,
    cpuinfo: Path = CPUINFO,
    host: ReadHost = host_use,
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
    constants of the model.  A profile that one of them measured is not valid for another."""
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
    busy_ns: Callable[[], int] | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> NvmlMeter:
    """Return the meter of a whole GPU with all its slices; `meter.why` says what it reads.

    Call it before there are workers.  `busy_ns` returns the time that workers of this GPU were busy so far
    (`Account.busy_ns`).  Raises ConfigError if `energy.gpu_idle_w` makes no sense, DeviceError if the GPU shows neither
    energy nor power.
    """
    if config.gpu_idle_w is not None:
        check_watts("gpu_idle_w", config.gpu_idle_w)
    return await NvmlMeter.start(nvml, gpu, idle_w=config.gpu_idle_w, busy_ns=busy_ns, clock=clock)


def gpu_meter_key(config: EnergyConfig, gpu: MeteredGpu, session: BlockingSession) -> str:
    """Return what tells one meter of a GPU from another: the emulator, NVML's counter, or its power over time.

    It asks the GPU, and blocks for that.  Raises DeviceError if NVML cannot be asked.
    """
    idle = "measured" if config.gpu_idle_w is None else f"{config.gpu_idle_w:g} W"
    if gpu.emulated:
        return f"emulated, idle {idle}"
    answer = session.call_sync(Probe(gpu.uuid, time.monotonic_ns).counter)
    power = isinstance(answer, Failure) and answer.kind == "unsupported"
    return f"NVML {'power' if power else 'counter'}, idle {idle}"
