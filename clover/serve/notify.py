"""Telling a service manager how the server does, by the protocol of sd_notify(3): a datagram to $NOTIFY_SOCKET."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("clover.serve")


def notify(*lines: str, environ: Mapping[str, str] | None = None) -> bool:
    """Send `lines`, as "READY=1"; return whether somebody is there to read them.  Never raises: serving does not
    depend on it."""
    address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = f"\0{address[1:]}"  # a name of no file
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(address)
            sock.send("\n".join(lines).encode())
    except OSError as error:
        log.warning("%s could not be sent to the service manager: %s", lines[0], error.strerror)
        return False
    return True


def ready() -> bool:
    """Tell the service manager that this process is the service's main one, and ready."""
    return notify("READY=1", f"MAINPID={os.getpid()}")
