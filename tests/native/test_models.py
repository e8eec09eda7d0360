"""The queueing models and the simulator, written apart, agree on random configurations."""

from __future__ import annotations

import pytest

from bench.models import Model, compare


@pytest.mark.slow
@pytest.mark.parametrize(("model", "gpus"), [("pf", 2), ("pf", 3), ("mf", 10), ("mf", 30)])
def test_the_models_agree_with_the_simulator(model: Model, gpus: int) -> None:
    told = [one for seed in range(60) if (one := compare(model, seed, gpus, 300_000)) is not None]
    assert len(told) >= 4
    for one in told:
        assert abs(one.p95) < 0.06  # 5 %, and what 300,000 rows leave open
        assert one.shares < 0.015
        assert abs(one.energy) < 0.015
