"""Reference servers of the same wire: what one core can do at the cost of everything else.

    python -m bench.wire.reference raw|rawreal|rawbuf --port N [--workload w1]

`raw`      uvloop + httptools, a constant answer: what the wire costs in Python
`rawreal`  the same + orjson, batching in the loop, torch in the same process: no isolation, no limits, no receipts
`rawbuf`   the body read straight into one preallocated tensor, torch in the same process (W3)
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any

import httptools
import numpy as np
import orjson
import torch
import uvloop

from bench.wire import models
from bench.wire.workloads import WORKLOADS, Workload

_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_BINARY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n"
    b"Content-Length: %d\r\n\r\n"
)


class Raw(asyncio.Protocol):
    """Parses heads and bodies, answers a constant."""

    answer = _JSON % 2 + b"{}"

    def __init__(self, batcher: Batcher | None) -> None:
        self.batcher = batcher

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.parts: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)

    def on_message_complete(self) -> None:
        body = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts = []
        if self.batcher is None:
            self.transport.write(self.answer)
        else:
            self.batcher.add(self.transport, orjson.loads(body))


class Batcher:
    """All requests of one turn of the loop are one batch."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Workload) -> None:
        self.loop = loop
        self.name = work.family.name
        self.most = work.family.max_batch
        self.model = getattr(models, self.name)()
        self.waiting: list[tuple[Any, Any]] = []

    def add(self, transport: Any, document: Any) -> None:
        if not self.waiting:
            self.loop.call_soon(self.turn)
        self.waiting.append((transport, document))

    def turn(self) -> None:
        waiting, self.waiting = self.waiting, []
        for at in range(0, len(waiting), self.most):
            part = waiting[at : at + self.most]
            rows = np.array([document["inputs"][0]["data"] for _, document in part], np.float32)
            with torch.inference_mode():
                found = self.model(torch.from_numpy(rows)).numpy()
            for (transport, document), row in zip(part, found, strict=True):
                answer = orjson.dumps(
                    {
                        "model_name": self.name,
                        "model_version": "1",
                        "id": document["id"],
                        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, len(row)], "data": row}],
                    },
                    option=orjson.OPT_SERIALIZE_NUMPY,
                )
                transport.write(_JSON % len(answer) + answer)


class Buffered(asyncio.BufferedProtocol):
    """Reads a body behind its head into one buffer, which is the tensor."""

    def __init__(self, work: Workload) -> None:
        self.model = getattr(models, work.family.name)()
        self.shape = (1, *work.family.inputs[0].shape)
        self.buffer = np.zeros((1 << 16) + 4 * int(np.prod(self.shape)), np.uint8)
        self.view = memoryview(self.buffer)  # type: ignore[arg-type]
        self.tensor = np.zeros(self.shape, np.float32)
        self.into = memoryview(self.tensor.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        self.have = self.need = 0
        self.head = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, hint: int) -> memoryview:
        return self.into[self.have :] if self.need else self.view[self.have : self.have + 65536]

    def buffer_updated(self, size: int) -> None:
        self.have += size
        if not self.need:
            data = bytes(self.view[: self.have])
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            lower = data[:end].lower()
            json_size = int(lower.split(b"inference-header-content-length:")[1].split(b"\r\n")[0])
            if self.have < end + json_size:
                return
            self.head = data[end : end + json_size]
            self.need = len(self.into)
            self.have -= end + json_size
            self.into[: self.have] = self.view[end + json_size : end + json_size + self.have]
        if self.have == self.need:
            self.have = self.need = 0
            document = orjson.loads(self.head)
            with torch.inference_mode():
                found = self.model(torch.from_numpy(self.tensor)).numpy()
            raw = found.tobytes()
            output = {"name": "y", "datatype": "FP32", "shape": [1, 1000], "parameters": {"binary_data_size": len(raw)}}
            head = orjson.dumps({"model_name": "image", "id": document["id"], "outputs": [output]})
            self.transport.write(b"".join((_BINARY % (len(head), len(head) + len(raw)), head, raw)))


async def serve(kind: str, work: Workload, port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    torch.set_num_threads(1)
    batcher = Batcher(loop, work) if kind == "rawreal" else None
    made = (lambda: Buffered(work)) if kind == "rawbuf" else (lambda: Raw(batcher))
    server = await loop.create_server(made, "127.0.0.1", port, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one of them."""
    parser = argparse.ArgumentParser(prog="python -m bench.wire.reference", description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("raw", "rawreal", "rawbuf"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="w1")
    given = parser.parse_args(argv)
    uvloop.run(serve(given.kind, WORKLOADS[given.workload], given.port))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
