"""Choose how long the rows of each lane wait for their batch to fill, and how many rows a batch may hold.

**What a wait is worth.**  A worker with a free credit takes whatever waits, so a lightly loaded lane serves rows one
by one, at the joules of a batch of one.  If a batch of several costs little more than that (a large GPU, a model with a
fixed cost a call), rows that wait for company are cheaper: with lane rate a, a wait of w gathers 1 + a w rows.  At 200
rows/s a wait of 10 ms gathers three.  The price is latency, up to w for the row that came first.  If energy is
proportional to the rows (a core that computes them one after the other) there is nothing to gain, and no row waits.

**What a wait costs the front end.**  A row that need not wait goes to its worker in the turn of the front end that
received it, and its answer takes another turn.  A wait ends in a turn of its own, one for each batch.  So rows in
batches of b take 1 + 2 / b turns each, which is more than 2 if b is below 2.  On cores a turn costs about as much as a
batch of a small model, so a wait there has to bring `COMPANY` to the row that came first.  Batches on GPUs cost many
turns.

**What a cap is worth.**  A batch of many rows takes long, and all its rows take as long.  A cap keeps batches shorter
than the SLO allows for, at the price of capacity and of joules a row.  With a wait it also lets a batch leave as soon
as it has enough.  (Both together may even shorten the tail of a busy lane: a batch of one that left at once would stand
in the way of the full one behind it.)

**How they are chosen.**  Each lane has a few options: as it is; waits of a third, two thirds and all of its *room*; and
the room that smaller batches leave.  The room is the longest wait after which a batch of the rows gathered meanwhile,
even at `MORE` times the rate, still ends within `ROOM` of the SLO in 19 of 20 cases.  So the SLO is kept even if the
rate moves before the next plan, up or down, or the machine is a little slower than its profile.  Each option is played
by the simulator on the same arrivals as the lane without it, `ROWS` rows long.  Only the ratio of the two plays'
energies is taken, on top of the closed form that the search compares configurations by.  No play knows what a batch
costs more after a pause; that is added for as many batches as were played (`_Dealt.batched_j`).  If a longer wait has
no fewer late rows, it has to save another `LEAST_GAIN` of the lane's energy.

If rows fall into several lanes, 95 % of all of them must be within the SLO.  The share of late rows is the sum over the
lanes, so the choice is a knapsack with one constraint, solved exactly over the fronts of (late rows, energy).  The
choice is played once more at greater length; if that p95 misses, it is made again with fewer late rows allowed.  All
p95 here keep `MARGIN` of the SLO in reserve, for sampling and for the model.  Waits are taken to last `TICK_MS` longer
than asked for, because the timers that end them tick in milliseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from clover.planning.model.objective import Objective
from clover.planning.model.problem import Problem, direct, is_shared
from clover.planning.model.queueing import Floats, Lane, Service, latencies_ms, mixture_p95_ms, play_batches
from clover.planning.packing.evaluation import UNBOUNDED_MS, lanes_of
from clover.types import Candidate, Configuration, Prediction, Routing

LEAST_GAIN = 0.02
"""A wait must save this part of the energy, of its lane and of all rows: less is noise, and waiting costs latency."""

ROWS = 3_000
TICK_MS = 1.0
COMPANY = 1.0
"""Rows that have to come in a wait, in the mean, for it to be weighed."""
_LONG_ROWS = 10_000
MARGIN = 0.03  # of the SLO
ROOM = 0.9  # of the SLO, in which a wait and the batch that follows must end
MORE = 1.25  # times the rate, at which another plan is made
_PARTS = (1 / 3, 2 / 3, 1.0)
SLOW = 1.645  # standard deviations of a normal service time
_LATE = (0.05, 0.04, 0.03, 0.02)  # of the rows may miss the SLO; less if a longer play finds more
_STEP = 1e-4  # of the share of late rows
_EPSILON = 1e-9
_CORES = re.compile(r"\d+c")  # how a core-set is named


@dataclass(frozen=True)
class _Option:
    """One way to form batches in a lane: its joules a row, and the share of its rows that is late."""

    wait_ms: float
    largest: int
    energy_j: float
    late: float


@dataclass(frozen=True)
class _Dealt:
    """A lane with the rows it gets: rows a second, and as which share of all."""

    variant: str
    lane: Lane
    rate: float
    share: float

    def latencies_ms(self, wait_ms: float, largest: int, rows: int) -> Floats:
        """Return equally likely latencies, timers that tick late included."""
        if wait_ms == 0.0 and largest == 0:
            return latencies_ms(self.lane.workers, self.rate, self.share)
        played = play_batches(self.lane, self.rate, self.share, largest=largest, wait_ms=wait_ms, rows=rows)
        return played.latencies_ms + TICK_MS if wait_ms > 0.0 else played.latencies_ms

    def batched_j(self, wait_ms: float, largest: int) -> float:
        """Return the joules of a row in batches formed so.

        A batch whose worker slept before it costs more, however many rows it has.  So where a row costs more in a batch
        than by itself, as a large one may that has to be copied, waiting pays if workers sleep, and not if they do not.
        """
        plain = play_batches(self.lane, self.rate, self.share, rows=ROWS)
        played = play_batches(self.lane, self.rate, self.share, largest=largest, wait_ms=wait_ms, rows=ROWS)
        busy_j = self.lane.energy_j(self.rate, self.share) - self.lane.resting_j(self.rate, self.share)
        resting_j = self.lane.resting_j(self.rate, self.share, batch=played.batch, waited=wait_ms > 0.0)
        return busy_j * played.energy_j_per_row / plain.energy_j_per_row + resting_j

    def load(self, largest: int) -> float:
        """Return rows over capacity in batches of at most `largest`."""
        return self.rate / sum(number * _capacity(service, largest) for service, number in self.lane.groups)


def least_company(configuration: Configuration) -> float:
    """Return the rows that have to come in a wait, in the mean, for it to be weighed on `configuration`."""
    return COMPANY if all(_CORES.fullmatch(group.profile) for group in configuration) else 0.0


def tune_waits(problem: Problem, objective: Objective, candidate: Candidate) -> Candidate:
    """Return `candidate` with waits and largest batches that raise its score, or itself if none do.

    The p95 of all rows keeps the SLO.  A candidate that only misses its p95 becomes feasible if other batches keep it,
    although its score may then be lower.  One that has waits or largest batches already, or is overloaded, is returned
    as it is.  The result is deterministic; simulations are remembered.
    """
    before, routing = candidate.prediction, candidate.routing
    if routing.wait_ms or routing.largest or before.utilisation > objective.max_utilisation + _EPSILON:
        return candidate
    if is_shared(candidate.configuration):  # mixes on shared workers do not wait
        return candidate
    dealt = _dealt(problem, candidate.configuration, routing)
    if not dealt or any(own.rate >= 0.999 * own.lane.capacity for own in dealt):
        return candidate
    late = before.p95_ms > objective.slo_ms
    limit_ms = (1.0 - MARGIN) * objective.slo_ms
    company = least_company(candidate.configuration)
    options = [_options(own, objective, limit_ms, company, caps=late) for own in dealt]
    if all(len(own) == 1 for own in options):
        return candidate
    for allowed in _LATE:
        chosen = _choose(options, [own.share for own in dealt], allowed)
        if chosen is None:
            return candidate
        p95_ms = _p95_ms(dealt, chosen)
        if p95_ms <= limit_ms:
            break
    else:
        return candidate
    saved_j = sum(
        own.share * (own.lane.energy_j(own.rate, own.share) - option.energy_j)
        for own, option in zip(dealt, chosen, strict=True)
    )
    energy_j = before.energy_j_per_row - saved_j
    score = objective.score(before.accuracy, energy_j)
    if not late and (saved_j < LEAST_GAIN * before.energy_j_per_row or score <= candidate.score):
        return candidate
    picked = [(own, option) for own, option in zip(dealt, chosen, strict=True) if option.wait_ms or option.largest]
    prediction = Prediction(
        p95_ms=p95_ms,
        accuracy=before.accuracy,
        energy_j_per_row=energy_j,
        utilisation=max([before.utilisation, *(own.load(option.largest) for own, option in picked if option.largest)]),
        method=before.method,
    )
    unserved = direct(problem, candidate.configuration, objective.max_utilisation).why
    feasible = candidate.feasible or (late and before.accuracy >= objective.planned_floor - 1e-6 and not unserved)
    return msgspec.structs.replace(
        candidate,
        routing=Routing(
            shares=routing.shares,
            largest={own.variant: option.largest for own, option in picked if option.largest},
            wait_ms={own.variant: option.wait_ms for own, option in picked if option.wait_ms},
            chain=routing.chain,
            thresholds=routing.thresholds,
        ),
        prediction=prediction,
        score=score,
        feasible=feasible,
        why="" if feasible else candidate.why,
    )


def as_batched(problem: Problem, configuration: Configuration, routing: Routing, plain: Prediction) -> Prediction:
    """Return what `plain`, the prediction of these shares without waits, becomes with the waits and largest batches of
    `routing`.  Every lane must be stable without them."""
    dealt = _dealt(problem, configuration, routing)
    parts, energy_j, load = [], 0.0, plain.utilisation
    for own in dealt:
        wait_ms, largest = routing.wait_ms.get(own.variant, 0.0), routing.largest.get(own.variant, 0)
        if largest:
            load = max(load, own.load(largest))
        if load >= 0.999:
            return msgspec.structs.replace(plain, p95_ms=UNBOUNDED_MS, utilisation=load)
        lane_j = own.batched_j(wait_ms, largest) if wait_ms or largest else own.lane.energy_j(own.rate, own.share)
        energy_j += own.share * lane_j
        parts.append((own.share, own.latencies_ms(wait_ms, largest, _LONG_ROWS)))
    return msgspec.structs.replace(plain, p95_ms=mixture_p95_ms(parts), energy_j_per_row=energy_j, utilisation=load)


def _dealt(problem: Problem, configuration: Configuration, routing: Routing) -> list[_Dealt]:
    """Return the lanes that get rows."""
    found, shares = lanes_of(problem, configuration), routing.shares
    return [
        _Dealt(variant, lane, problem.rate * shares[variant], shares[variant])
        for variant, lane in zip(found.variants, found.lanes, strict=True)
        if shares.get(variant, 0.0) > 0.0
    ]


def _options(own: _Dealt, objective: Objective, limit_ms: float, company: float, *, caps: bool) -> list[_Option]:
    """Return the ways to form batches that may pay, the plain one first; `caps`: caps without a wait as well."""
    lane, rate = own.lane, own.rate
    plain_j = lane.energy_j(rate, own.share)
    options = [_Option(0.0, 0, plain_j, _late(own.latencies_ms(0.0, 0, ROWS), limit_ms))]
    sizes = sorted({batch for service, _ in lane.groups for batch in service.batches})
    able = [size for size in sizes[:-1] if own.load(size) <= objective.max_utilisation]
    asked = [(0.0, size) for size in able] if caps else []
    if lane.least_energy_j() <= (1.0 - LEAST_GAIN) * plain_j:
        ends_ms = ROOM * (objective.slo_ms - lane.front_ms)
        room_ms = _room_ms(lane, rate, sizes[-1], ends_ms)
        waits = [(part * room_ms, 0) for part in _PARTS]
        shorter = [size for size in able if 1 < size < _rows_gathered(rate, room_ms)]
        waits += [(_room_ms(lane, rate, size, ends_ms), size) for size in shorter[-1:]]
        asked += [
            (math.floor(wait_ms * 10.0) / 10.0, largest)
            for wait_ms, largest in waits
            if wait_ms >= TICK_MS
            and 1e-3 * wait_ms * rate >= company
            and _hoped_j(own, wait_ms, largest or sizes[-1]) <= (1.0 - LEAST_GAIN) * plain_j
        ]
    for wait_ms, largest in asked:
        energy_j = own.batched_j(wait_ms, largest)
        if not caps and energy_j > (1.0 - LEAST_GAIN) * plain_j:
            continue
        options.append(_Option(wait_ms, largest, energy_j, _late(own.latencies_ms(wait_ms, largest, ROWS), limit_ms)))
    return _worth_it(options, plain_j)


def _rows_gathered(rate: float, wait_ms: float) -> float:
    """Return rows that come together in that wait, at `MORE` times the rate."""
    return 1.0 + MORE * rate * wait_ms * 1e-3


def _hoped_j(own: _Dealt, wait_ms: float, largest: int) -> float:
    """Return a low guess of the joules of a row under that wait: each batch holds the rows of a busy lane and of the
    wait."""
    lane = own.lane
    rows = min(lane.batch(own.rate, own.share) + _rows_gathered(own.rate, wait_ms), largest)
    return sum(part * service.least_energy_to(rows) for part, (service, _) in zip(lane.parts, lane.groups, strict=True))


def _worth_it(options: Sequence[_Option], plain_j: float) -> list[_Option]:
    """Return those without a wait, and of ever longer waits those that save enough over any shorter one, or that come
    with fewer late rows (short batches that go at once are in the way of full ones)."""
    kept: list[_Option] = []
    for option in sorted(options, key=lambda option: (option.wait_ms, option.largest)):
        most_j = option.energy_j + LEAST_GAIN * plain_j
        if option.wait_ms == 0.0 or not any(own.energy_j < most_j and own.late <= option.late for own in kept):
            kept.append(option)
    return kept


def _room_ms(lane: Lane, rate: float, largest: int, limit_ms: float) -> float:
    """Return the longest wait that leaves a batch of the rows gathered in it (at most `largest`) time to be served."""

    def fits(wait_ms: float) -> bool:
        rows = min(_rows_gathered(rate, wait_ms), largest)
        slowest_ms = max(1e3 * service.seconds(rows) * (1.0 + SLOW * service.cv) for service, _ in lane.groups)
        return wait_ms + TICK_MS + slowest_ms <= limit_ms

    return longest_ms(fits, limit_ms)


def longest_ms(fits: Callable[[float], bool], limit_ms: float) -> float:
    """Return the longest wait up to `limit_ms` that `fits`, as every shorter one does; 0 if none does."""
    low, high = 0.0, limit_ms
    if not fits(low):
        return 0.0
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _choose(options: Sequence[Sequence[_Option]], shares: Sequence[float], allowed: float) -> list[_Option] | None:
    """Return the option of each lane that together cost the least energy with at most `allowed` of all rows late; None
    if there are none."""
    front: list[tuple[float, float, tuple[_Option, ...]]] = [(0.0, 0.0, ())]
    for own, share in zip(options, shares, strict=True):
        reached = [
            (
                math.ceil((late + share * option.late) / _STEP - _EPSILON) * _STEP,
                energy_j + share * option.energy_j,
                (*picks, option),
            )
            for late, energy_j, picks in front
            for option in own
        ]
        front, least_j = [], math.inf
        for late, energy_j, picks in sorted(reached, key=lambda item: item[:2]):
            if late <= allowed + _EPSILON and energy_j < least_j:
                front.append((late, energy_j, picks))
                least_j = energy_j
    return list(front[-1][2]) if front else None


def _p95_ms(dealt: Sequence[_Dealt], chosen: Sequence[_Option]) -> float:
    return mixture_p95_ms(
        [
            (own.share, own.latencies_ms(option.wait_ms, option.largest, _LONG_ROWS))
            for own, option in zip(dealt, chosen, strict=True)
        ]
    )


def _late(latencies: Floats, limit_ms: float) -> float:
    return float((latencies > limit_ms).mean())


def _capacity(service: Service, largest: int) -> float:
    """Return rows a second of a worker in batches of at most `largest`."""
    sizes = {min(batch, largest) for batch in service.batches}
    return max(size / service.seconds(size) for size in sizes)
