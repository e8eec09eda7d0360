"""Ray Serve: its HTTP proxy and one replica, each a process, and its own batching."""

from __future__ import annotations

import os
import secrets
from typing import Any

import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from bench.wire.peers.common import answer, given, model_of, work_of

WORK, PORT = given()


@serve.deployment(max_ongoing_requests=4096)  # five at a time otherwise, which leaves batches of five
class Model:
    """One of the workloads, in a process that Ray starts without a command line."""

    def __init__(self, name: str) -> None:
        self.work = work_of(name)
        self.run = model_of(self.work)

    @serve.batch(max_batch_size=WORK.family.max_batch, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def infer(self, documents: list[Any]) -> list[Any]:
        """Answer a batch that Ray made."""
        found = self.run(self.work.gather(documents))
        return [answer(self.work, each["id"], row) for each, row in zip(documents, found, strict=True)]

    async def __call__(self, request: Request) -> Response:
        """Answer one request of one row.  A bare document would go in chunks; the load generator reads none."""
        return Response(orjson.dumps(await self.infer(await request.json())), media_type="application/json")


if __name__ == "__main__":
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # a token of this run, where Ray would leave one at home
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"enable_access_log": False})
    application = Model.bind(WORK.name)  # type: ignore[attr-defined]  # mypy passes over decorators of classes
    serve.run(application, route_prefix=f"/v2/models/{WORK.family.name}/infer", blocking=True)
