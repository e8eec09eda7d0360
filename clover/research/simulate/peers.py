"""How other serving systems choose variants: their published rules as policies, to compare with in a simulation.

`infaas`   INFaaS (Romero et al., USENIX ATC 2021): the cheapest hardware that serves the load with variants which are
           accurate and fast enough.  A variant qualifies if its accuracy reaches the accuracy floor and its largest
           batch takes no longer than the SLO.  What costs is the device: as few devices stay awake as serve the load
           with `INFAAS_SLACK` of their capacity to spare, each cut and filled for the most rows a second.
`proteus`  Proteus (Ahmad et al., ASPLOS 2024): the most accurate answers that a fixed fleet can give at this load.  An
           integer program chooses the variant of each worker and its part of the rows, so that the mean accuracy is
           highest and `PROTEUS_ROOM` times the load is served.  A variant qualifies on a slice if a batch takes less
           than half the SLO, and serves what its largest such batch does.  If nothing serves so much, less room is
           left, in the paper's steps.  All devices are awake.

Neither knows joules or grams, nor how long rows wait.  Written from the papers' artifacts (stanford-mast/INFaaS at
4c5ff7b, UMass-LIDS/Proteus at 6967c93), whose constants these are.

What is ours: the controller, its rate and its transitions; the router and its batches, held to the rule's largest;
slices, where Proteus's devices are whole (its program may cut a GPU anew here); and the choice among plans that a rule
does not tell apart, which is the one of most capacity.  Proteus's program is solved to its optimum (the artifact stops
at a gap of a half).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from clover.errors import PlanError
from clover.planning.model.objective import PlanningInput
from clover.planning.model.problem import Problem
from clover.planning.packing.candidates import Profiles, kinds_of, multisets_of
from clover.planning.packing.evaluation import lanes_of, predict
from clover.planning.packing.waits import as_batched
from clover.policies.plans import plan_of, result_of
from clover.types import Candidate, Configuration, GroupCount, Plan, Routing, State

INFAAS_SLACK = 0.05
PROTEUS_ROOM = 1.05
_PROTEUS_STEP = 0.05
_PROTEUS_LEAST = 0.2
_TIE = 1e-6
"""What all capacity that there could be is worth beside a percent of accuracy."""

PEERS = {
    "infaas": "clover.research.simulate.peers:InfaasPolicy",
    "proteus": "clover.research.simulate.peers:ProteusPolicy",
}
"""The policies by their names in a simulation, as `clover.policies.build` finds them."""
Peak = tuple[int, float]
"""The largest batch that a rule allows, and the rows a second that it serves."""


class InfaasPolicy:
    """INFaaS's rule."""

    name = "infaas"

    def propose(self, state: State) -> Plan:
        """Return the cheapest plan; PlanError if no variant is accurate and fast enough on any layout."""
        given = PlanningInput.from_state(state)
        problem = given.problem
        peaks = {
            key: peak
            for key, peak in _peaks(problem, given.objective.slo_ms).items()
            if problem.accuracy[key[0]] >= given.objective.accuracy_floor - 1e-9
        }
        fastest = {
            profile: max((peak, variant) for (variant, name), (_, peak) in peaks.items() if name == profile)
            for profile in {name for _, name in peaks}
        }
        counts, capacity, awake = Counter[tuple[str, str]](), 0.0, 0
        devices = [device for device in state.devices if device.layouts]
        for device in devices:
            fits = [way for way in multisets_of(device) if all(profile in fastest for profile, _ in way)]
            if not fits:
                raise PlanError(f"no variant reaches the accuracy floor within the SLO on all of {device.device}")
            way = max(fits, key=lambda way: sum(count * fastest[profile][0] for profile, count in way))
            for profile, count in way:
                rows_s, variant = fastest[profile]
                counts[variant, profile] += count
                capacity += count * rows_s
            awake += 1
            if problem.spared_w is not None and capacity * (1.0 - INFAAS_SLACK) >= problem.rate:
                break
        shares: dict[str, float] = defaultdict(float)
        for (variant, profile), count in counts.items():
            shares[variant] += count * fastest[profile][0]
        short = capacity * (1.0 - INFAAS_SLACK) < problem.rate
        return _plan(given, counts, shares, peaks, self.name, awake if problem.spared_w is not None else 0, short)


class ProteusPolicy:
    """Proteus's rule."""

    name = "proteus"

    def propose(self, state: State) -> Plan:
        """Return the most accurate plan; PlanError if no variant is fast enough on any layout."""
        given = PlanningInput.from_state(state)
        peaks = _peaks(given.problem, 0.5 * given.objective.slo_ms)
        room = PROTEUS_ROOM
        while room > _PROTEUS_LEAST:
            found = _most_accurate(given.problem, peaks, room * given.problem.rate)
            if found is not None:
                return _plan(given, *found, peaks, self.name, 0, room < 1.0)
            room -= _PROTEUS_STEP
        raise PlanError(f"no variant answers within half the SLO of {given.objective.slo_ms:.2f} ms on these devices")


