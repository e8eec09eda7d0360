"""What a run at a light load says of the batches of all variants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from msgspec import structs

from clover.planning.model.correction import apply_factors
from clover.planning.model.problem import problem_of, services_of
from clover.planning.model.queueing import WAKE_S
from clover.profiling.front_end import MOST_TURNS, FrontEndRun, LightLoad, with_light_load
from clover.types import FamilyProfile
from tests.support.profiles_fixture import cpu, profile, state

J_A_S = 10.0  # of the fixture's joules


def run(*, worker_ms: float, front_ms: float) -> tuple[LightLoad, FrontEndRun]:
    """Runs of ten seconds, 100 requests a second and one batch a request, `worker_ms` and `front_ms` of CPU each."""
    return LightLoad(worker_ms, 10.0, 1000, 1000, workers=1), FrontEndRun(0.5, front_ms, 10.0, 1000)


def part(pause_s: float) -> float:
    """Return the part of a long pause's price that exponential ones of `pause_s` have."""
    return pause_s / WAKE_S * (1.0 - math.exp(-WAKE_S / pause_s))


def base_of(known: FamilyProfile) -> float:
    """Return the CPU milliseconds of a row of BASE by itself."""
    base = known.base
    (one,) = (m for m in known.latency if (m.variant, m.profile, m.batch) == (base.variant, base.profile, 1))
    return one.cpu_s_per_row * 1e3


def test_what_a_light_load_takes_beyond_the_profile_is_the_price_of_a_pause() -> None:
    known = profile(cores=(1,))
    alone_ms = base_of(known)
    found = with_light_load(known, *run(worker_ms=alone_ms + 0.25, front_ms=0.4))
    (wake_j,) = {item.wake_j for item in found.latency}
    assert wake_j == pytest.approx(0.25e-3 * J_A_S / part(0.01 - alone_ms / 1e3), rel=1e-6)
    assert found.turn_j == pytest.approx(0.2e-3 * J_A_S / part(0.005), rel=1e-6), "a request takes two turns"
    latency = tuple(structs.replace(item, wake_j=0.0) for item in found.latency)
    assert structs.replace(found, latency=latency, turn_j=0.0) == known


def test_a_base_that_took_longer_than_profiled_is_no_price_of_others() -> None:
    known = profile(cores=(1,))
    found = with_light_load(known, *run(worker_ms=base_of(known) + 5.0, front_ms=0.1))
    assert {item.wake_j for item in found.latency} == {MOST_TURNS * found.turn_j}


def test_all_variants_pay_it_and_the_planner_pays_the_front_end_too() -> None:
    plain = profile(cores=(1, 2))
    latency = tuple(structs.replace(item, wake_j=2e-3) for item in plain.latency)
    found = structs.replace(plain, latency=latency, turn_j=1e-3)
    assert {(one.wake_j, one.turn_j) for one in services_of(found).values()} == {(2e-3, 0.0)}
    quiet, busy = (problem_of(state(rate=rate, measured=found, devices=(cpu(),))) for rate in (1.0, 3000.0))
    assert {one.wake_j for one in (*quiet.services.values(), *busy.services.values())} == {2e-3}
    (quiet_j,), (busy_j,) = ({one.turn_j for one in asked.services.values()} for asked in (quiet, busy))
    assert quiet_j == pytest.approx(1e-3, rel=0.02)
    assert busy_j < 0.05e-3, "a front end that is busy does not sleep"


def test_what_was_learned_of_a_variants_joules_holds_of_its_waking_up_too() -> None:
    found = with_light_load(profile(cores=(1,)), *run(worker_ms=9.0, front_ms=0.4))
    name = found.base.variant
    learned = apply_factors(found, {}, {(name, "1c"): 1.5})
    for before, after in zip(found.latency, learned.latency, strict=True):
        assert after.wake_j == pytest.approx((1.5 if before.variant == name else 1.0) * before.wake_j)


def test_a_run_that_says_nothing_changes_nothing() -> None:
    known = profile(cores=(1,))
    good, front = run(worker_ms=base_of(known), front_ms=0.1)
    assert {item.wake_j for item in with_light_load(known, good, front).latency} == {0.0}
    assert with_light_load(known, good, front).turn_j > 0.0
    assert with_light_load(known, good, replace(front, requests=0)) == known
    assert with_light_load(known, replace(good, batches=0), front) == known
    assert with_light_load(known, replace(good, seconds=1e-6), front) == known, "its workers never slept"
