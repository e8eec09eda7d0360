"""`clover cluster`: bring up, look at, steer and end a cluster of nodes on Ray."""

from __future__ import annotations

from clover.cluster.cli.command import main

__all__ = ["main"]
