"""Settings that hold secrets.  Each may be given as `file:PATH`, which stands for the first line of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from clover.config import ProviderConfig, ServerConfig, TenantConfig, TokenConfig
from clover.errors import ConfigError

FILE = "file:"

_Bearer = TypeVar("_Bearer", TenantConfig, TokenConfig)


def read_secret(value: str, what: str) -> str:
    """Return `value`, or if it is `file:PATH`, the first line of that file; raises ConfigError, which names `what`."""
    if not value.startswith(FILE):
        return value
    path = value.removeprefix(FILE)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # a ValueError: no text, or a zero byte in the path
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"{what}: cannot read the file {path}: {why}") from error
    if not lines or not lines[0].strip():
        raise ConfigError(f"{what}: the first line of the file {path} is empty")
    return lines[0].strip()


def read_keys(providers: Iterable[ProviderConfig]) -> tuple[ProviderConfig, ...]:
    """Return `providers` with the keys that stand in files; raises ConfigError."""
    return tuple(
        msgspec.structs.replace(one, key=read_secret(one.key, f"carbon.provider {one.name}: key")) for one in providers
    )


def read_secrets(config: ServerConfig) -> ServerConfig:
    """Return `config` with the secrets that stand in files, and with the paths of these files in `secret_files`; raises
    ConfigError."""
    files = ((what, value.removeprefix(FILE)) for what, value in list_secrets(config) if value.startswith(FILE))
    return msgspec.structs.replace(
        config,
        listen=msgspec.structs.replace(config.listen, token=read_secret(config.listen.token, "listen.token")),
        carbon=msgspec.structs.replace(config.carbon, provider=read_keys(config.carbon.provider)),
        tenants=_read_tokens(config.tenants, "tenant"),
        tokens=_read_tokens(config.tokens, "token"),
        secret_files=(*config.secret_files, *files),
    )


def _read_tokens(bearers: Iterable[_Bearer], kind: str) -> tuple[_Bearer, ...]:
    return tuple(
        msgspec.structs.replace(one, token=read_secret(one.token, f"{kind} {one.name}: token")) for one in bearers
    )


def list_secrets(config: ServerConfig) -> Iterator[tuple[str, str]]:
    """Yield what may hold a secret, as an error names it, and its value."""
    yield "listen.token", config.listen.token
    for provider in config.carbon.provider:
        yield f"carbon.provider {provider.name}: key", provider.key
    for tenant in config.tenants:
        yield f"tenant {tenant.name}: token", tenant.token
    for token in config.tokens:
        yield f"token {token.name}: token", token.token


def secrets_of(config: ServerConfig) -> tuple[str, ...]:
    """Return the values in a configuration that are never shown."""
    return tuple(value for _, value in list_secrets(config) if value)


def holds_secrets(config: ServerConfig) -> bool:
    """Return whether a server of this configuration knows what other processes must not read: `secrets_of` it, a TLS
    key, digests of tokens, or what the standard variables have for a collector."""
    return bool(secrets_of(config) or config.listen.tls_key or config.tenants or config.tokens or config.otel.endpoint)
