"""tritonclient.http against a server with the fixture families: triton_sync.py URL."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def refused(call: object, text: str) -> None:
    """`call` must raise the client's own exception with `text` in it."""
    message = "nothing"
    try:
        call()  # type: ignore[operator]
    except InferenceServerException as error:
        message = str(error)
    assert text.lower() in message.lower(), message


def described(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert not client.is_model_ready("nope")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("simple")["inputs"][0]["shape"] == [-1, 16]
    assert client.get_model_config("simple", "1")["max_batch_size"] >= 1
    assert "simple" in [row["name"] for row in client.get_model_repository_index()]
    refused(lambda: client.get_model_metadata("nope"), "unknown model")


def simple(client: triton.InferenceServerClient) -> None:
    first = np.arange(32, dtype=np.int32).reshape(2, 16)
    second = np.ones((2, 16), np.int32)
    before = client.get_inference_statistics("simple")["model_stats"][0]["inference_count"]
    count = 0
    for binary_in in (True, False):
        for binary_out in (True, False):
            for coding in (None, "gzip", "deflate"):
                inputs = [triton.InferInput(f"INPUT{i}", [2, 16], "INT32") for i in (0, 1)]
                inputs[0].set_data_from_numpy(first, binary_data=binary_in)
                inputs[1].set_data_from_numpy(second, binary_data=binary_in)
                outputs = [triton.InferRequestedOutput(f"OUTPUT{i}", binary_data=binary_out) for i in (0, 1)]
                answer = client.infer(
                    "simple",
                    inputs,
                    outputs=outputs,
                    request_id="a-1",
                    timeout=10_000_000,
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                    parameters={"clover_receipt": True},
                )
                assert answer.get_response()["id"] == "a-1"
                assert (answer.as_numpy("OUTPUT0") == first + second).all()
                assert (answer.as_numpy("OUTPUT1") == first - second).all()
                count += 1
    inputs[0].set_data_from_numpy(first)
    inputs[1].set_data_from_numpy(second)
    pending = [client.async_infer("simple", inputs) for _ in range(16)]
    for one in pending:
        assert (one.get_result().as_numpy("OUTPUT0") == first + second).all()
    outputs = [triton.InferRequestedOutput("OUTPUT0", class_count=2)]
    top = client.infer("simple", inputs, outputs=outputs).as_numpy("OUTPUT0")
    assert top.shape == (2, 2)
    assert top[0][0].decode().endswith(":15"), top
    after = client.get_inference_statistics("simple")["model_stats"][0]["inference_count"]
    assert after - before >= count + 17, (before, after)
    refused(lambda: client.infer("nope", inputs), "unknown model")
    refused(lambda: client.infer("simple", inputs[:1]), "lacks 'INPUT1'")


def every_type(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("identity_types")
    generator = np.random.default_rng(1)
    for binary in (True, False):
        inputs, expected, outputs = [], {}, []
        for given, made in zip(metadata["inputs"], metadata["outputs"], strict=True):
            shape = [2, *given["shape"][1:]]
            datatype = given["datatype"]
            values = generator.integers(0, 100, shape)
            array = values.astype(ml_dtypes.bfloat16 if datatype == "BF16" else triton_to_np_dtype(datatype))
            tensor = triton.InferInput(given["name"], shape, datatype)
            half = datatype in ("FP16", "BF16")
            tensor.set_data_from_numpy(array, binary_data=binary or half)
            inputs.append(tensor)
            outputs.append(triton.InferRequestedOutput(made["name"], binary_data=binary or half))
            expected[made["name"]] = array
        answer = client.infer("identity_types", inputs, outputs=outputs)
        for name, array in expected.items():
            assert (answer.as_numpy(name) == array).all(), name


def strings(client: triton.InferenceServerClient) -> None:
    values = np.array([[b"one", b"", "zwei \u00e4".encode(), b"x" * 100]], np.object_)
    for binary in (True, False):
        tensor = triton.InferInput("INPUT0", [1, 4], "BYTES")
        tensor.set_data_from_numpy(values, binary_data=binary)
        outputs = [triton.InferRequestedOutput("OUTPUT0", binary_data=binary)]
        got = client.infer("identity_bytes", [tensor], outputs=outputs).as_numpy("OUTPUT0")
        flat = [one if isinstance(one, bytes) else one.encode() for one in got.ravel().tolist()]
        assert flat == values.ravel().tolist()
    raw = np.array([[b"\xff\x00\xfe"]], np.object_)
    tensor = triton.InferInput("INPUT0", [1, 1], "BYTES")
    tensor.set_data_from_numpy(raw)
    assert client.infer("identity_bytes", [tensor]).as_numpy("OUTPUT0").ravel()[0] == b"\xff\x00\xfe"
    numbers = np.array([[str(number).encode() for number in range(16)]], np.object_)
    inputs = [triton.InferInput(f"INPUT{i}", [1, 16], "BYTES") for i in (0, 1)]
    for tensor in inputs:
        tensor.set_data_from_numpy(numbers)
    got = client.infer("simple_string", inputs).as_numpy("OUTPUT0")
    assert [int(one) for one in got.ravel()] == [2 * number for number in range(16)]


def repository(client: triton.InferenceServerClient) -> None:
    client.unload_model("identity_fp32")
    assert not client.is_model_ready("identity_fp32")
    client.load_model("identity_fp32")
    assert client.is_model_ready("identity_fp32")
    refused(lambda: client.load_model("nope"), "failed to load")


def main(url: str) -> None:
    with triton.InferenceServerClient(url.removeprefix("http://"), concurrency=4) as client:
        for check in (described, simple, every_type, strings, repository):
            check(client)
            print(f"tritonclient {check.__name__}: ok")


if __name__ == "__main__":
    main(sys.argv[1])
