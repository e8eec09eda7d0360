"""Tokens of those who look after a server: who has one, and what it permits.

A token has a name, by which the audit log knows its bearer, and scopes: `infer` asks models, `read` shows what the
server does (state, decisions, metrics, statistics, dashboard), `control` changes it.  None implies another.
`listen.token` is one without a name that has all three.

As with tenants' tokens (`clover.tenants`), only the SHA-256 of a token is kept, and a token that comes is compared with
all of them in constant time.  Several may be valid at once, and a reload may add and remove some.  So a token can be
replaced without a moment in which neither is valid.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from clover.config import TokenConfig
from clover.tenants import token_digest

INFER, READ, CONTROL = "infer", "read", "control"
SCOPES = (INFER, READ, CONTROL)


class Grant:
    """What a token permits; `name` is empty for `listen.token`."""

    __slots__ = ("digest", "name", "scopes")

    def __init__(self, name: str, digest: bytes, scopes: frozenset[str]) -> None:
        self.name = name
        self.digest = digest
        self.scopes = scopes

    @property
    def bearer(self) -> str:
        """Who bears it, for logs."""
        return f"token {self.name}" if self.name else "token"


class Grants:
    """All tokens of a server but its tenants', which a reload may replace."""

    def __init__(self, token: str = "", configs: Iterable[TokenConfig] = ()) -> None:
        self._grants: tuple[Grant, ...] = ()
        self.use(token, configs)

    def __bool__(self) -> bool:
        return bool(self._grants)

    def use(self, token: str, configs: Iterable[TokenConfig]) -> None:
        """Make `token` (`listen.token`, empty without one) and the tokens of `configs` those that are valid."""
        own = [Grant("", hashlib.sha256(token.encode()).digest(), frozenset(SCOPES))] if token else []
        named = [Grant(item.name, token_digest(item), frozenset(item.scopes)) for item in configs]
        self._grants = (*own, *named)

    @property
    def named(self) -> bool:
        """Whether there are tokens beside `listen.token`."""
        return any(grant.name for grant in self._grants)

    @property
    def controls(self) -> bool:
        """Whether some token permits changes.  If so, nobody may make any without one."""
        return any(CONTROL in grant.scopes for grant in self._grants)

    def find(self, token: bytes) -> Grant | None:
        """Return what a token permits; None for an unknown token.  Takes equally long for every token."""
        if not token:
            return None
        given, found = hashlib.sha256(token).digest(), None
        for grant in self._grants:
            if hmac.compare_digest(given, grant.digest):
                found = grant
        return found
