"""What may be lost: a node or a region, after which the nodes that are awake must still keep every promise.

**The reserve is counted as a fluid.**  After a loss the nodes that are left divide their devices' time between families
as they need to (their controllers plan again within seconds), and each device keeps a family's accuracy floor by
itself, with the best mix of its modes: its `spare rate`.  A stream that could only be answered by what is lost cannot
be kept by any reserve; it is left out of that loss, and the plan says so.

**What cannot be kept** is found before anything is planned, loss by loss, with all nodes awake (`kept_with_all`): more
nodes never make a reserve smaller.  The loss of a node is checked for each shape of nodes by itself.  The average over
all losses, which the relaxation uses, may be kept although no single loss is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from clover.cluster.planning.arrays import EPSILON, Flags, Floats, ProblemArrays, Shape
from clover.cluster.planning.simplex import Columns, LinearProgram

_CONFINED = 8  # sets of regions that have a loss of their own in the relaxation, at most


@dataclass(frozen=True)
class Loss:
    """Something that may be lost: a region (its index), or, if that is None, any one node of the regions `within`.

    `rates`: rows/s of each stream that must still be served, 0 of those that nothing is left for.  `counted`: the
    streams that the loss is about.  `after`: by the shape of the node that is lost, the rows/s to be served then; they
    are more than `rates` if there are streams that other nodes cannot answer, or keep less than this one."""

    region: int | None
    rates: Floats
    within: tuple[int, ...] = ()
    counted: tuple[int, ...] = ()
    after: Mapping[Shape, Floats] = field(default_factory=dict)

    def lowered(self, most: Floats) -> Loss:
        """Return the loss with no more rows/s of each stream than `most`."""
        return replace(
            self,
            rates=np.maximum(0.0, np.minimum(self.rates, most)),
            after={shape: np.maximum(0.0, np.minimum(rates, most)) for shape, rates in self.after.items()},
        )

    def cases(self, devices: Floats, shapes: Iterable[Shape], kinds: Sequence[str]) -> list[Case]:
        """Return what the loss may come to of awake `devices` (by region and kind) in nodes of some shapes."""
        if self.region is not None:
            left = devices.copy()
            left[self.region] = 0.0
            return [(None, self.rates, left)]
        found: list[Case] = []
        for shape in shapes:
            region, taken = shape
            left = devices.copy()
            for kind, many in taken:
                left[region, kinds.index(kind)] -= many
            found.append((shape, self.after.get(shape, self.rates), left))
        return found or [(None, self.rates, devices)]


Case = tuple[Shape | None, Floats, Floats]
"""The shape of the node that is lost (None: no node), the rows/s by stream to be served then, and the devices left."""


def spare_rates(instance: ProblemArrays) -> Floats:
    """Return the most rows/s of each stream that a device gives at the accuracy floor: by region, kind and stream."""
    spare = np.zeros((len(instance.regions), len(instance.kinds), len(instance.streams)))
    for number, stream in enumerate(instance.streams):
        floor = instance.floors[stream.family]
        for region in range(len(instance.regions)):
            for at, kind in enumerate(instance.kinds):
                usable = [
                    (mode.rate, mode.accuracy - floor)
                    for mode, allowed in zip(instance.modes, stream.allowed[region], strict=True)
                    if allowed and mode.kind == kind
                ]
                spare[region, at, number] = _fastest(usable)
    return spare


def _fastest(usable: Sequence[tuple[float, float]]) -> float:
    """Return the most rows/s of a device that divides its time between two of the modes (rate, points above floor)."""
    above = [(rate, points) for rate, points in usable if points >= -EPSILON]
    below = [(rate, points) for rate, points in usable if points < -EPSILON]
    best = max((rate for rate, _ in above), default=0.0)
    for rate, points in above:
        for other, missing in below:
            part = rate * max(points, 0.0) / (rate * max(points, 0.0) - other * missing)
            best = max(best, part * other + (1.0 - part) * rate)
    return best


def losses(instance: ProblemArrays, spare: Floats) -> tuple[Loss, ...]:
    """Return what the problem wants to survive, each with the rows that can be kept at all."""
    survive = instance.problem.survive
    if survive == "none" or not instance.streams:
        return ()
    rates = np.array([stream.rate for stream in instance.streams])
    nodes = np.zeros((len(instance.regions), len(instance.streams)))
    able_of: dict[Shape, Flags] = {}
    for group in instance.groups:
        kinds = [instance.kinds.index(kind) for kind, count in group.devices.items() if count]
        able = able_of[group.shape] = np.asarray((spare[group.region, kinds] > 0.0).any(axis=0))
        nodes[group.region] += group.size * able
    everywhere, all_streams = tuple(range(len(instance.regions))), tuple(range(len(instance.streams)))
    able_nodes = np.round(nodes.sum(axis=0))
    # Rows that one node alone can answer have to be served after the loss of every other one.
    after = {shape: np.where(able_nodes > able, rates, 0.0) for shape, able in able_of.items()}
    found = [Loss(None, np.where(able_nodes > 1, rates, 0.0), everywhere, all_streams, after)]
    if survive == "region":
        for region in everywhere:
            if any(group.region == region for group in instance.groups):
                left = np.where(nodes.sum(axis=0) - nodes[region] > 0, rates, 0.0)
                found.append(Loss(region, left, everywhere, all_streams))
    return tuple(found)


def confined(instance: ProblemArrays, spare: Floats, wanted: Sequence[Loss]) -> tuple[Loss, ...]:
    """Return what the loss of any one node means for rows that cannot go everywhere.

    If streams have to be answered within some regions, a node is awake there, and of the average over the losses of one
    of these, a node less is left there.  The loss of any node of the cluster says less: the average may take it
    elsewhere."""
    anywhere = next((loss for loss in wanted if loss.region is None and loss.rates.any()), None)
    if anywhere is None:
        return ()
    reach = [
        tuple(region for region in range(len(instance.regions)) if spare[region, :, stream].any())
        for stream in range(len(instance.streams))
    ]
    sets = {item for stream, item in enumerate(reach) if anywhere.rates[stream] > 0.0}
    populated = {group.region for group in instance.groups}
    confined_losses = []
    for within in sorted(item for item in sets if not populated <= set(item)):
        counted = tuple(stream for stream, item in enumerate(reach) if set(item) <= set(within))
        rates = np.zeros(len(reach))
        rates[list(counted)] = anywhere.rates[list(counted)]
        confined_losses.append(Loss(None, rates, within, counted))
    confined_losses.sort(key=lambda loss: -float(loss.rates.sum()) / len(loss.within))
    return tuple(confined_losses[:_CONFINED])


class Reserve:
    """Whether the devices that are left after a loss are enough: a linear program whose right-hand sides change."""

    def __init__(self, instance: ProblemArrays, spare: Floats) -> None:
        self._spare, self._kinds = spare, instance.kinds
        self._streams = range(len(instance.streams))
        count = len(instance.streams)
        regions, kinds = spare.shape[:2]
        columns = Columns()
        short = self._short = [columns.add(1.0, [(stream, 1.0)]) for stream in self._streams]
        self._rows = {(r, k): count + r * kinds + k for r in range(regions) for k in range(kinds)}
        free = [columns.add(0.0, [(row, 1.0)]) for row in self._rows.values()]
        for (region, kind), row in self._rows.items():
            for stream in self._streams:
                if spare[region, kind, stream] > 0.0:
                    columns.add(0.0, [(stream, float(spare[region, kind, stream])), (row, 1.0)])
        self._program = LinearProgram(columns, [0.0] * (count + regions * kinds), [*short, *free])
        # One pool: every stream may use every device of one kind alike, and a sum says what the program would.
        self._pooled = kinds == 1 and bool((spare > 0.0).all()) and bool((spare == spare[:1]).all())

    def lacking(self, rates: Floats, devices: Floats) -> Floats:
        """Return the rows/s of each stream that `devices` (by region and kind) cannot keep, 0 if all are kept."""
        total = self.shortage(rates, devices)[0]
        if not total:
            return np.zeros_like(rates)
        if self._pooled:
            needed = float((rates / self._spare[0, 0]).sum())
            return rates * (1.0 - float(devices.sum()) / needed)
        return np.asarray(self._program.x[self._short])

    def shortage(self, rates: Floats, devices: Floats) -> tuple[float, Floats]:
        """Return the rows/s that `devices` (by region and kind) cannot keep, and the rows/s that one more device of
        each place would add (to first order)."""
        if self._pooled:
            need = float((rates / self._spare[0, 0]).sum())
            lacking = need - float(devices.sum())
            if lacking <= EPSILON * max(1.0, need):
                return 0.0, np.zeros_like(devices)
            rate = float(self._spare[0, 0].min())
            return lacking * rate, np.full_like(devices, rate)
        for stream in self._streams:
            self._program.set_right(stream, float(rates[stream]))
        for place, row in self._rows.items():
            self._program.set_right(row, float(devices[place]))
        found = self._program.resolve()
        duals = self._program.duals
        worth = np.zeros_like(devices)
        for place, row in self._rows.items():
            worth[place] = max(0.0, -float(duals[row]))
        return (found if found > 1e-7 * max(1.0, float(rates.sum())) else 0.0), worth


def kept_with_all(
    instance: ProblemArrays, reserve: Reserve, wanted: Sequence[Loss], served: Floats
) -> tuple[tuple[Loss, ...], list[float]]:
    """Return the losses with the rows/s that all nodes awake can keep, of those that are `served`, and the rows/s that
    each of them lacks at worst."""
    devices = np.zeros((len(instance.regions), len(instance.kinds)))
    shapes: dict[Shape, None] = {}
    for group in instance.groups:
        for kind, many in group.devices.items():
            devices[group.region, instance.kinds.index(kind)] += group.size * many
        if group.size:
            shapes[group.shape] = None
    kept, lacking = [], []
    for asked in wanted:
        loss, worst = asked.lowered(served), 0.0
        after, least = dict(loss.after), loss.rates
        for shape, rates, left in loss.cases(devices, shapes, instance.kinds):
            short = reserve.lacking(rates, left)
            if not short.any():
                continue
            worst = max(worst, float(short.sum()))
            # A little less than all that can be kept, so that rounding does not make it too much.
            left_over = np.maximum(0.0, rates - short * (1.0 + 1e-9))
            least = np.minimum(least, left_over)
            if shape is not None:
                after[shape] = left_over
        kept.append(replace(loss, rates=least, after=after))
        lacking.append(worst)
    return tuple(kept), lacking
