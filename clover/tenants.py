"""Tenants: who sends a request, by its bearer token, and what that tenant may send.

A token is never kept: only its SHA-256 is, and a given one is compared with all of them in constant time.

**The rate.**  A tenant's rows are limited by a token bucket: `rate` rows a second, `burst` at once.  A Retry-After must
hold, although requests that are refused together would all find the same tokens.  So a refusal books a *place*: a whole
number of seconds from now, at which the bucket has the rows and earlier places are honoured.  A request that comes back
then is taken even if the bucket has to owe the rows; new requests wait until the debt is paid.  At most half of the
rate is promised, so new requests always find some, and a place that is not used costs nothing.  A request that comes
back is known by its request id, or else by its connection (as in `clover.runtime.router.retry_book`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterable

from clover.config import TenantConfig, TokenConfig
from clover.errors import BadRequest

_SECOND_NS = 1_000_000_000
_PROMISED = 0.5
"""The part of the rate that is promised to those who were refused, at most."""
_HORIZON_S = 600
"""Places are promised so far ahead at most, by the tenant's rate alone."""
_MOST_PLACES = 4096
_EARLY_NS = 50_000_000
_LATE_NS = 2 * _SECOND_NS
_FOREVER_NS = 1 << 60
"""A longer timeout is this long: 36 years."""
_WEIGHT_BITS = 40
"""The weight of a flow stands above so many bits of its number (`csrc/batcher.pyx`)."""


