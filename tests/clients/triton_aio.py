"""tritonclient.http.aio against a server with the fixture families: triton_aio.py URL."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import tritonclient.http.aio as triton


async def main(url: str) -> None:
    first = np.arange(16, dtype=np.int32).reshape(1, 16)
    second = np.full((1, 16), 3, np.int32)
    async with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("simple", "1")
        assert (await client.get_model_config("simple"))["name"] == "simple"

        async def one(number: int, binary: bool, coding: str | None) -> None:
            inputs = [triton.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in (0, 1)]
            inputs[0].set_data_from_numpy(first + number, binary_data=binary)
            inputs[1].set_data_from_numpy(second, binary_data=binary)
            outputs = [triton.InferRequestedOutput(f"OUTPUT{i}", binary_data=binary) for i in (0, 1)]
            answer = await client.infer(
                "simple",
                inputs,
                outputs=outputs,
                request_id=str(number),
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            assert answer.get_response()["id"] == str(number)
            assert (answer.as_numpy("OUTPUT0") == first + number + second).all()
            assert (answer.as_numpy("OUTPUT1") == first + number - second).all()

        codings = (None, "gzip", "deflate")
        await asyncio.gather(*(one(number, bool(number % 2), codings[number % 3]) for number in range(200)))
        tensor = triton.InferInput("INPUT0", [1, 2], "BYTES")
        for binary in (True, False):
            tensor.set_data_from_numpy(np.array([[b"a", b"bc"]], np.object_), binary_data=binary)
            outputs = [triton.InferRequestedOutput("OUTPUT0", binary_data=binary)]
            got = (await client.infer("identity_bytes", [tensor], outputs=outputs)).as_numpy("OUTPUT0")
            assert [one if isinstance(one, str) else one.decode() for one in got.ravel().tolist()] == ["a", "bc"]
    print("tritonclient.aio: ok")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
