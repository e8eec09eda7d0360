"""What the doctor finds, as records."""

from __future__ import annotations

from typing import Literal

from clover.types import Record

State = Literal["works", "note", "absent", "fault"]
"""works: as it should be.  note: it works, and could do better.  absent: not there, and nothing that is configured
needs it.  fault: what is configured cannot work."""


class Finding(Record, frozen=True, kw_only=True):
    """One finding.  `remedy` is the command or the change that mends it; empty if there is nothing to mend."""

    topic: str
    state: State
    text: str
    remedy: str = ""
