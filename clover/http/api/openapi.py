"""Clover's own OpenAPI 3.1 document, built from the families that are served.

Every answer of every path is described, the errors included: they all share one shape.  An infer body of a family
whose tensors have fixed shapes is described exactly for one row, beside the general form.
"""

from __future__ import annotations

import math
from typing import Any

from clover.http.api.command_schemas import TEXTS, command_schema
from clover.http.api.schemas import ERROR_TEXTS, SCHEMAS, input_schema
from clover.types import FamilySpec

_NAME = "^[A-Za-z0-9._-]{1,128}$"
_JSON_ZERO: dict[str, Any] = {"BYTES": "", "BOOL": False}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answers(schema: dict[str, Any], text: str, **others: dict[str, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": text, "content": _json(schema)}}
    answers |= {str(code): {"$ref": f"#/components/responses/E{code}"} for code in ERROR_TEXTS}
    answers |= {code.lstrip("_"): answer for code, answer in others.items()}
    return answers


def _parameter(name: str, text: str, example: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": name,
        "in": "path",
        "required": True,
        "description": text,
        "schema": {"type": "string", "pattern": _NAME},
    }
    if example is not None:
        result["example"] = example
    return result


def _example(spec: FamilySpec) -> dict[str, Any] | None:
    """Return a request of one row of zeros; None where JSON cannot carry an input or it is large."""
    inputs = []
    for tensor in spec.inputs:
        shape = [1, *(axis if axis >= 0 else 1 for axis in tensor.shape)]
        if tensor.datatype in ("FP16", "BF16") or math.prod(shape) > 1024:
            return None
        data = [_JSON_ZERO.get(tensor.datatype, 0)] * math.prod(shape)
        inputs.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": data})
    return {"inputs": inputs}


def build(specs: dict[str, FamilySpec], version: str) -> dict[str, Any]:
    """Return the document, for the families `specs` by the name they are served under."""
    schemas: dict[str, Any] = dict(SCHEMAS)
    first, first_spec = next(iter(specs.items()), (None, None))
    paths: dict[str, Any] = {}

    def get(
        path: str, tag: str, text: str, answers: dict[str, Any], parameters: list[dict[str, Any]] | None = None
    ) -> None:
        operation: dict[str, Any] = {"tags": [tag], "summary": text, "responses": answers}
        operation["operationId"] = _operation_id("get", path)
        if parameters:
            operation["parameters"] = parameters
        paths.setdefault(path, {})["get"] = operation

    def post(
        path: str,
        tag: str,
        text: str,
        answers: dict[str, Any],
        body: dict[str, Any],
        *,
        required: bool,
        parameters: list[dict[str, Any]] | None = None,
        example: dict[str, Any] | None = None,
        guarded: bool = False,
    ) -> None:
        content: dict[str, Any] = {"schema": body}
        if example is not None:
            content["example"] = example
        operation: dict[str, Any] = {
            "tags": [tag],
            "summary": text,
            "operationId": _operation_id("post", path),
            "requestBody": {"required": required, "content": {"application/json": content}},
            "responses": answers,
        }
        if parameters:
            operation["parameters"] = parameters
        if guarded:
            operation["security"] = [{}, {"token": []}]
        paths[path] = {"post": operation}

    not_ready = {"description": "not ready", "content": _json({"anyOf": [_ref("Ready"), _ref("Error")]})}
    model_not_ready = {"description": "not ready", "content": _json({"anyOf": [_ref("ModelReady"), _ref("Error")]})}
    get("/", "server", "What this server is", _answers({"type": "object"}, "where to go from here"))
    get("/v2", "server", "Server metadata", _answers(_ref("ServerMetadata"), "name, version, extensions"))
    get("/v2/health/live", "health", "Whether the server lives", _answers(_ref("Live"), "alive"))
    get("/v2/health/ready", "health", "Whether it can answer", _answers(_ref("Ready"), "ready", _503=not_ready))
    get("/v2/models/stats", "models", "Statistics of every model", _answers(_ref("Statistics"), "statistics"))
    for versioned in (False, True):
        parameters = [_parameter("model", "the model's name", first)]
        root = "/v2/models/{model}"
        if versioned:
            root += "/versions/{version}"
            parameters.append(_parameter("version", "the model's version", first_spec.version if first_spec else None))
        get(root, "models", "Model metadata", _answers(_ref("ModelMetadata"), "tensors"), parameters)
        ready = _answers(_ref("ModelReady"), "ready", _503=model_not_ready)
        get(f"{root}/ready", "models", "Whether the model can answer", ready, parameters)
        get(
            f"{root}/config",
            "models",
            "Model configuration",
            _answers(_ref("ModelConfig"), "configuration"),
            parameters,
        )
        get(
            f"{root}/stats", "models", "Statistics of the model", _answers(_ref("Statistics"), "statistics"), parameters
        )
    for name, spec in specs.items():
        # One path a model: its tensors are known, so its body can be described exactly.
        key = f"Infer_{name}"
        schemas[key] = input_schema(spec)
        for root in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{spec.version}"):
            answers = _answers(_ref("InferResponse"), "the outputs")
            answers["200"]["content"]["application/octet-stream"] = {"schema": {}}
            answers["200"]["headers"] = {
                "Clover-Receipt": {
                    "description": "what the answer cost: an RFC 9651 dictionary",
                    "schema": {"type": "string"},
                }
            }
            post(
                f"{root}/infer",
                "inference",
                f"Infer with {name}",
                answers,
                _ref(key),
                required=True,
                example=_example(spec),
            )
            post(
                f"{root}/feedback",
                "inference",
                f"Say what an answer of {name} should have been",
                _answers(_ref("FeedbackResponse"), "what it came to"),
                _ref("Feedback"),
                required=True,
            )
    index = _answers(_ref("RepositoryIndex"), "the models")
    post(
        "/v2/repository/index", "repository", "The models and their states", index, _ref("IndexRequest"), required=False
    )
    for verb, text in (("load", "Start a model's workers"), ("unload", "Stop a model's workers")):
        path = f"/v2/repository/models/{{model}}/{verb}"
        parameters = [_parameter("model", "the model's name", None)]
        answers = _answers({"type": "object"}, "done")
        schema = _ref(f"{verb.title()}Request")
        post(path, "repository", text, answers, schema, required=False, parameters=parameters, guarded=True)
    get("/v2/clover/state", "clover", "Deployment, routing, carbon, savings", _answers(_ref("State"), "the state"))
    limit = {
        "name": "limit",
        "in": "query",
        "required": False,
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000},
    }
    decisions = _answers({"type": "array", "items": {"type": "object"}}, "newest first")
    get("/v2/clover/decisions", "clover", "The controller's decisions", decisions, [limit])
    for verb, text in TEXTS.items():
        answers = _answers({"type": "object"}, "what was done")
        schema = schemas[f"Command_{verb}"] = command_schema(verb, specs)
        body = _ref(f"Command_{verb}")
        post(
            f"/v2/clover/{verb}",
            "clover",
            text,
            answers,
            body,
            required=bool(schema["required"]) or verb == "set",
            guarded=True,
        )
    metrics = _answers({"type": "string"}, "metrics")
    metrics["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    get("/metrics", "server", "Prometheus metrics", metrics)
    get("/openapi.json", "server", "This document", _answers({"type": "object"}, "OpenAPI 3.1"))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Clover",
            "version": version,
            "description": "Open Inference Protocol v2 with carbon receipts. Binary tensors as its extension says.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {f"E{code}": _error(code, text) for code, text in ERROR_TEXTS.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _error(code: int, text: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": text, "content": _json(_ref("Error"))}
    if code == 405:
        answer["headers"] = {"Allow": {"required": True, "schema": {"type": "string"}}}
    if code in (429, 503):
        answer["headers"] = {"Retry-After": {"required": code == 429, "schema": {"type": "integer", "minimum": 1}}}
    return answer


def _operation_id(method: str, path: str) -> str:
    return method + "".join(f"_{part.strip('{}')}" for part in path.split("/") if part)
