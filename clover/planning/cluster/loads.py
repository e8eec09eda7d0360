"""Rows for devices whose modes are chosen: how many of each stream go to which group and mode, at the least grams.

With modes fixed, families no longer compete, so this is one small linear program a family: what each mode's devices can
take, all rows of each stream, and the family's mean accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clover.planning.cluster.arrays import Flags, Floats, ProblemArrays
from clover.planning.cluster.simplex import Columns, LinearProgram

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


def load_family(
    instance: ProblemArrays,
    family: int,
    counts: Floats,
    rates: Floats,
    opened: Sequence[Flags],
    *,
    strict: bool = False,
) -> FamilyLoads:
    """Return the cheapest loads of a family on `counts` devices by group and mode; `opened[stream][region, mode]`.

    What cannot be served costs a price, and so does accuracy that is missing, so that prices say which devices would
    help; `strict`: no accuracy may be missing."""
    streams = [number for number, stream in enumerate(instance.streams) if stream.family == family]
    bins = [(g, m) for g, m in np.argwhere(counts > 0.0).tolist() if instance.modes[m].family == family]
    dear = _UNSERVED * price_scale(instance)
    columns = Columns()
    short = [columns.add(dear, [(at, 1.0)]) for at in range(len(streams))]
    surplus = columns.add(0.0, [(len(streams), -1.0)])
    first = len(streams) + 1
    worst = max((abs(mode.accuracy - float(instance.floors[family])) for mode in instance.modes), default=1.0)
    missed = columns.add(dear / max(worst, 1e-3), [(len(streams), 1.0)], 0.0 if strict else np.inf)
    free = [columns.add(0.0, [(first + at, 1.0)]) for at in range(len(bins))]
    names: list[tuple[int, int, int]] = []
    start = columns.count
    right = [float(rates[stream]) for stream in streams] + [0.0]
    for at, (g, m) in enumerate(bins):
        mode = instance.modes[m]
        right.append(float(counts[g, m]) * mode.rate)
        points = mode.accuracy - float(instance.floors[family])
        for place, stream in enumerate(streams):
            if opened[stream][instance.groups[g].region, m]:
                grams = float(instance.grams[g, m])
                columns.add(grams, [(place, 1.0), (len(streams), points), (first + at, 1.0)])
                names.append((g, m, stream))
    program = LinearProgram(columns, right, [*short, surplus, *free])
    program.solve()
    x, duals = program.x, program.duals
    rows = {name: float(x[start + at]) for at, name in enumerate(names) if x[start + at] > 1e-9 * max(right)}
    least = 1e-7 * max(1.0, sum(right[: len(streams)]))
    return FamilyLoads(
        rows=rows,
        unserved={stream: float(x[at]) for at, stream in enumerate(streams) if x[at] > least},
        short=float(x[missed]) if x[missed] > least else 0.0,
        cost=program.objective,
        grams=sum(rate * float(instance.grams[g, m]) for (g, m, _), rate in rows.items()),
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
