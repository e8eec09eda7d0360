"""An accuracy budget over a horizon: the linear program's optimum, and what it does with a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.horizon import Hour, spend
from clover.errors import PlanError
from clover.planning.model.frontier import FrontierPoint

LADDER = ((88.0, 1.0), (90.0, 2.0), (92.0, 5.0))


def hour(intensity: float, rows: float = 100.0) -> Hour:
    return Hour(rows=rows, points=tuple(FrontierPoint(accuracy=a, grams=e * intensity) for a, e in LADDER))


def test_accuracy_is_bought_where_the_grid_is_clean() -> None:
    spent = spend([hour(1.0), hour(5.0)], 90.0)
    assert [point.accuracy for point in spent.hours] == pytest.approx([92.0, 88.0])
    assert spent.accuracy == pytest.approx(90.0)
    assert spent.grams == pytest.approx(100.0 * 5.0 + 100.0 * 5.0)
    flat = spend([hour(2.0), hour(2.0)], 90.0)
    assert [point.accuracy for point in flat.hours] == pytest.approx([90.0, 90.0]), "a flat day has one best point"


def test_a_budget_that_costs_nothing_has_no_price_and_one_out_of_reach_is_refused() -> None:
    assert spend([hour(1.0)], 80.0).price == 0.0
    with pytest.raises(PlanError, match=r"93\.000 % is above the 92\.000 %"):
        spend([hour(1.0)], 93.0)
    with pytest.raises(PlanError, match="hours with points"):
        spend([], 90.0)


@st.composite
def horizons(draw: st.DrawFn) -> list[Hour]:
    point = st.builds(
        lambda a, g: FrontierPoint(accuracy=80.0 + a / 4.0, grams=g / 8.0), st.integers(0, 60), st.integers(1, 80)
    )
    hours = st.builds(
        lambda rows, row: Hour(rows=float(rows), points=tuple(row)),
        st.integers(1, 9),
        st.lists(point, min_size=1, max_size=5),
    )
    return draw(st.lists(hours, min_size=1, max_size=5))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(hours=horizons(), part=st.floats(0.0, 1.0))
def test_it_is_the_optimum_of_the_linear_program(hours: list[Hour], part: float) -> None:
    rows = sum(one.rows for one in hours)
    low = sum(one.rows * min(p.accuracy for p in one.points) for one in hours) / rows
    high = sum(one.rows * max(p.accuracy for p in one.points) for one in hours) / rows
    budget = low + part * (high - low) - 1e-9
    spent = spend(hours, budget)
    flat = [(at, p) for at, one in enumerate(hours) for p in one.points]
    cost = [hours[at].rows * p.grams for at, p in flat]
    right = [-hours[at].rows * p.accuracy for at, p in flat]
    each = np.array([[1.0 if at == step else 0.0 for at, _ in flat] for step in range(len(hours))])
    from scipy.optimize import linprog  # heavy, and of use here only

    oracle = linprog(cost, A_ub=[right], b_ub=[-budget * rows], A_eq=each, b_eq=np.ones(len(hours)), bounds=(0, None))
    assert oracle.success
    assert spent.grams == pytest.approx(oracle.fun, rel=1e-6, abs=1e-6)
    assert spent.accuracy >= budget - 1e-9
    for one, chosen in zip(hours, spent.hours, strict=True):
        # At the price every hour by itself is content with its choice.
        best = min(p.grams - spent.price * p.accuracy for p in one.points)
        assert chosen.grams - spent.price * chosen.accuracy <= best + 1e-6
