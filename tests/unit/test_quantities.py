"""Quantities for people: small masses can be read, and slices have words."""

from __future__ import annotations

import math

import pytest

from clover.quantities import grams, rate, slice_words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 g"),
        (1.2345e-5, "12.3 µg"),
        (-4.2e-3, "-4.2 mg"),
        (0.99951, "1 g"),
        (9.996e-4, "1 mg"),
        (12.0, "12 g"),
        (1234.0, "1.23 kg"),
        (5.6e6, "5.6 t"),
        (3e-13, "0.0003 ng"),
        (math.nan, "nan g"),
    ],
)
def test_grams_have_a_unit_that_shows_three_digits(value: float, text: str) -> None:
    assert grams(value) == text


def test_slices_of_a_cpu_are_cores() -> None:
    words = [slice_words(name) for name in ("1c", "2c", "16c", "3g.20gb", "gpu", "")]
    assert words == ["1 core", "2 cores", "16 cores", "3g.20gb", "gpu", ""]


@pytest.mark.parametrize(
    ("per_s", "words"),
    [(0.0, "0"), (0.12345, "0.1235"), (999.94, "999.9"), (999.96, "1,000"), (26_712.4, "26,712"), (1e6, "1,000,000")],
)
def test_rates_are_written_out(per_s: float, words: str) -> None:
    assert rate(per_s) == words
