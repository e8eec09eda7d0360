"""Quantities for people: masses with a unit in which small ones can be read, slices of a CPU as cores.  Machines get
plain numbers and names."""

from __future__ import annotations

import math
import re

IN_PERCENT = "is in percent: for 90 % it is 90, not 0.9"
"""What is said of an accuracy that was meant as a fraction."""
_UNITS = ((1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "µg"), (1e-9, "ng"))
_JOULES_PER_KWH = 3.6e6


def grams(value: float) -> str:
    """Return `value` grams to three digits: 0.0000123 is "12.3 µg".  Zero, and what is no number, is in grams."""
    size = abs(value)
    if size == 0.0 or not math.isfinite(size):
        return f"{value:g} g"
    scale, unit = next((item for item in _UNITS if size >= 0.9995 * item[0]), _UNITS[-1])
    return f"{value / scale:.3g} {unit}"


def joules(value: float) -> str:
    """Return `value` joules to three or four digits, many as kWh."""
    return f"{value:.4g} J" if value < 1e5 else f"{value / _JOULES_PER_KWH:.3g} kWh"


def rate(per_s: float) -> str:
    """Return a rate (of rows, a second) to four digits, and none behind the point of a large one: "26,910"."""
    return f"{per_s:.4g}" if per_s < 999.95 else f"{per_s:,.0f}"


def percent(part: float) -> str:
    """Return a part in percent, to three digits: 0.6 is "60 %", 0.00551 is "0.551 %"."""
    return f"{100.0 * part:.3g} %"


def slice_words(profile: str) -> str:
    """Return the name of a slice in words: "1c" is "1 core", "2c" is "2 cores"; slices of GPUs keep theirs."""
    cores = re.fullmatch(r"(\d+)c", profile)
    if cores is None:
        return profile
    return f"{cores[1]} core{'' if cores[1] == '1' else 's'}"
