"""Twin of `csrc/pairing_heap.pxd`: the rows of a bucket, sorted again for every question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Row:
    lane: int
    slot: int
    key: int
    client: int
    rank: float  # infinite for a row of the background
    deadline_ns: int
    since_ns: float  # minus infinity for a row that has waited before
    order: int

    @property
    def place(self) -> tuple[float, int]:
        return self.rank, self.order


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return rows of a bucket, those that go next first."""
    return sorted(rows, key=lambda row: row.place)
