"""The families a simulation may use, as profiles: the paper's three on A100 slices, or what was measured here.

A name is one of the paper's families, a family with a stored profile, or the path of a profile (JSON).  The paper's are
*analytical*: nobody measured these models on MIG.  One row of them is one request of the table: a batch of 8 images, or
one question.  So workers take one row at a time, and a time is a request's.  A variant is absent from a slice that it
does not fit.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from pathlib import Path

import msgspec

from clover.cache import cache_folder
from clover.devices.tables import slice_profiles, table
from clover.emulation.profiles import analytical, pace
from clover.emulation.profiles.pace import PaceRow
from clover.errors import ConfigError, ProfileError
from clover.hints import did_you_mean, program
from clover.malformed import MALFORMED
from clover.planning.packing.geometry import layouts
from clover.profiles import ProfileStore
from clover.research.simulate import parametric
from clover.research.simulate.parametric import Confidence
from clover.types import (
    AccuracyMeasurement,
    BasePoint,
    DeviceShape,
    FamilyProfile,
    FamilySpec,
    LatencyMeasurement,
    Method,
    Record,
    TensorSpec,
    VariantSpec,
)

_DATA = Path(__file__).parent / "data" / "paper_families.json"
_BACKEND = "tabulated"


class PaperFamily(Record, frozen=True, kw_only=True):
    """What the table of service times does not say of a family; `accuracy` in percent, from the cheapest variant to the
    most expensive."""

    family: str
    request: str
    metric: str
    accuracy_source: str
    accuracy: dict[str, float]


class PaperFile(Record, frozen=True, kw_only=True):
    """The shipped file of the paper's families: `board` names a table of `clover.devices.tables`."""

    about: str
    method: Method
    board: str
    idle_w_per_gpu: float
    idle_source: str
    families: tuple[PaperFamily, ...]


class Known(Record, frozen=True, kw_only=True):
    """A family's profile with what a report says about it.  `digest` is the SHA-256 of the file it came from."""

    profile: FamilyProfile
    source: str
    digest: str
    request: str
    metric: str
    method: Method
    confidence: str = ""
    """What the family's confidence is where it was not measured."""

    def __hash__(self) -> int:
        return hash((self.digest, self.profile.family, self.profile.machine))


@cache
def paper() -> PaperFile:
    """Return the shipped file of the paper's families."""
    return msgspec.json.decode(_DATA.read_bytes(), type=PaperFile)


def names() -> tuple[str, ...]:
    """Return the names of the paper's families."""
    return tuple(family.family for family in paper().families)


@cache
def gpus(count: int) -> tuple[DeviceShape, ...]:
    """Return `count` of the paper's GPUs, with every layout that MIG allows."""
    board = table(paper().board)
    cuts = slice_profiles(board)
    return tuple(
        DeviceShape(
            device=f"gpu{number}",
            kind="mig",
            layouts=layouts(cuts, device=f"gpu{number}", compute=board.compute_slices),
            slices=board.compute_slices,
            overlap=False,
            emulated=True,
            label=f"{board.product}, simulated",
        )
        for number in range(count)
    )


def load(name: str, shapes: tuple[DeviceShape, ...], confidence: Confidence | None = None) -> Known:
    """Return the profile of `name` on `shapes`; ConfigError if there is none that covers them.  The paper's families
    have cascades if a `confidence` is given (`parametric`)."""
    if name in names():
        known = _paper(name, shapes)
        return known if confidence is None else _sure(known, confidence)
    path = Path(name)
    if path.suffix == ".json":
        return _of_file(path, shapes)
    folder = ProfileStore(cache_folder("")).folder
    files = sorted(folder.glob(f"{name}-*.json"), key=lambda item: item.stat().st_mtime) if name.isidentifier() else []
    if not files:
        raise ConfigError(
            f"there is no family {name!r}{did_you_mean(name, names())}: give {', '.join(names())}, the path of a "
            f"profile (.json), or a family measured on this machine (`{program()} profile {name}`)"
        )
    wrong: ConfigError | None = None
    for item in reversed(files):  # the newest that was measured on devices like these
        try:
            return _of_file(item, shapes)
        except ConfigError as error:
            wrong = wrong or error
    assert wrong is not None
    raise wrong


def spec_of(profile: FamilyProfile) -> FamilySpec:
    """Return a family as the controller wants it; none of its models is ever loaded."""
    return FamilySpec(
        name=profile.family,
        inputs=(TensorSpec(name="row", datatype="FP32", shape=(1,)),),
        outputs=(TensorSpec(name="answer", datatype="FP32", shape=(1,)),),
        variants=tuple(VariantSpec(name=name, loader="none:simulated") for name in profile.backend),
    )


