"""The queueing model: against its definition in 60 digits, against closed forms, and the kernel against its twin."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import queueing as twin

GOLDEN = json.loads((Path(__file__).parent / "queueing_golden.json").read_text())
GROUPS = ("service_s", "cv", "energy_j", "accuracy", "counts")


def asked(case: dict[str, Any]) -> tuple[Any, ...]:
    return (*(case[key] for key in GROUPS), case["rate"], case["model"], case["quantile"])


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_vectors(kernels: SimpleNamespace, case: dict[str, Any]) -> None:
    expected = case["expected"]
    stable, shares, energy_j, accuracy, p95_s, p_wait = kernels.queueing.evaluate(*asked(case))
    assert stable
    assert shares == pytest.approx(expected["shares"], rel=1e-11, abs=1e-15)
    assert energy_j == pytest.approx(expected["energy_j"], rel=1e-12)
    assert accuracy == pytest.approx(expected["accuracy"], rel=1e-12)
    assert p95_s == pytest.approx(expected["p95_s"], rel=1e-10)
    assert p_wait == pytest.approx(expected["p_wait"], rel=1e-9, abs=1e-30)
    for t, late in expected["tail"]:
        assert kernels.queueing.tail(*asked(case), t) == pytest.approx(late, rel=1e-9, abs=1e-16)


def erlang_c(servers: int, load: float) -> float:
    """By the recursion over servers, which neither the kernel nor the golden vectors use."""
    blocked = 1.0
    for i in range(1, servers + 1):
        blocked = load * blocked / (i + load * blocked)
    return blocked / (1.0 - load / servers * (1.0 - blocked))


@pytest.mark.parametrize("model", ["pf", "mf"])
@pytest.mark.parametrize("servers", [*range(1, 10), 70, 700, 7000])  # terms are summed eight at a time
@pytest.mark.parametrize("rho", [0.05, 0.6, 0.9, 0.99])
def test_workers_alike_are_an_m_m_c_queue(kernels: SimpleNamespace, model: str, servers: int, rho: float) -> None:
    service_s = 0.04
    rate = rho * servers / service_s
    system = ([service_s], [1.0], [2.5], [80.0], [servers], rate, model, 0.95)
    stable, shares, energy_j, accuracy, _, p_wait = kernels.queueing.evaluate(*system)
    assert stable
    assert [*shares, energy_j, accuracy] == pytest.approx([1.0, 2.5, 80.0], rel=1e-15)
    assert p_wait == pytest.approx(erlang_c(servers, rho * servers), rel=1e-9, abs=1e-30)


@given(
    st.lists(
        st.tuples(st.floats(1e-3, 2.0), st.one_of(st.just(0.0), st.floats(0.01, 1.5)), st.integers(0, 60)),
        min_size=1,
        max_size=9,
    ).filter(lambda groups: any(n for *_, n in groups)),
    st.floats(0.001, 0.9999),
    st.sampled_from(["pf", "mf"]),
    st.floats(0.5, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_what_holds_of_every_system(
    kernels: SimpleNamespace, groups: list[tuple[float, float, int]], rho: float, model: str, quantile: float
) -> None:
    services, cvs, counts = (list(column) for column in zip(*groups, strict=True))
    ones = [1.0] * len(groups)
    rate = rho * sum(n / s for s, _, n in groups)
    system = (services, cvs, services, ones, counts, rate, model, quantile)
    stable, shares, busy_s, one, p95_s, p_wait = kernels.queueing.evaluate(*system)
    assert stable
    assert one == pytest.approx(1.0, abs=1e-12)
    assert all(share >= 0.0 and (share > 0.0) == (n > 0) for share, n in zip(shares, counts, strict=True))
    assert all(share <= n / (rate * s) * (1 + 1e-9) for share, s, n in zip(shares, services, counts, strict=True))
    assert 0.0 <= p_wait <= 1.0
    assert min(s for s, _, n in groups if n) * (1 - 1e-9) <= busy_s <= max(s for s, _, n in groups if n) * (1 + 1e-9)
    late = [
        kernels.queueing.tail(*system, t) for t in (0.0, p95_s * 0.5, p95_s * 0.999999, p95_s * 1.000001, p95_s * 2)
    ]
    assert all(1.0 + 1e-12 >= a >= b - 1e-12 >= -1e-12 for a, b in itertools.pairwise(late))
    assert late[3] <= 1.0 - quantile + 1e-12
    assert p95_s == 0.0 or late[2] >= 1.0 - quantile - 1e-12
    again = twin.evaluate(*system)
    assert (stable, list(shares), busy_s, one, p95_s, p_wait) == (True, list(again[1]), *again[2:])
    assert late[1] == twin.tail(*system, p95_s * 0.5)


def test_models_agree_where_workers_are_many(kernels: SimpleNamespace) -> None:
    system = ([0.03, 0.08], [0.2, 0.2], [1.0, 2.0], [80.0, 85.0], [3000, 2000], 0.9 * (3000 / 0.03 + 2000 / 0.08))
    _, field, *_ = kernels.queueing.evaluate(*system, "mf", 0.95)
    _, form, *_ = kernels.queueing.evaluate(*system, "pf", 0.95)
    assert field == pytest.approx(form, rel=2e-3)


def test_what_cannot_keep_up(kernels: SimpleNamespace) -> None:
    for counts, rate in (([1, 1], 75.0), ([0, 0], 1.0)):
        system = ([0.02, 0.04], [0.2, 0.2], [1.0, 2.0], [80.0, 85.0], counts, rate, "mf", 0.95)
        stable, shares, energy_j, accuracy, p95_s, p_wait = kernels.queueing.evaluate(*system)
        assert not stable
        assert np.isnan(shares).all()
        assert math.isnan(energy_j)
        assert math.isnan(accuracy)
        assert (p95_s, p_wait) == (math.inf, 1.0)
        assert kernels.queueing.tail(*system, 10.0) == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"model": "mm1"},
        {"rate": 0.0},
        {"rate": math.inf},
        {"quantile": 1.0},
        {"service_s": [0.02]},
        {"service_s": [0.02, 0.0]},
        {"cv": [0.1, -0.1]},
        {"cv": [0.1, math.nan]},
        {"counts": [1, -1]},
        {"counts": [1.0, 2.0]},
        {"energy_j": [1.0]},
    ],
)
def test_bad_arguments(kernels: SimpleNamespace, change: dict[str, Any]) -> None:
    case = {
        "service_s": [0.02, 0.04],
        "cv": [0.1, 0.1],
        "energy_j": [1.0, 2.0],
        "accuracy": [80.0, 85.0],
        "counts": [1, 1],
        "rate": 10.0,
        "model": "pf",
        "quantile": 0.95,
    }
    with pytest.raises(ValueError):
        kernels.queueing.evaluate(*asked({**case, **change}))
