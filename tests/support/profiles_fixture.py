"""A synthetic family profile: round numbers that no machine ever measured."""

from __future__ import annotations

from clover.planning.budget.counterfactual import Fixed
from clover.types import (
    AccuracyMeasurement,
    Assignment,
    BasePoint,
    DeviceShape,
    FamilyProfile,
    GroupCount,
    LatencyMeasurement,
    ObjectiveConfig,
    Placement,
    Reading,
    State,
)

VARIANTS = {"small": (88.0, 1.0), "medium": (90.0, 2.0), "large": (92.0, 4.0)}
"""Accuracy in percent, and milliseconds a row on one core; a core draws 10 W."""

BATCHES = (1, 2, 4, 8)


def placement(start: int, size: int, device: str = "cpu0") -> Placement:
    return Placement(device=device, profile=f"{size}c", start=start, size=size)


def cpu(cores: int = 2, device: str = "cpu0", overlap: bool = True) -> DeviceShape:
    """A device of whole, and of uniform power-of-two layouts (2 cores: 1 x 2c and 2 x 1c)."""
    sizes = [cores // n for n in (1, 2, 4, 8) if cores % n == 0 and cores // n >= 1]
    return DeviceShape(
        device=device,
        kind="cpu" if overlap else "mig",
        layouts=tuple(
            tuple(placement(start, size, device) for start in range(0, cores, size)) for size in sorted(set(sizes))
        ),
        slices=cores,
        overlap=overlap,
    )


def profile(cores: tuple[int, ...] = (1, 2), variants: dict[str, tuple[float, float]] | None = None) -> FamilyProfile:
    """Service on n cores is n^0.8 times faster; half of a single row's time is spared a row in larger batches."""
    rows = variants or VARIANTS
    latency = []
    for name, (_, ms) in rows.items():
        for size in cores:
            for batch in BATCHES:
                mean_ms = ms * (0.5 + 0.5 * batch) / size**0.8
                latency.append(
                    LatencyMeasurement(
                        variant=name,
                        profile=f"{size}c",
                        backend="eager",
                        batch=batch,
                        threads=size,
                        samples=100,
                        mean_ms=mean_ms,
                        cv=0.1,
                        p50_ms=mean_ms,
                        p95_ms=mean_ms * 1.2,
                        p99_ms=mean_ms * 1.3,
                        cpu_s_per_row=mean_ms * size / batch / 1e3,
                        energy_j_per_row=mean_ms * size / batch / 1e3 * 10.0,
                        energy_method="modelled",
                    )
                )
    best = max(rows, key=lambda name: rows[name][0])
    whole = max(cores)
    return FamilyProfile(
        family="toy",
        key="synthetic",
        machine="synthetic",
        made_at="2026-01-01T00:00:00Z",
        quick=True,
        accuracy=tuple(
            AccuracyMeasurement(
                variant=name,
                backend="eager",
                metric="top1",
                value=accuracy,
                low=accuracy - 0.5,
                high=accuracy + 0.5,
                samples=5000,
                method="measured",
            )
            for name, (accuracy, _) in rows.items()
        ),
        latency=tuple(latency),
        backend=dict.fromkeys(rows, "eager"),
        base=BasePoint(
            variant=best,
            profile=f"{whole}c",
            count=1,
            backend="eager",
            p95_ms=10.0,
            energy_j_per_row=rows[best][1] * whole**0.2 / 1e3 * 10.0,
            accuracy=rows[best][0],
            method="measured",
        ),
    )


def fixed(*groups: tuple[str, str, int], **shares: float) -> Fixed:
    """A fixed mix of (variant, profile, count), with the shares of the variants."""
    return Fixed(configuration=tuple(GroupCount(variant=v, profile=p, count=n) for v, p, n in groups), shares=shares)


def reading(g_per_kwh: float) -> Reading:
    return Reading(g_per_kwh=g_per_kwh, at_s=0.0, provider="static", method="configured")


def objective(
    form: str = "paper", slo_ms: float = 30.0, floor: float = 89.0, lam: float | None = None, reference: float = 250.0
) -> ObjectiveConfig:
    return ObjectiveConfig(
        form="paper" if form == "paper" else "floor",
        slo_ms=slo_ms,
        accuracy_floor=floor,
        lam=lam,
        reference_g_per_kwh=reference,
    )


def state(
    *,
    g_per_kwh: float = 250.0,
    rate: float = 100.0,
    config: ObjectiveConfig | None = None,
    devices: tuple[DeviceShape, ...] = (),
    running: tuple[Assignment, ...] = (),
    measured: FamilyProfile | None = None,
    share: float = 1.0,
) -> State:
    return State(
        family="toy",
        grid_s=0.0,
        intensity=reading(g_per_kwh),
        arrival_rate=rate,
        p95_ms=None,
        queue_rows=0,
        objective=config or objective(),
        profile=measured or profile(),
        devices=devices or (cpu(),),
        running=running,
        routing=None,
        share=share,
    )


def worker(variant: str, start: int, size: int, device: str = "cpu0", backend: str = "eager") -> Assignment:
    return Assignment(placement=placement(start, size, device), family="toy", variant=variant, backend=backend)


FASHION = {
    "tiny": (85.4, 0.4),
    "small": (89.7, 0.6),
    "medium": (91.2, 1.2),
    "large": (92.6, 2.4),
    "xlarge": (93.5, 5.0),
}
"""Percent, and milliseconds a row on one core, of the variants of `fashion` in profiles of tests."""
