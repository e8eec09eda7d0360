"""The command itself: arguments, the order of findings, printing, and `--calibrate`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from clover import settings, terminal
from clover.cli.doctor import gpu, grams, machine, service, software
from clover.cli.doctor.findings import Finding
from clover.cli.progress import Progress
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
from clover.energy.rapl import POWERCAP, RaplError, RaplMeter
from clover.errors import CloverError, ConfigError
from clover.hints import program
from clover.settings import Option

LONGEST_S = 30.0
"""Seconds at one level of a calibration; a counter may wrap unseen after a minute."""
OPTIONS = (
    Option("--json", "print the findings as JSON"),
    Option(
        "--calibrate",
        "keep 0, 1, ... and at last all CPUs busy, read the energy counter, and print [energy] idle_w and core_w",
    ),
    Option("--seconds", f"with --calibrate: seconds to measure at each level of load, 1 to {LONGEST_S:g} [5]", "S"),
)
USED = frozenset(
    {
        *(
            "workers.device",
            "workers.cores",
            "carbon.source",
            "cache_dir",
            "state_dir",
            "energy.meter",
            "otel.endpoint",
        ),
        *("listen.host", "listen.port", "limits.connections"),
    }
)
_USAGE = "doctor [FAMILY|FOLDER|MODULE:ATTRIBUTE|CONFIG.toml]... [flags]"
_ABOUT = (
    "Check whether a server with these settings would work here: what works, what does not, and how to mend it. "
    "Nothing is changed, and no server is started."
)
_MARKS = {"works": "ok", "note": "note", "absent": "-", "fault": "FAULT"}
_REMEDIES = {"works": "note", "note": "better", "absent": "to have it", "fault": "to mend it"}
_WIDTH = 80
ELSEWHERE = (
    "Let this user read RAPL (chmod a+r .../energy_uj, as root), or calibrate on a machine with the same processor "
    "that has it,\nand set energy.idle_w and energy.core_w here to what it prints there."
)
_DOUBTFUL = 0.1
"""Relative standard error beyond which a constant is not to be used without a thought."""
_QUIET_CPUS = 0.2
"""CPUs that other programs may keep busy without a word about them."""


def main(argv: Sequence[str], *, powercap: Path = POWERCAP, instruments: Instruments | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if something that is configured cannot work, 2 for a wrong command
    line, 3 if something cannot be measured.

    `instruments` stand in for the machine's own, in tests.
    """
    if {"-h", "--help"} & set(argv):
        print(settings.help_text(f"{program()} {_USAGE}", _ABOUT, OPTIONS, only=USED))
        print("Also: 1 a setting cannot work here, 3 --calibrate finds nothing to measure with.")
        return 0
    try:
        given = settings.load(argv, {}, options=OPTIONS)
        seconds = _seconds(given.options.get("seconds", "5"))
    except ConfigError as error:
        print(f"clover doctor: {error}", file=sys.stderr)
        return 2
    try:
        if "calibrate" in given.options:
            show_calibration(seconds, powercap, instruments)
            return 0
        found = []
        with Progress("doctor", "looking at the software") as progress:
            for finding in examine(argv, os.environ, powercap):
                found.append(finding)
                progress.note(f"after {finding.topic}")
    except RaplError as error:
        print(f"clover doctor: there is no energy counter to calibrate by: {error}\n{ELSEWHERE}", file=sys.stderr)
        return 3
    except CloverError as error:
        print(f"clover doctor: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    faults = [item for item in found if item.state == "fault"]
    if "json" in given.options:
        print(msgspec.json.encode({"good": not faults, "findings": found}).decode())
    else:
        print(text(found, shutil.get_terminal_size((_WIDTH, 0)).columns))
    return 1 if faults else 0


def examine(argv: Sequence[str], environ: Mapping[str, str], powercap: Path = POWERCAP) -> Iterator[Finding]:
    """Yield all findings for a server that is started with these words in this environment."""
    config = settings.load(argv, {}, options=OPTIONS).config
    try:
        given = settings.load(argv, environ, options=OPTIONS)
    except ConfigError as error:
        yield Finding(topic="settings", state="fault", text=str(error), remedy="unset or correct it")
    else:
        config = given.config
        if given.service_links:
            yield Finding(
                topic="settings",
                state="works",
                text=f"{len(given.service_links)} variables that Kubernetes sets for a Service are no settings, and "
                f"ignored: {', '.join(given.service_links)}",
            )
    yield from software.examine()
    yield from machine.examine(config)
    yield from machine.power(config, powercap)
    yield from gpu.examine(config, service.records(config))
    yield from service.examine(config)
    yield from grams.examine(config)


def text(found: Sequence[Finding], columns: int) -> str:
    """Return the findings for people, in lines of `columns` characters, with a sum at the end."""
    rows = []
    for item in found:
        rows.append((f"{_MARKS[item.state]:<5}  {item.topic}", item.text))
        if item.remedy:
            rows.append(("", f"{_REMEDIES[item.state]}: {item.remedy}"))
    counts = {state: sum(item.state == state for item in found) for state in _MARKS}
    closing = f"{counts['fault']} faults, {counts['note']} notes; {counts['works']} work, {counts['absent']} are absent"
    return f"{terminal.listing(rows, columns)}\n\n  {closing}"


def _seconds(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 1.0 <= value <= LONGEST_S:
        raise ConfigError(f"--seconds: measure for 1 to {LONGEST_S:g} seconds, not {given}")
    return value


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
