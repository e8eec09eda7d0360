"""Gets the profile that a server starts with: stored, or measured now.

The profile of emulated GPUs is calculated from such a profile, by the wing that emulates them
(`clover.emulation.profiles`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from clover import backends as registry
from clover import energy, families, profiles
from clover.cache import cache_folder, make_private
from clover.config import ServerConfig
from clover.devices import emulation
from clover.errors import ProfileError
from clover.hints import named_wait, program
from clover.profiles import Paces
from clover.profiling.candidates import log_unavailable
from clover.profiling.measurement import measure
from clover.profiling.options import QUICK, MeasureOptions, Progress
from clover.profiling.placements import Devices, device_cores, devices_of, emulated, on_cores, shapes_of, whole_layout
from clover.profiling.progress import expected_time, progress_or_bar
from clover.runtime.workers import sandboxes
from clover.runtime.workers.pool import Pool
from clover.types import FamilyProfile, FamilySpec

log = logging.getLogger("clover.profiling")

_STEP_S = 0.2


def key_of(spec: FamilySpec, device: Devices, config: ServerConfig) -> str:
    """Return the key that a profile of `spec` is kept under for these devices (one, or several by name) and `config`.

    Raises ProfileError if no device is usable.
    """
    if on_cores(device):
        return key_on(spec, device_cores(device), config)
    if emulated(device):
        return str(emulation("profiles.stored").key_of(spec, device, config))
    gpus: list[Any] = list(devices_of(device).values())
    parts = ["gpu", *what_devices_offer(device)]
    parts += sorted({registry.target_of(gpu, "").driver for gpu in gpus})
    parts += sorted({energy.gpu_meter_key(config.energy, gpu, gpu.session) for gpu in gpus})
    return key_on(spec, device_cores(device), config, "/".join(parts))


def what_devices_offer(device: Devices) -> list[str]:
    """Return what tells GPUs apart in a key: their names, the profiles of their slices, and the whole of them."""
    shapes = shapes_of(device)
    names = {place.profile for shape in shapes for layout in shape.layouts for place in layout}
    whole = (place.profile for place in whole_layout(device))
    return [*sorted(shape.label for shape in shapes), *sorted(names), *whole]


def key_on(spec: FamilySpec, cores: tuple[int, ...], config: ServerConfig, device: str = "cpu") -> str:
    """Return the key of the profile on `device` (in words) if `cores` compute the answers."""
    # For emulated GPUs too: their profile is calculated from one that was measured with the meter of the cores.
    meter = energy.meter_key(config.energy)
    wanted = [name for name in config.workers.backends if device.startswith("gpu/") or not registry.get(name).gpu_only]
    return profiles.profile_key(spec, cores, tuple(dict.fromkeys(wanted)), meter, device)


async def ensure(
    spec: FamilySpec, device: Devices, pool: Pool, config: ServerConfig, *, progress: Progress | None = None
) -> FamilyProfile:
    """Return the profile of `spec` on `device` (one, or several by name), as `config.profile` says.

    "auto" and "wait" measure (quickly) what is missing or damaged; "require" refuses what is missing or damaged;
    "force" always measures.  For emulated devices this machine's cores are measured, and the profile is calculated from
    that (or taken from the pace file) and kept beside it.

    Nothing else may read `pool.completions` meanwhile.  `progress` None: a bar on a terminal, otherwise log lines.
    Raises ProfileError, or ConfigError for a pace file that cannot be used.
    """
    if emulated(device):
        wing = emulation("profiles.stored")
        calculated: FamilyProfile = await wing.ensure(spec, device, pool, config, progress=progress)
        return calculated
    log_unavailable(config.workers.backends)
    cache = cache_folder(config.cache_dir)
    store = profiles.ProfileStore(cache)
    key = key_of(spec, device, config)

    def stored() -> FamilyProfile | None:
        if config.profile == "force":
            return None
        found = store.get(spec.name, key, put_aside=config.profile in ("auto", "wait"))
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
                "--profile wait"
            )
        return None

    if (found := stored()) is not None:
        return found
    async with _alone(store.path(spec.name, key), spec.name):
        if (found := stored()) is not None:  # another process has measured it meanwhile
            return found
        takes = expected_time(quick=True, on_cores=on_cores(device))
        log.info("measuring %s on this machine once (%s); kept in %s", spec.name, takes, store.folder)
        began = time.monotonic()
        with progress_or_bar(spec.name, progress) as shown:
            options = replace(_options(config, device, key), progress=shown)
            profile = await measure(spec, device, pool, options)
        log.info("measured %s in %.0f s", spec.name, time.monotonic() - began)
        keep(store, profile)
        return profile


@contextlib.asynccontextmanager
async def _alone(path: Path, family: str) -> AsyncIterator[None]:
    """Let no other process measure the profile of `family` that is kept in `path` meanwhile."""
    try:
        make_private(path.parent)
        lock = os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # the profile cannot be kept there either
        yield
        return
    try:
        with named_wait(f"another process that measures {family}", log.info):
            while not _locked(lock):
                await asyncio.sleep(_STEP_S)
        yield
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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


def paces_of(spec: FamilySpec, config: ServerConfig) -> Paces:
    """Return the paces and watts at which emulated boards really run `spec`, if the pace file gives them; empty if they
    run as the profile expects.  Raises ConfigError."""
    if not config.workers.pace:
        return {}
    paces: Paces = emulation("profiles.pace").load(config.workers.pace).paces_of(spec.name)
    return paces


def keep(store: profiles.ProfileStore, profile: FamilyProfile) -> None:
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
