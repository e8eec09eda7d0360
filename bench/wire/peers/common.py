"""What all peers serve."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
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
