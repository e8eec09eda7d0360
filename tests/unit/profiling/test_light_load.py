"""What a run at a light load says of the batches of all variants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from msgspec import structs

from clover.planning.model.problem import problem_of, services_of
from clover.planning.model.queueing import WAKE_S
from clover.profiling.light_load import LightLoad, with_light_load
from clover.types import FamilyProfile
from tests.support.profiles_fixture import profile, state

J_A_S = 10.0  # of the fixture's joules


def run(known: FamilyProfile, *, worker_ms: float, front_ms: float, rate: float = 100.0) -> LightLoad:
    """A run of ten seconds, one batch a request, `worker_ms` and `front_ms` of CPU each."""
    count = round(rate * 10.0)
    return LightLoad(count * front_ms / 1e3, count * worker_ms / 1e3, 10.0, count, count, count, workers=1)


def base_of(known: FamilyProfile) -> float:
    """Return the CPU milliseconds of a row of BASE by itself."""
    base = known.base
    (one,) = (m for m in known.latency if (m.variant, m.profile, m.batch) == (base.variant, base.profile, 1))
    return one.cpu_s_per_row * 1e3


def test_what_a_light_load_takes_beyond_the_profile_is_the_price_of_a_pause() -> None:
    known = profile(cores=(1,))
    alone_ms = base_of(known)
    found = with_light_load(known, run(known, worker_ms=alone_ms + 0.5, front_ms=0.4))
    pause_s = 0.01 - alone_ms / 1e3
    part = pause_s / WAKE_S * (1.0 - math.exp(-WAKE_S / pause_s))
    assert found.wake_j == pytest.approx(0.5e-3 * J_A_S / part, rel=1e-6)
    assert found.turn_j == pytest.approx(0.2e-3 * J_A_S / part, rel=1e-6), "a request takes two turns"
    assert structs.replace(found, wake_j=0.0, turn_j=0.0) == known


def test_all_variants_pay_it_and_the_planner_pays_the_front_end_too() -> None:
    found = structs.replace(profile(cores=(1,)), wake_j=2e-3, turn_j=1e-3)
    assert {(one.wake_j, one.turn_j) for one in services_of(found).values()} == {(2e-3, 0.0)}
    asked = problem_of(structs.replace(state(), profile=found))
    assert {(one.wake_j, one.turn_j) for one in asked.services.values()} == {(2e-3, 1e-3)}


def test_a_run_that_says_nothing_changes_nothing() -> None:
    known = profile(cores=(1,))
    good = run(known, worker_ms=base_of(known), front_ms=0.1)
    assert with_light_load(known, good).wake_j == 0.0
    assert with_light_load(known, good).turn_j > 0.0
    assert with_light_load(known, replace(good, requests=0)) == known
    assert with_light_load(known, replace(good, batches=0)) == known
    assert with_light_load(known, replace(good, seconds=1e-6)) == known, "its workers never slept"
