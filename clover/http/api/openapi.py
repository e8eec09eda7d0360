"""Clover's own OpenAPI 3.1 document: the tables of `operations` and `schemas`, filled in for the families served.

Every answer of every operation is described, errors included.  The body of an infer request is described exactly for
one row whose variable axes have length 1; what else is taken is said in prose.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from clover.http.api.operations import (
    BINARY,
    ERROR_HEADERS,
    ERRORS,
    FAMILY_OPERATIONS,
    JSON,
    OPERATIONS,
    PARAMETERS,
    Operation,
)
from clover.http.api.schemas import COMMANDS, ELEMENTS, INFER_PARAMETERS, SCHEMAS, ZEROS
from clover.types import FamilySpec, TensorSpec

_NAME = "^[A-Za-z0-9._-]{1,128}$"
_LARGEST_EXAMPLE = 1024
_BINARY_ONLY = ("FP16", "BF16")
"""Datatypes that JSON cannot carry."""


def build(specs: dict[str, FamilySpec], version: str) -> dict[str, Any]:
    """Return the document for the families `specs`, by the name they are served under."""
    schemas = SCHEMAS | {f"Infer_{name}": _infer_schema(spec) for name, spec in specs.items()}
    schemas |= {f"Command_{verb}": _command_schema(verb, specs) for verb in COMMANDS}
    first, first_spec = next(iter(specs.items()), (None, None))
    examples = {"model": first, "version": first_spec.version if first_spec else None}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schemas, examples)
    for name, spec in specs.items():
        for root in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{spec.version}"):
            for each in FAMILY_OPERATIONS:
                operation = replace(
                    each,
                    path=f"{root}/{each.path}",
                    summary=each.summary.format(family=name),
                    body=each.body.format(family=name),
                )
                described = _operation(operation, schemas, examples)
                if each.path == "infer" and (example := _example(spec)):
                    described["requestBody"]["content"][JSON]["example"] = example
                paths[operation.path] = {operation.method: described}
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
            "responses": {f"E{code}": _error(code) for code in ERRORS},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


# --- operations -------------------------------------------------------------------------------------------------------


def _operation(row: Operation, schemas: dict[str, Any], examples: dict[str, str | None]) -> dict[str, Any]:
    """Return an operation of the document.  `examples` are values of the parameters in its path."""
    good = {
        "description": row.answer_text,
        "content": {media: {"schema": {} if media == BINARY else _schema(row.answer)} for media in row.answer_media},
    }
    if row.answer_headers:
        good["headers"] = row.answer_headers
    answers = {"200": good} | {str(code): {"$ref": f"#/components/responses/E{code}"} for code in ERRORS}
    if row.not_ready:
        either = {"anyOf": [_schema(row.not_ready), _schema("Error")]}
        answers["503"] = {"description": "not ready", "content": {JSON: {"schema": either}}}
    operation: dict[str, Any] = {"tags": [row.tag], "summary": row.summary, "responses": answers}
    operation["operationId"] = row.method + "".join(f"_{part.strip('{}')}" for part in row.path.split("/") if part)
    if row.body:
        required = bool(schemas[row.body]["required"]) or "anyOf" in schemas[row.body]
        operation["requestBody"] = {"required": required, "content": {JSON: {"schema": _schema(row.body)}}}
    # No example of what changes the server: it could be tried by mistake.
    parameters = [
        _parameter(name, None if row.changes else examples[name]) for name in re.findall(r"{(\w+)}", row.path)
    ]
    if parameters or row.query:
        operation["parameters"] = [*parameters, *row.query]
    if row.changes:
        operation["security"] = [{}, {"token": []}]
    return operation


def _schema(given: str | dict[str, Any]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{given}"} if isinstance(given, str) else given


def _parameter(name: str, example: str | None) -> dict[str, Any]:
    parameter = {
        "name": name,
        "in": "path",
        "required": True,
        "description": PARAMETERS[name],
        "schema": {"type": "string", "pattern": _NAME},
    }
    return parameter if example is None else parameter | {"example": example}


def _error(code: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": ERRORS[code], "content": {JSON: {"schema": _schema("Error")}}}
    return answer | ({"headers": ERROR_HEADERS[code]} if code in ERROR_HEADERS else {})


# --- bodies -----------------------------------------------------------------------------------------------------------


def _command_schema(verb: str, specs: dict[str, FamilySpec]) -> dict[str, Any]:
    """Return the body of `POST /v2/clover/VERB`."""
    command = COMMANDS[verb]
    names = list(specs)
    must_name = ["model"] if command.models == "one" and len(names) > 1 else []
    model = {} if command.models == "none" else {"model": {"enum": names}}
    properties = model | {"dry_run": {"type": "boolean"}} | command.properties
    any_of = list(command.any_of)
    if verb == "cluster":
        properties["models"] = properties["models"] | {"propertyNames": {"enum": names}}
    if verb == "pin":
        any_of = [
            {"properties": {"model": {"const": name}, "variant": {"enum": [*(v.name for v in spec.variants), None]}}}
            for name, spec in specs.items()
        ]
    schema = {
        "type": "object",
        "additionalProperties": False,
        "description": command.text,
        "properties": properties,
        "required": [*must_name, *command.required],
    }
    return schema | ({"anyOf": any_of} if any_of else {})


def _infer_schema(spec: FamilySpec) -> dict[str, Any]:
    """Return the body of an infer request in JSON: one row, flat data."""
    inputs = [_input(tensor) for tensor in spec.inputs]
    outputs = {"anyOf": [_output(tensor) for tensor in spec.outputs]}
    return {
        "type": "object",
        "description": "One row. The first axis is the batch: more rows, longer axes, nested and binary data work.",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": INFER_PARAMETERS,
            "inputs": {
                "type": "array",
                "minItems": len(inputs),
                "maxItems": len(inputs),
                "prefixItems": inputs,
                "items": False,
            },
            "outputs": {"type": ["array", "null"], "items": outputs, "maxItems": 1},
        },
    }


def _input(spec: TensorSpec) -> dict[str, Any]:
    properties: dict[str, Any] = {"name": {"const": spec.name}, "datatype": {"const": spec.datatype}}
    if spec.datatype in _BINARY_ONLY:
        properties |= {"shape": {"type": "array", "items": {"type": "integer"}}, "parameters": {"type": "object"}}
        return {"type": "object", "required": [*properties], "properties": properties}
    shape = _one_row(spec)
    count = math.prod(shape)
    properties |= {
        "shape": {"const": shape},
        "data": {"type": "array", "minItems": count, "maxItems": count, "items": ELEMENTS[spec.datatype]},
    }
    required = [*properties]
    binary = {"binary_data_size": False, "shared_memory_region": False}
    properties["parameters"] = {"type": ["object", "null"], "properties": binary}
    return {"type": "object", "required": required, "properties": properties}


def _output(spec: TensorSpec) -> dict[str, Any]:
    options: dict[str, Any] = {"binary_data": {"type": "boolean"}}
    if spec.datatype not in ("BYTES", "BOOL"):
        options["classification"] = {"type": "integer", "minimum": 0}
    parameters = {"type": ["object", "null"], "properties": options}
    return {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"const": spec.name}, "parameters": parameters},
    }


def _one_row(spec: TensorSpec) -> list[int]:
    """Return the shape of one row of a tensor, variable axes of length 1."""
    return [1, *(axis if axis >= 0 else 1 for axis in spec.shape)]


def _example(spec: FamilySpec) -> dict[str, Any] | None:
    """Return a request of one row of zeros; None if JSON cannot carry an input, or if it is large."""
    inputs = []
    for tensor in spec.inputs:
        shape = _one_row(tensor)
        if tensor.datatype in _BINARY_ONLY or math.prod(shape) > _LARGEST_EXAMPLE:
            return None
        data = [ZEROS.get(tensor.datatype, 0)] * math.prod(shape)
        inputs.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": data})
    return {"inputs": inputs}
