"""The JSON schemas of Clover's OpenAPI document that are the same for all families."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from clover.config_records import RolloutConfig

_TEXT: dict[str, Any] = {"type": "string"}
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
        "part": _described(_PART, "of the shadow's gCO2e, idle power included; null before 100 rows"),
        "part_without_idle": _described(_PART, "of the shadow's gCO2e above idle power; null before 100 rows"),
        "joules": _NUMBER,
        "control_g": _described(_NUMBER, "gCO2e of planning, profiling and swaps, which no shadow has"),
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
_NONE = {"type": "null"}
_IDLE = _object(
    {
        "part": _described({"type": "number", "minimum": 0, "maximum": 1}, "of all joules"),
        "idle_j": _NUMBER,
        "method": _described(_TEXT, "how the joules are known: measured, modelled or emulated"),
        "words": _TEXT,
    },
    {
        "cores": _described(_COUNT, "those that workers may have"),
        "cores_with_workers": _COUNT,
        "cores_would_do": _described({"type": ["integer", "null"]}, "as few as that; null if it is not known"),
        "core_sleep_w": _described({"type": ["number", "null"]}, "watts of a core without a worker; null if not known"),
        "decides_in_s": _described(_NUMBER, "seconds for which the load is watched before cores lose their workers"),
    },
)
_SAVED = {"anyOf": [{"$ref": "#/components/schemas/Saved"}, {"type": "null"}]}
_MAYBE = {"anyOf": [_SAVING, {"type": "null"}]}
_SLO = _object(
    {
        "held_ratio": _described(_PART, "of the 10 s windows of the last hour in which rows were asked; null if none"),
        "windows_held": _described(_COUNT, "those whose p95 was within the SLO"),
        "windows": _described(_COUNT, "those in which rows were asked"),
        "best_p95_ms": _described({"type": ["number", "null"]}, "lowest p95 of a window of the last hour"),
        "late": _described({"type": "boolean"}, "whether the p95 of now is surely above the SLO"),
        "missed_s": _described({"type": ["number", "null"]}, "for how long the SLO is missed; null if it is met"),
        "slower": _described(_NUMBER, "times as slow as profiled that plans take services to be"),
        "alarm": _described({"type": ["string", "null"]}, "why the SLO cannot be met, and what would help"),
        "words": _TEXT,
    }
)

_DEVICES = {
    "type": "object",
    "additionalProperties": _object(
        {},
        {
            "measured_j": _described(
                _NUMBER, "all joules of the device, as its meter gives them: counted only if `method` is measured"
            ),
            "method": _described(_TEXT, "how the joules are known: measured, modelled or emulated"),
            "grams_method": _described(_TEXT, "how the grams are known: measured only if the intensity was published"),
            "intensity": _described(_TEXT, "how the carbon intensities were known"),
        },
    ),
}

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
        },
        {
            "parameters": _object(
                {},
                {
                    "steps": _described({"type": "object"}, "what is done before and after the model"),
                    "untrained": _described(_array(_TEXT), "variants that answer with random weights"),
                },
            )
        },
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
            "matched": _described(_MAYBE, "against the best fixed mix at the accuracy served"),
            "boundary": _described(_TEXT, "what is counted: server"),
            "grid": _described(_TEXT, "how the carbon intensities were known"),
            "known": _described(_TEXT, "label, boundary and grid in words"),
            "perfect_forecast": _described({"type": "boolean"}, "whether plans knew the intensities to come"),
        },
        {"since_s": _described(_NUMBER, "grid time (Unix seconds) from which on it counts")},
    ),
    "State": _object(
        {},
        {
            "models": {"type": "object", "additionalProperties": _object({}, {"saved": _SAVED, "slo": _SLO})},
            "totals": _object({}, {"saved": _SAVED, "devices": _DEVICES}),
            "idle": _described(
                {"anyOf": [_IDLE, _NONE]},
                "idle part of the energy used so far, and how few cores would do at this load",
            ),
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

# --- infer requests ---------------------------------------------------------------------------------------------------

_FLOAT_MAX = math.nextafter((2 - 2.0**-24) * 2.0**127, 0)
"""The largest double that still rounds to a finite FP32."""

ELEMENTS: dict[str, dict[str, Any]] = {
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
ZEROS: dict[str, Any] = {"BYTES": "", "BOOL": False}

INFER_PARAMETERS: dict[str, Any] = {
    "type": ["object", "null"],
    "properties": {
        "timeout": {"type": "integer", "minimum": 0, "description": "microseconds; 0: the server's own"},
        "binary_data_output": {"type": "boolean"},
        "clover_min_accuracy": {"type": "number", "minimum": 0, "maximum": 100, "description": "percent"},
        "clover_max_latency_ms": {"type": "number", "minimum": 0},
        "clover_cascade": {"enum": ["on", "off"], "description": "off asks one variant a row"},
        "clover_receipt": {"type": "boolean"},
    },
}


# --- commands of the controller ---------------------------------------------------------------------------------------

_CONFIGURATION = (
    'A `configuration` ({"VARIANT@PROFILE": COUNT}) is taken too; which ones exist depends on what was measured here.'
)
_TARGETS: dict[str, Any] = {
    "accuracy_floor": {"type": ["number", "null"], "minimum": 0, "maximum": 100, "description": "percent"},
    "slo_ms": {"type": ["number", "null"], "minimum": 0.001, "maximum": 1e9},
    "lambda": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "objective": {"enum": ["paper", "floor", None]},
}
_INPUTS: dict[str, Any] = {
    "intensity_g_per_kwh": {"type": ["number", "null"], "minimum": 0, "maximum": 1e5},
    "arrival_rate": {"type": ["number", "null"], "minimum": 0, "maximum": 1e9},
}
_MODES = ["off", "observe", "active"]
_FORCE: dict[str, Any] = {
    "type": "boolean",
    "description": "do it although the plan is predicted to break the accuracy floor or the SLO; else that is a 409",
}


@dataclass(frozen=True)
class CommandSchema:
    """The body of `POST /v2/clover/VERB`, besides `dry_run`, which all commands take, and `model`.

    `models` says what becomes of `model`: it is "one" that must be named if several are served, "any" that may be
    named, or there is "none".  `any_of` are alternatives of which a body must meet one.
    """

    text: str
    properties: dict[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    any_of: tuple[dict[str, Any], ...] = ()
    models: Literal["one", "any", "none"] = "one"


def _rollout_settings() -> dict[str, Any]:
    """Return the settings of a roll-out that its command may give, as the configuration has them."""
    _, schemas = msgspec.json.schema_components([RolloutConfig])
    settings: dict[str, Any] = schemas[RolloutConfig.__name__]["properties"]
    return {name: settings[name] for name in settings if name != "root"}


_ROLLOUT = {"folder": {"type": "string", "minLength": 1}, "version": {"type": "string"}} | _rollout_settings()

COMMANDS = {
    "pin": CommandSchema(
        "Hold a model to one variant (null lifts the pin). " + _CONFIGURATION,
        {"variant": {"type": ["string", "null"]}, "force": _FORCE},
        required=("variant",),
    ),
    "freeze": CommandSchema(
        "Keep every deployment as it is, or let go again.",
        {"on": {"type": "boolean"}},
        required=("on",),
        models="any",
    ),
    "plan": CommandSchema("What the controller would do; changes nothing. " + _CONFIGURATION, _TARGETS | _INPUTS),
    "apply": CommandSchema("Plan and apply now. " + _CONFIGURATION, {"force": _FORCE} | _TARGETS | _INPUTS),
    "base": CommandSchema("Run the best variant on whole devices."),
    "guard": CommandSchema(
        "Watch answers anew after a drift: the plan's own thresholds, and its cascade, are back.",
        {"reset": {"const": True}},
        required=("reset",),
        models="any",
    ),
    "set": CommandSchema(
        "Change targets or mode while serving.",
        {"force": _FORCE} | _TARGETS | {"mode": {"enum": [*_MODES, None]}},
        any_of=(
            *({"required": [key]} for key in _TARGETS),
            {"required": ["mode"], "properties": {"mode": {"enum": _MODES}}},
        ),
        models="any",
    ),
    "roll-out": CommandSchema(
        "Try a new version of a model beside the stable one (folder), or say what becomes of it (action).",
        {
            "action": {"enum": ["status", "promote", "roll-back"]},
            **_ROLLOUT,
        },
        any_of=(
            {"required": ["folder"], "properties": {"action": False}},
            {"required": ["action"], "properties": dict.fromkeys(_ROLLOUT, False)},
        ),
    ),
    "cluster": CommandSchema(
        "Follow the order of a cluster's controller for lease_s seconds, leave the cluster, or say how it stands.",
        {
            "action": {"enum": ["follow", "leave", "status", "profiles"]},
            "cluster": {"type": "string"},
            "node": {"type": "string"},
            "epoch": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
            "lease_s": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
            "models": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {
                        "rate": {"type": "number", "minimum": 0, "exclusiveMaximum": 1e9},
                        "accuracy": {"type": "number", "minimum": 0, "maximum": 100},
                    },
                    "required": ["rate", "accuracy"],
                    "additionalProperties": False,
                },
            },
        },
        required=("action",),
        models="none",
        any_of=(
            {"required": ["epoch", "lease_s"], "properties": {"action": {"const": "follow"}}},
            {"properties": {"action": {"enum": ["leave", "status", "profiles"]}}},
        ),
    ),
}

ASKING = {"cluster": ("status", "profiles")}
"""Actions of commands that change nothing: a cluster's controller asks them every few seconds."""
