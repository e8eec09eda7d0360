"""What is counted: the boundaries within which a score holds, as lines of the account.  A saving is the server's.

    workers   active energy of the variants, for live rows and for those of batch jobs, and the idle power of the
              cores and slices that workers hold, with what their contexts draw on GPUs
    server    also the front end, control, and the idle power of the server's cores and slices that no worker holds
    machine   also all else that meters saw: other programs, and what is not the server's

Each includes the one before it, and `machine` is all that the meters showed.  If a model stands in for a counter, the
boundary `machine` is not known, because a model sees nothing but the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from clover.accounting.devices import LINES
from clover.accounting.labels import DeviceLines
from clover.quantities import grams, percent

Boundary = Literal["workers", "server", "machine"]
BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)
DEFAULT: Boundary = "server"

_WORKERS = ("active", "waiting", "idle", "idle_no_request", "awake")
WITHIN: Mapping[Boundary, tuple[str, ...]] = {
    "workers": _WORKERS,
    "server": (*_WORKERS, "front_end", "control", "unowned"),
    "machine": LINES,
}
"""The lines of a device's account that lie within each boundary."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "idle power": ("idle", "idle_no_request", "awake", "unowned", "carried"),
    "workers' active": ("active", "waiting"),
    "front end and control": ("front_end", "control"),
    "other programs": ("foreign", "unattributed"),
}
"""Where a machine's grams go: the lines of its account in four parts."""
LEAST_ROWS = 100
"""Rows compared from which on a saving is given as a part."""
LIGHT_PART = 0.5
"""The idle part of the energy from which on a load is too little to save on: most of the energy is then drawn whatever
is served, and a comparison tells how large the machine is."""
TOO_LITTLE = "too little load to save on"


def metered_boundaries(devices: Mapping[str, DeviceLines]) -> tuple[Boundary, ...]:
    """Return the boundaries that were metered completely: not the machine if any of `devices` is modelled."""
    modelled = any(line.get("method") == "modelled" for line in devices.values())
    return tuple(boundary for boundary in BOUNDARIES if boundary != "machine" or not modelled)


def where_words(lines: Mapping[str, float], days: float) -> str:
    """Return where grams went in `days` days, by the `lines` of an account, the most first: "81 % idle power (3.1 g a
    day), ..."; empty without grams."""
    grams_of = {part: sum(lines.get(line, 0.0) for line in own) for part, own in PARTS.items()}
    whole = sum(grams_of.values())
    if whole <= 0.0 or days <= 0.0:
        return ""
    ordered = sorted(grams_of.items(), key=lambda item: -item[1])
    return ", ".join(f"{percent(own / whole)} {part} ({grams(own / days)} a day)" for part, own in ordered if own)
