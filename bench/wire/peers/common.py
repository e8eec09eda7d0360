"""What all peers serve."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.wire import models
from bench.wire.workloads import WORKLOADS, Floats, Workload


def given() -> tuple[Workload, int]:
    """Return the workload and the port of the command line."""
    return WORKLOADS[sys.argv[1]], int(sys.argv[2])


def model_of(work: Workload) -> Callable[[Floats], Floats]:
    """Return a function from rows to answers, on one thread."""
    torch.set_num_threads(1)
    model = getattr(models, work.family.name)()

    def run(rows: Floats) -> Floats:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(rows)).numpy())

    return run


def answer(work: Workload, identity: Any, row: Floats) -> dict[str, Any]:
    """Return an answer of one row."""
    output = {"name": "y", "datatype": "FP32", "shape": [1, len(row)], "data": row.tolist()}
    return {"model_name": work.family.name, "model_version": "1", "id": identity, "outputs": [output]}
