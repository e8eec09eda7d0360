"""How far a family's profile is off, learned while it serves: collected each second, used by plans once it moved.

**Evidence.**  Reports of the fleet (`Fleet.work_report`) are compared with the profile as it was measured.  Work done
while workers were started or drained, or within `SETTLE_S` after, is left out: models load and caches are cold then.  A
report of more than `LONG_S` counts all the same, as most of it is of other times.  A family that owns a part of the
machine is planned with services that are slower by that part.  A batch is in order as long as it is no slower than
that.

**When factors change.**  Plans that were solved are remembered by profile, and those of a budget take seconds to solve
anew.  So the factors in force change only if one of them would move by more than `STEP`, and ever more rarely:
`FIRST_REST_S` to `LONGEST_REST_S` after the last change, unless one would move by more than `LEAP`.  A factor that
moved by more than `REPLAN` since the last plan is a reason to plan, `REPLAN_S` after the last such plan at the
earliest, because a variant that is new there shows its cost only once it runs.

**The front end** (`FrontCorrection`).  What HTTP and the front end add to a p95 is learned too, of servers that have
them.  It is the sum of two things.  Work on a request (head, body, answer, and the client's own) is the same at any
time: the profile's `front_ms`.  Waiting for the event loop's turn depends on the machine at that moment: probes of the
loop measure it (`clover.http.loop_lag`).  Without probes (a server without HTTP, or too few of them yet) the profile's
figure holds.  What is learned is kept with the other corrections and is drawn back to the profile with age like those
(`planning.model.correction`), until probes come again.  Unlike times and joules it is a sum and not a factor, so all
limits here apply to what it makes of a p95.

**Advice.**  If a factor stays beyond 1 / `FAR` or `FAR` for `FAR_S`, the log says once that the family should be
measured again.  Joules on cores above the profile are no such reason: they are mostly what wakes a worker and what a
cold cache takes, at a load at which no profile is measured.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Any

import msgspec

from clover.planning.model.correction import EnergyKey, SavedTime, TimeEvidence, TimeKey, apply_factors, fade
from clover.planning.model.metered import EnergyEvidence, SavedEnergy
from clover.planning.model.problem import backends_of, services_of
from clover.profiles import LEAST_SLO_MS
from clover.types import FamilyProfile, FrontLag, Record, WorkReport

log = logging.getLogger("clover.control")

_CORES = re.compile(r"\d+c")

EVERY_S = 5.0
SETTLE_S = 3.0
LONG_S = 60.0
STEP = 0.02
LEAP = 0.05
FIRST_REST_S = 30.0
LONGEST_REST_S = 3600.0
REPLAN = 0.1
REPLAN_S = 30.0
FAR = 1.5
FAR_S = 600.0
MOST_LAG_MS = 100.0
"""More waiting than this is a fault of the machine that no plan mends."""


class SavedCorrection(Record, frozen=True, kw_only=True):
    """What was learned of one profile, as a file: `key` and `made_at` are the profile's, `saved_s` is Unix time, and it
    has been far off for `far_s` seconds."""

    version: int
    family: str
    key: str
    made_at: str
    saved_s: float
    far_s: float
    time: tuple[SavedTime, ...]
    energy: tuple[SavedEnergy, ...]
    front: SavedFront | None = None


VERSION = 4
"""Raised whenever what is learned, or what it means, changes."""


class Learning:
    """The correction of one family's profile.  `corrected` is the profile to plan with."""

    def __init__(self, family: str, profile: FamilyProfile) -> None:
        self.family = family
        self.profile = self.corrected = profile
        self.time: dict[TimeKey, float] = {}
        self.energy: dict[EnergyKey, float] = {}
        self.front = FrontCorrection(profile)
        self.energy_errors: dict[EnergyKey, float] = {}
        """Standard errors of the factors of joules, as of the last report."""
        self.advice = ""
        """What to do about a profile that is far off, in words; empty if it is not."""
        self.changed = 0
        """Times that the factors in force changed."""
        self.collected = 0
        """Windows that were collected, of the front end's too."""
        self._times = TimeEvidence()
        self._joules = EnergyEvidence()
        self._services = services_of(profile)
        backends = backends_of(profile)
        points = [item for item in profile.latency if backends.get((item.variant, item.profile)) == item.backend]
        self._time_keys = list(dict.fromkeys((item.variant, item.profile, item.batch) for item in points))
        self._energy_keys = list(dict.fromkeys((item.variant, item.profile) for item in points))
        self._batch_j = {key: max(self._services[key].energy_j(1), 1e-12) for key in self._energy_keys}
        self._planned: dict[str, float] = {}
        self._planned_front_ms = profile.front_ms
        self._triggered_s = -math.inf
        self._settled_s = -math.inf
        self._reported_s = math.inf
        self._looked_s = -math.inf
        self._rested_s = -math.inf
        self._rest_s = FIRST_REST_S
        self._far_since_s = math.inf

    # --- learning -----------------------------------------------------------------------------------------------------

    def unsettle(self, now_s: float) -> None:
        """Leave out what is reported from now until `SETTLE_S` later, because workers were started or drained."""
        self._settled_s = now_s + SETTLE_S
        self._times.interrupt()
        self._joules.interrupt()

    def observe_front(self, lag: FrontLag | None, now_s: float) -> None:
        """Take how long requests now wait for the front end's event loop; None if unknown.  Call it before
        `observe`."""
        self.collected += self.front.observe(lag, now_s)

    def observe(self, report: WorkReport, share: float, now_s: float) -> bool:
        """Compare `report` with the profile, for a family that owns `share` of the machine's time; return whether the
        factors in force changed."""
        since_s, self._reported_s = min(self._reported_s, now_s), now_s
        if now_s < self._settled_s and now_s - since_s < LONG_S:
            return False
        for key, (batches, seconds) in report.served.items():
            self._record_batches(key, batches, seconds, share, since_s, now_s)
        lasted_s = [seconds / batches for batches, seconds in report.served.values() if batches > 0.0]
        self._joules.record_batch_length(max(lasted_s, default=0.0), now_s)
        for window in report.metered:
            self.collected += self._joules.record_window(
                window.device,
                window.joules,
                window.expected_j,
                shared=window.shared,
                since_s=since_s,
                now_s=now_s,
            )
        if now_s < self._looked_s + EVERY_S:
            return False
        self._looked_s = now_s
        moved = self._take(now_s, LEAP if now_s < self._rested_s else STEP)
        if moved:
            self._rest_s = FIRST_REST_S if moved > REPLAN else min(2.0 * self._rest_s, LONGEST_REST_S)
            self._rested_s = now_s + self._rest_s
        self._judge(now_s)
        return moved > 0.0

    def _record_batches(
        self, key: TimeKey, batches: float, seconds: float, share: float, since_s: float, now_s: float
    ) -> None:
        variant, name, rows = key
        service = self._services.get((variant, name))
        if service is None or not 1 <= rows <= service.max_batch:
            return
        expected_s = batches * service.seconds(rows)
        if share < 1.0 and seconds > expected_s:  # others had their part of the time
            seconds = max(seconds * share, expected_s)
        nearest = min(service.batches, key=lambda batch: abs(math.log(batch / rows)))
        self.collected += self._times.record_batches(
            (variant, name, nearest), batches, seconds, expected_s, since_s=since_s, now_s=now_s
        )

    def _take(self, now_s: float, least: float) -> float:
        """Put the present factors in force if one of them moved by more than `least`; return by how much one moved, 0
        if they stay."""
        time = self._times.factors(self._time_keys, now_s)
        energy = self._joules.unseen(self._joules.factors(self._energy_keys, now_s), self._batch_j)
        self.energy_errors = self._joules.errors(self._energy_keys, now_s)
        front_ms = self.front.at(now_s)
        front_moved = abs(self.front.moved(front_ms, self.front.ms))
        moved = math.expm1(max(_moved(self.time, time), _moved(self.energy, energy), front_moved))
        if moved <= least:
            return 0.0
        self.time, self.energy = time, energy
        self.front.use(front_ms)
        self.corrected = msgspec.structs.replace(apply_factors(self.profile, time, energy), front_ms=front_ms)
        self.changed += 1
        return moved

    def _judge(self, now_s: float) -> None:
        """Ask once for a new profile if this one has been far off for long."""
        if self.far() is None:
            self._far_since_s, self.advice = math.inf, ""
            return
        self._far_since_s = min(self._far_since_s, now_s)
        if now_s >= self._far_since_s + FAR_S and not self.advice:
            self._ask()
            log.warning("%s: %s", self.family, self.advice)

    def _ask(self) -> None:
        self.advice = (
            f"the profile is far off: {self.far()}; plans are corrected by what is measured while serving, and "
            "--profile force measures anew at the next start"
        )

    # --- what plans, decisions and operators see ----------------------------------------------------------------------

    def named(self) -> dict[str, float]:
        """Return the factors in force by name, in words."""
        factors = {f"the time of {v} on {s} in batches of {b}": factor for (v, s, b), factor in self.time.items()}
        return factors | {f"the energy of a row of {v} on {s}": factor for (v, s), factor in self.energy.items()}

    def far(self) -> str | None:
        """Return what the profile is off by most, in words: the factor that is farthest from 1; None if nothing is
        beyond `FAR`."""
        factors = [(f"the time of {v} on {s}", factor) for (v, s, _), factor in self.time.items()]
        factors += [
            (f"the energy of a row of {v} on {s}", factor)
            for (v, s), factor in self.energy.items()
            if factor < 1.0 or not _CORES.fullmatch(s)
        ]
        what, factor = max(factors, key=lambda item: abs(math.log(item[1])), default=("", 1.0))
        return f"{what} is {factor:.2f} x what it says" if abs(math.log(factor)) > math.log(FAR) else None

    def trigger(self, now_s: float) -> str:
        """Return why to plan anew, in words; empty if no factor moved enough since the last plan."""
        if now_s < self._triggered_s + REPLAN_S:
            return ""
        front_ms, before_ms = self.front.ms, self._planned_front_ms
        if abs(self.front.moved(front_ms, before_ms)) > math.log1p(REPLAN):
            self._triggered_s = now_s
            return f"profile corrected: HTTP adds {front_ms:.2f} ms to the p95, was {before_ms:.2f}"
        found, before = self.named(), self._planned
        moved = {what: math.log(factor / before.get(what, 1.0)) for what, factor in found.items()}
        what = max(moved, key=lambda what: abs(moved[what]), default="")
        if not what or abs(moved[what]) <= math.log1p(REPLAN):
            return ""
        self._triggered_s = now_s
        return f"profile corrected: {what} is {found[what]:.2f} x as profiled, was {before.get(what, 1.0):.2f}"

    def record_plan(self) -> None:
        """Record that a plan was made with the factors in force."""
        self._planned, self._planned_front_ms = self.named(), self.front.ms

    def words(self) -> str:
        """Return what is corrected, for a decision: what HTTP adds, and the factors in force by variant and slice;
        empty if nothing is."""
        parts = [front] if (front := self.front.words()) else []
        for variant, name in self._energy_keys:
            times = [factor for (v, s, _), factor in self.time.items() if (v, s) == (variant, name)]
            joules = self.energy.get((variant, name), 1.0)
            if joules != 1.0 or any(factor != 1.0 for factor in times):
                low, high = min(times, default=1.0), max(times, default=1.0)
                time = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f}-{high:.2f}"
                parts.append(f"{variant}@{name}: time x {time}, energy x {joules:.2f}")
        return "; ".join(parts)

    def rows(self) -> list[dict[str, Any]]:
        """Return the factors in force by (variant, slice), with those of time also by batch and how far off that of
        joules may be (a standard error), for `state` and metrics."""
        counts = self._times.counts
        rows = []
        for variant, name in self._energy_keys:
            batches = [key for key in self._time_keys if key[:2] == (variant, name)]
            windows = {str(key[2]): counts.get(key, 0) for key in batches}
            times = {str(key[2]): self.time.get(key, 1.0) for key in batches}
            weights = [count or 1e-9 for count in windows.values()]
            mean = math.exp(sum(w * math.log(t) for w, t in zip(weights, times.values(), strict=True)) / sum(weights))
            energy = self.energy.get((variant, name), 1.0)
            rows.append(
                {
                    "variant": variant,
                    "profile": name,
                    "time": mean,
                    "time_by_batch": times,
                    "windows_by_batch": windows,
                    "energy": energy,
                    "energy_error": self.energy_errors.get((variant, name)),
                }
            )
        return rows

    def gauges(self) -> dict[tuple[str, str, str], float]:
        """Return the factors in force by variant, slice, and "time" or "energy", for metrics."""
        return {(row["variant"], row["profile"], kind): row[kind] for row in self.rows() for kind in ("time", "energy")}

    def report(self) -> dict[str, Any]:
        """Return what was learned, for `state`."""
        return {
            "words": self.words(),
            "advice": self.advice,
            "changed": self.changed,
            "factors": self.rows(),
            "front": self.front.report(),
        }

    # --- across restarts ----------------------------------------------------------------------------------------------

    def save(self, now_s: float, wall_s: float) -> SavedCorrection:
        """Return what was learned, for a file; `wall_s` is Unix time."""
        return SavedCorrection(
            version=VERSION,
            family=self.profile.family,
            key=self.profile.key,
            made_at=self.profile.made_at,
            saved_s=wall_s,
            far_s=max(now_s - self._far_since_s, 0.0),
            time=self._times.save(now_s),
            energy=self._joules.save(now_s),
            front=self.front.save(now_s),
        )

    def restore(self, saved: SavedCorrection, now_s: float, wall_s: float) -> None:
        """Take what was learned earlier, aged until now.  Raises ValueError if it is of another profile or version, or
        invalid."""
        profile = self.profile
        if saved.version != VERSION:
            raise ValueError(f"it is of version {saved.version}, this server writes {VERSION}")
        if (saved.family, saved.key, saved.made_at) != (profile.family, profile.key, profile.made_at):
            raise ValueError("it was learned of another profile")
        age_s = max(wall_s - saved.saved_s, 0.0)
        times, joules = TimeEvidence(), EnergyEvidence()
        times.restore(saved.time, now_s - age_s)
        joules.restore(saved.energy, now_s - age_s)
        self.front.restore(saved.front, now_s - age_s)
        self._times, self._joules = times, joules
        self._take(now_s, 0.0)
        self.record_plan()
        if self.far() is not None and saved.far_s > 0.0:
            self._far_since_s = now_s - saved.far_s
            if saved.far_s >= FAR_S:
                self._ask()


