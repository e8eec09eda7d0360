"""Demand is met as far as a plan has workers for it."""

from __future__ import annotations

import msgspec
import pytest

from clover.policies.demanded import with_met
from clover.policies.plans import plan_fixed
from clover.types import Demand, configuration_of
from tests.support.profiles_fixture import state, worker

pytestmark = pytest.mark.slow


def test_demand_that_a_plan_has_too_few_workers_for_is_not_met() -> None:
    asked = (Demand(variant="large", accuracy=92.0, rate=600.0),)
    now = msgspec.structs.replace(state(rate=700.0), demand=asked)
    plan = plan_fixed(state(rate=700.0), configuration_of((worker("large", 0, 1), worker("medium", 1, 1))))
    assert with_met(now, plan).demand == ()
    few = (Demand(variant="large", accuracy=92.0, rate=10.0),)
    assert with_met(msgspec.structs.replace(now, demand=few), plan).demand == few
