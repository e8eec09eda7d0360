"""The SLO of one family: whether it is missed, what follows from that, and what the log says.

**Missed or met.**  The observed p95 covers the last seconds, and may touch the SLO now and then without meaning
anything.  So the SLO is missed once the p95 was above it in `SLO_LOOKS` polls in a row, and met again once it was in
none for `MET_S`.  The p95 of few answers says little: it counts as above the SLO only if that is sure (`p95_least_ms`,
where the fleet gives it).

**What follows.**  A miss is answered by pressure (`clover.control.state.slo.pressure`): the next plan has more room.
If a miss lasts for `ALARM_S` and nothing can be done, one alarm says so.  The alarm is withdrawn once the SLO was met
for `WITHDRAWN_S`, or is another one.

**The log** has a line a minute while the SLO is missed, and one when it is met again.  A p95 that keeps crossing the
SLO makes no more lines than one that stays above it: another miss within a minute waits for its minute.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from clover.control.state.slo.pressure import SloPressure, SloSight
from clover.control.state.slo.windows import SloWindows
from clover.hints import duration

log = logging.getLogger("clover.control")

SLO_LOOKS = 3
EVERY_S = 60.0
MET_S = 10.0
ALARM_S = 60.0
WITHDRAWN_S = 60.0


def waiting(observed: Mapping[str, float]) -> float:
    """Return how many rows wait, except those that wait until a worker of the accuracy they ask for is started."""
    return observed.get("queue_rows", 0.0) - observed.get("awaiting_rows", 0.0)


def late(observed: Mapping[str, float], slo_ms: float) -> bool:
    """Return whether what was `observed` is surely above the SLO.  If rows wait and none is answered, it is."""
    p95_ms = observed.get("p95_ms")
    if p95_ms is None:
        return waiting(observed) > 0.0
    return observed.get("p95_least_ms", p95_ms) > slo_ms


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

    def observe(self, now_s: float, observed: dict[str, float], slo_ms: float, doing: Callable[[], str]) -> None:
        """Record what one poll of the family saw, and log a miss or its end.  `doing` says what is done about a missed
        SLO."""
        p95_ms, rows = observed.get("p95_ms"), observed.get("queue_rows", 0.0)
        if late(observed, slo_ms):
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


class SloKeeper:
    """What the controller knows of the SLO of one family, and does about it."""

    def __init__(self, name: str) -> None:
        self.windows = SloWindows()
        self.pressure = SloPressure()
        self.late = False
        """Whether the newest poll saw rows late."""
        self.alarm_s = math.nan
        """Monotonic time since when an alarm says that the SLO cannot be met; NaN if none does."""
        self.bound = ""
        """Why no plan may change what runs; empty if one may."""
        self._name = name
        self._log = SloLog(name)
        self._slo_ms = math.nan
        self._late_s = -math.inf

    @property
    def missed_s(self) -> float:
        """Monotonic time since when the SLO is missed; NaN while it is met."""
        return self._log.missed_s

    def observe(
        self, seen: SloSight, observed: dict[str, float], doing: Callable[[], str], alarm: Callable[[], str]
    ) -> str:
        """Follow what one poll of the family saw; return why to plan, in words, empty if there is no reason.  `doing`
        says what is done about a missed SLO, `alarm` why it cannot be met and what would help."""
        if seen.slo_ms != self._slo_ms:
            self._withdraw(f"its SLO is {seen.slo_ms:g} ms now")
            self._slo_ms, self._log = seen.slo_ms, SloLog(self._name)
            self.pressure.forget_misses()
        self.late, self.bound = seen.late, seen.bound
        if seen.late:
            self._late_s = seen.now_s
        closed = self.windows.observe(seen.now_s, seen.p95_ms, seen.queue_rows > 0.0, seen.slo_ms)
        self._log.observe(seen.now_s, observed, seen.slo_ms, doing)
        if math.isnan(self.missed_s):
            self.pressure.forget_misses()
        reason = self.pressure.observe(seen, self.windows, closed)
        self._judge(seen, alarm)
        return reason

    def _judge(self, seen: SloSight, alarm: Callable[[], str]) -> None:
        """Raise the alarm, or withdraw it."""
        if not math.isnan(self.alarm_s):
            if seen.now_s - self._late_s >= WITHDRAWN_S:
                met = f"p95 {seen.p95_ms:.2f} ms" if seen.p95_ms is not None else "nothing was asked lately"
                self._withdraw(f"{met}, and no miss of {seen.slo_ms:g} ms for {duration(WITHDRAWN_S)}")
            return
        lasting = seen.now_s - self.missed_s >= ALARM_S  # never while it is met: that is NaN
        stuck = bool(seen.bound) or self.pressure.exhausted or not seen.promised
        if lasting and stuck and seen.late and seen.plan is not None:
            self.alarm_s = seen.now_s
            log.warning("%s: %s", self._name, alarm())

    def _withdraw(self, why: str) -> None:
        if not math.isnan(self.alarm_s):
            log.info("%s: the alarm about its SLO is withdrawn: %s", self._name, why)
        self.alarm_s = math.nan
