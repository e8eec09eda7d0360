"""The command `serve`: settings, logging, checks, then `clover.Server.run`."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from clover import backends, carbon, devices, families, policies, profiles, settings
from clover._version import __version__
from clover.cache import cache_folder, state_folder
from clover.config import ServerConfig
from clover.devices.cpu import CpuDevice
from clover.errors import CloverError, ConfigError, DeviceError, ProfileError
from clover.hints import program
from clover.low_priority import LowPriority
from clover.planning.model.problem import accuracies
from clover.profiling.stored import key_of
from clover.serve import banner, notify
from clover.serve.checking import check_apart
from clover.serve.concealment import conceal
from clover.serve.reload import Reload
from clover.serve.upgrade import start_successor
from clover.server import Server
from clover.server.family_checks import check_floor, without_plan
from clover.server.takeover.handover import TakeOvers
from clover.server.takeover.succession import Succession
from clover.settings import Option
from clover.settings.check import on_gpus
from clover.telemetry import logs, otel

log = logging.getLogger("clover.serve")

OPTIONS = (
    Option("--print-config", "print the effective configuration as TOML, with the origin of every value, and exit"),
    Option("--check-config", "read configuration, families and carbon source, report, and exit"),
    Option("--take-over", "take the place of the running server with this configuration; no request fails"),
    Option("--version", "print the version and exit"),
)
FIRST = (
    *("listen.host", "listen.port", "listen.token", "listen.tls_cert", "listen.tls_key"),
    *("families.slo_ms", "families.accuracy_floor", "families.accuracy_budget", "families.variant"),
    *("carbon.source", "carbon.trace_speed", "carbon.pue"),
    *("controller.mode", "controller.policy", "workers.device", "workers.cores"),
    *("log.level", "log.json", "cache_dir", "state_dir", "profile"),
)
"""Settings that people start with, which `--help` shows."""
USAGE = "[FAMILY|FOLDER|MODULE:ATTRIBUTE|CONFIG.toml]... [flags]"
ABOUT = (
    "Serve families of model variants over the Open Inference Protocol, choosing variants and their cores by the "
    "carbon intensity of the grid. Without a family it serves fashion."
)

_COLLECTED_AFTER = 20_000
"""New objects before the garbage collector searches the youngest for cycles.  Python's own 700 are reached by a few
dozen requests under way, and a server makes hardly any cycles."""


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    priority: LowPriority | None = None,
) -> int:
    """Run the command and return its exit code.  `priority`: what a successor has lowered already."""
    words = list(sys.argv[1:] if argv is None else argv)
    environment = os.environ if environ is None else environ
    if {"-h", "--help"} & set(words):
        print(settings.help_text(f"{_command_line()} {USAGE}", ABOUT, OPTIONS, first=None if "all" in words else FIRST))
        return 0
    try:
        given = settings.load(words, environment, options=OPTIONS)
        if "version" in given.options:
            print(f"clover {__version__}")
            return 0
        if "print-config" in given.options:
            print(settings.print_config(given), end="")
            return 0
        logs.configure(given.config.log)
        if given.service_links:
            log.info(
                "these environment variables are not settings, Kubernetes sets them for a Service; ignored: %s",
                ", ".join(given.service_links),
            )
        unknown: list[str] = []
        warnings: list[str] = []
        served = check(given.config, unknown, warnings)
        if "check-config" in given.options:
            print(f"clover: the configuration is good: {', '.join(served)} on {where(given.config)}")
            for line in unknown:
                print(f"clover: not checked: {line}")
            for line in warnings:
                print(f"clover: warning: {line}")
            return 0
        if settings.holds_secrets(given.config):
            conceal(settings.secrets_of(given.config))
        reloading = Reload(
            lambda: settings.load(words, environment, options=OPTIONS),
            lambda config: check_apart(words, environment, settings.secrets_of(config)),
            given,
        )

        def ready(server: Server) -> None:
            if succession is None:  # else it was done before requests came
                gc.collect()
            gc.set_threshold(_COLLECTED_AFTER)
            reloading.server = server
            banner.show(server)
            notify.ready()

        config = with_ledger(given.config)
        succession = None
        if "take-over" in given.options:
            succession = asyncio.run(Succession.ask(config, priority or LowPriority()))
        before = gc.get_threshold()
        try:
            return Server(config=config).run(
                on_ready=ready,
                on_hangup=reloading.start,
                on_upgrade=lambda: start_successor(environment),
                take_overs=TakeOvers(config, succession),
            )
        finally:
            gc.set_threshold(*before)
            if succession is not None:
                succession.close()
    except ConfigError as error:
        logs.flush()  # what was logged before belongs above
        print(f"clover: {error}", file=sys.stderr)
        return 2
    except (CloverError, OSError) as error:
        logs.flush()
        print(f"clover: cannot start: {error}", file=sys.stderr)
        return 3


def with_ledger(config: ServerConfig) -> ServerConfig:
    """Return the configuration with what `ledger.keep` says here: `auto` is on, unless the user has no home."""
    keep = config.ledger.keep
    if keep == "auto":
        keep = "on"
        try:
            state_folder(config.state_dir)
        except ConfigError as error:
            log.warning("no ledger is kept: %s", error)
            keep = "off"
    return msgspec.structs.replace(config, ledger=msgspec.structs.replace(config.ledger, keep=keep))


def _command_line() -> str:
    """Return what the user typed to start the server: a command of `clover`, or its own module."""
    own = Path(sys.argv[0]).parts[-2:] == ("serve", "__main__.py")
    return "python -m clover.serve" if own else f"{program()} serve"


def check(config: ServerConfig, unknown: list[str] | None = None, warnings: list[str] | None = None) -> list[str]:
    """Check all that the configuration names, without starting anything; return the names of its families.

    What only a start can find out is appended to `unknown`.  What is allowed but may mislead is appended to `warnings`:
    grams of an invented grid, or of another time; families that are served without a plan.  Raises ConfigError.
    """
    names = []
    cache = cache_folder(config.cache_dir)
    devices.parse(config.workers.device)
    if config.workers.pace:
        devices.emulation("profiles.pace").load(config.workers.pace)
    real = on_gpus(config.workers.device)
    if real and unknown is not None:
        unknown.append(f"the GPUs of {config.workers.device}, until the start opens them")
    try:
        device = CpuDevice(settings.parse_cores(config.workers.cores))
    except DeviceError as error:
        raise ConfigError(f"workers.cores: {error}") from error
    for item in config.families:
        spec = families.chosen(families.load_family(item.family), item.only)
        families.check_manifest(spec, required=config.require_manifest)
        names.append(item.name or spec.name)
        if item.variant and item.variant not in {variant.name for variant in spec.variants}:
            known = ", ".join(variant.name for variant in spec.variants)
            raise ConfigError(f"family {spec.name} has no variant {item.variant!r}: it has {known}")
        families.check_loaders(spec)
        if planless := without_plan(spec):
            if item.accuracy_floor is not None:
                raise ConfigError(f"families.accuracy_floor {item.accuracy_floor:g} cannot be kept: {planless}")
            if warnings is not None:
                warnings.append(planless)
        if item.accuracy_floor is None:
            continue
        store = profiles.ProfileStore(cache)
        # A profile of the cores is enough for emulated GPUs: accuracy is the same, since the cores compute the answers.
        profile = None
        if config.profile != "force" and not real:
            try:
                profile = store.get(spec.name, key_of(spec, device, config))
            except ProfileError:
                if config.profile == "require":
                    raise  # else the start puts it aside and measures again
        if profile is not None:
            check_floor(names[-1], accuracies(profile), item.accuracy_floor)
        elif spec.evaluation is None:
            published = {one.name: one.accuracy.value for one in spec.variants if one.accuracy is not None}
            check_floor(names[-1], published, item.accuracy_floor)
        elif unknown is not None:
            unknown.append(f"the accuracy floor of {names[-1]}, until its variants are measured here")
    for name in config.workers.backends:
        backends.get(name)
    chain, clock = carbon.build(config.carbon)
    if chain.live:
        if unknown is not None:
            unknown.append(f"whether {' and '.join(chain.live)} can be asked, until the start does")
    elif warnings is not None:
        warnings += filter(None, [carbon.caveat(asyncio.run(chain.read(clock.now())))])
    policies.build(config.controller.policy)
    otel.check(config.otel)
    return names


def where(config: ServerConfig) -> str:
    """Return the address that will be bound."""
    host = f"[{config.listen.host}]" if ":" in config.listen.host else config.listen.host
    return f"{'https' if config.listen.tls_cert else 'http'}://{host}:{config.listen.port}"
