"""Random numbers: the published sequences, the same doubles in both twins, and the distributions they claim."""

from __future__ import annotations

import math
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import random as twin

WORDS = st.integers(0, 2**64 - 1)
DRAWS = ("bits", "uniform", "exponential", "normal")


def test_the_published_sequences() -> None:
    """splitmix64 from 1234567 and xoshiro256++ from the state 1, 2, 3, 4, as their authors' programs print them."""
    splitmix = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    random = twin.Random(1234567)
    assert random.state == splitmix
    random.state = [1, 2, 3, 4]
    assert [random.bits() for _ in range(4)] == [41943041, 58720359, 3588806011781223, 3591011842654386]


@given(WORDS, WORDS)
def test_both_draw_the_same(kernels: SimpleNamespace, seed: int, stream: int) -> None:
    one, other = kernels.random.Random(seed, stream), twin.Random(seed, stream)
    for _ in range(10):
        for draw in DRAWS:
            assert getattr(one, draw)() == getattr(other, draw)()
        assert one.below(seed | 1) == other.below(seed | 1)


@given(st.floats(1e-300, 1.0, exclude_max=True))
def test_normal_quantiles(kernels: SimpleNamespace, p: float) -> None:
    """The standard library has the same algorithm."""
    assert kernels.random.normal_quantile(p) == twin.normal_quantile(p)
    assert kernels.random.normal_quantile(p) == pytest.approx(NormalDist().inv_cdf(p), rel=1e-14, abs=1e-300)


@pytest.mark.parametrize("stream", [0, 1, 2**63])
def test_moments(kernels: SimpleNamespace, stream: int) -> None:
    random = kernels.random.Random(5, stream)
    n = 20_000
    uniform = np.array([random.uniform() for _ in range(n)])
    exponential = np.array([random.exponential() for _ in range(n)])
    normal = np.array([random.normal() for _ in range(n)])
    below = np.bincount([random.below(7) for _ in range(n)], minlength=7)
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    assert uniform.var() == pytest.approx(1 / 12, rel=0.03)
    assert exponential.mean() == pytest.approx(1.0, abs=0.03)
    assert (exponential > 2.0).mean() == pytest.approx(math.exp(-2.0), abs=0.01)
    assert normal.mean() == pytest.approx(0.0, abs=0.03)
    assert normal.std() == pytest.approx(1.0, rel=0.03)
    assert (normal > 1.6448536).mean() == pytest.approx(0.05, abs=0.006)
    assert len(below) == 7
    assert below == pytest.approx(n / 7, rel=0.08)
    assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.03


def test_streams_and_seeds_differ(kernels: SimpleNamespace) -> None:
    first = {kernels.random.Random(seed, stream).bits() for seed in range(30) for stream in range(30)}
    assert len(first) == 900


def test_what_makes_no_sense_is_refused(kernels: SimpleNamespace) -> None:
    for seed, stream in ((-1, 0), (2**64, 0), (0, -1), (0, 2**64)):
        with pytest.raises(OverflowError):
            kernels.random.Random(seed, stream)
    with pytest.raises(ValueError):
        kernels.random.Random(0).below(0)
    for p in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError):
            kernels.random.normal_quantile(p)
