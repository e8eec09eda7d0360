"""Chains in plans: which the controller takes, and what rows follow while a configuration changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from clover.control.plan.gate import changes_routing, check_plan
from clover.control.state.apply import interim
from clover.errors import PlanError
from clover.planning.model.problem import problem_of
from clover.policies import build
from clover.types import Assignment, Placement, Plan, Routing
from tests.support.profiles_fixture import VARIANTS, state

FAMILY: Any = SimpleNamespace(spec=SimpleNamespace(variants=[SimpleNamespace(name=name) for name in VARIANTS]))


def worker(variant: str, start: int) -> Assignment:
    placement = Placement(device="cpu0", profile="1c", start=start, size=1)
    return Assignment(placement=placement, family="toy", variant=variant, backend="eager")


BOTH = (worker("small", 0), worker("large", 1))


def chained(*variants: str, thresholds: tuple[float, ...] = (0.5,)) -> Routing:
    return Routing(shares={variants[0]: 1.0} if variants else {"small": 1.0}, chain=variants, thresholds=thresholds)


def plan(routing: Routing, deployment: tuple[Assignment, ...] = BOTH) -> Plan:
    found = state()
    assert problem_of(found)
    return msgspec.structs.replace(build("objective").propose(found), routing=routing, deployment=deployment)


def test_a_plan_may_have_a_chain() -> None:
    check_plan(plan(chained("small", "large")), FAMILY, 100.0)
    check_plan(plan(chained("small", "large", thresholds=(1.5,))), FAMILY, 100.0)  # a score of a family's own


@pytest.mark.parametrize(
    ("routing", "text"),
    [
        (chained("small", "huge"), "unknown variant 'huge'"),
        (chained("small", "medium"), "without a worker"),
        (chained("small", "large", thresholds=()), "an invalid chain"),
        (chained("small", "large", "small", thresholds=(0.5, 0.5)), "an invalid chain"),
        (chained("small", "large", thresholds=(float("inf"),)), "not finite"),
        (chained("small", "large", thresholds=(float("nan"),)), "not finite"),
        (chained(thresholds=(0.5,)), "an invalid chain"),
    ],
)
def test_chains_that_cannot_be_followed_are_refused(routing: Routing, text: str) -> None:
    with pytest.raises(PlanError, match=text):
        check_plan(plan(routing), FAMILY, 100.0)


def test_another_threshold_is_another_routing() -> None:
    before = chained("small", "large")
    assert not changes_routing(before, before)
    assert changes_routing(before, chained("small", "large", thresholds=(0.6,)))
    assert changes_routing(before, Routing(shares={"small": 1.0}))


def test_on_the_way_rows_follow_the_chain_that_is_there() -> None:
    new, old = chained("small", "large"), chained("small", "medium", thresholds=(0.3,))
    assert interim(BOTH, new, old).chain == ("small", "large")
    assert interim(BOTH, new, old).thresholds == (0.5,)
    half = (worker("small", 0), worker("medium", 1))
    assert interim(half, new, old).chain == ("small", "medium")
    assert interim(half, new, old).thresholds == (0.3,)
    assert interim((worker("small", 0),), new, old).chain == ()
    assert interim(half, Routing(shares={"medium": 1.0}), old).chain == ("small", "medium")
