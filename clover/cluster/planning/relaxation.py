"""The problem with nodes and devices divisible: what a plan is rounded from, and the bound on all plans.

Variables: how many nodes of each group are awake; how many of their devices are in which mode for which stream; and,
for each loss to survive, how the devices that are left would divide their time (`reserve`).  Constraints: every row is
served, the mean accuracy of a family's rows is at least its floor, and only devices of awake nodes are used.  Rows
without room and a reserve that cannot be kept are allowed at a price above all others, so there is always a solution.

**Prices.**  The duals are prices: grams/h for one more row/s of a stream (`lambda`), for a point of a family's accuracy
on one row/s (`mu`), and for a device after a loss (`nu`).  At *any* such prices

    sum of lambda x rows  +  what the reserve is worth  -  sum over nodes of max(0, value of its devices - idle grams)

(and, where at least or at most so many nodes are to be awake, the price of a node times that many, which is then a part
of each node's value) is at most what every plan emits.  This is the Lagrangian relaxation, which splits into nodes, and
these into devices, whose value is that of their best mode.  `bound` computes it from the duals, for each node with its
own correction; rounding errors of the program can only make it lower.

**The loss of any one node** is in the program as the average over all losses: of a plan that survives each, the average
of what is left serves all rows with one node less in sum, lost where that costs least.  The same
holds within the regions that some streams cannot leave (`reserve.confined`).  That is exact if nodes are alike and
regions too, and a little less than asked for if they are not; `rounding` checks each loss by itself.

Source: A. M. Geoffrion, Lagrangean relaxation for integer programming (1974).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clover.cluster.planning.arrays import Flags, Floats, ProblemArrays
from clover.cluster.planning.loads import price_scale
from clover.cluster.planning.reserve import Loss
from clover.cluster.planning.simplex import Columns, LinearProgram

_UNSERVED, _UNSPARED = 1000.0, 50.0  # prices of what cannot be had, in multiples of the most that a row may cost


class ClusterRelaxation:
    """The linear program of an instance, solved, to be solved again with nodes fixed or modes closed."""

    def __init__(
        self, instance: ProblemArrays, spare: Floats, losses: Sequence[Loss], rates: Floats, *, counted: bool = False
    ) -> None:
        """Write the program and solve it; `counted`: with variables for how many devices of a group are in a mode,
        whatever streams they answer, and how many of a kind serve a family, so that whole ones can be asked for
        (`exact`)."""
        self._instance, self._spare, self._losses, self._rates = instance, spare, losses, rates
        streams, families, groups = len(instance.streams), len(instance.families), instance.groups
        self._device_rows = {
            (g, kind): streams + families + at
            for at, (g, kind) in enumerate((g, kind) for g, group in enumerate(groups) for kind in group.devices)
        }
        # Nodes that are alike to the bound are counted together too: those of a region, and all.
        where = np.array([group.region for group in groups], dtype=np.int64)
        self.together = [np.flatnonzero(where == at) for at in range(len(instance.regions))] + [np.arange(len(groups))]
        self._together_rows = [streams + families + len(self._device_rows) + at for at in range(len(self.together))]
        first = self._together_rows[-1] + 1
        places = [
            (g, m)
            for g, group in enumerate(groups)
            for m, mode in enumerate(instance.modes)
            if mode.kind in group.devices
        ]
        self._count_rows = {place: first + at for at, place in enumerate(places if counted else ())}
        rows = first + len(self._count_rows)
        parts = dict.fromkeys((g, instance.modes[m].kind, instance.modes[m].family) for g, m in self._count_rows)
        part_rows = {part: rows + at for at, part in enumerate(parts)}
        rows += len(part_rows)
        self.counts: dict[tuple[int, int], int] = {}
        self.parts: dict[tuple[int, str, int], int] = {}
        dear = self._dear()
        columns, right, basis = Columns(), [*map(float, rates), *[0.0] * (rows - streams)], []
        self.unserved = [columns.add(_UNSERVED * dear, [(stream, 1.0)]) for stream in range(streams)]
        basis += self.unserved
        basis += [columns.add(0.0, [(streams + family, -1.0)]) for family in range(families)]
        basis += [columns.add(0.0, [(row, 1.0)]) for row in self._device_rows.values()]
        self.sizes = [float(sum(groups[g].size for g in members)) for members in self.together]
        self.sums = [
            columns.add(0.0, [(row, -1.0)], size) for row, size in zip(self._together_rows, self.sizes, strict=True)
        ]
        basis += self.sums
        basis += [columns.add(0.0, [(row, 1.0)]) for row in self._count_rows.values()]
        basis += [columns.add(0.0, [(row, 1.0)]) for row in part_rows.values()]
        for (g, m), row in self._count_rows.items():
            part = g, instance.modes[m].kind, instance.modes[m].family
            self.counts[g, m] = columns.add(0.0, [(row, -1.0), (part_rows[part], 1.0)])
        for (g, kind, family), row in part_rows.items():
            self.parts[g, kind, family] = columns.add(0.0, [(row, -1.0), (self._device_rows[g, kind], 1.0)])
        self._used: list[tuple[int, int, NDArray[np.int64], range]] = []  # stream, group, modes, columns
        self._write_modes(columns, streams)
        self.unspared: list[dict[int, int]] = []
        self._spare_rows: list[dict[tuple[int, int], int]] = []
        self._keep_rows: list[dict[int, int]] = []
        self._lost_rows: list[int | None] = []
        for loss in losses:
            rows = self._write_loss(columns, right, basis, loss, rows, _UNSPARED * dear)
        self.awake = [self._write_nodes(columns, g) for g in range(len(groups))]
        self.program = LinearProgram(columns, right, basis)
        self._free_sums()
        self.program.solve()
        points = max((abs(mode.accuracy - instance.floors[mode.family]) for mode in instance.modes), default=1.0)
        devices = sum(group.size * sum(group.devices.values()) for group in groups)
        # What no variable is above in any plan: rows/s, points on rows, devices.
        self.most = np.full(columns.count, max(1.0, float(rates.sum()) * max(1.0, points), devices))

    def _dear(self) -> float:
        """Return about the most grams/h that one more row/s can cost."""
        return price_scale(self._instance)

    def _write_modes(self, columns: Columns, streams: int) -> None:
        instance = self._instance
        rates = np.array([mode.rate for mode in instance.modes])
        points = np.array([mode.accuracy - instance.floors[mode.family] for mode in instance.modes])
        for number, stream in enumerate(instance.streams):
            for g, group in enumerate(instance.groups):
                here = np.array([kind in group.devices for kind in instance.kinds])[instance.mode_kind]
                modes = np.flatnonzero(stream.allowed[group.region] & here)
                if not len(modes):
                    continue
                devices = [
                    self._count_rows.get((g, int(mode)), self._device_rows[g, instance.modes[mode].kind])
                    for mode in modes
                ]
                family = np.full(len(modes), streams + stream.family)
                entries = np.column_stack([np.full(len(modes), number), family, np.array(devices)])
                values = np.column_stack([rates[modes], rates[modes] * points[modes], np.ones(len(modes))])
                span = columns.extend(instance.grams[g, modes] * rates[modes], entries, values)
                self._used.append((number, g, modes, span))

    def _write_loss(
        self, columns: Columns, right: list[float], basis: list[int], loss: Loss, rows: int, price: float
    ) -> int:
        """Append the program of one loss from row `rows` on; return the number of the next row."""
        instance = self._instance
        kept = {int(stream): rows + at for at, stream in enumerate(np.flatnonzero(loss.rates))}
        rows += len(kept)
        places = sorted(
            {
                (group.region, instance.kinds.index(kind))
                for group in instance.groups
                for kind in group.devices
                if group.region != loss.region and group.region in loss.within
            }
        )
        spare_rows = {place: rows + at for at, place in enumerate(places)}
        rows += len(spare_rows)
        right += [float(loss.rates[stream]) for stream in kept] + [0.0] * len(spare_rows)
        short = {stream: columns.add(price, [(row, 1.0)]) for stream, row in kept.items()}
        basis += [*short.values(), *(columns.add(0.0, [(row, 1.0)]) for row in spare_rows.values())]
        for place, row in spare_rows.items():
            for stream, kept_row in kept.items():
                rate = float(self._spare[place][stream])
                if rate > 0.0:
                    columns.add(0.0, [(kept_row, rate), (row, 1.0)])
        lost_row: int | None = None
        if loss.region is None:
            lost_row = rows
            rows += 1
            right.append(1.0)
            # A program begins with nothing awake, so that nothing can be lost: dearer than all rows that could be kept.
            basis.append(columns.add(price * max(1.0, float(loss.rates.sum())), [(lost_row, 1.0)]))
            shapes = {group.shape for group in instance.groups if group.region in loss.within}
            for region, devices in sorted(shapes):
                taken = [(spare_rows[region, instance.kinds.index(kind)], float(count)) for kind, count in devices]
                columns.add(0.0, [(lost_row, 1.0), *taken])
        self.unspared.append(short)
        self._spare_rows.append(spare_rows)
        self._keep_rows.append(kept)
        self._lost_rows.append(lost_row)
        return rows

    def _write_nodes(self, columns: Columns, g: int) -> int:
        instance, group = self._instance, self._instance.groups[g]
        entries = [(self._device_rows[g, kind], -float(count)) for kind, count in group.devices.items()]
        entries += [(row, 1.0) for row, members in zip(self._together_rows, self.together, strict=True) if g in members]
        for spare_rows in self._spare_rows:
            for kind, count in group.devices.items():
                row = spare_rows.get((group.region, instance.kinds.index(kind)))
                if row is not None:
                    entries.append((row, -float(count)))
        return columns.add(group.idle_g_h, entries, float(group.size))

    def close(self, region: int, closed: Flags, stream: int) -> None:
        """Let a stream no longer use the modes `closed` in a region; call `program.resolve` afterwards."""
        for number, g, modes, span in self._used:
            if number == stream and self._instance.groups[g].region == region:
                self.program.upper[np.arange(span.start, span.stop)[closed[modes]]] = 0.0

    def fix(self, nodes: Floats) -> float:
        """Return the least grams/h (and prices of what is missing) with as many nodes of each group awake."""
        for column, count in zip(self.awake, nodes, strict=True):
            self.program.lower[column] = self.program.upper[column] = count
        self._free_sums()
        return self.program.resolve()

    def _free_sums(self) -> None:
        """Limit what is counted together by nothing: at a bound, it would take a part of what a node is worth."""
        self.program.lower[self.sums] = -1.0
        self.program.upper[self.sums] = np.array(self.sizes) + 1.0

    def ask(self, rates: Floats, *, solve: bool = True) -> None:
        """Solve again for other rows/s of the streams, with nodes divisible again; or leave it to who solves next."""
        for stream, rate in enumerate(rates):
            self.program.set_right(stream, float(rate))
        for column, group in zip(self.awake, self._instance.groups, strict=True):
            self.program.lower[column], self.program.upper[column] = 0.0, float(group.size)
        self._free_sums()
        if solve:
            self.program.resolve()

    def nodes(self) -> Floats:
        """Return how many nodes of each group are awake."""
        return np.asarray(self.program.x[self.awake])

    def devices(self) -> Floats:
        """Return how many devices of each group are in each mode for each stream."""
        instance = self._instance
        found = np.zeros((len(instance.groups), len(instance.modes), len(instance.streams)))
        x = self.program.x
        for stream, g, modes, span in self._used:
            found[g, modes, stream] = x[span.start : span.stop]
        return found

    def missing(self) -> Floats:
        """Return the rows/s of each stream that are not served."""
        return np.asarray(self.program.x[self.unserved])

    def unkept(self) -> list[Floats]:
        """Return, for each loss, the rows/s of each stream that its reserve lacks."""
        x = self.program.x
        unkept_losses = []
        for short in self.unspared:
            lacking = np.zeros(len(self._instance.streams))
            for stream, column in short.items():
                lacking[stream] = x[column]
            unkept_losses.append(lacking)
        return unkept_losses

    def bound(self, opened: Sequence[Flags], limits: Mapping[int, tuple[float, float]]) -> float:
        """Return grams/h that no plan is below in which streams use the modes that are `opened` to them (each stream's
        `[region, mode]`) and groups, and after the last of them those `together`, have from and up to as many nodes
        awake as `limits` say, from the duals of the last solution."""
        instance, duals = self._instance, self.program.duals
        streams = len(instance.streams)
        # Below 0 if more rows would help: answered at high accuracy, they would let others be answered at a lower one.
        rows = duals[:streams]
        points = np.maximum(duals[streams : streams + len(instance.families)], 0.0)
        total = float(rows @ self._rates)
        spared = np.zeros((len(instance.regions), len(instance.kinds)))
        for number, loss in enumerate(self._losses):
            worth, gained = self._worth(number, loss, duals)
            spared += worth
            total += gained
        # Above 0 if fewer nodes would do than there must be, below 0 if more are wanted than there may be.
        apiece = np.zeros(len(instance.groups))
        for at, (row, members) in enumerate(zip(self._together_rows, self.together, strict=True)):
            low, high = limits.get(len(instance.groups) + at, (0.0, self.sizes[at]))
            total += float(duals[row]) * (low if duals[row] > 0.0 else high)
            apiece[members] += duals[row]
        best = np.full((len(instance.regions), len(instance.modes)), -np.inf)
        for allowed, price in zip(opened, rows, strict=True):
            best = np.where(allowed, np.maximum(best, price), best)
        gain = np.array(
            [points[mode.family] * (mode.accuracy - instance.floors[mode.family]) for mode in instance.modes]
        )
        rates = np.array([mode.rate for mode in instance.modes])
        for g, group in enumerate(instance.groups):
            at = group.region
            corrections = np.array(
                [[node.correction.get(name, 1.0) for name in instance.families] for node in group.nodes]
            )
            grams = instance.intensity[at] / 1000.0 * instance.joules * corrections[:, instance.mode_family]
            values = rates * (best[at] + gain - grams)
            worth_g_h = np.zeros(group.size)
            for kind, count in group.devices.items():
                number = instance.kinds.index(kind)
                here = instance.mode_kind == number
                device = np.maximum(values[:, here].max(axis=1, initial=0.0), 0.0)
                worth_g_h += count * (device + spared[at, number])
            gains = np.sort(worth_g_h + apiece[g] - group.idle_g_h)[::-1]
            low, high = (round(limit) for limit in limits.get(g, (0.0, group.size)))
            total -= float(gains[:low].sum() + np.maximum(gains[low:high], 0.0).sum())
        return max(0.0, total * (1.0 - 1e-9))

    def _worth(self, number: int, loss: Loss, duals: Floats) -> tuple[Floats, float]:
        """Return what a device is worth after a loss, by region and kind, and what the rows to be kept are worth."""
        instance = self._instance
        prices = np.zeros(len(instance.streams))
        for stream, row in self._keep_rows[number].items():
            prices[stream] = max(0.0, duals[row])
        worth = np.zeros((len(instance.regions), len(instance.kinds)))
        for (region, kind), row in self._spare_rows[number].items():
            used = float((self._spare[region, kind] * prices).max(initial=0.0))
            worth[region, kind] = max(0.0, -float(duals[row]), used)
        total = float(prices @ loss.rates)
        if self._lost_rows[number] is not None:
            total += min(
                sum(count * worth[group.region, instance.kinds.index(kind)] for kind, count in group.devices.items())
                for group in instance.groups
                if group.region in loss.within
            )
        return worth, total
