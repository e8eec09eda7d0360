"""Whether a family can be served as it is configured."""

from __future__ import annotations

from clover.config import FamilyConfig
from clover.errors import ConfigError
from clover.planning.model.problem import accuracies
from clover.types import FamilyProfile, FamilySpec


def check_floor(name: str, profile: FamilyProfile, floor: float | None) -> None:
    """Raise ConfigError if no variant reaches the accuracy floor (percent) that a family is configured with."""
    best = max(accuracies(profile).values(), default=0.0)
    if floor is not None and floor > best:
        raise ConfigError(f"{name}: accuracy_floor {floor:g} is above the best variant's {best:.2f} %")


def check_variants(item: FamilyConfig, spec: FamilySpec) -> None:
    """Raise ConfigError if a variant that a family is configured with is none of its variants."""
    variants = [variant.name for variant in spec.variants]
    for named in (item.variant, "" if item.relief == "auto" else item.relief):
        if named and named not in variants:
            raise ConfigError(f"family {spec.name!r} has no variant {named!r}; it has {', '.join(variants)}")
