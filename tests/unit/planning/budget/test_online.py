"""An accuracy budget spent online: what it costs beside the best schedule known afterwards, and that it is met."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest

from bench.horizon import Hour, spend
from clover.planning.budget.target import RemainingHorizon, price_at
from clover.planning.model.frontier import FrontierPoint

JOULES = tuple(
    FrontierPoint(accuracy=accuracy, grams=joules)
    for accuracy, joules in ((91.0, 0.10), (91.8, 0.14), (92.4, 0.22), (92.7, 0.33), (92.9, 0.55), (93.0, 1.0))
)
"""What an hour can be run at: percent, and joules a row in the place of grams."""
BUDGET = 0.5
TARGET = 93.0 - BUDGET
PARTS = 12
"""Decisions an hour."""
Trace = Callable[[float, random.Random], float]


def diurnal(hour: float, draws: random.Random) -> float:
    """A day of sun: clean at noon."""
    return max(30.0, 260.0 - 170.0 * math.cos(math.tau * (hour - 1.0) / 24.0) * 0.8 + draws.gauss(0.0, 15.0))


def windy(hour: float, draws: random.Random) -> float:
    """Fronts that pass every few days, without an hour of the day."""
    slow = math.sin(math.tau * hour / 61.0) + 0.6 * math.sin(math.tau * hour / 23.7)
    return max(20.0, 230.0 + 110.0 * slow + draws.gauss(0.0, 20.0))


def flat(hour: float, draws: random.Random) -> float:
    """A grid that never moves."""
    return 300.0


TRACES = {"diurnal": diurnal, "windy": windy, "flat": flat}


def load(hour: float) -> float:
    return 100.0 + 60.0 * math.sin(math.tau * (hour - 9.0) / 24.0)


def played(trace: Trace, hours: int, first: float, seed: int = 1) -> tuple[float, float, float]:
    """Return the accuracy and grams of the online rule over a horizon, and the fewest grams that reach the same
    accuracy with all hours known."""
    draws = random.Random(seed)
    grid = [trace(at, draws) for at in range(hours)]
    debt = rows = right = grams = 0.0
    for at, g_per_kwh in enumerate(grid):
        rate = load(at)
        moment = RemainingHorizon.from_frontiers([rate], [g_per_kwh], [JOULES])
        for _ in range(PARTS):
            accuracy = moment.accuracy_at(price_at(first, debt / rate, BUDGET, hours))
            part = rate / PARTS
            cost = next(
                low.grams + (accuracy - low.accuracy) * (high.grams - low.grams) / (high.accuracy - low.accuracy)
                for low, high in itertools.pairwise(JOULES)
                if accuracy <= high.accuracy + 1e-9
            )
            debt += (TARGET - accuracy) * part
            rows, right, grams = rows + part, right + accuracy * part, grams + cost * g_per_kwh * part
    reached = right / rows
    known = [
        Hour(
            rows=load(at),
            points=tuple(FrontierPoint(accuracy=point.accuracy, grams=point.grams * g) for point in JOULES),
        )
        for at, g in enumerate(grid)
    ]
    return reached, grams, spend(known, reached).grams


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("wrong", [0.4, 1.0, 2.5])
def test_a_day_meets_the_budget_whatever_the_first_price_is(name: str, wrong: float) -> None:
    reached, _, _ = played(TRACES[name], 24, 100.0 * wrong)
    assert reached == pytest.approx(TARGET, abs=0.05)


@pytest.mark.parametrize("name", TRACES)
def test_regret_is_small_and_grows_slower_than_the_horizon(name: str) -> None:
    regrets = {}
    for days in (1, 64):
        found = [played(TRACES[name], 24 * days, 100.0, seed) for seed in range(1 if days > 1 else 3)]
        regrets[days] = sum(grams / best - 1.0 for _, grams, best in found) / len(found)
        assert all(abs(reached - TARGET) < 0.05 for reached, _, _ in found)
    assert regrets[1] < 0.1
    assert regrets[64] < 0.03, "what an hour costs more is less in a longer horizon"


def test_what_was_served_moves_the_price_up_and_down() -> None:
    prices = [price_at(100.0, debt, BUDGET, 24.0) for debt in (-1.0, 0.0, 1.0)]
    assert prices[0] < prices[1] == 100.0 < prices[2]
    assert prices[0] * prices[2] == pytest.approx(100.0**2)
    assert price_at(100.0, 1.0, BUDGET, 24.0 * 16) < prices[2], "steps are smaller in a longer horizon"
    assert math.isfinite(price_at(100.0, 1e9, BUDGET, 24.0))
