"""Joules of the machine: measured by RAPL where the kernel lets us read it, modelled otherwise, and always labelled.

Meters are interchangeable (`clover.interfaces.EnergyMeter`); one for GPUs (NVML) belongs into this folder as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from clover.config import EnergyConfig
from clover.energy.modelled import ModelledMeter
from clover.energy.rapl import POWERCAP, RaplError, RaplMeter
from clover.errors import ConfigError

__all__ = ["Meter", "ModelledMeter", "RaplMeter", "build"]

Meter = RaplMeter | ModelledMeter


def build(
    config: EnergyConfig,
    *,
    cores: int,
    cpu_seconds: Callable[[], float],
    clock: Callable[[], int] = time.monotonic_ns,
    powercap: Path = POWERCAP,
) -> Meter:
    """The meter that `config` asks for; `meter.why` says why it is this one.

    `cores` are the cores the device has, `cpu_seconds` gives the CPU time the workers used so far (dead ones included).
    ConfigError where the constants make no sense, or where `meter = "rapl"` and RAPL cannot be read.
    """
    for name, watts in (("idle_w", config.idle_w), ("core_w", config.core_w)):
        if not (math.isfinite(watts) and watts >= 0):
            raise ConfigError(f"energy.{name} must be a number of watts of at least 0, not {watts}")
    if cores < 1:
        raise ConfigError(f"a device has at least one core, not {cores}")
    idle_w = config.idle_w * cores
    why = "configured"
    if config.meter != "modelled":
        try:
            meter = RaplMeter(idle_w=idle_w, now_ns=clock(), root=powercap)
        except RaplError as error:
            if config.meter == "rapl":
                raise ConfigError(f'energy.meter = "rapl", but {error}; {error.advice}') from error
            why = f"RAPL is not readable: {error}"
        else:
            return meter
    return ModelledMeter(idle_w=idle_w, core_w=config.core_w, cpu_seconds=cpu_seconds, now_ns=clock(), why=why)
