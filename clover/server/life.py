"""How far a server is: what its parts must know of its end, and of configurations that it has read since its start."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass
class Life:
    """`draining`: it is shutting down.  `handing` is there once another server accepts in its place; while it is not
    set, open connections are answered for a while longer.  `reloads` counts the configurations that it has read."""

    draining: bool = False
    handing: asyncio.Event | None = None
    reloads: int = 0
