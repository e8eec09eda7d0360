"""ORACLE: the best f at the load and the intensity of the moment, as a search that costs nothing would find it.

The artifact's oracle is an exhaustive run over the deals of one GPU (its layouts, and variants for their slices), with
every GPU alike.  `best_of` does that on the model.  It computes f of every configuration in closed form, and then p95
in descending order of f, until one keeps the latency target: no other that keeps it has a better f.

If each device may have a deal of its own, a fleet has far too many configurations (4 x 10^12 for ten A100s).  Up to
`SMALL` they are all weighed.  Above that `climb` starts at the best with all devices alike, and improves it device by
device.  That is good, and not proven to be best.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from clover.errors import PlanError
from clover.planning.model.problem import fitting
from clover.planning.packing.candidates import Kinds, configurations_of, kinds_of
from clover.policies.paper.fifo import Counts, Fifo, Keys, stack
from clover.policies.paper.fleet import FULL, At, Fits, PaperFleet
from clover.policies.paper.walk import Trial, evaluate
from clover.types import Candidate

SMALL = 5_000
_ALTERNATIVES = 4  # feasible runners-up that a plan shows
_ASKED = 300  # configurations whose p95 is simulated, at most
_MARGIN = 1.15  # a short simulation that misses the SLO by a larger factor is not repeated at length
_LEAST_BAD = 12  # configurations tried by each measure if none keeps the SLO
_ROUNDS = 3  # of a climb
_VERIFIED = 4  # steps of climbs that are simulated at length
_TRIED = 12  # configurations whose p95 is simulated in one round of a climb


@dataclass(frozen=True)
class Best:
    """The best of some configurations, and the runners-up.  `complete`: whether no better one can be among those that
    were not simulated; `row`: which of them is the best."""

    candidates: list[Candidate]
    evaluated: int
    total: int
    complete: bool
    row: int = 0


def best_of(fifo: Fifo, rows: Counts) -> Best:
    """Return the best f among `rows` that holds the latency target; if none does, the least bad."""
    forms = fifo.closed_forms(rows)
    limit, slo_ms = fifo.objective.max_utilisation, fifo.objective.slo_ms
    hopeful = (forms.utilisation <= limit + 1e-9) & ~forms.late
    order = [row for row in np.argsort(-forms.score, kind="stable").tolist() if hopeful[row]]
    best: Candidate | None = None
    others: list[Candidate] = []
    asked = chosen = 0
    for row in order[:_ASKED]:
        asked += 1
        p95_ms = fifo.glance_p95_ms(rows[row], forms.shares[row])
        if best is None and p95_ms <= _MARGIN * slo_ms:
            longer = fifo.candidate(rows[row], forms, row)
            if longer.feasible:
                best, chosen = longer, row
                continue
        others.append(fifo.candidate(rows[row], forms, row, p95_ms))
        if best is not None and sum(item.feasible for item in others) >= _ALTERNATIVES:
            break
    if best is not None:
        ranked = sorted(others, key=lambda item: (not item.feasible, -item.score))
        return Best([best, *ranked], asked, len(rows), True, chosen)
    looks = sorted(((evaluate(fifo, rows[row]), row) for row in _least_bad(fifo, rows)), key=lambda item: item[0].rank)
    least, chosen = looks[0]
    longer = fifo.candidate(least.counts, least.forms, 0)
    rest = [item.candidate for item, _ in looks[1:]]
    return Best([longer, *rest], asked + len(looks), len(rows), len(order) <= _ASKED, chosen)


def _least_bad(fifo: Fifo, rows: Counts) -> list[int]:
    """Return rows of the least load, and of those that are not overloaded the swiftest."""
    forms = fifo.closed_forms(rows, rough=True)
    over = np.maximum(0.0, forms.utilisation - fifo.objective.max_utilisation)
    loaded = np.argsort(forms.utilisation, kind="stable")[:_LEAST_BAD]
    swift = np.lexsort((fifo.service_ms(rows), over))[:_LEAST_BAD]
    return list(dict.fromkeys([*loaded.tolist(), *swift.tolist()]))


def alike(fleet: PaperFleet) -> Counts:
    """Return every configuration of a fleet whose units are kinds; PlanError if several kinds have too many
    together."""
    sizes = [len(unit.deals.counts) for unit in fleet.units]
    if math.prod(sizes) > FULL:
        raise PlanError(
            f"devices of {len(sizes)} kinds have {math.prod(sizes)} configurations even if all of a kind are alike: "
            f"too many to list (the limit is {FULL}); the policy oracle searches them"
        )
    if len(sizes) == 1:
        return fleet.units[0].times * fleet.units[0].deals.counts
    return stack([fleet.counts(at) for at in itertools.product(*map(range, sizes))])


def every(fifo: Fifo) -> Counts | None:
    """Return all configurations of the devices; None if they are more than `SMALL`."""
    problem = fifo.problem
    return _every(kinds_of(problem.devices), tuple(sorted(fitting(problem).items())), fifo.keys)


@lru_cache(maxsize=16)
def _every(kinds: Kinds, fits: Fits, keys: Keys) -> Counts | None:
    try:
        space = configurations_of(kinds, dict(fits), limit=SMALL)
    except PlanError:
        return None
    rows = np.zeros((len(space), len(keys)), dtype=np.int64)
    for row, configuration in zip(rows, space, strict=True):
        for group in configuration:
            row[keys.index((group.variant, group.profile))] = group.count
    return rows


def best_free(fifo: Fifo, kinds: PaperFleet, fleet: PaperFleet, running: At | None) -> Best:
    """Return the best that a climb finds from the best alike, or from what runs if that is better to begin with."""
    known: Best | None = None
    try:
        known = best_of(fifo, alike(kinds))
        sizes = [len(unit.deals.counts) for unit in kinds.units]
        at = tuple(int(deal) for deal in np.unravel_index(known.row, sizes))
    except PlanError:  # several kinds with too many deals together: kind by kind first
        at = climb(fifo, kinds, kinds.base(fifo.problem))[-1].at
    spread = tuple(deal for unit, deal in zip(kinds.units, at, strict=True) for _ in range(unit.times))
    others = [] if known is None else known.candidates
    best = others[0] if others else None
    steps = climb(fifo, fleet, spread)
    if running is not None:
        standing = evaluate(fifo, fleet.counts(running))
        if standing.candidate.feasible and standing.rank < steps[0].look.rank:
            steps += climb(fifo, fleet, running)
    steps.sort(key=lambda step: step.look.rank)
    for step in steps[:_VERIFIED]:
        candidate = step.look.candidate
        if best is not None and best.feasible and (not candidate.feasible or candidate.score <= best.score):
            break
        longer = fifo.candidate(step.look.counts, step.look.forms, 0)
        if best is None or longer.feasible:
            best = longer
    assert best is not None  # every climb has a first step
    seen = {best.configuration: best}
    for item in (*others, *(step.look.candidate for step in steps)):
        seen.setdefault(item.configuration, item)
    rest = sorted(list(seen.values())[1:], key=lambda item: (not item.feasible, -item.score))
    evaluated = len(steps) + (0 if known is None else known.evaluated)
    return Best([best, *rest], evaluated, evaluated, True)


# --- uphill -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClimbStep:
    """A place on the way uphill."""

    at: At
    look: Trial


def climb(fifo: Fifo, fleet: PaperFleet, start: At) -> list[ClimbStep]:
    """Return the steps of a climb from `start`, which is the first; each is better than the one before.

    A step takes the best new deal of one unit that keeps the limits, and gives it to as many of the units that are
    equal to that one as makes f better still.
    """
    at, here = start, evaluate(fifo, fleet.counts(start))
    way = [ClimbStep(at, here)]
    for _ in range(_ROUNDS):
        standing = _standing(fleet, at)
        total = fleet.counts(at)
        moves: list[tuple[list[int], int]] = []
        rows = []
        for like in standing:
            unit = fleet.units[like[0]]
            moves.extend((like, deal) for deal in range(len(unit.deals.counts)))
            rows.append(total + unit.times * (unit.deals.counts - unit.deals.counts[at[like[0]]]))
        one = _better(fifo, np.concatenate(rows), here)
        if one is None:
            break
        like, deal = moves[one[0]]
        ways = [_given(at, like[:number], deal) for number in range(1, len(like) + 1)]
        more = _better(fifo, stack([fleet.counts(item) for item in ways]), one[1])
        at, here = (ways[0], one[1]) if more is None else (ways[more[0]], more[1])
        way.append(ClimbStep(at, here))
    return way


def _better(fifo: Fifo, rows: Counts, than: Trial) -> tuple[int, Trial] | None:
    """Return the best row that keeps the limits, and its trial; None if none is better than `than`."""
    forms = fifo.closed_forms(rows, rough=True)
    least = than.candidate.score + 1e-9 if than.candidate.feasible else -math.inf
    hopeful = (forms.utilisation <= fifo.objective.max_utilisation + 1e-9) & ~forms.late & (forms.score > least)
    order = [row for row in np.argsort(-forms.score, kind="stable").tolist() if hopeful[row]]
    for row in order[:_TRIED]:
        trial = evaluate(fifo, rows[row])
        if trial.candidate.feasible and trial.candidate.score > least:
            return row, trial
    return None


def _standing(fleet: PaperFleet, at: At) -> list[list[int]]:
    """Return units that may be exchanged for one another: of one kind, and with the same deal."""
    rows_by_key: dict[tuple[int, int, int], list[int]] = {}
    for number, (unit, deal) in enumerate(zip(fleet.units, at, strict=True)):
        rows_by_key.setdefault((id(unit.deals), unit.times, deal), []).append(number)
    return list(rows_by_key.values())


def _given(at: At, units: Sequence[int], deal: int) -> At:
    """Return `at` with `deal` for these units."""
    changed = list(at)
    for unit in units:
        changed[unit] = deal
    return tuple(changed)
