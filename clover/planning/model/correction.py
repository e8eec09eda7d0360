"""How far a profile is off, learned from what workers report: factors of service time and of joules a row.

**Time.**  What batches of one size took is compared with what the profile has for them, in windows.  A window is one
logarithm of a ratio, and of the last `WINDOWS` windows the median counts: one slow batch, a pause of the machine or a
worker's first batches spoil a window and not the factor; what is slow for good moves it once half of the windows say
so.  Each (variant, slice, batch) is then drawn towards its neighbours: the true logarithms are taken for a Gaussian
field, of which a variant has one part, each slice of it another, and batch sizes a third that fades with their
distance, all of them 0 until something is known (kriging).  So a size that was seen rarely borrows from the others of
its slice, a slice from the others of its variant, and a variant that never ran keeps its profile: what makes one
variant slow (its profile, cold caches) need not slow another.

**Joules.**  A meter gives a sum over what ran in a window:  E = sum of f x expected + noise.  The factors f of each
(variant, slice) are those of a linear regression with a prior around 1 (ridge).  Where CPU time tells workers apart
each window has one unknown.  Where several variants share a meter only differences between windows tell their factors
apart; as long as shares are alike in all windows, the factor that is common to all is what is known, and the prior
keeps to that.  A window that is far from what is expected counts as if it were less far (Huber); a window weighs half
once `MEMORY` others followed.  A window does not tell batch sizes apart, so the factor is the same for all.

What a profile lacks is mostly what every batch costs beside its model (`planning.budget.counterfactual`).  So a variant
that never ran is taken to cost as much more a batch, in joules, as cheaper ones that ran do; no more than that, or it
would never be tried, and nothing if those are more expensive than it.

**Bounds and age.**  Factors stay within 1 / `MOST` and `MOST`.  How far they are from 1 halves with every `HALF_LIFE_S`
without news of that variant and slice.

Everything is pure: times are arguments, in seconds of any clock that does not stop.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.types import FamilyProfile, LatencyMeasurement, Record

MOST = 3.0
HALF_LIFE_S = 12 * 3600.0
WINDOWS = 32
LEAST_WINDOWS = 3
"""Fewer of them are no evidence: the median of three is none that one bad window made."""
WINDOW_S = 5.0
LEAST_BATCHES = 8
MEMORY = 120.0

_OF_VARIANT, _OF_SLICE, _OF_BATCH = 0.08, 0.02, 0.04
"""Variances of the logarithms of time; together a standard deviation of a third."""
_BATCH_RANGE = 3.0
"""Doublings of the batch over which what is known of one size fades by a factor e."""
_SPREAD, _FLOOR = 0.2, 0.02
"""Standard deviations: of a window before its spread is known, and of what no number of windows tells."""
_COMMON, _OF_ALL_SLICES, _OF_ONE = 0.15, 0.1, 0.005
"""Variances of factors of joules: common to all that ran, of a variant, of one slice of it."""
_OFF = 0.1
"""Relative standard deviation of a window's joules before it is known."""

TimeKey = tuple[str, str, int]
"""Variant, profile of the slice, batch."""
EnergyKey = tuple[str, str]
"""Variant, profile of the slice."""
Floats = NDArray[np.float64]


class SavedTime(Record, frozen=True, kw_only=True):
    """The windows of one (variant, slice, batch): how long ago (seconds) each was, and the logarithm of its ratio."""

    key: TimeKey
    windows: tuple[tuple[float, float], ...]


class SavedEnergy(Record, frozen=True, kw_only=True):
    """The sums of the regression; `ages` of the newest window of each key, in seconds."""

    keys: tuple[EnergyKey, ...] = ()
    ages: tuple[float, ...] = ()
    precision: tuple[tuple[float, ...], ...] = ()
    moment: tuple[float, ...] = ()
    square: float = 0.0
    expected_j: float = 0.0
    windows: float = 0.0


def faded(age_s: float) -> float:
    """Return what is left of a correction that is `age_s` seconds old."""
    return math.exp2(-max(age_s, 0.0) / HALF_LIFE_S)


@dataclass
class _Pending:
    """A window under way."""

    since_s: float
    batches: float = 0.0
    seconds: float = 0.0
    expected_s: float = 0.0


