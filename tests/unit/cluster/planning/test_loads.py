"""Loads of devices whose modes are chosen: the next ones, made from the last, are those that a fresh program finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clover.cluster.planning.arrays import read
from clover.cluster.planning.loads import FamilyProgram
from tests.support.cluster_problems import random_problem


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
def test_loads_do_not_depend_on_those_before(seed: int) -> None:
    instance = read(random_problem(seed, nodes=6, regions=3, far=0.8))
    draw = np.random.default_rng(seed)
    shape = len(instance.groups), len(instance.modes)
    bins = [(g, m) for g in range(shape[0]) for m in range(shape[1])]
    rates = np.array([stream.rate for stream in instance.streams])
    opened = [stream.allowed for stream in instance.streams]
    program = FamilyProgram(instance, 0, bins, rates, opened)
    for _ in range(4):
        counts = draw.integers(0, 3, shape) * (draw.random(shape) < 0.4).astype(float)
        used = [place for place in bins if counts[place] > 0.0]
        assert program.covers(used, opened)
        found, fresh = program.load(counts), FamilyProgram(instance, 0, used, rates, opened).load(counts)
        assert found.cost == pytest.approx(fresh.cost, rel=1e-6, abs=1e-6)
        for g, m in {name[:2] for name in found.rows}:
            rows = sum(rate for name, rate in found.rows.items() if name[:2] == (g, m))
            assert rows <= counts[g, m] * instance.modes[m].rate * (1.0 + 1e-6)
        served = sum(found.rows.values()) + sum(found.unserved.values())
        assert served == pytest.approx(rates.sum(), rel=1e-6)


def test_a_program_of_other_devices_or_rules_is_not_used() -> None:
    instance = read(random_problem(1, nodes=4))
    rates = np.array([stream.rate for stream in instance.streams])
    opened = [stream.allowed for stream in instance.streams]
    program = FamilyProgram(instance, 0, [(0, 0)], rates, opened)
    assert not program.covers([(0, 1)], opened)
    assert not program.covers([(0, 0)], list(opened))
