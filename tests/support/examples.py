"""How many examples tests generate that ask for more or fewer than others."""

from __future__ import annotations

from hypothesis import settings

USUAL = 60  # of the profile `default`


def examples(number: int) -> int:
    """Return `number`; under a profile of fewer examples (`quick`), the same part of it."""
    return max(1, number * min(settings().max_examples, USUAL) // USUAL)
