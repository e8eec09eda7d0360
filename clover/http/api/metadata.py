"""The JSON documents that describe families: metadata, configuration, readiness."""

from __future__ import annotations

from typing import Any

import msgspec

from clover.types import FamilySpec, StepsSpec, TensorSpec, VariantSpec

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)


def server_metadata(version: str) -> dict[str, Any]:
    """Return the answer to GET /v2."""
    return {"name": "clover", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(name: str, spec: FamilySpec) -> dict[str, Any]:
    """Return the answer to GET /v2/models/M; shapes begin with the batch axis, -1, and outputs may have
    labels."""

    def tensors(listed: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [
            {"name": one.name, "datatype": one.datatype, "shape": [-1, *one.shape]}
            | ({"parameters": {"labels": list(one.labels)}} if one.labels else {})
            for one in listed
        ]

    return {
        "name": name,
        "versions": [spec.version],
        "platform": spec.platform,
        "inputs": tensors(spec.inputs),
        "outputs": tensors(spec.outputs),
        **({} if spec.steps is None else {"parameters": {"steps": step_metadata(spec.steps, spec.variants[0])}}),
    }


def step_metadata(steps: StepsSpec, variant: VariantSpec) -> dict[str, Any]:
    """Return what a client has to know of a family's steps, to run those that are its own: they, where they run, and
    the tensors of the application.  Clients do not know variants, so parameters are those of `variant` unless workers
    run all steps; in what clients send all variants are alike."""
    found: dict[str, Any] = msgspec.to_builtins(steps)
    if steps.run != "worker":
        for table in (*found["before"], *found["after"]):
            for key, value in table.items():
                if isinstance(value, str) and value.startswith("$") and value[1:] in variant.parameters:
                    table[key] = variant.parameters[value[1:]]
    return found


def model_config(name: str, spec: FamilySpec) -> dict[str, Any]:
    """Return the answer to GET /v2/models/M/config: dims without the batch axis, datatypes by Triton's names."""

    def tensors(listed: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [
            {
                "name": one.name,
                "data_type": "TYPE_STRING" if one.datatype == "BYTES" else f"TYPE_{one.datatype}",
                "dims": list(one.shape),
            }
            for one in listed
        ]

    return {
        "name": name,
        "platform": spec.platform,
        "backend": "clover",
        "max_batch_size": spec.max_batch,
        "input": tensors(spec.inputs),
        "output": tensors(spec.outputs),
    }
