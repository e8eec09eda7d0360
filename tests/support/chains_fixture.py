"""Chains on two cores: services, points of a profile, and states that may cascade."""

from __future__ import annotations

import msgspec

from clover.planning.model.problem import Problem
from clover.planning.model.queueing import Service
from clover.types import CascadeProfile, ChainPoint, GroupCount, State
from tests.support.profiles_fixture import objective, profile, state

FAST, SLOW = Service((1,), (1.0,), (0.01,)), Service((1,), (10.0,), (0.2,))


def point(
    accuracy: float = 91.5, *, chain: tuple[str, ...] = ("small", "large"), reach: tuple[float, ...] = (1.0, 0.2)
) -> ChainPoint:
    return ChainPoint(
        chain=chain,
        thresholds=(0.5,) * (len(chain) - 1),
        accuracy=accuracy,
        low=accuracy - 0.7,
        high=accuracy + 0.7,
        reach=reach,
        ends=(accuracy,) * len(chain),
        cut=(accuracy - 20.0,) * len(chain),
        cost=0.3,
    )


def two_cores(rate: float = 100.0, **how: object) -> State:
    return state(rate=rate, config=objective("floor", slo_ms=30.0, floor=91.0), **how)  # type: ignore[arg-type]


def both(problem: Problem) -> tuple[GroupCount, ...]:
    return tuple(GroupCount(variant=name, profile="1c", count=1) for name in ("large", "small"))


def cascading(points: list[ChainPoint], *, on: bool = True, floor: float = 91.0, **how: object) -> State:
    measured = msgspec.structs.replace(
        profile(),
        cascade=CascadeProfile(points=tuple(points), quantiles={}, calibration_rows=5000, held_out_rows=5000),
    )
    config = msgspec.structs.replace(objective("floor", slo_ms=30.0, floor=floor), cascade=on)
    return state(config=config, measured=measured, **how)  # type: ignore[arg-type]
