"""The shadow of a family: what the rows that it served would have used otherwise, added up.

When a window of the account is closed, it is compared with its shadows (`planning.budget.counterfactual`) at the
intensity and PUE of its energy.  Sums begin with the server and end with it.

    base       BASE, at the load of the window
    matched    the best fixed mix at the accuracy that was really served, over all windows together

**Why `matched` needs a grid.**  A mix that followed the served accuracy from window to window would not be fixed, and
the day's accuracy is not known while its first windows are closed.  So sums are kept for the mixes of *every* accuracy
on a grid, and `matched` is read off at the mix whose accuracy so far is the one served.

**Where the mixes come from.**  The solver process finds them.  It is asked if the load is more than a rate step away
from every load that is known, every `ASK_S` at most (a plan wanted meanwhile waits some tenths of a second).  They are
then read at the load of each window.  Windows before the first answer are held until it comes, added up by rate step.
All windows of a rate step are compared alike, so holding them is exact, and its memory is bounded.  If no fixed mix
serves a load within the targets, the window is left out on both sides, and counted.

**Corrections** of the profile (`control.state.learning`) also hold for what was compared before: sums are restated by
each correction that is better known than the one they were made with.  `off` says how far joules a row may still be
off.

Rows that were computed for an answer still to come are compared in the window in which it comes.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence, Set

import numpy as np
from msgspec import structs

from clover.accounting import Share, Span
from clover.control.baselines.comparison import ComparisonSums, Floats, Overheads, Spectrum, Window, energy_of
from clover.control.state.family import Family
from clover.planning.budget.counterfactual import Fixed, Frontier, Mix, base, in_order, lanes_of, mix_of
from clover.planning.model.metered import UNKNOWN_ERROR
from clover.planning.model.problem import LEAST_RATE, accuracies, whole
from clover.types import DeviceShape, Method, ObjectiveConfig, configuration_of

ASK_S = 120.0
_STEADY_S = 10.0
"""For so long a load that does not hold still is waited for, until it is asked for as it is."""
_RATE_WINDOWS = 10
_STEP = math.log(1.03)
_STEADY = 1  # rate steps: what is asked for is a load, and not what lies on the way to one
_KNOWN = 64
_LEAST_OFF = 0.01
"""Standard error, as a part, of joules a row of a mix that no number of windows tells: its loads are 3 % apart."""
_FEW = 100


class Shadow:
    """The shadow of one family.  Call `observe` when the controller polls, and `compare` when the account closes a
    window."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.accuracy = accuracies(family.profile)
        self.variants = tuple(self.accuracy)
        self.base: Mix | None = None
        self.since_s = math.nan
        """Grid time at which the first window was closed."""
        self.floor = math.inf
        """The accuracy floor of the fixed mixes if it is below the family's: the accuracy that is really served."""
        self.methods: set[Method] = set()
        """Of the joules that were served with."""
        self.grids: set[str] = set()
        """How the intensities were known."""
        self.perfect_forecast = False
        """Whether plans were made with a forecast that is what will be."""
        self.rows = 0
        self.on_base = ComparisonSums.over(len(self.variants))
        self.held: dict[int, Window] = {}
        """Windows that wait for the first answer of the solver, by rate step."""
        self._known_rows = 0
        self._right = 0.0
        self._on_mixes = ComparisonSums.over(len(self.variants))
        """What served in the windows that are compared with fixed mixes."""
        self._spectrum = Spectrum.over(list(self.accuracy.values()))
        self._answers: dict[int, tuple[Fixed, ...]] = {}
        self._found: dict[int, Frontier] = {}
        """The solver's answers, by rate step, as the profile has them now."""
        self._changed = 0
        self._factors = np.ones(len(self.variants))
        self._stated_off = np.full(len(self.variants), np.inf)
        """By [variant] the factors of joules that sums stand in, and how sure these were."""
        self._asked_s = -math.inf
        self._waits_s = math.inf
        self._holds: tuple[object, ...] = ()
        self._devices: tuple[DeviceShape, ...] = ()
        self._deployed: object = None
        self._lanes = lanes_of(family.profile, ())
        self._share = 1.0
        self._windows: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOWS)
        self._open = Span()
        """Rows that were computed, of which none is answered yet."""

    def renewed(self, family: Family) -> Shadow:
        """Return the same sums for a family that was unloaded and is loaded again."""
        self.family, self._holds, self._changed = family, (), -1
        self._windows.clear()
        return self

    # --- what is compared with ----------------------------------------------------------------------------------------

    def observe(self, devices: tuple[DeviceShape, ...], share: float, objective: ObjectiveConfig) -> None:
        """Follow the devices and the targets."""
        # What else could serve does not depend on the reference intensity, which may be another one each hour.
        asked = structs.replace(objective, reference_g_per_kwh=1.0)
        holds = (devices, share, asked, self._floor(objective))
        if holds != self._holds:
            self._holds, self._share, self._deployed, self._devices = holds, share, None, devices
            self.base = base(self.family.corrected, devices, share)
            self._answers.clear()
            self._found.clear()
            self._asked_s = -math.inf
        elif self._changed != self.family.learned.changed:  # the same answers, with other joules
            self._deployed = None
            self.base = base(self.family.corrected, devices, share)
            profile = self.family.corrected
            self._found = {at: Frontier.from_fixed(profile, mixes, share) for at, mixes in self._answers.items()}
        if self._changed != self.family.learned.changed:
            self._restate()
        self._changed = self.family.learned.changed

    @property
    def off(self) -> Floats:
        """By which part joules a row of each variant may be off, by [variant]: half of a 95 % interval."""
        return 2.0 * self._learned()[1]

    def _learned(self) -> tuple[Floats, Floats]:
        """Return by [variant] the factor of joules a row, and its standard error as a part: of BASE's variant on BASE's
        slices, of the others where they are known best."""
        learned = self.family.learned
        whole_slices = {item.profile for device in self._devices for item in whole(device)}
        factors, errors = np.ones(len(self.variants)), np.full(len(self.variants), UNKNOWN_ERROR)
        for at, variant in enumerate(self.variants):
            known = {key: error for key, error in learned.energy_errors.items() if key[0] == variant}
            if self.base is not None and variant == self.base.variants[0]:
                known = {key: error for key, error in known.items() if key[1] in whole_slices}
                key = max(known, key=known.__getitem__, default=None)
            else:
                key = min(known, key=known.__getitem__, default=None)
            if key is not None:
                factors[at] = learned.energy.get(key, 1.0)
                errors[at] = math.hypot(known[key] / factors[at], _LEAST_OFF)
        return factors, errors

    def _restate(self) -> None:
        """Restate the sums by what was learned, where it is better known than what the sums were made with.  What a
        serving variant took is metered, so later corrections say something of the past only if they are much better."""
        factors, errors = self._learned()
        served = self.on_base.own[:, 0] > 0.0
        better = errors < np.where(served, 0.5, 1.0) * self._stated_off
        times = np.where(better, factors / self._factors, 1.0)
        self._factors, self._stated_off = factors, np.where(better, errors, self._stated_off)
        for sums in (self.on_base, self._on_mixes, self._spectrum):
            sums.restate(times)
        for window in self.held.values():
            window.own = window.own * times[:, None]

    def _follow(self, variants: Set[str]) -> None:
        """Follow the workers that answer `variants`.  A worker that is drained still answers rows, and a worker of a
        transition under way answers some already.  So a variant keeps its lane until it has another; a variant without
        a lane gets that of the workers that run."""
        deployed, profile = self.family.deployed, self.family.corrected
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
        """Return the rate for which the solver is to be asked now, and record the question; None if it is not to be
        asked."""
        step, half = _step(self.rate), list(self._windows)[len(self._windows) // 2 :]
        if self.rate < LEAST_RATE or any(abs(known - step) <= 1 for known in self._found):
            self._waits_s = math.inf
            return None
        self._waits_s = min(self._waits_s, now_s)
        steady = abs(_step(_rate(half)) - step) <= _STEADY or now_s >= self._waits_s + _STEADY_S
        if now_s < self._asked_s + ASK_S or not steady:
            return None
        self._asked_s, self._waits_s = now_s, math.inf
        return self.rate

    def _floor(self, objective: ObjectiveConfig) -> float:
        served = self._right / self._known_rows if self._known_rows > _FEW else objective.accuracy_floor
        if served < min(objective.accuracy_floor, self.floor):
            self.floor = math.floor(served - objective.accuracy_margin)  # whole points: not anew with every row
        return self.floor

    @property
    def question(self) -> object:
        """What the solver's answers depend on besides the rate: another object once that changed."""
        return self._holds

    def learn(self, rate: float, mixes: tuple[Fixed, ...]) -> None:
        """Take `mixes` as the best fixed mixes at `rate` (rows/s), and compare the windows that waited for them."""
        while len(self._answers) >= _KNOWN:
            oldest = next(iter(self._answers))
            del self._answers[oldest], self._found[oldest]
        step = _step(rate)
        self._answers[step] = mixes
        self._found[step] = Frontier.from_fixed(self.family.corrected, mixes, self._share)
        held, self.held = self.held, {}
        for step, window in held.items():
            self._add_window(window, math.exp(step * _STEP))

    def _nearest(self, rate: float) -> Frontier | None:
        """Return the frontier of the nearest known load; None if none is known."""
        if not self._found:
            return None
        step = _step(rate)
        return self._found[min(self._found, key=lambda known: abs(known - step))]

    # --- windows ------------------------------------------------------------------------------------------------------

    def compare(self, span: Span, unowned: Overheads, seconds: float, grid_s: float) -> None:
        """Compare a window of `seconds` with its shadows.  `unowned`: the family's part of the energy that no worker
        holds or caused."""
        if math.isnan(self.since_s):
            self.since_s = grid_s
        self._follow(span.rows.keys())
        self.methods |= span.methods
        self.grids |= span.grids
        overheads = Overheads(
            idle=np.array([span.share.idle_j, span.share.idle_g]),
            unowned=unowned.unowned,
            front_end=energy_of(span.front_end),
            control=energy_of(span.control),
        )
        span = self._with_open(span)
        rows = sum(span.rows.values()) - span.gone_on
        self._windows.append((seconds, rows))  # 0 s: the meters had nothing new to say, and will make up for it
        self.rows += rows
        rate = self.rate
        served = mix_of(self._lanes, span.rows, self.accuracy, rows=rows, right=span.right) if rows else None
        if served is None and rows:
            return  # nothing is known of who served them
        window = self._window(span, served, rows, rate, overheads)
        if self.base is not None:
            beyond = not self.base.holds(rate)
            self.on_base.add_window(window, self.base.accuracy, in_order(self.base, self.variants, rate), beyond=beyond)
        if self._found:
            self._add_window(window, rate)
        elif (step := _step(rate)) in self.held:
            self.held[step].add(window)
        else:
            self.held[step] = window

    def _with_open(self, span: Span) -> Span:
        """Return `span` with the rows that were computed earlier without an answer.  If `span` has no answers, keep its
        rows until a span has."""
        before, rows = self._open, dict(span.rows)
        for variant, count in before.rows.items():
            rows[variant] = rows.get(variant, 0) + count
        share = Share(
            active_j=before.share.active_j + span.share.active_j, active_g=before.share.active_g + span.share.active_g
        )
        both = Span(rows=rows, gone_on=before.gone_on + span.gone_on, right=before.right + span.right, share=share)
        answered = sum(rows.values()) - both.gone_on
        if rows and answered > 0:
            self._open = Span()
            return both
        self._open = both
        return Span()

    def _window(self, span: Span, served: Mix | None, rows: int, rate: float, overheads: Overheads) -> Window:
        variants = len(self.variants)
        window = Window(overheads, rows, 0.0, np.zeros(2), np.zeros((variants, 2)), np.zeros(2))
        if served is None:
            return window
        self._known_rows += rows
        self._right += rows * served.accuracy
        share = span.share
        grams, joules = (share.active_g, share.active_j) if share.active_j > 0.0 else (share.idle_g, share.idle_j)
        in_grams = np.array([1.0, grams / joules if joules > 0.0 else 0.0])
        window.right = rows * served.accuracy
        window.active = share.active_j * in_grams
        window.weights = rows * in_grams
        window.own = np.outer(in_order(served, self.variants, rate), window.weights)
        return window

    def _add_window(self, window: Window, rate: float) -> None:
        """Compare a window with the fixed mixes of the nearest load, if there are any."""
        frontier = self._nearest(rate)
        if frontier:
            self._on_mixes.serve(window)
            self._spectrum.add(window, *frontier.hull(rate))

    @property
    def matched(self) -> ComparisonSums:
        """The best fixed mix at the accuracy served."""
        right, change = self._spectrum.at(self._on_mixes.right)
        sums = copy.copy(self._on_mixes)
        sums.change, sums.shadow_right = change, right
        return sums

    @property
    def held_rows(self) -> int:
        """Rows that wait for the first answer of the solver."""
        return sum(window.rows for window in self.held.values())


def _rate(windows: Sequence[tuple[float, int]]) -> float:
    """Return rows a second of windows of so many seconds and rows."""
    seconds = sum(length for length, _ in windows)
    return sum(rows for _, rows in windows) / seconds if seconds > 0.0 else 0.0


def _step(rate: float) -> int:
    return round(math.log(max(rate, LEAST_RATE)) / _STEP)
