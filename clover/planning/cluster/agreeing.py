"""One set of modes for each family and region, fast enough for all whose rows come there.

A region's nodes answer all streams that come to it, so a mode that is too slow for one of them may not be used there
while that stream comes.  The relaxation does not know that: it may keep a slow mode for clients nearby and a fast one
for those far away.  Sets of modes that streams allow are nested (each is all modes up to a p95), so at a family and
region at which streams disagree there are as few choices as there are different sets: use one of them, and keep streams
away that allow less.

The choices are made by branch and bound, lowest grams first.  The first solution without disagreement is the best there
is; after `_SOLVES` programs the most promising one is followed down without looking back.  Either way the bound is the
least over all branches that were left.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from clover.planning.cluster.instance import Flags, Instance
from clover.planning.cluster.relaxation import Relaxation

_SOLVES = 40  # programs that are solved before the rest is decided without looking back
_SOME = 1e-6  # part of all rows of a family that is no flow

Place = tuple[int, int]
"""A family and a region, both as indices."""


def agree(instance: Instance, relaxed: Relaxation) -> tuple[list[Flags], float]:
    """Solve the relaxation with one set of modes for each family and region; return what each stream may use
    (`[region, mode]`) and grams/h that no plan is below.  The program is left solved."""
    program = relaxed.program
    root = program.save()
    order = itertools.count()
    opened = [stream.allowed for stream in instance.streams]
    entry = (program.objective, next(order), {}, relaxed.bound(opened))
    heap: list[tuple[float, int, Mapping[Place, bytes], float]] = [entry]
    solved = 1
    while True:
        _, _, decided, bound = heapq.heappop(heap)
        opened = _solve(instance, relaxed, root, decided)
        place = _disagreement(instance, relaxed, opened, decided)
        if place is None:
            break
        branches = []
        for choice in _choices(opened, instance, place):
            branch = {**decided, place: choice}
            masks = _solve(instance, relaxed, root, branch)
            branches.append((program.objective, next(order), branch, max(bound, relaxed.bound(masks))))
            solved += 1
        if solved < _SOLVES:
            for item in branches:
                heapq.heappush(heap, item)
        else:
            # Follow the best one down; the others stay in the heap for the bound alone.
            best = min(branches)
            rest = [item for item in branches if item is not best]
            heap = [(-np.inf, *best[1:]), *heap, *rest]
            heapq.heapify(heap)
    least = min([bound, *(item[3] for item in heap)])
    return _final(instance, relaxed, opened, decided), least


def _choices(opened: Sequence[Flags], instance: Instance, place: Place) -> list[bytes]:
    """Return the different sets of modes that streams of a family allow in a region, as bytes."""
    family, region = place
    sets = {
        masks[region].tobytes(): None
        for stream, masks in zip(instance.streams, opened, strict=True)
        if stream.family == family and masks[region].any()
    }
    return list(sets)


def _solve(
    instance: Instance, relaxed: Relaxation, root: object, decided: Mapping[Place, bytes]
) -> list[Flags]:
    """Solve the program with the choices that are decided; return what each stream may still use."""
    program = relaxed.program
    program.restore(root)  # type: ignore[arg-type]
    opened = [stream.allowed.copy() for stream in instance.streams]
    for (family, region), choice in decided.items():
        _narrow(instance, opened, (family, region), np.frombuffer(choice, dtype=bool))
    for number, masks in enumerate(opened):
        for region in range(len(instance.regions)):
            shut = instance.streams[number].allowed[region] & ~masks[region]
            if shut.any():
                relaxed.close(region, shut, number)
    if decided:
        program.resolve()
    return opened


def _narrow(instance: Instance, opened: Sequence[Flags], place: Place, choice: Flags) -> None:
    """Leave only the modes of `choice` open, and only to streams that allow all of them."""
    family, region = place
    for stream, masks in zip(instance.streams, opened, strict=True):
        if stream.family == family:
            fits = not (choice & ~stream.allowed[region]).any()
            masks[region] = choice & stream.allowed[region] if fits else False


def _disagreement(
    instance: Instance, relaxed: Relaxation, opened: Sequence[Flags], decided: Mapping[Place, bytes]
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
                amiss = float(rows[region][~common].sum(initial=0.0, where=(instance.mode_family == family)[~common, None]))
                if amiss > some and (worst is None or amiss > worst[0]):
                    worst = amiss, (family, region)
    return None if worst is None else worst[1]


def _rows(instance: Instance, relaxed: Relaxation) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return rows/s by region, mode and stream."""
    devices = relaxed.devices()
    rows = np.zeros((len(instance.regions), *devices.shape[1:]))
    for g, group in enumerate(instance.groups):
        rows[group.region] += devices[g]
    rates = np.array([mode.rate for mode in instance.modes])
    return rows * rates[:, None]


def _final(
    instance: Instance, relaxed: Relaxation, opened: list[Flags], decided: Mapping[Place, bytes]
) -> list[Flags]:
    """Return what each stream may use once the places that were not decided agree on what the solution uses there."""
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
            _narrow(instance, opened, (family, region), choice)
    for number, masks in enumerate(opened):
        for region in range(len(instance.regions)):
            relaxed.close(region, instance.streams[number].allowed[region] & ~masks[region], number)
    relaxed.program.resolve()
    return opened
