"""FastAPI on uvicorn: the model in the handler, no batching."""

from __future__ import annotations

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from bench.wire.peers.common import answer, given, model_of

WORK, PORT = given()
RUN = model_of(WORK)
SHAPE = WORK.family.inputs[0].shape
app = FastAPI()


@app.post(f"/v2/models/{WORK.family.name}/infer", response_model=None)
async def infer(request: Request) -> Response:
    """Answer one request of one row."""
    body = await request.body()
    if not WORK.binary:
        document = orjson.loads(body)
        row = RUN(np.array([document["inputs"][0]["data"]], np.float32))[0]
        return Response(orjson.dumps(answer(WORK, document["id"], row)), media_type="application/json")
    end = int(request.headers["inference-header-content-length"])
    identity = orjson.loads(body[:end])["id"]
    rows = np.frombuffer(bytearray(memoryview(body)[end:]), np.float32)
    raw = RUN(rows.reshape(1, *SHAPE)).tobytes()
    output = {"name": "y", "datatype": "FP32", "shape": [1, 1000], "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"model_name": WORK.family.name, "id": identity, "outputs": [output]})
    fields = {"Inference-Header-Content-Length": str(len(head))}
    return Response(head + raw, media_type="application/octet-stream", headers=fields)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)
