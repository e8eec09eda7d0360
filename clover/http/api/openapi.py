"""Clover's own OpenAPI 3.1 document: `openapi.json`, filled in for the families served.

The file describes every operation and every body that is the same for all families.  What is filled in here:

    paths with FAMILY and VERSION    one for each family, with the body of its infer requests
    answers                          the errors, which any operation may answer with
    Command_VERB                     the bodies of an operator's commands (`clover.verbs`) and the models that they may
                                     name.  `roll-out` and `cluster` are in the file, but for models and settings
    examples                         names in paths.  Operations that change the server get none: a reader might try
                                     them by mistake

The body of an infer request is described exactly for one row whose variable axes have length 1; what else is taken is
said in prose.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from clover.config_records import RolloutConfig
from clover.http.api.control_calls import COMMANDS
from clover.types import FamilySpec, TensorSpec
from clover.verbs import CONFIGURATION, VERBS, Argument, Command, SetCommand, arguments

_DOCUMENT = Path(__file__).with_name("openapi.json").read_bytes()
_JSON = "application/json"
_NAMES = re.compile("FAMILY|VERSION")
_LARGEST_EXAMPLE = 1024
_BINARY_ONLY = ("FP16", "BF16")
"""Datatypes that JSON cannot carry."""

_FLOAT_MAX = math.nextafter((2 - 2.0**-24) * 2.0**127, 0)
"""The largest double that still rounds to a finite FP32."""

_ELEMENTS: dict[str, dict[str, Any]] = {
    "BYTES": {"type": "string"},
    "BOOL": {"type": "boolean"},
    "FP32": {"type": "number", "minimum": -_FLOAT_MAX, "maximum": _FLOAT_MAX},
    "FP64": {"type": "number"},
    **{f"UINT{bits}": {"type": "integer", "minimum": 0, "maximum": 2**bits - 1} for bits in (8, 16, 32, 64)},
    **{
        f"INT{bits}": {"type": "integer", "minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1}
        for bits in (8, 16, 32, 64)
    },
}
_KINDS = {bool: "boolean", float: "number", str: "string"}
_ZEROS: dict[str, Any] = {"BYTES": "", "BOOL": False}


def build(specs: dict[str, FamilySpec], version: str) -> dict[str, Any]:
    """Return the document for the families `specs`, by the name they are served under."""
    document: dict[str, Any] = msgspec.json.decode(_DOCUMENT)
    document["info"]["version"] = version
    paths, schemas = document["paths"], document["components"]["schemas"]
    of_families = {path: paths.pop(path) for path in list(paths) if "FAMILY" in path}
    infer = schemas.pop("Infer_FAMILY")
    _add_examples(paths, next(iter(specs.items()), None))
    for name, spec in specs.items():
        names = {"FAMILY": name, "VERSION": spec.version}
        schemas[f"Infer_{name}"] = _infer_schema(infer, spec)
        for path, methods in of_families.items():
            described = _with_names(methods, names)
            if path.endswith("/infer") and (example := _example(spec)):
                described["post"]["requestBody"]["content"][_JSON]["example"] = example
            paths[_with_names(path, names)] = described
    schemas |= {f"Command_{verb}": _command_schema(command) for verb, command in VERBS.items()}
    for verb in COMMANDS:
        schema = _fill_command(verb, schemas[f"Command_{verb}"], specs)
        paths[f"/v2/clover/{verb}"]["post"]["requestBody"]["required"] = bool(schema["required"]) or "anyOf" in schema
    errors = {name.removeprefix("E"): _ref(f"responses/{name}") for name in document["components"]["responses"]}
    for methods in paths.values():
        for operation in methods.values():
            operation["responses"] = {**errors, **operation["responses"]}
    return document


def _ref(place: str) -> dict[str, str]:
    return {"$ref": f"#/components/{place}"}


def _with_names(part: Any, names: dict[str, str]) -> Any:
    """Return a copy of a part of the document with the names of a family in its texts."""
    if isinstance(part, str):
        return _NAMES.sub(lambda match: names[match[0]], part)
    if isinstance(part, dict):
        return {key: _with_names(value, names) for key, value in part.items()}
    if isinstance(part, list):
        return [_with_names(value, names) for value in part]
    return part


def _add_examples(paths: dict[str, Any], first: tuple[str, FamilySpec] | None) -> None:
    """Add the name and version of the first family as examples of what stands in paths."""
    if first is None:
        return
    examples = {"model": first[0], "version": first[1].version}
    for methods in paths.values():
        for operation in methods.values():
            if "security" not in operation:  # else it changes the server
                for parameter in operation.get("parameters", ()):
                    if parameter["in"] == "path":
                        parameter["example"] = examples[parameter["name"]]


# --- bodies -----------------------------------------------------------------------------------------------------------


def _command_schema(command: type[Command]) -> dict[str, Any]:
    """Return the body of a command.  `configuration` is described in prose: which ones there are is known to a running
    server only."""
    about = f"{command.body} {CONFIGURATION}" if "configuration" in arguments(command) else command.body
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "description": about,
        "properties": {
            name: _argument_schema(argument) for name, argument in arguments(command).items() if name != "configuration"
        },
        "required": [*command.required],
    }
    if command is SetCommand:
        schema["anyOf"] = [{"required": [name]} for name in SetCommand.changes]
        schema["anyOf"][-1]["properties"] = {"mode": {"enum": [*arguments(command)["mode"].choices]}}  # null is no mode
    return schema


def _argument_schema(argument: Argument) -> dict[str, Any]:
    if argument.name == "model":
        return {"enum": []}
    if argument.choices == (True,):
        return {"const": True}
    if argument.choices:
        return {"enum": [*argument.choices, *([None] if argument.nullable else [])]}
    kind = _KINDS[argument.kind]
    schema: dict[str, Any] = {"type": [kind, "null"] if argument.nullable else kind}
    if math.isfinite(argument.low):
        schema |= {"minimum": argument.low, "maximum": argument.high}
    if argument.description:
        schema["description"] = argument.description
    return schema


def _fill_command(verb: str, schema: dict[str, Any], specs: dict[str, FamilySpec]) -> dict[str, Any]:
    """Fill in the body of `POST /v2/clover/VERB`, and return it."""
    names, properties = list(specs), schema["properties"]
    if "model" in properties:
        properties["model"]["enum"] = names
    if len(names) < 2:  # of several, one must be named
        schema["required"] = [name for name in schema["required"] if name != "model"]
    if verb == "cluster":
        properties["models"]["propertyNames"]["enum"] = names
    if verb == "pin" and specs:
        schema["anyOf"] = [
            {"properties": {"model": {"const": name}, "variant": {"enum": [*(v.name for v in spec.variants), None]}}}
            for name, spec in specs.items()
        ]
    if verb == "roll-out":
        settings = _rollout_settings()
        properties |= settings
        schema["anyOf"][1]["properties"] |= dict.fromkeys(settings, False)  # an action takes none
    return schema


def _rollout_settings() -> dict[str, Any]:
    """Return the settings of a roll-out that its command may give, as the configuration has them."""
    _, schemas = msgspec.json.schema_components([RolloutConfig])
    settings: dict[str, Any] = schemas[RolloutConfig.__name__]["properties"]
    return {name: settings[name] for name in settings if name != "root"}


def _infer_schema(template: dict[str, Any], spec: FamilySpec) -> dict[str, Any]:
    """Return the body of an infer request in JSON: one row, flat data."""
    schema: dict[str, Any] = _with_names(template, {})
    inputs = [_input(tensor) for tensor in spec.inputs]
    schema["properties"]["inputs"] |= {"minItems": len(inputs), "maxItems": len(inputs), "prefixItems": inputs}
    schema["properties"]["outputs"]["items"]["anyOf"] = [_output(tensor) for tensor in spec.outputs]
    return schema


def _input(spec: TensorSpec) -> dict[str, Any]:
    properties: dict[str, Any] = {"name": {"const": spec.name}, "datatype": {"const": spec.datatype}}
    if spec.datatype in _BINARY_ONLY:
        properties |= {"shape": {"type": "array", "items": {"type": "integer"}}, "parameters": {"type": "object"}}
        return {"type": "object", "required": [*properties], "properties": properties}
    shape = _one_row(spec)
    count = math.prod(shape)
    properties |= {
        "shape": {"const": shape},
        "data": {"type": "array", "minItems": count, "maxItems": count, "items": _ELEMENTS[spec.datatype]},
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
        data = [_ZEROS.get(tensor.datatype, 0)] * math.prod(shape)
        inputs.append({"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": data})
    return {"inputs": inputs}
