"""Adds up a comparison: what served and what its shadow would have used, within the boundary `server`
(`clover.accounting.boundaries`), and how sure the difference is.

The shadow has no control (planning, profiling, starts, swaps, audits).  The front end is the same on both sides, and so
is idle power, both of workers and of what no worker holds.

**How sure.**  Grams saved are given with three errors.  Each is half the width of a 95 % interval; they are added in
quadrature:

    profile   joules a row of each variant may be off by two standard errors of what was learned here.  A variant that
              never ran here may be off by as much as profiles are in general.  The error is multiplied by what the
              shadow uses more of that variant
    ratio     the meter showed other joules than the model, and nobody knows how far it would have for the shadow: by
              what it showed beyond the model, or by what differences were shrunk because it showed less, as far as the
              shadow serves rows differently
    meter     watts above idle may be off by the part u, which is common to both sides: u x grams saved

All arrays end in [joules, grams].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clover.accounting import Share

Floats = NDArray[np.float64]

_VERIFIED = 0.5
"""By what part joules a row may be off, at most, to count as verified."""
_SMALL = 0.05
"""Of what a shadow uses more or less, the part of a variant that does not matter."""


def _none() -> Floats:
    return np.zeros(2)


@dataclass
class Overheads:
    """What a window used besides active energy, as [joules, grams]."""

    idle: Floats
    unowned: Floats
    front_end: Floats
    control: Floats

    @classmethod
    def none(cls) -> Overheads:
        """Return no overheads."""
        return cls(_none(), _none(), _none(), _none())

    def add(self, other: Overheads) -> None:
        """Add the overheads of `other`."""
        self.idle = self.idle + other.idle
        self.unowned = self.unowned + other.unowned
        self.front_end = self.front_end + other.front_end
        self.control = self.control + other.control


@dataclass
class Window:
    """Windows at one load, and what served them.  `right`: rows x accuracy; `active`: as metered; `own`: as modelled,
    by [variant]; `weights`: by what modelled joules a row are multiplied to become joules and grams."""

    overheads: Overheads
    rows: int
    right: float
    active: Floats
    own: Floats
    weights: Floats

    def add(self, other: Window) -> None:
        """Add windows at the same load."""
        self.overheads.add(other.overheads)
        self.rows += other.rows
        self.right += other.right
        self.active = self.active + other.active
        self.own = self.own + other.own
        self.weights = self.weights + other.weights


class Errors(NamedTuple):
    """Halves of the interval of grams saved, by cause."""

    profile: float
    ratio: float
    meter: float

    @property
    def total(self) -> float:
        """All errors together."""
        return math.hypot(self.profile, self.ratio, self.meter)

    @property
    def model(self) -> float:
        """The errors that change the saved part, and not only its size."""
        return math.hypot(self.profile, self.ratio)


@dataclass
class ComparisonSums:
    """What one comparison covers, as [joules, grams].  `active`, `own`: as in `Window`; `change`: what the shadow uses
    more by the model, by [variant]; `beyond`: rows at loads that the shadow could not have served."""

    change: Floats
    rows: int = 0
    right: float = 0.0
    shadow_right: float = 0.0
    beyond: int = 0

    def __post_init__(self) -> None:
        self.active, self.own = _none(), np.zeros_like(self.change)
        self.overheads = Overheads.none()

    @classmethod
    def over(cls, variants: int) -> ComparisonSums:
        """Return empty sums over so many variants."""
        return cls(np.zeros((variants, 2)))

    def serve(self, window: Window) -> None:
        """Add what windows used and answered."""
        self.overheads.add(window.overheads)
        self.rows += window.rows
        self.right += window.right
        self.active = self.active + window.active
        self.own = self.own + window.own

    def add_window(self, window: Window, accuracy: float, joules: Floats, *, beyond: bool = False) -> None:
        """Add windows in which the shadow has `accuracy` (percent) and uses `joules` a row by [variant]."""
        self.serve(window)
        self.shadow_right += window.rows * accuracy
        self.change = self.change + np.outer(joules, window.weights) - window.own
        self.beyond += window.rows if beyond else 0

    def restate(self, times: Floats) -> None:
        """Multiply the joules a row that were used so far by these factors, by [variant]."""
        self.change = self.change * times[:, None]
        self.own = self.own * times[:, None]

    @property
    def ratio(self) -> float:
        """What differences of the model are multiplied by: measured over modelled active energy, at most 1."""
        modelled_j = float(self.own[:, 0].sum())
        return min(float(self.active[0]) / modelled_j, 1.0) if modelled_j > 0.0 else 1.0

    @property
    def served(self) -> Floats:
        """What was used."""
        used = self.overheads
        used_here: Floats = self.active + used.idle + used.unowned + used.front_end + used.control
        return used_here

    @property
    def shadow(self) -> Floats:
        """What the shadow would have used."""
        used = self.overheads
        would_use: Floats = self.shadow_active + used.idle + used.unowned + used.front_end
        return would_use

    @property
    def shadow_active(self) -> Floats:
        """Active energy of the shadow's workers."""
        active: Floats = self.active + self.ratio * self.change.sum(axis=0)
        return active

    def verified(self, off: Floats) -> bool:
        """Return whether the shadow was verified here: whether joules a row of what it uses more or less are known
        better than profiles are in general."""
        more = np.abs(self.change[:, 0])
        return bool((off[more > _SMALL * more.sum()] <= _VERIFIED).all())

    def errors(self, off: Floats, meter_error: float) -> Errors:
        """Return how far off the grams saved may be, if joules a row of each variant may be off by the parts `off`, by
        [variant], and watts of the meter by `meter_error`."""
        ratio = self.ratio
        more, own_g = ratio * self.change[:, 1], float(self.own[:, 1].sum())
        both = 2.0 * ratio * own_g + float(more.sum())
        unlike = min(float(np.abs(more).sum()) / both, 1.0) if both > 0.0 else 0.0
        beyond = max(float(self.active[1]) - own_g, 0.0) * unlike
        shrunk = (1.0 - ratio) * abs(float(self.change[:, 1].sum()))
        return Errors(
            profile=float(np.sqrt(np.square(off * more).sum())),
            ratio=math.hypot(beyond, shrunk),
            meter=meter_error * abs(float((self.shadow - self.served)[1])),
        )


