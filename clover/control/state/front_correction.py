"""What HTTP and the front end add to the p95 of a family: at first by its profile, then by what is seen in service.

Two things are in it: work on a request (head, body, answer, and the client's own), which is the same at any time, and
waiting for the event loop's turn, which is the machine's at that moment.  `front_ms` of a profile is the work.  What
probes of the event loop wait now (`clover.http.loop_lag`) is added to it.

Without probes (a server without HTTP, too few of them yet) the profile's figure holds.  What is learned is kept with
the other corrections, and is drawn back to the profile with age like those (`planning.model.correction`), until probes
come again.

Unlike times and joules it is a sum and no factor.  `moved` and so all limits of `control.state.learning` are about what
that makes of a p95.
"""

from __future__ import annotations

import math

from clover.planning.model.correction import faded
from clover.planning.model.problem import services_of
from clover.profiles import LEAST_SLO_MS
from clover.types import FamilyProfile, FrontLag, Record

MOST_LAG_MS = 100.0
"""More waiting than this is a fault of the machine that no plan mends."""


class SavedFront(Record, frozen=True, kw_only=True):
    """How many milliseconds requests waited for the event loop, and how many seconds ago that was."""

    lag_ms: float
    age_s: float


class FrontCorrection:
    """What the front end adds to a p95 of one family.  `ms` is in force, until `use`."""

    def __init__(self, profile: FamilyProfile) -> None:
        self.profile_ms = self.ms = profile.front_ms
        self.lag: FrontLag | None = None
        self._seen_s = -math.inf
        base = services_of(profile).get((profile.base.variant, profile.base.profile))
        self._p95_ms = max(base.mean_ms[0] if base is not None else 0.0, LEAST_SLO_MS)

    def see(self, lag: FrontLag | None, now_s: float) -> bool:
        """Take what probes say by now; return whether that is news."""
        if lag is None or (self.lag is not None and lag.windows == self.lag.windows):
            return False
        self.lag, self._seen_s = lag, now_s
        return True

    def at(self, now_s: float) -> float:
        """Return what it is by all that is known, in milliseconds."""
        if self.lag is None:
            return self.profile_ms
        seen_ms = self.profile_ms + min(self.lag.ms, MOST_LAG_MS)
        kept = self.moved(seen_ms, self.profile_ms) * faded(now_s - self._seen_s)
        return self.profile_ms + (self._p95_ms + self.profile_ms) * math.expm1(kept)

    def use(self, ms: float) -> None:
        """Put `ms` in force."""
        self.ms = ms

    def moved(self, after_ms: float, before_ms: float) -> float:
        """Return by how much a p95 moves with it, as a logarithm: that of rows which BASE serves one by one, but not
        less than the least default SLO, below which nothing follows from it.  What was measured under load would not
        do, as it is as wrong where the machine was busy."""
        return math.log((self._p95_ms + after_ms) / (self._p95_ms + before_ms))

    def words(self) -> str:
        """Return what is in force, if that is not the profile's as far as it is shown; else empty."""
        if abs(self.ms - self.profile_ms) < 0.005:
            return ""
        return f"HTTP: {self.ms:.2f} ms of the p95 instead of {self.profile_ms:.2f}"

    def report(self) -> dict[str, float | int | None]:
        """Return what is in force and what it is made of, for `state`."""
        return {
            "ms": self.ms,
            "profile_ms": self.profile_ms,
            "lag_ms": self.lag.ms if self.lag is not None else None,
            "windows": self.lag.windows if self.lag is not None else 0,
        }

    def save(self, now_s: float) -> SavedFront | None:
        """Return what was seen, for a file; None if nothing was."""
        if self.lag is None:
            return None
        return SavedFront(lag_ms=self.lag.ms, age_s=max(now_s - self._seen_s, 0.0))

    def restore(self, saved: SavedFront | None, now_s: float) -> None:
        """Take what was seen earlier, aged since by what `now_s` is before now.  Raises ValueError if that cannot
        be."""
        if saved is None:
            return
        if not (math.isfinite(saved.lag_ms) and math.isfinite(saved.age_s) and saved.lag_ms >= 0.0):
            raise ValueError("it has a waiting time that is no number")
        self.lag, self._seen_s = FrontLag(ms=saved.lag_ms, windows=0), now_s - max(saved.age_s, 0.0)
