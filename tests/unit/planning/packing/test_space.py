"""Enumeration, layouts, shares and the objective."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.errors import PlanError
from clover.planning.model.objective import derive_lambda, objective_of
from clover.planning.model.problem import backends_of, base_capacity, problem_of, services_of, whole
from clover.planning.model.shares import balanced_mix, best_mix
from clover.planning.packing.candidates import kinds_of
from clover.planning.packing.evaluation import UNBOUNDED_MS, evaluate, optimistic
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.planning.packing.plan_bound import plan_bound
from clover.planning.search.configurations import ASKED, EXACT, anneal, best_found, every, search
from clover.planning.transition.layout import lay_out
from clover.policies import build
from clover.types import Configuration, DeviceShape, FamilyProfile, GroupCount, configuration_of
from tests.support.enumeration import configurations, profile_sets
from tests.support.examples import examples
from tests.support.mig_fixture import SLICES, a100, a100s, mig_profile
from tests.support.profiles_fixture import cpu, objective, profile, state, worker

pytestmark = pytest.mark.slow

FITS = {"1c": ("large", "medium", "small"), "2c": ("large", "medium", "small")}
BACKEND = dict.fromkeys(("small", "medium", "large"), "eager")


def config(*groups: tuple[str, str, int]) -> Configuration:
    return tuple(GroupCount(variant=v, profile=p, count=n) for v, p, n in sorted(groups))


def merged(one: FamilyProfile, other: FamilyProfile) -> FamilyProfile:
    """The measurements of both."""
    return msgspec.structs.replace(one, latency=(*one.latency, *other.latency))


# --- enumeration ------------------------------------------------------------------------------


def test_two_cores_have_nine_configurations_of_three_variants() -> None:
    found = configurations((cpu(2),), FITS)
    assert len(found) == len(set(found)) == 3 + 6
    assert config(("large", "2c", 1)) in found
    assert config(("large", "1c", 1), ("small", "1c", 1)) in found


def test_every_way_to_fill_the_placements_is_found_once() -> None:
    shape = cpu(4)
    fits = {**FITS, "4c": ("large", "small")}
    by_force = set()
    for layout in shape.layouts:
        for deal in itertools.product(*(fits[place.profile] for place in layout)):
            counts: dict[tuple[str, str], int] = {}
            for place, variant in zip(layout, deal, strict=True):
                counts[variant, place.profile] = counts.get((variant, place.profile), 0) + 1
            by_force.add(config(*((v, p, n) for (v, p), n in counts.items())))
    found = configurations((shape,), fits)
    assert set(found) == by_force
    assert len(found) == len(by_force)


def test_devices_add_up() -> None:
    two = configurations((cpu(1, "a"), cpu(1, "b")), {"1c": ("large", "small")})
    assert two == configurations((cpu(2),), {"1c": ("large", "small")})
    assert profile_sets((cpu(2, "a"), cpu(1, "b"))) == [(("1c", 1), ("2c", 1)), (("1c", 3),)]


def test_a_space_above_the_limit_is_refused() -> None:
    with pytest.raises(PlanError, match="9 configurations are too many"):
        configurations((cpu(2),), FITS, limit=8)


def test_a_profile_nothing_runs_on_drops_its_layouts() -> None:
    assert configurations((cpu(2),), {"1c": ("small",)}) == [config(("small", "1c", 2))]


def test_a100s_have_the_multisets_that_geometry_says() -> None:
    assert [len(profile_sets(a100s(n))) for n in (1, 2)] == [14, 74]
    assert kinds_of((*a100s(3), a100("gpu9", lost=True)))[0][1] == 3, "a lost GPU takes no part"
    with pytest.raises(PlanError, match="too many to list"):
        profile_sets(a100s(10))


def test_whole_devices_are_those_of_base() -> None:
    assert [item.profile for item in whole(a100())] == ["7g.40gb"]
    assert [item.profile for item in whole(a100(blocked=((6, 1),)))] == ["4g.20gb", "2g.10gb"]
    assert whole(a100(lost=True)) == ()
    one = base_capacity(mig_profile(), a100s(1))
    assert base_capacity(mig_profile(), (*a100s(2), a100("gpu2", lost=True))) == pytest.approx(2 * one)


# --- spaces -----------------------------------------------------------------------------------


FIVE = {f"v{i}": (88.0 + i, 1.0 + i) for i in range(5)}


def test_small_spaces_are_weighed_whole() -> None:
    four = {name: FIVE[name] for name in ("v0", "v1", "v2", "v3")}
    now = state(devices=a100s(1), measured=mig_profile(four))
    problem = problem_of(now)
    fits = dict.fromkeys((p.name for p in SLICES), tuple(four))
    assert every(problem, 2000) == configurations(a100s(1), fits)
    assert len(every(problem, 2000) or ()) == 1282 > EXACT
    assert every(problem) is None


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(a100s(2), id="2"),
        pytest.param(a100s(10), id="10"),
        pytest.param((*a100s(3), a100("gpu3", blocked=((0, 1),)), a100("gpu4", blocked=((2, 2),))), id="three kinds"),
        pytest.param((*a100s(2), a100("gpu2", lost=True), cpu(8)), id="GPUs, a lost one and cores"),
    ],
)
def test_large_spaces_are_annealed(devices: tuple[DeviceShape, ...]) -> None:
    both = merged(mig_profile(FIVE), profile((1, 2, 4, 8), FIVE))
    for form, g_per_kwh in itertools.product(("paper", "floor"), (60.0, 400.0)):
        config = objective(form, floor=90.5)
        now = state(g_per_kwh=g_per_kwh, rate=400.0, devices=devices, measured=both, config=config)
        problem, scored = problem_of(now), objective_of(now)
        found = best_found(problem, scored)
        assert found.best.feasible
        assert found.total > EXACT
        assert sum(candidate.feasible for candidate in found.candidates) >= 5, "alternatives for the controller"
        for candidate in found.candidates:
            laid = lay_out(candidate.configuration, family="toy", backend=problem.backend, devices=devices)
            assert configuration_of(laid) == candidate.configuration
        limit = plan_bound(Formulation([PackingMember(problem, scored)], devices, slow=True))
        base = build("base").propose(now)
        assert base.score <= found.best.score <= limit + 1e-9
        assert found == best_found(problem, scored), "the same problem, the same answer"


def test_annealing_finds_what_evaluating_everything_finds() -> None:
    measured = mig_profile({"small": (88.0, 1.0), "large": (92.0, 4.0)})
    behind = []
    for seed, (g_per_kwh, load, slo_ms) in enumerate(itertools.product((60.0, 500.0), (0.3, 0.8), (8.0, 30.0))):
        rate = load * base_capacity(measured, a100s(1))
        config = objective(slo_ms=slo_ms, floor=89.5)
        now = state(g_per_kwh=g_per_kwh, rate=rate, devices=a100s(1), measured=measured, config=config)
        problem, scored = problem_of(now), objective_of(now)
        best = -math.inf
        for item in every(problem) or []:
            candidate = evaluate(problem, scored, item, standby=False, beat=best)
            best = max(best, candidate.score) if candidate.feasible else best
        found = anneal(problem, scored, (), seed).best
        assert found.feasible == (best > -math.inf)
        if found.feasible:
            behind.append((best - found.score) / scored.scale)
    assert len(behind) >= 6
    assert min(behind) >= -1e-9
    assert max(behind) <= 0.01


def test_a_variant_that_does_not_fit_a_slice_is_not_dealt_to_it() -> None:
    measured = mig_profile(FIVE)
    small = msgspec.structs.replace(
        measured,
        latency=tuple(m for m in measured.latency if m.variant != "v4" or m.profile in ("7g.40gb", "4g.20gb")),
    )
    now = state(rate=3000.0, devices=a100s(10), measured=small, config=objective(floor=91.5))
    found = best_found(problem_of(now), objective_of(now))
    used = {group.profile for c in found.candidates for group in c.configuration if group.variant == "v4"}
    assert used
    assert used <= {"7g.40gb", "4g.20gb"}


@pytest.mark.parametrize(("gpus", "slo_ms"), [(1, 30.0), (2, 30.0), (10, 30.0), (10, 1.5)])
def test_gpus_are_planned_within_the_questions_allowed(gpus: int, slo_ms: float) -> None:
    variants = {f"v{i}": (88.0 + i, 1.0 + i) for i in range(5)}
    measured = mig_profile(variants)
    rate = 0.5 * base_capacity(measured, a100s(gpus))
    now = state(
        g_per_kwh=400.0,
        rate=rate,
        devices=a100s(gpus),
        measured=measured,
        config=objective(slo_ms=slo_ms, floor=90.5),
    )
    for policy in ("objective", "base", "static:v2"):
        plan = build(policy).propose(now)
        assert configuration_of(plan.deployment) == plan.configuration
        assert plan.evaluated <= ASKED + 30
        assert plan.bound is None or plan.score <= plan.bound + 1e-9 or not plan.feasible
        if policy == "base":
            assert plan.configuration == config(("v4", "7g.40gb", gpus))
        if policy == "objective" and slo_ms == 30.0:
            assert plan.feasible
            assert plan.prediction.p95_ms <= slo_ms
            assert plan.prediction.energy_j_per_row < build("base").propose(now).prediction.energy_j_per_row
            running = msgspec.structs.replace(now, running=plan.deployment)
            assert build(policy).propose(running).deployment == plan.deployment


def test_what_runs_is_weighed_whatever_the_kernel_meets() -> None:
    devices, measured = a100s(2), mig_profile(FIVE)
    now = state(g_per_kwh=200.0, devices=devices, measured=measured)
    problem, scored = problem_of(now), objective_of(now)
    best = best_found(problem, scored).best
    odd = config(("v4", "1g.5gb", 12), ("v3", "1g.5gb", 1), ("v2", "1g.5gb", 1))
    assert 0.0 < best.score - evaluate(problem, scored, odd, standby=False).score <= 0.02 * scored.scale
    running = lay_out(odd, family="toy", backend=measured.backend, devices=devices)
    stays = build("objective").propose(msgspec.structs.replace(now, running=running))
    assert stays.deployment == running, "it is left only for a gain above the margin"
    poor = lay_out(config(("v0", "7g.40gb", 2)), family="toy", backend=measured.backend, devices=devices)
    leaves = build("objective").propose(msgspec.structs.replace(now, running=poor))
    assert leaves.deployment != poor


# --- layouts ----------------------------------------------------------------------------------


def test_laying_out_keeps_what_runs() -> None:
    running = (worker("large", 0, 1), worker("small", 1, 1))
    target = lay_out(
        config(("small", "1c", 1), ("medium", "1c", 1)),
        family="toy",
        backend=BACKEND,
        devices=(cpu(2),),
        running=running,
    )
    assert target == (worker("medium", 0, 1), worker("small", 1, 1))


def test_a_changed_backend_is_not_kept() -> None:
    running = (worker("small", 0, 1, backend="aoti"), worker("small", 1, 1))
    target = lay_out(config(("small", "1c", 2)), family="toy", backend=BACKEND, devices=(cpu(2),), running=running)
    assert target == (worker("small", 0, 1), worker("small", 1, 1))


def test_a_configuration_that_no_layout_holds_is_refused() -> None:
    with pytest.raises(PlanError, match="3 x 1c"):
        lay_out(config(("small", "1c", 3)), family="toy", backend=BACKEND, devices=(cpu(2),))


@settings(max_examples=examples(40), deadline=None)
@given(data=st.data())
def test_every_configuration_can_be_laid_out_over_several_devices(data: st.DataObject) -> None:
    devices = (cpu(2, "a"), cpu(4, "b"))
    fits = dict.fromkeys(("1c", "2c", "4c"), ("large", "small"))
    space = configurations(devices, fits)
    first, second = data.draw(st.sampled_from(space)), data.draw(st.sampled_from(space))
    running = lay_out(first, family="toy", backend=BACKEND, devices=devices)
    target = lay_out(second, family="toy", backend=BACKEND, devices=devices, running=running)
    assert configuration_of(running) == first
    assert configuration_of(target) == second
    assert len({item.placement.id for item in target}) == len(target)
    again = lay_out(first, family="toy", backend=BACKEND, devices=devices, running=running)
    assert again == running


# --- shares -----------------------------------------------------------------------------------


@settings(max_examples=examples(200), deadline=None)
@given(
    lanes=st.lists(st.tuples(st.integers(-20, 20), st.integers(80, 99), st.integers(1, 10)), min_size=1, max_size=4),
    floor=st.integers(80, 99),
)
def test_the_best_mix_is_the_optimum_of_the_linear_program(lanes: list[tuple[int, int, int]], floor: int) -> None:
    gains, accuracy = [g / 20 for g, _, _ in lanes], [float(a) for _, a, _ in lanes]
    limits = [n / 10 for _, _, n in lanes]
    mix = best_mix(gains, accuracy, limits, floor)
    # The oracle: a grid of tenths.  It may miss the optimum, and must never beat it.
    grid = [
        parts
        for parts in itertools.product(range(11), repeat=len(lanes))
        if sum(parts) == 10
        and all(p / 10 <= limit + 1e-12 for p, limit in zip(parts, limits, strict=True))
        and sum(p / 10 * a for p, a in zip(parts, accuracy, strict=True)) >= floor
    ]
    if mix is None:
        assert not grid
        return
    assert math.isclose(sum(mix), 1.0)
    assert all(-1e-12 <= share <= limit + 1e-9 for share, limit in zip(mix, limits, strict=True))
    assert sum(s * a for s, a in zip(mix, accuracy, strict=True)) >= floor - 1e-6
    best = sum(s * g for s, g in zip(mix, gains, strict=True))
    for parts in grid:
        assert sum(p / 10 * g for p, g in zip(parts, gains, strict=True)) <= best + 1e-6


def test_the_balanced_mix_loads_lanes_alike_unless_the_floor_forbids() -> None:
    assert balanced_mix([100.0, 300.0], [92.0, 88.0], 0.0) == pytest.approx((0.25, 0.75))
    mix = balanced_mix([100.0, 300.0], [92.0, 88.0], 90.0)
    assert mix is not None
    assert mix == pytest.approx((0.5, 0.5), abs=1e-6)
    assert balanced_mix([100.0], [88.0], 90.0) is None


@settings(max_examples=examples(150), deadline=None)
@given(
    lanes=st.lists(st.tuples(st.integers(80, 99), st.integers(1, 9)), min_size=1, max_size=4),
    floor=st.integers(80, 99),
)
def test_the_balanced_mix_is_of_the_least_peak_load(lanes: list[tuple[int, int]], floor: int) -> None:
    accuracy, capacities = [float(a) for a, _ in lanes], [float(c) for _, c in lanes]
    mix = balanced_mix(capacities, accuracy, floor)
    assert (mix is None) == (max(accuracy) < floor)
    if mix is None:
        return
    assert math.isclose(sum(mix), 1.0)
    assert min(mix) >= 0.0
    assert sum(s * a for s, a in zip(mix, accuracy, strict=True)) >= floor - 1e-6
    peak = max(s / c for s, c in zip(mix, capacities, strict=True))
    # The oracle: at any lower peak the most accurate mix (no gains, lanes limited) misses the floor or the rows.
    limits = [min(1.0, 0.999 * peak * c) for c in capacities]
    assert best_mix([0.0] * len(lanes), accuracy, limits, floor) is None


# --- objective --------------------------------------------------------------------------------


def test_lambda_breaks_even_at_the_reference_intensity() -> None:
    config = objective(floor=91.0)
    measured = profile()
    lam = derive_lambda(measured, config)
    assert 0.0 < lam < 1.0
    services = services_of(measured)
    problem = problem_of(state(config=config))
    scored = objective_of(state(g_per_kwh=250.0, config=config))
    assert scored.lam == lam
    energy = {v: min(_at_60(services[v, p]) for p in ("1c", "2c")) for v in problem.variants}
    best = scored.score(92.0, energy["large"])
    mixes = [  # the floor of 91 by pairs: the cheapest breaks even, no pair beats it
        (0.5 * energy["large"] + 0.5 * energy["medium"]),
        (0.75 * energy["large"] + 0.25 * energy["small"]),
    ]
    assert scored.score(91.0, min(mixes)) == pytest.approx(best)
    dirty = objective_of(state(g_per_kwh=300.0, config=config))
    clean = objective_of(state(g_per_kwh=200.0, config=config))
    assert dirty.score(91.0, min(mixes)) > dirty.score(92.0, energy["large"])
    assert clean.score(91.0, min(mixes)) < clean.score(92.0, energy["large"])


def _at_60(service: object) -> float:
    from clover.planning.model.queueing import Service, energy_j_per_row

    assert isinstance(service, Service)
    return energy_j_per_row((service,), 0.6 * service.capacity())


def test_lambda_where_there_is_nothing_to_trade() -> None:
    assert derive_lambda(profile(), objective(floor=92.0)) == 0.5
    assert derive_lambda(profile(), objective(floor=99.0)) == 0.5


def test_the_search_equals_evaluating_everything_and_never_exceeds_the_bound() -> None:
    space = configurations((cpu(2),), FITS)
    for g_per_kwh, rate, slo in itertools.product((50.0, 250.0, 400.0), (20.0, 150.0, 300.0), (12.0, 40.0)):
        for form in ("paper", "floor"):
            config = objective(form, slo_ms=slo, floor=91.0)
            now = state(g_per_kwh=g_per_kwh, rate=rate, config=config)
            problem, scored = problem_of(now), objective_of(now)
            everything = [evaluate(problem, scored, c, standby=False) for c in space]
            feasible = [c for c in everything if c.feasible]
            found = search(problem, scored, space)
            assert found.best.feasible == bool(feasible)
            if feasible:
                best = max(c.score for c in feasible)
                assert best - found.best.score <= 0.02 * scored.scale + 1e-12
                assert found.candidates[0].score == pytest.approx(best)
                assert best <= plan_bound(Formulation([PackingMember(problem, scored)], now.devices, slow=True)) + 1e-9
                for candidate in feasible:
                    assert candidate.prediction.p95_ms <= slo
                    assert candidate.prediction.accuracy >= 91.0 - 1e-4
                    assert candidate.prediction.utilisation <= 0.85 + 1e-6
                    assert sum(candidate.routing.shares.values()) == pytest.approx(1.0, abs=1e-5)


def test_hopes_are_never_exceeded() -> None:
    space = configurations((cpu(2),), FITS)
    for rate, slo in itertools.product((20.0, 150.0, 300.0), (3.0, 12.0, 40.0)):
        now = state(g_per_kwh=400.0, rate=rate, config=objective(slo_ms=slo, floor=90.0))
        problem, scored = problem_of(now), objective_of(now)
        for item in space:
            hope, found = optimistic(problem, scored, item), evaluate(problem, scored, item, standby=False)
            if found.feasible:
                assert hope is not None
                assert found.score <= hope + 1e-6
                assert found == evaluate(problem, scored, item, standby=False, beat=found.score - 1e-9)


def test_alternatives_are_given_for_a_controller_that_may_not_take_the_best() -> None:
    now = state(devices=a100s(1), measured=mig_profile(), config=objective(floor=89.0))
    plan = build("objective").propose(now)
    assert sum(candidate.feasible for candidate in plan.candidates) >= 5


def test_more_is_looked_at_where_it_would_keep_more() -> None:
    now = state(g_per_kwh=400.0, config=objective(floor=89.0), devices=a100s(1), measured=mig_profile())
    problem, scored = problem_of(now), objective_of(now)
    space = every(problem, 2000) or []
    best = search(problem, scored, space).best
    ranked = sorted(space, key=lambda item: -(optimistic(problem, scored, item) or -9.0))
    close = [item for item in ranked[:40] if item != best.configuration][-1]
    found = search(problem, scored, space, kept=lambda item: 5 * (item == close)).best
    worth = evaluate(problem, scored, close, standby=False)
    expected = worth.feasible and worth.score >= best.score - 0.02 * scored.scale
    assert (found.configuration == close) == expected


def test_an_infeasible_problem_gives_the_least_bad_plan() -> None:
    space = configurations((cpu(2),), FITS)
    config = objective(slo_ms=0.5, floor=91.0)
    problem, scored = problem_of(state(config=config)), objective_of(state(config=config))
    best = search(problem, scored, space).best
    assert not best.feasible
    assert "exceeds the SLO" in best.why
    assert best.prediction.accuracy >= 91.0 - 1e-6
    others = [evaluate(problem, scored, c) for c in space]
    reachable = [c.prediction.p95_ms for c in others if c.prediction.accuracy >= 91.0 - 1e-6]
    assert best.prediction.p95_ms <= min(reachable) + 1e-9


def test_overload_and_a_floor_out_of_reach_are_named() -> None:
    space = configurations((cpu(2),), FITS)
    overloaded = state(rate=100_000.0, config=objective(floor=91.0))
    best = search(problem_of(overloaded), objective_of(overloaded), space).best
    assert not best.feasible
    assert "utilisation" in best.why
    assert best.prediction.p95_ms == UNBOUNDED_MS
    beyond = state(config=objective(floor=99.0))
    best = search(problem_of(beyond), objective_of(beyond), space).best
    assert "below the floor" in best.why
    assert best.prediction.accuracy == pytest.approx(92.0)


def test_the_running_configuration_is_left_only_for_a_gain_above_the_margin() -> None:
    space = configurations((cpu(2),), FITS)
    tried = 0
    for g_per_kwh in range(150, 360, 10):
        now = state(g_per_kwh=float(g_per_kwh), config=objective(floor=91.0))
        problem, scored = problem_of(now), objective_of(now)
        ranked = sorted((evaluate(problem, scored, c, standby=False) for c in space), key=lambda c: -c.score)
        for candidate in ranked:
            behind = max(c.score for c in ranked if c.feasible) - candidate.score
            if candidate.feasible:
                found = search(problem, scored, space, running=candidate.configuration).best
                assert (found == candidate) == (behind <= 0.02 * scored.scale)
                tried += 0 < behind <= 0.02 * scored.scale
    assert tried


def test_no_worker_of_a_searched_plan_is_a_standby() -> None:
    space = configurations((cpu(2),), FITS)
    for g_per_kwh in (10.0, 250.0, 1000.0):
        now = state(g_per_kwh=g_per_kwh, config=objective(floor=90.0))
        best = search(problem_of(now), objective_of(now), space).best
        assert min(best.routing.shares.values()) >= 0.1 - 1e-6


@settings(max_examples=examples(100), deadline=None)
@given(
    lanes=st.lists(st.tuples(st.integers(-20, 20), st.integers(80, 99), st.integers(0, 3)), min_size=2, max_size=3),
    floor=st.integers(80, 99),
)
def test_the_best_mix_keeps_the_least_shares(lanes: list[tuple[int, int, int]], floor: int) -> None:
    least = [n / 10 for _, _, n in lanes]
    mix = best_mix([g / 20 for g, _, _ in lanes], [float(a) for _, a, _ in lanes], [1.0] * len(lanes), floor, least)
    if mix is not None:
        assert math.isclose(sum(mix), 1.0)
        assert all(share >= low - 1e-9 for share, low in zip(mix, least, strict=True))
        assert sum(share * a for share, (_, a, _) in zip(mix, lanes, strict=True)) >= floor - 1e-6


# --- backends -------------------------------------------------------------------------------------


def test_a_profile_has_a_backend_of_its_own_where_that_is_cheaper_and_answers_alike() -> None:
    measured = profile()
    spare = [
        msgspec.structs.replace(m, backend="other", mean_ms=0.8 * m.mean_ms, energy_j_per_row=0.8 * m.energy_j_per_row)
        for m in measured.latency
        if m.profile == "2c"
    ]
    accuracy = next(item for item in measured.accuracy if item.variant == "large")

    def told(agreement: float, value: float) -> FamilyProfile:
        other = msgspec.structs.replace(accuracy, backend="other", agreement=agreement, value=value)
        return msgspec.structs.replace(
            measured, latency=(*measured.latency, *spare), accuracy=(*measured.accuracy, other)
        )

    good = told(1.0, accuracy.value)
    assert {key for key, name in backends_of(good).items() if name == "other"} == {("large", "2c")}
    before, after = (services_of(one)["large", "2c"].mean_ms[0] for one in (measured, good))
    assert after == pytest.approx(0.8 * before)
    for bad in (told(0.99, accuracy.value), told(1.0, accuracy.value - 0.2)):
        assert set(backends_of(bad).values()) == {"eager"}
    plan = build("static:large").propose(state(rate=5.0, measured=good, config=objective(floor=91.0)))
    assert {(item.placement.profile, item.backend) for item in plan.deployment} <= {("2c", "other"), ("1c", "eager")}
    base = build("base").propose(state(measured=good))
    assert [item.backend for item in base.deployment] == ["other"]
    again = build("base").propose(state(measured=good, running=base.deployment))
    assert again.deployment == base.deployment
