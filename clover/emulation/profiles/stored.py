"""The profile of emulated devices: calculated from the one on cores (or taken from the pace file), kept beside it."""

from __future__ import annotations

import hashlib
import logging

from clover import profiles, settings
from clover.cache import cache_folder, expanded
from clover.config import ServerConfig
from clover.devices.cpu import CpuDevice
from clover.emulation.profiles import analytical, pace
from clover.emulation.profiles.pace import PaceFile, PaceRow
from clover.errors import ConfigError, ProfileError
from clover.profiling import row_store, stored
from clover.profiling.options import Progress
from clover.profiling.placements import Devices, device_cores, shapes_of
from clover.runtime.workers.pool import Pool
from clover.types import DeviceShape, FamilyProfile, FamilySpec

log = logging.getLogger("clover.profiling")

Given = tuple[PaceFile | None, dict[tuple[str, str], list[PaceRow]], str]
"""The pace file in use, its rows of the family, and a note if the table that comes with Clover does not fit."""


def key_of(spec: FamilySpec, device: Devices, config: ServerConfig) -> str:
    """Return the key that a profile of `spec` is kept under for these devices and `config`."""
    parts = ["emulated", *stored.what_devices_offer(device)]
    parts += [f"version {analytical.VERSION}", hashlib.sha256(_pace_bytes(config)).hexdigest()]
    return stored.key_on(spec, device_cores(cpu_of(config)), config, "/".join(parts))


async def ensure(
    spec: FamilySpec, device: Devices, pool: Pool, config: ServerConfig, *, progress: Progress | None = None
) -> FamilyProfile:
    """Return the profile of `spec` on emulated devices, as `clover.profiling.stored.ensure` does."""
    given = rows_of(spec, shapes_of(device), config)  # a wrong file is refused before half a minute of measuring
    if config.workers.pace and given[2]:
        log.warning("%s: its paces are calculated", given[2])
    measured = await stored.ensure(spec, cpu_of(config), pool, config, progress=progress)
    return keep_emulated(spec, device, config, measured, given)


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
        log.warning("%s; the profile is made again", error)
        known = None
    if known != profile:
        stored.keep(store, profile)
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


def cpu_of(config: ServerConfig) -> CpuDevice:
    """Return the cores on which the answers of emulated devices are computed."""
    return CpuDevice(settings.parse_cores(config.workers.cores))


def _pace_bytes(config: ServerConfig) -> bytes:
    if not config.workers.pace:
        return pace.shipped_bytes()
    try:
        return expanded(config.workers.pace).read_bytes()
    except OSError as error:
        raise ConfigError(f"the pace file {config.workers.pace} cannot be read: {error.strerror}") from error
