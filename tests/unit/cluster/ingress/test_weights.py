"""Whole weights and rates, which any ingress needs."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clover.cluster.ingress.weights import LARGEST_WEIGHT, CounterRates, whole_weights
from clover.errors import ClusterError

SHARES = st.dictionaries(st.text("abcdef", min_size=1), st.floats(0, 1e12) | st.floats(1e-300, 1e-290), max_size=40)


@given(SHARES)
def test_weights_are_in_proportion_and_no_share_is_lost(shares: dict[str, float]) -> None:
    weights = whole_weights(shares)
    assert weights.keys() == shares.keys()
    most = max(shares.values(), default=0.0)
    for name, share in shares.items():
        assert 0 <= weights[name] <= LARGEST_WEIGHT
        assert (weights[name] > 0) is (share > 0)
        if share:
            quota = share / most * LARGEST_WEIGHT
            assert weights[name] == 1 if quota < 1 else abs(weights[name] - quota) < 1
        if share and share == most:
            assert weights[name] == LARGEST_WEIGHT


@given(SHARES)
def test_a_larger_share_never_has_a_smaller_weight(shares: dict[str, float]) -> None:
    weights = whole_weights(shares)
    ordered = sorted(shares, key=lambda name: shares[name])
    for smaller, larger in itertools.pairwise(ordered):
        assert shares[smaller] == shares[larger] or weights[smaller] <= weights[larger]


@given(SHARES)
def test_largest_remainders_keep_the_sum(shares: dict[str, float]) -> None:
    """But for those that would have had less than 1."""
    weights, most = whole_weights(shares), max(shares.values(), default=0.0)
    quotas = {name: share / most * LARGEST_WEIGHT for name, share in shares.items() if share}
    if all(quota >= 1 for quota in quotas.values()):
        assert sum(weights.values()) == round(math.fsum(quotas.values()))


def test_equal_shares_have_equal_weights_in_any_unit() -> None:
    assert whole_weights({"a": 0.1, "b": 0.1, "c": 0.1}) == {"a": 256, "b": 256, "c": 256}
    assert whole_weights({"a": 300.0, "b": 100.0}) == {"a": 256, "b": 85}
    assert whole_weights({"a": 0, "b": 0}) == {"a": 0, "b": 0}
    assert whole_weights({}) == {}


@pytest.mark.parametrize("share", [-1.0, math.nan, math.inf])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ClusterError, match="share of node b"):
        whole_weights({"a": 1.0, "b": share})


@given(st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 1000), st.booleans()), max_size=20))
def test_rates_sum_to_what_was_counted_since_the_first_look(looks: list[tuple[float, int, bool]]) -> None:
    """A restarted counter has lost what it counted between the last look and its end, and nothing else; no rate is
    below 0."""
    rates, at_s, counter, expected, found = CounterRates(), 0.0, 500, 0, 0.0
    assert rates.observe({"x": counter}, at_s) == {"x": 0.0}
    for seconds, grown, restarted in looks:
        before = counter
        counter = grown if restarted else counter + grown
        expected += counter - before if counter >= before else counter
        at_s += seconds
        rate = rates.observe({"x": counter}, at_s)["x"]
        assert rate >= 0
        found += rate * seconds
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_rates_of_counters_that_come_and_of_looks_at_the_same_time() -> None:
    rates = CounterRates()
    assert rates.observe({"a": 10}, 1.0) == {"a": 0.0}
    assert rates.observe({"a": 20, "b": 50}, 1.0) == {"a": 0.0, "b": 0.0}
    assert rates.observe({"a": 30, "b": 50}, 3.0) == {"a": 10.0, "b": 0.0}
    with pytest.raises(ValueError, match="before"):
        rates.observe({}, 2.0)
