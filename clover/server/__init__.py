"""The server, assembled, and the API for embedding it.

`engine` puts families, workers, energy, carbon, controller and front end together on one event loop; `server` is what
users hold: threads, signals, context managers, `infer`.
"""

from __future__ import annotations

from clover.server.server import Answer, Server

__all__ = ["Answer", "Server"]
