"""uvicorn, on uvloop and httptools, without a framework."""

from __future__ import annotations

import uvicorn

from bench.wire.peers.asgi import app
from bench.wire.peers.common import given

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=given()[1], log_level="warning", access_log=False)
