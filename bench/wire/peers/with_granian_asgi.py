"""Granian with ASGI, the application that uvicorn serves too."""

from __future__ import annotations

from bench.wire.peers.common import given
from bench.wire.peers.granian_server import serve

if __name__ == "__main__":
    serve("asgi", "bench.wire.peers.asgi:app", given()[1])
