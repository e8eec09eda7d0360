"""How far a profile's joules a row are off: the ratio of what meters show to what the profile expects.

**Who is to blame.**  If CPU time tells workers apart, each (variant, slice) has a meter to itself, and the ratio is its
factor.  If several variants share a meter (a GPU), a window has one ratio for all of them: which of them takes more
than profiled is not known, and `errors` says so.

**The factor** of a (variant, slice) is the mean ratio of the windows in which it ran, weighted by the joules that were
expected of it, and drawn towards 1 as far as noise explains the difference.  A window that is far from what is expected
counts as if it were less far (Huber).  A window weighs half once windows of `MEMORY_S` followed it.  A batch counts
where it ends, though part of its joules were drawn before, so a window lasts several batches.  A window does not tell
batch sizes apart, so the factor is the same for all.

**A variant that never ran.**  What a profile lacks is mostly what every batch costs beside its model
(`planning.budget.counterfactual`).  So a variant that never ran is taken to cost as much more a batch, in joules, as
cheaper ones that ran.  It is never taken to cost more than that, or it would never be tried, and nothing more if those
that ran are more expensive.

Bounds and age are those of times (`planning.model.correction`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from clover.planning.model.correction import MOST, EnergyKey, fade
from clover.types import Record

WINDOW_S, LONGEST_WINDOW_S = 1.0, 5.0
"""Meters are read once a second; a window that took longer than it had to counts as one of five seconds."""
WINDOW_BATCHES = 5.0
"""A window is at least so many times as long as the longest batch."""
LEAST_WINDOWS, LEAST_S = 3, 10.0
"""Fewer windows, or such as last less together, are no evidence."""
MEMORY_S = 600.0

_COMMON, _OF_ALL_SLICES, _OF_ONE = 0.15, 0.1, 0.005
"""Variances of factors: common to all that ran, of a variant, of one slice of it."""
_UNKNOWN = _COMMON + _OF_ALL_SLICES + _OF_ONE
UNKNOWN_ERROR = math.sqrt(_UNKNOWN)
"""Standard error of the joules a row of a profile, before the variant ran here."""
_OFF = 0.1
"""Relative standard deviation of a window's joules before it is known."""
_LEAST_J = 1e-6
"""A window in which less was expected goes on."""


class SavedEnergy(Record, frozen=True, kw_only=True):
    """What is known of one (variant, slice), and how long ago (seconds) its newest window closed (`EnergyEvidence`)."""

    key: EnergyKey
    age_s: float
    joules: float
    expected_j: float
    square: float
    shared: float
    windows: float
    seconds: float


@dataclass
class _Metered:
    """A window of one meter, under way or closed."""

    since_s: float
    joules: float = 0.0
    expected_j: dict[EnergyKey, float] = field(default_factory=dict)


@dataclass
class _Sums:
    """Sums over the windows of one (variant, slice), the newest of which closed at `at_s`: of its part of the metered
    joules, of its expected ones, of metered^2 / expected (`square`), and of expected x the part of the variance between
    variants that a window of several of them leaves (`shared`)."""

    at_s: float
    joules: float = 0.0
    expected_j: float = 0.0
    square: float = 0.0
    shared: float = 0.0
    windows: float = 0.0
    seconds: float = 0.0

    @property
    def enough(self) -> bool:
        """Whether they are evidence."""
        return self.windows >= LEAST_WINDOWS and self.seconds >= LEAST_S

    @property
    def noise(self) -> float:
        """The variance of the joules of a window of which one joule is expected."""
        before = _OFF**2 * self.expected_j / self.windows
        rest = max(self.square - self.joules * (self.joules / self.expected_j), 0.0)
        return max((rest + 2.0 * before) / (self.windows + 2.0), 1e-30)

    @property
    def factor(self) -> float:
        """The ratio of metered and expected joules, drawn towards 1 by its noise."""
        known = _UNKNOWN / (_UNKNOWN + self.noise / self.expected_j)
        return 1.0 + known * (self.joules / self.expected_j - 1.0)

    @property
    def variance(self) -> float:
        """The variance of the factor."""
        by_noise = _UNKNOWN / (1.0 + _UNKNOWN * self.expected_j / self.noise)
        return min(by_noise + _OF_ALL_SLICES * self.shared / self.expected_j, _UNKNOWN)

    def add(self, expected_j: float, ratio: float, shared: float, seconds: float, now_s: float) -> None:
        """Add a window of so many seconds."""
        kept = math.exp2(-seconds / MEMORY_S)
        self.at_s = now_s
        self.joules = kept * self.joules + ratio * expected_j
        self.expected_j = kept * self.expected_j + expected_j
        self.square = kept * self.square + ratio * ratio * expected_j
        self.shared = kept * self.shared + shared * expected_j
        self.windows = kept * self.windows + 1.0
        self.seconds = kept * self.seconds + seconds


