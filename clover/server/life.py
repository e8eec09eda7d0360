"""The stage of a server's life that its parts must know: whether it ends, and how often it has read its
configuration."""

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
