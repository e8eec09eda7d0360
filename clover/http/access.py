"""Who may call, and who may change something.

Three defences against three attackers.  The Host allow list stops a web page that rebinds its own name to this address
(DNS rebinding); the Origin check stops a page that posts here directly; the token stops everyone else on the network,
and without one changes are taken from loopback peers only.  If a control socket is configured, only that takes changes.

A tenant's token lets it ask models.  It changes nothing, and sees neither state nor decisions, metrics or statistics,
which are others' too, unless the tenant `may_control`.  If there are tenants, an unknown token is refused, even from
loopback peers: its bearer would otherwise be served as no tenant, without a limit.

Tokens beside `listen.token` have scopes (`clover.grants`).  The path of a call says which scope it needs.  A call that
changes something is checked once more as the change is made.

The dashboard's pages and their scripts need no token, since a browser that opens an address sends none.  They are files
of the package and hold nothing of this server.  They send the token with each request for data.
"""

from __future__ import annotations

import ipaddress
import socket

from clover.config import ListenConfig
from clover.errors import ConfigError, RequestError
from clover.grants import CONTROL, INFER, READ, Grant, Grants
from clover.http.addresses import is_loopback
from clover.http.exchange import Exchange
from clover.http.heads import Head
from clover.tenants import Tenant, Tenants

_CHALLENGE = b"WWW-Authenticate: Bearer\r\n"
_WILDCARDS = ("", "0.0.0.0", "::")
_OPERATORS = ("/v2/clover", "/metrics", "/dashboard")
"""Paths that begin so are not for tenants: they show what others sent and used."""
_STATISTICS = "/stats"
"""So end the paths of the statistics extension: of all models, of one, and of a version."""
_SHOWN = ("/v2/clover/state", "/v2/clover/decisions", "/v2/clover/audit")
"""What is read below the path of the commands."""
_ASKING = ("/infer", "/feedback", "/v1/embeddings")
"""So end the paths of those who ask models."""
_WAITING = ("/v1/files", "/v1/batches")
"""So begin the paths of those whose work can wait."""
_PAGES = ("/dashboard", "/dashboard/try")
_ASSETS = "/dashboard/assets/"


class UnauthorizedError(RequestError):
    """The call needs the token."""

    status = 401


class ForbiddenError(RequestError):
    """The caller may not do this."""

    status = 403


def binds_loopback(host: str) -> bool:
    """Return whether a bind address is reachable from this machine only."""
    return host.lower() == "localhost" or is_loopback(host.strip("[]"))


def _is_asset(path: str) -> bool:
    """Return whether a path is of the dashboard's own files, which are the same on every server."""
    return path in _PAGES or path.startswith(_ASSETS)


def _is_for_operators(path: str) -> bool:
    """Return whether a path shows what others sent and used."""
    return path.startswith(_OPERATORS) or path.rstrip("/").endswith(_STATISTICS)


def changes(path: str) -> bool:
    """Return whether a path is that of a call that changes the server."""
    if path.startswith("/v2/clover/"):
        return path not in _SHOWN
    return path.startswith("/v2/repository/models/")


def scope_of(path: str) -> str:
    """Return the scope that a call of a path needs; empty if every token will do."""
    if changes(path):
        return CONTROL
    if _is_for_operators(path):
        return READ
    return INFER if path.endswith(_ASKING) or path.startswith(_WAITING) else ""


