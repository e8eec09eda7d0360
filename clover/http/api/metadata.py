"""The JSON documents that describe families: metadata, configuration, readiness."""

from __future__ import annotations

from typing import Any

from clover.families import by_agreement
from clover.interfaces import Model, SplitModel
from clover.steps import describe_steps
from clover.types import FamilySpec, TensorSpec

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


def model_metadata(name: str, spec: FamilySpec, served: tuple[str, ...]) -> dict[str, Any]:
    """Return the answer to GET /v2/models/M; shapes begin with the batch axis, -1, and outputs may have
    labels."""

    def tensors(listed: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *tensor.shape]}
            | ({"parameters": {"labels": list(tensor.labels)}} if tensor.labels else {})
            for tensor in listed
        ]

    parameters: dict[str, Any] = {} if spec.steps is None else {"steps": describe_steps(spec)}
    if untrained := [variant.name for variant in spec.variants if variant.untrained]:
        parameters["untrained"] = untrained
    if by_agreement(spec):
        parameters["accuracy_method"] = "proxy"  # of receipts and profile: agreement with the best variant
    return {
        "name": name,
        "versions": list(served),
        "platform": spec.platform,
        "inputs": tensors(spec.inputs),
        "outputs": tensors(spec.outputs),
        **({"parameters": parameters} if parameters else {}),
    }


def versions(model: Model) -> tuple[str, ...]:
    """Return the versions that are served under a name."""
    return tuple(spec.version for spec in model.versions()) if isinstance(model, SplitModel) else (model.spec.version,)


def model_config(name: str, spec: FamilySpec) -> dict[str, Any]:
    """Return the answer to GET /v2/models/M/config: dims without the batch axis, datatypes by Triton's names."""

    def tensors(listed: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [
            {
                "name": tensor.name,
                "data_type": "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}",
                "dims": list(tensor.shape),
            }
            for tensor in listed
        ]

    return {
        "name": name,
        "platform": spec.platform,
        "backend": "clover",
        "max_batch_size": spec.max_batch,
        "input": tensors(spec.inputs),
        "output": tensors(spec.outputs),
    }
