"""Branch and bound above the relaxation: one set of modes for each family and region, then whole nodes.

**One set of modes.**  A region's nodes answer all streams that come to it, so a mode that is too slow for one of them
may not be used there while that stream comes.  The relaxation does not know that: it may keep a slow mode for clients
nearby and a fast one for those far away.  Sets of modes that streams allow are nested (each is all modes up to a p95).
So where the streams of a family and region disagree, there is one choice for each different set: use that set, and keep
the streams away that allow less.

**Whole nodes.**  Where no streams disagree, a count of awake nodes is split: no more than the whole number below, or no
fewer than the one above.  Counts of regions and of all nodes come first, then those of groups.  A plan is made
(`rounding`) from the first solution, and from those in which the nodes of each region are whole.

Branches are taken up by their bounds, lowest first, until none promises less than the best plan, or the allowance of
programs is used up.  The bound is the least over all branches that were left.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from clover.cluster.planning.arrays import Flags, ProblemArrays
from clover.cluster.planning.relaxation import ClusterRelaxation
from clover.cluster.planning.rounding import Rounded
from clover.cluster.planning.simplex import Basis, NoSolutionError

_SOME = 1e-6  # part of all rows of a family that is no flow
_WHOLE = 1e-6
_CLOSE = 1e-4  # how near to its bound a plan is good enough
_NEAR = 0.005  # how near to a branch's bound no other plan is made of it: whole devices emit about that much more

Place = tuple[int, int]
"""A family and a region, both as indices."""


@dataclass(frozen=True)
class Allowance:
    """How many programs may be solved, plans made of their solutions, and programs solved for the bound alone after
    the last plan."""

    programs: int
    plans: int
    proofs: int = 0


@dataclass(frozen=True)
class _Branch:
    """What is decided: sets of modes (as bytes) by place, the least and most nodes by group, then by what counts
    `together`; its bound, what each stream may use, and the program's solution: until it is solved, that of the branch
    that it was split from."""

    sets: Mapping[Place, bytes] = field(default_factory=dict)
    nodes: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    bound: float = 0.0
    opened: Sequence[Flags] = ()
    solved: Basis | None = None


def search(
    instance: ProblemArrays, relaxed: ClusterRelaxation, allowance: Allowance, make: Callable[[list[Flags]], Rounded]
) -> tuple[Rounded, float]:
    """Return the best plan found, and grams/h that no plan is below.

    `make` makes a plan of the relaxation as it is solved when it is called, with what each stream may use
    (`[region, mode]`)."""
    root = relaxed.program.save()
    order = itertools.count()
    heap: list[tuple[float, int, _Branch]] = []

    def push(branch: _Branch) -> float:
        """Solve a branch and put it on the heap; return a bound of it if it cannot be solved, else infinity."""
        if not _possible(relaxed, [group.size for group in instance.groups], branch):
            return np.inf
        try:
            opened = _solve(instance, relaxed, root, branch)
        except NoSolutionError:
            return branch.bound  # rounding errors left no solution, which proves nothing
        bound = max(branch.bound, relaxed.bound(opened, branch.nodes))
        solved = _Branch(branch.sets, branch.nodes, bound, opened, relaxed.program.save())
        heapq.heappush(heap, (bound, next(order), solved))
        return np.inf

    push(_Branch())
    best: Rounded | None = None
    least, programs, plans, most = np.inf, 1, 0, allowance.programs
    while heap:
        bound, number, branch = heapq.heappop(heap)
        if best is not None and (bound >= best.merit * (1.0 - _CLOSE) or programs >= most):
            heapq.heappush(heap, (bound, number, branch))
            break
        assert branch.solved is not None
        relaxed.program.restore(branch.solved)
        opened = [masks.copy() for masks in branch.opened]
        place = disagreement(instance, relaxed, opened, branch.sets)
        if place is not None and programs < most:
            for choice in choices(opened, instance, place):
                least = min(least, push(replace(branch, sets={**branch.sets, place: choice}, bound=bound)))
                programs += 1
            continue
        split = _split(instance, relaxed, branch) if place is None else None
        whole = split is None or split[0][0] < len(instance.groups)
        promising = best is None or (whole and bound < best.merit * (1.0 - _NEAR))
        if promising and plans < allowance.plans:
            settle(instance, relaxed, opened, branch.sets)
            made = make(opened)
            plans += 1
            if best is None or made.merit < best.merit:
                best = made
            if plans == allowance.plans:
                most = min(most, programs + allowance.proofs)
        if split is None or programs >= most:
            least = min(least, bound)
            continue
        for g, limits in split:
            least = min(least, push(replace(branch, nodes={**branch.nodes, g: limits}, bound=bound)))
            programs += 1
    assert best is not None
    return best, float(min([least, best.merit, *(item[0] for item in heap)]))


def _possible(relaxed: ClusterRelaxation, sizes: Sequence[float], branch: _Branch) -> bool:
    """Say whether limits of groups, regions and all nodes leave a count: all else has a price, so that there is a
    solution."""
    low = np.array([branch.nodes.get(g, (0.0, 0.0))[0] for g in range(len(sizes))])
    high = np.array([branch.nodes.get(g, (0.0, size))[1] for g, size in enumerate(sizes)])
    least = most = 0.0
    for at, members in enumerate(relaxed.together):
        bounds = branch.nodes.get(len(sizes) + at, (0.0, relaxed.sizes[at]))
        if at < len(relaxed.together) - 1:
            bounds = max(bounds[0], float(low[members].sum())), min(bounds[1], float(high[members].sum()))
            least, most = least + bounds[0], most + bounds[1]
        elif max(bounds[0], least) > min(bounds[1], most):
            return False
        if bounds[0] > bounds[1]:
            return False
    return True


def _split(
    instance: ProblemArrays, relaxed: ClusterRelaxation, branch: _Branch
) -> list[tuple[int, tuple[float, float]]] | None:
    """Return the two halves of the nodes of a region, or of all, whose count is furthest from whole by what a node
    emits; if those are whole, of the group that is least whole; None if all are."""
    nodes = relaxed.nodes()
    if not len(nodes):
        return None
    # Groups of a region can stand in for each other: with one of them whole, the bound stays where it was.
    idle = np.array([group.idle_g_h for group in instance.groups])
    counts = np.array([nodes[members].sum() for members in relaxed.together])
    emits = np.array([idle[members].mean() if len(members) else 0.0 for members in relaxed.together])
    rest = np.abs(counts - np.round(counts))
    if rest.max() > _WHOLE:
        at = int(np.where(rest > _WHOLE, rest * (1.0 - rest) * emits, -1.0).argmax())
        g, count, size = len(nodes) + at, float(counts[at]), relaxed.sizes[at]
    else:
        rest = np.abs(nodes - np.round(nodes))
        g = int(rest.argmax())
        count, size = float(nodes[g]), float(instance.groups[g].size)
        if rest[g] <= _WHOLE:
            return None
    low, high = branch.nodes.get(g, (0.0, size))
    below = float(np.floor(count))
    return [(g, (low, below)), (g, (below + 1.0, high))]


def choices(opened: Sequence[Flags], instance: ProblemArrays, place: Place) -> list[bytes]:
    """Return the different sets of modes that streams of a family allow in a region, as bytes."""
    family, region = place
    sets = {
        masks[region].tobytes(): None
        for stream, masks in zip(instance.streams, opened, strict=True)
        if stream.family == family and masks[region].any()
    }
    return list(sets)


def _solve(instance: ProblemArrays, relaxed: ClusterRelaxation, root: Basis, branch: _Branch) -> list[Flags]:
    """Solve the program of a branch; return what each stream may use in it."""
    program = relaxed.program
    # From the solution that this branch was split from, it is a few pivots.
    program.restore(root if branch.solved is None else replace(branch.solved, lower=root.lower, upper=root.upper))
    opened = [stream.allowed.copy() for stream in instance.streams]
    for place, choice in branch.sets.items():
        narrow(instance, opened, place, np.frombuffer(choice, dtype=bool))
    shut(instance, relaxed, opened)
    for g, (low, high) in branch.nodes.items():
        column = (*relaxed.awake, *relaxed.sums)[g]
        program.lower[column], program.upper[column] = low, high
    if branch.sets or branch.nodes:
        program.resolve()
    return opened


def shut(instance: ProblemArrays, relaxed: ClusterRelaxation, opened: Sequence[Flags]) -> None:
    """Close the columns of what is not open any more."""
    for number, (stream, masks) in enumerate(zip(instance.streams, opened, strict=True)):
        for region in range(len(instance.regions)):
            shut = stream.allowed[region] & ~masks[region]
            if shut.any():
                relaxed.close(region, shut, number)


def narrow(instance: ProblemArrays, opened: Sequence[Flags], place: Place, choice: Flags) -> None:
    """Leave only the modes of `choice` open, and only to streams that allow all of them."""
    family, region = place
    for stream, masks in zip(instance.streams, opened, strict=True):
        if stream.family == family:
            fits = not (choice & ~stream.allowed[region]).any()
            masks[region] = choice & stream.allowed[region] if fits else False


def disagreement(
    instance: ProblemArrays, relaxed: ClusterRelaxation, opened: Sequence[Flags], decided: Mapping[Place, bytes]
) -> Place | None:
    """Return the family and region at which most rows use modes that others who come there do not allow."""
    rows = _rows(instance, relaxed)
    worst: tuple[float, Place] | None = None
    for family in range(len(instance.families)):
        streams = [at for at, stream in enumerate(instance.streams) if stream.family == family]
        some = _SOME * sum(instance.streams[at].rate for at in streams)
        for region in range(len(instance.regions)):
            if (family, region) in decided:
                continue
            comers = [at for at in streams if rows[region, :, at].sum() > some]
            if len(comers) > 1:
                common = np.logical_and.reduce([opened[at][region] for at in comers])
                amiss = float(
                    rows[region][~common].sum(initial=0.0, where=(instance.mode_family == family)[~common, None])
                )
                if amiss > some and (worst is None or amiss > worst[0]):
                    worst = amiss, (family, region)
    return None if worst is None else worst[1]


def _rows(instance: ProblemArrays, relaxed: ClusterRelaxation) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return rows/s by region, mode and stream."""
    devices = relaxed.devices()
    rows = np.zeros((len(instance.regions), *devices.shape[1:]))
    for g, group in enumerate(instance.groups):
        rows[group.region] += devices[g]
    rates = np.array([mode.rate for mode in instance.modes])
    return np.asarray(rows * rates[:, None])


def settle(
    instance: ProblemArrays, relaxed: ClusterRelaxation, opened: list[Flags], decided: Mapping[Place, bytes]
) -> None:
    """Limit `opened`, at places that were not decided to what the solution uses there, and solve with that."""
    rows = _rows(instance, relaxed)
    for family in range(len(instance.families)):
        streams = [at for at, stream in enumerate(instance.streams) if stream.family == family]
        some = _SOME * sum(instance.streams[at].rate for at in streams)
        for region in range(len(instance.regions)):
            able = [at for at in streams if opened[at][region].any()]
            if (family, region) in decided or not able:
                continue
            comers = [at for at in able if rows[region, :, at].sum() > some]
            if comers:
                choice = np.logical_and.reduce([opened[at][region] for at in comers])
            else:
                choice = max((opened[at][region] for at in able), key=lambda mask: int(mask.sum()))
            narrow(instance, opened, (family, region), choice)
    shut(instance, relaxed, opened)
    relaxed.program.resolve()
