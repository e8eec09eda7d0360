"""The receipt of an answer, read from its `Clover-Receipt` header (an RFC 9651 dictionary)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_ITEM = r'([a-z*][a-z0-9_.*-]*)(?:=("(?:[^"\\]|\\.)*"|[^,;"\s]+))?'
_PARAMETER = re.compile(rf"\s*;\s*{_ITEM}")
_MEMBER = re.compile(rf"\s*{_ITEM}((?:\s*;\s*{_ITEM})*)\s*(?:,|$)")

Value = str | float | bool


@dataclass(frozen=True, slots=True)
class CallReceipt:
    """What an answer cost.  `accuracy` is the profile's expectation in percent; `method` says how `energy_j` is known,
    `intensity_method` how the carbon intensity is.  `feedback` is the id by which labels may come.  `members` has
    everything that the header says; the `path` of a cascade is there if the receipt was asked for in full."""

    variant: str
    accuracy: float
    energy_j: float
    carbon_mg: float
    method: str
    intensity_method: str = ""
    path: str = ""
    cached: bool = False
    feedback: str = ""
    members: Mapping[str, Value] = field(default_factory=dict)


def members_of(text: str) -> dict[str, Value]:
    """Return the members of an RFC 9651 dictionary: strings without their quotes, numbers, tokens as strings, and
    booleans; a parameter as a member MEMBER-PARAMETER.  Raises ValueError if it is malformed."""
    members: dict[str, Value] = {}
    at = 0
    while at < len(text):
        match = _MEMBER.match(text, at)
        if match is None:
            raise ValueError("the receipt is no dictionary of RFC 9651")
        members[match[1]] = _value(match[2])
        for name, value in _PARAMETER.findall(match[3]):
            members[f"{match[1]}-{name}"] = _value(value or None)
        at = match.end()
    return members


def _value(text: str | None) -> Value:
    if text is None or text in ("?1", "?0"):
        return text != "?0"
    if text.startswith('"'):
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    try:
        return float(text)
    except ValueError:
        return text


def receipt_of(headers: Mapping[str, str]) -> CallReceipt | None:
    """Return the receipt of an answer; None if it has none that can be read, as answers of other servers."""
    try:
        members = members_of(headers["clover-receipt"])
        energy_j, carbon_mg = float(members["energy-j"]), float(members["carbon-mg"])  # strings on the wire
        return CallReceipt(
            variant=str(members["variant"]),
            accuracy=float(members["accuracy"]),
            energy_j=energy_j,
            carbon_mg=carbon_mg,
            method=str(members["method"]),
            intensity_method=str(members.get("intensity-method", "")),
            path=str(members.get("path", "")),
            cached=members.get("cached") is True,
            feedback=str(members.get("feedback") or headers.get("x-request-id", "")),
            members={**members, "energy-j": energy_j, "carbon-mg": carbon_mg},
        )
    except (KeyError, ValueError):
        return None