class TimeEvidence:
    """What is known of service times of one family."""

    def __init__(self) -> None:
        self._windows: dict[TimeKey, deque[tuple[float, float]]] = {}
        self._pending: dict[TimeKey, _Pending] = {}

    def served(
        self, key: TimeKey, batches: float, seconds: float, expected_s: float, *, since_s: float, now_s: float
    ) -> bool:
        """Count batches between `since_s` and `now_s` that took `seconds` together and should have taken `expected_s`;
        return whether that closed a window."""
        pending = self._pending.setdefault(key, _Pending(since_s))
        pending.batches += batches
        pending.seconds += seconds
        pending.expected_s += expected_s
        if pending.batches < LEAST_BATCHES or now_s - pending.since_s < WINDOW_S:
            return False
        del self._pending[key]
        if pending.seconds <= 0.0 or pending.expected_s <= 0.0:
            return False
        windows = self._windows.setdefault(key, deque(maxlen=WINDOWS))
        windows.append((now_s, math.log(pending.seconds) - math.log(pending.expected_s)))
        return True

    def interrupt(self) -> None:
        """Drop the windows under way: workers were started or drained."""
        self._pending.clear()

    def factors(self, wanted: Sequence[TimeKey], now_s: float) -> dict[TimeKey, float]:
        """Return the factor of each of `wanted`."""
        seen = [key for key, windows in self._windows.items() if len(windows) >= LEAST_WINDOWS]
        if not seen or not wanted:
            return dict.fromkeys(wanted, 1.0)
        middles, noise = zip(*(_middle(self._windows[key], now_s) for key in seen), strict=True)
        codes = _codes([*seen, *wanted])
        known, asked = codes[:, : len(seen)], codes[:, len(seen) :]
        weights = np.linalg.solve(_alike(known, known) + np.diag(noise), np.array(middles))
        found = _alike(asked, known) @ weights
        limit = math.log(MOST)
        return {
            key: math.exp(min(max(value, -limit), limit)) for key, value in zip(wanted, found.tolist(), strict=True)
        }

    @property
    def counts(self) -> dict[TimeKey, int]:
        """Windows that each factor is made of."""
        return {key: len(windows) for key, windows in self._windows.items()}

    def save(self, now_s: float) -> tuple[SavedTime, ...]:
        """Return what is known, to be restored."""
        return tuple(
            SavedTime(key=key, windows=tuple((max(now_s - at_s, 0.0), log) for at_s, log in windows))
            for key, windows in self._windows.items()
        )

    def restore(self, saved: Iterable[SavedTime], now_s: float) -> None:
        """Take what was known, aged since by what the caller added to the ages.  Raises ValueError if that cannot
        be."""
        for item in saved:
            if not all(math.isfinite(age_s) and math.isfinite(log) for age_s, log in item.windows):
                raise ValueError("it has windows that are no numbers")
            windows = [(now_s - max(age_s, 0.0), log) for age_s, log in item.windows]
            self._windows[item.key] = deque(windows, maxlen=WINDOWS)


def _middle(windows: Iterable[tuple[float, float]], now_s: float) -> tuple[float, float]:
    """Return the median of windows, faded by the age of the newest, and the variance of that."""
    values = [log for _, log in windows]
    middle = median(values)
    spread = 1.4826 * median([abs(value - middle) for value in values])
    count = len(values)
    variance = (2.0 * _SPREAD**2 + count * spread**2) / (count + 2)
    newest_s = max(at_s for at_s, _ in windows)
    return middle * faded(now_s - newest_s), variance / count + _FLOOR**2


def _codes(keys: Sequence[TimeKey]) -> Floats:
    """Return keys as numbers, [variant, slice or doublings, key]."""
    variants = {variant: at for at, variant in enumerate(dict.fromkeys(key[0] for key in keys))}
    slices = {name: at for at, name in enumerate(dict.fromkeys(key[1] for key in keys))}
    return np.array([[variants[v], slices[s], math.log2(max(batch, 1))] for v, s, batch in keys]).T


def _alike(left: Floats, right: Floats) -> Floats:
    """Return the covariances of the logarithms of two lists of keys (`_codes`)."""
    variant = left[0][:, None] == right[0][None, :]
    own = variant & (left[1][:, None] == right[1][None, :])
    near = np.exp(-np.abs(left[2][:, None] - right[2][None, :]) / _BATCH_RANGE)
    found: Floats = _OF_VARIANT * variant + own * (_OF_SLICE + _OF_BATCH * near)
    return found


