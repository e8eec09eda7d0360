"""How far a profile's joules a row are off, learned from what meters show.

A meter gives a sum over what ran in a window:  E = sum of f x expected + noise.  The factors f of each
(variant, slice) are those of a linear regression with a prior around 1 (ridge).  Where CPU time tells workers apart
each window has one unknown.  Where several variants share a meter only differences between windows tell their factors
apart; as long as shares are alike in all windows, the factor that is common to all is what is known, and the prior
keeps to that.  A window that is far from what is expected counts as if it were less far (Huber); windows weigh half
once those of `MEMORY_S` followed.

Windows are short: the standard error of a factor after a time S is about  sigma / s x sqrt(T / S)  for windows of T
seconds, where s is by how much the expected joules of a variant vary beside those of the others over a second, and
sigma the noise over one.  But a window has edges: a batch counts where it ends, though part of its joules were drawn
before it, and a counter that ticks shows what was drawn up to its last tick.  If shares are kept row by row, such edges
are all by which expected joules vary, and a plain regression would take them for evidence: a small error, and wrong
factors.  What a window has too much its neighbour has too little, though: the sum z of a window and both of its
neighbours has none of its edges.  So z is the instrument of the regression (two-stage least squares): with A = sum of z
x', B = sum of z z', r = sum of z E, the data say A f = r with an error of variance noise x B, which is the evidence A'
B^-1 A / noise.  Shares that vary by edges alone give none.  This costs a factor of sqrt(3) in the standard error beside
a plain regression without edges.  It takes neighbours that are adjacent, so that all windows of a meter
are one stream, whoever ended a batch in them, and windows of several batches: what is under way as one begins must not
be under way as the next one does.

Edges are also most of what single windows are off by, and of a sum over neighbours only the two outer ones are left.
So the noise is that of such sums, a third of their variance a window.  Noise u(t) - u(t - 1) of edges alone gives r a
variance of var(u) x sum of (z(t) - z(t + 1))^2, which is that noise x B if expected joules vary by chance from window
to window, and less if they vary slowly.

If nothing has shares vary, the controller does (`clover.control.share_swings`), as long as `mixed` shows a large error.

A window does not tell batch sizes apart, so the factor is the same for all.

What a profile lacks is mostly what every batch costs beside its model (`planning.budget.counterfactual`).  So a variant
that never ran is taken to cost as much more a batch, in joules, as cheaper ones that ran do; no more than that, or it
would never be tried, and nothing if those are more expensive than it.

Bounds and age are as of times (`planning.model.correction`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np

from clover.planning.model.correction import MOST, EnergyKey, Floats, faded
from clover.types import Record

WINDOW_S, LONGEST_WINDOW_S = 1.0, 5.0
"""Meters are read once a second; a window that took longer than it had to counts as one of five seconds."""
WINDOW_BATCHES = 5.0
"""A window is at least so many times as long as the longest batch: edges of its neighbours are to be none of its."""
LEAST_WINDOWS, LEAST_S = 3, 10.0
"""Fewer windows, or such as last less together, are no evidence."""
MEMORY_S = 600.0
LATELY_S = 60.0
"""What a variant used so long ago counts half in its part of a meter's joules."""
_UNUSED = 5.0
"""A meter without a window for so many times as long is not shared any more."""

_COMMON, _OF_ALL_SLICES, _OF_ONE = 0.15, 0.1, 0.005
"""Variances of factors: common to all that ran, of a variant, of one slice of it."""
_OFF = 0.1
"""Relative standard deviation of a window's joules before it is known."""
_PART_OF_ALL = 1e-3
"""A variant with less of the joules of shared meters is none that they are shared by."""
_LEAST_J = 1e-6
"""A window in which less was expected goes on."""


