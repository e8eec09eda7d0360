"""The paper's schemes: what each of them is exactly, and that what they predict is what will run."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from typing import Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover._native import queueing as native
from clover._native.random import Random
from clover.errors import PlanError
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import Problem, fitting, problem_of
from clover.planning.packing.evaluation import lanes_of, predict
from clover.planning.transition.layout import lay_out
from clover.policies import POLICIES, build
from clover.policies.paper.fifo import FEW, Fifo, stack
from clover.policies.paper.fleet import RADIUS, draw_neighbour, fleet_of, neighbour
from clover.policies.paper.walk import GIVE_UP, NEW, moves, punish, punish_as_artifact
from clover.types import Configuration, DeviceShape, GroupCount, Plan, Prediction, State, configuration_of
from tests.support.enumeration import configurations
from tests.support.mig_fixture import a100, a100s, mig_profile
from tests.support.profiles_fixture import cpu, objective, profile, state, worker

TWO = {"small": (88.0, 1.0), "large": (92.0, 4.0)}
SCHEMES = tuple(name for name, (path, _) in POLICIES.items() if path.startswith("clover.policies.paper."))
NAMES = ["base", *SCHEMES]
CPUS = {
    "a box": (cpu(2),),
    "two boxes": (cpu(2, "a"), cpu(2, "b")),
    "unequal boxes": (cpu(2, "a"), cpu(4, "b")),
}
GPUS = {
    "one A100": a100s(1),
    "three A100s": a100s(3),
    "four, one of them lost": (*a100s(3), a100("gpu3", lost=True)),
}


def on(devices: tuple[DeviceShape, ...], **more: object) -> State:
    """A state of these devices, with a profile that fits them."""
    measured = mig_profile(TWO) if devices[0].kind == "mig" else profile((1, 2, 4))
    config = more.pop("config", None) or objective(slo_ms=20.0, floor=0.0, lam=0.1)
    return state(devices=devices, measured=measured, config=config, **more)  # type: ignore[arg-type]


def fifo_of(now: State) -> Fifo:
    return Fifo(problem_of(now), objective_of(now))


def config(*groups: tuple[str, str, int]) -> Configuration:
    return tuple(GroupCount(variant=v, profile=p, count=n) for v, p, n in sorted(groups))


def shares_of(problem: Problem, configuration: Configuration) -> dict[str, float]:
    """FIFO shares by the native model alone, where workers keep up one row at a time."""
    services = [problem.services[group.variant, group.profile] for group in configuration]
    counts = [group.count for group in configuration]
    model: Literal["pf", "mf"] = "pf" if sum(counts) <= FEW else "mf"
    times, cv = [service.seconds(1) for service in services], [service.cv for service in services]
    nothing = [0.0] * len(counts)
    stable, found, *_ = native.evaluate(times, cv, nothing, nothing, counts, problem.rate, model, 0.95)
    assert stable
    total: Counter[str] = Counter()
    for group, share in zip(configuration, found.tolist(), strict=True):
        total[group.variant] += share
    return dict(total)


def expected_of(problem: Problem, configuration: Configuration, shares: dict[str, float]) -> Prediction:
    lanes = lanes_of(problem, configuration)
    return predict(problem, lanes, tuple(shares[variant] for variant in lanes.variants))


# --- every scheme, everywhere -----------------------------------------------------------------


@pytest.mark.parametrize("devices", [*CPUS.values(), *GPUS.values()], ids=[*CPUS, *GPUS])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_gives_a_whole_plan(name: str, devices: tuple[DeviceShape, ...]) -> None:
    now = on(devices, rate=60.0 * len(devices))
    plan = build(name).propose(now)
    assert plan.policy == name == build(name).name
    assert plan.feasible
    assert configuration_of(plan.deployment) == plan.configuration
    assert plan.candidates[0].configuration == plan.configuration
    assert 1 <= len(plan.candidates) <= 10
    assert plan.evaluated >= 1
    assert plan.bound is not None
    assert plan.score <= plan.bound + 1e-9
    assert plan == build(name).propose(now), "the same state, the same plan"
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    after = build(name).propose(msgspec.structs.replace(now, running=plan.deployment, grid_s=3600.0))
    assert after.feasible
    assert after.score >= plan.score - 1e-9, "a search begins at what runs"


@pytest.mark.parametrize("devices", [*CPUS.values(), *GPUS.values()], ids=[*CPUS, *GPUS])
@pytest.mark.parametrize("name", SCHEMES)
def test_shares_are_those_of_fifo_and_the_prediction_is_of_what_will_run(
    name: str, devices: tuple[DeviceShape, ...]
) -> None:
    now = on(devices, rate=60.0 * len(devices), g_per_kwh=400.0)
    plan = build(name).propose(now)
    problem = problem_of(now)
    shares = shares_of(problem, plan.configuration)
    assert plan.routing.shares == pytest.approx(shares, abs=2e-6)
    expected = expected_of(problem, plan.configuration, shares)
    assert plan.prediction.accuracy == pytest.approx(expected.accuracy)
    assert plan.prediction.energy_j_per_row == pytest.approx(expected.energy_j_per_row)
    assert plan.prediction.p95_ms == pytest.approx(expected.p95_ms)
    assert plan.prediction.utilisation == pytest.approx(expected.utilisation)
    assert plan.score == pytest.approx(objective_of(now).score(expected.accuracy, expected.energy_j_per_row))
    assert "FIFO" in plan.reason


@pytest.mark.slow
def test_the_seed_and_the_hour_move_the_searches_and_nothing_else() -> None:
    now = on(a100s(3), rate=300.0)
    for name in SCHEMES:
        others = [
            build(name).propose(msgspec.structs.replace(now, **change))
            for change in ({"seed": 1}, {"seed": 2}, {"seed": -1}, {"grid_s": 3600.0})
        ]
        first = build(name).propose(now)
        if name in ("clover", "clover-artifact", "blover"):
            assert any(plan.configuration != first.configuration for plan in others)
        else:
            assert all(plan == first for plan in others)


# --- the two that do not search ---------------------------------------------------------------


def test_base_and_co2opt_are_the_two_ends() -> None:
    now = on((*a100s(2), a100("gpu2", blocked=((6, 1),))), rate=100.0)
    assert build("base").propose(now).configuration == config(
        ("large", "7g.40gb", 2), ("large", "4g.20gb", 1), ("large", "2g.10gb", 1)
    )
    plan = build("co2opt").propose(now)
    assert plan.configuration == config(("small", "1g.5gb", 20))
    assert plan.routing.shares == {"small": 1.0}
    assert build("co2opt").propose(on((cpu(2),))).configuration == config(("small", "1c", 2))


def test_co2opt_takes_the_smallest_slices_that_hold_its_variant() -> None:
    def measured(*profiles: str) -> State:
        now = on(a100s(1), rate=100.0)
        rows = tuple(m for m in now.profile.latency if m.variant == "large" or m.profile in profiles)
        return msgspec.structs.replace(now, profile=msgspec.structs.replace(now.profile, latency=rows))

    plan = build("co2opt").propose(measured("2g.10gb", "3g.20gb", "7g.40gb"))
    assert plan.configuration == config(("small", "2g.10gb", 2), ("small", "3g.20gb", 1))
    with pytest.raises(PlanError, match="small was not measured on every profile of any layout of gpu0"):
        build("co2opt").propose(measured("2g.10gb"))


# --- what the paper does not know -------------------------------------------------------------


def test_plans_below_the_floor_or_above_the_slo_are_proposed_and_marked() -> None:
    below = build("co2opt").propose(on((cpu(2),), config=objective(floor=91.0)))
    assert not below.feasible
    assert "below the floor of 91.00 %" in below.reason
    assert not below.candidates[0].feasible
    for name in SCHEMES:
        late = build(name).propose(on((cpu(2),), config=objective(slo_ms=0.05, floor=0.0)))
        assert not late.feasible
        assert "exceeds the SLO" in late.reason
        assert late.evaluated <= GIVE_UP
        over = build(name).propose(on((cpu(2),), rate=1e6))
        assert not over.feasible
        assert "utilisation" in over.reason
        assert msgspec.json.decode(msgspec.json.encode(over), type=Plan) == over


def test_the_form_is_the_papers_and_the_artifact_has_a_lambda_of_its_own() -> None:
    for config_ in (objective("floor", floor=91.0), objective("paper", floor=91.0)):
        now = on((cpu(2),), config=config_)
        derived = objective_of(on((cpu(2),), config=objective("paper", floor=91.0))).lam
        assert f"lambda {derived:.4f}" in build("clover").propose(now).reason
        assert "lambda 0.1000" in build("clover-artifact").propose(now).reason
    now = on((cpu(2),), config=objective(lam=0.7))
    assert "lambda 0.7000" in build("clover-artifact").propose(now).reason


# --- closed forms -----------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data(), load=st.floats(0.02, 0.95), gpus=st.sampled_from([1, 2, 4]))
def test_closed_forms_are_those_of_the_planner(data: st.DataObject, load: float, gpus: int) -> None:
    now = on(a100s(gpus))
    deals = configurations(a100s(1), fitting(problem_of(now)))
    parts = [data.draw(st.sampled_from(deals)) for _ in range(gpus)]
    total: Counter[tuple[str, str]] = Counter()
    for group in itertools.chain(*parts):
        total[group.variant, group.profile] += group.count
    configuration = config(*((v, p, n) for (v, p), n in total.items()))
    whole = sum(lane.capacity for lane in lanes_of(problem_of(now), configuration).lanes)
    now = msgspec.structs.replace(now, arrival_rate=load * whole)
    fifo = fifo_of(now)
    rows = stack([fifo.counts(configuration)])
    forms = fifo.closed_forms(rows)
    assert fifo.configuration(rows[0]) == configuration
    assert forms.shares.sum() == pytest.approx(1.0)
    shares = dict(zip(fifo.variants, forms.shares[0].tolist(), strict=True))
    expected = expected_of(fifo.problem, configuration, shares)
    assert forms.accuracy[0] == pytest.approx(expected.accuracy)
    assert forms.energy_j[0] == pytest.approx(expected.energy_j_per_row, rel=1e-9)
    assert forms.utilisation[0] == pytest.approx(expected.utilisation)
    assert not (forms.late[0] and expected.p95_ms < 0.98 * fifo.objective.slo_ms)
    single = sum(
        group.count / fifo.problem.services[group.variant, group.profile].seconds(1) for group in configuration
    )
    if fifo.problem.rate < 0.999 * single:
        own = shares_of(fifo.problem, configuration)
        assert {v: s for v, s in shares.items() if s > 0.0} == pytest.approx(own, abs=1e-9)


@pytest.mark.parametrize(("gpus", "load"), [(1, 0.3), (1, 0.8), (4, 0.3), (4, 0.6), (4, 0.9)])
def test_many_are_weighed_as_one_by_one(gpus: int, load: float) -> None:
    now = on(a100s(gpus), rate=load * gpus * 2_000.0)
    fifo = fifo_of(now)
    rows = gpus * fleet_of(fifo.problem, fifo.keys, alike=True).units[0].deals.counts
    together = fifo.closed_forms(rows)
    for number in range(0, len(rows), 7):
        alone = fifo.closed_forms(rows[number : number + 1])
        for name in ("shares", "accuracy", "energy_j", "utilisation", "score", "late"):
            assert getattr(together, name)[number] == pytest.approx(getattr(alone, name)[0], rel=1e-9, abs=1e-12), name


def test_shares_go_over_smoothly_into_those_of_workers_that_are_always_busy() -> None:
    configuration = config(("large", "1c", 1), ("small", "1c", 1))

    def shares(rate: float) -> dict[str, float]:
        fifo = fifo_of(on((cpu(2),), rate=rate))
        forms = fifo.closed_forms(stack([fifo.counts(configuration)]))
        return dict(zip(fifo.variants, forms.shares[0].tolist(), strict=True))

    single = 1e3 / 1.0 + 1e3 / 4.0  # rows a second, one row at a time
    assert shares(single - 1e-3) == pytest.approx(shares(single + 1e-3), abs=1e-4)
    assert shares(single) == pytest.approx({"small": 0.8, "medium": 0.0, "large": 0.2}, abs=1e-4)
    assert shares(1e9) == pytest.approx({"small": 0.8, "medium": 0.0, "large": 0.2}), "in proportion to capacity"
    idle = shares(0.1)
    assert idle["small"] == pytest.approx(0.5, abs=1e-3), "any idle worker: all alike"


def test_what_only_batches_carry_is_planned() -> None:
    now = on((cpu(2),), rate=1_400.0, config=objective(slo_ms=30.0, floor=0.0, lam=0.1))
    plan = build("oracle").propose(now)
    assert plan.feasible
    assert "always busy" in plan.reason
    assert plan.prediction.p95_ms <= 30.0


# --- oracles ----------------------------------------------------------------------------------


def brute(now: State, alike: list[Configuration]) -> float:
    """The best f that holds the latency target, by weighing everything."""
    problem, scored = problem_of(now), objective_of(now)
    best = -math.inf
    for configuration in alike:
        expected = expected_of(problem, configuration, shares_of(problem, configuration))
        if expected.p95_ms <= scored.slo_ms and expected.utilisation <= scored.max_utilisation:
            best = max(best, scored.score(expected.accuracy, expected.energy_j_per_row))
    return best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "number", "rate", "slo_ms"),
    [(a100(), 2, 120.0, 30.0), (a100(), 2, 600.0, 4.0), (a100(), 4, 900.0, 3.0), (cpu(4), 2, 150.0, 9.0)],
)
def test_the_oracle_of_equal_devices_is_the_best_of_all_that_are_alike(
    device: DeviceShape, number: int, rate: float, slo_ms: float
) -> None:
    devices = tuple(msgspec.structs.replace(device, device=f"d{i}") for i in range(number))
    devices = a100s(number) if device.kind == "mig" else tuple(cpu(4, f"d{i}") for i in range(number))
    now = on(devices, rate=rate, g_per_kwh=300.0, config=objective(slo_ms=slo_ms, floor=0.0, lam=0.06))
    one = configurations(devices[:1], fitting(problem_of(now)))
    alike = [config(*((g.variant, g.profile, g.count * number) for g in deal)) for deal in one]
    plan = build("oracle:alike").propose(now)
    assert plan.feasible
    assert plan.score == pytest.approx(brute(now, alike), abs=1e-9)
    assert all(group.count % number == 0 for group in plan.configuration)
    assert f"best of {len(one)}" in plan.reason
    assert "alike" in plan.reason


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "rate"), [(a100s(2), 700.0), (tuple(cpu(4, name) for name in "ab"), 400.0)])
def test_the_oracle_keeps_a_target_that_the_best_f_just_misses(devices: tuple[DeviceShape, ...], rate: float) -> None:
    slo_ms = 30.0
    one = configurations(devices[:1], fitting(problem_of(on(devices))))
    alike = [config(*((g.variant, g.profile, g.count * 2) for g in deal)) for deal in one]
    scores = []
    for _ in range(3):
        now = on(devices, rate=rate, config=objective(slo_ms=slo_ms, floor=0.0, lam=0.06), g_per_kwh=300.0)
        plan = build("oracle:alike").propose(now)
        assert plan.feasible
        assert plan.score == pytest.approx(brute(now, alike), abs=1e-9)
        assert plan.prediction.p95_ms <= slo_ms
        slo_ms = 0.98 * plan.prediction.p95_ms
        scores.append(plan.score)
    assert scores[0] > scores[1] > scores[2]


@pytest.mark.slow
@pytest.mark.parametrize("lam", [0.02, 0.06, 0.5])
@pytest.mark.parametrize("load", [0.3, 0.75])
@pytest.mark.parametrize(
    "devices", [CPUS["two boxes"], CPUS["unequal boxes"], a100s(1), a100s(3)], ids=["cpus", "unequal", "one", "three"]
)
def test_no_scheme_beats_the_oracle(devices: tuple[DeviceShape, ...], load: float, lam: float) -> None:
    full = sum(1 if device.kind == "cpu" else 3 for device in devices) * 350.0
    config_ = objective(slo_ms=12.0, floor=0.0, lam=lam)
    for seed, g_per_kwh in ((0, 80.0), (1, 450.0)):
        now = msgspec.structs.replace(
            on(devices, rate=load * full, g_per_kwh=g_per_kwh, config=config_), seed=seed, grid_s=900.0 * seed
        )
        best = build("oracle").propose(now)
        assert best.feasible
        assert "free" in best.reason
        for name in (*SCHEMES, "base"):
            other = build(name).propose(now)
            assert not other.feasible or other.score <= best.score + 1e-9, name
            again = build("oracle").propose(msgspec.structs.replace(now, running=other.deployment))
            assert again.score >= best.score - 1e-3, "what runs may lead a climb elsewhere, and not far down"


def test_the_oracle_of_free_devices_climbs_where_they_are_too_many_to_list() -> None:
    now = on(a100s(6), rate=2_000.0, config=objective(slo_ms=6.0, floor=0.0, lam=0.05), g_per_kwh=300.0)
    free, alike = build("oracle").propose(now), build("oracle:alike").propose(now)
    assert free.feasible
    assert alike.feasible
    assert free.score >= alike.score
    assert "not proven best" in free.reason


def test_unequal_devices_are_climbed_or_refused() -> None:
    devices = (*a100s(2), a100("gpu2", blocked=((0, 1),)), a100("gpu3", blocked=((2, 2),)))
    now = state(devices=devices, measured=mig_profile(), rate=300.0, config=objective(slo_ms=20.0, floor=0.0, lam=0.1))
    with pytest.raises(PlanError, match="even if all of a kind are alike"):
        build("oracle:alike").propose(now)
    best = build("oracle").propose(now)
    assert best.feasible
    for name in ("clover", "clover-artifact", "blover", "co2opt", "base"):
        other = build(name).propose(now)
        assert not other.feasible or other.score <= best.score + 1e-9


def test_devices_that_run_nothing_are_refused() -> None:
    for name in SCHEMES:
        with pytest.raises(PlanError, match="no device that can be used"):
            build(name).propose(on((a100(lost=True),)))
        with pytest.raises(PlanError):
            build(name).propose(state(devices=(cpu(4),), measured=profile((8,))))


# --- the graph and its searches ---------------------------------------------------------------

FLEETS = {"cpus": (cpu(2, "a"), cpu(4, "b")), "gpus": (*a100s(2), a100("gpu2", blocked=((6, 1),)))}


@settings(max_examples=80, deadline=None)
@given(fleet_name=st.sampled_from(sorted(FLEETS)), seed=st.integers(0, 2**32), drawn=st.booleans())
def test_neighbours_are_near_and_legal(fleet_name: str, seed: int, drawn: bool) -> None:
    devices = FLEETS[fleet_name]
    now = on(devices)
    problem, fifo, rng = problem_of(now), fifo_of(now), Random(seed)
    fleet = fleet_of(problem, fifo.keys, alike=drawn)
    at = tuple(rng.below(len(unit.deals.counts)) for unit in fleet.units)
    following, met = draw_neighbour(fleet, at, {at}, rng) if drawn else (neighbour(fleet, at, rng), True)
    assert following is not None
    apart = sum(
        int(np.abs(unit.deals.counts[one] - unit.deals.counts[other]).sum())
        for unit, one, other in zip(fleet.units, at, following, strict=True)
    )
    assert apart > 0 or not met
    assert apart <= RADIUS or not met
    if not drawn:
        assert np.abs(fleet.counts(at) - fleet.counts(following)).sum() <= RADIUS
    target = fifo.configuration(fleet.counts(following))
    backend = dict.fromkeys(problem.variants, "eager")
    deployment = lay_out(target, family="toy", backend=backend, devices=devices)
    assert configuration_of(deployment) == target
    held = fleet.running(msgspec.structs.replace(now, running=deployment))
    assert held is None or np.array_equal(fleet.counts(held), fleet.counts(following))


def test_the_chances_of_deals_are_those_of_drawing() -> None:
    for device in (cpu(4), a100()):
        now = on((device,))
        fifo = fifo_of(now)
        fleet = fleet_of(fifo.problem, fifo.keys, alike=True)
        deals = fleet.units[0].deals
        chance: defaultdict[bytes, float] = defaultdict(float)
        for layout in deals.raw:
            for chosen in itertools.product(*layout):
                row = np.bincount(chosen, minlength=len(fifo.keys)).astype(np.int64)
                chance[row.tobytes()] += 1.0 / len(deals.raw) / math.prod(map(len, layout))
        assert deals.chance.sum() == pytest.approx(1.0)
        assert dict(chance) == pytest.approx(
            {row.tobytes(): p for row, p in zip(deals.counts, deals.chance, strict=True)}
        )


def test_raw_draws_are_layouts_of_the_devices() -> None:
    now = on(FLEETS["gpus"])
    fifo = fifo_of(now)
    fleet = fleet_of(fifo.problem, fifo.keys, alike=False)
    backend, rng = dict.fromkeys(fifo.variants, "eager"), Random(3)
    codes = set()
    for _ in range(20):
        code, counts = fleet.draw_raw(rng)
        codes.add(code)
        target = fifo.configuration(counts)
        deployment = lay_out(target, family="toy", backend=backend, devices=now.devices)
        assert configuration_of(deployment) == target
    assert len(codes) == 20


def test_searches_stop() -> None:
    now = on(a100s(3), rate=200.0)
    for name in ("clover", "clover-artifact", "blover"):
        begun = build(name).propose(now)
        assert 2 <= begun.evaluated <= NEW
        running = build(name).propose(msgspec.structs.replace(now, running=begun.deployment))
        assert running.evaluated <= NEW + 1, "what runs is not new"
    only = on((cpu(1),))
    for name in ("clover", "clover-artifact", "blover"):
        assert build(name).propose(only).evaluated <= 4, "one core and three variants: nothing more to look at"


def test_a_search_begins_at_base_where_what_runs_is_no_deal_of_the_devices() -> None:
    now = on((cpu(2),), running=(worker("large", 0, 1),))
    fifo = fifo_of(now)
    fleet = fleet_of(fifo.problem, fifo.keys, alike=False)
    assert fleet.running(now) is None
    assert fifo.configuration(fleet.counts(fleet.base(fifo.problem))) == config(("large", "2c", 1))


# --- the fault --------------------------------------------------------------------------------


def test_the_artifact_rewards_broken_targets_where_scores_are_negative() -> None:
    slo_ms, score = 10.0, -0.2
    late, later, overloaded = (punish_as_artifact(score, p95, slo_ms) for p95 in (20.0, 100.0, 3_600_000.0))
    assert score < late < later < overloaded < 0.0, "the worse it breaks the target the better it looks"
    rng = Random(0)
    assert all(moves(score, overloaded, 10.0, rng) for _ in range(50)), "so the centre always goes there"
    assert not any(moves(score, punish(score, 3_600_000.0, slo_ms), 100.0, rng) for _ in range(50))
    for value, p95 in itertools.product((-0.2, 0.3), (10.001, 20.0, 3_600_000.0)):
        assert punish(value, p95, slo_ms) < value
    assert punish(0.3, 20.0, slo_ms) == punish_as_artifact(0.3, 20.0, slo_ms) == pytest.approx(0.15)
    assert punish(score, 10.0, slo_ms) == punish_as_artifact(score, 10.0, slo_ms) == score