class Access:
    """The access rules of one socket; `control` marks the control socket, which its file mode protects.

    `mounted`: requests come through another program's server, which chooses the hosts that it answers to; how it is
    bound is not known here, so a token is needed wherever one is configured, and for every change.
    """

    __slots__ = (
        "_any_address",
        "_control",
        "_control_elsewhere",
        "_grants",
        "_hosts",
        "_insecure",
        "_mounted",
        "_open",
        "_tenants",
    )

    def __init__(
        self,
        listen: ListenConfig,
        *,
        control: bool = False,
        tenants: Tenants | None = None,
        grants: Grants | None = None,
        mounted: bool = False,
    ) -> None:
        host = listen.host.strip("[]").lower()
        self._control = control
        self._control_elsewhere = bool(listen.control) and not control
        self._grants = grants if grants is not None else Grants(listen.token)
        self._tenants = tenants if tenants is not None else Tenants()  # one without any is as good
        self._mounted = mounted
        self._insecure = listen.insecure or (mounted and not self._grants)
        self._open = mounted or (not control and not binds_loopback(host))
        self._any_address = host in _WILDCARDS
        self._hosts = {
            "localhost",
            "127.0.0.1",
            "::1",
            host,
            *(name.strip("[]").lower() for name in listen.allowed_hosts),
        }
        self._hosts.discard("")
        if self._any_address:
            self._hosts.add(socket.gethostname().lower())

    @staticmethod
    def check_bind(listen: ListenConfig, bearers: bool = False) -> None:
        """Raise ConfigError if the server would be open to the network without a token, and --insecure is not set.
        `bearers`: there are tenants, or tokens beside `listen.token`."""
        if not binds_loopback(listen.host) and not (listen.token or bearers or listen.insecure):
            raise ConfigError(
                f"binding {listen.host or 'all addresses'} opens the server to the network: "
                "set listen.token (--token), or --insecure to do so without one"
            )

    def judge(self, head: Head) -> None:
        """Set `authorised` and `tenant`.  Refuse a foreign host, an unknown token, a call without a token on an open
        bind, and what a tenant or a token's scopes do not permit."""
        grant, head.tenant = self.recognise(head.bearer)
        head.authorised = grant is not None
        found = self._host_refusal(head) or self.refusal(head.bearer, grant, head.tenant, head.path)
        if found is not None:
            head.refusal = found

    def recognise(self, bearer: bytes) -> tuple[Grant | None, Tenant | None]:
        """Return what a token permits if it is one of an operator's, and else the tenant whose it is."""
        grant = self._grants.find(bearer) if self._grants else None
        return grant, self._tenants.find(bearer) if grant is None and self._tenants and bearer else None

    def refusal(
        self, bearer: bytes, grant: Grant | None, tenant: Tenant | None, path: str
    ) -> tuple[int, str, bytes] | None:
        """Return why a call of `path` is refused: status, text and further header lines; None if it is not.  The token
        `bearer` is empty without one, and was recognised as one that permits `grant` or as a tenant's."""
        if grant is not None:
            scope = scope_of(path)
            if not scope or scope in grant.scopes or self._control or _is_asset(path):
                return None
            return 403, f"this token does not have the scope {scope}", b""
        if tenant is None and self._needs_token(bearer) and not _is_asset(path):
            return 401, "a valid bearer token is needed", _CHALLENGE
        if tenant is not None and not tenant.may_control and _is_for_operators(path):
            return 403, "a tenant's token is for models only: this needs the operator's", b""
        return None

    def _needs_token(self, bearer: bytes) -> bool:
        """Return whether a call without a token that is known is refused."""
        if self._open and (self._grants or self._tenants or not self._insecure):
            return True  # also once a reload has taken the last tenant away
        return not self._control and bool(self._tenants or self._grants.named) and bool(bearer)

    def _host_refusal(self, head: Head) -> tuple[int, str, bytes] | None:
        """Return the refusal of a request that is, or may be, meant for another host; None if it is meant for us."""
        if not head.host:
            # HTTP/1.0 without a Host.  No browser sends that, so no page can have chosen the name it came under.  But
            # a proxy may have made it of a browser's request, and without a Host the Origin cannot be checked.
            if head.origin is None:
                return None
            return 403, "a request with an Origin needs a Host", b""
        if self._accepts_host(head.host):
            return None
        if head.absolute:
            return 421, "the host of the request target is not served here; list it in listen.allowed_hosts", b""
        return 403, "this Host is not served here; list it in listen.allowed_hosts", b""

    def _accepts_host(self, host: str) -> bool:
        if self._mounted or host in self._hosts:
            return True
        if not self._any_address:
            return False
        try:  # a rebinding page comes under a name, never under an address
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def check_origin(self, exchange: Exchange) -> None:
        """Refuse what a page of another origin sends; raises ForbiddenError."""
        head = exchange.head
        if head.origin is not None:
            origin = head.origin.lower()
            if origin not in (b"http://" + head.authority, b"https://" + head.authority):
                raise ForbiddenError("changes are not taken from another origin")

    def check_change(self, exchange: Exchange) -> str:
        """Return who makes a call that changes the server, for the log; raises UnauthorizedError or ForbiddenError."""
        if self._control:
            return "control socket"
        if not self._control_elsewhere:
            self.check_origin(exchange)
        head, connection = exchange.head, exchange.connection
        grant = self._grants.find(head.bearer) if head.authorised else None
        return self.changer(grant, head.tenant, connection is not None and connection.loopback)

    @property
    def door(self) -> str:
        """By which way calls come in, for the audit log."""
        return "control socket" if self._control else "application" if self._mounted else "http"

    def bearer(self, token: bytes) -> str:
        """Return who bears an operator's token, for the audit log; empty if nobody does."""
        grant = self._grants.find(token)
        return grant.bearer if grant is not None else ""

    def changer(self, grant: Grant | None, tenant: Tenant | None, loopback: bool) -> str:
        """Return who makes a call that changes the server, if it did not come by the control socket: an operator by
        the `grant` of a token, a tenant by its own, or a `loopback` peer.  Raises UnauthorizedError or
        ForbiddenError."""
        if self._control_elsewhere:
            raise ForbiddenError("changes are taken on the control socket only")
        if tenant is not None:
            if not tenant.may_control:
                raise ForbiddenError("a tenant's token changes nothing here: this needs the operator's")
            return tenant.client
        if grant is not None:
            if CONTROL not in grant.scopes:
                raise ForbiddenError("this token does not have the scope control")
            return grant.bearer
        if self._grants.controls:
            raise UnauthorizedError("a valid bearer token is needed")
        if not loopback:
            raise ForbiddenError("changes are taken from this machine only; configure a token to allow others")
        return "local"
