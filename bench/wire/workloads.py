"""The three workloads: requests of 512 kinds that differ in length, id and values, and what their answers have to be.

Heads have the nine fields that a request has inside a service mesh.  Those that a mesh makes anew for each request have
runs of `#`, which the generator replaces each time it sends one.

W1 `echo`: one FP32 [1, 16] JSON tensor; W2 `mlp`: [1, 64] through 64-256-256-10, JSON; W3 `image`: 588 KiB of
binary tensor in, a thousand floats out.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from clover.types import FamilySpec, PublishedAccuracy, TensorSpec, VariantSpec

KINDS = 512
_SEED = 11
_RUN = b"#" * 16
FIELDS = {
    "": b"",
    "cookies": b"Cookie: session=5f1d7c0be2a94c1f; consent=all; _ga=GA1.1.1462517712.1764547200; theme=dark\r\n",
    "a bearer token": b"Authorization: Bearer " + b"t0ken-" * 10 + b"\r\n",
}
"""Fields beside those of a mesh, by what a line of the table calls them."""

Floats = NDArray[np.float32]


def _family(name: str, shape: tuple[int, ...], answer: int, max_batch: int) -> FamilySpec:
    accuracy = PublishedAccuracy(value=90.0, metric="top1", source="none: a bench")
    return FamilySpec(
        name=name,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=shape),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(answer,)),),
        variants=(VariantSpec(name="only", loader=f"bench.wire.models:{name}", accuracy=accuracy),),
        max_batch=max_batch,
    )


ECHO = _family("echo", (16,), 16, 32)
MLP = _family("mlp", (64,), 10, 32)
IMAGE = _family("image", (3, 224, 224), 1000, 8)


@functools.cache
def _rows(count: int, shape: tuple[int, ...]) -> Floats:
    return np.random.default_rng(_SEED).standard_normal((count, *shape), np.float32)


@dataclass(frozen=True)
class Workload:
    """One of the three: its family, whether tensors travel as bytes."""

    name: str
    family: FamilySpec
    binary: bool

    def rows(self) -> Floats:
        """Return the input rows of all kinds of request."""
        return _rows(32 if self.binary else KINDS, self.family.inputs[0].shape)  # images are few, their ids are not

    def requests(self, more: str = "") -> list[bytes]:
        """Return whole requests, `KINDS` of them, with the further `FIELDS` of that name."""
        rows = self.rows()
        return [self._request(at, rows[at % len(rows)], FIELDS[more]) for at in range(KINDS)]

    def _request(self, at: int, row: Floats, more: bytes) -> bytes:
        tensor: dict[str, Any] = {"name": "x", "shape": [1, *row.shape], "datatype": "FP32"}
        document: dict[str, Any] = {"id": identity(at), "inputs": [tensor]}
        fields, tail = b"Content-Type: application/json\r\n", b""
        if self.binary:
            tail = row.tobytes()
            tensor["parameters"] = {"binary_data_size": len(tail)}
            document["parameters"] = {"binary_data_output": True}
        else:
            # Of unlike lengths: what a client prints is not one width.
            tensor["data"] = [round(float(value), 3 + (at + i) % 6) for i, value in enumerate(row.reshape(-1))]
        head = orjson.dumps(document)
        if self.binary:
            fields = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n" % len(head)
        return (
            (
                b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: localhost:8000\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n"
                b"Accept-Encoding: identity\r\nConnection: keep-alive\r\nX-Request-Id: %b\r\n"
                b"Traceparent: 00-%b%b-%b-01\r\n%b%bContent-Length: %d\r\n\r\n"
                % (self.family.name.encode(), *(_RUN,) * 4, more, fields, len(head) + len(tail))
            )
            + head
            + tail
        )

    def array(self, data: Sequence[float]) -> Floats:
        """Return the rows of a JSON tensor's values."""
        return np.array(data, np.float32).reshape(-1, *self.family.inputs[0].shape)

    def gather(self, documents: Sequence[Any]) -> Floats:
        """Return the rows of some requests of one row each."""
        return np.array([document["inputs"][0]["data"] for document in documents], np.float32)

    def sent(self, at: int) -> Floats:
        """Return the row of a request as a server reads it."""
        rows = self.rows()
        row = rows[at % len(rows)]
        if self.binary:
            return np.asarray(row)
        return np.array([round(float(v), 3 + (at + i) % 6) for i, v in enumerate(row.reshape(-1))], np.float32)

    def write(self, folder: Path, more: str = "") -> Path:
        """Return the file with the requests as the generator reads them, written on the first call."""
        path = folder / f"{self.name}.{more or 'plain'}.requests"
        if not path.exists():
            path.write_bytes(b"".join(struct.pack("<I", len(one)) + one for one in self.requests(more)))
        return path

    def wrong(self, answers: bytes, expected: Callable[[Floats], Floats]) -> int:
        """Return how many of the generator's `answers` have another id or other values than they should, or are no
        200."""
        wrong, at = 0, 0
        while at < len(answers):
            request, status, size = struct.unpack_from("<III", answers, at)
            body = answers[at + 12 : at + 12 + size]
            at += 12 + size
            wrong += status != 200 or not self._right(request, body, expected)
        return wrong

    def _right(self, request: int, body: bytes, expected: Callable[[Floats], Floats]) -> bool:
        end = len(body) - 4 * self.family.outputs[0].shape[0] if self.binary else len(body)
        document = orjson.loads(body[:end])
        values = np.frombuffer(body[end:], "<f4") if self.binary else np.array(document["outputs"][0]["data"])
        due = expected(self.sent(request)[None])[0]
        return document["id"] == identity(request) and np.allclose(values.reshape(-1), due, atol=1e-4)


def identity(at: int) -> str:
    """Return the id of a kind of request: of unlike lengths."""
    return f"r{at:d}" + "-" + "x" * (at % 9)


WORKLOADS = {
    "w1": Workload("w1", ECHO, False),
    "w2": Workload("w2", MLP, False),
    "w3": Workload("w3", IMAGE, True),
}
