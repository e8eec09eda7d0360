"""Rules that hold between settings; ranges of single settings stand in `clover.config`."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from clover.config import ListenConfig, ServerConfig, TenantConfig, TokenConfig, WorkersConfig
from clover.errors import ConfigError
from clover.grants import SCOPES
from clover.hints import did_you_mean
from clover.quantities import IN_PERCENT
from clover.tenants import token_digest


class DeviceForm(NamedTuple):
    """How a kind of device is written in `workers.device`."""

    pattern: str
    examples: str


_NUMBERS = r"\d{1,3}(-\d{1,3})?(,\d{1,3}(-\d{1,3})?)*"
"""Which GPUs of a machine: 0, or 0-3,6."""

DEVICE_FORMS = {
    "cpu": DeviceForm(r"cpu", "cpu"),
    "nvidia": DeviceForm(rf"nvidia(:mig)?(:{_NUMBERS})?", "nvidia, nvidia:0,2, nvidia:0-3, nvidia:mig"),
    "mig": DeviceForm(r"mig:MIG-[A-Za-z0-9/-]{4,80}(,MIG-[A-Za-z0-9/-]{4,80})*", "mig:MIG-d7ac6ae6"),
    "emulated": DeviceForm(
        r"emulated:(pod-[0-9]+g\.[0-9]+gb[a-z0-9.+-]{0,12}(:[1-9])?"
        rf"|(?!pod-)[a-z0-9][a-z0-9-]{{0,31}}(:[1-9]\d{{0,2}}(:{_NUMBERS})?)?)",
        "emulated:a100-40gb:2, emulated:a100-40gb:8:0-3, emulated:rtx-4090, emulated:pod-1g.10gb",
    ),
}
"""The kinds of devices; `clover.devices.DEVICES` has their modules."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_RESIDENT = re.compile(r"auto|off|[1-9]\d{0,3}")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_SOCKET_PATH_BYTES = 107
MOST_TENANTS = 256
"""Each has metrics of its own."""
MOST_TOKENS = 256
"""Each request with a token is compared with all of them."""

AUTO = "auto"
"""`workers.cores`: as many of all cores as the load needs."""


def check(config: ServerConfig) -> None:
    """Check `config`; ConfigError says what to change if it cannot be used."""
    if not config.families:
        raise ConfigError("no family to serve: name one, as fashion")
    names = [family.name or family.family for family in config.families]
    for index, family in enumerate(config.families):
        if not family.family:
            raise ConfigError(f"families.{index}.family is empty: name a shipped family, a folder or module:attribute")
        if family.name and not _NAME.fullmatch(family.name):
            raise ConfigError(f"families.{index}.name {family.name!r} must be 1 to 128 of A-Z a-z 0-9 . _ -")
        if names.count(names[index]) > 1:
            raise ConfigError(f"two families are called {names[index]!r}: give one of them another name")
        if family.accuracy_floor is not None and 0.0 < family.accuracy_floor < 1.0:
            raise ConfigError(f"families.{index}.accuracy_floor {family.accuracy_floor:g} {IN_PERCENT}")
        if not _RESIDENT.fullmatch(family.resident):
            raise ConfigError(f"families.{index}.resident {family.resident!r} must be auto, off or a number from 1")
    _check_listen(config.listen, bool(config.tenants or config.tokens))
    _check_bearers(config)
    if config.carbon.trace_start not in ("", "now", "first"):
        try:
            datetime.fromisoformat(config.carbon.trace_start)
        except ValueError:
            raise ConfigError(
                f"carbon.trace_start {config.carbon.trace_start!r} is neither now nor first nor an ISO 8601 time, as "
                "2024-01-31T00:00:00+00:00"
            ) from None
    _check_device(config.workers)
    if config.ledger.name and not _NAME.fullmatch(config.ledger.name):
        raise ConfigError(f"ledger.name {config.ledger.name!r} must be 1 to 128 of A-Z a-z 0-9 . _ -")
    _check_otel(config.otel.endpoint)
    if not config.workers.backends:
        raise ConfigError("workers.backends is empty: name at least eager")
    parse_cores(config.workers.cores)


def device_forms() -> str:
    """Return how `workers.device` may read, for a message."""
    *others, last = (form.examples for form in DEVICE_FORMS.values())
    return f"{', '.join(others)} or {last}"


def on_gpus(device: str) -> bool:
    """Return whether `workers.device` names real GPUs, or instances of them."""
    return device.partition(":")[0] in ("nvidia", "mig")


def _check_device(workers: WorkersConfig) -> None:
    device = workers.device
    kind = device.partition(":")[0]
    form = DEVICE_FORMS.get(kind)
    if form is None or not re.fullmatch(form.pattern, device):
        meant = " (did you mean nvidia?)" if kind in ("gpu", "cuda") else did_you_mean(kind, DEVICE_FORMS)
        hint = meant if form is None else ""
        raise ConfigError(f"workers.device {device!r} is no device: give {device_forms()}{hint}")
    if workers.memory_bytes and on_gpus(device):
        raise ConfigError(
            "workers.memory_bytes limits addresses, of which CUDA reserves far more than memory, so that no worker "
            "would start on a GPU: leave it at 0 there (a MIG instance has its own memory)"
        )
    if workers.cores.strip() == AUTO and kind != "cpu":
        raise ConfigError(
            f"workers.cores = {AUTO} lets CPU cores sleep that workers do not need, but workers.device is {device}: "
            "leave it out, or name cores as 0-3,6"
        )
    if workers.pace and not device.startswith("emulated:"):
        raise ConfigError(f"workers.pace paces emulated GPUs, but workers.device is {device}: leave one of them out")
    if workers.pace and not Path(workers.pace).is_file():
        raise ConfigError(f"workers.pace: there is no file {workers.pace}")


