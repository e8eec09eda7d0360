"""The JSON schemas of Clover's OpenAPI document."""

from __future__ import annotations

import math
from typing import Any

from clover.types import FamilySpec, TensorSpec

ERROR_TEXTS = {
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

_TEXT = {"type": "string"}
_COUNTER = {
    "type": "object",
    "required": ["count", "ns"],
    "properties": {"count": {"type": "integer", "minimum": 0}, "ns": {"type": "integer", "minimum": 0}},
}
_SHAPE = {"type": "array", "items": {"type": "integer"}}
_NUMBER = {"type": "number"}
_COUNT = {"type": "integer", "minimum": 0}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": required | (optional or {})}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _described(schema: dict[str, Any], text: str) -> dict[str, Any]:
    return schema | {"description": text}


_PART = {"type": ["number", "null"], "maximum": 1}
_SAVING = _object(
    {
        "against": _described(_TEXT, "what it is a saving against, and how that is known"),
        "grams": _described(_NUMBER, "gCO2e of the shadow less those emitted; may be negative"),
        "part": _described(_PART, "of the shadow's gCO2e, idle power included"),
        "part_without_idle": _described(_PART, "of the shadow's gCO2e above idle power"),
        "joules": _NUMBER,
        "emitted_g": _NUMBER,
        "shadow_g": _NUMBER,
        "used_j": _NUMBER,
        "shadow_j": _NUMBER,
        "accuracy": _described(_NUMBER, "percent, expected of what served"),
        "shadow_accuracy": _described(_NUMBER, "percent, expected of the shadow"),
        "accuracy_given_up": _described(_NUMBER, "percent points; negative: gained"),
        "rows": _described(_COUNT, "rows that are compared"),
        "rows_left_out": _described(_COUNT, "rows for which there was no shadow"),
        "rows_beyond_shadow": _described(_COUNT, "rows at loads that the shadow could not have served"),
        "words": _TEXT,
    }
)
_SAVED = {"anyOf": [{"$ref": "#/components/schemas/Saved"}, {"type": "null"}]}
_MAYBE = {"anyOf": [_SAVING, {"type": "null"}]}

SCHEMAS: dict[str, dict[str, Any]] = {
    "Error": _object({"error": _TEXT}),
    "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _array(_TEXT)}),
    "Live": _object({"live": {"type": "boolean"}}),
    "Ready": _object({"live": {"type": "boolean"}, "ready": {"type": "boolean"}}),
    "ModelReady": _object({"name": _TEXT, "ready": {"type": "boolean"}}),
    "TensorMetadata": _object({"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE}),
    "ModelMetadata": _object(
        {
            "name": _TEXT,
            "versions": _array(_TEXT),
            "platform": _TEXT,
            "inputs": _array({"$ref": "#/components/schemas/TensorMetadata"}),
            "outputs": _array({"$ref": "#/components/schemas/TensorMetadata"}),
        }
    ),
    "TensorConfig": _object({"name": _TEXT, "data_type": _TEXT, "dims": _SHAPE}),
    "ModelConfig": _object(
        {
            "name": _TEXT,
            "platform": _TEXT,
            "backend": _TEXT,
            "max_batch_size": {"type": "integer", "minimum": 1},
            "input": _array({"$ref": "#/components/schemas/TensorConfig"}),
            "output": _array({"$ref": "#/components/schemas/TensorConfig"}),
        }
    ),
    "Statistics": _object(
        {
            "model_stats": _array(
                _object(
                    {
                        "name": _TEXT,
                        "version": _TEXT,
                        "last_inference": {"type": "integer"},
                        "inference_count": {"type": "integer"},
                        "execution_count": {"type": "integer"},
                        "inference_stats": {"type": "object", "additionalProperties": _COUNTER},
                        "batch_stats": _array({"type": "object"}),
                    }
                )
            )
        }
    ),
    "InferResponse": _object(
        {
            "model_name": _TEXT,
            "outputs": _array(
                _object(
                    {"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE},
                    {"data": {"type": "array"}, "parameters": {"type": "object"}},
                )
            ),
        },
        {"model_version": _TEXT, "id": _TEXT, "parameters": {"type": "object"}},
    ),
    "Saved": _object(
        {
            "rows": _described(_COUNT, "rows served since the server started"),
            "label": _described(_TEXT, "how the savings are known"),
            "base": _described(_MAYBE, "against BASE"),
            "static": _described(_MAYBE, "against the best fixed mix at the target"),
            "matched": _described(_MAYBE, "against the best fixed mix at the accuracy served"),
        },
        {"since_s": _described(_NUMBER, "grid time (Unix seconds) from which on it counts")},
    ),
    "State": _object(
        {},
        {
            "models": {"type": "object", "additionalProperties": _object({}, {"saved": _SAVED})},
            "totals": _object({}, {"saved": _SAVED}),
        },
    ),
    "Feedback": _object(
        {
            "id": _described(
                {"type": "string", "minLength": 1},
                "the answer's x-request-id if the server made it, else feedback of its receipt",
            ),
            "labels": {
                "type": "array",
                "minItems": 1,
                "items": {"type": ["integer", "number", "string", "null"]},
                "description": "one a row: the index or the name of the class, a number, a text, or null",
            },
        }
    )
    | {"additionalProperties": False},
    "FeedbackResponse": _object(
        {"id": _TEXT, "rows": _COUNT, "right": _COUNT, "estimate": {"type": ["object", "null"]}}
    ),
    "IndexRequest": _object({}, {"ready": {"type": "boolean"}}),
    "RepositoryIndex": _array(_object({"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT})),
    "LoadRequest": _object({}, {"parameters": _object({}, {"config": {"type": "string", "description": "JSON"}})}),
    "UnloadRequest": _object({}, {"parameters": {"type": "object"}}),
}

_FLOAT_MAX = math.nextafter((2 - 2.0**-24) * 2.0**127, 0)
"""The largest double that still rounds to a finite FP32."""

_RANGES = {
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
}


def _element(datatype: str) -> dict[str, Any]:
    if datatype == "BYTES":
        return {"type": "string"}
    if datatype == "BOOL":
        return {"type": "boolean"}
    if datatype in _RANGES:
        low, high = _RANGES[datatype]
        return {"type": "integer", "minimum": low, "maximum": high}
    if datatype == "FP32":
        return {"type": "number", "minimum": -_FLOAT_MAX, "maximum": _FLOAT_MAX}
    return {"type": "number"}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    properties: dict[str, Any] = {"name": {"const": spec.name}, "datatype": {"const": spec.datatype}}
    if spec.datatype in ("FP16", "BF16"):
        properties |= {"shape": _SHAPE, "parameters": {"type": "object"}}
        return {"type": "object", "required": ["name", "datatype", "shape", "parameters"], "properties": properties}
    shape = [axis if axis >= 0 else 1 for axis in spec.shape]
    count = math.prod(shape)
    row_shape = {"const": [1, *shape]}
    data = {"type": "array", "minItems": count, "maxItems": count, "items": _element(spec.datatype)}
    properties |= {
        "shape": row_shape,
        "data": data,
        "parameters": _nullable({"binary_data_size": False, "shared_memory_region": False}),
    }
    return {"type": "object", "required": ["name", "datatype", "shape", "data"], "properties": properties}


def _nullable(optional: dict[str, Any]) -> dict[str, Any]:
    return {"type": ["object", "null"], "properties": optional}


def _output(spec: TensorSpec) -> dict[str, Any]:
    options: dict[str, Any] = {"binary_data": {"type": "boolean"}}
    if spec.datatype not in ("BYTES", "BOOL"):
        options["classification"] = {"type": "integer", "minimum": 0}
    return _object({"name": {"const": spec.name}}, {"parameters": _nullable(options)})


def input_schema(spec: FamilySpec) -> dict[str, Any]:
    """Return the infer body of a family in JSON: one row, variable axes of 1, flat data.  The rest is described in
    prose."""
    inputs = [_tensor(tensor) for tensor in spec.inputs]
    output = {"anyOf": [_output(tensor) for tensor in spec.outputs]}
    parameters = _nullable(
        {
            "timeout": {"type": "integer", "minimum": 0, "description": "microseconds; 0: the server's own"},
            "binary_data_output": {"type": "boolean"},
            "clover_min_accuracy": {"type": "number", "minimum": 0, "maximum": 100, "description": "percent"},
            "clover_max_latency_ms": {"type": "number", "minimum": 0},
            "clover_cascade": {"enum": ["on", "off"], "description": "off asks one variant a row"},
            "clover_receipt": {"type": "boolean"},
        },
    )
    return {
        "type": "object",
        "description": "One row. The first axis is the batch: more rows, longer axes, nested and binary data work.",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": parameters,
            "inputs": {
                "type": "array",
                "minItems": len(inputs),
                "maxItems": len(inputs),
                "prefixItems": inputs,
                "items": False,
            },
            "outputs": {"type": ["array", "null"], "items": output, "maxItems": 1},
        },
    }
