"""What a caller may choose about a measurement: how, and how much it samples (quickly at a first start, fully by the
command).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clover.config import EnergyConfig
from clover.types import SandboxOrder

COMPILED_AT_FIRST_START = ("onnxruntime", "openvino-bf16", "openvino", "onnxruntime-int8", "openvino-int8")
"""Backends whose artifacts a quick measurement makes itself: an export takes seconds a variant, OpenVINO's form of it a
second more, quantising some seconds of a heavy variant, aoti minutes in all."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""


@dataclass(frozen=True)
class CompileLimits:
    """How long compiling may take.  When `cpu_s` of CPU time are used nothing more is started, and after `clock_s`
    seconds what is not done is given up.  A profile is kept, so what it lacks because the machine was busy would be
    lacking for good.  So work is what is limited, and the clock only far behind it."""

    cpu_s: float = math.inf
    clock_s: float = math.inf


NO_LIMITS = CompileLimits()


@dataclass(frozen=True)
class Effort:
    """How much to sample.  Each batch size is measured at least `samples` times and `least_s` seconds, at most
    `most_s`; an accuracy pass takes at most `score_s`, BASE about `base_s`.  Everything is measured again in `rounds`
    rounds, each cell for `1 / rounds` of its time."""

    quick: bool
    samples: int
    least_s: float
    most_s: float
    score_s: float
    base_s: float
    rounds: int
    compiling: CompileLimits = NO_LIMITS

    def batches(self, max_batch: int) -> tuple[int, ...]:
        """Return the batch sizes to measure; quick: 1, 4 and the largest, otherwise powers of two and the largest."""
        sizes = {1, 4} if self.quick else {1 << power for power in range(max_batch.bit_length())}
        return tuple(sorted({size for size in sizes if size < max_batch} | {max_batch}))


QUICK = Effort(
    quick=True,
    samples=30,
    least_s=0.1,
    most_s=1.0,
    score_s=4.0,
    base_s=1.6,
    rounds=3,
    compiling=CompileLimits(cpu_s=50.0, clock_s=300.0),
)
FULL = Effort(quick=False, samples=200, least_s=0.5, most_s=5.0, score_s=120.0, base_s=5.0, rounds=5)


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure a family.

    `backends`: those to try, beside eager.  Artifacts of `compile_with` that are missing are compiled first, within
    `effort.compiling`.  `key` is what the profile is kept under (on cores it is known).  A worker that gives no answer
    for `silent_s` seconds ends the measurement.  `sandbox` is how workers are confined (None: not at all), and the
    family's code while it is compiled; `rows_sandbox`, in a process of its own, its evaluation rows and metric.
    """

    backends: tuple[str, ...]
    cache_dir: Path
    effort: Effort
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    compile_with: tuple[str, ...] = COMPILED_AT_FIRST_START
    silent_s: float = 30.0
    key: str = ""
    progress: Progress | None = None
    sandbox: SandboxOrder | None = None
    rows_sandbox: SandboxOrder | None = None
