"""INFaaS's and Proteus's rules: which variants they choose at which load."""

from __future__ import annotations

import msgspec
import pytest

from clover.errors import PlanError
from clover.planning.model.problem import problem_of
from clover.research.simulate import loads, world
from clover.research.simulate.peers import InfaasPolicy, ProteusPolicy
from clover.types import Plan, State, words_of
from tests.support.mig_fixture import a100s, mig_profile
from tests.support.profiles_fixture import objective, state

SLO_MS = 40.0
"""In the toy family a batch of 8 takes `large` 18 ms on 1g; `small` 4.5 ms."""


def asked(load: float, *, floor: float = 0.0, spared_w: float | None = None, slo_ms: float = SLO_MS) -> State:
    """Two A100s at `load` of what `large` serves on fourteen 1g slices in batches of eight."""
    config = msgspec.structs.replace(objective(slo_ms=slo_ms, floor=floor), spared_w=spared_w)
    given = state(config=config, devices=a100s(2), measured=mig_profile())
    service = problem_of(given).services["large", "1g.5gb"]
    return msgspec.structs.replace(given, arrival_rate=load * 14 * service.capacity())


def accuracy(plan: Plan, given: State) -> float:
    known = problem_of(given).accuracy
    return sum(share * known[variant] for variant, share in plan.routing.shares.items())


def test_infaas_takes_the_cheapest_variant_that_is_accurate_enough_on_as_few_gpus_as_serve() -> None:
    given = asked(0.4, floor=89.0, spared_w=50.0)
    plan = InfaasPolicy().propose(given)
    assert plan.feasible
    assert words_of(plan.configuration) == "7 x medium@1g.5gb"  # one of the two GPUs; `small` is not accurate enough
    assert len({item.placement.device for item in plan.deployment}) == 1
    assert plan.routing.shares == {"medium": 1.0}
    busy = InfaasPolicy().propose(asked(1.5, floor=89.0, spared_w=50.0))
    assert words_of(busy.configuration) == "14 x medium@1g.5gb"
    awake = InfaasPolicy().propose(asked(0.4, floor=89.0))
    assert words_of(awake.configuration) == "14 x medium@1g.5gb"


def test_infaas_marks_a_load_beyond_its_capacity_and_refuses_a_floor_out_of_reach() -> None:
    plan = InfaasPolicy().propose(asked(3.0, floor=89.0))
    assert not plan.feasible
    with pytest.raises(PlanError, match="accuracy floor"):
        InfaasPolicy().propose(asked(0.4, floor=93.0))


def test_proteus_gives_up_accuracy_only_as_far_as_the_load_asks() -> None:
    pytest.importorskip("scipy", reason="HiGHS comes with SciPy")
    found = {load: ProteusPolicy().propose(asked(load)) for load in (0.5, 1.2, 2.0, 3.5)}
    reached = {load: accuracy(plan, asked(load)) for load, plan in found.items()}
    assert reached[0.5] == pytest.approx(92.0)
    assert 92.0 > reached[1.2] > reached[2.0] > reached[3.5] >= 88.0
    assert all(plan.feasible for plan in found.values())
    for load, plan in found.items():  # 1.05 times the load of every lane is served
        problem = problem_of(asked(load))
        for variant, share in plan.routing.shares.items():
            served = sum(
                group.count * problem.services[variant, group.profile].capacity()
                for group in plan.configuration
                if group.variant == variant
            )
            assert served >= 1.05 * share * problem.rate * (1.0 - 1e-6)


def test_proteus_leaves_less_room_beyond_its_capacity_and_holds_batches_to_half_the_slo() -> None:
    pytest.importorskip("scipy", reason="HiGHS comes with SciPy")
    plan = ProteusPolicy().propose(asked(5.0))
    assert not plan.feasible
    assert accuracy(plan, asked(5.0)) == pytest.approx(88.0)
    half = ProteusPolicy().propose(asked(0.3, slo_ms=20.0))  # 10 ms: `large` in batches of 2 on 1g, of 8 from 3g on
    services = problem_of(asked(0.3)).services
    largest = half.routing.largest["large"]
    assert min(services["large", group.profile].seconds(largest) for group in half.configuration) <= 0.010
    with pytest.raises(PlanError, match="half the SLO"):
        ProteusPolicy().propose(asked(0.3, slo_ms=0.1))


def test_both_are_schemes_of_a_simulation_beside_loads_that_double() -> None:
    assert [world.scheme(name).name for name in ("infaas", "proteus")] == ["infaas", "proteus"]
    rates = loads.parse("doubling:0.4").rates(100.0, 0.0, 1800.0, 10, 0)
    assert rates == [40.0, 40.0, 80.0, 80.0, 40.0, 40.0, 20.0, 20.0, 40.0, 40.0]
