"""How far a profile is off, learned from what workers report: factors of service time and of joules a row.

**Time.**  What batches of one size took is compared with the profile, in windows.  A window gives one logarithm of a
ratio, and the median of the last `WINDOWS` windows counts.  One slow batch, a pause of the machine or a worker's first
batches spoil a window but not the factor; a lasting slowness moves the factor once half of the windows show it.

**Borrowing.**  Each (variant, slice, batch) is then drawn towards its neighbours.  The true logarithms are taken for a
Gaussian field: a variant has one part of it, each of its slices another, and batch sizes a third that fades with their
distance.  All parts are 0 until something is known (kriging).  So a size that was seen rarely borrows from the others
of its slice, and a slice from the others of its variant.  A variant that never ran keeps its profile: what makes one
variant slow (its profile, cold caches) need not slow another.

**Joules** are learned in `planning.model.metered`.

**Bounds and age.**  Factors stay within 1 / `MOST` and `MOST`.  How far they are from 1 halves with every `HALF_LIFE_S`
without news of that variant and slice.

Everything is pure: times are arguments, in seconds of any clock that does not stop.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

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

_OF_VARIANT, _OF_SLICE, _OF_BATCH = 0.08, 0.02, 0.04
"""Variances of the logarithms of time; together a standard deviation of a third."""
_BATCH_RANGE = 3.0
"""Doublings of the batch over which what is known of one size fades by a factor e."""
_SPREAD, _FLOOR = 0.2, 0.02
"""Standard deviations: of a window before its spread is known, and of what no number of windows tells."""

TimeKey = tuple[str, str, int]
"""Variant, profile of the slice, batch."""
EnergyKey = tuple[str, str]
"""Variant, profile of the slice."""
Floats = NDArray[np.float64]


class SavedTime(Record, frozen=True, kw_only=True):
    """The windows of one (variant, slice, batch): how long ago (seconds) each was, and the logarithm of its ratio."""

    key: TimeKey
    windows: tuple[tuple[float, float], ...]


def fade(age_s: float) -> float:
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

    def record_batches(
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
        """Take what was known, aged since by what the caller added to the ages.  Raises ValueError if it is invalid."""
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
    return middle * fade(now_s - newest_s), variance / count + _FLOOR**2


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
    covariance: Floats = _OF_VARIANT * variant + own * (_OF_SLICE + _OF_BATCH * near)
    return covariance


def apply_factors(
    profile: FamilyProfile, time: Mapping[TimeKey, float], energy: Mapping[EnergyKey, float]
) -> FamilyProfile:
    """Return `profile` with its service times and joules multiplied by these factors; absent: 1."""
    base = profile.base
    return msgspec.structs.replace(
        profile,
        latency=tuple(_correct(item, time, energy) for item in profile.latency),
        base=msgspec.structs.replace(
            base, energy_j_per_row=base.energy_j_per_row * energy.get((base.variant, base.profile), 1.0)
        ),
    )


def _correct(
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
        wake_j=item.wake_j * joules,
    )
