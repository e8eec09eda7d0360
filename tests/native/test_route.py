"""Quotas: every lane's rows stay within a few of its share, whatever the shares and however the permitted set moves."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import route as twin

SHARES = st.lists(st.floats(0.001, 1000), min_size=1, max_size=8)


def test_equal_shares_take_turns(kernels: SimpleNamespace) -> None:
    quota = kernels.route.Quota(3)
    assert [quota.choose(0b111) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_small_shares_are_spread_out(kernels: SimpleNamespace) -> None:
    quota = kernels.route.Quota(2)
    quota.set_shares([0.75, 0.25])
    assert [quota.choose(0b11) for _ in range(8)] == [0, 0, 1, 0, 0, 0, 1, 0]


@given(SHARES, st.integers(1, 400))
def test_the_deviation_stays_below_the_number_of_lanes(
    kernels: SimpleNamespace, shares: list[float], rows: int
) -> None:
    lanes = len(shares)
    quota = kernels.route.Quota(lanes)
    quota.set_shares(shares)
    served = [0] * lanes
    total = math.fsum(shares)
    for row in range(1, rows + 1):
        served[quota.choose(2**lanes - 1)] += 1
        for lane in range(lanes):
            owed = row * shares[lane] / total - served[lane]
            assert -1.0 - 1e-6 < owed < max(1, lanes - 1) + 1e-6


@given(SHARES, st.data())
def test_the_deviation_stays_bounded_while_the_permitted_set_moves(
    kernels: SimpleNamespace, shares: list[float], data: st.DataObject
) -> None:
    lanes = len(shares)
    masks = data.draw(st.lists(st.integers(1, 2**lanes - 1), min_size=1, max_size=4)) * 60
    quota = kernels.route.Quota(lanes)
    quota.set_shares(shares)
    other = twin.Quota(lanes)
    other.set_shares(shares)
    owed = [0.0] * lanes
    for mask in masks:
        permitted = [lane for lane in range(lanes) if mask >> lane & 1]
        total = math.fsum(shares[lane] for lane in permitted)
        lane = quota.choose(mask)
        assert lane == other.choose(mask)
        assert lane in permitted
        for index in permitted:
            owed[index] += shares[index] / total
        owed[lane] -= 1.0
        assert max(map(abs, owed)) < lanes + 1e-6
    assert quota.credits == pytest.approx(owed, abs=1e-6)


def test_a_million_rows_keep_their_quota(compiled: SimpleNamespace) -> None:
    shares = [0.61, 0.3, 0.08, 0.01]
    quota = compiled.route.Quota(4)
    quota.set_shares(shares)
    out = np.zeros(1_000_000, np.uint32)
    quota.choose_many(0b1111, len(out), out)
    served = np.bincount(out, minlength=4)
    assert np.abs(served - np.array(shares) * len(out)).max() < 2


def test_without_shares_the_lowest_permitted_lane_serves(kernels: SimpleNamespace) -> None:
    quota = kernels.route.Quota(4)
    quota.set_shares([1, 0, 0, 0])
    assert [quota.choose(0b1110) for _ in range(3)] == [1, 1, 1]
    assert quota.choose(0b1101) == 0
    quota.set_shares([0, 0, 0, 0])
    assert quota.choose(0b1100) == 2


def test_new_shares_keep_what_is_owed(kernels: SimpleNamespace) -> None:
    quota = kernels.route.Quota(2)
    served = [0, 0]
    for _ in range(1000):  # shares set again before every row must not starve the smaller lane
        quota.set_shares([0.9, 0.1])
        served[quota.choose(0b11)] += 1
    assert served == [900, 100]
    quota.set_shares([0, 1])
    assert quota.credits[0] == 0


def test_many_lanes(kernels: SimpleNamespace) -> None:
    quota = kernels.route.Quota(64)
    out = np.zeros(128, np.uint32)
    quota.choose_many(2**64 - 1, 128, out)
    assert sorted(out.tolist()) == sorted([*range(64)] * 2)
    assert quota.choose(1 << 63) == 63


def test_choosing_many_is_choosing_one_by_one(kernels: SimpleNamespace) -> None:
    one, many = kernels.route.Quota(3), kernels.route.Quota(3)
    for quota in (one, many):
        quota.set_shares([5, 3, 1])
    out = np.full(12, 9, np.uint32)
    many.choose_many(0b111, 10, out)
    assert out.tolist() == [*(one.choose(0b111) for _ in range(10)), 9, 9]


def test_what_makes_no_sense_is_refused(kernels: SimpleNamespace) -> None:
    for lanes in (0, -1, 65):
        with pytest.raises(ValueError):
            kernels.route.Quota(lanes)
    quota = kernels.route.Quota(2)
    for shares in ([1], [1, 2, 3], [-1, 1], [math.nan, 1], [math.inf, 1]):
        with pytest.raises(ValueError):
            quota.set_shares(shares)
    assert [quota.choose(0b11) for _ in range(2)] == [0, 1]
    for mask in (0, 0b100):
        with pytest.raises(ValueError):
            quota.choose(mask)
        with pytest.raises(ValueError):
            quota.choose_many(mask, 1, np.zeros(1, np.uint32))
    for k in (-1, 2):
        with pytest.raises(ValueError):
            quota.choose_many(0b11, k, np.zeros(1, np.uint32))
