"""Watts of a CPU by its micro-architecture, for the model that stands in for a counter.

`data/cpu_power.json` holds what published servers draw for each hardware thread, at rest and at full load, with the
range of the figures and their sources.  /proc/cpuinfo chooses the row.  If no row knows the processor, it gets the
figures of all servers of 2017 or later, and says so.  What the operator sets (`energy.idle_w`, `energy.core_w`) takes
precedence, and has no range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import msgspec

from clover.config import EnergyConfig
from clover.errors import ConfigError
from clover.types import Record

CPUINFO = Path("/proc/cpuinfo")

_DATA = Path(__file__).parent / "data" / "cpu_power.json"

Range = tuple[float, float]
"""The least and the most that a figure may be, divided by the figure; (1, 1) if no range is known."""


class CpuModels(Record, frozen=True, kw_only=True):
    """Processors as /proc/cpuinfo names them; of ARM the implementer, the architecture and the parts.  No `steppings`:
    all of them."""

    vendor: str
    family: int
    models: tuple[int, ...]
    steppings: tuple[int, ...] = ()


class CpuPowerRow(Record, frozen=True, kw_only=True):
    """One micro-architecture: watts of a hardware thread at rest, and what a busy one adds; each the median of
    `systems` published servers, then the 10th and the 90th percentile."""

    name: str
    idle_w: tuple[float, float, float]
    core_w: tuple[float, float, float]
    systems: int
    source: str
    cpus: tuple[CpuModels, ...]


class _File(Record, frozen=True, kw_only=True):
    about: tuple[str, ...]
    sources: dict[str, str]
    generic: CpuPowerRow
    rows: tuple[CpuPowerRow, ...]


@dataclass(frozen=True)
class CpuPower:
    """What the model assumes: watts of a CPU (a hardware thread) at rest, `idle_w`, and what it adds while it is busy,
    `core_w`, each with its range.  `why` says where the figures come from."""

    idle_w: float
    core_w: float
    idle_range: Range
    core_range: Range
    why: str


def cpu_power(config: EnergyConfig, cpuinfo: Path = CPUINFO) -> CpuPower:
    """Return the watts that `config` sets, and otherwise those of the processor of this machine.

    Raises ConfigError if a configured value is no number of watts.
    """
    for name, watts in (("idle_w", config.idle_w), ("core_w", config.core_w)):
        if watts is not None:
            check_watts(name, watts)
    from_table = published(cpuinfo)
    words = from_table.why
    if config.idle_w is not None:
        from_table = replace(from_table, idle_w=config.idle_w, idle_range=(1.0, 1.0))
        words = f"{words}; idle {config.idle_w:g} W a CPU as configured"
    if config.core_w is not None:
        from_table = replace(from_table, core_w=config.core_w, core_range=(1.0, 1.0))
        words = f"{words}; {config.core_w:g} W a busy CPU as configured"
    both = config.idle_w is not None and config.core_w is not None
    return replace(from_table, why="watts as configured" if both else words)


def published(cpuinfo: Path = CPUINFO) -> CpuPower:
    """Return the watts of the table for the processor that the file `cpuinfo` describes."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return _published(text)


def row_of(cpuinfo: str) -> CpuPowerRow | None:
    """Return the row for the text of /proc/cpuinfo; None for a processor that no row knows."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    arm = "CPU implementer" in fields
    names = ("CPU implementer", "CPU architecture", "CPU part") if arm else ("vendor_id", "cpu family", "model")
    vendor, family, model = (fields.get(name, "") for name in names)
    processor = (vendor, _number(family), _number(model))
    stepping = _number(fields.get("stepping", ""))
    for row in table().rows:
        for known in row.cpus:
            alike = processor[:2] == (known.vendor, known.family) and processor[2] in known.models
            if alike and (not known.steppings or stepping in known.steppings):
                return row
    return None


@cache
def table() -> _File:
    """Return the table that comes with Clover."""
    return msgspec.json.decode(_DATA.read_bytes(), type=_File)


def check_watts(name: str, watts: float) -> None:
    """Raise ConfigError unless `watts`, the setting `energy.name`, is a number of at least 0."""
    if not (math.isfinite(watts) and watts >= 0):
        raise ConfigError(f"energy.{name} must be a number of watts of at least 0, not {watts}")


@cache
def _published(cpuinfo: str) -> CpuPower:
    row = row_of(cpuinfo)
    used = row or table().generic
    idle, core = used.idle_w, used.core_w
    of = used.name if row is not None else f"{used.name}, since this processor is not in the table"
    if not used.systems:
        of += " (no server of it was published: those of a related one)"
    else:
        of += f", {used.systems} published server{'s' if used.systems > 1 else ''}"
    return CpuPower(
        idle_w=idle[0],
        core_w=core[0],
        idle_range=(idle[1] / idle[0], idle[2] / idle[0]),
        core_range=(core[1] / core[0], core[2] / core[0]),
        why=(
            f"watts a CPU of {of}: {idle[0]:g} ({idle[1]:g} to {idle[2]:g}) at rest, "
            f"{core[0]:g} ({core[1]:g} to {core[2]:g}) more while busy"
        ),
    )


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return -1
