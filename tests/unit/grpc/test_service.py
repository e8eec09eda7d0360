"""The calls of the inference service: answers, receipts, deadlines, streams, who may call, and what ends badly."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("grpc", reason="the extra grpc is not installed")

import grpc.aio
from google.protobuf import json_format
from grpc import StatusCode

from clover.config import LimitsConfig, ListenConfig, TenantConfig
from clover.errors import Overloaded, PlanError, Unavailable, WorkerError
from clover.grpc.calls import GrpcCaller
from clover.grpc.messages import ModelInferRequest, ModelInferResponse, message_class
from clover.tenants import Tenants
from tests.support.grpc_fakes import FakeContext, GrpcDriver
from tests.support.http_fakes import FakeModel, FakeView, TwoVersions, family, tensor

StreamAnswer = message_class("ModelStreamInferResponse")


def echo(datatype: str = "FP32", *shape: int, **others: Any) -> FakeModel:
    outputs = [tensor("OUT", datatype, *(shape or (2,)), labels=("no", "yes") if datatype == "FP32" else ())]
    listed = [tensor("IN", datatype, *(shape or (2,)))], outputs
    return FakeModel(family("echo", *listed), **others)


def request(values: Any = ((1.5, 2.0),), **others: Any) -> Any:
    array = np.asarray(values, np.float32)
    made = ModelInferRequest(model_name="echo", **others)
    made.inputs.add(name="IN", datatype="FP32", shape=array.shape)
    made.raw_input_contents.append(array.tobytes())
    return made


def numbers(answer: Any) -> list[float]:
    return [float(value) for value in np.frombuffer(answer.raw_output_contents[0], np.float32)]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


# --- inference --------------------------------------------------------------------------------------------------------


def test_an_answer_has_its_receipt_and_the_id_of_its_request() -> None:
    model = echo()
    driver = GrpcDriver(FakeView(model))
    context = driver.ask("ModelInfer", request())
    assert numbers(ModelInferResponse.FromString(context.answer)) == [1.5, 2.0]
    assert context.ends["clover-receipt"].startswith('variant="small", accuracy=88.7, ')
    assert "feedback" not in context.ends["clover-receipt"]
    assert driver.service._ids.number_of(context.ends["x-request-id"]) in model.remembered
    named = driver.ask("ModelInfer", request(), metadata=(("x-request-id", "mine"),))
    assert named.ends["x-request-id"] == "mine"
    assert ', feedback="' in named.ends["clover-receipt"]
    assert model.open_tickets == 0
    assert dict(driver.stats.calls) == {"OK": 2}
    assert driver.stats.open_calls == 0


def test_the_receipt_is_a_parameter_if_that_is_asked_for() -> None:
    asked = request()
    asked.parameters["clover_receipt"].bool_param = True
    context = GrpcDriver(FakeView(echo())).ask("ModelInfer", asked)
    answer = ModelInferResponse.FromString(context.answer)
    said = json.loads(answer.parameters["clover_receipt"].string_param)
    assert (said["variant"], said["accuracy"]) == ("small", 88.7)
    assert context.ends["clover-receipt"].endswith(", state=fresh, pue=1")


@pytest.mark.parametrize("datatype", ["INT8", "INT64", "UINT8", "UINT64", "FP32", "FP64", "BOOL", "BYTES"])
def test_typed_contents_in_and_out(datatype: str) -> None:
    from clover.grpc.infer import CONTENTS

    values: list[Any] = [True, False] if datatype == "BOOL" else [b"a", b""] if datatype == "BYTES" else [3, 7]
    asked = ModelInferRequest(model_name="echo")
    one = asked.inputs.add(name="IN", datatype=datatype, shape=[1, 2])
    getattr(one.contents, CONTENTS[datatype]).extend(values)
    driver = GrpcDriver(FakeView(echo(datatype)))
    assert len(driver.answer_of(asked).raw_output_contents) == 1  # as Triton answers
    asked.parameters["binary_data_output"].bool_param = False
    answer = driver.answer_of(asked)
    assert not answer.raw_output_contents
    assert list(getattr(answer.outputs[0].contents, CONTENTS[datatype])) == values


@pytest.mark.parametrize(
    ("datatype", "field", "values", "text"),
    [
        ("INT8", "int_contents", [300, 1], "input 'IN': an element is outside the range of INT8"),
        ("INT8", "int_contents", [1], "input 'IN': its int_contents has 1 elements, and the shape [1, 2] takes 2"),
        ("INT8", "fp32_contents", [1, 2], "input 'IN': its int_contents has 0 elements, and the shape [1, 2] takes 2"),
        ("FP16", "fp32_contents", [1, 2], "input 'IN': FP16 tensors travel as raw contents only"),
    ],
)
def test_typed_contents_that_do_not_fit(datatype: str, field: str, values: list[Any], text: str) -> None:
    asked = ModelInferRequest(model_name="echo")
    getattr(asked.inputs.add(name="IN", datatype=datatype, shape=[1, 2]).contents, field).extend(values)
    context = GrpcDriver(FakeView(echo(datatype))).ask("ModelInfer", asked)
    assert (context.status, context.details) == (StatusCode.INVALID_ARGUMENT, text)


def test_contents_are_typed_or_raw() -> None:
    driver = GrpcDriver(FakeView(echo()))
    both, neither, more = request(), request(), request()
    both.inputs[0].contents.fp32_contents.extend([1, 2])
    del neither.raw_input_contents[:]
    more.raw_input_contents.append(b"")
    for asked, text in (
        (both, "input 'IN': it has both contents and raw_input_contents"),
        (neither, "input 'IN': it has neither contents nor raw_input_contents"),
        (more, "there are 2 raw_input_contents for 1 inputs"),
    ):
        context = driver.ask("ModelInfer", asked)
        assert (context.status, context.details) == (StatusCode.INVALID_ARGUMENT, text)


def test_messages_that_are_none() -> None:
    driver = GrpcDriver(FakeView(echo()), limits=LimitsConfig(json_bytes=1024))
    for data, text in (
        (b"\x3a\x05", "it ends inside a field"),
        (b"\x0a\x01\xff", "the message is no ModelInferRequest"),
        (b"\x0a\xff\x0f" + b"m" * 2047, "limits.json_bytes"),
    ):
        context = driver.ask("ModelInfer", data)
        assert context.status is StatusCode.INVALID_ARGUMENT
        assert text in context.details


def heavy(what: str) -> Any:
    """Return a request of few megabytes of which protobuf or the server would make very many objects."""
    asked = request()
    if what == "parameters of an input":
        for number in range(65):
            asked.inputs[0].parameters[f"{number}"].SetInParent()
    elif what == "parameters of an output":
        one = asked.outputs.add(name="OUT")
        for number in range(65):
            one.parameters[f"{number}"].SetInParent()
    elif what == "parameters":
        for number in range(65):
            asked.parameters[f"{number}"].SetInParent()
    else:
        del asked.raw_input_contents[:]
        contents = asked.inputs[0].contents
        if what == "elements of bytes":
            contents.bytes_contents.extend([b""] * 90_000)
        elif what == "numbers":
            contents.int_contents.extend([1] * 270_000)
        else:
            del asked.inputs[0].shape[:]
            asked.inputs[0].shape.extend([1] * 270_000)
    return asked


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("parameters", "it has more than 64 parameters"),
        ("parameters of an input", "it has more than 64 parameters"),
        ("parameters of an output", "it has more than 64 parameters"),
        ("elements of bytes", "it holds too many elements or fields: send tensors as raw_input_contents"),
        ("numbers", "it holds too many elements or fields: send tensors as raw_input_contents"),
        ("axes", "it holds too many elements or fields: send tensors as raw_input_contents"),
    ],
)
def test_what_takes_long_to_read_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, what: str, text: str
) -> None:
    driver = GrpcDriver(FakeView(echo()))
    driver.ask("ModelInfer", request())
    monkeypatch.setattr("clover.grpc.infer.ModelInferRequest", None)  # protobuf is not asked
    context = driver.ask("ModelInfer", heavy(what))
    assert context.status is StatusCode.INVALID_ARGUMENT
    assert text in context.details


def test_sixty_four_parameters_are_taken_and_the_known_ones_read() -> None:
    model = echo()
    asked = request()
    asked.parameters["timeout"].int64_param = 5000
    for number in range(63):
        asked.parameters[f"{number}"].int64_param = number
    GrpcDriver(FakeView(model)).answer_of(asked)
    assert model.tickets[0].timeout_ns == 5_000_000


@pytest.mark.parametrize("call", ["ModelMetadata", "ModelConfig", "ServerLive", "RepositoryModelLoad"])
def test_a_call_that_is_no_inference_has_a_short_message(call: str) -> None:
    context = GrpcDriver(FakeView(echo())).ask(call, b"\x0a\xff\xff\x03" + b"m" * 65535)
    assert (context.status, context.details) == (
        StatusCode.INVALID_ARGUMENT,
        f"a {call}Request has at most 65536 bytes",
    )


def test_what_a_model_is_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    view = FakeView(echo())
    driver = GrpcDriver(view)
    encoded = []
    real = json_format.ParseDict

    def counted(*given: Any, **named: Any) -> Any:
        encoded.append(given)
        return real(*given, **named)

    monkeypatch.setattr(json_format, "ParseDict", counted)
    for call in ("ModelMetadata", "ModelConfig"):
        asked = message_class(f"{call}Request")(name="echo")
        first = driver.ask(call, asked).answer
        assert driver.ask(call, asked).answer == first
    assert len(encoded) == 2
    view.by_name["echo"] = echo("INT8")  # another model of the same name
    metadata = driver.answer("ModelMetadata", message_class("ModelMetadataRequest")(name="echo"))
    assert metadata.inputs[0].datatype == "INT8"
    driver.service.forget()
    driver.ask("ModelMetadata", message_class("ModelMetadataRequest")(name="echo"))
    assert len(encoded) == 4


def test_a_message_is_not_kept_once_its_rows_are_in_their_slots() -> None:
    model = echo("UINT8", 4 << 20, held=True)

    async def main(streamed: bool) -> int:
        driver = GrpcDriver(FakeView(model))
        made = ModelInferRequest(model_name="echo", raw_input_contents=[bytes(4 << 20)])
        made.inputs.add(name="IN", datatype="UINT8", shape=[1, 4 << 20])
        context = FakeContext(made.SerializeToString(), ended=False)
        del made
        call = asyncio.create_task(driver.run("ModelStreamInfer" if streamed else "ModelInfer", context))
        await until(lambda: bool(model.waiting))
        await asyncio.sleep(0)
        held = tracemalloc.get_traced_memory()[0]
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        model.waiting.clear()
        model.tickets.clear()
        return held

    for streamed in (False, True):
        tracemalloc.start()
        try:
            assert 4 << 20 <= asyncio.run(main(streamed)) < 6 << 20  # the copy that the model has
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("timeout_us", "remaining_s", "kept_ns"), [(0, None, 0), (5000, None, 5_000_000), (0, 2.0, 2_000_000_000)]
)
def test_the_deadline_of_a_call_is_that_of_its_request(
    timeout_us: int, remaining_s: float | None, kept_ns: int
) -> None:
    model = echo()
    asked = request()
    asked.parameters["timeout"].int64_param = timeout_us
    GrpcDriver(FakeView(model)).ask("ModelInfer", asked, remaining_s=remaining_s)
    assert model.tickets[0].timeout_ns == kept_ns


def test_the_shorter_deadline_counts_and_a_spent_one_is_missed() -> None:
    model = echo()
    driver = GrpcDriver(FakeView(model))
    asked = request()
    asked.parameters["timeout"].int64_param = 5_000_000
    for remaining_s, kept_ns in ((1.0, 1_000_000_000), (9.0, 5_000_000_000), (0.0, -1)):
        driver.ask("ModelInfer", asked, remaining_s=remaining_s)
        assert model.tickets[-1].timeout_ns == kept_ns


@pytest.mark.parametrize(("field", "uncached"), [("max-age=0", 1), ("No-Cache", 1), ("no-cache, no-store", 2), ("", 0)])
def test_a_call_may_forbid_a_cached_answer(field: str, uncached: int) -> None:
    model = echo()
    GrpcDriver(FakeView(model)).ask("ModelInfer", request(), metadata=(("cache-control", field),))
    assert getattr(model.tickets[0], "uncached", 0) == uncached


def test_a_crowded_model_refuses_before_the_request_is_read() -> None:
    model = echo()
    model.wait_s = 3.2
    context = GrpcDriver(FakeView(model)).ask("ModelInfer", ModelInferRequest(model_name="echo"))
    assert context.status is StatusCode.RESOURCE_EXHAUSTED
    assert context.ends["retry-after"] == "4"
    assert not model.tickets


def test_an_error_echoes_the_id_and_says_when_to_come_back() -> None:
    model = echo()
    model.submit_refusal = Overloaded("too many rows wait", retry_after_s=0.2)
    context = GrpcDriver(FakeView(model)).ask("ModelInfer", request(), metadata=(("x-request-id", "mine"),))
    assert context.ends == {"x-request-id": "mine", "retry-after": "1"}


def test_a_row_that_a_worker_refused_is_the_clients_fault() -> None:
    model = echo(held=True)

    async def main() -> FakeContext:
        driver = GrpcDriver(FakeView(model))
        context = FakeContext(request().SerializeToString())
        call = asyncio.create_task(driver.run("ModelInfer", context))
        await until(lambda: bool(model.waiting))
        model.run(status=400, error="row 0: no JPEG")
        return await call

    context = asyncio.run(main())
    assert (context.status, context.details) == (StatusCode.INVALID_ARGUMENT, "row 0: no JPEG")


def test_a_deadline_of_ages_is_a_number_that_the_data_plane_takes() -> None:
    model = echo()
    GrpcDriver(FakeView(model)).ask("ModelInfer", request(), remaining_s=3.6e11)
    assert 0 < model.tickets[0].timeout_ns < 1 << 63


def test_a_fault_of_ours_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    def fail(inputs: list[Any]) -> list[Any]:
        raise RuntimeError("secret")

    model = echo(function=fail)
    context = GrpcDriver(FakeView(model)).ask("ModelInfer", request())
    assert (context.status, context.details) == (StatusCode.INTERNAL, "the server failed on this request")
    assert model.open_tickets == 0
    assert "secret" in caplog.text


def test_a_shortage_of_the_machine_is_to_be_tried_again() -> None:
    def short(inputs: list[Any]) -> list[Any]:
        raise MemoryError

    context = GrpcDriver(FakeView(echo(function=short))).ask("ModelInfer", request())
    assert (context.status, context.details) == (
        StatusCode.UNAVAILABLE,
        "the server is short of memory or descriptors",
    )


def test_a_cancelled_call_frees_its_rows() -> None:
    model = echo(held=True)
    driver = GrpcDriver(FakeView(model))

    async def main() -> None:
        call = asyncio.create_task(driver.run("ModelInfer", FakeContext(request().SerializeToString())))
        while not model.waiting:
            await asyncio.sleep(0)
        assert model.open_tickets == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert model.open_tickets == 0
        model.run()  # the data plane is done with it later: nobody waits any more

    asyncio.run(main())
    assert dict(driver.stats.calls) == {"CANCELLED": 1}
    assert driver.stats.open_calls == 0


@pytest.mark.parametrize("status", [200, 503])
def test_slots_come_back_as_soon_as_there_is_an_answer(status: int) -> None:
    """Not when the call has its turn: statistics count the whole of a request, or nothing."""
    model = echo(held=True)

    async def main() -> None:
        driver = GrpcDriver(FakeView(model))
        call = asyncio.create_task(driver.run("ModelInfer", FakeContext(request().SerializeToString())))
        await until(lambda: bool(model.waiting))
        model.run(status=status, error="why")
        assert model.open_tickets == 0
        call.cancel()  # too late for the data plane, and in time for nobody else
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(main())
    assert model.open_tickets == 0


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_a_message_that_does_not_come_ends_the_call() -> None:
    driver = GrpcDriver(FakeView(echo()), limits=LimitsConfig(body_s=0.001))
    context = asyncio.run(driver.run("ModelInfer", FakeContext(ended=False)))
    assert context.status is StatusCode.DEADLINE_EXCEEDED
    assert "limits.body_s" in context.details
    assert asyncio.run(driver.run("ModelInfer", FakeContext())).details == "the call has no message"


def test_one_call_too_many_is_refused_unread() -> None:
    model = echo(held=True)
    driver = GrpcDriver(FakeView(model), limits=LimitsConfig(connections=1))

    async def main() -> None:
        first = asyncio.create_task(driver.run("ModelInfer", FakeContext(request().SerializeToString())))
        while not model.waiting:
            await asyncio.sleep(0)
        for method in ("ModelInfer", "ModelStreamInfer", "grpc.health.v1.Health/Check"):
            second = await driver.run(method, FakeContext(b""))
            assert second.status is StatusCode.RESOURCE_EXHAUSTED
            assert second.ends["retry-after"] == "1"
            assert second.reads == 0
        model.run()
        assert (await first).status is StatusCode.OK

    asyncio.run(main())
    assert driver.stats.calls["RESOURCE_EXHAUSTED"] == 3


# --- streams ----------------------------------------------------------------------------------------------------------


def streamed(driver: GrpcDriver, context: FakeContext, scene: Callable[[], Coroutine[Any, Any, None]]) -> list[Any]:
    """Run a stream and, beside it, a scene; return the answers."""

    async def main() -> None:
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as group:  # a stream that should end and does not
            group.create_task(driver.run("ModelStreamInfer", context))
            group.create_task(scene())

    asyncio.run(main())
    return [StreamAnswer.FromString(one) for one in context.written]


async def nothing() -> None:
    pass


def test_a_stream_is_answered_in_order_whatever_is_done_first() -> None:
    model = echo(held=True)
    context = FakeContext(*(request([[one, one]], id=str(one)).SerializeToString() for one in range(3)))

    async def scene() -> None:
        await until(lambda: len(model.waiting) == 3)
        for index in (2, 0, 0):
            model.run(index)
            await asyncio.sleep(0)

    answers = streamed(GrpcDriver(FakeView(model)), context, scene)
    assert [one.infer_response.id for one in answers] == ["0", "1", "2"]
    assert [numbers(one.infer_response)[0] for one in answers] == [0.0, 1.0, 2.0]
    parameters = answers[0].infer_response.parameters
    assert parameters["clover-receipt"].string_param.startswith('variant="small"')
    assert parameters["triton_final_response"].bool_param
    assert context.status is StatusCode.OK


def test_an_error_in_a_stream_is_an_answer() -> None:
    good, unknown = request(id="a"), request(id="b")
    unknown.model_name = "nope"
    driver = GrpcDriver(FakeView(echo()))
    context = FakeContext(unknown.SerializeToString(), b"\x3a\x05", good.SerializeToString())
    answers = streamed(driver, context, nothing)
    assert "unknown model" in answers[0].error_message
    assert answers[0].infer_response.id == "b"
    assert "no ModelInferRequest" in answers[1].error_message
    assert (answers[2].error_message, answers[2].infer_response.id) == ("", "a")
    assert dict(driver.stats.calls) == {"OK": 2, "NOT_FOUND": 1, "INVALID_ARGUMENT": 1}


def test_a_shortage_in_a_stream_is_to_be_tried_again() -> None:
    def short(inputs: list[Any]) -> list[Any]:
        raise MemoryError

    driver = GrpcDriver(FakeView(echo(function=short)))
    (answer,) = streamed(driver, FakeContext(request(id="a").SerializeToString()), nothing)
    assert "the server is short of memory or descriptors" in answer.error_message
    assert dict(driver.stats.calls) == {"OK": 1, "UNAVAILABLE": 1}


def test_a_stream_is_read_no_further_than_a_connection_may_pipeline() -> None:
    model = echo(held=True)
    driver = GrpcDriver(FakeView(model), limits=LimitsConfig(pipelined=2))
    context = FakeContext(*[request().SerializeToString()] * 5)

    async def scene() -> None:
        await until(lambda: len(model.waiting) == 2)
        for _ in range(10):
            await asyncio.sleep(0)
        assert context.reads == 2
        for _ in range(5):
            await until(lambda: bool(model.waiting))
            assert len(model.waiting) <= 2
            model.run()

    assert len(streamed(driver, context, scene)) == 5


def test_a_stream_whose_client_has_gone_is_cancelled_and_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    class Gone(FakeContext):
        async def write(self, message: bytes) -> None:
            raise grpc.aio.InternalError("execute_batch")

    async def main() -> None:
        driver = GrpcDriver(FakeView(echo()))
        with pytest.raises(grpc.aio.InternalError):
            await driver.run("ModelStreamInfer", Gone(request().SerializeToString()))
        assert driver.stats.calls["CANCELLED"] == 1

    asyncio.run(main())
    assert not caplog.records


def test_a_drain_ends_a_stream_once_what_it_sent_is_answered() -> None:
    model = echo(held=True)
    driver = GrpcDriver(FakeView(model))
    context = FakeContext(request().SerializeToString(), ended=False)

    async def scene() -> None:
        await until(lambda: bool(model.waiting) and context.reads == 2)
        driver.service.end_streams()
        for _ in range(3):
            await asyncio.sleep(0)
        model.run()

    assert len(streamed(driver, context, scene)) == 1
    assert context.status is StatusCode.UNAVAILABLE
    late = FakeContext(ended=False)
    assert streamed(driver, late, nothing) == []
    assert late.status is StatusCode.UNAVAILABLE


def test_a_stream_whose_client_goes_frees_its_rows() -> None:
    model = echo(held=True)
    driver = GrpcDriver(FakeView(model))

    async def main() -> None:
        context = FakeContext(*[request().SerializeToString()] * 3, ended=False)
        call = asyncio.create_task(driver.run("ModelStreamInfer", context))
        await until(lambda: len(model.waiting) == 3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    assert model.open_tickets == 0
    assert driver.stats.open_calls == 0


# --- what there is, and the repository --------------------------------------------------------------------------------


def test_what_there_is() -> None:
    model = echo()
    view = FakeView(model)
    driver = GrpcDriver(view)
    assert driver.answer("ServerLive").live
    assert driver.answer("ServerReady").ready
    assert "statistics" in driver.answer("ServerMetadata").extensions
    kinds = {name: message_class(f"{name}Request") for name in ("ModelReady", "ModelMetadata", "ModelConfig")}
    assert driver.answer("ModelReady", kinds["ModelReady"](name="echo", version="1")).ready
    assert not driver.answer("ModelReady", kinds["ModelReady"](name="echo", version="2")).ready
    assert not driver.answer("ModelReady", kinds["ModelReady"](name="nope")).ready
    found = driver.answer("ModelMetadata", kinds["ModelMetadata"](name="echo"))
    assert list(found.inputs[0].shape) == [-1, 2]
    assert driver.ask("ModelMetadata", kinds["ModelMetadata"](name="nope")).status is StatusCode.NOT_FOUND
    config = driver.answer("ModelConfig", kinds["ModelConfig"](name="echo")).config
    assert (config.input[0].data_type, list(config.output[0].dims)) == (11, [2])
    assert driver.answer("ModelStatistics").model_stats[0].name == "echo"
    row = driver.answer("RepositoryIndex").models[0]
    assert (row.name, row.version, row.state) == ("echo", "1", "READY")
    model.ready = False
    index = message_class("RepositoryIndexRequest")
    assert not driver.answer("RepositoryIndex", index(ready=True)).models
    assert driver.ask("ServerLive", b"\xff").status is StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "name", ["TraceSetting", "LogSettings", "SystemSharedMemoryStatus", "CudaSharedMemoryRegister"]
)
def test_what_tritons_clients_may_ask_for_and_there_is_not(name: str) -> None:
    context = GrpcDriver(FakeView(echo())).ask(name)
    assert context.status is StatusCode.UNIMPLEMENTED
    assert len(context.details) > 40


def test_load_and_unload() -> None:
    view = FakeView(echo())
    driver = GrpcDriver(view)
    load = message_class("RepositoryModelLoadRequest")(model_name="echo")
    load.parameters["config"].string_param = "{}"
    driver.answer("RepositoryModelLoad", load)
    driver.answer("RepositoryModelUnload", message_class("RepositoryModelUnloadRequest")(model_name="echo"))
    assert view.loads == [("echo", "{}"), ("echo", "unload")]
    load.parameters["file:1/model.onnx"].bytes_param = b""
    assert "not taken over the network" in driver.ask("RepositoryModelLoad", load).details
    unknown = driver.ask("RepositoryModelLoad", message_class("RepositoryModelLoadRequest")(model_name="nope"))
    assert unknown.details == "Request for unknown model: failed to load: no model of that name is known"
    for error, status in (
        (Unavailable("no"), StatusCode.UNAVAILABLE),
        (PlanError("no"), StatusCode.FAILED_PRECONDITION),
        (WorkerError("no"), StatusCode.UNAVAILABLE),
        (RuntimeError("no"), StatusCode.INTERNAL),
    ):
        view.load_error = error
        unload = message_class("RepositoryModelUnloadRequest")(model_name="echo")
        assert driver.ask("RepositoryModelUnload", unload).status is status


# --- who may call -----------------------------------------------------------------------------------------------------

TENANTS = Tenants(
    (
        TenantConfig(name="acme", token="t-acme", timeout_ms=20.0),
        TenantConfig(name="boss", token="t-boss", may_control=True),
    )
)
REMOTE = "ipv4:10.0.0.7:4000"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def test_an_open_bind_needs_the_token_for_everything() -> None:
    driver = GrpcDriver(FakeView(echo()), listen=ListenConfig(host="0.0.0.0", token="operator"))
    for method in (
        "ServerLive",
        "ModelInfer",
        "grpc.health.v1.Health/Check",
        "grpc.reflection.v1alpha.ServerReflection/X",
    ):
        for metadata in ((), bearer("guess"), (*bearer("operator"), *bearer("operator"))):
            context = driver.ask(method, metadata=metadata)
            assert context.status is StatusCode.UNAUTHENTICATED
            assert context.reads == 0
    assert driver.ask("ServerLive", metadata=bearer("operator")).status is StatusCode.OK


def test_changes_are_the_operators() -> None:
    load = message_class("RepositoryModelLoadRequest")(model_name="echo")
    for listen, metadata, peer, status in (
        (ListenConfig(), (), "ipv4:127.0.0.1:1", StatusCode.OK),
        (ListenConfig(), (), "ipv6:%5B::1%5D:1", StatusCode.OK),
        (ListenConfig(), (), REMOTE, StatusCode.PERMISSION_DENIED),
        (ListenConfig(token="operator"), (), "ipv4:127.0.0.1:1", StatusCode.UNAUTHENTICATED),
        (ListenConfig(token="operator"), bearer("operator"), REMOTE, StatusCode.OK),
        (
            ListenConfig(control="unix:/run/x", token="operator"),
            bearer("operator"),
            REMOTE,
            StatusCode.PERMISSION_DENIED,
        ),
    ):
        driver = GrpcDriver(FakeView(echo()), listen=listen)
        assert driver.ask("RepositoryModelLoad", load, metadata=metadata, peer=peer).status is status
    for token, status in (("t-acme", StatusCode.PERMISSION_DENIED), ("t-boss", StatusCode.OK)):
        driver = GrpcDriver(FakeView(echo()), tenants=TENANTS)
        assert driver.ask("RepositoryModelLoad", load, metadata=bearer(token), peer=REMOTE).status is status


def test_a_tenant_is_known_by_its_token_and_has_its_defaults() -> None:
    model = echo()
    driver = GrpcDriver(FakeView(model), tenants=TENANTS)
    assert driver.ask("ModelInfer", request(), metadata=bearer("t-acme")).status is StatusCode.OK
    assert model.senders[-1].name == "acme"
    assert (model.tickets[-1].client, model.tickets[-1].timeout_ns) == ("tenant acme", 20_000_000)
    assert driver.ask("ModelStatistics", metadata=bearer("t-acme")).status is StatusCode.PERMISSION_DENIED
    assert driver.ask("ModelStatistics", metadata=bearer("t-boss")).status is StatusCode.OK
    for odd in (bearer("nobody"), bearer(""), (*bearer("t-acme"), *bearer("t-acme")), (("authorization", "t-acme"),)):
        assert driver.ask("ServerLive", metadata=odd).status is StatusCode.UNAUTHENTICATED


def test_tokens_are_looked_up_anew_when_the_tenants_change() -> None:
    tenants = Tenants((TenantConfig(name="acme", token="t-acme"),))
    driver = GrpcDriver(FakeView(echo()), tenants=tenants)
    assert driver.ask("ServerLive", metadata=bearer("t-acme")).status is StatusCode.OK
    tenants.use((TenantConfig(name="other", token="t-other"),))
    driver.callers.forget()
    assert driver.ask("ServerLive", metadata=bearer("t-acme")).status is StatusCode.UNAUTHENTICATED


def test_a_token_that_is_taken_back_ends_the_streams_that_it_opened() -> None:
    model = echo(held=True)
    tenants = Tenants((TenantConfig(name="acme", token="t-acme"), TenantConfig(name="other", token="t-other")))
    driver = GrpcDriver(FakeView(model), tenants=tenants)
    context = FakeContext(request().SerializeToString(), metadata=bearer("t-acme"), ended=False)
    stays = FakeContext(request().SerializeToString(), metadata=bearer("t-other"))
    read, more = context.read, asyncio.Event()

    async def reads() -> Any:
        if context.reads:
            await more.wait()
            context.messages.append(request().SerializeToString())
        return await read()

    context.read = reads  # type: ignore[method-assign]

    async def scene() -> None:
        await until(lambda: bool(model.waiting))
        tenants.use((TenantConfig(name="other", token="t-other"),))
        driver.callers.forget()
        more.set()
        await until(lambda: context.reads == 2)
        model.run()  # what was received before is answered
        await asyncio.sleep(0)
        other = asyncio.create_task(driver.run("ModelStreamInfer", stays))
        await until(lambda: bool(model.waiting))
        model.run()
        await other

    assert len(streamed(driver, context, scene)) == 1
    assert context.status is StatusCode.UNAUTHENTICATED
    assert stays.status is StatusCode.OK


@pytest.mark.parametrize(
    ("peer", "client", "loopback"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1", True),
        ("ipv4:10.0.0.7:5000", "10.0.0.7", False),
        ("ipv6:%5B::1%5D:5000", "::", True),
        ("ipv6:[2001:db8:1:2:3::4]:5000", "2001:db8:1:2::", False),
        ("unix:", "", False),
    ],
)
def test_peers(peer: str, client: str, loopback: bool) -> None:
    caller = GrpcCaller(peer, None, None, "")
    assert (caller.client, caller.loopback) == (client, loopback)
    assert caller.flow >= 1 << 39
    assert caller.flow != GrpcCaller(peer + "1", None, None, "").flow


# --- two versions of a model ------------------------------------------------------------------------------------------


def test_answers_name_the_version_that_gave_them() -> None:
    stable, new = (echo(), echo())
    new.spec = msgspec.structs.replace(new.spec, version="2")
    view = FakeView(stable)
    driver = GrpcDriver(view)

    def asked(**how: Any) -> tuple[str, str]:
        answer = driver.answer_of(request(**how))
        return answer.model_name, answer.model_version

    assert asked() == asked(model_version="1") == ("echo", "1")
    assert driver.ask("ModelInfer", request(model_version="2")).status is StatusCode.NOT_FOUND
    view.by_name.update({"echo": TwoVersions(stable, new), "echo@1": stable, "echo@2": new})
    driver.service.forget()
    assert [asked()[1] for _ in range(4)] == ["1", "2", "1", "2"]
    assert [asked(model_version=version) for version in "2121"] == [("echo", version) for version in "2121"]
    assert driver.ask("ModelInfer", request(model_version="3")).status is StatusCode.NOT_FOUND
    frames = FakeContext(*(request(model_version=version).SerializeToString() for version in ("", "2", "")))
    asyncio.run(driver.run("ModelStreamInfer", frames))
    answers = [StreamAnswer.FromString(one).infer_response for one in frames.written]
    assert [one.model_version for one in answers] == ["1", "2", "2"]
    assert 'version="2"' in answers[2].parameters["clover-receipt"].string_param
    found = driver.answer("ModelMetadata", message_class("ModelMetadataRequest")(name="echo"))
    assert (found.name, list(found.versions)) == ("echo", ["1", "2"])
    index = driver.answer("RepositoryIndex").models
    assert [(row.name, row.version) for row in index] == [("echo", "1"), ("echo", "2")]
    view.by_name = {"echo": stable}  # the same model serves the new version now
    stable.spec = new.spec
    driver.service.forget()
    assert asked() == asked(model_version="2") == ("echo", "2")
    assert driver.ask("ModelInfer", request(model_version="1")).status is StatusCode.NOT_FOUND
    assert stable.open_tickets == new.open_tickets == 0
