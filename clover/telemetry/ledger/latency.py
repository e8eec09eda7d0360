"""Latencies as the ledger keeps them: counts in buckets whose upper bounds rise by a fourth root of two, as text.

A bucket is a number k, with the upper bound 0.1 ms x 2^(k / 4); the last one has all that is above (91 s).  A quantile
is so known to a fifth, and as a rule to a twentieth, since counts are taken to be spread evenly within a bucket.  The
text of a histogram is "k:count" for each bucket that has any, joined by commas.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

BOUNDS_MS: tuple[float, ...] = tuple(0.1 * 2.0 ** (k / 4) for k in range(80))
"""Upper bounds of the buckets; what is above the last one is in one more."""


def counts_of(cumulative: Sequence[int], count: int) -> dict[int, int]:
    """Return counts by bucket, of the numbers of values up to each of `BOUNDS_MS` and of all values."""
    edges = [0, *cumulative, count]
    return {k: edges[k + 1] - edges[k] for k in range(len(edges) - 1) if edges[k + 1] > edges[k]}


def encode(counts: Mapping[int, int]) -> str:
    """Return a histogram as text."""
    return ",".join(f"{k}:{count}" for k, count in sorted(counts.items()) if count)


def decode(text: str) -> dict[int, int]:
    """Return counts by bucket; ValueError if the text is no histogram."""
    return {int(k): int(count) for k, count in (part.split(":") for part in text.split(",") if part)}


def add(one: str, other: str) -> str:
    """Return the sum of two histograms."""
    if not one or not other:
        return one or other
    counts = Counter(decode(one))
    counts.update(decode(other))
    return encode(counts)


def quantile_ms(counts: Mapping[int, int], q: float) -> float | None:
    """Return the `q` quantile in milliseconds (estimated within its bucket); None if nothing was counted."""
    whole = sum(counts.values())
    if not whole:
        return None
    rank, seen = q * whole, 0
    for k, count in sorted(counts.items()):
        if seen + count >= rank:
            if k >= len(BOUNDS_MS):
                return math.inf
            below = BOUNDS_MS[k - 1] if k else 0.0
            return below + (BOUNDS_MS[k] - below) * max(rank - seen, 0.0) / count
        seen += count
    raise AssertionError("the counts of a histogram do not add up")


class _Sum:
    """An aggregate function of SQLite."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def step(self, text: str, /) -> None:
        """Add one histogram."""
        self._counts.update(decode(text))

    def finalize(self) -> str:
        """Return the sum."""
        return encode(self._counts)


def register(connection: sqlite3.Connection) -> None:
    """Give a connection the functions that `schema` uses."""
    connection.create_function("add_histograms", 2, add, deterministic=True)
    connection.create_aggregate("sum_histograms", 1, _Sum)  # type: ignore[arg-type]  # typeshed knows only numbers
