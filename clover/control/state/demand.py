"""Rows that ask for an accuracy of their own: what the controller remembers of them, and what it does for them.

**Memory.**  Demand counts for `KEEP_S` after its last row, at the highest rate of the last minute or two.  A worker
that was started for it stays as long, and goes with the first plan after that.  Rates are planned for in steps, so that
noise is no reason to plan.  Three things are a reason: a higher rate than was planned for, a variant that was not asked
for before, and a variant that is not asked for any more.  A lower rate is none.

**Declined variants.**  If no plan can be made for a variant, or its worker does not start, the variant is declined for
`RETRY_S`: rows that need it are refused at once, and plans disregard them.  So clients who change what they ask for
cause at most one plan a variant in that time.  If a plan has the worker but the capacity floor holds it back, rows wait
until their deadline.

**Variants that cannot be had.**  If a variant could not be had for `LASTING_S` while rows asked for it, refusals say no
longer when to come back: a client that obeys would ask without end.  Plans are made for it as before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clover.planning.model.problem import met_by
from clover.types import Asked, Assignment, Declined, Demand, Plan, State

KEEP_S = 300.0
RETRY_S = 60.0
LASTING_S = 3 * RETRY_S
_PART_S = 60.0
"""Rates are remembered by the highest of so many seconds."""
_PARTS = 1
"""Parts before this one whose rate counts: a burst keeps a worker for `KEEP_S`, but not its rate."""
_STEP = math.log(1.5)
_LEAST = 0.1


@dataclass
class _VariantDemand:
    """What is remembered of the rows that need one variant: the accuracy they ask for (percent), how many there were,
    when the last one came, and the highest rate (rows/s) by part of the time."""

    accuracy: float
    rows: int = 0
    last_s: float = -math.inf
    rates: dict[int, float] = field(default_factory=dict)


class DemandMemory:
    """The rows of one family that ask for an accuracy.  All times are monotonic seconds."""

    def __init__(self) -> None:
        self._variants: dict[str, _VariantDemand] = {}
        self._planned: dict[str, float] = {}
        self._declined: dict[str, tuple[float, Declined]] = {}
        self._held: dict[str, str] = {}
        self._missing_since_s: dict[str, float] = {}

    def observe(self, now_s: float, seen: Mapping[str, Asked]) -> None:
        """Record what the fleet counted until now."""
        part = int(now_s // _PART_S)
        for variant, asked in seen.items():
            own = self._variants.setdefault(variant, _VariantDemand(asked.accuracy))
            own.accuracy = asked.accuracy
            if asked.rows > own.rows:
                if now_s - own.last_s >= KEEP_S:
                    self._missing_since_s.pop(variant, None)
                own.rows, own.last_s = asked.rows, now_s
                own.rates[part] = max(own.rates.get(part, 0.0), asked.rows_per_s)
            own.rates = {at: rate for at, rate in own.rates.items() if part - at <= _PARTS}

    def remembered(self, now_s: float) -> dict[str, Demand]:
        """Return the demand that counts now, the least accurate first."""
        found = {
            variant: Demand(variant=variant, accuracy=own.accuracy, rate=_above(max(own.rates.values(), default=0.0)))
            for variant, own in self._variants.items()
            if now_s - own.last_s < KEEP_S
        }
        return dict(sorted(found.items(), key=lambda item: item[1].accuracy))

    def wanted(self, now_s: float) -> tuple[Demand, ...]:
        """Return the demand to plan for: all that counts, except for declined variants."""
        return tuple(item for name, item in self.remembered(now_s).items() if not self._is_declined(name, now_s))

    def trigger(self, now_s: float) -> str:
        """Return why to plan now, in words; empty if there is no reason."""
        wanted = {item.variant: item for item in self.wanted(now_s)}
        for name, item in wanted.items():
            if item.rate > self._planned.get(name, 0.0):
                return f"{item.rate:.3g} rows/s ask for {item.accuracy:.2f} % or more ({name})"
        gone = self.lapsed(now_s)
        return f"no row asked for {', '.join(gone)} for {KEEP_S:.0f} s" if gone else ""

    def lapsed(self, now_s: float) -> list[str]:
        """Return the variants that the last plan had to have and that rows do not ask for any more."""
        remembered = self.remembered(now_s)
        return [name for name in self._planned if name not in remembered]

    def record_decision(
        self,
        action: str,
        state: State | None,
        plan: Plan | None,
        running: Sequence[Assignment],
        detail: str,
        now_s: float,
    ) -> None:
        """Record how a plan request ended.  `state` holds the demand that was planned for; it is None with a `plan`
        that was rolled back to, and both are None if no plan was made.  `running`: the workers that shall run now."""
        if action == "dry run":
            return
        accuracy = {name: own.accuracy for name, own in self._variants.items()}
        for item in met_by(tuple(self.remembered(now_s).values()), running, accuracy):
            self._missing_since_s.pop(item.variant, None)  # declined ones too: a plan may bring them anyway
        if state is None and plan is not None:  # the plan that was rolled back to was not made for this demand
            self._decline_lost(running, detail, now_s)
            return
        wanted = {item.variant: item for item in self.wanted(now_s)}
        planned = {item.variant for item in state.demand} if state is not None else set[str]()
        served = {item.variant for item in met_by(tuple(wanted.values()), running, accuracy)}
        self._planned = {name: item.rate for name, item in wanted.items()}
        self._held = {}
        for name, item in wanted.items():
            if name in served:
                self._declined.pop(name, None)
                continue
            self._missing_since_s.setdefault(name, now_s)
            if name in planned and action not in ("failed", "fault", "rolled back"):
                self._held[name] = detail
                continue
            why = detail if name in planned or state is None else "no plan with one keeps the limits on these devices"
            self._declined[name] = (
                now_s + RETRY_S,
                Declined(why=f"no worker reaches {item.accuracy:.2f} % now: {why}", retry_after_s=RETRY_S),
            )
            self._planned.pop(name)

    def _decline_lost(self, running: Sequence[Assignment], detail: str, now_s: float) -> None:
        """Refuse for a while the variants whose workers are gone with the plan that was rolled back."""
        accuracy = {name: own.accuracy for name, own in self._variants.items()}
        wanted = self.wanted(now_s)
        served = {item.variant for item in met_by(wanted, running, accuracy)}
        for item in wanted:
            if item.variant not in served:
                self._planned.pop(item.variant, None)
                self._missing_since_s.setdefault(item.variant, now_s)
                why = f"no worker reaches {item.accuracy:.2f} % now: {detail}"
                self._declined[item.variant] = (now_s + RETRY_S, Declined(why=why, retry_after_s=RETRY_S))

    def declined(
        self, now_s: float, accuracy: Mapping[str, float], running: Sequence[Assignment], closed: str
    ) -> dict[str, Declined]:
        """Return the variants for which no worker will be started, and why.  `accuracy`: percent by variant; `closed`:
        why no worker is started for any, empty if one may be."""
        best = max((accuracy.get(item.variant, 0.0) for item in running), default=-math.inf)
        declined = {}
        known = {name: own.accuracy for name, own in self._variants.items()} | dict(accuracy)
        for name, own in known.items():
            if own <= best:
                continue
            if closed:
                declined[name] = Declined(why=f"no worker reaches {own:.2f} %, and none comes: {closed}")
            elif self._is_declined(name, now_s):
                until_s, why = self._declined[name]
                left_s = max(1.0, math.ceil(until_s - now_s))
                declined[name] = Declined(why=why.why, retry_after_s=None if self._lasts(name, now_s) else left_s)
            elif self._held.get(name):
                why_held = f"no worker reaches {own:.2f} % yet: {self._held[name]}"
                retry_after_s = None if self._lasts(name, now_s) else 1.0
                declined[name] = Declined(why=why_held, retry_after_s=retry_after_s, waits=True)
        return declined

    def _lasts(self, name: str, now_s: float) -> bool:
        """Return whether a variant that is asked for could not be had for so long that waiting is of no use."""
        return now_s - self._missing_since_s.get(name, now_s) >= LASTING_S

    def held(self) -> bool:
        """Return whether a worker that is wanted was held back."""
        return bool(self._held)

    def report(
        self, now_s: float, seen: Mapping[str, Asked], declined: Mapping[str, Declined]
    ) -> list[dict[str, float | str | None]]:
        """Return the demand by variant for `state`: what is asked for, planned for, waiting and refused."""
        remembered = self.remembered(now_s)
        return [
            {
                "variant": name,
                "accuracy": asked.accuracy,
                "rows_per_s": asked.rows_per_s,
                "planned_rows_per_s": self._planned.get(name, 0.0),
                "rows": asked.rows,
                "waiting_rows": asked.waiting,
                "refused_rows": asked.refused,
                "kept_s": KEEP_S - (now_s - self._variants[name].last_s) if name in remembered else 0.0,
                "declined": declined[name].why if name in declined else None,
            }
            for name, asked in seen.items()
        ]

    def _is_declined(self, name: str, now_s: float) -> bool:
        return name in self._declined and now_s < self._declined[name][0]


def _above(rate: float) -> float:
    """Return `rate` rounded up to the next step (factors of 1.5)."""
    return math.exp(math.ceil(math.log(max(rate, _LEAST)) / _STEP - 1e-9) * _STEP)


def why_closed(*, mode: str, frozen: bool, pinned: str, policy: str, heeded: bool) -> str:
    """Return why no plan starts a worker for rows that ask for an accuracy; empty if one may.  `heeded`: whether
    `policy` plans for such rows."""
    if frozen:
        return "the controller is frozen"
    if pinned:
        return f"the model is pinned to {pinned}"
    if mode != "active":
        return f"the controller's mode is {mode}"
    if not heeded:
        return f"policy {policy} does not plan for the accuracy that rows ask for"
    return ""
