"""Ray Serve for `bench.cluster_peers`: replicas of one variant of `fashion`, each a process with its own batching.

    python -m bench.cluster_peer_ray VARIANT PORT REPLICAS

An answer has the replica's process id as its `model_version`, so that the bench sees when a new one answers.  How
requests reach the replicas is Ray's choice by its environment variables (`RAY_SERVE_ENABLE_HA_PROXY=1`).
"""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

import numpy as np
import orjson
import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from clover.backends.tensors import load_module
from clover.families import load_family


@serve.deployment(max_ongoing_requests=4096)  # five at a time otherwise, which leaves batches of five
class Replica:
    """One variant on one thread."""

    def __init__(self, variant: str) -> None:
        torch.set_num_threads(1)
        family = load_family("fashion")
        self.module = load_module(family, next(one for one in family.variants if one.name == variant)).eval()
        self.version = str(os.getpid())

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def infer(self, documents: list[Any]) -> list[Any]:
        """Answer a batch that Ray made."""
        images = np.array([document["inputs"][0]["data"] for document in documents], np.float32)
        with torch.inference_mode():
            rows = self.module(torch.from_numpy(images.reshape(-1, 1, 28, 28))).numpy()
        return [self.answer(document["id"], row.tolist()) for document, row in zip(documents, rows, strict=True)]

    def answer(self, identity: str, row: list[float]) -> dict[str, Any]:
        """Return an answer of one row."""
        output = {"name": "probabilities", "datatype": "FP32", "shape": [1, 10], "data": row}
        return {"model_name": "fashion", "model_version": self.version, "id": identity, "outputs": [output]}

    async def __call__(self, request: Request) -> Response:
        """Answer one request of one row."""
        document = orjson.loads(await request.body())
        return Response(orjson.dumps(await self.infer(document)), media_type="application/json")


if __name__ == "__main__":
    chosen, port, replicas = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # a token of this run, where Ray would leave one at home
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=replicas, include_dashboard=False, log_to_driver=False, object_store_memory=78 << 20)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
    application = Replica.options(num_replicas=replicas).bind(chosen)  # type: ignore[attr-defined]
    serve.run(application, route_prefix="/v2/models/fashion/infer", blocking=True)
