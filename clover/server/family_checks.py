"""Whether a family can be served as it is configured."""

from __future__ import annotations

from collections.abc import Mapping

from clover.config import FamilyConfig
from clover.errors import ConfigError
from clover.types import FamilySpec


def check_floor(name: str, accuracies: Mapping[str, float], floor: float | None) -> None:
    """Raise ConfigError if none of the variants' accuracies reaches the floor (percent) that a family is configured
    with."""
    best = max(accuracies.values(), default=0.0)
    if floor is not None and floor > best:
        raise ConfigError(f"{name}: accuracy_floor {floor:g} is above the best variant's {best:.2f} %")


def without_plan(spec: FamilySpec) -> str:
    """Return why a family is served without a plan, and what to do; "" if it can be measured."""
    unknown = [variant.name for variant in spec.variants if variant.accuracy is None]
    if spec.evaluation is not None or not unknown:
        return ""
    return (
        f"family {spec.name} has neither evaluation rows nor an accuracy of {', '.join(unknown)}, so that it is served "
        "without a plan: add [evaluation], or accuracy = { value, metric, source } to each variant"
    )


def check_variants(item: FamilyConfig, spec: FamilySpec) -> None:
    """Raise ConfigError if a variant that a family is configured with is none of its variants."""
    variants = [variant.name for variant in spec.variants]
    for named in (item.variant, "" if item.relief == "auto" else item.relief):
        if named and named not in variants:
            raise ConfigError(f"family {spec.name!r} has no variant {named!r}; it has {', '.join(variants)}")
