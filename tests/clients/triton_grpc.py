"""tritonclient.grpc, sync, aio and streams, against a server with the fixture families: triton_grpc.py HOST:PORT."""

from __future__ import annotations

import asyncio
import queue
import sys
from functools import partial
from importlib.metadata import version
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

FIRST = np.arange(32, dtype=np.int32).reshape(2, 16)
SECOND = np.ones((2, 16), np.int32)


def refused(call: object, text: str, status: str) -> None:
    """`call` must raise the client's own exception with `text` and `status` in it."""
    message, code = "nothing", ""
    try:
        call()  # type: ignore[operator]
    except InferenceServerException as error:
        message, code = str(error), str(error.status())
    assert text.lower() in message.lower(), message
    assert status in code, code


def two() -> list[Any]:
    inputs = [triton.InferInput(f"INPUT{i}", [2, 16], "INT32") for i in (0, 1)]
    inputs[0].set_data_from_numpy(FIRST)
    inputs[1].set_data_from_numpy(SECOND)
    return inputs


def described(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert not client.is_model_ready("nope")
    assert "statistics" in client.get_server_metadata().extensions
    assert list(client.get_model_metadata("simple").inputs[0].shape) == [-1, 16]
    assert client.get_model_metadata("simple", as_json=True)["name"] == "simple"
    assert client.get_model_config("simple", "1").config.max_batch_size >= 1
    assert "simple" in [row.name for row in client.get_model_repository_index().models]
    refused(lambda: client.get_model_metadata("nope"), "unknown model", "NOT_FOUND")
    refused(client.get_trace_settings, "OpenTelemetry", "UNIMPLEMENTED")
    refused(client.get_log_settings, "log.level", "UNIMPLEMENTED")
    refused(client.get_system_shared_memory_status, "not supported", "UNIMPLEMENTED")


def simple(client: Any) -> None:
    before = client.get_inference_statistics("simple").model_stats[0].inference_count
    outputs = [triton.InferRequestedOutput(f"OUTPUT{i}") for i in (0, 1)]
    answer = client.infer(
        "simple",
        two(),
        outputs=outputs,
        request_id="a-1",
        timeout=10_000_000,
        client_timeout=10.0,
        headers={"x-request-id": "mine"},
        parameters={"clover_receipt": True},
    )
    assert answer.get_response().id == "a-1"
    assert "clover_receipt" in answer.get_response().parameters
    assert (answer.as_numpy("OUTPUT0") == FIRST + SECOND).all()
    assert (answer.as_numpy("OUTPUT1") == FIRST - SECOND).all()
    for coding in ("gzip", "deflate"):
        asking = partial(client.infer, "simple", two(), compression_algorithm=coding)
        refused(asking, f"'{coding}' is disabled", "UNIMPLEMENTED")
    done: queue.Queue[Any] = queue.Queue()
    for _ in range(16):
        client.async_infer("simple", two(), lambda result, error: done.put((result, error)))
    for _ in range(16):
        result, error = done.get(timeout=10)
        assert error is None
        assert (result.as_numpy("OUTPUT0") == FIRST + SECOND).all()
    outputs = [triton.InferRequestedOutput("OUTPUT0", class_count=2)]
    top = client.infer("simple", two(), outputs=outputs).as_numpy("OUTPUT0")
    assert top.shape == (2, 2)
    assert top[0][0].decode().endswith(":15"), top
    after = client.get_inference_statistics("simple").model_stats[0].inference_count
    assert after - before >= 2 * 18, (before, after)
    refused(lambda: client.infer("nope", two()), "unknown model", "NOT_FOUND")
    refused(lambda: client.infer("simple", two()[:1]), "lacks", "INVALID_ARGUMENT")
    refused(lambda: client.infer("simple", two(), timeout=1), "deadline", "DEADLINE_EXCEEDED")


def every_type(client: Any) -> None:
    metadata = client.get_model_metadata("identity_types")
    generator = np.random.default_rng(1)
    inputs, expected = [], {}
    for given, made in zip(metadata.inputs, metadata.outputs, strict=True):
        shape = [2, *given.shape[1:]]
        values = generator.integers(0, 100, shape)
        dtype = ml_dtypes.bfloat16 if given.datatype == "BF16" else triton_to_np_dtype(given.datatype)
        array = values.astype(dtype)
        tensor = triton.InferInput(given.name, shape, given.datatype)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
        expected[made.name] = array
    answer = client.infer("identity_types", inputs)
    for name, array in expected.items():
        assert (answer.as_numpy(name) == array).all(), name


def strings(client: Any) -> None:
    values = np.array([[b"one", b"", "zwei \u00e4".encode(), b"\xff\x00\xfe"]], np.object_)
    tensor = triton.InferInput("INPUT0", [1, 4], "BYTES")
    tensor.set_data_from_numpy(values)
    got = client.infer("identity_bytes", [tensor]).as_numpy("OUTPUT0")
    assert got.ravel().tolist() == values.ravel().tolist()


def stream(client: Any) -> None:
    done: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: done.put((result, error)))
    for number in range(20):
        name = "nope" if number == 7 else "simple"
        client.async_stream_infer(name, two(), request_id=str(number), enable_empty_final_response=True)
    for number in range(20):
        result, error = done.get(timeout=10)
        if number == 7:
            assert "unknown model" in str(error).lower()
            continue
        assert error is None
        assert result.get_response().id == str(number)
        assert "clover-receipt" in result.get_response().parameters
        assert (result.as_numpy("OUTPUT0") == FIRST + SECOND).all()
    client.stop_stream()


def repository(client: Any) -> None:
    client.unload_model("identity_fp32")
    assert not client.is_model_ready("identity_fp32")
    client.load_model("identity_fp32")
    assert client.is_model_ready("identity_fp32")
    refused(lambda: client.load_model("nope"), "failed to load", "NOT_FOUND")


async def asynchronous(target: str) -> None:
    async with triton_aio.InferenceServerClient(target) as client:
        assert await client.is_model_ready("simple")
        answers = await asyncio.gather(*(client.infer("simple", two(), request_id=str(one)) for one in range(16)))
        for number, answer in enumerate(answers):
            assert answer.get_response().id == str(number)
            assert (answer.as_numpy("OUTPUT1") == FIRST - SECOND).all()

        async def requests() -> Any:
            for number in range(8):
                yield {"model_name": "simple", "inputs": two(), "request_id": str(number)}

        seen = []
        async for result, error in client.stream_infer(requests()):
            assert error is None
            seen.append(result.get_response().id)
        assert seen == [str(number) for number in range(8)]
        print("tritonclient.grpc.aio: ok")


def main(target: str) -> None:
    print("versions:", ", ".join(f"{name} {version(name)}" for name in ("tritonclient", "grpcio", "protobuf")))
    with triton.InferenceServerClient(target) as client:
        for check in (described, simple, every_type, strings, stream, repository):
            check(client)
            print(f"tritonclient.grpc {check.__name__}: ok")
    asyncio.run(asynchronous(target))


if __name__ == "__main__":
    main(sys.argv[1])