class EnergyEvidence:
    """What is known of joules a row of one family."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, EnergyKey | None], _Metered] = {}
        self._sums: dict[EnergyKey, _Sums] = {}
        self._longest_s, self._longest_at_s = 0.0, -math.inf

    def record_batch_length(self, seconds: float, now_s: float) -> None:
        """Record that batches of some kind took `seconds` lately."""
        kept = math.exp2(-max(now_s - self._longest_at_s, 0.0) / MEMORY_S)
        self._longest_s, self._longest_at_s = max(kept * self._longest_s, seconds), now_s

    def record_window(
        self,
        device: str,
        joules: float,
        expected_j: Mapping[EnergyKey, float],
        *,
        shared: bool,
        since_s: float,
        now_s: float,
    ) -> bool:
        """Count `joules` of a meter of `device` between `since_s` and `now_s` for work that should have taken
        `expected_j`; return whether that closed a window.  `shared`: see `MeteredWindow`."""
        meter = device, None if shared else next(iter(expected_j))
        pending = self._pending.setdefault(meter, _Metered(since_s))
        pending.joules += joules
        for key, expected in expected_j.items():
            pending.expected_j[key] = pending.expected_j.get(key, 0.0) + expected
        # Batches that end later may have drawn joules without which nothing was expected yet.
        enough = now_s - pending.since_s >= self._window_s and sum(pending.expected_j.values()) >= _LEAST_J
        if not enough and math.isfinite(pending.joules):
            return False
        del self._pending[meter]
        if not math.isfinite(pending.joules):
            return False
        self._close(pending, now_s)
        return True

    @property
    def _window_s(self) -> float:
        """How long a window is, at least."""
        return max(WINDOW_S, WINDOW_BATCHES * self._longest_s)

    def interrupt(self) -> None:
        """Drop the windows under way: workers were started or drained."""
        self._pending.clear()

    def _close(self, window: _Metered, now_s: float) -> None:
        seconds = min(max(now_s - window.since_s, 0.0), max(LONGEST_WINDOW_S, self._window_s))
        whole_j = sum(window.expected_j.values())
        parts = {key: expected_j / whole_j for key, expected_j in window.expected_j.items() if expected_j > 0.0}
        squares = sum(part * part for part in parts.values())
        ratio = self._likely(window, whole_j) / whole_j
        for key, part in parts.items():
            sums = self._sums.setdefault(key, _Sums(now_s))
            shared = max((1.0 - part) ** 2 + squares - part * part, 0.0)
            sums.add(window.expected_j[key], ratio, shared, seconds, now_s)

    def _likely(self, window: _Metered, whole_j: float) -> float:
        """Return the joules of a window, drawn towards what is expected if they are far from that.  Both bounds are as
        far: what one of them alone cuts off of the noise would be learned."""
        likely_j, room_j = whole_j, 2.0 * MOST * whole_j
        known = {key: self._sums.get(key) for key, expected_j in window.expected_j.items() if expected_j > 0.0}
        found = {key: sums for key, sums in known.items() if sums is not None and sums.enough}
        if len(found) == len(known):
            likely_j = sum(window.expected_j[key] * sums.factor for key, sums in found.items())
            noise = sum(sums.noise for sums in found.values())
            room_j = 3.0 * math.sqrt(noise * whole_j) + 0.1 * abs(likely_j)
        return min(max(window.joules, likely_j - room_j), likely_j + room_j)

    def factors(self, wanted: Sequence[EnergyKey], now_s: float) -> dict[EnergyKey, float]:
        """Return the factor of each of `wanted`."""
        known = {key: (sums.factor - 1.0) * fade(now_s - sums.at_s) for key, sums in self._sums.items() if sums.enough}
        factors = {}
        for key in wanted:
            value = known.get(key)
            if value is None:  # of a slice on which its variant did not run: nearly as on the others
                others = [more for (variant, _), more in known.items() if variant == key[0]]
                shared = _COMMON + _OF_ALL_SLICES
                value = shared * sum(others) / (shared * len(others) + _OF_ONE)
            factors[key] = min(max(1.0 + value, 1.0 / MOST), MOST)
        return factors

    def errors(self, wanted: Sequence[EnergyKey], now_s: float) -> dict[EnergyKey, float]:
        """Return the standard error of the factor of each of `wanted`.  For a variant that never ran it is how far off
        profiles are taken to be, or how far slices differ if the variant ran on another."""
        known: dict[EnergyKey, float] = {}
        for key, sums in self._sums.items():
            if sums.enough:
                left = fade(now_s - sums.at_s) ** 2
                known[key] = left * sums.variance + (1.0 - left) * _UNKNOWN
        errors = {}
        for key in wanted:
            others = [more + 2.0 * _OF_ONE for (variant, _), more in known.items() if variant == key[0]]
            errors[key] = math.sqrt(min(known.get(key, _UNKNOWN), *others, _UNKNOWN))
        return errors

    def unseen(self, factors: Mapping[EnergyKey, float], joules: Mapping[EnergyKey, float]) -> dict[EnergyKey, float]:
        """Return `factors` with those of variants that never ran raised by what batches of cheaper ones cost more than
        profiled.  `joules`: of a batch, as profiled."""
        ran = [key for key, sums in self._sums.items() if sums.enough]
        more_j = {key: (factors[key] - 1.0) * joules[key] for key in ran if key in joules}
        raised = dict(factors)
        for key in factors:
            cheaper = [more_j[of] for of in more_j if joules[of] <= joules[key]]
            if key[0] not in {variant for variant, _ in ran} and cheaper:
                raised[key] = min(1.0 + max(median(cheaper), 0.0) / joules[key], MOST)
        return raised

    def save(self, now_s: float) -> tuple[SavedEnergy, ...]:
        """Return what is known, to be restored."""
        return tuple(
            SavedEnergy(
                key=key,
                age_s=max(now_s - sums.at_s, 0.0),
                joules=sums.joules,
                expected_j=sums.expected_j,
                square=sums.square,
                shared=sums.shared,
                windows=sums.windows,
                seconds=sums.seconds,
            )
            for key, sums in self._sums.items()
        )

    def restore(self, saved: Iterable[SavedEnergy], now_s: float) -> None:
        """Take what was known, aged since by what the caller added to the ages.  Raises ValueError if it is invalid."""
        for item in saved:
            figures = (item.age_s, item.expected_j, item.square, item.shared, item.windows, item.seconds)
            # Noise may make metered joules negative.
            finite = math.isfinite(item.joules) and all(math.isfinite(figure) for figure in figures)
            if not finite or min(figures) < 0.0 or item.expected_j == 0.0 or item.windows == 0.0:
                raise ValueError("it has sums of joules that cannot be")
            self._sums[item.key] = _Sums(
                at_s=now_s - item.age_s,
                joules=item.joules,
                expected_j=item.expected_j,
                square=item.square,
                shared=item.shared,
                windows=item.windows,
                seconds=item.seconds,
            )
