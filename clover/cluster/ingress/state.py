"""The commands that bring HAProxy from the servers it has to the servers it should have.  Pure.

The same commands serve every case: a node is new, a weight changed, HAProxy was restarted or configured again, or
somebody changed something by hand.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from msgspec import structs

from clover.cluster.ingress.config import IngressBackend, IngressSettings, Upstream, backends, server_words
from clover.cluster.ingress.runtime import IngressServer
from clover.errors import ClusterError
from clover.types import Record

Servers = Mapping[str, Mapping[str, IngressServer]]
"""Servers that HAProxy has, by backend and name."""


class WantedIngress(Record, frozen=True, kw_only=True):
    """What the ingress shall be: nodes by name, those that drain, and weights by origin, family and node.

    `weights`: by ORIGIN for all rows of an origin, by ORIGIN:FAMILY for those of a family that is shared by itself."""

    upstreams: dict[str, Upstream] = {}
    draining: frozenset[str] = frozenset()
    weights: dict[str, dict[str, int]] = {}

    def shares(self, backend: IngressBackend) -> dict[str, int]:
        """Return the weights for a backend: those of its family, or else of its origin."""
        own = self.weights.get(weights_key(backend.origin, backend.family))
        return own if own is not None else self.weights.get(backend.origin, {})


def weights_key(origin: str, family: str = "") -> str:
    """Return the key of the weights of an origin, or of one of its families."""
    return f"{origin}:{family}" if family else origin


def differences(
    settings: IngressSettings, wanted: WantedIngress, servers: Servers, names: Collection[str] | None = None
) -> list[str]:
    """Return the commands after which HAProxy has what is wanted; of some nodes alone if `names` are given.

    A server that shall not be there is only put into maintenance: it can be deleted (`leftovers`) once it has no more
    connections.  So can one that is to change between TLS and none, which is added again afterwards."""
    commands: list[str] = []
    for backend in backends(settings):
        grpc, found, shares = backend.grpc, servers.get(backend.name, {}), wanted.shares(backend)
        for name in sorted({*found, *wanted.upstreams} if names is None else names):
            upstream, server = wanted.upstreams.get(name), found.get(name)
            if upstream is None or not _belongs(upstream, server, grpc=grpc):
                if server is not None and server.state != "maint":
                    commands.append(f"set server {backend.name}/{name} state maint")
                continue
            state = "drain" if name in wanted.draining else "ready"
            weight = shares.get(name, 0)
            if server is None:
                words = server_words(settings, upstream, 0, grpc=grpc)
                commands += [f"add server {backend.name}/{name} {words}", f"enable health {backend.name}/{name}"]
                server = IngressServer(number=0, host="", port=0, weight=0, state="maint")
                commands += _order(f"{backend.name}/{name}", server, state, weight)
            else:
                commands += [] if server.checked else [f"enable health {backend.name}/{name}"]
                commands += _address(f"{backend.name}/{name}", server, upstream, grpc=grpc)
                commands += _order(f"{backend.name}/{name}", server, state, weight)
    return commands


def leftovers(settings: IngressSettings, wanted: WantedIngress, servers: Servers) -> list[str]:
    """Return the servers, as BACKEND/NAME, that shall be deleted once they have no connections."""
    return [
        f"{backend.name}/{name}"
        for backend in backends(settings)
        for name, server in servers.get(backend.name, {}).items()
        if name not in wanted.upstreams or not _belongs(wanted.upstreams[name], server, grpc=backend.grpc)
    ]


def settled(settings: IngressSettings, wanted: WantedIngress, servers: Servers, names: Collection[str]) -> Servers:
    """Return what HAProxy has of some nodes once the commands of `differences` have succeeded, beside what it had.

    A new server has no number, and none is up that was not: HAProxy alone knows that."""
    result = {backend: dict(found) for backend, found in servers.items()}
    for backend in backends(settings):
        found, shares = result.setdefault(backend.name, {}), wanted.shares(backend)
        for name in names:
            upstream, server = wanted.upstreams.get(name), found.get(name)
            if upstream is None or not _belongs(upstream, server, grpc=backend.grpc):
                if server is not None:
                    found[name] = structs.replace(server, state="maint")
                continue
            host, port = (upstream.grpc_host, upstream.grpc_port) if backend.grpc else (upstream.host, upstream.port)
            moved = server is None or server.state == "maint" or (server.host, server.port) != (host, port)
            found[name] = IngressServer(
                number=server.number if server is not None else 0,
                host=host,
                port=port,
                weight=shares.get(name, 0),
                state="drain" if name in wanted.draining else "ready",
                up=server is not None and server.up and not moved,
                secure=upstream.secure,
                check_host=upstream.host if backend.grpc else server.check_host if server is not None else "",
                check_port=upstream.port if backend.grpc else server.check_port if server is not None else 0,
            )
    return result


def wanted_of(settings: IngressSettings, servers: Servers) -> WantedIngress:
    """Return what HAProxy was made to be, from what it has: a controller that comes anew goes on from there.

    Servers in maintenance are those that were about to be deleted."""
    upstreams: dict[str, Upstream] = {}
    draining: set[str] = set()
    weights: dict[str, dict[str, int]] = {}
    for backend in backends(settings):
        grpc = backend.grpc
        if backend.name not in servers:
            continue
        own = weights.setdefault(weights_key(backend.origin, backend.family), {})
        for name, server in servers[backend.name].items():
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
                own[name] = server.weight
    # A family that is shared as its origin is was not given weights of its own.
    apart = {}
    for which, own in weights.items():
        origin, _, family = which.partition(":")
        if own != weights.get(origin) if family else own:
            apart[which] = own
    return WantedIngress(upstreams=upstreams, draining=frozenset(draining), weights=apart)


def _belongs(upstream: Upstream, server: IngressServer | None, *, grpc: bool) -> bool:
    """Return whether a node has a server in a backend, and the one that is there can become it."""
    if grpc and not upstream.grpc_port:
        return False
    return server is None or server.secure == upstream.secure


def _address(place: str, server: IngressServer, upstream: Upstream, *, grpc: bool) -> list[str]:
    host, port = (upstream.grpc_host, upstream.grpc_port) if grpc else (upstream.host, upstream.port)
    commands = []
    if (server.host, server.port) != (host, port):
        commands.append(f"set server {place} addr {host} port {port}")
    if grpc and (server.check_host or server.host, server.check_port) != (upstream.host, upstream.port):
        commands.append(f"set server {place} check-addr {upstream.host} port {upstream.port}")
    if commands:  # until a check of the new address has succeeded
        commands.append(f"set server {place} health down")
    return commands


def _order(place: str, server: IngressServer, state: str, weight: int) -> list[str]:
    """Return the commands for state and weight.  A server that leaves maintenance passes for healthy until its first
    check, so it has no weight until it was declared down."""
    commands = []
    has = server.weight
    if server.state == "maint":
        commands += [f"set server {place} weight 0"] if has else []
        commands += [f"set server {place} state ready", f"set server {place} health down"]
        has = 0
    if state != ("ready" if server.state == "maint" else server.state):
        commands.append(f"set server {place} state {state}")
    return [*commands, f"set server {place} weight {weight}"] if weight != has else commands


LARGEST_WEIGHT = 256
"""HAProxy's largest weight of a server; 0 is the smallest and gives a server nothing."""


def whole_weights(shares: Mapping[str, float]) -> dict[str, int]:
    """Return whole weights 0 to 256 in proportion to `shares` (any unit), by the method of largest remainders.

    The largest share gets 256, so that the others are as fine as they can be.  A share above 0 gets 1 at least:
    it is small, and not nothing.  A share of 0 gets 0.  ClusterError if a share is negative or not a number.
    """
    for name, share in shares.items():
        if not math.isfinite(share) or share < 0:
            raise ClusterError(f"the share of node {name} is {share}: it must be a number of 0 or more")
    most = max(shares.values(), default=0.0)
    if most == 0:
        return dict.fromkeys(shares, 0)
    # Divided by the largest first: shares may be so small that sums and products of them are not exact any more.
    quotas = {name: share / most * LARGEST_WEIGHT for name, share in shares.items()}
    weights = {name: int(quota) for name, quota in quotas.items()}
    left = round(math.fsum(quotas.values())) - sum(weights.values())
    by_remainder = sorted(quotas, key=lambda name: (weights[name] - quotas[name], -quotas[name], name))
    for name in by_remainder[:left]:
        weights[name] += 1
    return {name: max(weight, 1) if shares[name] > 0 else 0 for name, weight in weights.items()}