@dataclass
class _Metered:
    """A window of one meter under way."""

    since_s: float
    joules: float = 0.0
    expected_j: dict[EnergyKey, float] = field(default_factory=dict)


class EnergyEvidence:
    """What is known of joules a row of one family."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, EnergyKey | None], _Metered] = {}
        self._keys: list[EnergyKey] = []
        self._at_s: list[float] = []
        self._precision = np.zeros((0, 0))
        self._moment = np.zeros(0)
        self._square = 0.0
        self._expected_j = 0.0
        self._windows = 0.0

    def metered(
        self, device: str, joules: float, expected_j: Mapping[EnergyKey, float], *, since_s: float, now_s: float
    ) -> bool:
        """Count `joules` of a meter of `device` between `since_s` and `now_s` for work that should have taken
        `expected_j`; return whether that closed a window."""
        own = next(iter(expected_j)) if len(expected_j) == 1 else None
        pending = self._pending.setdefault((device, own), _Metered(since_s))
        pending.joules += joules
        for key, expected in expected_j.items():
            pending.expected_j[key] = pending.expected_j.get(key, 0.0) + expected
        if now_s - pending.since_s < WINDOW_S:
            return False
        del self._pending[device, own]
        known = {key: expected for key, expected in pending.expected_j.items() if expected > 0.0}
        if not known or not math.isfinite(pending.joules):
            return False
        self._add(pending.joules, known, now_s)
        return True

    def interrupt(self) -> None:
        """Drop the windows under way: workers were started or drained."""
        self._pending.clear()

    def _add(self, joules: float, expected_j: Mapping[EnergyKey, float], now_s: float) -> None:
        for key in expected_j:
            if key not in self._keys:
                self._keys.append(key)
                self._at_s.append(now_s)
                self._precision = np.pad(self._precision, (0, 1))
                self._moment = np.pad(self._moment, (0, 1))
        row = np.array([expected_j.get(key, 0.0) for key in self._keys])
        whole_j = float(row.sum())
        joules = min(max(joules, whole_j / (2.0 * MOST)), whole_j * 2.0 * MOST)
        if self._windows >= LEAST_WINDOWS:
            factors, noise = self._fitted()
            likely_j = float(row @ factors)
            room_j = 3.0 * math.sqrt(noise * whole_j) + 0.1 * likely_j
            joules = min(max(joules, likely_j - room_j), likely_j + room_j)
        kept = math.exp2(-1.0 / MEMORY)
        # The noise of a window grows with its joules: a window weighs as one joule of it does.
        self._precision = kept * self._precision + np.outer(row, row) / whole_j
        self._moment = kept * self._moment + row * (joules / whole_j)
        self._square = kept * self._square + joules * joules / whole_j
        self._expected_j = kept * self._expected_j + whole_j
        self._windows = kept * self._windows + 1.0
        for key in expected_j:
            self._at_s[self._keys.index(key)] = now_s

    def _fitted(self) -> tuple[Floats, float]:
        """Return the factors of the keys that were seen, and the variance of a window's joules by its expected ones."""
        prior = np.linalg.inv(_together(self._keys))
        ones = np.ones(len(self._keys))
        before = _OFF**2 * self._expected_j / max(self._windows, 1e-9)
        noise = before
        factors: Any = ones
        for _ in range(3):
            factors = np.linalg.solve(self._precision / noise + prior, self._moment / noise + prior @ ones)
            rest = self._square - 2.0 * float(factors @ self._moment) + float(factors @ self._precision @ factors)
            noise = max((max(rest, 0.0) + 2.0 * before) / (self._windows + 2.0), 1e-30)
        return factors, noise

    def factors(self, wanted: Sequence[EnergyKey], now_s: float) -> dict[EnergyKey, float]:
        """Return the factor of each of `wanted`."""
        if self._windows < LEAST_WINDOWS or not wanted:
            return dict.fromkeys(wanted, 1.0)
        more = self._fitted()[0] - 1.0
        more *= np.array([faded(now_s - at_s) for at_s in self._at_s])
        known = dict(zip(self._keys, more.tolist(), strict=True))
        found = {}
        for key in wanted:
            value = known.get(key)
            if value is None:  # of a slice on which its variant did not run: nearly as on the others
                others = [more for (variant, _), more in known.items() if variant == key[0]]
                shared = _COMMON + _OF_ALL_SLICES
                value = shared * sum(others) / (shared * len(others) + _OF_ONE)
            found[key] = min(max(1.0 + value, 1.0 / MOST), MOST)
        return found

    def unseen(self, factors: Mapping[EnergyKey, float], joules: Mapping[EnergyKey, float]) -> dict[EnergyKey, float]:
        """Return `factors` with those of variants that never ran raised by what batches of cheaper ones cost more than
        profiled.  `joules`: of a batch, as profiled."""
        ran = {key[0] for key in self._keys} if self._windows >= LEAST_WINDOWS else set()
        more_j = {key: (factors[key] - 1.0) * joules[key] for key in self._keys if key in joules}
        found = dict(factors)
        for key in factors:
            cheaper = [more_j[of] for of in more_j if joules[of] <= joules[key]]
            if key[0] not in ran and ran and cheaper:
                found[key] = min(1.0 + max(median(cheaper), 0.0) / joules[key], MOST)
        return found

    def save(self, now_s: float) -> SavedEnergy:
        """Return what is known, to be restored."""
        return SavedEnergy(
            keys=tuple(self._keys),
            ages=tuple(max(now_s - at_s, 0.0) for at_s in self._at_s),
            precision=tuple(map(tuple, self._precision.tolist())),
            moment=tuple(self._moment.tolist()),
            square=self._square,
            expected_j=self._expected_j,
            windows=self._windows,
        )

    def restore(self, saved: SavedEnergy, now_s: float) -> None:
        """Take what was known, aged since by what the caller added to the ages.  Raises ValueError if that cannot
        be."""
        count = len(saved.keys)
        precision = np.array(saved.precision, float).reshape(-1, count) if count else np.zeros((0, 0))
        moment = np.array(saved.moment, float)
        figures = [*precision.ravel().tolist(), *moment.tolist(), *saved.ages]
        figures += [saved.square, saved.expected_j, saved.windows]
        if precision.shape != (count, count) or len(moment) != count or len(saved.ages) != count:
            raise ValueError("its sums of joules do not fit together")
        if not all(math.isfinite(figure) and figure >= 0.0 for figure in figures):
            raise ValueError("it has sums of joules that cannot be")
        self._keys, self._at_s = list(saved.keys), [now_s - age_s for age_s in saved.ages]
        self._precision, self._moment = precision, moment
        self._square, self._expected_j, self._windows = saved.square, saved.expected_j, saved.windows


