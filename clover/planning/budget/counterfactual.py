"""What the same rows would have cost under BASE, and under the best fixed mix.

A saving is a difference to something that did not happen, which can only be modelled.  An error of the model must not
count as a saving.  So what *did* happen is put through the same model, and only the difference is taken from it:

    shadow = active joules of what served + rows x (E_shadow(rate) - E_served(rate)) x min(1, measured / modelled)

E is the joules a row of the queueing model at that rate; measured / modelled is of what served in the window.  Example:
100 rows used 10 J.  The model gives them 0.08 J a row, and BASE 0.20.  The meter showed more than the model (10 against
8 J), so the factor is 1 and the shadow is 10 + 100 x (0.20 - 0.08) = 22 J.  A server that runs BASE saves exactly
nothing, whatever its meter shows and whatever it is sent.

**Why the factor is at most 1.**  If the meter shows *less* than the model (requests of many rows, bursts and waits
make batches longer than the model assumes), differences shrink with it.  If it shows *more*, they do not grow, although
the ratio that receipts use would have them grow.  What the model misses is mostly what every batch costs beside it
(wake-ups, cold caches); the shadow would pay that once, and not in proportion.  So what a profile knows of it
(`wake_j`) is left out.  Measured on two shared cores at 300 rows/s: `small` used 4 to 7 times its profile, BASE 1.1 to
1.6 times.  BASE's shadow behind `small` was 0.84 to 1.02 times what BASE itself then used, that behind `large` 1.13
times; by proportion they would have been 3.7 to 4.5 and 1.9 times.

Hardware is equal: the same devices, awake all the time, so that idle joules are the same on both sides.

**BASE** is the best variant on whole devices, as the policy `base` runs it.  If more rows come than BASE can serve,
they are counted at its longest batches, where it is most frugal, and marked as too many (`Mix.holds`).

**A fixed mix** keeps variants, shares and layout whatever the grid does; only load may change it, as in the policy
`static`.  The best fixed mixes are the plans of the frontier (`planning.budget.frontiers`), within SLO, floor and
utilisation limit, and every point on a straight line between two of them.  A mix of one configuration is hardly ever
below that line, so the line understates a saving if anything.  Neither side waits for batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clover.planning.model.frontier import FrontierPoint, hull
from clover.planning.model.problem import LEAST_RATE, accuracies, services_of, whole
from clover.planning.model.queueing import Lane, Service, lane_of
from clover.quantities import slice_words
from clover.types import Configuration, DeviceShape, FamilyProfile, GroupCount, Record

Floats = NDArray[np.float64]

_RATE_STEP = math.log(1.03)  # as the planner's; joules of a row change by less than that over one
_SHARE_STEP = 20.0


class Fixed(Record, frozen=True, kw_only=True):
    """A configuration and the shares of its rows, by variant."""

    configuration: Configuration
    shares: dict[str, float]


@dataclass(frozen=True)
class Mix:
    """Lanes with their shares of the rows, and the accuracy (percent) these have.  `variants`: of each lane."""

    accuracy: float
    variants: tuple[str, ...]
    lanes: tuple[tuple[Lane, float], ...]
    words: str = ""

    def joules(self, rate: float) -> float:
        """Return active joules of a row at `rate` rows a second; beyond what a lane can serve, those of its longest
        batch."""
        return sum(self.by_variant(rate).values())

    def by_variant(self, rate: float) -> dict[str, float]:
        """Return the joules of a row at `rate`, by the variant that uses them."""
        each = zip(self.variants, self.lanes, strict=True)
        return {variant: share * lane_joules(lane, rate * share, share) for variant, (lane, share) in each}

    def holds(self, rate: float) -> bool:
        """Return whether every lane can serve its part of `rate`."""
        return all(rate * share <= lane.capacity for lane, share in self.lanes)


def lane_joules(lane: Lane, rate: float, share: float) -> float:
    """Return active joules of a row of `lane`, at the nearest of rates 3 % apart: remembered."""
    step = round(math.log(max(rate, LEAST_RATE)) / _RATE_STEP)
    return _lane_joules(lane, step, max(round(share * _SHARE_STEP), 1))


@lru_cache(maxsize=4096)
def _lane_joules(lane: Lane, step: int, share: int) -> float:
    return lane.energy_j(math.exp(step * _RATE_STEP), share / _SHARE_STEP)


def _services(profile: FamilyProfile, share: float) -> dict[tuple[str, str], Service]:
    """Return how each (variant, profile) serves, without what a batch costs beside its model."""
    return {key: replace(service, wake_j=0.0) for key, service in services_of(profile, share).items()}


def lanes_of(profile: FamilyProfile, configuration: Configuration, share: float = 1.0) -> dict[str, Lane]:
    """Return the lane of each variant of `configuration`; what was never measured is left out.  A worker that shares
    its time counts as one in the lane of each of its variants: joules are then those of batches that wait for no other
    variant, which is a little too much."""
    services, accuracy = _services(profile, share), accuracies(profile)
    groups: dict[str, list[tuple[Service, int]]] = {}
    for group in configuration:
        for variant in group.variants:
            service = services.get((variant, group.profile))
            if service is not None and variant in accuracy:
                groups.setdefault(variant, []).append((service, group.count))
    return {variant: lane_of(tuple(members)) for variant, members in groups.items()}


def mix_of(
    lanes: Mapping[str, Lane],
    shares: Mapping[str, float],
    accuracy: Mapping[str, float],
    *,
    rows: float = 0.0,
    right: float = 0.0,
) -> Mix | None:
    """Return the mix of `shares` (which need not sum to 1) on `lanes`; None if a variant that has rows has no lane.

    In a cascade a row counts in several lanes: `rows` is then the number of all rows answered, and `right` (rows x
    percent) what their accuracy is above that of the shares by themselves."""
    parts = {variant: share for variant, share in shares.items() if share > 0.0}
    total = rows or sum(parts.values())
    if not parts or not parts.keys() <= lanes.keys():
        return None
    return Mix(
        accuracy=(sum(share * accuracy[variant] for variant, share in parts.items()) + right) / total,
        variants=tuple(parts),
        lanes=tuple((lanes[variant], share / total) for variant, share in parts.items()),
    )


def base(profile: FamilyProfile, devices: Sequence[DeviceShape], share: float = 1.0) -> Mix | None:
    """Return BASE on `devices`; None if its variant was not measured on them as a whole, or there are none."""
    services, accuracy = _services(profile, share), accuracies(profile)
    known = {item.profile for device in devices for layout in device.layouts for item in layout}
    least: dict[str, float] = {}
    for (variant, name), service in services.items():
        if variant in accuracy and name in known:
            least[variant] = min(service.least_energy_j, least.get(variant, math.inf))
    if not least:
        return None
    best = min(least, key=lambda variant: (-accuracy[variant], least[variant], variant))
    counts: dict[str, int] = {}
    for device in devices:
        for item in whole(device):
            counts[item.profile] = counts.get(item.profile, 0) + 1
    if not counts or any((best, name) not in services for name in counts):
        return None
    configuration = tuple(GroupCount(variant=best, profile=name, count=count) for name, count in sorted(counts.items()))
    lane = lane_of(tuple((services[best, group.profile], group.count) for group in configuration))
    return Mix(accuracy=accuracy[best], variants=(best,), lanes=((lane, 1.0),), words=places(configuration))


def places(configuration: Configuration) -> str:
    """Return the workers of one variant in words: "large on 2 x 2 cores"."""
    counts = " + ".join(f"{group.count} x {slice_words(group.profile)}" for group in configuration)
    return f"{configuration[0].variant} on {counts}"


def mix_from(profile: FamilyProfile, fixed: Fixed, share: float = 1.0) -> Mix | None:
    """Return the mix that the solver found; None if one of its variants was never measured."""
    return mix_of(lanes_of(profile, fixed.configuration, share), fixed.shares, accuracies(profile))


class Frontier:
    """The best fixed mixes at some rate, and their joules at any rate near it."""

    def __init__(self, mixes: Sequence[Mix], variants: Sequence[str]) -> None:
        self._mixes = tuple(mixes)
        self._variants = tuple(variants)
        self._hulls: dict[int, tuple[Floats, Floats]] = {}

    @classmethod
    def from_fixed(cls, profile: FamilyProfile, fixed: Sequence[Fixed], share: float = 1.0) -> Frontier:
        """Return the frontier of the mixes that the solver found."""
        made = [mix_from(profile, item, share) for item in fixed]
        return cls([mix for mix in made if mix is not None], tuple(accuracies(profile)))

    def __bool__(self) -> bool:
        return bool(self._mixes)

    def hull(self, rate: float) -> tuple[Floats, Floats]:
        """Return accuracies (percent, ascending) of the corners at `rate`, and joules a row of each by [variant]."""
        step = round(math.log(max(rate, LEAST_RATE)) / _RATE_STEP)
        if step not in self._hulls:
            made = {FrontierPoint(accuracy=mix.accuracy, grams=mix.joules(rate)): mix for mix in self._mixes}
            corners = hull(tuple(made))
            joules = [in_order(made[point], self._variants, rate) for point in corners]
            self._hulls[step] = np.array([point.accuracy for point in corners]), np.array(joules)
        return self._hulls[step]


def in_order(mix: Mix, variants: Sequence[str], rate: float) -> Floats:
    """Return joules a row of `mix` at `rate`, by [variant]."""
    own = mix.by_variant(rate)
    return np.array([own.get(variant, 0.0) for variant in variants])