def _check_bearers(config: ServerConfig) -> None:
    """Check tenants and tokens: names, and that each token is one bearer's."""
    if len(config.tenants) > MOST_TENANTS:
        raise ConfigError(f"{len(config.tenants)} tenants are configured: a server has at most {MOST_TENANTS}")
    if len(config.tokens) > MOST_TOKENS:
        raise ConfigError(f"{len(config.tokens)} tokens are configured: a server has at most {MOST_TOKENS}")
    digests = {hashlib.sha256(config.listen.token.encode()).digest()} if config.listen.token else set()
    _check_tokens("tenant", config.tenants, digests)
    _check_tokens("token", config.tokens, digests)
    for tenant in config.tenants:
        if tenant.burst and not tenant.rate:
            raise ConfigError(f"tenant {tenant.name}: burst {tenant.burst} without a rate limits nothing: give rate")
        if 0.0 < tenant.min_accuracy <= 1.0:
            raise ConfigError(f"tenant {tenant.name}: min_accuracy {tenant.min_accuracy:g} {IN_PERCENT}")
    for token in config.tokens:
        for scope in token.scopes:
            if scope not in SCOPES:
                hint = did_you_mean(scope, SCOPES)
                raise ConfigError(f"token {token.name}: there is no scope {scope!r}{hint}: use {', '.join(SCOPES)}")
        if not token.scopes:
            raise ConfigError(f"token {token.name}: without scopes it permits nothing: name some, or leave it out")


def _check_tokens(kind: str, bearers: Sequence[TenantConfig | TokenConfig], digests: set[bytes]) -> None:
    """Check names and tokens of bearers of a kind, and add the digests of these to those that are taken."""
    names = set()
    for index, one in enumerate(bearers):
        if not _NAME.fullmatch(one.name):
            raise ConfigError(f"{kind}.{index}.name {one.name!r} must be 1 to 128 of A-Z a-z 0-9 . _ -")
        if one.name in names:
            raise ConfigError(f"two {kind}s are called {one.name!r}: give one of them another name")
        names.add(one.name)
        where = f"{kind} {one.name}"
        if bool(one.token) == bool(one.token_sha256):
            raise ConfigError(f"{where}: give token or token_sha256, and only one")
        if one.token and not _TOKEN.fullmatch(one.token):
            raise ConfigError(f"{where}: its token must be printable ASCII without spaces")
        if one.token_sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", one.token_sha256):
            raise ConfigError(f"{where}: token_sha256 must be 64 hexadecimal digits, as of sha256sum")
        digest = token_digest(one)
        if digest in digests:
            raise ConfigError(f"{where}: its token is another {kind}'s, or listen.token: use another")
        digests.add(digest)


def _check_listen(listen: ListenConfig, tenants: bool) -> None:
    if not listen.host:
        raise ConfigError("listen.host is empty: use 127.0.0.1, or 0.0.0.0 with a token")
    if listen.token and not _TOKEN.fullmatch(listen.token):
        raise ConfigError("listen.token must be printable ASCII without spaces")
    if not is_loopback(listen.host) and not (listen.token or tenants or listen.insecure):
        raise ConfigError(
            f"listen.host {listen.host} is reachable from outside: set a token (CLOVER_TOKEN=file:PATH), or say "
            "--insecure to serve everyone who can reach it"
        )
    if bool(listen.tls_cert) != bool(listen.tls_key):
        missing = "tls_key" if listen.tls_cert else "tls_cert"
        raise ConfigError(f"listen.{missing} is missing: TLS needs the certificate and its key")
    for leaf, path in (("tls_cert", listen.tls_cert), ("tls_key", listen.tls_key)):
        if path and not Path(path).is_file():
            raise ConfigError(f"listen.{leaf}: there is no file {path}")
    if listen.control:
        scheme, _, path = listen.control.partition(":")
        if scheme != "unix" or not path:
            raise ConfigError(f"listen.control {listen.control!r} must be unix:PATH")
        if len(path.encode()) > _SOCKET_PATH_BYTES:
            raise ConfigError(f"listen.control: a socket path has at most {_SOCKET_PATH_BYTES} bytes")


def _check_otel(endpoint: str) -> None:
    if endpoint in ("", "env"):
        return
    if "@" in endpoint:  # first: the other errors quote what was given
        raise ConfigError("otel.endpoint holds a user name: give credentials in OTEL_EXPORTER_OTLP_HEADERS instead")
    try:
        url = urlsplit(endpoint)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # no port, or no address
        good = False
    if not good or url.query or url.fragment:
        raise ConfigError(f"otel.endpoint {endpoint!r} must be a URL, as http://collector:4318, or env")
    if url.path.rstrip("/").endswith(("/v1/traces", "/v1/metrics")):
        raise ConfigError(f"otel.endpoint {endpoint!r}: leave /v1/... out, it is added for each kind of data")


def is_loopback(host: str) -> bool:
    """Return whether binding `host` keeps the server on this machine."""
    if host.lower() in ("localhost", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_cores(text: str) -> tuple[int, ...] | None:
    """Return the cores that "0-3,6" names, ascending; None, for all there are, if the text is empty or `AUTO`.  Raises
    ConfigError."""
    if text.strip() in ("", AUTO):
        return None
    cores: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ConfigError(f"workers.cores {text!r} must read as 0-3,6, or auto")
        cores.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(cores))
