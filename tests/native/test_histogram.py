"""The histogram: quantiles within the promised error, sums exact, merging as good as counting together."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import histogram as twin

HIGHEST = 3_600_000_000_000
VALUES = st.one_of(
    st.integers(0, 300), st.integers(0, HIGHEST), st.integers(0, 42).map(lambda bit: min(2**bit, HIGHEST))
)
SAMPLES = st.lists(VALUES, max_size=60)
QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0)


def filled(kernels: SimpleNamespace, values: list[int], *layout: int) -> Any:
    histogram = kernels.histogram.Histogram(*layout)
    for value in values:
        histogram.record(value)
    return histogram


def seen(histogram: Any) -> tuple[int, int, list[int]]:
    return histogram.count, histogram.sum, [histogram.quantile(q) for q in QUANTILES]


def test_an_empty_one(kernels: SimpleNamespace) -> None:
    histogram = kernels.histogram.Histogram()
    assert (histogram.lowest, histogram.highest, histogram.digits) == (1, HIGHEST, 2)
    assert seen(histogram) == (0, 0, [0] * len(QUANTILES))
    assert histogram.buckets([1, 10]) == [0, 0]


@given(SAMPLES.filter(bool), st.sampled_from(QUANTILES))
def test_a_quantile_is_never_low_and_at_most_a_hundredth_high(
    kernels: SimpleNamespace, values: list[int], q: float
) -> None:
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert exact <= filled(kernels, values).quantile(q) <= exact * 1.01


@given(SAMPLES.filter(bool), st.integers(1, 4), st.sampled_from([1, 3, 1000, 1 << 20]), st.sampled_from(QUANTILES))
def test_other_layouts_keep_their_promise(
    kernels: SimpleNamespace, values: list[int], digits: int, lowest: int, q: float
) -> None:
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    given_back = filled(kernels, values, lowest, HIGHEST, digits).quantile(q)
    assert exact <= given_back < exact * (1 + 10**-digits) + lowest
    assert given_back == filled(SimpleNamespace(histogram=twin), values, lowest, HIGHEST, digits).quantile(q)


@given(SAMPLES)
def test_small_values_and_the_sum_are_exact(kernels: SimpleNamespace, values: list[int]) -> None:
    histogram = filled(kernels, values)
    assert (histogram.count, histogram.sum) == (len(values), sum(values))
    small = [value for value in values if value < 200]
    assert histogram.buckets(range(200)) == [sum(value <= bound for value in small) for bound in range(200)]


@given(SAMPLES, st.lists(st.floats(-10, 2.0 * HIGHEST), max_size=8).map(sorted))
def test_buckets_count_up_to_their_bounds(kernels: SimpleNamespace, values: list[int], bounds: list[float]) -> None:
    counts = filled(kernels, values).buckets([*bounds, math.inf])
    assert counts == filled(SimpleNamespace(histogram=twin), values).buckets([*bounds, math.inf])
    assert counts == sorted(counts)
    assert counts[-1] == len(values)
    for bound, count in zip(bounds, counts, strict=False):
        assert sum(value <= bound for value in values) <= count <= sum(value <= bound * 1.01 for value in values)


@given(SAMPLES, SAMPLES, SAMPLES)
def test_merging_is_counting_together_in_any_order(
    kernels: SimpleNamespace, a: list[int], b: list[int], c: list[int]
) -> None:
    left = filled(kernels, a)
    left.merge(filled(kernels, b))
    left.merge(filled(kernels, c))
    tail = filled(kernels, b)
    tail.merge(filled(kernels, c))
    right = tail.copy()
    right.merge(filled(kernels, a))
    assert seen(left) == seen(right) == seen(filled(kernels, a + b + c))
    left.subtract(tail)
    assert seen(left) == seen(filled(kernels, a))


def test_what_lies_outside_counts_at_the_ends(kernels: SimpleNamespace) -> None:
    histogram = filled(kernels, [3, 5000], 16, 1000)
    assert histogram.quantile(0.5) == 15
    assert histogram.quantile(1.0) == 1000
    assert histogram.sum == 5003


def test_the_sum_outgrows_64_bits(kernels: SimpleNamespace) -> None:
    histogram = kernels.histogram.Histogram()
    histogram.record(HIGHEST, 2**40)
    histogram.record(1, 3)
    assert histogram.sum == HIGHEST * 2**40 + 3
    assert histogram.count == 2**40 + 3


def test_bounds_may_be_negative_and_infinite(kernels: SimpleNamespace) -> None:
    assert filled(kernels, [0, 5]).buckets([-math.inf, -2.0, -0.5, 0, 5, math.inf]) == [0, 0, 0, 1, 2, 2]


def test_a_copy_is_its_own(kernels: SimpleNamespace) -> None:
    first = filled(kernels, [1, 2, 3])
    second = first.copy()
    first.reset()
    assert first.count == first.sum == 0
    assert second.count == 3


def test_what_makes_no_sense_is_refused(kernels: SimpleNamespace) -> None:
    make = kernels.histogram.Histogram
    for layout in ((0,), (-1,), (10, 19), (1, 1000, 0), (1, 1000, 5)):
        with pytest.raises(ValueError):
            make(*layout)
    histogram = filled(kernels, [10, 20])
    for arguments in ((-1,), (1, -1)):
        with pytest.raises(ValueError):
            histogram.record(*arguments)
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError):
            histogram.quantile(q)
    for bounds in ([2, 1], [math.nan]):
        with pytest.raises(ValueError):
            histogram.buckets(bounds)
    for call in (histogram.merge, histogram.subtract):
        with pytest.raises(ValueError):
            call(make(1, 1000))
    with pytest.raises(ValueError):
        histogram.subtract(filled(kernels, [10, 10]))
    assert seen(histogram) == seen(filled(kernels, [10, 20]))
