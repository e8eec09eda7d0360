"""Triton by PyTriton: the wire and the batching are Triton's, the model is Python in a process of its own."""

from __future__ import annotations

import os
import signal
import sysconfig
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.common import free_port
from bench.wire.peers.common import given, model_of
from clover.types import TensorSpec

WORK, PORT = given()
RUN = model_of(WORK)
INPUT, OUTPUT = WORK.family.inputs[0], WORK.family.outputs[0]


@batch  # type: ignore[untyped-decorator]
def infer(**inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Answer a batch that Triton made."""
    rows = inputs[INPUT.name]
    return {OUTPUT.name: RUN(WORK.array(rows.reshape(-1).tolist()) if INPUT.datatype == "BYTES" else rows)}


def tensor(spec: TensorSpec) -> Tensor:
    """Return a tensor as PyTriton declares it."""
    return Tensor(name=spec.name, dtype=np.bytes_ if spec.datatype == "BYTES" else np.float32, shape=spec.shape)


if __name__ == "__main__":
    # Triton starts a process that links libpython, and has to find the one of this interpreter.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    family = WORK.family
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # PyTriton cleans up when it is interrupted
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=PORT,
        grpc_address="127.0.0.1",
        grpc_port=free_port(),
        metrics_port=free_port(),
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=family.name,
            infer_func=infer,
            inputs=[tensor(INPUT)],
            outputs=[tensor(OUTPUT)],
            config=ModelConfig(max_batch_size=family.max_batch, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
