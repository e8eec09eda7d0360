"""What a caller may choose about a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clover.config import EnergyConfig
from clover.profiling.candidates import COMPILED_AT_FIRST_START
from clover.profiling.effort import Effort
from clover.types import SandboxOrder

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""


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
