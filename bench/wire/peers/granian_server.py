"""Granian as its documentation advises for one core: one worker, uvloop, and its own choice of all else."""

from __future__ import annotations

from granian import Granian
from granian.constants import Interfaces, Loops


def serve(interface: str, target: str, port: int) -> None:
    """Serve until ended."""
    Granian(
        target,
        address="127.0.0.1",
        port=port,
        interface=Interfaces(interface),
        loop=Loops.uvloop,
        workers=1,
        log_access=False,
    ).serve()
