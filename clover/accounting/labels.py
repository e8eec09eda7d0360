"""Words for how figures are known, to stand beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

DeviceLines = Mapping[str, float | str]
"""The lines of one device and how they are known (`clover.accounting.Account.devices`)."""

METER_ERROR: dict[str, float] = {"measured": 0.05, "emulated": 0.0}
"""By how much energy may be off as a part, where the meter does not say: NVML's and RAPL's own counters, and what is
only emulated."""
MODELLED_ERROR = 0.5
"""The same of what is modelled."""


def join_labels(ways: Iterable[str]) -> str:
    """Return each of `ways` once, joined by " + "; the empty string if there are none."""
    return " + ".join(sorted(set(ways)))


def grams_method(method: str, intensity: str) -> str:
    """Return how grams are known, from how their joules and the intensity are known.  A counter's joules at a stated or
    invented intensity are not measured grams."""
    return "modelled" if method == "measured" and intensity != "published" else method


def methods_of(devices: Iterable[DeviceLines]) -> set[str]:
    """Return how the joules of those of `devices` are known that used any."""
    return {str(line["method"]) for line in devices if float(line["measured_j"]) > 0.0}
