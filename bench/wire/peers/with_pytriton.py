"""Triton by PyTriton: the wire and the batching are Triton's, the model is Python in a process of its own."""

from __future__ import annotations

import os
import signal
import sysconfig

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.common import free_port
from bench.wire.peers.common import given, model_of

WORK, PORT = given()
RUN = model_of(WORK)


@batch  # type: ignore[untyped-decorator]
def infer(x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Answer a batch that Triton made."""
    return {"y": RUN(x)}


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
            inputs=[Tensor(name="x", dtype=np.float32, shape=family.inputs[0].shape)],
            outputs=[Tensor(name="y", dtype=np.float32, shape=family.outputs[0].shape)],
            config=ModelConfig(max_batch_size=family.max_batch, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
