"""The profile of a family: what was measured on this machine, where it is kept, what invalidates it, how to query it.

A profile is one JSON file in `cache_dir/profiles`, named by family and key.  The key is a digest of everything the
figures depend on: the family's files, the versions of the libraries that run it, the processor and the cores, the
meter that measures its energy, and the version of the measuring procedure.  A changed key is a missing profile, never a
wrong one.  Files are replaced atomically; a damaged one is reported with its path, and put aside where a new one is
measured.  A profile may have the rows that its cascades were made from beside it, `*.rows.npz`, and what was learned of
it while it served, `*.correction` (`clover.control.state.learning`); it can do without both.

The questions below are pure functions.  Between measured batch sizes they interpolate linearly: the time of a batch
is close to affine in its rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from clover import plugins
from clover.cache import replace_file
from clover.errors import ProfileError
from clover.hints import program
from clover.malformed import MALFORMED
from clover.quantities import percent
from clover.types import AccuracyMeasurement, FamilyProfile, FamilySpec, LatencyMeasurement, Record

log = logging.getLogger("clover.profiling")

MEASURING_VERSION = 13
"""Raised whenever the measuring procedure, or how backends run a variant, changes what its figures mean."""

SLO_OVER_BASE = 1.2
"""The default SLO as a multiple of the p95 of BASE."""
LEAST_SLO_MS = 5.0
"""The least default SLO: below, a p95 over HTTP is the scheduler's and the network's rather than the model's."""

_DISTRIBUTIONS = {
    "eager": ("torch",),
    "eager-tf32": ("torch",),
    "eager-fp16": ("torch",),
    "eager-bf16": ("torch",),
    "aoti": ("torch",),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-int8": ("onnxruntime",),
    "openvino": ("openvino",),
    "openvino-bf16": ("openvino",),
    "openvino-int8": ("openvino", "onnxruntime"),
    "tensorrt": ("torch", "torch-tensorrt", "tensorrt-cu13-libs"),
}
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


# --- the store ----------------------------------------------------------------------------------------------------


