"""Findings about energy and embodied carbon of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clover import energy
from clover.cli.doctor.findings import Finding
from clover.config import ServerConfig
from clover.devices.cpu import CpuDevice, available_cores
from clover.energy.rapl import RaplError, find_domains
from clover.errors import CloverError
from clover.hints import program
from clover.server.footprint import hardware_of


def examine(config: ServerConfig, powercap: Path) -> Iterator[Finding]:
    """Yield how joules and embodied carbon of the CPU are known."""
    yield _meter(config, powercap)
    for item in hardware_of(config.embodied, {"cpu0": CpuDevice()}):
        bounds = f", {item.low_kg:.3g} to {item.high_kg:.3g}" if item.low_kg and item.high_kg else ""
        reserved = f"{item.reserved:g} of {item.total:g} reserved"
        text = f"{item.kg:.3g} kgCO2e of {item.product} ({item.known}{bounds}), {reserved}"
        yield Finding(topic="embodied", state="works", text=text)


def _meter(config: ServerConfig, powercap: Path) -> Finding:
    try:
        meter = energy.build(config.energy, cores=len(available_cores()), cpu_seconds=lambda: 0.0, powercap=powercap)
    except CloverError as error:
        return Finding(topic="energy", state="fault", text=str(error), remedy="--energy-meter auto")
    text = f"{meter.method}: {meter.why}"
    if meter.method == "measured" or config.energy.meter == "modelled":
        return Finding(topic="energy", state="works", text=text)
    try:
        find_domains(powercap)
        advice = ""
    except RaplError as error:
        advice = f"{error.advice}; or take idle_w and core_w from `{program()} doctor --calibrate` on a like machine"
    return Finding(topic="energy", state="note", text=text, remedy=advice)
