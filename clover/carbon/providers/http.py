"""GET requests to the API of one provider, as a polite and careful client makes them.

A request is tried once more, after a jittered moment, if a connection fails, an answer breaks off or the provider says
5xx.  It is not tried again if the provider was slow, or says when to come back (429 and 503 with `Retry-After`), which
the chain heeds.  Every answer is bounded in time and size, whatever its head says.  Requests go to the configured host
only: no redirect is followed.  Proxies are those of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`), never
for a loopback address.  `~/.netrc` is not read.  Errors quote the provider's own words, cut and printable, without the
secrets of this client.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from clover._version import __version__
from clover.errors import CarbonError, ConfigError
from clover.hints import printable
from clover.malformed import MALFORMED

if TYPE_CHECKING:
    import aiohttp

WORDS = 200
"""Characters of a provider's message that an error quotes at most."""
LONGEST_RETRY_AFTER_S = 3600.0
MOST_VALUES = 10_000
"""Entries of a list in an answer at most: the longest honest one, a week of five minutes, has 2,016 (about 300 KB).
Each becomes a reading in Python on the event loop, and a body of the permitted bytes could hold hundreds of
thousands."""
_CHUNK = 1 << 16
_LEAST_SECRET = 4
"""Characters of a secret that is masked: to mask a shorter one would mask letters of any text."""
_ERROR_BYTES = 1 << 14
"""Of the body of an error, no more than this is read for its words."""
_ERROR_FIELDS = ("error", "message", "detail", "title", "description", "code")

_Value = TypeVar("_Value")
Values = Annotated[list[_Value], msgspec.Meta(max_length=MOST_VALUES)]
"""A list of an answer."""


@dataclass(frozen=True)
class Bounds:
    """How long an answer may take in all and a connection to be made (seconds), how large it may be (bytes), and how
    often a request is made at most; `pause` waits between two of them, `jitter` gives 0 to 1."""

    timeout_s: float = 8.0
    connect_s: float = 4.0
    body_bytes: int = 1 << 20
    tries: int = 2
    pause_s: float = 0.5
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random
    wall: Callable[[], float] = time.time


