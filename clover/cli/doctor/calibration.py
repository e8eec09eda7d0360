"""`clover doctor --calibrate`: the constants of the energy model, measured on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from clover.devices.cpu import available_cores
from clover.energy.calibrate import (
    SETTLE_S,
    Calibration,
    CalibrationStep,
    Instruments,
    calibrate,
    host_busy_s,
    kept_busy,
    levels_of,
)
from clover.energy.rapl import RaplMeter

ELSEWHERE = (
    "Let this user read RAPL (chmod a+r .../energy_uj, as root), or calibrate on a machine with the same processor "
    "that has it,\nand set energy.idle_w and energy.core_w here to what it prints there."
)
LONGEST_S = 30.0
"""Seconds at one level; a counter may wrap unseen after a minute."""
_DOUBTFUL = 0.1
"""Relative standard error beyond which a constant is not to be used without a thought."""
_QUIET_CPUS = 0.2
"""CPUs that other programs may keep busy without a word about them."""


def show_calibration(seconds: float, powercap: Path, instruments: Instruments | None) -> None:
    """Measure, and print the constants as TOML; raises RaplError without an energy counter.  `instruments` stand in for
    the machine's own, in tests."""
    tools = _instruments(powercap) if instruments is None else instruments
    # A counter covers the whole machine, so all of it that may be kept busy is: the cgroup's quota would throttle.
    cpus = available_cores()
    total = os.cpu_count() or len(cpus)
    levels = levels_of(len(cpus))
    print(
        f"{len(levels)} levels of load on {len(cpus)} CPUs, {seconds + SETTLE_S:g} s each: "
        f"{len(levels) * (seconds + SETTLE_S):.0f} s.  Let other programs rest meanwhile.\n"
    )
    print("kept busy  busy in all    watts")
    found = calibrate(cpus, seconds, tools, _tell)
    print(f"\nat rest    {found.idle_w:.2f} W +- {found.idle_error_w:.2f} W, the whole machine")
    print(f"busy CPU   {found.core_w:.2f} W +- {found.core_error_w:.2f} W beyond that\n")
    for line in doubts(found):
        print(f"warning: {line}")
    print("[energy]")
    print(f"idle_w = {found.idle_w / total:.3g}  # watts a CPU: {found.idle_w:.2f} W over {total} CPUs")
    print(f"core_w = {found.core_w:.3g}")


def _tell(step: CalibrationStep) -> None:
    print(f"{step.spun:>9}  {step.busy:>11.2f}  {step.watts:>7.2f}", flush=True)


def doubts(found: Calibration) -> list[str]:
    """Return what speaks against using a calibration, in words."""
    out = []
    rest = min(step.busy for step in found.steps if not step.spun)
    if rest > _QUIET_CPUS:
        out.append(f"other programs kept {rest:.1f} CPUs busy all the time: the power at rest is extrapolated")
    for name, value, error in (
        ("the power at rest", found.idle_w, found.idle_error_w),
        ("the power of a busy CPU", found.core_w, found.core_error_w),
    ):
        if error > _DOUBTFUL * abs(value) or value < 0.0:
            out.append(f"{name} is known to +- {error:.2f} W only: measure again on a quieter machine, or for longer")
    return out


def _instruments(powercap: Path) -> Instruments:
    """Return the machine's own; RaplError if its counters cannot be read."""
    meter = RaplMeter(idle_w=0.0, now_ns=time.monotonic_ns(), root=powercap)

    def joules(now_ns: int) -> float:
        return meter.sample(now_ns).total_j

    sleep: Callable[[float], None] = time.sleep
    return Instruments(joules=joules, busy_s=host_busy_s, now_ns=time.monotonic_ns, sleep=sleep, spin=kept_busy)
