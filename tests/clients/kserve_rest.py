"""kserve's InferenceRESTClient against a server with the fixture families: kserve_rest.py URL."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def main(url: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=1, timeout=10))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "simple")
    first = np.arange(16, dtype=np.int32).reshape(1, 16)
    second = np.ones((1, 16), np.int32)
    for binary_in in (False, True):
        for binary_out in (False, True):
            inputs = [InferInput(f"INPUT{i}", [1, 16], "INT32") for i in (0, 1)]
            inputs[0].set_data_from_numpy(first, binary_data=binary_in)
            inputs[1].set_data_from_numpy(second, binary_data=binary_in)
            outputs = [RequestedOutput(f"OUTPUT{i}", {"binary_data": binary_out}) for i in (0, 1)]
            request = InferRequest("simple", inputs, request_id="k-1", request_outputs=outputs)
            answer = await client.infer(url, request, model_name="simple")
            assert answer.id == "k-1"
            assert answer.model_name == "simple"
            assert (answer.outputs[0].as_numpy() == first + second).all()
            assert (answer.outputs[1].as_numpy() == first - second).all()
    text = InferInput("INPUT0", [1, 2], "BYTES")
    text.set_data_from_numpy(np.array([[b"a", b"bc"]], np.object_), binary_data=True)
    outputs = [RequestedOutput("OUTPUT0", {"binary_data": True})]
    request = InferRequest("identity_bytes", [text], request_outputs=outputs)
    answer = await client.infer(url, request, model_name="identity_bytes")
    assert answer.outputs[0].as_numpy().ravel().tolist() == ["a", "bc"]
    print("kserve InferenceRESTClient: ok")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
