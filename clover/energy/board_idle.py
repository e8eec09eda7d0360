"""The two idle powers of a GPU: bare, and resident, with a CUDA context on it.

A context keeps a GPU from its deepest sleep, whatever it does and however many there are: 26 to 66 W more on boards of
data centres (arXiv:2605.23918).  So a GPU whose workers rest draws `resident` watts and not `bare` ones.  Computing
costs what lies above `resident`, and being awake costs `resident - bare`.

Either is known by the first of these that holds:

* it is configured;
* it was measured at rest: the median of the last readings of a GPU that had stood still for `SETTLE_S` seconds by then,
  with the same processes on it and none of them at work.  Bare is measured so before there are workers, and again
  whenever no process is left; resident while workers wait;
* for resident: an earlier run on this GPU measured it (`kept`).

Until resident is known, being awake has no price, and its watts pass for active ones.  Neither is ever more than the
GPU drew on average over any ten of the last six hundred seconds; for resident only seconds with a context count.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Literal

SETTLE_S = 3.0
_LOOKS = 31
_WINDOWS = 60

KnownBy = Literal["start", "configured", "rest", "kept", "unknown"]


class BoardIdle:
    """Watts at rest of one GPU.  `bare_by` and `resident_by` say how they are known.  `resident_w` equals `bare_w`
    until it is known.  `awake`: whether a context was on it at the last reading."""

    def __init__(self, bare_w: float, *, bare_by: KnownBy = "start", resident_w: float | None = None) -> None:
        self.bare_by = bare_by
        self.resident_by: KnownBy = "unknown" if resident_w is None else "configured"
        self.awake = False
        self._bare_w = bare_w
        self._resident_w = bare_w if resident_w is None else resident_w
        self._rest: dict[bool, deque[tuple[int, float]]] = {key: deque(maxlen=_LOOKS) for key in (False, True)}
        self._windows: deque[tuple[bool, float]] = deque(maxlen=_WINDOWS)
        self._still_ns: int | None = None
        self._holders: object = None

    @property
    def bare_w(self) -> float:
        """Watts with no context on it."""
        return min([self._bare_w, *(watts for _, watts in self._windows)])

    @property
    def resident_w(self) -> float:
        """Watts with a context that does nothing."""
        if self.resident_by == "unknown":
            return self.bare_w
        return max(min([self._resident_w, *(watts for awake, watts in self._windows if awake)]), self.bare_w)

    @property
    def awake_w(self) -> float:
        """Watts that being awake costs now: 0 without a context."""
        return self.resident_w - self.bare_w if self.awake else 0.0

    @property
    def why(self) -> str:
        """How resident is known, in words; the empty string before there is anything to say."""
        watts = f"{self.resident_w:.4g} W with a context"
        words = {
            "configured": f"{watts} as configured",
            "rest": f"{watts}, measured at rest",
            "kept": f"{watts}, as an earlier run measured it",
        }
        return words.get(self.resident_by, "what a context costs is not measured yet" if self.awake else "")

    def restore(self, resident_w: float) -> None:
        """Take what an earlier run measured, until this one has."""
        if self.resident_by == "unknown":
            self._resident_w, self.resident_by = resident_w, "kept"

    def set_resident(self, resident_w: float) -> None:
        """Set what was measured while a worker waited on purpose."""
        if self.resident_by != "configured":
            self._resident_w, self.resident_by = resident_w, "rest"

    def record_window(self, awake: bool | None, watts: float) -> None:
        """Record the average of ten seconds; `awake` None: a context was there for a part of them."""
        self._windows.append((bool(awake), watts))

    def record_disturbance(self) -> None:
        """Record that the GPU worked, or cannot be read: it is not at rest."""
        self._still_ns = None

    def record_work(self, at_ns: int, busy_ns: int) -> None:
        """Record that a batch of `busy_ns` has ended by `at_ns`: readings that fell into it were not at rest."""
        for looks in self._rest.values():
            while looks and looks[-1][0] > at_ns - busy_ns:
                looks.pop()
        self.record_disturbance()

    def observe(self, at_ns: int, watts: float, holders: object) -> None:
        """Count a reading of a GPU on which nothing works, at `watts`, with `holders` on it (anything that tells
        processes apart)."""
        if self._still_ns is None or holders != self._holders:
            self._still_ns, self._holders = at_ns, holders
        if at_ns - self._still_ns < SETTLE_S * 1e9:
            return
        looks = self._rest[self.awake]
        looks.append((at_ns, watts))
        middle = statistics.median(watts for _, watts in looks)
        if self.awake:
            self.set_resident(middle)
        elif self.bare_by != "configured":
            self._bare_w, self.bare_by = middle, "rest"
