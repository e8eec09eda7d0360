"""The JSON schemas of the controller's commands, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from clover.types import FamilySpec

_CONFIGURATION = (
    'A `configuration` ({"VARIANT@PROFILE": COUNT}) is taken too; which ones exist depends on what was measured here.'
)
_TARGETS: dict[str, dict[str, Any]] = {
    "accuracy_floor": {"type": ["number", "null"], "minimum": 0, "maximum": 100, "description": "percent"},
    "slo_ms": {"type": ["number", "null"], "minimum": 0.001, "maximum": 1e9},
    "lambda": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "objective": {"enum": ["paper", "floor", None]},
}
_INPUTS: dict[str, dict[str, Any]] = {
    "intensity_g_per_kwh": {"type": ["number", "null"], "minimum": 0, "maximum": 1e5},
    "arrival_rate": {"type": ["number", "null"], "minimum": 0, "maximum": 1e9},
}
_MODES = ["off", "observe", "active"]
_FORCE: dict[str, Any] = {
    "type": "boolean",
    "description": "do it although the plan is predicted to break the accuracy floor or the SLO; else that is a 409",
}

TEXTS = {
    "pin": "Hold a model to one variant (null lifts the pin). " + _CONFIGURATION,
    "freeze": "Keep every deployment as it is, or let go again.",
    "plan": "What the controller would do; changes nothing. " + _CONFIGURATION,
    "apply": "Plan and apply now. " + _CONFIGURATION,
    "base": "Run the best variant on whole devices.",
    "guard": "Watch answers anew after a drift: the plan's own thresholds, and its cascade, are back.",
    "set": "Change targets or mode while serving.",
}


def command_schema(verb: str, specs: dict[str, FamilySpec]) -> dict[str, Any]:
    """Return the body of `POST /v2/clover/VERB`.  A model must be named where several are served."""
    names = list(specs)
    properties: dict[str, Any] = {"model": {"enum": names}, "dry_run": {"type": "boolean"}}
    required = ["model"] if len(names) > 1 else []
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "description": TEXTS[verb]}
    if verb == "pin":
        properties["variant"] = {"type": ["string", "null"]}
        required.append("variant")
        schema["anyOf"] = [
            {"properties": {"model": {"const": name}, "variant": {"enum": [*(v.name for v in spec.variants), None]}}}
            for name, spec in specs.items()
        ]
    if verb in ("pin", "apply", "set"):
        properties["force"] = _FORCE
    if verb == "freeze":
        properties["on"] = {"type": "boolean"}
        required = ["on"]
    elif verb == "guard":
        properties["reset"] = {"const": True}
        required = ["reset"]
    elif verb in ("plan", "apply"):
        properties |= _TARGETS | _INPUTS
    elif verb == "set":
        properties |= _TARGETS | {"mode": {"enum": [*_MODES, None]}}
        required = []
        schema["anyOf"] = [{"required": [key]} for key in _TARGETS]
        schema["anyOf"].append({"required": ["mode"], "properties": {"mode": {"enum": _MODES}}})
    return schema | {"properties": properties, "required": required}