def _together(keys: Sequence[EnergyKey]) -> Floats:
    """Return the covariances of the factors of keys that ran."""
    variants = np.array([key[0] for key in keys])
    alike = variants[:, None] == variants[None, :]
    found: Floats = _COMMON + _OF_ALL_SLICES * alike + _OF_ONE * np.eye(len(keys))
    return found


def corrected(
    profile: FamilyProfile, time: Mapping[TimeKey, float], energy: Mapping[EnergyKey, float]
) -> FamilyProfile:
    """Return `profile` with its service times and joules multiplied by these factors; absent: 1."""
    base = profile.base
    return msgspec.structs.replace(
        profile,
        latency=tuple(_corrected(item, time, energy) for item in profile.latency),
        base=msgspec.structs.replace(
            base, energy_j_per_row=base.energy_j_per_row * energy.get((base.variant, base.profile), 1.0)
        ),
    )


def _corrected(
    item: LatencyMeasurement, time: Mapping[TimeKey, float], energy: Mapping[EnergyKey, float]
) -> LatencyMeasurement:
    slower = time.get((item.variant, item.profile, item.batch), 1.0)
    joules = energy.get((item.variant, item.profile), 1.0)
    if slower == joules == 1.0:
        return item
    return msgspec.structs.replace(
        item,
        mean_ms=item.mean_ms * slower,
        p50_ms=item.p50_ms * slower,
        p95_ms=item.p95_ms * slower,
        p99_ms=item.p99_ms * slower,
        energy_j_per_row=item.energy_j_per_row * joules,
        rested_j=item.rested_j * joules,
    )
