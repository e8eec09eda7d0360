"""How long the rows of a cascade wait at its first stage for fuller batches.

The first stage of a cascade sees every row and is the cheapest, so that what a batch costs however many rows it has
(the call, waking up) is most of what a row costs there: a wait that brings five rows together can halve the energy of
the whole chain, where the best variant alone would gain a tenth.  Rows that are passed on do not wait again.  What a
wait is worth in general is described in `planning.packing.waits`.

**Which waits.**  A quarter, a half or all of the room: what a wait and the batches that follow it may take together, as
there: the rows gathered even at a higher rate, the slow end of service times, timers that tick late, and a part of the
SLO in reserve.  That part is a little larger than there: a row that is passed on meets a second queue and a second
worker.  On a small machine the workers of the stages, the front end and the clients run on the same cores, which
lengthens a tail by two or three milliseconds that no simulation of its queues shows; a wait that is too long for that
is taken back (`control.state.slo.waits`).  A wait has to bring company, as
there (`packing.waits.least_company`), and a longer one has to be worth it: it is weighed if it saves as much as the
controller would change a plan for.

**What they cost.**  A batch whose first row waited w holds 1 + a w rows at a rate of a, or as many as the load gathers
by itself, if those are more.  The energy of a row is that of a row in such a batch.  Latency is not computed here
but simulated (`chains.played_ms`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from clover.planning.model.queueing import Lane
from clover.planning.model.sharing import SharedPool
from clover.planning.packing.waits import MORE, SLOW, TICK_MS, longest_ms

_PARTS = (0.25, 0.5, 1.0)
_STEP_MS = 0.5  # so that a rate that moves a little asks for the same wait, whose play is remembered
_ROOM = 0.85  # of the SLO, in which a wait and the batches of all stages must end
_TAIL_MS = 2.0  # and so long before it


def energy_j(lanes: Sequence[Lane] | SharedPool, rate: float, reach: Sequence[float], wait_ms: float = 0.0) -> float:
    """Return joules above idle of a row, over all stages it is asked of: lanes, or one pool of workers that share their
    time.  Rows are taken to come to later stages one by one; those that waited together may be passed on together, and
    cost less than this says."""
    if isinstance(lanes, SharedPool):
        joules = lanes.joules([rate * part for part in reach], wait_ms)
        return sum(part * own for part, own in zip(reach, joules, strict=True))
    first = lanes[0].energy_j(rate * reach[0], wait_ms=wait_ms) * reach[0]
    return first + sum(part * lane.energy_j(rate * part) for lane, part in zip(lanes[1:], reach[1:], strict=True))


def worth(
    lanes: Sequence[Lane], rate: float, reach: Sequence[float], slo_ms: float, least_j: float, company: float = 0.0
) -> list[tuple[float, float]]:
    """Return waits (ms) that leave room for the batches that follow, bring `company` rows to the one that came first,
    and save at least `least_j` a row over any shorter one of these, behind the joules of a row, the most frugal first.
    Every stage must be stable."""
    left_ms = slo_ms - lanes[0].front_ms
    room_ms = _room_ms(lanes, rate, reach, max(min(_ROOM * left_ms, left_ms - _TAIL_MS), 0.0))
    found: list[tuple[float, float]] = []
    most_j = energy_j(lanes, rate, reach) - least_j
    for part in _PARTS:
        wait_ms = math.floor(part * room_ms / _STEP_MS) * _STEP_MS
        joules = energy_j(lanes, rate, reach, wait_ms)
        if wait_ms >= TICK_MS and 1e-3 * wait_ms * rate * reach[0] >= company and joules <= most_j:
            found.append((joules, wait_ms))
            most_j = joules - least_j
    return found[::-1]


def _room_ms(lanes: Sequence[Lane], rate: float, reach: Sequence[float], limit_ms: float) -> float:
    """Return the longest wait that leaves all batches time to be served."""
    later_ms = sum(_slowest_ms(lane, MORE * rate * part) for lane, part in zip(lanes[1:], reach[1:], strict=True))

    def fits(wait_ms: float) -> bool:
        return wait_ms + TICK_MS + _slowest_ms(lanes[0], MORE * rate * reach[0], wait_ms) + later_ms <= limit_ms

    return longest_ms(fits, limit_ms)


def _slowest_ms(lane: Lane, rate: float, wait_ms: float = 0.0) -> float:
    """Return what a batch takes on the slowest worker in 19 of 20 cases."""
    rows = lane.batch(min(rate, 0.999 * lane.capacity), wait_ms=wait_ms)
    return max(1e3 * service.seconds(rows) * (1.0 + SLOW * service.cv) for service, _ in lane.groups)
