"""The table of all paths with their handlers, and the handlers of every path but inference.

Whether the caller may ask comes first, then the path (404), then its method (405 with Allow).  Handlers answer at
once, but for three kinds of request.  Loading, unloading and the controller's commands take a Task.  Large documents
(`_documents`) are made one a turn of the event loop.  A compressed body is decompressed piece by piece, the long ones
one after the other.  A connection reads no further request until these are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import msgspec
import orjson

from clover._version import __version__
from clover.config import ServerConfig
from clover.errors import BadRequest, NotFound, RequestError
from clover.http.access import Access, changes
from clover.http.api import metadata, named, openapi
from clover.http.api.control_calls import COMMANDS, DOCUMENT_BYTES, ControlCalls, limit_of, object_of
from clover.http.api.embeddings import MODELS_PATH, PATH, EmbeddingRoutes
from clover.http.audit import AuditLog
from clover.http.batches import BatchRoutes
from clover.http.content_encoding import Inflation
from clover.http.exchange import Exchange
from clover.http.heads import Head
from clover.http.inference import InferEndpoint
from clover.http.oip.request import JSON_BOUND
from clover.http.oip.tensors import Body
from clover.http.server_state import TURN_BYTES, ServerState
from clover.interfaces import Model, ServerView, SplitModel
from clover.waiting.store import BatchStore

log = logging.getLogger("clover.http")

Handler = Callable[[Exchange, Body, str], None]
Methods = dict[str, Handler]

_METRICS = b"text/plain; version=0.0.4; charset=utf-8"

_FEEDBACK_BYTES = 1 << 18
"""Most bytes of feedback, which is parsed straight to its types: room for ten thousand names of classes."""
_EMBEDDINGS_BOUND = ("the JSON of an embeddings request", " (limits.json_bytes): send fewer texts")
_NO_INFERENCE = ("a body that is no inference", "")


class FeedbackBody(msgspec.Struct, forbid_unknown_fields=True):
    """The labels of an answer.  The decoder checks as it parses, so that no objects are made of a wrong body."""

    id: Annotated[str, msgspec.Meta(min_length=1)]
    labels: Annotated[list[int | float | str | None], msgspec.Meta(min_length=1)]


_FEEDBACK = msgspec.json.Decoder(FeedbackBody)


class Routes:
    """The `Application` behind the connections of one socket.  `mounted`: further paths, of what is built above."""

    def __init__(
        self,
        view: ServerView,
        config: ServerConfig,
        loop: asyncio.AbstractEventLoop,
        access: Access,
        mounted: Mapping[str, Methods] | None = None,
        audit: AuditLog | None = None,
        batches: BatchStore | None = None,
    ) -> None:
        self._view = view
        self._limits = config.limits
        self._loop = loop
        self._access = access
        self.calls = ControlCalls(view, loop, access, audit if audit is not None else AuditLog())
        self._inflating: deque[tuple[ServerState, Exchange, Inflation]] = deque()
        self._endpoints: dict[str, InferEndpoint] = {}
        self._described: dict[str, tuple[Model, bytes, bytes]] = {}
        about = metadata.server_metadata(__version__) | {"openapi": "/openapi.json"}
        self._server = orjson.dumps(about)
        del about["extensions"]
        self._index = orjson.dumps({**about, "protocol": "/v2", "metrics": "/metrics"})
        server: Methods = {"GET": self._metadata}
        self._paths: dict[str, Methods] = {
            "/": {"GET": lambda exchange, body, name: exchange.finish(200, [self._index])},
            "/v2": server,
            "/v2/": server,
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
            "/v2/models/stats": {"GET": self._all_statistics},
            "/v2/repository/index": {"POST": self._repository_index},
            "/v2/clover/state": {"GET": self._state},
            "/v2/clover/decisions": {"GET": self._decisions},
            "/v2/clover/audit": {"GET": self.calls.list_calls},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._openapi},
        }
        for verb in COMMANDS:
            self._paths[f"/v2/clover/{verb}"] = {"POST": self.calls.command}
        embeddings = EmbeddingRoutes(view.models, config.limits)
        self._paths[PATH] = {"POST": embeddings.embed}
        self.batches = BatchRoutes(batches, config.limits, loop, access)
        self._paths[MODELS_PATH] = {"GET": embeddings.list_models}
        self._embedding_model: Methods = {"GET": embeddings.show_model}
        self._paths.update(mounted or {})
        self._model_paths: dict[str, Methods] = {
            "": {"GET": self._model_metadata},
            "ready": {"GET": self._model_ready},
            "config": {"GET": self._model_config},
            "stats": {"GET": self._model_statistics},
            "infer": {"POST": self._infer},
            "feedback": {"POST": self._feedback},
        }
        self._documents = {
            self._all_statistics,
            self.calls.list_calls,
            self._decisions,
            self._metrics,
            self._model_statistics,
            self._openapi,
            self._state,
        }
        self._repository_paths: dict[str, Methods] = {
            "load": {"POST": self.calls.load},
            "unload": {"POST": self.calls.unload},
        }

    # --- application --------------------------------------------------------------------------------------------------

    def judge(self, head: Head) -> None:
        """Judge a newly parsed head: may it come in by this socket, how large may its body be, and which endpoint is it
        for?

        Called once per distinct head, before its body has come: a body that is too large is refused unread.
        """
        self._access.judge(head)
        if head.refusal is not None and head.method == "POST" and changes(head.path):
            self.calls.record_refusal(head)
        self._bound(head)
        self.batches.judge(head)
        if head.refusal is None and head.method == "POST" and head.path.endswith("/infer"):
            with contextlib.suppress(NotFound):
                methods, name = self._find(head.path)
                if methods.get("POST") == self._infer:
                    head.route = self._infer, name
                    self._endpoint(head, name)

    def _bound(self, head: Head) -> None:
        limits = self._limits
        if head.path == PATH:
            head.most_bytes, head.bound = min(limits.json_bytes, limits.body_bytes), _EMBEDDINGS_BOUND
        elif not head.path.endswith("/infer"):
            most = _FEEDBACK_BYTES if head.path.endswith("/feedback") else DOCUMENT_BYTES
            head.most_bytes, head.bound = min(most, limits.body_bytes), _NO_INFERENCE
        elif head.json_length < 0 and limits.json_bytes < limits.body_bytes:
            head.most_bytes, head.bound = limits.json_bytes, JSON_BOUND
        if head.refusal is None and head.length > head.most_bytes:
            head.refusal = (413, head.too_large(), b"")

    def forget(self) -> None:
        """Look up anew which model each name leads to, and what there is to say of it: also a model that is the same
        may be another version."""
        self._endpoints.clear()
        self._described.clear()

    def settle(self) -> None:
        """End the holding of requests where there is no overload any more."""
        for endpoint in self._endpoints.values():
            endpoint.settle()

    def dispatch(self, exchange: Exchange, body: Body) -> None:
        """Answer a complete request, now or later; never raises."""
        try:
            self._dispatch(exchange, body)
        except Exception as error:
            _failed(exchange, error)

    def _dispatch(self, exchange: Exchange, body: Body) -> None:
        head = exchange.head
        if head.route is None:
            methods, name = self._find(head.path)
            handler = methods.get(head.method)
            if handler is None:
                if head.method != "HEAD" or "GET" not in methods:
                    allow = ", ".join("GET, HEAD" if method == "GET" else method for method in methods)
                    exchange.fail(405, "this path does not take that method", b"Allow: %b\r\n" % allow.encode())
                    return
                handler = methods["GET"]
            head.route = handler, name
        if not head.coding:
            self._handle(exchange, body)
            return
        inflation = Inflation(head.coding, bytes(body), head.most_bytes, head.too_large())
        done = inflation.step()
        connection = exchange.connection
        assert connection is not None
        state = connection.state
        state.turn_bytes += len(inflation.plain)
        if done:
            self._handle(exchange, inflation.plain)
            return
        self._inflating.append((state, exchange, inflation))
        if len(self._inflating) == 1:
            state.postpone(self._inflate, TURN_BYTES)

    def _inflate(self) -> None:
        """Decompress one piece of the body that is first in line: one body at a time, so that only one is held
        decompressed."""
        state, exchange, inflation = self._inflating[0]
        done = True
        try:
            if exchange.connection is not None:  # the client is still there
                done = inflation.step()
                if done:
                    self._handle(exchange, inflation.plain)
        except Exception as error:
            _failed(exchange, error)
        if done:
            self._inflating.popleft()
        if self._inflating:
            state.postpone(self._inflate, TURN_BYTES)

    def _handle(self, exchange: Exchange, body: Body) -> None:
        handler, name = exchange.head.route
        if handler in self._documents:
            connection = exchange.connection
            assert connection is not None
            connection.state.postpone(partial(self._answer, exchange, handler, name), TURN_BYTES)
        else:
            handler(exchange, body, name)

    def _answer(self, exchange: Exchange, handler: Handler, name: str) -> None:
        if exchange.connection is None:
            return
        try:
            handler(exchange, b"", name)
        except Exception as error:
            _failed(exchange, error)

    def _find(self, path: str) -> tuple[Methods, str]:
        """Return the methods of a path and the model that it names, whose version is checked; raises NotFound."""
        methods = self._paths.get(path)
        if methods is not None:
            return methods, ""
        parts = path.split("/")
        if len(parts) >= 4 and parts[:3] == ["", "v2", "models"]:
            name, rest = parts[3], parts[4:]
            version = None
            if len(rest) >= 2 and rest[0] == "versions":
                version, rest = rest[1], rest[2:]
            methods = self._model_paths.get("/".join(rest)) if len(rest) <= 1 and rest != [""] else None
            if methods is not None:
                return methods, named.find_model(self._view.models(), name, version)[0]
        elif len(parts) == 6 and parts[:4] == ["", "v2", "repository", "models"]:
            methods = self._repository_paths.get(parts[5])
            if methods is not None:
                return methods, parts[4]
        elif len(parts) == 4 and parts[:3] == ["", "v1", "models"]:
            return self._embedding_model, parts[3]
        elif (found := self.batches.find(path)) is not None:
            return found
        raise NotFound("Request for unknown model or path")

    def _model(self, name: str) -> Model:
        return named.find_model(self._view.models(), name)[1]

    # --- inference ----------------------------------------------------------------------------------------------------

    def _infer(self, exchange: Exchange, body: Body, name: str) -> None:
        self._endpoint(exchange.head, name).start(exchange, body)

    def _endpoint(self, head: Head, name: str) -> InferEndpoint:
        """Return the endpoint of the family that has the name now, and remember it in `head` for the next request."""
        model = self._model(name)
        endpoint = self._endpoints.get(name)
        if endpoint is None or endpoint.model is not model:
            endpoint = self._endpoints[name] = named.endpoint_of(name, model, self._limits)
        head.endpoint = endpoint if not head.coding else None
        return endpoint

    def _feedback(self, exchange: Exchange, body: Body, name: str) -> None:
        """Take the labels of an answer.  The id in the path is proof enough: only the answer itself carried it.

        A page of another origin is refused all the same.
        """
        self._access.check_origin(exchange)
        try:
            given = _FEEDBACK.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise BadRequest(
                "feedback takes id, a string, and labels, a list with a number, a string or null for each row of the "
                "request; and nothing else"
            ) from None
        connection = exchange.connection
        assert connection is not None
        number = connection.state.ids.number_of(given.id)
        tenant = exchange.head.tenant
        client = tenant.client if tenant is not None else connection.client
        outcome = self._model(name).count_labels(number, given.labels, client)
        exchange.finish_json({"id": given.id, **outcome})

    # --- what there is ------------------------------------------------------------------------------------------------

    def _metadata(self, exchange: Exchange, body: Body, name: str) -> None:
        exchange.finish(200, [self._server])

    def _live(self, exchange: Exchange, body: Body, name: str) -> None:
        live = self._view.live()
        exchange.finish_json({"live": live}, 200 if live else 503)

    def _ready(self, exchange: Exchange, body: Body, name: str) -> None:
        ready = self._view.ready()
        exchange.finish_json({"live": self._view.live(), "ready": ready}, 200 if ready else 503)

    def _descriptions(self, name: str) -> tuple[Model, bytes, bytes]:
        model = self._model(name)
        described = self._described.get(name)
        if described is None or described[0] is not model:
            described = self._described[name] = (
                model,
                orjson.dumps(metadata.model_metadata(named.client_name(name), model.spec, metadata.versions(model))),
                orjson.dumps(metadata.model_config(named.client_name(name), model.spec)),
            )
        return described

    def _each(self) -> list[tuple[str, Model]]:
        """Return every version of every model, with the name that clients know it by."""
        return named.list_versions(self._view.models())

    def _model_metadata(self, exchange: Exchange, body: Body, name: str) -> None:
        exchange.finish(200, [self._descriptions(name)[1]])

    def _model_config(self, exchange: Exchange, body: Body, name: str) -> None:
        exchange.finish(200, [self._descriptions(name)[2]])

    def _model_ready(self, exchange: Exchange, body: Body, name: str) -> None:
        ready = bool(self._model(name).ready)
        exchange.finish_json({"name": named.client_name(name), "ready": ready}, 200 if ready else 503)

    def _model_statistics(self, exchange: Exchange, body: Body, name: str) -> None:
        exchange.finish_json({"model_stats": [{**self._model(name).stats(), "name": named.client_name(name)}]})

    def _all_statistics(self, exchange: Exchange, body: Body, name: str) -> None:
        exchange.finish_json({"model_stats": [{**model.stats(), "name": name} for name, model in self._each()]})

    def _metrics(self, exchange: Exchange, body: Body, name: str) -> None:
        exchange.finish(200, [self._view.metrics()], kind=_METRICS)

    def _openapi(self, exchange: Exchange, body: Body, name: str) -> None:
        exchange.finish_json(
            openapi.build(
                {named.client_name(key): model.spec for key, model in self._view.models().items()}, __version__
            )
        )

    def _state(self, exchange: Exchange, body: Body, name: str) -> None:
        exchange.finish_json(self._view.control().state())

    def _decisions(self, exchange: Exchange, body: Body, name: str) -> None:
        exchange.finish(200, [self._view.control().decisions_json(limit_of(exchange.head))])

    # --- repository ---------------------------------------------------------------------------------------------------

    def _repository_index(self, exchange: Exchange, body: Body, name: str) -> None:
        ready_only = object_of(body).get("ready", False)
        if type(ready_only) is not bool:
            raise BadRequest("ready is not true or false")
        rows = []
        for model_name, model in self._view.models().items():
            if isinstance(model, SplitModel):
                continue  # its versions are listed each for itself
            state, reason = self._view.state_of(model_name)
            if state == "READY" or not ready_only:
                version = model.spec.version
                rows.append(
                    {"name": named.client_name(model_name), "version": version, "state": state, "reason": reason}
                )
        exchange.finish_json(rows)


def _failed(exchange: Exchange, error: Exception) -> None:
    """Answer an error that a handler raised."""
    if isinstance(error, RequestError):
        exchange.refuse(error)
        return
    log.error("a request failed (%s)", exchange.request_id.decode("latin-1") or "no id yet", exc_info=error)
    exchange.fault(error)
