"""Frontiers of devices: what the planner of one machine finds, without points that another one beats."""

from __future__ import annotations

import itertools

import pytest

from clover.cluster.planning.frontiers import device_frontier, drop_dominated
from clover.cluster.planning.records import DeviceFrontier, OperatingPoint
from clover.research.simulate import families
from clover.types import FamilyProfile, ObjectiveConfig
from tests.support import profiles_fixture

SLO_MS = {"efficientnet": 900.0, "yolov5": 1200.0, "albert": 500.0}


def made(profile: FamilyProfile, slo_ms: float, rates: int) -> DeviceFrontier:
    aims = ObjectiveConfig(form="floor", slo_ms=slo_ms, accuracy_floor=0.0, lam=None, reference_g_per_kwh=250.0)
    shape = families.gpus(1)[0] if profile.family in SLO_MS else profiles_fixture.cpu()
    return device_frontier(profile, shape, aims, kind="device", idle_w=50.0, rates=rates)


def beats(one: OperatingPoint, other: OperatingPoint) -> bool:
    return (
        one.rate >= other.rate
        and one.accuracy >= other.accuracy
        and one.watts / one.rate <= other.watts / other.rate
        and one.p95_ms <= other.p95_ms
    )


def check(frontier: DeviceFrontier, slo_ms: float, slack: float) -> None:
    """Points are within the SLO, none beats another, and what more accuracy costs grows: the cheapest points of all
    rates lie no more than `slack` above the line from the cheapest to the most accurate one."""
    assert frontier.points
    assert all(point.p95_ms <= slo_ms and point.watts > 0.0 for point in frontier.points)
    assert not [pair for pair in itertools.permutations(frontier.points, 2) if beats(*pair)]
    by_accuracy = sorted({point.accuracy for point in frontier.points})
    least = [min(p.watts / p.rate for p in frontier.points if p.accuracy >= accuracy) for accuracy in by_accuracy]
    assert least == sorted(least)
    first, last = (by_accuracy[0], least[0]), (by_accuracy[-1], least[-1])
    for accuracy, joules in zip(by_accuracy, least, strict=True):
        part = (accuracy - first[0]) / max(1e-9, last[0] - first[0])
        assert joules <= (1.0 + slack) * (first[1] + part * (last[1] - first[1]))


def test_a_family_of_one_machine_has_a_frontier() -> None:
    frontier = made(profiles_fixture.profile(), 40.0, 5)
    check(frontier, 40.0, 0.2)
    assert max(point.accuracy for point in frontier.points) == pytest.approx(92.0)
    assert min(point.accuracy for point in frontier.points) == pytest.approx(88.0)
    assert made(profiles_fixture.profile(), 40.0, 5).points is frontier.points, "it is searched once"


def test_a_best_variant_that_only_few_rows_leave_time_for_has_its_place() -> None:
    """If the best variant is two hundred times as slow as the cheapest, the rates that matter to the cheapest are too
    high for it; a cluster with few rows would be told that its accuracy cannot be had."""
    variants = {"small": (88.0, 0.1), "large": (92.0, 20.0)}
    frontier = made(profiles_fixture.profile(variants=variants), 40.0, 3)
    check(frontier, 40.0, 0.2)
    assert max(point.accuracy for point in frontier.points) == pytest.approx(92.0)
    assert max(point.rate for point in frontier.points) > 40.0 * min(point.rate for point in frontier.points)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLO_MS)
def test_families_of_the_paper_have_frontiers_on_an_a100(name: str) -> None:
    known = families.load(name, families.gpus(1))
    frontier = made(known.profile, SLO_MS[name], 4)
    check(frontier, SLO_MS[name], 0.03)
    accuracies = [item.value for item in known.profile.accuracy]
    assert max(point.accuracy for point in frontier.points) >= max(accuracies) - 0.6


def test_an_slo_that_nothing_keeps_has_no_points() -> None:
    assert made(profiles_fixture.profile(), 0.01, 3).points == ()


def test_of_equal_points_one_stays() -> None:
    point = OperatingPoint(rate=10.0, accuracy=90.0, watts=5.0, p95_ms=10.0)
    worse = OperatingPoint(rate=10.0, accuracy=89.0, watts=5.0, p95_ms=10.0)
    assert drop_dominated([point, worse, point]) == (point,)
