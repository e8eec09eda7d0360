"""Servers that tests start as groups of processes: ports for them, and their end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time


def free_ports(count: int) -> tuple[int, ...]:
    """Return ports of loopback that nobody has."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = tuple(one.getsockname()[1] for one in held)
    for one in held:
        one.close()
    return ports


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server with all processes of its group, which may outlive the one that was started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + 30.0
        while time.monotonic() < until:
            process.poll()
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                return
            time.sleep(0.5)
