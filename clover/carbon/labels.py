"""How an intensity is known, in words, wherever people read it: banner, state, logs."""

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


def describe(reading: Reading) -> str:
    """Return how a reading is known: method, signal, scope, the time it is of if replayed, and its state."""
    if reading.method == "synthetic":
        known = [f"synthetic: {INVENTED}"]
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
