"""The constants of the energy model, measured where a counter can be read.

0, 1, ... n CPUs are kept busy for some seconds each, and a line is fitted through what the counter shows:

    watts of the machine = idle + core x busy CPUs

Busy CPUs are what the kernel counts, other programs included, so that these do not bend the line.  The work is products
of matrices, as in a model: a plain loop would draw less.  Processors do not draw exactly by that line (they clock lower
as more of them work, and two hardware threads share a core).  The standard error of both values says how far off it is.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clover.energy.host import host_use
from clover.errors import DeviceError
from clover.proc_stat import PROC_STAT

SETTLE_S = 1.0
"""From when CPUs are busy until it is measured: clocks and fans follow."""
_MOST_LEVELS = 9
_LEAST_STEPS = 4  # fewer would leave the error of the line to chance
_LEAST_VARIED = 0.5
"""Part of the CPUs by which the load must have been varied: a line through a heap of points says nothing."""
_NS = 1e9
_BURN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
import numpy
parent, work = os.getppid(), numpy.ones((192, 192), numpy.float32)
print(flush=True)
while os.getppid() == parent:
    for _ in range(100):
        work @ work
"""
"""Keeps one CPU busy until its parent ends it or is gone."""

Spin = Callable[[Sequence[int]], AbstractContextManager[None]]


class CalibrationStep(NamedTuple):
    """One level of load: CPUs that were kept busy, those that were busy in all, and watts of the machine."""

    spun: int
    busy: float
    watts: float


@dataclass(frozen=True)
class Calibration:
    """The fitted line with its standard errors, in watts: of the machine at rest, and of one busy CPU beyond that."""

    steps: tuple[CalibrationStep, ...]
    idle_w: float
    idle_error_w: float
    core_w: float
    core_error_w: float


@dataclass(frozen=True)
class Instruments:
    """What a calibration reads and how it passes the time: joules of the machine, CPU seconds of all its programs,
    nanoseconds now, a sleep, and CPUs kept busy."""

    joules: Callable[[int], float]
    """By the time, nanoseconds."""
    busy_s: Callable[[], float]
    now_ns: Callable[[], int]
    sleep: Callable[[float], None]
    spin: Spin


def levels_of(cpus: int) -> tuple[int, ...]:
    """Return how many CPUs are kept busy in each step: from none to all, evenly, each twice if they are few."""
    if cpus < _MOST_LEVELS:
        levels = tuple(range(cpus + 1))
    else:
        levels = tuple(sorted({round(cpus * step / (_MOST_LEVELS - 1)) for step in range(_MOST_LEVELS)}))
    return levels if len(levels) >= _LEAST_STEPS else levels * 2


def calibrate(
    cpus: Sequence[int],
    seconds: float,
    instruments: Instruments,
    tell: Callable[[CalibrationStep], None] = lambda step: None,
) -> Calibration:
    """Return the line of this machine; `cpus` are those that may be kept busy, `tell` is called after each step.

    Raises DeviceError if the counter cannot be read, stands still, or does not rise with the load, or if other programs
    kept the load from being varied.
    """
    steps = []
    for level in levels_of(len(cpus)):
        with instruments.spin(cpus[:level]):
            instruments.sleep(SETTLE_S)
            steps.append(_step(level, seconds, instruments))
        tell(steps[-1])
    varied = max(step.busy for step in steps) - min(step.busy for step in steps)
    if varied < _LEAST_VARIED * len(cpus):
        raise DeviceError(
            f"other programs kept this machine busy: the load could be varied by {varied:.1f} CPUs only, of "
            f"{len(cpus)}; measure when they rest"
        )
    return fit(steps)


def _step(level: int, seconds: float, instruments: Instruments) -> CalibrationStep:
    at_ns = instruments.now_ns()
    joules, busy_s = instruments.joules(at_ns), instruments.busy_s()
    instruments.sleep(seconds)
    end_ns = instruments.now_ns()
    took_s = (end_ns - at_ns) / _NS
    if took_s <= 0.0:
        raise DeviceError("the clock stood still")
    used_j = instruments.joules(end_ns) - joules
    if used_j <= 0.0:
        raise DeviceError(f"the energy counter did not move for {took_s:.1f} s")
    return CalibrationStep(level, (instruments.busy_s() - busy_s) / took_s, used_j / took_s)


def fit(steps: Sequence[CalibrationStep]) -> Calibration:
    """Return the least-squares line through `steps`, three or more; DeviceError if watts do not rise with the load."""
    count = len(steps)
    mean_x = sum(step.busy for step in steps) / count
    mean_y = sum(step.watts for step in steps) / count
    spread = sum((step.busy - mean_x) ** 2 for step in steps)
    slope = sum((step.busy - mean_x) * (step.watts - mean_y) for step in steps) / spread if spread > 0.0 else 0.0
    if slope <= 0.0:
        raise DeviceError(
            "the power that the counter shows does not rise with the load: it is no counter to calibrate by"
        )
    rest = mean_y - slope * mean_x
    residual = sum((step.watts - rest - slope * step.busy) ** 2 for step in steps) / (count - 2)
    return Calibration(
        steps=tuple(steps),
        idle_w=rest,
        idle_error_w=math.sqrt(residual * (1.0 / count + mean_x**2 / spread)),
        core_w=slope,
        core_error_w=math.sqrt(residual / spread),
    )


@contextlib.contextmanager
def kept_busy(cpus: Sequence[int]) -> Iterator[None]:
    """Keep each of `cpus` busy by a process of its own, from when all of them work until the block ends."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    children = []
    try:
        for cpu in cpus:
            children.append(
                subprocess.Popen(
                    [sys.executable, "-I", "-c", _BURN, str(cpu)],
                    stdout=subprocess.PIPE,
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=os.environ | one_thread,
                )
            )
        for cpu, child in zip(cpus, children, strict=True):
            if child.stdout is None or not child.stdout.read(1):
                raise DeviceError(f"CPU {cpu} could not be kept busy: the process for it ended")
        yield
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.communicate()


def host_busy_s(stat: Path = PROC_STAT) -> float:
    """Return the CPU seconds that all programs of the machine used since it started; DeviceError if unreadable."""
    use = host_use(stat)
    if use is None:
        raise DeviceError(f"{stat} does not say how busy this machine is")
    return use.busy_s
