"""Words for how an intensity is known, wherever people read it: banner, state, logs."""

from __future__ import annotations

from clover.carbon.layouts import format_time
from clover.types import Reading

INVENTED = "an invented grid"
_STATES = {
    "fresh": "fresh",
    "stale": "stale, {age:.0f} s old",
    "fallback": "from a fallback, {age:.0f} s old",
    "forecast": "bridged by the last forecast",
    "seasonal": "bridged by the mean of past days at this hour",
    "configured": "no source has a value",
}


def caveat(reading: Reading | None) -> str:
    """Return what has to be known before any gram is quoted, and what ends that: the intensity is invented, unknown, or
    of another time.  Empty if none of these holds."""
    if reading is None:
        return ""
    if reading.method == "synthetic":
        return (
            "THE GRID IS INVENTED: the intensity is a formula, so no gram here was emitted anywhere. "
            "Give your own: --carbon auto:ZONE (live), --carbon trace:FILE (hourly values of it) or --carbon static:G"
        )
    if reading.state == "configured":
        return (
            f"THE INTENSITY IS NOT KNOWN: no source has a value, so {reading.g_per_kwh:g} gCO2e/kWh stands in "
            "(carbon.configured_g_per_kwh, 400 by default) and grams are those of no grid. See that the source can be "
            "reached, or give your own: --carbon trace:FILE (hourly values) or --carbon static:G"
        )
    if reading.replayed:
        return (
            f"THE INTENSITIES ARE OF ANOTHER TIME: {reading.provider} is replayed, now at {format_time(reading.at_s)}, "
            "so no gram here was emitted today. A file that covers now is read at now, without --trace-speed, "
            "--trace-start and ?loop=1"
        )
    return ""


def describe_reading(g_per_kwh: float, unit: str, provider: str, label: str, state: str) -> str:
    """Return an intensity with its source and how it is known (`label`, of `describe`).  If no source has a value, what
    stands in (`state`) has no source."""
    return f"{g_per_kwh:.0f} {unit}{'' if state == 'configured' else f' {provider}'} ({label})"


def describe(reading: Reading) -> str:
    """Return how a reading is known: method, signal, scope, the time it is of if replayed, and its state."""
    if reading.method == "synthetic":
        known = [f"synthetic: {INVENTED}"]
    elif reading.state == "configured":
        known = ["a stand-in"]
    elif reading.method == "configured":
        known = ["configured"]
    else:
        parts = {"method": reading.method, "signal": reading.signal, "scope": reading.scope}
        known = [value for value in parts.values() if value != "unknown"]
        unknown = [name for name, value in parts.items() if value == "unknown"]
        if unknown:
            known.append(f"{' and '.join(filter(None, (', '.join(unknown[:-1]), unknown[-1])))} unknown")
    if reading.replayed:
        known.append(f"replayed, of {format_time(reading.at_s)}")
    return ", ".join([*known, _STATES[reading.state].format(age=reading.age_s)])
