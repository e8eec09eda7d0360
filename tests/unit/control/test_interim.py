"""Shares while a transition is under way: no lane gets more than its workers can serve while others have room."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.control.interim import FULL, OfferedLoad, interim, within
from clover.types import Assignment, Placement, Routing

RATES = {"small": 100.0, "large": 20.0}


def worker(variant: str, start: int) -> Assignment:
    placement = Placement(device="cpu0", profile="1c", start=start, size=1)
    return Assignment(placement=placement, family="toy", variant=variant, backend="eager")


def offered(rate: float, *reach: float) -> OfferedLoad:
    return OfferedLoad(rate, lambda item: RATES[item.variant], lambda routing: reach)


def test_a_lane_gets_no_more_than_its_workers_serve() -> None:
    """Half of the rows go to `large` by the plan, and one of its three workers is left."""
    routed = (worker("small", 0), worker("large", 1))
    plan = Routing(shares={"small": 0.5, "large": 0.5})
    assert interim(routed, plan, plan).shares == {"small": 0.5, "large": 0.5}
    found = interim(routed, plan, plan, offered(50.0)).shares
    assert found["large"] == pytest.approx(FULL * 20.0 / 50.0)
    assert found["small"] == pytest.approx(1.0 - found["large"])
    assert interim(routed, plan, plan, offered(20.0)).shares == {"small": 0.5, "large": 0.5}  # it has room


def test_too_little_for_all_is_shared_by_capacity() -> None:
    routed = (worker("small", 0), worker("large", 1))
    plan = Routing(shares={"large": 1.0})
    assert interim(routed, plan, plan, offered(1000.0)).shares == pytest.approx({"small": 5 / 6, "large": 1 / 6})


def test_a_chain_whose_stage_is_too_small_waits() -> None:
    routed = (worker("small", 0), worker("large", 1))
    plan = Routing(shares={"small": 1.0}, chain=("small", "large"), thresholds=(0.5,))
    assert interim(routed, plan, plan, offered(60.0, 1.0, 0.2)).chain == ("small", "large")
    assert interim(routed, plan, plan, offered(60.0, 1.0, 0.5)).chain == ()
    assert interim(routed, plan, plan, offered(60.0)).chain == ("small", "large")  # its parts are not known


def busy(shares: dict[str, float], rate: float) -> float:
    """Return the part of its time that one process with all of the lanes is busy."""
    return sum(rate * share / RATES[variant] for variant, share in shares.items())


def test_lanes_of_one_process_share_its_time() -> None:
    """All of 100 rows/s by `small` alone, or 20 by `large`: half of each is 33, not 60."""
    both = (worker("small", 0), worker("large", 0))
    plan = Routing(shares={"small": 0.5, "large": 0.5})
    assert interim(both, plan, plan, offered(20.0)).shares == {"small": 0.5, "large": 0.5}
    found = interim(both, plan, plan, offered(40.0)).shares
    assert busy(found, 40.0) == pytest.approx(FULL, abs=1e-4)
    assert 0.0 < found["large"] < 0.5
    assert interim(both, plan, plan, offered(1000.0)).shares == {"small": 1.0, "large": 0.0}
    beside = interim((*both, worker("small", 1)), plan, plan, offered(30.0)).shares
    assert beside == {"small": 0.5, "large": 0.5}  # the other one serves all of `small`


def test_a_chain_in_one_process_shares_its_time() -> None:
    both = (worker("small", 0), worker("large", 0))
    plan = Routing(shares={"small": 1.0}, chain=("small", "large"), thresholds=(0.5,))
    assert interim(both, plan, plan, offered(50.0, 1.0, 0.1)).chain == ("small", "large")
    assert interim(both, plan, plan, offered(50.0, 1.0, 0.3)).chain == ()  # 0.5 + 0.75 of its time


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 100.0)), min_size=1),
    st.floats(0.0, 500.0),
)
def test_shares_stay_shares(lanes: dict[str, tuple[float, float]], rate: float) -> None:
    total = sum(weight for weight, _ in lanes.values())
    shares = {name: weight / total if total > 0.0 else 1.0 / len(lanes) for name, (weight, _) in lanes.items()}
    rooms = {name: most for name, (_, most) in lanes.items()}
    found = within(shares, [{name: most} for name, most in rooms.items()], rate)
    assert math.isclose(sum(found.values()), 1.0, rel_tol=1e-9)
    assert all(share >= 0.0 for share in found.values())
    if FULL * sum(rooms.values()) >= rate > 0.0:
        assert all(rate * share <= FULL * rooms[name] * (1 + 1e-9) + 1e-9 for name, share in found.items())
