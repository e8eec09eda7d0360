"""The calls of the Open Inference Protocol and of Triton's extensions, on the event loop of the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format

from clover._version import __version__
from clover.errors import (
    BadRequest,
    CloverError,
    Conflict,
    NotFound,
    Overloaded,
    PlanError,
    RequestError,
    Unavailable,
    shortage,
)
from clover.grpc import infer, wire
from clover.grpc.asking import GrpcInference
from clover.grpc.calls import (
    FAILED,
    CallHandlers,
    CallRefused,
    GrpcCaller,
    Unimplemented,
    Work,
    client_text,
    code_of,
    parse_message,
    who,
)
from clover.grpc.messages import SERVICE, ModelInferResponse, message_class
from clover.http.api import metadata, named
from clover.http.inference import InferEndpoint
from clover.http.server_state import RequestIds
from clover.interfaces import Model, ServerView, SplitModel

log = logging.getLogger("clover.grpc")

INFER_PATH = "/v2/models/any/infer"
"""The path of an inference over HTTP, by which it is decided who may ask."""

_StreamAnswer = message_class("ModelStreamInferResponse")
_STREAMED = _StreamAnswer.DESCRIPTOR.fields_by_name["infer_response"].number

_NAME_CHARACTERS = 128
_SHARED_MEMORY = "shared memory regions are not supported: send tensors as raw_input_contents"
_LACKING = {
    **{
        f"{kind}SharedMemory{verb}": _SHARED_MEMORY
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "there are no trace settings: Clover sends OpenTelemetry spans, if `otel.endpoint` is configured",
    "LogSettings": "the log is configured where the server is started (`log.level`), not by clients",
}
"""Triton's calls that Clover does not have, each with the reason."""


