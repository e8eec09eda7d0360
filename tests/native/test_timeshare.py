"""Processes that share their time: the same events in both twins, beside `des`, and beside a queue worked by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover._native import des, timeshare
from tests.reference import timeshare as twin
from tests.support.examples import examples

FIELDS = ("latency_s", "rows", "batches", "energy_j")
ONE = {
    "service_s": [[1.0]], "lanes": [0], "kinds": [0], "counts": [1], "times_s": [0.0],
    "cv": [0.0], "energy_j": [[1.0]], "largest": [1], "shares": [1.0],
}  # fmt: skip


@st.composite
def systems(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `play`: any kinds of processes with some of the lanes, dealt or in a chain."""
    width, columns, kinds = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    serves = [draw(st.sets(st.integers(0, width - 1), min_size=1)) for _ in range(kinds)]
    serves[0] |= {lane for lane in range(width) if not any(lane in own for own in serves)}
    pairs = [(kind, lane) for kind, own in enumerate(serves) for lane in sorted(own)]
    number = len(pairs)
    times = sorted(draw(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=80)))
    first_s = draw(st.lists(st.floats(0.5, 3.0), min_size=number, max_size=number))
    chained = draw(st.booleans())
    return {
        "service_s": [[first * (0.6 + 0.4 * b) for b in range(1, columns + 1)] for first in first_s],
        "energy_j": [[first + b for b in range(columns)] for first in first_s],
        "lanes": [lane for _, lane in pairs],
        "kinds": [kind for kind, _ in pairs],
        "counts": draw(st.lists(st.integers(1, 3), min_size=kinds, max_size=kinds)),
        "times_s": times,
        "cv": draw(st.lists(st.sampled_from([0.0, 0.2]), min_size=number, max_size=number)),
        "largest": draw(st.lists(st.integers(1, columns), min_size=number, max_size=number)),
        "shares": None if chained else draw(st.lists(st.floats(0.1, 2.0), min_size=width, max_size=width)),
        "last": [draw(st.integers(0, width - 1)) for _ in times] if chained else None,
        "wait_s": draw(st.none() | st.lists(st.sampled_from([0.0, 0.7]), min_size=width, max_size=width)),
        "warm_up": draw(st.integers(0, len(times) - 1)),
        "seed": draw(st.integers(0, 2**64 - 1)),
    }


@settings(max_examples=examples(150))
@given(systems())
def test_both_twins_play_alike(system: dict[str, Any]) -> None:
    compiled, reference = timeshare.play(**system), twin.play(**system)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(compiled, name), getattr(reference, name), rtol=1e-12, atol=1e-12)


@settings(max_examples=examples(40))
@given(st.integers(1, 4), st.floats(0.1, 0.9), st.integers(0, 2**32))
def test_one_lane_is_what_des_plays(servers: int, load: float, seed: int) -> None:
    times = np.cumsum(np.random.default_rng(seed).exponential(0.7 / (load * servers), 400))
    table = [[1.0, 1.4, 1.8]]
    same = des.simulate(
        table, [servers], des.trace(times), credits=2, in_turn=True, law="normal", cv=[0.1], seed=seed, energy_j=table
    )
    own = timeshare.play(
        table, [0], [0], [servers], times, cv=[0.1], energy_j=table, largest=[3], shares=[1.0], seed=seed
    )
    np.testing.assert_allclose(own.latency_s, same.latency_s, rtol=1e-9, atol=1e-9)
    assert own.rows.tolist() == same.rows.tolist()
    assert own.batches.tolist() == same.batches.tolist()


def test_a_process_is_one_fifo_of_batches_with_mixed_times(kernels: SimpleNamespace) -> None:
    two = {
        **ONE,
        "service_s": [[1.0, 1.0], [10.0, 10.0]], "energy_j": [[1.0, 1.0]] * 2, "lanes": [0, 1], "kinds": [0, 0],
        "cv": [0.0] * 2, "largest": [2, 2], "shares": [1.0, 1.0], "times_s": [0.0, 0.1, 0.2, 0.3, 0.4],
    }  # fmt: skip
    # Dealt in turn, 0 1 0 1 0.  Row 0 runs until 1, row 1 is staged and runs until 11; at 1 rows 2 and 4 are staged
    # together, as row 2 came before row 3, and run until 12; row 3 last.
    assert kernels.timeshare.play(**two).latency_s.round(9).tolist() == [1.0, 10.9, 11.8, 21.7, 11.6]


def test_rows_of_a_chain_return_to_the_same_fifo(kernels: SimpleNamespace) -> None:
    chain = {
        **ONE,
        "service_s": [[1.0], [3.0]], "energy_j": [[1.0]] * 2, "lanes": [0, 1], "kinds": [0, 0], "cv": [0.0] * 2,
        "largest": [1, 1], "shares": None, "last": [1, 0, 0, 0], "times_s": [0.0, 0.0, 0.5, 1.5],
    }  # fmt: skip
    # Row 0 is passed on at 1, behind row 2 (which came at 0.5) and before row 3.
    outcome = kernels.timeshare.play(**chain)
    assert outcome.latency_s.tolist() == [6.0, 2.0, 2.5, 5.5]
    assert outcome.rows.tolist() == [4, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"service_s": [[0.0]]},
        {"service_s": [[np.inf]]},
        {"energy_j": [[np.nan]]},
        {"energy_j": [[1.0, 2.0]]},
        {"cv": [-0.1]},
        {"cv": [0.1, 0.1]},
        {"largest": [2]},
        {"lanes": [64]},
        {"lanes": [1]},
        {"kinds": [1]},
        {"counts": [0]},
        {"counts": []},
        {"times_s": []},
        {"times_s": [2.0, 1.0]},
        {"times_s": [-1.0]},
        {"warm_up": 1},
        {"shares": None},
        {"last": [0]},
        {"last": [1], "shares": None},
        {"wait_s": [-1.0]},
    ],
)
def test_what_makes_no_sense_is_refused(kernels: SimpleNamespace, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        kernels.timeshare.play(**{**ONE, **wrong})
