"""FastAPI on uvicorn: the model in the handler, no batching."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request, Response

from bench.wire.peers.common import given, replier

WORK, PORT = given()
REPLY = replier(WORK)
app = FastAPI()


@app.post(f"/v2/models/{WORK.family.name}/infer", response_model=None)
async def infer(request: Request) -> Response:
    """Answer one request of one row."""
    body, fields = REPLY(await request.body(), int(request.headers.get("inference-header-content-length", 0)))
    return Response(body, headers=fields)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)
