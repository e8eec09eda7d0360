"""When changes of a deployment were under way, and what befell workers that they kept."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from bench.repartition import Look, kept_and_touched
from bench.swap import Change, windows

SECOND = 1_000_000_000
OFFSET_NS = -7 * SECOND
"""The monotonic clock less the wall's."""

BIG, HALF, FINE = ("gpu0:7g.40gb@0", "xlarge"), ("gpu1:3g.20gb@0", "large"), ("gpu0:1g.5gb@0", "large")


def decision(
    over_s: float, seconds: float, *workers: tuple[str, str], action: str = "applied", trigger: str = "rate"
) -> dict[str, Any]:
    at = datetime.datetime.fromtimestamp(over_s + 7.0, datetime.UTC).isoformat(timespec="milliseconds")
    deployment = []
    for place, variant in workers:
        device, rest = place.split(":")
        profile, start = rest.split("@")
        deployment.append(
            {"placement": {"device": device, "profile": profile, "start": int(start)}, "variant": variant}
        )
    return {
        "at": at,
        "last_at": at,
        "seconds": seconds,
        "action": action,
        "trigger": trigger,
        "plan": {"deployment": deployment},
    }


def found(*decisions: dict[str, Any], since: float = 0.0) -> list[Change]:
    return windows(decisions, since, OFFSET_NS)


def look(at_s: float, pids: dict[tuple[str, str], int], draining: frozenset[int] = frozenset()) -> Look:
    by_place = {place: pid for (place, _), pid in pids.items()}
    return Look(int((at_s - 0.02) * SECOND), int(at_s * SECOND), 0.0, by_place, draining)


def test_a_change_is_over_when_it_is_recorded_and_began_as_long_before_as_it_took() -> None:
    (change,) = found(decision(10.0, 1.0, BIG), decision(20.0, 4.0, BIG, HALF))
    assert (change.before, change.after) == ({BIG}, {BIG, HALF})
    assert change.still_ns == 10.1 * SECOND
    assert change.begin_ns == 16 * SECOND
    assert change.end_ns == 20.1 * SECOND
    assert found(decision(10.0, 1.0, BIG), decision(20.0, 4.0, HALF), since=24.0) == [], "it was begun before"


def test_what_was_rolled_back_stands_again_and_after_a_failure_nobody_knows_what_stands() -> None:
    good = decision(10.0, 1.0, BIG)
    back = decision(30.0, 1.0, BIG, action="rolled back", trigger="verification")
    changes = found(good, decision(20.0, 1.0, HALF), back, decision(40.0, 1.0, BIG, HALF))
    assert [(change.before, change.after) for change in changes] == [({BIG}, {HALF}), ({BIG}, {BIG, HALF})]
    assert changes[1].still_ns == 30.1 * SECOND
    undone = decision(20.0, 1.0, HALF, action="rolled back")
    assert [change.before for change in found(good, undone, decision(30.0, 1.0, HALF, FINE))] == [{BIG}]
    failed = decision(20.0, 1.0, HALF, action="failed")
    assert found(good, failed, decision(30.0, 1.0, HALF, FINE)) == []


def test_a_kept_worker_may_go_with_the_next_change_however_soon_that_comes() -> None:
    """On a busy machine a change takes seconds, and the next one begins as soon as it may."""
    changes = found(decision(10.0, 1.0, BIG), decision(20.0, 4.0, BIG, HALF), decision(22.0, 1.5, FINE))
    looks = [look(10.0 + 0.5 * number, {BIG: 5} if number < 21 else {FINE: 9}) for number in range(26)]
    assert kept_and_touched(changes, looks) == (1, 0)


@pytest.mark.parametrize("when_s", [10.5, 17.0, 19.9])
@pytest.mark.parametrize("what", ["another", "none", "draining"])
def test_a_kept_worker_that_is_gone_for_a_moment_was_touched(when_s: float, what: str) -> None:
    changes = found(decision(10.0, 1.0, BIG), decision(20.0, 4.0, BIG, HALF))
    looks = [look(11.0, {BIG: 5}), look(18.0, {BIG: 5}), look(19.8, {BIG: 5})]
    pids = {"another": {BIG: 6}, "none": {}, "draining": {BIG: 5}}[what]
    odd = look(when_s, pids, frozenset({5} if what == "draining" else ()))
    assert kept_and_touched(changes, looks) == (1, 0)
    assert kept_and_touched(changes, [*looks, odd]) == (1, 1)


def test_a_kept_worker_that_serves_another_variant_for_a_moment_is_kept() -> None:
    changes = found(decision(10.0, 1.0, BIG), decision(20.0, 4.0, BIG, HALF))
    looks = [look(11.0, {BIG: 5}), look(18.0, {(BIG[0], "large"): 5}), look(19.8, {BIG: 5})]
    assert kept_and_touched(changes, looks) == (1, 0)


def test_nothing_is_said_of_a_worker_at_which_nobody_looked() -> None:
    changes = found(decision(10.0, 1.0, BIG), decision(20.0, 4.0, BIG, HALF))
    with pytest.raises(ValueError, match=r"xlarge at gpu0:7g\.40gb@0 was kept"):
        kept_and_touched(changes, [look(9.0, {BIG: 5}), look(21.0, {BIG: 5})])