class ProfileStore:
    """Profiles as files in `cache_dir/profiles`."""

    def __init__(self, cache_dir: Path | str) -> None:
        self.folder = Path(cache_dir) / "profiles"

    def path(self, family: str, key: str) -> Path:
        """Return the file of the profile of `family` under `key`, whether it exists or not."""
        if not _NAME.fullmatch(family) or not key.isalnum():
            raise ProfileError("a profile is kept by a family name of A-Z a-z 0-9 . _ - and a hexadecimal key")
        return self.folder / f"{family}-{key[:16]}.json"

    def rows_path(self, family: str, key: str) -> Path:
        """Return the file of the answers behind the cascades of that profile, whether it exists or not."""
        return self.path(family, key).with_suffix(".rows.npz")

    def correction_path(self, family: str, key: str) -> Path:
        """Return the file of what was learned of that profile while it served, whether it exists or not."""
        return self.path(family, key).with_suffix(".correction")

    def get(self, family: str, key: str, *, put_aside: bool = False) -> FamilyProfile | None:
        """Return the profile of `family` measured under `key`, or None.

        A damaged file raises ProfileError; with `put_aside` it is renamed, the log says so, and None is returned.
        """
        path = self.path(family, key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ProfileError(f"cannot read the profile {path}: {error.strerror}") from error
        try:
            profile = msgspec.json.decode(data, type=FamilyProfile)
            if (profile.family, profile.key) != (family, key):
                raise ValueError("it belongs to another family or machine")
        except MALFORMED as error:
            if put_aside:
                with contextlib.suppress(OSError):
                    aside = path.replace(path.with_name(f"{path.name}.damaged"))
                    log.warning("the profile %s is damaged (%s): it is now %s, and is measured again",
                                path, error, aside.name)  # fmt: skip
                    return None
            raise ProfileError(
                f"the profile {path} is damaged ({error}): delete it, or measure again: --profile force at "
                f"the next start, or `{program()} profile` with --force"
            ) from error
        return profile

    def kept(self) -> Iterator[FamilyProfile]:
        """Yield every profile that can be read, the newest file first."""
        for path in sorted(self.folder.glob("*.json"), key=lambda item: -item.stat().st_mtime):
            with contextlib.suppress(OSError, *MALFORMED):
                yield msgspec.json.decode(path.read_bytes(), type=FamilyProfile)

    def put(self, profile: FamilyProfile) -> Path:
        """Write `profile`, replacing one under the same key atomically, and return its path.  Raises ProfileError."""
        path = self.path(profile.family, profile.key)
        try:
            replace_file(path, msgspec.json.format(msgspec.json.encode(profile), indent=1))
        except OSError as error:
            raise ProfileError(f"cannot write the profile {path}: {error.strerror}; see --cache-dir") from error
        return path


# --- what invalidates a profile -----------------------------------------------------------------------------------


def profile_key(
    spec: FamilySpec,
    cores: Sequence[int],
    backends: Sequence[str],
    meter: str = "",
    device: str = "cpu",
) -> str:
    """Return a digest of all that the figures of `spec` depend on, for workers on `cores` with a choice of `backends`.

    `meter` tells which meter measures energy (`clover.energy.meter_key`); `device` names the kind of device, "cpu" for
    cores.
    """
    parts = {
        "measuring": str(MEASURING_VERSION),
        "family": spec.name,
        "digest": spec.digest,
        "device": device,
        "cores": ",".join(map(str, cores)),
        "processor": processor(),
        "meter": meter,
        **{f"version of {name}": version for name, version in versions(backends).items()},
    }
    text = "\n".join(f"{name}={value}" for name, value in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def versions(backends: Sequence[str]) -> dict[str, str]:
    """Return the installed versions behind `backends` ("" if one is not installed), without importing anything."""
    by_package = {}
    for backend in backends:
        for distribution in _DISTRIBUTIONS.get(backend) or plugins.distributions("backends", backend):
            try:
                by_package[f"{backend}/{distribution}"] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                by_package[f"{backend}/{distribution}"] = ""
    return by_package


def processor() -> str:
    """Return the processor as "MODEL (ARCHITECTURE)"."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    arm = " ".join(fields[name] for name in ("CPU implementer", "CPU part", "CPU variant") if name in fields)
    model = fields.get("model name") or arm or platform.processor() or "unknown"
    return f"{model} ({platform.machine()})"


# --- questions ----------------------------------------------------------------------------------------------------


def measurements(
    profile: FamilyProfile, variant: str, shape: str, backend: str | None = None
) -> tuple[LatencyMeasurement, ...]:
    """Return the measurements of `variant` on core-set or MIG shape `shape`, by rising batch.

    `backend` None: those of the chosen backend.  Raises ProfileError if there are none.
    """
    chosen = backend or profile.backend.get(variant, "")
    rows = [m for m in profile.latency if (m.variant, m.profile, m.backend) == (variant, shape, chosen)]
    if not rows:
        raise ProfileError(
            f"family {profile.family!r}: {variant} with {chosen or 'any backend'} on {shape} was not measured: "
            f"--profile force measures again at the next start, as does `{program()} profile` with --force"
        )
    return tuple(sorted(rows, key=lambda m: m.batch))


def latency(profile: FamilyProfile, variant: str, shape: str, batch: int) -> LatencyMeasurement:
    """Return the measurement of the smallest measured batch that holds `batch` rows, or else of the largest."""
    rows = measurements(profile, variant, shape)
    return next((m for m in rows if m.batch >= batch), rows[-1])


def accuracy(profile: FamilyProfile, variant: str) -> AccuracyMeasurement:
    """Return the accuracy of `variant` with its chosen backend.  Raises ProfileError if it is unknown."""
    chosen = profile.backend.get(variant, "")
    for item in profile.accuracy:
        if (item.variant, item.backend) == (variant, chosen):
            return item
    raise ProfileError(f"family {profile.family!r}: the accuracy of {variant} with {chosen or 'any'} is unknown")


def accuracy_of(profile: FamilyProfile, variant: str) -> float:
    """Return the accuracy of `variant` in percent."""
    return accuracy(profile, variant).value


def best_variant(profile: FamilyProfile) -> str:
    """Return the most accurate variant; of equals the one that was declared first, the cheaper."""
    return max(profile.backend, key=lambda variant: accuracy_of(profile, variant))


def base_p95_ms(profile: FamilyProfile) -> float:
    """Return the p95 of BASE that a client sees, milliseconds: that in its workers and what HTTP adds."""
    return profile.base.p95_ms + profile.front_ms


def default_slo_ms(profile: FamilyProfile) -> float:
    """Return the SLO of a family that is given none, milliseconds."""
    return max(LEAST_SLO_MS, SLO_OVER_BASE * base_p95_ms(profile))


def default_slo_source(profile: FamilyProfile) -> str:
    """Return in words what `default_slo_ms` is made of."""
    base = profile.base
    where = "over HTTP" if profile.front_ms else "in its workers (over HTTP it was not measured)"
    at = f"at {percent(base.load)} load"
    made = f"{SLO_OVER_BASE:g} x BASE's p95 of {base_p95_ms(profile):.3g} ms {where} {at}, {base.method}"
    if SLO_OVER_BASE * base_p95_ms(profile) < LEAST_SLO_MS:
        return f"the least default of {LEAST_SLO_MS:g} ms: {made}, is less"
    return made


def cut_short(score: AccuracyMeasurement) -> str:
    """Return how many rows an accuracy was counted on if they are not all that there are, in words; else ""."""
    return f"{score.samples:,} of {score.of:,} rows" if 0 < score.samples < score.of else ""


def cut_short_by_variant(profile: FamilyProfile) -> str:
    """Return the same of all variants as they are served: "large by 900 of 5,000 rows"; "" if none was cut short."""
    served = [score for score in profile.accuracy if profile.backend.get(score.variant) == score.backend]
    return ", ".join(f"{score.variant} by {rows}" for score in served if (rows := cut_short(score)))


# --- paces --------------------------------------------------------------------------------------------------------


class Pace(Record, frozen=True, kw_only=True):
    """How a variant runs on a slice: milliseconds and watts (above idle) of a batch at each of `batches`, ascending.

    Between them, time and energy of a batch are linear in its rows, as in the planner; below the smallest size a batch
    costs what the smallest costs; beyond the largest, both grow in proportion."""

    batches: tuple[int, ...]
    ms: tuple[float, ...]
    watts: tuple[float, ...]

    def table(self, max_batch: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return milliseconds and watts of batches of 1 .. `max_batch` rows."""
        joules = tuple(ms * watts for ms, watts in zip(self.ms, self.watts, strict=True))
        ms_of = [_at(self.batches, self.ms, rows) for rows in range(1, max_batch + 1)]
        joules_of = [_at(self.batches, joules, rows) for rows in range(1, max_batch + 1)]
        return tuple(ms_of), tuple(joule / ms for joule, ms in zip(joules_of, ms_of, strict=True))


def _at(batches: tuple[int, ...], values: tuple[float, ...], rows: int) -> float:
    if rows <= batches[0]:
        return values[0]
    if rows >= batches[-1]:
        return values[-1] * rows / batches[-1]
    above = next(index for index, batch in enumerate(batches) if batch >= rows)
    part = (rows - batches[above - 1]) / (batches[above] - batches[above - 1])
    return values[above - 1] + part * (values[above] - values[above - 1])


Paces = Mapping[tuple[str, str], Pace]
"""By variant and profile of the slice."""


def pace_of(profile: FamilyProfile | None, variant: str, shape: str, backend: str) -> Pace | None:
    """Return the pace that `profile` expects of this worker; None if it was not measured."""
    if profile is None:
        return None
    rows = {m.batch: m for m in profile.latency if (m.variant, m.profile, m.backend) == (variant, shape, backend)}
    if not rows:
        return None
    batches = [rows[batch] for batch in sorted(rows)]
    return Pace(
        batches=tuple(m.batch for m in batches),
        ms=tuple(m.mean_ms for m in batches),
        watts=tuple(m.energy_j_per_row * m.batch / (m.mean_ms / 1e3) for m in batches),
    )
