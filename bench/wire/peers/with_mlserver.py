"""MLServer: the Open Inference Protocol in Python, adaptive batching."""

from __future__ import annotations

import asyncio

from mlserver import MLModel, MLServer
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.settings import ModelParameters, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse

from bench.common import free_port
from bench.wire.peers.common import given, model_of


class Runtime(MLModel):  # type: ignore[misc]
    """One of the workloads."""

    async def load(self) -> bool:
        self.work = given()[0]
        self.run = model_of(self.work)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = self.work.array(list(payload.inputs[0].data))
        spec = self.work.family.outputs[0]
        codec = StringCodec if spec.datatype == "BYTES" else NumpyCodec
        answers = self.run(rows)
        values = answers if codec is NumpyCodec else [text.decode() for text in answers[:, 0]]
        output = codec.encode_output(spec.name, values)
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[output])


async def serve() -> None:
    """Serve until a signal ends it."""
    work, port = given()
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=free_port(),
        metrics_port=free_port(),
        parallel_workers=0,
        debug=False,
    )
    model = ModelSettings(
        name=work.family.name,
        implementation=Runtime,
        parameters=ModelParameters(version="1"),
        max_batch_size=work.family.max_batch,
        max_batch_time=0.0001,
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(serve())
