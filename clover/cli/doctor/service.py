"""Findings about what is configured: families, folders, the carbon source, the collector, the port."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from clover import carbon, families
from clover.cache import cache_folder, state_folder
from clover.cli.doctor.findings import Finding, State
from clover.config import FamilyConfig, ServerConfig
from clover.devices.tables import CONTEXT_GDDR_W, CONTEXT_HBM_W
from clover.errors import CloverError
from clover.profiles import ProfileStore
from clover.telemetry import otel
from clover.types import Reading

ANSWER_S = 10.0
"""How long a carbon source, or a collector, may take to answer."""
_LEAST_BYTES = 1e9


def examine(config: ServerConfig) -> Iterator[Finding]:
    """Yield what there is to say of the configuration."""
    yield from _families(config)
    yield folder(config.cache_dir)
    if config.ledger.keep != "off":
        yield state_of(config.state_dir)
    yield source(config)
    if config.otel.endpoint:
        yield collector(config)
    yield port(config.listen.host, config.listen.port)


def _families(config: ServerConfig) -> Iterator[Finding]:
    for item in config.families:
        try:
            spec = families.chosen(families.load_family(item.family), item.only)
            families.check_loaders(spec)
        except CloverError as error:
            yield Finding(topic="family", state="fault", text=str(error))
        else:
            names = ", ".join(variant.name for variant in spec.variants)
            text = f"{item.name or spec.name}: {names}{_sleep(config, item, spec.name)}"
            yield Finding(topic="family", state="works", text=text)


def _sleep(config: ServerConfig, item: FamilyConfig, family: str) -> str:
    """Return in words what sleep would give back of a family that was profiled here: "" if it was not, or sleeps."""
    try:
        kept = ProfileStore(cache_folder(config.cache_dir)).kept()
        profile = next((one for one in kept if one.family == family), None)
    except CloverError:  # the folder has a finding of its own
        profile = None
    if profile is None or item.unload_after_s:
        return ""
    base, backends = profile.base, profile.backend
    held = profile.context_bytes.get(base.profile, 0) + sum(
        one.weights_bytes + one.peak_bytes
        for one in profile.memory
        if one.profile == base.profile and one.backend == backends.get(one.variant)
    )
    words = f"; while nobody asks it, unload_after_s would give back {base.count * held / 1e6:.0f} MB (by its profile)"
    if base.profile.endswith("c"):
        return words
    return f"{words}, and of a GPU that no other family uses {CONTEXT_HBM_W:g} to {CONTEXT_GDDR_W:g} W (published)"


def folder(given: str) -> Finding:
    """Return whether the folder of profiles, artifacts and records is this user's own, and has room."""
    try:
        path = cache_folder(given)
    except CloverError as error:
        _, _, remedy = str(error).partition(": ")
        return Finding(topic="folder", state="fault", text=str(error), remedy=remedy if "chmod" in remedy else "")
    return _room("folder", path, "fault", "--cache-dir")


def state_of(given: str) -> Finding:
    """Return whether the folder of the ledger can be written to, and has room; serving goes on without."""
    try:
        path = state_folder(given)
    except CloverError as error:
        return Finding(topic="state", state="note", text=f"{error}: no ledger is kept", remedy="--state-dir")
    return _room("state", path, "note", "--state-dir")


def _room(topic: str, path: Path, without: State, flag: str) -> Finding:
    """Return whether this user may write to a folder that exists or can be made; `without` is how it stands if not."""
    at = path
    while not at.exists():
        at = at.parent
    if not os.access(at, os.W_OK | os.X_OK) or not at.is_dir():
        text = f"{path} cannot be written to by this user"
        return Finding(topic=topic, state=without, text=text, remedy=f"chown $USER {at}, or name another {flag}")
    free = shutil.disk_usage(at).free
    text = f"{path}{'' if path.exists() else ' (will be made)'}, {free / 1e9:.1f} GB free on its disk"
    if free < _LEAST_BYTES:
        return Finding(topic=topic, state="note", text=text, remedy=f"free some space, or name another {flag}")
    return Finding(topic=topic, state="works", text=text)


def source(config: ServerConfig) -> Finding:
    """Return what the carbon source says now: it is asked once."""

    async def ask() -> tuple[Reading, str]:
        chain, clock = carbon.build(config.carbon)
        close = getattr(chain, "close", None)  # of sources that hold connections
        try:
            async with asyncio.timeout(ANSWER_S):
                return await chain.read(clock.now()), chain.last_error
        finally:
            if close is not None:
                await close()

    name = config.carbon.source
    remedy = "see carbon.source in docs/configuration.md; a list of sources, as A,B, is a fallback chain"
    try:
        reading, reason = asyncio.run(ask())
    except TimeoutError:
        text = f"{name} did not answer within {ANSWER_S:g} s"
        return Finding(topic="carbon", state="fault", text=text, remedy=remedy)
    except CloverError as error:
        return Finding(topic="carbon", state="fault", text=str(error), remedy=remedy)
    text = f"{reading.g_per_kwh:.0f} gCO2e/kWh ({carbon.describe(reading)})"
    if reading.method != "stand-in":
        text = f"{reading.provider}: {text}"
    if reading.state != "fresh":
        text = f"{name} gives no value of now{f' ({reason})' if reason else ''}; instead {text}"
        return Finding(topic="carbon", state="note", text=text, remedy=remedy)
    if warning := carbon.caveat(reading):
        return Finding(
            topic="carbon", state="note", text=f"{text}: {warning}", remedy="name a source of your grid (--carbon)"
        )
    return Finding(topic="carbon", state="works", text=text)


def collector(config: ServerConfig) -> Finding:
    """Return whether the OpenTelemetry collector can be connected to."""
    try:
        otel.check(config.otel)
    except CloverError as error:
        return Finding(topic="collector", state="fault", text=str(error))
    shown = otel.address_of(otel.endpoint_of(config.otel, os.environ))  # without credentials
    url = urlsplit(shown)
    if not url.hostname:
        text = f"spans are sent to {shown}"
        return Finding(topic="collector", state="fault", text=text, remedy="correct OTEL_EXPORTER_OTLP_ENDPOINT")
    try:
        socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), ANSWER_S).close()
    except (OSError, UnicodeError) as error:
        text = f"{shown} cannot be connected to: {error}"
        return Finding(topic="collector", state="note", text=text, remedy="start it, or correct --otel; spans are lost")
    return Finding(topic="collector", state="works", text=f"{shown} takes connections")


def port(host: str, number: int) -> Finding:
    """Return whether the port can be bound."""
    shown = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text = f"{shown} is in use, maybe by a server that runs"
            return Finding(topic="port", state="note", text=text, remedy="--port chooses another")
        reason = error.strerror or str(error)
        return Finding(topic="port", state="fault", text=f"{shown} cannot be bound: {reason}", remedy="--host, --port")
    return Finding(topic="port", state="works", text=f"{shown} is free")


def records(config: ServerConfig) -> Path:
    """Return the folder with the records of GPU instances; one that does not exist if the cache folder is unusable."""
    try:
        return cache_folder(config.cache_dir) / "mig"
    except CloverError:
        return Path("/nonexistent")
