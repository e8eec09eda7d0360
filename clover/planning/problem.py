"""What a planner weighs: variants with accuracy, services per profile, one load, one objective.

A `Problem` is read out of a `State` once and then only asked.  The services are those of each variant's chosen
backend; a family that owns `share` < 1 of the machine is served that much slower.  Energies are active energy, the
part a plan can change while every device stays awake; idle power is the same for all plans and drops out of every
comparison.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from clover.errors import PlanError
from clover.planning.queueing import Service
from clover.types import DeviceShape, FamilyProfile, LatencyMeasurement, ObjectiveConfig, Placement, State

LEAST_RATE = 0.1
"""Rows a second that are planned for at least, so that an idle family still has a defined plan."""


@dataclass(frozen=True)
class Problem:
    """One family's planning problem at one moment.  `services[variant, profile]`; `variants` from the least to the
    most accurate; accuracy in percent."""

    family: str
    variants: tuple[str, ...]
    accuracy: dict[str, float]
    backend: dict[str, str]
    services: dict[tuple[str, str], Service]
    base_energy_j: float
    base_accuracy: float
    rate: float
    intensity_g_per_kwh: float
    objective: ObjectiveConfig
    devices: tuple[DeviceShape, ...]

    @property
    def best(self) -> str:
        """The most accurate variant; the most frugal of equals."""
        top = max(self.accuracy[variant] for variant in self.variants)
        equals = [variant for variant in self.variants if self.accuracy[variant] == top]
        return min(equals, key=lambda variant: min(self.energies(variant), default=0.0))

    def energies(self, variant: str) -> list[float]:
        """Least joules a row of the variant on each profile it was measured on."""
        return [service.least_energy_j for (name, _), service in self.services.items() if name == variant]


def whole(device: DeviceShape) -> tuple[Placement, ...]:
    """The device in the fewest parts, with most compute slices among equals: how BASE uses it; nothing where it has no
    layout (lost, or full of what others own)."""
    layouts = [layout for layout in device.layouts if layout]
    return min(layouts, key=lambda layout: (len(layout), -sum(item.slices for item in layout)), default=())


def base_capacity(profile: FamilyProfile, devices: Sequence[DeviceShape], share: float = 1.0) -> float:
    """Rows a second of BASE on these devices: its variant on each of them as a whole."""
    services = services_of(profile, share)
    found = [services.get((profile.base.variant, item.profile)) for device in devices for item in whole(device)]
    return sum(service.capacity() for service in found if service is not None)


def problem_of(state: State) -> Problem:
    """The problem that `state` poses; PlanError where the profile covers no variant on these devices."""
    profile = state.profile
    services = services_of(profile, state.share)
    accuracy = accuracies(profile)
    if not any(shape.layouts for shape in state.devices):
        devices = ", ".join(shape.device for shape in state.devices) or "none"
        raise PlanError(f"{state.family} has no device that can be used ({devices})")
    known = {placement.profile for shape in state.devices for layout in shape.layouts for placement in layout}
    services = {key: value for key, value in services.items() if key[0] in accuracy and key[1] in known}
    variants = sorted({variant for variant, _ in services}, key=lambda variant: (accuracy[variant], variant))
    if not variants:
        raise PlanError(f"the profile of {state.family} covers none of {', '.join(sorted(known))}: profile it again")
    return Problem(
        family=state.family,
        variants=tuple(variants),
        accuracy={variant: accuracy[variant] for variant in variants},
        backend={variant: profile.backend[variant] for variant in variants},
        services=services,
        base_energy_j=max(profile.base.energy_j_per_row, 1e-12),
        base_accuracy=profile.base.accuracy,
        rate=max(state.arrival_rate, LEAST_RATE),
        intensity_g_per_kwh=state.intensity.g_per_kwh,
        objective=state.objective,
        devices=state.devices,
    )


def accuracies(profile: FamilyProfile) -> dict[str, float]:
    """Accuracy (percent) of each variant on its chosen backend."""
    return {item.variant: item.value for item in profile.accuracy if profile.backend.get(item.variant) == item.backend}


def services_of(profile: FamilyProfile, share: float = 1.0) -> dict[tuple[str, str], Service]:
    """How each (variant, profile) serves on the variant's chosen backend, slowed to `share` of the machine's time.

    Where a batch size was measured with several thread counts the fastest counts.
    """
    fastest: dict[tuple[str, str], dict[int, LatencyMeasurement]] = defaultdict(dict)
    for item in profile.latency:
        if profile.backend.get(item.variant) != item.backend:
            continue
        rows = fastest[item.variant, item.profile]
        if item.batch not in rows or item.mean_ms < rows[item.batch].mean_ms:
            rows[item.batch] = item
    services = {}
    for key, rows in fastest.items():
        ordered = [rows[batch] for batch in sorted(rows)]
        services[key] = Service(
            tuple(item.batch for item in ordered),
            tuple(max(item.mean_ms, 1e-6) for item in ordered),
            tuple(item.energy_j_per_row for item in ordered),
            sum(item.cv for item in ordered) / len(ordered),
        ).derated(min(1.0, share))
    return services
