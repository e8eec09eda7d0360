"""Whole nodes and whole devices, from the divisible ones of the relaxation.

1. **Nodes.**  All groups are rounded up; then single nodes are taken away, or exchanged between groups, as long as that
   emits less.  Each change is a few pivots of the program; each is checked for every loss by itself (`reserve`).
2. **Devices.**  Within a group, the modes' devices are rounded to whole ones by the largest remainder; then devices
   change their mode, most promising first by the prices of rows and accuracy, while that serves more or emits less.  If
   rows are left, a node is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clover.cluster.planning.arrays import EPSILON, Flags, Floats, ProblemArrays, Shape
from clover.cluster.planning.loads import FamilyLoads, FamilyProgram
from clover.cluster.planning.relaxation import ClusterRelaxation
from clover.cluster.planning.reserve import Loss, Reserve

_WHOLE = 1e-6
_NODE_TRIALS = 24  # changes of single nodes that are tried
_FAILED_NODES = 5  # such changes in a row that may fail if there are many nodes
_SWAPS = 80  # devices that are given another mode, at most, for one choice of nodes
_FAILED = 12  # swaps in a row that may fail
_ASKED_AGAIN = 4  # times that the relaxation is asked for more rows than there are
_DEAR = 0.004  # part by which a plan on nodes added for more rows emits more before fewer of them are tried
_NODES_THAT_MATTER = 100
_POLISHES = 12  # changes of nodes that are tried with whole devices


@dataclass
class Rounded:
    """Whole nodes by group, whole devices by group and mode, the rows that they get, and what it is worth.

    `merit`: grams/h and a price for every row that is not served, or not at its accuracy.
    `opened`: what each stream may use (`[region, mode]`)."""

    nodes: Floats
    counts: Floats
    loads: tuple[FamilyLoads, ...]
    grams_h: float
    merit: float
    opened: Sequence[Flags]

    @property
    def lacks(self) -> bool:
        """Whether rows found no room, or not at their accuracy."""
        return any(item.unserved or item.short for item in self.loads)

    @property
    def unserved(self) -> dict[int, float]:
        """Rows/s of each stream that found no room."""
        return {stream: rate for family in self.loads for stream, rate in family.unserved.items()}


class Rounding:
    """Makes whole nodes and devices of a solved relaxation."""

    def __init__(
        self,
        instance: ProblemArrays,
        relaxation: ClusterRelaxation,
        opened: Sequence[Flags],
        reserve: Reserve,
        losses: Sequence[Loss],
        rates: Floats,
    ) -> None:
        self._instance, self._relaxation, self._opened = instance, relaxation, opened
        self._reserve, self._losses, self._rates = reserve, losses, rates
        self._sizes = np.array([group.size for group in instance.groups], dtype=np.float64)
        self._idle = np.array([group.idle_g_h for group in instance.groups])
        self._programs: dict[tuple[int, bool], FamilyProgram] = {}  # by family, and whether it is strict

    def rounded(self, known: dict[bytes, Rounded]) -> Rounded:
        """Return whole nodes and devices of the relaxation as it is solved now.

        `known`: what was made of other solutions so far, by the nodes chosen and what is open; this one is added.  If
        whole devices leave rows that divisible ones serve, the relaxation is asked for that much more of them."""
        program = self._relaxation.program
        solved, least = program.save(), program.objective
        nodes = self.choose_nodes(self._relaxation.nodes())
        key = b"".join((nodes.tobytes(), *(masks.tobytes() for masks in self._opened)))
        if key in known:
            return known[key]
        first = best = self.round_devices(nodes, grow=False)
        asked = self._rates.copy()
        for again in range(_ASKED_AGAIN):
            if not best.unserved:
                break
            # What is left may be a small part of what one device serves, and then only more rows move a whole one.
            for stream, rate in best.unserved.items():
                asked[stream] += 1.5 * 2.0**again * rate
            # From where nodes were divisible last: from whole ones it would be hundreds of pivots.
            program.restore(solved)
            self._relaxation.ask(asked)
            solved = program.save()
            if self._relaxation.missing().sum() > 1e-7 * max(1.0, float(asked.sum())):
                break
            trial = self.round_devices(self.choose_nodes(self._relaxation.nodes()), grow=False)
            best = trial if trial.merit < best.merit else best
        if best.lacks or (best.nodes.sum() > nodes.sum() and best.merit > least * (1.0 + _DEAR)):
            # Nodes were added for rows that there are not: fewer may do, added for those that are.
            grown = self._strict(self._grown(first))
            best = grown if grown.merit < best.merit else self._strict(self._grown(best))
        if best.unserved and (best.nodes < self._sizes - 0.5).any():
            everything = self.round_devices(self._sizes.copy())
            best = everything if everything.merit < best.merit else best
        best = known[key] = self._polished(best)
        self._relaxation.ask(self._rates, solve=False)
        return best

    def _polished(self, best: Rounded) -> Rounded:
        """Return `best` with fewer or other nodes if that emits less with whole devices, for clusters in which a node
        matters: in others it is less than the gap that is left."""
        if best.nodes.sum() > _NODES_THAT_MATTER:
            return best
        tried = {best.nodes.tobytes()}
        for _ in range(_POLISHES):
            moves = []
            for g in np.flatnonzero(best.nodes > 0.5):
                for h in (-1, *np.flatnonzero(best.nodes < self._sizes - 0.5)):
                    nodes = best.nodes.copy()
                    nodes[g] -= 1.0
                    saved = self._idle[g]
                    if h >= 0:
                        nodes[h] += 1.0
                        saved -= self._idle[h]
                    if h != g and saved > 0.0 and nodes.tobytes() not in tried:
                        moves.append((-saved, nodes))
            if not moves:
                break
            nodes = min(moves, key=lambda move: move[0])[1]
            tried.add(nodes.tobytes())
            if not self.lacking(nodes)[0]:
                trial = self.round_devices(nodes, grow=False)
                best = trial if trial.merit < best.merit * (1.0 - 1e-9) else best
        return best

    def lacking(self, nodes: Floats) -> tuple[float, Floats]:
        """Return the rows/s that awake nodes cannot keep after the worst loss, and what a node of each group adds."""
        instance = self._instance
        devices = np.zeros((len(instance.regions), len(instance.kinds)))
        shapes: dict[Shape, None] = {}
        for group, count in zip(instance.groups, nodes, strict=True):
            for kind, many in group.devices.items():
                devices[group.region, instance.kinds.index(kind)] += count * many
            if count > 0.5:
                shapes[group.shape] = None
        worst, worth = 0.0, np.zeros_like(devices)
        for loss in self._losses:
            for _, rates, left in loss.cases(devices, shapes, instance.kinds):
                short, added = self._reserve.shortage(np.minimum(rates, self._rates), left)
                if short > worst:
                    worst, worth = short, added
                    if loss.region is not None:
                        worth[loss.region] = 0.0
        gain = np.array(
            [
                sum(many * worth[group.region, instance.kinds.index(kind)] for kind, many in group.devices.items())
                for group in instance.groups
            ]
        )
        return worst, gain

    def spared(self, nodes: Floats) -> Floats:
        """Return `nodes` with as many more as the reserve of each loss needs, as far as there are any."""
        nodes = nodes.copy()
        while True:
            lacking, gain = self.lacking(nodes)
            room = nodes < self._sizes - 0.5
            if not lacking or not (room & (gain > 0.0)).any():
                return nodes
            # One more of the group that keeps most rows for what it emits idle, as many as can be told to be needed.
            worth = np.where(room & (gain > 0.0), gain / (self._idle + EPSILON), -np.inf)
            g = int(worth.argmax())
            nodes[g] += max(1.0, min(self._sizes[g] - nodes[g], np.floor(lacking / gain[g])))

    def choose_nodes(self, start: Floats) -> Floats:
        """Return whole nodes by group: rounded up, then fewer or others while that emits less."""
        nodes = self.spared(np.minimum(self._sizes, np.ceil(start - _WHOLE)))
        best = self._relaxation.fix(nodes)
        program = self._relaxation.program
        tried: set[bytes] = {nodes.tobytes()}
        missed, most = 0, _FAILED_NODES if nodes.sum() > _NODES_THAT_MATTER else _NODE_TRIALS
        for _ in range(_NODE_TRIALS):
            if missed >= most:
                break
            reduced = program.reduced[self._relaxation.awake]
            trial = self._next_nodes(nodes, reduced, tried)
            if trial is None:
                break
            tried.add(trial.tobytes())
            if self.lacking(trial)[0]:
                continue
            kept = program.save()
            found = self._relaxation.fix(trial)
            if found < best * (1.0 - 1e-9):
                best, nodes, missed = found, trial, 0
            else:
                missed += 1
                program.restore(kept)
        return nodes

    def _next_nodes(self, nodes: Floats, reduced: Floats, tried: set[bytes]) -> Floats | None:
        """Return the most promising change of one node, or exchange of two, that was not tried yet."""
        fewer = [(-value, g, -1) for g, value in enumerate(reduced) if nodes[g] > 0.5]
        more = [(value, g, +1) for g, value in enumerate(reduced) if nodes[g] < self._sizes[g] - 0.5]
        moves: list[tuple[float, tuple[tuple[int, int], ...]]] = [
            (gain, ((g, step),)) for gain, g, step in (*fewer, *more)
        ]
        for gain, g, down in sorted(fewer)[:6]:
            for other, h, up in sorted(more)[:6]:
                if g != h:
                    moves.append((gain + other, ((g, down), (h, up))))
        for gain, steps in sorted(moves):
            if gain >= 0.0:
                return None
            trial = nodes.copy()
            for g, step in steps:
                trial[g] += step
            if trial.tobytes() not in tried:
                return trial
        return None

    def round_devices(self, nodes: Floats, *, grow: bool = True) -> Rounded:
        """Return whole devices and their rows on `nodes`, and (`grow`) on more of them if rows would be left."""
        self._relaxation.fix(nodes)
        counts = self._rounded(nodes, self._relaxation.devices().sum(axis=2))
        best = self._improved(self._weighed(nodes, counts))
        return self._strict(self._grown(best) if grow else best)

    def _grown(self, best: Rounded) -> Rounded:
        """Return `best` on more nodes if rows would be left on its own."""
        while best.lacks and (best.nodes < self._sizes - 0.5).any():
            added = self._improved(self._with_node(best))
            if added.merit >= best.merit * (1.0 - 1e-12):
                break
            best = added
        return best

    def _strict(self, best: Rounded) -> Rounded:
        """Return `best` with rows unserved where they would be short of accuracy."""
        if any(item.short for item in best.loads):
            best = self._weighed(best.nodes, best.counts, strict=True)
        return best

    def _rounded(self, nodes: Floats, devices: Floats) -> Floats:
        """Return whole devices by group and mode, no more than there are, by the largest remainder."""
        instance = self._instance
        counts = np.floor(devices + _WHOLE)
        for g, group in enumerate(instance.groups):
            for kind, many in group.devices.items():
                here = np.flatnonzero(instance.mode_kind == instance.kinds.index(kind))
                left = round(nodes[g] * many - counts[g, here].sum())
                rest = devices[g, here] - counts[g, here]
                for at in np.argsort(-rest, kind="stable")[: max(0, left)]:
                    if rest[at] > _WHOLE:
                        counts[g, here[at]] += 1.0
        return counts

    def _weighed(
        self,
        nodes: Floats,
        counts: Floats,
        before: Rounded | None = None,
        changed: Sequence[int] = (),
        *,
        strict: bool = False,
    ) -> Rounded:
        """Return what `counts` are worth; of `before`, loads of families that were not changed are kept."""
        loads = tuple(
            before.loads[family]
            if before is not None and family not in changed
            else self._load(family, counts, strict=strict)
            for family in range(len(self._instance.families))
        )
        idle = float(self._idle @ nodes)
        grams, cost = (idle + sum(item.grams for item in loads), idle + sum(item.cost for item in loads))
        return Rounded(nodes, counts, loads, grams, cost, self._opened)

    def _load(self, family: int, counts: Floats, *, strict: bool) -> FamilyLoads:
        """Return the cheapest loads of a family on `counts` devices, from the last ones if they had the same modes."""
        modes = self._instance.mode_family == family
        bins = [(g, m) for g, m in np.argwhere((counts > 0.5) & modes).tolist()]
        program = self._programs.get((family, strict))
        if program is None or not program.covers(bins, self._opened):
            if program is not None and program.opened is self._opened and len(program.bins) <= 2 * len(bins):
                bins = list(dict.fromkeys([*program.bins, *bins]))
            program = FamilyProgram(self._instance, family, bins, self._rates, self._opened, strict=strict)
            self._programs[family, strict] = program
        return program.load(counts)

    def weighed(self, nodes: Floats, counts: Floats, opened: Sequence[Flags]) -> Rounded:
        """Return what whole nodes and devices are worth if streams use what is `opened` to them."""
        self._opened = opened
        return self._weighed(nodes, counts, strict=True)

    def _values(self, found: Rounded) -> Floats:
        """Return what a device of each group is worth in each mode, in grams/h, by the prices of its rows."""
        instance = self._instance
        price = np.full((len(instance.regions), len(instance.modes)), -np.inf)
        for item in found.loads:
            for stream, value in item.prices.items():
                price = np.where(self._opened[stream], np.maximum(price, value), price)
        points = np.array(
            [found.loads[m.family].point * (m.accuracy - instance.floors[m.family]) for m in instance.modes]
        )
        rates = np.array([mode.rate for mode in instance.modes])
        regions = np.array([group.region for group in instance.groups], dtype=np.int64)
        return np.asarray(np.maximum(0.0, rates * (price[regions] + points - instance.grams)))

    def _improved(self, found: Rounded) -> Rounded:
        """Return `found` with devices given another mode while that is worth it."""
        failed: set[tuple[int, int]] = set()  # group and new mode: another old one would not do either
        misses = 0
        for _ in range(_SWAPS):
            swap = self._next_swap(found, failed)
            if swap is None or misses >= _FAILED:
                break
            g, old, new = swap
            counts = found.counts.copy()
            counts[g, new] += 1.0
            changed = [self._instance.modes[new].family]
            if old >= 0:
                counts[g, old] -= 1.0
                changed.append(self._instance.modes[old].family)
            trial = self._weighed(found.nodes, counts, found, changed)
            if trial.merit < found.merit * (1.0 - 1e-7):
                found, misses = trial, 0
                failed.clear()
            else:
                failed.add((g, new))
                misses += 1
        return found

    def _next_swap(self, found: Rounded, failed: set[tuple[int, int]]) -> tuple[int, int, int] | None:
        """Return the group and the modes, old (-1: a free device) and new, of the most promising swap."""
        instance = self._instance
        values = self._values(found)
        best: tuple[float, tuple[int, int, int]] | None = None
        for at, kind in enumerate(instance.kinds):
            here = np.flatnonzero(instance.mode_kind == at)
            if not len(here):
                continue
            for g, group in enumerate(instance.groups):
                total = found.nodes[g] * group.devices.get(kind, 0)
                if total < 0.5:
                    continue
                olds = [int(m) for m in here if found.counts[g, m] > 0.5]
                if found.counts[g, here].sum() < total - 0.5:
                    olds = [-1]  # a free device costs nothing
                order = here[np.argsort(-values[g, here], kind="stable")][:4]
                for old in olds:
                    loss = values[g, old] if old >= 0 else 0.0
                    for new in map(int, order):
                        gain = float(values[g, new] - loss)
                        if new == old or gain <= 1e-9 or (g, new) in failed:
                            continue
                        if best is None or gain > best[0] * (1.0 + 1e-9):
                            best = gain, (g, old, new)
        return None if best is None else best[1]

    def _with_node(self, found: Rounded) -> Rounded:
        """Return `found` with one more node, of the group whose devices are worth most."""
        instance = self._instance
        values = self._values(found)
        gains = np.full(len(instance.groups), -np.inf)
        for g, group in enumerate(instance.groups):
            if found.nodes[g] < self._sizes[g] - 0.5:
                gains[g] = -self._idle[g]
                for kind, count in group.devices.items():
                    here = instance.mode_kind == instance.kinds.index(kind)
                    gains[g] += count * float(values[g, here].max(initial=0.0))
        nodes = found.nodes.copy()
        nodes[int(gains.argmax())] += 1.0
        return self._weighed(nodes, found.counts, found, ())