class OipService:
    """The service `inference.GRPCInferenceService` for what `view` serves."""

    def __init__(self, view: ServerView, calls: CallHandlers, ids: RequestIds) -> None:
        self._view = view
        self._calls = calls
        self._limits = calls.limits
        self._callers = calls.callers
        self._stats = calls.stats
        self._ids = ids
        self._endpoints: dict[str, InferEndpoint] = {}
        self._descriptions: dict[tuple[str, str, str], tuple[Model, bytes]] = {}
        """Encoded answers by call, name and version, each with the model that it describes."""
        self._readers: set[asyncio.Task[None]] = set()
        self._changes: set[asyncio.Task[None]] = set()
        self._closing = False

    def handler(self) -> Any:
        """Return the handler of all calls of the service."""
        described: dict[str, Callable[[Any, GrpcCaller], Any]] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._metadata,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
        }
        works: dict[str, Work] = {
            **{
                name: partial(self._describe, message_class(f"{name}Request"), work) for name, work in described.items()
            },
            **{name: partial(_refuse, why) for name, why in _LACKING.items()},
            "ModelMetadata": partial(self._describe_model, "ModelMetadata", _metadata_of),
            "ModelConfig": partial(self._describe_model, "ModelConfig", _config_message_of),
            "ModelInfer": self._infer,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {name: self._calls.unary(work) for name, work in works.items()}
        handlers["ModelStreamInfer"] = self._calls.stream(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def end_streams(self) -> None:
        """Read nothing more from streams: each ends once what it sent is answered."""
        self._closing = True
        for reading in list(self._readers):
            reading.cancel()

    async def cancel(self) -> None:
        """Cancel the changes that still run, and wait for their end."""
        tasks = list(self._changes)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self) -> None:
        """Look up anew which model each name leads to: those that are gone hold their memory until then."""
        self._endpoints.clear()
        self._descriptions.clear()

    # --- inference ----------------------------------------------------------------------------------------------------

    async def _infer(self, message: bytes, context: Any) -> bytes:
        caller = self._callers.caller(context)
        if caller.request_id:
            context.set_trailing_metadata((("x-request-id", caller.request_id),))  # an error has it as well
        inference = self._decode_request(infer.parse(message, self._limits.json_bytes), caller)
        del message  # its tensors are copied, and it may be large
        answer, about = await inference.run(context.time_remaining())
        context.set_trailing_metadata(about)
        return answer

    def _decode_request(self, call: infer.Call, caller: GrpcCaller, streamed: bool = False) -> GrpcInference:
        """Return the inference that a request asks for; raises RequestError."""
        given = call[0]
        endpoint = self._endpoint(given.model_name, given.model_version)
        wait_s = endpoint.model.retry_in_s(caller.flow, caller.request, caller.tenant)
        if wait_s > 0.0:
            raise Overloaded("too many rows wait for this model", retry_after_s=wait_s)
        request = infer.decode(endpoint.signature, call)
        return GrpcInference(endpoint, request, caller, self._ids, streamed)

    def _endpoint(self, name: str, version: str) -> InferEndpoint:
        """Return the endpoint of the family that has the name now; raises NotFound."""
        key, model = named.find_model(self._view.models(), name, version or None)
        endpoint = self._endpoints.get(key)
        if endpoint is None or endpoint.model is not model:
            endpoint = self._endpoints[key] = named.endpoint_of(key, model, self._limits)
        return endpoint

    def _model(self, name: str, version: str) -> Model:
        return named.find_model(self._view.models(), name, version or None)[1]

    # --- streams ------------------------------------------------------------------------------------------------------

    async def _stream(self, context: Any) -> None:
        """Answer the requests of a stream in their order; as many at once as a connection may pipeline."""
        caller, changes = self._callers.caller(context), self._callers.changes
        refused: RequestError | None = None
        room = asyncio.Semaphore(self._limits.pipelined)
        due: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        tasks: set[asyncio.Task[bytes]] = set()

        async def read() -> None:
            nonlocal caller, changes, refused
            await room.acquire()
            while True:
                try:
                    message = await self._calls.arriving.receive(context, None)
                except Overloaded as error:
                    refused = error
                    return
                if message is grpc.aio.EOF:
                    return
                if changes != self._callers.changes:
                    if (refusal := self._callers.refusal(context.invocation_metadata() or (), INFER_PATH)) is not None:
                        refused = CallRefused(*refusal[:2])
                        return
                    caller, changes = self._callers.caller(context), self._callers.changes
                task = asyncio.create_task(self._encode_streamed(message, caller, context.time_remaining()))
                del message  # which the task lets go of as soon as it can
                tasks.add(task)
                due.put_nowait(task)
                await room.acquire()

        reading = asyncio.create_task(read())
        reading.add_done_callback(lambda _: due.put_nowait(None))  # also if it is cancelled before it begins
        self._readers.add(reading)
        try:
            if self._closing:
                reading.cancel()
            while (task := await due.get()) is not None:
                await context.write(await task)
                tasks.discard(task)
                room.release()
        finally:
            self._readers.discard(reading)
            for one in (reading, *tasks):
                one.cancel()
            await asyncio.gather(reading, *tasks, return_exceptions=True)
        if refused is not None:
            raise refused
        if self._closing:
            raise Unavailable("the server is shutting down")

    async def _encode_streamed(self, message: bytes, caller: GrpcCaller, remaining_s: float | None) -> bytes:
        """Return one answer of a stream, in which an error is an answer too."""
        given = ""
        await self._calls.turns.take(len(message))
        try:
            call = infer.parse(message, self._limits.json_bytes)
            given = call[0].id
            inference = self._decode_request(call, caller, streamed=True)
            del message, call  # as in `_infer`
            answer, _ = await inference.run(remaining_s)
        except RequestError as error:
            failed = error
        except Exception as error:
            log.exception("a request of a stream failed")
            failed = shortage(error) or RequestError(FAILED)
        else:
            self._stats.record_answer("OK")
            return wire.with_fields(b"", _STREAMED, (answer,))
        self._stats.record_answer(code_of(failed).name)
        return bytes(
            _StreamAnswer(
                error_message=client_text(failed), infer_response=ModelInferResponse(id=given)
            ).SerializeToString()
        )

    # --- what there is ------------------------------------------------------------------------------------------------

    async def _describe(self, kind: Any, work: Callable[[Any, GrpcCaller], Any], message: bytes, context: Any) -> bytes:
        return bytes(work(parse_message(kind, message), self._callers.caller(context)).SerializeToString())

    async def _describe_model(
        self, call: str, describe: Callable[[str, Model], dict[str, Any]], message: bytes, context: Any
    ) -> bytes:
        """Return the answer to a call that asks what a model is; it is made once a model."""
        request = parse_message(message_class(f"{call}Request"), message)
        model = self._model(request.name, request.version)
        key = call, request.name, request.version
        kept = self._descriptions.get(key)
        if kept is None or kept[0] is not model:
            # Labels of outputs, and steps, have no place in the message.
            answer = json_format.ParseDict(
                describe(request.name, model), message_class(f"{call}Response")(), ignore_unknown_fields=True
            )
            kept = self._descriptions[key] = model, answer.SerializeToString()
        return kept[1]

    def _live(self, request: Any, caller: GrpcCaller) -> Any:
        return message_class("ServerLiveResponse")(live=self._view.live())

    def _ready(self, request: Any, caller: GrpcCaller) -> Any:
        return message_class("ServerReadyResponse")(ready=self._view.ready())

    def _model_ready(self, request: Any, caller: GrpcCaller) -> Any:
        try:
            ready = bool(self._model(request.name, request.version).ready)
        except NotFound:
            ready = False  # as Triton answers
        return message_class("ModelReadyResponse")(ready=ready)

    def _metadata(self, request: Any, caller: GrpcCaller) -> Any:
        return message_class("ServerMetadataResponse")(**metadata.server_metadata(__version__))

    def _statistics(self, request: Any, caller: GrpcCaller) -> Any:
        if request.name:
            models = [(request.name, self._model(request.name, request.version))]
        else:
            models = named.list_versions(self._view.models())
        statistics = {"model_stats": [{**model.stats(), "name": name} for name, model in models]}
        return json_format.ParseDict(statistics, message_class("ModelStatisticsResponse")(), ignore_unknown_fields=True)

    def _index(self, request: Any, caller: GrpcCaller) -> Any:
        answer = message_class("RepositoryIndexResponse")()
        for key, model in self._view.models().items():
            if isinstance(model, SplitModel):
                continue  # its versions are listed each for itself
            state, reason = self._view.state_of(key)
            if state == "READY" or not request.ready:
                answer.models.add(name=named.client_name(key), version=model.spec.version, state=state, reason=reason)
        return answer

    # --- repository ---------------------------------------------------------------------------------------------------

    async def _load(self, given: bytes, context: Any) -> bytes:
        request = parse_message(message_class("RepositoryModelLoadRequest"), given)
        name = request.model_name
        await self._change(context, "load", name, lambda: self._view.load(name, _config_of(request)))
        return b""

    async def _unload(self, given: bytes, context: Any) -> bytes:
        request = parse_message(message_class("RepositoryModelUnloadRequest"), given)
        name = request.model_name
        await self._change(context, "unload", name, lambda: self._view.unload(name))
        return b""

    async def _change(self, context: Any, call: str, name: str, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Make a change if the caller of `context` may, and note it in the audit log in any case; raises
        RequestError."""
        caller, audit = self._callers.caller(context), self._callers.audit
        bearer, shown_name = who(caller.grant, caller.tenant), name[:_NAME_CHARACTERS]
        status, text = 500, "it was cut off"
        try:
            bearer = self._callers.access.changer(caller.grant, caller.tenant, caller.loopback)
            await self._await(begin(), f"failed to {call}: ")
            status, text = 200, ""
        except RequestError as error:
            status, text = error.status, client_text(error)
            raise
        finally:
            audit.record(bearer, "grpc", call, model=shown_name, status=status, error=text)

    async def _await(self, change: Coroutine[Any, Any, None], failed: str) -> None:
        """Wait for a change, which a client that goes does not end; raises RequestError, without what is not for
        clients."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        try:
            await asyncio.shield(task)
        except NotFound:
            raise NotFound(f"Request for unknown model: {failed}no model of that name is known") from None
        except RequestError as error:
            raise type(error)(failed + client_text(error), retry_after_s=error.retry_after_s) from None
        except PlanError as error:
            log.warning("a change was refused: %s", error)
            raise Conflict(f"{failed}no plan satisfies this, or it was rolled back; see the decisions") from None
        except CloverError as error:
            log.warning("a change failed: %s", error)
            raise Unavailable(f"{failed}the workers could not be changed; see the log") from None


def _metadata_of(name: str, model: Model) -> dict[str, Any]:
    return metadata.model_metadata(name, model.spec, metadata.versions(model))


def _config_message_of(name: str, model: Model) -> dict[str, Any]:
    return {"config": metadata.model_config(name, model.spec)}


def _config_of(request: Any) -> str:
    """Return the configuration that a request to load a model gives; empty without one.  Raises BadRequest."""
    config = ""
    for name, value in request.parameters.items():
        if name.startswith("file:"):
            raise BadRequest("failed to load: files are not taken over the network")
        if name == "config":
            if value.WhichOneof("parameter_choice") != "string_param":
                raise BadRequest("failed to load: parameter config is not a string of JSON")
            config = value.string_param
    return config


async def _refuse(why: str, message: bytes, context: Any) -> bytes:
    raise Unimplemented(why)