class RateLimit:
    """Lets `rate` rows a second through, and `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self._per_ns = rate / _SECOND_NS
        self._rows = float(burst)
        self._at_ns = 0
        self._promised_ns = 0
        """Until when half of the rate is promised."""
        self._places: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """When the rows of a request or a connection may come, and how many these are."""

    def take(self, key: int, rows: int, now_ns: int) -> int:
        """Return 0 if `rows` rows may pass, which are taken then, else the whole seconds after which they may.  `key`
        names the request, or its connection."""
        self._refill(now_ns)
        if self._rows >= rows:
            self._rows -= rows
            if self._places:
                self._places.pop(key, None)
            return 0
        due_ns, promised = self._places.get(key, (0, 0))
        if promised and now_ns <= due_ns + _LATE_NS and rows <= promised:
            if now_ns < due_ns - _EARLY_NS:
                return -(-(due_ns - now_ns) // _SECOND_NS)
            del self._places[key]
            self._rows -= rows
            return 0
        return self._book(key, rows, now_ns)

    def give_back(self, rows: int) -> None:
        """Put rows back that were taken and then refused for another reason."""
        self._rows = min(self._rows + rows, float(self.burst))

    def early_s(self, key: int, now_ns: int) -> int:
        """Return the whole seconds that a request came too early by, if it has a place and no row is free; else 0."""
        if not self._places:
            return 0
        due_ns, promised = self._places.get(key, (0, 0))
        if not promised or now_ns >= due_ns - _EARLY_NS:
            return 0
        self._refill(now_ns)
        return 0 if self._rows >= 1.0 else -(-(due_ns - now_ns) // _SECOND_NS)

    def has(self, rows: int, now_ns: int) -> bool:
        """Return whether so many rows would pass now."""
        self._refill(now_ns)
        return self._rows >= rows

    def change(self, rate: float, burst: int) -> None:
        """Use another rate and burst from now on; places stay."""
        self.rate, self.burst, self._per_ns = rate, burst, rate / _SECOND_NS
        self._rows = min(self._rows, float(burst))

    def _refill(self, now_ns: int) -> None:
        rows = self._rows + (now_ns - self._at_ns) * self._per_ns  # full at first, so that the first time may be any
        self._rows = rows if rows < self.burst else float(self.burst)
        self._at_ns = now_ns

    def _book(self, key: int, rows: int, now_ns: int) -> int:
        """Return the seconds after which `rows` rows may come back, and keep a place for them, if there are not too
        many yet, nor too far ahead."""
        while self._places:
            oldest, (due_ns, _) = next(iter(self._places.items()))
            if now_ns <= due_ns + _LATE_NS:
                break
            del self._places[oldest]
        free_ns = now_ns + round((rows - self._rows) / self.rate * _SECOND_NS)
        at_ns = max(free_ns, self._promised_ns)
        seconds = max(1, -(-(at_ns - now_ns) // _SECOND_NS))
        if seconds > _HORIZON_S or len(self._places) >= _MOST_PLACES:
            return min(seconds, _HORIZON_S)
        self._promised_ns = at_ns + round(rows / (_PROMISED * self.rate) * _SECOND_NS)
        self._places.pop(key, None)  # a later place goes behind the others
        self._places[key] = now_ns + seconds * _SECOND_NS, rows
        return seconds


class Tenant:
    """One tenant.  `flow` is its number to the queue, `client` what the guard counts its rows by; `min_accuracy`
    (percent) and `timeout_ns` hold for requests that name none, 0: nothing; `limit` is None without a rate."""

    __slots__ = ("client", "digest", "flow", "limit", "may_control", "min_accuracy", "name", "priority", "timeout_ns")

    def __init__(self, config: TenantConfig, number: int, limit: RateLimit | None = None) -> None:
        self.name = config.name
        self.client = f"tenant {config.name}"
        self.digest = token_digest(config)
        self.priority = config.priority
        self.flow = config.priority << _WEIGHT_BITS | number
        self.min_accuracy = config.min_accuracy
        self.timeout_ns = round(min(config.timeout_ms * 1e6, _FOREVER_NS))
        self.may_control = config.may_control
        self.limit: RateLimit | None = None
        if config.rate > 0.0:
            burst = config.burst or max(1, round(config.rate))
            self.limit = limit or RateLimit(config.rate, burst)
            self.limit.change(config.rate, burst)


class Tenants:
    """All tenants of a server, which a reload may replace."""

    def __init__(self, configs: Iterable[TenantConfig] = ()) -> None:
        self._by_name: dict[str, Tenant] = {}
        self._numbers: dict[str, int] = {}
        self.use(configs)

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def use(self, configs: Iterable[TenantConfig]) -> None:
        """Make these the tenants.  One that was there before keeps its number and how much of its rate it used."""
        before, self._by_name = self._by_name, {}
        for config in configs:
            number = self._numbers.setdefault(config.name, len(self._numbers))
            known = before.get(config.name)
            self._by_name[config.name] = Tenant(config, number, known.limit if known is not None else None)

    def all(self) -> tuple[Tenant, ...]:
        """Return every tenant, in the order of the configuration."""
        return tuple(self._by_name.values())

    def as_json(self) -> dict[str, dict[str, float | bool | None]]:
        """Return what is configured of each tenant, without its token."""
        return {
            tenant.name: {
                "rate": tenant.limit.rate if tenant.limit is not None else None,
                "burst": tenant.limit.burst if tenant.limit is not None else None,
                "priority": tenant.priority,
                "min_accuracy": tenant.min_accuracy,
                "timeout_ms": tenant.timeout_ns / 1e6,
                "may_control": tenant.may_control,
            }
            for tenant in self._by_name.values()
        }

    def find(self, token: bytes) -> Tenant | None:
        """Return the tenant that has a token; None if none has.  Takes as long, whichever it is."""
        given, found = hashlib.sha256(token).digest(), None
        for tenant in self._by_name.values():
            if hmac.compare_digest(given, tenant.digest):
                found = tenant
        return found

    def named(self, name: str) -> Tenant:
        """Return the tenant of that name; raises BadRequest."""
        tenant = self._by_name.get(name)
        if tenant is None:
            names = ", ".join(self._by_name) or "there are none"
            raise BadRequest(f"no tenant is called {name!r}; configured: {names}")
        return tenant


def token_digest(config: TenantConfig | TokenConfig) -> bytes:
    """Return the SHA-256 of the token of a tenant, or of a token by itself."""
    if config.token_sha256:
        return bytes.fromhex(config.token_sha256)
    return hashlib.sha256(config.token.encode()).digest()