class ApiClient:
    """Requests to `url` (checked, without a slash at its end) in the name of the source `name`.

    `calls` counts requests, failed ones included; `secrets` are texts that no error may show.
    """

    def __init__(self, name: str, url: str, *, secrets: tuple[str, ...] = (), bounds: Bounds | None = None) -> None:
        import aiohttp  # noqa: F401  # now, before traffic: it takes a third of a second, and most servers need none

        self.name = name
        self.url = url
        self.host = urllib.parse.urlsplit(url).netloc
        self.secrets = set(secrets)
        self.calls = 0
        self.bounds = bounds or Bounds()

    async def get(
        self, path: str, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the body of the answer with status 200, empty for 204; CarbonError says why there is none."""
        bounds = self.bounds
        for left in reversed(range(bounds.tries)):
            try:
                return await self._get_once(path, params or {}, headers or {})
            except _Passing as passing:
                if not left:
                    raise passing.error from passing.__cause__
                await bounds.pause(bounds.pause_s * (0.5 + bounds.jitter()))
        raise AssertionError("at least one try is made")

    def fails(self, text: str, kind: str, **more: Any) -> CarbonError:
        """Return the error that this source failed with `text`, free of secrets."""
        return CarbonError(f"{self.name}: {self._clean(text)}", kind=kind, **more)

    async def _get_once(self, path: str, params: Mapping[str, str], headers: Mapping[str, str]) -> bytes:
        import aiohttp

        proxy = self._proxy()
        self.calls += 1
        try:
            async with (
                self._session() as session,
                session.get(
                    self.url + path, params=params, headers=headers, allow_redirects=False, proxy=proxy
                ) as response,
            ):
                if response.status not in (200, 204):
                    raise await self._status_error(response)
                return await self._body(response, self.bounds.body_bytes)
        except TimeoutError as error:
            raise self.fails(f"{self.host} took longer than {self.bounds.timeout_s:g} s", "timeout") from error
        except aiohttp.ClientSSLError as error:
            raise self.fails(f"no secure connection to {self.host}: {_os(error)}", "tls") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise _Passing(self.fails(f"the name {self.host} cannot be resolved: {_os(error)}", "dns")) from error
        except aiohttp.ClientConnectorError as error:
            raise _Passing(self.fails(f"no connection to {self.host}: {_os(error)}", "connect")) from error
        except aiohttp.ClientPayloadError as error:
            raise _Passing(self.fails(f"the answer of {self.host} broke off", "cut")) from error
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:  # aiohttp itself has asked again
            raise self.fails(f"{self.host} closed the connection without an answer", "cut") from error
        except (aiohttp.ClientError, ValueError) as error:
            what = " ".join((getattr(error, "message", "") or str(error)).split())
            raise self.fails(f"the answer of {self.host} is no valid HTTP: {what}", "http") from error

    def _proxy(self) -> str | None:
        """Return the proxy to use, with its password among the secrets from now on."""
        try:
            proxy = proxy_of(self.url)
        except ConfigError as error:
            raise self.fails(str(error), "connect") from error
        self.secrets |= proxy_secrets(proxy or "")
        return proxy

    def _session(self) -> aiohttp.ClientSession:
        """Return a session of one request: polls are minutes apart, so that no connection is worth keeping."""
        import aiohttp

        bounds = self.bounds
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=4),
            timeout=aiohttp.ClientTimeout(total=bounds.timeout_s, sock_connect=bounds.connect_s),
            headers={"User-Agent": f"clover/{__version__}", "Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _body(self, response: aiohttp.ClientResponse, most: int, *, cut: bool = False) -> bytes:
        """Return the body; one that is longer than `most` bytes is an error, or is `cut`."""
        body = bytearray()
        declared = response.content_length or 0
        while declared <= most or cut:
            chunk = await response.content.read(_CHUNK)
            body += chunk
            if not chunk or len(body) > most:
                break
        if max(declared, len(body)) > most and not cut:
            raise self.fails(f"{self.host} answers with more than {most} bytes, which is refused", "size")
        return bytes(body[:most])

    async def _status_error(self, response: aiohttp.ClientResponse) -> Exception:
        """Return the error that a status other than success stands for, with the provider's own words."""
        status = response.status
        if 300 <= status < 400:
            target = urllib.parse.urlsplit(response.headers.get("Location", "")).netloc or self.host
            return self.fails(
                f"{self.host} answers {status}, a redirect to {target}, which is not followed", "status", status=status
            )
        words = words_of(self._clean(repr_free(await self._body(response, _ERROR_BYTES, cut=True))))
        text = f"{self.host} answers {status} {response.reason or ''}".rstrip() + (f": {words}" if words else "")
        wait_s = retry_after(response.headers.get("Retry-After", ""), self.bounds.wall())
        error = self.fails(text, "rate" if status == 429 else "status", status=status, retry_after_s=wait_s)
        if error.refused:
            error.kind = "refused"
        return _Passing(error) if status >= 500 and status != 501 and not wait_s else error

    def _clean(self, text: str) -> str:
        for secret in sorted(self.secrets, key=len, reverse=True):  # one may be a part of another
            if len(secret) >= _LEAST_SECRET:
                text = text.replace(secret, "***")
        return printable(text, 2 * WORDS)


class _Passing(Exception):
    """A failure that may be over in a moment."""

    def __init__(self, error: CarbonError) -> None:
        super().__init__(str(error))
        self.error = error


def _os(error: aiohttp.ClientOSError) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", error)
    if isinstance(cause, socket.gaierror):
        return str(cause.strerror)
    return str(getattr(cause, "strerror", None) or cause or type(error).__name__)


def check_url(url: str, setting: str) -> str:
    """Return `url` without a slash at its end; ConfigError if it is not https (http: loopback only) and a plain one."""
    parts = urllib.parse.urlsplit(url)
    try:
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        port_is_right = False
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if not (parts.hostname and port_is_right and plain and url.isprintable() and " " not in url):
        raise ConfigError(f"{setting} must be a URL as https://host/path, without user, query and fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise ConfigError(f"{setting} must begin with https:// (http:// is for a loopback address), not {url!r}")
    return url.rstrip("/")


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for `url`; None for a loopback address.  ConfigError, which does not
    quote it, if it is no URL of one."""
    import urllib.request  # only here, with http.client: most servers ask no provider

    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or _is_loopback(host) or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        named = urllib.parse.urlsplit(proxy)
        good = named.scheme in ("http", "https") and bool(named.hostname) and named.port != 0
    except ValueError:  # its text may quote a part of the password
        good = False
    if not (good and proxy.isprintable() and " " not in proxy):
        raise ConfigError(
            f"{parts.scheme.upper()}_PROXY is not a URL as http://host:port; it is not quoted, since it may hold a "
            "password"
        )
    return proxy


def proxy_secrets(proxy: str) -> set[str]:
    """Return what is secret in the URL of a proxy: its user and password; the user alone is one without a password."""
    user = urllib.parse.urlsplit(proxy).netloc.rpartition("@")[0]
    secret = user.partition(":")[2] or user
    return {user, secret, urllib.parse.unquote(secret)} - {""}


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after(text: str, now_s: float) -> float:
    """Return the seconds that a `Retry-After` header asks for (a number, or a date), at most an hour; 0 if none."""
    from email.utils import parsedate_to_datetime

    text = text.strip()
    try:
        if text.isdecimal():
            wait_s = float(text)
        else:
            moment = parsedate_to_datetime(text)  # one without a zone is UTC, as all times of HTTP
            wait_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now_s
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)


def repr_free(body: bytes) -> str:
    """Return a body as text, whatever its bytes are."""
    return body.decode("utf-8", "replace")


def words_of(text: str) -> str:
    """Return what an error's body says, in at most `WORDS` printable characters."""
    text = text.strip()
    if text[:1] == "<":
        return "an HTML page"
    try:
        answer = msgspec.json.decode(text)
    except MALFORMED:
        return printable(" ".join(text.split()), WORDS)
    said = list(dict.fromkeys(_said(answer)))
    return printable(": ".join(said), WORDS)


def _said(found: Any) -> list[str]:
    """Return the texts of the fields that errors have, in order."""
    if isinstance(found, str):
        return [found.strip()] if found.strip() else []
    if not isinstance(found, dict):
        return []
    fields = [found.get(name) for name in _ERROR_FIELDS]
    return [text for field in fields if isinstance(field, (str, dict)) for text in _said(field)]


def decode(body: bytes, form: type[Any], name: str) -> Any:
    """Return the JSON of `body` as a `form`; CarbonError if it is none, in words for the source `name`."""
    try:
        return msgspec.json.decode(body, type=form)
    except MALFORMED as error:
        what = "an HTML page" if body.lstrip()[:1] == b"<" else printable(str(error), WORDS)
        empty = "it is empty" if not body.strip() else what
        raise CarbonError(f"{name}: the answer is not what its API documents: {empty}", kind="answer") from error
