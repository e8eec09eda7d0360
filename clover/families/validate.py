"""Checking a declaration: every error names the file (or family) and the key."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from clover.errors import ConfigError
from clover.families.declaration import (
    CONFIDENCES,
    DATATYPES,
    DIGEST,
    LOADER,
    MAX_RANK,
    MAX_VARIANTS,
    METRICS,
    NAME,
    PRECISIONS,
    PUBLISHED,
)
from clover.hints import did_you_mean
from clover.types import ConfidenceSpec, FamilySpec, OpenAiSpec, PublishedFile, TensorSpec, VariantSpec


def check(spec: FamilySpec, folder: Path | None, where: str) -> None:
    """Raise ConfigError for the first thing that is wrong with `spec`.

    `folder` holds the family's files (None: it has none); `where` names the file or the family in the error.
    """

    def refuse(key: str, message: str) -> ConfigError:
        return ConfigError(f"{where}: {key}: {message}")

    _check_name(spec.name, "name", where)
    _check_name(spec.version, "version", where)
    if not 1 <= spec.max_batch <= 4096:
        raise refuse("max_batch", f"{spec.max_batch} is not within 1..4096")
    for key, names in (
        ("inputs", [tensor.name for tensor in spec.inputs]),
        ("outputs", [tensor.name for tensor in spec.outputs]),
        ("variants", [variant.name for variant in spec.variants]),
    ):
        if not names:
            raise refuse(key, "at least one is needed")
        for index, name in enumerate(names):
            _check_name(name, f"{key}[{index}].name", where)
            if name in names[:index]:
                raise refuse(f"{key}[{index}].name", f"{name!r} is there twice")
    if len(spec.variants) > MAX_VARIANTS:
        raise refuse("variants", f"{len(spec.variants)} are more than the {MAX_VARIANTS} a family may have: split it")
    for key, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        for index, tensor in enumerate(tensors):
            if tensor.labels and key == "inputs":
                raise refuse(f"inputs[{index}].labels", "only outputs have labels")
            _check_tensor(tensor, f"{key}[{index}]", where)
    for index, variant in enumerate(spec.variants):
        key = f"variants[{index}]"
        _check_name(variant.version, f"{key}.version", where)
        _check_loader(variant.loader, f"{key}.loader", where)
        if variant.weights:
            _check_weights(variant.weights, folder, f"{key}.weights", where)
        _check_published(variant, f"{key}.published", where)
        _check_precision(variant.precision, f"{key}.precision", where)
        if variant.kind == "python" and variant.precision != "fp32":
            raise refuse(f"{key}.precision", "belongs to torch variants: a python one computes as its function does")
        if variant.accuracy is not None and not 0 <= variant.accuracy.value <= 100:
            raise refuse(f"{key}.accuracy.value", f"{variant.accuracy.value} is not a percentage")
    if spec.evaluation is not None:
        _check_loader(spec.evaluation.loader, "evaluation.loader", where)
        if ":" in spec.evaluation.metric:
            _check_loader(spec.evaluation.metric, "evaluation.metric", where)
        elif spec.evaluation.metric not in METRICS:
            hint = did_you_mean(spec.evaluation.metric, METRICS)
            allowed = f"it is {' or '.join(map(repr, METRICS))}, or module:function of the family's folder"
            raise refuse("evaluation.metric", f"{spec.evaluation.metric!r} is unknown{hint}: {allowed}")
    if spec.confidence is not None:
        _check_confidence(spec, spec.confidence, where)


def _check_openai(spec: FamilySpec, openai: OpenAiSpec, where: str) -> None:
    """Check that a family which says that it embeds takes one text a row, and gives a vector."""
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    if openai.output and openai.output not in outputs:
        hint = did_you_mean(openai.output, outputs)
        raise ConfigError(f"{where}: openai.output: there is no output {openai.output!r}{hint}")
    if not openai.embeddings:
        return
    text = spec.inputs[0]
    if len(spec.inputs) != 1 or text.datatype != "BYTES" or text.variable or int(np.prod(text.shape)) != 1:
        raise ConfigError(f"{where}: openai.embeddings: needs one input, BYTES of shape [1], and no other")
    vector = outputs[openai.output] if openai.output else spec.outputs[0]
    if vector.datatype not in ("FP16", "FP32", "FP64") or len(vector.shape) != 1 or vector.variable:
        message = f"{vector.name!r} is no vector of floating-point numbers of fixed length: openai.output names another"
        raise ConfigError(f"{where}: openai.embeddings: {message}")


def check_sent(spec: FamilySpec, where: str) -> None:
    """Raise ConfigError for the first thing that is wrong with the tensors that clients send and get."""
    if spec.openai is not None:
        _check_openai(spec, spec.openai, where)
    if spec.steps is not None:
        for key, tensors in (("inputs", spec.steps.inputs), ("outputs", spec.steps.outputs)):
            for index, tensor in enumerate(tensors):
                _check_name(tensor.name, f"steps.{key}[{index}].name", where)
                _check_tensor(tensor, f"steps.{key}[{index}]", where)
                if tensor.name in [one.name for one in tensors[:index]]:
                    raise ConfigError(f"{where}: steps.{key}[{index}].name: {tensor.name!r} is there twice")
        for tensor in spec.inputs:
            _check_tensor(tensor, f"steps: what clients send: {tensor.name}", where)


def _check_confidence(spec: FamilySpec, confidence: ConfidenceSpec, where: str) -> None:
    """Check that the output exists, and that a built-in score can be computed from it."""
    given = spec.model_outputs(spec.variants[0])
    outputs = {tensor.name: tensor for tensor in given}
    if confidence.output and confidence.output not in outputs:
        hint = did_you_mean(confidence.output, outputs)
        raise ConfigError(f"{where}: confidence.output: there is no output {confidence.output!r}{hint}")
    if ":" in confidence.kind:
        return _check_loader(confidence.kind, "confidence.kind", where)
    if confidence.kind not in CONFIDENCES:
        hint = did_you_mean(confidence.kind, CONFIDENCES)
        allowed = f"{', '.join(CONFIDENCES)}, or module:function"
        raise ConfigError(f"{where}: confidence.kind: {confidence.kind!r} is unknown{hint}: it is {allowed}")
    tensor = outputs[confidence.output] if confidence.output else given[0]
    if DATATYPES.get(tensor.datatype, np.dtype(np.uint8)).kind != "f" or int(np.prod(tensor.bound)) < 2:
        text = f"{confidence.kind!r} needs several floating-point numbers a row, which {tensor.name!r} does not hold"
        raise ConfigError(f"{where}: confidence.kind: {text}: name another output, or a function of your own")
    return None


def _check_name(name: str, key: str, where: str) -> None:
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise ConfigError(f"{where}: {key}: {name!r} is not 1 to 128 of the characters A-Z a-z 0-9 . _ -")


def _check_loader(loader: str, key: str, where: str) -> None:
    if not LOADER.fullmatch(loader):
        raise ConfigError(f"{where}: {key}: {loader!r} is not of the form module:function")


def check_precisions(variants: Any, where: str) -> None:
    """Check the precisions of a table that was just read.

    Called before msgspec converts the table, whose own error would not list the precisions there are.
    """
    for index, row in enumerate(variants if isinstance(variants, list) else []):
        if isinstance(row, dict) and "precision" in row:
            _check_precision(row["precision"], f"variants[{index}].precision", where)


def _check_precision(precision: Any, key: str, where: str) -> None:
    if precision not in PRECISIONS:
        hint = did_you_mean(str(precision).lower(), PRECISIONS)
        raise ConfigError(f"{where}: {key}: {precision!r} is unknown{hint}: it is one of {', '.join(PRECISIONS)}")


def _check_tensor(tensor: TensorSpec, key: str, where: str) -> None:
    def refuse(field: str, message: str) -> ConfigError:
        return ConfigError(f"{where}: {key}.{field}: {message}")

    if tensor.datatype not in DATATYPES:
        hint = did_you_mean(tensor.datatype.upper(), DATATYPES)
        raise refuse("datatype", f"{tensor.datatype!r} is unknown{hint}: it is one of {', '.join(DATATYPES)}")
    if len(tensor.shape) > MAX_RANK - 1:
        raise refuse("shape", f"has {len(tensor.shape)} axes; with the batch axis at most {MAX_RANK} are allowed")
    if any(axis < 1 and axis != -1 for axis in tensor.shape):
        raise refuse("shape", f"{list(tensor.shape)}: an axis is positive, or -1 if it varies")
    if tensor.variable and not tensor.max_shape:
        raise refuse("max_shape", "is needed if shape has a variable axis: it bounds every axis")
    if tensor.max_shape:
        bounds = zip(tensor.shape, tensor.max_shape, strict=False)
        if len(tensor.max_shape) != len(tensor.shape) or any(b < 1 or a not in (-1, b) for a, b in bounds):
            message = f"{list(tensor.max_shape)} does not bound {list(tensor.shape)} axis by axis"
            raise refuse("max_shape", message)
    elements = int(np.prod(tensor.bound, dtype=object))
    if tensor.datatype == "BYTES":
        least = 4 * elements
        if tensor.max_bytes < least:
            raise refuse("max_bytes", f"a row of {elements} elements takes at least {least} bytes: 4 each, and text")
    elif tensor.max_bytes:
        raise refuse("max_bytes", "belongs to BYTES tensors only")
    if tensor.labels and len(tensor.labels) != elements:
        raise refuse("labels", f"{len(tensor.labels)} labels for {elements} values")


def _check_published(variant: VariantSpec, key: str, where: str) -> None:
    """Check the addresses and digests of a variant's published weights, and of the files that they need."""
    if variant.published is None:
        return
    beside: dict[str, PublishedFile] = {f"{key}.beside.{name}": file for name, file in variant.published.beside.items()}
    for part, file in {key: variant.published, **beside}.items():
        if not PUBLISHED.fullmatch(file.url):
            raise ConfigError(f"{where}: {part}.url: {file.url!r} is not https://HOST/.../FILE")
        if file.sha256 and not DIGEST.fullmatch(file.sha256):
            raise ConfigError(f"{where}: {part}.sha256: is the first 8 to 64 hexadecimal digits of the file's digest")
        if "{revision}" in file.url and (file.sha256 or part != key):
            raise ConfigError(f"{where}: {part}.url: {{revision}} is for weights of which no digest is known")


def _check_weights(weights: str, folder: Path | None, key: str, where: str) -> None:
    """Check that a weight file exists and lies in the family's folder, links followed."""
    relative = PurePosixPath(weights)
    if folder is None:
        raise ConfigError(f"{where}: {key}: a family without a folder has no weight files")
    if relative.is_absolute() or ".." in relative.parts or "\0" in weights or "\\" in weights:
        raise ConfigError(f"{where}: {key}: {weights!r} must be a path below the family's folder, without '..'")
    path = folder / relative
    if not path.is_file():
        raise ConfigError(f"{where}: {key}: no file {weights!r} in the family's folder")
    if not path.resolve().is_relative_to(folder):
        raise ConfigError(f"{where}: {key}: {weights!r} is a link that leaves the family's folder")
