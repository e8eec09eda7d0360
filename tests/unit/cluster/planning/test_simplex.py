"""Small linear programs, beside HiGHS and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.cluster.planning.simplex import Columns, LinearProgram
from clover.errors import PlanError
from tests.support.examples import examples


def test_a_program_is_solved_and_solved_again_with_other_bounds() -> None:
    """Two ways to serve 10: at most 6 for 1 each, the rest for 3 each."""
    columns = Columns()
    short = columns.add(100.0, [(0, 1.0)])
    cheap = columns.add(1.0, [(0, 1.0)], 6.0)
    dear = columns.add(3.0, [(0, 1.0)])
    program = LinearProgram(columns, [10.0], [short])
    assert program.solve() == pytest.approx(18.0)
    assert program.x[[cheap, dear]] == pytest.approx([6.0, 4.0])
    assert program.duals == pytest.approx([3.0])
    kept = program.save()
    program.upper[cheap] = 2.0
    assert program.resolve() == pytest.approx(26.0)
    program.set_right(0, 1.0)
    assert program.resolve() == pytest.approx(1.0)
    program.restore(kept)
    program.set_right(0, 10.0)
    assert program.resolve() == pytest.approx(18.0)


def test_a_program_without_a_least_cost_is_refused() -> None:
    columns = Columns()
    slack = columns.add(0.0, [(0, 1.0)])
    columns.add(-1.0, [(0, -1.0)])
    with pytest.raises(PlanError, match="no least cost"):
        LinearProgram(columns, [1.0], [slack]).solve()


def test_a_column_needs_entries_and_a_row_a_basic_column() -> None:
    with pytest.raises(PlanError, match="no entries"):
        Columns().add(1.0, [])
    columns = Columns()
    columns.add(1.0, [(0, 1.0)])
    with pytest.raises(PlanError, match="basic column for each row"):
        LinearProgram(columns, [1.0], [])


@settings(deadline=None, max_examples=examples(60))
@given(seed=st.integers(0, 100_000), rows=st.integers(1, 8), count=st.integers(1, 25))
def test_programs_have_the_optimum_that_highs_finds(seed: int, rows: int, count: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    draw = np.random.default_rng(seed)
    matrix = np.where(draw.random((rows, count)) < 0.5, draw.normal(size=(rows, count)), 0.0)
    matrix[0] = np.where(matrix.any(axis=0), matrix[0], 1.0)
    right = draw.uniform(0.0, 5.0, rows)
    cost = draw.uniform(-1.0, 5.0, count)
    upper = draw.uniform(0.5, 4.0, count)
    columns = Columns()
    short = [columns.add(50.0, [(row, 1.0)]) for row in range(rows)]
    for at in range(count):
        used = np.flatnonzero(matrix[:, at])
        columns.add(float(cost[at]), [(int(row), float(matrix[row, at])) for row in used], float(upper[at]))
    whole = np.hstack([np.eye(rows), matrix])
    program = LinearProgram(columns, right, short)

    def best() -> float:
        limits = zip(program.lower, program.upper, strict=True)
        bounds = [(low, None if np.isinf(high) else high) for low, high in limits]
        found = optimize.linprog(np.concatenate([np.full(rows, 50.0), cost]), A_eq=whole, b_eq=right, bounds=bounds)
        return float(found.fun)

    optimum = best()
    most = np.full(rows + count, 1e3)  # far more than any shortfall of these
    assert program.least(most) <= optimum + 1e-6, "the first duals prove something, too"
    assert program.solve() == pytest.approx(optimum, rel=1e-6, abs=1e-6)
    assert program.least(most) == pytest.approx(optimum, rel=1e-6, abs=1e-6)
    assert whole @ program.x == pytest.approx(right, abs=1e-6)
    for at in draw.integers(rows, rows + count, 4):
        program.upper[at] = float(draw.uniform(0.0, program.upper[at]))
        assert program.resolve() == pytest.approx(best(), rel=1e-6, abs=1e-6)
