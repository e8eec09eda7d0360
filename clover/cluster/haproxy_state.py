"""What HAProxy shall have, beside what it has: the commands that lead from one to the other.  Pure.

The same commands serve every case: a node is new, a weight changed, HAProxy was restarted or configured again, or
somebody changed something by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from clover.cluster.haproxy_config import IngressSettings, Upstream, backend_of, server_words
from clover.cluster.haproxy_runtime import ServerState
from clover.types import Record

Servers = Mapping[str, Mapping[str, ServerState]]
"""Servers that HAProxy has, by backend and name."""


class WantedIngress(Record, frozen=True, kw_only=True):
    """What the ingress shall be: nodes by name, those that drain, and weights by origin and node."""

    upstreams: dict[str, Upstream] = {}
    draining: frozenset[str] = frozenset()
    weights: dict[str, dict[str, int]] = {}

    def weight(self, origin: str, name: str) -> int:
        """Return a node's weight for the rows of an origin; 0 if it has none."""
        return self.weights.get(origin, {}).get(name, 0)


def places(settings: IngressSettings) -> Iterator[tuple[str, str, bool]]:
    """Yield each backend: its name, its origin, and whether it is for gRPC."""
    for origin in settings.origins:
        if origin.listen:
            yield backend_of(origin.name, grpc=False), origin.name, False
        if origin.listen_grpc:
            yield backend_of(origin.name, grpc=True), origin.name, True


def differences(settings: IngressSettings, wanted: WantedIngress, servers: Servers) -> list[str]:
    """Return the commands after which HAProxy has what is wanted.

    A server that shall not be there is only put into maintenance: it can be deleted (`leftovers`) once it has no more
    connections.  So can one that is to change between TLS and none, which is added again afterwards."""
    commands: list[str] = []
    for backend, origin, grpc in places(settings):
        found = servers.get(backend, {})
        for name in sorted({*found, *wanted.upstreams}):
            upstream, server = wanted.upstreams.get(name), found.get(name)
            if upstream is None or not _belongs(upstream, server, grpc=grpc):
                if server is not None and server.state != "maint":
                    commands.append(f"set server {backend}/{name} state maint")
                continue
            state = "drain" if name in wanted.draining else "ready"
            weight = wanted.weight(origin, name)
            if server is None:
                words = server_words(settings, upstream, 0, grpc=grpc)
                commands.append(f"add server {backend}/{name} {words}")
                server = ServerState(number=0, host="", port=0, weight=0, state="maint", checked=False)
                commands += _order(f"{backend}/{name}", server, state, weight)
            else:
                commands += _address(f"{backend}/{name}", server, upstream, grpc=grpc)
                commands += _order(f"{backend}/{name}", server, state, weight)
    return commands


def leftovers(settings: IngressSettings, wanted: WantedIngress, servers: Servers) -> list[str]:
    """Return the servers, as BACKEND/NAME, that shall be deleted once they have no connections."""
    return [
        f"{backend}/{name}"
        for backend, _, grpc in places(settings)
        for name, server in servers.get(backend, {}).items()
        if name not in wanted.upstreams or not _belongs(wanted.upstreams[name], server, grpc=grpc)
    ]


def wanted_of(settings: IngressSettings, servers: Servers) -> WantedIngress:
    """Return what HAProxy was made to be, from what it has: a controller that comes anew goes on from there.

    Servers in maintenance are those that were about to be deleted."""
    upstreams: dict[str, Upstream] = {}
    draining: set[str] = set()
    weights: dict[str, dict[str, int]] = {}
    for backend, origin, grpc in places(settings):
        for name, server in servers.get(backend, {}).items():
            if server.state == "maint":
                continue
            if grpc:
                check = (server.check_host or server.host, server.check_port or server.port)
                known = upstreams.get(name) or Upstream(name=name, host=check[0], port=check[1], secure=server.secure)
                upstream = Upstream(
                    name=name,
                    host=known.host,
                    port=known.port,
                    secure=known.secure,
                    grpc_host=server.host,
                    grpc_port=server.port,
                )
            else:
                known = upstreams.get(name) or Upstream(name=name, host="", port=0)
                upstream = Upstream(
                    name=name,
                    host=server.host,
                    port=server.port,
                    secure=server.secure,
                    grpc_host=known.grpc_host,
                    grpc_port=known.grpc_port,
                )
            upstreams[name] = upstream
            draining |= {name} if server.state == "drain" else set()
            if server.weight:
                weights.setdefault(origin, {}).setdefault(name, server.weight)
    return WantedIngress(upstreams=upstreams, draining=frozenset(draining), weights=weights)


def _belongs(upstream: Upstream, server: ServerState | None, *, grpc: bool) -> bool:
    """Return whether a node has a server in a backend, and the one that is there can become it."""
    if grpc and not upstream.grpc_port:
        return False
    return server is None or server.secure == upstream.secure


def _address(place: str, server: ServerState, upstream: Upstream, *, grpc: bool) -> list[str]:
    host, port = (upstream.grpc_host, upstream.grpc_port) if grpc else (upstream.host, upstream.port)
    commands = []
    if (server.host, server.port) != (host, port):
        commands.append(f"set server {place} addr {host} port {port}")
    if grpc and (server.check_host or server.host, server.check_port) != (upstream.host, upstream.port):
        commands.append(f"set server {place} check-addr {upstream.host} port {upstream.port}")
    if commands:  # until a check of the new address has succeeded
        commands.append(f"set server {place} health down")
    return commands


def _order(place: str, server: ServerState, state: str, weight: int) -> list[str]:
    """Return the commands for state and weight.  A server that leaves maintenance passes for healthy until its first
    check, so it has no weight until it was declared down."""
    commands = [] if server.checked else [f"enable health {place}"]
    has = server.weight
    if server.state == "maint":
        commands += [f"set server {place} weight 0"] if has else []
        commands += [f"set server {place} state ready", f"set server {place} health down"]
        has = 0
    if state != ("ready" if server.state == "maint" else server.state):
        commands.append(f"set server {place} state {state}")
    return [*commands, f"set server {place} weight {weight}"] if weight != has else commands
