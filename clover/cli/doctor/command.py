"""The command itself: arguments, the order of findings, and printing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from clover import settings, terminal
from clover.cli.doctor import gpu, machine, power, service, software
from clover.cli.doctor.calibration import ELSEWHERE, LONGEST_S, show_calibration
from clover.cli.doctor.findings import Finding
from clover.energy.calibrate import Instruments
from clover.energy.rapl import POWERCAP, RaplError
from clover.errors import CloverError, ConfigError
from clover.hints import program
from clover.settings import Option

OPTIONS = (
    Option("--json", "print the findings as JSON"),
    Option(
        "--calibrate", "keep 0, 1, ... all CPUs busy, read the energy counter, and print [energy] idle_w and core_w"
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
    "Check this machine for a server with these settings: what works, what would, and the command that mends it. "
    "Nothing is changed, and no server is started."
)
_MARKS = {"works": "ok", "note": "note", "absent": "-", "fault": "FAULT"}
_REMEDIES = {"works": "note", "note": "better", "absent": "to have it", "fault": "to mend it"}
_WIDTH = 80


def main(argv: Sequence[str], *, powercap: Path = POWERCAP, instruments: Instruments | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if something that is configured cannot work, 2 for a wrong command
    line, 3 if something cannot be measured.

    `instruments` stand in for the machine's own, in tests.
    """
    if {"-h", "--help"} & set(argv):
        print(settings.help_text(f"{program()} {_USAGE}", _ABOUT, OPTIONS, only=USED))
        print("Of this command: 1 what is configured cannot work, 3 cannot be measured.")
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
        found = list(examine(argv, os.environ, powercap))
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
    yield from power.examine(config, powercap)
    yield from gpu.examine(config, service.records(config))
    yield from service.examine(config)


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
