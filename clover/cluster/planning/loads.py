"""Rows for devices whose modes are chosen: how many of each stream go to which group and mode, at the least grams.

With modes fixed, families no longer compete.  So each family is one small linear program, bounded by what each mode's
devices can take, all rows of each stream, and the family's mean accuracy.  The search for better modes solves hundreds
of these, which differ by one device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clover.cluster.planning.arrays import Flags, Floats, ProblemArrays
from clover.cluster.planning.simplex import Columns, LinearProgram

_UNSERVED = 1000.0
_FEWEST = 0.01
"""Rows/s below which rows are no dearer: prices that are further apart would make programs inexact."""


@dataclass(frozen=True)
class FamilyLoads:
    """Rows/s by group, mode and stream (of one family), rows/s of each that found no room, and the prices.

    `short`: points by which the floor is missed, times rows/s, which the search for better modes allows at a price.
    `cost`: grams/h and the prices.  `grams`: grams/h of the rows alone.  `prices`: grams/h for one more row/s of each
    stream; `point`: for a point of accuracy on one row/s."""

    rows: dict[tuple[int, int, int], float]
    unserved: dict[int, float]
    short: float
    grams: float
    cost: float
    prices: dict[int, float]
    point: float


class FamilyProgram:
    """The loads of a family on devices of some groups and modes (`bins`): only how many of each there are changes, so
    that the next loads are a few pivots from the last ones."""

    def __init__(
        self,
        instance: ProblemArrays,
        family: int,
        bins: Iterable[tuple[int, int]],
        rates: Floats,
        opened: Sequence[Flags],
        *,
        strict: bool = False,
    ) -> None:
        """Write the program; `rates`: rows/s by stream; `opened[stream][region, mode]`: what each may use.

        What cannot be served costs a price, and so does accuracy that is missing, so that prices say which devices
        would help; `strict`: no accuracy may be missing."""
        self.bins, self.opened = list(bins), opened
        self._instance, self._rates = instance, rates
        streams = self._streams = [at for at, stream in enumerate(instance.streams) if stream.family == family]
        points_row = len(streams)
        dear = _UNSERVED * price_scale(instance)
        worst = max((abs(mode.accuracy - float(instance.floors[family])) for mode in instance.modes), default=1.0)
        columns = Columns()
        short = [columns.add(dear, [(at, 1.0)]) for at in range(len(streams))]
        surplus = columns.add(0.0, [(points_row, -1.0)])
        self._missed = columns.add(dear / max(worst, 1e-3), [(points_row, 1.0)], 0.0 if strict else np.inf)
        free = [columns.add(0.0, [(points_row + 1 + at, 1.0)]) for at in range(len(self.bins))]
        self._first = columns.count
        self._names: list[tuple[int, int, int]] = []
        for at, (g, m) in enumerate(self.bins):
            mode, region, grams = instance.modes[m], instance.groups[g].region, float(instance.grams[g, m])
            points = mode.accuracy - float(instance.floors[family])
            for place, stream in enumerate(streams):
                if opened[stream][region, m]:
                    columns.add(grams, [(place, 1.0), (points_row, points), (points_row + 1 + at, 1.0)])
                    self._names.append((g, m, stream))
        self._grams = np.array([float(instance.grams[g, m]) for g, m, _ in self._names])
        right = [*(float(rates[stream]) for stream in streams), 0.0, *[0.0] * len(self.bins)]
        self._program = LinearProgram(columns, right, [*short, surplus, *free])
        self._solved = False

    def covers(self, bins: Iterable[tuple[int, int]], opened: Sequence[Flags]) -> bool:
        """Say whether devices in `bins`, with what is `opened`, can be loaded by this program."""
        return opened is self.opened and set(bins) <= set(self.bins)

    def load(self, counts: Floats) -> FamilyLoads:
        """Return the cheapest loads on `counts` devices by group and mode."""
        program, streams = self._program, self._streams
        for at, (g, m) in enumerate(self.bins):
            program.set_right(len(streams) + 1 + at, float(counts[g, m]) * self._instance.modes[m].rate)
        if self._solved:
            program.resolve()
        else:
            program.solve()
        self._solved = True
        x, duals = program.x, program.duals
        rates = x[self._first :]
        total = float(self._rates[streams].sum())
        some = np.flatnonzero(rates > 1e-9 * max(1.0, total))
        rows = {self._names[at]: float(rates[at]) for at in some if counts[self._names[at][:2]] > 0.5}
        least = 1e-7 * max(1.0, total)
        return FamilyLoads(
            rows=rows,
            unserved={stream: float(x[at]) for at, stream in enumerate(streams) if x[at] > least},
            short=float(x[self._missed]) if x[self._missed] > least else 0.0,
            cost=program.objective,
            grams=float(self._grams @ rates),
            prices={stream: float(duals[at]) for at, stream in enumerate(streams)},
            point=max(0.0, float(duals[len(streams)])),
        )


def price_scale(instance: ProblemArrays) -> float:
    """Return about the most grams/h that one row/s can cost, idle watts included: all of a node's, if it is awake for
    a few rows alone."""
    idle = max((group.idle_g_h for group in instance.groups), default=0.0)
    fewest = min((stream.rate for stream in instance.streams if stream.rate > 0.0), default=1.0)
    slowest = min((mode.rate for mode in instance.modes), default=1.0)
    slowest = min(slowest, max(fewest, _FEWEST))
    return max(1e-6, float(instance.grams.max(initial=0.0)) + idle / slowest)