def _peaks(problem: Problem, limit_ms: float) -> dict[tuple[str, str], Peak]:
    """Return what each (variant, profile) serves in its largest batch that takes `limit_ms` at most; those of which no
    batch does are left out."""
    peaks = {}
    for key, service in problem.services.items():
        fits = [batch for batch, ms in zip(service.batches, service.mean_ms, strict=True) if ms <= limit_ms]
        if fits:
            peaks[key] = fits[-1], fits[-1] / service.seconds(fits[-1])
    return peaks


def _most_accurate(
    problem: Problem, peaks: Mapping[tuple[str, str], Peak], rate: float
) -> tuple[Counter[tuple[str, str]], dict[str, float]] | None:
    """Return workers by (variant, profile) and shares by variant of the most accurate plan that serves `rate` rows a
    second; None if there is none."""
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise PlanError("proteus needs HiGHS: pip install 'clover-inference[analysis]'") from error
    kinds = kinds_of(problem.devices)
    ways: list[tuple[int, Profiles]] = [(at, way) for at, (own, _) in enumerate(kinds) for way in own]
    keys, variants = sorted(peaks), sorted({variant for variant, _ in peaks})
    cuts, workers = len(ways), len(keys)
    size = cuts + workers + len(variants)
    rows, low, high = [], [], []

    def add(entries: Mapping[int, float], least: float, most: float) -> None:
        row = np.zeros(size)
        for column, value in entries.items():
            row[column] = value
        rows.append(row)
        low.append(least)
        high.append(most)

    for at, (_, number) in enumerate(kinds):
        add({column: 1.0 for column, (kind, _) in enumerate(ways) if kind == at}, number, number)
    for profile in {name for _, way in ways for name, _ in way}:  # every slice has a worker
        entries = {column: float(dict(way).get(profile, 0)) for column, (_, way) in enumerate(ways)}
        entries |= {cuts + column: -1.0 for column, key in enumerate(keys) if key[1] == profile}
        add(entries, 0.0, 0.0)
    for column, variant in enumerate(variants):  # no more rows than its workers serve
        entries = {cuts + at: -peaks[key][1] for at, key in enumerate(keys) if key[0] == variant}
        add({**entries, cuts + workers + column: rate}, -np.inf, 0.0)
    add(dict.fromkeys(range(cuts + workers, size), 1.0), 1.0, 1.0)
    cost = np.zeros(size)
    most = sum(number for _, number in kinds) * 8.0 * max((rows_s for _, rows_s in peaks.values()), default=1.0)
    cost[cuts : cuts + workers] = [-_TIE * peaks[key][1] / most for key in keys]
    cost[cuts + workers :] = [-problem.accuracy[variant] for variant in variants]
    whole = np.ones(size)
    whole[cuts + workers :] = 0.0
    upper = np.full(size, np.inf)
    upper[cuts + workers :] = 1.0
    found = milp(
        cost, integrality=whole, bounds=Bounds(0.0, upper), constraints=LinearConstraint(np.array(rows), low, high)
    )
    if found.x is None:
        return None
    counts = Counter({key: round(float(found.x[cuts + at])) for at, key in enumerate(keys)})
    shares = {variant: max(0.0, float(found.x[cuts + workers + at])) for at, variant in enumerate(variants)}
    return +counts, {v: share for v, share in shares.items() if any(own == v and n for (own, _), n in counts.items())}


def _plan(
    given: PlanningInput,
    counts: Mapping[tuple[str, str], int],
    shares: Mapping[str, float],
    peaks: Mapping[tuple[str, str], Peak],
    policy: str,
    awake: int,
    short: bool,
) -> Plan:
    """Return the plan of these workers and shares.  It is feasible if it serves the load (not `short`): the rules know
    no other limit."""
    problem, objective = given.problem, given.objective
    configuration: Configuration = tuple(
        GroupCount(variant=variant, profile=profile, count=count)
        for (variant, profile), count in sorted(counts.items())
    )
    total = sum(shares.values())
    largest = {
        variant: max(batch for key, (batch, _) in peaks.items() if key in counts and key[0] == variant)
        for variant in shares
    }
    routing = Routing(shares={variant: share / total for variant, share in shares.items()}, largest=largest)
    lanes = lanes_of(problem, configuration)
    plain = predict(problem, lanes, tuple(routing.shares.get(variant, 0.0) for variant in lanes.variants))
    prediction = plain if plain.utilisation >= 0.999 else as_batched(problem, configuration, routing, plain)
    candidate = Candidate(
        configuration=configuration,
        routing=routing,
        prediction=prediction,
        score=objective.score(prediction.accuracy, prediction.energy_j_per_row),
        feasible=not short,
        why=f"they serve less than the {problem.rate:.1f} rows/s" if short else "",
        awake=awake,
    )
    limit = float("inf")  # the rules have another objective
    return plan_of(given.state, problem, objective, result_of(candidate), policy=policy, limit=limit)
