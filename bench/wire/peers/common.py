"""What all peers serve."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import torch

from bench.headline_work import VariantWork, variant_work
from bench.wire import models
from bench.wire.workloads import WORKLOADS, Floats, Workload

Work = Workload | VariantWork


def given() -> tuple[Work, int]:
    """Return the workload and the port of the command line."""
    return work_of(sys.argv[1]), int(sys.argv[2])


def work_of(name: str) -> Work:
    """Return a workload of the wire, or a "family:variant"."""
    return variant_work(name) if ":" in name else WORKLOADS[name]


def model_of(work: Work) -> Callable[[Any], Any]:
    """Return a function from rows to answers, on one thread."""
    torch.set_num_threads(1)
    if isinstance(work, VariantWork):
        return work.model()
    model = getattr(models, work.family.name)()

    def run(rows: Floats) -> Floats:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(rows)).numpy())

    return run


def answer(work: Work, identity: Any, row: Floats) -> dict[str, Any]:
    """Return an answer of one row."""
    spec = work.family.outputs[0]
    data: list[Any] = row.reshape(-1).tolist()
    if spec.datatype == "BYTES":
        data = [text.decode() for text in data]
    output = {"name": spec.name, "datatype": spec.datatype, "shape": [1, *row.shape], "data": data}
    return {"model_name": work.family.name, "model_version": "1", "id": identity, "outputs": [output]}


def replier(work: Work) -> Callable[[bytes, int], tuple[bytes, dict[str, str]]]:
    """Return a function from the body of a request of one row, and where its JSON ends (0: it is all JSON), to the body
    of the answer and its fields; the model runs in it, without batching."""
    run, shape, name = model_of(work), work.family.inputs[0].shape, work.family.name

    def reply(body: bytes, end: int) -> tuple[bytes, dict[str, str]]:
        if not work.binary:
            document = orjson.loads(body)
            row = run(work.array(document["inputs"][0]["data"]))[0]
            return orjson.dumps(answer(work, document["id"], row)), {"content-type": "application/json"}
        identity = orjson.loads(body[:end])["id"]
        rows = np.frombuffer(bytearray(memoryview(body)[end:]), np.float32)
        raw = run(rows.reshape(1, *shape)).tobytes()
        output = {"name": "y", "datatype": "FP32", "shape": [1, 1000], "parameters": {"binary_data_size": len(raw)}}
        head = orjson.dumps({"model_name": name, "id": identity, "outputs": [output]})
        fields = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
        return head + raw, fields

    return reply
