"""The operations of Clover's HTTP API as a table: what `openapi.build` turns into the paths of the OpenAPI document.

A new endpoint is a handler in `routes` and a row here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clover.http.api.schemas import COMMANDS

JSON = "application/json"
BINARY = "application/octet-stream"
TEXT = "text/plain"

_OBJECT: dict[str, Any] = {"type": "object"}
_STRING: dict[str, Any] = {"type": "string"}


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    `answer` and `answer_text` are schema and description of status 200; a schema is given as itself, or by its name in
    `schemas.SCHEMAS`.  `not_ready` is the schema of a 503 that is no error.  `body` names the schema of the JSON body,
    which may be left out if that schema requires nothing.  `changes` marks what changes the server, and so needs the
    token if one is configured.
    """

    method: str
    path: str
    tag: str
    summary: str
    answer: str | dict[str, Any]
    answer_text: str
    answer_media: tuple[str, ...] = (JSON,)
    answer_headers: dict[str, Any] = field(default_factory=dict)
    not_ready: str = ""
    body: str = ""
    query: tuple[dict[str, Any], ...] = ()
    changes: bool = False


PARAMETERS = {"model": "the model's name", "version": "the model's version"}
"""What may stand in braces in a path."""

_LIMIT = {
    "name": "limit",
    "in": "query",
    "required": False,
    "schema": {"type": "integer", "minimum": 1, "maximum": 1000},
}
_RECEIPT = {"description": "what the answer cost: an RFC 9651 dictionary", "schema": _STRING}
_TRACED = {"description": "W3C Trace Context of the span, if OpenTelemetry is on", "required": False, "schema": _STRING}

# fmt: off
OPERATIONS = (
    Operation("get", "/", "server", "What this server is", _OBJECT, "where to go from here"),
    Operation("get", "/v2", "server", "Server metadata", "ServerMetadata", "name, version, extensions"),
    Operation("get", "/v2/health/live", "health", "Whether the server lives", "Live", "alive"),
    Operation("get", "/v2/health/ready", "health", "Whether it can answer", "Ready", "ready", not_ready="Ready"),
    Operation("get", "/v2/models/stats", "models", "Statistics of every model", "Statistics", "statistics"),
    *(
        operation
        for root in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        for operation in (
            Operation("get", root, "models", "Model metadata", "ModelMetadata", "tensors"),
            Operation("get", f"{root}/ready", "models", "Whether the model can answer", "ModelReady", "ready",
                      not_ready="ModelReady"),
            Operation("get", f"{root}/config", "models", "Model configuration", "ModelConfig", "configuration"),
            Operation("get", f"{root}/stats", "models", "Statistics of the model", "Statistics", "statistics"),
        )
    ),
    Operation("post", "/v2/repository/index", "repository", "The models and their states",
              "RepositoryIndex", "the models", body="IndexRequest"),
    Operation("post", "/v2/repository/models/{model}/load", "repository", "Start a model's workers", _OBJECT, "done",
              body="LoadRequest", changes=True),
    Operation("post", "/v2/repository/models/{model}/unload", "repository", "Stop a model's workers", _OBJECT, "done",
              body="UnloadRequest", changes=True),
    Operation("get", "/v2/clover/state", "clover", "Deployment, routing, carbon, savings", "State", "the state"),
    Operation("get", "/v2/clover/decisions", "clover", "The controller's decisions",
              {"type": "array", "items": _OBJECT}, "newest first", query=(_LIMIT,)),
    Operation("get", "/v2/clover/audit", "clover", "Calls that changed the server, or were refused",
              {"type": "array", "items": _OBJECT}, "newest first", query=(_LIMIT,)),
    *(
        Operation("post", f"/v2/clover/{verb}", "clover", command.text, _OBJECT, "what was done",
                  body=f"Command_{verb}", changes=True)
        for verb, command in COMMANDS.items()
    ),
    Operation("get", "/metrics", "server", "Prometheus metrics", _STRING, "metrics", answer_media=(TEXT,)),
    Operation("get", "/openapi.json", "server", "This document", _OBJECT, "OpenAPI 3.1"),
)

FAMILY_OPERATIONS = (
    Operation("post", "infer", "inference", "Infer with {family}", "InferResponse", "the outputs",
              body="Infer_{family}", answer_media=(JSON, BINARY),
              answer_headers={"Clover-Receipt": _RECEIPT, "traceparent": _TRACED}),
    Operation("post", "feedback", "inference", "Say what an answer of {family} should have been",
              "FeedbackResponse", "what it came to", body="Feedback"),
)
"""What each family has below `/v2/models/NAME` and `/v2/models/NAME/versions/VERSION`: paths of their own, because its
tensors are known, so that its bodies can be described exactly."""
# fmt: on

ERRORS = {
    400: "bad argument",
    401: "the token is missing or wrong",
    403: "not taken from there",
    404: "unknown model, version or path",
    405: "the path does not take that method",
    408: "the request did not arrive in time",
    409: "no plan satisfies this, or it would break the targets and was not forced",
    413: "too large",
    414: "the request line is too long",
    415: "the content coding is not gzip or deflate",
    417: "an expectation that is not met",
    421: "the request line names a host that is not served here",
    429: "the queue is full, or one client gives too many labels",
    431: "the head is too large",
    500: "a fault of the server or the model",
    503: "not ready, draining, or no capacity",
    504: "the deadline was missed",
    505: "not HTTP/1.0 or 1.1",
}
"""The statuses of errors, which any operation may answer with.  All have one shape, the schema `Error`."""

_RETRY_AFTER = {"type": "integer", "minimum": 1}
ERROR_HEADERS: dict[int, dict[str, Any]] = {
    405: {"Allow": {"required": True, "schema": _STRING}},
    429: {"Retry-After": {"required": True, "schema": _RETRY_AFTER}},
    503: {"Retry-After": {"required": False, "schema": _RETRY_AFTER}},
}