class SavedEnergy(Record, frozen=True, kw_only=True):
    """The sums of the regression (`EnergyEvidence`); `ages` of the newest window of each key, in seconds."""

    keys: tuple[EnergyKey, ...] = ()
    ages: tuple[float, ...] = ()
    precision: tuple[tuple[float, ...], ...] = ()
    moment: tuple[float, ...] = ()
    crossed: tuple[tuple[float, ...], ...] = ()
    crossed_moment: tuple[float, ...] = ()
    instruments: tuple[tuple[float, ...], ...] = ()
    around_moment: tuple[float, ...] = ()
    square: float = 0.0
    around_square: float = 0.0
    expected_j: float = 0.0
    windows: float = 0.0
    seconds: float = 0.0


@dataclass
class _Metered:
    """A window of one meter, under way or closed."""

    since_s: float
    joules: float = 0.0
    expected_j: dict[EnergyKey, float] = field(default_factory=dict)


@dataclass
class _Sums:
    """Sums over windows, each by the joules expected around it: of x x' and x E (`plain`), of z x' and z E (`crossed`),
    of z z' and z F (`instruments`, `around_moment`), and of E E and F F (`square`, `around_square`), where x are the
    expected joules by key, E the metered ones, and z and F those of the window and its neighbours together."""

    plain: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    plain_moment: Floats = field(default_factory=lambda: np.zeros(0))
    crossed: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    crossed_moment: Floats = field(default_factory=lambda: np.zeros(0))
    instruments: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    around_moment: Floats = field(default_factory=lambda: np.zeros(0))
    square: float = 0.0
    around_square: float = 0.0
    expected_j: float = 0.0
    windows: float = 0.0
    seconds: float = 0.0

    @property
    def enough(self) -> bool:
        """Whether they are evidence."""
        return self.windows >= LEAST_WINDOWS and self.seconds >= LEAST_S

    def noise(self, rest: float, before: float) -> float:
        """Return the variance of a window of which `rest` is the sum of squares that is left, `before` what it is taken
        to be without any."""
        return max((max(rest, 0.0) + 2.0 * before) / (self.windows + 2.0), 1e-30)

    def widen(self) -> None:
        """Make room for one more key."""
        self.plain, self.plain_moment = np.pad(self.plain, (0, 1)), np.pad(self.plain_moment, (0, 1))
        self.crossed, self.crossed_moment = np.pad(self.crossed, (0, 1)), np.pad(self.crossed_moment, (0, 1))
        self.instruments, self.around_moment = np.pad(self.instruments, (0, 1)), np.pad(self.around_moment, (0, 1))

    def add(self, x: Floats, joules: float, z: Floats, metered_j: float, seconds: float) -> None:
        """Add a window of which `seconds` are its own, beside those of other meters; `metered_j`: with its
        neighbours."""
        kept = math.exp2(-seconds / MEMORY_S)
        # The noise of a window grows with its joules: a window weighs as one joule of it does.
        around_j = float(z.sum()) / 3.0
        self.plain = kept * self.plain + np.outer(x, x / around_j)
        self.plain_moment = kept * self.plain_moment + x * (joules / around_j)
        self.crossed = kept * self.crossed + np.outer(z, x / around_j)
        self.crossed_moment = kept * self.crossed_moment + z * (joules / around_j)
        self.instruments = kept * self.instruments + np.outer(z, z / around_j)
        self.around_moment = kept * self.around_moment + z * (metered_j / around_j)
        self.square = kept * self.square + joules * (joules / around_j)
        self.around_square = kept * self.around_square + metered_j * (metered_j / around_j)
        self.expected_j = kept * self.expected_j + float(x.sum())
        self.windows = kept * self.windows + 1.0
        self.seconds = kept * self.seconds + seconds


class _Fit(NamedTuple):
    """The factors of the keys that were seen, their covariance, and the variance of a single window's joules by its
    expected ones."""

    factors: Floats
    covariance: Floats
    noise: float


class MixedVariant(NamedTuple):
    """A variant of which others have the meter, too: its `part` of the joules there lately, and the standard error of
    its joules a row, relative to these."""

    part: float
    error: float


