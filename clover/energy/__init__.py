"""Energy meters of what Clover runs on; every figure is labelled with how it is known.

The machine is measured by RAPL if the kernel lets this user read it, and otherwise modelled.  GPUs are measured by NVML
and never modelled: the error of such a model would be unknown.  Meters are interchangeable
(`clover.interfaces.EnergyMeter`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from clover.config import EnergyConfig
from clover.energy.modelled import ModelledMeter
from clover.energy.nvml import MeteredGpu, NvmlMeter, NvmlSession
from clover.energy.rapl import POWERCAP, RaplError, RaplMeter
from clover.errors import ConfigError

__all__ = ["Meter", "ModelledMeter", "NvmlMeter", "RaplMeter", "build", "build_gpu"]

Meter = RaplMeter | ModelledMeter


def build(
    config: EnergyConfig,
    *,
    cores: int,
    cpu_seconds: Callable[[], float],
    clock: Callable[[], int] = time.monotonic_ns,
    powercap: Path = POWERCAP,
    device: str = "cpu0",
) -> Meter:
    """Return the meter of the machine that `config` asks for; `meter.why` says why it is this one.

    `cores` is the number of cores, `cpu_seconds` returns the CPU time that the server used so far.
    Raises ConfigError if the constants make no sense, or if `meter = "rapl"` and RAPL cannot be read.
    """
    for name, watts in (("idle_w", config.idle_w), ("core_w", config.core_w)):
        _check_watts(name, watts)
    if cores < 1:
        raise ConfigError(f"a device has at least one core, not {cores}")
    idle_w = config.idle_w * cores
    why = "configured"
    if config.meter != "modelled":
        try:
            meter = RaplMeter(idle_w=idle_w, now_ns=clock(), root=powercap, device=device)
        except RaplError as error:
            if config.meter == "rapl":
                raise ConfigError(f'energy.meter = "rapl", but {error}; {error.advice}') from error
            why = f"RAPL is not readable: {error}"
        else:
            return meter
    return ModelledMeter(
        idle_w=idle_w, core_w=config.core_w, cpu_seconds=cpu_seconds, now_ns=clock(), why=why, device=device
    )


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
        _check_watts("gpu_idle_w", config.gpu_idle_w)
    return await NvmlMeter.start(nvml, gpu, idle_w=config.gpu_idle_w, busy_ns=busy_ns, clock=clock)


def _check_watts(name: str, watts: float) -> None:
    if not (math.isfinite(watts) and watts >= 0):
        raise ConfigError(f"energy.{name} must be a number of watts of at least 0, not {watts}")
