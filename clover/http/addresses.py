"""Addresses of peers: which are this machine's own, and which count as one client."""

from __future__ import annotations

import functools
import ipaddress


@functools.lru_cache(maxsize=1024)  # parsing an address costs more than all other work of refusing a guess
def client_of(address: str) -> str:
    """Return by what a peer is counted: its IPv4 address, or the /64 of its IPv6 one, which is one subscriber's."""
    try:
        peer = ipaddress.ip_address(address)
    except ValueError:
        return address  # the control socket's peers have none
    if isinstance(peer, ipaddress.IPv4Address):
        return str(peer)
    if peer.ipv4_mapped is not None:
        return str(peer.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(peer) >> 64 << 64))


def is_loopback(address: str) -> bool:
    """Return whether a peer address is this machine's own loopback."""
    return address.startswith(("127.", "::ffff:127.")) or address == "::1"
