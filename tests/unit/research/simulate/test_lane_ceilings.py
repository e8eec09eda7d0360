"""What the workers of a variant serve at most: no plan that holds has more, and where the SLO limits it is close."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.planning.model import queueing
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.model.queueing import Service, latencies_ms
from clover.planning.packing.evaluation import evaluate
from clover.planning.packing.formulation import Formulation, PackingMember
from clover.planning.search.configurations import every
from clover.research.simulate.lane_ceilings import LATE, LaneCeiling, lane_ceilings, largest_share
from clover.research.simulate.slo_bound import slo_bound
from clover.types import DeviceShape, FamilyProfile
from tests.support.mig_fixture import a100s, mig_profile
from tests.support.profiles_fixture import cpu, objective, profile, state

pytestmark = pytest.mark.slow

FAST = Service((1,), (10.0,), (1.0,))
SLOW = Service((1,), (16.0,), (0.5,))
CASES: tuple[tuple[tuple[DeviceShape, ...], FamilyProfile, float], ...] = (
    ((cpu(2),), profile((1, 2)), 250.0),
    (a100s(1), mig_profile(), 500.0),
    (tuple(cpu(2, name, overlap=False) for name in "ab"), profile((1, 2)), 500.0),
)


def taken(ceiling: LaneCeiling, form: Formulation, shares: dict[str, float]) -> float:
    variant = next(group.variant for group, on in zip(form.groups, ceiling.on, strict=True) if on)
    return shares.get(variant, 0.0)


@settings(max_examples=6, deadline=None)
@given(
    case=st.sampled_from(CASES), load=st.floats(0.05, 0.9), slo_ms=st.floats(2.2, 9.0), lam=st.sampled_from((0.02, 0.6))
)
def test_no_plan_that_holds_is_above(
    case: tuple[tuple[DeviceShape, ...], FamilyProfile, float], load: float, slo_ms: float, lam: float
) -> None:
    devices, measured, rate = case
    config = msgspec.structs.replace(objective(slo_ms=slo_ms, floor=0.0), lam=lam)
    now = state(rate=load * rate, devices=devices, measured=measured, config=config)
    problem, scored = problem_of(now), objective_of(now)
    form = Formulation([PackingMember(problem, scored)], devices, slow=True)
    planes = lane_ceilings(form)
    most_ = slo_bound(form, ceilings=planes)
    for configuration in every(problem, 2_000) or ():
        candidate = evaluate(problem, scored, configuration)
        if not candidate.feasible:
            continue
        counts = form.counts([configuration])
        for plane in planes:
            served = taken(plane, form, candidate.routing.shares)
            assert served <= plane.base + float(plane.slopes @ counts) + 1e-9
        assert candidate.score <= most_ + 1e-9


@pytest.mark.parametrize(
    ("workers", "rate", "slo_ms"), [((FAST,), 60.0, 18.0), ((FAST,) * 3, 220.0, 15.0), ((FAST, SLOW), 130.0, 14.0)]
)
def test_most_is_the_last_share_that_holds(workers: tuple[Service, ...], rate: float, slo_ms: float) -> None:
    """By asking the model at shares between: all above fail, and just below one holds."""
    found = largest_share(workers, rate, slo_ms, 0.85)
    top = min(1.0, 0.85 * queueing.capacity(workers) / rate)

    def late(share: float) -> float:
        return share * float(np.mean(latencies_ms(workers, share * rate, share) > slo_ms))

    assert 0.0 < found < top
    assert late(found * (1.0 - 1e-6)) <= LATE
    assert all(late(share) > LATE for share in np.linspace(found * (1.0 + 1e-6), top, 40))


def test_a_lane_that_never_waits_long_has_all_its_capacity() -> None:
    assert largest_share((FAST,) * 2, 100.0, 1e6, 0.85) == 1.0
    assert largest_share((FAST,) * 2, 1000.0, 1e6, 0.85) == pytest.approx(0.17)


def test_planes_are_tight_where_the_slo_limits() -> None:
    """One variant, whole devices only: each lane of n of them is met to a hundredth."""
    measured = mig_profile()
    best = measured.base.variant
    measured = msgspec.structs.replace(
        measured,
        latency=tuple(m for m in measured.latency if m.variant == best and m.profile == "7g.40gb" and m.batch == 1),
    )
    service = next(iter(problem_of(state(rate=1.0, devices=a100s(4), measured=measured)).services.values()))
    slo_ms, rate = 1.3 * service.mean_ms[0], 3.0 * service.capacity()
    now = state(rate=rate, devices=a100s(4), measured=measured, config=objective(slo_ms=slo_ms, floor=0.0))
    form = Formulation([PackingMember(problem_of(now), objective_of(now))], now.devices)
    planes = lane_ceilings(form)
    assert planes
    shares = [largest_share((service,) * number, rate, slo_ms, 0.85) for number in range(1, 5)]
    lows = [min(p.base + number * float(p.slopes.sum()) for p in planes) for number in range(1, 5)]
    assert shares[3] < 1.0  # which nobody else could make up for: four of them there cannot be
    assert lows[3] <= 1e-6
    for share, low in zip(shares[:3], lows, strict=False):
        assert share - 1e-9 <= low <= share + 0.01
    assert any(low.base > 0.0 for low in planes)


def test_alike_loads_are_played_alike() -> None:
    for rate, share in itertools.product((3.0, 47.0, 260.0), (0.03, 0.075, 0.2, 0.51, 1.0)):
        low = queueing.alike(rate, share)
        assert 0.0 < low < share
        near = low + 1e-9 * share
        here = latencies_ms((FAST,) * 4, rate, share)
        assert (latencies_ms((FAST,) * 4, rate * near / share, near) == here).all()
