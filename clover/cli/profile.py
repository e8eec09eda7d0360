"""`python -m clover profile FAMILY...`: compile ahead, measure, print the table, keep the profile.

With `--device emulated:...` the CPU that computes the slices' answers is measured, unless it was measured before.  The
table is calculated, or the pace file's, and says so.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import uvloop

from clover import devices, families, profiles, settings
from clover.cache import cache_folder
from clover.config import FamilyConfig, ServerConfig
from clover.devices.mig import MigDevice
from clover.errors import CloverError, ConfigError
from clover.hints import program
from clover.profiling.measurement import measure
from clover.profiling.options import COMPILED_AT_FIRST_START, FULL, NO_LIMITS, QUICK, MeasureOptions
from clover.profiling.pareto import draw
from clover.profiling.placements import Devices, emulated, shapes_of
from clover.profiling.progress import progress_bar
from clover.profiling.report import table
from clover.profiling.stored import key_of
from clover.runtime.workers import sandboxes
from clover.runtime.workers.pool import Pool
from clover.settings import Option
from clover.settings.check import on_gpus
from clover.telemetry import logs
from clover.terminal import console, line_width, wrapped
from clover.types import FamilyProfile, FamilySpec

OPTIONS = (
    Option("--quick", "take few samples at three batch sizes, as the first start does"),
    Option(
        "--compile",
        "compile all for all backends first (aoti: half a minute each)",
    ),
    Option("--force", "measure again even if a profile is kept"),
    Option("--json", "also write the profiles to this file, as a JSON list", "FILE"),
    Option("--png", "also draw cost and accuracy of cascades (extra `analysis`)", "FILE"),
)
USED = frozenset(
    {
        *("workers.device", "workers.pace", "workers.cores", "workers.backends", "workers.start_s", "workers.silent_s"),
        *("energy.meter", "energy.idle_w", "energy.core_w", "energy.gpu_idle_w"),
        *("energy.gpu_resident_w", "energy.gpu_meter"),
        *("log.level", "log.json", "cache_dir"),
    }
)
"""Settings that measuring depends on.  The server's others are accepted, too: it tells people to run this command with
the flags that the server was started with."""
_WIDTH = 120
"""Columns if standard output is no terminal."""

_USAGE = "profile [FAMILY|FOLDER|MODULE:ATTRIBUTE|CONFIG.toml]... [flags]"
_ABOUT = (
    "Measure accuracy, latency and energy of every variant, or of some (--only A,B), on this machine, choose a backend "
    "and a thread count for each, and keep the result where the server finds it."
)


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    if {"-h", "--help"} & set(argv):
        print(settings.help_text(f"{program()} {_USAGE}", _ABOUT, OPTIONS, only=USED))
        return 0
    try:
        given = settings.load(argv, os.environ, options=OPTIONS)
        level = given.config.log.level if given.origins["log.level"] != "default" else "warning"
        logs.configure(msgspec.structs.replace(given.config.log, level=level))
        found = [_profile(item, given.config, given.options) for item in given.config.families]
        if path := given.options.get("json"):
            Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
        if path := given.options.get("png"):
            draw(found, path)
    except ConfigError as error:
        print(f"clover profile: {error}", file=sys.stderr)
        return 2
    except (CloverError, OSError) as error:
        print(f"clover profile: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    return 0


def _profile(item: FamilyConfig, config: ServerConfig, options: dict[str, str]) -> FamilyProfile:
    """Measure one family if it is needed, print its table and return the profile."""
    spec = families.chosen(families.load_family(item.family), item.only)
    cache = cache_folder(config.cache_dir)
    # Emulated GPUs are only looked at: a server may be using them.
    found = devices.build(config.workers, cache, exclusive=on_gpus(config.workers.device))
    try:
        if emulated(found):
            wing = devices.emulation("profiles.stored")
            given = wing.rows_of(spec, shapes_of(found), config)
            measured, _ = _on(spec, wing.cpu_of(config), config, options, cache)
            profile: FamilyProfile = wing.keep_emulated(spec, found, config, measured, given)
            where = f"{profiles.ProfileStore(cache).path(spec.name, profile.key)}; --force measures its CPU part again"
        else:
            profile, where = _on(spec, found, config, options, cache)
    finally:
        devices.close(found)
    print(table(profile, console(_WIDTH).width, spec=spec, columns=line_width()))
    print(f"\n{wrapped(f'kept in {where}', line_width(), '  ')}")
    return profile


def _on(
    spec: FamilySpec, device: Devices, config: ServerConfig, options: dict[str, str], cache: Path
) -> tuple[FamilyProfile, str]:
    """Return the profile on real devices and where it is kept; measure it if it is missing, or if options say so."""
    store = profiles.ProfileStore(cache)
    key = key_of(spec, device, config)
    if not {"force", "compile"} & set(options):
        found = store.get(spec.name, key)
        if found is not None and (not found.quick or "quick" in options):
            return found, f"{store.path(spec.name, key)}; --force measures again"
    effort = QUICK if "quick" in options else FULL
    with progress_bar(spec.name, quick=effort.quick) as progress:
        measuring = MeasureOptions(
            backends=config.workers.backends,
            cache_dir=cache,
            effort=replace(effort, compiling=NO_LIMITS) if "compile" in options else effort,
            energy=config.energy,
            compile_with=config.workers.backends if "compile" in options else COMPILED_AT_FIRST_START,
            silent_s=config.workers.silent_s,
            key=key,
            progress=progress,
            sandbox=sandboxes.order_of(config.workers, gpu=on_gpus(config.workers.device)),
            rows_sandbox=sandboxes.order_of(config.workers, gpu=False),
        )
        # The server's event loop, which the front end is measured on.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            profile = runner.run(_measure(spec, device, config, measuring))
    return profile, str(store.put(profile))


async def _measure(spec: FamilySpec, device: Devices, config: ServerConfig, measuring: MeasureOptions) -> FamilyProfile:
    """Return the profile of `spec`, measured with a worker pool of its own."""
    pool = Pool(start_s=config.workers.start_s, silent_s=config.workers.silent_s)
    given = device.values() if isinstance(device, Mapping) else ()
    gpus = [gpu for gpu in given if isinstance(gpu, MigDevice)]
    try:
        await pool.start()
        for gpu in gpus:
            await gpu.reconcile()  # instances that a former run left would be in the way
        return await measure(spec, device, pool, measuring)
    finally:
        await pool.stop()
