"""What is checked before a new version of a model is tried: is it allowed, is there room, and which profile holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from clover import families, profiling
from clover.cache import check_files
from clover.config import RolloutConfig, ServerConfig
from clover.errors import BadRequest, ConfigError, ProfileError
from clover.hints import did_you_mean
from clover.interfaces import Device
from clover.runtime.memory.free import free_bytes
from clover.runtime.served import Served
from clover.runtime.workers.pool import Pool
from clover.steps import describe_steps
from clover.types import Assignment, FamilyProfile, FamilySpec

_VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MB = 1e6


def settings_of(configured: RolloutConfig, given: Mapping[str, Any]) -> RolloutConfig:
    """Return the configured settings with those that a command gives; BadRequest for one that cannot be."""
    known = [name for name in configured.__struct_fields__ if name != "root"]
    for key in given:
        if key not in known:
            names = ("model", "folder", "version", "action", *known, "dry_run")
            raise BadRequest(f"roll-out has no argument {key!r}, known: {', '.join(names)}{did_you_mean(key, names)}")
    try:
        return msgspec.convert({**msgspec.to_builtins(configured), **given}, RolloutConfig)
    except msgspec.ValidationError as error:
        raise BadRequest(f"roll-out: {error}") from error


def find_version(
    stable: FamilySpec, folder: str, version: str, root: str, listed: bool = False, only: Sequence[str] = ()
) -> FamilySpec:
    """Return the family in `folder` as a new version of `stable`, with the variants `only`, by default all; raises
    BadRequest if it is none.

    Its code is run, so it must lie in `root` (by default, in the folder that the stable one lies in), where nobody else
    can write, and if its files have to be `listed`, have a manifest."""
    path = Path(folder).expanduser().resolve()
    home = Path(root).expanduser().resolve() if root else Path(stable.folder).resolve().parent
    if not (root or stable.folder) or not path.is_relative_to(home):
        raise BadRequest(
            f"{folder} does not lie in {home}, where new versions have to: put it there, or name another folder in the "
            "server's setting rollout.root"
        )
    if not path.is_dir():
        raise BadRequest(f"{folder} is no folder on the server's machine")
    try:
        check_files(path)
        found = families.chosen(families.load_family(str(path)), only)
        families.check_manifest(found, required=listed)
    except ConfigError as error:
        raise BadRequest(f"no version can be served from there: {error}") from error
    spec = msgspec.structs.replace(found, version=version or found.version)
    if not _VERSION.fullmatch(spec.version):
        raise BadRequest(f"version {spec.version!r} must be 1 to 64 of A-Z a-z 0-9 . _ -")
    if spec.version == stable.version:
        raise BadRequest(
            f"version {spec.version} is served already: raise version in family.toml, or give another one (--version)"
        )
    if others := ", ".join(differences(stable, spec)):
        raise BadRequest(
            f"{folder} is no version of {stable.name}: it has {others}; serve it as a model of its own instead"
        )
    return spec


def has_changed(spec: FamilySpec) -> bool:
    """Return whether the files of a version are others than when it was found."""
    if not spec.folder:
        return False
    try:
        there = families.load_family(spec.folder)
        return families.chosen(there, [variant.name for variant in spec.variants]).digest != spec.digest
    except ConfigError:
        return True


def differences(stable: FamilySpec, new: FamilySpec) -> Iterable[str]:
    """Yield in what a new version differs from the stable one although it must not."""
    pairs = {
        "another name": (stable.name, new.name),
        "other inputs": (stable.inputs, new.inputs),
        "other outputs": (stable.outputs, new.outputs),
        "other variants": tuple([variant.name for variant in spec.variants] for spec in (stable, new)),
        "another max_batch": (stable.max_batch, new.max_batch),
        "another confidence": (stable.confidence, new.confidence),
        "steps in the worker in one of them only": (stable.stepped, new.stepped),
        "other steps in the client": tuple(map(_of_clients, (stable, new))),
        "another openai": (stable.openai, new.openai),
    }
    return (words for words, (one, other) in pairs.items() if one != other)


def _of_clients(spec: FamilySpec) -> dict[str, Any] | None:
    """Return the steps that clients run, who read once what these are; None if there are none."""
    return describe_steps(spec) if spec.steps is not None and spec.steps.run != "worker" else None


def mirrored(deployment: Iterable[Assignment], name: str) -> tuple[Assignment, ...]:
    """Return the same workers for the family `name`."""
    return tuple(msgspec.structs.replace(item, family=name) for item in deployment)


def why_no_room(served: Served, devices: Mapping[str, Device], deployment: Iterable[Assignment]) -> str:
    """Return why as many workers again cannot run beside those of a family; empty if they can, as far as is known."""
    wanted = 0
    for placement in {item.placement for item in deployment}:
        device = devices[placement.device]
        if device.shape().one_process:
            return f"{placement.device} takes one process at a time"
        held, own = served.fleet.held_bytes(placement), device.memory_bytes(placement)
        if own and 2 * held > own:
            return f"{placement.id} has {own / _MB:.0f} MB, of which {held / _MB:.0f} MB are in use"
        wanted += 0 if own else held
    wanted += len(served.slab.memory)
    free = free_bytes()
    if free and wanted > free:
        return f"it would take {wanted / _MB:.0f} MB, and {free / _MB:.0f} MB of the machine's memory are free"
    return ""


async def profile_for(
    config: ServerConfig, devices: Mapping[str, Device], pool: Pool, served: Served, spec: FamilySpec
) -> tuple[FamilyProfile | None, str]:
    """Return the profile of a new version and how it is known: measured, if its folder was profiled on this machine
    before, else the stable version's carried over.  Measuring now would disturb what is served."""
    if served.profile is None:
        return None, "none, as the stable version has none"
    stored = msgspec.structs.replace(config, profile="require")
    try:
        profile = await profiling.ensure(spec, devices, pool, stored)
    except ProfileError:
        return served.profile, f"carried over from version {served.spec.version}"
    return profile, "measured"