def _of_file(path: Path, shapes: tuple[DeviceShape, ...]) -> Known:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a name no file can have
        raise ConfigError(f"{path}: {error}") from error
    try:
        profile = msgspec.json.decode(data, type=FamilyProfile)
    except MALFORMED as error:
        raise ConfigError(f"{path} is no profile of a family: {error}") from error
    if not profile.accuracy or not profile.latency or not profile.backend:
        raise ConfigError(f"{path} is a profile without measurements")
    for item in profile.latency:
        figures = (item.mean_ms, item.energy_j_per_row, item.cv)
        if item.batch < 1 or not item.mean_ms > 0.0 or not all(0.0 <= x < math.inf for x in figures):
            where = f"{item.variant} on {item.profile}, batch {item.batch}"
            raise ConfigError(f"{path}: the measurement of {where} has figures that cannot be")
    return Known(
        profile=_based_profile(profile, shapes),
        source=f"profile {path.name}",
        digest=hashlib.sha256(data).hexdigest(),
        request="1 row",
        metric=profile.accuracy[0].metric,
        method=profile.latency[0].energy_method,
    )


def _based_profile(profile: FamilyProfile, shapes: tuple[DeviceShape, ...]) -> FamilyProfile:
    """Return the profile with BASE on `shapes`.  Its p95, which the default SLO is made from, stays the one that was
    measured if it was measured on as many devices."""
    try:
        base = analytical.base_of(profile, shapes)
        known = profile.base
        if (known.variant, known.profile, known.count) == (base.variant, base.profile, base.count) and known.p95_ms:
            base = msgspec.structs.replace(base, p95_ms=known.p95_ms, method=known.method)
        return msgspec.structs.replace(profile, base=base)
    except ProfileError as error:
        raise ConfigError(
            f"{profile.family} cannot be simulated on {shapes[0].label or 'these devices'}: {error}"
        ) from (error)


@cache
def _sure(known: Known, confidence: Confidence) -> Known:
    """Return a family of the paper with a parametric confidence, and so with cascades."""
    profile = known.profile
    joules: dict[str, float] = {}
    for item in profile.latency:
        joules[item.variant] = min(item.energy_j_per_row, joules.get(item.variant, math.inf))
    accuracy = {item.variant: item.value for item in profile.accuracy if item.variant in joules}
    cascade = parametric.cascade_of(accuracy, joules, confidence)
    return msgspec.structs.replace(
        known,
        profile=msgspec.structs.replace(profile, cascade=cascade, notes=(*profile.notes, confidence.about)),
        confidence=confidence.about,
    )


def _latency(row: PaceRow, method: Method) -> LatencyMeasurement:
    """Return a row of the table of paces as a measurement of one request at a time; its service time is constant."""
    return LatencyMeasurement(
        variant=row.variant,
        profile=row.profile,
        backend=_BACKEND,
        batch=1,
        threads=1,
        samples=0,
        mean_ms=row.ms,
        cv=0.0,
        p50_ms=row.ms,
        p95_ms=row.ms,
        p99_ms=row.ms,
        cpu_s_per_row=0.0,
        energy_j_per_row=row.watts * row.ms / 1e3,
        energy_method=method,
    )


@cache
def _paper(name: str, shapes: tuple[DeviceShape, ...]) -> Known:
    file, table_of_paces = paper(), pace.shipped()
    known = next(family for family in file.families if family.family == name)
    offered = {place.profile for shape in shapes for layout in shape.layouts for place in layout}
    latency = [_latency(row, file.method) for row in table_of_paces.rows_of(name) if row.profile in offered]
    if not latency:
        raise ConfigError(f"{name} is known on A100 slices only, not on {', '.join(sorted(offered))}: give --gpus")
    accuracy = tuple(
        AccuracyMeasurement(
            variant=variant,
            backend=_BACKEND,
            metric=known.metric,
            value=value,
            low=value,
            high=value,
            samples=0,
            method="published",
            source=known.accuracy_source,
        )
        for variant, value in known.accuracy.items()
    )
    digest = hashlib.sha256(_DATA.read_bytes() + pace.shipped_bytes()).hexdigest()
    best = max(known.accuracy, key=lambda variant: known.accuracy[variant])
    profile = FamilyProfile(
        family=name,
        key=digest,
        machine=f"{len(shapes)} x {shapes[0].label}",
        made_at="2023-11-12T00:00:00Z",
        quick=False,
        accuracy=accuracy,
        latency=tuple(latency),
        backend=dict.fromkeys(known.accuracy, _BACKEND),
        base=BasePoint(
            variant=best,
            profile="",
            count=0,
            backend=_BACKEND,
            p95_ms=0.0,
            energy_j_per_row=0.0,
            accuracy=0.0,
            method=file.method,
        ),
        notes=(table_of_paces.source, file.idle_source, "service times do not vary: the table gives means only"),
    )
    return Known(
        profile=_based_profile(profile, shapes),
        source="paper_families.json and a100_paces.json of Clover",
        digest=digest,
        request=known.request,
        metric=known.metric,
        method=file.method,
    )
