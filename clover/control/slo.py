"""Log lines about a missed SLO: a line a minute while it is missed, and one when it is met again.

The observed p95 trails by some seconds and touches the SLO now and then without meaning anything.  So the SLO is missed
once `SLO_LOOKS` looks in a row saw the p95 above it, and met again once none did for `MET_S`.  A p95 that crosses the
SLO all the time makes no more lines than one that stays above it: another miss within a minute waits for its minute.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from clover.control.triggers import SLO_LOOKS
from clover.hints import duration

log = logging.getLogger("clover.control")

EVERY_S = 60.0
MET_S = 10.0


class SloLog:
    """Follows the observed p95 of one family, and logs when its SLO is missed and met again."""

    def __init__(self, name: str) -> None:
        self.missed_s = math.nan
        """Monotonic time since when the SLO is missed; NaN while it is met."""
        self._name = name
        self._looks = 0
        self._began_s = 0.0
        self._above_s = 0.0  # when it was last seen above
        self._logged_s = -math.inf
        self._logged = False  # whether the miss under way was logged

    def look(self, now_s: float, observed: dict[str, float], slo_ms: float, doing: Callable[[], str]) -> None:
        """Note what one look at the family saw, and log a miss or its end.  `doing` says what is done about a missed
        SLO."""
        p95_ms, rows = observed.get("p95_ms"), observed.get("queue_rows", 0.0)
        unanswered = p95_ms is None and rows > 0.0  # rows wait and none was answered lately: nothing is in time
        if unanswered or (p95_ms is not None and p95_ms > slo_ms):
            if self._looks == 0:
                self._began_s = now_s
            self._looks += 1
            self._above_s = now_s
            if math.isnan(self.missed_s) and self._looks >= SLO_LOOKS:
                self.missed_s = self._began_s
            if not math.isnan(self.missed_s) and now_s - self._logged_s >= EVERY_S:
                self._logged_s, self._logged = now_s, True
                log.warning(
                    "%s: the SLO is missed, for %s so far: %s of %.2f ms at %.1f rows/s, %.0f rows waiting; %s",
                    self._name,
                    duration(now_s - self.missed_s),
                    "no answer in time" if p95_ms is None else f"p95 {p95_ms:.2f} ms",
                    slo_ms,
                    observed.get("arrival_rate", 0.0),
                    rows,
                    doing(),
                )
            return
        self._looks = 0
        if not math.isnan(self.missed_s) and now_s - self._above_s >= MET_S:
            if self._logged:
                met = f"p95 {p95_ms:.2f} ms of {slo_ms:.2f} ms" if p95_ms is not None else "nothing was asked lately"
                took = duration(self._above_s - self.missed_s)
                log.info("%s: the SLO is met again after %s: %s", self._name, took, met)
            self.missed_s, self._logged = math.nan, False
