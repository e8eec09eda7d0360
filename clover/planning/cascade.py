"""What a chain costs, from the part of the rows that reaches each stage and what a row costs each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def expected_energy(reach: Sequence[float], joules: Mapping[str, float], chain: Sequence[str]) -> float:
    """Expected active joules a row of `chain`, whose stages are asked `reach` of the rows, at `joules` a row asked of
    each variant; KeyError for a variant without."""
    return sum(part * joules[name] for part, name in zip(reach, chain, strict=True))
