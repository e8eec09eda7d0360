"""Where spans are sent, and what may be said of it.

A collector's URL and headers may hold credentials, and the SDK or the collector may repeat them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from clover.config import OtelConfig
from clover.hints import printable

ENVIRONMENT = "env"
"""`otel.endpoint`: take the endpoint, like all else, from the standard OTEL_EXPORTER_OTLP_* variables."""
UNREADABLE = "the collector, whose URL cannot be read"

_PREFIX = "OTEL_EXPORTER_OTLP_"
_WORDS = 200
"""Characters of a reason that are shown at most."""
_LEAST_SECRET = 4
"""Characters of a secret that is masked: to mask a shorter one would mask letters of any text."""


def endpoint_of(config: OtelConfig, environ: Mapping[str, str]) -> str:
    """Return the URL that spans are sent to, which may hold credentials; empty if none is named."""
    if config.endpoint != ENVIRONMENT:
        return config.endpoint.rstrip("/")
    return environ.get(f"{_PREFIX}TRACES_ENDPOINT") or environ.get(f"{_PREFIX}ENDPOINT", "")


def address_of(url: str) -> str:
    """Return scheme, host and port of `url`, and nothing else of it; `UNREADABLE` if it has none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # its text may quote a part of a password
        return UNREADABLE
    if not (parts.scheme and host):
        return UNREADABLE
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "")


@dataclass(frozen=True)
class OtelCollector:
    """A collector as texts name it, and the `secrets` that none may show, the longest first."""

    address: str
    secrets: tuple[str, ...] = ()

    def clean(self, text: str) -> str:
        """Return `text` as one line that can be shown: cut, and without secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return printable(text, _WORDS)


def collector_of(config: OtelConfig, environ: Mapping[str, str]) -> OtelCollector:
    """Return the collector of a configuration, with the secrets that its URL and the standard variables hold."""
    found: set[str] = set()
    for name, value in environ.items():
        if name.startswith(_PREFIX) and name.endswith("HEADERS"):
            found |= _secrets_of_headers(value)
        elif name.startswith(_PREFIX) and name.endswith("ENDPOINT"):
            found |= _secrets_of_url(value)
    secrets = sorted((text for text in found if len(text) >= _LEAST_SECRET), key=len, reverse=True)
    return OtelCollector(address_of(endpoint_of(config, environ)), tuple(secrets))


def _secrets_of_headers(text: str) -> set[str]:
    """Return the values in `name=value,name=value`, as they stand there and as they are sent."""
    found = set()
    for part in text.split(","):
        value = part.partition("=")[2].strip()
        sent = unquote(value)
        found |= {part.strip(), value, sent, *sent.split()[1:]}  # `Bearer TOKEN`: the token alone, too
    return found


def _secrets_of_url(url: str) -> set[str]:
    """Return what a URL holds but scheme, host and port; the whole URL if that cannot be told apart."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return {url}
    user = parts.netloc.rpartition("@")[0]
    password = user.partition(":")[2]
    found = {user, password, unquote(password), parts.path.rstrip("/"), parts.query, parts.fragment}
    return found | {url} if address_of(url) == UNREADABLE or user else found