def _moved(before: dict[Any, float], after: dict[Any, float]) -> float:
    """Return by how much the factor that moved most did, as a logarithm; absent: 1."""
    keys = before.keys() | after.keys()
    return max((abs(math.log(after.get(key, 1.0) / before.get(key, 1.0))) for key in keys), default=0.0)


# --- what the front end adds ------------------------------------------------------------------------------------------


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

    def observe(self, lag: FrontLag | None, now_s: float) -> bool:
        """Take what probes now say; return whether that is news."""
        if lag is None or (self.lag is not None and lag.windows == self.lag.windows):
            return False
        self.lag, self._seen_s = lag, now_s
        return True

    def at(self, now_s: float) -> float:
        """Return the milliseconds by all that is known."""
        if self.lag is None:
            return self.profile_ms
        seen_ms = self.profile_ms + min(self.lag.ms, MOST_LAG_MS)
        kept = self.moved(seen_ms, self.profile_ms) * fade(now_s - self._seen_s)
        return self.profile_ms + (self._p95_ms + self.profile_ms) * math.expm1(kept)

    def use(self, ms: float) -> None:
        """Put `ms` in force."""
        self.ms = ms

    def moved(self, after_ms: float, before_ms: float) -> float:
        """Return by how much the front end moves a p95, as a logarithm.  The p95 is that of rows which BASE serves one
        by one, but not less than the least default SLO, below which nothing follows from it.  A p95 measured under load
        would not do: it is as wrong as the machine was busy."""
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
        """Take what was seen earlier, aged since by what `now_s` is before now.  Raises ValueError if it is invalid."""
        if saved is None:
            return
        if not (math.isfinite(saved.lag_ms) and math.isfinite(saved.age_s) and saved.lag_ms >= 0.0):
            raise ValueError("it has a waiting time that is no number")
        self.lag, self._seen_s = FrontLag(ms=saved.lag_ms, windows=0), now_s - max(saved.age_s, 0.0)
