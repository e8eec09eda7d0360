"""What was reported about one GPU beside its answers: critical errors (Xid), and look-ups of it that failed.

An error after which the GPU is of no use condemns it, also while it still answers: it is used again once it was gone
and came back, as after a reset, or by a new start of the server.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from clover.devices import nvml, xids


class GpuReports:
    """`condemned`: an error made the GPU useless, and it was not reset since."""

    def __init__(self) -> None:
        self.condemned = False
        self._counts: Counter[str] = Counter()
        self._unknown = 0

    def take(self, number: int, gi: int | None) -> tuple[xids.Verdict | Literal[""], str]:
        """Take note of error `number`, of the GPU instance `gi` if that is given; return what it means ("" nothing),
        and that in words."""
        found = xids.meaning(number, gi)
        where = f" of GPU instance {gi}" if gi is not None else ""
        text = f"Xid {number}{where}{f': {found.text}' if found is not None else ''}"
        self._counts[text] += 1
        if found is None:
            return "", text
        self.condemned = self.condemned or found.verdict == "lost"
        return found.verdict, f"{text}{'; a reset of the GPU is due' if found.verdict == 'suspect' else ''}"

    def errors(self) -> list[str]:
        """Return the errors so far in words, each once with how often it came."""
        return [f"{text} ({count} times)" if count > 1 else text for text, count in sorted(self._counts.items())]

    def answered(self) -> None:
        """Take note that the GPU answers."""
        self._unknown = 0

    def gone(self) -> None:
        """Take note that the GPU is lost: once it answers again, it is another one, or was reset."""
        self.condemned = False
        self._unknown = 0

    def failed(self, *, unknown: bool) -> bool:
        """Take note that it did not answer, `unknown`: that not even its handle is to be had; return whether it is lost
        by that."""
        self._unknown = self._unknown + 1 if unknown else 0
        return self._unknown >= nvml.LOOK_UPS