class EnergyEvidence:
    """What is known of joules a row of one family."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, EnergyKey | None], _Metered] = {}
        self._recent: dict[tuple[str, EnergyKey | None], deque[_Metered]] = {}
        """The last two windows of each meter: the sums have a window once its successor is known."""
        self._keys: list[EnergyKey] = []
        self._at_s: list[float] = []
        self._added_s = self._fitted_s = -math.inf
        self._sums = _Sums()
        self._latest: _Fit | None = None
        self._lately: dict[str, tuple[float, dict[EnergyKey, float]]] = {}
        """When the last window of each shared meter closed, and the joules expected there over about a minute."""
        self._longest_s, self._longest_at_s = 0.0, -math.inf

    def batches_lasted(self, seconds: float, now_s: float) -> None:
        """Note that batches of some kind took `seconds` lately."""
        kept = math.exp2(-max(now_s - self._longest_at_s, 0.0) / MEMORY_S)
        self._longest_s, self._longest_at_s = max(kept * self._longest_s, seconds), now_s

    def metered(
        self,
        device: str,
        joules: float,
        expected_j: Mapping[EnergyKey, float],
        *,
        shared: bool,
        follows: bool = True,
        since_s: float,
        now_s: float,
    ) -> bool:
        """Count `joules` of a meter of `device` between `since_s` and `now_s` for work that should have taken
        `expected_j`; return whether that closed a window.  `shared` and `follows`: see `MeteredWindow`."""
        meter = device, None if shared else next(iter(expected_j))
        if not follows:
            self._pending.pop(meter, None)
            self._recent.pop(meter, None)
        pending = self._pending.setdefault(meter, _Metered(since_s))
        pending.joules += joules
        for key, expected in expected_j.items():
            pending.expected_j[key] = pending.expected_j.get(key, 0.0) + expected
        # Batches that end later may have drawn joules without which nothing was expected yet.
        enough = now_s - pending.since_s >= self.window_s and sum(pending.expected_j.values()) >= _LEAST_J
        if not enough and math.isfinite(pending.joules):
            return False
        del self._pending[meter]
        if not math.isfinite(pending.joules):
            return False
        pending.expected_j = {key: expected for key, expected in pending.expected_j.items() if expected > 0.0}
        self._close(meter, pending, now_s)
        return True

    @property
    def window_s(self) -> float:
        """How long a window is, at least."""
        return max(WINDOW_S, WINDOW_BATCHES * self._longest_s)

    def interrupt(self) -> None:
        """Drop the windows under way: workers were started or drained."""
        self._pending.clear()
        self._recent.clear()

    def _close(self, meter: tuple[str, EnergyKey | None], window: _Metered, now_s: float) -> None:
        for key in window.expected_j:
            if key not in self._keys:
                self._keys.append(key)
                self._at_s.append(now_s)
                self._sums.widen()
        window.joules = self._likely(window, now_s)
        recent = self._recent.setdefault(meter, deque(maxlen=2))
        if len(recent) == 2:
            before, middle = (self._row(of) for of in recent)
            around = before + middle + self._row(window)
            metered_j = recent[0].joules + recent[1].joules + window.joules
            seconds = min(max(now_s - self._added_s, 0.0), max(LONGEST_WINDOW_S, self.window_s))
            self._sums.add(middle, recent[1].joules, around, metered_j, seconds)
            self._added_s = now_s
        recent.append(window)
        if meter[1] is None:
            since_s, lately = self._lately.get(meter[0], (now_s, {}))
            kept = math.exp2(-max(now_s - since_s, 0.0) / LATELY_S)
            keys = lately.keys() | window.expected_j.keys()
            sums = {key: kept * lately.get(key, 0.0) + window.expected_j.get(key, 0.0) for key in keys}
            self._lately[meter[0]] = now_s, sums
        for key in window.expected_j:
            self._at_s[self._keys.index(key)] = now_s

    def _row(self, window: _Metered) -> Floats:
        return np.array([window.expected_j.get(key, 0.0) for key in self._keys])

    def _likely(self, window: _Metered, now_s: float) -> float:
        """Return the joules of a window, drawn towards what is expected if they are far from that.  Both bounds are as
        far: what one of them alone cuts off of the noise would be learned."""
        row = self._row(window)
        whole_j = float(row.sum())
        if not self._sums.enough:
            room_j = 2.0 * MOST * whole_j
            return min(max(window.joules, whole_j - room_j), whole_j + room_j)
        fit = self._latest
        if fit is None or now_s > self._fitted_s or len(fit.factors) != len(self._keys):
            fit, self._fitted_s = self._fitted(), now_s  # once for all windows of a report
            self._latest = fit
        likely_j = float(row @ fit.factors)
        room_j = 3.0 * math.sqrt(fit.noise * whole_j) + 0.1 * likely_j
        return min(max(window.joules, likely_j - room_j), likely_j + room_j)

    def _fitted(self) -> _Fit:
        sums, ones = self._sums, np.ones(len(self._keys))
        prior = np.linalg.inv(_together(self._keys))
        # Directions in which instruments do not vary are none in which `crossed` does.
        least = 1e-12 * float(np.trace(sums.instruments)) * np.eye(len(self._keys))
        through = np.linalg.solve(sums.instruments + least, sums.crossed).T
        precision, moment = through @ sums.crossed, through @ (sums.crossed_moment - sums.crossed @ ones)
        before = _OFF**2 * sums.expected_j / max(sums.windows, 1e-9)
        noise = before
        for _ in range(3):
            factors = ones + np.linalg.solve(precision / noise + prior, moment / noise)
            around = sums.around_square - 2.0 * float(factors @ sums.around_moment)
            noise = sums.noise((around + float(factors @ sums.instruments @ factors)) / 3.0, before)
        rest = sums.square - 2.0 * float(factors @ sums.plain_moment) + float(factors @ sums.plain @ factors)
        return _Fit(factors, np.linalg.inv(precision / noise + prior), sums.noise(rest, before))

    def factors(self, wanted: Sequence[EnergyKey], now_s: float) -> dict[EnergyKey, float]:
        """Return the factor of each of `wanted`."""
        if not self._sums.enough or not wanted:
            return dict.fromkeys(wanted, 1.0)
        more = self._fitted().factors - 1.0
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

    def errors(self, wanted: Sequence[EnergyKey], now_s: float) -> dict[EnergyKey, float]:
        """Return the standard error of the factor of each of `wanted`; of one that never ran, how far off profiles are
        taken to be."""
        unknown = _COMMON + _OF_ALL_SLICES + _OF_ONE
        known: dict[EnergyKey, float] = {}
        if self._sums.enough:
            variances = np.diag(self._fitted().covariance).tolist()
            for key, variance, at_s in zip(self._keys, variances, self._at_s, strict=True):
                left = faded(now_s - at_s) ** 2
                known[key] = left * variance + (1.0 - left) * unknown
        return {key: math.sqrt(known.get(key, unknown)) for key in wanted}

    def mixed(self, now_s: float) -> dict[str, MixedVariant]:
        """Return what is known of each variant that lately had a meter together with another one; nothing before there
        is evidence."""
        if not self._sums.enough:
            return {}
        expected, unused_s = np.zeros(len(self._keys)), _UNUSED * max(LATELY_S, self.window_s)
        for since_s, lately in self._lately.values():
            several = len({variant for (variant, _), joules in lately.items() if joules > 0.0}) > 1
            if several and now_s - since_s <= unused_s:
                kept = math.exp2(-max(now_s - since_s, 0.0) / LATELY_S)
                expected += kept * np.array([lately.get(key, 0.0) for key in self._keys])
        fit, whole_j = self._fitted(), float(expected.sum())
        found = {}
        for variant in dict.fromkeys(key[0] for key in self._keys):
            own = np.where([key[0] == variant for key in self._keys], expected, 0.0)
            joules = max(float(own @ fit.factors), float(own.sum()) / MOST)
            if joules > _PART_OF_ALL * whole_j:
                found[variant] = joules, math.sqrt(max(float(own @ fit.covariance @ own), 0.0)) / joules
        total_j = sum(joules for joules, _ in found.values())
        return {variant: MixedVariant(joules / total_j, error) for variant, (joules, error) in found.items()}

    def unseen(self, factors: Mapping[EnergyKey, float], joules: Mapping[EnergyKey, float]) -> dict[EnergyKey, float]:
        """Return `factors` with those of variants that never ran raised by what batches of cheaper ones cost more than
        profiled.  `joules`: of a batch, as profiled."""
        ran = {key[0] for key in self._keys} if self._sums.enough else set()
        more_j = {key: (factors[key] - 1.0) * joules[key] for key in self._keys if key in joules}
        found = dict(factors)
        for key in factors:
            cheaper = [more_j[of] for of in more_j if joules[of] <= joules[key]]
            if key[0] not in ran and ran and cheaper:
                found[key] = min(1.0 + max(median(cheaper), 0.0) / joules[key], MOST)
        return found

    def save(self, now_s: float) -> SavedEnergy:
        """Return what is known, to be restored."""
        sums = self._sums
        return SavedEnergy(
            keys=tuple(self._keys),
            ages=tuple(max(now_s - at_s, 0.0) for at_s in self._at_s),
            precision=tuple(map(tuple, sums.plain.tolist())),
            moment=tuple(sums.plain_moment.tolist()),
            crossed=tuple(map(tuple, sums.crossed.tolist())),
            crossed_moment=tuple(sums.crossed_moment.tolist()),
            instruments=tuple(map(tuple, sums.instruments.tolist())),
            around_moment=tuple(sums.around_moment.tolist()),
            square=sums.square,
            around_square=sums.around_square,
            expected_j=sums.expected_j,
            windows=sums.windows,
            seconds=sums.seconds,
        )

    def restore(self, saved: SavedEnergy, now_s: float) -> None:
        """Take what was known, aged since by what the caller added to the ages.  Raises ValueError if that cannot
        be."""
        count = len(saved.keys)
        matrices = [_matrix(rows, count) for rows in (saved.precision, saved.crossed, saved.instruments)]
        moments = [np.array(moment, float) for moment in (saved.moment, saved.crossed_moment, saved.around_moment)]
        figures = [figure for sums in matrices for figure in sums.ravel().tolist()]
        figures += [*saved.ages, saved.square, saved.around_square, saved.expected_j, saved.windows, saved.seconds]
        if any(len(moment) != count for moment in moments) or len(saved.ages) != count:
            raise ValueError("its sums of joules do not fit together")
        # Noise may make metered joules negative, and with them the moments.
        finite = all(np.isfinite(moment).all() for moment in moments)
        if not finite or not all(math.isfinite(figure) and figure >= 0.0 for figure in figures):
            raise ValueError("it has sums of joules that cannot be")
        self._keys, self._at_s = list(saved.keys), [now_s - age_s for age_s in saved.ages]
        self._latest = None
        self._sums = _Sums(
            plain=matrices[0],
            plain_moment=moments[0],
            crossed=matrices[1],
            crossed_moment=moments[1],
            instruments=matrices[2],
            around_moment=moments[2],
            square=saved.square,
            around_square=saved.around_square,
            expected_j=saved.expected_j,
            windows=saved.windows,
            seconds=saved.seconds,
        )


def _matrix(rows: Sequence[Sequence[float]], count: int) -> Floats:
    """Return rows of `count` x `count` figures.  Raises ValueError if they are others."""
    found = np.array(rows, float) if rows else np.zeros((0, 0))
    if found.shape != (count, count):
        raise ValueError("its sums of joules do not fit together")
    return found


def _together(keys: Sequence[EnergyKey]) -> Floats:
    """Return the covariances of the factors of keys that ran."""
    variants = np.array([key[0] for key in keys])
    alike = variants[:, None] == variants[None, :]
    found: Floats = _COMMON + _OF_ALL_SLICES * alike + _OF_ONE * np.eye(len(keys))
    return found
