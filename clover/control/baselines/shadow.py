"""The shadow of a family: what the rows it served would have used on BASE and on the best fixed mix, added up.

Every window of the account is compared with its shadows (`planning.budget.counterfactual`) as it is closed, at the
intensity and PUE of its energy.  Sums begin with the server and are lost with it.

    BASE      at the load of the window
    static    the best fixed mix at the target: the accuracy budget's, or the floor and its margin
    matched   the best fixed mix at the accuracy that was really served, over all windows together

A fixed mix that follows our accuracy from window to window would be none, and today's accuracy is not known yet when
yesterday's windows are closed.  So of the mixes of *every* accuracy the sums are kept, on a grid, and `matched` is read
off at the mix whose accuracy so far is the one served.

Idle joules are the same on both sides: those of the family's workers and, of what no worker holds, those of its GPUs or
its share of the core-sets.  Active joules of windows in which no batch ended belong to no family, and are on neither
side.

The best fixed mixes are the solver process's work: they are asked for if the load is more than a rate step away from
every load they are known for, at most every `ASK_S` (a plan that is wanted meanwhile waits for the answer, some tenths
of a second), and then read at the load of each window.  Windows before the first answer, or at a load that no mix
serves within the targets, are left out of static and matched, on both sides, and counted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clover.accounting import Share, Span
from clover.control.family import Family
from clover.planning.budget.counterfactual import Fixed, Frontier, Mix, base, lanes_of, line, mix_of
from clover.planning.budget.target import target_from
from clover.planning.model.problem import LEAST_RATE, accuracies
from clover.types import DeviceShape, Method, ObjectiveConfig, configuration_of

Floats = NDArray[np.float64]

ASK_S = 120.0
_RATE_WINDOWS = 10
_STEP = math.log(1.03)
_STEADY = 1  # rate steps: what is asked for is a load, and not what lies on the way to one
_KNOWN = 64
_GRID = 256
_FEW = 100


@dataclass
class ComparisonSums:
    """What one comparison covers.  `served` and `shadow` are active energy; idle energy is the same for both.  `right`:
    rows x accuracy; `beyond`: rows at loads that the shadow could not have served."""

    rows: int = 0
    right: float = 0.0
    shadow_right: float = 0.0
    served_j: float = 0.0
    served_g: float = 0.0
    shadow_j: float = 0.0
    shadow_g: float = 0.0
    idle_j: float = 0.0
    idle_g: float = 0.0
    beyond: int = 0


@dataclass
class Spectrum:
    """Fixed mixes of every accuracy, from the least accurate variant to the best: rows x accuracy reached, joules and
    grams of each."""

    asked: Floats
    right: Floats = field(init=False)
    joules: Floats = field(init=False)
    grams: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.right, self.joules, self.grams = (np.zeros(len(self.asked)) for _ in range(3))

    @classmethod
    def over(cls, accuracy: Sequence[float]) -> Spectrum:
        """Return an empty spectrum for variants of these accuracies (percent), which are points of its grid."""
        return cls(np.unique([*np.linspace(min(accuracy), max(accuracy), _GRID), *accuracy]))

    def add(self, rows: int, corners: Floats, a_row: Floats, line: tuple[float, float], grams_per_j: float) -> None:
        """Add a window of `rows`: `corners` and `a_row` are accuracies and joules a row at the corners of its frontier,
        `line` (offset, slope) maps modelled to metered joules."""
        offset, slope = line
        joules = offset + slope * np.interp(self.asked, corners, a_row)
        self.right += rows * np.clip(self.asked, corners[0], corners[-1])
        self.joules += joules
        self.grams += grams_per_j * joules

    def at(self, right: float) -> tuple[float, float, float]:
        """Return rows x accuracy, joules and grams of the mix that has reached `right`, or comes nearest to it."""
        reached = min(max(right, float(self.right[0])), float(self.right[-1]))
        joules, grams = (float(np.interp(reached, self.right, of)) for of in (self.joules, self.grams))
        return reached, joules, grams


class Shadow:
    """The shadow of one family.  `look` when the controller looks, `window` when the account closes a window."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.accuracy = accuracies(family.profile)
        self.base: Mix | None = None
        self.target = math.nan
        """The accuracy (percent) of `static` now."""
        self.since_s = math.nan
        """Grid time at which the first window was closed."""
        self.floor = math.inf
        """The accuracy floor of the fixed mixes if it is below the family's: the accuracy that is really served."""
        self.methods: set[Method] = set()
        """Of the joules that were served with."""
        self.rows = 0
        self.on_base = ComparisonSums()
        self.static = ComparisonSums()
        self._known_rows = 0
        self._right = 0.0
        self._spectrum = Spectrum.over(list(self.accuracy.values()))
        self._frontiers: dict[int, Frontier] = {}
        self._asked_s = -math.inf
        self._holds: tuple[object, ...] = ()
        self._deployed: object = None
        self._lanes = lanes_of(family.profile, ())
        self._share = 1.0
        self._windows: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOWS)

    def renewed(self, family: Family) -> Shadow:
        """Return the same sums for a family that was unloaded and is there again."""
        self.family, self._holds = family, ()
        self._windows.clear()
        return self

    # --- what is compared with ----------------------------------------------------------------------------------------

    def look(self, devices: tuple[DeviceShape, ...], share: float, objective: ObjectiveConfig) -> None:
        """Follow the devices and the targets."""
        holds = (devices, share, objective, self._floor(objective))
        if holds != self._holds:
            self._holds, self._share, self._deployed = holds, share, None
            self.base = base(self.family.profile, devices, share)
            self.target = target_from(objective, max(self.accuracy.values(), default=0.0))
            self._frontiers.clear()
            self._asked_s = -math.inf

    def _follow(self, variants: Set[str]) -> None:
        """Follow the workers that answer `variants`.  A worker that is drained still answers rows, and one of a
        transition under way does already: a variant keeps its lane until it has another, and one that has none yet gets
        that of the workers there are."""
        deployed, profile = self.family.deployed, self.family.profile
        if deployed is not None and deployed.deployment is not self._deployed:
            self._deployed = deployed.deployment
            self._lanes |= lanes_of(profile, deployed.configuration, self._share)
        if not variants <= self._lanes.keys():
            self._lanes = (
                lanes_of(profile, configuration_of(self.family.fleet.ready_assignments()), self._share) | self._lanes
            )

    @property
    def rate(self) -> float:
        """Rows a second over the last windows."""
        return _rate(list(self._windows))

    def wanted(self, now_s: float) -> float | None:
        """Return the rate whose fixed mixes are to be asked for now, and note that they are; None if none are."""
        if self.rate < LEAST_RATE or now_s < self._asked_s + ASK_S:
            return None
        step, half = _step(self.rate), list(self._windows)[len(self._windows) // 2 :]
        if any(abs(known - step) <= 1 for known in self._frontiers) or abs(_step(_rate(half)) - step) > _STEADY:
            return None
        self._asked_s = now_s
        return self.rate

    def _floor(self, objective: ObjectiveConfig) -> float:
        served = self._right / self._known_rows if self._known_rows > _FEW else objective.accuracy_floor
        if served < min(objective.accuracy_floor, self.floor):
            self.floor = math.floor(served - objective.accuracy_margin)  # whole points: not anew with every row
        return self.floor

    @property
    def question(self) -> object:
        """What fixed mixes depend on beside the rate: another object once that changed."""
        return self._holds

    def learn(self, rate: float, fixed: Sequence[Fixed]) -> None:
        """Take `fixed` for the best fixed mixes at `rate` (rows/s)."""
        while len(self._frontiers) >= _KNOWN:
            del self._frontiers[next(iter(self._frontiers))]
        self._frontiers[_step(rate)] = Frontier.of(self.family.profile, fixed, self._share)

    def _frontier(self, rate: float) -> Frontier | None:
        """Return the frontier known for the nearest load; None if there is none, or no mix serves it within the
        targets."""
        if not self._frontiers:
            return None
        step = _step(rate)
        return self._frontiers[min(self._frontiers, key=lambda known: abs(known - step))] or None

    # --- windows ------------------------------------------------------------------------------------------------------

    def window(self, span: Span, unowned: tuple[float, float], seconds: float, grid_s: float) -> None:
        """Compare a window of `seconds` with its shadows; `unowned`: the family's part of the idle joules and grams
        that no worker holds."""
        if math.isnan(self.since_s):
            self.since_s = grid_s
        rows = sum(span.rows.values()) - span.gone_on
        self._windows.append((seconds, rows))  # 0 s: the meters had nothing new to say, and will make up for it
        self._follow(span.rows.keys())
        self.methods |= span.methods
        idle_j, idle_g = span.share.idle_j + unowned[0], span.share.idle_g + unowned[1]
        frontier = self._frontier(self.rate)
        served = mix_of(self._lanes, span.rows, self.accuracy, rows=rows, right=span.right) if rows > 0 else None
        each = [(self.on_base, self.base is not None), (self.static, frontier is not None)]
        for sums, covers in each:
            if covers and (served is not None or not rows):
                sums.idle_j += idle_j
                sums.idle_g += idle_g
        self.rows += rows
        if served is None:
            return
        self._known_rows += rows
        self._right += rows * served.accuracy
        rate, share = self.rate, span.share
        over = line(rows, share.active_j, served.joules(rate))
        grams_per_j = share.active_g / share.active_j if share.active_j > 0.0 else 0.0
        if self.base is not None:
            beyond = 0 if self.base.holds(rate) else rows
            shadow_j = over[0] + over[1] * self.base.joules(rate)
            _book(self.on_base, served, rows, share, self.base.accuracy, shadow_j, beyond)
        if frontier is not None:
            reached, joules = frontier.at(self.target, rate)
            _book(self.static, served, rows, share, reached, over[0] + over[1] * joules, 0)
            self._spectrum.add(rows, *frontier.hull(rate), over, grams_per_j)

    @property
    def matched(self) -> ComparisonSums:
        """The best fixed mix at the accuracy served, over the windows of `static`."""
        static = self.static
        right, joules, grams = self._spectrum.at(static.right)
        return ComparisonSums(
            rows=static.rows,
            right=static.right,
            shadow_right=right,
            served_j=static.served_j,
            served_g=static.served_g,
            shadow_j=joules,
            shadow_g=grams,
            idle_j=static.idle_j,
            idle_g=static.idle_g,
        )


def _book(
    sums: ComparisonSums, served: Mix, rows: int, share: Share, accuracy: float, shadow_j: float, beyond: int
) -> None:
    """Add a window in which the shadow has `accuracy` and uses `shadow_j`."""
    sums.rows += rows
    sums.right += rows * served.accuracy
    sums.shadow_right += rows * accuracy
    sums.served_j += share.active_j
    sums.served_g += share.active_g
    sums.shadow_j += shadow_j
    sums.shadow_g += shadow_j * share.active_g / share.active_j if share.active_j > 0.0 else 0.0
    sums.beyond += beyond


def _rate(windows: Sequence[tuple[float, int]]) -> float:
    """Return rows a second of windows of so many seconds and rows."""
    seconds = sum(length for length, _ in windows)
    return sum(rows for _, rows in windows) / seconds if seconds > 0.0 else 0.0


def _step(rate: float) -> int:
    return round(math.log(max(rate, LEAST_RATE)) / _STEP)
