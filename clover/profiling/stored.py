"""The profile a server starts with: the stored one, or one measured now."""

from __future__ import annotations

import logging
import time

from clover import backends as registry
from clover import families, profiles
from clover.config import ServerConfig
from clover.errors import ProfileError
from clover.interfaces import Device
from clover.profiling.measurement import Progress, measure
from clover.profiling.places import device_cores
from clover.profiling.report import told
from clover.runtime.pool import Pool
from clover.types import FamilyProfile, FamilySpec

log = logging.getLogger("clover.profiling")


def key_of(spec: FamilySpec, device: Device, config: ServerConfig) -> str:
    """The key a profile of `spec` is kept under for this device and configuration."""
    return profiles.profile_key(
        spec, device_cores(device), tuple(dict.fromkeys(config.workers.backends)), config.energy
    )


async def ensure(
    spec: FamilySpec, device: Device, pool: Pool, config: ServerConfig, *, progress: Progress | None = None
) -> FamilyProfile:
    """The profile of `spec`, as `config.profile` says: "auto" measures (quickly) what is missing, "require" refuses
    then, "force" always measures.

    Nobody else may read `pool.completion_fd` meanwhile.  `progress` None: a bar on a terminal, otherwise a log line.
    Raises ProfileError.
    """
    cache = profiles.cache_folder(config.cache_dir)
    store = profiles.ProfileStore(cache)
    key = key_of(spec, device, config)
    if config.profile != "force":
        found = store.get(spec.name, key)
        if found is not None and not (lost := missing_artifacts(found, spec, config)):
            return found
        if config.profile == "require":
            why = (
                f"compiled artifacts are gone ({', '.join(lost)})"
                if found is not None
                else "it was never measured here"
            )
            raise ProfileError(
                f"there is no profile of {spec.name} for these cores, backends and watts: {why}; run "
                f"`python -m clover profile {families.reference(spec)}` with the same settings, or start with "
                "--profile auto"
            )
    log.info("measuring %s on this machine once (about half a minute); kept in %s", spec.name, store.folder)
    began = time.monotonic()
    with told(spec.name, progress) as tell:
        profile = await measure(
            spec,
            device,
            pool,
            None,
            quick=True,
            backends=config.workers.backends,
            cache_dir=cache,
            energy=config.energy,
            progress=tell,
            silent_s=config.workers.silent_s,
        )
    log.info("measured %s in %.0f s", spec.name, time.monotonic() - began)
    try:
        store.put(profile)
    except ProfileError as error:
        log.warning("%s: it will be measured again at the next start", error)
    return profile


def missing_artifacts(profile: FamilyProfile, spec: FamilySpec, config: ServerConfig) -> list[str]:
    """What the profile's choices need and the cache no longer has, as "aoti of xlarge"."""
    cache = profiles.cache_folder(config.cache_dir)
    lost = []
    for variant in spec.variants:
        name = profile.backend.get(variant.name, "")
        if not name:
            lost.append(f"everything of {variant.name}")
            continue
        if not registry.get(name).compiles:
            continue
        counts = {m.threads for m in profile.latency if (m.variant, m.backend) == (variant.name, name)} or {1}
        if any(not registry.is_compiled(registry.artifact_dir(cache, spec, variant, name, count)) for count in counts):
            lost.append(f"{name} of {variant.name}")
    return lost
