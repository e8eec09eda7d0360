"""Granian with its own interface, RSGI: the model in the handler, no batching."""

from __future__ import annotations

from typing import Any

from bench.wire.peers.common import given, replier
from bench.wire.peers.granian_server import serve

_WORK, _PORT = given()


class Application:
    """Answers requests of one row.  The supervisor imports this module too, without the model."""

    def __rsgi_init__(self, loop: Any) -> None:
        self.reply = replier(_WORK)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        end = int(scope.headers.get("inference-header-content-length") or 0)
        body, fields = self.reply(await protocol(), end)
        protocol.response_bytes(200, list(fields.items()), body)


app = Application()

if __name__ == "__main__":
    serve("rsgi", "bench.wire.peers.with_granian_rsgi:app", _PORT)