def together(errors: Iterable[Errors]) -> Errors:
    """Return the errors of several families together: errors of profiles are independent, the meter's is common."""
    known = list(errors)
    return Errors(
        profile=math.hypot(*(error.profile for error in known)),
        ratio=math.hypot(*(error.ratio for error in known)),
        meter=sum(error.meter for error in known),
    )


def energy_of(*shares: Share) -> Floats:
    """Return joules and grams of `shares`, active and idle."""
    return np.array([sum(share.total_j for share in shares), sum(share.total_g for share in shares)])


class Spectrum:
    """The best fixed mix of every accuracy on a grid, summed over windows: [accuracy], and changes [accuracy, variant,
    joules or grams]."""

    def __init__(self, asked: Floats, variants: int) -> None:
        self.asked = asked
        self.right = np.zeros(len(asked))
        self.change = np.zeros((len(asked), variants, 2))

    @classmethod
    def over(cls, accuracy: Sequence[float], points: int = 256) -> Spectrum:
        """Return an empty spectrum for variants of these accuracies (percent), which are points of its grid."""
        return cls(np.unique([*np.linspace(min(accuracy), max(accuracy), points), *accuracy]), len(accuracy))

    def add(self, window: Window, corners: Floats, joules: Floats) -> None:
        """Add windows; `corners` are the accuracies at the corners of their frontier, `joules` those of a row there by
        [variant]."""
        self.right += window.rows * np.clip(self.asked, corners[0], corners[-1])
        each = np.array([np.interp(self.asked, corners, column) for column in joules.T]).T
        self.change += each[:, :, None] * window.weights - window.own

    def restate(self, times: Floats) -> None:
        """Multiply the joules a row that were used so far by these factors, by [variant]."""
        self.change *= times[:, None]

    def at(self, right: float) -> tuple[float, Floats]:
        """Return rows x accuracy and changes by [variant] of the mix that reached `right`, or came nearest to it."""
        reached = min(max(right, float(self.right[0])), float(self.right[-1]))
        # `right` rises with the accuracy asked for, but not where that is beyond the frontier: any of those will do.
        above = min(int(np.searchsorted(self.right, reached)), len(self.right) - 1)
        below = max(above - 1, 0)
        room = float(self.right[above] - self.right[below])
        part = (reached - float(self.right[below])) / room if room > 0.0 else 0.0
        return reached, self.change[below] + part * (self.change[above] - self.change[below])
