"""The energy of a chain, from the part of the rows that reaches each stage and the joules a row of each variant."""

from __future__ import annotations

from collections.abc import Sequence


def expected_energy(reach: Sequence[float], joules_per_variant: Sequence[float]) -> float:
    """Return the expected active joules a row of a chain whose stages are asked `reach` of the rows
    (`ChainPoint.reach`), at joules a row asked of each stage's variant, in the chain's order."""
    return sum(part * joules for part, joules in zip(reach, joules_per_variant, strict=True))
