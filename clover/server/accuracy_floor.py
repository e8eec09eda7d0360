"""Whether a family can keep the accuracy that it is configured with."""

from __future__ import annotations

from clover.errors import ConfigError
from clover.planning.model.problem import accuracies
from clover.types import FamilyProfile


def check_floor(name: str, profile: FamilyProfile, floor: float | None) -> None:
    """Raise ConfigError if no variant reaches the accuracy floor (percent) that a family is configured with."""
    best = max(accuracies(profile).values(), default=0.0)
    if floor is not None and floor > best:
        raise ConfigError(f"{name}: accuracy_floor {floor:g} is above the best variant's {best:.2f} %")
