"""The profile that a server starts with: stored, measured now, or for emulated GPUs calculated from such a one."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import replace
from typing import Any

from clover import backends as registry
from clover import energy, families, profiles, settings
from clover.cache import cache_folder, expanded
from clover.config import ServerConfig
from clover.devices.cpu import CpuDevice
from clover.errors import ConfigError, ProfileError
from clover.hints import program
from clover.profiles import Paces
from clover.profiling import analytical, pace, row_store
from clover.profiling.candidates import log_unavailable
from clover.profiling.measurement import measure
from clover.profiling.options import QUICK, MeasureOptions, Progress
from clover.profiling.pace import PaceFile, PaceRow
from clover.profiling.placements import Devices, device_cores, devices_of, emulated, on_cores, shapes_of, whole_layout
from clover.profiling.progress import expected, progress_or_bar
from clover.runtime.workers import sandboxes
from clover.runtime.workers.pool import Pool
from clover.types import DeviceShape, FamilyProfile, FamilySpec

log = logging.getLogger("clover.profiling")


def key_of(spec: FamilySpec, device: Devices, config: ServerConfig) -> str:
    """Return the key that a profile of `spec` is kept under for these devices (one, or several by name) and `config`.

    Raises ProfileError if no device is usable.
    """
    if on_cores(device):
        return _key(spec, device_cores(device), config)
    shapes = shapes_of(device)
    parts = [
        "emulated" if emulated(device) else "gpu",
        *sorted(shape.label for shape in shapes),
        *sorted(analytical.profiles_of(shapes)),
        *(place.profile for place in whole_layout(device)),
    ]
    if not emulated(device):
        gpus: list[Any] = list(devices_of(device).values())
        parts += sorted({registry.target_of(gpu, "").driver for gpu in gpus})
        parts += sorted({energy.gpu_meter_key(config.energy, gpu, gpu.session) for gpu in gpus})
        return _key(spec, device_cores(device), config, "/".join(parts))
    parts += [f"version {analytical.VERSION}", hashlib.sha256(_pace_bytes(config)).hexdigest()]
    return _key(spec, device_cores(cpu_of(config)), config, "/".join(parts))


def _key(spec: FamilySpec, cores: tuple[int, ...], config: ServerConfig, device: str = "cpu") -> str:
    # On emulated GPUs, too, it is the meter of the cores that measured what their profile is calculated from.
    meter = energy.meter_key(config.energy)
    wanted = [name for name in config.workers.backends if device.startswith("gpu/") or not registry.get(name).gpu_only]
    return profiles.profile_key(spec, cores, tuple(dict.fromkeys(wanted)), meter, device)


def cpu_of(config: ServerConfig) -> CpuDevice:
    """Return the cores on which the answers of emulated devices are computed."""
    return CpuDevice(settings.parse_cores(config.workers.cores))


async def ensure(
    spec: FamilySpec, device: Devices, pool: Pool, config: ServerConfig, *, progress: Progress | None = None
) -> FamilyProfile:
    """Return the profile of `spec` on `device` (one, or several by name), as `config.profile` says.

    "auto" measures (quickly) what is missing or damaged; "require" refuses what is missing or damaged; "force" always
    measures.  For emulated devices this machine's cores are measured, and the profile is calculated from that (or taken
    from the pace file) and kept beside it.

    Nothing else may read `pool.completions` meanwhile.  `progress` None: a bar on a terminal, otherwise log lines.
    Raises ProfileError, or ConfigError for a pace file that cannot be used.
    """
    if emulated(device):
        given = rows_of(spec, shapes_of(device), config)  # a wrong file is refused before half a minute of measuring
        if config.workers.pace and given[2]:
            log.warning("%s: its paces are calculated", given[2])
        measured = await ensure(spec, cpu_of(config), pool, config, progress=progress)
        return keep_emulated(spec, device, config, measured, given)
    log_unavailable(config.workers.backends)
    cache = cache_folder(config.cache_dir)
    store = profiles.ProfileStore(cache)
    key = key_of(spec, device, config)
    if config.profile != "force":
        found = store.get(spec.name, key, put_aside=config.profile == "auto")
        if found is not None and not (lost := missing_artifacts(found, spec, config, device)):
            return found
        if config.profile == "require":
            why = (
                f"compiled artifacts are gone ({', '.join(lost)})"
                if found is not None
                else "it was never measured here"
            )
            raise ProfileError(
                f"there is no profile of {spec.name} for these cores, backends and watts: {why}; run "
                f"`{program()} profile {families.reference(spec)}` with the same settings, or start with "
                "--profile auto"
            )
    takes = expected(quick=True, on_cores=on_cores(device))
    log.info("measuring %s on this machine once (%s); kept in %s", spec.name, takes, store.folder)
    began = time.monotonic()
    with progress_or_bar(spec.name, progress) as shown:
        options = replace(_options(config, device, key), progress=shown)
        profile = await measure(spec, device, pool, options)
    log.info("measured %s in %.0f s", spec.name, time.monotonic() - began)
    _keep(store, profile)
    return profile


def _options(config: ServerConfig, device: Devices, key: str) -> MeasureOptions:
    return MeasureOptions(
        backends=config.workers.backends,
        cache_dir=cache_folder(config.cache_dir),
        effort=QUICK,
        energy=config.energy,
        silent_s=config.workers.silent_s,
        key=key,
        sandbox=sandboxes.order_of(config.workers, gpu=not on_cores(device)),
        rows_sandbox=sandboxes.order_of(config.workers, gpu=False),
    )


# --- emulated devices -------------------------------------------------------------------------------------------------

Given = tuple[PaceFile | None, dict[tuple[str, str], list[PaceRow]], str]
"""The pace file in use, its rows of the family, and a note if the table that comes with Clover does not fit."""


def keep_emulated(
    spec: FamilySpec, devices: Devices, config: ServerConfig, measured: FamilyProfile, given: Given
) -> FamilyProfile:
    """Return the profile on emulated `devices`, calculated from `measured` (the one on cores), and store it.

    That takes milliseconds, so it is done at every start: a stored one is never older than what it was made from.
    """
    file, rows, note = given
    key = key_of(spec, devices, config)
    notes = (note,) if note else ()
    store = profiles.ProfileStore(cache_folder(config.cache_dir))
    behind = None
    if measured.cascade is not None:
        behind = row_store.read(store.rows_path(measured.family, measured.key), measured.made_at)
    profile = analytical.emulate(
        measured, spec, shapes_of(devices), key=key, rows=rows, file=file, notes=notes, kept=behind
    )
    slowest = max(profile.latency, key=lambda m: m.mean_ms)
    if slowest.mean_ms >= config.workers.silent_s * 1e3:
        raise ProfileError(
            f"{spec.name}: a batch of {slowest.batch} of {slowest.variant} is paced at {slowest.mean_ms / 1e3:.0f} s "
            f"on {slowest.profile}, but a worker that is silent for {config.workers.silent_s:g} s is taken for stuck: "
            "raise --silent-s, lower the family's max_batch, or give a pace file"
        )
    try:
        known = store.get(spec.name, key)
    except ProfileError as error:
        log.warning("%s; it is made anew", error)
        known = None
    if known != profile:
        _keep(store, profile)
    return profile


def rows_of(spec: FamilySpec, shapes: tuple[DeviceShape, ...], config: ServerConfig) -> Given:
    """Return the rows of `spec` in the pace file of `config`, or else in the table that comes with Clover.

    Raises ConfigError for a file that cannot be used.
    """
    offered = analytical.profiles_of(shapes)
    if config.workers.pace:
        file = pace.load(config.workers.pace)
        if rows := pace.rows_of(file, spec, offered, config.workers.pace):
            return file, rows, ""
        return None, {}, f"{config.workers.pace} has no rows of {spec.name}"
    file = pace.shipped()
    try:
        return file, pace.rows_of(file, spec, offered, "that comes with Clover"), ""
    except ConfigError as error:
        return None, {}, f"not used: {error}"  # a family that happens to have that name, or another GPU


def drawn(spec: FamilySpec, config: ServerConfig) -> Paces:
    """Return the paces and watts at which emulated boards really run `spec`, if the pace file gives them.

    Empty if they run as the profile expects.  Raises ConfigError.
    """
    return pace.load(config.workers.pace).drawn(spec.name) if config.workers.pace else {}


def _pace_bytes(config: ServerConfig) -> bytes:
    if not config.workers.pace:
        return pace.shipped_bytes()
    try:
        return expanded(config.workers.pace).read_bytes()
    except OSError as error:
        raise ConfigError(f"the pace file {config.workers.pace} cannot be read: {error.strerror}") from error


# --- both -------------------------------------------------------------------------------------------------------------


def _keep(store: profiles.ProfileStore, profile: FamilyProfile) -> None:
    try:
        store.put(profile)
    except ProfileError as error:
        log.warning("%s: it will be measured again at the next start", error)


def missing_artifacts(
    profile: FamilyProfile, spec: FamilySpec, config: ServerConfig, device: Devices | None = None
) -> list[str]:
    """Return the artifacts that the profile's choices need and the cache no longer has, as "aoti of xlarge"."""
    cache = cache_folder(config.cache_dir)
    gpus = () if device is None or on_cores(device) else tuple(devices_of(device).values())
    lost = []
    for variant in spec.variants:
        name = profile.backend.get(variant.name, "")
        if not name:
            lost.append(f"everything of {variant.name}")
            continue
        if not registry.get(name).compiles:
            continue
        mine = [m for m in profile.latency if (m.variant, m.backend) == (variant.name, name)]
        if gpus:
            targets = [(1, registry.target_of(gpu, shape)) for gpu in gpus for shape in {m.profile for m in mine}]
        else:
            targets = [(count, registry.CPU) for count in {m.threads for m in mine} or {1}]
        folders = {registry.artifact_dir(cache, spec, variant, name, count, target=on) for count, on in targets}
        if not all(map(registry.is_compiled, folders)):
            lost.append(f"{name} of {variant.name}")
    return lost
